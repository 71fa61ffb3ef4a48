"""Watches a forward for the products of inputs with parameters, whatever module or function computes them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune._repair.products import READERS, Matrices, WeightProduct
from fxprune.analysis.arguments import bound
from fxprune.capture.values import tensors_in

SUBTRACTING = {
    *("aten::native_batch_norm", "aten::_native_batch_norm_legit_no_training", "aten::batch_norm"),
    *("aten::cudnn_batch_norm", "aten::miopen_batch_norm"),
}
"""The batch norms, which subtract a running mean."""

ROW_NORMS = {
    *("aten::native_layer_norm", "aten::layer_norm", "aten::_fused_rms_norm", "aten::rms_norm"),
    "aten::rsqrt",  # of RMS norms that a model spells itself
}
"""The norms of rows: after them the length of a row says nothing."""


@dataclass(frozen=True)
class Block:
    """A block of a parameter, which an operation multiplies what it reads with.

    name: of the parameter. dim: its dimension of outputs. start, stop: the slots of that dimension.
    """

    name: str
    dim: int
    start: int
    stop: int


LayerKey = tuple[str, int]
"""A layer: the name of its parameter, and the number of its block among those that are used."""


@dataclass
class ProductLayer:
    """The use that a forward makes of one block of a parameter.

    key: the same in the original and in the small model. place: the block. calls: how often it is used.
    bias: the name of the parameter that is added to the product, and the number of its first slot; None without one.
    added: True if the bias is added by an operation of its own, behind the product.
    mean: the name of the running mean of the batch norm that follows.
    stacked: True for a product of stacks of matrices.
    rows_normed: True if its rows may be tokens, and a norm of rows comes later.
    """

    key: LayerKey
    place: Block
    calls: int = 0
    bias: tuple[str, int] | None = None
    added: bool = False
    mean: str | None = None
    stacked: bool = False
    rows_normed: bool = False


class Parameters:
    """The parameters and buffers of a model, found by the memory that a tensor shares with them."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._by_storage: dict[int, list[str]] = {}
        for name, tensor in self.tensors.items():
            self._by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)

    def sharing(self, tensor: Tensor) -> list[str]:
        """The names of those in the same memory."""
        if not isinstance(tensor, Tensor) or tensor.is_sparse or not tensor.numel():
            return []
        return self._by_storage.get(tensor.untyped_storage().data_ptr(), [])

    def place(self, product: WeightProduct) -> Block | None:
        """The block of a parameter that a product multiplies with, None if it is no such block."""
        weight, dim = product.weight, product.form.out[0] % product.weight.ndim
        for name in self.sharing(weight):
            parameter = self.tensors[name]
            if parameter.dtype != weight.dtype or parameter.ndim != weight.ndim:
                continue
            ahead = int(weight.storage_offset() - parameter.storage_offset())
            if parameter.shape == weight.shape and _same_layout(parameter, weight) and not ahead:
                return Block(name, dim, 0, weight.shape[dim])
            if dim < weight.ndim - 2 or not _same_layout(parameter.mT, weight):
                continue
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
        if place not in self._keys:
            number = self._blocks.get(place.name, 0)
            self._blocks[place.name] = number + 1
            self._keys[place] = place.name, number
        return self._keys[place]


@dataclass
class Survey:
    """The use that one forward makes of the parameters of a model.

    layers: in the order of their first calls. elsewhere: the parameters that other operations read -> one of these.
    memory: the most bytes that lived at once, as far as they were seen.
    result: what forward returned.
    """

    layers: dict[LayerKey, ProductLayer] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    memory: int = 0
    result: Any = None


class _Surveying(Watch):  # type: ignore[no-untyped-call]
    """The mode of a survey."""

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters, before=self._called, after=self._made)
        self.survey = Survey()
        self._last: tuple[ProductLayer, Tensor] | None = None
        self._products: list[ProductLayer] = []
        self._live = 0

    def _called(self, call: ProductCall) -> None:
        self._read_by("aten::mm", [call.product.x])
        layer = self.survey.layers.setdefault(call.key, ProductLayer(call.key, call.place))
        layer.calls += 1
        layer.stacked = isinstance(call.product.form, Matrices)
        bias = call.product.bias
        if bias is not None:
            layer.bias = self._bias(bias)
            if layer.bias is None:
                self.survey.elsewhere.setdefault(call.place.name, "a bias that is no parameter")
        if call.product.x.ndim == 2:
            self._products.append(layer)

    def _made(self, call: ProductCall) -> None:
        assert call.y is not None
        self._count(call.y)
        self._last = self.survey.layers[call.key], call.y

    def _bias(self, bias: Tensor) -> tuple[str, int] | None:
        for name in self.parameters.sharing(bias):
            known = self.parameters.tensors[name]
            if known.ndim == 1 and bias.ndim == 1 and known.dtype == bias.dtype and _same_layout(known, bias):
                return name, int(bias.storage_offset() - known.storage_offset())
        return None

    def other(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Note what other operations say about the last product, and which parameters they read."""
        name, named = bound(func, args, kwargs)
        view = func.is_view or name == "aten::_unsafe_view"
        taken: list[Tensor] = []
        if not view:
            taken = self._follows(name, named)
            self._last = None
        if name in ROW_NORMS:
            for layer in self._products:
                layer.rows_normed = True
            self._products.clear()
        made = func(*args, **kwargs)
        if not view:
            self._read_by(name, [t for t in tensors_in([args, kwargs]) if not any(t is one for one in taken)])
            for tensor in [made] if isinstance(made, Tensor) else tensors_in(made):
                self._count(tensor)
        return made

    def _follows(self, name: str, named: dict[str, Any]) -> list[Tensor]:
        """Note a norm or a bias behind the last product. Returns the tensors that count as part of the layer."""
        if self._last is None:
            return []
        layer, y = self._last
        mean = named.get("running_mean") if name in SUBTRACTING else None
        if mean is not None and _is(named.get("input", named.get("self")), y):
            sharing = self.parameters.sharing(mean)
            layer.mean = sharing[0] if sharing and not named.get("training", False) else None
        if name in ("aten::add", "aten::add_") and layer.bias is None and named.get("alpha", 1) == 1:
            for one, other in ((named["self"], named["other"]), (named["other"], named["self"])):
                if _is(one, y) and isinstance(other, Tensor) and self._bias(other) is not None:
                    layer.bias, layer.added = self._bias(other), True
                    return [other]
        return []

    def _read_by(self, name: str, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            for parameter in self.parameters.sharing(tensor):
                self.survey.elsewhere.setdefault(parameter, name)

    def _count(self, tensor: Tensor) -> None:
        size = tensor.nbytes if tensor.layout is torch.strided else 0
        self._live += size
        self.survey.memory = max(self.survey.memory, self._live)
        weakref.finalize(tensor, self._freed, size)

    def _freed(self, size: int) -> None:
        self._live -= size


def _is(tensor: Any, y: Tensor) -> bool:
    """True if a tensor holds the result of a product, in any shape."""
    return isinstance(tensor, Tensor) and tensor.data_ptr() == y.data_ptr() and tensor.numel() == y.numel()


def survey(model: nn.Module, run: Callable[[], Any]) -> Survey:
    """Run a forward once and say what it does. run: calls `model`."""
    mode = _Surveying(Parameters(model))
    with torch.no_grad(), mode:
        mode.survey.result = run()
    return mode.survey
