"""Parameters that forward reads and that reach no result keep their width: other code may count on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Labelled(nn.Module):
    """A classifier with an embedding of the labels, which only its loss uses."""

    def __init__(self, way: str = "detached") -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.labels = nn.Linear(4, 8), nn.Linear(8, 3), nn.Embedding(5, 16)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "detached":
            self.labels.weight.detach()
        elif self.way == "computed":
            self.labels.weight.tanh().sum(1).relu()
        elif self.way == "decides" and not self.labels.weight.abs().sum() > 0:
            x = -x
        made = self.b(torch.relu(self.a(x)))
        if self.way == "times 0":
            made = made + 0 * self.labels.weight.sum()
        elif self.way == "times a tensor of 0":
            made = self.labels.weight.mean() * torch.tensor(0.0) + made
        elif self.way == "times zeros":
            made = made + (self.labels.weight * torch.zeros_like(self.labels.weight)).sum()
        elif self.way == "added with alpha=0":
            made = torch.add(made, self.labels.weight.amax(), alpha=0)
        return made

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self(x).square().sum() + self.labels(y).square().sum()


@pytest.mark.filterwarnings("ignore:.*graph")
@pytest.mark.parametrize(
    "way",
    ["detached", "computed", "decides", "times 0", "times zeros", "times a tensor of 0", "added with alpha=0"],
)
def test_what_only_a_loss_uses_stays_with_a_reason(way: str) -> None:
    net, x = Labelled(way).eval(), torch.randn(2, 4)
    small: Any = fxprune.transform(net, x, ratio=0.5, path="eager")
    assert (small.a.out_features, small.labels.weight.shape) == (4, (5, 16))
    assert small.loss(x, torch.tensor([0, 4])).isfinite()
    (reason,) = (text for text in fxprune.record(small).reasons if "no tensor of a result is computed" in text)
    assert '"labels", which forward reads: a plain ratio leaves their width to other code' in reason


@pytest.mark.parametrize("asked", [{"ratio": {"labels": 0.5}}, {"masks": {"labels": torch.arange(16) % 2 == 0}}])
def test_what_is_asked_for_by_name_is_pruned(asked: dict[str, Any]) -> None:
    small: Any = fxprune.transform(Labelled("computed").eval(), torch.randn(2, 4), path="eager", **asked)
    assert small.labels.weight.shape[1] == 8


class Pooled(nn.Module):
    """A pooler whose result is given away, of the width that the model has everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.out = nn.ModuleList((nn.Linear(8, 8), nn.Linear(8, 8))), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, pooler = self.layers
        h = torch.relu(first(x))
        torch.tanh(pooler(h))
        return self.out(h)


@pytest.mark.parametrize(("uniform", "kept"), [((), 8), ("layers.*", 4)])
def test_what_must_have_the_width_of_others_goes_with_them(uniform: Any, kept: int) -> None:
    small: Any = fxprune.transform(Pooled().eval(), torch.randn(2, 8), ratio=0.5, path="eager", uniform=uniform)
    assert small.layers[1].weight.shape == (kept, 4)


class Auxiliary(nn.Module):
    """A head that is computed and given away."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        self.head(h)
        return self.b(h)


def test_a_head_without_a_result_follows_what_it_reads_and_keeps_its_outputs() -> None:
    small: Any = fxprune.transform(Auxiliary().eval(), torch.randn(2, 4), ratio=0.5, path="eager")
    assert small.a.out_features == 4
    assert small.head.weight.shape == (6, 4)


class Written(nn.Module):
    """Parameters that reach the result through memory that is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 2, self.a.out_features)
        view = h[:, 0]
        view.copy_(self.a(x))
        h[:, 1] += self.b(x)
        return self.c(torch.relu(h)).sum(1)


def test_what_is_written_into_memory_that_reaches_a_result_is_pruned() -> None:
    small: Any = fxprune.transform(Written().eval(), torch.randn(2, 4), ratio=0.5, path="eager")
    assert (small.a.out_features, small.b.out_features, small.c.in_features) == (4, 4, 4)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(4, 6)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.out(torch.relu(self.a(x))), "features": self.b(x)}


def test_what_reaches_only_a_part_of_the_result_that_does_not_count_is_pruned() -> None:
    small: Any = fxprune.transform(Two().eval(), torch.randn(2, 4), ratio=0.5, outputs=["logits"], path="eager")
    assert (small.a.out_features, small.b.out_features) == (4, 3)


def test_a_buffer_that_counts_calls_holds_nothing() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
            self.register_buffer("mean", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x))
            self.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
            return self.b(h)

    small: Any = fxprune.transform(Counting().eval(), torch.randn(2, 4), ratio=0.5, path="eager")
    assert small.a.out_features == 4
    assert small.mean.shape == (4,)


class Heads(nn.Module):
    """Attention with a second value projection whose heads are given away, counted by the same setting or not."""

    def __init__(self, same: bool) -> None:
        super().__init__()
        self.heads, self.others = 4, 4
        self.same, self.qkv, self.second = same, nn.Linear(6, 24), nn.Linear(6, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, 2).permute(2, 0, 3, 1, 4)
        self.second(x).view(*x.shape[:2], self.heads if self.same else self.others, 2)
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("same", "heads"), [(True, 2), (False, 4)])
def test_what_the_setting_of_a_result_counts_goes_with_it(same: bool, heads: int) -> None:
    small: Any = fxprune.transform(Heads(same).eval(), torch.randn(2, 5, 6), ratio=0.5, path="eager")
    assert small.heads == 2
    assert small.second.out_features == 2 * heads


def test_a_list_of_numbers_in_an_attribute_is_not_named() -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.strides = nn.Linear(4, 8), nn.Linear(8, 3), torch.tensor([2.0, 4.0])

        def forward(self, x: Tensor) -> Tensor:
            scale = sum(torch.full((3,), stride.item()) for stride in self.strides)
            return self.b(torch.relu(self.a(x))) * scale

    small: Any = fxprune.transform(Strided().eval(), torch.randn(2, 4), ratio=0.5, path="eager")
    assert small.a.out_features == 4
    assert fxprune.record(small).reasons == ()


class ByNumPy(nn.Module):
    """A model that decides by a number, and computes a part of its result by NumPy."""

    def __init__(self, leaves: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.leaves = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(4, 8), leaves

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.tensor(2.0) if x.sum() > -1e9 else 1
        aside = self.c(x)
        made = torch.from_numpy(aside.detach().numpy().mean(1)) if self.leaves else 0
        return self.b(torch.relu(self.a(x))) * scale + made


@pytest.mark.parametrize("leaves", [False, True])
def test_what_leaves_torch_may_reach_a_result(leaves: bool) -> None:
    plan = fxprune.analyze(ByNumPy(leaves).eval(), torch.randn(3, 4), path="eager").plan(ratio=0.5)
    assert any("no tensor of a result" in reason for reason in plan.reasons) is not leaves
