"""Graphs that were made with other arguments than those of a call: they compute with the ones, and lack the others."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import fx, nn

from fxprune.capture.inputs import Inputs, bound, has_leaves
from fxprune.errors import InputError

_PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def other_arguments(small: nn.Module, model: nn.Module, inputs: Inputs) -> InputError | None:
    """The error for a small graph that was made with other optional arguments than these inputs have.

    model: the original, whose forward the inputs are for. Returns None for any other small model.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    if not isinstance(small, fx.GraphModule) or any(parameter.kind not in _PLAIN for parameter in parameters):
        return None
    given = {name for name, value in bound(model, inputs).arguments.items() if value is not None}
    known = [parameter.name for parameter in parameters]
    read, without = _read(small), _without(small, known)
    missing = [name for name in known if name in read and name not in given]
    more = [name for name in known if name in without and name in given]
    if not read <= {*known} or not (missing or more):
        return None
    parts = [f"made with {_listed(missing)}, which these inputs lack"] if missing else []
    parts += [f"made without {_listed(more)}"] if more else []
    return InputError(
        "the small model is a graph that was made with other arguments",
        why=f"it was {' and '.join(parts)}; a graph has the one way through forward that it was made with",
        do='pass the arguments that transform got, or make the small model with prefer="class", which takes both',
    )


def _read(graph: fx.GraphModule) -> set[str]:
    """The names of the arguments that a graph computes with."""
    if has_leaves(graph.graph):
        return set(inspect.signature(graph.forward).parameters)
    return {
        str(node.target)
        for node in graph.graph.find_nodes(op="placeholder")
        if any(not _asserts(user) for user in node.users)
    }


def _without(graph: fx.GraphModule, known: Sequence[str]) -> set[str]:
    """The names of the arguments that a graph was made without."""
    if has_leaves(graph.graph):
        return {*known} - _read(graph)
    placeholders = graph.graph.find_nodes(op="placeholder")
    return {str(node.target) for node in placeholders if node.users and all(map(_asserts, node.users))}


def _asserts(node: fx.Node) -> bool:
    """True if a node checks that an argument is left out: it, or all that reads it, asserts so."""
    name = getattr(node.target, "__name__", "")
    return name in ("_assert", "_assert_is_none") or (name == "eq" and all(map(_asserts, node.users)))


def _listed(names: list[str]) -> str:
    return " and ".join(f'"{name}"' for name in names)
