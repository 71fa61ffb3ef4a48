"""Files that an earlier version wrote load, and give the models that they gave: one for every path, and for folding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fxprune
from tests.artifacts.saved_models import CASES, model_and_input

SAVED = Path(__file__).parent / "saved"
OUTPUTS = json.loads((SAVED / "outputs.json").read_text())
PATHS = {"fx": "fx", "eager": "eager", "export": "export", "hooks": "hooks", "folded": "fx"}
ALONE = ["folded"]
"""Models that load without example inputs: nothing but tensors and attributes of modules changes."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::fxprune.ChannelsStayWarning"),
    pytest.mark.filterwarnings("ignore::fxprune.FixedSizesWarning"),  # the exported one takes no larger images
]


def same_outputs(small, x, name):
    return torch.allclose(small(x), torch.tensor(OUTPUTS[name]), rtol=1e-5, atol=1e-6)


def test_there_is_a_file_for_every_case_and_a_case_for_every_file():
    files = [f"{name}.{suffix}" for name in CASES for suffix in ("json", "safetensors")]
    assert sorted(p.name for p in SAVED.iterdir()) == sorted([*files, "outputs.json"])
    assert list(PATHS) == list(CASES) == list(OUTPUTS)


@pytest.mark.parametrize("name", CASES)
def test_a_model_saved_before_loads_and_computes_the_same(name):
    model, x = model_and_input(name)
    small = fxprune.load(SAVED / f"{name}.safetensors", into=model, example_inputs=x)
    assert same_outputs(small, x, name)
    assert fxprune.record(small).path == PATHS[name]
    assert fxprune.record(small).plan == fxprune.Plan.load(SAVED / f"{name}.json")


@pytest.mark.parametrize("name", ALONE)
def test_a_model_saved_before_loads_without_inputs_where_it_did(name):
    model, x = model_and_input(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert same_outputs(fxprune.load(SAVED / f"{name}.safetensors", into=model), x, name)


@pytest.mark.parametrize("name", CASES)
def test_a_plan_saved_before_gives_the_same_model_by_the_same_path(name):
    model, x = model_and_input(name)
    plan = fxprune.Plan.load(SAVED / f"{name}.json")
    norms = CASES[name][2].get("norms", "kept")
    small = fxprune.transform(model, x, plan=plan, norms=norms)
    assert same_outputs(small, x, name)
    assert fxprune.record(small).path == PATHS[name]
    assert fxprune.record(small).removed == plan.removed
