"""Models that are refused before they are captured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune


@pytest.mark.parametrize("name", ["", "0"])
def test_a_module_that_is_compiled_in_place_is_refused(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    model.get_submodule(name).compile(backend="eager")
    with pytest.raises(fxprune.CaptureError, match=r"compiled in place\n  at .*\n  why .*\n  do .*prune before"):
        fxprune.transform(model, torch.randn(2, 3), ratio=0.5)
