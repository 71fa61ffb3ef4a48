"""Rows of pooling and resampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.ops.cases.row import IMAGE, SEQUENCE, TOKENS, VOLUME, OpCase, fn

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
