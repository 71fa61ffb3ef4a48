"""Magnitude criteria: the norm of everything that goes with a channel."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from fxprune.findings import Findings


def norm_scores(findings: Findings, p: int) -> npt.NDArray[np.float64]:
    """The p-norm over all parameter elements that a channel takes along, per channel of the analysis.

        score[c] = (sum over members, over slots i of c, of sum |w[i, ...]|^p)^(1/p)

    For p = 1 on a lone convolution this is the filter norm of Li et al., "Pruning Filters for Efficient ConvNets"
    (2016); summing over the group's producers and consumers follows Fang et al., "DepGraph" (2023), section 3.4.
    Buffers (running statistics) and integer tensors do not count.
    """
    s = findings.solution
    totals = np.zeros(s.channels)
    order = np.argsort(s.axis, kind="stable")
    starts = np.searchsorted(s.axis[order], np.arange(len(s.axes) + 1))
    trained = {name for name, _ in findings.graph_module.named_parameters()}
    held: tuple[str, npt.NDArray[np.float32]] = ("", np.zeros(0, np.float32))
    for number, axis in enumerate(s.axes):
        entries = order[starts[number] : starts[number + 1]]
        tensor = findings.tensors[axis.parameter]
        if not len(entries) or axis.parameter not in trained or not tensor.is_floating_point():
            continue
        if held[0] != axis.parameter:  # the axes of a parameter follow each other: its powers are taken once
            held = (axis.parameter, _powers(tensor, p))
        values = _sum_but(held[1], axis.dim)
        totals += np.bincount(s.channel[entries], weights=values[s.slot[entries]], minlength=s.channels)
    return np.asarray(totals ** (1 / p), dtype=np.float64)


def _powers(tensor: torch.Tensor, p: int) -> npt.NDArray[np.float32]:
    """|w|^p in numpy: one thread that is never kept waiting beats a team of them on layers of usual size."""
    wide = tensor.detach().to(device="cpu", dtype=torch.promote_types(tensor.dtype, torch.float32)).numpy()
    return np.abs(wide) if p == 1 else np.square(wide)


def _sum_but(values: npt.NDArray[np.float32], dim: int) -> npt.NDArray[np.float32]:
    """Sum over all dimensions but one, in two passes along the memory."""
    outer = values.shape[:dim]
    rows = values.reshape(math.prod(outer), values.shape[dim], -1).sum(-1)
    return rows.sum(0)
