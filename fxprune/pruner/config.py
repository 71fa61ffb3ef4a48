"""What a user lists for a pruner: modules, names, globs, dicts with settings -> the layers that are meant."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fxprune.errors import ChannelsStayWarning, PlanError, nearest
from fxprune.pruner.layers import LAYERS, NORMS, outputs_of, unsupported, uses_of

SPELLINGS = ("module", "name", "tensor_fqn")
"""The keys of a config entry that say which layer is meant; all others are settings."""


@dataclass(frozen=True)
class Target:
    """A layer to prune, the batch normalisation that loses the same channels, and the layer's own settings."""

    name: str
    layer: nn.Module
    norm_name: str = ""
    norm: nn.Module | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def targets_of(model: nn.Module, config: Any) -> list[Target]:
    """The layers that a config means, checked, in its order; see `BasePruner.prepare`. Changes nothing.

    Raises `PlanError` for what names nothing, names a layer twice, or names one whose outputs cannot be pruned.
    """
    if config is None:
        return _every_layer(model)
    if not isinstance(config, (list, tuple)) or (isinstance(config, tuple) and _is_pair(config)):
        raise PlanError(
            f"config must be a list, or None for every layer, not {type(config).__name__}",
            do='pass a list of names, modules, (conv, bn) pairs, or dicts such as {"name": "conv1"}',
        )
    if not config:
        raise PlanError("config is empty", why="it names no layer", do="name a layer, or pass None for every layer")
    names = _Names(model)
    targets = [target for entry in config for target in _targets(names, entry)]
    seen: set[str] = set()
    for target in targets:
        for name in filter(None, (target.name, target.norm_name)):
            if name in seen:
                raise PlanError(f'config names "{name}" twice', do="name it once, with all its settings")
            seen.add(name)
    return targets


