"""Copies of modules around other tensors. A forward that sets attributes changes the copy only."""

from __future__ import annotations

import copy
import copyreg
import functools
import types
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.hooks import RemovableHandle

from fxprune.capture.complete_copy import complete, own_copy
from fxprune.capture.containers import (
    MOST_STEPS,
    cannot_be_copied,
    copied_by_items,
    is_container,
    items_of,
    map_parts,
    parts,
    slots_of,
    tuple_of,
    with_parts,
)
from fxprune.capture.given_attributes import give_attributes
from fxprune.capture.held_objects import CACHED_FUNCTION, held_by, redirect, rekeyed
from fxprune.capture.library_state import has_state, is_iterator, with_own_state
from fxprune.capture.uncopied import copied_with_locks
from fxprune.capture.uncopied_iterators import NoCopy
from fxprune.capture.weak_references import is_copied_as_it_is, is_weak, with_referents

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_SHARED = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})


def deep_copy(module: ModuleT) -> ModuleT:
    """A deep copy, without the warning of torch about its own code that copies of exported graphs give.

    A graph keeps the name of its class, which torch sets to "GraphModule" in a copy.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*treespec", FutureWarning)
        made = deep_copy_with(module, {})
    copies = dict(made.named_modules(remove_duplicate=False))
    for path, original in module.named_modules(remove_duplicate=False):
        new = copies.get(path)
        if isinstance(original, fx.GraphModule) and isinstance(new, fx.GraphModule) and new is not original:
            type(new).__name__ = type(original).__name__  # each graph has a class of its own
    return made


def deep_copy_with(module: ModuleT, memo: Mapping[int, Any], said: list[str] | None = None) -> ModuleT:
    """A deep copy that uses the objects of `memo`, and refers to nothing of the original.

    A module whose class says itself how it is copied, as the layers of einops do, may have lost its mode, its hooks,
    its numbers or more: it gets them. Weak references refer to what is in the copy.

    said: gets a sentence about each lock and Python module, if the copy needed others: see `copied_with_locks`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*support will be removed from itertools", DeprecationWarning)
        return copied_with_locks(module, memo, functools.partial(_whole_copy, module, said), said)


def _whole_copy(module: ModuleT, said: list[str] | None, memo: dict[int, Any]) -> ModuleT:
    given = dict(memo)
    held = list(held_by(module))
    memo |= {id(value): value for value in held if is_copied_as_it_is(value)}
    for value in reversed(held):
        if id(value) in memo:
            continue
        if isinstance(value, tuple) and _is_made_otherwise(type(value)):
            memo[id(value)] = tuple_of(value, copy.deepcopy(items_of(value), memo))
        elif isinstance(value, (list, dict, deque)) and cannot_be_copied(value):
            copied_by_items(value, memo)
    simple = functools.cache(_is_copied_by_attributes)
    made = _deep(module, memo, simple)
    pairs = complete(made, module, given, memo, functools.partial(_deep, memo=memo, simple=simple), said)
    if any(is_weak(value) or type(value) is CACHED_FUNCTION or own_copy(value) for value in held):
        of = {key: new for key, new in memo.items() if key not in (id(new), id(memo))}  # the latter keeps them alive
        redirect(made, of | pairs, frozenset(map(id, held)))
    return made


def _is_made_otherwise(kind: Any) -> bool:
    """True for a class of tuples that `copy.deepcopy` makes wrong ones of: its `__new__` takes something else than the
    items, and it does not say how it is copied.
    """
    says = any(getattr(kind, name, None) is not getattr(tuple, name, None) for name in ("__deepcopy__", "__reduce__"))
    if says or kind.__reduce_ex__ is not tuple.__reduce_ex__ or kind in copyreg.dispatch_table:
        return False
    new = next(i for i, part in enumerate(kind.__mro__) if "__new__" in vars(part))
    arguments = next(
        i for i, part in enumerate(kind.__mro__) if {"__getnewargs__", "__getnewargs_ex__"} & {*vars(part)}
    )
    return new < arguments


def _deep(module: ModuleT, memo: dict[int, Any], simple: Callable[[type], bool]) -> ModuleT:
    """A copy as `copy.deepcopy` makes it, in a quarter of its time: most attributes are numbers and empty tables.

    simple: `_is_copied_by_attributes`, with a cache for this copy alone. A cache that stays would keep classes alive
    (each graph has one of its own), and miss a `__deepcopy__` that a class is given later.
    """
    if id(module) in memo:
        return cast(ModuleT, memo[id(module)])
    kind: type = type(module)
    if not simple(kind) or "__deepcopy__" in module.__dict__:
        return copy.deepcopy(module, memo)
    new: Any = object.__new__(kind)
    memo[id(module)] = new
    state: Any = module
    new.__setstate__({name: _deep_attribute(value, memo, simple) for name, value in state.__getstate__().items()})
    return cast(ModuleT, new)


