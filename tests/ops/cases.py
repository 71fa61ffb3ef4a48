"""The op table: one row per operation and form, with what must happen to the channels that enter it.

Every row is run inside the same net, producer -> operation -> consumer, where the producer opens the channels of
one axis and the consumer sums over them. Sizes are prime where the operation lets them be, so that no two axes can
be taken for each other; weights have both signs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

IMAGE = (2, 11, 5, 7)
EVEN = (2, 12, 5, 7)
VOLUME = (2, 11, 3, 5, 7)
SEQUENCE = (2, 11, 7)
TOKENS = (2, 5, 11)
FLAT = (2, 11)

SUMS = "sums over the channels; the shrink test compares the numbers"
RANDOM = "the operation is random"
ENTRIES = "how many entries there are is data, which fake tensors do not have"
INSIDE = "a layer inside the row sums over the channels; the shrink test compares the numbers"


@dataclass(frozen=True)
class OpCase:
    """One row.

    make: a fresh module that is the operation.
    shape: of the tensor that enters it. axis, out: the channel axis of that tensor and of the result; out is None
        where the result has none.
    expect: "exact", "inexact" or "refused". says: for the last, the operator and the reason that the report gives.
    loses: parameters that must get smaller, each as "name[dim]". "producer" is the layer before the operation, left
        out where `alone`: there the operation reads the graph input.
    takes_input: the operation gets the graph input as a second argument.
    train: the model is in training mode.
    mixes: why the transfer test has nothing to compare. ties: why the rule ties more slots than the operation does.
    unruled: whether the operation has no rule at all.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGE
    expect: str = "exact"
    says: tuple[str, ...] = ()
    axis: int = 1
    out: int | None = 1
    loses: tuple[str, ...] = ("producer.weight[0]",)
    alone: bool = False
    indices: int = 0
    takes_input: bool = False
    train: bool = False
    mixes: str = ""
    ties: str = ""
    unruled: bool = False

    def __post_init__(self) -> None:
        assert self.expect in ("exact", "inexact", "refused")
        assert bool(self.says) == (self.expect == "refused"), self.name


