"""Rows of operations that sum over channels with weights: linear layers, convolutions, matrix products."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from tests.ops.cases.row import CONV, EVEN, FLAT, GONE, GROUPED, IMAGE, LAST, SEQUENCE, SUMS, TOKENS, VOLUME, OpCase, fn


def _gradients(
    h: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    asked: tuple[bool, bool, bool],
    groups: int = 1,
    transposed: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Those of a convolution: of its input x, its weight and its bias. h: the gradient of its result."""
    zeros = [0, 0]
    settings = ([1, 1], zeros, [1, 1], transposed, zeros, groups)
    return torch.ops.aten.convolution_backward(h, x, weight, [0], *settings, asked)


def gradient_of_input(h: torch.Tensor, weight: torch.Tensor, groups: int = 1, transposed: bool = False) -> torch.Tensor:
    x = (F.conv2d if transposed else F.conv_transpose2d)(h, weight, groups=groups)
    return _gradients(h, x, weight, (True, False, False), groups, transposed)[0]


DEPTHWISE: dict[str, Any] = {"loses": ("producer.weight[0]", "op.weight[0]")}

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
    OpCase("Conv1d of one slot over the features of tokens", lambda: nn.Conv1d(5, 4, 1), TOKENS, axis=2, out=2),
    OpCase("Conv1d of one slot, without bias", lambda: nn.Conv1d(5, 4, 1, bias=False), TOKENS, axis=2, out=2),
    OpCase(
        "Conv2d of one slot in one direction",
        lambda: nn.Conv2d(11, 4, (3, 1), (2, 1)),
        axis=3,
        out=3,
    ),
    OpCase("ConvTranspose1d of one slot", lambda: nn.ConvTranspose1d(5, 4, 1), TOKENS, axis=2, out=2),
    *(
        OpCase(
            f"Conv1d over the features of tokens, {words}",
            lambda size=size, options=options: nn.Conv1d(5, 4, size, **options),
            TOKENS,
            "refused",
            ("aten::convolution", "spatial dimension of a convolution"),
            axis=2,
            out=2,
            loses=(),
            mixes="a window sums over them",
        )
        for words, size, options in (
            ("a window of three", 3, {"padding": 1}),
            ("every other one", 1, {"stride": 2}),
            ("padded", 1, {"padding": 1}),
        )
    ),
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
    *(
        OpCase(
            f"gradient of the input of a convolution, {name}",
            fn(functools.partial(gradient_of_input, **options), weight=weight),
            shape,
            **CONV,
        )
        for name, weight, shape, options in (
            ("plain", (11, 13, 3, 3), IMAGE, {}),
            ("grouped", (12, 3, 3, 3), EVEN, {"groups": 2}),
            ("transposed", (13, 11, 3, 3), IMAGE, {"transposed": True}),
            ("grouped, transposed", (10, 6, 3, 3), EVEN, {"groups": 2, "transposed": True}),
        )
    ),
    OpCase(
        "gradient of the weight of a convolution",
        fn(
            lambda h, x, weight: _gradients(h, x, weight, (False, True, False))[1].transpose(0, 1),
            x=torch.randn(2, 3, 7, 9),
            weight=(11, 3, 3, 3),
        ),
        mixes=SUMS,
        **DEPTHWISE,
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
