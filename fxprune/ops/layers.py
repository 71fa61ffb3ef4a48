"""The output dimension of a parameter: the dimension with one slot for each output of its layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules import batchnorm, conv, rnn

OUTPUT_DIMS: Mapping[type[nn.Module], int] = {
    conv._ConvTransposeNd: 1,  # [in, out / groups, ...]
    conv._ConvNd: 0,  # [out, in / groups, ...]
    nn.Linear: 0,  # [out, in]
    nn.Bilinear: 0,  # [out, in1, in2]
    nn.Embedding: 1,  # [entries, out]
    nn.EmbeddingBag: 1,
    nn.MultiheadAttention: 0,  # in_proj_weight [3 out, in], q_proj_weight and its kind [out, in]
    nn.RNNBase: 0,  # weight_ih [gates x hidden, in], weight_hh [gates x hidden, hidden], weight_hr [out, hidden]
    rnn.RNNCellBase: 0,
}
"""Type of a layer -> the output dimension of its weights. A subclass has that of its nearest base class."""


_WIDTHS: Mapping[type[nn.Module], Mapping[str, int]] = {
    conv._ConvTransposeNd: {"in_channels": 0, "out_channels": 1},
    conv._ConvNd: {"out_channels": 0, "in_channels": 1},
    nn.Linear: {"out_features": 0, "in_features": 1},
    nn.Embedding: {"embedding_dim": 1},
    nn.EmbeddingBag: {"embedding_dim": 1},
    batchnorm._NormBase: {"num_features": 0},
    nn.GroupNorm: {"num_channels": 0},
}
"""Type of a layer -> its attributes that are a size of its weight, each with the dimension."""


def widths_of(module: nn.Module) -> Mapping[str, int]:
    """The attributes of one of torch's layers that are a size of its weight, each with the dimension.

    With groups, some are a multiple of that size.

    >>> dict(widths_of(nn.Linear(2, 3)))
    {'out_features': 0, 'in_features': 1}
    """
    if not type(module).__module__.startswith("torch.nn."):
        return {}
    return next((_WIDTHS[kind] for kind in type(module).__mro__ if kind in _WIDTHS), {})


_RECURRENT = re.compile(r"weight_hh(?:_l(\d+)(?:_reverse)?)?")


def weights_of_state(shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """The weights of a recurrent layer with one column for each output: that of each direction in the last layer.

    shapes: of the layer's parameters. Returns () if it is no recurrent layer. Rows of these weights are those of the
    gates, and a projection makes fewer outputs than there are in the state of its cell.

    >>> weights_of_state({name: p.shape for name, p in nn.LSTM(3, 4, 2, bidirectional=True).named_parameters()})
    ('weight_hh_l1', 'weight_hh_l1_reverse')
    """
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    numbers = {name: int(found[1] or 0) for name in matrices if (found := _RECURRENT.fullmatch(name))}
    last = max(numbers.values(), default=0)
    return tuple(name for name, number in numbers.items() if number == last)


def output_dim(module: nn.Module, ndim: int) -> int:
    """The output dimension of a parameter of this module, 0 where it is unknown. ndim: its number of dimensions."""
    return known_output_dim(module, ndim) or 0


def known_output_dim(module: nn.Module, ndim: int) -> int | None:
    """The output dimension of a parameter, None in a module that is not of torch: its parameters may mean anything.

    Biases and the parameters of norms have their outputs in dimension 0.

    >>> known_output_dim(nn.ConvTranspose2d(3, 8, 1), 4), known_output_dim(nn.ConvTranspose2d(3, 8, 1), 1)
    (1, 0)
    """
    dim = _of_layer(module)
    if dim is not None:
        return dim if ndim > 1 else 0
    return 0 if type(module).__module__.startswith("torch.nn") else None


def output_dim_by_name(class_name: str, ndim: int) -> int:
    """The output dimension of a parameter of the layer of torch that has this name, 0 where there is none.

    >>> output_dim_by_name("Embedding", 2), output_dim_by_name("Conv2d", 4), output_dim_by_name("MyLayer", 2)
    (1, 0, 0)
    """
    kind = getattr(nn, class_name, None)
    found = _of_kind(kind) if isinstance(kind, type) else None
    return found if found is not None and ndim > 1 else 0


def weight_output_dim(module: nn.Module, name: str, ndim: int) -> int | None:
    """The output dimension of a parameter if it is the weight of a layer, None if not.

    name: its name in the module, such as "weight" or "weight_ih".

    >>> weight_output_dim(nn.Linear(2, 3), "weight", 2), weight_output_dim(nn.Linear(2, 3), "bias", 1)
    (0, None)
    """
    return _of_layer(module) if "weight" in name and ndim > 1 else None


def _of_layer(module: nn.Module) -> int | None:
    """The entry of `OUTPUT_DIMS` for a module, None if it is no such layer."""
    return _of_kind(type(module))


def _of_kind(layer: type) -> int | None:
    return next((OUTPUT_DIMS[kind] for kind in layer.__mro__ if kind in OUTPUT_DIMS), None)
