"""Patterns: how users name layers, parameters and groups of a model.

Every option that names something uses this file: `ignore`, `ratio`, `masks`, `freeze`, the config of a pruner, `where`
and `after` of `fxprune.sparse`. The kinds of patterns, the most exact one first:

    ===========  ==============================================  ==================================================
    kind         what it names                                   which pattern of a dict counts for a layer
    ===========  ==============================================  ==================================================
    the group    a `Group`, its number, or its unique `key`      this one before all other kinds
    name:kind    the groups of that name and kind                this one before the name alone
    the layer    a module object, or the exact name of a layer,  this one before every block around it
                 parameter or group, also one with brackets
    a block      a module object or the name of a module:        the nearest block around the layer
                 everything below it
    a glob       a text with `*`, `?` or `[...]`, compared with  the one with more literal characters
                 names of layers, blocks, parameters, groups,
                 and `name:kind`
    a type       a class of modules: these modules, and          a subclass before its base class, then the type of
                 everything below them                           the nearest module
    ===========  ==============================================  ==================================================

If a text can be read in several of these ways, the most exact one is meant. Group objects, numbers and kinds are
allowed only for options that name groups. A pattern that names nothing is an error, which gives the nearest name.
`fxprune.pattern_values` chooses among the patterns of a dict.
"""

from __future__ import annotations

import difflib
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
    """The properties of a group of channels that patterns use."""

    @property
    def number(self) -> int:
        """The position in `analysis.groups`."""

    @property
    def name(self) -> str:
        """The name of the layer that opens the channels, or of a parameter."""

    @property
    def kind(self) -> str:
        """The kind of the channels, such as "heads"."""

    @property
    def key(self) -> str:
        """A text that names this group and no other."""


class Level(IntEnum):
    """The kinds of patterns, as in the table above; a higher level is more exact."""

    TYPE = 0
    GLOB = 1
    BLOCK = 2
    NAME = 3
    KIND = 4
    GROUP = 5


@dataclass(frozen=True)
class Names:
    """Everything in a model that can be named.

    modules: every name -> the module; "" is the model itself. A module that occurs in several places has several names.
    tensors: every name -> the parameter or buffer.
    groups: the groups in the order of their numbers; None for an option that does not name groups.
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
        """All names of the module or tensor that has this name, the given one first."""
        thing = self.modules.get(name, self.tensors.get(name))
        return tuple(dict.fromkeys((name, *self._by_identity.get(id(thing), ()))))

    def known(self) -> list[str]:
        """Every text that names something: names, `name:kind` and keys of groups, then modules, then tensors."""
        groups = [text for g in self.groups or () for text in (g.name, f"{g.name}:{g.kind}", g.key)]
        return list(dict.fromkeys(text for text in (*groups, *self.modules, *self.tensors) if text))

    def nearest_type(self, kind: str) -> str:
        """A hint for an error: the type of the model's modules with the most similar name."""
        return nearest(kind, sorted({type(module).__name__ for module in self.modules.values()}))

    @property
    def kinds(self) -> str:
        """A sentence for errors that lists the kinds of patterns."""
        groups = ", or a group, its number or its name:kind" if self.groups is not None else ""
        return f"pass names, globs, modules or types of modules{groups}"


def names_of(model: nn.Module, *, parameters: bool = True) -> Names:
    """The names of a model's modules and, unless `parameters` is False, of its parameters. Groups are not named.

    Raises `InputError` if `model` is no module.
    """
    modules = dict(checked(model).named_modules(remove_duplicate=False))
    return Names(modules, dict(model.named_parameters(remove_duplicate=False)) if parameters else {})


