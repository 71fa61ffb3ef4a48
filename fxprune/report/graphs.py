"""An analysis as a graph of networkx, and any such graph as text for Graphviz."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fxprune.analysis.findings import Findings
from fxprune.analysis.members import role_of
from fxprune.costs import LayerCost, cost_of
from fxprune.errors import InputError, nearest
from fxprune.report.layer_graph import layer_graph

KINDS = ("layers", "groups", "flow")
"""Layers and the tensors between them; groups and parameters; layers with the operations at which branches meet."""


def graph(findings: Findings, kind: str) -> Any:
    """A graph of networkx: see `Analysis.to_networkx`."""
    if kind not in KINDS:
        raise InputError(
            f"there is no graph of kind {kind!r}",
            why=nearest(kind, KINDS) if isinstance(kind, str) else f"it is a {type(kind).__name__}",
            do=f"pass one of {', '.join(KINDS)}",
        )
    return _groups(findings) if kind == "groups" else _layers(findings, whole=kind == "flow")


def group_names(findings: Findings) -> list[str]:
    """A unique name for each group: "name:kind", with a number where several groups have the same."""
    seen: Counter[str] = Counter()
    names = []
    for group in findings.groups:
        name = f"{group.name}:{group.kind}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return names


def _groups(findings: Findings) -> Any:
    import networkx as nx  # type: ignore[import-untyped]

    made = nx.MultiGraph()
    for name, group in zip(group_names(findings), findings.groups, strict=True):
        made.add_node(name, bipartite=0, kind=group.kind, channels=group.size, exact=group.exact)
        for member in group.members:
            shape = tuple(member.tensor.shape)
            made.add_node(member.parameter, bipartite=1, shape=shape)
            made.add_edge(name, member.parameter, key=member.dim, dim=member.dim, role=member.role)
    return made


def _layers(findings: Findings, *, whole: bool) -> Any:
    import networkx as nx

    found = layer_graph(findings)
    made = nx.DiGraph()
    for node, kind in found.nodes.items():
        (output, *more) = found.outputs.get(node, {None})
        made.add_node(node, **_attributes(findings, node, kind), output=None if more else output)
    for (before, after), shape in found.edges.items():
        made.add_edge(before, after, shape=shape)
    costs = cost_of(findings).layers
    for node, macs in ((n, costs.get(n, LayerCost()).macs) for n in made):
        made.nodes[node]["macs"] = macs
    for name, group in zip(group_names(findings), findings.groups, strict=True):
        for member, parameter in ((m, name) for m in group.members for name in findings.names_of(m.parameter)):
            node = parameter if parameter in made else parameter.rpartition(".")[0]
            if node in made:
                role = role_of(findings.layer(parameter), member.dim, member.tensor.ndim)
                for place in ("groups", "makes" if role == "producer" else "reads"):
                    listed = made.nodes[node][place]
                    made.nodes[node][place] = listed if name in listed else (*listed, name)
    return made if whole else _without_joins(made)


def _attributes(findings: Findings, node: str, kind: str) -> dict[str, Any]:
    model = findings.captured.module
    shapes: dict[str, tuple[int, ...]] = {}
    params = 0
    type_name = kind
    if kind == "layer":
        module = model.get_submodule(node)
        type_name = type(module).__name__
        own = dict(module.named_parameters(recurse=False))
        shapes = {name: tuple(t.shape) for name, t in own.items()}
        params = sum(t.numel() for t in own.values())
    elif kind == "parameter":
        tensor = model.get_parameter(node)
        shapes, params, type_name = {node.rpartition(".")[2]: tuple(tensor.shape)}, tensor.numel(), "Parameter"
    elif kind == "join":
        type_name = node.rpartition(":")[2].partition(" ")[0]
    return {"kind": kind, "type": type_name, "params": params, "shapes": shapes, "groups": (), "makes": (), "reads": ()}


def _without_joins(made: Any) -> Any:
    """The graph without joins, inputs and outputs: an edge into a join leads to every node behind the join."""
    for node, kind in list(made.nodes(data="kind")):
        if kind == "join":
            before, after = list(made.predecessors(node)), list(made.out_edges(node, data="shape"))
            made.remove_node(node)
            through = [(a, b, shape) for a in before for _, b, shape in after if a != b and not made.has_edge(a, b)]
            made.add_edges_from((a, b, {"shape": shape}) for a, b, shape in through)
        elif kind in ("input", "output"):
            made.remove_node(node)
    return made


def dot(made: Any) -> str:
    """A graph of networkx as text in Graphviz' language, names quoted and escaped.

    >>> import networkx as nx
    >>> g = nx.DiGraph()
    >>> g.add_edge('a', 'b "c"', shape=(1, 8))
    >>> print(dot(g))
    digraph {
      rankdir=LR
      node [shape=box, style=rounded, fontname="sans-serif"]
      "a" [label="a"]
      "b \\"c\\"" [label="b \\"c\\""]
      "a" -> "b \\"c\\"" [label="1 x 8"]
    }
    """
    arrow, word = ("->", "digraph") if made.is_directed() else ("--", "graph")
    lines = [f"{word} {{", "  rankdir=LR", '  node [shape=box, style=rounded, fontname="sans-serif"]']
    for node, found in made.nodes(data=True):
        lines.append(f"  {_quoted(node)} [label={_quoted(*_label(node, found))}]")
    for before, after, found in made.edges(data=True):
        text = f"{found['role']} [{found['dim']}]" if "role" in found else " x ".join(map(str, found.get("shape", ())))
        lines.append(f"  {_quoted(before)} {arrow} {_quoted(after)}" + (f" [label={_quoted(text)}]" if text else ""))
    return "\n".join([*lines, "}"])


def _label(node: str, found: dict[str, Any]) -> list[str]:
    if "channels" in found:
        return [node, f"{found['channels']} {found['kind']}"]
    if "shape" in found:
        return [node, " x ".join(map(str, found["shape"]))]
    shapes = [f"{name} {' x '.join(map(str, shape))}" for name, shape in found.get("shapes", {}).items()]
    return [node, *([found["type"]] if found.get("type") else []), *shapes]


def _quoted(*lines: str) -> str:
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") for line in lines)
    return '"' + "\\n".join(escaped) + '"'
