"""Settings, attributes that count dimensions in code that no graph shows: each gets the value that its uses need."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.analysis.marked_integers import Setting, Sizing
from fxprune.channels.groups import Removal
from fxprune.errors import RewriteError


def settle_settings(small: nn.Module, findings: Findings, removal: Removal) -> None:
    """Give every setting its new value, in the modules of the small model.

    Raises `RewriteError` where the places that use a setting need different values now.
    """
    for setting, sizings in findings.settings.items():
        path, name, position = setting
        module = small.get_submodule(path)
        value = _agreed(findings, setting, sizings, removal)
        if position is None:
            if getattr(module, name) != value:
                setattr(module, name, value)
        else:
            old = getattr(module, name)
            new = type(old)([*old[:position], value, *old[position + 1 :]])
            if new != old:
                setattr(module, name, new)


def _agreed(findings: Findings, setting: Setting, sizings: Iterable[Sizing], removal: Removal) -> int:
    values: dict[Fraction, Sizing] = {}
    for sizing in sizings:
        values.setdefault(sizing.setting(removal), sizing)
    if len(values) == 1 and (value := next(iter(values))).denominator == 1:
        return int(value)
    path, name, _ = setting
    node = next(n for n in findings.captured.graph.nodes if n.op == "call_module" and path.startswith(str(n.target)))
    raise RewriteError(
        f'"{path}.{name}" counts several things that are no longer equal',
        node=node.name,
        scope=path,
        at=f"{path or 'the model'}, setting {name}",
        why="; ".join(f"{sizing.place} needs {value}" for value, sizing in values.items()),
        do="prune these groups by the same number, or let the model become a graph",
    )
