"""The path "fx": a graph by symbolic tracing. Every node keeps the line of the user's code that made it."""

from __future__ import annotations

import os
import sys
import threading
import types
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.captured import Captured, FrontEnd, captured_graph
from fxprune.capture.inputs import Inputs
from fxprune.capture.module_copy import copy_module
from fxprune.capture.process_state import tracing
from fxprune.errors import CaptureError
from fxprune.ops.leaves import leaf_rule

SOURCE = "fxprune_source"
_TORCH = os.path.dirname(torch.__file__) + os.sep
_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep
_WALK = os.path.join(os.path.dirname(__file__), "walk.py")


def users_line() -> str:
    """The line of the user's code that called the running operation, as file:line; "" if torch alone called it."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name == _WALK:
            return ""
        if not name.startswith((_OWN, _TORCH)):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


class _Tracer(fx.Tracer):
    """A `torch.fx.Tracer` that stores in each node's `meta` the line of the user's code that made it.

    Other threads may run modules while it traces; their calls are not traced.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """True if a module becomes one node: a layer of torch, or a class with a rule of its own (`fxprune.leaf`)."""
        return leaf_rule(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """The result of a module: a node of the graph; in another thread, the result of its forward."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """The value of an attribute: a node of the graph for a tensor; in another thread, the value itself."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        frame = sys._getframe(1)
        own = (_Tracer.call_module.__code__, _Tracer.getattr.__code__)
        while frame is not None and (frame.f_code.co_filename.startswith(_TORCH) or frame.f_code in own):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None and frame.f_code.co_filename != __file__:  # otherwise code of torch called the layer
            node.meta[SOURCE] = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return node


def trace(model: nn.Module) -> fx.GraphModule:
    """The model as a graph by symbolic tracing. It shares the model's parameters. A `GraphModule` is returned as it is.

    Raises `CaptureError` with torch's message if symbolic tracing fails.
    """
    if isinstance(model, fx.GraphModule):
        return model
    try:
        traced = _traced(copy_module(model, lambda tensor: tensor))
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be traced symbolically",
            why=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
            do="trace it yourself (torch.fx.Tracer with leaf modules, concrete_args) and pass the GraphModule",
        ) from error
    _same_containers(model, traced)
    return traced


def _capture(model: nn.Module, inputs: Inputs) -> Captured:
    return _without_inputs(model)


def _without_inputs(model: nn.Module) -> Captured:
    return captured_graph(TRACED, trace(model))


TRACED = FrontEnd("fx", _capture, takes_graphs=True, without_inputs=_without_inputs)


def _traced(model: nn.Module) -> fx.GraphModule:
    with tracing():
        graph = _Tracer().trace(model)
    return fx.GraphModule(model, graph, type(model).__name__)


def _same_containers(model: nn.Module, traced: fx.GraphModule) -> None:
    """Make the containers of a traced model like those of the original. Changes `traced`.

    They get the same training mode and the same order of parameters, buffers and submodules, and `state_dict` contains
    the same buffers. `torch.fx` adds buffers for tensors that were plain attributes or made in forward; `state_dict`
    leaves these out.
    """
    originals = dict(model.named_modules())
    for name, module in traced.named_modules():
        if type(module) not in (nn.Module, type(traced)):
            continue  # one node of the graph: it is the original layer
        original = originals.get(name)
        module.training = model.training if original is None else original.training
        known = set() if original is None else set(original._buffers) - original._non_persistent_buffers_set
        module._non_persistent_buffers_set |= set(module._buffers) - known
        if original is not None:  # same order of state_dict and parameters()
            for kind in ("_modules", "_parameters", "_buffers"):
                have, order = getattr(module, kind), list(getattr(original, kind))
                for key in [*(k for k in order if k in have), *(k for k in list(have) if k not in order)]:
                    have[key] = have.pop(key)


def source_of(node: fx.Node) -> str:
    """The line of the user's code that made a node, as file:line; "%" and the node's name if it is unknown."""
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