def _deep_attribute(value: Any, memo: dict[int, Any], simple: Callable[[type], bool]) -> Any:
    kind = type(value)
    if kind in _SHARED:
        return value
    if kind in (list, dict) and id(value) not in memo and (items := _of_plain_items(value)) is not None:
        return memo.setdefault(id(value), items)
    plain = kind is dict or (kind is OrderedDict and not value.__dict__)  # a state_dict has an attribute, its metadata
    if plain and id(value) not in memo:
        made = memo[id(value)] = kind()
        for key, part in value.items():
            made[copy.deepcopy(key, memo)] = _deep_attribute(part, memo, simple)
        return made
    return _deep(value, memo, simple) if isinstance(value, nn.Module) else copy.deepcopy(value, memo)


def _is_copied_by_attributes(kind: type) -> bool:
    """True if a class leaves it to `nn.Module` how it is copied, but for `__setstate__`."""
    names = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")
    inherited = all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in (*names, "__new__"))
    return inherited and kind not in copyreg.dispatch_table


def copy_module(
    module: nn.Module,
    tensor: Callable[[torch.Tensor], torch.Tensor],
    *,
    parameters: Callable[[dict[str, Any], Callable[[Any], Any]], dict[str, Any]] | None = None,
) -> nn.Module:
    """A copy of a module and its submodules, with other tensors. The original is not changed.

    tensor: a function that gives the tensor of the copy for each parameter, buffer, and tensor in an attribute.
    parameters: a function that gives the dict of parameters of each module of the copy, instead of `tensor`. It also
        gets a function that copies the value of an attribute.

    Containers in attributes (see `fxprune/capture/containers.py`), sets, and objects with a state such as
    generators of random numbers (`library_state.py`) are copied, so that a forward that stores something there, or
    draws, leaves the original as it is; other values are shared. A `NoCopy` stands for an iterator that
    has no copy. What is used in two places is one thing in the copy too. Modules of the model, their bound methods, and
    tensors are replaced wherever attributes hold them, also inside containers, partial functions, and functions with a
    cache, and in attributes of parameters.
    """
    return _CopyOfModule(module, tensor, parameters).clone(module)


class _CopyOfModule:
    """One call of `copy_module`, with the same arguments: what was copied before, and how."""

    def __init__(self, module: nn.Module, tensor: Any, parameters: Any) -> None:
        self._tensor, self._parameters = tensor, parameters
        self._made: dict[int, nn.Module] = {}
        self._containers: dict[int, Any] = {}
        self._steps = [0]
        self._dressed: set[int] = set()  # the ids of the parameters whose copies have their attributes
        self._root = module
        self._members = {id(m) for m in module.modules()}

    def clone(self, original: nn.Module) -> nn.Module:
        if id(original) in self._made:
            return self._made[id(original)]
        new = self._made[id(original)] = _blank(original)
        _fill_slots_and_items(new, original, self._attribute)
        own = {k: v for k, v in original.__dict__.items() if k not in ("_parameters", "_buffers", "_modules")}
        given = original.__dict__["_parameters"]
        made = self._parameters(given, self._attribute) if self._parameters else _copied(self._tensor_of, given)
        new.__dict__["_parameters"] = made
        new.__dict__["_buffers"] = _copied(self._tensor_of, original.__dict__["_buffers"])
        new.__dict__["_modules"] = {k: None if m is None else self.clone(m) for k, m in original._modules.items()}
        new.__dict__.update({k: v if type(v) in _SHARED else self._attribute(v) for k, v in own.items()})
        return new

    def _tensor_of(self, original: torch.Tensor) -> torch.Tensor:
        new: torch.Tensor = self._tensor(original)
        other = new is not original or isinstance(original, FakeTensor)  # of which a model makes copies that run
        if other and isinstance(original, nn.Parameter) and id(original) not in self._dressed:
            self._dressed.add(id(original))
            give_attributes(new, original, self._attribute)
        return new

    def _attribute(self, value: Any) -> Any:
        kind = type(value)
        if kind in _SHARED or (kind is tuple and _SHARED.issuperset(map(type, value))):  # such as a kernel size
            return value
        if kind in (dict, OrderedDict) and not value:  # most attributes of a module are empty tables of hooks
            return self._containers.setdefault(id(value), kind())
        if is_weak(value):  # recurrent layers compare these with their parameters
            return with_referents(value, self._attribute)
        if isinstance(value, nn.Module):
            return self.clone(value) if id(value) in self._members else value
        if isinstance(value, torch.Tensor):
            return self._tensor_of(value)
        if isinstance(value, types.MethodType):
            return _bound(value, self._attribute(value.__self__))
        if kind is functools.partial:
            function, args, keywords = map(self._attribute, (value.func, value.args, value.keywords))
            return functools.partial(function, *args, **keywords)
        if kind is CACHED_FUNCTION:
            return self._containers.setdefault(id(value), _with_cache(value, self._attribute(value.__wrapped__)))
        if kind is RemovableHandle:
            return _handle(value, self._attribute)
        made = _contained(value, self._containers, self._attribute, self._steps)
        if made is value and is_iterator(kind):
            made = self._containers[id(value)] = NoCopy(self._root, value)
        return made


