"""`repair` says so if the model is not the one that the small model was made from."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import fxprune

DATA = [torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(10)]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 9), nn.Linear(9, 4)).eval()


@pytest.mark.parametrize("path", ["eager", "fx", "export"])
def test_another_model_of_the_same_shapes_is_told(path: str) -> None:
    small = fxprune.transform(net(), DATA[0], ratio=0.5, path=path)
    with pytest.warns(fxprune.OtherWeightsWarning, match="was made from other weights") as caught:
        fxprune.repair(small, net(1), DATA)
    assert caught[0].filename == __file__


def test_a_model_with_other_statistics_alone_is_told() -> None:
    model, other = net(), net()
    other[1].running_mean.add_(1)
    other[1].running_var.add_(1)
    small = fxprune.transform(other, DATA[0], ratio=0.5)
    with pytest.warns(fxprune.OtherWeightsWarning, match="was made from other weights"):
        fxprune.repair(small, model, DATA)


@pytest.mark.parametrize(
    "options",
    [{"ratio": 0.5}, {"ratio": 0.5, "path": "fx"}, {"ratio": 0.5, "bias": "fold"}, {"counts": {"3": 4}}],
)
def test_the_original_is_known_in_every_form(options: dict[str, Any]) -> None:
    model = net()
    small = fxprune.transform(model, DATA[0], **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxprune.repair(small, model, DATA)
        fxprune.repair(small, copy.deepcopy(model), DATA)
        fxprune.repair(fxprune.transform(small, DATA[0], ratio=0.3), small, DATA)


def test_a_small_model_that_was_trained_has_weights_of_its_own() -> None:
    model = net()
    small = fxprune.transform(model, DATA[0], ratio=0.5)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxprune.repair(small, model, DATA)
