"""Copies of modules whose class says itself how they are copied: they get what they lack of the original.

A `__deepcopy__` may make a new module of the same sizes and forget its numbers, its mode or its hooks, and `deepcopy`
loses what a module has in slots. A small model that is not as its original could not be told from a wrong one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.code import is_torch
from fxprune.capture.containers import MOST_PARTS, is_container, slots_of
from fxprune.capture.given_attributes import given_attributes
from fxprune.capture.layouts import is_packed
from fxprune.capture.uncopied import OtherClassError, copied_alone
from fxprune.on_demand import OnDemand

_TENSORS = ("_parameters", "_buffers")
_HOOKS = tuple(name for name in nn.Module().__dict__ if "hooks" in name)
"""The attributes of a module with its hooks."""
_NUMBERS = (int, float, bool, complex, str, type(None))


def put_mode(module: nn.Module, training: bool) -> None:
    """Set the mode of one module of a copy, also where its class lets no attribute be set."""
    if module.training != training:
        try:
            module.training = training
        except Exception:  # of a `__setattr__` of the user's
            module.__dict__["training"] = training


def own_copy(value: Any) -> bool:
    """True for a module whose class, or which itself, says how it is copied."""
    if not isinstance(value, nn.Module):
        return False
    method = getattr(value, "__deepcopy__", None)
    return method is not None and not is_torch(getattr(method, "__module__", None))


def _says_its_state(kind: type) -> bool:
    """True for a class of modules that says itself which attributes a copy gets, and may drop a cache."""
    method = getattr(kind, "__getstate__", None)
    return method is not getattr(nn.Module, "__getstate__", None) and not is_torch(getattr(method, "__module__", None))


def complete(
    made: nn.Module,
    module: nn.Module,
    given: Mapping[int, Any],
    memo: dict[int, Any],
    deep: Callable[[nn.Module], nn.Module],
    said: list[str] | None = None,
) -> dict[int, Any]:
    """Give each module of a copy what it lacks of the original: its mode, hooks, tensors, slots, attributes, modules.

    Returns id of a module or tensor of the original, or of a tensor that was replaced -> that of the copy.

    given: id of a tensor -> the one of the copy. memo: that of the copy, which keeps alive what is replaced. deep: a
    function that copies a module with it. said: gets a sentence about each lock in an attribute of a parameter.

    Raises `OtherClassError` for a module of another class.
    """
    found: dict[int, Any] = {}
    graphs = [path for path, part in module.named_modules() if isinstance(part, fx.GraphModule)]
    waiting = [("", module, made)]
    while waiting:
        path, original, new = waiting.pop()
        if id(original) in found:
            continue
        found[id(original)] = new
        if new is original:
            continue
        in_graph = any(path == graph or not graph or path.startswith(f"{graph}.") for graph in graphs)
        if type(new) is not type(original) and not in_graph:  # torch makes a class for each graph, plain modules in it
            raise OtherClassError(path, original, new)
        own = own_copy(original) or memo.get(id(original)) is not new
        if own or _says_its_state(type(original)):
            _forgotten(new, original, memo, data=not own)
        put_mode(new, original.training)
        found |= _put_tensors(new, original, given, memo, path, said, own=own)
        for name in slots_of(type(original)):
            if hasattr(original, name) and not hasattr(new, name):
                object.__setattr__(new, name, copy.deepcopy(getattr(original, name), memo))
        for name in _HOOKS:
            hooks = original.__dict__.get(name)
            if hooks and not new.__dict__.get(name):
                new.__dict__[name] = copy.deepcopy(hooks, memo)
        for name, child in original._modules.items():
            if child is not None:
                copied = new._modules.get(name)
                copied = deep(child) if copied is None else copied
                new._modules[name] = copied
                waiting.append((f"{path}.{name}".lstrip("."), child, copied))
    return found


def _forgotten(new: nn.Module, original: nn.Module, memo: dict[int, Any], *, data: bool) -> None:
    """Give a copy the attributes of the original that it lacks, and the numbers and texts that differ.

    What cannot be copied is left out, as the class may have meant it to be.

    data: True to leave out what is neither a tensor nor a container: a `__getstate__` drops a trainer or a file.
    """
    for name, value in original.__dict__.items():
        dropped = new.__dict__.get(name, value) is None and value is not None
        if name in new.__dict__ and not dropped and (not _is_plain(value) or _same(new.__dict__[name], value)):
            continue
        if name in ("_modules", "training"):
            new.__dict__.setdefault(name, {} if name == "_modules" else value)
            continue
        if data and not (_is_plain(value) or isinstance(value, torch.Tensor) or is_container(value)):
            continue
        try:
            new.__dict__[name] = copy.deepcopy(value, memo)
        except Exception:  # a lock, a file
            continue


def _same(one: Any, other: Any) -> bool:
    """True if two values are equal; `other` is plain."""
    return type(one) is type(other) and bool(one == other)


def _is_plain(value: Any) -> bool:
    """True for a number, a text, and a list, tuple or dict of nothing else."""
    kind = type(value)
    if kind in (list, tuple):
        return len(value) <= MOST_PARTS and all(map(_is_plain, value))
    if kind is dict:
        return len(value) <= MOST_PARTS and all(map(_is_plain, [*value, *value.values()]))
    return kind in _NUMBERS


def _put_tensors(
    new: nn.Module,
    original: nn.Module,
    given: Mapping[int, Any],
    memo: dict[int, Any],
    path: str,
    said: list[str] | None,
    *,
    own: bool,
) -> dict[int, torch.Tensor]:
    """Give a module of a copy the tensors that were given for it, where a `__deepcopy__` has made others.

    Returns id of a tensor of the original, or of one that was replaced -> that of the copy.

    own: True if `new` was not made by `deepcopy`, but by a `__deepcopy__` of it or of a module around it.
    """
    found: dict[int, torch.Tensor] = {}
    for kind in _TENSORS:
        tensors: dict[str, Any] = new.__dict__[kind]
        for name, tensor in original.__dict__[kind].items():
            if tensor is None:
                continue
            before = tensors.get(name)
            if id(tensor) in given:
                tensors[name] = given[id(tensor)]
            elif own and before is not tensor:
                tensors[name] = copy.deepcopy(tensor, memo)
            after = tensors.get(name)
            if after is None or after is tensor:
                continue
            found[id(tensor)] = after
            if before is not None and before is not after:
                found[id(before)] = after
                memo.setdefault(id(memo), []).append(before)  # no other object may get its id
            if kind == "_parameters" and not isinstance(tensor, OnDemand):
                put_attributes(after, tensor, memo, f"{path}.{name}".lstrip("."), said, cut=id(tensor) in given)
    return found


def put_attributes(
    new: torch.Tensor, original: torch.Tensor, memo: dict[int, Any], name: str, said: list[str] | None, *, cut: bool
) -> None:
    """Give a parameter of a copy copies of the attributes of the original one, which `deepcopy` loses.

    name: that of the parameter. cut: True to leave out the tensors that are not in `memo`: those of the shape of a
        parameter are cut like it later.
    """
    own = given_attributes(new)
    for attribute, value in given_attributes(original).items():
        other = cut and isinstance(value, torch.Tensor) and not is_packed(value) and id(value) not in memo
        if not other and own.get(attribute, value) is value:
            new.__dict__[attribute] = copied_alone(f"{name}.{attribute}", value, memo, said)
