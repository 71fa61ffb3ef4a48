"""A tensor that stands for a weight in some place, and is in memory while an operation works on it."""

from __future__ import annotations

from typing import Any

import torch

from fxprune.offloaded.places import WeightPlace
from fxprune.on_demand import OnDemand, placeholder


class StoredTensor(OnDemand):
    """Stands for a weight that lies elsewhere. What is written goes to a new place; the old one stays as it is."""

    __slots__ = ("place",)
    place: WeightPlace

    @staticmethod
    def __new__(
        cls, like: torch.Tensor, title: str, place: WeightPlace, device: torch.device | None = None
    ) -> StoredTensor:
        """Makes the tensor. like: a tensor of its shape, type and device. device: another one to work on."""
        parameter = like if isinstance(like, torch.nn.Parameter) else None
        made: StoredTensor = placeholder(cls, like.shape, like.dtype, device or like.device, parameter)
        made.place, made.title = place, title
        return made

    def __init__(self, like: torch.Tensor, title: str, place: WeightPlace, device: torch.device | None = None) -> None:
        """See `__new__`."""

    def whole(self) -> torch.Tensor:
        """The whole weight, on the device on which it works."""
        with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
            return self.place.read().to(device=self.device, dtype=self.dtype)

    def spread(self, values: torch.Tensor) -> StoredTensor:
        """A tensor of the same kind with these values, in a place of the same kind."""
        with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
            like = torch.empty(values.shape, dtype=values.dtype, device="meta")
            parameter = getattr(self, "_is_param", False)
            shown = torch.nn.Parameter(like, requires_grad=self.requires_grad) if parameter else like
            return StoredTensor(shown, self.title, self.place.beside(values), self.device)

    def write(self, values: torch.Tensor) -> None:
        """Takes these values."""
        with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
            self.place = self.place.beside(values)

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredTensor:
        """A tensor with the same numbers: a place never changes."""
        if id(self) not in memo:
            made = StoredTensor(self, self.title, self.place)
            if getattr(self, "_is_param", False):
                made.requires_grad_(self.requires_grad)
                made._is_param = True
            made.__dict__.update(self.__dict__)
            memo[id(self)] = made
        found: StoredTensor = memo[id(self)]
        return found
