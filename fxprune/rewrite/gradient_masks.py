"""Gradient masks: hooks that compute element by element with one tensor, such as `lambda grad: grad * mask`.

Such a hook is carried over with the kept part of its tensor. That is right only if nothing else happens in it, which
its bytecode shows: no call but those of elementwise functions, nothing that is stored outside. A hook is never called
to find that out, since it may print, count or collect.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fxprune.capture.code import content_of
from fxprune.capture.references import closed_over

_STEPS = frozenset(
    """
    RESUME COPY_FREE_VARS NOP CACHE PRECALL PUSH_NULL POP_TOP RETURN_VALUE RETURN_CONST
    CALL CALL_KW KW_NAMES CALL_FUNCTION CALL_METHOD CALL_FUNCTION_KW
    LOAD_FAST LOAD_FAST_BORROW LOAD_FAST_LOAD_FAST LOAD_FAST_BORROW_LOAD_FAST_BORROW LOAD_DEREF
    LOAD_CONST LOAD_SMALL_INT LOAD_GLOBAL LOAD_ATTR LOAD_METHOD STORE_FAST
    BINARY_OP BINARY_MULTIPLY BINARY_TRUE_DIVIDE INPLACE_MULTIPLY INPLACE_TRUE_DIVIDE UNARY_INVERT UNARY_NEGATIVE
    """.split()
)
"""The instructions of Python's versions that move values, multiply or divide two of them, or call."""

_NAMES = frozenset(
    """
    torch mul mul_ multiply div div_ where masked_fill masked_fill_ logical_not
    to type_as float double half bool clone detach grad dtype device
    """.split()
)
"""The globals and attributes that may be read: functions that work element by element, and types of numbers."""

_OPERATORS = frozenset(("*", "/", "*=", "/=", "&", "|"))


def mask_of(hook: Any, shape: Sequence[int]) -> torch.Tensor | None:
    """The one tensor that a hook computes with element by element; None if the hook is anything else.

    shape: that of the parameter. The tensor has as many dimensions, each of the same size or of size 1.
    """
    bound = list(_bound(hook))
    function = hook.func if isinstance(hook, functools.partial) else hook
    if not isinstance(function, types.FunctionType) or not _is_elementwise(function.__code__):
        return None
    tensors = [value for value in bound if isinstance(value, torch.Tensor)]
    shared = {id(value) for value in function.__globals__.values()}  # a global variable cannot be another one
    others = [v for v in bound if not isinstance(v, (torch.Tensor, int, float, torch.dtype)) and v is not torch]
    if len({id(tensor) for tensor in tensors}) != 1 or others or id(tensors[0]) in shared:
        return None
    mask = tensors[0]
    same = mask.ndim == len(shape) and all(a in (1, b) for a, b in zip(mask.shape, shape, strict=True))
    return mask if same and not mask.requires_grad else None


def with_mask(hook: Any, new: torch.Tensor, shape: Sequence[int]) -> Any:
    """The hook with another tensor in the place of `mask_of(hook, shape)`."""
    old = mask_of(hook, shape)

    def swap(value: Any) -> Any:
        return new if value is old else value

    if isinstance(hook, functools.partial):
        keywords = {name: swap(value) for name, value in hook.keywords.items()}
        function: Any = hook.func
        return functools.partial(swapped(function, swap), *map(swap, hook.args), **keywords)
    return swapped(hook, swap)


def _bound(hook: Any) -> Iterator[Any]:
    """The values that a function has besides its arguments: in its closure, defaults and globals, or given before."""
    if isinstance(hook, functools.partial):
        yield from (*hook.args, *hook.keywords.values())
        yield from _bound(hook.func)
    elif isinstance(hook, types.FunctionType):
        yield from closed_over(hook).values()


def _is_elementwise(code: types.CodeType) -> bool:
    for step in dis.get_instructions(code):
        if step.opname not in _STEPS:
            return False
        if step.opname in ("LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD") and step.argval not in _NAMES:
            return False
        if step.opname == "BINARY_OP" and step.argrepr not in _OPERATORS:
            return False
    return True


def swapped(function: types.FunctionType, swap: Callable[[Any], Any]) -> types.FunctionType:
    """A function with other values in its closure and its defaults. A global variable stays, and so does the rest."""
    cells = [(cell, content_of(cell)) for cell in function.__closure__ or ()]
    new = [(cell, content, swap(content)) for cell, content in cells]
    closure = tuple(cell if other is content else types.CellType(other) for cell, content, other in new)
    defaults = None if function.__defaults__ is None else tuple(map(swap, function.__defaults__))
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults, closure or None)
    made.__kwdefaults__ = {name: swap(value) for name, value in (function.__kwdefaults__ or {}).items()} or None
    made.__dict__.update(function.__dict__)
    made.__doc__, made.__module__, made.__qualname__ = function.__doc__, function.__module__, function.__qualname__
    return made
