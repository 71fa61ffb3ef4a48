"""A model that several processes train: its wrapper is made again."""

from __future__ import annotations

import gc
import inspect
import warnings
from typing import Any

from torch import distributed, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

SETTINGS = (
    *("device_ids", "output_device", "dim", "broadcast_buffers", "forward_sync_buffers", "process_group"),
    *("find_unused_parameters", "gradient_as_bucket_view", "static_graph", "mixed_precision"),
    *("skip_all_reduce_unused_params", "batched_grad_copy"),
)
"""The arguments of a wrapper that it keeps as attributes, in any version of torch."""


def wrap_again(wrapper: DistributedDataParallel) -> None:
    """Makes a wrapper look at the parameters of its module as they are now. It stays the same object, with its hooks.

    Warns of a communication hook with a state of its own, whose sizes are those of before: it is gone.
    """
    mode, module, talks = wrapper.training, wrapper.module, list(getattr(wrapper, "_comm_hooks", ()))
    hooks = {name: dict(table) for name, table in wrapper.__dict__.items() if _are_hooks(name, table)}
    DistributedDataParallel.__init__(wrapper, module, **_settings(wrapper))
    wrapper.training = mode
    for name, table in hooks.items():
        kept = {key: hook for key, hook in table.items() if getattr(hook, "__self__", None) is not wrapper}
        wrapper.__dict__[name].update(kept)
    for hook, state in talks:
        if state is None or isinstance(state, ProcessGroup):
            wrapper.register_comm_hook(state, hook)
        else:
            text = (
                f"the communication hook {getattr(hook, '__name__', hook)} is gone: its state has the sizes of before"
            )
            warnings.warn(f"{text}. Register it again, with a new state", UserWarning, stacklevel=3)


def wrapper_of(model: nn.Module) -> DistributedDataParallel | None:
    """The wrapper that trains a model together with other processes, if there is one.

    A trainer makes it, of the model or of what holds the model. It is looked for only where several processes work.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return None
    kind = DistributedDataParallel
    wrappers = [each for each in gc.get_objects() if issubclass(type(each), kind) and "module" in each._modules]
    return next((each for each in wrappers if any(part is model for part in each.module.modules())), None)


def _settings(wrapper: DistributedDataParallel) -> dict[str, Any]:
    """The arguments that make the same wrapper; those that are as by default are left out."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    found = {name: getattr(wrapper, name) for name in SETTINGS if name in known and hasattr(wrapper, name)}
    if "forward_sync_buffers" in found:
        found.pop("broadcast_buffers", None)  # its old name
    return {name: value for name, value in found.items() if value != known[name].default}


def _are_hooks(name: str, table: Any) -> bool:
    return name.startswith("_forward") and name.endswith("hooks") and isinstance(table, dict)
