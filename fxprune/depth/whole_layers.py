"""Layers that go whole, with what stands behind their additions: the norms of BERT, for example.

Without its branches such a layer still normalises. A config cannot say that, it only counts layers. So with
uniform="config" the layers of a list that are named go whole, and what they were given is passed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fxprune.depth.branches import Branch, within
from fxprune.depth.dropped import ARGUMENT, IDENTITY, PASSES, Dropped, Replacement
from fxprune.depth.flow import Flow, ModuleCall
from fxprune.depth.replacing import is_simple, replacements
from fxprune.depth.select import entries_of_lists
from fxprune.errors import PlanError


def whole_layers(
    model: nn.Module, flows: Sequence[Flow], branches: Sequence[Branch], patterns: Any
) -> tuple[Dropped, ...]:
    """The layers among those that patterns name that do more than pass their input on without their branches.

    branches: those that the patterns name. Raises `PlanError` for a layer that cannot go whole.
    """
    found = []
    for path in entries_of_lists(model, patterns):
        own = [branch for branch in branches if all(within(layer, path) for layer in branch.layers)]
        if own and not any(r.path == path for r in replacements(model, flows, own, blocks=True, plain=True)):
            found.append(_dropped(model, flows, path))
    return tuple(found)


def beside_layers(branches: Sequence[Branch], layers: Sequence[Dropped]) -> list[Branch]:
    """The branches that are not in these layers."""
    return [one for one in branches if not any(within(layer, d.name) for d in layers for layer in one.layers)]


def _dropped(model: nn.Module, flows: Sequence[Flow], path: str) -> Dropped:
    made = [_replacement(flow, call) for flow in flows for call in flow.calls if call.path == path]
    if not made or any(one != made[0] for one in made):
        raise PlanError(
            "the layer cannot go whole",
            at=f'"{path}"',
            why="it is not called" if not made else "it is called in several ways",
            do='leave out uniform="config", or this layer of drop',
        )
    layer = model.get_submodule(path)
    tensors = (*layer.named_parameters(prefix=path), *layer.named_buffers(prefix=path))
    return Dropped(path, path, (made[0],), {name: tuple(tensor.shape) for name, tensor in tensors})


def _replacement(flow: Flow, call: ModuleCall) -> Replacement:
    """The module that gives on the first floating tensor that a layer was given, and the other arguments it returns."""
    source = next((key for key, (_, floating) in call.arguments.items() if floating), None)
    if source is None:
        raise PlanError(
            "the layer cannot go whole", at=f'"{call.path}"', why="it is given no tensor", do="leave it out"
        )
    if is_simple(call):
        return Replacement(call.path, IDENTITY)
    keys = {value: key for key, (value, _) in call.arguments.items()}
    inside = {number for number, one in enumerate(flow.operations) if call.number in one.calls}
    read = {v for number, one in enumerate(flow.operations) if number not in inside for v in one.reads}
    first = [True]
    return Replacement(
        call.path, PASSES, source=source, form=_form(call, call.form, keys, {*read, *flow.results}, first)
    )


def _form(call: ModuleCall, form: Any, keys: Mapping[int, int | str], read: set[int], first: list[bool]) -> Any:
    """The form of the result: the first tensor is what is passed on. first: [True] until it has been met."""
    if isinstance(form, list):
        return tuple(_form(call, part, keys, read, first) for part in form)
    if form is not None and first[0]:
        first[0] = False
        return 0
    if form in keys:
        return (ARGUMENT, keys[form])
    if form in read:
        raise PlanError(
            "the layer cannot go whole",
            at=f'"{call.path}"',
            why="it returns more than one tensor that it has computed, and that is read",
            do='leave out uniform="config", or this layer of drop',
        )
    return None
