"""The tables that `inspect` prints beside the report of an analysis: the layers, and the residual branches."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fxprune.depth.branches import Branch
from fxprune.report.repeats import blocks_of, merge_repeats
from fxprune.report.text import figure, table


def with_layers(report: str, layers: Iterable[Mapping[str, Any]], form: str) -> str:
    """A report of an analysis behind a table of layers; blocks that are the same share a row.

    layers: those of the report as JSON, which has them already. form: the format of the report.
    """
    if form == "json":
        return report
    headers = ("layer", "type", "shape", "params", "MACs")
    rows = [_layer(layer) for layer in layers]
    rows = merge_repeats(rows, blocks_of(name for name, *_ in rows))
    return f"{table(headers, rows, form == 'markdown', right=(3, 4))}\n\n{report}"


def _layer(layer: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the table of layers. The shape is that of the largest tensor."""
    shape = max(layer["shapes"].values(), key=math.prod, default=())
    words = " x ".join(map(str, shape))
    return layer["name"] or "(model)", layer["type"], words, figure(layer["params"]), figure(layer["macs"])


def with_branches(report: str, branches: Sequence[Branch], form: str) -> str:
    """A report of an analysis with the residual branches that can be dropped, and why others cannot."""
    if not branches:
        return report
    if form == "json":
        keys = ("name", "at", "modules", "params", "macs", "why_not")
        data = [{key: getattr(branch, key) for key in keys} for branch in branches]
        return json.dumps({**json.loads(report), "branches": data}, indent=1, allow_nan=False)
    rows = [(b.name, b.params, "unknown" if b.macs is None else b.macs, b.why_not or "can go") for b in branches]
    headers = ("residual branch", "params", "MACs", "--drop")
    gap = "\n\n" if form == "markdown" else "\n"
    return f"{report}\n{gap}{table(headers, rows, form == 'markdown')}"
