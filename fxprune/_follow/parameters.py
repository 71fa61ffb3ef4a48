"""The parameters of an original and of its small model, side by side."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from fxprune._record import another_model, record, record_since
from fxprune.channels.groups import Bools
from fxprune.depth.numbering import in_original_numbering
from fxprune.planning.combine import kept_flags
from fxprune.planning.factors import Factor
from fxprune.planning.plan import Plan
from fxprune.planning.sizes import EPSILONS
from fxprune.rewrite.tensors import cut
from fxprune.sharded.shards import gathered, is_dtensor, spread, talk_of


@dataclass(frozen=True, eq=False)
class Counterpart:
    """A parameter of the original, and its counterpart.

    name: its first name. old: the parameter of the original. new: that of the small model, None if there is none.
    kept: dimension -> flags of its slots, for the dimensions that lose some.
    factor: what the plan multiplies the kept part by, in a form that broadcasts to it; None for 1.
    offset: what is added before it is multiplied, and subtracted afterwards: 1 for a norm that scales by 1 + weight.
    """

    name: str
    old: nn.Parameter
    new: nn.Parameter | None
    kept: Mapping[int, Bools]
    factor: torch.Tensor | None = None
    offset: float = 0.0

    def without_factor(self, values: torch.Tensor) -> torch.Tensor:
        """The numbers of the original, from those of the small model."""
        return values if self.factor is None else (values + self.offset) / self.factor.to(values) - self.offset

    def part(self, values: torch.Tensor, *, power: float = 0.0) -> torch.Tensor:
        """The part of a tensor of the parameter's shape that stays, times the factor to this power.

        power: 1 for numbers that are weights, to which the offset is added meanwhile; -1 for gradients.
        values: dimensions of size 1 stay as they are, so statistics of rows and columns can be cut too.
        """
        if is_dtensor(values):
            made: torch.Tensor = spread(
                self._part(gathered(values, self.name, talk_of([values])), power), values, self.name
            )
            return made
        return self._part(values, power)

    def _part(self, values: torch.Tensor, power: float) -> torch.Tensor:
        made = cut(values.detach(), {dim: kept for dim, kept in self.kept.items() if values.shape[dim] == len(kept)})
        if self.factor is None or not power or not made.is_floating_point():
            return made
        factor = self.factor.expand(self.small_shape)
        for dim, size in enumerate(made.shape):
            if size == 1 != factor.shape[dim]:
                factor = factor.mean(dim, keepdim=True)
        offset = self.offset if power == 1 else 0.0
        return made.add_(offset).mul_(factor.to(made) ** power).sub_(offset)

    @property
    def small_shape(self) -> tuple[int, ...]:
        """The shape of the part that stays."""
        return tuple(int(self.kept[dim].sum()) if dim in self.kept else size for dim, size in enumerate(self.old.shape))


@dataclass(frozen=True, eq=False)
class Counterparts:
    """The parameters of an original and of its small model.

    small: a small model that counts its layers from 0 is a copy here, with their numbers in the original.
    plan: the plan that made the small model. by_id: id of a parameter of the original -> its counterpart.
    added: name -> a parameter that only the small model has.
    """

    model: nn.Module
    small: nn.Module
    plan: Plan
    by_id: Mapping[int, Counterpart]
    added: Mapping[str, nn.Parameter]

    @property
    def repaired(self) -> bool:
        """True if the weights of the small model were refitted."""
        return record(self.small).repair is not None


def counterparts_of(model: nn.Module, small: nn.Module) -> Counterparts:
    """The counterparts of an original and of the small model that `transform` made of it, in one step or in several.

    Raises `PlanError` if the small model was made from another model, or has other shapes than the plan gives it.
    """
    made = record_since(small, model)
    small = in_original_numbering(small, made.layers_gone)
    news = dict(small.named_parameters(remove_duplicate=False))
    olds = dict(model.named_parameters(remove_duplicate=False))
    rescaled = _offsets_of_rescaled_norms(model, made.plan)
    by_id: dict[int, Counterpart] = {}
    for name, old in olds.items():
        if tuple(old.shape) != made.before.get(name, tuple(old.shape)):
            raise another_model(
                name, f"it has shape {tuple(old.shape)}, and had {made.before[name]} when it was pruned"
            )
        if id(old) in by_id and (by_id[id(old)].new is not None or name not in news):
            continue
        by_id[id(old)] = _rescaled(_pair(name, old, news.get(name), made.plan), rescaled)
    lacking = next((name for name in made.removed if name in made.before and not _has(model, name)), None)
    if lacking is not None:
        raise another_model(lacking, "the model does not have it")
    return Counterparts(model, small, made.plan, by_id, {name: new for name, new in news.items() if name not in olds})


def _has(model: nn.Module, name: str) -> bool:
    path, _, last = name.rpartition(".")
    try:
        return hasattr(model.get_submodule(path), last)
    except AttributeError:
        return False


def _pair(name: str, old: nn.Parameter, new: nn.Parameter | None, plan: Plan) -> Counterpart:
    kept = kept_flags(plan, name, old.shape)
    made = Counterpart(name, old, new, kept, _factor(plan.factors, name, old.shape, kept))
    if new is not None and tuple(new.shape) != made.small_shape:
        has, leaves = tuple(new.shape), made.small_shape
        raise another_model(name, f"it has shape {has} in the small model, the plan leaves {leaves}")
    return made


def _rescaled(pair: Counterpart, offsets: Mapping[str, float]) -> Counterpart:
    """The counterpart of a norm's weight with what norms="preserve" has done: see `Rescale`."""
    if pair.name not in offsets:
        return pair
    ratio = pair.old.numel() / math.prod(pair.small_shape)
    factor = torch.tensor(math.sqrt(ratio), dtype=torch.float64)
    factor = factor if pair.factor is None else factor * pair.factor
    return replace(pair, factor=factor, offset=offsets[pair.name])


def _offsets_of_rescaled_norms(model: nn.Module, plan: Plan) -> dict[str, float]:
    """The weights that norms="preserve" multiplies -> 0, or 1 for a norm that scales by 1 + weight.

    Such a norm gives something else than zeros where its weight is zero.
    """
    found = {}
    for size in plan.sizes if plan.norms == "preserve" else ():
        if size.kind == "attribute" and size.name in EPSILONS:
            norm = copy.deepcopy(model.get_submodule(size.at)).double().cpu()
            with torch.no_grad():
                shape = norm.get_parameter("weight").zero_().shape
                found[f"{size.at}.weight"] = float(bool(norm(torch.ones(1, *shape, dtype=torch.float64)).any()))
    return found


def _factor(
    factors: tuple[Factor, ...], name: str, shape: torch.Size, kept: Mapping[int, Bools]
) -> torch.Tensor | None:
    """The product of the factors of one parameter, at the slots that stay; None if it has none."""
    made: torch.Tensor | None = None
    for factor in factors:
        if factor.tensor != name:
            continue
        numbers = torch.ones(shape[factor.dim] if factor.slots is not None else 1, dtype=torch.float64)
        numbers[list(factor.slots) if factor.slots is not None else slice(None)] = factor.factor
        if factor.slots is not None and factor.dim in kept:
            numbers = numbers[torch.from_numpy(kept[factor.dim])]
        numbers = numbers.reshape([-1 if d == factor.dim else 1 for d in range(len(shape))])
        made = numbers if made is None else made * numbers
    return made
