"""The place in the user's code at which an exception was raised."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fxprune.capture.weak_references import is_weak, referents_of

_TORCH = os.path.dirname(torch.__file__) + os.sep
_PYTHON = os.path.dirname(os.__file__) + os.sep
_DISTRIBUTIONS = os.path.join(_TORCH, "distributions", "")
_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep


def line_of(error: BaseException) -> str:
    """The innermost line of an error's traceback outside of torch, fxprune and Python, as file:line; "" if none."""
    place = ""
    for frame, line in _frames(error):
        file = frame.f_code.co_filename
        of_python = file.startswith(_PYTHON) and "site-packages" not in file
        if not of_python and not file.startswith((_TORCH, _OWN)):
            place = f"{file}:{line}"
    return place


def module_of_error(error: BaseException, root: nn.Module) -> str:
    """The path of the innermost submodule of `root` that was running; "" if it was `root` itself, or none."""
    names = {id(module): name for name, module in root.named_modules()}
    found = ""
    for frame, _ in _frames(error):
        found = names.get(id(frame.f_locals.get("self")), found)
    return found


def missing_copy(error: BaseException) -> str:
    """The class of a module that forward did not find in a table by itself, since only the original is in it; or ""."""
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    for one in [key, *(referents_of(key) if is_weak(key) else ())]:
        if isinstance(one, nn.Module):
            return type(one).__name__
    owners = (frame.f_locals.get("self") for frame, _ in _frames(error))
    found = (one for one in owners if isinstance(one, nn.Module) and type(key) is int and key == id(one))
    return next((type(one).__name__ for one in found), "")


def in_a_distribution(error: BaseException) -> bool:
    """True if an exception was raised while `torch.distributions` ran."""
    return any(frame.f_code.co_filename.startswith(_DISTRIBUTIONS) for frame, _ in _frames(error))


def locals_of(error: BaseException) -> Iterator[Any]:
    """The values of all local variables in the frames of an error's traceback."""
    return (value for frame, _ in _frames(error) for value in list(frame.f_locals.values()))


def _frames(error: BaseException) -> Iterator[tuple[types.FrameType, int]]:
    """The frames of an error's traceback with their lines, the outermost first."""
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next
