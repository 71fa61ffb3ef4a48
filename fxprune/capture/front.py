"""The front ends in one place: a model becomes a `Captured` by the rung of the ladder that is asked for."""

from __future__ import annotations

from functools import partial

from torch import fx, nn

from fxprune.capture.captured import Captured, whole
from fxprune.capture.exported import NOTES, export, exported, leaves_for_placeholders
from fxprune.capture.inputs import Inputs, for_placeholders
from fxprune.capture.process_state import clean_caches
from fxprune.capture.traced import trace
from fxprune.errors import CaptureError, InputError

PATHS = ("fx", "eager", "export", "hooks")
"""The rungs of the ladder, in the order in which they are tried."""


def capture(model: nn.Module, inputs: Inputs, path: str) -> Captured:
    """The model by one front end.

    Raises `CaptureError` where that one cannot take it, `InputError` where the inputs do not fit.
    """
    with clean_caches(model):
        return _capture(model, inputs, path)


def _capture(model: nn.Module, inputs: Inputs, path: str) -> Captured:
    if path == "fx":
        return _graph("fx", trace(model))
    if isinstance(model, fx.GraphModule):
        raise CaptureError(
            "the model is a graph already", why=f'path="{path}" begins with a module', do='use path="fx"'
        )
    if path in ("eager", "hooks"):
        return whole(model, inputs, path)
    if path == "export":
        return _graph("export", export(model, inputs))
    raise InputError(f'there is no path "{path}"', why=f"the paths are {', '.join(PATHS)}")


def _graph(path: str, module: fx.GraphModule) -> Captured:
    graph = module.graph
    arrange = leaves_for_placeholders if exported(graph) else for_placeholders
    return Captured(path, module, graph, partial(arrange, graph), module.meta.get(NOTES, ()))
