"""The slots of parameters and buffers that no operation on the example inputs has read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fxprune.analysis.unread_slots import UnreadSlots


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
