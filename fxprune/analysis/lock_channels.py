"""After an error of the rewrite: new findings, in which the channels that caused it are locked."""

from __future__ import annotations

import types
from dataclasses import replace
from typing import TypeVar

from torch import fx

from fxprune.analysis.findings import Findings
from fxprune.analysis.hidden_widths import hidden_width
from fxprune.capture.places import module_of, source_of
from fxprune.capture.values import leaves
from fxprune.channels.solve import solve
from fxprune.channels.vector import Vector
from fxprune.errors import RewriteError
from fxprune.ops import Event, Operand

FindingsT = TypeVar("FindingsT", bound=Findings)


def lock_channels(findings: FindingsT, error: RewriteError) -> FindingsT | None:
    """New findings in which the channels that caused an error are locked; None if there is nothing left to lock.

    The error names dimensions, or a module, or a node. All modules of that class, or all calls of that function, are
    treated alike, since an error in one block of a model usually occurs in all of them. If some of their dimensions are
    grids (heads, blocks), only these are locked, because most sizes that are written into code count heads or blocks.
    If the rewrite fails again, a second call locks the rest.
    """
    node = next(n for n in findings.captured.graph.nodes if n.name == error.node)
    vectors = [*error.vectors, *_same_dimensions(findings, error)]
    if not any(map(findings.solution.can_shrink, vectors)):
        vectors = [
            v
            for scope in _modules_of_same_class(findings, error.scope)
            for v in _vectors_inside(findings, error.node, scope)
        ]
    if not vectors:
        vectors = [v for same in _calls_of_same_function(findings, node) for v in _entering_vectors(findings, same)]
    solution = findings.solution
    why = f"{error.held}: {error.first_why}"
    grids = [v for v in vectors if solution.is_grid(v)]
    chosen = [v for v in grids or vectors if solution.can_shrink(v)]
    if not chosen:
        return None
    place = error.scope if error.scope and not error.scope.startswith("%") else ""
    hidden = hidden_width(findings.captured.module.get_submodule(place), {vector.size for vector in chosen})
    why += hidden and f"; {hidden}"
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    where = error.scope if error.scope and not error.scope.startswith("%") else module_of(node)
    event = Event(str(target or "forward"), node.name, where, error.line or source_of(node), why)
    observed = replace(findings.observed, events=(*findings.observed.events, event))
    terms = solution.terms.with_locked(chosen, len(findings.events))
    return replace(findings, observed=observed, solution=solve(terms, solution.axes))


def _same_dimensions(findings: Findings, error: RewriteError) -> list[Vector]:
    """The vectors of the dimensions that an error is about, in the same operation of all modules of the same class."""
    if error.operation is None:
        return []
    name, _, operation, call = error.operation
    path, bar, function = name.partition("|")
    scopes = {scope + bar + function for scope in _modules_of_same_class(findings, path)} | {name}
    return [
        operands[number].vectors[dim]
        for run in findings.runs
        for walked in run.calls
        for key, operands in walked.observations[error.node].outputs.items()
        if key[0] in scopes and key[2:] == (operation, call)
        for number, dim in error.places
        if number < len(operands) and dim < len(operands[number].vectors)
    ]


def _entering_vectors(findings: Findings, node: fx.Node) -> list[Vector]:
    # on the path "hooks" no node is known
    operands = [findings.observed.nodes[n.name] for n in node.all_input_nodes if n.name in findings.observed.nodes]
    vectors = [v for o in leaves(operands, Operand) if isinstance(o, Operand) for v in o.vectors]
    if node.op == "call_module":
        vectors += [a.vector for a in findings.solution.axes if a.parameter.startswith(f"{node.target}.")]
    return vectors


def _modules_of_same_class(findings: Findings, scope: str) -> list[str]:
    """The paths of all modules of the same class as the one at `scope`.

    Only `scope` itself for a layer of torch; the whole model, if its own forward runs in one node, for an empty scope;
    else none for an empty scope or a node.
    """
    if not scope and findings.captured.keeps_class:
        return [scope]
    if not scope or scope.startswith("%"):
        return []
    kind = type(findings.captured.module.get_submodule(scope))
    if kind.__module__.startswith("torch."):
        return [scope]
    return [name for name, module in findings.captured.module.named_modules() if type(module) is kind]


def _calls_of_same_function(findings: Findings, node: fx.Node) -> list[fx.Node]:
    """All nodes that call the same function as `node`; only `node` for a function of torch or a module."""
    if not isinstance(node.target, types.FunctionType) or node.target.__module__.startswith("torch."):
        return [node]
    return list(findings.captured.graph.find_nodes(op="call_function", target=node.target))


def _vectors_inside(findings: Findings, node: str, scope: str) -> list[Vector]:
    """The vectors that can shrink in the results of the operations in a module; if none can, those in its inputs.

    node: the name of the node that runs the module. scope: the path of the module.
    """
    can_shrink = findings.solution.can_shrink
    made = [
        vector
        for run in findings.runs
        for walked in run.calls
        for key, operands in walked.observations[node].outputs.items()
        if key[0].partition("|")[0] == scope
        for operand in operands
        for vector in operand.vectors
    ]
    visit = findings.observed.visits.get(scope)
    taken = [v for o in leaves(visit.inputs if visit else (), Operand) if isinstance(o, Operand) for v in o.vectors]
    return [v for v in made if can_shrink(v)] or [v for v in taken if can_shrink(v)]