def _of_plain_items(value: Any) -> Any:
    """A copy of a list or dict in which nothing is to be replaced, such as a vocabulary; None for any other value."""
    if type(value) is list:
        return value.copy() if _SHARED.issuperset(map(type, value)) else None
    if type(value) is dict:
        plain = _SHARED.issuperset(map(type, value.values())) and _SHARED.issuperset(map(type, value))
        return value.copy() if plain else None
    return None


def _contained(value: Any, made: dict[int, Any], attribute: Callable[[Any], Any], steps: list[int]) -> Any:
    """A copy of a container, a set, a generator or another object with a state; any other value itself.

    made: id of a value -> its copy. steps: the number of containers, one in the other, that are copied at this moment.
    """
    kind = type(value)
    if kind is torch.Generator:
        return made.setdefault(id(value), value.clone_state())
    if kind is set:
        return made.setdefault(id(value), {attribute(part) for part in value})
    if (plain := _of_plain_items(value)) is not None:
        return made.setdefault(id(value), plain)
    if has_state(kind):
        return made[id(value)] if id(value) in made else made.setdefault(id(value), with_own_state(value, attribute))
    if steps[0] >= MOST_STEPS or not is_container(value):
        return value
    steps[0] += 1
    try:
        new = map_parts(value, made, attribute)
    finally:
        steps[0] -= 1
    if issubclass(kind, dict):
        rekeyed(new, attribute)
    return new


def _blank(original: nn.Module) -> nn.Module:
    """A module of the same class without attributes; also of a GraphModule, whose class holds its compiled forward.

    Of a class derived from a list or a dict as well, it is one with the same items.
    """
    kind: Any = type(original)
    if isinstance(original, dict):
        new = dict.__new__(kind)
        dict.update(new, original)
    elif isinstance(original, list):
        new = list.__new__(kind)
        list.extend(new, original)
    else:
        new = object.__new__(kind)
    return cast(nn.Module, new)


def _fill_slots_and_items(new: nn.Module, original: nn.Module, attribute: Callable[[Any], Any]) -> None:
    for name in slots_of(type(original)):
        if hasattr(original, name):
            object.__setattr__(new, name, attribute(getattr(original, name)))
    if isinstance(new, (dict, list)):
        with_parts(new, {key: attribute(value) for key, value in parts(new).items()})


def _bound(method: types.MethodType, new: Any) -> types.MethodType:
    """A method, bound to another object."""
    return method if new is method.__self__ else types.MethodType(method.__func__, new)


def _with_cache(cached: Any, function: Any) -> Any:
    """A function with a cache of its own, which a run of the copy fills; `function` is the copy of what it wraps."""
    return functools.lru_cache(**cached.cache_parameters())(function)


def _handle(handle: RemovableHandle, attribute: Callable[[Any], Any]) -> RemovableHandle:
    """A handle that removes the same hook of the copy."""

    def ref(table: Any) -> Any:
        hooks = table()
        return table if hooks is None else weakref.ref(attribute(hooks))

    new: RemovableHandle = object.__new__(RemovableHandle)
    new.id, new.hooks_dict_ref = handle.id, ref(handle.hooks_dict_ref)
    new.extra_dict_ref = tuple(map(ref, handle.extra_dict_ref))
    return new


def _copied(tensor: Callable[[torch.Tensor], torch.Tensor], tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a dict, each replaced by its copy."""
    return {name: None if value is None else tensor(value) for name, value in tensors.items()}
