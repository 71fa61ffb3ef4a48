"""The path "export": a graph of ATen operations, made by `torch.export`.

It also captures models that symbolic tracing refuses, such as those with an `if` on a size. The exported graph becomes
the forward of a copy of the model's modules, so that parameters and buffers, their names and their flags are the
model's own. Assertions about sizes inside the graph are removed; torch's guards on
the sizes of inputs stay.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.at_rest import lost_in_program
from fxprune.capture.captured import FIXED, LOST, NOTES, Captured, FrontEnd, captured_graph
from fxprune.capture.error_place import line_of
from fxprune.capture.export_refusals import first_sentence, next_step, why_refused
from fxprune.capture.exported_graph import inline_regions, remove_assertions, unshare_sizes
from fxprune.capture.exported_guards import GUARDS, guards_hold, inline_guards
from fxprune.capture.exported_module import add_constants, containers
from fxprune.capture.exported_sizes import ShortFormulas, changed_by, constants, needlessly_fixed, takes
from fxprune.capture.graph_names import check_names
from fxprune.capture.inputs import Inputs, bound, leaves_for_placeholders
from fxprune.capture.kept_buffers import TAKE_FROM_SELF, called_parts
from fxprune.capture.module_copy import copy_module
from fxprune.capture.pickled_tracer import BufferTracer
from fxprune.capture.process_state import silence
from fxprune.capture.size_ranges import ranges_of
from fxprune.capture.trace_watch import CHANGES_STATE, NOT_KEPT, watching_export
from fxprune.errors import CaptureError


def export(model: nn.Module, inputs: Inputs) -> fx.GraphModule:
    """The model as a graph of ATen operations, which shares the model's parameters and buffers.

    The graph takes the same arguments as the model in this call, by position or by keyword. It returns the same
    structure, except that objects which are neither tensors nor plain containers of tensors (such as a cache of keys
    and values) are replaced by None. Sizes of inputs stay variable where torch allows it. `meta[FIXED]` lists those
    that do not although the model takes other ones; `meta[LOST]` lists what forward does and no exported graph keeps:
    state, and the backward of an `autograd.Function`; `meta[NOTES]` has that, hooks and modes that are not kept, the
    arguments that are constants, and the objects that were replaced.

    Raises `CaptureError` with torch's message if torch cannot export the model.
    """
    check_names(model)
    dropped: list[str] = []
    inputs = _positional(model, inputs)
    lost: list[str] = []
    program, reason = _program(_outside_inference_mode(model), inputs, dropped, lost)
    module, leaves = program.module(), pytree.tree_leaves(inputs)
    ranges = ranges_of(program, getattr(module, GUARDS, None), leaves)
    made = exported_graph(module, model, inputs, type(model).__name__)
    notes = constants(program, ranges)
    notes += [f"the output {path} is None: {kind} is no container of tensors" for path, kind in _split_entries(dropped)]
    fixed = needlessly_fixed(program, model, inputs, ranges)
    noted = "".join(lost)  # with the line, where an attribute is assigned
    changed = (name for name in changed_by(model, inputs) if f"self.{name.rpartition('.')[2]}" not in noted)
    lost += (f"{CHANGES_STATE} {name}" for name in changed)
    lost += (f"{NOT_KEPT}: {what}" for what in fixed.state)
    at_rest = (f"{NOT_KEPT}: {what}" for what in lost_in_program(model))
    made.meta[NOTES], made.meta[LOST] = (*notes, *at_rest, *lost), tuple(lost)
    because = "" if reason is None else f", because torch did not leave it open: {reason}"
    made.meta[FIXED] = tuple(f"{note}{because}" for note in fixed.sizes)
    return made


def exported_graph(graph_module: fx.GraphModule, model: nn.Module, inputs: Inputs, name: str) -> fx.GraphModule:
    """The graph of a program with the modules of `model`, for the analysis. Changes `graph_module`.

    graph_module: what `program.module()` returns. inputs: those that it was exported for. name: of the class.
    """
    graph = graph_module.graph
    inline_regions(graph_module)
    unshare_sizes(graph)
    remove_assertions(graph)
    inline_guards(graph_module, leaves_for_placeholders(graph, inputs))
    root = containers(model)
    add_constants(root, graph_module)
    graph._tracer_cls = BufferTracer
    made = fx.GraphModule(root, graph, name)
    for kind in ("training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
        made.__dict__[kind] = root.__dict__[kind]
    for attribute, value in root.__dict__.items():
        made.__dict__.setdefault(attribute, value)
    return made


def _capture(model: nn.Module, inputs: Inputs) -> Captured:
    made = export(model, inputs)
    return captured_graph(EXPORTED, made, made.meta[FIXED], made.meta[LOST])


EXPORTED = FrontEnd("export", _capture, fixes_mode=True)


# -- the export itself ------------------------------------------------------------------------------------


def _program(
    model: nn.Module, inputs: Inputs, dropped: list[str], lost: list[str]
) -> tuple[torch.export.ExportedProgram, str | None]:
    """The exported program, and the reason why its input sizes are fixed; None if they are variable.

    Appends the outputs that are replaced by None to `dropped`, and what no graph keeps to `lost`. Raises
    `CaptureError` if torch refuses all attempts.
    """
    first: Exception | None = None
    for given, shapes, oblivious, formulas in _attempts(inputs):
        for copies in (_sharing_copy, _deep_copy):
            dropped.clear()
            lost.clear()
            model_copy = _with_plain_outputs(copies(model), dropped)
            try:
                with silent_export(oblivious), formulas, watching_export(model_copy, lost):
                    program = torch.export.export(
                        model_copy, tuple(given[0]), dict(given[1]), dynamic_shapes=shapes, strict=False
                    )
            except Exception as error:
                first = first or error
                break
            if not takes(program, inputs) or not (given is inputs or guards_hold(program, inputs)):
                continue
            if not _has_parameter_as_constant(model, program):
                return program, None if first is None else first_sentence(first)
    if first is None:
        calls = called_parts(model)
        raise CaptureError(
            f"{type(model).__name__} cannot be exported",
            why=calls[0] if calls else "torch gives a graph with parameters of the model as constants",
            do=TAKE_FROM_SELF,
        )
    raise CaptureError(
        f"{type(model).__name__} cannot be exported",
        at=line_of(first),
        why=why_refused(first),
        do=f"{next_step(first, line_of(first))}, or pass a GraphModule of your own",
    ) from first


def _outside_inference_mode(model: nn.Module) -> nn.Module:
    """The model; a copy of it if parts were made in inference mode, which torch does not export."""
    copies: dict[int, torch.Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_inference():
            copies[id(tensor)] = copy.deepcopy(tensor) if isinstance(tensor, nn.Parameter) else tensor.clone()
    return copy_module(model, lambda tensor: copies.get(id(tensor), tensor)) if copies else model


def _attempts(inputs: Inputs) -> Iterator[tuple[Inputs, Any, bool, contextlib.AbstractContextManager[Any]]]:
    """The options of `torch.export` to try: inputs, open sizes, whether 1 is like other sizes, a limit on formulas.

    All sizes are open at first; then those of images are fixed but for their batch; then every size is. Torch takes a
    batch of one for a broadcast, and fixes it or what depends on it, so that a batch of two is tried before.
    """
    tensors = [t for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor) and t.ndim]
    images = any(t.ndim > 3 for t in tensors)
    pairs = [pytree.tree_map_only(torch.Tensor, _two_of, inputs)] if all(t.shape[0] == 1 for t in tensors) else []
    for all_open in (True, False) if images else (True,):
        for given in (*pairs, inputs):
            ones = given is inputs and any(1 in t.shape for t in tensors)
            for oblivious in (True, False) if ones else (False,):
                formulas = ShortFormulas() if images and all_open else contextlib.nullcontext()
                yield given, _open_sizes(given, all_open=all_open), oblivious, formulas
    yield inputs, None, False, contextlib.nullcontext()


def _two_of(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat((tensor, tensor)) if tensor.ndim else tensor


def _open_sizes(inputs: Inputs, *, all_open: bool) -> Any:
    """The dimensions to leave open: all, or of images the batch alone."""
    sizes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor in pytree.tree_leaves(inputs):
        if isinstance(tensor, torch.Tensor) and tensor.ndim:
            dims = range(tensor.ndim) if tensor.ndim < 4 or all_open else (0,)
            sizes[tensor] = dict.fromkeys(dims, torch.export.Dim.AUTO)
    return sizes


def _positional(model: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs, with keyword arguments made positional where the signature of forward allows it."""
    arguments = bound(model, inputs)
    return arguments.args, arguments.kwargs


