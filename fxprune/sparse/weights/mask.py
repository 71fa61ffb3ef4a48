"""Masks of single weights: a parametrization that keeps pruned weights at exactly zero under any optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import nn
from torch.nn.utils import parametrize

from fxprune.arguments import checks_arguments
from fxprune.errors import PlanError
from fxprune.given_masks import bool_mask
from fxprune.sparse.weights.targets import NamedWeight


class WeightMask(nn.Module):
    """weight[i] = original[i] where mask[i], else exactly 0: a parametrization for `torch.nn.utils.parametrize`.

    mask: bool buffer of the weight's shape, True = keep; part of the model's `state_dict`.
    splicing: False gives pruned weights a gradient of 0. True gives them a gradient as if there were no mask, so that
        they are trained and can come back.

    An optimizer may change `original` everywhere (momentum, weight decay, moments of Adam); the layer's `weight` is
    zero wherever the mask is False.

    >>> import torch
    >>> mask = WeightMask(torch.tensor([True, False]))
    >>> mask(torch.tensor([3.0, -2.0]))
    tensor([3., 0.])
    """

    mask: torch.Tensor

    @checks_arguments()
    def __init__(self, mask: torch.Tensor, *, splicing: bool = False) -> None:
        super().__init__()
        found = bool_mask(mask)
        if isinstance(found, str):
            raise PlanError("a mask must be boolean", at="mask", why=found, do="pass a bool tensor, True = keep")
        self.register_buffer("mask", found)
        self.splicing = splicing

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns the weight that the layer uses."""
        if self.splicing:  # w - w is 0 and has the gradient of w
            return torch.where(self.mask, weight, weight - weight.detach())
        return torch.where(self.mask, weight, 0.0)

    def extra_repr(self) -> str:
        """The share of masked weights."""
        return f"sparsity={1 - self.mask.float().mean().item():.3f}"


@dataclass(frozen=True)
class MaskedWeight:
    """A parameter with its mask. All layers that share the parameter share the mask."""

    target: NamedWeight
    masking: WeightMask

    @property
    def dense(self) -> torch.Tensor:
        """The parameter's values, detached, including those that the mask hides."""
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
        """The mask, True = keep."""
        return self.masking.mask

    @property
    def pruned(self) -> int:
        """The number of masked weights."""
        return self.mask.numel() - int(self.mask.count_nonzero())

    def keep(self, mask: torch.Tensor) -> None:
        """Sets the mask, in place."""
        self.mask.copy_(mask)


def mask_weights(targets: tuple[NamedWeight, ...], *, splicing: bool) -> dict[str, MaskedWeight]:
    """Gives every target a mask that keeps all its weights, in place; returns {name of the weight: masked weight}.

    The parameters stay the same objects, so optimizers made before still update them. A tied parameter gets one mask.
    """
    result: dict[str, MaskedWeight] = {}
    for target in targets:
        masking = WeightMask(torch.ones_like(target.parameter, dtype=torch.bool), splicing=splicing)
        for module, leaf in target.owners:
            parametrize.register_parametrization(module, leaf, masking)
        result[target.name] = MaskedWeight(target, masking)
    return result


@checks_arguments("model")
def squash_masks(model: nn.Module) -> nn.Module:
    """Writes the zeros of every `WeightMask` in a model into its parameters and removes the masks, in place.

    Returns the model. Its layers have their original classes again, and its outputs do not change. Further training may
    change the zeros. Copies of the model keep their masks. The names in the `state_dict` are those from before the
    masks, in another order: torch lists a weight that was parametrized after the other parameters of its layer.

    Raises `PlanError` if a weight has other parametrizations besides the mask.

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
        _separate_class(module)
        parametrize.remove_parametrizations(module, leaf, leave_parametrized=True)
    return model


def sparsity_report(weights: dict[str, MaskedWeight]) -> str:
    """Returns a table with a row per weight and one for all: elements, masked elements, and their share."""
    rows = [(name, w.mask.numel(), w.pruned, w.pruned / w.mask.numel()) for name, w in weights.items()]
    total, pruned = sum(row[1] for row in rows), sum(row[2] for row in rows)
    rows.append(("all", total, pruned, pruned / total))
    return tabulate(rows, headers=("weight", "elements", "pruned", "sparsity"), floatfmt=".4f")


def _separate_class(module: nn.Module) -> None:
    """Gives a parametrized module its own class.

    A deep copy has the same class object as its original, and torch removes a parametrization by deleting a property
    from the class. Without a separate class the other module would lose its weight.
    """
    kind = type(module)
    members = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, members)
