"""The groups that budgets are about: a budget of the cache takes nothing from widths that no cache holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fxprune.analysis.findings import Findings, Group
from fxprune.channels.groups import Removal
from fxprune.planning.figures import COMPUTED, Meter
from fxprune.planning.uniform import EqualWidths


def unconcerned(findings: Findings, groups: Iterable[Group], equal: EqualWidths, meter: Meter | None) -> set[int]:
    """The numbers of the groups whose channels change no figure that is limited, with any others or alone.

    None are, where one of the figures counts all parameters or operations, is measured, or is the largest of several.
    """
    if meter is None or not all(key in COMPUTED and COMPUTED[key].adds_up for key in meter.keys):
        return set()
    full, found = meter.of(), set[int]()
    numbers = {group.number for group in groups}
    sets = [numbers.intersection(members) for members in equal.sets]
    alone = [{number} for number in numbers.difference(*sets)]
    for members in filter(None, (*sets, *alone)):
        removed = findings.solution.no_channel()
        for number in members:
            removed[findings.groups[number].channels[1:]] = True
        if meter.of(Removal(findings.solution, removed)) == full:
            found |= members
    return found


def why_unconcerned(findings: Findings, numbers: Iterable[int], keep: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The reason why groups stay that no budget is about, and what to do."""
    names = list(dict.fromkeys(findings.groups[number].name for number in sorted(numbers)))
    if not names or keep is None:
        return ()
    listed = ", ".join(f'"{name}"' for name in names[:3]) + (f", ... {len(names) - 3} more" if len(names) > 3 else "")
    asked = ", ".join(f'"{key}": {value!r}' for key, value in keep.items())
    return (f'keep={{{asked}}} counts no channels of {listed}, which stay: add a budget such as "params" for them',)
