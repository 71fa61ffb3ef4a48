"""`torch.export` as a way in: for models whose forward decides by sizes, and that symbolic tracing refuses.

The exported graph is put around a skeleton of the model, so that parameters, buffers, their names and their flags are
the model's own, and what export says of old sizes (guards, assertions) is left out.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import operator
import os
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from fxprune.capture.captured import fetch
from fxprune.capture.inputs import Inputs, bound
from fxprune.capture.module_copy import copy_module
from fxprune.capture.process_state import silence
from fxprune.capture.skeleton import add_constants, skeleton
from fxprune.capture.traced import SOURCE
from fxprune.errors import CaptureError, InputError

NOTES = "fxprune_notes"
"""In `meta` of an exported module: sentences on what the graph cannot do that the model could."""

_ASSERTIONS = ("_assert_", "sym_constrain_range", "_functional_assert_", "_functional_sym_constrain_range")
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
    _inline(graph_module)
    _unshare(graph)
    _clean(graph)
    root = skeleton(model)
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


def exported(graph: fx.Graph) -> bool:
    """Whether the placeholders of a graph are the leaves of nested arguments, as those of an exported one are."""
    return isinstance(graph._codegen, _PyTreeCodeGen)


def leaves_for_placeholders(graph: fx.Graph, inputs: Inputs) -> list[Any]:
    """One value per placeholder of an exported graph: the leaves of its arguments, given by position or by name."""
    info = graph._codegen.pytree_info  # type: ignore[attr-defined]
    args, kwargs = inputs
    names = [name for name in info.orig_args if name != "self"]
    given = dict(zip(names, args, strict=False))
    missing = [name for name in names[len(args) :] if name not in kwargs]
    unknown = [name for name in kwargs if name not in names or name in given]
    if missing or unknown or len(args) > len(names):
        raise InputError(
            "the inputs are not those that the graph was exported for",
            why=f"it takes {names}; {len(args)} positional ones and {sorted(kwargs)} were given",
            do="pass the same arguments as when it was exported",
        )
    values = [(given | kwargs)[name] for name in names]
    spec, whole = info.in_spec, values
    parts: tuple[Any, Any] = (tuple(whole), {})
    if len(spec.children()) == 2 and spec.child(1).type is dict:
        positional = spec.child(0).num_children
        keywords = zip(spec.child(1).context, whole[positional:], strict=True)
        parts = (tuple(whole[:positional]), dict(keywords))
    leaves, have = pytree.tree_flatten(parts)
    if len(leaves) != len(graph.find_nodes(op="placeholder")):
        raise InputError(
            "the inputs are nested otherwise than when the graph was exported",
            why=f"expected {spec}, got {have}",
            do="pass inputs of the same structure",
        )
    return leaves


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
    """Whether a parameter is a constant: an attribute holds a bound method, whose modules are not those of the copy."""
    own = {id(t) for t in (*model.parameters(), *model.buffers())}
    known = {*program.state_dict, *(n for n, _ in model.named_buffers(remove_duplicate=False))}
    return any(id(value) in own and name not in known for name, value in program.constants.items())


@contextlib.contextmanager
def _silent_export(oblivious: bool) -> Iterator[None]:
    """Torch's prints, logs and warnings on its own affairs are not shown.

    oblivious: whether sizes of 1 are treated like any other size.
    """
    from torch.fx.experimental import _config as shape_config  # here, because it imports sympy

    with silence(), shape_config.patch(backed_size_oblivious=oblivious):  # type: ignore[attr-defined]
        yield


def _dropping(model: nn.Module, dropped: list[str]) -> nn.Module:
    """The copy in a class whose forward leaves out what pytree does not know; names and signature stay."""
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
    """An output without what is no container of tensors; where it stood is noted."""
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
    """Which input sizes, and which arguments that are no tensors, the graph has taken for constants."""
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


# -- the graph --------------------------------------------------------------------------------------------


def _inline(graph_module: fx.GraphModule) -> None:
    """Regions with gradients off or on, and without autocast, become part of the graph around them.

    What comes out of a region without gradients is detached.
    """
    higher = torch.ops.higher_order
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is higher.wrap_with_set_grad_enabled:
            enabled, inner, *operands = node.args
        elif node.target is higher.wrap_with_autocast and not node.args[2]:
            enabled, inner, operands = True, node.args[4], list(node.args[5:])
        else:
            continue
        region = fetch(graph_module, str(inner.target))
        _inline(region)
        _put_in_place(graph_module, node, region, operands, detach=not enabled)


def _put_in_place(
    graph_module: fx.GraphModule, node: fx.Node, region: fx.GraphModule, operands: list[Any], *, detach: bool
) -> None:
    graph = graph_module.graph
    taken = dict(zip(region.graph.find_nodes(op="placeholder"), operands, strict=True))
    results: Any = None
    with graph.inserting_before(node):
        for part in region.graph.nodes:
            if part.op == "output":
                results = fx.map_arg(part.args[0], lambda n: taken[n])
            elif part.op == "get_attr":
                name = f"{node.name}_{str(part.target).replace('.', '_')}"
                setattr(graph_module, name, fetch(region, str(part.target)))
                taken[part] = graph.get_attr(name)
            elif part.op != "placeholder":
                taken[part] = graph.node_copy(part, lambda n: taken[n])
        if detach:
            results = fx.map_arg(results, functools.partial(_detached, graph))
    for user in list(node.users):
        if user.target is operator.getitem and isinstance(results, (tuple, list)):
            user.replace_all_uses_with(results[int(str(user.args[1]))])
            graph.erase_node(user)
        else:
            user.replace_input_with(node, results)
    graph.erase_node(node)


def _detached(graph: fx.Graph, node: fx.Node) -> fx.Node:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return node
    new = graph.call_function(torch.ops.aten.detach.default, (node,))
    new.meta = dict(node.meta)
    return new


def _clean(graph: fx.Graph) -> None:
    """Assertions on sizes and types go, and what only they or nobody reads; nodes keep their place in the source."""
    for node in reversed(graph.nodes):
        target = node.target
        asserts = isinstance(target, torch._ops.OpOverload) and target._schema.name.split("::")[-1].startswith(
            _ASSERTIONS
        )
        counts = target in _COUNTING or getattr(target, "__module__", "") in ("_operator", "torch", "math")
        if asserts or (not node.users and (node.op == "get_attr" or (node.op == "call_function" and counts))):
            graph.erase_node(node)
            continue
        source = _line_of_user(node)
        stack = node.meta.get("nn_module_stack") or {}
        paths = {key: value for key, value in stack.items() if not key.startswith("_empty")}
        node.meta = {"nn_module_stack": paths} if paths else {}
        if source:
            node.meta[SOURCE] = source


_COUNTING = (torch.ops.aten.sym_size.int, torch.ops.aten.sym_numel.default, torch.ops.aten.sym_stride.int)


def _unshare(graph: fx.Graph) -> None:
    """Each size that is a product with a number (8 heads of every sample) is computed for one use alone.

    The numbers shrink with the layers that they belong to, and equal ones need not stay equal.
    """
    for node in reversed(graph.nodes):
        if not isinstance(node.meta.get("val"), torch.SymInt) or not _is_product(node):
            continue
        for user in list(node.users)[1:]:
            with graph.inserting_before(node):
                user.replace_input_with(node, graph.node_copy(node))


def _is_product(node: fx.Node) -> bool:
    """Whether a number is among the factors of the factors."""
    if node.target is not operator.mul:
        return False
    return any(type(a) is int or (isinstance(a, fx.Node) and _is_product(a)) for a in node.args)


def _line_of_user(node: fx.Node) -> str:
    """The innermost line of a node's stack that is not torch's own."""
    places = []
    for line in (node.stack_trace or "").splitlines():
        parts = line.split('"')
        if (
            line.strip().startswith("File ")
            and len(parts) > 2
            and not parts[1].startswith((_TORCH, "torch/", __file__))
        ):
            places.append(f"{parts[1]}:{parts[2].split('line ')[-1].split(',')[0]}")
    return places[-1] if places else ""
