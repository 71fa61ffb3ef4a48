"""The further names of modules and tensors that a model has under several.

A graph reads each of them under one name only, and `torch.fx.GraphModule` has what its graph reads. The other names are
part of the model too: of its `state_dict`, and of code that reaches a module through either.
"""

from __future__ import annotations

import torch
from torch import fx, nn

_TABLES = ("_modules", "_parameters", "_buffers")


def add_second_names(model: nn.Module, traced: fx.GraphModule) -> None:
    """Give each module and tensor of a traced model all names that it has in the original. Changes `traced`.

    What the graph does not read under any of its names stays away.

    model: the original, or the copy of it that was traced.
    """
    first: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        name = first.setdefault(id(module), path)
        if name != path:
            _same_module(traced, name, path)
    held = {id(tensor) for module in traced.modules() for tensor in _tensors(module).values()}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, tensor in _tensors(module).items():
            if id(tensor) in held:
                _add_tensor(traced, path, name, tensor, persistent=name not in module._non_persistent_buffers_set)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a module itself, by name."""
    return {k: t for table in (module._parameters, module._buffers) for k, t in table.items() if t is not None}


def _found(root: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, None if there is none."""
    module: nn.Module | None = root
    for part in path.split(".") if path else ():
        module = module._modules.get(part) if module is not None else None
    return module


def _container(root: nn.Module, path: str) -> nn.Module:
    """The module at a path. It is made, with those around it, if there is none."""
    module = root
    for part in path.split(".") if path else ():
        inside = module._modules.get(part)
        if inside is None:
            inside = nn.Module()
            module.add_module(part, inside)
        module = inside
    return module


def _same_module(traced: fx.GraphModule, first: str, second: str) -> None:
    """Make two names mean one module, which has what the graph reads under either."""
    one, other = _found(traced, first), _found(traced, second)
    kept = one if one is not None else other
    if kept is None or one is other:
        return
    for path in (first, second):
        around, _, last = path.rpartition(".")
        _container(traced, around)._modules[last] = kept
    if one is not None and other is not None:
        _move(other, one)


def _move(source: nn.Module, target: nn.Module) -> None:
    """Add what one container has to another one, where that does not have it."""
    for table in _TABLES:
        inside = target.__dict__[table]
        for name, value in source.__dict__[table].items():
            if table == "_modules" and isinstance(inside.get(name), nn.Module) and isinstance(value, nn.Module):
                _move(value, inside[name])
            else:
                inside.setdefault(name, value)
    for name, value in source.__dict__.items():
        if name not in _TABLES:
            target.__dict__.setdefault(name, value)


def _add_tensor(traced: fx.GraphModule, path: str, name: str, tensor: torch.Tensor, *, persistent: bool) -> None:
    """Give a tensor of a traced model the name that it has in a module of the original."""
    holder = _container(traced, path)
    if name in _tensors(holder):
        return
    if isinstance(tensor, nn.Parameter):
        holder.register_parameter(name, tensor)
    else:
        holder.__dict__.pop(name, None)
        holder.register_buffer(name, tensor, persistent=persistent)
