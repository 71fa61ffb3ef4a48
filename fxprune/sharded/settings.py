"""The settings with which `fully_shard` was applied to the modules of a model."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

SWITCHES = """
    reduce_grads all_reduce_grads reshard_after_backward reduce_scatter_max_input_buffers gradient_divide_factor
    reduce_scatter_unused_params force_sum_reduction_for_comms unshard_async_op unshard_in_backward
    _all_reduce_hook _all_reduce_hook_stream _all_gather_comm _reduce_scatter_comm
""".split()
"""Attributes of a group of parameters that its user may have set."""


@dataclass(frozen=True, eq=False)
class Wrapping:
    """One call of `fully_shard`.

    modules: the modules of the call; one, or several of one group.
    arguments: its keyword arguments, but for `shard_placement_fn` and `ignored_params`.
    switches: settings that were changed afterwards, by name; see `SWITCHES`.
    ahead, behind: the modules that are gathered ahead of time, in forward and in backward.
    """

    modules: tuple[nn.Module, ...]
    arguments: Mapping[str, Any]
    switches: Mapping[str, Any]
    ahead: tuple[nn.Module, ...] = ()
    behind: tuple[nn.Module, ...] = ()

    def among(self, there: Set[nn.Module]) -> Wrapping:
        """The call for those of its modules that are still there."""
        modules, ahead, behind = (
            tuple(module for module in some if module in there) for some in (self.modules, self.ahead, self.behind)
        )
        return replace(self, modules=modules, ahead=ahead, behind=behind)


def wrappings_of(model: nn.Module) -> tuple[Wrapping, ...]:
    """The calls of `fully_shard` that made a model what it is, the innermost first."""
    from torch.distributed.fsdp import FSDPModule

    states: dict[int, tuple[int, Any]] = {}
    for path, module in model.named_modules():
        if isinstance(module, FSDPModule):
            state = module._get_fsdp_state()
            states.setdefault(id(state), (path.count(".") + bool(path), state))
    inner_first = sorted(states.values(), key=lambda found: -found[0])
    return tuple(_wrapping(state) for _, state in inner_first)


def groups_of(state: Any) -> list[Any]:
    """The groups of parameters of a state; older versions of torch have at most one."""
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is not None:
        return list(groups)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]


def _wrapping(state: Any) -> Wrapping:
    groups = groups_of(state)
    arguments: dict[str, Any] = {"mp_policy": state._mp_policy}
    switches: dict[str, Any] = {}
    if groups:
        group = groups[0]
        after = None if state._auto_reshard_after_forward else _reshards(group)
        arguments |= {"mesh": group.mesh_info.mesh, "reshard_after_forward": after}
        arguments["offload_policy"] = group.offload_policy
        switches = {name: getattr(group, name) for name in SWITCHES if hasattr(group, name)}
    return Wrapping(
        tuple(state._modules),
        arguments,
        switches,
        tuple(other._modules[0] for other in getattr(state, "_states_to_forward_prefetch", ())),
        tuple(other._modules[0] for other in getattr(state, "_states_to_backward_prefetch", ())),
    )


def _reshards(group: Any) -> bool | int:
    """The argument `reshard_after_forward` of the call."""
    after = group.post_forward_mesh_info
    if after is None or after is group.mesh_info:
        return after is not None
    return int(after.shard_mesh_size)
