"""Tables that forward makes again for longer inputs: the code that does so was not run, and a warning says so."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support import randomise


class Grows(nn.Module):
    """Adds a table of positions, which gets longer where the input is longer, as that of ESPnet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.width = nn.Linear(6, 16), nn.Linear(16, 4), 16
        self.table: Tensor | None = None
        self.extend(5)

    def extend(self, length: int) -> None:
        if self.table is not None and len(self.table) >= length:
            return
        places = torch.arange(length, dtype=torch.float64)[:, None]
        angles = places * torch.exp(torch.arange(0, self.width, 2, dtype=torch.float64) * (-9.2 / self.width))
        self.table = torch.stack([angles.sin(), angles.cos()], 2).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.extend(x.shape[1])
        assert self.table is not None
        return self.last((x + self.table[: x.shape[1]]).relu())


class Remembers(Grows):
    """The same table, one for each length, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.tables = None, dict[int, Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        if length not in self.tables:
            self.tables[length] = torch.ones(length, self.width, dtype=torch.float64) * math.pi
        return self.last((self.first(x) + self.tables[length]).relu())


class Whole(Grows):
    """The table is never made again by forward."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.table is not None
        return self.last((self.first(x) + self.table[: x.shape[1]]).relu())


def inputs(length: int) -> Tensor:
    return torch.randn(2, length, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize(("kind", "place"), [(Grows, "Grows.extend"), (Remembers, "Remembers.forward")])
def test_a_table_that_other_inputs_would_make_again_is_warned_of(kind: type[Grows], place: str) -> None:
    net = randomise(kind().double().eval(), 0)
    net(inputs(3))
    with pytest.warns(fxprune.FixedSizesWarning, match=f"got smaller, and {place} .*makes it again.*also="):
        small = fxprune.transform(net, inputs(3), ratio=0.5)
    assert [place in reason for reason in fxprune.record(small).reasons].count(True) == 1


def test_no_warning_where_the_code_ran_or_there_is_none() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small: Any = fxprune.transform(randomise(Whole().double().eval(), 0), inputs(3), ratio=0.5)
        assert small.table.shape == (5, 8)
        net = randomise(Remembers().double().eval(), 0)
        net(inputs(3))
        longer: Any = fxprune.transform(net, inputs(3), ratio=0.5, also=[inputs(9)])
    assert not [reason for reason in fxprune.record(longer).reasons if "makes it again" in reason]
    expected = fxprune.masked(net, fxprune.record(longer).removed)(inputs(9))
    assert (longer(inputs(9)) - expected).abs().max() < 1e-12
