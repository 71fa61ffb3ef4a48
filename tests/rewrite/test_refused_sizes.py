"""Sizes that stand in forward as numbers: their dimensions stay, and the other widths of the same module shrink."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support import randomise


class Gated(nn.Module):
    """Heads and a head width, which may shrink, and a gate of 8 numbers in 2 rows of 4, which may not."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.values, self.gate, self.out = nn.Linear(6, 24), nn.Linear(6, 8), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        values = self.values(x).view(len(x), self.heads, -1)
        return self.out((values * self.gates(x)[:, None, None]).flatten(1))

    def gates(self, x: Tensor) -> Tensor:
        return self.gate(x).view((*x.shape[:-1], 2, 4)).sum(-1)[:, 0]


class SeveralArguments(Gated):
    def gates(self, x: Tensor) -> Tensor:
        return self.gate(x).view(-1, 2, 4).sum(-1)[:, 0]


class Transposed(Gated):
    def gates(self, x: Tensor) -> Tensor:
        return self.gate(x).t().reshape(2, 4, len(x)).sum(1)[0]


class Function(Gated):
    def gates(self, x: Tensor) -> Tensor:
        return torch.reshape(self.gate(x), (-1, 2, 4)).sum(-1)[:, 0]


class Unflattened(Gated):
    def gates(self, x: Tensor) -> Tensor:
        return self.gate(x).unflatten(-1, (2, 4)).sum(-1)[:, 0]


class Expanded(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(8))

    def gates(self, x: Tensor) -> Tensor:
        return (self.gate(x) + self.shift.expand(len(x), 8)).tanh().sum(1)


class Split(Gated):
    def gates(self, x: Tensor) -> Tensor:
        first, second = self.gate(x).split([4, 4], -1)
        return (first * second).sum(-1)


class SplitByName(Gated):
    def gates(self, x: Tensor) -> Tensor:
        first, second = torch.split(self.gate(x), (4, 4), dim=1)
        return (first * second).sum(-1)


class SplitByOneSize(Gated):
    """Raises nothing in torch: there are fewer pieces."""

    def gates(self, x: Tensor) -> Tensor:
        first, second = self.gate(x).split(4, -1)
        return (first * second).sum(-1)


class OneOfTwo(Gated):
    """Raises nothing: the rows are read as two, whatever their width is."""

    def gates(self, x: Tensor) -> Tensor:
        return self.gate(x).view(len(x), 2, -1).tanh().sum((1, 2))


class Net(nn.Module):
    def __init__(self, kind: type[Gated]) -> None:
        super().__init__()
        self.first, self.second = kind(), kind()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x)], -1)


KINDS = [Gated, SeveralArguments, Transposed, Function, Unflattened, Expanded]
SPLITS = [Split, SplitByName, SplitByOneSize]


@pytest.mark.parametrize("kind", [*KINDS, *SPLITS, OneOfTwo])
def test_a_number_in_a_shape_holds_its_own_dimension_only(kind: type[Gated]) -> None:
    net, x = randomise(Net(kind).double().eval(), 0), torch.randn(5, 6).double()
    small: Any = fxprune.transform(net, x, ratio=0.5, path="eager")
    assert type(small) is Net
    for part in (small.first, small.second):
        assert part.gate.out_features == (4 if kind is OneOfTwo else 8)
        assert part.heads == 2
        assert part.values.out_features == 6, "2 of 4 heads, 3 of 6 in each"
    reference = fxprune.masked(net, fxprune.record(small).removed)
    assert torch.allclose(small(x), reference(x), atol=1e-12)
    stays = [r for r in fxprune.record(small).reasons if r.startswith("channels stay")]
    assert len(stays) == 1, "both modules of one class are looked at together"
    assert "in first" in stays[0]


class Flattens(nn.Module):
    """A network whose forward has the size of its last layer as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8 * 4 * 3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().view(-1, 96))


@pytest.mark.parametrize("batch", [1, 2])  # the view raises, or gives another batch
def test_a_number_in_forward_is_named_by_its_line_and_once(batch: int) -> None:
    model, x = Flattens().eval(), torch.randn(batch, 1, 4, 3)
    line = Flattens.forward.__code__.co_firstlineno + 1
    with pytest.warns(fxprune.NothingRemovedWarning) as caught:
        small = fxprune.transform(model, x, ratio=0.5, prefer="class")
    (told,) = [reason for reason in fxprune.record(small).reasons if "cannot be recounted" in reason]
    assert told.startswith(f"forward in the model ({__file__}:{line}): ")
    assert "conv.weight[0]" in told
    assert str(caught[0].message).count("view" if batch == 2 else "RuntimeError") == 1
