"""Models whose forward copies its own modules, or computes in inference mode."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.behaviour import compare_behaviour


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, norm = copy.deepcopy(nn.ModuleList([self.a, self.norm]))
        return self.b(torch.relu(norm(a(x))))


class CopiedOnce(Net):
    """Keeps a fused copy from the first call on, as packages for detection do."""

    def forward(self, x: Tensor) -> Tensor:
        if "fused" not in self.__dict__:
            object.__setattr__(self, "fused", copy.deepcopy(self.a).eval().requires_grad_(False))
        return self.b(torch.relu(self.fused(x)))


class Shallow(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(copy.copy(self.a)(x))


class CopiedTensor(Net):
    def forward(self, x: Tensor) -> Tensor:
        weight = copy.deepcopy(self.a.weight.detach())
        y = x @ weight.T + self.a.bias.data
        return self.b(y if y.sum() > 0 else -y)


class InferenceMode(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.b(torch.relu(self.norm(self.a(x))))


class HalfInInferenceMode(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = self.a(x)
        return self.b(y.clone())


MODELS: tuple[type[Net], ...] = (Net, CopiedOnce, Shallow, CopiedTensor, InferenceMode, HalfInInferenceMode)


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_the_class_is_kept_and_proven(kind: type[Net]) -> None:
    torch.manual_seed(0)
    net, x = kind().eval(), torch.randn(4, 6)
    small = fxprune.transform(net, x, ratio=0.5)
    made = fxprune.record(small)
    assert type(small) is kind
    assert small.b.in_features == 8
    assert made.error is not None
    assert made.error < 1e-9
    assert made.compared
    with torch.no_grad():
        torch.testing.assert_close(small(x), fxprune.masked(net, made.removed)(x))


def test_training_goes_on_where_forward_copies_its_modules() -> None:
    torch.manual_seed(0)
    net, x = CopiedTensor().double().eval(), torch.randn(4, 6).double()
    assert compare_behaviour(net, fxprune.transform(net, x, ratio=0.5, exact=True), x) == []


def test_copies_of_small_buffers_do_not_write_into_foreign_memory() -> None:
    """Torch computes with the numbers of small fake tensors, and gave their copies memory that is not there."""
    many = nn.Sequential(*(nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)) for _ in range(40)))

    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.many = many

        def forward(self, x: Tensor) -> Tensor:
            return copy.deepcopy(self.many)(x)

    analysis = fxprune.analyze(Copies().eval(), torch.rand(1, 16, 4, 4))
    gc.collect()
    assert len(analysis.groups) == 39


def test_a_constant_that_is_reshaped_in_place_is_followed() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
            self.scale = nn.Parameter(torch.rand(16))

        def forward(self, x: Tensor) -> Tensor:
            scale = self.scale.clone().unsqueeze_(0)
            return self.b(self.a(x) * scale.transpose_(0, 1).squeeze_(1)[:])

    torch.manual_seed(0)
    net, x = InPlace().eval().double(), torch.randn(4, 6).double()
    small = fxprune.transform(net, x, ratio=0.5)
    assert small.scale.shape == (8,)
    assert compare_behaviour(net, small, x) == []
