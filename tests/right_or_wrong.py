"""The judgement of a pruned model: does it compute what the original computes without what was removed?

Nothing here uses the package's own proof, or its analysis, so that the judgement is the same for every tool.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support import relative_error

TOLERANCE = 1e-9
VERDICTS = (
    "right",
    "nothing removed",
    "raised",
    "forward raises",
    "output shape changed",
    "wrong, silently",
)
"""The best one first."""
Slots = Mapping[str, Tensor]
Rules = Mapping[Any, Callable[..., Any]]


def verdict(model: nn.Module, small: nn.Module, inputs: tuple[Any, ...], removed: Slots) -> str:
    """One of `VERDICTS` but "raised": of a model and of what a tool made of it.

    Right is a small model that equals one of `references` on the inputs, to 1e-9 of the largest value.

    removed: name of a parameter or buffer of the original -> True where a slot was removed.
    """
    if elements(small) == elements(model):
        return "nothing removed"
    want = model(*inputs)
    try:
        ours = small(*inputs)
    except Exception:  # whatever a broken forward raises
        return "forward raises"
    if shapes(ours) != shapes(want):
        return "output shape changed"
    errors = (relative_error(ours, reference()) for reference in references(model, inputs, removed))
    return "right" if any(error < TOLERANCE for error in errors) else "wrong, silently"


def elements(model: nn.Module) -> int:
    """The number of elements of all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def shapes(result: Any) -> list[torch.Size]:
    """The shapes of the tensors of a result."""
    return [leaf.shape for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def references(model: nn.Module, inputs: tuple[Any, ...], removed: Slots) -> Iterator[Callable[[], Any]]:
    """The results that count as right: those of the original with zeros in every removed slot.

    Statistics (norms, means, variances, maxima, softmax) count all channels, or only the kept ones. The same is true of
    the scale of attention. A norm of a weight (`weight_norm`) counts all of its slots, or only the kept ones.
    """
    rules = ({}, STATISTICS, SCALES, {**STATISTICS, **SCALES})
    for whole, rule in itertools.product((True, False), rules):
        yield functools.partial(counted, zeroed(model, removed, whole_weights=whole), inputs, rule)


def zeroed(model: nn.Module, removed: Slots, *, whole_weights: bool = True) -> nn.Module:
    """A copy with zeros in every removed slot of its parameters and floating-point buffers.

    whole_weights: a weight that is computed from parameters keeps its values where nothing was removed.
    """
    copied = copy.deepcopy(model)
    removed = dict(removed)
    with torch.no_grad():
        for path, module in copied.named_modules():
            if parametrize.is_parametrized(module, "weight"):
                stored = {n: removed.pop(n) for n in list(removed) if n.startswith(f"{path}.parametrizations.weight.")}
                gone = torch.zeros_like(module.weight, dtype=torch.bool)
                for name, slots in stored.items():
                    gone = gone | slots if "original" in name else gone
                if not whole_weights:
                    _zero(copied, {n: slots & ~_whole_rows(slots) for n, slots in stored.items()})
                parametrize.remove_parametrizations(module, "weight")
                removed[f"{path}.weight"] = gone
        _zero(copied, removed)
    return copied


def _zero(model: nn.Module, removed: Slots) -> None:
    tensors = _tensors(model)
    for name, slots in removed.items():
        if tensors[name].is_floating_point():
            tensors[name].masked_fill_(slots, 0)


def _whole_rows(slots: Tensor) -> Tensor:
    """The slots of rows that are gone altogether: their norm must not become 0."""
    return slots.flatten(1).all(1).view(-1, *[1] * (slots.ndim - 1)) if slots.ndim > 1 else torch.zeros_like(slots)


def slots_missing(model: nn.Module, small: nn.Module) -> Slots:
    """Name of a parameter or buffer -> True where its value does not occur in the small model any more.

    For models whose numbers are all different, and tools that leave what they keep as it is.
    """
    after, found = _tensors(small), {}
    for name, before in _tensors(model).items():
        if name in after and after[name].shape != before.shape:
            found[name] = ~torch.isin(before.detach(), after[name].detach())
    return found


def slots_of(model: nn.Module, removed: Mapping[str, Mapping[int, list[int]]]) -> Slots:
    """Name -> True where a slot was removed, from name -> {dimension: indices}."""
    tensors, found = _tensors(model), {}
    for name, dims in removed.items():
        found[name] = torch.zeros_like(tensors[name], dtype=torch.bool)
        for dim, indices in dims.items():
            found[name].index_fill_(dim, torch.tensor(indices), True)
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter or buffer, under every name that it has."""
    return dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))


def counted(masked: nn.Module, inputs: tuple[Any, ...], rules: Rules) -> Any:
    """The result of a masked model in which the operations of `rules` count only the channels that are left.

    A channel that is gone is found by its values, which are the same for every sample of the batch, at every place.
    """
    with _With(rules):
        return masked(*inputs)


class _With(TorchDispatchMode):
    """Some operations are computed by a rule."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = self.rules.get(func)
        return rule(func, *args, **(kwargs or {})) if rule else func(*args, **(kwargs or {}))


def kept(x: Tensor, dim: int) -> Tensor:
    """The indices along a dimension at which something differs between the samples; all, if nothing does."""
    differs = (x != x[:1]).transpose(0, dim).flatten(1).any(1)
    return (differs if differs.any() else ~differs).nonzero().flatten()


def narrowed(x: Tensor, dims: Any) -> Tensor:
    """The kept channels of these dimensions. Samples, and whole dimensions, stay as they are."""
    for dim in dims:
        if dim % x.ndim:
            x = x.index_select(dim, kept(x, dim % x.ndim))
    return x


def _reduction(func: Any, x: Tensor, dims: Any = None, *args: Any, **options: Any) -> Any:
    return func(narrowed(x, range(x.ndim) if dims is None else dims), dims, *args, **options)


def _maximum(func: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
    largest: Tensor = func(x.masked_fill((x == x[:1]).all(0), -math.inf), *args, **options)
    return largest.masked_fill(largest == -math.inf, 0.0)  # nothing is left there


def _layer_norm(func: Any, x: Tensor, shape: list[int], weight: Any, bias: Any, *args: Any) -> Any:
    if len(shape) > 1:
        return func(x, shape, weight, bias, *args)
    index = kept(x, x.ndim - 1)
    some = [None if t is None else t[index] for t in (weight, bias)]
    result, mean, deviation = func(x[..., index], [len(index)], *some, *args)
    return torch.zeros_like(x).index_copy(-1, index, result), mean, deviation


def _group_norm(
    func: Any, x: Tensor, weight: Any, bias: Any, n: int, c: int, size: int, groups: int, eps: float
) -> Any:
    flags = torch.zeros(c, dtype=x.dtype)
    flags[kept(x, 1)] = 1
    mask, h = flags.view(1, groups, -1, 1), x.reshape(n, groups, c // groups, size)
    count = mask.sum(2, keepdim=True).clamp_min(1) * size  # 1: nothing is left there
    mean = (h * mask).sum((2, 3), keepdim=True) / count
    deviation = (((h - mean) ** 2 * mask).sum((2, 3), keepdim=True) / count + eps).sqrt()
    result, wide = ((h - mean) / deviation).reshape(x.shape), (1, c, *[1] * (x.ndim - 2))
    result = result if weight is None else result * weight.view(wide)
    result = result if bias is None else result + bias.view(wide)
    return result * flags.view(wide), mean, 1 / deviation


def _softmax(func: Any, x: Tensor, dim: int, *args: Any) -> Tensor:
    index = kept(x, dim % x.ndim)
    return torch.zeros_like(x).index_copy(dim, index, func(x.index_select(dim, index), dim, *args))


def _attention(func: Any, q: Tensor, *args: Any, **options: Any) -> Any:
    if options.get("scale") is None:
        options["scale"] = 1 / math.sqrt(len(kept(q, q.ndim - 1)))
    return func(q, *args, **options)


_ATEN = torch.ops.aten
STATISTICS: Rules = {
    _ATEN.mean.dim: _reduction,
    _ATEN.var.correction: _reduction,
    _ATEN.std.correction: _reduction,
    _ATEN.var_mean.correction: _reduction,
    _ATEN.std_mean.correction: _reduction,
    _ATEN.amax.default: _maximum,
    _ATEN.native_layer_norm.default: _layer_norm,
    _ATEN.native_group_norm.default: _group_norm,
    _ATEN._softmax.default: _softmax,
}
SCALES: Rules = {_ATEN._scaled_dot_product_flash_attention_for_cpu.default: _attention}