class _Names:
    """The layers of a model by name and by module; a module that stands in two places has its first name."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.uses = uses_of(model)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.first = {id(module): name for name, module in model.named_modules()}

    def resolve(self, entry: Any) -> tuple[str, nn.Module]:
        """The name and the module that a name or a module means."""
        if isinstance(entry, nn.Module):
            if id(entry) not in self.first:
                raise PlanError(f"config holds a module that is not part of the model: {type(entry).__name__}")
        elif isinstance(entry, str):
            if entry not in self.modules:
                known = [n for n, m in self.modules.items() if n and not unsupported(m, self.uses)]
                raise PlanError(f'config names an unknown layer: "{entry}"', why=nearest(entry, known))
        else:
            raise PlanError(
                f"config cannot name a layer by {type(entry).__name__}", do="pass the name of a module, or a module"
            )
        module = entry if isinstance(entry, nn.Module) else self.modules[entry]
        name = self.first[id(module)]
        if module is self.model:
            raise PlanError(
                "the model itself is the layer to prune", why="it has no name", do="wrap it: nn.Sequential(layer)"
            )
        return name, module

    def layer(self, entry: Any, kinds: tuple[type, ...]) -> tuple[str, nn.Module]:
        """The same, checked to be of one of these kinds and prunable."""
        name, module = self.resolve(entry)
        why = unsupported(module, self.uses)
        if not why and not isinstance(module, kinds):
            why = f"{type(module).__name__} is not one of {', '.join(k.__name__ for k in kinds)}"
        if why:
            raise PlanError(f'"{name}" cannot be pruned', why=why)
        return name, module


def _targets(names: _Names, entry: Any) -> Iterator[Target]:
    settings: dict[str, Any] = {}
    if isinstance(entry, Mapping):
        settings = {k: v for k, v in entry.items() if k not in SPELLINGS}
        entry = _named_by(names, entry)
    if isinstance(entry, (tuple, list)):
        if not _is_pair(entry):
            raise PlanError(
                f"config holds {type(entry).__name__} of {len(entry)} entries that is no (layer, batch norm) pair",
                do="pass (conv, bn), as modules or as names",
            )
        yield _pair(names, entry, settings)
    elif isinstance(entry, str) and entry not in names.modules and set(entry) & set("*?["):
        matches = {names.first[id(m)]: m for n, m in names.modules.items() if n and fnmatch.fnmatchcase(n, entry)}
        good = {n: m for n, m in matches.items() if isinstance(m, LAYERS) and not unsupported(m, names.uses)}
        if not good:
            listed = "; ".join(f'"{n}": {unsupported(m, names.uses)}' for n, m in list(matches.items())[:3])
            raise PlanError(
                f'config names no layer that can be pruned: "{entry}"',
                why=listed or nearest(entry, [n for n, m in names.modules.items() if isinstance(m, LAYERS)]),
            )
        yield from (Target(name, module, settings=settings) for name, module in good.items())
    else:
        name, module = names.layer(entry, (*LAYERS, *NORMS))
        yield Target(name, module, settings=settings)


def _named_by(names: _Names, entry: Mapping[str, Any]) -> Any:
    """What the entry of a dict names; several spellings must agree."""
    given = {k: entry[k] for k in SPELLINGS if k in entry}
    if not given:
        raise PlanError(
            f"a dict in config names no layer: its keys are {', '.join(map(repr, entry)) or 'none'}",
            do='say which with "name", "module" or "tensor_fqn"',
        )
    if "tensor_fqn" in given:
        path = given["tensor_fqn"]
        layer, _, leaf = path.rpartition(".") if isinstance(path, str) else ("", "", "")
        if leaf != "weight":
            raise PlanError(
                f"config names a tensor that is no weight: {path!r}",
                why="outputs are pruned by the weight of a layer",
                do='write "layer.weight", or {"name": "layer"}',
            )
        given["tensor_fqn"] = layer.removeprefix(".")  # torch.ao takes a leading dot
    chosen = next(iter(given.values()))
    for spelling, other in given.items():
        if _resolved(names, other) != _resolved(names, chosen):
            raise PlanError(
                f"a dict in config names two layers: by {next(iter(given))!r} one, by {spelling!r} another",
                do="name one",
            )
    return chosen


def _resolved(names: _Names, entry: Any) -> Any:
    if isinstance(entry, (tuple, list)):
        return [_resolved(names, e) for e in entry]
    if isinstance(entry, str) and entry not in names.modules and set(entry) & set("*?["):
        return entry
    return names.resolve(entry)[0]


def _is_pair(entry: Any) -> bool:
    return len(entry) == 2 and not any(isinstance(e, (Mapping, tuple, list)) for e in entry)


def _pair(names: _Names, entry: Any, settings: Mapping[str, Any]) -> Target:
    name, layer = names.layer(entry[0], LAYERS)
    norm_name, norm = names.layer(entry[1], NORMS)
    if outputs_of(layer) != outputs_of(norm):
        raise PlanError(
            f'"{norm_name}" cannot follow "{name}"',
            why=f"it normalises {outputs_of(norm)} channels, the layer has {outputs_of(layer)} outputs",
        )
    return Target(name, layer, norm_name, norm, settings)


def _every_layer(model: nn.Module) -> list[Target]:
    uses = uses_of(model)
    layers = {n: m for n, m in model.named_modules() if n and isinstance(m, LAYERS)}
    left_out = {n: unsupported(m, uses) for n, m in layers.items()}
    left_out |= {n: "it has one output" for n, m in layers.items() if not left_out[n] and outputs_of(m) < 2}
    targets = [Target(n, m) for n, m in layers.items() if not left_out[n]]
    reasons = [f'"{name}": {why}' for name, why in left_out.items() if why]
    if not targets:
        raise PlanError(
            "the model has no layer that can be pruned",
            why="; ".join(reasons[:4]) or f"none of its layers is one of {', '.join(t.__name__ for t in LAYERS)}",
        )
    if reasons:
        warnings.warn("layers are left out: " + "; ".join(reasons), ChannelsStayWarning, stacklevel=4)
    return targets
