"""Watches a forward for the products of inputs with parameters, whatever module or function computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.arguments import bound
from fxprune.capture.layouts import is_sparse, memory_of
from fxprune.running.products import READERS, WeightProduct


@dataclass(frozen=True)
class Block:
    """A block of a parameter, which an operation multiplies what it reads with.

    name: of the parameter. dim: its dimension of outputs. start, stop: the slots of that dimension. at: the number of
    the matrix in a stack of matrices, where the operation takes one of them; None where it takes the whole parameter.
    """

    name: str
    dim: int
    start: int
    stop: int
    at: int | None = None

    def of(self, parameter: Tensor) -> Tensor:
        """The view of the parameter that the block is."""
        return (
            parameter.narrow(self.dim, self.start, self.stop - self.start)
            if self.at is None
            else parameter.narrow(0, self.at, 1).narrow(self.dim, self.start, self.stop - self.start)
        )


LayerKey = tuple[str, int]
"""A layer: the name of its parameter, and the number of its block: of the matrix in a stack, in the numbering of the
original, or else among the blocks that are used."""


class Parameters:
    """The parameters and buffers of a model, found by the memory that a tensor shares with them.

    stacks: name of a parameter -> the number that each of its matrices has in the original.
    """

    def __init__(self, model: nn.Module, stacks: Mapping[str, Sequence[int]] | None = None) -> None:
        self.tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.weights = {name for name, tensor in model.named_parameters() if tensor.ndim > 1}
        self.stacks = stacks or {}
        self._by_storage: dict[int, list[str]] = {}
        for name, tensor in self.tensors.items():
            self._by_storage.setdefault(memory_of(tensor), []).append(name)

    def sharing(self, tensor: Tensor) -> list[str]:
        """The names of those in the same memory."""
        if not isinstance(tensor, Tensor) or is_sparse(tensor) or not tensor.numel():
            return []
        return self._by_storage.get(memory_of(tensor), [])

    def place(self, product: WeightProduct) -> Block | None:
        """The block of a parameter that a product multiplies with, None if it is no such block."""
        weight = product.weight
        for name in self.sharing(weight):
            parameter = self.tensors[name]
            if parameter.dtype != weight.dtype:
                continue
            ahead = int(weight.storage_offset() - parameter.storage_offset())
            if parameter.ndim == weight.ndim:
                found = _block_of(name, parameter, product, ahead)
            elif parameter.ndim == weight.ndim + 1 and parameter.stride(0) and 0 <= ahead < parameter.numel():
                at, rest = divmod(ahead, parameter.stride(0))
                found = _block_of(name, parameter[at], product, rest) if at < len(parameter) else None
                found = found and Block(name, found.dim + 1, found.start, found.stop, at)
            else:
                continue
            if found is not None:
                return found
        return None

    def number(self, place: Block) -> int | None:
        """The number of a matrix in its stack, in the numbering of the original; None for a whole parameter."""
        return None if place.at is None else int(self.stacks.get(place.name, range(place.at + 1))[place.at])


def _block_of(name: str, parameter: Tensor, product: WeightProduct, ahead: int) -> Block | None:
    """The block of a parameter that has the weight's number of dimensions. ahead: where the weight begins in it."""
    weight, dim = product.weight, product.form.out[0] % product.weight.ndim
    if parameter.shape == weight.shape and _same_layout(parameter, weight) and not ahead:
        return Block(name, dim, 0, weight.shape[dim])
    if dim < weight.ndim - 2 or not _same_layout(parameter.mT, weight):
        return None
    dim = 2 * weight.ndim - 3 - dim  # the other one of the last two
    start, rest = divmod(ahead, max(parameter.stride(dim), 1))
    whole = parameter.mT.shape[:-1] == weight.shape[:-1] and not rest
    if whole and 0 <= start <= parameter.shape[dim] - weight.shape[-1] and (weight.ndim == 2 or not start):
        return Block(name, dim, start, start + weight.shape[-1])
    return None


def _same_layout(a: Tensor, b: Tensor) -> bool:
    """True if two tensors have the same strides, but for dimensions of size 1."""
    pairs = zip(a.stride(), b.stride(), a.shape, b.shape, strict=True)
    return all(first == second or 1 in sizes for first, second, *sizes in pairs)


@dataclass
class ProductCall:
    """One product in a run. number: how many calls of its layer came before. y: its result, None before it runs."""

    key: LayerKey
    place: Block
    number: int
    product: WeightProduct
    y: Tensor | None = None


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that reports every product with a parameter.

    before, after: called with each `ProductCall` before and after it runs.
    """

    def __init__(
        self,
        parameters: Parameters,
        before: Callable[[ProductCall], None] = lambda call: None,
        after: Callable[[ProductCall], None] = lambda call: None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parameters, self.before, self.after = parameters, before, after
        self._keys: dict[Block, LayerKey] = {}
        self._blocks: dict[str, int] = {}
        self._numbers: dict[LayerKey, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reader = READERS.get(func._schema.name)
        if reader is None:
            return self.other(func, args, kwargs)
        product = reader(bound(func, args, kwargs)[1])
        place = None if product is None else self.parameters.place(product)
        if product is None or place is None:
            return self.other(func, args, kwargs)
        call = ProductCall(self._key(place), place, 0, product)
        call.number = self._numbers.get(call.key, 0)
        self._numbers[call.key] = call.number + 1
        self.before(call)
        call.y = func(*args, **kwargs)
        self.after(call)
        return call.y

    def other(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Any other operation."""
        return func(*args, **kwargs)

    def _key(self, place: Block) -> LayerKey:
        known = self.parameters.number(place)
        if known is not None:
            return place.name, known
        if place not in self._keys:
            number = self._blocks.get(place.name, 0)
            self._blocks[place.name] = number + 1
            self._keys[place] = place.name, number
        return self._keys[place]
