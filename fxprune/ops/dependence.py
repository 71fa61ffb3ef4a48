"""The dependence of tensors on the inputs of a model, and the tools for functions registered with `depends`.

A *dependence* says which elements of a tensor depend on the inputs. It is a bool tensor whose shape broadcasts to that
of the tensor, True where an element depends; or `True` for all elements, `False` for none. An element that does not
depend is a constant of the model.

A function may be careful and say that a constant depends; it must never say that an element which depends is a
constant. A number that changes with the *size* of the inputs depends on them, too.
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

    func: the operator. raw: its arguments, by the names of the schema. of: a function, the dependence of a tensor.
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
        """Flags of the elements that are not always zero, since they depend on the inputs or are another constant."""
        dependence = self.of(tensor)
        if dependence is True:
            return torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
        return torch.as_tensor(tensor != 0) if isinstance(dependence, bool) else dependence | (tensor != 0)


def either(*dependences: Dependence) -> Dependence:
    """The dependence of elements that depend where any of these does, broadcast."""
    made: Dependence = False
    for other in dependences:
        if made is True or other is True:
            return True
        made = other if made is False else made if other is False else made | other
    return made


def along(dependence: Dependence, tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Flags of the slots of a dimension, [size]: True if any element of the slot depends."""
    size = tensor.shape[dim]
    if isinstance(dependence, bool):
        return torch.full((size,), dependence, device=tensor.device)
    return dependence.expand(tensor.shape).movedim(dim, 0).reshape(size, -1).any(1)


@dataclass(frozen=True, eq=False)
class Settled:
    """The dependence of a result, and the exact numbers of its constants, which the operation itself would round.

    values: of the shape of `dependence`; only those where it is False count.
    """

    dependence: torch.Tensor
    values: torch.Tensor

    def view(self, *shape: int) -> Settled:
        """The same in another shape."""
        return Settled(self.dependence.reshape(shape), self.values.reshape(shape))


def anything(seen: Seen) -> Dependence:
    """The dependence where nothing better is known: everything depends if any element of any argument does."""
    return any(depends_anywhere(seen.of(tensor)) for tensor in seen.tensors)


def depends_anywhere(dependence: Dependence) -> bool:
    """True if any element depends."""
    return bool(dependence.any()) if isinstance(dependence, torch.Tensor) else dependence


def nothing(seen: Seen) -> Dependence:
    """The dependence of a result that is made from a shape and numbers alone: none."""
    return False


def over(dependence: Dependence, tensor: torch.Tensor, dims: Sequence[int], keepdim: bool = True) -> Dependence:
    """The dependence of a result that is computed from all elements along some dimensions of a tensor."""
    if isinstance(dependence, bool) or not dims:
        return dependence
    return dependence.expand(tensor.shape).amax(tuple(dims), keepdim=keepdim)


def moved(seen: Seen) -> Dependence | list[Dependence]:
    """The dependence of results whose elements are elements of the arguments: it is moved as they are."""
    return _run_on(seen, seen.of)


def summed(seen: Seen, **changed: Any) -> Dependence | list[Dependence]:
    """The dependence of results whose elements are sums of moved elements.

    A sum of constants changes with their number, unless they are zero: so elements that are not zero depend.
    changed: arguments of the operation that are replaced.
    """
    return _run_on(seen, seen.live, **changed)


def _run_on(
    seen: Seen, dependence_of: Callable[[torch.Tensor], Dependence], **changed: Any
) -> Dependence | list[Dependence]:
    """Run the operation itself on 1 where an element depends and 0 elsewhere; the result depends where it is not 0."""
    if any(depends_anywhere(seen.of(t)) for t in seen.tensors if not t.is_floating_point()):
        return True
    raw = {name: _flags(value, dependence_of) for name, value in seen.raw.items()} | changed
    for name in ("value", "values"):  # a number that is written into the result does not depend
        if isinstance(raw.get(name), (int, float)):
            raw[name] = 0.0
    positional = [raw.pop(a.name) for a in seen.func._schema.arguments if not a.kwarg_only]
    made = seen.func(*positional, **{k: v for k, v in raw.items() if v is not None})
    return made > 0.5 if isinstance(made, torch.Tensor) else [part > 0.5 for part in made]


def _flags(value: Any, dependence_of: Callable[[torch.Tensor], Dependence]) -> Any:
    """An argument with its floating tensors replaced by their dependence, as 0 and 1 in float64."""
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
    """Flags of the rows of [n, positions], True if a row holds one number at all positions, up to rounding."""
    if not planes.numel():
        return torch.ones(len(planes), dtype=torch.bool, device=planes.device)
    spread = (planes - planes[:, :1]).abs().amax(1)
    return spread <= rounding * planes.abs().amax(1).clamp_min(math.ulp(0.0))
