"""Follows which elements of every tensor depend on the inputs of a model, while the model runs.

An element that does not depend on them is a constant of the model, and the tensor holds its value. Each operation says
how its results depend on its arguments, see `fxprune.ops.dependence`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fxprune.capture.layouts import is_sparse, memory_of
from fxprune.capture.values import tensors_in
from fxprune.errors import RuleError
from fxprune.ops.aspects import DEPENDENCE
from fxprune.ops.dependence import Dependence, Seen, Settled, anything, depends_anywhere

_SPARSE_PRODUCTS = ("aten::mm", "aten::_sparse_addmm")
"""The operations whose dependence can be told where one of the factors is sparse: all of that one depends."""


class Shadows:
    """The dependence of every tensor, its *shadow*.

    Shadows are kept per storage (the memory of a tensor) with one flag for each element of it. So views share their
    shadow, as they share their memory, and a write in place changes the shadow of every view.
    """

    SWEEP = 64
    """Shadows of freed memory are dropped each time this many are known."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[StorageWeakRef, Dependence]] = {}

    def of(self, tensor: torch.Tensor) -> Dependence:
        """The dependence of a tensor; False where none was set."""
        if is_sparse(tensor):  # it has no memory that a shadow could be kept for
            return True
        shadow = self._shadow(tensor)
        if isinstance(shadow, bool):
            return shadow
        if not tensor.numel():
            return False
        if shadow.numel() != _elements(tensor):
            return True  # the memory is read as another type: its elements are not those of the shadow
        return shadow.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def set(self, tensor: torch.Tensor, dependence: Dependence) -> None:
        """Set the dependence of a tensor, and so that of every tensor that shares memory with it."""
        if is_sparse(tensor):
            return None
        before = self._shadow(tensor)
        if not tensor.numel() or before is dependence:
            return None
        whole = tensor.numel() == _elements(tensor)
        if isinstance(dependence, bool) and whole:
            return self._keep(tensor, dependence)
        if isinstance(before, bool):
            before = torch.full((_elements(tensor),), before, device=tensor.device)
        if before.numel() != _elements(tensor):
            return self._keep(tensor, True)
        if isinstance(dependence, torch.Tensor):
            dependence = dependence.expand(tensor.shape)
        for dim, stride in enumerate(tensor.stride()):  # expanded: several elements are one place in memory
            if stride == 0 and tensor.shape[dim] > 1:
                tensor = tensor.narrow(dim, 0, 1)
                dependence = dependence if isinstance(dependence, bool) else dependence.any(dim, keepdim=True)
        place = before.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        place.copy_(torch.as_tensor(dependence, device=tensor.device))
        return self._keep(tensor, before)

    def _shadow(self, tensor: torch.Tensor) -> Dependence:
        known = self._known.get(tensor.untyped_storage()._cdata)
        return known[1] if known is not None and not _expired(known[0]) else False

    def _keep(self, tensor: torch.Tensor, dependence: Dependence) -> None:
        if len(self._known) % self.SWEEP == self.SWEEP - 1:
            self._known = {key: entry for key, entry in self._known.items() if not _expired(entry[0])}
        storage = tensor.untyped_storage()
        self._known[storage._cdata] = (StorageWeakRef(storage), dependence)  # type: ignore[no-untyped-call]


def _expired(storage: StorageWeakRef) -> bool:
    return bool(storage.expired())  # type: ignore[no-untyped-call]


def _elements(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def is_view(func: Any) -> bool:
    """True if the result of an operation shares the memory of an argument, and so its dependence."""
    return bool(func.is_view) or func._schema.name == "aten::_unsafe_view"


def execute(seen: Seen, args: Sequence[Any], kwargs: Mapping[str, Any], shadows: Shadows) -> Any:
    """Run an operation, and set the dependence of its results in `shadows`; returns the results.

    Where an operation has no rule of dependence, all results depend if any element of any argument does. Constants
    that a rule knows exactly (`Settled`) are written into the results, in place.
    """
    func = seen.func
    before = {memory_of(t) for t in seen.tensors}
    plain = func._schema.name in _SPARSE_PRODUCTS or not any(map(is_sparse, seen.tensors))
    found: Any = False
    if not is_view(func):
        written = DEPENDENCE.of(func._schema.name)
        found = (
            written(seen) if written is not None and plain else anything(seen)
        )  # before it runs: it may write into its arguments
    made = func(*args, **kwargs)
    for number, output in enumerate([made] if isinstance(made, torch.Tensor) else tensors_in(made)):
        if func._schema.is_mutable or memory_of(output) not in before:
            own = found[number] if isinstance(found, Sequence) else found
            if isinstance(own, Settled):
                output.copy_(torch.where(own.dependence, output, own.values.to(output.dtype)))
                own = own.dependence
            _check_shape(own, output, func._schema.name)
            shadows.set(output, own if depends_anywhere(own) else False)
    return made


def _check_shape(dependence: Dependence, output: torch.Tensor, operation: str) -> None:
    """Raise `RuleError` for a dependence that does not broadcast to the result of its operation."""
    if not isinstance(dependence, torch.Tensor):
        return
    sizes = zip(reversed(dependence.shape), reversed(output.shape), strict=False)
    if dependence.ndim > output.ndim or any(own not in (1, size) for own, size in sizes):
        raise RuleError(
            f"the dependence of {operation} has the wrong shape",
            why=f"it is {tuple(dependence.shape)}, the result has {tuple(output.shape)}",
            do="let its function under `depends` return True, False, or a bool tensor that broadcasts to the result",
        )
