"""Example inputs: reading them, comparing them with the model, and giving them to a graph."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen
from torch.nn.utils.parametrize import is_parametrized
from torch.utils import _pytree as pytree

from fxprune.arguments import shown
from fxprune.capture.code import is_torch
from fxprune.capture.layouts import is_sparse, nested_kind
from fxprune.capture.tensors import PARAMETER, Tensors
from fxprune.capture.unseen_inputs import check_tensors, is_known_to_torch, of_no_tensor
from fxprune.errors import CaptureError, InputError
from fxprune.on_demand import OnDemand

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def normalize(example_inputs: Any) -> Inputs:
    """Example inputs as a tuple of positional arguments and a dict of keyword arguments.

    They are given as a tensor, as a tuple or list of arguments, as a mapping of keyword arguments, or as one object
    of a class that torch takes apart. Raises `InputError` for anything else, and if they contain no tensor or an empty
    one.

    >>> args, kwargs = normalize(torch.zeros(2, 3))
    >>> [a.shape for a in args], kwargs
    ([torch.Size([2, 3])], {})
    """
    args, kwargs = arguments_of(example_inputs)
    leaves = pytree.tree_leaves((args, kwargs))
    if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        for leaf in leaves:
            unseen = of_no_tensor(leaf)
            if unseen is not None:
                raise unseen
        raise InputError(
            "example inputs hold no tensor",
            why=f"got {args or kwargs!r}",
            do="pass what one call of the model takes, for example `torch.randn(1, 3, 224, 224)`",
        )
    check_tensors(leaves)
    return args, kwargs


def arguments_of(example_inputs: Any) -> Inputs:
    """The arguments of one call, given as for `normalize`. There may be none at all."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    if isinstance(example_inputs, torch.Tensor):
        args, kwargs = (example_inputs,), {}
    elif isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(example_inputs)
    elif isinstance(example_inputs, (tuple, list)):
        args, kwargs = tuple(example_inputs), {}
    elif is_known_to_torch(example_inputs):
        args, kwargs = (example_inputs,), {}
    else:
        raise of_no_tensor(example_inputs) or InputError(
            "example inputs are missing" if example_inputs is None else "example inputs are of no use",
            why=f"{type(example_inputs).__name__} is neither a tensor, a tuple of arguments nor a dict of keywords",
            do="pass what one call of the model takes, for example `torch.randn(1, 3, 224, 224)`",
        )
    if any(not isinstance(name, str) for name in kwargs):
        name = next(name for name in kwargs if not isinstance(name, str))
        raise InputError(
            "a dict of example inputs has a key that is no text",
            why=f"{shown(name)} names no argument of forward",
            do="pass a dict of keyword arguments, or (inputs,) where forward takes one dict",
        )
    if any(isinstance(leaf, torch.Tensor) and leaf.is_inference() for leaf in pytree.tree_leaves((args, kwargs))):
        return cast(Inputs, pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs)))  # usual tensors
    return args, kwargs


def bound(model: nn.Module, inputs: Inputs, what: str = "example inputs") -> inspect.BoundArguments:
    """The inputs bound to the signature of forward. Raises `InputError` if they do not fit it.

    what: the name of the inputs in the error.
    """
    signature = inspect.signature(model.forward)
    try:
        return signature.bind(*inputs[0], **inputs[1])
    except TypeError as error:
        given = f"{len(inputs[0])} positional and the keywords {list(inputs[1])}"
        do = "pass a tuple of all positional arguments, or a dict of keyword arguments"
        if inputs[1] and not inputs[1].keys() & signature.parameters.keys():
            do += "; a dict that is one argument stands in a tuple: (inputs,)"
        if len(inputs[0]) > 1 and len(signature.parameters) == 1:
            do += "; a tuple or list that is one argument stands in a tuple: (inputs,)"
        unknown = next((name for name in inputs[1] if name not in signature.parameters), "")
        near = difflib.get_close_matches(unknown, signature.parameters, n=1)
        meant = f' did you mean "{near[0]}" by "{unknown}"?' if near else ""
        raise InputError(
            f"the {what} do not fit {type(model).__name__}.forward{signature}",
            why=f"{error};{meant} the {what} are {given}",
            do=do,
        ) from None


def check_devices(tensors: Tensors, inputs: Inputs) -> None:
    """Raises `InputError` if the model's tensors and the inputs are on more than one device.

    Matrices on the meta device may stand beside vectors, buffers and inputs on the CPU, as large models are built.
    """
    places: dict[torch.device, str] = {}
    for found in tensors.unique:
        places.setdefault(found.tensor.device, f'"{found.name}"')
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, torch.Tensor):
            places.setdefault(leaf.device, "an example input")
    trained = (found.tensor for found in tensors.unique if isinstance(found.tensor, nn.Parameter))
    matrices = {tensor.device.type for tensor in trained if tensor.ndim > 1}
    if matrices == {"meta"} and {device.type for device in places} == {"meta", "cpu"}:
        return
    if len(places) > 1:
        listed = ", ".join(f"{name} on {device}" for device, name in places.items())
        raise InputError("model and inputs are on several devices", why=listed, do="move all to one device first")


