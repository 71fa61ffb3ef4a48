"""The one selector: which layers, parameters and groups of a model a pattern names.

Every option that names something uses it: `ignore`, `ratio`, `masks`, `freeze`, the config of a pruner, `where` and
`after` of `fxprune.sparse`. A pattern is one of these; the first line that fits says what it means:

    ===========  ==============================================  ==================================================
    pattern      names                                           of several in a dict
    ===========  ==============================================  ==================================================
    the group    a `Group`, its number, or its unique `key`      before everything else
    name:kind    the groups of that name and kind                before the name alone
    the layer    a module object, or the exact name of a layer,  before every block around it
                 parameter or group, also one with brackets
    a block      a module around the layer, by object or name:   the nearest block
                 everything below it
    a glob       what `*`, `?` and `[...]` fit: names of layers,  the one with more literal characters
                 blocks, parameters, groups, `name:kind`
    a type       modules of a class, and everything below them   a subclass before its base, then the nearest module
    ===========  ==============================================  ==================================================

Group objects, numbers and kinds are patterns only where groups are meant. What names nothing is an error that says the
nearest name; two patterns of a dict that tie are an error that says both.

>>> from torch import nn
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

import fnmatch
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import nn

from fxprune.errors import InputError, PlanError, nearest

V = TypeVar("V")


@runtime_checkable
class Grouped(Protocol):
    """A group of channels, as far as it can be named."""

    @property
    def number(self) -> int:
        """The position in the analysis."""

    @property
    def name(self) -> str:
        """The name of the layer that opens the channels, or of a parameter."""

    @property
    def kind(self) -> str:
        """The kind of its channels, such as "heads"."""

    @property
    def key(self) -> str:
        """The name that no other group has."""


class Level(IntEnum):
    """The exactness with which a pattern names something; the highest level counts."""

    TYPE = 0
    GLOB = 1
    BLOCK = 2
    NAME = 3
    KIND = 4
    GROUP = 5


SPOKEN = {
    Level.TYPE: "a type of the nearest module",
    Level.GLOB: "a glob",
    Level.BLOCK: "the nearest block",
    Level.NAME: "an exact name or a module",
    Level.KIND: "a name with a kind",
    Level.GROUP: "one group",
}


@dataclass(frozen=True)
class Names:
    """Everything in a model that can be named.

    modules: by every name, "" for the model itself. tensors: parameters and buffers by every name. groups: in the order
    of their numbers; None where groups cannot be meant.
    """

    modules: Mapping[str, nn.Module]
    tensors: Mapping[str, Any] = field(default_factory=dict)
    groups: Sequence[Grouped] | None = None

    @cached_property
    def _by_identity(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for name, thing in (*self.modules.items(), *self.tensors.items()):
            found.setdefault(id(thing), []).append(name)
        return found

    def spellings(self, name: str) -> tuple[str, ...]:
        """All names of the module or tensor of that name, itself first: several where it stands in several places."""
        thing = self.modules.get(name, self.tensors.get(name))
        return tuple(dict.fromkeys((name, *self._by_identity.get(id(thing), ()))))

    def known(self) -> list[str]:
        """Every text that names something, groups first."""
        groups = [text for g in self.groups or () for text in (g.name, f"{g.name}:{g.kind}", g.key)]
        return list(dict.fromkeys(text for text in (*groups, *self.modules, *self.tensors) if text))

    def nearest_type(self, kind: str) -> str:
        """A hint that says which of the model's types has the nearest name."""
        return nearest(kind, sorted({type(module).__name__ for module in self.modules.values()}))

    @property
    def kinds(self) -> str:
        """The kinds of patterns, for messages."""
        groups = ", or a group, its number or its name:kind" if self.groups is not None else ""
        return f"pass names, globs, modules or types of modules{groups}"


def names_of(model: nn.Module, *, parameters: bool = True) -> Names:
    """The names of a model's modules, and those of its parameters.

    Raises `InputError` for anything that is no module.
    """
    modules = dict(checked(model).named_modules(remove_duplicate=False))
    return Names(modules, dict(model.named_parameters(remove_duplicate=False)) if parameters else {})


