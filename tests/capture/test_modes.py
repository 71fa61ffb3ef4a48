"""Tests of modules that read their mode, and of inputs with every example twice."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxprune.capture.fake_tensors import Faker
from fxprune.capture.modes import RandomDecisions, doubled, modules_reading_training, reads_training, set_mode
from fxprune.errors import CaptureError


def drops(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    return F.dropout(x, 0.5, module.training)


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Direct(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training else -x


class Inherited(Direct):
    pass


class ByText(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if getattr(self, "training", False) else -x


class Nested(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def inner() -> torch.Tensor:
            return x if self.training else -x

        return inner()


class ByFunction(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return drops(x, self)


class ByProperty(nn.Module):
    @property
    def rate(self) -> float:
        return 0.5 if self.training else 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.rate


class Decorated(nn.Module):
    @wrapped
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training else -x


class NormOfTorch(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize("kind", [Direct, Inherited, ByText, Nested, ByFunction, ByProperty, Decorated])
def test_code_that_names_training_reads_it(kind: type[nn.Module]) -> None:
    assert reads_training(kind())


def test_code_that_does_not_name_it_and_layers_of_torch_do_not_count() -> None:
    for module in (Plain(), NormOfTorch(3), nn.Dropout(), nn.LSTM(2, 2), nn.TransformerEncoderLayer(4, 2)):
        assert not reads_training(module)


def test_hooks_and_functions_of_one_module_count() -> None:
    hooked, replaced = Plain(), Plain()
    hooked.register_forward_hook(lambda module, args, output: output if module.training else -output)
    replaced.forward = lambda x: drops(x, replaced)
    assert modules_reading_training(nn.Sequential(Plain(), hooked, replaced)) == ["1", "2"]


def test_doubled_inputs_have_every_example_twice_also_inside_containers() -> None:
    mask, scale = torch.ones(3, 5), torch.tensor(2.0)
    (x, inner), keywords = doubled(((torch.zeros(3, 4), {"mask": mask, "n": 3}), {"scale": scale}))
    assert (x.shape, inner["mask"].shape, inner["n"]) == ((6, 4), (6, 5), 3)
    assert keywords["scale"] is scale


def test_tensors_without_the_batch_stay_as_they_are() -> None:
    table = torch.zeros(7, 4)
    assert doubled(((torch.zeros(3, 4), table), {}))[0][1] is table


def test_a_train_method_that_raises_gives_its_text() -> None:
    class Fixed(nn.Module):
        def train(self, mode: bool = True) -> Fixed:
            raise RuntimeError("for inference only")

    with pytest.raises(CaptureError, match="for inference only"):
        set_mode(Fixed(), True)


def test_a_forward_can_decide_by_one_random_number() -> None:
    faker = Faker()
    with faker.mode, RandomDecisions():
        assert torch.rand([]) < 0.6
        assert not torch.rand(1) < 0.4
        assert float(torch.rand_like(torch.zeros(1))) == 0.5
        assert torch.rand(2).shape == (2,)
    with RandomDecisions():
        assert torch.rand([]) == 0.5