def _sharing_copy(model: nn.Module) -> nn.Module:
    return copy_module(model, lambda tensor: tensor)


def _deep_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def _has_parameter_as_constant(model: nn.Module, program: torch.export.ExportedProgram) -> bool:
    """True if the program has a parameter of the model as a constant.

    This happens if an attribute holds a bound method of a module: the method runs on the model, not on the copy.
    """
    own = {id(t) for t in (*model.parameters(), *model.buffers())}
    known = {*program.state_dict, *(n for n, _ in model.named_buffers(remove_duplicate=False))}
    return any(id(value) in own and name not in known for name, value in program.constants.items())


@contextlib.contextmanager
def silent_export(oblivious: bool) -> Iterator[None]:
    """Hide torch's own prints, logs and warnings while it exports.

    oblivious: True to treat sizes of 1 like any other size.
    """
    from torch.fx.experimental import _config as shape_config  # here, because it imports sympy

    with silence(), shape_config.patch(backed_size_oblivious=oblivious):  # type: ignore[attr-defined]
        yield


def _with_plain_outputs(model: nn.Module, dropped: list[str]) -> nn.Module:
    """Give a model a forward that returns None for objects which pytree does not know. Changes the model.

    It gets a new class of the same name and signature, and is returned. The objects are listed in `dropped`.
    """
    kind = type(model)
    inner: Callable[..., Any] = kind.__dict__.get("forward", kind.forward)

    @functools.wraps(inner)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        dropped.clear()
        return _without_objects(inner(self, *args, **kwargs), "", dropped)

    if "forward" in model.__dict__:  # set on the instance
        own = model.__dict__["forward"]
        model.__dict__["forward"] = functools.wraps(own)(lambda *a, **k: _without_objects(own(*a, **k), "", dropped))
        return model
    forward.__dict__["__signature__"] = inspect.signature(inner)
    model.__class__ = types.new_class(kind.__name__, (kind,), exec_body=lambda space: space.update(forward=forward))
    model.__class__.__module__ = kind.__module__
    return model


