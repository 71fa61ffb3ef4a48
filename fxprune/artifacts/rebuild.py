"""A plan carried out without an analysis: tensors are cut, and attributes of modules are set.

That is enough for most saved models, and needs no example inputs; `needs_inputs` says for which plans it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules import batchnorm, conv

from fxprune.analysis.folded_constants import FoldedConstants, bias_name
from fxprune.capture.containers import with_parts
from fxprune.capture.held_objects import held_by, redirect
from fxprune.channels.groups import Removal
from fxprune.depth.carry_out import without_dropped
from fxprune.errors import PlanError
from fxprune.ops.module_use import Use
from fxprune.paths import PATHS
from fxprune.planning.combine import kept_flags
from fxprune.planning.plan import Plan
from fxprune.planning.sizes import Size
from fxprune.planning.structure import Structure, shapes_of_model
from fxprune.rewrite.constants import place_constants
from fxprune.rewrite.derived import number_of_class, numbers, numbers_or_none, set_number
from fxprune.rewrite.draft import draft_of
from fxprune.rewrite.modules import recount
from fxprune.rewrite.recurrent import refresh
from fxprune.rewrite.tensors import cut, like

_COUNTED = (conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.PReLU, batchnorm._BatchNorm)
"""Layers whose attributes (such as `out_features`) follow from the shapes of their own tensors."""


def needs_inputs(plan: Plan) -> str:
    """Returns why a plan cannot be carried out without an analysis; "" if it can."""
    if plan.path not in PATHS or PATHS[plan.path].without_inputs is None:
        return f'the model was made by "{plan.path}"'
    other = next((size for size in plan.sizes if size.kind != "attribute"), None)
    if other is None:
        return ""
    what = (
        "the class of a layer changes" if other.kind == "class" else "a size changes that is no attribute of a module"
    )
    return f"{what} ({other})"


def rebuild(
    model: nn.Module, plan: Plan, source: str, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> nn.Module:
    """Returns the small model that a plan makes of `model`, with the kept part of its weights.

    Args:
        model: the original; it may be changed.
        plan: the plan, with `needs_inputs(plan) == ""`.
        source: the file of the plan, for messages.
        shapes: name of a tensor -> its shape in the file, for biases and maps that the plan adds; they are zeros here.

    Raises `PlanError` if the plan is for another model, or if a size in the model differs from the one in the plan.
    """
    path = PATHS[plan.path]
    assert path.without_inputs is not None
    if isinstance(model, fx.GraphModule) and not path.takes_graphs:
        raise PlanError(f"{source} holds a model that kept its class", why="into is a graph", do="pass the module")
    model = without_dropped(model, plan.dropped) if plan.dropped else model
    _check_model(model, plan)
    captured = path.without_inputs(model)
    whole = captured.module
    tensors: dict[int, torch.Tensor] = {}
    for name, tensor in [
        *whole.named_parameters(remove_duplicate=False),
        *whole.named_buffers(remove_duplicate=False),
    ]:
        if id(tensor) not in tensors:
            tensors[id(tensor)] = like(tensor, cut(tensor.detach(), kept_flags(plan, name, tensor.shape)))
    draft = draft_of(captured, tensors)
    small, nodes = draft.module, {node.name for node in draft.before.values()}
    place_constants(draft, _zero_constants(small, nodes, plan, source, shapes or {}))
    for size in plan.sizes:
        _set_size(small, size, source)
    _check_counts(small, source)
    for module in small.modules():
        refresh(module)
    if isinstance(small, fx.GraphModule):
        small.graph.lint()
        small.recompile()
    return small


def _zero_constants(
    small: nn.Module, nodes: Set[str], plan: Plan, source: str, shapes: Mapping[str, tuple[int, ...]]
) -> FoldedConstants:
    """Returns zeros for every bias and map that the plan adds."""
    modules = dict(small.named_modules())
    for place in (*plan.biases, *(f"%{node}" for node in plan.maps)):
        name = f"{place[1:]}_map" if place[1:] in plan.maps and place.startswith("%") else bias_name(place)
        layer = modules.get(place)
        fits = place[1:] in nodes if place.startswith("%") else getattr(layer, "bias", place) is None
        if not fits or name not in shapes:
            raise PlanError(
                f"{source} is not what it should be",
                at=f'"{place}", which takes constants up',
                why="there is no such place without a bias in this model" if not fits else f'there is no "{name}"',
                do="load into the architecture that the plan was made for",
            )
    biases = {place: torch.zeros(shapes[bias_name(place)]) for place in plan.biases}
    return FoldedConstants({}, biases, {node: torch.zeros(shapes[f"{node}_map"]) for node in plan.maps})


def _check_model(model: nn.Module, plan: Plan) -> None:
    assert plan.structure is not None
    shapes = shapes_of_model(model)
    buffers = {name: tuple(b.shape) for name, b in model.named_buffers(remove_duplicate=False)}
    shapes |= {name: buffers[name] for name in plan.structure.outside if name in plan.removed and name in buffers}
    there, here = plan.structure.difference(Structure(shapes))
    if there:
        raise PlanError(
            f"the plan is for another model: where it was made {there}",
            why=f"in this model {here}",
            do="load into the original architecture, not into the small one or one of another class",
        )


def _set_size(small: nn.Module, size: Size, source: str) -> None:
    """Sets an attribute to its new value. Raises `PlanError` unless it exists and has the old value."""
    found = dict(small.named_modules()).get(size.at)
    had = {} if found is None else numbers_or_none(found)
    if found is not None and size.name not in had and (value := number_of_class(found, size.name)) is not None:
        had[size.name] = value
    have, exists = had.get(size.name), size.name in had
    if found is None or not exists or _as_list(have) != size.old or not _same_kind(size.old, size.new):
        now = "there is no such number" if not exists else f"it is {have}"
        raise PlanError(
            f"{source} is not what it should be",
            at=f"size {size}",
            why=f"{now} in this model; a number becomes one of its kind",
            do="load into the architecture that the plan was made for",
        )
    new = with_parts(have, dict(enumerate(size.new))) if isinstance(have, tuple) else size.new
    set_number(found, size.name, new)


def _same_kind(old: Any, new: Any) -> bool:
    """True if two values are numbers of one type, or lists of equal length with numbers of equal types."""
    if isinstance(old, list) or isinstance(new, list):
        return isinstance(old, list) and isinstance(new, list) and list(map(type, old)) == list(map(type, new))
    return old is None or type(old) is type(new)


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_counts(small: nn.Module, source: str) -> None:
    """Raises `PlanError` if an attribute of a layer does not fit the layer's own tensors."""
    use = Use(_NO_REMOVAL)
    for path, module in small.named_modules():
        if isinstance(module, _COUNTED):
            before = numbers(module)
            recount(module, use)
            for name, value in numbers(module).items():
                if value != before[name]:
                    why = f"the tensors of the layer count {value}"
                    raise PlanError(
                        f"{source} contradicts itself",
                        at=f"{path}.{name} = {before[name]}",
                        why=why,
                        do="save the small model again",
                    )


