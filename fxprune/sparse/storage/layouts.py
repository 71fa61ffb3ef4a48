"""Layers whose weight is a sparse matrix: a linear layer, and a convolution that unfolds its input first."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.arguments import checks_arguments
from fxprune.errors import InputError, PlanError
from fxprune.sparse.storage.connections import connections, initial_bias
from fxprune.sparse.storage.matrices import Indices, Spec, no_beta_warning, stored_share
from fxprune.sparse.storage.products import product, refusal

BlockSize = tuple[int, int] | None


class SparseLayer(nn.Module):
    """The base of both layers. The weight is held only as the components of a sparse matrix: values and indices.

    values: the parameter, [stored], or [blocks, height, width] for "bsr". The indices are buffers: `crow_indices`
    [rows + 1] and `col_indices` [stored] for "csr" and "bsr", `indices` [2, stored] for "coo". All are dense tensors,
    so a state_dict of them is saved like any other. `load_state_dict` may bring another number of stored values; the
    components then change their sizes. It refuses components that do not fit each other or the layer, and leaves the
    layer as it was.
    """

    values: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, spec: Spec, groups: int, indices: Indices, values: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.spec, self.groups = spec, groups
        for name, index in zip(spec.names, indices, strict=True):
            self.register_buffer(name, index.contiguous())
        self.values = nn.Parameter(values)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

    @property
    def layout(self) -> str:
        """The layout of the weight: "csr", "coo" or "bsr"."""
        return self.spec.layout

    @property
    def density(self) -> float:
        """Stored values over the elements of the dense weight, in [0, 1]; all values of a stored block count."""
        return stored_share(self.values.numel(), self.weight_shape())

    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the dense weight."""
        raise NotImplementedError

    def dense_weight(self) -> Tensor:
        """The weight as a new dense tensor."""
        columns = self.spec.shape[1] // self.groups
        local = Spec(self.layout, (self.spec.shape[0], columns), self.spec.blocksize)
        indices = local.shifted(self.index_tensors(), self.groups, -columns)
        with no_beta_warning():
            return local.matrix(indices, self.values.detach()).to_dense().reshape(self.weight_shape())

    def to_dense(self) -> nn.Module:
        """Returns a new layer of torch with the same weight, zeros where nothing is stored."""
        raise NotImplementedError

    def index_tensors(self) -> Indices:
        """Returns the index tensors, in the order of the layout."""
        return tuple(getattr(self, name) for name in self.spec.names)

    def _with_own_tensors(self, dense: Any) -> Any:
        """Gives a layer on the meta device the weight, bias and mode of this layer; returns it."""
        dense.weight = nn.Parameter(self.dense_weight(), requires_grad=self.values.requires_grad)
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return dense.train(self.training)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        names = (*self.spec.names, "values")
        given = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        bias = state_dict.get(prefix + "bias")
        if given:
            self._check_components(given, bias, prefix.rstrip("."))
            for name, tensor in given.items():  # set the sizes first: torch then copies the values
                held = getattr(self, name)
                dtype = held.dtype if name == "values" else self.spec.index_dtype(given["values"].shape[0])
                held.grad = held.grad if held.shape == tensor.shape else None
                held.data = torch.empty(tensor.shape, dtype=dtype, device=held.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_components(self, given: dict[str, Any], bias: Any, at: str) -> None:
        """Raises `PlanError` unless all components are there and fit each other and this layer."""
        names, where = (*self.spec.names, "values"), f'layer "{at}"' if at else type(self).__name__
        if missing := [name for name in names if name not in given]:
            raise PlanError(
                "a state_dict holds only a part of a sparse weight",
                at=where,
                why=f"{', '.join(given)} without {', '.join(missing)} mean nothing",
                do=f"load {', '.join(names)} together",
            )
        if bias is not None and self.bias is not None and bias.shape != self.bias.shape:
            why = f"its shape is {tuple(bias.shape)}, that of the layer {tuple(self.bias.shape)}"
            raise PlanError(
                "the bias of a state_dict does not fit", at=where, why=why, do="load it into a layer of the same size"
            )
        try:
            indices = tuple(self._checked_index(name, given[name]) for name in self.spec.names)
            values = given["values"].detach()
            if not values.is_floating_point():
                raise ValueError(f"values are {values.dtype}, not floating")
            if self.spec.blocksize and tuple(values.shape[1:]) != self.spec.blocksize:
                raise ValueError(f"values of shape {tuple(values.shape)} are no blocks of {self.spec.blocksize}")
            self.spec.matrix(indices, values, check=True)
            if self.groups > 1:
                self._check_groups(indices)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise PlanError(
                "the components of a sparse weight contradict each other or the layer",
                at=f"{where}, {self.layout} {list(self.spec.shape)}",
                why=str(error).partition("\n")[0],
                do="load the state_dict of a layer of the same layout, shape and blocksize",
            ) from None

    def _checked_index(self, name: str, index: Tensor) -> Tensor:
        if index.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} are {index.dtype}, not int32 or int64")
        return index if self.layout != "coo" else index.long()

    def _check_groups(self, indices: Indices) -> None:
        rows, columns = self.spec.rows_and_columns(indices)
        height, width = self.spec.blocksize or (1, 1)
        a_row, a_column = (self.spec.shape[i] // self.groups // (height, width)[i] for i in (0, 1))
        if bool((rows // a_row != columns // a_column).any()):
            raise ValueError(f"an index leads out of its group: there are {self.groups} groups")


class SparseLinear(SparseLayer):
    """y = x @ w.T + b, w [out_features, in_features] a sparse matrix: `nn.Linear` after `fxprune.sparse.sparsify`.

    x: [.., in_features], with any leading dimensions. `values`, `bias` and x get gradients; weights that are not stored
    get none.

    >>> import torch
    >>> from fxprune.sparse import sparsify
    >>> dense = torch.nn.Linear(3, 2, bias=False)
    >>> dense.weight.data = torch.tensor([[0.5, 0.0, -2.0], [0.1, 3.0, 0.0]])
    >>> layer = sparsify(dense, 0.2)
    >>> layer.values.tolist(), layer.col_indices.tolist(), layer.crow_indices.tolist()
    ([0.5, -2.0, 3.0], [0, 2, 1], [0, 2, 3])
    >>> layer(torch.ones(3)).tolist()
    [-1.5, 3.0]
    """

    @checks_arguments()
    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, layout: str = "csr", blocksize: BlockSize = None
    ) -> None:
        spec = Spec(layout, (weight.shape[0], weight.shape[1]), blocksize)
        with no_beta_warning():
            indices, values = spec.components(weight)
        super().__init__(spec, 1, indices, values, bias)
        self.out_features, self.in_features = weight.shape

    @classmethod
    @checks_arguments()
    def from_indices(
        cls,
        in_features: int,
        out_features: int,
        indices: Tensor | np.ndarray[Any, Any],
        values: Tensor | None = None,
        *,
        bias: bool | Tensor = True,
        layout: str = "csr",
        dtype: torch.dtype | None = None,
    ) -> SparseLinear:
        """Returns a layer with the given connections, for sizes at which no dense weight fits into memory.

        A connection takes 8 bytes in "csr", and 20 in "coo", in float32; its gradient takes 4. What else is held does
        not grow with in_features * out_features. While the layer is made, up to 40 bytes more.

        Args:
            in_features, out_features: the sizes of the layer.
            indices: integers [2, connections], in any order: the outputs (rows), then the inputs (columns). So it is
                in `mask.nonzero().T` and in `indices()` of a sparse tensor of torch.
            values: [connections], copied. None draws them as `nn.Linear` does for this number of inputs: uniform in
                +-1 / sqrt(k), where output o has k connections.
            bias: True, False, or its values [out_features].
            layout: "csr" or "coo".
            dtype: the type of drawn values.

        Raises `PlanError` for indices that do not fit the sizes, and for a connection that is named twice.

        >>> import torch
        >>> layer = SparseLinear.from_indices(1_000_000, 1_000_000, torch.tensor([[0, 5, 0], [7, 7, 2]]))
        >>> layer
        SparseLinear(1000000, 1000000, bias=True, layout=csr, stored=3, density=0.000)
        >>> layer.col_indices.tolist()
        [2, 7, 7]
        """
        where = torch.as_tensor(indices)
        spec = Spec(layout, (out_features, in_features))
        found, drawn = connections(spec, where, values, dtype)
        made: SparseLinear = cls.__new__(cls)
        if isinstance(bias, Tensor) and bias.shape != (out_features,):
            raise PlanError(
                "the bias does not fit",
                at="SparseLinear.from_connections",
                why=f"its shape is {tuple(bias.shape)}, not ({out_features},)",
                do=f"pass a bias of {out_features} numbers, True or False",
            )
        drawn_bias = initial_bias(spec, found, drawn) if bias is True else None
        offset = bias.detach().clone() if isinstance(bias, Tensor) else drawn_bias
        SparseLayer.__init__(made, spec, 1, found, drawn, offset)
        made.out_features, made.in_features = out_features, in_features
        with no_beta_warning():
            spec.matrix(found, drawn)  # so that torch's first sparse matrix of the process warns of nothing later
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Computes `nn.Linear.forward`."""
        spec = self.spec
        matrix = (spec.layout, spec.shape, spec.blocksize)
        return sparse_linear(input, self.values, self.bias, self.index_tensors(), *matrix)

    def weight_shape(self) -> tuple[int, ...]:
        """[out_features, in_features]."""
        return (self.out_features, self.in_features)

    def to_dense(self) -> nn.Linear:
        """An `nn.Linear` with the same weight, zeros where nothing is stored."""
        sizes = (self.in_features, self.out_features, self.bias is not None)
        dense: nn.Linear = self._with_own_tensors(nn.Linear(*sizes, device="meta"))
        return dense

    def extra_repr(self) -> str:
        """The text of `nn.Linear`, the layout and the number of stored values."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {_storage_text(self)}"


class SparseConv2d(SparseLayer):
    """A convolution as a sparse matrix [out_channels, in_channels * kh * kw] times the unfolded input.

    y[n, o, l] = sum_k w[o, k] * unfold(x)[n, k, l] + b[o], where l counts the positions of the output
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.Unfold.html). x: [n, c, h, w] or [c, h, w].

    A kernel of 1 x 1 needs no unfolding; for other kernels the unfolded input has about kh * kw times the elements of
    the input. With `groups` > 1 the matrix is block-diagonal, and the zeros outside the blocks are not stored.
    """

    @checks_arguments()
    def __init__(
        self, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, *, layout: str, blocksize: BlockSize
    ) -> None:
        shape = (conv.out_channels, weight[0].numel() * conv.groups)
        spec, groups = Spec(layout, shape, blocksize), conv.groups
        with no_beta_warning():
            indices, values = spec.components(weight.flatten(1))
        super().__init__(spec, groups, spec.shifted(indices, groups, shape[1] // groups), values, bias)
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode = conv.padding, conv.padding_mode
        self.pads: tuple[int, ...] = tuple(conv._reversed_padding_repeated_twice)

    def forward(self, input: Tensor) -> Tensor:
        """Computes `nn.Conv2d.forward`."""
        return sparse_conv2d(
            input,
            self.values,
            self.bias,
            self.index_tensors(),
            *(self.layout, self.spec.shape, self.spec.blocksize),
            kernel=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            pads=self.pads,
            padding_mode=self.padding_mode,
        )

    def weight_shape(self) -> tuple[int, ...]:
        """[out_channels, in_channels / groups, kh, kw]."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def to_dense(self) -> nn.Conv2d:
        """An `nn.Conv2d` with the same weight, zeros where nothing is stored."""
        dense: nn.Conv2d = self._with_own_tensors(self._empty_dense())
        return dense

    def extra_repr(self) -> str:
        """The text of `nn.Conv2d`, the layout and the number of stored values."""
        return f"{self._empty_dense().extra_repr()}, {_storage_text(self)}"  # type: ignore[no-untyped-call]

    def _empty_dense(self) -> nn.Conv2d:
        """Returns the dense layer on the meta device."""
        return nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            self.groups,
            self.bias is not None,
            self.padding_mode,
            device="meta",
        )


def sparse_linear(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    indices: Indices,
    layout: str,
    shape: tuple[int, int],
    blocksize: BlockSize,
) -> Tensor:
    """Computes the forward of `SparseLinear`. It is a separate function, so that fx traces it as one node."""
    if not input.ndim or input.shape[-1] != shape[1]:
        raise InputError(
            "the input does not fit a sparse linear layer",
            at="SparseLinear",
            why=f"its shape is {tuple(input.shape)}, the layer takes [.., {shape[1]}]",
            do=f"pass an input with {shape[1]} features",
        )
    x = input if input.ndim == 2 else input.reshape(-1, shape[1])
    y = _multiply(values, x.t(), indices, layout, shape, blocksize).t()
    y = y.contiguous() if bias is None else (y + bias).contiguous()
    return y if input.ndim == 2 else y.view(*input.shape[:-1], shape[0])


def sparse_conv2d(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    indices: Indices,
    layout: str,
    shape: tuple[int, int],
    blocksize: BlockSize,
    *,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    pads: tuple[int, ...],
    padding_mode: str,
) -> Tensor:
    """Computes the forward of `SparseConv2d`; one node for fx. pads: (left, right, top, bottom), as for `F.pad`."""
    channels = shape[1] // (kernel[0] * kernel[1])
    if input.ndim not in (3, 4) or input.shape[-3] != channels:
        raise InputError(
            "the input does not fit a sparse convolution",
            at="SparseConv2d",
            why=f"its shape is {tuple(input.shape)}, the layer takes [n, {channels}, h, w] or [{channels}, h, w]",
            do=f"pass an input with {channels} channels",
        )
    x = input if input.ndim == 4 else input[None]
    if any(pads):
        x = F.pad(x, pads, "constant" if padding_mode == "zeros" else padding_mode)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    sizes = [(s - span) // step + 1 for s, span, step in zip(x.shape[-2:], spans, stride, strict=True)]
    if min(sizes) < 1:
        raise InputError(
            "the input of a sparse convolution is smaller than its kernel",
            at="SparseConv2d",
            why=f"padded it is {tuple(x.shape[-2:])}, the kernel spans {tuple(spans)}",
            do="pass a larger input, or a layer with more padding",
        )
    if kernel == (1, 1):
        columns = x[..., :: stride[0], :: stride[1]].transpose(0, 1)
    else:
        columns = F.unfold(x, kernel, dilation, 0, stride).transpose(0, 1)
    y = _multiply(values, columns.reshape(shape[1], -1), indices, layout, shape, blocksize)
    y = y if bias is None else y + bias[:, None]
    y = y.view(shape[0], x.shape[0], *sizes).transpose(0, 1).contiguous()
    return y if input.ndim == 4 else y[0]


fx.wrap("sparse_linear")
fx.wrap("sparse_conv2d")


def _multiply(
    values: Tensor, x: Tensor, indices: Indices, layout: str, shape: tuple[int, int], blocksize: BlockSize
) -> Tensor:
    """Returns the product [rows, n]. Under autocast x is cast to the type of the values; else it must have it."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return _multiply(values, x.to(values.dtype), indices, layout, shape, blocksize)
    if x.dtype != values.dtype or x.device != values.device:
        raise InputError(
            "input and weight of a sparse layer differ in type or device",
            at="a sparse layer",
            why=f"the input is {x.dtype} on {x.device}, the weight {values.dtype} on {values.device}",
            do="move one to the other with `.to(...)`",
        )
    try:
        return product(values, x, indices, layout, shape, blocksize)
    except (RuntimeError, NotImplementedError) as error:
        why = refusal(Spec(layout, shape, blocksize), x.dtype, x.device)
        if not why:
            raise
        what = f"this build of torch has no product of layout {layout} for {x.dtype} on {device}"
        raise InputError(
            what, at="a sparse layer", why=why, do="take another layout or type, or go back with `to_dense()`"
        ) from error


def _storage_text(layer: SparseLayer) -> str:
    block = "" if layer.spec.blocksize is None else f", blocksize={layer.spec.blocksize}"
    return f"layout={layer.layout}{block}, stored={layer.values.numel()}, density={layer.density:.3f}"
