"""The layers whose outputs a tensor of a run holds, since no product with a weight comes in between."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fxprune.capture.values import tensors_in
from fxprune.ops.macs import products


class _Origin(NamedTuple):
    """layers: the layers whose outputs are in a memory. weight: True if it holds parameters and buffers alone.

    unknown: True if a part of it comes from outside of torch, such as an array of numpy.
    """

    layers: frozenset[str] = frozenset()
    weight: bool = False
    unknown: bool = False


_UNKNOWN = _Origin(unknown=True)


class Origins:
    """Follows the outputs of layers through a run, to the tensors that hold them.

    Call `seen` for each operation, `made_by` when a layer is done, `reaching` for the results.
    """

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        self._known: dict[int, tuple[StorageWeakRef, _Origin]] = {}
        self._left: set[str] = set()
        self._read: set[str] = set()
        for tensor in weights:
            self._put(tensor, _Origin(weight=True))

    def given(self, tensors: Iterable[torch.Tensor]) -> None:
        """Note the inputs of the model."""
        for tensor in tensors:
            self._put(tensor, _Origin())

    def seen(self, func: Any, arguments: dict[str, Any], made: Any) -> None:
        """Note an operation: what it makes holds what it reads, unless it multiplies that with a weight."""
        read = [self._of(tensor) for tensor in tensors_in(list(arguments.values()))]
        layers = frozenset[str]().union(*(origin.layers for origin in read))
        weights = [origin.weight for origin in read]
        if any(weights) and products(func, arguments, made, lambda tensor: tuple(tensor.shape)) != []:
            self._read |= layers
            origin = _Origin()
        else:
            origin = _Origin(layers, bool(read) and all(weights), any(origin.unknown for origin in read))
        for tensor in tensors_in(made):
            self._put(tensor, origin)

    def made_by(self, layer: str, outputs: Iterable[torch.Tensor]) -> None:
        """Note the outputs of a layer."""
        self._left.add(layer)
        for tensor in outputs:
            self._put(tensor, _Origin(frozenset({layer})))

    def reaching(self, results: Iterable[torch.Tensor]) -> set[str]:
        """The layers whose outputs reach a result without a product with a weight in between.

        Where a result comes from outside of torch, it may hold all outputs that no such product has read.
        """
        origins = [self._of(tensor) for tensor in results]
        found = set[str]().union(*(origin.layers for origin in origins))
        return found | (self._left - self._read) if any(origin.unknown for origin in origins) else found

    def _of(self, tensor: torch.Tensor) -> _Origin:
        key = _key(tensor)
        reference, origin = (None, _UNKNOWN) if key is None else self._known.get(key, (None, _UNKNOWN))
        if reference is None or reference.expired():  # type: ignore[no-untyped-call]  # torch has no types here
            return _Origin() if tensor.numel() == 1 else _UNKNOWN  # a number that forward writes down
        return origin

    def _put(self, tensor: torch.Tensor, origin: _Origin) -> None:
        key = _key(tensor)
        if key is not None:
            self._known[key] = (StorageWeakRef(tensor.untyped_storage()), origin)  # type: ignore[no-untyped-call]  # as above


def _key(tensor: torch.Tensor) -> int | None:
    """A number for the memory of a tensor, which no other has while a weak reference to it is kept; None without one.

    A reference to the memory keeps no numbers.
    """
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else None
