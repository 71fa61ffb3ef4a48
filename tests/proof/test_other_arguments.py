"""`verify` with other arguments than those that a small graph was made with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import InputError, VerificationError


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, unused: Tensor | None = None) -> Tensor:
        y = torch.relu(self.up(x))
        made: Tensor = self.down(y if mask is None else y * mask)
        return made


X, MASK = torch.randn(3, 4), torch.rand(3, 1)


@pytest.mark.parametrize("path", ["fx", "export"])
@pytest.mark.parametrize(
    ("made", "given", "why"),
    [
        ((X, MASK), (X,), 'made with "mask", which these inputs lack'),
        ((X, MASK), {"x": X, "unused": X}, 'made with "mask", which these inputs lack'),
        ((X,), {"x": X, "mask": MASK}, 'made without "mask"'),
    ],
)
def test_a_graph_that_was_made_with_other_arguments_is_named(path: str, made: Any, given: Any, why: str) -> None:
    model = Masked().eval()
    small = fxprune.transform(model, made, ratio=0.5, path=path)
    with pytest.raises(InputError, match="was made with other arguments") as caught:
        fxprune.verify(model, small, given)
    assert f"it was {why}" in str(caught.value)
    assert 'pass the arguments that transform got, or make the small model with prefer="class"' in str(caught.value)
    assert fxprune.verify(model, small, made) < 1e-9


def test_the_class_takes_both() -> None:
    model = Masked().eval()
    small = fxprune.transform(model, (X, MASK), ratio=0.5, prefer="class")
    assert fxprune.verify(model, small, X) < 1e-9


def test_another_failure_of_a_graph_stays_what_it_is() -> None:
    model = Masked().eval()
    small = fxprune.transform(model, X, ratio=0.5, path="fx")
    small.up.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(VerificationError, match="division"):
        fxprune.verify(model, small, X)


def test_two_models_that_stand_the_other_way_round_are_named() -> None:
    model = Masked().eval()
    small = fxprune.transform(model, X, ratio=0.5)
    with pytest.raises(InputError, match=r"other way round[\s\S]*verify\(model, small, example_inputs\)"):
        fxprune.verify(small, model, X)
