"""`fully_shard`, applied again to a model whose parameters have got smaller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fxprune.sharded.on_demand import WholeOnDemand
from fxprune.sharded.settings import Wrapping, groups_of
from fxprune.sharded.shards import is_dtensor, sharded_dim


def sharded_parameters(small: nn.Module) -> None:
    """Gives a small model its sharded parameters, in the place of those that are whole on demand."""
    for module in small.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, WholeOnDemand):
                parameter.shards.__dict__.update(parameter.__dict__)
                module._parameters[name] = parameter.shards


def wrap_again(model: nn.Module, wrappings: Sequence[Wrapping]) -> None:
    """Applies `fully_shard` as it was applied before, to modules that hold sharded parameters and no wrappers.

    It takes parameters without numbers, and gets the sharded ones afterwards: they stay the same objects.
    """
    from torch.distributed._composable_state import _module_state_mapping
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import Shard

    parameters: Any = {name: p for name, p in model.named_parameters(remove_duplicate=False) if is_dtensor(p)}
    empty: dict[int, nn.Parameter] = {}
    dims: dict[int, int] = {}
    for name, parameter in parameters.items():
        if id(parameter) not in empty:
            meta = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            empty[id(parameter)] = nn.Parameter(meta, requires_grad=parameter.requires_grad)
            dims[id(empty[id(parameter)])] = sharded_dim(parameter, name)
        _put(model, name, empty[id(parameter)])
    ignored = {parameter for parameter in model.parameters() if id(parameter) not in dims}
    there = set(model.modules())
    wrappings = [kept for wrapping in wrappings if (kept := wrapping.among(there)).modules]
    for module in there:
        _module_state_mapping.pop(module, None)
    for wrapping in wrappings:
        several: Any = list(wrapping.modules)
        fully_shard(
            several if several[1:] else several[0],
            **wrapping.arguments,
            shard_placement_fn=lambda parameter: Shard(dims[id(parameter)]),
            ignored_params=ignored or None,
        )
    for name, parameter in parameters.items():
        _put(model, name, parameter)
    for wrapping in wrappings:
        first = wrapping.modules[0]
        assert isinstance(first, FSDPModule)
        for group in groups_of(first._get_fsdp_state()):
            for name, value in wrapping.switches.items():
                setattr(group, name, value)
            for own in group.fsdp_params:
                own.reset_sharded_param()
        ahead: Any = list(wrapping.ahead)
        behind: Any = list(wrapping.behind)
        first.set_modules_to_forward_prefetch(ahead)
        first.set_modules_to_backward_prefetch(behind)


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, last = name.rpartition(".")
    model.get_submodule(path)._parameters[last] = parameter
