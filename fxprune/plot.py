"""Pictures: the layers of a model with its groups in colours, and widths before and after. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fxprune._analyze import Analysis
from fxprune._record import Record, record
from fxprune.arguments import checks_arguments
from fxprune.channels.groups import Removal
from fxprune.errors import FxpruneError, InputError
from fxprune.files import save_picture
from fxprune.ops.layers import known_output_dim, weights_of_state
from fxprune.planning.channels import removal_of
from fxprune.planning.plan import Plan
from fxprune.report.drawing import GREY, STRIPES, Box, Drawing, Fill
from fxprune.report.folding import Repeated, fold_repeats, names_of
from fxprune.report.graphs import graph
from fxprune.report.layout import arrange
from fxprune.report.names import cut
from fxprune.report.parameters import drawn_dim
from fxprune.report.repeats import merge_repeats
from fxprune.report.text import figure

__all__ = ["dependencies", "widths"]

COLUMNS = 9
"""The number of nodes in a row of a picture."""

_SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "bmm": "@", "mm": "@"}
_COLOURS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#e07b39", "#5e4fa2"),
    *("#44aa99", "#b5651d", "#e78ac3", "#7fb800", "#1b3b6f", "#9c6ade", "#c44536", "#2a9d8f"),
)

_HATCHES = (None, "....", "xxxx", "||||", "----", "oooo", "++++")
"""The pattern of the first groups, of those after as many as there are colours, and so on: each pair is there once."""


@checks_arguments("plan", "path", "ax", "details", "folded")
def dependencies(
    analysis: Analysis,
    plan: Plan | None = None,
    path: str | Path | None = None,
    ax: Any = None,
    *,
    details: bool = False,
    folded: bool = True,
) -> Any:
    """Draws the layers of a model, the connections between them, and the layers that share channels.

    Layers whose outputs are in the same group have the same colour, pattern and number; grey layers keep all of their
    channels, and of striped ones only channels that they read can go. A layer with several groups, such as heads and
    the width of heads, has a stripe for each. The height of a box is proportional to the square root of the output
    width; with a plan, the dark part is what remains. A norm after a layer is drawn as a part of the layer. Operations
    at which branches join are circles.

    Args:
        analysis: a result of `fxprune.analyze`.
        plan: shows the widths that a plan leaves.
        path: also write the picture to this file; its suffix is the format (".png", ".svg", ".pdf").
        ax: axes of matplotlib to draw into; None makes new ones of a suitable size.
        details: True to write type, kernel, stride, the shape of the output, parameters and MACs below; no shape where
            the layer gives several.
        folded: True to draw three or more equal blocks in a row once, with their number behind; False to draw all.

    Returns the axes, to change or to save: `ax.figure.savefig("layers.png", dpi=200)` writes a PNG, and
    `ax.figure.savefig("layers.svg")` an SVG, as `path="layers.svg"` does. Raises `FxpruneError` if matplotlib is
    missing, and `PlanError` if the plan is for another model.
    """
    plt = _pyplot()
    _check_axes(ax)
    if not isinstance(analysis, Analysis):
        model = isinstance(analysis, nn.Module)
        do = (
            "pass what fxprune.analyze(model, example_inputs) returns" if model else "pass what fxprune.analyze returns"
        )
        raise InputError(f"a {type(analysis).__name__} is no analysis", do=do)
    removal = None if plan is None else removal_of(analysis, plan)
    flow = _without_merged_norms(graph(analysis, "flow"))
    boxes = {node: _box(analysis, flow, node, removal, details=details) for node in flow}
    runs: tuple[Repeated, ...] = ()
    if folded:
        flow, runs = fold_repeats(flow, {node: _look(analysis, box, removal) for node, box in boxes.items()})
        boxes = {node: boxes.get(node) or Box(flow.nodes[node]["type"], None, None) for node in flow}
    numbers = list(dict.fromkeys(group for box in boxes.values() for group in box.groups))
    fills = {number: _fill(position) for position, number in enumerate(numbers)}
    legend = _legend(analysis, fills, removal, runs)
    grey = [box.reads for box in boxes.values() if box.before is not None and not box.groups]
    locked = {True: "outputs all locked: only channels that it reads can go", False: "keeps all of its channels"}
    legend += [(Fill(GREY, STRIPES if reads else None), text) for reads, text in locked.items() if reads in grey]
    drawing = Drawing(arrange(flow, COLUMNS), boxes, fills, removal is not None)
    width, height = drawing.size
    legend_columns = max(
        1, min(3, int(1.1 * width / (0.5 + 0.075 * max((len(text) for _, text in legend), default=1))))
    )
    if ax is None:
        lines = -(-len(legend) // legend_columns)
        size = (1.1 * width, 1.05 * height + 0.2 * lines + 0.2)
        ax = plt.figure(figsize=size, layout="constrained").add_subplot()
    drawing.draw(ax)
    handles = [
        plt.Rectangle((0, 0), 1, 1, facecolor=fill.colour, hatch=fill.hatch, edgecolor="white", linewidth=0)
        for fill, _ in legend
    ]
    texts = [text for _, text in legend]
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": legend_columns}
    ax.legend(handles, texts, frameon=False, fontsize=8, **place)
    _save(ax, path)
    return ax


@checks_arguments("small", "path", "ax")
def widths(small: Record | nn.Module, path: str | Path | None = None, ax: Any = None) -> Any:
    """Draws the output widths of all changed layers, before and after, as bars.

    Args:
        small: a result of `fxprune.transform`, or its record. A record does not know the types of layers, so the width
            is then the first dimension of a weight, even for a transposed convolution or an embedding. Rows that
            differ in the number of a block alone are one.
        path: also write the picture to this file; its suffix is the format (".png", ".svg", ".pdf").
        ax: axes of matplotlib to draw into; None makes new ones.

    Returns the axes. Raises `FxpruneError` if matplotlib is missing, if the model has no record, or if no layer has
    changed.
    """
    plt = _pyplot()
    _check_axes(ax)
    made = small if isinstance(small, Record) else record(small)
    bars = merge_repeats(list(_changed_widths(made, None if isinstance(small, Record) else small)))
    if not bars:
        raise FxpruneError("there are no widths to draw", why="no layer changed", do="prune something first")
    if ax is None:
        size = (7, 0.8 + 0.22 * len(bars))
        ax = plt.figure(figsize=size, layout="constrained").add_subplot()
    places = range(len(bars))
    ax.barh(places, [before for _, before, _ in bars], color="#d5dde8", label="before")
    ax.barh(places, [after for _, _, after in bars], color="#2f6aad", label="after")
    for place, (_, before, after) in zip(places, bars, strict=True):
        text = f" {before}" if before == after else f" {before} → {after}"
        ax.text(before, place, text, va="center", fontsize=7)
    ax.set_yticks(places, [name for name, _, _ in bars], fontsize=7)
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.set_xlim(0, 1.25 * max(before for _, before, _ in bars))
    ax.set_xlabel("output width")
    ax.legend(loc="upper right", frameon=False, fontsize=8)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    _save(ax, path)
    return ax


def _changed_widths(made: Record, small: nn.Module | None) -> Iterator[tuple[str, int, int]]:
    """The name of each matrix that changed with its width before and after; of a recurrent layer its outputs."""
    layers: dict[str, dict[str, Sequence[int]]] = {}
    for name, whole in made.before.items():
        path, _, leaf = name.rpartition(".")
        layers.setdefault(path, {})[leaf] = whole
    for path, shapes in layers.items():
        names = {leaf: f"{path}.{leaf}" if path else leaf for leaf in shapes}
        left = {leaf: there for leaf, name in names.items() if (there := made.after.get(name)) is not None}
        states = weights_of_state(shapes)
        if states and left.keys() >= set(states):
            if any(shapes[leaf] != shape for leaf, shape in left.items()):
                before, after = (sum(here[leaf][1] for leaf in states) for here in (shapes, left))
                yield path, before, after
            continue
        for leaf, shape in left.items():
            if len(shapes[leaf]) > 1 and shapes[leaf] != shape:
                dim = _dim_of_width(names[leaf], shapes[leaf], shape, small)
                yield names[leaf].removesuffix(".weight"), shapes[leaf][dim], shape[dim]


def _dim_of_width(name: str, before: Sequence[int], after: Sequence[int], small: nn.Module | None) -> int:
    """The dimension of a tensor that is drawn: that of the outputs of a layer; of another tensor one that changed."""
    path, _, leaf = name.rpartition(".")
    known = None if small is None else known_output_dim(small.get_submodule(path), len(before))
    if known is not None:
        return known
    if leaf.endswith("weight"):
        return 0
    return next(dim for dim, (b, a) in enumerate(zip(before, after, strict=True)) if b != a)


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise FxpruneError("pictures need matplotlib", why=str(error), do="pip install 'fxprune[plot]'") from error
    return plt


def _check_axes(ax: Any) -> None:
    """Raises `InputError` for what is neither None nor axes of matplotlib."""
    if ax is not None and not hasattr(ax, "barh"):
        raise InputError(
            f"ax must be axes of matplotlib, not {type(ax).__name__}", do="pass `plt.gca()`, or leave it out"
        )


def _save(ax: Any, path: str | Path | None) -> None:
    if path is not None:
        save_picture(ax.figure, path, dpi=110)


def _without_merged_norms(flow: Any) -> Any:
    """Returns the graph without norms that are the only user of a layer: they are drawn as a part of the layer."""
    for node, found in list(flow.nodes(data=True)):
        before = list(flow.predecessors(node))
        if "Norm" not in found["type"] or len(before) != 1 or flow.out_degree(before[0]) != 1:
            continue
        (layer,) = before
        if flow.nodes[layer]["kind"] == "layer":
            flow.add_edges_from((layer, after, found) for _, after, found in list(flow.out_edges(node, data=True)))
            flow.remove_node(node)
    return flow


def _box(analysis: Analysis, flow: Any, node: str, removal: Removal | None, *, details: bool) -> Box:
    """Returns the box of a node; its channels are the slots of the output dimension of its weight."""
    found = flow.nodes[node]
    if found["kind"] not in ("layer", "parameter"):
        operation = "attention" if "attention" in found["type"] else found["type"]
        label = _SYMBOLS.get(operation, operation) if found["kind"] == "join" else node.removeprefix("input:")
        return Box(label, None, None)
    leaves = found["shapes"]
    name = max(leaves, key=lambda leaf: math.prod(leaves[leaf]))
    parameter = node if found["kind"] == "parameter" else f"{node}.{name}"
    shape = leaves[name]
    owner = analysis.captured.module.get_submodule(parameter.rpartition(".")[0])
    raw = found["kind"] == "parameter"
    opened = drawn_dim(analysis, parameter) if raw else known_output_dim(owner, len(shape))
    dim = max(len(shape) - 1, 0) if opened is None else opened
    counted = {parameter: shape[dim] if shape else 1}
    if found["kind"] == "layer" and (states := weights_of_state(leaves)):
        counted, dim = {f"{node}.{leaf}": leaves[leaf][1] for leaf in states}, 1
    groups = tuple(dict.fromkeys(group for name in counted for group in _groups_of(analysis, name, dim)))
    before = sum(counted.values())
    lines = tuple(_details(owner, flow, node)) if details else ("parameter",) * raw
    reads = not groups and bool(found["groups"]) and not raw
    if removal is None or not shape:
        return Box(node, before, before, groups, lines, raw, reads)
    vectors = {a.parameter: a.vector for a in analysis.axes if a.parameter in counted and a.dim == dim}
    after = sum(removal.count(vectors[name]) if name in vectors else size for name, size in counted.items())
    return Box(node, before, after, groups, lines, raw, reads)


def _details(owner: nn.Module, flow: Any, node: str) -> Iterator[str]:
    """The type of a layer with kernel and stride, the shape of its output, and its parameters and MACs."""
    found = flow.nodes[node]
    kernel, stride = getattr(owner, "kernel_size", None), getattr(owner, "stride", None)
    if found["kind"] == "layer" and isinstance(kernel, tuple) and isinstance(stride, tuple):
        steps = "" if set(stride) == {1} else f" / {'x'.join(map(str, stride))}"
        yield f"{found['type']} {'x'.join(map(str, kernel))}{steps}"
    else:
        yield cut(found["type"])
    if found["output"] is not None:
        yield " x ".join(map(str, found["output"]))
    yield f"{figure(found['params'])} params"
    yield f"{figure(found['macs'])} MACs"


def _groups_of(analysis: Analysis, parameter: str, dim: int) -> tuple[int, ...]:
    """The numbers of the groups whose channels are slots of a dimension, in the order of the slots."""
    if not analysis.has_axis(parameter, dim):
        return ()
    found: list[int] = []
    for channels in analysis.solution.channels_of(analysis.axis_vector(parameter, dim)):
        left = channels[channels >= 0]
        while len(left):
            number = analysis.solution.group_of(int(left[0]))
            if number is None:
                left = left[left != left[0]]
                continue
            found.append(number)
            left = left[~np.isin(left, analysis.groups[number].channels)]
    return tuple(dict.fromkeys(found))


def _look(analysis: Analysis, box: Box, removal: Removal | None) -> Hashable:
    """All that a box shows, but for its name."""
    label = box.label if box.before is None else ""
    groups = tuple((analysis.groups[g].kind, analysis.groups[g].size, _left(analysis, g, removal)) for g in box.groups)
    return label, box.before, box.after, box.details, groups, box.reads


def _left(analysis: Analysis, number: int, removal: Removal | None) -> int:
    group = analysis.groups[number]
    return group.size if removal is None else group.size - int(removal.removed[group.channels].sum())


def _fill(position: int) -> Fill:
    """Returns the colour at a position; after the last colour they repeat, with another pattern."""
    return Fill(_COLOURS[position % len(_COLOURS)], _HATCHES[position // len(_COLOURS) % len(_HATCHES)])


def _legend(
    analysis: Analysis, fills: dict[int, Fill], removal: Removal | None, runs: Sequence[Repeated]
) -> list[tuple[Fill, str]]:
    """The look and the text of each group: its number in the picture, its name, its channels."""
    found = []
    for place, (number, fill) in enumerate(fills.items(), start=1):
        group, left = analysis.groups[number], _left(analysis, number, removal)
        text = f"{group.size}" if left == group.size else f"{group.size} → {left}"
        found.append((fill, f"{place}  {names_of(runs, group.name)}: {text} {group.kind}"))
    return found
