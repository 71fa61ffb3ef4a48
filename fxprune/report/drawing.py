"""Nodes and edges in their places, drawn with matplotlib."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fxprune.report.layout import Layout, PlacedNode
from fxprune.report.names import LONGEST, SMALLER, cut, told_apart

GREY, LINE = "#b8b8b8", "#707070"

STRIPES = "////"
"""The hatch of a layer whose outputs are all locked, and of which only inputs can go."""


@dataclass(frozen=True)
class Fill:
    """The look of the channels of a group. hatch: a pattern of matplotlib, drawn in white; None for none."""

    colour: str
    hatch: str | None = None


@dataclass(frozen=True)
class Box:
    """A node as it is drawn.

    before, after: its channels, None for an operation. groups: the numbers of the groups of its outputs. details: more
    lines under the box. reads: True for a layer whose outputs are all locked, and of which only inputs can go.
    """

    label: str
    before: int | None
    after: int | None
    groups: tuple[int, ...] = ()
    details: tuple[str, ...] = ()
    parameter: bool = False
    reads: bool = False


class Drawing:
    """The coordinates of placed nodes, and the drawing of them. A column is one unit wide; a row fits its nodes."""

    TALL, WIDE, TEXT, LEVEL, GAP = 0.8, 0.62, 0.2, 0.04, 0.18

    def __init__(self, layout: Layout, boxes: dict[str, Box], fills: dict[int, Fill], planned: bool) -> None:
        self.layout, self.boxes, self.fills, self.planned = layout, boxes, fills, planned
        self.numbers = {group: number for number, group in enumerate(fills, start=1)}
        self.names = told_apart(box.label for box in boxes.values() if box.before is not None)
        self.text = self.TEXT + 0.11 * max((len(box.details) for box in boxes.values()), default=0)
        self.widest = max((box.before or 1 for box in boxes.values()), default=1)
        self.middles: dict[tuple[int, int], float] = {}
        self.bottom = 0.0
        self.levels = self._levels()
        self.turns = self._turns()
        arcs: dict[tuple[int, int], int] = {}
        for (a, b), level in self.levels.items():
            arcs[self._place_above(a, b)] = max(arcs.get(self._place_above(a, b), 0), level + 1)
        for row, lanes in enumerate(layout.lanes):
            self.bottom -= self.GAP
            for lane in range(lanes):
                self.bottom -= 0.12 + self.LEVEL * max(1, arcs[row, lane] - 2) if (row, lane) in arcs else 0
                here = [self.tall(n) for n in layout.nodes if (n.row, n.lane) == (row, lane)]
                half = max(here, default=0.0) / 2 + self.text
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
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path as Line

        style: dict[str, Any] = {
            "arrowstyle": "-|>,head_width=1.6,head_length=3",
            "color": LINE,
            "linewidth": 0.9,
            "zorder": 1,
        }
        ax.set_axis_off()
        ax.set_xlim(-0.5, self.size[0] - 0.5)
        ax.set_ylim(self.bottom - self.GAP / 2, 0)
        for before, after in self.layout.edges:
            points = self.way(before, after)
            ax.add_patch(FancyArrowPatch(path=Line(points), shrinkA=0, shrinkB=0, joinstyle="round", **style))
        for node in self.layout.nodes:
            self._node(ax, node, self.boxes[node.node])

    def _node(self, ax: Any, node: PlacedNode, box: Box) -> None:
        from matplotlib.patheffects import withStroke

        x, y = self.place(node)
        faint = 0.5 if node.repeated else 1.0
        if box.before is None:
            frame = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": LINE, "alpha": faint}
            text, size = self._operation(box)
            ax.text(x, y, text, ha="center", va="center", fontsize=size, bbox=frame, alpha=faint, zorder=3)
            return
        fills = [self.fills[group] for group in box.groups] or [Fill(GREY, STRIPES if box.reads else None)]
        outer, inner = self.tall(node), self._height(box.after)
        shape = self._cut_corners(x, y, outer) if box.parameter else None
        self._bars(ax, x, y, outer, fills, (0.35 if self.planned else 1.0) * faint, shape)
        if self.planned:
            self._bars(ax, x, y - (outer - inner) / 2, inner, fills, faint, shape)
        text = f"{box.before}" if box.before == box.after else f"{box.before} → {box.after}"
        clear = [withStroke(linewidth=1.5, foreground="white")]  # of edges behind the text
        style: dict[str, Any] = {"ha": "center", "fontsize": 7, "alpha": faint, "zorder": 4, "path_effects": clear}
        name = self.names[box.label]
        size = 7 if len(name) <= LONGEST else 6 * min(1, SMALLER / len(name))
        ax.text(x, y + outer / 2 + 0.025, name, va="bottom", **{**style, "fontsize": size})
        ax.text(x, y - outer / 2 - 0.03, "\n".join((text, *box.details)), va="top", color="#505050", **style)
        if not node.repeated:
            self._numbers(ax, x, y, box)

    def _bars(self, ax: Any, x: float, y: float, tall: float, fills: list[Fill], alpha: float, shape: Any) -> None:
        """Draws a box, with one stripe for each group. shape: the corners of the area to draw in, None for all."""
        from matplotlib.patches import Polygon, Rectangle

        wide = self.WIDE / len(fills)
        for place, look in enumerate(fills):
            corner = (x - self.WIDE / 2 + place * wide, y - tall / 2)
            style = {"facecolor": look.colour, "alpha": alpha, "hatch": look.hatch, "edgecolor": "white"}
            for fill in ({"facecolor": "white"}, style):
                bar = ax.add_patch(Rectangle(corner, wide, tall, linewidth=0, zorder=2, **fill))
                if shape is not None:
                    bar.set_clip_path(Polygon(shape, transform=ax.transData))

    def _cut_corners(self, x: float, y: float, tall: float) -> list[tuple[float, float]]:
        """The corners of an octagon in the place of a box."""
        half, cut = self.WIDE / 2, min(0.12, tall / 3)
        right = [(half, tall / 2 - cut), (half - cut, tall / 2)]
        top = [*right, *((-across, up) for across, up in reversed(right))]
        return [(x + across, y + up) for across, up in (*top, *((a, -b) for a, b in reversed(top)))]

    def _numbers(self, ax: Any, x: float, y: float, box: Box) -> None:
        """Writes the numbers of the groups into the stripes of a box, as they stand in the legend."""
        from matplotlib.patheffects import withStroke

        wide = self.WIDE / max(1, len(box.groups))
        for place, group in enumerate(box.groups):
            middle = x - self.WIDE / 2 + (place + 0.5) * wide
            edge = [withStroke(linewidth=1.5, foreground="white")]
            style = {"ha": "center", "va": "center", "fontsize": 6, "zorder": 5, "path_effects": edge}
            ax.text(middle, y, str(self.numbers[group]), **style)

    def _passes_above(self, before: PlacedNode, after: PlacedNode) -> bool:
        """True if an edge must pass above other nodes, or leads to another row or backwards."""
        if before.row != after.row or before.column >= after.column:
            return True
        between = range(before.column + 1, after.column)
        lane = max(before.lane, after.lane)
        return any((n.row, n.lane) == (after.row, lane) and n.column in between for n in self.layout.nodes)

    def way(self, start: int, stop: int) -> list[tuple[float, float]]:
        """The points of the edge between two nodes. It turns between columns, so that it passes behind no box."""
        before, after = self.layout.nodes[start], self.layout.nodes[stop]
        (x, y), (u, v) = self.place(before), self.place(after)
        right, left = x + self._half_width(before), u - self._half_width(after)
        out = x + self.WIDE / 2 + self.turns[start]
        back = u - self.WIDE / 2 - 0.14 + 0.09 * after.lane / max(3, self.layout.lanes[after.row] - 1)
        if (start, stop) in self.levels:
            over = self._height_above(before, after) + self.LEVEL * (1 + self.levels[start, stop])
            box = self.boxes[before.node].before is not None
            up = [(right, y), (out, y), (out, over)] if box or over < y else [(x + 0.04, y), (x + 0.04, over)]
            if self.boxes[after.node].before is not None or self._lane_above(before, after) != after.lane:
                return [*up, (back, over), (back, v), (left, v)]
            return [*up, (u - 0.04, over), (u - 0.04, v + 0.11)]
        if before.lane == after.lane:
            return [(right, y), (left, v)]
        turn = out if before.lane < after.lane else back  # early when leaving the first lane, late when coming back
        return [(right, y), (turn, y), (turn, v), (left, v)]

    def _turns(self) -> dict[int, float]:
        """For each node how far right of it its edges turn: those of nodes of one column on lines of their own."""
        nodes, last = self.layout.nodes, {a: self.layout.nodes[a].row for a, _ in self.layout.edges}
        for a, b in self.layout.edges:
            last[a] = max(last[a], nodes[b].row)
        line: dict[int, int] = {}
        for a in sorted(last, key=lambda a: (nodes[a].row, -nodes[a].lane)):  # lower lanes turn first
            near = (b for b in line if nodes[b].column == nodes[a].column and last[b] >= nodes[a].row)
            taken = {line[b] for b in near}
            line[a] = next(number for number in range(len(taken) + 1) if number not in taken)
        return {a: 0.08 + 0.12 * number / max(3, *line.values()) for a, number in line.items()}

    def _levels(self) -> dict[tuple[int, int], int]:
        """The edges that pass above nodes, each with its level there: those of different nodes differ."""
        nodes = self.layout.nodes
        arcs = [(a, b) for a, b in self.layout.edges if self._passes_above(nodes[a], nodes[b])]
        found: dict[tuple[int, int], int] = {}
        for a, b in sorted(arcs, key=lambda edge: abs(nodes[edge[1]].column - nodes[edge[0]].column)):
            place, (first, last) = self._place_above(a, b), self._columns_of(a, b)
            taken = {
                level
                for (c, d), level in found.items()
                if c != a and self._place_above(c, d) == place
                if self._columns_of(c, d)[0] < last and first < self._columns_of(c, d)[1]
            }
            found[a, b] = next(level for level in range(len(taken) + 1) if level not in taken)
        return found

    def _columns_of(self, a: int, b: int) -> list[int]:
        return sorted((self.layout.nodes[a].column, self.layout.nodes[b].column))

    def _place_above(self, a: int, b: int) -> tuple[int, int]:
        return self.layout.nodes[b].row, self._lane_above(self.layout.nodes[a], self.layout.nodes[b])

    def _lane_above(self, before: PlacedNode, after: PlacedNode) -> int:
        """The lane above which an edge passes: its own. It leaves another row above the first lane."""
        return before.lane if before.row == after.row else 0

    def _height_above(self, before: PlacedNode, after: PlacedNode) -> float:
        """Returns the height above the nodes between the ends of an edge."""
        columns = sorted((before.column, after.column))
        tops = [
            self.place(n)[1] + self.tall(n) / 2
            for n in self.layout.nodes
            if n.row == after.row and n.lane == self._lane_above(before, after) and columns[0] <= n.column <= columns[1]
        ]
        return self.TEXT + max(tops, default=self.place(after)[1] + self.tall(after) / 2)

    def _half_width(self, node: PlacedNode) -> float:
        box = self.boxes[node.node]
        if box.before is not None:
            return self.WIDE / 2
        text, size = self._operation(box)
        return 0.05 + 0.03 * len(text) * size / 8

    def _operation(self, box: Box) -> tuple[str, float]:
        """The text of an operation and the size of its letters, with which it fits between the turns of edges."""
        text = cut(box.label, 15)
        return text, 8 * min(1, 10 / len(text))
