"""Budgets: how much of a model's cost may stay.

`keep={"macs": 0.5}` asks for a small model with at most half of the multiply-adds.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxprune.costs.count import uncounted_operations, uncounted_text
from fxprune.costs.latency import milliseconds
from fxprune.errors import PlanError, nearest
from fxprune.planning.figures import COMPUTED, MEASURES, TIMED, Figures

PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
PREFIXES |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
"""The prefixes of units in a text such as "200 MB" or "200 MiB"."""

UNITS: Mapping[str, Sequence[str]] = {
    "params": ("params", ""),
    "bytes": ("bytes", "b", ""),
    "macs": ("macs", ""),
    **{key: ("bytes", "b", "") if one.unit == "bytes" else (one.unit, "") for key, one in COMPUTED.items()},
}
"""The units of measures that are counted."""

COUNTED = {"params": "a number of parameters", "bytes": "a size in bytes", "macs": "a number of multiply-adds"}
"""The meaning of a figure with a unit."""

FIGURE = re.compile(r"\s*([0-9][0-9_,]*\.?[0-9]*(?:e[0-9]+)?)\s*((?:[kmgt]i?)?)(b|bytes|macs|params)?\s*")
"""A number, a prefix and a unit."""

TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
"""The units of times, in seconds."""


PERCENT = 100
"""An integer up to this, without a unit, looks like a percentage."""

MISSED = "the budget is not met"
"""The beginning of the reason for a budget that a plan does not meet."""

NOISE = 1.1
"""A latency that was measured may be so many times the budget, and is not reported as above it."""


@dataclass(frozen=True)
class Budget:
    """A limit of one cost. key: a name in `MEASURES`. limit: the most that may stay. full: what the model has."""

    key: str
    limit: float
    full: float

    def of(self, figures: Figures) -> float:
        """The figure that the budget limits."""
        return figures[self.key] or 0

    def shown(self, figure: float) -> str:
        """A figure of this measure as text."""
        return milliseconds(figure) if self.key in TIMED else f"{figure:,}"

    def missed(self, figure: float) -> str:
        """A sentence about a figure that is above the budget."""
        limit, full = self.shown(self.limit), self.shown(self.full)
        return f"{MISSED}: {self.shown(figure)} {self.key} stay, the budget is {limit} of {full}"

    def __str__(self) -> str:
        return f"{self.key} {self.shown(self.limit)} of {self.shown(self.full)} ({self.limit / self.full:.1%})"


def place(key: Any, value: Any) -> str:
    """The words of errors for an amount in `keep`."""
    return f"keep={{{key!r}: {value!r}}}"


_OF_OTHER_TOOLS = {"flops": "macs", "mult_adds": "macs", "size": "bytes", "weights": "params", "time": "latency"}
"""Names of measures in other tools -> ours."""


def checked_keys(keep: Any) -> tuple[str, ...]:
    """The measures of a request, looked at before anything is measured.

    Raises `PlanError` for a request that is no dict, for measures that are none, and for amounts that make no sense.
    """
    if not isinstance(keep, Mapping) or not keep:
        raise PlanError("keep must name what is kept", why=f"got {keep!r}", do='write for example keep={"macs": 0.5}')
    for key, value in keep.items():
        if key not in MEASURES:
            other = _OF_OTHER_TOOLS.get(str(key).lower())
            hint = f'did you mean "{other}"?' if other else nearest(str(key), MEASURES)
            do = f"choose from {', '.join(MEASURES)}"
            raise PlanError("there is no such budget", at=place(key, value), why=hint, do=do)
        _refuse_percentage(key, value)
        _limit(key, value, 1.0, place(key, value))
    return tuple(keep)


def _refuse_percentage(key: str, value: Any) -> None:
    """Raises `PlanError` for a small integer without a unit: a percentage is more likely meant."""
    if key in TIMED or isinstance(value, bool) or not isinstance(value, (numbers.Integral, str)):
        return
    text = str(value).strip()
    if text.isdecimal() and 1 < int(text) <= PERCENT:
        unit = UNITS[key][0]
        raise PlanError(
            f"{text} would be an absolute figure",
            at=place(key, value),
            why=f"an integer is a number of {unit}, and few models have so few",
            do=f'write {int(text) / 100:g} for a share, or "{text} {unit}" for so many',
        )


def budgets_of(whole: Figures, keep: Any, uncounted: Sequence[str] = ()) -> tuple[Budget, ...]:
    """The budgets of a request.

    whole: the figures of the model.
    keep: name of a measure -> what stays. A share is a float in (0, 1]; a figure is an integer above 1, or a text
        with a unit, such as "1.5 GMACs", "200 MB" or "3M" (k, M, G, T are powers of 1000; Ki, Mi, Gi, Ti of 1024),
        "5 ms" for latencies.
    uncounted: the operations whose multiply-adds are not known.

    Raises `PlanError` for a request that makes no sense, and for a measure that is unknown for this model.
    """
    return tuple(_budget(key, keep[key], whole, uncounted) for key in checked_keys(keep))


def above(before: Figures, after: Figures, keep: Any) -> list[Budget]:
    """The budgets that a small model does not meet, among those whose figures are given. A latency may be above it by
    the noise of measurements.

    before, after: the figures of the original and of the small model.
    """
    found = []
    for key, value in keep.items():
        full, left = before.get(key), after.get(key)
        if full is not None and left is not None:
            limit = _limit(key, value, full, place(key, value))
            if left > limit * (NOISE if key in TIMED else 1):
                found.append(Budget(key, limit, full))
    return found


def _budget(key: str, value: Any, whole: Figures, uncounted: Sequence[str]) -> Budget:
    at = place(key, value)
    full = whole[key]
    if full is None:
        names = ", ".join(f'"{name}"' for name in uncounted_operations(uncounted))
        formula = f'@fxprune.ops.multiplies({names}), as docs/report.md shows below "Cost"'
        raise PlanError(
            f"the {key} of this model are not known",
            at=at,
            why=f"nothing counts {uncounted_text(uncounted)}",
            do=f"give the budget as params or bytes, or a formula by {formula}",
        )
    if not full and key in COMPUTED:
        why, do = "it is 0 on the example inputs", "give another budget"
        if key == "cache":
            why = "what the model returns for the example inputs holds none"
            do = "give inputs for which it returns one (use_cache=True), or another budget"
        raise PlanError(f"there is no {key} to limit", at=at, why=why, do=do)
    limit = _limit(key, value, full, at)
    budget = Budget(key, limit, full)
    if limit > full:
        why, do = f"the model has {budget.shown(full)} {key}", "ask for less than that, or leave the budget out"
        raise PlanError("the budget is above the model itself", at=at, why=why, do=do)
    return budget


def _limit(key: str, value: Any, full: float, at: str) -> float:
    """The figure that a value means. Raises `PlanError` for one that could mean a share and a figure."""
    if isinstance(value, str):
        return _time(value, at) if key in TIMED else _figure(key, value, at)
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and not whole:
        if not 0 < float(value) <= 1:
            why, do = f"{value!r} of the model cannot be kept", "write 0.5; an absolute figure is an integer"
            raise PlanError("a share must be in (0, 1]", at=at, why=why, do=do)
        return float(value) * full if key in TIMED else math.floor(float(value) * full)
    if key in TIMED:
        why, do = "a number alone does not say whether it is in seconds", 'write 0.5 or "5 ms"'
        raise PlanError("a latency is a share or a text with a unit", at=at, why=why, do=do)
    if not whole or value < 1:
        why = f"{value} is below 1" if whole else f"it is of the type {type(value).__name__}"
        do = 'write 0.5, 3000000 or "3M"'
        raise PlanError("a budget is a share, an integer or a text with a unit", at=at, why=why, do=do)
    if value == 1:
        raise PlanError("1 is no budget", at=at, why="an integer is an absolute figure", do="write 1.0 for all")
    return int(value)


def _figure(key: str, text: str, at: str) -> int:
    """The figure in a text such as "200 MB". A small number without a unit is refused: it looks like a share."""
    found = FIGURE.fullmatch(text.lower())
    number = float(re.sub("[_,]", "", found[1])) if found else 0.0
    if found is None or (number <= 1 and not found[2] and not found[3]):
        do = 'write for example "200 MB", "1.5 GMACs" or "3M"; a share is a number, 0.5'
        why = f'"{text}" is no number with a unit of {key}'
        raise PlanError("the text is no figure", at=at, why=why, do=do)
    if (found[3] or "") not in UNITS[key]:
        raise _other_unit(key, text, found[3], at)
    figure = math.floor(number * PREFIXES[found[2]])
    if not figure:
        raise PlanError("nothing would stay", at=at, why=f'"{text}" is less than 1', do="give a larger figure")
    return figure


def _other_unit(key: str, text: str, unit: str, at: str) -> PlanError:
    """The error for a figure with the unit of another measure."""
    own = UNITS[key][0]
    meant = next(other for other, units in UNITS.items() if unit in units)
    do = f'write keep={{"{meant}": "{text}"}}, or ' if at.startswith("keep=") else ""
    return PlanError(
        "the unit does not fit",
        at=at,
        why=f'"{key}" is {COUNTED[own]}, and "{text}" is {COUNTED[UNITS[meant][0]]}',
        do=f'{do}{"" if do else "write "}{COUNTED[own]}, such as "200 {"MB" if own == "bytes" else "k"}"',
    )


def bytes_in(name: str, value: int | str) -> int:
    """The bytes that an argument means: an integer above 1, or a text such as "2 GB". Raises `PlanError` for others."""
    return int(_limit("bytes", value, 0.0, f"{name}={value!r}"))


def _time(text: str, at: str) -> float:
    """The seconds in a text such as "5 ms"."""
    found = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-zµμ]*)\s*", text.lower())
    if found is None or found[2] not in TIMES:
        do = f'write for example "5 ms"; the units are {", ".join(TIMES)}'
        raise PlanError("the text is no time", at=at, why=f'"{text}" is no number with such a unit', do=do)
    seconds = float(found[1]) * TIMES[found[2]]
    if not seconds:
        raise PlanError("nothing would stay", at=at, why="no model takes no time", do="give a longer time")
    return seconds
