"""Recounts the attributes of all modules of the smaller model."""

from __future__ import annotations

from torch import fx

from fxprune.analysis.findings import Findings
from fxprune.analysis.observed import Visit
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector
from fxprune.ops import Operand
from fxprune.ops.module_use import SizeError, Use
from fxprune.rewrite.draft import Draft
from fxprune.rewrite.modules import recount
from fxprune.rewrite.node_sizes import contradiction


def recount_modules(draft: Draft, findings: Findings, removal: Removal) -> None:
    """Set the attributes of every module that count something, by its parameters and its input.

    Raises `RewriteError` where a module that the graph calls cannot have its new sizes.
    """
    vectors = _vectors_by_module(findings)
    visits = {**_visits_of_parameters(findings), **findings.observed.visits}
    for name, module in reversed(
        list(draft.module.named_modules())
    ):  # a module may count the sizes of modules inside it, so these come first
        visit, own = visits.get(name), vectors.get(name, {})
        if visit is None:
            use = Use(removal, vectors=own)
        else:
            first = next((o for o in visit.inputs if isinstance(o, Operand)), None)
            use = Use(removal, first, visit.output, visit.observation.counts, own)
        try:
            recount(module, use)
        except SizeError as error:
            node = _call_of(findings.captured.graph, name)
            if node is not None:
                raise contradiction(node, node, str(error), name, error.vectors) from error


def _call_of(graph: fx.Graph, path: str) -> fx.Node | None:
    """The first node that calls the module at `path`, or a module that contains it; None if there is none."""
    calls = graph.find_nodes(op="call_module")
    return next((node for node in calls if not node.target or f"{path}.".startswith(f"{node.target}.")), None)


def _visits_of_parameters(findings: Findings) -> dict[str, Visit]:
    """In a graph that reads parameters one by one: module -> the operation that uses them, as a visit of it."""
    visits: dict[str, Visit] = {}
    nodes, observations = findings.observed.nodes, findings.observed.observations
    for node in findings.captured.graph.find_nodes(op="get_attr"):
        owner = str(node.target).rpartition(".")[0]
        for user in node.users:
            first = nodes.get(user.args[0].name) if user.args and isinstance(user.args[0], fx.Node) else None
            if isinstance(first, Operand):
                visits.setdefault(owner, Visit((first,), nodes[user.name], observations[user.name]))
    return visits


def _vectors_by_module(findings: Findings) -> dict[str, dict[str, dict[int, Vector]]]:
    """Module -> parameter or buffer anywhere below it, by its name from there -> dimension -> vector.

    "block.conv.weight" stands under "" by that name, under "block" as "conv.weight", under "block.conv" as "weight".
    """
    made: dict[str, dict[str, dict[int, Vector]]] = {}
    for axis in findings.axes:
        for name in findings.names_of(axis.parameter):
            parts = name.split(".")
            for k in range(len(parts)):
                below = made.setdefault(".".join(parts[:k]), {})
                below.setdefault(".".join(parts[k:]), {})[axis.dim] = axis.vector
    return made