_TORCH_AO = "torch.ao.pruning._experimental.pruner."

_WRAPPERS: Mapping[str, tuple[str, str]] = {
    "DataParallel": ("its forward scatters the inputs, and pruned layers would not match", "`model.module`"),
    "DistributedDataParallel": ("its replicas would not match the pruned model", "`model.module`"),
    "FullyShardedDataParallel": ("its parameters are pieces of flat tensors", "the module that was wrapped"),
    "ScriptModule": ("TorchScript runs a forward of its own that cannot be looked into", "the Python model"),
    "OptimizedModule": ("torch.compile holds a program for the old sizes", "the model that was compiled"),
}
"""Name of a class of torch -> why it cannot be pruned, and what to pass instead.

The classes are listed by name, because importing them takes seconds."""


def check_unwrapped(model: nn.Module, *, at: str = "", only: Collection[str] = _WRAPPERS) -> None:
    """Raises `CaptureError` for a model that is wrapped by torch, such as in `DataParallel`.

    at: its place in a larger model. only: the names of the wrappers to look for.
    """
    for kind in type(model).__mro__:
        if kind.__name__ in only and kind.__module__.startswith("torch."):
            why, instead = _WRAPPERS[kind.__name__]
            what = f"{type(model).__name__} wraps the model"
            raise CaptureError(what, at=at, why=why, do=f"pass {instead}, prune, and wrap the result again")


def check_initialised(tensors: Tensors) -> None:
    """Raises `CaptureError` for a model with lazy modules that have not run yet, since their shapes are unknown."""
    lazy = [name for name in tensors.names(PARAMETER) if nn.parameter.is_lazy(tensors[name])]
    if lazy:
        raise CaptureError(
            "the model has lazy modules that were never run",
            at=f'"{lazy[0]}"',
            why="its shape is not known yet",
            do="run the model once on real inputs, then prune it",
        )


def check_plain(model: nn.Module, tensors: Tensors) -> None:
    """Raises `CaptureError` for scripted, compiled or sharded submodules, and for weights that are no plain tensors."""
    for name, module in model.named_modules():
        check_unwrapped(module, at=f'"{name}"', only=("FullyShardedDataParallel",))
        check_sets_modes(module, name)
        if type(module).__name__ == "OptimizedModule" and is_torch(type(module).__module__):
            raise CaptureError(
                "a submodule is compiled",
                at=f'"{name}"',
                why=_WRAPPERS["OptimizedModule"][0],
                do="put its `_orig_mod` in its place, prune, and compile it again",
            )
        if module._compiled_call_impl is not None:
            raise CaptureError(
                "a module is compiled in place",
                at=f'"{name}"' if name else "the model",
                why="`module.compile()` holds a program for the old sizes",
                do="prune before you compile, or set `module._compiled_call_impl = None`",
            )
        if getattr(module, "_packed_params", None) is not None:
            raise CaptureError(
                "a layer is quantised",
                at=f'"{name}"' if name else "the model",
                why=f"{type(module).__name__} has packed weights, whose numbers cannot be cut",
                do="prune first, and quantise the small model",
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                "a submodule is scripted",
                at=f'"{name}"',
                why=f"TorchScript runs a forward of its own for {type(module).__name__}, which cannot be looked into",
                do="put the Python module in its place, prune, and script it again",
            )
    check_plain_tensors(
        (found.name, found.tensor) for found in tensors.unique if found.kind == PARAMETER or not is_sparse(found.tensor)
    )


def check_sets_modes(module: nn.Module, name: str) -> None:
    """Raises `CaptureError` for a module whose `train` does something else than to set the mode, such as a training."""
    train: Any = type(module).train
    if train is nn.Module.train:
        return
    first = next(islice(inspect.signature(train).parameters.values(), 1, None), None)
    if first is not None and first.default is not first.empty and not isinstance(first.default, bool):
        raise CaptureError(
            f"{type(module).__name__} is no model that computes: its train() sets no mode",
            at=f'"{name}"' if name else "the model",
            why=f'the argument of train() is "{first.name}"; a model is looked at in both modes, which would start it',
            do="pass the module inside it that computes (`yolo.model` for a YOLO of ultralytics)",
        )


