"""Functions of torch whose body is Python code: where a model calls one, function modes see what happens inside.

Torch switches a function mode off while a function that it has seen runs. So the mode would not see that
`F.multi_head_attention_forward` makes `view(length, batch * heads, width)` of its queries, with sizes that it computes
from attributes of the model, nor which of its products belong to `linear`, which runs other ones for other strides.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn


def opened(func: Any, module: nn.Module | None) -> Callable[..., Any] | None:
    """The body of a function, to be called while a function mode is active; None for a function that stays one call.

    module: the module whose forward calls the function; None outside of modules, where it stays one call.
    """
    return None if func is not F.multi_head_attention_forward or module is None else _BODY


def _no_mode(tensors: Any) -> bool:
    """False: the body runs, whatever modes are active."""
    return False


def _body(function: Any) -> types.FunctionType:
    """A function of torch that does not ask whether a mode wants to see it."""
    names = {**function.__globals__, "has_torch_function": _no_mode}
    made = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


_BODY = _body(F.multi_head_attention_forward)
