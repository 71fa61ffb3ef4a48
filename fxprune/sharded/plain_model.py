"""A sharded model as a plain one, for some time: without its wrappers, and with tensors that are whole on demand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from fxprune.sharded.on_demand import WholeOnDemand
from fxprune.sharded.settings import Wrapping, wrappings_of
from fxprune.sharded.shards import is_dtensor, sharded_dim, talk_of
from fxprune.sharded.talk import Talk

_OF_TORCH = "torch.distributed.fsdp"
_MARKS = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")


def talk_of_model(model: nn.Module) -> Talk:
    """The talk of the processes that share a sharded model. Its parameters are shards afterwards, not gathered ones."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return talk_of([parameter for parameter in model.parameters() if is_dtensor(parameter)])


@contextlib.contextmanager
def unwrapped(model: nn.Module) -> Iterator[tuple[Wrapping, ...]]:
    """Makes a sharded model a plain one, and gives it back its wrappers at the end. Yields how it was wrapped.

    Its modules have their own classes and only the user's hooks then, and a `WholeOnDemand` for each sharded parameter.
    If this raises on one process, the others raise too.

    Raises `CaptureError` for parameters that are sharded by anything else than `fully_shard`.
    """
    talk = talk_of_model(model)
    before = [(module, type(module), dict(module.__dict__), dict(module._parameters)) for module in model.modules()]
    hooks = [(hooks, dict(hooks)) for module in model.modules() for hooks in _hooks(module)]
    with talk.together():
        wrappings = wrappings_of(model)
        try:
            _unwrap(model, talk)
            yield wrappings
        finally:
            for module, kind, own, parameters in before:
                object.__setattr__(module, "__class__", kind)
                module.__dict__.clear()
                module.__dict__.update(own)
                module._parameters.clear()
                module._parameters.update(parameters)
            for table, entries in hooks:
                table.clear()
                table.update(entries)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before `fully_shard` was applied to it."""
    from torch.distributed.fsdp import FSDPModule

    kind = type(module)
    if not isinstance(module, FSDPModule):
        return kind
    return kind.__mro__[getattr(kind, "_orig_cls_mro_index", 2)]


def _unwrap(model: nn.Module, talk: Talk) -> None:
    from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY

    made: dict[int, WholeOnDemand] = {}
    for path, module in model.named_modules():
        object.__setattr__(module, "__class__", plain_class(module))
        for name in (STATE_KEY, REGISTRY_KEY, *_MARKS):
            module.__dict__.pop(name, None)
        for hooks in _hooks(module):
            for key in [key for key, hook in hooks.items() if _is_of_torch(hook)]:
                del hooks[key]
        for name, parameter in module._parameters.items():
            if parameter is not None and is_dtensor(parameter):
                if id(parameter) not in made:
                    title = f"{path}.{name}" if path else name
                    sharded_dim(parameter, title)
                    made[id(parameter)] = WholeOnDemand(parameter, title, talk)
                    made[id(parameter)].__dict__.update(parameter.__dict__)
                module._parameters[name] = made[id(parameter)]


def _hooks(module: nn.Module) -> Iterator[dict[Any, Any]]:
    """The tables of hooks of a module."""
    for name, value in module.__dict__.items():
        if "_hooks" in name and isinstance(value, dict):
            yield value


def _is_of_torch(hook: Any) -> bool:
    """True for a hook that `fully_shard` has put on a module."""
    function = getattr(hook, "hook", hook)  # torch wraps the hooks of state dicts
    owner = getattr(function, "__self__", None)
    places = (getattr(function, "__module__", ""), type(owner).__module__)
    return any(str(place).startswith(_OF_TORCH) for place in places)
