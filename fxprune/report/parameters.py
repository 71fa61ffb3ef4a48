"""The dimension by which a parameter that no layer owns is drawn, in pictures and on the page."""

from __future__ import annotations

from collections.abc import Collection

from fxprune.analysis.findings import Findings


def drawn_dim(findings: Findings, parameter: str) -> int:
    """The dimension by which a parameter is drawn that no layer owns.

    It is the one whose channels the parameter makes; else the first one in which a group stands, such as that of the
    outputs of a weight [out, in, 3, 3], or of a constant [1, channels, 4, 4]; else the last one.
    """
    first = findings.first_name(parameter)
    made = [group.producer.dim for group in findings.groups if group.producer.parameter == first]
    dims = {m.dim for group in findings.groups for m in group.members if m.parameter == first}
    return min(made) if made else first_or_last(dims, findings.tensors[first].ndim)


def first_or_last(dims: Collection[int], ndim: int) -> int:
    """The first of these dimensions, or the last dimension of the tensor if there are none.

    >>> first_or_last({2, 1}, 4), first_or_last((), 4), first_or_last((), 0)
    (1, 3, 0)
    """
    return min(dims, default=max(ndim - 1, 0))
