"""Locking channels that cannot be rewritten, in other findings."""

from __future__ import annotations

import types
from dataclasses import replace
from typing import TypeVar

from torch import fx

from fxprune.analysis.findings import Findings
from fxprune.capture.traced import module_of, source_of
from fxprune.capture.values import leaves
from fxprune.channels.solve import solve
from fxprune.channels.vector import Vector
from fxprune.errors import RewriteError
from fxprune.ops import Event, Operand

FindingsT = TypeVar("FindingsT", bound=Findings)


def hold(findings: FindingsT, error: RewriteError) -> FindingsT | None:
    """The findings with the channels locked that could not be rewritten, or None where nothing is left to lock.

    Grids (heads, blocks) go first: a literal size inside an opaque function is mostly theirs. Everything else that
    enters follows if that was not it. What fails in one block of a model fails in all of them: they are held together.
    The findings passed in stay as they are.
    """
    node = next(n for n in findings.captured.graph.nodes if n.name == error.node)
    vectors = list(error.vectors)
    if not vectors:
        vectors = [v for scope in _alike(findings, error.scope) for v in _inside(findings, error.node, scope)]
    if not vectors:
        vectors = [v for same in _same_function(findings, node) for v in _entering(findings, same)]
    solution = findings.solution
    why = f"its sizes cannot be recounted: {error.why}"
    grids = [v for v in vectors if solution.is_grid(v)]
    chosen = [v for v in grids or vectors if solution.can_shrink(v)]
    if not chosen:
        return None
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    where = error.scope if error.scope and not error.scope.startswith("%") else module_of(node)
    event = Event(str(target or "forward"), node.name, where, source_of(node), why)
    observed = replace(findings.observed, events=(*findings.observed.events, event))
    terms = solution.terms.with_locked(chosen, len(findings.events))
    return replace(findings, observed=observed, solution=solve(terms, solution.axes))


def _entering(findings: Findings, node: fx.Node) -> list[Vector]:
    operands = [findings.observed.nodes[n.name] for n in node.all_input_nodes]
    vectors = [v for o in leaves(operands, Operand) if isinstance(o, Operand) for v in o.vectors]
    if node.op == "call_module":
        vectors += [a.vector for a in findings.solution.axes if a.parameter.startswith(f"{node.target}.")]
    return vectors


def _alike(findings: Findings, scope: str) -> list[str]:
    """The paths of a module and of all others of its class; none for a node, one for a layer of torch."""
    if not scope or scope.startswith("%"):
        return []
    kind = type(findings.captured.module.get_submodule(scope))
    if kind.__module__.startswith("torch."):
        return [scope]
    return [name for name, module in findings.captured.module.named_modules() if type(module) is kind]


def _same_function(findings: Findings, node: fx.Node) -> list[fx.Node]:
    """All calls of the function that a node calls, the node alone if it is one of torch's."""
    if not isinstance(node.target, types.FunctionType) or node.target.__module__.startswith("torch."):
        return [node]
    return list(findings.captured.graph.find_nodes(op="call_function", target=node.target))


def _inside(findings: Findings, node: str, scope: str) -> list[Vector]:
    """The vectors that the operations of a module inside a node made, or else took, as far as they can still shrink."""
    can_shrink = findings.solution.can_shrink
    outputs = findings.observed.observations[node].outputs
    made = [
        v for key, operands in outputs.items() if key[0].partition("|")[0] == scope for o in operands for v in o.vectors
    ]
    visit = findings.observed.visits.get(scope)
    taken = [v for o in leaves(visit.inputs if visit else (), Operand) if isinstance(o, Operand) for v in o.vectors]
    return [v for v in made if can_shrink(v)] or [v for v in taken if can_shrink(v)]
