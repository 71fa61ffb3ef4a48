"""The types of numbers that a proof is made in, and how far rounding may bring two correct models apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that have no float64."""


def proof_device(device: torch.device) -> torch.device:
    """The device of the copies for a proof: that of the model, the CPU if that has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


@dataclass(frozen=True)
class Precision:
    """A type of numbers for the two runs of a proof.

    dtype: the type of all floating tensors, None to leave each of them the type that it has.
    tolerance: a relative error up to this counts as rounding.
    """

    dtype: torch.dtype | None
    tolerance: float

    @property
    def name(self) -> str:
        """The name of the type."""
        return "its own types" if self.dtype is None else str(self.dtype).removeprefix("torch.")

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor, in this type if it is floating, in the complex one of the same precision if complex.

        Where the device has no float64 all copies are on the CPU, in any type: a model is not run on two devices.
        """
        tensor = tensor.to(proof_device(tensor.device))
        if self.dtype is not None and tensor.is_complex():
            return tensor.detach().to(self.dtype.to_complex(), copy=True)
        if self.dtype is None or not tensor.is_floating_point():
            return tensor.detach().clone()
        return tensor.detach().to(self.dtype, copy=True)

    def copies(self, values: Any) -> Any:
        """A nested value with every tensor replaced by a copy."""
        return pytree.tree_map_only(torch.Tensor, self.copy, values)


FLOAT64 = Precision(torch.float64, 1e-9)
FLOAT32 = Precision(torch.float32, 1e-4)
OWN = Precision(None, 5e-2)
"""The types of the model itself, such as bfloat16 with its 8 bits."""
