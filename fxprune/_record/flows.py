"""The flow of a record as plain data for JSON, and back."""

from __future__ import annotations

from typing import Any

from fxprune.files import Field
from fxprune.report.layer_graph import KINDS, LayerFlow


def data_of(flow: LayerFlow) -> dict[str, Any]:
    """Returns a flow as plain data."""
    return {
        "nodes": dict(flow.nodes),
        "edges": [list(edge) for edge in flow.edges],
        "classes": dict(flow.classes),
    }


def flow_of(data: Field) -> LayerFlow:
    """Returns the flow that plain data describes. Raises for data that is no flow."""
    data.object(("nodes", "edges", "classes"))
    nodes = {name: kind.text(KINDS) for name, kind in data["nodes"].mapping().items()}
    edges = tuple(_edge(entry, len(nodes)) for entry in data["edges"].items())
    return LayerFlow(nodes, edges, {path: name.text() for path, name in data["classes"].mapping().items()})


def _edge(data: Field, count: int) -> tuple[int, int]:
    ends = [end.value for end in data.items()]
    if len(ends) != 2 or any(type(end) is not int or not 0 <= end < count for end in ends):
        raise data.wrong("it must be two positions in the nodes")
    return ends[0], ends[1]
