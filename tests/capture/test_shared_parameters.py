"""Copies for runs on real tensors share the memory of parameters, until a run writes into them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.capture.fake_tensors import Real
from fxprune.capture.layouts import memory_of
from fxprune.costs.latency import measure


class Decides(nn.Module):
    """Decides by numbers, so that it runs on real tensors."""

    def __init__(self, write: Callable[[Decides], None]) -> None:
        super().__init__()
        self.a, self.b, self.write = nn.Linear(6, 16), nn.Linear(16, 3), write
        self.mean, self.var = nn.Parameter(torch.zeros(16)), nn.Parameter(torch.ones(16))
        self.mean.requires_grad_(False)
        self.var.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.write(self)
        h = self.a(x)
        return self.b(h.relu() if h.min().item() > -1e9 else h)


def of_a_view(model: Decides) -> None:
    model.a.weight.data.t()[1:].mul_(0.5)


def of_several(model: Decides) -> None:
    with torch.no_grad():
        torch._foreach_mul_([model.a.weight, model.b.weight], 0.9)


def into_out(model: Decides) -> None:
    with torch.no_grad():
        torch.mul(model.b.weight.detach(), 0.5, out=model.b.weight.data)


def by_numpy(model: Decides) -> None:
    model.a.bias.detach().numpy()[:] *= 0.5


def by_an_array(model: Decides) -> None:
    np.asarray(model.a.bias.detach())[:] *= 0.5


def statistics(model: Decides) -> None:
    F.batch_norm(torch.randn(4, 16), model.mean, model.var, training=True)


WAYS = (of_a_view, of_several, into_out, by_numpy, by_an_array, statistics)


@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("public", [fxprune.transform, fxprune.analyze, fxprune.cost, measure])
def test_what_a_run_writes_is_not_in_the_original(write: Callable[[Decides], None], public: Callable[..., Any]) -> None:
    model = Decides(write).eval()
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.NothingRemovedWarning)
        public(model, torch.randn(4, 6), **({"ratio": 0.5} if public is fxprune.transform else {}))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_memory_is_shared_until_a_run_writes_into_it() -> None:
    model, real = Decides(of_a_view), Real()
    made = real.module(model)
    pairs = list(zip(model.parameters(), made.parameters(), strict=True))
    assert all(memory_of(one) == memory_of(other) for one, other in pairs)
    with real.mode:
        made(torch.randn(4, 6))
    shared = {n for n, one in model.named_parameters() if memory_of(one) == memory_of(made.get_parameter(n))}
    assert {name for name, _ in model.named_parameters()} - shared == {"a.weight"}
    assert torch.equal(made.a.weight[:, 1:], model.a.weight[:, 1:] * 0.5)


def test_two_parameters_in_one_memory_stay_in_one() -> None:
    model, real = nn.Module(), Real()
    model.whole = nn.Parameter(torch.arange(8.0))
    model.part = nn.Parameter(model.whole.data[4:])
    made = real.module(model)
    with real.mode, torch.no_grad():
        made.part.add_(1)
    assert model.whole.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert made.whole.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert memory_of(made.whole) == memory_of(made.part) != memory_of(model.whole)


def test_an_error_leaves_the_numbers_as_they_were() -> None:
    def write_and_stop(model: Decides) -> None:
        model.a.weight.data.zero_()
        raise ValueError("stop")

    model, real = Decides(write_and_stop), Real()
    made, before = real.module(model), model.a.weight.detach().clone()
    with pytest.raises(ValueError, match="stop"), real.mode:
        made(torch.randn(4, 6))
    assert torch.equal(model.a.weight, before)
