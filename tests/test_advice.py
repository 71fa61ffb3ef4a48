"""The next steps that errors name: a name that was meant, a call that was taken for batches, arguments of a method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import InputError, nearest


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("lift.weight", ["ctc.weight", "convs.0.pw1.weight"], ""),
        ("fuze.weight", ["fuse.weight", "ctc.weight"], "fuse.weight"),
        ("layer1.conv1", ["layer1.0.conv1", "fc"], "layer1.0.conv1"),
        ("blocks.12.up", ["blocks.0.up", "head"], "blocks.0.up"),
        ("fuz", ["lift", "fuse"], "fuse"),
        ("pts", ["cell", "fuse"], ""),
    ],
)
def test_a_name_is_suggested_only_if_it_is_like_the_one_that_was_given(name: str, known: list[str], meant: str) -> None:
    assert nearest(name, known) == (f'did you mean "{meant}"?' if meant else "known names: " + ", ".join(known))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

    def begin(self, batch: int) -> Tensor:
        return self.up(torch.zeros(batch, 3)).sum(1)

    def forward(self, pts: Tensor, cell: Tensor) -> Tensor:
        return self.head(torch.relu(self.up(pts)) * cell)


X = torch.randn(4, 3), torch.randn(4, 1)


def test_one_call_in_place_of_batches_is_told_to_stand_in_a_list() -> None:
    with pytest.raises(InputError) as caught:
        fxprune.transform(Two().eval(), X, ratio=0.5, repair=X)
    assert str(caught.value).endswith(
        "\n  do   one call of the model takes all of it, so that it is one batch: pass `[(pts, cell)]`"
    )
    with pytest.raises(InputError, match="let a batch hold what one call takes"):
        fxprune.transform(Two().eval(), X, ratio=0.5, repair=[X[0]])
    with pytest.warns(UserWarning, match="the repair has 4 samples"):
        fxprune.transform(Two().eval(), X, ratio=0.5, repair=[X])


def test_a_number_as_the_inputs_of_a_method_is_told_to_be_a_tuple() -> None:
    with pytest.raises(InputError, match=r"\n  do   pass a tuple of the arguments of one call: `\(2,\)`$"):
        fxprune.transform(Two().eval(), X, ratio=0.5, methods={"begin": 2})
    fxprune.transform(Two().eval(), X, ratio=0.5, methods={"begin": (2,)})
