"""Calls without an argument that has no default: each public function and method says which it needs."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune import criteria, plot, pruner, regularizers, sparse
from fxprune.errors import MissingArgumentError

OF_SUBCLASSES = {"forward", "scores", "update_mask", "moved_to", "on", "observe", "advance", "of_groups"}
"""Methods that torch or this package calls, and users write."""

PARTS = {
    "known_structure",
    "each",
    "refuse_lost",
    "curve",
    "order",
    "parts",
    "replace",
    "add",
    "discard",
    "set_mask",
    "kept",
}
"""Methods for other parts of the package."""


def needed(function: Callable[..., Any]) -> list[str]:
    """The arguments of a function without a default."""
    own = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    return [p.name for p in own if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def methods(name: str, kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public methods of a class as functions that take no `self`."""
    for owner in kind.__mro__:
        for method, value in vars(owner).items() if owner.__module__.startswith("fxprune") else ():
            if method.startswith("_") or method in OF_SUBCLASSES | PARTS:
                continue
            if isinstance(value, classmethod | staticmethod):
                yield f"{name}.{method}", getattr(kind, method)
            elif isinstance(value, types.FunctionType):
                yield f"{name}.{method}", types.MethodType(value, object())


def public() -> dict[str, Callable[..., Any]]:
    """The public functions and methods that need an argument."""
    found: dict[str, Callable[..., Any]] = {}
    for module in (fxprune, criteria, plot, pruner, regularizers, sparse):
        for name in getattr(module, "__all__", ("dependencies", "widths")):
            value, shown = getattr(module, name), f"{module.__name__}.{name}"
            if isinstance(value, types.FunctionType):
                found[shown] = value
            elif isinstance(value, type) and not issubclass(value, BaseException):
                found |= dict(methods(shown, value))
    return {name: function for name, function in found.items() if needed(function)}


@pytest.mark.parametrize("name", public())
def test_a_missing_argument_is_named(name):
    function = public()[name]
    with pytest.raises(MissingArgumentError) as caught:
        function()
    assert all(f"'{argument}'" in str(caught.value) for argument in needed(function))
    assert "\n  do   call " in str(caught.value)


@pytest.mark.parametrize("function", [fxprune.analyze, fxprune.trace, fxprune.cost, fxprune.transform_])
def test_a_model_alone_lacks_its_example_inputs(function):
    with pytest.raises(MissingArgumentError, match="is missing the argument 'example_inputs'"):
        function(nn.Linear(2, 2))


@pytest.mark.parametrize("kind", [regularizers.L1, sparse.MaskedLinear, sparse.DynamicSurgery])
def test_a_constructor_tells_what_it_lacks(kind):
    with pytest.raises(MissingArgumentError, match=rf"^{kind.__name__}\(\) is missing the argument"):
        kind()
    with pytest.raises(fxprune.errors.UnknownArgumentError, match=rf"^{kind.__name__}\(\) got an unexpected"):
        kind(other=torch.ones(1))


def test_an_argument_that_is_given_twice_is_named():
    model, x = nn.Linear(2, 2), torch.ones(1, 2)
    with pytest.raises(fxprune.errors.UnknownArgumentError) as caught:
        fxprune.export(model, x, path="model.onnx")
    text = str(caught.value)
    assert text.startswith("export() got the argument 'path' twice, by position and by name")
    assert "\n  why  the second argument by position is 'path'" in text
    assert "\n  do   call export(model, path, example_inputs), or write the names: " in text
    assert text.endswith("export(model, path=..., example_inputs=...)")
    with pytest.raises(TypeError, match=r"MaskedLinear\(\) got the argument 'in_features' twice"):
        sparse.MaskedLinear(2, 2, in_features=3)
