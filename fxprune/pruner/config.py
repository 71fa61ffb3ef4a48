"""The config of a pruner: from a list of patterns, pairs and dicts to the layers that they name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from fxprune.errors import ChannelsStayWarning, PlanError
from fxprune.names import Level, Match, find, names_of, show
from fxprune.pruner.layers import BATCH_NORMS, LAYERS, outputs_of, unsupported, uses_of
from fxprune.pruner.norms import with_their_norms
from fxprune.pruner.targets import PRUNE_BIAS, LayerToPrune, bias_setting

SPELLINGS = ("module", "name", "tensor_fqn")
"""The keys of a config entry that name a layer; all other keys are settings."""


def layers_to_prune(model: nn.Module, config: Any) -> list[LayerToPrune]:
    """Returns the layers that a config names, in its order; see `BasePruner.prepare`. Changes nothing.

    Raises `PlanError` for an entry that matches nothing, for a layer that is named twice, and for a layer whose outputs
    cannot be pruned.
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
    layers = _Layers(model)
    targets = [target for entry in config for target in _targets(layers, entry)]
    seen: set[str] = set()
    for target in targets:
        for name in filter(None, (target.name, target.norm_name)):
            if name in seen:
                raise PlanError(f'config names "{name}" twice', do="name it once, with all its settings")
            seen.add(name)
    return with_their_norms(model, targets)


