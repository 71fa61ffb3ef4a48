"""The path "export": `torch.export`, for models whose forward decides by sizes, and that symbolic tracing refuses.

The exported graph is put around the model's containers, so that parameters, buffers, their names and their flags are
the model's own. Guards and assertions on the old sizes are left out.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import os
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.captured import NOTES, Captured, FrontEnd, captured_graph
from fxprune.capture.exported_graph import inline_regions, remove_assertions, unshare_sizes
from fxprune.capture.exported_module import add_constants, containers
from fxprune.capture.inputs import Inputs, bound
from fxprune.capture.module_copy import copy_module
from fxprune.capture.process_state import silence
from fxprune.errors import CaptureError

_TORCH = os.path.dirname(torch.__file__) + os.sep


def export(model: nn.Module, inputs: Inputs) -> fx.GraphModule:
    """The model as a graph of ATen operations; parameters and buffers are shared with it.

    The graph takes the arguments that the model was given here, positional or by keyword, and returns the same
    structure; an output that is neither a tensor nor a plain container of tensors (a cache of keys and values) is
    None there. Sizes of inputs are symbols where torch allows it. `meta[NOTES]` says which are not, and what was
    dropped.

    Raises `CaptureError` where torch refuses, with what it said.
    """
    dropped: list[str] = []
    program, reason = _program(model, _in_order(model, inputs), dropped)
    graph_module = program.module(check_guards=False)
    graph = graph_module.graph
    inline_regions(graph_module)
    unshare_sizes(graph)
    remove_assertions(graph)
    root = containers(model)
    add_constants(root, graph_module)
    made = fx.GraphModule(root, graph, type(model).__name__)
    for kind in ("training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
        made.__dict__[kind] = root.__dict__[kind]
    for name, value in root.__dict__.items():
        made.__dict__.setdefault(name, value)
    notes = [] if reason is None else [f"every input keeps the sizes of the example: {reason}"]
    notes += [] if reason is not None else _fixed_sizes(program)
    notes += [f"the output {path} is None: {kind} is no container of tensors" for path, kind in _split(dropped)]
    made.meta[NOTES] = tuple(notes)
    return made


def _capture(model: nn.Module, inputs: Inputs) -> Captured:
    return captured_graph(EXPORTED, export(model, inputs))


EXPORTED = FrontEnd("export", _capture, fixes_mode=True)


# -- the export itself ------------------------------------------------------------------------------------


def _program(model: nn.Module, inputs: Inputs, dropped: list[str]) -> tuple[torch.export.ExportedProgram, str | None]:
    """The exported program, and why its sizes are literal if they are."""
    args, kwargs = inputs
    tensors = [t for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor)]
    sizes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor in tensors:
        if tensor.ndim:
            dims = range(tensor.ndim) if tensor.ndim < 4 else (0,)  # symbolic heights and widths cost minutes
            sizes[tensor] = dict.fromkeys(dims, torch.export.Dim.AUTO)
    attempts: list[tuple[Any, bool]] = [(sizes, any(1 in t.shape for t in tensors)), (None, False)]
    if attempts[0][1]:  # a batch of one would be taken for a broadcast and stay one for ever
        attempts.insert(1, (sizes, False))
    first: Exception | None = None
    for shapes, oblivious in attempts:
        for copies in (_shallow, _deep):
            dropped.clear()
            model_copy = _dropping(copies(model), dropped)
            try:
                with _silent_export(oblivious):
                    program = torch.export.export(
                        model_copy, tuple(args), dict(kwargs), dynamic_shapes=shapes, strict=False
                    )
            except Exception as error:
                first = first or error
                break
            if not _strayed(model, program):
                return program, None if shapes is not None else _line(first)
    assert first is not None
    raise CaptureError(
        f"{type(model).__name__} cannot be exported",
        at=_where(first),
        why=_line(first),
        do="pass a GraphModule of your own (torch.export or torch.fx), or change that line",
    ) from first


def _in_order(model: nn.Module, inputs: Inputs) -> Inputs:
    """Arguments by position where the signature allows it: the graph takes them in the order in which they come."""
    arguments = bound(model, inputs)
    return arguments.args, arguments.kwargs


def _shallow(model: nn.Module) -> nn.Module:
    return copy_module(model, lambda tensor: tensor)


def _deep(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def _strayed(model: nn.Module, program: torch.export.ExportedProgram) -> bool:
    """True if a parameter is a constant: an attribute holds a bound method, whose modules are not those of the copy."""
    own = {id(t) for t in (*model.parameters(), *model.buffers())}
    known = {*program.state_dict, *(n for n, _ in model.named_buffers(remove_duplicate=False))}
    return any(id(value) in own and name not in known for name, value in program.constants.items())


@contextlib.contextmanager
def _silent_export(oblivious: bool) -> Iterator[None]:
    """Hide what torch prints, logs and warns of on its own affairs.

    oblivious: whether sizes of 1 are treated like any other size.
    """
    from torch.fx.experimental import _config as shape_config  # here, because it imports sympy

    with silence(), shape_config.patch(backed_size_oblivious=oblivious):  # type: ignore[attr-defined]
        yield


def _dropping(model: nn.Module, dropped: list[str]) -> nn.Module:
    """Give the copy a class whose forward leaves out objects that pytree does not know; names and signature stay."""
    kind = type(model)
    inner: Callable[..., Any] = kind.__dict__.get("forward", kind.forward)

    @functools.wraps(inner)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        dropped.clear()
        return _plain(inner(self, *args, **kwargs), "", dropped)

    if "forward" in model.__dict__:  # set on the instance
        own = model.__dict__["forward"]
        model.__dict__["forward"] = functools.wraps(own)(lambda *a, **k: _plain(own(*a, **k), "", dropped))
        return model
    forward.__dict__["__signature__"] = inspect.signature(inner)
    model.__class__ = types.new_class(kind.__name__, (kind,), exec_body=lambda space: space.update(forward=forward))
    model.__class__.__module__ = kind.__module__
    return model


def _plain(value: Any, path: str, dropped: list[str]) -> Any:
    """An output with None for each object that is no container of tensors; its place in the output is noted."""
    if value is None or isinstance(value, (torch.Tensor, int, float, bool, str, torch.SymInt, torch.SymFloat)):
        return value
    if isinstance(value, dict):
        parts = {key: _plain(v, f"{path}[{key!r}]", dropped) for key, v in value.items()}
        if all(parts[key] is v for key, v in value.items()):
            return value
        if type(value) in (dict, OrderedDict):
            return type(value)(parts)
        return type(value)(**parts)
    if isinstance(value, (tuple, list)):
        items = [_plain(v, f"{path}[{i}]", dropped) for i, v in enumerate(value)]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value) not in pytree.SUPPORTED_NODES:
            torch.export.register_dataclass(type(value))
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        parts = {name: _plain(v, f".{name}", dropped) for name, v in fields.items()}
        if all(parts[name] is v for name, v in fields.items()):
            return value
        return dataclasses.replace(value, **parts)
    dropped.append(f"{path or 'as a whole'}\n{type(value).__name__}")
    return None


def _split(dropped: list[str]) -> list[list[str]]:
    return [entry.split("\n") for entry in dropped]


def _fixed_sizes(program: torch.export.ExportedProgram) -> list[str]:
    """The input sizes, and the arguments that are no tensors, that the graph has taken for constants, as sentences."""
    from torch.utils._sympy.numbers import int_oo  # here, because it imports sympy

    notes = []
    given = {s.arg.name: s for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"}
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if node.name not in given or value is None:
            continue
        if isinstance(value, torch.Tensor):
            fixed = [f"{size} in dimension {d}" for d, size in enumerate(value.shape) if isinstance(size, int)]
            if fixed:
                notes.append(f"the input {node.name} keeps its size {', '.join(fixed)}")
        else:
            notes.append(f"the argument {node.name} is the constant {value!r}")
        for d, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            bounds = program.range_constraints.get(size.node.expr) if isinstance(size, torch.SymInt) else None
            if bounds is not None and (bounds.upper != int_oo or bounds.lower > 2):
                notes.append(f"the input {node.name} in dimension {d} is of size {bounds.lower} to {bounds.upper}")
    return notes


def _line(error: Exception | None) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


def _where(error: BaseException) -> str:
    """The innermost line of the traceback that is not torch's own."""
    place = ""
    traceback = error.__traceback__
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_filename
        if not name.startswith(_TORCH) and name != __file__:
            place = f"{name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place
