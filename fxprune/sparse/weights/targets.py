"""The weights that patterns name: parameters with all the modules that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from fxprune.capture.inputs import check_initialised, check_unwrapped
from fxprune.capture.tensors import Tensors
from fxprune.errors import PlanError
from fxprune.names import Level, Match, Names, find_all, names_of, show
from fxprune.pattern_values import Candidate, assign

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
"""The layers that a named module stands for: the linear layers and convolutions in it."""


@dataclass(frozen=True)
class NamedWeight:
    """A parameter, its first name, and every (module, attribute) that holds it; a tied one has several owners."""

    name: str
    parameter: nn.Parameter
    owners: tuple[tuple[nn.Module, str], ...]


def named_weights(model: nn.Module, where: Any) -> tuple[NamedWeight, ...]:
    """Returns the weights that `where` names, in the order of the model's parameters.

    Args:
        where: None for the weights of all linear and convolution layers; or a pattern or several, see `fxprune.names`.
            A module stands for the layers in it. A type stands for its modules: for the weight of each, or for the
            layers in it if it has no weight itself. A pattern that names no module stands for parameters.

    Raises `PlanError` for patterns that match nothing, and for weights that cannot be masked.
    """
    if not isinstance(model, nn.Module):
        raise PlanError(
            "not a model",
            at=type(model).__name__,
            why=f"{type(model).__name__} is no torch.nn.Module",
            do="pass a module",
        )
    check_unwrapped(model)
    check_initialised(Tensors.of(model))
    names = names_of(model)
    chosen: set[int] = set()
    for match in find_all(names, model if where is None else where, what="where"):
        found = set(_matched_parameters(names, match))
        if not found:
            raise PlanError(
                "the model has no weights to prune"
                if where is None
                else f"where finds no weights: {show(match.pattern)}",
                at="where",
                why="there is no linear and no convolution layer",
                do="name parameters in `where`",
            )
        chosen |= found
    owners: dict[int, list[tuple[nn.Module, str]]] = {number: [] for number in chosen}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if id(parameter) in owners:
                owners[id(parameter)].append((module, leaf))
    named = {id(p): (name, p) for name, p in model.named_parameters()}
    targets = tuple(NamedWeight(*named[number], tuple(owners[number])) for number in named if number in chosen)
    for target in targets:
        _check_maskable(target)
    return targets


def per_target(model: nn.Module, values: Any, targets: tuple[NamedWeight, ...], what: str) -> dict[str, Any]:
    """Returns {name of the target: value}, from one value for all targets or from {pattern: value}.

    The most exact pattern that names a target decides; targets that no pattern names are left out. what: the name of
    the argument, for errors. Raises `PlanError` for a pattern that names no target, and for a tie of patterns.
    """
    if not isinstance(values, Mapping):
        return dict.fromkeys((target.name for target in targets), values)
    if not values:
        raise PlanError(
            f"{what} is an empty dict",
            at=f"{what}={{}}",
            why="it names no weight",
            do="pass {pattern: value}, or one value",
        )
    names = names_of(model)
    candidates = [Candidate(f'weight "{target.name}"', _candidate_names(names, target)) for target in targets]
    chosen = assign(names, values, candidates, what=what, kind="weight that is pruned")
    return {targets[position].name: value for position, value in chosen.items()}


def _candidate_names(names: Names, target: NamedWeight) -> tuple[str, ...]:
    """Returns the names of the layers that hold a weight, and all names of the weight itself."""
    spelled = names.spellings(target.name)
    return tuple(dict.fromkeys([*filter(None, (name.rpartition(".")[0] for name in spelled)), *spelled]))


def _matched_parameters(names: Names, match: Match) -> Iterator[int]:
    """Yields the ids of the parameters that a match stands for: the weights of layers in modules, or parameters."""
    for name, module in match.modules.items():
        own = module._parameters.get("weight") if match.level is Level.TYPE else None
        yield from [id(own)] if own is not None else _weights_of_layers(module, name)
    if not match.modules:
        yield from (id(names.tensors[name]) for name in match.tensors)


def _weights_of_layers(module: nn.Module, path: str) -> Iterator[int]:
    """Yields the ids of the weights of the layers in a module, or of itself. Raises if such a weight is computed."""
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


def _check_maskable(target: NamedWeight) -> None:
    """Raises `PlanError` for a parameter that a parametrization cannot mask."""
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
