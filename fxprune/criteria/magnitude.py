"""Magnitude: the norm of all parameter elements that are removed with a channel, or of one filter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxprune.analysis.findings import Findings, Group
from fxprune.arguments import checks_arguments
from fxprune.capture.tensors import PARAMETER
from fxprune.criteria.table import criterion
from fxprune.criteria.weights import filters_of, is_number, magnitudes, refuse_meta, refuse_without_values
from fxprune.errors import PlanError

BLOCK = 1 << 17
"""The most elements whose powers are held at a time, unless one row has more."""


@criterion("l1")
def l1(findings: Findings, groups: Sequence[Group], seed: int | None = None) -> npt.NDArray[np.float64]:
    """The sum of |w| over all parameter elements that are removed with a channel: `norm_scores` with p = 1.

    On a lone convolution the filter norm of Li et al. 2016, "Pruning Filters for Efficient ConvNets"
    (https://arxiv.org/abs/1608.08710).
    """
    return norm_scores(findings, 1)


@criterion("l2")
def l2(findings: Findings, groups: Sequence[Group], seed: int | None = None) -> npt.NDArray[np.float64]:
    """The Euclidean norm of all parameter elements that are removed with a channel: `norm_scores` with p = 2.

    The group norm of Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", section 3.4
    (https://arxiv.org/abs/2301.12900).
    """
    return norm_scores(findings, 2)


@checks_arguments("p")
def lp(p: float) -> Callable[[Group], Tensor]:
    """The p-norm of all parameter elements that are removed with a channel, as an importance.

        score[c] = (sum over members, over slots i of c, of sum |w[i, ...]|^p)^(1/p)

    For p = 1 and 2 these are the scores of "l1" and "l2". Small p count how many elements differ from zero, large ones
    look at the largest element. Li et al. 2016 (https://arxiv.org/abs/1608.08710), section 4.3, compare norms.

    Raises `PlanError` for a p that is not a positive number; the importance does for a model without values.

    >>> import fxprune
    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[3.0], [2.0]])), net[2].weight.copy_(torch.tensor([[0.0, 2.0]]))
    >>> group = fxprune.analyze(net, torch.zeros(1, 1)).groups[0]
    >>> lp(0.5)(group).round(decimals=3).tolist(), lp(4)(group).round(decimals=3).tolist()
    ([3.0, 8.0], [3.0, 2.378])
    """
    _check_power(p)

    def importance(group: Group) -> Tensor:
        total = torch.zeros(group.size, dtype=torch.float64)
        for member in group.members:
            if isinstance(member.tensor, nn.Parameter) and is_number(member.tensor):
                refuse_meta(member.tensor, f"lp({p})")
                total += member.sum_per_channel(magnitudes(member.tensor) ** p)
        return total ** (1 / p)

    return importance


def _check_power(p: float) -> None:
    if not 0 < p < math.inf:
        raise PlanError(f"p must be a positive number, not {p!r}", do="pass p=1 or p=2")


@checks_arguments("findings", "p")
def norm_scores(findings: Findings, p: float) -> npt.NDArray[np.float64]:
    """The p-norm of all parameter elements that are removed with a channel, per channel of the analysis.

        score[c] = (sum over members, over slots i of c, of sum |w[i, ...]|^p)^(1/p)

    For p = 1 on a lone convolution this is the filter norm of Li et al., "Pruning Filters for Efficient ConvNets"
    (2016); summing over the group's producers and consumers follows Fang et al., "DepGraph" (2023), section 3.4.
    Buffers (running statistics) and integer tensors do not count.

    Raises `PlanError` for a model on the meta device, and for a p that is not a positive number.
    """
    _check_power(p)
    refuse_without_values(findings, f"l{p}")
    solution = findings.solution
    trained = set(findings.captured.tensors.names(PARAMETER))
    wanted: dict[str, dict[int, int]] = {}
    for number, axis in enumerate(solution.axes):
        tensor = findings.tensors[axis.parameter]
        if axis.parameter in trained and is_number(tensor) and number in solution.shrinkable_axes:
            wanted.setdefault(axis.parameter, {})[axis.dim] = number
    sums: dict[int, npt.NDArray[np.floating]] = {}
    for name, numbers in wanted.items():
        found = _sums_of_powers(findings.tensors[name], p, list(numbers))
        sums |= {numbers[dim]: values for dim, values in found.items()}
    return np.asarray(solution.sum_over_slots(sums) ** (1 / p), dtype=np.float64)


@checks_arguments("weight", "p", "dim")
def filter_norms(weight: Tensor, p: int = 2, dim: int = 0) -> Tensor:
    """score[o] = (sum over all other indices of |w[o, ...]|^p)^(1/p), in float64.

    With p = 1 the criterion of Li et al. 2016, "Pruning Filters for Efficient ConvNets"
    (https://arxiv.org/abs/1608.08710, section 3.1).

    Args:
        weight: [.., outputs, ..].
        dim: the dimension of the outputs.

    >>> filter_norms(torch.tensor([[3.0, 4.0], [0.0, -1.0]])).tolist()
    [5.0, 1.0]
    """
    norms: Tensor = torch.linalg.vector_norm(filters_of(magnitudes(weight), dim), p, dim=1)
    return norms


def _sums_of_powers(tensor: Tensor, p: float, dims: Sequence[int]) -> dict[int, npt.NDArray[np.floating]]:
    """For each of some dimensions, the sums of |w|^p over all others.

    The powers of some rows at a time stay in the processor's cache until they are summed, so each weight is read once.
    In numpy: one thread that is never kept waiting beats a team of them on layers of usual size.
    """
    tensor = tensor.detach().abs() if tensor.is_complex() else tensor.detach()
    values = tensor.to(device="cpu", dtype=torch.promote_types(tensor.dtype, torch.float32)).numpy()
    rows = values.reshape(len(values), -1)
    step = max(1, BLOCK // max(1, rows.shape[1]))
    buffer = np.empty((min(step, len(rows)), rows.shape[1]), values.dtype)
    of_rows, of_columns = np.empty(len(rows), values.dtype), np.zeros(rows.shape[1], values.dtype)
    for start in range(0, len(rows), step):
        powers = _powers(rows[start : start + step], p, buffer)
        if 0 in dims:
            powers.sum(1, out=of_rows[start : start + step])
        if max(dims):
            of_columns += powers.sum(0)
    inner = of_columns.reshape(values.shape[1:])
    return {dim: of_rows if not dim else _sum_but(inner, dim - 1) for dim in dims}


def _powers(values: npt.NDArray[np.floating], p: float, buffer: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """|w|^p, in the first rows of a buffer."""
    out = buffer[: len(values)]
    if p == 2:
        return np.asarray(np.square(values, out=out))
    return np.asarray(np.abs(values, out=out) if p == 1 else np.power(np.abs(values, out=out), p, out=out))


def _sum_but(values: npt.NDArray[np.floating], dim: int) -> npt.NDArray[np.floating]:
    """Sum over all dimensions but one: over those before it row by row, then over those after it along the memory."""
    size = values.shape[dim]
    outer = math.prod(values.shape[:dim])
    if outer > 1:
        values = values.reshape(outer, -1).sum(0)
    return np.asarray(values.reshape(size, -1).sum(-1))
