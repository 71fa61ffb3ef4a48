"""Models of torchvision behave like the originals in both modes, in a step of training, copied and saved."""

from __future__ import annotations

import pytest

import fxprune
from tests.behaviour import compare_behaviour
from tests.models import zoo

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here

SLOW = ("inception_v3", "densenet121", "efficientnet_b0", "vit_b_16", "swin_t")


@pytest.mark.parametrize("name", ["googlenet", "resnet18", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_a_model_of_torchvision_behaves_like_the_original(name: str) -> None:
    model, inputs = zoo.entries("torchvision")[f"torchvision/{name}"].build()
    options = {"ratio": 0.3, "importance": "random", "seed": 3, "exact": True, "path": "eager"}
    small = fxprune.transform(model, inputs, **options)
    assert fxprune.record(small).removed
    assert compare_behaviour(model, small, inputs) == []
