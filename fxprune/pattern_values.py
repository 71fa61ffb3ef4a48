"""The values of a dict whose keys are patterns: which layer, parameter or group gets which value.

Several patterns of a dict may name the same layer. Then the one that names it most exactly counts; the table in
`fxprune.names` says what is more exact.

>>> from torch import nn
>>> from fxprune.names import names_of
>>> net = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 2))
>>> shares = {nn.Linear: 0.1, "*.?": 0.2, "1": 0.3, net[1][0]: 0.4}
>>> layers = [Candidate(f'layer "{name}"', (name,)) for name in ("0", "1.0", "2")]
>>> assign(names_of(net), shares, layers, what="ratio", kind="layer")
{0: 0.1, 1: 0.4, 2: 0.1}
>>> del shares[net[1][0]]  # the layer itself
>>> assign(names_of(net), shares, layers, what="ratio", kind="layer")
{0: 0.1, 1: 0.3, 2: 0.1}
>>> del shares["1"]  # the block around it
>>> assign(names_of(net), shares, layers, what="ratio", kind="layer")
{0: 0.1, 1: 0.2, 2: 0.1}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fxprune.errors import PlanError
from fxprune.names import Level, Match, Names, chain, find, show

V = TypeVar("V")

LEVEL_WORDS = {
    Level.TYPE: "a type of the nearest module",
    Level.GLOB: "a glob",
    Level.BLOCK: "the nearest block",
    Level.NAME: "an exact name or a module",
    Level.KIND: "a name with a kind",
    Level.GROUP: "one group",
}


@dataclass(frozen=True)
class Candidate:
    """A layer, parameter or group that can get a value.

    label: how errors call it.
    paths: its names.
    number: its number if it is a group.
    related: the names of other layers that belong to it; a pattern that names no candidate by `paths` is compared with
        these.
    exact_only: True if a pattern for a module around it does not count.
    """

    label: str
    paths: tuple[str, ...]
    number: int | None = None
    related: tuple[str, ...] = ()
    exact_only: bool = False


def assign(
    names: Names, values: Mapping[Any, V], candidates: Sequence[Candidate], *, what: str, kind: str
) -> dict[int, V]:
    """The value of each candidate, by the pattern that names it most exactly.

    Args:
        values: pattern -> value.
        what, kind: as in `winners`.

    Returns the position of a candidate -> its value. Raises as `winners` does.
    """
    won = winners(names, values, candidates, what=what, kind=kind)
    return {position: values[pattern] for position, pattern in won.items()}


def winners(
    names: Names, patterns: Iterable[Any], candidates: Sequence[Candidate], *, what: str, kind: str
) -> dict[int, Any]:
    """The pattern that names each candidate most exactly.

    Args:
        what: the name of the option, for errors.
        kind: what the candidates are, such as "layer", for errors.

    Returns the position of a candidate -> the pattern. Candidates that no pattern names are left out.

    Raises `PlanError` for a pattern that names no candidate, and for two patterns that name one equally exactly.
    """
    claims: list[list[tuple[Level, int, Match]]] = [[] for _ in candidates]
    own, related = _index(candidates), _index(candidates, related=True)
    numbers = {c.number: position for position, c in enumerate(candidates) if c.number is not None}
    for pattern in patterns:
        match = find(names, pattern, what=what)
        found = _ranks(match, own, numbers) or _ranks(match, related, {})
        if not found:
            raise _no_candidate(pattern, [path for c in candidates for path in c.paths], what, kind)
        for position, (level, rank) in found.items():
            claims[position].append((level, rank, match))
    return {
        position: _winner(candidates[position], claimed, what).pattern
        for position, claimed in enumerate(claims)
        if claimed
    }


Index = Mapping[str, Sequence[tuple[int, int]]]
"""Name of a candidate or of a module around it -> pairs: the position of the candidate, its steps below that name."""


def _index(candidates: Sequence[Candidate], *, related: bool = False) -> Index:
    found: dict[str, list[tuple[int, int]]] = {}
    for position, candidate in enumerate(candidates):
        for path in candidate.related if related else candidate.paths:
            for steps, name in enumerate([path] if candidate.exact_only else chain(path)):
                found.setdefault(name, []).append((position, steps))
    return found


def _ranks(match: Match, index: Index, numbers: Mapping[int, int]) -> dict[int, tuple[Level, int]]:
    """The rank of a match for each candidate that it names: position of the candidate -> level and rank.

    numbers: the number of a group -> the position of its candidate. `Match.rank` explains the ranks.
    """
    closest: dict[int, int] = {}
    for name in (*match.modules, *match.tensors):
        for position, steps in index.get(name, ()):
            closest[position] = min(steps, closest.get(position, steps))
    found = {position: match.rank(steps) for position, steps in closest.items()}
    return found | {numbers[number]: match.rank(0) for number in match.groups if number in numbers}


def _winner(candidate: Candidate, claims: list[tuple[Level, int, Match]], what: str) -> Match:
    """The match that names a candidate most exactly. Raises `PlanError` if two do so equally."""
    types = [match.pattern for level, _, match in claims if level is Level.TYPE]
    derived = [c for c in claims if c[0] is not Level.TYPE or not _has_subclass(c[2].pattern, types)]
    best = max((level, rank) for level, rank, _ in derived)
    winners = [match for level, rank, match in derived if (level, rank) == best]
    if len(winners) > 1:
        level, _ = best
        detail = f" with {winners[0].literals} literal characters" if level is Level.GLOB else ""
        first, second = (show(match.pattern) for match in winners[:2])
        raise PlanError(
            f"{what} says two things of one: {first} and {second}",
            at=candidate.label,
            why=f"each names it by {LEVEL_WORDS[level]}{detail}",
            do="leave one out, or name it more exactly",
        )
    return winners[0]


def _has_subclass(kind: type, others: Iterable[type]) -> bool:
    return any(other is not kind and issubclass(other, kind) for other in others)


def _no_candidate(pattern: Any, known: Iterable[str], what: str, kind: str) -> PlanError:
    """The error for a pattern that names something in the model, but none of the candidates."""
    others = list(dict.fromkeys(known))
    listed = ", ".join(others[:8]) + (", ..." if len(others) > 8 else "")
    why = f"the model has it, but the only {kind}s are {listed}" if others else f"there is no {kind} at all"
    do = (
        "`analyze(...).report()` says what holds its channels"
        if kind == "group"
        else "name one of them, or leave it out"
    )
    return PlanError(f"{what} names no {kind}: {show(pattern)}", why=why, do=do)
