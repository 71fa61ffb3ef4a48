"""A plan whose norms are read from the files is that of the model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxprune
from fxprune.cli import main
from fxprune.criteria import norm_scores
from fxprune.streaming.checkpoint import open_checkpoint
from fxprune.streaming.names import names_of
from fxprune.streaming.planned import StreamedNorms
from tests.streaming.checkpoints import loaded, model_of, pruned, same_bits, saved, tokens

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here


@pytest.mark.parametrize("family", ["GPT2", "Mixtral"])
@pytest.mark.parametrize("p", [1, 2])
def test_norms_from_files_are_those_of_the_model(family: str, p: int, tmp_path: Path) -> None:
    model = saved(model_of(family, torch.bfloat16), tmp_path / "large")
    checkpoint = open_checkpoint(tmp_path / "large")
    found = names_of(model, {name: stored.shape for name, stored in checkpoint.tensors.items()})
    analysis = fxprune.analyze(model, tokens())
    scores = StreamedNorms(checkpoint, found.parts, p, lambda count: None).of_groups(analysis, analysis.groups, None)
    assert np.allclose(scores, norm_scores(analysis, p), rtol=1e-5)


@pytest.mark.parametrize(
    "how", [{"ratio": 0.5, "uniform": "config"}, {"keep": {"params": 0.6}}], ids=["config", "free"]
)
def test_the_options_of_a_plan_are_carried_out(how: dict[str, Any], tmp_path: Path) -> None:
    model = saved(model_of("Llama"), tmp_path / "large")
    small, _ = pruned(model, prefer="class", **how)
    inputs = {"input_ids": torch.zeros(2, 7, dtype=torch.int64)}
    done = fxprune.stream(tmp_path / "large", how, tmp_path / "small", example_inputs=inputs, progress=False)
    assert same_bits(small, loaded(type(model), tmp_path / "small", config_says_it=done.config_says_it))


def test_the_command_reads_the_norms_first(tmp_path: Path, capsys: Any) -> None:
    model = saved(model_of("Llama"), tmp_path / "large")
    words = ["stream", str(tmp_path / "large"), "-o", str(tmp_path / "small")]
    assert main(words) == 2
    assert main([*words, "--importance", "l2", "--ratio", "0.5", "--uniform", "config"]) == 0
    small, _ = pruned(model, ratio=0.5, uniform="config")
    assert same_bits(small, loaded(type(model), tmp_path / "small", config_says_it=True))


def test_an_importance_that_needs_the_model_is_refused(tmp_path: Path) -> None:
    saved(model_of("Llama"), tmp_path / "large")
    how = {"ratio": 0.5, "importance": "taylor"}
    with pytest.raises(fxprune.PlanError, match='importance "taylor" needs the model'):
        fxprune.stream(tmp_path / "large", how, tmp_path / "small", progress=False)
