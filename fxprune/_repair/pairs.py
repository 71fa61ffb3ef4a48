"""The layers of the small model and what the original says about each: its outputs that are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fxprune._repair.survey import ProductLayer, Survey
from fxprune.capture.tensors import Tensors
from fxprune.planning.factors import Factor
from fxprune.planning.plan import Plan
from fxprune.running.products import double
from fxprune.running.watch import LayerKey, Parameters, ProductCall

Models = tuple[Parameters, Parameters]
"""The parameters of the small model and of the original."""


@dataclass(frozen=True)
class LayerPair:
    """A layer of the small model that can be refitted.

    small, original: what the two models do with it. kept: the kept output channels among the original's. blocks: the
    kept blocks of a stack of matrices, None for all. factor: what a plan multiplies the outputs with, [o], None for 1.
    weighted: True if each row counts by its own length. mean: the name of the running mean that takes an offset.
    """

    small: ProductLayer
    original: ProductLayer
    kept: Tensor
    blocks: Tensor | None
    factor: Tensor | None
    weighted: bool
    mean: str | None = None

    @property
    def key(self) -> LayerKey:
        """The name of the layer."""
        return self.small.key

    @property
    def shifted(self) -> bool:
        """True if an offset can be added to the outputs."""
        return self.small.bias is not None or self.mean is not None

    def wanted(self, call: ProductCall, parameters: Parameters) -> Tensor:
        """The kept outputs of one call in the original, with the bias that a later operation adds."""
        assert call.y is not None
        y, dim = double(call.y), call.product.form.out[1]
        if self.original.added and self.original.bias is not None:
            name, start = self.original.bias
            y = y + _along(double(parameters.tensors[name]).flatten()[start : start + y.shape[dim]], dim)
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


def layers_of(small: Survey, original: Survey, plan: Plan, models: Models, tied: Mapping[str, str]) -> Layers:
    """The layers of the small model that multiply with the same parameter as a layer of the original.

    plan: the plan that made the small model. tied: a parameter that several modules have -> its names.
    """
    found = Layers()
    shared = _shared(small)
    for key, layer in small.layers.items():
        why = _why_not(layer, original.layers.get(key), small, shared, tied, models)
        pair = None if why else _pair(layer, original.layers[key], small, plan, models)
        if isinstance(pair, LayerPair):
            found.pairs[key] = pair
        else:
            found.left.setdefault(key[0], why or str(pair))
    for name, why in small.apart.items():
        found.left.setdefault(name, f"it is tied: {tied[name]}" if name in tied else why)
    biases = {layer.bias[0] for layer in small.layers.values() if layer.bias is not None}
    named = {name for name, _ in small.layers} | biases | set(small.elsewhere) | set(found.left)
    for name in sorted(models[0].weights.intersection(plan.removed) - named):
        found.left[name] = "no batch reaches it"
    return found


def _shared(small: Survey) -> set[str]:
    """The biases that several layers use, or that are weights too, and the running means that several layers use."""
    used = [name for layer in small.layers.values() for name in (layer.bias and layer.bias[0], layer.mean) if name]
    names = {layer.key[0] for layer in small.layers.values()}
    blocks = {layer.bias[0] for layer in small.layers.values() if layer.bias and (layer.bias[1] or layer.place.start)}
    return {name for name in used if used.count(name) > 1 and name not in blocks} | {n for n in used if n in names}


def _why_not(
    layer: ProductLayer,
    other: ProductLayer | None,
    small: Survey,
    shared: set[str],
    tied: Mapping[str, str],
    models: Models,
) -> str:
    """A reason why a layer cannot be refitted, "" if nothing is known."""
    name = layer.key[0]
    if name in tied:
        return f"it is tied: {tied[name]}"
    if other is None:
        return "the original does not use it in such an operation"
    if layer.calls != other.calls:
        return f"the small model calls it {layer.calls} times, the original {other.calls} times"
    if name in small.elsewhere:
        return f"it is used elsewhere too: {small.elsewhere[name]}"
    bias = layer.bias[0] if layer.bias else ""
    if bias in shared:
        return f'"{bias}" belongs to other layers too'
    if bias in small.elsewhere:
        return f'"{bias}" is used elsewhere too: {small.elsewhere[bias]}'
    if (layer.bias is None) != (other.bias is None):
        return "only one of the two models adds a bias"
    if not models[0].tensors[name].is_floating_point():
        return "its numbers are no real numbers"
    return layer.problem or other.problem


def _mean(layer: ProductLayer, small: Survey) -> str | None:
    """The running mean that is subtracted from all that the layer gives, and from nothing else."""
    mean = layer.mean
    return mean if mean is not None and small.norms[mean] == layer.calls else None


def _pair(
    layer: ProductLayer,
    other: ProductLayer,
    small: Survey,
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
    return LayerPair(layer, other, kept, blocks, factor, layer.rows_normed, _mean(layer, small))


def tied_in(model: nn.Module) -> dict[str, str]:
    """The parameters that several modules have -> all their names in a text."""
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for tensor in module._parameters.values():
            if tensor is not None:
                owners.setdefault(id(tensor), set()).add(id(module))
    found = [one for one in Tensors.of(model).unique if len(owners.get(id(one.tensor), ())) > 1]
    return {one.name: ", ".join((one.name, *one.others)) for one in found}


def stacks_of(plan: Plan, original: Parameters) -> dict[str, list[int]]:
    """Name of a stack of matrices that lost some -> the numbers of those that stay."""
    return {
        name: _kept(original.tensors[name].shape[0], gone[0]).tolist()
        for name, gone in plan.removed.items()
        if 0 in gone and name in original.tensors and original.tensors[name].ndim > 2
    }


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
