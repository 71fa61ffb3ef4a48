"""Quotients whose denominators are zero at removed slots of the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.proof.quotients import settle
from tests.mutations import unseen_mutations
from tests.support import call, randomise


class LinearAttention(nn.Module):
    """Attention without a softmax: the sum of the keys is a denominator, that of a removed head is zero."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(6, 3 * width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        q, k = q.relu() + 1e-6, k.relu() + 1e-6
        y = q @ (k.transpose(-1, -2) @ v) / (q @ k.sum(2)[..., None])
        return self.out(y.transpose(1, 2).flatten(2))


class Renorm(nn.Module):
    """Divides by a deviation that it keeps, which is zero for a removed channel; `by` says how."""

    def __init__(self, width: int, by: str) -> None:
        super().__init__()
        self.by = by
        self.register_buffer("mean", torch.randn(width))
        self.register_buffer("deviation", torch.rand(width) + 0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = (x - self.mean + self.calls).clone()
        if self.by == "div":
            return x / self.deviation
        if self.by == "div_":
            return x.div_(self.deviation)
        if self.by == "rsqrt":
            return x * self.deviation.rsqrt()
        return x * (self.deviation**-0.5 if self.by == "pow" else 1 / self.deviation)


def renormed(by: str) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), Renorm(16, by), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("path", ["eager", "fx"])
@pytest.mark.parametrize("by", ["div", "div_", "rsqrt", "pow", "reciprocal"])
def test_a_removed_deviation_is_no_denominator(by: str, path: str) -> None:
    model = renormed(by).double().eval()
    x = torch.randn(5, 6).double()
    small = fxprune.transform(model, x, ratio=0.5, path=path)
    record = fxprune.record(small)
    assert record.removed["1.deviation"]
    assert record.removed["0.weight"]
    assert record.error <= 1e-9
    assert record.compared


def attention() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LinearAttention().double().eval(), torch.randn(2, 5, 6).double().abs()


def run(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [call(model, inputs)]


def test_whole_heads_go_where_their_sum_is_a_denominator() -> None:
    model, x = attention()
    masks = {"qkv": torch.arange(48) % 16 >= 8}
    small = fxprune.transform(model, x, masks=masks)
    assert type(small) is LinearAttention
    assert small.heads == 1
    assert fxprune.record(small).error <= 1e-9


def test_the_proof_still_sees_a_wrong_number_behind_such_a_quotient() -> None:
    model = randomise(renormed("div").double().eval(), 0)
    tried = unseen_mutations(model, torch.randn(5, 6).double(), run, each=4)
    assert tried.tried
    assert tried.unseen == ()


def test_kept_slots_of_a_quotient_stay_as_they_are() -> None:
    quotient = torch.tensor([[torch.nan, torch.inf, 1.0], [torch.nan, 2.0, -torch.inf]])
    assert settle(quotient, [None, np.array([True, False, False])])
    expected = torch.tensor([[torch.nan, 0.0, 1.0], [torch.nan, 2.0, 0.0]])
    assert torch.equal(quotient.isnan(), expected.isnan())
    assert torch.equal(quotient[:, 1:], expected[:, 1:])
    assert not settle(quotient, [None, None])


class ByEinsum(LinearAttention):
    """The same, with products that torch writes in another order for one head: exported, they are nodes."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        q, k = q.relu() + 1e-6, k.relu() + 1e-6
        y = torch.einsum("bhnm,bhmd->bhnd", q, torch.einsum("bhnm,bhnd->bhmd", k, v))
        y = y / torch.einsum("bhnm,bhm->bhn", q, k.sum(2))[..., None]
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("path", ["eager", "export"])
@pytest.mark.filterwarnings("ignore:the small model is an exported graph")
def test_an_einsum_may_run_other_operations_for_one_head(path: str) -> None:
    _, x = attention()
    masks = {"qkv": torch.arange(48) % 16 >= 8}
    small = fxprune.transform(ByEinsum().double().eval(), x, masks=masks, path=path)
    assert fxprune.record(small).error <= 1e-9
    assert fxprune.record(small).compared
