"""Models that are refused before they are captured."""

from __future__ import annotations

from typing import Any

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


def test_a_submodule_that_is_compiled_is_refused() -> None:
    model = nn.Sequential(torch.compile(nn.Linear(3, 8), backend="eager"), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(fxprune.CaptureError, match=r'a submodule is compiled\n  at   "0"\n  why .*\n  do .*_orig_mod'):
        fxprune.transform(model, torch.randn(2, 3), ratio=0.5)


class Facade(nn.Module):
    """A class around a model, whose `train` runs a training."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)

    def train(self, trainer: object = None, **settings: object) -> Facade:  # type: ignore[override]
        raise AssertionError("a training begins")


@pytest.mark.parametrize("function", [fxprune.transform, fxprune.transform_, fxprune.analyze])
def test_a_class_around_a_model_whose_train_begins_a_training_is_refused(function: Any) -> None:
    options = {} if function is fxprune.analyze else {"ratio": 0.5}
    with pytest.raises(fxprune.CaptureError, match=r"its train\(\) sets no mode") as caught:
        function(Facade(), torch.randn(2, 3), **options)
    assert (caught.value.at, '"trainer"' in caught.value.why) == ("the model", True)
    assert "`yolo.model`" in caught.value.do
    with pytest.raises(fxprune.CaptureError, match="no model that computes") as caught:
        function(nn.Sequential(Facade()), torch.randn(2, 3), **options)
    assert caught.value.at == '"0"'


class OtherName(nn.Linear):
    def train(self, flag: bool = True) -> OtherName:
        super().train(flag)
        return self


def test_a_train_with_another_name_for_the_mode_is_no_training() -> None:
    model = nn.Sequential(OtherName(3, 8), nn.ReLU(), nn.Linear(8, 2))
    assert fxprune.transform(model, torch.randn(2, 3), ratio=0.5)[0].out_features == 4