class Op(nn.Module):
    """A function of tensors as a module: what it needs besides its input is a parameter, a buffer or a layer."""

    def __init__(self, function: Callable[..., torch.Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        self.parts = list(parts)
        for name, part in parts.items():
            if isinstance(part, tuple):
                setattr(self, name, nn.Parameter(torch.randn(part)))
            elif isinstance(part, torch.Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part())

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs, **{name: getattr(self, name) for name in self.parts})


def fn(function: Callable[..., torch.Tensor], **parts: Any) -> Callable[[], nn.Module]:
    """Makes `Op`s: a shape becomes a random parameter, a tensor a buffer, a callable a layer."""
    return lambda: Op(function, **parts)


# -- contractions -----------------------------------------------------------------------------------------------

CONV: dict[str, Any] = {"mixes": SUMS, "loses": ("producer.weight[0]", "op.weight[0]", "op.weight[1]")}
GROUPED: dict[str, Any] = {
    "shape": EVEN,
    "mixes": SUMS,
    "loses": ("producer.weight[0]", "op.weight[0]", "op.weight[1]"),
}
DEPTHWISE: dict[str, Any] = {"loses": ("producer.weight[0]", "op.weight[0]")}
LAST: dict[str, Any] = {"shape": TOKENS, "axis": -1, "out": -1}
GONE: dict[str, Any] = {"out": None, "mixes": SUMS}

CONTRACTIONS = [
    OpCase("Linear", lambda: nn.Linear(11, 13), FLAT, **CONV),
    OpCase("Linear without bias", lambda: nn.Linear(11, 13, bias=False), FLAT, **CONV),
    OpCase("Linear on tokens", lambda: nn.Linear(11, 13), **LAST, **CONV),
    OpCase(
        "linear function",
        fn(lambda h, weight, bias: F.linear(h, weight, bias), weight=(13, 11), bias=(13,)),
        **LAST,
        **CONV,
    ),
    OpCase("linear function without bias", fn(lambda h, weight: F.linear(h, weight), weight=(13, 11)), FLAT, **CONV),
    OpCase(
        "addmm", fn(lambda h, bias, weight: torch.addmm(bias, h, weight), bias=(13,), weight=(11, 13)), FLAT, **CONV
    ),
    OpCase(
        "baddbmm",
        fn(lambda h, bias, weight: torch.baddbmm(bias, h, weight), bias=(2, 1, 13), weight=(2, 11, 13)),
        **LAST,
        mixes=SUMS,
        loses=("producer.weight[0]", "op.weight[1]", "op.weight[2]"),
    ),
    OpCase("matmul with a parameter", fn(lambda h, weight: h @ weight, weight=(11, 13)), **LAST, **CONV),
    OpCase("matmul from the left", fn(lambda h, weight: torch.matmul(weight, h), weight=(13, 11)), SEQUENCE, **CONV),
    OpCase(
        "matmul method with a vector",
        fn(lambda h, weight: h.matmul(weight), weight=(11,)),
        axis=-1,
        shape=TOKENS,
        **GONE,
    ),
    OpCase("mm", fn(lambda h, weight: torch.mm(h, weight), weight=(11, 13)), FLAT, **CONV),
    OpCase("mv", fn(lambda h, weight: torch.mv(h, weight), weight=(11,)), FLAT, **GONE),
    OpCase("bmm", fn(lambda h: torch.bmm(h.transpose(1, 2), h)), SEQUENCE, **GONE),
    OpCase(
        "bmm, channels kept",
        fn(lambda h, weight: torch.bmm(h, weight), weight=(2, 7, 3)),
        SEQUENCE,
    ),
    OpCase(
        "einsum over the channel",
        fn(lambda h, weight: torch.einsum("nchw,dc->ndhw", h, weight), weight=(13, 11)),
        **CONV,
    ),
    OpCase("einsum with a diagonal", fn(lambda h, weight: torch.einsum("nchw,c->nchw", h, weight), weight=(11,))),
    OpCase(
        "einsum per head",
        fn(lambda h, weight: torch.einsum("nlhd,hde->nlhe", h.view(2, 5, 4, 3), weight).flatten(2), weight=(4, 3, 7)),
        (2, 5, 12),
        axis=-1,
        out=-1,
        mixes=SUMS,
        loses=("producer.weight[0]", "op.weight[0]", "op.weight[1]", "op.weight[2]"),
    ),
    OpCase("einsum gram matrix", fn(lambda h: torch.einsum("ncl,ncm->nlm", h, h)), SEQUENCE, **GONE),
    OpCase(
        "tensordot", fn(lambda h, weight: torch.tensordot(h, weight, dims=([2], [0])), weight=(11, 13)), **LAST, **CONV
    ),
    OpCase("outer", fn(lambda h, weight: torch.outer(h.sum(0), weight), weight=(7,)), FLAT, out=0),
    OpCase(
        "Bilinear",
        fn(lambda h, layer: layer(h, h), layer=lambda: nn.Bilinear(11, 11, 13)),
        FLAT,
        mixes=SUMS,
        loses=("producer.weight[0]", "op.layer.weight[0]", "op.layer.weight[1]", "op.layer.weight[2]"),
    ),
    OpCase(
        "bilinear function with the graph input",
        fn(lambda h, x, weight: F.bilinear(h, x, weight), weight=(13, 11, 3)),
        FLAT,
        takes_input=True,
        mixes=SUMS,
        loses=("producer.weight[0]", "op.weight[0]", "op.weight[1]"),
    ),
    OpCase(
        "cosine_similarity", fn(lambda h, scale: F.cosine_similarity(h, h * scale, dim=1), scale=(11, 1, 1)), **GONE
    ),
    OpCase(
        "pairwise_distance",
        fn(lambda h, scale: F.pairwise_distance(h, h * scale), scale=(11,)),
        FLAT,
        "inexact",
        **GONE,
    ),
    OpCase("Conv1d", lambda: nn.Conv1d(11, 13, 3), SEQUENCE, **CONV),
    OpCase("Conv2d", lambda: nn.Conv2d(11, 13, 3), **CONV),
    OpCase("Conv2d, padding, stride, dilation", lambda: nn.Conv2d(11, 13, 3, stride=2, padding=2, dilation=2), **CONV),
    OpCase("Conv2d, padding same", lambda: nn.Conv2d(11, 13, (3, 5), padding="same", bias=False), **CONV),
    *(
        OpCase(f"Conv2d, padding {mode}", lambda mode=mode: nn.Conv2d(11, 13, 3, padding=1, padding_mode=mode), **CONV)
        for mode in ("circular", "reflect", "replicate")
    ),
    OpCase("Conv3d", lambda: nn.Conv3d(11, 13, 3), VOLUME, **CONV),
    OpCase("conv1d function", fn(lambda h, weight: F.conv1d(h, weight), weight=(13, 11, 3)), SEQUENCE, **CONV),
    OpCase(
        "conv2d function",
        fn(lambda h, weight, bias: F.conv2d(h, weight, bias), weight=(13, 11, 3, 3), bias=(13,)),
        **CONV,
    ),
    OpCase("conv3d function", fn(lambda h, weight: F.conv3d(h, weight), weight=(13, 11, 3, 3, 3)), VOLUME, **CONV),
    OpCase("Conv1d, grouped", lambda: nn.Conv1d(12, 15, 3, groups=3), **{**GROUPED, "shape": (2, 12, 7)}),
    OpCase("Conv2d, grouped", lambda: nn.Conv2d(12, 15, 3, groups=3), **GROUPED),
    OpCase("Conv3d, grouped", lambda: nn.Conv3d(12, 15, 3, groups=3), **{**GROUPED, "shape": (2, 12, 3, 5, 7)}),
    OpCase(
        "conv2d function, grouped",
        fn(lambda h, weight, bias: F.conv2d(h, weight, bias, groups=4), weight=(20, 3, 3, 3), bias=(20,)),
        **GROUPED,
    ),
    OpCase(
        "conv2d function, groups by position",
        fn(lambda h, weight: torch.conv2d(h, weight, None, 1, 1, 1, 3), weight=(15, 4, 3, 3)),
        **GROUPED,
    ),
    OpCase("Conv1d, depthwise", lambda: nn.Conv1d(11, 11, 3, groups=11), SEQUENCE, **DEPTHWISE),
    OpCase("Conv2d, depthwise", lambda: nn.Conv2d(11, 11, 3, groups=11), **DEPTHWISE),
    OpCase("Conv3d, depthwise", lambda: nn.Conv3d(11, 11, 3, groups=11), VOLUME, **DEPTHWISE),
    OpCase("Conv2d, depth multiplier", lambda: nn.Conv2d(11, 33, 3, groups=11), **DEPTHWISE),
    OpCase(
        "conv2d function, depthwise",
        fn(lambda h, weight: F.conv2d(h, weight, groups=11, padding=1), weight=(11, 1, 3, 3)),
        **DEPTHWISE,
    ),
    OpCase(
        "conv2d function, groups from the shape",
        fn(lambda h, weight: F.conv2d(h, weight, groups=h.shape[1]), weight=(11, 1, 3, 3)),
        **DEPTHWISE,
    ),
    OpCase(
        "conv2d with a blur kernel expanded to the channels",
        fn(lambda h, kernel: F.conv2d(h, kernel.expand(11, 1, 3, 3), groups=11), kernel=torch.ones(1, 1, 3, 3) / 9),
    ),
    OpCase(
        "conv2d with a weight standardised in forward",
        fn(
            lambda h, weight: F.conv2d(h, weight / (1 + weight.square().mean((1, 2, 3), keepdim=True))),
            weight=(13, 11, 3, 3),
        ),
        expect="inexact",
        mixes=SUMS,
        loses=("producer.weight[0]", "op.weight[0]", "op.weight[1]"),
    ),
    OpCase("ConvTranspose1d", lambda: nn.ConvTranspose1d(11, 13, 3), SEQUENCE, **CONV),
    OpCase("ConvTranspose2d", lambda: nn.ConvTranspose2d(11, 13, 3, stride=2, padding=1, output_padding=1), **CONV),
    OpCase("ConvTranspose3d", lambda: nn.ConvTranspose3d(11, 13, 2, bias=False), VOLUME, **CONV),
    OpCase(
        "ConvTranspose1d, grouped", lambda: nn.ConvTranspose1d(12, 15, 3, groups=3), **{**GROUPED, "shape": (2, 12, 7)}
    ),
    OpCase("ConvTranspose2d, grouped", lambda: nn.ConvTranspose2d(12, 15, 3, groups=3), **GROUPED),
    OpCase(
        "ConvTranspose3d, grouped",
        lambda: nn.ConvTranspose3d(12, 15, 2, groups=3),
        **{**GROUPED, "shape": (2, 12, 3, 5, 7)},
    ),
    OpCase("ConvTranspose2d, depthwise", lambda: nn.ConvTranspose2d(11, 11, 3, groups=11), **DEPTHWISE),
    OpCase(
        "ConvTranspose2d, depth multiplier",
        lambda: nn.ConvTranspose2d(11, 33, 3, groups=11),
        loses=("producer.weight[0]", "op.weight[0]", "op.weight[1]"),
    ),
    OpCase(
        "conv_transpose2d function, grouped",
        fn(
            lambda h, weight, bias: F.conv_transpose2d(h, weight, bias, stride=2, groups=3),
            weight=(12, 5, 3, 3),
            bias=(15,),
        ),
        **GROUPED,
    ),
    OpCase(
        "conv_transpose1d function",
        fn(lambda h, weight: F.conv_transpose1d(h, weight), weight=(11, 13, 3)),
        SEQUENCE,
        **CONV,
    ),
    OpCase(
        "weight_norm on the consumer side",
        fn(lambda h, layer: layer(h), layer=lambda: parametrizations.weight_norm(nn.Conv2d(11, 13, 3))),
        mixes=SUMS,
        loses=("producer.weight[0]", "op.layer.parametrizations.weight.original1[1]"),
    ),
    OpCase(
        "weight_norm on the producer side",
        lambda: parametrizations.weight_norm(nn.Linear(3, 11)),
        (2, 3),
        "inexact",
        alone=True,
        mixes=SUMS,
        loses=("op.parametrizations.weight.original0[0]", "op.parametrizations.weight.original1[0]", "op.bias[0]"),
    ),
    OpCase(
        "spectral_norm",
        lambda: parametrizations.spectral_norm(nn.Conv2d(11, 13, 3)),
        mixes=SUMS,
        loses=(
            "producer.weight[0]",
            "op.parametrizations.weight.original[0]",
            "op.parametrizations.weight.original[1]",
        ),
    ),
    OpCase(
        "Embedding",
        lambda: nn.Embedding(17, 11),
        (2, 5),
        indices=17,
        alone=True,
        out=-1,
        mixes=SUMS,
        loses=("op.weight[1]",),
    ),
    OpCase(
        "Embedding, padding_idx",
        lambda: nn.Embedding(17, 11, padding_idx=0),
        (2, 5),
        indices=17,
        alone=True,
        out=-1,
        mixes=SUMS,
        loses=("op.weight[1]",),
    ),
    OpCase(
        "embedding function",
        fn(lambda x, weight: F.embedding(x, weight), weight=(17, 11)),
        (2, 5),
        indices=17,
        alone=True,
        out=-1,
        mixes=SUMS,
        loses=("op.weight[1]",),
    ),
    *(
        OpCase(
            f"EmbeddingBag, {mode}",
            lambda mode=mode: nn.EmbeddingBag(17, 11, mode=mode),
            (2, 5),
            indices=17,
            alone=True,
            mixes=SUMS,
            loses=("op.weight[1]",),
        )
        for mode in ("sum", "mean", "max")
    ),
    OpCase(
        "Embedding, max_norm",
        lambda: nn.Embedding(17, 11, max_norm=1.0),
        (2, 5),
        indices=17,
        alone=True,
        out=-1,
        mixes=SUMS,
        loses=("op.weight[1]",),
    ),
    OpCase(
        "cdist",
        fn(lambda h, centres: torch.cdist(h, centres), centres=(13, 11)),
        TOKENS,
        axis=-1,
        out=None,
        mixes=SUMS,
        loses=("producer.weight[0]", "op.centres[1]"),
    ),
    OpCase("cdist, order 1", fn(lambda h: torch.cdist(h, h.tanh(), p=1.0)), TOKENS, axis=-1, **GONE),
    OpCase("cdist, order inf", fn(lambda h: torch.cdist(h, h.tanh(), p=float("inf"))), TOKENS, axis=-1, **GONE),
    OpCase(
        "cdist of a sigmoid",
        fn(lambda h, centres: torch.cdist(h.sigmoid(), centres), centres=(13, 11)),
        TOKENS,
        "inexact",
        axis=-1,
        out=None,
        mixes="the axis is gone",
        loses=("producer.weight[0]", "op.centres[1]"),
    ),
    OpCase("cdist, the batch", fn(lambda h: torch.cdist(h, h.sin())), (2, 11, 5, 3)),
    OpCase(
        "addbmm",
        fn(lambda h, bias, weight: torch.addbmm(bias, h, weight), bias=(7, 13), weight=(2, 11, 13)),
        (2, 7, 11),
        axis=-1,
        out=-1,
        mixes=SUMS,
        loses=("producer.weight[0]", "op.bias[1]", "op.weight[1]", "op.weight[2]"),
    ),
    OpCase(
        "addr",
        fn(lambda h, bias, weight: torch.addr(bias, h.sum(0), weight), bias=(11, 7), weight=(7,)),
        FLAT,
        out=0,
        loses=("producer.weight[0]", "op.bias[0]"),
    ),
]

# -- normalizations ---------------------------------------------------------------------------------------------

WEIGHTED: dict[str, Any] = {"loses": ("producer.weight[0]", "op.weight[0]", "op.bias[0]")}
BATCH = ("producer.weight[0]", "op.weight[0]", "op.bias[0]", "op.running_mean[0]", "op.running_var[0]")

NORMALIZATIONS = [
    OpCase("BatchNorm1d, flat", lambda: nn.BatchNorm1d(11), FLAT, loses=BATCH),
    OpCase("BatchNorm1d", lambda: nn.BatchNorm1d(11), SEQUENCE, loses=BATCH),
    OpCase("BatchNorm2d", lambda: nn.BatchNorm2d(11), loses=BATCH),
    OpCase("BatchNorm3d", lambda: nn.BatchNorm3d(11), VOLUME, loses=BATCH),
    OpCase("BatchNorm2d in training mode", lambda: nn.BatchNorm2d(11), loses=BATCH, train=True),
    OpCase("BatchNorm1d in training mode", lambda: nn.BatchNorm1d(11), SEQUENCE, loses=BATCH, train=True),
    OpCase(
        "BatchNorm2d, no affine",
        lambda: nn.BatchNorm2d(11, affine=False),
        loses=("producer.weight[0]", "op.running_var[0]"),
    ),
    OpCase("BatchNorm2d, batch statistics", lambda: nn.BatchNorm2d(11, track_running_stats=False), **WEIGHTED),
    OpCase(
        "BatchNorm2d, nothing of its own",
        lambda: nn.BatchNorm2d(11, affine=False, track_running_stats=False),
    ),
    OpCase(
        "batch_norm function",
        fn(
            lambda h, running_mean, running_var, weight, bias: F.batch_norm(h, running_mean, running_var, weight, bias),
            running_mean=torch.zeros(11),
            running_var=torch.ones(11),
            weight=(11,),
            bias=(11,),
        ),
        loses=BATCH,
    ),
    OpCase("LayerNorm", lambda: nn.LayerNorm(11), expect="inexact", **LAST, **WEIGHTED),
    OpCase("LayerNorm without affine", lambda: nn.LayerNorm(11, elementwise_affine=False), expect="inexact", **LAST),
    OpCase("LayerNorm without bias", lambda: nn.LayerNorm(11, bias=False), expect="inexact", **LAST),
    OpCase(
        "LayerNorm over two dimensions",
        lambda: nn.LayerNorm((5, 11)),
        expect="inexact",
        **LAST,
        loses=("producer.weight[0]", "op.weight[1]", "op.bias[1]"),
    ),
    OpCase(
        "LayerNorm over image and channels",
        lambda: nn.LayerNorm(IMAGE[1:]),
        expect="inexact",
        **WEIGHTED,
    ),
    OpCase(
        "layer_norm function",
        fn(lambda h, weight, bias: F.layer_norm(h, (11,), weight, bias), weight=(11,), bias=(11,)),
        expect="inexact",
        **LAST,
        **WEIGHTED,
    ),
    OpCase(
        "layer_norm function, size from the shape",
        fn(lambda h: F.layer_norm(h, [h.shape[-1]])),
        expect="inexact",
        **LAST,
    ),
    OpCase(
        "layer norm of a channels-first image",
        fn(lambda h, norm: norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=lambda: nn.LayerNorm(11)),
        expect="inexact",
    ),
    OpCase(
        "GroupNorm, whole groups go exactly",
        lambda: nn.GroupNorm(4, 12),
        EVEN,
        **WEIGHTED,
        mixes="a group shares its statistic",
    ),
    OpCase("GroupNorm, positions inside the groups", lambda: nn.GroupNorm(3, 12), EVEN, "inexact", **WEIGHTED),
    OpCase("GroupNorm, one group", lambda: nn.GroupNorm(1, 11), expect="inexact", **WEIGHTED),
    OpCase("GroupNorm, groups are channels", lambda: nn.GroupNorm(11, 11), **WEIGHTED),
    OpCase("GroupNorm without affine", lambda: nn.GroupNorm(3, 12, affine=False), EVEN, "inexact"),
    OpCase("GroupNorm, flat", lambda: nn.GroupNorm(3, 12), (2, 12), "inexact", **WEIGHTED),
    OpCase(
        "group_norm function",
        fn(lambda h, weight, bias: F.group_norm(h, 3, weight, bias), weight=(12,), bias=(12,)),
        EVEN,
        "inexact",
        **WEIGHTED,
    ),
    OpCase(
        "group_norm function, groups are channels",
        fn(lambda h, weight, bias: F.group_norm(h, 11, weight, bias), weight=(11,), bias=(11,)),
        **WEIGHTED,
    ),
    OpCase("InstanceNorm1d", lambda: nn.InstanceNorm1d(11), SEQUENCE),
    OpCase("InstanceNorm2d", lambda: nn.InstanceNorm2d(11)),
    OpCase("InstanceNorm3d", lambda: nn.InstanceNorm3d(11), VOLUME),
    OpCase("InstanceNorm2d, affine", lambda: nn.InstanceNorm2d(11, affine=True), **WEIGHTED),
    OpCase(
        "InstanceNorm2d, running statistics",
        lambda: nn.InstanceNorm2d(11, affine=True, track_running_stats=True),
        loses=BATCH,
    ),
    OpCase(
        "InstanceNorm2d, running statistics in training mode",
        lambda: nn.InstanceNorm2d(11, track_running_stats=True),
        train=True,
    ),
    OpCase(
        "instance_norm function",
        fn(lambda h, weight: F.instance_norm(h, weight=weight), weight=(11,)),
        loses=("producer.weight[0]", "op.weight[0]"),
    ),
    OpCase("RMSNorm", lambda: nn.RMSNorm(11), expect="inexact", **LAST, loses=("producer.weight[0]", "op.weight[0]")),
    OpCase("RMSNorm without affine", lambda: nn.RMSNorm(11, elementwise_affine=False), expect="inexact", **LAST),
    OpCase(
        "rms_norm function",
        fn(lambda h, weight: F.rms_norm(h, (11,), weight), weight=(11,)),
        expect="inexact",
        **LAST,
        loses=("producer.weight[0]", "op.weight[0]"),
    ),
    OpCase(
        "rms norm written out",
        fn(lambda h, weight: h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * weight, weight=(11,)),
        expect="inexact",
        **LAST,
        loses=("producer.weight[0]", "op.weight[0]"),
    ),
    OpCase(
        "LocalResponseNorm",
        lambda: nn.LocalResponseNorm(3),
        expect="refused",
        says=("aten::avg_pool3d", "spatial dimension of pooling"),
    ),
    OpCase(
        "normalize over the channels",
        fn(lambda h: F.normalize(h, dim=1)),
        mixes="every slot is divided by the norm of all",
    ),
    OpCase("normalize over space", fn(lambda h: F.normalize(h, dim=(2, 3)))),
    OpCase("softmax over the channels", fn(lambda h: h.softmax(1)), expect="inexact"),
    OpCase("log_softmax over the channels", fn(lambda h: F.log_softmax(h, dim=1)), expect="inexact"),
    OpCase("Softmax module", lambda: nn.Softmax(dim=-1), expect="inexact", **LAST),
    OpCase("Softmax2d", lambda: nn.Softmax2d(), expect="inexact"),
    OpCase("Softmin", lambda: nn.Softmin(dim=1), expect="inexact"),
    OpCase("softmax over space", fn(lambda h: torch.softmax(h, dim=-1))),
]

# -- elementwise ------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "ReLU, in place": lambda: nn.ReLU(inplace=True),
    "ReLU6": nn.ReLU6,
    "LeakyReLU": lambda: nn.LeakyReLU(0.1),
    "LeakyReLU, in place": lambda: nn.LeakyReLU(0.1, inplace=True),
    "RReLU": nn.RReLU,
    "ELU": nn.ELU,
    "ELU, in place": lambda: nn.ELU(inplace=True),
    "CELU": nn.CELU,
    "SELU": nn.SELU,
    "GELU": nn.GELU,
    "GELU, tanh": lambda: nn.GELU(approximate="tanh"),
    "SiLU": nn.SiLU,
    "SiLU, in place": lambda: nn.SiLU(inplace=True),
    "Mish": nn.Mish,
    "Hardswish": nn.Hardswish,
    "Hardswish, in place": lambda: nn.Hardswish(inplace=True),
    "Hardsigmoid": nn.Hardsigmoid,
    "Hardtanh": lambda: nn.Hardtanh(-0.7, 0.9),
    "Hardshrink": nn.Hardshrink,
    "Softshrink": nn.Softshrink,
    "Tanhshrink": nn.Tanhshrink,
    "Softplus": nn.Softplus,
    "Softsign": nn.Softsign,
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
    "LogSigmoid": nn.LogSigmoid,
    "Threshold": lambda: nn.Threshold(0.1, 0.7),
    "Identity": nn.Identity,
    "Dropout in evaluation mode": nn.Dropout,
}

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu function": F.relu,
    "relu method": lambda h: h.relu(),
    "relu_": torch.relu_,
    "relu function, in place": lambda h: F.relu(h, inplace=True),
    "gelu function": F.gelu,
    "silu function": F.silu,
    "hardswish function": F.hardswish,
    "leaky_relu function": lambda h: F.leaky_relu(h, 0.2),
    "sigmoid": torch.sigmoid,
    "tanh_": lambda h: h.tanh_(),
    "softplus": F.softplus,
    "exp": torch.exp,
    "log1p": lambda h: torch.log1p(h.abs()),
    "sqrt": lambda h: (h * h + 1).sqrt(),
    "rsqrt": lambda h: torch.rsqrt(1 + h**2),
    "pow": lambda h: h.pow(3),
    "square": torch.square,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "neg": lambda h: -h,
    "reciprocal": lambda h: 1 / (2 + h * h),
    "rsub": lambda h: 1 - h,
    "floor_divide": lambda h: h // 0.3,
    "remainder": lambda h: h % 0.7,
    "sign": torch.sign,
    "round": lambda h: torch.round(h * 3),
    "clamp": lambda h: h.clamp(-0.4, 0.6),
    "clamp_": lambda h: h.clamp_(min=0.2),
    "nan_to_num": torch.nan_to_num,
    "masked_fill": lambda h: h.masked_fill(h > 0.3, -1.5),
    "masked_fill_": lambda h: h.masked_fill_(h.detach() < 0, 0.25),
    "where": lambda h: torch.where(h > 0, h, 0.1 * h),
    "where method": lambda h: h.where(h > 0, torch.zeros_like(h)),
    "maximum": lambda h: torch.maximum(h, h * h),
    "max of two": lambda h: torch.max(h, h.sin()),
    "addcmul": lambda h: torch.addcmul(h, h, h.cos(), value=0.5),
    "lerp": lambda h: torch.lerp(h, h * h, 0.3),
    "logical_and": lambda h: ((h > 0) & (h < 1)).to(h.dtype),
    "atan2": lambda h: torch.atan2(h, h * h + 1),
    "to dtype": lambda h: h.to(torch.float32).to(torch.float64).round(decimals=3),
    "double": lambda h: h.double(),
    "type_as": lambda h: h.type_as(h),
    "to channels_last": lambda h: h.to(memory_format=torch.channels_last),
    "contiguous": lambda h: h.contiguous(),
    "clone": lambda h: h.clone(),
    "detach": lambda h: h.detach(),
    "zeros_like": lambda h: h + torch.zeros_like(h),
    "ones_like": lambda h: h - torch.ones_like(h),
    "full_like": lambda h: h * torch.full_like(h, 0.7),
    "dropout function in evaluation mode": lambda h: F.dropout(h, 0.5, training=False),
    "mul_ by a number": lambda h: h.mul_(2).add_(1),
    "mul by itself": lambda h: h * h.sigmoid(),
    "tanh times sigmoid": lambda h: torch.tanh(h) * torch.sigmoid(h),
}

