"""Groups whose number of channels is given: the option `counts`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxprune.analysis.findings import Findings, Group
from fxprune.arguments import fits
from fxprune.errors import PlanError, counted
from fxprune.names import show
from fxprune.planning.limits import Limits
from fxprune.planning.select import by_group, several_meant

EXAMPLE = 'pass for example counts={"layer1.0.conv1": 24}'


@dataclass(frozen=True)
class Fixed:
    """The counts that are given. gone: number of a group -> how many of its channels go. reasons: why others stay."""

    gone: Mapping[int, int] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


def fixed_counts(
    findings: Findings, counts: Any, stay: Mapping[int, str], limits: Limits, *, largest_given: bool
) -> Fixed:
    """The number of channels that each group of `counts` loses, and the reasons why some lose none.

    Args:
        stay: number of a group that must stay -> why.
        limits: a count that breaks one is refused. largest_given: False if `max_ratio` is the one of a budget, which
            holds for groups that have no count.
    """
    if counts is None:
        return Fixed()
    if not isinstance(counts, Mapping):
        why = f"it is of type {type(counts).__name__}"
        raise PlanError("counts must be a dict from patterns to numbers", why=why, do=EXAMPLE)
    for pattern, count in counts.items():
        if not fits(count, int) or count < 1:
            at, why = f"counts={{{show(pattern)}: {count!r}}}", "it is the number of channels that stay"
            share = fits(count, float) and 0 < count < 1
            do = f"pass a share that goes as ratio={{{show(pattern)}: ...}}" if share else EXAMPLE
            raise PlanError("a count must be an integer of at least 1", at=at, why=why, do=do)
    fixed: dict[int, int] = {}
    reasons = several_meant(findings, counts, what="counts")
    for number, count in by_group(findings, counts, what="counts").items():
        group, kept = findings.groups[number], int(count)
        if kept > group.size:
            why = f"it has {group.size} {group.kind}, and {kept} shall stay"
            do = f"pass at most {group.size}, or leave the group out"
            raise PlanError("a group has fewer channels than shall stay", at=_at(group), why=why, do=do)
        if kept < group.size and number in stay:
            reasons.append(
                f"counts: {_at(group)} keeps all of its {counted(group.size, 'channel')}, not {kept}: {stay[number]}"
            )
            continue
        if kept < group.size:
            _refuse_beyond(group, kept, limits, largest_given=largest_given)
        fixed[number] = group.size - kept
    return Fixed(fixed, tuple(reasons))


def _refuse_beyond(group: Group, kept: int, limits: Limits, *, largest_given: bool) -> None:
    """Raise `PlanError` for a count that breaks a limit."""
    broken, most = "", int(limits.max_ratio * group.size + 1e-9)
    if kept % limits.round_to:
        broken = f"round_to={limits.round_to} asks for a multiple of it"
    elif kept < limits.min_channels:
        broken = f"min_channels={limits.min_channels} asks for more"
    elif largest_given and group.size - kept > most:
        broken = f"max_ratio={limits.max_ratio} lets it lose {most} of {group.size} at most"
    if broken:
        do = "change the count, or leave the limit out"
        raise PlanError(f"counts contradicts a limit: {counted(kept, 'channel')}", at=_at(group), why=broken, do=do)


def _at(group: Group) -> str:
    return f'group "{group.key}"'
