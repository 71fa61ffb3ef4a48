"""Dependence of tensors on the inputs of a model, as a function of an operation sees it.

A *dependence* is a bool tensor of the shape of the tensor or one that broadcasts to it, True where an element depends
on the inputs; `True` and `False` stand for all and for none. What does not depend on them is a constant of the model.
A function may say that a constant depends on the inputs, and does so for constants that follow the size of the inputs,
but never the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Dependence = bool | torch.Tensor


@dataclass(frozen=True, eq=False)
class Seen:
    """An operation that is about to run.

    raw: its arguments by name. of: the dependence of a tensor.
    """

    func: Any
    raw: Mapping[str, Any]
    of: Callable[[torch.Tensor], Dependence]

    def __getitem__(self, name: str) -> Any:
        return self.raw[name]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Every tensor among the arguments, in order."""
        found = (v for value in self.raw.values() for v in (value if isinstance(value, (list, tuple)) else (value,)))
        return [v for v in found if isinstance(v, torch.Tensor)]

    def live(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elements at which a tensor is not always zero."""
        dependence = self.of(tensor)
        if dependence is True:
            return torch.ones_like(tensor, dtype=torch.bool)
        return torch.as_tensor(tensor != 0) if isinstance(dependence, bool) else dependence | (tensor != 0)


def either(*dependences: Dependence) -> Dependence:
    """Depends where any of them does, broadcast."""
    made: Dependence = False
    for other in dependences:
        if made is True or other is True:
            return True
        made = other if made is False else made if other is False else made | other
    return made


def along(dependence: Dependence, tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Per index of a dimension whether any element there depends, shape [size of the dimension]."""
    size = tensor.shape[dim]
    if isinstance(dependence, bool):
        return torch.full((size,), dependence, device=tensor.device)
    return dependence.expand(tensor.shape).movedim(dim, 0).reshape(size, -1).any(1)


@dataclass(frozen=True, eq=False)
class Settled:
    """The dependence of a result, and the numbers that it has where it does not depend, free of rounding."""

    dependence: torch.Tensor
    values: torch.Tensor

    def view(self, *shape: int) -> Settled:
        """The same in another shape."""
        return Settled(self.dependence.reshape(shape), self.values.reshape(shape))


def anything(seen: Seen) -> Dependence:
    """All of the results depend where any element of any argument does."""
    return any(depends_anywhere(seen.of(tensor)) for tensor in seen.tensors)


def depends_anywhere(dependence: Dependence) -> bool:
    """True if any element depends."""
    return bool(dependence.any()) if isinstance(dependence, torch.Tensor) else dependence


def nothing(seen: Seen) -> Dependence:
    """A result that is made from a shape alone."""
    return False


def over(dependence: Dependence, tensor: torch.Tensor, dims: Sequence[int], keepdim: bool = True) -> Dependence:
    """The dependence of a function of all elements along some dimensions."""
    if isinstance(dependence, bool) or not dims:
        return dependence
    return dependence.expand(tensor.shape).amax(tuple(dims), keepdim=keepdim)


def moved(seen: Seen) -> Dependence | list[Dependence]:
    """Data that is moved: the operation itself moves the dependence."""
    return _run_on(seen, seen.of)


def summed(seen: Seen, **changed: Any) -> Dependence | list[Dependence]:
    """Data that is moved and added up: a sum follows how many constants there are, unless they are zero."""
    return _run_on(seen, seen.live, **changed)


def _run_on(
    seen: Seen, dependence_of: Callable[[torch.Tensor], Dependence], **changed: Any
) -> Dependence | list[Dependence]:
    """The results of the operation for 1 where an argument depends and 0 elsewhere; `changed` are other arguments."""
    if any(depends_anywhere(seen.of(t)) for t in seen.tensors if not t.is_floating_point()):
        return True
    raw = {name: _flags(value, dependence_of) for name, value in seen.raw.items()} | changed
    for name in ("value", "values"):  # a number that is written is no dependence
        if isinstance(raw.get(name), (int, float)):
            raw[name] = 0.0
    positional = [raw.pop(a.name) for a in seen.func._schema.arguments if not a.kwarg_only]
    made = seen.func(*positional, **{k: v for k, v in raw.items() if v is not None})
    return made > 0.5 if isinstance(made, torch.Tensor) else [part > 0.5 for part in made]


def _flags(value: Any, dependence_of: Callable[[torch.Tensor], Dependence]) -> Any:
    if isinstance(value, torch.Tensor):
        if not (value.is_floating_point() or value.is_complex()):
            return value
        dependence = dependence_of(value)
        if isinstance(dependence, bool):
            return torch.full(value.shape, float(dependence), dtype=torch.float64, device=value.device)
        return dependence.expand(value.shape).to(torch.float64).contiguous()
    if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
        return [_flags(v, dependence_of) for v in value]
    return value


def constant_planes(planes: torch.Tensor, rounding: float = 1e-13) -> torch.Tensor:
    """The rows of [n, positions] that hold one number at all positions, but for rounding."""
    if not planes.numel():
        return torch.ones(len(planes), dtype=torch.bool, device=planes.device)
    spread = (planes - planes[:, :1]).abs().amax(1)
    return spread <= rounding * planes.abs().amax(1).clamp_min(math.ulp(0.0))