def checked(model: Any) -> nn.Module:
    """A module as it is. Raises `InputError` for anything else."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    return model


@dataclass(frozen=True)
class Match:
    """The modules, tensors and groups that one pattern names.

    modules: by name; everything below them is meant too. tensors: those named themselves, outside of named modules.
    groups: numbers of the groups named themselves. literals: how many characters of a glob are literal.
    """

    pattern: Any
    level: Level
    modules: Mapping[str, nn.Module]
    tensors: frozenset[str] = frozenset()
    groups: frozenset[int] = frozenset()
    literals: int = 0

    def below(self, name: str) -> bool:
        """True if a module that is meant, or a block around it that is meant, has this name or holds it."""
        return any(path in self.modules for path in chain(name))

    def rank(self, steps: int) -> tuple[Level, int]:
        """The exactness for something that stands so many steps below a named module: level and rank, higher first."""
        if self.level is Level.NAME and steps:
            return Level.BLOCK, -steps
        return self.level, -steps if self.level is Level.TYPE else self.literals


def entries_of(patterns: Any) -> list[Any]:
    """One pattern, or a collection of them, as a list.

    >>> entries_of("conv1"), entries_of(("conv1", "fc"))
    (['conv1'], ['conv1', 'fc'])
    """
    return list(patterns) if isinstance(patterns, (list, tuple, set, frozenset)) else [patterns]


def find(names: Names, pattern: Any, *, what: str) -> Match:
    """The modules, tensors and groups that one pattern names. what: the option it was passed to, for messages.

    Raises `PlanError` where it names nothing.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> list(find(names_of(net), nn.Linear, what="freeze").modules)
    ['0', '2']
    """
    if isinstance(pattern, str):
        match = _of_text(names, pattern)
        if not (match.modules or match.tensors or match.groups):
            why = nearest(pattern, names.known())
            raise PlanError(f'{what} names nothing: "{pattern}"', why=why, do=names.kinds)
        return match
    if isinstance(pattern, nn.Module):
        modules = {name: module for name, module in names.modules.items() if module is pattern}
        if not modules:
            kind = type(pattern).__name__
            why = names.nearest_type(kind)
            raise PlanError(f"{what} holds a module that is not part of the model: {kind}", why=why)
        return Match(pattern, Level.NAME, modules)
    if isinstance(pattern, type):
        modules = {name: module for name, module in names.modules.items() if isinstance(module, pattern)}
        if not modules:
            kind = pattern.__name__
            why = names.nearest_type(kind)
            raise PlanError(f"{what} names a type that the model has no module of: {kind}", why=why)
        return Match(pattern, Level.TYPE, modules)
    if names.groups is not None and isinstance(pattern, Grouped):
        return _of_group(names, names.groups, pattern, what)
    if names.groups is not None and isinstance(pattern, numbers.Integral) and not isinstance(pattern, bool):
        if not 0 <= int(pattern) < len(names.groups):
            why = f"the groups are numbered 0 to {len(names.groups) - 1}" if names.groups else "there is no group"
            raise PlanError(f"{what} names nothing: group {pattern}", why=why, do=names.kinds)
        return Match(pattern, Level.GROUP, {}, groups=frozenset({int(pattern)}))
    raise PlanError(f"{what} cannot be a {type(pattern).__name__}", do=names.kinds)


def find_all(names: Names, patterns: Any, *, what: str, empty: bool = False) -> list[Match]:
    """The match of each of several patterns, or of one alone. Raises `PlanError` for none, unless `empty` allows it."""
    entries = entries_of(patterns)
    if not entries and not empty:
        raise PlanError(f"{what} names nothing", why="the list of patterns is empty", do=names.kinds)
    return [find(names, pattern, what=what) for pattern in entries]


@dataclass(frozen=True)
class Candidate:
    """Something that a value can be given to.

    said: what it is called in messages. paths: its names. number: of a group. further: other layers that have to do
    with it; their names count for a pattern that fits no candidate's own. alone: a module that holds it does not mean
    it.
    """

    said: str
    paths: tuple[str, ...]
    number: int | None = None
    further: tuple[str, ...] = ()
    alone: bool = False


def assign(
    names: Names, values: Mapping[Any, V], candidates: Sequence[Candidate], *, what: str, kind: str
) -> dict[int, V]:
    """The value of each candidate: position -> value, by the pattern that names it most exactly; see `winners`."""
    won = winners(names, values, candidates, what=what, kind=kind)
    return {position: values[pattern] for position, pattern in won.items()}


def winners(
    names: Names, patterns: Iterable[Any], candidates: Sequence[Candidate], *, what: str, kind: str
) -> dict[int, Any]:
    """The pattern that names each candidate most exactly: position -> pattern. Candidates without one are left out.

    what: the option, kind: what the candidates are, for messages.

    Raises `PlanError` for a pattern that names no candidate, and for two that name one equally well.
    """
    claims: list[list[tuple[Level, int, Match]]] = [[] for _ in candidates]
    own, further = _index(candidates), _index(candidates, further=True)
    numbers = {c.number: position for position, c in enumerate(candidates) if c.number is not None}
    for pattern in patterns:
        match = find(names, pattern, what=what)
        found = _claims(match, own, numbers) or _claims(match, further, {})
        if not found:
            raise _no_candidate(pattern, [path for c in candidates for path in c.paths], what, kind)
        for position, (level, rank) in found.items():
            claims[position].append((level, rank, match))
    return {
        position: _winner(candidates[position], claimed, what).pattern
        for position, claimed in enumerate(claims)
        if claimed
    }


def matching(pattern: str, known: Iterable[str]) -> list[str]:
    """The name itself where it is one, however it is spelled; else the names that the glob fits.

    >>> matching("a[0]", ["a[0]", "a0"]), matching("a[0]", ["a0"]), matching("", ["", "a"])
    (['a[0]'], ['a0'], [])
    """
    listed = list(known)
    if not pattern or pattern in listed:
        return [pattern] if pattern else []
    return [name for name in listed if fnmatch.fnmatchcase(name, pattern)]


def literals(pattern: str) -> int:
    """The number of literal characters of a glob; brackets around one character stand for that character.

    >>> literals("conv*"), literals("conv?.[ab]"), literals("a[[]0]")
    (4, 5, 4)
    """
    return len(re.sub(r"\*|\?|\[!?\]?[^\]]*\]", "", re.sub(r"\[[^!]\]", "x", pattern)))


def chain(name: str) -> Iterator[str]:
    """A name and those of the modules around it, the nearest first.

    >>> list(chain("body.0.weight"))
    ['body.0.weight', 'body.0', 'body', '']
    """
    yield name
    while name:
        name = name.rpartition(".")[0]
        yield name


def show(pattern: Any) -> str:
    """A pattern as a message spells it."""
    if isinstance(pattern, str):
        return f'"{pattern}"'
    if isinstance(pattern, type):
        return pattern.__name__
    if isinstance(pattern, nn.Module):
        return f"the module {type(pattern).__name__}"
    return f'the group "{pattern.key}"' if isinstance(pattern, Grouped) else repr(pattern)


def _of_text(names: Names, text: str) -> Match:
    """The match of a text: the thing of exactly that name; where there is none, everything that the glob fits."""
    groups = names.groups or ()
    if exact := frozenset(g.number for g in groups if "@" in text and g.key == text):
        return Match(text, Level.GROUP, {}, groups=exact)
    if exact := frozenset(g.number for g in groups if ":" in text and f"{g.name}:{g.kind}" == text):
        return Match(text, Level.KIND, {}, groups=exact)
    same = frozenset(g.number for g in groups if g.name == text)
    if text and (text in names.modules or text in names.tensors or same):
        modules = {text: names.modules[text]} if text in names.modules else {}
        return Match(text, Level.NAME, modules, frozenset({text} & names.tensors.keys()), same)
    hits = {name: names.modules[name] for name in matching(text, names.modules)}
    inside = hits.keys() - {""}
    tensors = frozenset(t for t in matching(text, names.tensors) if inside.isdisjoint(chain(t)))
    spelled_by = {g.number: (g.name, f"{g.name}:{g.kind}") for g in groups}
    fitting = frozenset(number for number, texts in spelled_by.items() if matching(text, texts))
    return Match(text, Level.GLOB, hits, tensors, fitting, literals(text))


def _of_group(names: Names, groups: Sequence[Grouped], pattern: Grouped, what: str) -> Match:
    """The group of the same key: the object may come from another analysis of the same model."""
    found = frozenset(g.number for g in groups if g.key == pattern.key)
    if not found:
        why = nearest(pattern.key, [g.key for g in groups])
        raise PlanError(f'{what} names nothing: the group "{pattern.key}"', why=why, do=names.kinds)
    return Match(pattern, Level.GROUP, {}, groups=found)


Index = Mapping[str, Sequence[tuple[int, int]]]
"""Name of a candidate, or of a module around it -> (position of the candidate, steps from it to that module)."""


def _index(candidates: Sequence[Candidate], *, further: bool = False) -> Index:
    found: dict[str, list[tuple[int, int]]] = {}
    for position, candidate in enumerate(candidates):
        for path in candidate.further if further else candidate.paths:
            for steps, name in enumerate([path] if candidate.alone else chain(path)):
                found.setdefault(name, []).append((position, steps))
    return found


def _claims(match: Match, index: Index, numbers: Mapping[int, int]) -> dict[int, tuple[Level, int]]:
    """The exactness with which a match names each candidate: position -> level and rank; the others are left out."""
    closest: dict[int, int] = {}
    for name in (*match.modules, *match.tensors):
        for position, steps in index.get(name, ()):
            closest[position] = min(steps, closest.get(position, steps))
    found = {position: match.rank(steps) for position, steps in closest.items()}
    return found | {numbers[number]: match.rank(0) for number in match.groups if number in numbers}


def _winner(candidate: Candidate, claims: list[tuple[Level, int, Match]], what: str) -> Match:
    """The pattern that names a candidate most exactly. Raises `PlanError` for a tie."""
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
            at=candidate.said,
            why=f"each names it by {SPOKEN[level]}{detail}",
            do="leave one out, or name it more exactly",
        )
    return winners[0]


def _has_subclass(kind: type, others: Iterable[type]) -> bool:
    return any(other is not kind and issubclass(other, kind) for other in others)


def _no_candidate(pattern: Any, known: Iterable[str], what: str, kind: str) -> PlanError:
    others = list(dict.fromkeys(known))
    if isinstance(pattern, str) and pattern not in others:
        why = nearest(pattern, others)
    else:
        why = "known names: " + ", ".join(others[:8]) if others else "there are none"
    return PlanError(f"{what} names no {kind}: {show(pattern)}", why=why)
