"""The work of an eager pruner on one layer: checks, and parametrizations and hooks that are set and removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod

from fxprune.ops.layers import output_dim
from fxprune.pruner.parametrization import (
    BIAS,
    ActivationReconstruction,
    BiasHook,
    FollowingParametrization,
    OutputsParametrization,
    PruningParametrization,
    ZeroesParametrization,
    pruning_of,
)

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def outputs_of(layer: nn.Module) -> int:
    """Returns the number of outputs of a layer, or of channels of a batch normalisation."""
    found: Any = layer
    if isinstance(layer, BATCH_NORMS):
        return int(found.num_features)
    return int(found.out_features if isinstance(layer, nn.Linear) else found.out_channels)


def uses_of(model: nn.Module) -> Mapping[int, int]:
    """Returns {id of a parameter: the number of module attributes that hold it}."""
    return Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)


def unsupported(layer: nn.Module, uses: Mapping[int, int]) -> str:
    """Returns why the outputs of a layer cannot be pruned; "" if they can."""
    kind: Any = type_before_parametrizations(layer)
    base: Any = next((t for t in (*LAYERS, *BATCH_NORMS) if isinstance(layer, t)), None)
    if base is None:
        known = ", ".join(t.__name__ for t in (*LAYERS, *BATCH_NORMS))
        return f"{kind.__name__} is not one of {known}"
    weight = layer._parameters.get("weight")
    reasons = {
        "its weight is parametrized already": parametrize.is_parametrized(layer),
        "its weight is masked by torch.nn.utils.prune": any(
            isinstance(h, BasePruningMethod) for h in layer._forward_pre_hooks.values()
        ),
        "it has no weight parameter of its own": weight is None,
        "its parameters are not initialised yet": weight is not None and nn.parameter.is_lazy(weight),
        f"{kind.__name__} computes its output in its own way": kind.forward is not base.forward,
        # nn.MultiheadAttention uses the weight of its out_proj and never calls that layer
        f"{kind.__name__} is used without being called": kind is nn.modules.linear.NonDynamicallyQuantizableLinear,
        "the groups of a transposed convolution share the outputs of its weight": isinstance(layer, TRANSPOSED)
        and layer.groups > 1,
        "its parameters are on the meta device": weight is not None and weight.device.type == "meta",
        "it shares a parameter with another layer": any(
            uses[id(p)] > 1 for p in layer._parameters.values() if p is not None
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def prepare_layer(layer: nn.Module, *, prune_bias: bool) -> None:
    """Sets the parametrization on the weight, and hooks if outputs are removed from it, in place.

    Parameters stay the same objects: the weight as `parametrizations.weight.original`, the bias as `_bias`.
    """
    size, weight = outputs_of(layer), layer._parameters["weight"]
    assert weight is not None
    if isinstance(layer, BATCH_NORMS) or getattr(layer, "groups", 1) > 1:
        zeroes = ZeroesParametrization(size, device=weight.device)
        parametrize.register_parametrization(layer, "weight", zeroes, unsafe=True)
        _prune_bias(layer, zeroes, prune_bias=prune_bias)
        return
    dim = -1 if isinstance(layer, nn.Linear) else 1 - weight.ndim
    pruning = PruningParametrization(size, dim=output_dim(layer, weight.ndim), device=weight.device)
    parametrize.register_parametrization(layer, "weight", pruning, unsafe=True)
    bias = layer._parameters.get("bias")
    if bias is not None:
        layer._parameters["bias"] = None
        layer.register_parameter(BIAS, bias)
        layer.register_forward_hook(BiasHook(dim, prune=prune_bias), prepend=True)
    layer.register_forward_hook(ActivationReconstruction(dim), prepend=True)  # the last one prepended runs first


def follow(norm: nn.Module, layer: nn.Module, *, prune_bias: bool) -> None:
    """Makes a batch norm set the channels to zero that are pruned in the prepared layer before it, in place."""
    pruning = pruning_of(layer)
    parametrize.register_parametrization(norm, "weight", FollowingParametrization(pruning), unsafe=True)
    _prune_bias(norm, pruning, prune_bias=prune_bias)


def _prune_bias(layer: nn.Module, pruning: OutputsParametrization, *, prune_bias: bool) -> None:
    if prune_bias and layer._parameters.get("bias") is not None:
        parametrize.register_parametrization(layer, "bias", FollowingParametrization(pruning), unsafe=True)


def is_prepared(module: nn.Module) -> bool:
    """True if the weight of a module has a parametrization of a pruner."""
    return parametrize.is_parametrized(module, "weight") and isinstance(
        module.parametrizations["weight"][0],  # type: ignore[index]
        OutputsParametrization,
    )


def why_not_squash(module: nn.Module) -> str:
    """Returns why parametrizations and hooks cannot be removed; "" if they can."""
    if not is_prepared(module):
        return "it has lost the parametrization that prepare put on its weight"
    for name, found in module.parametrizations.items():  # type: ignore[operator, union-attr]
        if name in ("weight", "bias") and len(found) > 1:
            return f"{type(found[1]).__name__} was registered on its {name} after prepare; remove that first"
    return ""


def squash_layer(layer: nn.Module) -> None:
    """Writes the zeros into the parameters and removes parametrizations and hooks; parameters stay the same objects."""
    mask: torch.Tensor = pruning_of(layer).mask  # also for a batch norm
    for key, hook in list(layer._forward_hooks.items()):
        if isinstance(hook, BiasHook) and hook.prune:
            _set_zeros(layer._parameters[BIAS], mask, 0)
        if isinstance(hook, (ActivationReconstruction, BiasHook)):
            del layer._forward_hooks[key]
    for name in ("weight", "bias"):
        if parametrize.is_parametrized(layer, name):
            original: Any = layer.parametrizations[name].original  # type: ignore[index, union-attr]
            _set_zeros(original, mask, output_dim(layer, original.ndim))
            remove_parametrization(layer, name)
    if BIAS in layer._parameters:
        layer._parameters["bias"] = layer._parameters.pop(BIAS)
    bias_last(layer)


def bias_last(layer: nn.Module) -> None:
    """Moves the bias behind the weight again. Torch appends restored tensors, which changes the order of parameters."""
    if "bias" in layer._parameters:
        layer._parameters["bias"] = layer._parameters.pop("bias")


def remove_parametrization(module: nn.Module, name: str) -> None:
    """Removes a parametrization, and puts the original tensor back under its name.

    A parametrized module and its deep copies have the same class object, and torch deletes a property from this class.
    So this module gets its own class first.
    """
    shared = type(module)
    own = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, own)
    parametrize.remove_parametrizations(module, name, leave_parametrized=False)


def _set_zeros(tensor: torch.Tensor | None, mask: torch.Tensor, dim: int) -> None:
    assert tensor is not None
    with torch.no_grad():
        tensor.index_fill_(dim if tensor.ndim > 1 else 0, (~mask).nonzero().flatten().to(tensor.device), 0)
