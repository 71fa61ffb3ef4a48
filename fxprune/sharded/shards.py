"""Tensors as shards: one is gathered from all processes, or spread over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed, nn

from fxprune.errors import CaptureError, PlanError
from fxprune.sharded.talk import Talk, talk_of_group

_gather = getattr(distributed, "all_gather_single", None) or getattr(distributed, "all_gather_into_tensor", None)
"""The function under its name in this version of torch."""


def is_sharded(model: Any) -> bool:
    """True if `fully_shard` was applied to a model, or to a module in it."""
    if not isinstance(model, nn.Module) or not distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def is_dtensor(tensor: Any) -> bool:
    """True for a `DTensor`."""
    return type(tensor).__name__ in ("DTensor", "Parameter") and hasattr(tensor, "placements")


def sharded_dim(tensor: Any, name: str) -> int:
    """The dimension along which a `DTensor` of `fully_shard` is cut. Raises `CaptureError` for other placements."""
    from torch.distributed.tensor import Replicate, Shard

    placements = tuple(tensor.placements)
    last = placements[-1]
    plain = type(last) is Shard and all(type(each) is Replicate for each in placements[:-1])
    if not plain or len(placements) > 2:
        raise CaptureError(
            "a weight is sharded in a way that cannot be pruned",
            at=f'"{name}"',
            why=f"its placements are {placements}: tensor parallel or of another kind",
            do="prune before the model is parallelised, or shard it by fully_shard alone",
        )
    return int(last.dim)


def gathered(tensor: Any, name: str, talk: Talk) -> torch.Tensor:
    """The whole of a sharded tensor, on each process. All of them have to call it."""
    dim, group, count = sharded_dim(tensor, name), *_shard_group(tensor)
    talk.say(f'gathering "{name}" {tuple(tensor.shape)}')
    with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        local = tensor.detach()._local_tensor.to(working_device(tensor))
        size = tensor.shape[dim]
        each = -(-size // count)
        part = local.new_zeros((each, *(s for d, s in enumerate(tensor.shape) if d != dim)))
        if local.numel():
            part[: local.shape[dim]] = local.movedim(dim, 0)
        made = part.new_empty((each * count, *part.shape[1:]))
        with talk.answered():
            assert _gather is not None
            _gather(made, part, group=group)
        cut: torch.Tensor = made[:size]
        cut = cut if dim == 0 else cut.movedim(0, dim).contiguous()
        talk.gathered(cut)
        return cut


def working_device(tensor: Any) -> torch.device:
    """The device on which the whole of a sharded tensor is: that of its mesh, where its shards may be elsewhere."""
    kind = tensor.device_mesh.device_type
    return torch.device(kind) if kind == "cpu" else torch.device(kind, torch.get_device_module(kind).current_device())


def spread(values: torch.Tensor, like: Any, name: str) -> Any:
    """A `DTensor` of these values, which all processes have, with the mesh and the placements of another one.

    Raises `PlanError` where torch shards evenly only: along another dimension than the first.
    """
    from torch.distributed.tensor import DTensor

    dim, (group, count) = sharded_dim(like, name), _shard_group(like)
    size = values.shape[dim]
    if dim and size % count:
        raise PlanError(
            "a pruned weight cannot be sharded",
            at=f'"{name}", dimension {dim}',
            why=f"fully_shard needs a multiple of {count} along this dimension, and {size} stay",
            do=f"pass round_to={count}, or shard along the first dimension",
        )
    each = -(-size // count)
    rank = distributed.get_rank(group)
    start = min(rank * each, size)
    with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        made: Any
        own = values.detach().narrow(dim, start, min(each, size - start))
        local = own.to(like._local_tensor.device).clone(memory_format=torch.contiguous_format)
        made = DTensor.from_local(
            local,
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=values.shape,
            stride=torch.empty(values.shape, device="meta").stride(),
        )
        return made


def talk_of(found: Sequence[Any]) -> Talk:
    """The talk of all processes that share sharded tensors."""
    if not found:
        raise CaptureError(
            "nothing of the model is sharded",
            at="the model",
            why="fully_shard was applied to it, and it has no parameters",
            do="prune it before fully_shard is applied",
        )
    mesh = found[0].device_mesh
    for parameter in found:
        if parameter.device_mesh.mesh.tolist() != mesh.mesh.tolist():
            raise CaptureError(
                "the parameters are sharded over several meshes",
                at=f"a parameter of shape {tuple(parameter.shape)}",
                why=f"one has {mesh}, another {parameter.device_mesh}",
                do="prune before the model is parallelised",
            )
    whole_world = mesh.size() == distributed.get_world_size()
    if not whole_world and mesh.ndim > 1:
        raise CaptureError(
            "the model is sharded over a part of the processes, in two dimensions",
            at="the model",
            why=f"its mesh is {mesh}",
            do="shard it over all processes, or over a mesh of one dimension",
        )
    group = distributed.group.WORLD if whole_world else mesh.get_group(0)
    return talk_of_group(group)


def _shard_group(tensor: Any) -> tuple[Any, int]:
    """The process group over which a tensor is cut, and its size."""
    mesh = tensor.device_mesh
    last = mesh.ndim - 1
    return mesh.get_group(last), mesh.size(last)
