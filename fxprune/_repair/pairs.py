"""The layers of the small model and what the original says about each: its outputs that are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxprune._repair.products import double
from fxprune._repair.watch import LayerKey, Parameters, ProductCall, ProductLayer, Survey
from fxprune.planning.factors import Factor
from fxprune.planning.plan import Plan

Models = tuple[Parameters, Parameters]
"""The parameters of the small model and of the original."""


@dataclass(frozen=True)
class LayerPair:
    """A layer of the small model that can be refitted.

    small, original: what the two models do with it. kept: the kept output channels among the original's. blocks: the
    kept blocks of a stack of matrices, None for all. factor: what a plan multiplies the outputs with, [o], None for 1.
    weighted: True if each row counts by its own length.
    """

    small: ProductLayer
    original: ProductLayer
    kept: Tensor
    blocks: Tensor | None
    factor: Tensor | None
    weighted: bool

    @property
    def key(self) -> LayerKey:
        """The name of the layer."""
        return self.small.key

    @property
    def shifted(self) -> bool:
        """True if an offset can be added to the outputs."""
        return self.small.bias is not None or self.small.mean is not None

    def wanted(self, call: ProductCall, parameters: Parameters) -> Tensor:
        """The kept outputs of one call in the original, with the bias that a later operation adds."""
        assert call.y is not None
        y, dim = double(call.y), call.product.form.out[1]
        if self.original.added and self.original.bias is not None:
            name, start = self.original.bias
            y = y + _along(double(parameters.tensors[name])[start : start + y.shape[dim]], dim)
        size = self.original.place.stop - self.original.place.start  # of one group, if the convolution is transposed
        groups = torch.arange(0, y.shape[dim], size) if y.shape[dim] % size == 0 else torch.zeros(1, dtype=torch.long)
        y = y.index_select(dim, (groups[:, None] + self.kept).flatten().to(y.device))
        if self.blocks is not None:
            y = y.index_select(0, self.blocks.to(y.device))
        return y if self.factor is None else y * _along(self.factor.to(y.device).repeat(len(groups)), dim)


def _along(values: Tensor, dim: int) -> Tensor:
    """Values along a dimension that is counted from the last one."""
    return values.view(-1, *(1,) * (-1 - dim))


@dataclass
class Layers:
    """The layers that can be refitted, in the order of the run, and why others cannot be.

    pairs: by key. left: name of a parameter -> why it stays as it is.
    """

    pairs: dict[LayerKey, LayerPair] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def layers_of(
    small: Survey,
    original: Survey,
    plan: Plan,
    models: Models,
) -> Layers:
    """The layers of the small model that multiply with the same parameter as a layer of the original.

    plan: the plan that made the small model.
    """
    found = Layers()
    shared = _shared(small)
    for key, layer in small.layers.items():
        why = _why_not(layer, original.layers.get(key), small, shared, models)
        pair = None if why else _pair(layer, original.layers[key], plan, models)
        if isinstance(pair, LayerPair):
            found.pairs[key] = pair
        else:
            found.left.setdefault(key[0], why or str(pair))
    return found


def _shared(small: Survey) -> set[str]:
    """The biases and running means that several layers use."""
    used = [name for layer in small.layers.values() for name in (layer.bias and layer.bias[0], layer.mean) if name]
    names = {layer.key[0] for layer in small.layers.values()}
    blocks = {layer.bias[0] for layer in small.layers.values() if layer.bias and (layer.bias[1] or layer.place.start)}
    return {name for name in used if used.count(name) > 1 and name not in blocks} | {n for n in used if n in names}


def _why_not(
    layer: ProductLayer,
    other: ProductLayer | None,
    small: Survey,
    shared: set[str],
    models: Models,
) -> str:
    """Why a layer cannot be refitted, "" if nothing is known."""
    name = layer.key[0]
    if other is None:
        return "the original does not use it in such an operation"
    if layer.calls != other.calls:
        return f"the small model calls it {layer.calls} times, the original {other.calls} times"
    if name in small.elsewhere:
        return f"it is used elsewhere too: {small.elsewhere[name]}"
    for part in (layer.bias and layer.bias[0], layer.mean):
        if part in shared:
            return f'"{part}" belongs to other layers too'
    if (layer.bias is None) != (other.bias is None):
        return "only one of the two models adds a bias"
    return "" if models[0].tensors[name].is_floating_point() else "its numbers are no real numbers"


def _pair(
    layer: ProductLayer,
    other: ProductLayer,
    plan: Plan,
    models: Models,
) -> LayerPair | str:
    """The pair of two layers, or why their outputs do not belong together."""
    name = other.place.name
    gone = plan.removed.get(name, {})
    slots = _kept(models[1].tensors[name].shape[other.place.dim], gone.get(other.place.dim, ()))
    kept = slots[(slots >= other.place.start) & (slots < other.place.stop)] - other.place.start
    if len(kept) != layer.place.stop - layer.place.start:
        return "its outputs are not those of the original, less the removed ones"
    blocks = None
    if other.stacked and 0 in gone:
        blocks = _kept(models[1].tensors[name].shape[0], gone[0])
    factor = _factor(other, slots[(slots >= other.place.start) & (slots < other.place.stop)], plan.factors)
    if isinstance(factor, str):
        return factor
    return LayerPair(layer, other, kept, blocks, factor, layer.rows_normed)


def _kept(size: int, gone: Iterable[int]) -> Tensor:
    stays = torch.ones(size, dtype=torch.bool)
    stays[list(gone)] = False
    return torch.nonzero(stays).flatten()


def _factor(layer: ProductLayer, kept: Tensor, factors: Iterable[Factor]) -> Tensor | str | None:
    """The factor of each kept output; None if all are 1; a text if it cannot be told."""
    made, found = torch.ones(layer.place.stop, dtype=torch.float64), False
    for factor in factors:
        if factor.tensor != layer.place.name:
            continue
        if factor.slots is not None and factor.dim != layer.place.dim:
            return "the plan multiplies some of its inputs with a factor"
        index = slice(None) if factor.slots is None else [slot for slot in factor.slots if slot < layer.place.stop]
        made[index] *= factor.factor
        found = True
    return made[kept] if found else None
