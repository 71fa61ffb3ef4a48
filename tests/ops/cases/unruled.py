"""Rows of operations without a rule."""

from __future__ import annotations

import torch

from tests.ops.cases.row import FLAT, OpCase, fn

UNRULED = [
    OpCase(
        "renorm",
        fn(lambda h: h.renorm(2, 1, 1.0)),
        expect="refused",
        says=("aten::renorm", "no channel rule"),
        unruled=True,
    ),
    OpCase(
        "histogram",
        fn(lambda h: torch.histogram(h, 5)[0]),
        FLAT,
        "refused",
        ("aten::histogram", "no channel rule for this operation"),
        out=None,
        unruled=True,
    ),
]
