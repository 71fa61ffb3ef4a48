"""Layers whose connections are chosen by a mask: other entries of the weight are zero and stay zero.

`weight` is a plain `nn.Parameter`, `mask` a bool buffer beside it, and forward computes with `weight * mask`, so that
autograd masks the gradient too. A parametrization (`torch.nn.utils.parametrize`) would do that as well, but the
parameter gets another name in checkpoints, `weight` has no `grad`, initial values written into it are lost silently,
and the layer cannot be pickled.

Most optimizers leave an entry alone whose value and gradient are zero. Some do not: Muon mixes the entries of a matrix,
and momentum still moves an entry after `set_mask` has cut it or the user has filled the weight. So each access to
`layer.weight` first writes zeros into the entries that are not connected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.common_types import _size_2_t
from torch.utils._python_dispatch import _get_current_dispatch_mode

from fxprune.arguments import checks_names
from fxprune.errors import PlanError
from fxprune.given_masks import bool_mask
from fxprune.ops import Operand
from fxprune.ops.convolution import convolution
from fxprune.ops.leaves import LeafCall, leaf
from fxprune.ops.linear_layers import linear
from fxprune.sparse.masked.patterns import graph_of, mask_from_adjacency

if TYPE_CHECKING:
    import networkx as nx  # type: ignore[import-untyped]

LayerT = TypeVar("LayerT", bound="Masked")
Mask = Tensor | np.ndarray[Any, Any]

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Size of an element in bytes -> the integer type of that size."""