def _without_objects(value: Any, path: str, dropped: list[str]) -> Any:
    """An output with None in place of every object that is no container of tensors.

    path: the place of `value` in the whole output. Each such object is appended to `dropped` as "place\\ntype".
    """
    if value is None or isinstance(value, (torch.Tensor, int, float, bool, str, torch.SymInt, torch.SymFloat)):
        return value
    if isinstance(value, dict):
        parts = {key: _without_objects(v, f"{path}[{key!r}]", dropped) for key, v in value.items()}
        if all(parts[key] is v for key, v in value.items()):
            return value
        if type(value) in (dict, OrderedDict):
            return type(value)(parts)
        return type(value)(**parts)
    if isinstance(value, (tuple, list)):
        items = [_without_objects(v, f"{path}[{i}]", dropped) for i, v in enumerate(value)]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value) not in pytree.SUPPORTED_NODES:
            torch.export.register_dataclass(type(value))
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        parts = {name: _without_objects(v, f".{name}", dropped) for name, v in fields.items()}
        if all(parts[name] is v for name, v in fields.items()):
            return value
        return dataclasses.replace(value, **parts)
    dropped.append(f"{path or 'as a whole'}\n{type(value).__name__}")
    return None


def _split_entries(dropped: list[str]) -> list[list[str]]:
    return [entry.split("\n") for entry in dropped]
