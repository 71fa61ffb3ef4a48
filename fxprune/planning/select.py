"""The groups that a pattern names, by their own name or by a layer whose outputs they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fxprune.analysis.findings import Findings, Group
from fxprune.analysis.members import Member
from fxprune.errors import PlanError, counted
from fxprune.names import Level, Match, Names, chain, find, find_all, matching, names_of
from fxprune.pattern_values import Candidate, assign, winners

V = TypeVar("V")


def names_in(findings: Findings) -> Names:
    """The modules, tensors and groups that can be named in what was analysed."""
    table, names = findings.table, names_of(findings.model)
    tensors = {other: t for name, t in table.by_name.items() for other in table.names_of(name)}
    return Names(names.modules, {**names.tensors, **tensors}, findings.groups)


def ignored_groups(findings: Findings, ignore: Any) -> set[int]:
    """The numbers of the groups that must stay.

    ignore: a pattern or several, see `fxprune.names`. A group stays if it is named itself, or if its channels are
    *outputs* of a layer that is named; inputs of the layer may be removed. A parameter that is named keeps its shape.
    """
    names = names_in(findings)
    matches = find_all(names, ignore, what="ignore", empty=True)
    if not matches:
        return set()
    modules = {name for match in matches for name in match.modules}
    tensors = {name for match in matches for name in match.tensors}
    chosen = {number for match in matches for number in match.groups}
    return chosen | {g.number for g in findings.groups if _keeps(findings, names, g, modules, tensors)}


def by_group(findings: Findings, values: Mapping[Any, V], *, what: str) -> dict[int, V]:
    """The value of each group that {pattern: value} names, by number; the most exact pattern counts.

    A pattern means the groups of its name. Where no group has it, it means those that the named layers' outputs are in.
    """
    names = names_in(findings)
    return assign(names, values, _candidates(findings, names), what=what, kind="group")


def _candidates(findings: Findings, names: Names) -> list[Candidate]:
    return [
        Candidate(f'group "{g.key}"', names.spellings(g.name), g.number, tuple(_opened(findings, names, g)))
        for g in findings.groups
    ]


def several_meant(findings: Findings, values: Any, *, what: str, mixed: bool = False) -> list[str]:
    """Sentences about exact names in {pattern: value} that mean several groups: of a layer, or a name and kind.

    A group that another pattern names more exactly does not count. values: anything else than a dict has no names.
    mixed: True for those alone that mean groups of several kinds.
    """
    if not isinstance(values, Mapping):
        return []
    names, told = names_in(findings), []
    candidates = _candidates(findings, names)
    won = winners(names, values, candidates, what=what, kind="group")
    for pattern in values:
        match = find(names, pattern, what=what)
        meant = {number for number, winner in won.items() if winner is pattern}
        told.append(_several(findings, match, meant & _exactly(match, candidates), what, mixed=mixed))
    return [text for text in told if text]


def several_ignored(findings: Findings, ignore: Any) -> list[str]:
    """Sentences about exact names of `ignore` that mean groups of several kinds, which no other pattern names."""
    if not ignore:
        return []
    names = names_in(findings)
    matches, candidates = find_all(names, ignore, what="ignore", empty=True), _candidates(findings, names)
    single = {n for match in matches if match.level is Level.GROUP for n in match.groups}
    single |= {n for match in matches if match.level is Level.KIND and len(match.groups) == 1 for n in match.groups}
    told = (_several(findings, match, _exactly(match, candidates) - single, "ignore", mixed=True) for match in matches)
    return [text for text in told if text]


def warning_of_several(findings: Findings, choices: Mapping[str, Any]) -> str:
    """The text of a warning about names that mean several groups, in `ratio` and `counts`; "" without any.

    A share of each of several groups of one kind, such as two halves of a layer, is the same share of the layer. Shares
    of heads and of head width multiply, and a count is that of each group. All groups of a name stay if it is ignored,
    as its user expects.
    """
    told = several_meant(findings, choices.get("ratio"), what="ratio", mixed=True)
    told += several_meant(findings, choices.get("counts"), what="counts")
    if not told:
        return ""
    more = f" {counted(len(told) - 1, 'further name')} so (the reasons list them)." if told[1:] else ""
    return f"{told[0]}.{more} Write the one that is meant, and this warning is gone"


def _exactly(match: Match, candidates: Sequence[Candidate]) -> set[int]:
    """The numbers of the groups that an exact name means: of their layer, or of one that their outputs are in."""
    if match.level is not Level.NAME:
        return set(match.groups) if match.level is Level.KIND else set()
    exact = {str(match.pattern), *match.modules, *match.tensors}
    return {n for n, c in enumerate(candidates) if not exact.isdisjoint((*c.paths, *c.related))}


def _several(findings: Findings, match: Match, meant: set[int], what: str, *, mixed: bool) -> str:
    """A sentence about a name that means several groups, with what means one of them, and all; "" for fewer.

    mixed: True if groups of one kind do not count as several.
    """
    if len(meant) < 2 or (mixed and len({findings.groups[number].kind for number in meant}) < 2):
        return ""
    shown = Counter(map(_with_kind, findings.groups))
    groups = [findings.groups[number] for number in sorted(meant)]
    keys = [_with_kind(group) if shown[_with_kind(group)] == 1 else group.key for group in groups]
    text = match.pattern if isinstance(match.pattern, str) else next(iter(match.modules))
    glob = f"{text}*" if match.level is Level.KIND else f"{groups[0].name}:*"
    every = {g.number for g in findings.groups if matching(glob, (_with_kind(g),))} == meant
    all_of_them = f', "{glob}" all' if every else ""
    return f'{what}: "{text}" means {len(keys)} groups, {" and ".join(keys)}; "{keys[0]}" means one{all_of_them}'


def _with_kind(group: Group) -> str:
    return f"{group.name}:{group.kind}"


def importance_by_pattern(findings: Findings, importance: Any) -> Any:
    """An importance from {pattern: scores}; any other importance as it is.

    The patterns are those of `ratio`. Scores are numbers in the order of the channels of the group that is named.
    """
    if not isinstance(importance, Mapping):
        return importance
    known = by_group(findings, importance, what="importance")

    def scores(group: Group) -> Any:
        if group.number not in known:
            raise PlanError(
                "there are no scores of a group",
                at=f'group "{group.name}"',
                why=f"no key of the importance names it: {', '.join(map(repr, list(importance)[:6])) or 'it is empty'}",
                do=f"give scores of it, or leave it out with ignore={group.name!r}",
            )
        return known[group.number]

    return scores


def carried_over(before: Findings, values: Mapping[int, V], after: Findings) -> dict[int, V]:
    """The values of groups by their numbers after some channels were locked. What is locked as a whole is left out.

    before, after: the findings before and after. values: number of a group before -> its value.
    """
    numbers = after.solution.groups_in(before.solution)
    return {group: values[number] for group, number in numbers.items() if number in values}


def _keeps(findings: Findings, names: Names, group: Group, modules: set[str], tensors: set[str]) -> bool:
    """True if a group stands in one of these tensors, or in outputs of one of these modules."""
    for member in group.members:
        spelled = names.spellings(member.parameter)
        if not tensors.isdisjoint(spelled):
            return True
        if _is_output(findings, member) and any(not modules.isdisjoint(chain(name)) for name in spelled):
            return True
    return False


def _is_output(findings: Findings, member: Member) -> bool:
    return findings.is_output_dim(member.parameter, member.dim) or member.tensor.ndim == 1


def _opened(findings: Findings, names: Names, group: Group) -> dict[str, None]:
    """The names of the parameters in which a group is an output, and of the layers that own them."""
    found: dict[str, None] = {}
    for member in group.members:
        if _is_output(findings, member):
            for name in names.spellings(member.parameter):
                found[name] = None
                found[name.rpartition(".")[0].partition(".parametrizations.")[0]] = None
    found.pop("", None)
    return found
