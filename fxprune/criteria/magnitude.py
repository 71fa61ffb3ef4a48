"""Magnitude criteria: the norm of everything that goes with a channel."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from fxprune.analysis.findings import Findings


def norm_scores(findings: Findings, p: int) -> npt.NDArray[np.float64]:
    """The p-norm over all parameter elements that a channel takes along, per channel of the analysis.

        score[c] = (sum over members, over slots i of c, of sum |w[i, ...]|^p)^(1/p)

    For p = 1 on a lone convolution this is the filter norm of Li et al., "Pruning Filters for Efficient ConvNets"
    (2016); summing over the group's producers and consumers follows Fang et al., "DepGraph" (2023), section 3.4.
    Buffers (running statistics) and integer tensors do not count.
    """
    solution = findings.solution
    trained = {name for name, _ in findings.captured.module.named_parameters()}
    largest = max((t.numel() for n, t in findings.tensors.items() if n in trained), default=0)
    buffer = np.empty(largest, np.float32)  # one for all: fresh memory costs more than the arithmetic
    held: tuple[str, npt.NDArray[np.float32]] = ("", buffer)
    sums: dict[int, npt.NDArray[np.float32]] = {}
    for number, axis in enumerate(solution.axes):
        tensor = findings.tensors[axis.parameter]
        if axis.parameter in trained and tensor.is_floating_point() and number in solution.shrinking:
            if held[0] != axis.parameter:  # the axes of a parameter follow each other: its powers are taken once
                held = (axis.parameter, _powers(tensor, p, buffer))
            sums[number] = _sum_but(held[1], axis.dim)
    return np.asarray(solution.sum_over_slots(sums) ** (1 / p), dtype=np.float64)


def _powers(tensor: torch.Tensor, p: int, buffer: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """|w|^p in numpy: one thread that is never kept waiting beats a team of them on layers of usual size."""
    values = tensor.detach().to(device="cpu", dtype=torch.promote_types(tensor.dtype, torch.float32)).numpy()
    out = buffer[: values.size].reshape(values.shape) if values.dtype == buffer.dtype else np.empty_like(values)
    return np.asarray(np.abs(values, out=out) if p == 1 else np.square(values, out=out))


def _sum_but(values: npt.NDArray[np.float32], dim: int) -> npt.NDArray[np.float32]:
    """Sum over all dimensions but one: over those before it row by row, then over those after it along the memory."""
    size = values.shape[dim]
    outer = math.prod(values.shape[:dim])
    if outer > 1:
        values = values.reshape(outer, -1).sum(0)
    return np.asarray(values.reshape(size, -1).sum(-1))
