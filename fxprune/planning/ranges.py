"""Indices as text: "0-7,9,12-15"."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_RANGE = re.compile(r"(0|[1-9][0-9]{0,11})(?:-([1-9][0-9]{0,11}))?")

Spans = list[tuple[int, int]]
"""First and last index of every run of indices without a gap, ascending."""


def spans_of(indices: Sequence[int]) -> Spans:
    """The runs of sorted indices."""
    if not len(indices):
        return []
    values = np.asarray(indices)
    cuts = np.flatnonzero(np.diff(values) != 1)
    firsts, lasts = values[np.r_[0, cuts + 1]], values[np.r_[cuts, len(values) - 1]]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def between(spans: Spans, size: int) -> Spans:
    """The runs of all other indices below `size`.

    >>> between([(0, 7), (9, 9)], 12)
    [(8, 8), (10, 11)]
    """
    edges = [-1, *(edge for span in spans for edge in span), size]
    return [(a + 1, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True) if a + 1 < b]


def text_of(spans: Spans) -> str:
    """The runs as text.

    >>> text_of(spans_of([0, 1, 2, 5, 7, 8]))
    '0-2,5,7-8'
    """
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def parse(text: str) -> Spans:
    """The runs that a text names. Each set of indices has only one text.

    Raises `ValueError` with the rule that the text breaks.
    """
    spans: Spans = []
    for part in text.split(",") if text else ():
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError('indices are written like "0-7,9,12-15"')
        first, last = int(match[1]), int(match[2] or match[1])
        if match[2] is not None and last <= first:
            raise ValueError("a range must end after it begins")
        if spans and first <= spans[-1][1]:
            raise ValueError("indices must ascend, each once")
        if spans and first == spans[-1][1] + 1:
            raise ValueError("ranges that touch must be one range")
        spans.append((first, last))
    return spans


def indices_of(spans: Spans) -> list[int]:
    """Every index of the runs."""
    return [index for first, last in spans for index in range(first, last + 1)]
