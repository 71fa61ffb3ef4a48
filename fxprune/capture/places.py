"""The lines of the user's code and the modules that nodes and operations belong to."""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxprune.capture.captured import WHOLE_MODEL

SOURCE = "fxprune_source"
"""The key in a node's `meta` of the line of the user's code that made it."""

TORCH = os.path.dirname(torch.__file__) + os.sep
"""The folder of torch."""

OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep
"""The folder of this package."""

_RUNNERS = (os.path.join(os.path.dirname(__file__), "walk.py"), os.path.join(OWN, "_drop.py"))
"""The files that run a model, and so are no code of it."""


def users_line() -> str:
    """The line of the user's code that called the running operation, as file:line; "" if torch alone called it."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name in _RUNNERS:
            return ""
        if not name.startswith((OWN, TORCH)) and name != contextlib.__file__:  # which runs the contexts of both
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def raised_at(error: BaseException) -> str:
    """The line of the user's code in which an exception was raised, as file:line; "" if there is none."""
    found, at = "", error.__traceback__
    while at is not None:
        name = at.tb_frame.f_code.co_filename
        if name in _RUNNERS:
            found = ""  # what called the model is no code of it
        elif not name.startswith((OWN, TORCH)):
            found = f"{name}:{at.tb_lineno}"
        at = at.tb_next
    return found


def line_of(function: Callable[..., Any]) -> str:
    """The first line of a function, as file:line; "" if it has no code of its own."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""


def source_of(node: fx.Node) -> str:
    """The line of the user's code that made a node, as file:line; "%" and the node's name if it is unknown.

    "" for a node that runs the whole model.
    """
    if node.target == WHOLE_MODEL:
        return ""
    if SOURCE in node.meta:
        return str(node.meta[SOURCE])
    lines = [line for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File ")]
    if lines:
        parts = lines[-1].split('"')
        return f"{parts[1]}:{parts[2].split('line ')[-1].split(',')[0]}" if len(parts) > 2 else lines[-1].strip()
    return f"%{node.name}"


def module_of(node: fx.Node) -> str:
    """The path of the innermost module that contains a node, "" for the model itself."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0] if stack and isinstance(next(reversed(stack.values())), tuple) else "")