def check_plain_tensors(named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raises `CaptureError` for a tensor whose numbers cannot be cut: quantised, sparse, sharded."""
    for name, tensor in named:
        kind = kind_of(tensor)
        if kind:
            raise CaptureError(
                "a weight is no plain tensor",
                at=f'"{name}"',
                why=f"it is {kind}, whose numbers cannot be cut",
                do=_made_plain(tensor, kind),
            )


def _made_plain(tensor: torch.Tensor, kind: str) -> str:
    """The advice for a weight of a kind that cannot be cut."""
    if nested_kind(tensor):
        return "hold a padded tensor (`torch.nested.to_padded_tensor(x, 0.0)`), or give it to forward as an input"
    if kind == "DTensor":
        return "use fxprune.transform_ or GradualPruner for a model under fully_shard; else prune before it is sharded"
    return "make it plain first (`dequantize()`, `to_dense()`), prune, and convert again"


def kind_of(tensor: torch.Tensor) -> str:
    """The kind of a tensor that is no plain one: its class (DTensor, torchao), layout or dtype; "" for a plain one."""
    if isinstance(tensor, OnDemand):
        return ""
    if nested_kind(tensor):
        return nested_kind(tensor)
    if tensor.layout is not torch.strided:
        return str(tensor.layout)
    dispatched = (
        type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    )  # DTensor, torchao, fake tensors
    if dispatched or type(tensor.data) not in (torch.Tensor, nn.Parameter):
        return type(tensor.data).__name__
    return str(tensor.dtype) if tensor.is_quantized else ""


def check_unhooked(model: nn.Module) -> None:
    """Raises `CaptureError` for a model that still has the masks and hooks of an eager pruner.

    They have sizes of their own, which the rewrite does not know.
    """
    for name, module in model.named_modules():
        lists: Any = module.parametrizations.values() if is_parametrized(module) else ()
        parts = [*module._forward_hooks.values(), *(p for parametrizations in lists for p in parametrizations)]
        if any(type(p).__module__.startswith(("fxprune.pruner.", _TORCH_AO)) for p in parts):
            raise CaptureError(
                "the model carries the masks and hooks of a pruner",
                at=f'"{name}"',
                why="their sizes follow the masks, not the channels",
                do="pruner.convert(example_inputs), or pass fxprune.pruner.plain(model), with masks=masks_of(model)",
            )


def for_graph(graph: fx.Graph, inputs: Inputs) -> list[Any]:
    """The inputs as one value per placeholder of a graph. Raises `InputError` if they do not fit."""
    return leaves_for_placeholders(graph, inputs) if has_leaves(graph) else for_placeholders(graph, inputs)


def for_placeholders(graph: fx.Graph, inputs: Inputs) -> list[Any]:
    """The inputs as one value per placeholder of a traced graph; missing ones get their default.

    Raises `InputError` if one is missing without a default, and if some are left over.
    """
    args, kwargs = list(inputs[0]), dict(inputs[1])
    values: list[Any] = []
    for node in graph.find_nodes(op="placeholder"):
        name = str(node.target)
        if name.startswith("**"):
            values.append(kwargs)
            kwargs = {}
        elif name.startswith("*"):
            values.append(tuple(args))
            args = []
        elif args:
            values.append(args.pop(0))
        elif name in kwargs:
            values.append(kwargs.pop(name))
        elif node.args:
            values.append(node.args[0])
        else:
            raise InputError(
                f'the model needs an input "{name}"',
                why=f"{len(inputs[0])} positional and keywords {sorted(inputs[1])} were given",
                do="pass a tuple of all positional arguments, or a dict of keyword arguments",
            )
    if args or kwargs:
        names = [str(node.target) for node in graph.find_nodes(op="placeholder")]
        raise InputError(
            "more example inputs than the model takes",
            why=f"{len(args)} positional and keywords {sorted(kwargs)} are left over; the model takes {names}",
            do="pass what one call of the model takes",
        )
    return values


def has_leaves(graph: fx.Graph) -> bool:
    """True if a graph has a placeholder for each tensor inside its arguments, as exported graphs do."""
    return isinstance(graph._codegen, _PyTreeCodeGen)


def as_exported(graph: fx.Graph, inputs: Inputs) -> Inputs:
    """The inputs of an exported graph, by position and by keyword as when it was exported.

    Raises `InputError` if they are not those of the export.
    """
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
    spec = info.in_spec
    if len(spec.children()) != 2 or spec.child(1).type is not dict:
        return tuple(values), {}
    positional = spec.child(0).num_children
    return tuple(values[:positional]), dict(zip(spec.child(1).context, values[positional:], strict=True))


def leaves_for_placeholders(graph: fx.Graph, inputs: Inputs) -> list[Any]:
    """The inputs as one value per placeholder of an exported graph: the leaves of its nested arguments.

    Raises `InputError` if the arguments or their nesting are not those of the export.
    """
    leaves, have = pytree.tree_flatten(as_exported(graph, inputs))
    if len(leaves) != len(graph.find_nodes(op="placeholder")):
        raise InputError(
            "the inputs are nested otherwise than when the graph was exported",
            why=f"expected {graph._codegen.pytree_info.in_spec}, got {have}",  # type: ignore[attr-defined]
            do="pass inputs of the same structure",
        )
    return leaves
