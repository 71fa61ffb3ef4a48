"""The place in the user's code at which an exception was raised."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator

import torch
from torch import nn

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep


def line_of(error: BaseException) -> str:
    """The innermost line of an error's traceback that is neither in torch nor in fxprune, as file:line; "" if none."""
    place = ""
    for frame, line in _frames(error):
        if not frame.f_code.co_filename.startswith((_TORCH, _OWN)):
            place = f"{frame.f_code.co_filename}:{line}"
    return place


def module_of_error(error: BaseException, root: nn.Module) -> str:
    """The path of the innermost submodule of `root` that was running; "" if it was `root` itself, or none."""
    names = {id(module): name for name, module in root.named_modules()}
    found = ""
    for frame, _ in _frames(error):
        found = names.get(id(frame.f_locals.get("self")), found)
    return found


def _frames(error: BaseException) -> Iterator[tuple[types.FrameType, int]]:
    """The frames of an error's traceback with their lines, the outermost first."""
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next
