"""The slots of parameters and buffers that no operation on the example inputs has read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxprune
from fxprune.analysis.unread_slots import UnreadSlots
from tests.support import randomise


@pytest.fixture
def table() -> Tensor:
    return torch.zeros(6, 2)


@pytest.fixture
def slots(table: Tensor) -> UnreadSlots:
    made = UnreadSlots()
    made.open(table, table)
    return made


def part(slots: UnreadSlots, tensor: Tensor, operation: str, **arguments: Any) -> Tensor:
    """Run an operation, and note it."""
    function = getattr(torch.ops.aten, operation)
    made: Tensor = function(tensor, *arguments.values())
    slots.note(f"aten::{operation}", {"self": tensor, **arguments}, made)
    return made


def read(slots: UnreadSlots, tensor: Tensor, operation: str, **arguments: Any) -> Tensor:
    """Run an operation, and add its result to an input."""
    made = part(slots, tensor, operation, **arguments)
    meet_input(slots, made)
    return made


def meet_input(slots: UnreadSlots, tensor: Tensor) -> None:
    slots.note("aten::add", {"self": tensor, "other": torch.ones(1)}, tensor + 1)


def missed(slots: UnreadSlots, table: Tensor) -> dict[int, list[int]]:
    return {dim: flags.nonzero()[0].tolist() for dim, flags in slots.missed(table).items()}


def test_the_parts_that_were_read_add_up(slots: UnreadSlots, table: Tensor) -> None:
    assert missed(slots, table) == {}, "nothing has read it"
    read(slots, table, "slice", dim=0, start=0, end=1, step=1)
    assert missed(slots, table) == {0: [1, 2, 3, 4, 5]}
    read(slots, table, "narrow", dim=0, start=2, length=2)
    assert missed(slots, table) == {0: [1, 4, 5]}
    read(slots, table, "select", dim=-2, index=-1)
    assert missed(slots, table) == {0: [1, 4]}
    read(slots, table, "slice", dim=0, start=1, end=9, step=3)
    assert missed(slots, table) == {}


def test_a_part_that_nothing_reads_is_missed(slots: UnreadSlots, table: Tensor) -> None:
    part(slots, table, "slice", dim=0, start=0, end=4, step=1)
    read(slots, table, "slice", dim=0, start=1, end=2, step=1)
    assert missed(slots, table) == {0: [0, 2, 3, 4, 5]}


def test_a_part_of_a_slice_over_everything_is_a_part(slots: UnreadSlots, table: Tensor) -> None:
    whole = part(slots, table, "slice", dim=1, start=0, end=2, step=1)
    read(slots, whole, "slice", dim=0, start=0, end=4, step=1)
    assert missed(slots, table) == {0: [4, 5]}


def test_any_other_operation_reads_everything(slots: UnreadSlots, table: Tensor) -> None:
    whole = part(slots, table, "slice", dim=1, start=0, end=2, step=1)
    read(slots, table, "slice", dim=0, start=0, end=4, step=1)
    meet_input(slots, whole)
    assert missed(slots, table) == {}


def test_an_index_is_no_part_of_the_tensor_that_indexes(slots: UnreadSlots, table: Tensor) -> None:
    slots.note("aten::slice", {"self": torch.ones(6, 2), "other": [table], "dim": 0}, torch.ones(1))
    assert missed(slots, table) == {}


def test_a_part_of_a_part_is_one_in_both_dimensions(slots: UnreadSlots, table: Tensor) -> None:
    rows = part(slots, table, "slice", dim=0, start=0, end=4, step=1)
    read(slots, rows, "slice", dim=1, start=0, end=1, step=1)
    assert missed(slots, table) == {0: [4, 5], 1: [1]}
    meet_input(slots, rows)
    assert missed(slots, table) == {0: [4, 5]}


def test_a_part_of_a_part_in_the_same_dimension_is_smaller(slots: UnreadSlots, table: Tensor) -> None:
    rows = part(slots, table, "slice", dim=0, start=2, end=6, step=1)
    read(slots, rows, "slice", dim=0, start=0, end=1, step=1)
    assert missed(slots, table) == {0: [0, 1, 3, 4, 5]}


def test_one_slot_of_a_part_reads_the_other_dimensions(slots: UnreadSlots, table: Tensor) -> None:
    column = part(slots, table, "slice", dim=1, start=0, end=1, step=1)
    read(slots, column, "select", dim=0, index=2)
    assert missed(slots, table) == {0: [0, 1, 3, 4, 5], 1: [1]}


def test_moved_slots_are_those_of_before(slots: UnreadSlots, table: Tensor) -> None:
    moved = part(slots, table, "flip", dims=[0])
    moved = part(slots, moved, "roll", shifts=[1], dims=[0])
    moved = part(slots, moved, "constant_pad_nd", pad=[0, -1, 0, -2])
    read(slots, moved, "slice", dim=0, start=0, end=2, step=1)  # 0, 5 of 0, 5, 4, 3 and of 0, 5, 4, 3, 2, 1
    assert missed(slots, table) == {0: [1, 2, 3, 4], 1: [1]}


class Causal(nn.Module):
    """Attention with a square mask for longer texts than the example, cut first by row and then by column."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 8) for _ in range(3))
        self.out = nn.Linear(8, 5)
        self.register_buffer("mask", torch.tril(torch.ones(20, 20, dtype=torch.bool)))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-2, -1)
        long = scores.shape[-1]
        seen = self.mask[: scores.shape[-2], :long]
        return self.out(scores.masked_fill(~seen, -1e9).softmax(-1) @ self.value(x))


