"""Layers that are sparse during training, and move connections to inputs and outputs that are active together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.arguments import checks_arguments, checks_names
from fxprune.errors import PlanError
from fxprune.schedules import Schedule
from fxprune.sparse.dynamic import selection
from fxprune.sparse.dynamic.base import DynamicSparse
from fxprune.sparse.dynamic.selection import Update

CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
LINEAR = ("in_features", "out_features")


class DynamicSparseConv2d(DynamicSparse, nn.Conv2d):
    """A convolution with only some of its connections; `update` replaces weak ones by strong ones.

    y = conv2d(x, where(mask, weight, 0), bias). The strength of a connection, active or not, is how often its input and
    output are active together (`fxprune.sparse.coactivation`; Hebb's rule). In training mode every `every`-th forward
    adds to the strengths; in evaluation mode nothing is counted.

    Args:
        in_channels ... dtype: as for `nn.Conv2d`.
        sparsity: the share of connections that are not active, in [0, 1). A number, or a schedule
            (`fxprune.schedules`) whose steps are the forwards in training mode: AGP(0.0, 0.9, steps=1000) begins dense.
            Every slice keeps at least one connection. Without it the layer has the numbers of the notes that it goes
            back to: of n connections in a slice k2 = int(0.15 n) are active and k1 = int(0.1 n) keep their value in an
            update, each at least 1; a slice is then a kernel by default, dims=(0, 1), if it has several connections.
        regrow: the share of the active connections that an update replaces, in [0, 1), or a schedule; by default 0.3,
            or the share that the notes have.
        dims: the dimensions of the weight [c_out, c_in / groups, k, k] that divide it into slices: one slice for every
            combination of their indices. Connections compete within their slice. With (0,) a slice is an output
            channel, with (0, 1) a pair of channels, with () the whole layer. By default (0,).
        every: every `every`-th forward in training mode is counted.
        threshold: an input or output counts as active if it is above the threshold.
        growth: "coactivation", or "random", which counts nothing.

    `mask` is a buffer. `strengths` (int64, of the weight's shape) and `steps` are in the state_dict, but no buffers.

    Raises `PlanError` for bad arguments.

    >>> DynamicSparseConv2d(3, 6, 5).mask.sum((2, 3))[0]
    tensor([3, 3, 3])
    >>> _ = torch.manual_seed(0)
    >>> layer = DynamicSparseConv2d(3, 4, 3, sparsity=0.8)
    >>> _ = layer(torch.randn(8, 3, 9, 9))
    >>> layer.update()
    Update(kept=4, grown=16, pruned=16, sparsity=0.8148148148148149)
    """

    @checks_names
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        sparsity: float | Schedule | None = None,
        regrow: float | Schedule | None = None,
        dims: Sequence[int] | None = None,
        every: int = 20,
        threshold: float = 0.0,
        growth: str = "coactivation",
    ) -> None:
        super().__init__(
            *(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                dilation,
                groups,
                bias,
                padding_mode,
                device,
                dtype,
            )
        )
        self._set_up(sparsity, regrow, dims=dims, every=every, threshold=threshold, growth=growth)

    @classmethod
    @checks_names
    def from_dense(cls, layer: nn.Conv2d, **options: Any) -> DynamicSparseConv2d:
        """Returns a dynamic layer with the weights of a convolution where the new mask is True; only reads `layer`."""
        _check_type(layer, nn.Conv2d)
        return _with_values_of(layer, cls(**_arguments(layer, CONV), **options))

    def forward(self, input: Tensor) -> Tensor:
        """Maps [n, c_in, h, w] to [n, c_out, h', w']; counts coactivations in training mode."""
        output: Tensor = self._conv_forward(input, self.masked_weight(), self.bias)
        if self.training:
            self._count_coactivation(input, output)
        return output

    def squashed(self) -> nn.Conv2d:
        """Returns an `nn.Conv2d` that computes the same, with the mask multiplied into a copy of the weight."""
        return _with_values_of(self, nn.Conv2d(**_arguments(self, CONV)))


class DynamicSparseLinear(DynamicSparse, nn.Linear):
    """A linear layer with only some of its connections: y = x @ where(mask, weight, 0).T + bias.

    Options and behaviour are those of `DynamicSparseConv2d`, for a weight [out_features, in_features].

    >>> layer = DynamicSparseLinear(10, 5, sparsity=0.8)
    >>> layer.mask.sum(1)
    tensor([2, 2, 2, 2, 2])
    """

    @checks_names
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        sparsity: float | Schedule | None = None,
        regrow: float | Schedule | None = None,
        dims: Sequence[int] | None = None,
        every: int = 20,
        threshold: float = 0.0,
        growth: str = "coactivation",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._set_up(sparsity, regrow, dims=dims, every=every, threshold=threshold, growth=growth)

    @classmethod
    @checks_names
    def from_dense(cls, layer: nn.Linear, **options: Any) -> DynamicSparseLinear:
        """Returns a dynamic layer with the weights of a linear layer where the new mask is True; only reads `layer`."""
        _check_type(layer, nn.Linear)
        return _with_values_of(layer, cls(**_arguments(layer, LINEAR), **options))

    def forward(self, input: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]; counts coactivations in training mode."""
        output = F.linear(input, self.masked_weight(), self.bias)
        if self.training:
            self._count_coactivation(input, output)
        return output

    def squashed(self) -> nn.Linear:
        """Returns an `nn.Linear` that computes the same, with the mask multiplied into a copy of the weight."""
        return _with_values_of(self, nn.Linear(**_arguments(self, LINEAR)))


@checks_arguments("model")
def update_layers(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **options: Any
) -> dict[str, Update]:
    """Calls `update` of every dynamic layer of a model; returns {name of the layer: result}.

    optimizer, options: as for `DynamicSparseConv2d.update`. The optimizer is checked for all layers before the first
    one changes. Raises `PlanError` if the model has no dynamic layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, DynamicSparse)}
    if not layers:
        raise PlanError(
            f"{type(model).__name__} has no dynamic layer",
            at="update_layers",
            why="only these have connections that move",
            do="use DynamicSparseConv2d or DynamicSparseLinear, or their from_dense",
        )
    for layer in layers.values():
        selection.check_optimizer(optimizer, layer.weight)
    return {name: layer.update(optimizer, **options) for name, layer in layers.items()}


def _arguments(layer: Any, names: Sequence[str]) -> dict[str, Any]:
    """Returns the arguments that make a layer of the same sizes."""
    kind = {"bias": layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    return {name: getattr(layer, name) for name in names} | kind


def _check_type(layer: Any, kind: type[nn.Module]) -> None:
    if not isinstance(layer, kind) or isinstance(layer, DynamicSparse):
        raise PlanError(
            f"from_dense takes an nn.{kind.__name__}, not {type(layer).__name__}",
            at="from_dense",
            why="its sizes and weights are taken over",
            do=f"pass a plain nn.{kind.__name__}",
        )


Made = TypeVar("Made", nn.Linear, nn.Conv2d, "DynamicSparseConv2d", "DynamicSparseLinear")


@torch.no_grad()
def _with_values_of(source: Any, made: Made) -> Made:
    """Copies weight, bias, mode and `requires_grad` of `source` into `made`, and returns `made`."""
    made.weight.copy_(source.masked_weight() if isinstance(source, DynamicSparse) else source.weight)
    made.weight.requires_grad_(source.weight.requires_grad)
    if isinstance(made, DynamicSparse):
        made.weight.copy_(made.masked_weight())
    if made.bias is not None:
        made.bias.copy_(source.bias)
        made.bias.requires_grad_(source.bias.requires_grad)
    made.train(source.training)
    return made
