"""The slots of parameters and buffers that no operation on the example inputs has read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


def read(slots: UnreadSlots, tensor: Tensor, operation: str, **arguments: Any) -> Tensor:
    """Run an operation, and note it."""
    function = getattr(torch.ops.aten, operation)
    made: Tensor = function(tensor, *arguments.values())
    slots.note(f"aten::{operation}", {"self": tensor, **arguments}, made)
    return made


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


def test_a_part_of_a_slice_over_everything_is_a_part(slots: UnreadSlots, table: Tensor) -> None:
    whole = read(slots, table, "slice", dim=1, start=0, end=2, step=1)
    read(slots, whole, "slice", dim=0, start=0, end=4, step=1)
    assert missed(slots, table) == {0: [4, 5]}


def test_any_other_operation_reads_everything(slots: UnreadSlots, table: Tensor) -> None:
    whole = read(slots, table, "slice", dim=1, start=0, end=2, step=1)
    read(slots, table, "slice", dim=0, start=0, end=4, step=1)
    read(slots, whole, "relu")
    assert missed(slots, table) == {}


def test_an_index_is_no_part_of_the_tensor_that_indexes(slots: UnreadSlots, table: Tensor) -> None:
    slots.note("aten::slice", {"self": torch.ones(6, 2), "other": [table], "dim": 0}, torch.ones(1))
    assert missed(slots, table) == {}


def test_a_part_of_a_part_is_one_in_both_dimensions(slots: UnreadSlots, table: Tensor) -> None:
    part = read(slots, table, "slice", dim=0, start=0, end=4, step=1)
    read(slots, part, "slice", dim=1, start=0, end=1, step=1)
    assert missed(slots, table) == {0: [4, 5], 1: [1]}
    read(slots, part, "relu")
    assert missed(slots, table) == {0: [4, 5]}


def test_a_part_of_a_part_in_the_same_dimension_adds_nothing(slots: UnreadSlots, table: Tensor) -> None:
    part = read(slots, table, "slice", dim=0, start=2, end=6, step=1)
    read(slots, part, "slice", dim=0, start=0, end=1, step=1)
    assert missed(slots, table) == {0: [0, 1]}


def test_one_slot_of_a_part_reads_the_other_dimensions(slots: UnreadSlots, table: Tensor) -> None:
    part = read(slots, table, "slice", dim=1, start=0, end=1, step=1)
    read(slots, part, "select", dim=0, index=2)
    assert missed(slots, table) == {0: [0, 1, 3, 4, 5], 1: [1]}


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