@pytest.mark.parametrize("path", ["eager", "fx"])
@pytest.mark.parametrize("training", [False, True])
def test_longer_inputs_find_their_mask(path: str, training: bool) -> None:
    model = randomise(Causal().double().train(training), 0)
    x, longer = (torch.randn(2, size, 6, dtype=torch.float64) for size in (7, 13))
    small = fxprune.transform(model, x, ratio=0.4, path=path)
    assert small.get_buffer("mask").shape == (20, 20)
    reference = fxprune.masked(model, fxprune.record(small).removed)
    torch.testing.assert_close(small(longer), reference(longer), rtol=1e-12, atol=1e-12)


class Positions(nn.Module):
    """Adds a table for longer texts than the example. `style` says how the rows are taken."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style, self.first, self.last = style, nn.Linear(3, 8), nn.Linear(8, 2)
        self.table, self.other = nn.Parameter(torch.randn(20, 8)), nn.Parameter(torch.randn(20, 8))
        self.embedding = nn.Embedding(20, 8)
        self.register_buffer("ids", torch.arange(20).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu() + TAKEN[self.style](self, x.shape[1]))


TAKEN: dict[str, Callable[[Any, int], Tensor]] = {
    "ids with a batch": lambda m, n: m.embedding(m.ids[None, :n]),
    "ids of all rows": lambda m, n: m.embedding(m.ids)[:n],
    "table with a batch": lambda m, n: m.table[None, :n],
    "table turned over": lambda m, n: m.table.t()[:, :n].t(),
    "table expanded": lambda m, n: m.table.expand(2, -1, -1)[:, :n],
    "table of another type": lambda m, n: m.table.float().double()[:n],
    "product of tables": lambda m, n: (m.table * m.other.tanh())[:n],
    "tables side by side": lambda m, n: torch.cat([m.table, m.other], 1)[:n].chunk(2, 1)[1],
    "tables stacked": lambda m, n: torch.stack([m.table, m.other])[1, :n],
    "table split": lambda m, n: m.table.split([n, 20 - n])[0],
    "table in rows": lambda m, n: torch.stack(m.table.unbind()[:n]),
    "table as an image": lambda m, n: m.table.view(1, *m.table.shape)[:, :n].squeeze(0),
    "table turned round": lambda m, n: m.table.flip(0)[:n],
    "table rolled": lambda m, n: m.table.roll(1, 0)[:n],
    "table cropped": lambda m, n: functional.pad(m.table, (0, 0, 0, n - 20)),
    "table times a constant": lambda m, n: (m.table * torch.arange(3.0)[2])[:n],
    "two pieces of a table": lambda m, n: torch.tensor_split(m.table, (n,))[0],
    "a row of a table": lambda m, n: m.table.unsqueeze(0)[0, n],
}


@pytest.mark.parametrize("style", TAKEN)
def test_longer_inputs_find_their_rows(style: str) -> None:
    model = randomise(Positions(style).double().eval(), 0)
    x, longer = (torch.randn(2, size, 3, dtype=torch.float64) for size in (7, 13))
    small = fxprune.transform(model, x, ratio=0.5, path="eager")
    assert small.first.out_features == 4
    assert small.table.shape[0] == small.other.shape[0] == small.ids.shape[0] == 20
    reference = fxprune.masked(model, fxprune.record(small).removed)
    torch.testing.assert_close(small(longer), reference(longer), rtol=1e-12, atol=1e-12)
