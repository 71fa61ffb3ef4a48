"""The state of a pruner in the form of `torch.ao.pruning`: groups, masks by tensor, and both as a state dict."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import PlanError, nearest
from fxprune.pruner.parametrization import OutputsParametrization
from fxprune.pruner.targets import KEYS

LayerGroup = dict[str, Any]


def register_with_torch_ao(pruner: type) -> None:
    """Makes the schedulers of `torch.ao.pruning` take a class of pruners, if that package is loaded."""
    module = sys.modules.get("torch.ao.pruning.sparsifier.base_sparsifier")
    if module is not None:
        module.BaseSparsifier.register(pruner)


def saved_groups(groups: Sequence[LayerGroup]) -> list[LayerGroup]:
    """Returns the settings of every group that are plain data, with the name of its tensor."""
    return [
        {k: v for k, v in group.items() if k == "tensor_fqn" or (k not in KEYS and _is_data(v))} for group in groups
    ]


def _is_data(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, (str, int)) and _is_data(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    return value is None or isinstance(value, (bool, int, float, str, Tensor))


def load_masks(saved: Mapping[str, Any], prunings: Mapping[str, OutputsParametrization], *, strict: bool) -> None:
    """Sets the masks of a state dict, all or none of them.

    saved: {tensor: {"mask": bool [outputs]}}. prunings: the parametrizations of the prepared tensors. strict: False
    leaves out tensors that only one of them has.
    """
    given = {str(name).removeprefix("."): value for name, value in saved.items()}
    missing = [name for name in prunings if name not in given]
    more = [name for name in given if name not in prunings]
    if strict and (missing or more):
        raise PlanError(
            "the state of the pruner is of other layers",
            why=f"it has {', '.join(more)}" if more else f"it lacks {', '.join(missing)}",
            do="prepare the same layers first, or pass strict=False",
        )
    fitting = {name: given[name]["mask"] for name in prunings if name in given and "mask" in given[name]}
    for name, mask in fitting.items():
        size = prunings[name].size
        if not isinstance(mask, Tensor) or mask.shape != (size,) or mask.dtype is not torch.bool or not mask.any():
            kind = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            why = f"it is {kind}, the layer has {size} outputs, of which one stays at least"
            raise PlanError(
                "a mask in the state of the pruner does not fit",
                at=name,
                why=why,
                do="load the state into a pruner of the same model",
            )
    for name, mask in fitting.items():
        prunings[name].set_mask(mask.to(prunings[name].mask.device))


def load_groups(saved: Any, groups: Sequence[LayerGroup]) -> None:
    """Sets the settings that a state dict holds for the same tensors."""
    own = {group["tensor_fqn"]: group for group in groups}
    for group in saved:
        name = str(group.get("tensor_fqn", "")).removeprefix(".")
        if name in own:
            own[name].update({k: v for k, v in group.items() if k not in KEYS})


def kept_settings(
    groups: Sequence[LayerGroup], everywhere: Sequence[str] | None, by_layer: Mapping[str, Sequence[str]] | None
) -> dict[str, dict[str, Any]]:
    """Returns {layer: the settings of its group that `squash_mask` leaves in its `sparse_params`}.

    Raises `PlanError` for a setting or a layer that there is not.
    """
    layers = [group["module_fqn"] for group in groups]
    for name in by_layer or {}:
        if name not in layers:
            raise PlanError(
                f'params_to_keep_per_layer names no prepared layer: "{name}"',
                why=nearest(name, layers),
                do="name a layer that was prepared",
            )
    kept: dict[str, dict[str, Any]] = {}
    for group in groups:
        layer = group["module_fqn"]
        wanted = [*(everywhere or ()), *(by_layer or {}).get(layer, ())]
        for name in wanted:
            if name not in group:
                possible = [k for k in group if k not in KEYS]
                raise PlanError(f'"{layer}" has no setting {name!r}', why=nearest(name, possible), do="leave it out")
        if wanted:
            kept[layer] = {name: group[name] for name in wanted}
    return kept
