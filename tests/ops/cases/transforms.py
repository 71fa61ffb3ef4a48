"""Rows of transforms of position: Fourier transforms, sorting, cumulative sums, sampling."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from tests.ops.cases.row import FLAT, GONE, SEQUENCE, OpCase, fn

DECIDES = "it decides by numbers whether the windows cover the signal, and fake tensors have none"


def _resynthesised(h: torch.Tensor, changed: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    spectrum = changed(torch.stft(h.flatten(0, 1), 8, window=h.new_ones(8), return_complex=True))
    return torch.istft(spectrum.reshape(-1, 5, 17), 8, window=h.new_ones(8)).view(h.shape)


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
    ),
    OpCase("istft", fn(lambda h: _resynthesised(h, torch.exp)), (2, 11, 32), mixes=DECIDES),
    OpCase(
        "overlapping windows that are added",
        fn(lambda h: torch.ops.aten.unfold_backward(h.unfold(-1, 6, 2).cos(), (2, 11, 32), 2, 6, 2)),
        (2, 11, 32),
    ),
    OpCase(
        "overlapping windows of channels",
        fn(lambda h: torch.ops.aten.unfold_backward(h, (2, 14, 7), 1, 4, 1)),
        (2, 11, 7, 4),
        "refused",
        ("aten::unfold_backward", "windows that overlap are added along this dimension"),
    ),
    OpCase(
        "frames of a signal by as_strided",
        fn(lambda h: h.as_strided((2, 11, 7, 8), (h.stride(0), h.stride(1), 4, 1))),
        (2, 11, 32),
    ),
    OpCase(
        "frames of a signal by as_strided, from the third number on",
        fn(lambda h: torch.as_strided(h, (2, 11, 5, 6), (h.stride(0), h.stride(1), 5, 1), h.storage_offset() + 2)),
        (2, 11, 32),
    ),
    OpCase(
        "windows of an image by as_strided",
        fn(lambda h: h.as_strided((2, 11, 3, 5, 3, 3), (h.stride(0), h.stride(1), 7, 1, 7, 1))),
    ),
    OpCase(
        "as_strided across the channels",
        fn(lambda h: h.as_strided((2, 10, 14), (77, 7, 1))),
        SEQUENCE,
        "refused",
        ("aten::as_strided", "as_strided reads memory"),
    ),
    OpCase(
        "as_strided beyond the channel",
        fn(lambda h: h.as_strided((1, 11, 3, 3), (77, 7, 3, 1))),
        SEQUENCE,
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
