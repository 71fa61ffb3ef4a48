"""The groups that budgets are about: a budget of the cache takes nothing from widths that no cache holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fxprune.analysis.findings import Findings, Group
from fxprune.channels.groups import Removal
from fxprune.planning.figures import COMPUTED, Meter
from fxprune.planning.uniform import EqualWidths


def concerned(
    findings: Findings, groups: Mapping[Group, float], equal: EqualWidths, meter: Meter | None
) -> tuple[dict[Group, float], tuple[str, ...]]:
    """The groups of which some channels change a figure that is limited, and the reason why the others stay."""
    beside = _unconcerned(findings, groups, equal, meter)
    names = list(dict.fromkeys(findings.groups[number].name for number in sorted(beside)))
    if meter is None or not names:
        return dict(groups), ()
    listed = ", ".join(f'"{name}"' for name in names[:3]) + (f", ... {len(names) - 3} more" if len(names) > 3 else "")
    asked = " and ".join(f'"{key}"' for key in sorted(meter.keys))
    why = f'{asked} of keep counts no channels of {listed}, which stay: add a budget such as "params" for them'
    return {group: share for group, share in groups.items() if group.number not in beside}, (why,)


def _unconcerned(findings: Findings, groups: Iterable[Group], equal: EqualWidths, meter: Meter | None) -> set[int]:
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
