"""Counts of a dynamic layer in training mode: the steps, and in some of them the coactivation of its connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fxprune.criteria.connections import Geometry, count
from fxprune.ops import Call, Operand, rule

_STEP = torch.tensor([1, 0], device="cpu")
"""Added to the tally in every forward: one step, no opportunity. Adding a tensor is faster than indexing one."""


def accumulate(
    input: Tensor,
    output: Tensor,
    strengths: Tensor,
    tally: Tensor,
    every: int,
    threshold: float,
    geometry: Geometry,
) -> None:
    """Adds 1 to the steps, and at steps 0, every, 2 * every, ... the coactivations to `strengths`; in place.

    tally: int64 [2] on the CPU: steps, and opportunities, which is how often each weight was applied while
    coactivations were counted. every: with 0 only the steps are counted. What is done depends on a value of the tally,
    which no graph can express; so this is one operator, `fxprune::accumulate`, under `torch.compile`, under
    `torch.export` and on fake tensors.
    """
    if torch.compiler.is_compiling() or isinstance(input, FakeTensor):
        g = geometry
        torch.ops.fxprune.accumulate(
            *(input.detach(), output.detach(), strengths, tally, every, threshold),
            *(g.stride, g.padding, g.dilation, g.groups, g.margins, g.mode),
        )
    else:
        _accumulate(input, output, strengths, tally, every, threshold, geometry)


def _accumulate(
    input: Tensor, output: Tensor, strengths: Tensor, tally: Tensor, every: int, threshold: float, geometry: Geometry
) -> None:
    step = tally.tolist()[0]
    tally.add_(_STEP)
    if every and step % every == 0 and output.numel():
        _add_counts(input, output, strengths, tally, threshold, geometry)


@torch.no_grad()
def _add_counts(
    input: Tensor, output: Tensor, strengths: Tensor, tally: Tensor, threshold: float, geometry: Geometry
) -> None:
    if len(geometry.stride) == input.ndim - 1:  # without a batch dimension
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


@rule("fxprune::accumulate")
def _channels(
    call: Call, input: Operand, output: Operand, strengths: Operand, stride: Sequence[int], groups: int
) -> list[Operand]:
    """s[(g o), i] counts x[n, (g i), ...] with y[n, (g o), ...]; a linear layer has one group and its channels last."""
    channel = -1 - len(stride)
    call.same(output.vectors[channel], strengths.dim(0))
    _, inner = call.split(input.vectors[channel], (groups, strengths.dim(1).size))
    call.same(inner, strengths.dim(1))
    return []
