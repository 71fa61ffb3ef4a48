"""The use that a forward makes of the parameters of a model: its layers, and what else reads a parameter."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fxprune.analysis.arguments import bound
from fxprune.capture.values import tensors_in
from fxprune.running.products import READERS, Matrices
from fxprune.running.watch import Block, LayerKey, Parameters, ProductCall, Watch

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

OTHER_PRODUCTS = {
    *("aten::mv", "aten::addmv", "aten::addmv_", "aten::dot", "aten::vdot", "aten::baddbmm", "aten::addbmm"),
    *("aten::_trilinear", "aten::_grouped_mm", "aten::_scaled_mm", "aten::_addmm_activation", *READERS),
    *("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu", "aten::mkldnn_rnn_layer", "aten::_cudnn_rnn"),
    *("aten::_transformer_encoder_layer_fwd", "aten::_native_multi_head_attention"),
}
"""The operations that sum over what they read with a weight. Not all of their calls can be refitted."""

DECIDING = {
    *("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select"),
    *("aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount"),
}
"""The operations that turn the numbers of a tensor into decisions or sizes."""


@dataclass
class LayerUse:
    """One call of a layer.

    bias: the name of the parameter that is added to the product, and the number of its first slot; None without one.
    added: True if an operation of its own adds it. mean: the name of the running mean of the batch norm that follows.
    """

    bias: tuple[str, int] | None = None
    added: bool = False
    mean: str | None = None


@dataclass
class ProductLayer:
    """The use that a forward makes of one block of a parameter.

    key: the same in the original and in the small model. place: the block. uses: its calls.
    why: what keeps it from being refitted, "" if nothing is known. stacked: True for a product of stacks of matrices.
    rows_normed: True if its rows may be tokens, and a norm of rows comes later.
    """

    key: LayerKey
    place: Block
    uses: list[LayerUse] = field(default_factory=list)
    why: str = ""
    stacked: bool = False
    rows_normed: bool = False

    @property
    def calls(self) -> int:
        """The number of its calls."""
        return len(self.uses)

    @property
    def problem(self) -> str:
        """A reason why it cannot be refitted, "" if nothing is known."""
        alike = len({(use.bias, use.added) for use in self.uses}) == 1
        return self.why or ("" if alike else "its calls add different biases")

    @property
    def bias(self) -> tuple[str, int] | None:
        """The bias that all calls add."""
        return self.uses[0].bias

    @property
    def added(self) -> bool:
        """True if an operation of its own adds the bias, behind the product."""
        return self.uses[0].added

    @property
    def mean(self) -> str | None:
        """The running mean that is subtracted after each call."""
        means = {use.mean for use in self.uses}
        return means.pop() if len(means) == 1 else None


@dataclass(eq=False)
class Survey:
    """The use that forwards make of the parameters of a model.

    layers: in the order of their first calls. elsewhere: the parameters that other operations read -> one of these.
    apart: the weights that a layer reads in a form that cannot be refitted -> why. norms: name of a running mean -> how
    often it is subtracted. memory: the most bytes that lived at once, as far as they were seen. decides: True if the
    forward decides by numbers, so that another batch may take another course.
    """

    layers: dict[LayerKey, ProductLayer] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    apart: dict[str, str] = field(default_factory=dict)
    norms: Counter[str] = field(default_factory=Counter)
    memory: int = 0
    decides: bool = False

    @property
    def calls(self) -> dict[LayerKey, int]:
        """The number of calls of each layer."""
        return {key: layer.calls for key, layer in self.layers.items()}


def survey(parameters: Parameters, run: Callable[[], Any]) -> Survey:
    """Run a forward once and say what it does with the parameters."""
    mode = _Surveying(parameters)
    with torch.no_grad(), mode:
        run()
    return mode.survey


def merged(surveys: Iterable[Survey]) -> Survey:
    """One survey of several forwards. A layer stands behind the one that came before it in its own forward."""
    made = Survey()
    for one in surveys:
        order = list(made.layers)
        before = -1
        for key, layer in one.layers.items():
            if key in made.layers:
                known = made.layers[key]
                known.uses += layer.uses
                known.why = known.why or layer.why
                known.rows_normed |= layer.rows_normed
                before = order.index(key)
            else:
                before += 1
                order.insert(before, key)
                made.layers[key] = ProductLayer(
                    key, layer.place, list(layer.uses), layer.why, layer.stacked, layer.rows_normed
                )
        made.layers = {key: made.layers[key] for key in order}
        made.elsewhere = {**one.elsewhere, **made.elsewhere}
        made.apart = {**one.apart, **made.apart}
        made.norms += one.norms
        made.memory = max(made.memory, one.memory)
        made.decides |= one.decides
    return made


class _Surveying(Watch):  # type: ignore[no-untyped-call]
    """The mode of a survey."""

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters, before=self._called, after=self._made)
        self.survey = Survey()
        self._last: tuple[ProductLayer, Tensor] | None = None
        self._products: list[ProductLayer] = []
        self._live = 0
        self._derived: dict[int, tuple[Tensor, str, list[str]]] = {}  # memory -> (tensor, operation, parameters)

    def _called(self, call: ProductCall) -> None:
        self._read_by("aten::mm", [call.product.x])
        layer = self.survey.layers.setdefault(call.key, ProductLayer(call.key, call.place))
        layer.stacked = isinstance(call.product.form, Matrices)
        use = LayerUse()
        if self._sources(call.product.x)[1]:
            layer.why = "it is multiplied with other parameters"
        if call.product.bias is not None:
            use.bias = self._bias(call.product.bias)
            if use.bias is None:
                layer.why = "the bias that is added is no parameter"
        layer.uses.append(use)
        if call.product.x.ndim == 2:
            self._products.append(layer)

    def _made(self, call: ProductCall) -> None:
        assert call.y is not None
        self._count(call.y)
        self._last = self.survey.layers[call.key], call.y
        if self._sources(call.product.x)[1]:
            self._derive("aten::mm", [call.product.x, call.product.weight], [call.y])

    def _bias(self, bias: Tensor) -> tuple[str, int] | None:
        """The parameter that a vector is, and the number of its first slot in the memory of the parameter."""
        for name in self.parameters.sharing(bias):
            known = self.parameters.tensors[name]
            plain = known.is_contiguous() and known.ndim in (1, 2) and bias.ndim == 1 and bias.is_contiguous()
            if plain and known.dtype == bias.dtype:
                return name, int(bias.storage_offset() - known.storage_offset())
        return None

    def other(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Note what other operations say about the last product, and which parameters they read."""
        name, named = bound(func, args, kwargs)
        read = tensors_in([args, kwargs])
        view = func.is_view or name == "aten::_unsafe_view"
        taken: list[Tensor] = []
        if not view:
            taken = self._follows(name, named)
            self._last = None
        if name in ROW_NORMS:
            for layer in self._products:
                layer.rows_normed = True
            self._products.clear()
        if name in DECIDING:
            self.survey.decides = True
        made = func(*args, **kwargs)
        results = [made] if isinstance(made, Tensor) else tensors_in(made)
        if name in OTHER_PRODUCTS or not name.startswith("aten::"):
            self._apart(name, read)
        if not view:
            self._read_by(name, [t for t in read if not any(t is one for one in taken)])
            for tensor in results:
                self._count(tensor)
        # an operation that computes with no number that it reads
        shape_alone = name.endswith("_like") or name.startswith("aten::new_")
        self._derive("" if view or shape_alone else name, read, results)
        return made

    def _follows(self, name: str, named: dict[str, Any]) -> list[Tensor]:
        """Note a norm or a bias behind the last product. Returns the tensors that count as part of the layer."""
        mean = named.get("running_mean") if name in SUBTRACTING else None
        if isinstance(mean, Tensor):
            self.survey.norms.update(self.parameters.sharing(mean)[:1])
        if self._last is None:
            return []
        layer, y = self._last
        use = layer.uses[-1]
        if isinstance(mean, Tensor) and _is(named.get("input", named.get("self")), y):
            sharing = self.parameters.sharing(mean)
            use.mean = sharing[0] if sharing and not named.get("training", False) else None
        if name in ("aten::add", "aten::add_") and use.bias is None and named.get("alpha", 1) == 1:
            for one, other in ((named["self"], named["other"]), (named["other"], named["self"])):
                found = self._bias(other) if _is(one, y) and isinstance(other, Tensor) else None
                if found is not None:
                    use.bias, use.added = found, True
                    return [other]
        return []

    def _read_by(self, name: str, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            for parameter in self.parameters.sharing(tensor):
                self.survey.elsewhere.setdefault(parameter, name)

    def _sources(self, tensor: Tensor) -> tuple[str, list[str]]:
        """The parameters that a tensor is computed from alone, and the first operation on their numbers, or ""."""
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or not tensor.numel():
            return "", []
        sharing = self.parameters.sharing(tensor)
        if sharing:
            return "", sharing
        known = self._derived.get(tensor.untyped_storage().data_ptr())
        return ("", []) if known is None else known[1:]

    def _derive(self, name: str, read: list[Tensor], results: list[Tensor]) -> None:
        """Note results that are computed from parameters alone. name: "" for an operation that users need not know."""
        sources = [self._sources(tensor) for tensor in read]
        if not sources or not all(names for _, names in sources):
            return
        names = list(dict.fromkeys(n for _, found in sources for n in found))
        first = next((operation for operation, _ in sources if operation), name)
        for tensor in results:
            if tensor.layout is torch.strided and tensor.numel() and not self.parameters.sharing(tensor):
                self._derived[tensor.untyped_storage().data_ptr()] = tensor, first, names

    def _apart(self, name: str, read: list[Tensor]) -> None:
        """Note the weights that a product reads in a form that cannot be refitted."""
        for tensor in read:
            operation, names = self._sources(tensor)
            why = f"forward multiplies by what {operation} computes from it, not by the parameter itself"
            why = why if operation else f"its layer is {name}"
            for parameter in (n for n in names if n in self.parameters.weights):  # in order: a report lists them
                if operation or parameter not in self.survey.apart:
                    self.survey.apart[parameter] = why

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
