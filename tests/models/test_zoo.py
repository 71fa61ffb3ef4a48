"""Real models: a few of every family here, all of them behind the slow marker, and the harness itself.

`python -m tests.models` runs the same register and writes docs/models.md.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.behaviour import compare_behaviour
from tests.forks import ended_forks
from tests.models import detectors_zoo, measure, timm_zoo, zoo
from tests.models.__main__ import good, main, parse, read, run_all
from tests.models.page import page
from tests.models.torchvision_zoo import smaller

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here

REPRESENTATIVE = """
    timm/test_vit timm/test_efficientnet timm/test_mambaout timm/test_nfnet
    transformers/BertForMaskedLM transformers/LlamaForCausalLM transformers/Dinov2ForImageClassification
    torch.nn/lstm_proj_bidirectional torch.nn/attention_cross torch.nn/transformer_encoder
""".split()

KNOWN = {"timm/gmlp_ti16_224": "every group passes a layer norm, so that with exact=True there is nothing to remove"}
"""Model -> why it is not good yet. A model that became good must leave the list."""


@pytest.mark.parametrize("key", REPRESENTATIVE)
def test_one_small_model_of_a_family(key: str) -> None:
    family = key.split("/")[0]
    result = measure.measure(zoo.entries(family)[key])
    assert good(result) == (key not in KNOWN), json.dumps(result, indent=1)


@pytest.mark.slow
@pytest.mark.parametrize("family", list(zoo.FAMILIES))
def test_all_models_of_a_family(family: str, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    main([family, "--jobs", "1", "--results", str(results), "--output", ""])
    bad = {key: result for key, result in read(results).items() if not good(result)}
    assert set(bad) == {key for key in KNOWN if key.startswith(f"{family}/")}, json.dumps(bad, indent=1)


# -- the harness ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: Any = None
    past_key_values: Any = None


def test_error_of_looks_into_outputs_and_past_caches() -> None:
    one = torch.ones(3)
    assert math.isclose(measure.error_of(one, 2 * one), 0.5)
    assert measure.error_of((one, {"a": [one]}), (one, {"a": [one]})) == 0.0
    assert measure.error_of({"a": one}, {"b": one}) == math.inf
    assert measure.error_of(one, torch.ones(4)) == math.inf
    assert measure.error_of(one * math.nan, one) == math.inf
    assert measure.error_of(None, None) == math.inf
    assert measure.error_of(torch.zeros(2), torch.zeros(2)) == 0.0
    assert measure.error_of(Output(one, (one, one)), Output(one, (one, 2 * one))) == 0.5
    assert measure.error_of(Output(one, None, [one]), Output(one, None, [2 * one])) == 0.0
    assert measure.error_of(Output(one), {"logits": one}) == 0.0
    assert measure.error_of(torch.tensor([True]), torch.tensor([False])) > 1e99  # nothing to be relative to


class Casting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().to(torch.bfloat16).softmax(-1, dtype=torch.float32) * torch.tensor(1 / 3).to(x.dtype)


def test_run_keeps_float64_where_a_forward_casts() -> None:
    x = zoo.numbers(5)
    got = measure.run(Casting(), (x,))
    assert got.dtype == torch.float64
    assert float((got - x.softmax(-1) / 3).abs().max()) < 1e-16
    assert torch.get_default_dtype() == torch.float32


def linear() -> tuple[nn.Module, Any]:
    return zoo.ready(nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 3)), (zoo.numbers(2, 4),))


LINEAR = zoo.Entry("torch.nn", "linear", linear)


def test_a_wrong_small_model_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = fxprune.transform

    def wrong(*args: Any, **kwargs: Any) -> nn.Module:
        small = transform(*args, **kwargs)
        with torch.no_grad():
            next(small.parameters()).mul_(1 + 1e-6)
        return small

    right = measure.measure(LINEAR)
    assert good(right)
    assert right["path"] == "eager"
    assert right["removed"] == pytest.approx(24 / 83)
    assert right["all_error"] < 1e-14
    monkeypatch.setattr(fxprune, "transform", wrong)
    result = measure.measure(LINEAR)
    assert 1e-9 < result["error"] < 1e-3
    assert result["rounding"] < 1e-14
    assert not good(result)


def test_a_class_that_loses_much_less_than_a_graph_is_not_kept() -> None:
    kept = {"same_class": True, "all_removed": 0.28, "graph_removed": 0.3}
    assert measure.keeps_class(kept)
    assert measure.keeps_class({"same_class": True, "all_removed": 0.28})  # there is no graph
    assert not measure.keeps_class({**kept, "all_removed": 0.26})
    assert not measure.keeps_class({**kept, "same_class": False})


def test_another_behaviour_is_told() -> None:
    build = zoo.Entry("torch.nn", "linear", lambda: (linear()[0].train(), zoo.numbers(2, 4)))
    right = measure.measure(build, behaviour=True)
    assert good(right)
    other = {**right, "behaviour": ["modes: 1 in the other mode"]}
    assert not measure.behaves(other)
    assert not good(other)
    assert not good({**right, "all_failure": "ValueError"})
    assert "| modes: 1 in the other mode |" in page([other])


def test_rounding_in_the_statistics_of_two_values_is_no_difference() -> None:
    def build() -> tuple[nn.Module, Any]:
        norm = nn.BatchNorm1d(8, eps=1e-24)
        layers = (nn.Conv2d(3, 301, 3), nn.ReLU(), nn.Conv2d(301, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm)
        x = zoo.numbers(1, 3, 8, 8)
        return zoo.ready(nn.Sequential(*layers, nn.Linear(8, 2)), (torch.cat([x, x + 1e-9 * x.square()]),))

    model, inputs = build()
    small = fxprune.transform(model, inputs, ratio=0.3, importance="random", exact=True)
    assert [s for s in compare_behaviour(model, small, inputs) if s.startswith("training: first call: differs")]
    assert measure.measure(zoo.Entry("torch.nn", "norm", build), behaviour=True)["behaviour"] == []


def test_a_model_that_loses_no_channel_does_not_pass() -> None:
    entry = zoo.Entry("torch.nn", "one", lambda: zoo.ready(nn.Linear(4, 3), (zoo.numbers(2, 4),)))
    result = measure.measure(entry)
    assert result["removed"] == 0
    assert not measure.passed(result)
    assert sum(share for _, share in result["locked"]) > 0.5


def test_a_model_that_cannot_be_captured_says_why() -> None:
    class Branch(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) if input.sum() > 1e9 else input + float(input.sum())

    result = measure.measure(zoo.Entry("torch.nn", "branch", lambda: (Branch(4, 4).double(), (zoo.numbers(2, 4),))))
    assert not good(result)
    assert result.get("failure") or result["removed"] == 0


def fails() -> tuple[nn.Module, Any]:
    raise ValueError("no such model")


def greedy() -> tuple[nn.Module, Any]:
    return zoo.ready(nn.Linear(2**20, 2**20), ())


def sleeps() -> tuple[nn.Module, Any]:
    time.sleep(100)
    return linear()


def dies() -> tuple[nn.Module, Any]:
    os._exit(7)


def run_some(results: str) -> None:
    """Run an entry of each kind, then one of them again. Torch refuses to fork a process in which a backward ran."""
    options = parse(["--results", results, "--timeout", "12", "--memory", "6", "--jobs", "5"])
    builds = {"linear": linear, "fails": fails, "greedy": greedy, "sleeps": sleeps, "dies": dies}
    run_all([zoo.Entry("torch.nn", name, build) for name, build in builds.items()], options)
    run_all([zoo.Entry("torch.nn", "fails", linear)], options)


def test_every_entry_runs_in_a_process_with_limits(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    (ended,) = ended_forks([("import sys, tests.models.test_zoo as t; t.run_some(sys.argv[1])", [results])])
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    *first, again = lines
    got = {result["key"].split("/")[1]: result for result in first}
    assert good(got["linear"])
    assert got["fails"]["failure"] == "not measured: ValueError: no such model"
    assert "memory" in got["greedy"]["failure"]
    assert got["sleeps"]["failure"] == "stopped after 12 s"
    assert got["dies"]["failure"] == "the process ended with 7"
    assert again["key"] == "torch.nn/fails"
    assert good(again)
    assert good(read(results)["torch.nn/fails"])  # the later line counts
    assert len(lines) == 6


def test_the_page_tells_what_went_and_what_failed() -> None:
    right = measure.measure(LINEAR)
    failed = {"key": "timm/other", "failure": "CaptureError: a | b", "total_seconds": 1.0}
    text = page([right, failed])
    assert "| torch.nn | 1 | 1 of 1 (100 %) | 1 of 1 (100 %) | 1 of 1 (100 %) | eager 1 |" in text
    assert "| timm | 1 | 0 of 1 (0 %) | 0 of 1 (0 %) | 0 of 1 (0 %) | - |" in text
    assert "| all | 2 | 1 of 2 (50 %) | 1 of 2 (50 %) | 1 of 2 (50 %) | eager 1 |" in text
    assert "| linear | 0.00 M | eager | yes | 28.9% | 28.9% | 28.9% |" in text
    assert "CaptureError: a \\| b |" in text


def test_arguments_of_a_class_can_be_replaced_from_outside() -> None:
    package = types.SimpleNamespace(Layer=nn.Linear)
    with smaller(package, "Layer", {"out_features": 3}):
        assert package.Layer(5, out_features=7, bias=False).weight.shape == (3, 5)
    assert package.Layer is nn.Linear


def test_the_smallest_model_of_a_family_is_found() -> None:
    if "timm" not in zoo.installed():
        pytest.skip("timm is not installed")
    zoo.entries("timm")  # imports it in the right order
    assert timm_zoo.smallest("mambaout") == timm_zoo.SMALLEST["mambaout"] == timm_zoo.choice("mambaout")


def test_every_family_is_there() -> None:
    listed = zoo.entries()
    assert {k for k in (*REPRESENTATIVE, *KNOWN) if k.split("/")[0] in zoo.installed()} <= set(listed)
    least = {"torchvision": 90, "timm": 90, "transformers": 27, "detection": 3, "torch.nn": 15}
    least |= {"detectors": 7 if detectors_zoo.compiled() else 0, "diffusers": 9, "ultralytics": 27}
    for family in zoo.installed():
        assert sum(key.startswith(f"{family}/") for key in listed) >= least[family]


def test_the_page_says_what_was_not_measured_and_how_much_less_a_class_loses() -> None:
    given_up = {"key": "timm/a", "path": "fx", "same_class": False, "all_removed": 0.5, "graph_removed": 0.5}
    held = {"key": "timm/b", "path": "eager", "same_class": True, "all_removed": 0.4, "graph_removed": 0.5}
    kept = {**held, "key": "timm/c", "all_removed": 0.46}
    alone = {"key": "torch.nn/d", "path": "eager", "same_class": True, "all_removed": 0.4}
    text = page([given_up, held, kept, alone], "Measured in parts.")
    assert "| timm | 3 | 1 of 3 (33 %) | - | - | eager 2, fx 1 |" in text
    assert "| a | - | fx | no | 50.0% | 50.0% | - |" in text
    assert "| b | - | eager | no | 40.0% | 50.0% | - |" in text
    assert "| c | - | eager | yes | 46.0% | 50.0% | - |" in text
    assert "| d | - | eager | yes | 40.0% | - | - |" in text
    assert "Measured in parts." in text
