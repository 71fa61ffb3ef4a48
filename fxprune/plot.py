"""Pictures: the layers of a model with its groups in colours, and widths before and after. Needs matplotlib."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fxprune._analyze import Analysis
from fxprune._record import Record, record
from fxprune.arguments import checks_arguments
from fxprune.channels.groups import Removal
from fxprune.errors import FxpruneError, InputError
from fxprune.files import save_picture
from fxprune.ops.layers import known_output_dim, output_dim
from fxprune.planning.channels import removal_of
from fxprune.planning.plan import Plan
from fxprune.report.graphs import graph, group_names
from fxprune.report.layout import Layout, PlacedNode, arrange

COLUMNS = 9
"""The number of nodes in a row of a picture."""

LISTED = 24
"""The largest number of groups in a legend."""

_SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "bmm": "@", "mm": "@"}
_COLOURS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#e07b39", "#5e4fa2"),
    *("#44aa99", "#b5651d", "#e78ac3", "#7fb800", "#1b3b6f", "#9c6ade", "#c44536", "#2a9d8f"),
)
_GREY, _LINE = "#b8b8b8", "#707070"


@dataclass(frozen=True)
class _Box:
    """A node as it is drawn.

    before, after: its channels, None for an operation. group: the number of its group, None if it has none.
    """

    label: str
    before: int | None
    after: int | None
    group: int | None


@checks_arguments()
def dependencies(analysis: Analysis, plan: Plan | None = None, path: str | Path | None = None, ax: Any = None) -> Any:
    """Draws the layers of a model, the connections between them, and the layers that share channels.

    Layers whose outputs are in the same group have the same colour; grey layers keep all of their channels. The height
    of a box is proportional to the square root of the output width; with a plan, the dark part is what remains. A norm
    after a layer is drawn as a part of the layer. Operations at which branches join are circles.

    Args:
        analysis: a result of `fxprune.analyze`. Its model is run once more, on fake tensors.
        plan: shows the widths that a plan leaves.
        path: also write the picture to this file; its suffix is the format (".png", ".svg", ".pdf").
        ax: axes of matplotlib to draw into; None makes new ones of a suitable size.

    Returns the axes. Raises `FxpruneError` if matplotlib is missing, and `PlanError` if the plan is for another model.
    """
    plt = _pyplot()
    _check_axes(ax)
    if not isinstance(analysis, Analysis):
        raise InputError(f"a {type(analysis).__name__} is no analysis", do="pass what fxprune.analyze(...) returned")
    removal = None if plan is None else removal_of(analysis, plan)
    flow = _without_merged_norms(graph(analysis, "flow"))
    boxes = {node: _box(analysis, flow, node, removal) for node in flow}
    placed = arrange(flow, COLUMNS)
    numbers = list(dict.fromkeys(box.group for box in boxes.values() if box.group is not None))
    colours = {number: _colour(position) for position, number in enumerate(numbers)}
    legend = _legend(analysis, colours, removal)
    if any(box.before is not None and box.group is None for box in boxes.values()):
        legend.append((_GREY, "keeps all of its channels"))
    drawing = _Drawing(placed, boxes, colours, removal is not None)
    width, height = drawing.size
    legend_columns = max(
        1, min(3, int(1.1 * width / (0.5 + 0.075 * max((len(text) for _, text in legend), default=1))))
    )
    if ax is None:
        lines = -(-len(legend) // legend_columns)
        size = (1.1 * width, 1.05 * height + 0.2 * lines + 0.2)
        ax = plt.figure(figsize=size, layout="constrained").add_subplot()
    drawing.draw(ax)
    handles = [plt.Rectangle((0, 0), 1, 1, facecolor=colour) for colour, _ in legend]
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
            is then the first dimension of a weight, even for a transposed convolution or an embedding.
        path: also write the picture to this file; its suffix is the format (".png", ".svg", ".pdf").
        ax: axes of matplotlib to draw into; None makes new ones.

    Returns the axes. Raises `FxpruneError` if matplotlib is missing, if the model has no record, or if no layer has
    changed.
    """
    plt = _pyplot()
    _check_axes(ax)
    made = small if isinstance(small, Record) else record(small)
    rows = []
    for name, shape in made.before.items():
        if len(shape) > 1 and name in made.after and shape != made.after[name]:
            owner = None if isinstance(small, Record) else small.get_submodule(name.rpartition(".")[0])
            dim = 0 if owner is None else output_dim(owner, len(shape))
            rows.append((name.removesuffix(".weight"), shape[dim], made.after[name][dim]))
    if not rows:
        raise FxpruneError("there are no widths to draw", why="no layer changed", do="prune something first")
    if ax is None:
        size = (7, 0.8 + 0.22 * len(rows))
        ax = plt.figure(figsize=size, layout="constrained").add_subplot()
    places = range(len(rows))
    ax.barh(places, [before for _, before, _ in rows], color="#d5dde8", label="before")
    ax.barh(places, [after for _, _, after in rows], color="#2f6aad", label="after")
    for place, (_, before, after) in zip(places, rows, strict=True):
        text = f" {before}" if before == after else f" {before} → {after}"
        ax.text(before, place, text, va="center", fontsize=7)
    ax.set_yticks(places, [name for name, _, _ in rows], fontsize=7)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(0, 1.15 * max(before for _, before, _ in rows))
    ax.set_xlabel("output width")
    ax.legend(loc="upper right", frameon=False, fontsize=8)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    _save(ax, path)
    return ax


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


