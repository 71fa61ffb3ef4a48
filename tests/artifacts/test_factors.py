"""Files of small models whose weights carry factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from tests.planning.test_factors import X, close, model, plan_of, pruned


@pytest.mark.parametrize("inputs", [None, X])
def test_weights_that_carry_a_factor_are_loaded_as_they_were_saved(tmp_path: Path, inputs: Any) -> None:
    small = pruned(model())
    fxprune.save(small, tmp_path / "small.safetensors")
    again = fxprune.load(tmp_path / "small.safetensors", into=model(seed=1), example_inputs=inputs)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in small.state_dict().items())
    assert plan_of(again) == plan_of(small)
    assert plan_of(again).factors
    with torch.no_grad():
        assert torch.equal(again(X), small(X))


def test_a_model_that_was_pruned_twice_is_loaded_with_the_factors_of_both(tmp_path: Path) -> None:
    net = model()
    first = pruned(net)
    second = pruned(first, ratio=0.5, seed=1)
    record = fxprune.record(first).then(fxprune.record(second))
    fxprune.save(second, tmp_path / "small.safetensors", record=record)
    again = fxprune.load(tmp_path / "small.safetensors", into=model(seed=1))
    assert close(second, again)
    assert plan_of(again).factors == record.plan.factors
    assert fxprune.verify(net, again, X) < 1e-12
