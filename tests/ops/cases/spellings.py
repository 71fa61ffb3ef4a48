"""Other spellings of operations of all families: keywords, negative dimensions, numbers taken from a shape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.ops.cases.row import CONV, EVEN, FLAT, GROUPED, INSIDE, LAST, PERMUTATION, SEQUENCE, SUMS, OpCase, fn, joined

SPELLINGS = [
    OpCase("view, keyword", fn(lambda h: h.view(size=(2, 11, 35)))),
    OpCase("view, product of the shape", fn(lambda h: h.view(h.shape[0], h.shape[1] * 35))),
    OpCase("view, the whole shape", fn(lambda h: (2 * h).view(h.shape))),
    OpCase("reshape, keyword", fn(lambda h: torch.reshape(input=h, shape=(2, 385)))),
    OpCase("reshape, -1 between shapes", fn(lambda h: h.reshape(h.size(0), -1, h.size(2), h.size(3)))),
    OpCase("unflatten, keywords", fn(lambda h: torch.unflatten(h, dim=1, sizes=(4, 3)).flatten(1, 2)), EVEN),
    OpCase("split, keywords", fn(lambda h: joined(torch.split(h, split_size_or_sections=[5, 6], dim=1)))),
    OpCase("split method, keywords", fn(lambda h: joined(h.split(split_size=6, dim=1)))),
    OpCase("split of a negative axis", fn(lambda h: joined(h.split([4, 7], -3)))),
    OpCase("split, one part used", fn(lambda h: h.split(6, 1)[-1])),
    OpCase("split, from the shape", fn(lambda h: joined(h.split([4, h.shape[1] - 4], 1)))),
    OpCase("chunk, keywords", fn(lambda h: joined(torch.chunk(input=h, chunks=2, dim=1)))),
    OpCase("chunk of chunks", fn(lambda h: joined(joined(h.chunk(2, 1)).chunk(3, 1), 3)), EVEN),
    OpCase("tensor_split, keywords", fn(lambda h: joined(torch.tensor_split(h, sections=2, dim=1)))),
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
