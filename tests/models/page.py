"""Results of the register of real models as a page of text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from tests.models.measure import TOLERANCE, behaves, keeps_class, passed

Result = Mapping[str, Any]

INTRODUCTION = """\
# Real models

Written by `python -m tests.models`. Random weights in float64, 30 % of every group removed at random. "-" is what was
not measured.

- *path*: how the model was captured by default; `eager` keeps its class. *class kept*: the small model has the class of
  the original, and loses at least 90 % of the parameters that the best path loses for the same request. *lost*: the
  share of the parameters that goes by default; *best*: that of the path that loses most.
- *removed*: the share that goes with `exact=True`, that is without the groups that change a statistic (layer norm,
  softmax); *error*: of that, max \\|small - masked\\| / max \\|masked\\| over all outputs, which must stay below 1e-9.
  The masked original is the model as it was, every removed slot of every parameter and buffer set to zero.
- *behaviour*: "same" if type, methods, attributes, hooks, modes, names, copies and files, the results in evaluation and
  in training, of two calls in turn, of another batch and of another size, and the gradients of a training step are
  those of the masked original; else the first difference. A graph has no class, no methods and no attributes, an
  exported one has one mode and fixed sizes; these are left out there.
- *seconds*: analysis, rewrite and proof of the exact run, on one thread of a shared machine.
- *held*: what kept most, as a share of the parameters; the model's outputs and inputs are not listed.
"""
ALWAYS = ("output of the model", "model input, space or a constant")


def page(results: Sequence[Result], remarks: str = "") -> str:
    """The page about some results. remarks: a paragraph below the explanation of the columns."""
    families = list(dict.fromkeys(r["key"].split("/")[0] for r in results))
    versions = f"torch {torch.__version__.split('+')[0]}, {len(results)} models."
    titles = "| family | models | class kept | equal to the masked original | same behaviour | by path |"
    lines = [INTRODUCTION, *([remarks, ""] if remarks else ()), versions, "", titles, "| --- " * 6 + "|"]
    for family in families:
        lines.append(total(family, [r for r in results if r["key"].startswith(f"{family}/")]))
    if len(families) > 1:
        lines.append(total("all", results))
    for family in families:
        lines += ["", f"## {family}", "", *table([r for r in results if r["key"].startswith(f"{family}/")])]
    return "\n".join(lines) + "\n"


def total(name: str, results: Sequence[Result]) -> str:
    """The line about a family. Models for which something was not measured do not count there."""
    paths = Counter(filter(None, map(path, results)))
    listed = ", ".join(f"{path} {n}" for path, n in sorted(paths.items())) or "-"
    cells = []
    for test, key in ((keeps_class, "same_class"), (passed, "error"), (behaves, "behaviour")):
        tried = [r for r in results if key in r or "failure" in r]
        if test is passed:  # where every group changes a statistic, there is nothing to compare
            tried = [r for r in tried if r.get("removed") != 0 or not r.get("all_removed")]
        cells.append(share(sum(map(test, tried)), len(tried)))
    return f"| {name} | {len(results)} | {' | '.join(cells)} | {listed} |"


def path(r: Result) -> str | None:
    """The path by default; that of the exact run, if nothing else was measured."""
    return r.get("all_path", r.get("path"))


def share(part: int, whole: int) -> str:
    """A number of models and its share of those that were tried.

    >>> share(3, 4)
    '3 of 4 (75 %)'
    """
    return f"{part} of {whole} ({100 * part / whole:.0f} %)" if whole else "-"


def table(results: Iterable[Result]) -> list[str]:
    titles = ("model", "params", "path", "class kept", "lost", "best", "removed", "error", "behaviour", "seconds")
    rows = [f"| {' | '.join(titles)} | held, or why not |", "| --- " * (len(titles) + 1) + "|"]
    for r in results:
        name = r["key"].split("/", 1)[1]
        cells = [
            f"{name} ({r['note']})" if r.get("note") else name,
            f"{r['params'] / 1e6:.2f} M" if "params" in r else "-",
            path(r) or "-",
            ("yes" if keeps_class(r) else "no") if "same_class" in r else "-",
            percent(r.get("all_removed")),
            percent(best(r)),
            percent(r.get("removed")),
            figure(r.get("error")),
            behaviour(r),
            f"{r['seconds']:.1f}" if "seconds" in r else "-",
            why(r),
        ]
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("](", "] (") for cell in cells) + " |")
    return rows


def figure(error: float | None) -> str:
    if error is None:
        return "-"
    shown = "inf" if math.isinf(error) else f"{error:.0e}"
    return shown if error < TOLERANCE else f"**{shown}**"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def best(r: Result) -> float | None:
    """The largest share of the parameters that a path loses for the same request; None if no graph was tried."""
    return max(r["all_removed"], r["graph_removed"]) if {"all_removed", "graph_removed"} <= r.keys() else None


def behaviour(r: Result) -> str:
    if "behaviour" not in r:
        return "-"
    return "same" if behaves(r) else short(r["behaviour"][0], 100)


def why(r: Result) -> str:
    told = []
    if "failure" in r:
        told.append(short(r["failure"]))
    elif r.get("removed") == 0:
        told.append("every group changes a statistic" if r.get("all_removed") else "nothing was removed")
    if "class_lost" in r:
        told.append(short(r["class_lost"]))
    if not told and not passed(r) and "rounding" in r:
        told.append(f"one rounding of the parameters moves the masked original by {figure(r['rounding'])}")
    if r.get("all_error") is not None and not r["all_error"] < TOLERANCE:
        told.append(f"all groups: the package's own proof has the error {r['all_error']:.0e}")
    if "all_failure" in r and r["all_failure"] != r.get("failure"):
        told.append("all groups: " + short(r["all_failure"]))
    held = [(text, share) for text, share in r.get("locked", ()) if share >= 0.01 and not text.endswith(ALWAYS)]
    told += [f"{share:.0%} {text}" for text, share in held if not any(a in text for a in ALWAYS)][:3]
    return "; ".join(told)


def short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 4] + " ..."
