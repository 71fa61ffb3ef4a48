"""Which weights of a model are meant: names, globs, modules or types to parameters with all their owners."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from fxprune.capture.inputs import initialised, unwrapped
from fxprune.errors import PlanError, nearest

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
"""The layers whose `weight` is meant when a module around them is named: linear, and every convolution."""


@dataclass(frozen=True)
class Target:
    """A parameter, the first of its names, and every (module, attribute) that holds it: several where it is tied."""

    name: str
    parameter: nn.Parameter
    owners: tuple[tuple[nn.Module, str], ...]


def targets_of(model: nn.Module, where: Any) -> tuple[Target, ...]:
    """The weights that `where` names, in the order of the model's parameters.

    Args:
        where: None for the weights of all linear and convolution layers; or one of, or a list of: the name of a
            module or a glob over such names (the layers in it), a module (the layers in it), a type (the weights of
            modules of that type, or the layers in them), or, where no module has that name, the name of a parameter
            or a glob over such names.

    Raises `PlanError` for names that mean nothing, and for weights that cannot be masked.
    """
    if not isinstance(model, nn.Module):
        raise PlanError("not a model", why=f"{type(model).__name__} is no torch.nn.Module", do="pass a module")
    unwrapped(model)
    initialised(model)
    entries = list(where) if isinstance(where, (list, tuple, set)) else [model if where is None else where]
    chosen: set[int] = set()
    for entry in entries:
        found = set(_of_entry(model, entry))
        if not found:
            raise PlanError(
                "the model has no weights to prune" if where is None else f"where finds no weights: {_say(entry)}",
                why="there is no linear and no convolution layer",
                do="name parameters in `where`",
            )
        chosen |= found
    if not chosen:
        raise PlanError("where is empty", why="it names no weight", do="leave it out for all layers")
    owners: dict[int, list[tuple[nn.Module, str]]] = {number: [] for number in chosen}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if id(parameter) in owners:
                owners[id(parameter)].append((module, leaf))
    named = {id(p): (name, p) for name, p in model.named_parameters()}
    targets = tuple(Target(*named[number], tuple(owners[number])) for number in named if number in chosen)
    for target in targets:
        _check(target)
    return targets


def per_target(values: Any, targets: tuple[Target, ...], what: str) -> dict[str, Any]:
    """One value for all targets, or {glob over names of layers or parameters: value}; the last that fits counts.

    Targets that no glob names are left out. Raises `PlanError` for a glob that names none.
    """
    names = [target.name for target in targets]
    if not isinstance(values, Mapping):
        return dict.fromkeys(names, values)
    result: dict[str, Any] = {}
    for pattern, value in values.items():
        spellings = ((name, name.rpartition(".")[0]) for name in names)
        hits = [both[0] for both in spellings if any(fnmatch.fnmatchcase(text, str(pattern)) for text in both)]
        if not hits:
            layers = [n.rpartition(".")[0] or n for n in names]
            raise PlanError(f'{what} names no weight that is pruned: "{pattern}"', why=nearest(str(pattern), layers))
        result.update(dict.fromkeys(hits, value))
    if not result:
        raise PlanError(f"{what} is an empty dict", why="it names no weight", do="pass {glob: value}, or one value")
    return result


def _of_entry(model: nn.Module, entry: Any) -> Iterator[int]:
    """The ids of the parameters that one entry means."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(entry, str):
        names = fnmatch.filter(modules, entry) if entry else []
        if names:
            for name in names:
                yield from _layers(modules[name], name)
            return
        parameters = dict(model.named_parameters(remove_duplicate=False))
        matching = fnmatch.filter(parameters, entry)
        if not matching:
            known = [*filter(None, modules), *parameters]
            raise PlanError(
                f'where names nothing: "{entry}"',
                why=nearest(entry, known),
                do="pass the name of a module or parameter, a glob, a module or a type",
            )
        yield from (id(parameters[name]) for name in matching)
    elif isinstance(entry, nn.Module):
        if not any(module is entry for module in modules.values()):
            raise PlanError(f"where holds a module that is not part of the model: {type(entry).__name__}")
        yield from _layers(entry, "")
    elif isinstance(entry, type) and issubclass(entry, nn.Module):
        for name, module in modules.items():
            if isinstance(module, entry):
                own = module._parameters.get("weight")
                yield from [id(own)] if own is not None else _layers(module, name)
    else:
        raise PlanError(
            f"where cannot hold a {type(entry).__name__}", do="pass names, globs, modules or types of modules"
        )


def _layers(module: nn.Module, path: str) -> Iterator[int]:
    """The weights of the layers in a module, itself included. Raises where such a weight is computed."""
    for name, layer in module.named_modules(prefix=path):
        if isinstance(layer, LAYERS):
            weight = layer._parameters.get("weight")
            if weight is None:
                raise PlanError(
                    "the weight of a layer is computed, it is no parameter",
                    at=f'"{name or type(layer).__name__}"',
                    why="a parametrization, a weight norm or a mask makes it from other tensors",
                    do="make it permanent first (squash, `torch.nn.utils.parametrize.remove_parametrizations`), "
                    "or name other layers in `where`",
                )
            yield id(weight)


def _check(target: Target) -> None:
    """Refuse parameters that cannot be masked by a parametrization."""
    why = ""
    for module, _ in target.owners:
        if isinstance(module, nn.RNNBase):
            why = f"{type(module).__name__} reads its weights past their attributes, so a mask would have no effect"
        elif isinstance(module, parametrize.ParametrizationList):
            why = "it is what another parametrization computes a weight from"
        elif isinstance(module, fx.GraphModule):
            why = "it stands in a traced graph itself, not in a layer"
    if target.parameter.device.type == "meta":
        why = "it is on the meta device and has no values"
    elif not target.parameter.is_floating_point():
        why = f"it is {target.parameter.dtype}, not floating point"
    elif not target.parameter.numel():
        why = "it is empty"
    elif bool(target.parameter.detach().isnan().any()):
        why = "it contains NaN"
    if why:
        raise PlanError("a weight cannot be masked", at=f'"{target.name}"', why=why, do="leave it out of `where`")


def _say(entry: Any) -> str:
    if isinstance(entry, str):
        return f'"{entry}"'
    return entry.__name__ if isinstance(entry, type) else type(entry).__name__
