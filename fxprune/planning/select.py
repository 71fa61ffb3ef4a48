"""Which names, globs, modules or types a user means."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

from torch import nn

from fxprune.analysis.findings import Findings, Group
from fxprune.errors import PlanError, nearest


def ignored_groups(findings: Findings, ignore: Any) -> set[int]:
    """The numbers of the groups that must stay.

    `ignore` is one of, or a list of: the name of a module or parameter, a glob over such names, a module, a type
    of module. A group stays when it would remove *output* channels of what is named; inputs may still shrink.
    """
    entries = list(ignore) if isinstance(ignore, (list, tuple, set, frozenset)) else [ignore]
    if not entries:
        return set()
    parameters = _parameters(findings, entries)
    return {
        g.number for g in findings.groups if any(_opens(findings, g, m.parameter, m.dim, parameters) for m in g.members)
    }


def _opens(findings: Findings, group: Group, parameter: str, dim: int, chosen: dict[str, bool]) -> bool:
    if parameter not in chosen:
        return False
    by_name = chosen[parameter]  # a parameter named itself keeps every dimension
    return by_name or findings.opens(parameter, dim) or findings.tensors[parameter].ndim == 1


def _parameters(findings: Findings, entries: Iterable[Any]) -> dict[str, bool]:
    modules = dict(findings.model.named_modules(remove_duplicate=False))
    chosen: dict[str, bool] = {}
    for entry in entries:
        if isinstance(entry, str):
            names = set(fnmatch.filter(modules, entry)) - {""}
            named = set(fnmatch.filter(findings.tensors, entry))
            if not names and not named:
                raise PlanError(
                    f'ignore names nothing: "{entry}"',
                    why=nearest(entry, [*filter(None, modules), *findings.tensors]),
                    do="pass the name of a module or parameter, a glob, a module or a type",
                )
            inside = tuple(f"{name}." for name in names)  # "head*" means the layer, not its parameters one by one
            chosen.update(dict.fromkeys((name for name in named if not name.startswith(inside)), True))
        elif isinstance(entry, nn.Module):
            names = {n for n, m in modules.items() if m is entry}
            if not names:
                raise PlanError(f"ignore holds a module that is not part of the model: {type(entry).__name__}")
        elif isinstance(entry, type):
            names = {n for n, m in modules.items() if isinstance(m, entry)}
        else:
            raise PlanError(
                f"ignore cannot be a {type(entry).__name__}", do="pass names, globs, modules or types of modules"
            )
        for parameter in findings.tensors:
            if any(parameter == n or parameter.startswith(n + ".") for n in names):
                chosen.setdefault(parameter, False)
    return chosen
