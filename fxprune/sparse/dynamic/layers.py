"""Layers that are sparse while they train, and move their connections to where input and output are active together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.errors import PlanError
from fxprune.schedules import Schedule
from fxprune.sparse.dynamic import regrow as growing
from fxprune.sparse.dynamic.base import DynamicSparse
from fxprune.sparse.dynamic.regrow import Update

CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
LINEAR = ("in_features", "out_features")


class DynamicSparseConv2d(DynamicSparse, nn.Conv2d):
    """A convolution of which only some connections exist; `update` moves them to where they are strong.

    y = conv2d(x, where(mask, weight, 0), bias). In training mode every `every`-th forward adds to the strength of each
    connection, active or not, how often its input and output are active together (`coactivation`: Hebb's "what fires
    together wires together"). In evaluation mode nothing is counted.

    Args:
        in_channels ... dtype: those of `nn.Conv2d`.
        sparsity: the share of connections that are not active, in [0, 1): a number, or a schedule over the forwards in
            training mode (`fxprune.schedules`), so that AGP(0.0, 0.9, steps=1000) goes from dense to sparse. Every
            slice keeps at least one connection.
        regrow: the share of the active connections that an update replaces, in [0, 1), or a schedule.
        dims: one slice for every combination of indices in these dimensions of the weight [c_out, c_in / groups, k, k];
            connections compete within their slice. (0,) per output channel, (0, 1) per pair of channels, () the layer.
        every: how many forwards from one count to the next.
        threshold: an input or output is active above it.
        growth: "coactivation", or "random", which counts nothing.

    mask is a buffer. `strengths` (int64, of the weight's shape) and `steps` are in the state dict, but are no buffers.

    Raises `PlanError` for bad arguments.

    >>> _ = torch.manual_seed(0)
    >>> layer = DynamicSparseConv2d(3, 4, 3, sparsity=0.8)
    >>> _ = layer(torch.randn(8, 3, 9, 9))
    >>> layer.update()
    Update(kept=4, grown=16, pruned=16, sparsity=0.8148148148148149)
    """

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
        sparsity: float | Schedule,
        regrow: float | Schedule = 0.3,
        dims: Sequence[int] = (0,),
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
    def from_dense(cls, layer: nn.Conv2d, **options: Any) -> DynamicSparseConv2d:
        """A dynamic layer with the values of a convolution where the new mask has them; `layer` is left alone."""
        _same_kind(layer, nn.Conv2d)
        return _with_values_of(layer, cls(**_arguments(layer, CONV), **options))

    def forward(self, input: Tensor) -> Tensor:
        """[n, c_in, h, w] to [n, c_out, h', w']; in training mode counts, see the class."""
        output: Tensor = self._conv_forward(input, self.masked_weight(), self.bias)
        if self.training:
            self._count(input, output)
        return output

    def squashed(self) -> nn.Conv2d:
        """An `nn.Conv2d` that computes the same, the mask multiplied into its weight; shares nothing with this one."""
        return _with_values_of(self, nn.Conv2d(**_arguments(self, CONV)))


class DynamicSparseLinear(DynamicSparse, nn.Linear):
    """A linear layer of which only some connections exist: y = x @ where(mask, weight, 0).T + bias.

    Everything else as in `DynamicSparseConv2d`, with a weight [out_features, in_features].

    >>> layer = DynamicSparseLinear(10, 5, sparsity=0.8)
    >>> layer.mask.sum(1)
    tensor([2, 2, 2, 2, 2])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        sparsity: float | Schedule,
        regrow: float | Schedule = 0.3,
        dims: Sequence[int] = (0,),
        every: int = 20,
        threshold: float = 0.0,
        growth: str = "coactivation",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._set_up(sparsity, regrow, dims=dims, every=every, threshold=threshold, growth=growth)

    @classmethod
    def from_dense(cls, layer: nn.Linear, **options: Any) -> DynamicSparseLinear:
        """A dynamic layer with the values of a linear layer where the new mask has them; `layer` is left alone."""
        _same_kind(layer, nn.Linear)
        return _with_values_of(layer, cls(**_arguments(layer, LINEAR), **options))

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]; in training mode counts."""
        output = F.linear(input, self.masked_weight(), self.bias)
        if self.training:
            self._count(input, output)
        return output

    def squashed(self) -> nn.Linear:
        """An `nn.Linear` that computes the same, the mask multiplied into its weight; shares nothing with this one."""
        return _with_values_of(self, nn.Linear(**_arguments(self, LINEAR)))


def update_layers(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **options: Any
) -> dict[str, Update]:
    """`update` of every dynamic layer of a model, by name; what each did. All are asked before the first changes.

    Raises `PlanError` where there is none.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, DynamicSparse)}
    if not layers:
        raise PlanError(
            f"{type(model).__name__} has no dynamic layer",
            do="use DynamicSparseConv2d or DynamicSparseLinear, or their from_dense",
        )
    for layer in layers.values():
        growing.check_optimizer(optimizer, layer.weight)
    return {name: layer.update(optimizer, **options) for name, layer in layers.items()}


def _arguments(layer: Any, names: Sequence[str]) -> dict[str, Any]:
    """The arguments that make a layer of the same sizes."""
    kind = {"bias": layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    return {name: getattr(layer, name) for name in names} | kind


def _same_kind(layer: Any, kind: type[nn.Module]) -> None:
    if not isinstance(layer, kind) or isinstance(layer, DynamicSparse):
        raise PlanError(f"from_dense takes an nn.{kind.__name__}, not {type(layer).__name__}")


Made = TypeVar("Made", nn.Linear, nn.Conv2d, "DynamicSparseConv2d", "DynamicSparseLinear")


@torch.no_grad()
def _with_values_of(source: Any, made: Made) -> Made:
    """`made` with the weight and bias of `source`, its mode and what of it is trained; in place."""
    made.weight.copy_(source.masked_weight() if isinstance(source, DynamicSparse) else source.weight)
    made.weight.requires_grad_(source.weight.requires_grad)
    if isinstance(made, DynamicSparse):
        made.weight.copy_(made.masked_weight())
    if made.bias is not None:
        made.bias.copy_(source.bias)
        made.bias.requires_grad_(source.bias.requires_grad)
    made.train(source.training)
    return made
