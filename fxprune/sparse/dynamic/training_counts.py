"""The counts of a dynamic layer in training: its steps, and every few steps the coactivation of its connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.criteria.connections import Geometry, count

_STEP = torch.tensor([1, 0], device="cpu")
"""One step more, no opportunity. Indexing the tally takes longer than adding this: every forward pays for it."""


def accumulate(
    input: Tensor,
    output: Tensor,
    strengths: Tensor,
    tally: Tensor,
    every: int,
    threshold: float,
    geometry: Geometry,
) -> None:
    """Add 1 to the steps; at steps 0, every, 2 * every, ... add coactivations to `strengths`, in place.

    tally: int64 [2] on the CPU, the steps and the opportunities: how often each weight was applied while they were
    counted. every: 0 counts nothing but steps. Reading the tally decides, and no graph shows that: under
    `torch.compile` and `torch.export` the whole is one opaque operator, `fxprune::accumulate`.
    """
    if torch.compiler.is_compiling():
        g = geometry
        torch.ops.fxprune.accumulate(
            *(input.detach(), output.detach(), strengths, tally, every, threshold),
            *(g.stride, g.padding, g.dilation, g.groups, g.margins, g.mode),
        )
    else:
        _accumulate(input, output, strengths, tally, every, threshold, geometry)


@torch.no_grad()
def _accumulate(
    input: Tensor, output: Tensor, strengths: Tensor, tally: Tensor, every: int, threshold: float, geometry: Geometry
) -> None:
    step = tally.tolist()[0]
    tally.add_(_STEP)
    if not every or step % every or not output.numel():
        return
    if len(geometry.stride) == input.ndim - 1:  # without a batch
        input, output = input[None], output[None]
    strengths += count(input, output, strengths.shape, threshold, geometry)
    tally[1] += output.numel() // strengths.shape[0]


@torch.library.custom_op("fxprune::accumulate", mutates_args=("strengths", "tally"))
def _operator(
    input: Tensor,
    output: Tensor,
    strengths: Tensor,
    tally: Tensor,
    every: int,
    threshold: float,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    margins: Sequence[int],
    padding_mode: str,
) -> None:
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups, tuple(margins), padding_mode)
    _accumulate(input, output, strengths, tally, every, threshold, geometry)


@_operator.register_fake
def _(*args: Any, **kwargs: Any) -> None:
    return None