def _box(analysis: Analysis, flow: Any, node: str, removal: Removal | None) -> _Box:
    """Returns the box of a node; its channels are the slots of the output dimension of its weight."""
    found = flow.nodes[node]
    if found["kind"] not in ("layer", "parameter"):
        operation = found["type"]
        label = _SYMBOLS.get(operation, operation) if found["kind"] == "join" else node.removeprefix("input:")
        return _Box(label, None, None, None)
    leaves = found["shapes"]
    name = max(leaves, key=lambda leaf: math.prod(leaves[leaf]))
    parameter = node if found["kind"] == "parameter" else f"{node}.{name}"
    shape = leaves[name]
    owner = analysis.captured.module.get_submodule(parameter.rpartition(".")[0])
    opened = None if found["kind"] == "parameter" else known_output_dim(owner, len(shape))
    dim = max(len(shape) - 1, 0) if opened is None else opened
    number = _group_of(analysis, parameter, dim)
    before = shape[dim] if shape else 1
    if removal is None or not shape:
        return _Box(node, before, before, number)
    axes = [a for a in analysis.axes if (a.parameter, a.dim) == (parameter, dim)]
    return _Box(node, before, removal.count(axes[0].vector) if axes else before, number)


def _group_of(analysis: Analysis, parameter: str, dim: int) -> int | None:
    if not analysis.has_axis(parameter, dim):
        return None
    columns = analysis.solution.channels_of(analysis.axis_vector(parameter, dim))
    first = (int(channels[channels >= 0][0]) for channels in columns if (channels >= 0).any())
    return next((analysis.solution.group_of(channel) for channel in first), None)


def _colour(position: int) -> str:
    """Returns the colour at a position; after the last colour they repeat."""
    return _COLOURS[position % len(_COLOURS)]


def _legend(analysis: Analysis, colours: dict[int, str], removal: Removal | None) -> list[tuple[str, str]]:
    names = group_names(analysis)
    found = []
    for number, colour in list(colours.items())[:LISTED]:
        group = analysis.groups[number]
        left = group.size if removal is None else group.size - int(removal.removed[group.channels].sum())
        text = f"{group.size}" if left == group.size else f"{group.size} → {left}"
        found.append((colour, f"{names[number].rpartition(':')[0]}: {text} {group.kind}"))
    if len(colours) > LISTED:
        found.append(("none", f"... {len(colours) - LISTED} more groups"))
    return found


