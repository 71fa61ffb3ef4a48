"""Dependence of tensors on the inputs of a model, as a function of an operation sees it.

A *dependence* is a bool tensor of the shape of the tensor or one that broadcasts to it, True where an element depends
on the inputs; `True` and `False` stand for all and for none. What does not depend on them is a constant of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
