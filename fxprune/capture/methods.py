"""Other methods of a model than forward: reading the argument `methods`, and calling them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxprune.capture.code import is_torch
from fxprune.capture.inputs import Inputs, arguments_of
from fxprune.capture.process_state import in_module
from fxprune.errors import InputError, nearest


@dataclass(frozen=True, eq=False)
class MethodCall:
    """A call of a method. name: its name behind the path of its module, "encoder.encode_only"."""

    name: str
    inputs: Inputs


def method_calls(model: nn.Module, methods: Mapping[str, Any] | None) -> tuple[MethodCall, ...]:
    """The calls that the argument `methods` asks for: name of a method -> example inputs of one call.

    Raises `InputError` for a name that is no method of the model or of a submodule, for inputs that do not fit it, and
    for a model that is a graph.
    """
    if methods and isinstance(model, fx.GraphModule):
        raise InputError(
            "methods: the model is a graph",
            why=f"a graph is forward alone, and has no {next(iter(methods))}",
            do="leave out `methods`, or pass the module that the graph was made from",
        )
    return tuple(_checked(model, name, given) for name, given in (methods or {}).items())


def call_method(model: nn.Module, name: str, inputs: Inputs) -> Any:
    """The result of a method. For the observers of modules it is a call of the module that the method belongs to."""
    module, method = _found(model, name)
    if is_torch(type(module).__module__):  # such a module is known by what its forward computes
        return method(*inputs[0], **inputs[1])
    return in_module(module, method, inputs)


def _found(model: nn.Module, name: str) -> tuple[nn.Module, Any]:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    return module, getattr(module, leaf)


def _checked(model: nn.Module, name: str, given: Any) -> MethodCall:
    path, _, leaf = name.rpartition(".")
    modules = dict(model.named_modules(remove_duplicate=False))
    if path not in modules:
        raise InputError(
            f'methods: there is no module "{path}"',
            at=name,
            why=nearest(path, filter(None, modules)),
            do='name a method as "path.of.module.method"',
        )
    module = modules[path]
    kind = type(module).__name__
    if name == "forward":
        raise InputError(
            "methods: forward is observed in any case",
            why="its inputs are the example inputs",
            do="give further inputs of forward with `also`",
        )
    if name in modules:
        do = f'name the method of it that is called, "{name}.forward"'
        raise InputError("methods: this is a module, no method", at=name, do=do)
    is_property = isinstance(inspect.getattr_static(module, leaf, None), property)
    if is_property or not callable(getattr(module, leaf, None)):
        raise InputError(
            f'methods: {kind} has no method "{leaf}"',
            at=name,
            why=nearest(leaf, _methods(module)),
            do="name a method of that class",
        )
    if leaf != "forward" and getattr(type(module), leaf, None) is getattr(nn.Module, leaf, type):
        raise InputError(
            "methods: this is a method of every module, and computes nothing",
            at=name,
            do="name a method that computes with tensors",
        )
    return MethodCall(name, _bound(getattr(module, leaf), name, given))


def _bound(method: Any, name: str, given: Any) -> Inputs:
    """The inputs of a method. Raises `InputError` if they do not fit its signature."""
    try:
        inputs = arguments_of(given)
    except InputError as error:
        one = isinstance(given, (int, float, str, bool)) or given is None
        do = f"pass a tuple of the arguments of one call: `({given!r},)`" if one else error.do
        raise InputError(f"methods: the inputs of {name} are of no use", why=error.why, do=do) from None
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # it is not written in Python
        return inputs
    try:
        signature.bind(*inputs[0], **inputs[1])
    except TypeError as error:
        raise InputError(
            f"methods: the inputs do not fit {name}{signature}",
            why=f"{error}; they are {len(inputs[0])} positional and the keywords {list(inputs[1])}",
            do="pass a tuple of all positional arguments, or a dict of keyword arguments",
        ) from None
    return inputs


def _methods(module: nn.Module) -> list[str]:
    """The names of the methods of a module that torch does not define."""
    names = (name for kind in type(module).__mro__ if not is_torch(kind.__module__) for name in vars(kind))
    return [name for name in dict.fromkeys(names) if not name.startswith("__") and callable(getattr(module, name, 0))]