class _Drawing:
    """The coordinates of placed nodes, and the drawing of them. A column is one unit wide; a row fits its nodes."""

    TALL, WIDE, TEXT, ARC, GAP = 0.8, 0.62, 0.2, 0.2, 0.18

    def __init__(self, layout: Layout, boxes: dict[str, _Box], colours: dict[int, Any], planned: bool) -> None:
        self.layout, self.boxes, self.colours, self.planned = layout, boxes, colours, planned
        self.widest = max((box.before or 1 for box in boxes.values()), default=1)
        self.middles: dict[tuple[int, int], float] = {}
        self.bottom = 0.0
        arcs = {layout.nodes[b].row for a, b in layout.edges if self._passes_above(layout.nodes[a], layout.nodes[b])}
        for row, lanes in enumerate(layout.lanes):
            self.bottom -= self.GAP + (self.ARC if row in arcs else 0)
            for lane in range(lanes):
                here = [self.tall(n) for n in layout.nodes if (n.row, n.lane) == (row, lane)]
                half = max(here, default=0.0) / 2 + self.TEXT
                self.middles[row, lane] = self.bottom - half
                self.bottom -= 2 * half

    @property
    def size(self) -> tuple[float, float]:
        """The width in columns, and the height in the same unit."""
        return 1 + max((n.column for n in self.layout.nodes), default=0), self.GAP - self.bottom

    def place(self, node: PlacedNode) -> tuple[float, float]:
        """Returns the centre of a node."""
        return float(node.column), self.middles[node.row, node.lane]

    def tall(self, node: PlacedNode) -> float:
        """Returns the height of a node before pruning."""
        return self._height(self.boxes[node.node].before)

    def _height(self, channels: int | None) -> float:
        return 0.16 if channels is None else max(0.02, self.TALL * math.sqrt(channels / self.widest))

    def draw(self, ax: Any) -> None:
        """Draws all edges and nodes."""
        ax.set_axis_off()
        ax.set_xlim(-0.5, self.size[0] - 0.5)
        ax.set_ylim(self.bottom - self.GAP / 2, 0)
        for before, after in self.layout.edges:
            self._edge(ax, self.layout.nodes[before], self.layout.nodes[after])
        for node in self.layout.nodes:
            self._node(ax, node, self.boxes[node.node])

    def _node(self, ax: Any, node: PlacedNode, box: _Box) -> None:
        x, y = self.place(node)
        faint = 0.5 if node.repeated else 1.0
        if box.before is None:
            frame = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": _LINE, "alpha": faint}
            ax.text(x, y, box.label, ha="center", va="center", fontsize=8, bbox=frame, alpha=faint, zorder=3)
            return
        colour = _GREY if box.group is None else self.colours[box.group]
        outer, inner = self.tall(node), self._height(box.after)
        self._bar(ax, x, y, outer, colour, (0.35 if self.planned else 1.0) * faint)
        if self.planned:
            self._bar(ax, x, y - (outer - inner) / 2, inner, colour, faint)
        text = f"{box.before}" if box.before == box.after else f"{box.before} → {box.after}"
        style = {"ha": "center", "fontsize": 7, "alpha": faint, "zorder": 4}
        ax.text(x, y + outer / 2 + 0.025, _shortened(box.label), va="bottom", **style)
        ax.text(x, y - outer / 2 - 0.03, text, va="top", color="#505050", **style)

    def _bar(self, ax: Any, x: float, y: float, tall: float, colour: Any, alpha: float) -> None:
        from matplotlib.patches import Rectangle

        corner = (x - self.WIDE / 2, y - tall / 2)
        ax.add_patch(Rectangle(corner, self.WIDE, tall, facecolor="white", linewidth=0, zorder=2))
        ax.add_patch(Rectangle(corner, self.WIDE, tall, facecolor=colour, alpha=alpha, linewidth=0, zorder=2))

    def _passes_above(self, before: PlacedNode, after: PlacedNode) -> bool:
        """True if an edge must pass above other nodes, or leads to another row or backwards."""
        if before.row != after.row or before.column >= after.column:
            return True
        between = range(before.column + 1, after.column)
        lane = max(before.lane, after.lane)
        return any((n.row, n.lane) == (after.row, lane) and n.column in between for n in self.layout.nodes)

    def _edge(self, ax: Any, before: PlacedNode, after: PlacedNode) -> None:
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path as Line

        (x, y), (u, v) = self.place(before), self.place(after)
        right, left = x + self._half_width(before), u - self._half_width(after)
        if self._passes_above(before, after):
            over = self._height_above(before, after)
            start = [(x + 0.04, y), (x + 0.04, over)]
            if self.boxes[before.node].before is not None:
                start = [(right, y), (right + 0.08, y), (right + 0.08, over)]
            end = [(u - 0.04, over), (u - 0.04, v + 0.11)]
            if self.boxes[after.node].before is not None:
                end = [(left - 0.14, over), (left - 0.14, v), (left, v)]
            points = [*start, *end]
        elif before.lane == after.lane:
            points = [(right, y), (left, v)]
        else:  # turn early when leaving the first lane, late when coming back
            turn = right + 0.08 if before.lane < after.lane else left - 0.14
            points = [(right, y), (turn, y), (turn, v), (left, v)]
        style: dict[str, Any] = {
            "arrowstyle": "-|>,head_width=1.6,head_length=3",
            "color": _LINE,
            "linewidth": 0.9,
            "zorder": 1,
        }
        ax.add_patch(FancyArrowPatch(path=Line(points), shrinkA=0, shrinkB=0, joinstyle="round", **style))

    def _height_above(self, before: PlacedNode, after: PlacedNode) -> float:
        """Returns the height at which an edge passes above the nodes between its ends; longer edges pass higher."""
        columns = sorted((before.column, after.column))
        tops = [
            self.place(n)[1] + self.tall(n) / 2 + self.TEXT
            for n in self.layout.nodes
            if n.row == after.row and n.lane == min(before.lane, after.lane) and columns[0] <= n.column <= columns[1]
        ]
        return max(tops) + 0.02 * min(8, columns[1] - columns[0])

    def _half_width(self, node: PlacedNode) -> float:
        box = self.boxes[node.node]
        return self.WIDE / 2 if box.before is not None else 0.05 + 0.03 * len(box.label)


def _shortened(label: str) -> str:
    parts = label.split(".")
    while len(label) > 15 and len(parts) > 1 and len(".".join(parts)) > 14:
        parts = parts[1:]
    return ".".join(parts) if len(parts) == len(label.split(".")) else "…" + ".".join(parts)
