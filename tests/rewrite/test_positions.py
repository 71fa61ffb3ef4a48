"""Lists of positions that forward writes down, in a model that keeps its class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from tests.support import randomise


class OneKeyForAllHeads(nn.Module):
    """Queries in several heads, and behind them one head of keys and one of values."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 6
        self.fused, self.out = nn.Linear(8, (self.heads + 2) * self.width), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        fused = self.fused(x).view(n, t, self.heads + 2, self.width)
        query, key, value = (part.transpose(1, 2) for part in self.parts(fused))
        key, value = (part.expand(n, self.heads, t, -1) for part in (key, value))
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).reshape(n, t, -1))

    def parts(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return fused[..., :-2, :], fused[..., [-2], :], fused[..., [-1], :]


class Selected(OneKeyForAllHeads):
    def parts(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key, value = (fused.index_select(2, torch.tensor([fused.shape[2] - back])) for back in (2, 1))
        return fused[..., :-2, :], key, value


class Together(OneKeyForAllHeads):
    def parts(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        both = fused[:, :, [-2, -1]]
        return fused[..., :-2, :], both[:, :, :1], both[:, :, 1:]


@pytest.mark.parametrize("kind", [OneKeyForAllHeads, Selected, Together])
def test_positions_that_count_from_the_end_stay_what_they_are(kind: type[OneKeyForAllHeads]) -> None:
    net, x = randomise(kind().double().eval(), 0), torch.randn(2, 5, 8).double()
    small: Any = fxprune.transform(net, x, ratio=0.5, path="eager")
    record = fxprune.record(small)
    assert record.error is not None
    assert record.error < 1e-12
    assert small.width == 3
    assert small.fused.out_features == (small.heads + 2) * 3
    assert not [reason for reason in record.reasons if "list of positions" in reason or "no weights" in reason]


class Picked(nn.Module):
    """Reads some of the 6 channels by numbers."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__()
        self.first, self.last, self.numbers = nn.Linear(4, 6), nn.Linear(6, 3), numbers
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.b(self.a(x))).tanh()
        return self.last(h) + h[:, self.numbers].sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("numbers", "removed", "stays"),
    [
        ([0, 2], [4, 5], False),
        ([0, 2], [1], True),  # 2 would be another channel
        ([0, 2], [2], True),  # a list of two would read two
        ([-1, 0], [2, 3], False),
        ([-1, 0], [5], True),
        ([5, 0], [2], True),
        ([3, 3, 1], [4], False),
    ],
)
def test_a_list_holds_the_channels_that_it_would_miss(numbers: list[int], removed: list[int], stays: bool) -> None:
    net, x = randomise(Picked(numbers).double().eval(), 0), torch.randn(5, 4).double()
    mask = torch.tensor([position not in removed for position in range(6)])
    small: Any = fxprune.transform(net, x, masks={"first": mask, "a": torch.arange(8) < 5}, prefer="class")
    assert type(small) is Picked
    assert small.first.out_features == (6 if stays else 6 - len(removed))
    reference = fxprune.masked(net, fxprune.record(small).removed)
    assert torch.allclose(small(x), reference(x), atol=1e-12)


class HalfOfAnOddWidth(nn.Module):
    """Half of the channels, rounded down: of seven as of six that is three."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 7, 1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x[:, : x.shape[1] // 2].mean((2, 3)))


class AsManyAsRows(HalfOfAnOddWidth):
    """The first channels, as many as the image has rows."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)[:, : x.shape[2]].mean((2, 3)))


def test_a_bound_that_a_smaller_width_leaves_as_it_is_is_still_that_of_a_width() -> None:
    masks, x = {"first": torch.tensor([1, 1, 1, 1, 1, 1, 0])}, torch.randn(2, 3, 3, 3).double()
    net = fx.symbolic_trace(randomise(HalfOfAnOddWidth().double().eval(), 0))
    small = fxprune.transform(net, x, masks=masks, path="fx")
    assert small.first.out_channels == 6
    assert fxprune.record(small).reasons == ()
    other = fx.symbolic_trace(randomise(AsManyAsRows().double().eval(), 0))
    with pytest.warns(fxprune.NothingRemovedWarning, match="other inputs may reach the slots"):
        fxprune.transform(other, x, masks=masks, path="fx")


class PaddedByHalves(nn.Module):
    """Adds as many channels in front of a narrow layer as behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.last = nn.Linear(5, 8), nn.Linear(5, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        wide, narrow = self.wide(x), self.narrow(x)
        more = wide.shape[1] - narrow.shape[1]
        made: Tensor = self.last(wide + F.pad(narrow, (more // 2, more - more // 2)))
        return made


@pytest.mark.filterwarnings("ignore::fxprune.NothingRemovedWarning")
@pytest.mark.parametrize("gone", [[0, 1], [0, 2], [2, 3], [0, 7]])
def test_a_border_that_forward_computes_is_the_one_of_the_kept_slots(gone: list[int]) -> None:
    net, x = randomise(PaddedByHalves().double().eval(), 0), torch.randn(2, 5).double()
    masks = {"wide": torch.tensor([slot not in gone for slot in range(8)])}
    small = fxprune.transform(net, x, masks=masks, prefer="class", verify=False)
    masked = fxprune.masked(net, fxprune.record(small).removed)
    assert torch.allclose(small(x), masked(x), atol=1e-12)
