"""Rows of normalizations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.ops.cases.row import EVEN, FLAT, IMAGE, LAST, SEQUENCE, VOLUME, OpCase, fn

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