class _Layers:
    """The layers of a model by name. A layer with several names is known by the first."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.uses = uses_of(model)
        self.names = names_of(model, parameters=False)
        self.first = {id(module): name for name, module in model.named_modules()}

    def find(self, entry: Any) -> Match:
        """Returns the match of a pattern. Raises `PlanError` if it matches nothing, or is a model that is one layer."""
        itself = isinstance(self.model, LAYERS) and entry is self.model
        if itself or (isinstance(entry, str) and not entry):
            raise PlanError(
                "the model itself is the layer to prune", why="it has no name", do="wrap it: nn.Sequential(layer)"
            )
        return find(self.names, entry, what="config")

    def modules_named(self, entry: Any) -> dict[str, nn.Module]:
        """Returns the modules that a pattern names, by their first names."""
        return {self.first[id(module)]: module for module in self.find(entry).modules.values()}

    def one(self, entry: Any, kinds: tuple[type, ...]) -> tuple[str, nn.Module]:
        """Returns the one layer that a pattern names. Raises unless it is of one of these types and can be pruned."""
        found = self.modules_named(entry)
        if len(found) > 1:
            raise PlanError(
                f"config names several layers where one is meant: {show(entry)}",
                why=f"{', '.join(found)} fit",
                do="name one layer",
            )
        [(name, module)] = found.items()
        why = unsupported(module, self.uses)
        if not why and not isinstance(module, kinds):
            why = f"{type(module).__name__} is not one of {', '.join(k.__name__ for k in kinds)}"
        if why:
            raise PlanError(f'"{name}" cannot be pruned', why=why, do="name another layer, or leave it out")
        return name, module

    def several(self, entry: Any) -> dict[str, nn.Module]:
        """Returns the layers that a block, a glob or a type names, without those that cannot be pruned.

        Raises `PlanError` if none can be pruned.
        """
        found = self.modules_named(entry)
        inside = [m for module in found.values() for m in module.modules()]
        below = {self.first[id(m)]: m for m in inside if isinstance(m, LAYERS)}
        good: dict[str, nn.Module] = {name: m for name, m in below.items() if not unsupported(m, self.uses)}
        if not good:
            listed = "; ".join(f'"{n}": {unsupported(m, self.uses)}' for n, m in list((below or found).items())[:3])
            raise PlanError(
                f"config names no layer that can be pruned: {show(entry)}",
                why=listed,
                do="name a block or a type with linear layers or convolutions",
            )
        return good

    def is_block(self, entry: Any) -> bool:
        """True if a pattern stands for several layers: it is a glob, a type, or the name of a module around layers."""
        match = self.find(entry)
        if match.level is not Level.NAME:
            return True
        [module] = {id(m): m for m in match.modules.values()}.values()
        own = isinstance(module, (*LAYERS, *BATCH_NORMS))
        return not own and any(isinstance(m, LAYERS) for m in module.modules())


def _targets(layers: _Layers, entry: Any) -> Iterator[LayerToPrune]:
    settings: dict[str, Any] = {}
    bias: bool | None = None
    if isinstance(entry, Mapping):
        settings = {k: v for k, v in entry.items() if k not in (*SPELLINGS, PRUNE_BIAS)}
        bias = bias_setting(entry[PRUNE_BIAS]) if PRUNE_BIAS in entry else None
        entry = _layer_in_dict(layers, entry)
    if isinstance(entry, (tuple, list)):
        if not _is_pair(entry):
            raise PlanError(
                f"config holds {type(entry).__name__} of {len(entry)} entries that is no (layer, batch norm) pair",
                do="pass (conv, bn), as modules or as names",
            )
        yield replace(_pair(layers, entry, settings), prune_bias=bias, norm_prune_bias=bias)
    elif layers.is_block(entry):
        found = layers.several(entry).items()
        yield from (LayerToPrune(name, module, settings=settings, prune_bias=bias) for name, module in found)
    else:
        name, module = layers.one(entry, (*LAYERS, *BATCH_NORMS))
        yield LayerToPrune(name, module, settings=settings, prune_bias=bias)


def _layer_in_dict(layers: _Layers, entry: Mapping[str, Any]) -> Any:
    """Returns the name or module in a dict of the config. Several keys must name the same layer."""
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
        if _layer_names(layers, other) != _layer_names(layers, chosen):
            raise PlanError(
                f"a dict in config names two layers: by {next(iter(given))!r} one, by {spelling!r} another",
                do="name one",
            )
    return chosen


def _layer_names(layers: _Layers, entry: Any) -> Any:
    """Returns the names of the layers in an entry, for comparison."""
    if isinstance(entry, (tuple, list)):
        return [_layer_names(layers, e) for e in entry]
    return set(layers.modules_named(entry))


def _is_pair(entry: Any) -> bool:
    return len(entry) == 2 and not any(isinstance(e, (Mapping, tuple, list)) for e in entry)


def _pair(layers: _Layers, entry: Any, settings: Mapping[str, Any]) -> LayerToPrune:
    name, layer = layers.one(entry[0], LAYERS)
    norm_name, norm = layers.one(entry[1], BATCH_NORMS)
    if outputs_of(layer) != outputs_of(norm):
        raise PlanError(
            f'"{norm_name}" cannot follow "{name}"',
            why=f"it normalises {outputs_of(norm)} channels, the layer has {outputs_of(layer)} outputs",
            do="name the norm that reads this layer",
        )
    return LayerToPrune(name, layer, norm_name, norm, settings)


def _every_layer(model: nn.Module) -> list[LayerToPrune]:
    uses = uses_of(model)
    layers = {n: m for n, m in model.named_modules() if n and isinstance(m, LAYERS)}
    left_out = {n: unsupported(m, uses) for n, m in layers.items()}
    left_out |= {n: "it has one output" for n, m in layers.items() if not left_out[n] and outputs_of(m) < 2}
    targets = [LayerToPrune(n, m) for n, m in layers.items() if not left_out[n]]
    reasons = [f'"{name}": {why}' for name, why in left_out.items() if why]
    if not targets:
        raise PlanError(
            "the model has no layer that can be pruned",
            why="; ".join(reasons[:4]) or f"none of its layers is one of {', '.join(t.__name__ for t in LAYERS)}",
            do="pass a model with such layers, or name some in config",
        )
    if reasons:
        text = f"layers are left out: {'; '.join(reasons)}. Name the layers to prune in the config to be told no more"
        warnings.warn(text, ChannelsStayWarning, stacklevel=5)
    return targets
