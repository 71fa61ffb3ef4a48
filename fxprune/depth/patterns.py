"""Patterns of options about channels, where residual branches go: those that name a branch that goes are refused."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from fxprune.errors import PlanError
from fxprune.names import entries_of, find, names_of, show

MAPPINGS = ("ratio", "counts", "masks", "importance")
"""Options that may be a dict from patterns."""

LISTS = ("ignore", "uniform")
"""Options that are a pattern or several."""


def tensors_named(model: nn.Module, pattern: Any) -> frozenset[str]:
    """The parameters that a pattern names, directly or through a module; none where it names a group, or nothing."""
    names = names_of(model)
    with contextlib.suppress(PlanError):
        match = find(names, pattern, what="")
        return match.tensors | frozenset(name for name in names.tensors if match.below(name))
    return frozenset()


def named_by(model: nn.Module, choices: Mapping[str, Any]) -> list[tuple[str, str, frozenset[str]]]:
    """The options whose patterns name parameters: the option, the pattern as a text, the parameters."""
    found: list[tuple[str, Any]] = []
    for option in MAPPINGS:
        if isinstance(choices.get(option), Mapping):
            found += [(option, pattern) for pattern in choices[option]]
    for option in LISTS:
        if choices.get(option) is not None and choices[option] != "config":
            found += [(option, pattern) for pattern in entries_of(choices[option])]
    named = ((option, show(pattern), tensors_named(model, pattern)) for option, pattern in found)
    return [(option, pattern, tensors) for option, pattern, tensors in named if tensors]


def for_the_rest(
    model: nn.Module, choices: Mapping[str, Any], gone: frozenset[str], branches: Iterable[str]
) -> dict[str, Any]:
    """The options for a copy of a model without branches: its modules have names there, but are other objects.

    gone: the parameters that went with the branches. Raises `PlanError` for a pattern that names nothing else, and for
    the number of a group: the copy has other groups.
    """
    for option, pattern, tensors in named_by(model, choices):
        if tensors <= gone:
            raise PlanError(
                f"{option} names a branch that is dropped",
                at=f"{option}: {pattern}",
                why=f"it goes whole, with {', '.join(branches)}",
                do=f"leave it out of {option}, or do not drop the branch",
            )
    names = {id(module): name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}

    def translated(option: str) -> Callable[[Any], Any]:
        def of(pattern: Any) -> Any:
            if isinstance(pattern, numbers.Integral) and not isinstance(pattern, bool):
                raise PlanError(
                    f"{option} names group {pattern} by its number",
                    why="groups have other numbers in the model without its branches",
                    do="pass the name of the group, or of its layer",
                )
            return names.get(id(pattern), pattern) if isinstance(pattern, nn.Module) else pattern

        return of

    made = dict(choices)
    for option in MAPPINGS:
        if isinstance(made.get(option), Mapping):
            made[option] = {translated(option)(pattern): value for pattern, value in made[option].items()}
    for option in LISTS:
        if made.get(option) is not None and made[option] != "config":
            made[option] = [translated(option)(pattern) for pattern in entries_of(made[option])]
    return made
