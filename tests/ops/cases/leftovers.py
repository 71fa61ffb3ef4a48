"""Rows that sum over removed slots, in which an operation before left zeros or something else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.ops.cases.row import FLAT, GONE, IMAGE, STATISTIC, OpCase, fn, into_halves

LEFTOVERS = [
    OpCase(f"sum over {name}", fn(function), **{**STATISTIC, "mixes": "the axis is gone", "shape": shape})
    for name, shape, function in (
        ("a border that is not zero", IMAGE, lambda h: F.pad(h, (1, 1), value=0.5).sum(1)),
        ("padded channels that are not zero", IMAGE, lambda h: F.pad(h, (0, 0, 0, 0, 0, 9), value=0.5).sum(1)),
        ("ones beside the channels", IMAGE, lambda h: torch.cat([h, h.new_ones(2, 7, 5, 7)], 1).sum(1)),
        ("a written tensor", IMAGE, lambda h: into_halves(h.cos(), torch.zeros_like(h)).sum(1)),
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
        "sum over a written tensor that stays zero", fn(lambda h: into_halves(h, torch.zeros_like(h)).sum(1)), **GONE
    ),
]


def _shifted(h: torch.Tensor) -> torch.Tensor:
    h[:, :4].add_(1)
    return h
