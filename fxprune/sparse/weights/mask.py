"""Masks of single weights: a parametrization that makes pruned weights exactly zero, whatever an optimizer does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import nn
from torch.nn.utils import parametrize

from fxprune.errors import PlanError
from fxprune.sparse.weights.targets import NamedWeight


class WeightMask(nn.Module):
    """weight[i] = original[i] where mask[i], else exactly 0: a parametrization for `torch.nn.utils.parametrize`.

    mask: bool buffer of the weight's shape, True = keep; it stands in the model's `state_dict`.
    splicing: where the gradient goes. False: only to weights that are kept, so that pruned ones get a gradient of 0.
        True: to all, as if the mask were not there, so that pruned ones go on learning and may come back.

    Whatever an optimizer does to `original` (momentum, weight decay, moments of Adam), the layer's `weight` is zero
    where the mask says so.

    >>> import torch
    >>> mask = WeightMask(torch.tensor([True, False]))
    >>> mask(torch.tensor([3.0, -2.0]))
    tensor([3., 0.])
    """

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor, *, splicing: bool = False) -> None:
        super().__init__()
        if mask.dtype is not torch.bool:
            raise PlanError("a mask must be boolean", why=f"it is {mask.dtype}", do="pass a bool tensor, True = keep")
        self.register_buffer("mask", mask)
        self.splicing = splicing

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as the layer uses it."""
        if self.splicing:  # w - w is 0 and has the gradient of w
            return torch.where(self.mask, weight, weight - weight.detach())
        return torch.where(self.mask, weight, 0.0)

    def extra_repr(self) -> str:
        """The sparsity, as a printed model shows it."""
        return f"sparsity={1 - self.mask.float().mean().item():.3f}"


@dataclass(frozen=True)
class MaskedWeight:
    """A parameter and the mask that every layer sees it through."""

    target: NamedWeight
    masking: WeightMask

    @property
    def dense(self) -> torch.Tensor:
        """The parameter's values, those under the mask included, without a graph."""
        module, leaf = self.target.owners[0]
        if not parametrize.is_parametrized(module, leaf):
            raise PlanError(
                "the masks of this pruner were taken off",
                at=f'"{self.target.name}"',
                why="the model was squashed",
                do="make a new pruner",
            )
        values: torch.Tensor = module.parametrizations[leaf].original.detach()  # type: ignore[union-attr, index]
        return values

    @property
    def mask(self) -> torch.Tensor:
        """True = keep."""
        return self.masking.mask

    @property
    def pruned(self) -> int:
        """The number of masked weights."""
        return self.mask.numel() - int(self.mask.count_nonzero())

    def keep(self, mask: torch.Tensor) -> None:
        """Set the mask, in place."""
        self.mask.copy_(mask)


def mask_weights(targets: tuple[NamedWeight, ...], *, splicing: bool) -> dict[str, MaskedWeight]:
    """Put an open mask on every target, in place; parameters stay the same objects, so that optimizers keep them.

    A tied parameter has one mask for all its owners.
    """
    result: dict[str, MaskedWeight] = {}
    for target in targets:
        masking = WeightMask(torch.ones_like(target.parameter, dtype=torch.bool), splicing=splicing)
        for module, leaf in target.owners:
            parametrize.register_parametrization(module, leaf, masking)
        result[target.name] = MaskedWeight(target, masking)
    return result


def squash_masks(model: nn.Module) -> nn.Module:
    """Write the zeros of every `WeightMask` in a model into its parameters and take the masks off, in place.

    Returns the model. Its layers are plain ones again, and its outputs do not change; training goes on without masks
    and fills the zeros. Works on copies too: what another copy of the model has stays. Names in the `state_dict` are
    those from before the masks; torch lists a weight that was parametrized after the other parameters of its layer.

    Raises `PlanError` where a weight has other parametrizations besides the mask.

    >>> import torch, fxprune.sparse
    >>> layer = torch.nn.Linear(2, 1)
    >>> pruner = fxprune.sparse.MagnitudePruner(layer, sparsity=0.5)
    >>> pruner.step()
    >>> type(squash_masks(layer)), int((layer.weight == 0).sum())
    (<class 'torch.nn.modules.linear.Linear'>, 1)
    """
    found: list[tuple[nn.Module, str]] = []
    for path, module in model.named_modules():
        for leaf, steps in getattr(module, "parametrizations", {}).items():
            if any(isinstance(step, WeightMask) for step in steps):
                if len(steps) > 1:
                    raise PlanError(
                        "a masked weight has other parametrizations too",
                        at=f'"{path}.{leaf}"'.replace('"."', '"'),
                        why="the mask cannot be taken off alone",
                        do="remove all of them with `torch.nn.utils.parametrize.remove_parametrizations`",
                    )
                found.append((module, leaf))
    for module, leaf in found:
        _own_class(module)
        parametrize.remove_parametrizations(module, leaf, leave_parametrized=True)
    return model


def sparsity_report(weights: dict[str, MaskedWeight]) -> str:
    """One row per weight, and one for all: elements, those that are masked, and their share."""
    rows = [(name, w.mask.numel(), w.pruned, w.pruned / w.mask.numel()) for name, w in weights.items()]
    total, pruned = sum(row[1] for row in rows), sum(row[2] for row in rows)
    rows.append(("all", total, pruned, pruned / total))
    return tabulate(rows, headers=("weight", "elements", "pruned", "sparsity"), floatfmt=".4f")


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own.

    A deep copy shares the class of its original, and torch removes a parametrization by deleting a property of the
    class: the other one would lose its weight.
    """
    kind = type(module)
    members = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, members)
