"""The places of a graph's nodes in a picture: columns from inputs to outputs, wrapped into rows like a text."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PlacedNode:
    """A node in a picture. repeated: whether it stands at the end of the row before as well."""

    node: str
    row: int
    column: int
    lane: int
    repeated: bool = False


@dataclass(frozen=True)
class Layout:
    """Nodes, and edges between them as indices into `nodes`. lanes: how many each row has."""

    nodes: tuple[PlacedNode, ...]
    edges: tuple[tuple[int, int], ...]
    lanes: tuple[int, ...]


def arrange(graph: Any, columns: int) -> Layout:
    """Place the nodes of a directed graph (in the order in which they ran) in rows of about `columns` columns.

    A node stands right of all that reach it. A row ends where everything goes through one node if there is such a
    place; that node is drawn again at the beginning of the next row.
    """
    flow = _without_loops(graph)
    column = _columns(flow, columns)
    last = max(column.values(), default=0)
    rows = list(_rows(graph, column, last, columns))
    nodes: list[PlacedNode] = []
    at: dict[tuple[str, int], int] = {}
    lanes: list[int] = []
    for row, (start, stop, repeated) in enumerate(rows):
        offset = 0 if repeated is None else 1
        lane_of = {} if repeated is None else {repeated: 0}
        if repeated is not None:
            at[repeated, row] = len(nodes)
            nodes.append(PlacedNode(repeated, row, 0, 0, repeated=True))
        for number in range(start, stop):
            here = [node for node in flow if column[node] == number]
            passing = {lane_of[a] for a, b in graph.edges if lane_of.get(a, 0) > 0 and column[a] < number < column[b]}
            for node, lane in _lanes(graph, here, lane_of, passing).items():
                lane_of[node] = lane
                at[node, row] = len(nodes)
                nodes.append(PlacedNode(node, row, number - start + offset, lane))
        lanes.append(1 + max((n.lane for n in nodes if n.row == row), default=0))
    row_of = {
        node: next(r for r, (start, stop, _) in enumerate(rows) if start <= column[node] < stop) for node in graph
    }
    edges = []
    for before, after in graph.edges:
        row = row_of[after]
        edges.append((at.get((before, row), at[before, row_of[before]]), at[after, row]))
    return Layout(tuple(nodes), tuple(edges), tuple(lanes))


def _without_loops(graph: Any) -> Any:
    """The graph without edges that lead backwards. Nodes that no edge leads to come first, the longest way first."""
    starts = [node for node in graph if not graph.in_degree(node)]  # a layer may be known before its input
    place = {node: number for number, node in enumerate(dict.fromkeys((*starts, *graph)))}
    left: dict[str, int] = {}
    for node in reversed(place):
        left[node] = 1 + max((left[after] for after in graph.successors(node) if after in left), default=-1)
    flow = graph.__class__()
    flow.add_nodes_from(sorted(place, key=lambda node: place[node] if graph.in_degree(node) else -left[node]))
    flow.add_edges_from((a, b) for a, b in graph.edges if place[a] < place[b])
    return flow


def _columns(flow: Any, slack: int) -> dict[str, int]:
    """The column of each node of a graph without loops: the length of the longest path to it.

    A node that no edge leads to stands just before the first node that it leads to. So does one with one edge to it
    that could stand more than `slack` columns further right, such as a layer that makes an offset for a late block.
    """
    column: dict[str, int] = {}
    for node in flow:
        column[node] = 1 + max((column[before] for before in flow.predecessors(node)), default=-1)
    for node in reversed(list(flow)):
        latest = min((column[after] for after in flow.successors(node)), default=0) - 1
        if latest - column[node] > (slack if flow.in_degree(node) else 0) and flow.in_degree(node) < 2:
            column[node] = latest
    return column


def _rows(graph: Any, column: dict[str, int], last: int, columns: int) -> Iterator[tuple[int, int, str | None]]:
    """For each row: its first column, its last column plus one, and the node of the row before that is drawn again."""
    start, repeated = 0, None
    while start <= last:
        space = columns - (repeated is not None)
        stop, cut = min(start + space, last + 1), None
        if stop <= last:
            ends = (*range(stop - 1, start, -1), *range(stop, min(start + columns + columns // 3, last)))
            cut, stop = next(((c, end + 1) for end in ends if (c := _bottleneck(graph, column, end))), (None, stop))
        if stop == last:
            stop += 1  # no row for the output alone
        yield start, stop, repeated
        start, repeated = stop, cut


def _bottleneck(graph: Any, column: dict[str, int], end: int) -> str | None:
    """The only node of this column from which edges lead beyond it, None if there are several or none."""
    crossing = {before for before, after in graph.edges if column[before] <= end < column[after]}
    (only, *more) = crossing or {None}
    return only if not more and only is not None and column[only] == end else None


def _lanes(graph: Any, here: list[str], lane_of: dict[str, int], passing: Container[int]) -> dict[str, int]:
    """The lane of each node of one column: that of the first node that leads to it, or the next free one.

    passing: lanes in which edges pass by this column. A node stands in one only if an edge leads to it from there.
    """
    found: dict[str, int] = {}
    reached = {node: [lane_of[p] for p in graph.predecessors(node) if p in lane_of] for node in here}
    for node in sorted(here, key=lambda node: not reached[node]):  # nodes that no edge leads to come last
        lane = min(reached[node], default=0)
        while lane in found.values() or (lane in passing and lane not in reached[node]):
            lane += 1
        found[node] = lane
    return found