_NO_REMOVAL: Removal = None  # type: ignore[assignment]  # no layer of `_COUNTED` needs the removal


def check_sizes(small: nn.Module, plan: Plan, source: str) -> None:
    """Raises `PlanError` if an attribute of a rewritten model differs from its new value in the plan.

    Floats (an epsilon) may differ by a rounding error, and are set to the value in the plan.
    """
    modules = dict(small.named_modules())
    for size in plan.sizes:
        if size.kind != "attribute":
            continue
        module = modules.get(size.at)
        have = None if module is None else numbers(module).get(size.name)
        if module is not None and type(have) is type(size.new) is float and math.isclose(have, size.new, rel_tol=1e-9):
            set_number(module, size.name, size.new)
        elif module is None or _as_list(have) != size.new:
            raise PlanError(
                f"{source} is not what it should be",
                at=f"size {size}",
                why=f"a rewrite of this model by the plan gives {have}",
                do="load into the architecture that the plan was made for",
            )


def replace_tensors(small: nn.Module, values: Mapping[int, torch.Tensor]) -> None:
    """Replaces tensors of a model, in place, on their devices; parameters stay parameters.

    values: id of a tensor of the model -> its new values.
    """
    made: dict[int, torch.Tensor] = {}
    keep = list(held_by(small))  # keeps replaced tensors alive, so that no id is used again
    for old in keep:
        if isinstance(old, torch.Tensor) and id(old) in values:
            device = "cpu" if old.device.type == "meta" else old.device
            made[id(old)] = like(old, values[id(old)].to(device))
    redirect(small, made)
    for module in small.modules():
        refresh(module)
