"""The fewest channels that stay in a group, by the options that limit it."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fxprune.arguments import fits
from fxprune.errors import PlanError, counted

ONE_STAYS = "one channel stays"
"""The limit of a group that no option limits."""


@dataclass(frozen=True)
class Limits:
    """The channels that every group keeps. The fields are arguments of `choose`."""

    round_to: int
    min_channels: int
    max_ratio: float

    def __post_init__(self) -> None:
        if not fits(self.min_channels, int) or self.min_channels < 1:
            why, do = "it is the least number of channels that stay in a group", "pass for example min_channels=8"
            raise PlanError(f"min_channels must be an integer of at least 1, not {self.min_channels!r}", why=why, do=do)
        why, do = "it is the largest share that a group may lose", "pass for example max_ratio=0.9"
        if not fits(self.max_ratio, float):
            raise PlanError(f"max_ratio must be a number, not {self.max_ratio!r}", why=why, do=do)
        if not 0 < self.max_ratio <= 1:
            raise PlanError(f"max_ratio must be in (0, 1], not {self.max_ratio!r}", why=why, do=do)

    def kept(self, size: int, ratio: float) -> int:
        """The channels that stay of a group, if this share goes."""
        return kept_count(size, ratio, self.round_to)

    def least(self, size: int) -> int:
        """The fewest channels that stay of a group."""
        return max(kept_count(size, self.max_ratio, self.round_to), min(self.min_channels, size))

    def decisive(self, size: int) -> str:
        """The limit that decides how many channels of a group stay at least: an option with its value, or none."""
        if self.least(size) == 1:
            return ONE_STAYS
        by_ratio = kept_count(size, self.max_ratio, 1)
        if self.least(size) > max(by_ratio, min(self.min_channels, size)):
            return f"round_to={self.round_to}"
        return f"min_channels={self.min_channels}" if self.min_channels > by_ratio else f"max_ratio={self.max_ratio}"

    def why(self, sizes: Iterable[int]) -> str:
        """A text about groups that lost the most that they may: the limits, and how many groups each decides."""
        found = Counter(self.decisive(size) for size in sizes)
        return ", ".join(f"{limit} ({counted(count, 'group')})" for limit, count in found.most_common())


def limits_of(round_to: int | str, min_channels: int, max_ratio: float | None, keep: Any) -> Limits:
    """The limits of a request: a ratio is taken literally, a budget leaves a tenth of every group.

    round_to: "auto" is no limit yet.
    """
    largest = max_ratio if max_ratio is not None else 1.0 if keep is None else 0.9
    return Limits(1 if isinstance(round_to, str) else round_to, min_channels, largest)


def check_round_to(round_to: Any) -> None:
    """Raises `PlanError` unless it is an integer of at least 1, or "auto"."""
    if round_to == "auto":
        return
    if isinstance(round_to, bool) or not isinstance(round_to, numbers.Integral) or round_to < 1:
        do = 'round_to="auto" takes the multiple that is measured to pay'
        raise PlanError(f"round_to must be an integer of at least 1, not {round_to!r}", do=do)


def kept_count(size: int, ratio: float, round_to: int) -> int:
    """The number of `size` channels that stay: at least one, a multiple of `round_to` where the group allows it.

    >>> kept_count(64, 0.3, 1), kept_count(64, 0.3, 8), kept_count(58, 0.5, 8), kept_count(4, 0.5, 8)
    (45, 48, 32, 4)
    """
    return rounded_up(max(1, size - int(ratio * size + 1e-9)), size, round_to)


def rounded_up(kept: int, size: int, round_to: int) -> int:
    """A number of channels that stay, of `size`, as a multiple of `round_to` where the group allows it."""
    if round_to == 1:
        return kept
    if size < round_to:
        return size
    rounded = -(-kept // round_to) * round_to
    return rounded if rounded <= size else size // round_to * round_to