def checked(model: Any) -> nn.Module:
    """A module as it is. Raises `InputError` for anything else."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the model must be a torch.nn.Module, not {type(model).__name__}",
            do="pass a model, such as nn.Sequential(...)",
        )
    return model


@dataclass(frozen=True)
class Match:
    """The modules, tensors and groups that one pattern names.

    modules: name -> module; everything below these modules is named too.
    tensors: the names of parameters and buffers that the pattern names directly, not through a module.
    groups: the numbers of the groups that the pattern names directly.
    literals: how many characters of a glob are literal.
    """

    pattern: Any
    level: Level
    modules: Mapping[str, nn.Module]
    tensors: frozenset[str] = frozenset()
    groups: frozenset[int] = frozenset()
    literals: int = 0

    def below(self, name: str) -> bool:
        """True if `name` belongs to one of `modules`, or to something below one of them."""
        return any(path in self.modules for path in chain(name))

    def rank(self, steps: int) -> tuple[Level, int]:
        """The exactness with which the match names something that is `steps` modules below a module of the match.

        Returns a level and a rank within that level; higher is more exact.
        """
        if self.level is Level.NAME and steps:
            return Level.BLOCK, -steps
        return self.level, -steps if self.level is Level.TYPE else self.literals


def entries_of(patterns: Any) -> list[Any]:
    """A pattern, or a collection of patterns, as a list.

    >>> entries_of("conv1"), entries_of(("conv1", "fc"))
    (['conv1'], ['conv1', 'fc'])
    """
    return list(patterns) if isinstance(patterns, (list, tuple, set, frozenset)) else [patterns]


def find(names: Names, pattern: Any, *, what: str) -> Match:
    """The modules, tensors and groups that one pattern names.

    what: the name of the option that the pattern was passed to, for errors.

    Raises `PlanError` if it names nothing.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> list(find(names_of(net), nn.Linear, what="freeze").modules)
    ['0', '2']
    """
    if isinstance(pattern, str):
        match = _of_text(names, pattern)
        if not (match.modules or match.tensors or match.groups):
            known = names.known()
            why = _nearest_pattern(pattern, known) or nearest(pattern, known)
            raise PlanError(f'{what} names nothing: "{pattern}"', why=why, do=names.kinds)
        return match
    if isinstance(pattern, nn.Module):
        modules = {name: module for name, module in names.modules.items() if module is pattern}
        if not modules:
            kind = type(pattern).__name__
            same = any(type(module) is type(pattern) for module in names.modules.values())
            why = "the model has other modules of this type" if same else names.nearest_type(kind)
            raise PlanError(
                f"{what} holds a module that is not part of the model: {kind}",
                why=why,
                do="pass a module of this model, or its name",
            )
        return Match(pattern, Level.NAME, modules)
    if isinstance(pattern, type):
        modules = {name: module for name, module in names.modules.items() if isinstance(module, pattern)}
        if not modules:
            kind = pattern.__name__
            why = names.nearest_type(kind)
            raise PlanError(
                f"{what} names a type that the model has no module of: {kind}",
                why=why,
                do="name a type that is in the model",
            )
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
    """The match of each pattern; `patterns` is one pattern or a collection of them.

    Raises `PlanError` if a pattern names nothing, and for an empty collection unless `empty` is True.
    """
    entries = entries_of(patterns)
    if not entries and not empty:
        raise PlanError(f"{what} names nothing", why="the list of patterns is empty", do=names.kinds)
    return [find(names, pattern, what=what) for pattern in entries]


def matching(pattern: str, known: Iterable[str]) -> list[str]:
    """The names that a text means: the name that equals it, else all names that it matches as a glob.

    >>> matching("a[0]", ["a[0]", "a0"]), matching("a[0]", ["a0"]), matching("", ["", "a"])
    (['a[0]'], ['a0'], [])
    """
    listed = list(known)
    if not pattern or pattern in listed:
        return [pattern] if pattern else []
    return [name for name in listed if fnmatch.fnmatchcase(name, pattern)]


def nearest_glob(pattern: str, known: Iterable[str]) -> str:
    """A glob that names something, if the pattern is one with a part that is written wrongly; else "".

    >>> nearest_glob("layres.*.up", ["layers.0.up", "layers.1.up", "head"]), nearest_glob("head*s", ["head"])
    ('layers.*.up', '')
    """
    if not re.search(r"[*?[]", pattern):
        return ""
    made: list[str] = []
    fitting = [name.split(".") for name in known]
    for part in pattern.split("."):
        place = len(made)
        fitting = [parts for parts in fitting if len(parts) > place]
        there = sorted({parts[place] for parts in fitting})
        if not any(fnmatch.fnmatchcase(one, part) for one in there):
            part = next(iter(difflib.get_close_matches(part, there, n=1)), "") if part.isidentifier() else ""
        fitting = [parts for parts in fitting if fnmatch.fnmatchcase(parts[place], part)]
        made.append(part)
    return ".".join(made) if fitting else ""


def literals(pattern: str) -> int:
    """The number of literal characters of a glob. Brackets around one character count as that character.

    >>> literals("conv*"), literals("conv?.[ab]"), literals("a[[]0]")
    (4, 5, 4)
    """
    return len(re.sub(r"\*|\?|\[!?\]?[^\]]*\]", "", re.sub(r"\[[^!]\]", "x", pattern)))


def chain(name: str) -> Iterator[str]:
    """A dotted name, then the names of all modules around it, from the nearest to "", the model.

    >>> list(chain("body.0.weight"))
    ['body.0.weight', 'body.0', 'body', '']
    """
    yield name
    while name:
        name = name.rpartition(".")[0]
        yield name


def show(pattern: Any) -> str:
    """A pattern as errors write it."""
    if isinstance(pattern, str):
        return f'"{pattern}"'
    if isinstance(pattern, type):
        return pattern.__name__
    if isinstance(pattern, nn.Module):
        return f"the module {type(pattern).__name__}"
    return f'the group "{pattern.key}"' if isinstance(pattern, Grouped) else repr(pattern)


_FOLDED = re.compile(r"(?<![^.])\d+(?:[-,]\d+)+(?![^.])")
"""Numbers of repeated blocks, as reports write them in one row."""


def _nearest_pattern(pattern: str, known: Sequence[str]) -> str:
    """A hint for a pattern that is nearly a glob, or the name of a row for repeated blocks; else ""."""

    def numbers(found: re.Match[str]) -> str:
        return "*" if re.search(r"\d\d", found[0]) else f"[{found[0].replace(',', '')}]"

    glob = _FOLDED.sub(numbers, pattern)
    if glob != pattern and matching(glob, known):
        return f'reports write repeated blocks in one row; did you mean "{glob}"?'
    near = nearest_glob(pattern, known)
    return f'did you mean "{near}"?' if near else ""


def _of_text(names: Names, text: str) -> Match:
    """The match of a text: whatever has exactly this key, `name:kind` or name, else all that it matches as a glob."""
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
    """The match of a group object. Groups are compared by key, since it may come from another analysis of the model."""
    found = frozenset(g.number for g in groups if g.key == pattern.key)
    if not found:
        why = nearest(pattern.key, [g.key for g in groups])
        raise PlanError(f'{what} names nothing: the group "{pattern.key}"', why=why, do=names.kinds)
    return Match(pattern, Level.GROUP, {}, groups=found)