class Masked(nn.Module):
    """The base of both layers: a weight and a mask that says which of its entries are connections."""

    weight: Tensor
    mask: Tensor

    def __getattr__(self, name: str) -> Any:
        """The attribute of the module; `weight` gets zeros where nothing is connected before it is returned."""
        value = super().__getattr__(name)
        if name == "weight" and isinstance(mask := self.__dict__.get("_buffers", {}).get("mask"), Tensor):
            _zero_unconnected(value, mask)
        return value

    @property
    def connections(self) -> int:
        """The number of connected entries of the weight."""
        return int(self.mask.expand(self.weight.shape).sum())

    @checks_names
    def set_mask(self, mask: Mask) -> None:
        """Connect other inputs and outputs from now on; a new connection starts with weight 0.

        mask: in one of the shapes that the constructor takes. An optimizer keeps its state of the old connections.

        >>> layer = MaskedLinear(2, 1, torch.tensor([[True, False]]))
        >>> layer.set_mask(torch.tensor([[False, True]]))
        >>> layer.weight.tolist()
        [[0.0, 0.0]]
        """
        made = checked_mask(mask, self.weight.shape, type(self).__name__)
        self.mask = made.to(self.mask.device)
        _ = self.weight  # access writes zeros where the connection is cut

    def to_graph(self) -> nx.DiGraph:
        """The connections as a bipartite graph of networkx: nodes ("in", i) and ("out", o), edges with their `weight`.

        The edge of a convolution has the L2 norm of its kernel. `mask_from_graph` turns it into a mask again.

        >>> layer = MaskedLinear(2, 1, torch.tensor([[False, True]]), bias=False)
        >>> list(layer.to_graph().edges)
        [(('in', 1), ('out', 0))]
        """
        return graph_of(self.weight, self.mask, getattr(self, "groups", 1))

    def extra_repr(self) -> str:
        """The sizes of the layer and the number of its connections."""
        if type(self.mask) is not Tensor or self.mask.is_meta:
            return str(super().extra_repr())
        return f"{super().extra_repr()}, connections={self.connections}/{self.weight.numel()}"

    def _register_mask(self, mask: Mask) -> None:
        """Checks that a mask fits the weight, and registers it as the buffer `mask`."""
        made = checked_mask(mask, self.weight.shape, type(self).__name__)
        self.register_buffer("mask", made.to(self.weight.device))
        _ = self.weight

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        _ = self.weight  # torch reads the parameter past `__getattr__`
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Loads weight and mask; without a mask in the checkpoint, as from a dense layer, the layer keeps its own."""
        given = dict(state_dict)  # changed below; the checkpoint stays as it is
        mask = given.setdefault(f"{prefix}mask", self.mask)
        try:
            # the pass may have removed all connections; then an empty mask fits
            empty = not self.mask.is_meta and not bool(self.mask.any())
            mask = checked_mask(mask, self.weight.shape, f'"{prefix}mask" in the checkpoint', empty=empty)
        except PlanError as error:
            error_msgs.append(str(error))
            return
        if mask.shape != self.mask.shape:  # one of them has an entry per kernel, the other per element of it
            self.mask = torch.empty_like(mask, device=self.mask.device)
        given[f"{prefix}mask"] = mask
        weight = given.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.shape == self.weight.shape:
            given[f"{prefix}weight"] = weight.detach().masked_fill(~mask.to(weight.device), 0)
        super()._load_from_state_dict(given, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)


class MaskedLinear(Masked, nn.Linear):
    """A linear layer with chosen connections: y[.., o] = sum_i mask[o, i] * weight[o, i] * x[.., i] + bias[o].

    Args:
        in_features, out_features, bias, device, dtype: as for `nn.Linear`, with its initial weights.
        mask: [out_features, in_features], True = connected; copied. Booleans, or zeros and ones of any type, in a
            tensor or a numpy array. Or the adjacency of all nodes of both layers, the inputs first, [in + out, in +
            out]; its block from inputs to outputs is taken. The buffer `mask` is bool, and saved with the layer.

    `weight` is zero where the mask is False, also after loading, writing or an optimizer step. An output without a
    connection returns its bias. A mask without any connection raises `PlanError`, as does a wrong shape or type.

    >>> layer = MaskedLinear(3, 2, torch.tensor([[True, False, True], [False, True, False]]))
    >>> layer
    MaskedLinear(in_features=3, out_features=2, bias=True, connections=3/6)
    >>> layer.weight.data.fill_(1).tolist() and layer.weight.tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """

    @checks_names
    def __init__(
        self,
        in_features: int,
        out_features: int,
        mask: Mask,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._register_mask(mask)

    @classmethod
    @checks_names
    def from_linear(cls, linear: nn.Linear, mask: Mask) -> MaskedLinear:
        """A copy of a linear layer with the connections of the mask only; the original is only read.

        >>> dense = nn.Linear(2, 2)
        >>> layer = MaskedLinear.from_linear(dense, torch.eye(2, dtype=torch.bool))
        >>> torch.equal(layer.weight.diag(), dense.weight.diag())
        True
        """
        _check_layer(linear, nn.Linear)
        made = cls(linear.in_features, linear.out_features, mask, linear.bias is not None, device="meta")
        return _with_parameters_of(made, linear, mask)

    def forward(self, input: Tensor) -> Tensor:
        """Computes `nn.Linear.forward` over the connections only."""
        return F.linear(input, self.weight * self.mask, self.bias)


class MaskedConv2d(Masked, nn.Conv2d):
    """A convolution with chosen connections: `nn.Conv2d` with the kernel weight * mask.

    Args:
        mask: booleans, or zeros and ones of any type, in a tensor or a numpy array; copied. Either
            [out_channels, in_channels / groups], True = the whole kernel between these channels is connected; the
            buffer `mask` then has the shape [out_channels, in_channels / groups, 1, 1]. Or the weight's shape
            [out_channels, in_channels / groups, h, w].
        others: as for `nn.Conv2d`.

    >>> layer = MaskedConv2d(2, 2, 3, torch.eye(2, dtype=torch.bool), padding=1)
    >>> layer.connections, layer(torch.randn(1, 2, 5, 5)).shape
    (18, torch.Size([1, 2, 5, 5]))
    """

    @checks_names
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        mask: Mask,
        stride: _size_2_t = 1,
        padding: str | _size_2_t = 0,
        dilation: _size_2_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self._register_mask(mask)

    @classmethod
    @checks_names
    def from_conv(cls, conv: nn.Conv2d, mask: Mask) -> MaskedConv2d:
        """A copy of a convolution with the connections of the mask only; the original is only read."""
        _check_layer(conv, nn.Conv2d)
        settings = (conv.stride, conv.padding, conv.dilation, conv.groups, conv.bias is not None, conv.padding_mode)
        made = cls(conv.in_channels, conv.out_channels, conv.kernel_size, mask, *settings, device="meta")  # type: ignore[arg-type]
        return _with_parameters_of(made, conv, mask)

    def forward(self, input: Tensor) -> Tensor:
        """Computes `nn.Conv2d.forward` over the connections only."""
        return self._conv_forward(input, self.weight * self.mask, self.bias)  # type: ignore[no-any-return]


def checked_mask(mask: Any, shape: torch.Size, at: str, *, empty: bool = False) -> Tensor:
    """Returns a copy of a mask that fits a weight of this shape: in the same shape, or with kernels of size 1.

    Raises `PlanError` for another type or shape, and for a mask without connections unless `empty` is True.
    """
    found = bool_mask(mask)
    if isinstance(found, str):
        do = "pass zeros and ones or booleans, in a tensor or a numpy array, True = connected: `mask != 0`"
        raise PlanError("a mask must be dense and boolean", at=at, why=found, do=do)
    mask = found
    channels, ones = tuple(shape[:2]), (1,) * (len(shape) - 2)
    if not ones and tuple(mask.shape) == (sum(channels),) * 2:
        return _block(mask, shape[0], shape[1], at)
    if tuple(mask.shape) not in (tuple(shape), channels, (*channels, *ones)):
        wanted = " or ".join(map(str, dict.fromkeys((channels, tuple(shape)))))
        turned = tuple(mask.shape) == channels[::-1]
        raise PlanError(
            "the mask has the wrong shape",
            at=at,
            why=f"it is {tuple(mask.shape)}, the layer needs {wanted}",
            do="pass mask.T: outputs come first, as in the weight" if turned else "outputs come first, then inputs",
        )
    if not empty and not mask.is_meta and not bool(mask.any()):
        raise PlanError("the mask connects nothing", at=at, why="no entry is True", do="connect at least one input")
    made: Tensor = mask.detach().clone(memory_format=torch.contiguous_format)
    return made.reshape(*channels, *ones) if mask.ndim == 2 else made


def _block(adjacency: Tensor, out_features: int, in_features: int, at: str) -> Tensor:
    """Returns the mask in the adjacency of all nodes of both layers: the inputs first, then the outputs."""
    inputs = range(in_features)
    try:
        return mask_from_adjacency(adjacency, inputs, range(in_features, in_features + out_features))
    except PlanError as error:
        order = f"read as the adjacency of {in_features} inputs and then {out_features} outputs: {error.why}"
        raise PlanError(error.what, at=at, why=order, do="pass the mask [outputs, inputs]") from None


def is_masked(module: nn.Module) -> bool:
    """True if a module is a `MaskedLinear` or `MaskedConv2d`, or of a subclass."""
    return isinstance(module, (MaskedLinear, MaskedConv2d))


def _zero_unconnected(weight: Any, mask: Tensor) -> None:
    """Writes zeros into a parameter where the mask is False, also over NaN, and leaves its version counter as it is.

    Gradients stay right, because forward multiplies those entries by zero. Only real parameters are written to;
    nothing is written under a compiler, a tracer, a transform of torch.func or a dispatch mode.
    """
    if type(weight) is not nn.Parameter or type(mask) is not Tensor:
        return
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    if traced or _get_current_dispatch_mode() is not None:
        return
    if weight.is_inference() and not torch.is_inference_mode_enabled():
        return
    bits = _BITS.get(weight.element_size())
    if bits is None:
        weight.data.masked_fill_(~mask, 0)
    else:  # whole numbers times 0 or 1: several times faster than masked_fill_
        weight.data.view(bits).mul_(mask)


def _check_layer(layer: Any, kind: type[nn.Module]) -> None:
    if not isinstance(layer, kind):
        raise PlanError(
            f"not an nn.{kind.__name__}",
            at=f"the argument of type {type(layer).__name__}",
            why=f"it is {type(layer).__name__}",
            do=f"pass an nn.{kind.__name__}",
        )
    if isinstance(layer._parameters.get("weight"), nn.parameter.UninitializedParameter):
        raise PlanError(
            "the layer has no shape yet", at=type(layer).__name__, why="it is lazy", do="run it once on a real input"
        )
    if layer._parameters.get("weight") is None:
        pruned = f"{kind.__name__} has weight_orig" if "weight_orig" in layer._parameters else "it is computed"
        raise PlanError(
            "the weight of the layer is no parameter",
            at=type(layer).__name__,
            why=pruned,
            do="use fxprune.sparse.from_prune" if "weight_orig" in layer._parameters else "remove its parametrization",
        )


def _with_parameters_of(made: LayerT, layer: Any, mask: Mask) -> LayerT:
    """Returns `made` with copies of the parameters of `layer`, this mask, and the same mode."""
    for name in ("weight", "bias"):
        old = layer._parameters.get(name)
        if old is not None:
            setattr(made, name, nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad))
    made._register_mask(mask)
    return made.train(layer.training)


def _weight_in_use(layer: Masked) -> Tensor:
    """The weight that forward uses: zero where nothing is connected."""
    return layer.weight * layer.mask


@leaf(MaskedLinear, weight=_weight_in_use)
def _masked_linear(call: LeafCall, input: Operand) -> Operand:
    """y[.., o] = sum_i x[.., i] * mask[o, i] * w[o, i] + b[o]"""
    weight, mask = call.parameter("weight"), call.parameter("mask")
    for a, b in zip(weight.vectors, mask.vectors, strict=True):
        call.same(a, b)
    return linear(call, input, weight, call.parameters.get("bias"))


@leaf(MaskedConv2d, weight=_weight_in_use)
def _masked_conv2d(call: LeafCall, input: Operand) -> Operand:
    """A convolution with the kernel w * mask."""
    weight, mask = call.parameter("weight"), call.parameter("mask")
    for a, b in zip(weight.vectors, mask.vectors, strict=True):
        if a.size == b.size:
            call.same(a, b)
    layer: Any = call.module
    bias = call.parameters.get("bias")
    return convolution(call, input, weight, bias, layer.stride, layer.padding, False, layer.groups)
