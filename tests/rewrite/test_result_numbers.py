"""Numbers in the result of a forward that are computed from a width."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.rewrite.result_numbers import other_numbers

Result = collections.namedtuple("Result", ["out", "width"])


class Widths(nn.Module):
    """Returns a number of the width of its hidden layer with its result."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(6, 16), nn.Linear(16, 4), kind

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.a(x))
        out = self.b(h)
        if self.kind == "named":
            return Result(out, h.shape[1])
        if self.kind == "nested":
            return {"out": out, "of": [3, h.size(-1) / 4]}
        return (out, h.shape[1]) if self.kind == "pair" else (out, x.shape[1], torch.Size([4]))


SAID = {
    "pair": "the result at 1 is a number computed from a width: 8, 16 in the original",
    "named": 'the result at "width" is a number computed from a width: 8, 16 in the original',
    "nested": 'the result at ("of", 1) is a number computed from a width: 2, 4 in the original',
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", SAID)
def test_the_record_says_which_numbers_of_the_result_are_widths(kind: str, verify: bool) -> None:
    small = fxprune.transform(Widths(kind), torch.randn(3, 6), ratio=0.5, verify=verify)
    assert type(small) is Widths
    assert SAID[kind] in fxprune.record(small).reasons


def test_numbers_that_stay_are_not_named() -> None:
    small = fxprune.transform(Widths("same"), torch.randn(3, 6), ratio=0.5)
    assert fxprune.record(small).reasons == ()


def test_numbers_are_compared_at_their_paths() -> None:
    nan = float("nan")
    before = (16, [nan, {"a": torch.Size([2, 16]), "b": True}], object())
    after = (16, [nan, {"a": torch.Size([2, 8]), "b": False}], torch.zeros(2))
    assert list(other_numbers(before, after)) == [((1, 1, "a", 1), 16, 8), ((1, 1, "b"), True, False)]