ELEMENTWISE = [
    *(OpCase(name, make) for name, make in ACTIVATIONS.items()),
    *(OpCase(name, fn(function)) for name, function in FUNCTIONS.items()),
    OpCase("PReLU, one slope", nn.PReLU),
    OpCase("PReLU", lambda: nn.PReLU(11), loses=("producer.weight[0]", "op.weight[0]")),
    OpCase("PReLU, flat", lambda: nn.PReLU(11), FLAT, loses=("producer.weight[0]", "op.weight[0]")),
    OpCase(
        "prelu function",
        fn(lambda h, weight: F.prelu(h, weight), weight=(11,)),
        loses=("producer.weight[0]", "op.weight[0]"),
    ),
    OpCase("Dropout in training mode", nn.Dropout, train=True, mixes=RANDOM),
    OpCase("Dropout2d in training mode", nn.Dropout2d, train=True, mixes=RANDOM),
    OpCase("AlphaDropout in training mode", nn.AlphaDropout, train=True, mixes=RANDOM),
    OpCase(
        "dropout function in training mode",
        fn(lambda h: F.dropout(h, 0.3, training=True)),
        train=True,
        mixes=RANDOM,
    ),
    OpCase("scale", fn(lambda h, scale: h * scale, scale=(11, 1, 1)), loses=("producer.weight[0]", "op.scale[0]")),
    OpCase(
        "scale as a buffer",
        fn(lambda h, scale: h * scale, scale=torch.randn(1, 11, 1, 1)),
        loses=("producer.weight[0]", "op.scale[1]"),
    ),
    OpCase(
        "scale of all slots",
        fn(lambda h, scale: h * scale, scale=(11, 5, 7)),
        loses=("producer.weight[0]", "op.scale[0]"),
    ),
    OpCase("one number as a parameter", fn(lambda h, scale: h * scale, scale=(1,))),
    OpCase("bias", fn(lambda h, bias: h + bias, bias=(11,)), **LAST, loses=("producer.weight[0]", "op.bias[0]")),
    OpCase(
        "bias viewed",
        fn(lambda h, bias: h + bias.view(1, -1, 1, 1), bias=(11,)),
        loses=("producer.weight[0]", "op.bias[0]"),
    ),
    OpCase(
        "bias viewed by its number",
        fn(lambda h, bias: h + bias.view(1, 11, 1, 1), bias=(11,)),
        loses=("producer.weight[0]", "op.bias[0]"),
    ),
    OpCase(
        "bias indexed with None",
        fn(lambda h, bias: h + bias[None, :, None, None], bias=(11,)),
        loses=("producer.weight[0]", "op.bias[0]"),
    ),
    OpCase(
        "layer scale",
        fn(lambda h, gamma: h + gamma * torch.tanh(h), gamma=(11, 1, 1)),
        loses=("producer.weight[0]", "op.gamma[0]"),
    ),
    OpCase(
        "class token",
        fn(lambda h, token: torch.cat([token.expand(h.shape[0], -1, -1), h], dim=1), token=(1, 1, 11)),
        **LAST,
        loses=("producer.weight[0]", "op.token[2]"),
    ),
    OpCase(
        "class token by numbers",
        fn(lambda h, token: torch.cat([token.expand(2, 1, 11), h], dim=1), token=(1, 1, 11)),
        **LAST,
        loses=("producer.weight[0]", "op.token[2]"),
    ),
    OpCase(
        "position table",
        fn(lambda h, table: h + table, table=(1, 5, 11)),
        **LAST,
        loses=("producer.weight[0]", "op.table[2]"),
    ),
    OpCase(
        "position table, cut",
        fn(lambda h, table: h + table[:, : h.shape[1]], table=(1, 7, 11)),
        **LAST,
        loses=("producer.weight[0]", "op.table[2]"),
    ),
    OpCase(
        "running statistics written out",
        fn(
            lambda h, mean, var: (h - mean[:, None, None]) / (var[:, None, None].abs() + 1).sqrt(),
            mean=(11,),
            var=(11,),
        ),
        loses=("producer.weight[0]", "op.mean[0]", "op.var[0]"),
    ),
    OpCase(
        "division by a parameter",
        fn(lambda h, scale: h / scale, scale=(11, 1, 1)),
        expect="inexact",
        loses=("producer.weight[0]", "op.scale[0]"),
    ),
    OpCase("division by the norm over space", fn(lambda h: h / h.norm(dim=(2, 3), keepdim=True)), expect="inexact"),
    OpCase("reciprocal of what may be zero", fn(torch.reciprocal), expect="inexact"),
    OpCase("log of what may be zero", fn(lambda h: h.square().log()), expect="inexact"),
    OpCase(
        "residual add",
        fn(lambda h, layer: h + layer(h), layer=lambda: nn.Conv2d(11, 11, 1)),
        mixes=INSIDE,
        loses=("producer.weight[0]", "op.layer.weight[0]", "op.layer.weight[1]"),
    ),
    OpCase(
        "residual add, in place",
        fn(lambda h, layer: torch.relu(h).add_(layer(h)), layer=lambda: nn.Conv2d(11, 11, 1)),
        mixes=INSIDE,
        loses=("producer.weight[0]", "op.layer.weight[0]", "op.layer.weight[1]"),
    ),
    OpCase(
        "residual mul",
        fn(lambda h, layer: torch.mul(h, layer(h)), layer=lambda: nn.Conv2d(11, 11, 3, padding=1)),
        mixes=INSIDE,
        loses=("producer.weight[0]", "op.layer.weight[0]", "op.layer.weight[1]"),
    ),
    OpCase(
        "residual sub with alpha",
        fn(lambda h, layer: torch.sub(h, layer(h), alpha=0.3), layer=lambda: nn.Conv2d(11, 11, 1)),
        mixes=INSIDE,
    ),
    OpCase(
        "residual div",
        fn(lambda h, layer: h / (1 + layer(h).square()), layer=lambda: nn.Conv2d(11, 11, 1)),
        mixes=INSIDE,
    ),
    OpCase(
        "squeeze-excite gate",
        fn(
            lambda h, down, up: h * torch.sigmoid(up(torch.relu(down(F.adaptive_avg_pool2d(h, 1))))),
            down=lambda: nn.Conv2d(11, 5, 1),
            up=lambda: nn.Conv2d(5, 11, 1),
        ),
        mixes=INSIDE,
        loses=("producer.weight[0]", "op.down.weight[0]", "op.down.weight[1]", "op.up.weight[0]"),
    ),
    OpCase(
        "squeeze-excite gate with views",
        fn(
            lambda h, down, up: h * torch.sigmoid(up(torch.relu(down(h.mean((2, 3)))))).view(h.size(0), 11, 1, 1),
            down=lambda: nn.Linear(11, 5),
            up=lambda: nn.Linear(5, 11),
        ),
        mixes=INSIDE,
        loses=("producer.weight[0]", "op.down.weight[0]", "op.down.weight[1]", "op.up.weight[0]"),
    ),
    OpCase("in place on a slice", fn(lambda h: torch.cat([h[:, :5].mul_(2), h[:, 5:]], 1))),
    OpCase("copy_ into slices", fn(lambda h: _into_halves(h, torch.zeros_like(h)))),
    OpCase("copy_ into an empty tensor", fn(lambda h: torch.empty_like(h).copy_(h))),
    OpCase("copy_ into new_zeros by numbers", fn(lambda h: _into_halves(h, h.new_zeros(2, 11, 5, 7)))),
]


