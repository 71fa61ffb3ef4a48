"""Which modules and parameters of a model a user means."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from fxprune.errors import InputError, PlanError, nearest


def checked(model: Any) -> nn.Module:
    """A module as it is. Raises `InputError` for anything else."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    return model


def entries_of(patterns: Any) -> list[Any]:
    """One pattern, or a collection of them, as a list.

    >>> entries_of("conv1"), entries_of(("conv1", "fc"))
    (['conv1'], ['conv1', 'fc'])
    """
    return list(patterns) if isinstance(patterns, (list, tuple, set, frozenset)) else [patterns]


def select(
    model: nn.Module, patterns: Any, *, what: str, parameters: bool = False
) -> tuple[dict[str, nn.Module], dict[str, nn.Parameter]]:
    """The modules that `patterns` mean, by name, and with `parameters` the parameters that are named themselves.

    A pattern is a name, a glob over names, a module of the model, or a type of modules. "" is the name of the model
    itself, which only the module, its type and "*" mean. A module that stands in several places has several names.

    what: the request, for messages.

    Raises `PlanError` for a pattern that means nothing.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> list(select(net, [nn.ReLU, "2"], what="freeze")[0])
    ['1', '2']
    """
    modules = dict(checked(model).named_modules(remove_duplicate=False))
    tensors = dict(model.named_parameters(remove_duplicate=False)) if parameters else {}
    entries = entries_of(patterns)
    if not entries:
        raise PlanError(f"{what} names nothing", why="the list of patterns is empty", do=_KINDS)
    chosen: dict[str, nn.Module] = {}
    named: dict[str, nn.Parameter] = {}
    for entry in entries:
        if isinstance(entry, str):
            hits, direct = _matching(entry, modules), _matching(entry, tensors)
            if not hits and not direct:
                why = nearest(entry, [*filter(None, modules), *tensors])
                raise PlanError(f'{what} names nothing: "{entry}"', why=why, do=_KINDS)
            named.update((name, tensors[name]) for name in direct)
        elif isinstance(entry, nn.Module):
            hits = [name for name, module in modules.items() if module is entry]
            if not hits:
                raise PlanError(f"{what} holds a module that is not part of the model: {type(entry).__name__}")
        elif isinstance(entry, type):
            hits = [name for name, module in modules.items() if isinstance(module, entry)]
            if not hits:
                kinds = sorted({type(module).__name__ for module in modules.values()})
                raise PlanError(
                    f"{what} names a type that the model has no module of: {entry.__name__}",
                    why=nearest(entry.__name__, kinds),
                )
        else:
            raise PlanError(f"{what} cannot be a {type(entry).__name__}", do=_KINDS)
        chosen.update((name, modules[name]) for name in hits)
    return {name: chosen[name] for name in modules if name in chosen}, named


_KINDS = "pass the name of a module or parameter, a glob, a module or a type"


def _matching(pattern: str, names: Iterable[str] | Mapping[str, Any]) -> list[str]:
    """The name itself where it is one, however it is spelled; else what the glob matches."""
    known = list(names)
    if pattern and pattern in known:
        return [pattern]
    return [name for name in known if fnmatch.fnmatchcase(name, pattern) and pattern]
