"""Slots of parameters and buffers that the example inputs do not reach.

For example, `self.position_ids[:, : x.shape[1]]` reads as many slots as the input is long. The other slots are for
longer inputs. The analysis has not seen how they are used, so they are not removed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fxprune.channels.groups import Bools

_PARTIAL = ("aten::slice", "aten::narrow", "aten::select")


class UnreadSlots:
    """Notes which slots of the model's tensors are read.

    Only slices read a part of a tensor; other operations read all.
    """

    def __init__(self) -> None:
        self._opened: dict[int, torch.Tensor] = {}
        self._real: dict[int, torch.Tensor] = {}
        self._views: dict[int, tuple[int, torch.Tensor, frozenset[int]]] = {}  # with the dimensions cut already
        self._whole: set[int] = set()
        self._parts: dict[int, dict[int, Bools]] = {}

    def open(self, tensor: torch.Tensor, real: torch.Tensor) -> None:
        """Begin to follow a tensor. `real` is the model's tensor that it was made from."""
        self._opened[id(tensor)] = tensor
        self._real[id(real)] = real

    def __copy__(self) -> UnreadSlots:
        made = UnreadSlots()
        made._opened, made._real = self._opened, self._real
        made._views, made._whole = self._views.copy(), self._whole.copy()
        made._parts = {owner: parts.copy() for owner, parts in self._parts.items()}
        return made

    def follows(self, tensor: torch.Tensor) -> bool:
        """True if this is a tensor of the model, given as `real`."""
        return id(tensor) in self._real

    def note(self, operation: str, raw: dict[str, Any], made: Any) -> None:
        """Note that an operation has read its arguments.

        raw: the arguments by name, with tensors. made: the result.
        """
        for value in raw.values():
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, torch.Tensor):
                    self._read(operation, tensor, raw, made)

    def _read(self, operation: str, tensor: torch.Tensor, raw: dict[str, Any], made: Any) -> None:
        if id(tensor) in self._opened:
            owner, cut = id(tensor), frozenset[int]()
        elif id(tensor) in self._views:
            owner, _, cut = self._views[id(tensor)]
        else:
            return
        if operation in _PARTIAL and tensor is raw.get("self"):
            cut = self._slice(owner, cut, tensor, raw)
            if isinstance(made, torch.Tensor) and made.ndim == tensor.ndim:
                self._views[id(made)] = owner, made, cut
                return
        self._read_rest(owner, cut, tensor)

    def _slice(self, owner: int, cut: frozenset[int], tensor: torch.Tensor, raw: dict[str, Any]) -> frozenset[int]:
        """Note the slots that a slice takes. Returns the dimensions of which the result has a part only.

        cut: those of which `tensor` has a part only. What is taken from them is a part of what was noted before.
        """
        dim, size = raw["dim"] % tensor.ndim, tensor.shape[raw["dim"]]
        if dim in cut:
            return cut
        taken = np.zeros(size, dtype=bool)
        if "index" in raw:
            taken[raw["index"]] = True
        elif "length" in raw:
            taken[raw["start"] : raw["start"] + raw["length"]] = True
        else:
            taken[slice(raw["start"], raw["end"], raw["step"])] = True
        if taken.all():
            return cut
        parts = self._parts.setdefault(owner, {})
        parts[dim] = parts.get(dim, np.zeros(size, dtype=bool)) | taken
        return cut | {dim}

    def _read_rest(self, owner: int, cut: frozenset[int], tensor: torch.Tensor) -> None:
        """Note that all is read, but for the dimensions of which `tensor` has a part only."""
        if not cut:
            self._whole.add(owner)
            return
        parts = self._parts.setdefault(owner, {})
        parts |= {dim: np.ones(tensor.shape[dim], dtype=bool) for dim in range(tensor.ndim) if dim not in cut}

    def missed(self, tensor: torch.Tensor) -> dict[int, Bools]:
        """Dimension -> a flag per slot, True = no operation has read it.

        Dimensions that were read whole are left out.
        """
        if id(tensor) in self._whole:
            return {}
        return {dim: ~taken for dim, taken in self._parts.get(id(tensor), {}).items() if not taken.all()}
