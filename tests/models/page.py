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

Written by `python -m tests.models`. Random weights in float64, 30 % of every group removed at random, compared with the
masked original: every removed slot of every parameter and buffer set to zero.

- *removed*: share of the parameters that went with `exact=True`; *error*: max \\|small - masked\\| / max \\|masked\\|
  over all outputs of that, which must stay below 1e-9; *path*: how the model was captured.
- *all groups*: the share that goes without `exact=True`, that is with the groups that change a statistic (layer norm,
  softmax), and the error of the package's own proof.
- *class kept*: the small model has the class of the original, and loses at least 90 % of the parameters that a graph
  loses for the same request. *behaviour*: "same" if type, methods, attributes, hooks, modes, names, copies and files,
  the results in evaluation and in training, of two calls in turn, of another batch and of another size, and the
  gradients of a training step are those of the masked original; else the first difference. A graph has no class, no
  methods and no attributes, an exported one has one mode and fixed sizes; these are left out there.
- *seconds*: analysis, rewrite and proof of the exact run, on one thread of a shared machine.
- *held*: what kept most, as a share of the parameters; the model's outputs and inputs are not listed.
"""
ALWAYS = ("output of the model", "model input, space or a constant")


def page(results: Sequence[Result]) -> str:
    families = list(dict.fromkeys(r["key"].split("/")[0] for r in results))
    lines = [INTRODUCTION, f"torch {torch.__version__.split('+')[0]}, {len(results)} models.", ""]
    lines += [
        "| family | models | equal to the masked original | class kept | same behaviour | by path | runs, all groups |",
        "| --- " * 7 + "|",
    ]
    for family in families:
        lines.append(total(family, [r for r in results if r["key"].startswith(f"{family}/")]))
    if len(families) > 1:
        lines.append(total("all", results))
    for family in families:
        lines += ["", f"## {family}", "", *table([r for r in results if r["key"].startswith(f"{family}/")])]
    return "\n".join(lines) + "\n"


def total(name: str, results: Sequence[Result]) -> str:
    equal = [r for r in results if passed(r)]
    paths = Counter(str(r["path"]) for r in equal)
    runs = sum(bool(r.get("all_shapes")) for r in results)
    listed = ", ".join(f"{path} {n}" for path, n in sorted(paths.items())) or "-"
    kept, same = (share(sum(map(test, results)), len(results)) for test in (keeps_class, behaves))
    return f"| {name} | {len(results)} | {len(equal)} | {kept} | {same} | {listed} | {runs} |"


def share(part: int, whole: int) -> str:
    """A number of models and its share of all.

    >>> share(3, 4)
    '3 (75 %)'
    """
    return f"{part} ({100 * part / max(whole, 1):.0f} %)"


def table(results: Iterable[Result]) -> list[str]:
    titles = ("model", "params", "path", "class kept", "behaviour", "removed", "error", "seconds", "all groups")
    rows = [f"| {' | '.join(titles)} | held, or why not |", "| --- " * (len(titles) + 1) + "|"]
    for r in results:
        name = r["key"].split("/", 1)[1]
        cells = [
            f"{name} ({r['note']})" if r.get("note") else name,
            f"{r['params'] / 1e6:.2f} M" if "params" in r else "-",
            str(r.get("path", "-")),
            class_kept(r),
            behaviour(r),
            f"{r['removed']:.1%}" if "removed" in r else "-",
            figure(r.get("error")),
            f"{r['seconds']:.1f}" if "seconds" in r else "-",
            all_groups(r),
            why(r),
        ]
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("](", "] (") for cell in cells) + " |")
    return rows


def figure(error: float | None) -> str:
    if error is None:
        return "-"
    shown = "inf" if math.isinf(error) else f"{error:.0e}"
    return shown if error < TOLERANCE else f"**{shown}**"


def class_kept(r: Result) -> str:
    if "same_class" not in r:
        return "-"
    if keeps_class(r):
        return "yes"
    return f"no, a graph loses {r['graph_removed']:.1%}" if r["same_class"] else "no"


def behaviour(r: Result) -> str:
    if "behaviour" not in r:
        return "-"
    return "same" if behaves(r) else short(r["behaviour"][0], 100)


def all_groups(r: Result) -> str:
    if not r.get("all_shapes"):
        return "no"
    return f"{r['all_removed']:.1%}, {figure(r['all_error'])}"


def why(r: Result) -> str:
    told = []
    if "failure" in r:
        told.append(short(r["failure"]))
    elif r.get("removed") == 0:
        told.append("nothing was removed")
    if not told and not passed(r) and "rounding" in r:
        told.append(f"one rounding of the parameters moves the masked original by {figure(r['rounding'])}")
    if "all_failure" in r and r["all_failure"] != r.get("failure"):
        told.append("all groups: " + short(r["all_failure"]))
    held = [(text, share) for text, share in r.get("locked", ()) if share >= 0.01 and not text.endswith(ALWAYS)]
    told += [f"{share:.0%} {text}" for text, share in held if not any(a in text for a in ALWAYS)][:3]
    return "; ".join(told)


def short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 4] + " ..."
