"""A plan carried out without an analysis: tensors are cut, attributes set. A plan that needs more is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules import batchnorm, conv

from fxprune.analysis.folded_constants import FoldedConstants, bias_name
from fxprune.channels.groups import Bools, Removal
from fxprune.errors import PlanError
from fxprune.ops.module_use import Use
from fxprune.paths import PATHS
from fxprune.planning.plan import Plan
from fxprune.planning.sizes import Size
from fxprune.planning.structure import Structure, shapes_of_model
from fxprune.rewrite.constants import place_constants
from fxprune.rewrite.derived import numbers
from fxprune.rewrite.draft import draft_of
from fxprune.rewrite.modules import recount
from fxprune.rewrite.recurrent import refresh
from fxprune.rewrite.tensors import cut, like

_COUNTED = (conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.PReLU, batchnorm._BatchNorm)
"""Layers whose counts follow from their own tensors."""


def needs_inputs(plan: Plan) -> str:
    """The part of a plan that cannot be carried out without an analysis; "" where there is none."""
    if plan.path not in PATHS or PATHS[plan.path].without_inputs is None:
        return f'the model was made by "{plan.path}"'
    other = next((size for size in plan.sizes if size.kind != "attribute"), None)
    return "" if other is None else f"a size changes that is no attribute of a module ({other})"


def replay(model: nn.Module, plan: Plan, source: str, shapes: Mapping[str, tuple[int, ...]] | None = None) -> nn.Module:
    """The small model, with the kept part of the weights of `model`, which may be used up for it.

    shapes: of the tensors that will be filled in; biases and maps that the plan makes begin as zeros.

    Raises `PlanError` where the plan is for another model, or what it says of a size is not so.
    """
    path = PATHS[plan.path]
    assert path.without_inputs is not None
    if isinstance(model, fx.GraphModule) and not path.takes_graphs:
        raise PlanError(f"{source} holds a model that kept its class", why="into is a graph", do="pass the module")
    _refuse_other_model(model, plan)
    captured = path.without_inputs(model)
    whole = captured.module
    tensors: dict[int, torch.Tensor] = {}
    for name, tensor in [
        *whole.named_parameters(remove_duplicate=False),
        *whole.named_buffers(remove_duplicate=False),
    ]:
        if id(tensor) not in tensors:
            tensors[id(tensor)] = like(tensor, cut(tensor.detach(), _kept(plan, name, tensor)))
    draft = draft_of(captured, tensors)
    small, nodes = draft.module, {node.name for node in draft.before.values()}
    place_constants(draft, _constants(small, nodes, plan, source, shapes or {}))
    for size in plan.sizes:
        _set(small, size, source)
    _refuse_miscounted(small, source)
    for module in small.modules():
        refresh(module)
    if isinstance(small, fx.GraphModule):
        small.graph.lint()
        small.recompile()
    return small


def _constants(
    small: nn.Module, nodes: Set[str], plan: Plan, source: str, shapes: Mapping[str, tuple[int, ...]]
) -> FoldedConstants:
    """Zeros for every bias and map that the plan makes."""
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


def _refuse_other_model(model: nn.Module, plan: Plan) -> None:
    assert plan.structure is not None
    shapes = shapes_of_model(model)
    buffers = {name: tuple(b.shape) for name, b in model.named_buffers(remove_duplicate=False)}
    shapes |= {name: buffers[name] for name in plan.structure.outside if name in plan.removed and name in buffers}
    there, here = plan.structure.difference(Structure(shapes))
    if there:
        raise PlanError(
            f"the plan is for another model: where it was made {there}",
            why=f"in this model {here}",
            do="load into the original architecture, not into the small one",
        )


def _kept(plan: Plan, name: str, tensor: torch.Tensor) -> dict[int, Bools]:
    kept = {}
    for dim, indices in plan.removed.get(name, {}).items():
        kept[dim] = np.ones(tensor.shape[dim], dtype=bool)
        kept[dim][indices] = False
    return kept


def _set(small: nn.Module, size: Size, source: str) -> None:
    """Give an attribute its new value, if it exists and has the old one."""
    found = dict(small.named_modules()).get(size.at)
    have = found.__dict__.get(size.name) if found is not None else None
    exists = found is not None and (size.name in numbers(found) or (size.name in found.__dict__ and have is None))
    if found is None or not exists or _plain(have) != size.old or not _alike(size.old, size.new):
        now = "there is no such number" if not exists else f"it is {have}"
        raise PlanError(
            f"{source} is not what it should be",
            at=f"size {size}",
            why=f"{now} in this model; a number becomes one of its kind",
            do="load into the architecture that the plan was made for",
        )
    setattr(found, size.name, tuple(size.new) if isinstance(have, tuple) else size.new)


def _alike(old: Any, new: Any) -> bool:
    """True if two values are numbers of one type, or lists of them of one length."""
    if isinstance(old, list) or isinstance(new, list):
        return isinstance(old, list) and isinstance(new, list) and list(map(type, old)) == list(map(type, new))
    return old is None or type(old) is type(new)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _refuse_miscounted(small: nn.Module, source: str) -> None:
    """A count that is not that of the layer's own weight."""
    use = Use(_NONE)
    for path, module in small.named_modules():
        if isinstance(module, _COUNTED):
            before = numbers(module)
            recount(module, use)
            for name, value in numbers(module).items():
                if value != before[name]:
                    why = f"the tensors of the layer count {value}"
                    raise PlanError(f"{source} contradicts itself", at=f"{path}.{name} = {before[name]}", why=why)


_NONE: Removal = None  # type: ignore[assignment]  # no layer of `_COUNTED` asks what was removed


def refuse_other_sizes(small: nn.Module, plan: Plan, source: str) -> None:
    """Raise `PlanError` where an attribute of a rewritten model is not what the plan says that it has become.

    Numbers that are no counts (an epsilon) may differ by a rounding, and are set to what the plan says.
    """
    modules = dict(small.named_modules())
    for size in plan.sizes:
        if size.kind != "attribute":
            continue
        module = modules.get(size.at)
        have = None if module is None else numbers(module).get(size.name)
        if module is not None and type(have) is type(size.new) is float and math.isclose(have, size.new, rel_tol=1e-9):
            setattr(module, size.name, size.new)
        elif module is None or _plain(have) != size.new:
            raise PlanError(
                f"{source} is not what it should be",
                at=f"size {size}",
                why=f"a rewrite of this model by the plan gives {have}",
                do="load into the architecture that the plan was made for",
            )


def put_in_place(small: nn.Module, values: Mapping[int, torch.Tensor]) -> None:
    """Put tensors where those with these ids stand: as parameters where they were some, on their devices."""
    made: dict[int, torch.Tensor] = {}

    def new(old: torch.Tensor) -> torch.Tensor:
        if id(old) not in made:
            device = "cpu" if old.device.type == "meta" else old.device
            made[id(old)] = like(old, values[id(old)].to(device))
        return made[id(old)]

    keep = []  # so that no address is used twice while the old ones go
    for module in small.modules():
        places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
        for place in places:
            for name, value in place.items():
                if isinstance(value, torch.Tensor) and id(value) in values:
                    keep.append(value)
                    place[name] = new(value)
        refresh(module)