def _into_halves(h: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    out[:, :4].copy_(h[:, :4])
    out[:, 4:].copy_(h[:, 4:].sin())
    return out


# -- movement ---------------------------------------------------------------------------------------------------

HALVES: dict[str, Any] = {"shape": EVEN, "ties": "both halves of a grid go together"}
PERMUTATION = [3, 0, 7, 10, 1, 9, 2, 8, 4, 6, 5]


def _joined(parts: Sequence[torch.Tensor], count: int = 2) -> torch.Tensor:
    """The first `count` parts in reverse order, so that an operation that does nothing would be noticed."""
    return torch.cat([parts[k] for k in reversed(range(count))], 1)


def _shuffle(h: torch.Tensor, groups: int) -> torch.Tensor:
    n, c, height, width = h.shape
    return h.view(n, groups, c // groups, height, width).transpose(1, 2).contiguous().view(n, c, height, width)


MOVEMENT = [
    OpCase(
        "cat of two branches",
        fn(lambda h, layer: torch.cat([layer(h), h], 1), layer=lambda: nn.Conv2d(11, 7, 1)),
        mixes=INSIDE,
        loses=("producer.weight[0]", "op.layer.weight[0]", "op.layer.weight[1]"),
    ),
    OpCase("cat with itself", fn(lambda h: torch.cat((h, h.tanh()), dim=-3))),
    OpCase("cat with the graph input", fn(lambda h, x: torch.cat([x, h], 1)), takes_input=True),
    OpCase("cat with a buffer", fn(lambda h, part: torch.cat([h, part], dim=1), part=torch.randn(2, 3, 5, 7))),
    OpCase("cat with a constant", fn(lambda h: torch.cat([h, torch.full((2, 3, 5, 7), 0.5).double()], dim=1))),
    OpCase("cat with new_ones, sizes from the shape", fn(lambda h: torch.cat([h, h.new_ones(h.shape[0], 3, 5, 7)], 1))),
    OpCase("cat with new_ones", fn(lambda h: torch.cat([h.new_ones(2, 3, 5, 7), h], dim=1))),
    OpCase("cat along space", fn(lambda h: torch.cat([h, h * h], dim=2))),
    OpCase("split by a number", fn(lambda h: _joined(h.split(4, 1), 3))),
    OpCase("split by a list", fn(lambda h: _joined(h.split([5, 6], dim=1)))),
    OpCase("split function", fn(lambda h: _joined(torch.split(h, [3, 8], 1)))),
    OpCase("split function by a number", fn(lambda h: _joined(torch.split(h, 6, 1)))),
    OpCase("split by half of the shape", fn(lambda h: _joined(torch.split(h, h.shape[1] // 2, 1))), EVEN),
    OpCase("split_with_sizes", fn(lambda h: _joined(h.split_with_sizes([5, 6], 1)))),
    OpCase("chunk, even", fn(lambda h: _joined(h.chunk(2, 1))), EVEN),
    OpCase("chunk, uneven", fn(lambda h: _joined(h.chunk(3, dim=1), 3))),
    OpCase("chunk function", fn(lambda h: _joined(torch.chunk(h, 2, dim=1)))),
    OpCase("chunk, halves added", fn(lambda h: h.chunk(2, 1)[0] + h.chunk(2, 1)[1].tanh()), EVEN),
    OpCase("chunk of another axis", fn(lambda h: h.chunk(2, -1)[0])),
    OpCase("tensor_split", fn(lambda h: _joined(h.tensor_split(3, 1), 3))),
    OpCase("tensor_split by positions", fn(lambda h: _joined(torch.tensor_split(h, (4, 9), dim=1), 3))),
    OpCase("unpacked split", fn(lambda h: _unpacked(h))),
    OpCase("stack", fn(lambda h: torch.stack([h, h.exp()], dim=1)), out=2),
    OpCase("stack at the end", fn(lambda h: torch.stack([h, h.exp()], dim=-1))),
    OpCase("unbind of a stack", fn(lambda h: _difference(torch.stack([h, h.exp()], dim=1).unbind(1)))),
    OpCase(
        "unbind, q k v",
        fn(lambda h: _difference(h.view(2, 5, 2, 4, 3).unbind(2)).flatten(2)),
        (2, 5, 24),
        axis=-1,
        out=-1,
    ),
    OpCase(
        "unbind of the channels",
        fn(lambda h: _difference(h.unbind(1))),
        mixes="the axis is gone",
        expect="refused",
        says=("aten::unbind", "unbind takes every position on its own"),
        out=None,
    ),
    OpCase("channel shuffle", fn(lambda h: _shuffle(h, 3)), EVEN),
    OpCase(
        "channel shuffle by numbers",
        fn(lambda h: h.reshape(2, 3, 4, 5, 7).permute(0, 2, 1, 3, 4).reshape(2, 12, 5, 7)),
        EVEN,
    ),
    OpCase("ChannelShuffle", lambda: nn.ChannelShuffle(4), EVEN),
    OpCase("channel_shuffle function", fn(lambda h: F.channel_shuffle(h, 3)), EVEN),
    OpCase("pixel_shuffle", fn(lambda h: F.pixel_shuffle(h, 2)), (2, 20, 3, 5)),
    OpCase("PixelShuffle", lambda: nn.PixelShuffle(2), (2, 20, 3, 5)),
    OpCase("pixel_unshuffle", fn(lambda h: F.pixel_unshuffle(h, 2)), (2, 11, 6, 10)),
    OpCase("PixelUnshuffle", lambda: nn.PixelUnshuffle(2), (2, 11, 6, 10)),
    OpCase(
        "space to depth by views",
        fn(lambda h: h.view(2, 11, 3, 2, 5, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 44, 3, 5)),
        (2, 11, 6, 10),
    ),
    OpCase("roll", fn(lambda h: h.roll(3, 1))),
    OpCase("roll, negative", fn(lambda h: torch.roll(h, -4, dims=1))),
    OpCase("roll, further than the size", fn(lambda h: torch.roll(h, shifts=25, dims=1))),
    OpCase("roll, several axes", fn(lambda h: torch.roll(h, (2, -3, 1), (2, 1, 3)))),
    OpCase("roll, the same axis twice", fn(lambda h: torch.roll(h, (2, 2), (1, 1)))),
    OpCase("roll over space", fn(lambda h: torch.roll(h, shifts=(1, 2), dims=(-2, -1)))),
    OpCase(
        "roll of everything",
        fn(lambda h: h.roll(2)),
        expect="refused",
        says=("aten::roll", "roll over all dimensions at once"),
    ),
    OpCase("flip", fn(lambda h: h.flip(1))),
    OpCase("flip, several axes", fn(lambda h: torch.flip(h, (1, -1)))),
    OpCase("fliplr", fn(torch.fliplr)),
    OpCase("rot90", fn(lambda h: torch.rot90(h, 1, (2, 3)))),
    *(
        OpCase(f"rot90 of the channels, {k} times", fn(lambda h, k=k: h.rot90(k, (1, 2))), out=out)
        for k, out in ((1, 2), (2, 1), (-1, 2))
    ),
    OpCase("index by a list", fn(lambda h: h[:, [3, 0, 7, 10, 1, 9, 2, 8, 4, 6, 5]])),
    OpCase("index by a list that repeats", fn(lambda h: h[:, [3, 3, 0, -1, 5, 5]])),
    OpCase("index by a constant", fn(lambda h: h[:, torch.tensor(PERMUTATION)])),
    OpCase("index by a buffer", fn(lambda h, order: h[:, order], order=torch.tensor(PERMUTATION))),
    OpCase("index by a buffer, last axis", fn(lambda h, order: h[..., order], order=torch.tensor(PERMUTATION)), **LAST),
    OpCase("index_select", fn(lambda h, order: h.index_select(1, order), order=torch.tensor(PERMUTATION))),
    OpCase(
        "index_select function, some",
        fn(lambda h, order: torch.index_select(h, 1, order), order=torch.tensor([8, 2, 2, 5, 10, 0])),
    ),
    OpCase(
        "index by numbers in a tensor made from the input",
        fn(lambda h: h[:, (h.mean((0, 2, 3)) > 0).long()]),
        expect="refused",
        says=("aten::index", "indexed by numbers that are not known"),
    ),
    OpCase(
        "index by two lists",
        fn(lambda h, a, b: h[:, :, a, b], a=torch.tensor([0, 4, 2]), b=torch.tensor([6, 1, 1])),
    ),
    OpCase(
        "index by two lists, one on the channels",
        fn(lambda h, a, b: h[:, a, b], a=torch.tensor([0, 9, 2]), b=torch.tensor([4, 1, 1])),
        expect="refused",
        says=("aten::index", "indexed by numbers that are not known or span several dimensions"),
    ),
    OpCase(
        "index by a table of positions",
        fn(lambda h, table: h[:, table], table=torch.tensor([[0, 9, 2], [4, 1, 1]])),
        expect="refused",
        says=("aten::index", "indexed by numbers that are not known or span several dimensions"),
    ),
    OpCase(
        "index of space by a table of positions",
        fn(lambda h, table: h[..., table], table=torch.tensor([[0, 6, 2], [4, 1, 1]])),
    ),
    OpCase(
        "index_select of one position",
        fn(lambda h, at: h.index_select(1, at), at=torch.tensor(4)),
        expect="refused",
        says=("aten::index_select", "indexed by numbers that are not known"),
    ),
    OpCase(
        "gather",
        fn(
            lambda h, order: h.gather(1, order),
            order=torch.randint(0, 11, (2, 4, 5, 7), generator=torch.Generator().manual_seed(0)),
        ),
        expect="refused",
        says=("aten::gather", "gathered by numbers that are not known"),
    ),
    OpCase(
        "gather of tokens",
        fn(lambda h: h.gather(1, h[..., :1].argsort(1)[:, :3].expand(-1, -1, 11))),
        **LAST,
        mixes="one slot decides which tokens stay",
    ),
    OpCase(
        "gather of tokens by a buffer",
        fn(lambda h, order: h.gather(1, order.view(1, 3, 1).expand(2, 3, h.shape[-1])), order=torch.tensor([4, 0, 2])),
        **LAST,
    ),
    OpCase(
        "gather of some channels of space",
        fn(lambda h, order: h.gather(2, order), order=torch.zeros(2, 4, 3, 7, dtype=torch.int64)),
        expect="refused",
        says=("aten::gather", "gathered in part"),
    ),
    OpCase(
        "take_along_dim",
        fn(lambda h, order: torch.take_along_dim(h, order, 1), order=torch.zeros(2, 3, 5, 7, dtype=torch.int64)),
        expect="refused",
        says=("aten::gather", "gathered by numbers that are not known"),
    ),
    OpCase("slice", fn(lambda h: h[:, 2:9])),
    OpCase("slice, open ends", fn(lambda h: torch.cat([h[:, 4:], h[:, :4]], 1))),
    OpCase("slice, negative bounds", fn(lambda h: torch.cat([h[:, -3:], h[:, 1:-3]], 1))),
    OpCase("slice, past the end", fn(lambda h: h[:, 3:99])),
    OpCase("slice, of another axis", fn(lambda h: h[:, :, 1:4])),
    OpCase("slice, bound from the shape", fn(lambda h: h[:, : h.shape[1] // 2]), EVEN),
    OpCase(
        "slice, both bounds from the shape",
        fn(lambda h: torch.cat([h[:, h.size(1) // 2 :], h[:, : h.size(1) // 2]], 1)),
        EVEN,
    ),
    OpCase("slice, Ellipsis", fn(lambda h: h[..., 3:]), **LAST),
    OpCase("slice, Ellipsis in the middle", fn(lambda h: h[:, ..., :4])),
    OpCase("slice, None", fn(lambda h: h[:, None, :7]), out=2),
    OpCase("slice, None and Ellipsis", fn(lambda h: h[:, 2:, ..., None])),
    OpCase("slice, every second", fn(lambda h: h[:, ::2] * h[:, 1::2].tanh()), EVEN),
    OpCase("slice, every second, from one", fn(lambda h: h[:, 1::2]), EVEN, ties="a period goes as a whole"),
    OpCase("slice, every third, bounds", fn(lambda h: h[:, 1:12:3]), EVEN, ties="a period goes as a whole"),
    OpCase(
        "slice, every second, stacked again",
        fn(lambda h: torch.stack((-h[..., 1::2], h[..., ::2]), -1).flatten(-2)),
        (2, 5, 12),
        axis=-1,
        out=-1,
        ties="a period goes as a whole",
    ),
    OpCase(
        "slice, every second of an odd number",
        fn(lambda h: h[:, ::2]),
        expect="refused",
        says=("aten::slice", "slice with step 2 that covers no whole number of periods"),
    ),
    OpCase("narrow", fn(lambda h: h.narrow(1, 3, 5))),
    OpCase("narrow function, negative start", fn(lambda h: torch.narrow(h, 1, -6, 4))),
    OpCase("narrow of another axis", fn(lambda h: h.narrow(2, 1, 3))),
    OpCase("select of another axis", fn(lambda h: h.select(2, 1))),
    OpCase("select of another axis, by index", fn(lambda h: h[:, :, 0, -1])),
    OpCase(
        "select of one channel",
        fn(lambda h: h[:, 3]),
        out=None,
        mixes="the axis is gone",
    ),
    OpCase("slice of one channel beside the rest", fn(lambda h: h[:, 4:5] * h), mixes="one slot multiplies all"),
    OpCase(
        "select, the others go",
        fn(lambda h: h * h.select(1, 6).unsqueeze(1)),
        mixes="one slot multiplies all",
        loses=("producer.weight[0]", "consumer.weight[1]"),
    ),
    OpCase("class token taken out", fn(lambda h: h[:, 0]), **{**LAST, "out": 1}),
    OpCase("repeat", fn(lambda h: h.repeat(1, 3, 1, 1))),
    OpCase("repeat of another axis", fn(lambda h: h.repeat(1, 1, 2, 1))),
    OpCase("repeat with a new axis", fn(lambda h: h.repeat(2, 1, 1)), FLAT, out=2),
    OpCase("repeat of one channel", fn(lambda h: h * h.mean(1, keepdim=True).repeat(1, 11, 1, 1)), expect="inexact"),
    OpCase("tile", fn(lambda h: torch.tile(h, (2, 1, 1)))),
    OpCase("tile method", fn(lambda h: h.tile(1, 2, 1, 1))),
    OpCase("repeat_interleave", fn(lambda h: h.repeat_interleave(3, dim=1))),
    OpCase("repeat_interleave function", fn(lambda h: torch.repeat_interleave(h, 2, 1))),
    OpCase("repeat_interleave over space", fn(lambda h: h.repeat_interleave(2, dim=-1))),
    OpCase("expand", fn(lambda h: h[:, :, None].expand(2, 11, 3, 5, 7))),
    OpCase("expand, sizes kept", fn(lambda h: h.unsqueeze(1).expand(-1, 3, -1, -1, -1)), out=2),
    OpCase("expand_as", fn(lambda h: h.mean((2, 3), keepdim=True).expand_as(h))),
    OpCase("expand of one channel", fn(lambda h: h + h.mean(1, keepdim=True).expand(-1, 11, -1, -1)), expect="inexact"),
    OpCase("broadcast_to", fn(lambda h: torch.broadcast_to(h[:, None], (2, 3, 11, 5, 7))), out=2),
    OpCase(
        "expanded query groups",
        fn(lambda h: h.view(2, 5, 4, 1, 3).expand(2, 5, 4, 2, 3).reshape(2, 5, 24)),
        (2, 5, 12),
        axis=-1,
        out=-1,
    ),
    OpCase("flatten", fn(lambda h: h.flatten(1))),
    OpCase("Flatten", nn.Flatten),
    OpCase("flatten of space", fn(lambda h: h.flatten(2))),
    OpCase("flatten function", fn(lambda h: torch.flatten(h, 1))),
    OpCase("flatten, channels last", fn(lambda h: h.permute(0, 2, 3, 1).flatten(1))),
    OpCase("flatten after pooling", fn(lambda h: torch.flatten(F.adaptive_avg_pool2d(h, 1), 1))),
    OpCase("unflatten", fn(lambda h: h.unflatten(1, (4, 3)).flatten(1, 2)), EVEN),
    OpCase("unflatten, -1", fn(lambda h: torch.unflatten(h, 1, (-1, 3)).transpose(1, 2).flatten(1, 2)), EVEN),
    OpCase("Unflatten", fn(lambda h, layer: layer(h).flatten(1, 2), layer=lambda: nn.Unflatten(1, (4, 3))), EVEN),
    OpCase("view, literal sizes", fn(lambda h: h.view(2, 11 * 5 * 7))),
    OpCase("view, -1", fn(lambda h: h.view(2, -1))),
    OpCase("view, -1 for the batch", fn(lambda h: h.view(-1, 11 * 35))),
    OpCase("view, -1 for the channel", fn(lambda h: h.view(2, -1, 35))),
    OpCase("view, sizes from the shape", fn(lambda h: h.view(h.size(0), h.size(1), -1))),
    OpCase("view, a list of sizes", fn(lambda h: h.view([2, 11, 35]))),
    OpCase("view_as", fn(lambda h: (h + 1).view_as(h))),
    OpCase(
        "view, heads",
        fn(lambda h: h.view(2, 5, 4, 3).transpose(1, 2).transpose(1, 2).reshape(2, 5, 12)),
        (2, 5, 12),
        axis=-1,
        out=-1,
    ),
    OpCase(
        "view, -1 for the heads",
        fn(lambda h: h.view(2, 5, -1, 3).softmax(1).reshape(2, 5, -1)),
        (2, 5, 12),
        axis=-1,
        out=-1,
    ),
    OpCase("view, three factors", fn(lambda h: h.reshape(2, 3, 3, 3, 5).transpose(1, 3).reshape(2, 27, 5)), (2, 27, 5)),
    OpCase("reshape, literal sizes", fn(lambda h: torch.reshape(h, (2, 11, 35)))),
    OpCase("reshape_as", fn(lambda h: h.sigmoid().reshape_as(h))),
    OpCase("reshape through a merged batch", fn(lambda h: h.reshape(2 * 11, 5, 7).tanh().reshape(2, 11, 5, 7))),
    OpCase(
        "window partition",
        fn(lambda h: h.view(2, 11, 2, 3, 2, 5).permute(0, 2, 4, 3, 5, 1).reshape(8, 15, 11)),
        (2, 11, 6, 10),
        out=2,
    ),
    OpCase("squeeze", fn(lambda h: F.adaptive_avg_pool2d(h, 1).squeeze(-1).squeeze(2))),
    OpCase("squeeze of everything", fn(lambda h: F.adaptive_avg_pool2d(h, 1).squeeze())),
    OpCase("unsqueeze", fn(lambda h: h.unsqueeze(1)), out=2),
    OpCase("transpose", fn(lambda h: h.transpose(1, 2)), SEQUENCE, out=2),
    OpCase("t", fn(lambda h: h.t()), FLAT, out=0),
    OpCase("mT", fn(lambda h: h.mT), SEQUENCE, out=2),
    OpCase("permute to channels last", fn(lambda h: h.permute(0, 2, 3, 1)), out=3),
    OpCase("movedim", fn(lambda h: torch.movedim(h, 1, -1)), out=-1),
    OpCase("swapaxes", fn(lambda h: h.swapaxes(1, 3)), out=3),
    OpCase("glu", fn(lambda h: F.glu(h, dim=1)), EVEN),
    OpCase("GLU", lambda: nn.GLU(dim=-1), (2, 5, 12), axis=-1, out=-1),
    OpCase("gated by its own chunk", fn(lambda h: _gated(h.chunk(2, dim=1))), EVEN),
    OpCase("rotate half", fn(lambda h: torch.cat((-h[..., 6:], h[..., :6]), -1) + h), (2, 5, 12), axis=-1, out=-1),
    OpCase("unfold", fn(lambda h: F.unfold(h, 3))),
    OpCase("Unfold", lambda: nn.Unfold(2, padding=1)),
    OpCase("fold", fn(lambda h: F.fold(h, (6, 7), (2, 3))), (2, 24, 25)),
    OpCase("unfold and fold", fn(lambda h: F.fold(F.unfold(h, 3, padding=1), (5, 7), 3, padding=1))),
    OpCase("Tensor.unfold over space", fn(lambda h: h.unfold(2, 3, 2))),
    OpCase(
        "Tensor.unfold of the channels",
        fn(lambda h: h.unfold(1, 3, 2)),
        expect="refused",
        says=("aten::unfold", "windows of unfold overlap this dimension"),
    ),
    OpCase("pad of space", fn(lambda h: F.pad(h, (1, 2, 3, 0)))),
    OpCase("pad of space with a value", fn(lambda h: F.pad(h, [1, 1], value=0.5))),
    OpCase("pad of space, cropping", fn(lambda h: F.pad(h, (-1, 0, -1, -2)))),
    *(
        OpCase(f"pad of space, {mode}", fn(lambda h, mode=mode: F.pad(h, (1, 2, 2, 1), mode=mode)))
        for mode in ("reflect", "replicate", "circular")
    ),
    OpCase("ZeroPad2d", lambda: nn.ZeroPad2d(2)),
    OpCase("ConstantPad2d", lambda: nn.ConstantPad2d((1, 0, 2, 0), -0.7)),
    OpCase("ReflectionPad2d", lambda: nn.ReflectionPad2d(2)),
    OpCase("ReplicationPad3d", lambda: nn.ReplicationPad3d(1), VOLUME),
    OpCase("CircularPad1d", lambda: nn.CircularPad1d(2), SEQUENCE),
    OpCase("pad of the channels", fn(lambda h: F.pad(h, (0, 0, 0, 0, 2, 5)))),
    OpCase("pad of the channels with a value", fn(lambda h: F.pad(h, (0, 0, 0, 0, 0, 4), value=0.3))),
    OpCase("pad of the channels, cropping", fn(lambda h: F.pad(h, (0, 0, 0, 0, -2, -3)))),
    OpCase("pad of the channels, cropping and padding", fn(lambda h: F.pad(h, (1, 1, 0, 0, 3, -4)))),
    OpCase(
        "padded shortcut",
        fn(lambda h, layer: layer(h) + F.pad(h, (0, 0, 0, 0, 0, 6)), layer=lambda: nn.Conv2d(11, 17, 1)),
        mixes=INSIDE,
    ),
]


def _unpacked(h: torch.Tensor) -> torch.Tensor:
    a, b, c = torch.split(h, [2, 4, 5], dim=1)
    return torch.cat([c, a.tanh(), b.exp()], 1)


def _difference(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] - parts[1]


def _gated(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] * torch.sigmoid(parts[1])


# -- pooling and resampling -------------------------------------------------------------------------------------

POOLING = [
    OpCase("MaxPool1d", lambda: nn.MaxPool1d(2), SEQUENCE),
    OpCase("MaxPool2d", lambda: nn.MaxPool2d(3, stride=2, padding=1)),
    OpCase("MaxPool3d", lambda: nn.MaxPool3d(2), VOLUME),
    OpCase("max_pool2d function", fn(lambda h: F.max_pool2d(h, 2))),
    OpCase("max_pool2d and max_unpool2d", fn(lambda h: _unpooled(h)), (2, 11, 6, 10)),
    OpCase("AvgPool1d", lambda: nn.AvgPool1d(3), SEQUENCE),
    OpCase("AvgPool2d", lambda: nn.AvgPool2d(2, ceil_mode=True)),
    OpCase("AvgPool3d", lambda: nn.AvgPool3d(2), VOLUME),
    OpCase("avg_pool2d function", fn(lambda h: F.avg_pool2d(h, 3, 1, 1))),
    OpCase("LPPool1d", lambda: nn.LPPool1d(2, 2), SEQUENCE),
    OpCase("LPPool2d", lambda: nn.LPPool2d(2, 2)),
    OpCase("AdaptiveAvgPool1d", lambda: nn.AdaptiveAvgPool1d(3), SEQUENCE),
    OpCase("AdaptiveAvgPool2d", lambda: nn.AdaptiveAvgPool2d((3, 2))),
    OpCase("AdaptiveAvgPool2d, one", lambda: nn.AdaptiveAvgPool2d(1)),
    OpCase("AdaptiveAvgPool3d", lambda: nn.AdaptiveAvgPool3d((2, None, 3)), VOLUME),
    OpCase("AdaptiveMaxPool1d", lambda: nn.AdaptiveMaxPool1d(3), SEQUENCE),
    OpCase("AdaptiveMaxPool2d", lambda: nn.AdaptiveMaxPool2d((2, 3))),
    OpCase("AdaptiveMaxPool3d", lambda: nn.AdaptiveMaxPool3d(2), VOLUME),
    OpCase("adaptive_avg_pool2d function", fn(lambda h: F.adaptive_avg_pool2d(h, (1, 1)))),
    OpCase(
        "fractional_max_pool2d function, samples given",
        fn(
            lambda h, samples: F.fractional_max_pool2d(h, 2, (3, 4), _random_samples=samples),
            samples=torch.rand(2, 11, 2),
        ),
        loses=("producer.weight[0]", "op.samples[1]"),
    ),
    OpCase(
        "avg_pool1d over the channels",
        fn(lambda h: F.avg_pool1d(h, 3)),
        TOKENS,
        "refused",
        ("aten::avg_pool2d", "spatial dimension of pooling"),
        axis=-1,
        out=-1,
    ),
    *(
        OpCase(f"Upsample, {mode}", lambda mode=mode: nn.Upsample(scale_factor=2, mode=mode), shape)
        for mode, shape in (
            ("nearest", IMAGE),
            ("nearest-exact", SEQUENCE),
            ("linear", SEQUENCE),
            ("bilinear", IMAGE),
            ("bicubic", IMAGE),
            ("trilinear", VOLUME),
        )
    ),
    OpCase("Upsample, nearest, volume", lambda: nn.Upsample(scale_factor=2), VOLUME),
    OpCase("UpsamplingBilinear2d", lambda: nn.UpsamplingBilinear2d(size=(7, 11))),
    OpCase("interpolate to a size", fn(lambda h: F.interpolate(h, size=(3, 11), mode="bilinear", align_corners=True))),
    OpCase(
        "interpolate to the size of the input", fn(lambda h, x: F.interpolate(h, size=x.shape[2:])), takes_input=True
    ),
    OpCase("interpolate, antialias", fn(lambda h: F.interpolate(h, size=(3, 3), mode="bilinear", antialias=True))),
    OpCase("interpolate, area", fn(lambda h: F.interpolate(h, size=(2, 3), mode="area"))),
    OpCase("grid_sample", fn(lambda h, grid: F.grid_sample(h, grid, align_corners=False), grid=torch.rand(2, 3, 3, 2))),
]


def _unpooled(h: torch.Tensor) -> torch.Tensor:
    values, positions = F.max_pool2d(h, 2, return_indices=True)
    return F.max_unpool2d(values, positions, 2)


# -- reductions -------------------------------------------------------------------------------------------------

STATISTIC: dict[str, Any] = {"expect": "inexact", "out": None, "mixes": "the axis is gone"}
REFUSED_STATISTICS = ("the result holds positions in this dimension or depends on their order",)

REDUCTIONS = [
    OpCase("sum over the channels", fn(lambda h: h.sum(1)), **GONE),
    OpCase("sum over the channels, kept", fn(lambda h: torch.sum(h, dim=1, keepdim=True)), **GONE),
    OpCase("sum over everything", fn(lambda h: h.sum()), **GONE),
    OpCase("sum over a sigmoid", fn(lambda h: h.sigmoid().sum(1)), **STATISTIC),
    OpCase("sum over a difference", fn(lambda h: (h.sigmoid() - h.cos()).sum(1)), **STATISTIC),
    OpCase("sum over a comparison", fn(lambda h: (h.cos() > h.sin()).double().sum(1)), **STATISTIC),
    OpCase("sum over a gate", fn(lambda h: (h * h.sigmoid()).sum(1)), **GONE),
    OpCase("sum over a ReLU", fn(lambda h: h.relu().sum(dim=1)), **GONE),
    OpCase("sum over space", fn(lambda h: h.sum((2, 3)))),
    OpCase("mean over the channels", fn(lambda h: h.mean(1)), **STATISTIC),
    OpCase("mean over the channels, kept", fn(lambda h: h - h.mean(1, keepdim=True)), expect="inexact"),
    OpCase("mean over space", fn(lambda h: h.mean([2, 3]))),
    OpCase("mean over space, kept", fn(lambda h: torch.mean(h, (-2, -1), keepdim=True))),
    OpCase("mean over tokens", fn(lambda h: h.mean(dim=1)), TOKENS, axis=-1, out=1),
    OpCase("amax over the channels", fn(lambda h: h.amax(1)), **STATISTIC),
    OpCase("amax over space", fn(lambda h: torch.amax(h, dim=(2, 3)))),
    OpCase("max over the channels", fn(lambda h: h.max(1)[0]), **STATISTIC),
    OpCase("max over the channels, named", fn(lambda h: torch.max(h, dim=1).values), **STATISTIC),
    OpCase("max over space", fn(lambda h: h.flatten(2).max(-1)[0])),
    OpCase("min over the channels", fn(lambda h: torch.min(h, 1)[0]), **STATISTIC),
    OpCase("amin over space", fn(lambda h: h.amin(-1))),
    OpCase("median over the channels", fn(lambda h: h.median(1)[0]), **STATISTIC),
    OpCase("var over the channels", fn(lambda h: h.var(1)), **STATISTIC),
    OpCase("var over space", fn(lambda h: h.var((2, 3), unbiased=False))),
    OpCase("std over the channels, kept", fn(lambda h: h / h.std(1, keepdim=True)), expect="inexact"),
    OpCase("std over space", fn(lambda h: torch.std(h, dim=2))),
    OpCase("var_mean over space", fn(lambda h: _difference(torch.var_mean(h, dim=(2, 3))))),
    OpCase("norm over the channels", fn(lambda h: h.norm(dim=1)), **GONE),
    OpCase("norm of order 1 over the channels", fn(lambda h: h.norm(p=1, dim=1)), **GONE),
    OpCase("norm of order inf over the channels", fn(lambda h: h.norm(p=float("inf"), dim=1)), **STATISTIC),
    OpCase("norm of a sigmoid", fn(lambda h: torch.linalg.vector_norm(h.sigmoid(), dim=1)), **STATISTIC),
    OpCase("norm over space", fn(lambda h: torch.linalg.vector_norm(h, dim=(2, 3)))),
    OpCase(
        "global response norm",
        fn(lambda h, gamma: _response(h, gamma), gamma=(11,)),
        expect="inexact",
        loses=("producer.weight[0]", "op.gamma[0]"),
    ),
    OpCase("logsumexp over the channels", fn(lambda h: h.logsumexp(1)), **STATISTIC),
    OpCase("prod over the channels", fn(lambda h: h.prod(1)), **STATISTIC),
    OpCase("prod over space", fn(lambda h: h.prod(2))),
    OpCase("count_nonzero over the channels", fn(lambda h: h.relu().count_nonzero(1).double()), **STATISTIC),
    OpCase("any over the channels", fn(lambda h: (h > 1).any(1).double()), **STATISTIC),
    OpCase("all over space", fn(lambda h: (h > -1).all(-1).double())),
    OpCase("aminmax over space", fn(lambda h: _difference(torch.aminmax(h, dim=2)))),
    OpCase("logcumsumexp over the channels", fn(lambda h: h.logcumsumexp(1)), expect="inexact"),
    OpCase("logcumsumexp over space", fn(lambda h: h.logcumsumexp(2))),
    OpCase("cumsum over the channels", fn(lambda h: h.cumsum(1)), mixes=SUMS),
    OpCase("cumsum of a sigmoid", fn(lambda h: torch.cumsum(h.sigmoid(), dim=1)), expect="inexact"),
    OpCase("cumsum over space", fn(lambda h: h.cumsum(-1))),
    OpCase(
        "cumprod over the channels",
        fn(lambda h: h.cumprod(1)),
        expect="inexact",
    ),
    OpCase(
        "argmax over the channels",
        fn(lambda h: h.argmax(1).double()),
        expect="refused",
        says=("aten::argmax", *REFUSED_STATISTICS),
        out=None,
    ),
    OpCase(
        "argmin over the channels",
        fn(lambda h: torch.argmin(h, dim=1).double()),
        expect="refused",
        says=("aten::argmin", *REFUSED_STATISTICS),
        out=None,
    ),
    OpCase("argmax over space", fn(lambda h: h.flatten(2).argmax(-1).double())),
    OpCase("sort", fn(lambda h: h.sort(1)[0]), expect="refused", says=("aten::sort", *REFUSED_STATISTICS)),
    OpCase("sort over space", fn(lambda h: torch.sort(h, dim=-1)[0])),
    OpCase("topk", fn(lambda h: h.topk(3, 1)[0]), expect="inexact", **GONE),
    OpCase("topk over space", fn(lambda h: h.topk(3, dim=-1)[0])),
    OpCase(
        "kthvalue",
        fn(lambda h: h.kthvalue(2, 1)[0]),
        expect="refused",
        says=("aten::kthvalue", *REFUSED_STATISTICS),
        out=None,
    ),
    OpCase("cummax", fn(lambda h: h.cummax(1)[0]), expect="refused", says=("aten::cummax", *REFUSED_STATISTICS)),
]


def _response(h: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    size = h.norm(dim=(2, 3), keepdim=True)
    return h * (1 + gamma.view(1, -1, 1, 1) * size / (size.mean(1, keepdim=True) + 1e-6))


# -- indexing ---------------------------------------------------------------------------------------------------

TOKEN_LIST = torch.tensor([3, 0, 4])


def _expanded(at: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return at.view(1, -1, 1).expand(2, 3, h.shape[-1])


@torch.fx.wrap
def _set(h: torch.Tensor, where: Any, what: Any) -> torch.Tensor:
    h = h.tanh()
    h[where] = what
    return h


@torch.fx.wrap
def _index_reduce(h: torch.Tensor, at: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it a beta
        return h.index_reduce(1, at, source, "prod")


INDEXING = [
    *(
        OpCase(f"{name} of tokens", fn(function, at=TOKEN_LIST), **LAST)
        for name, function in (
            ("scatter", lambda h, at: h.sin().scatter(1, _expanded(at, h), h[:, :3].cos())),
            ("scatter_", lambda h, at: torch.zeros_like(h).scatter_(1, _expanded(at, h), h[:, 1:4])),
            ("scatter of a number", lambda h, at: h.sin().scatter(1, _expanded(at, h), 0.3)),
            ("scatter with a product", lambda h, at: h.scatter(1, _expanded(at, h), 1.7, reduce="multiply")),
            ("scatter_add", lambda h, at: h.scatter_add(1, _expanded(at, h), h[:, 1:4].exp())),
            ("scatter_add_", lambda h, at: torch.zeros_like(h).scatter_add_(1, _expanded(at, h), h[:, 1:4])),
            ("scatter_reduce", lambda h, at: h.scatter_reduce(1, _expanded(at, h), h[:, 1:4].exp(), "amax")),
            (
                "scatter_reduce without itself",
                lambda h, at: h.scatter_reduce(1, _expanded(at, h), h[:, 1:4], "mean", include_self=False),
            ),
            ("index_add", lambda h, at: h.index_add(1, at, h[:, 1:4].exp(), alpha=0.5)),
            ("index_copy", lambda h, at: h.index_copy(1, at, h[:, 1:4].exp())),
            ("index_reduce", lambda h, at: _index_reduce(h, at, h[:, 1:4].exp())),
            ("index_fill", lambda h, at: h.index_fill(1, at, 0.7)),
            ("index_fill by a tensor", lambda h, at: h.index_fill(1, at, torch.tensor(0.7).double())),
            ("index_put", lambda h, at: h.index_put((torch.tensor(1), at), h[0, 1:4].exp())),
            ("index_put, accumulated", lambda h, at: h.index_put((torch.tensor(1), at), h[0, 1:4], accumulate=True)),
            ("set by a list", lambda h, at: _set(h, (slice(None), at), h[:, 1:4])),
            ("set by two lists", lambda h, at: _set(h, ([0, 1, 1], at), h[0, 1:4].exp())),
            ("set to a number by a list", lambda h, at: _set(h, (slice(None), at), 0.0)),
            ("select_scatter", lambda h, at: h.select_scatter(h[:, 1].exp(), 1, 3)),
            ("slice_scatter", lambda h, at: h.slice_scatter(h[:, 1:3].exp(), 1, 3)),
            ("slice_scatter, every second", lambda h, at: h.slice_scatter(h[:, :3].exp(), 1, 0, 5, 2)),
            ("index of tokens by a list and a number", lambda h, at: h[1, at]),
        )
    ),
    OpCase("set where positive", fn(lambda h: _set(h, h > 0.4, -0.2))),
    OpCase(
        "set where positive, one value for every pixel", fn(lambda h: _set(h, h > 0.4, torch.tensor([0.5]).double()))
    ),
    OpCase(
        "set to zero by a mask of pixels",
        fn(lambda h, mask: _set(h, (slice(None), slice(None), mask), 0.0), mask=torch.rand(5, 7) > 0.5),
    ),
    OpCase(
        "set by a mask of channels",
        fn(
            lambda h, mask: _set(h.transpose(0, 1), mask, torch.ones(4, 2).double()),
            mask=torch.tensor([1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1]) > 0,
        ),
        (2, 11),
        "refused",
        ("aten::index_put_", "written to at positions"),
        out=0,
    ),
    OpCase(
        "set of positions by a mask to a tensor of values",
        fn(
            lambda h, mask: _set(h, (slice(None), slice(None), mask), h[:, :, :2].exp()),
            mask=torch.tensor([False, True, False, True, False, False, False]),
        ),
        SEQUENCE,
    ),
    OpCase(
        "index by two lists with a dimension between",
        fn(
            lambda h, a, b: h[:, :, a].permute(2, 1, 0, 3)[[0, 1], :, :, b],
            a=torch.tensor([0, 4]),
            b=torch.tensor([6, 1]),
        ),
    ),
    OpCase(
        "index by lists that broadcast",
        fn(lambda h, a, b: h[:, :, a, b], a=torch.tensor([[0], [4]]), b=torch.tensor([6, 1, 1])),
    ),
    OpCase(
        "scatter along the channels",
        fn(lambda h, at: h.scatter(1, at.view(1, 3, 1).expand(2, 3, 7), 0.0), at=TOKEN_LIST),
        SEQUENCE,
        expect="refused",
        says=("aten::scatter", "written to at positions"),
    ),
    OpCase(
        "scatter of some channels",
        fn(lambda h, at: h.scatter(2, at, 1.0), at=torch.zeros(2, 4, 3, 7, dtype=torch.int64)),
        expect="refused",
        says=("aten::scatter", "written to at positions"),
    ),
    OpCase(
        "index_add along the channels",
        fn(lambda h, at: h.index_add(1, at, h[:, :3]), at=TOKEN_LIST),
        expect="refused",
        says=("aten::index_add", "written to at positions"),
    ),
    OpCase(
        "index_fill along the channels",
        fn(lambda h, at: h.index_fill(1, at, 0.0), at=TOKEN_LIST),
        expect="refused",
        says=("aten::index_fill", "written to at positions"),
    ),
    OpCase(
        "set of some channels by a list",
        fn(lambda h: _set(h, (slice(None), [1, 4]), 0.0)),
        expect="refused",
        says=("aten::index_put_", "written to at positions"),
    ),
    OpCase(
        "select_scatter of the channels",
        fn(lambda h: h.select_scatter(h[:, 1], 1, 3)),
        expect="refused",
        says=("aten::select_scatter", "written to at positions"),
    ),
    OpCase(
        "slice_scatter of the channels",
        fn(lambda h: h.slice_scatter(h[:, 1:3], 1, 3, 5)),
        expect="refused",
        says=("aten::slice_scatter", "written to at positions"),
    ),
    OpCase(
        "diagonal_scatter of the channels",
        fn(lambda h: h.diagonal_scatter(h[:, 0], 0, 1, 2)),
        (2, 11, 11),
        "refused",
        ("aten::diagonal_scatter", "written to at positions"),
    ),
    OpCase("diagonal_scatter of space", fn(lambda h: h.diagonal_scatter(h[:, :, 0, :5].exp(), 0, -2, -1))),
    OpCase(
        "masked_scatter",
        fn(lambda h: h.masked_scatter(h > 0, h.exp())),
        expect="refused",
        says=("aten::masked_scatter", "filled in order"),
    ),
    OpCase(
        "take",
        fn(lambda h: h.take(torch.arange(9).view(1, 9) + h[:, :9].round().long().clamp(0, 2))),
        FLAT,
        "refused",
        ("aten::take", "positions in the flattened tensor"),
        out=None,
        mixes="the axis is gone",
    ),
    OpCase(
        "put",
        fn(lambda h, at: h.put(at, h[0, :3]), at=TOKEN_LIST),
        FLAT,
        "refused",
        ("aten::put", "positions in the flattened tensor"),
    ),
    OpCase(
        "take_along_dim of tokens",
        fn(lambda h: h.take_along_dim(h[..., :1].argsort(1)[:, :3], 1)),
        **LAST,
        mixes="one slot decides which tokens stay",
    ),
    OpCase(
        "index of pixels by a mask",
        fn(lambda h, mask: h[:, :, mask], mask=torch.arange(35).view(5, 7) % 3 == 1),
        mixes=ENTRIES,
    ),
    OpCase(
        "index of tokens by a mask",
        fn(lambda h, mask: h[mask], mask=torch.arange(10).view(2, 5) % 3 > 0),
        **{**LAST, "mixes": ENTRIES},
    ),
    OpCase(
        "index of channels by a mask",
        fn(lambda h, mask: h[:, mask], mask=torch.arange(11) % 3 == 1),
        expect="refused",
        says=("aten::index", "indexed by numbers that are not known"),
        mixes=ENTRIES,
    ),
    *(
        OpCase(name, fn(function), FLAT, "refused", (operator, "how many entries there are"), out=None, mixes=ENTRIES)
        for name, operator, function in (
            ("masked_select", "aten::masked_select", lambda h: h.masked_select(h > 0).sum()),
            ("nonzero", "aten::nonzero", lambda h: h.relu().nonzero().double().sum()),
            ("unique", "aten::_unique2", lambda h: h.round().unique().sum()),
            ("unique_consecutive", "aten::unique_consecutive", lambda h: h.round().unique_consecutive().sum()),
            ("bincount", "aten::bincount", lambda h: h.flatten().abs().long().bincount().double().sum()),
        )
    ),
    OpCase("one_hot", fn(lambda h: h * F.one_hot(h[0, :, 0, 0].round().long().clamp(0, 6), 7)[:, None].double())),
    OpCase(
        "isin",
        fn(lambda h: torch.isin(h.round(), torch.tensor([0.0, 1.0]).double()).double()),
    ),
    OpCase(
        "isin, looked for",
        fn(lambda h: torch.isin(torch.tensor([0.0, 1.0]).double(), h.round()).double()),
        FLAT,
        "refused",
        ("aten::isin", "the elements that are looked for"),
        out=None,
        mixes="the axis is gone",
    ),
]

# -- transforms of position -------------------------------------------------------------------------------------

TRANSFORMS = [
    OpCase("fft over space", fn(lambda h: torch.fft.fft(h, dim=-1).abs())),
    OpCase("fft2", fn(lambda h: torch.view_as_real(torch.fft.fft2(h)))),
    OpCase(
        "global filter",
        fn(lambda h, weight: torch.fft.irfft2(torch.fft.rfft2(h) * weight, s=(5, 7)), weight=(11, 1, 1)),
        loses=("producer.weight[0]", "op.weight[0]"),
    ),
    OpCase("sum over a spectrum", fn(lambda h: torch.fft.rfft(h).abs().sum(1)), **GONE),
    OpCase(
        "fft",
        fn(lambda h: torch.fft.fft(h, dim=1).real),
        expect="refused",
        says=("aten::_fft_r2c", "a Fourier transform runs over this dimension"),
    ),
    OpCase(
        "stft",
        fn(
            lambda h: torch.stft(h.flatten(0, 1), 8, window=h.new_ones(8), return_complex=True).abs().view(2, 11, 5, -1)
        ),
        (2, 11, 32),
        "refused",
        ("aten::as_strided", "as_strided reads memory"),
    ),
    OpCase("triu of space", fn(lambda h: h.triu(1))),
    OpCase("tril of space", fn(lambda h: torch.tril(h))),
    OpCase(
        "triu",
        fn(lambda h: h.triu()),
        SEQUENCE,
        "refused",
        ("aten::triu", "the result depends on the position in this dimension"),
    ),
    OpCase("diagonal of space", fn(lambda h: h.diagonal(1, -2, -1))),
    OpCase("diagonal of the outer dimensions", fn(lambda h: h.diagonal(0, 0, 3)), out=0),
    OpCase(
        "diagonal of the channels",
        fn(lambda h: h.diagonal(0, 1, 2)),
        expect="refused",
        says=("aten::diagonal", "the result depends on the position in this dimension"),
        out=2,
    ),
    OpCase("diag_embed of space", fn(lambda h: h.diag_embed())),
    OpCase("diag_embed in front", fn(lambda h: torch.diag_embed(h, 0, 0, 2)), SEQUENCE, out=3),
    OpCase(
        "diag_embed of the channels",
        fn(lambda h: h.diag_embed()),
        FLAT,
        "refused",
        ("aten::diag_embed", "the result depends on the position in this dimension"),
    ),
    OpCase(
        "trace",
        fn(lambda h: h.trace()),
        FLAT,
        "refused",
        ("aten::trace", "the result depends on the position in this dimension"),
        out=None,
        mixes="the axis is gone",
    ),
    OpCase(
        "histc",
        fn(lambda h: h.histc(5)),
        FLAT,
        "refused",
        ("aten::histc", "counted by value"),
        out=None,
        mixes="the axis is gone",
    ),
    OpCase(
        "cross of coordinates",
        fn(lambda h, axis: torch.linalg.cross(h, axis), axis=(1, 11, 3)),
        (2, 11, 3),
        loses=("producer.weight[0]", "op.axis[1]"),
    ),
    OpCase("sum over a cross product", fn(lambda h: torch.cross(h, h.cos(), dim=-1).sum(1)), (2, 11, 3), **GONE),
    OpCase(
        "cross of the channels",
        fn(lambda h: torch.linalg.cross(h, h.cos(), dim=1)),
        (2, 3, 7),
        "refused",
        ("aten::linalg_cross", "the three coordinates of a cross product"),
    ),
    OpCase(
        "affine_grid",
        fn(lambda h: F.affine_grid(h[:, None].expand(-1, 2, -1), torch.Size((2, 1, 4, 5)), align_corners=False)),
        (2, 3),
        "refused",
        ("aten::affine_grid_generator", "the sizes of a sampling grid"),
        out=None,
        mixes="the axis is gone",
    ),
]

# -- fused attention --------------------------------------------------------------------------------------------

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
attend = F.scaled_dot_product_attention
HEADS: dict[str, Any] = {"shape": (2, 4, 5, 3), "axis": 1, "out": 1}
WIDTH: dict[str, Any] = {"shape": (2, 4, 5, 11), "axis": -1}


def _heads(h: torch.Tensor, heads: int, width: int) -> torch.Tensor:
    return h.view(h.shape[0], h.shape[1], heads, width).transpose(1, 2)


def _qkv(h: torch.Tensor, q: nn.Module, k: nn.Module, v: nn.Module, mask: Any = None) -> torch.Tensor:
    y = attend(_heads(q(h), 4, 3), _heads(k(h), 4, 3), _heads(v(h), 4, 3), mask)
    return y.transpose(1, 2).reshape(2, 5, 12)


QKV: dict[str, Any] = {part: (lambda: nn.Linear(11, 12)) for part in "qkv"}
QKV_LOSSES = tuple(f"op.{part}.{end}" for part in "qkv" for end in ("weight[0]", "weight[1]", "bias[0]"))

ATTENTION = [
    OpCase("attention kernel, heads", fn(lambda h: flash(h, h.sin(), h.cos(), scale=0.4)[0]), **HEADS),
    OpCase("attention, heads", fn(lambda h: attend(h, h.sin(), h.cos())), **HEADS),
    OpCase("attention, logarithms of the sums", fn(lambda h: flash(h, h.sin(), h, scale=0.4)[1]), **HEADS),
    OpCase(
        "attention, a bias per head",
        fn(lambda h, bias: attend(h, h.sin(), h, bias), bias=(1, 4, 5, 5)),
        **HEADS,
        loses=("producer.weight[0]", "op.bias[1]"),
    ),
    OpCase("attention, one bias", fn(lambda h, bias: attend(h, h.sin(), h, bias), bias=(5, 5)), **HEADS),
    OpCase(
        "attention, a mask", fn(lambda h, m: attend(h, h.sin(), h, m), m=torch.ones(1, 1, 5, 5).tril() > 0), **HEADS
    ),
    OpCase("attention, causal", fn(lambda h: attend(h, h.sin(), h.cos(), is_causal=True)), **HEADS),
    OpCase("attention, the batch", fn(lambda h: attend(h, h.sin(), h)), (11, 4, 5, 3), axis=0, out=0),
    OpCase(
        "attention, width of the queries",
        fn(lambda h, k, v: attend(h, k, v), k=(2, 4, 5, 11), v=(2, 4, 5, 11)),
        **WIDTH,
        out=1,
        mixes=SUMS,
        loses=("producer.weight[0]", "op.k[3]"),
    ),
    OpCase(
        "attention, width of the values",
        fn(lambda h, q, k: attend(q, k, h), q=(2, 4, 5, 11), k=(2, 4, 5, 11)),
        **WIDTH,
        out=-1,
        loses=("producer.weight[0]", "consumer.weight[1]"),
    ),
    OpCase(
        "attention, widths of their own from the start",
        fn(lambda h, q, k: attend(q, k, h), q=(2, 4, 5, 7), k=(2, 4, 5, 7)),
        **WIDTH,
        out=-1,
    ),
    OpCase(
        "sum over the heads of attention",
        fn(lambda h: attend(h, h.sin(), h).sum(1)),
        (2, 4, 5, 3),
        out=None,
        mixes="the axis is gone",
    ),
    OpCase(
        "attention, prompts before the keys",
        fn(
            lambda h, k, v: attend(h, torch.cat([k, h.sin()], 2), torch.cat([v, h.cos()], 2), scale=0.5),
            k=(2, 4, 7, 3),
            v=(2, 4, 7, 3),
        ),
        **HEADS,
        expect="inexact",
        loses=("producer.weight[0]", "op.k[2]", "op.v[2]"),
    ),
    OpCase(
        "attention, learned queries",
        fn(lambda h, q: attend(q, h.sin(), h).transpose(1, 2), q=(2, 4, 7, 3)),
        (2, 4, 5, 3),
        out=2,
        loses=("producer.weight[0]", "op.q[1]"),
    ),
    OpCase(
        "attention, learned queries and causal",
        fn(lambda h, q: attend(q, q.sin(), q, is_causal=True) + 0 * h, q=(2, 4, 7, 3)),
        (2, 4, 7, 3),
        "refused",
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "causal attention compares positions"),
        axis=2,
        loses=("op.q[2]",),
        out=None,
        mixes="the axis is held by the queries",
    ),
    OpCase(
        "attention, shared keys",
        fn(lambda h, k: attend(h, k, k.sin(), enable_gqa=True), k=(2, 3, 5, 7)),
        (2, 12, 5, 7),
        loses=("producer.weight[0]", "op.k[1]"),
    ),
    OpCase(
        "attention, one key for all heads",
        fn(lambda h, k: attend(h, k, k.sin(), enable_gqa=True), k=(2, 1, 5, 7)),
        (2, 4, 5, 7),
    ),
    OpCase(
        "attention with projections",
        fn(_qkv, **QKV),
        (2, 5, 11),
        axis=-1,
        out=-1,
        mixes=INSIDE,
        loses=("producer.weight[0]", *QKV_LOSSES),
    ),
    OpCase(
        "attention with projections and a bias per head",
        fn(lambda h, mask, **layers: _qkv(h, mask=mask, **layers), mask=(1, 4, 5, 5), **QKV),
        (2, 5, 11),
        axis=-1,
        out=-1,
        mixes=INSIDE,
        loses=("producer.weight[0]", "op.mask[1]", *QKV_LOSSES),
    ),
    OpCase(
        "attention with shared keys and projections",
        fn(
            lambda h, q, k, v: (
                attend(_heads(q(h), 4, 3), _heads(k(h), 2, 3), _heads(v(h), 2, 3), enable_gqa=True)
                .transpose(1, 2)
                .reshape(2, 5, 12)
            ),
            q=lambda: nn.Linear(11, 12),
            k=lambda: nn.Linear(11, 6),
            v=lambda: nn.Linear(11, 6),
        ),
        (2, 5, 11),
        axis=-1,
        out=-1,
        mixes=INSIDE,
        loses=("producer.weight[0]", *QKV_LOSSES),
    ),
]

# -- recurrent layers -------------------------------------------------------------------------------------------


def _weights(gates: int, inputs: int, hidden: int, outputs: int = 0, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """The parameters of one layer in one direction."""
    made: dict[str, tuple[int, ...]] = {
        "ih": (gates * hidden, inputs),
        "hh": (gates * hidden, outputs or hidden),
        "bi": (gates * hidden,),
        "bh": (gates * hidden,),
    }
    return {prefix + name: shape for name, shape in {**made, **({"hr": (outputs, hidden)} if outputs else {})}.items()}


def _layer_losses(*prefixes: str) -> tuple[str, ...]:
    ends = ("ih[0]", "ih[1]", "hh[0]", "hh[1]", "bi[0]", "bh[0]")
    return ("producer.weight[0]", "consumer.weight[1]", *(f"op.{p}{end}" for p in prefixes for end in ends))


def _zeros(h: torch.Tensor, layers: int, hidden: int) -> torch.Tensor:
    return h.new_zeros(layers, h.shape[1], hidden)


def _lstm(h: torch.Tensor, layers: int = 1, both: bool = False, hidden: int = 7, **weights: torch.Tensor) -> Any:
    states = layers * (2 if both else 1)
    state = _zeros(h, states, weights["hr"].shape[0] if "hr" in weights else hidden), _zeros(h, states, hidden)
    return torch.lstm(h, state, list(weights.values()), True, layers, 0.0, False, both, False)


def _stacked(function: Any, h: torch.Tensor, hidden: int = 7, layers: int = 1, **weights: torch.Tensor) -> Any:
    return function(h, _zeros(h, layers, hidden), list(weights.values()), True, layers, 0.0, False, False, False)


@torch.fx.wrap
def _packed(h: torch.Tensor) -> Any:
    return nn.utils.rnn.pack_padded_sequence(h, torch.tensor([5, 3]), batch_first=True)


def _unpadded(layer: nn.Module, h: torch.Tensor) -> torch.Tensor:
    return nn.utils.rnn.pad_packed_sequence(layer(_packed(h))[0], batch_first=True)[0]


STEPS: dict[str, Any] = {"shape": TOKENS, "axis": -1, "out": -1, "mixes": INSIDE}
CELL: dict[str, Any] = {"shape": FLAT, "mixes": INSIDE, "loses": _layer_losses("")}

RECURRENT = [
    OpCase("lstm", fn(lambda h, **w: _lstm(h, **w)[0], **_weights(4, 11, 7)), **STEPS, loses=_layer_losses("")),
    OpCase(
        "lstm, last state", fn(lambda h, **w: _lstm(h, **w)[1], **_weights(4, 11, 7)), **STEPS, loses=_layer_losses("")
    ),
    OpCase(
        "lstm, last cell", fn(lambda h, **w: _lstm(h, **w)[2], **_weights(4, 11, 7)), **STEPS, loses=_layer_losses("")
    ),
    OpCase(
        "lstm, two layers",
        fn(lambda h, **w: _lstm(h, 2, **w)[0], **_weights(4, 11, 7), **_weights(4, 7, 7, prefix="up_")),
        **STEPS,
        loses=_layer_losses("", "up_"),
    ),
    OpCase(
        "lstm, both directions",
        fn(lambda h, **w: _lstm(h, 1, True, **w)[0], **_weights(4, 11, 7), **_weights(4, 11, 7, prefix="back_")),
        **STEPS,
        loses=_layer_losses("", "back_"),
    ),
    OpCase(
        "lstm, two layers in both directions",
        fn(
            lambda h, **w: _lstm(h, 2, True, **w)[0],
            **_weights(4, 11, 7),
            **_weights(4, 11, 7, prefix="back_"),
            **_weights(4, 14, 7, prefix="up_"),
            **_weights(4, 14, 7, prefix="up_back_"),
        ),
        **STEPS,
        loses=_layer_losses("", "back_", "up_", "up_back_"),
    ),
    OpCase(
        "lstm with a projection",
        fn(lambda h, **w: _lstm(h, **w)[0], **_weights(4, 11, 7, 5)),
        **STEPS,
        loses=(*_layer_losses(""), "op.hr[0]", "op.hr[1]"),
    ),
    OpCase(
        "lstm, states given",
        fn(
            lambda h, h0, c0, **w: torch.lstm(h, (h0, c0), list(w.values()), True, 1, 0.0, False, False, False)[0],
            h0=(1, 5, 7),
            c0=(1, 5, 7),
            **_weights(4, 11, 7),
        ),
        **STEPS,
        loses=(*_layer_losses(""), "op.h0[2]", "op.c0[2]"),
    ),
    OpCase(
        "sum over the units of an lstm",
        fn(lambda h, **w: _lstm(h, **w)[0].sum(-1), **_weights(4, 11, 7)),
        TOKENS,
        "inexact",
        axis=-1,
        out=None,
        mixes=INSIDE,
        loses=("producer.weight[0]", "op.hh[1]"),
    ),
    OpCase(
        "gru",
        fn(lambda h, **w: _stacked(torch.gru, h, **w)[0], **_weights(3, 11, 7)),
        **STEPS,
        loses=_layer_losses(""),
    ),
    OpCase(
        "gru, two layers, last state",
        fn(
            lambda h, **w: _stacked(torch.gru, h, layers=2, **w)[1],
            **_weights(3, 11, 7),
            **_weights(3, 7, 7, prefix="up_"),
        ),
        **STEPS,
        loses=_layer_losses("", "up_"),
    ),
    OpCase(
        "gru, a state that is not zero",
        fn(
            lambda h, **w: torch.gru(h, h.new_ones(1, 5, 7), list(w.values()), True, 1, 0.0, False, False, False)[0],
            **_weights(3, 11, 7),
        ),
        **STEPS,
        loses=_layer_losses(""),
    ),
    *(
        OpCase(
            name,
            fn(lambda h, function=function, **w: _stacked(function, h, **w)[0], **_weights(1, 11, 7)),
            **STEPS,
            loses=_layer_losses(""),
        )
        for name, function in (("rnn_tanh", torch.rnn_tanh), ("rnn_relu", torch.rnn_relu))
    ),
    OpCase(
        "lstm_cell",
        fn(
            lambda h, **w: torch.lstm_cell(h, (h.new_zeros(2, 7), h.new_zeros(2, 7)), *w.values())[0],
            **_weights(4, 11, 7),
        ),
        **CELL,
    ),
    OpCase(
        "lstm_cell, two steps",
        fn(
            lambda h, **w: torch.lstm_cell(
                h, torch.lstm_cell(h.cos(), (h.new_zeros(2, 7), h.new_zeros(2, 7)), *w.values()), *w.values()
            )[1],
            **_weights(4, 11, 7),
        ),
        **CELL,
    ),
    OpCase(
        "gru_cell", fn(lambda h, **w: torch.gru_cell(h, h.new_zeros(2, 7), *w.values()), **_weights(3, 11, 7)), **CELL
    ),
    OpCase(
        "rnn_tanh_cell",
        fn(lambda h, **w: torch.rnn_tanh_cell(h, h.new_zeros(2, 7), *w.values()), **_weights(1, 11, 7)),
        **CELL,
    ),
    OpCase(
        "packed sequences",
        fn(
            lambda h, layer: _unpadded(layer, h),
            layer=lambda: nn.LSTM(11, 7, batch_first=True),
        ),
        **{**STEPS, "mixes": ENTRIES},
        loses=("producer.weight[0]", "op.layer.weight_hh_l0[1]", "consumer.weight[1]"),
    ),
    OpCase(
        "packed sequences, the steps",
        fn(lambda h: _packed(h).data),
        (2, 5, 7),
        "refused",
        ("aten::_pack_padded_sequence", "the lengths of the sequences are data"),
        mixes=ENTRIES,
    ),
    OpCase("unsafe_split of another axis", fn(lambda h: torch.unsafe_split(h, 2, 2)[1])),
    OpCase("unsafe_chunk", fn(lambda h: _gated(torch.unsafe_chunk(h, 2, 1))), EVEN),
    OpCase("unsafe_split_with_sizes of another axis", fn(lambda h: torch.unsafe_split_with_sizes(h, [2, 3], 2)[1])),
]

# -- other spellings --------------------------------------------------------------------------------------------

SPELLINGS = [
    OpCase("view, keyword", fn(lambda h: h.view(size=(2, 11, 35)))),
    OpCase("view, product of the shape", fn(lambda h: h.view(h.shape[0], h.shape[1] * 35))),
    OpCase("view, the whole shape", fn(lambda h: (2 * h).view(h.shape))),
    OpCase("reshape, keyword", fn(lambda h: torch.reshape(input=h, shape=(2, 385)))),
    OpCase("reshape, -1 between shapes", fn(lambda h: h.reshape(h.size(0), -1, h.size(2), h.size(3)))),
    OpCase("unflatten, keywords", fn(lambda h: torch.unflatten(h, dim=1, sizes=(4, 3)).flatten(1, 2)), EVEN),
    OpCase("split, keywords", fn(lambda h: _joined(torch.split(h, split_size_or_sections=[5, 6], dim=1)))),
    OpCase("split method, keywords", fn(lambda h: _joined(h.split(split_size=6, dim=1)))),
    OpCase("split of a negative axis", fn(lambda h: _joined(h.split([4, 7], -3)))),
    OpCase("split, one part used", fn(lambda h: h.split(6, 1)[-1])),
    OpCase("split, from the shape", fn(lambda h: _joined(h.split([4, h.shape[1] - 4], 1)))),
    OpCase("chunk, keywords", fn(lambda h: _joined(torch.chunk(input=h, chunks=2, dim=1)))),
    OpCase("chunk of chunks", fn(lambda h: _joined(_joined(h.chunk(2, 1)).chunk(3, 1), 3)), EVEN),
    OpCase("tensor_split, keywords", fn(lambda h: _joined(torch.tensor_split(h, sections=2, dim=1)))),
    OpCase("narrow, keywords", fn(lambda h: torch.narrow(h, dim=1, start=3, length=5))),
    OpCase("narrow, from the shape", fn(lambda h: h.narrow(1, 0, h.shape[1] // 2)), EVEN),
    OpCase("select, keywords", fn(lambda h: torch.select(h, dim=2, index=1))),
    OpCase("select, negative", fn(lambda h: torch.select(h, 1, -2)), out=None, mixes="the axis is gone"),
    OpCase("index, negative", fn(lambda h: h[:, -2]), out=None, mixes="the axis is gone"),
    OpCase("index of the batch", fn(lambda h: h[0]), out=0),
    OpCase("index of the batch, kept", fn(lambda h: h[-1:])),
    OpCase("index by list and slice", fn(lambda h: h[:, [4, 1, 9, 3, 3], 1:3])),
    OpCase("index by list and None", fn(lambda h: h[:, [4, 1, 9, 3, 3], None])),
    OpCase(
        "index by the same buffer twice",
        fn(lambda h, order: h[:, order][:, order], order=torch.tensor([1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 10])),
        ties="one list serves both, so that whole cycles of it go",
    ),
    OpCase(
        "index by one buffer, two tensors",
        fn(lambda h, order: torch.cat([h[:, order], h.tanh()[:, order]], 1), order=torch.tensor(PERMUTATION)),
    ),
    OpCase("roll, keywords", fn(lambda h: h.roll(shifts=3, dims=1))),
    OpCase("roll, from the shape", fn(lambda h: h.roll(h.shape[1] // 2, 1)), EVEN),
    OpCase("flip, keywords", fn(lambda h: torch.flip(h, dims=(1,)))),
    OpCase("repeat, a list", fn(lambda h: h.repeat([1, 2, 1, 1]))),
    OpCase("repeat_interleave, keywords", fn(lambda h: torch.repeat_interleave(h, repeats=2, dim=1))),
    OpCase(
        "repeat_interleave by a tensor",
        fn(
            lambda h, times: torch.repeat_interleave(h, times, 1, output_size=14),
            times=torch.tensor([1, 2, 1, 1, 0, 1, 3, 1, 1, 2, 1]),
        ),
        expect="refused",
        says=("aten::index", "indexed by numbers that are not known"),
    ),
    OpCase("expand, keyword", fn(lambda h: h[:, :, None].expand(size=(2, 11, 3, 5, 7)))),
    OpCase("pad, keywords", fn(lambda h: F.pad(input=h, pad=(0, 0, 0, 0, 1, 2), mode="constant", value=0.0))),
    OpCase(
        "conv2d, keywords",
        fn(lambda h, weight: F.conv2d(input=h, weight=weight, groups=3), weight=(15, 4, 3, 3)),
        **GROUPED,
    ),
    OpCase(
        "conv_transpose2d, keywords",
        fn(lambda h, weight: F.conv_transpose2d(input=h, weight=weight, groups=3), weight=(12, 5, 3, 3)),
        **GROUPED,
    ),
    OpCase("group_norm, keywords", fn(lambda h: F.group_norm(h, num_groups=11))),
    OpCase(
        "layer_norm, keywords", fn(lambda h: F.layer_norm(input=h, normalized_shape=(11,))), expect="inexact", **LAST
    ),
    OpCase("channel_shuffle, keywords", fn(lambda h: torch.channel_shuffle(h, groups=3)), EVEN),
    OpCase(
        "einsum with an ellipsis",
        fn(lambda h, weight: torch.einsum("...c,cd->...d", h, weight), weight=(11, 13)),
        **LAST,
        **CONV,
    ),
    OpCase(
        "matmul with broadcasting",
        fn(lambda h, weight: torch.matmul(h.unsqueeze(1), weight), weight=(3, 11, 13)),
        **LAST,
        mixes=SUMS,
        loses=("producer.weight[0]", "op.weight[1]", "op.weight[2]"),
    ),
    OpCase(
        "unfold and matmul",
        fn(lambda h, weight: (weight @ F.unfold(h, 3)).view(2, 13, 3, 5), weight=(13, 99)),
        mixes=SUMS,
        loses=("producer.weight[0]", "op.weight[0]", "op.weight[1]"),
    ),
    OpCase("unfold and view", fn(lambda h: F.unfold(h, 3, padding=1).view(2, 11, 9, 35).sum(2))),
    OpCase(
        "depth to space by views",
        fn(lambda h: h.view(2, 5, 2, 2, 3, 7).permute(0, 1, 4, 2, 5, 3).reshape(2, 5, 6, 14)),
        (2, 20, 3, 7),
    ),
    OpCase(
        "rotary by complex numbers",
        fn(
            lambda h, angle: torch.view_as_real(
                torch.view_as_complex(h.reshape(2, 5, 6, 2)) * torch.polar(torch.ones_like(angle), angle)
            ).flatten(2),
            angle=(5, 6),
        ),
        (2, 5, 12),
        axis=-1,
        out=-1,
        loses=("producer.weight[0]", "op.angle[1]"),
    ),
    OpCase("complex", fn(lambda h: torch.complex(h, h.sin()).abs())),
    OpCase("unsqueeze_", fn(lambda h: h.unsqueeze_(1)), out=2),
    OpCase("squeeze_", fn(lambda h: h.mean(2, keepdim=True).squeeze_(2))),
    OpCase("transpose_", fn(lambda h: h.relu().transpose_(1, 2)), SEQUENCE, out=2),
    OpCase("t_", fn(lambda h: h.tanh().t_()), FLAT, out=0),
    OpCase(
        "in place on a view of a clone",
        fn(lambda h: _written(h.clone())),
        ties="what is overwritten still belongs to its channel",
    ),
    OpCase("narrow, start from the shape", fn(lambda h: h.narrow(1, h.shape[1] // 2, h.shape[1] // 3)), EVEN),
    OpCase("select, from the shape", fn(lambda h: h.select(1, h.shape[1] // 2)), out=None, mixes="the axis is gone"),
    OpCase("index, from the shape", fn(lambda h: h[:, h.shape[1] // 2]), out=None, mixes="the axis is gone"),
    OpCase(
        "pad of the channels, from the shape",
        fn(lambda h, layer: _widened(h, layer(h)), layer=lambda: nn.Conv2d(11, 17, 1)),
        mixes=INSIDE,
    ),
    OpCase("ConstantPad3d over the channels", lambda: nn.ConstantPad3d((0, 0, 0, 0, 2, 4), 0.0)),
    OpCase("ZeroPad3d over the channels, cropping", lambda: nn.ZeroPad3d((1, 0, 0, 0, -2, -3))),
    OpCase("tile, keywords", fn(lambda h: torch.tile(input=h, dims=(2, 1, 1)))),
    OpCase("repeat, keyword", fn(lambda h: h.repeat(repeats=(1, 3, 1, 1)))),
    OpCase("slice, negative start and step", fn(lambda h: h[:, -11::2]), EVEN, ties="a period goes as a whole"),
    OpCase("slice, negative stop and step", fn(lambda h: h[:, :-1:2]), EVEN, ties="a period goes as a whole"),
    OpCase(
        "slice, step and stop from the shape",
        fn(lambda h: h[:, 1 : h.shape[1] : 3]),
        EVEN,
        ties="a period goes as a whole",
    ),
    OpCase("reciprocal_", fn(lambda h: h.reciprocal_()), expect="inexact"),
]


def _widened(h: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    return wide + F.pad(h, (0, 0, 0, 0, 0, wide.shape[1] - h.shape[1]))


def _written(h: torch.Tensor) -> torch.Tensor:
    h[:, 2:5].zero_()
    h[:, 7:].exp_()
    return h


# -- sums see what is left at removed slots ---------------------------------------------------------------------

LEFTOVERS = [
    OpCase(f"sum over {name}", fn(function), **{**STATISTIC, "mixes": "the axis is gone", "shape": shape})
    for name, shape, function in (
        ("a border that is not zero", IMAGE, lambda h: F.pad(h, (1, 1), value=0.5).sum(1)),
        ("padded channels that are not zero", IMAGE, lambda h: F.pad(h, (0, 0, 0, 0, 0, 9), value=0.5).sum(1)),
        ("ones beside the channels", IMAGE, lambda h: torch.cat([h, h.new_ones(2, 7, 5, 7)], 1).sum(1)),
        ("a written tensor", IMAGE, lambda h: _into_halves(h.cos(), torch.zeros_like(h)).sum(1)),
        ("a slice that was added to", IMAGE, lambda h: _shifted(h).sum(1)),
        ("a softmax over space", IMAGE, lambda h: h.softmax(-1).sum(1)),
        ("a filled mask", IMAGE, lambda h: h.masked_fill(h < 0.1, 2.0).sum(1)),
        ("an equality", IMAGE, lambda h: (h.relu() == h).double().sum(1)),
        ("a logarithm over space", IMAGE, lambda h: h.logsumexp(-1).sum(1)),
        ("a bilinear product of cosines", FLAT, lambda h: (h.cos() * h.cos()).sum(1)),
    )
] + [
    OpCase(
        "sum over a convolution with bias, channels in the batch",
        fn(lambda h, layer: layer(h.reshape(22, 1, 5, 7)).view(2, 11, 5, 7).sum(1), layer=lambda: nn.Conv2d(1, 1, 1)),
        **STATISTIC,
    ),
    OpCase(
        "sum over a convolution without bias, channels in the batch",
        fn(
            lambda h, layer: layer(h.reshape(22, 1, 5, 7)).view(2, 11, 5, 7).sum(1),
            layer=lambda: nn.Conv2d(1, 1, 1, bias=False),
        ),
        **GONE,
    ),
    OpCase(
        "sum over a layer norm of space", fn(lambda h, norm: norm(h).sum(1), norm=lambda: nn.LayerNorm(7)), **STATISTIC
    ),
    OpCase("sum over a batch norm", fn(lambda h, norm: norm(h).sum(1), norm=lambda: nn.BatchNorm2d(11)), **GONE),
    OpCase(
        "sum over a batch norm without affine",
        fn(lambda h, norm: norm(h).sum(1), norm=lambda: nn.BatchNorm2d(11, affine=False)),
        **GONE,
    ),
    OpCase("sum over padded zeros", fn(lambda h: F.pad(h, (1, 1, 0, 0, 2, 2)).sum(1)), **GONE),
    OpCase("sum over a max pool", fn(lambda h: F.max_pool2d(h, 3, padding=1).sum(1)), **GONE),
    OpCase(
        "sum over an upsampled image", fn(lambda h: F.interpolate(h, scale_factor=2, mode="bicubic").sum(1)), **GONE
    ),
    OpCase("sum over a running sum of space", fn(lambda h: h.cumsum(2).sum(1)), **GONE),
    OpCase(
        "sum over a written tensor that stays zero", fn(lambda h: _into_halves(h, torch.zeros_like(h)).sum(1)), **GONE
    ),
]


def _shifted(h: torch.Tensor) -> torch.Tensor:
    h[:, :4].add_(1)
    return h


# -- what nobody described --------------------------------------------------------------------------------------

UNRULED = [
    OpCase(
        "renorm",
        fn(lambda h: h.renorm(2, 1, 1.0)),
        expect="refused",
        says=("aten::renorm", "no channel rule"),
        unruled=True,
    ),
    OpCase(
        "histogram",
        fn(lambda h: torch.histogram(h, 5)[0]),
        FLAT,
        "refused",
        ("aten::histogram", "no channel rule for this operation"),
        out=None,
        unruled=True,
    ),
]

CASES: tuple[OpCase, ...] = (
    *CONTRACTIONS,
    *NORMALIZATIONS,
    *ELEMENTWISE,
    *MOVEMENT,
    *POOLING,
    *REDUCTIONS,
    *INDEXING,
    *TRANSFORMS,
    *ATTENTION,
    *RECURRENT,
    *SPELLINGS,
    *LEFTOVERS,
    *UNRULED,
)
