"""The data of the page: what the reports as JSON hold, put together by layer, with the graph of the layers."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from torch import nn

from fxprune.analysis.findings import Findings, Group
from fxprune.analysis.held_back import HeldBack, with_held_back
from fxprune.costs import ChannelCost, Cost, all_but_one, cost_of
from fxprune.costs.count import uncounted_operations
from fxprune.errors import InputError, PlanError
from fxprune.fold import resolve_plan
from fxprune.ops.layers import output_dim_by_name, weights_of_state
from fxprune.planning.plan import Plan
from fxprune.report.data import AnalysisData, Change, LockedData, RecordData, Recorded, Shape, analysis_data
from fxprune.report.graphs import graph
from fxprune.report.html.states import States
from fxprune.report.layer_graph import LayerFlow, classes_around
from fxprune.report.locks import merged_locks
from fxprune.report.parameters import drawn_dim, first_or_last
from fxprune.report.repeats import blocks_of
from fxprune.report.text import merged_notes

Entry = dict[str, Any]

STACKED = "in_proj_weight"
"""The weight of `nn.MultiheadAttention` whose rows are those of query, key and value."""

TOTALS = ("params", "bytes", "macs")


class Curve(Protocol):
    """A result of `fxprune.sensitivity` or `fxprune.pareto`."""

    def to_json(self) -> str: ...  # noqa: D102


Curves = Curve | Sequence[Curve]


class Planned(Recorded, Protocol):
    """The attributes of a record that its page uses."""

    @property
    def plan(self) -> Plan: ...  # noqa: D102

    @property
    def flow(self) -> LayerFlow | None: ...  # noqa: D102

    @property
    def held(self) -> tuple[HeldBack, ...]: ...  # noqa: D102


def curves_of(curves: Any) -> list[Entry]:
    """The curves as plain data. Raises `InputError` for what is no result of `sensitivity` or `pareto`."""
    found = []
    for curve in () if curves is None else curves if isinstance(curves, (list, tuple)) else [curves]:
        data = json.loads(curve.to_json()) if hasattr(curve, "to_json") else {}
        if data.get("schema") not in ("fxprune.sensitivity/1", "fxprune.pareto/1"):
            raise InputError(
                f"a {type(curve).__name__} is no curve", do="pass what fxprune.sensitivity or fxprune.pareto returned"
            )
        found.append(data)
    return found


def of_analysis(
    findings: Findings, data: AnalysisData, plan: Plan | None, shallow: Findings, curves: Iterable[Entry]
) -> Entry:
    """The data of the page of an analysis.

    plan: shows what it would leave. shallow: of the model without the branches that the plan drops.
    """
    made = _of_findings(findings, data)
    if plan is not None:
        resolved = resolve_plan(shallow, plan)
        left = cost_of(shallow, resolved.removal, resolved.constants)
        _add_plan(made, resolved.plan, left, findings.tensors.keys() - shallow.tensors.keys())
        _add_kept(made, findings, shallow.tensors, resolved.plan)
    made["curves"], made["notes"] = list(curves), _merged_notes(made)
    return made


def of_record(record: Planned, data: RecordData, findings: Findings | None, curves: Iterable[Entry]) -> Entry:
    """The data of the page of a record. findings: of the original, for its graph, its groups and what is locked."""
    if findings is None:
        made = _without_findings(record, data)
    else:
        _refuse_other(record, findings)
        findings = with_held_back(findings, record.held)
        made = _of_findings(findings, analysis_data(findings))
        there = {name for name, shape in record.after.items() if shape is not None}
        _add_kept(made, findings, there, record.plan)
    _add_record(made, record, data)
    made["curves"], made["notes"] = list(curves), _merged_notes(made)
    return made


def _merged_notes(made: Entry) -> list[str]:
    """The notes, of which equal ones of repeated blocks are one."""
    return merged_notes(made["notes"], blocks_of(layer["id"] for layer in made["layers"]))


# -- from an analysis -----------------------------------------------------------------------------------------


def _of_findings(findings: Findings, data: AnalysisData) -> Entry:
    nodes, edges = _graph(findings)
    drawn = {node["id"]: node for node in nodes}
    for layer in data.layers:
        name = layer.name or "(model)"
        here = drawn.get(layer.name)
        if here is None:
            shapes = {leaf: shape for leaf, shape in layer.shapes.items() if _full(layer.name, leaf) not in drawn}
            if not shapes and not layer.macs:
                continue
            here = _entry(name, "layer", layer.type, layer.params, layer.macs)
            nodes.append(here | {"drawn": False, "tensors": _tensors(layer.name, shapes)})
        else:
            here["tensors"] = _tensors(layer.name, layer.shapes)
            here["params"], here["macs"] = layer.params, layer.macs
    _add_order(nodes, ((layer.name, layer.shapes) for layer in data.layers))
    states = States(findings)
    for node in nodes:
        node["width"] = _width(node, partial(_dim_of_outputs, findings, node))
        node["state"] = states.of(node)
    return {
        "title": data.model,
        "path": data.path,
        "totals": {key: {"before": getattr(data, key), "after": None} for key in TOTALS},
        "macs_at_least": data.macs_at_least,
        "uncounted": [*uncounted_operations(data.uncounted).values()],
        "notes": data.notes,
        "groups": [_group(*parts) for parts in zip(findings.groups, data.groups, all_but_one(findings), strict=True)],
        "locked": [dataclasses.asdict(lock) | {"count": count} for lock, count in merged_locks(data.locked, _shown)],
        "layers": nodes,
        "edges": edges,
        "modules": _modules(findings, nodes),
        "analysed": True,
        "planned": False,
        "record": None,
    }


def _graph(findings: Findings) -> tuple[list[Entry], list[list[Any]]]:
    """The nodes of the flow, and its edges as pairs of names with the shape between them."""
    flow = graph(findings, "flow")
    nodes = []
    for name, found in flow.nodes(data=True):
        node = _entry(name, found["kind"], found["type"], found["params"], found["macs"])
        path = name if found["kind"] == "layer" else name.rpartition(".")[0]
        nodes.append(node | {"tensors": _tensors(path, found["shapes"])})
    return nodes, [[before, after, list(shape or ())] for before, after, shape in flow.edges(data="shape")]


def _entry(name: str, kind: str, type_name: str, params: int, macs: int | None) -> Entry:
    entry = {"id": name, "order": 0, "kind": kind, "type": type_name, "params": params, "macs": macs, "after": None}
    return entry | {"drawn": True, "width": None, "state": None, "tensors": []}


def _add_order(nodes: Sequence[Entry], layers: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Add to each node its place in the model; a parameter that no layer owns stands behind the module that owns it.

    layers: name and names of tensors of each layer, in the order of the model.
    """
    declared = (name for path, leaves in layers for name in (path, *(_full(path, leaf) for leaf in leaves)))
    place = {name: number for number, name in enumerate(declared)}
    for node in nodes:
        node["order"] = place.get(_path(node), len(place))


def _full(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


def _tensors(path: str, shapes: Mapping[str, Shape]) -> list[Entry]:
    return [{"name": _full(path, leaf), "before": list(shape), "after": None} for leaf, shape in shapes.items()]


def _main(node: Entry) -> Entry | None:
    """The largest tensor of a layer."""
    return max(node["tensors"], key=lambda tensor: math.prod(tensor["before"]), default=None)


def _width(node: Entry, dim_of: Callable[[Entry], int | None]) -> Entry | None:
    """The number of outputs of a layer, and the tensors and the dimension that count them.

    dim_of: a function from the largest tensor of a layer to the dimension of its outputs, None if it is not known.
    """
    here = {tensor["name"].rpartition(".")[2]: tensor for tensor in node["tensors"]}
    states = weights_of_state({leaf: tensor["before"] for leaf, tensor in here.items()})
    counted, dim = [here[leaf] for leaf in states], 1
    if not counted:
        main = _main(node)
        found = None if main is None or not main["before"] else dim_of(main)
        if main is None or found is None or found >= len(main["before"]):
            return None
        counted, dim = [main], found
    before = sum(tensor["before"][dim] for tensor in counted)
    parts = "query, key, value" if counted[0]["name"].endswith(STACKED) else ""
    return {"parts": parts} | {
        "tensors": [tensor["name"] for tensor in counted],
        "dim": dim,
        "before": before,
        "after": None,
    }


def _dim_of_outputs(findings: Findings, node: Entry, main: Entry) -> int | None:
    """The dimension of a tensor that counts the outputs of its node, None if the model has no such parameter."""
    name = findings.first_name(main["name"])
    if name not in findings.tensors or not isinstance(findings.tensors[name], nn.Parameter):
        return None
    return findings.dim_of_outputs(main["name"]) if node["kind"] == "layer" else drawn_dim(findings, main["name"])


def _group(group: Group, row: Any, most: ChannelCost) -> Entry:
    """A group with its members. row: as the JSON report has it. most: the cost of all of its channels but one."""
    members = [
        {
            **dataclasses.asdict(row_member),
            "slots": len(member.slots),
            "first": int(min(member.slots)),
            "shape": list(member.tensor.shape),
        }
        for member, row_member in zip(group.members, row.members, strict=True)
    ]
    figures = {"params_all_but_one": most.params, "macs_all_but_one": most.macs}
    return {**dataclasses.asdict(row), **figures, "key": group.key, "kept": None, "members": members}


def _shown(lock: LockedData) -> tuple[Any, ...]:
    """The parts of a lock that a row of the page's list shows, but for its figures."""
    return lock.module, lock.operation, lock.why, (lock.file, lock.line) if lock.file else lock.node


def _modules(findings: Findings, nodes: Sequence[Entry]) -> dict[str, str]:
    """Path of every module that holds a node -> its class."""
    found = classes_around(findings.model, (node["id"] for node in nodes))
    return {path: name for path, name in found.items() if path}


# -- what stays -----------------------------------------------------------------------------------------------


def _add_kept(made: Entry, findings: Findings, there: Container[str], plan: Plan) -> None:
    """Add to each group how many of its channels are left. there: the names of the tensors that are."""
    for group, entry in zip(findings.groups, made["groups"], strict=True):
        entry["kept"] = _left(group, there, plan)


def _left(group: Group, there: Container[str], plan: Plan) -> int:
    """The channels of a group that still have a slot in the first of its tensors that is there."""
    for member in (group.producer, *group.members):
        if member.parameter in there:
            gone = set(plan.removed.get(member.parameter, {}).get(member.dim, ()))
            slots = zip(member.slots.tolist(), member.index.tolist(), strict=True)
            return len({channel for slot, channel in slots if slot not in gone})
    return 0


def _add_plan(made: Entry, plan: Plan, left: Cost, dropped: Container[str]) -> None:
    """Add what a plan leaves. dropped: the tensors that go with a branch."""
    for key in TOTALS:
        made["totals"][key]["after"] = getattr(left, key)
    for node in made["layers"]:
        for tensor in node["tensors"]:
            gone = plan.removed.get(tensor["name"], {})
            here = [size - len(gone.get(dim, ())) for dim, size in enumerate(tensor["before"])]
            tensor["after"] = None if tensor["name"] in dropped else here
        cost = left.layers.get(_path(node))
        node["after"] = None if cost is None else {"params": cost.params, "macs": cost.macs}
        if node["kind"] == "parameter":
            node["after"] = {"params": _size_after(node), "macs": node["macs"]}
        elif node["tensors"] and all(tensor["after"] is None for tensor in node["tensors"]):
            node["after"] = {"params": 0, "macs": 0}
    _add_widths(made)
    branches = [f"the residual branch {branch.name} goes whole" for branch in plan.dropped]
    made["planned"], made["notes"] = True, (*made["notes"], *branches, *plan.reasons)


def _size_after(node: Entry) -> int:
    return sum(math.prod(tensor["after"] or (0,)) for tensor in node["tensors"])


def _path(node: Entry) -> str:
    return "" if node["id"] == "(model)" else str(node["id"])


def _add_widths(made: Entry) -> None:
    for node in made["layers"]:
        width = node["width"]
        if width is not None:
            left = [tensor["after"] for tensor in node["tensors"] if tensor["name"] in width["tensors"]]
            width["after"] = sum(0 if shape is None else shape[width["dim"]] for shape in left)


def _add_record(made: Entry, record: Planned, data: RecordData) -> None:
    """Add the figures of a record: the shapes and the cost of every layer afterwards, the proof, the sizes."""
    changes = {layer.name: layer for layer in data.layers}
    after = {_full(layer.name, t.name): t.after for layer in data.layers for t in layer.tensors}
    for node in made["layers"]:
        for tensor in node["tensors"]:
            shape = after.get(tensor["name"], tuple(tensor["before"]))
            tensor["after"] = None if shape is None else list(shape)
        layer = changes.get(_path(node))
        if layer is not None:
            node["after"] = {"params": layer.params.after, "macs": layer.macs.after}
        if node["kind"] == "parameter":
            node["after"] = {"params": _size_after(node), "macs": node["macs"]}
    _add_widths(made)
    made["totals"] = {key: _pair(getattr(data, key)) for key in TOTALS}
    made["totals"] |= {name: _pair(figures) for name, figures in data.measured.items()}
    made["planned"], made["path"] = True, data.path
    made["notes"] = (*made["notes"], *(reason for reason in data.reasons if reason not in made["notes"]))
    made["record"] = {
        "exact": data.exact,
        "error": data.error,
        "norms": data.norms,
        "why_not": data.why_not,
        "training": data.training,
        "one_sided": data.one_sided,
        "repair": None if data.repair is None else dataclasses.asdict(data.repair),
        "sizes": [{"at": size.at, "kind": size.kind, "text": str(size)} for size in record.plan.sizes],
    }


def _refuse_other(record: Planned, findings: Findings) -> None:
    """Raises `PlanError` if the analysis is not of the original that the record tells of."""
    for name, shape in record.before.items():
        first = findings.first_name(name)
        here = tuple(findings.tensors[first].shape) if first in findings.tensors else None
        if here != tuple(shape):
            raise PlanError(
                "the analysis is of another model than the record",
                why=f'"{name}" has shape {tuple(shape)} there and {"does not exist" if here is None else here} here',
                do="pass the analysis of the original, on the path of the record",
            )


def _pair(figures: Change) -> Entry:
    return {"before": figures.before, "after": figures.after}


# -- a record alone -------------------------------------------------------------------------------------------


def _without_findings(record: Planned, data: RecordData) -> Entry:
    """The layers of a record and the flow that it keeps; the groups are the channels that went together."""
    flow = record.flow or LayerFlow({}, (), {})
    layers = {layer.name: layer for layer in data.layers}
    names = list(flow.nodes)
    nodes = [_bare_node(name, kind, layers, flow) for name, kind in flow.nodes.items()]
    owned = {tensor["name"] for node in nodes for tensor in node["tensors"]}
    for layer in data.layers:
        node = _bare_node(layer.name, "layer", layers, flow)
        node["tensors"] = [tensor for tensor in node["tensors"] if tensor["name"] not in owned]
        if layer.name not in flow.nodes and (node["tensors"] or layer.macs.before):
            nodes.append(node | {"id": layer.name or "(model)", "drawn": not names})
    for node in nodes:
        node["width"] = _width(node, partial(_dim_by_name, node, record.plan))
    _add_order(nodes, ((layer.name, (tensor.name for tensor in layer.tensors)) for layer in data.layers))
    structure = record.plan.structure
    coupled = () if structure is None else structure.coupled
    groups = []
    for number, found in enumerate(coupled):
        members = [_bare_member(name, dim, record.before.get(name, ())) for name, dim in found.members]
        name = next((m["parameter"] for m in members if len(m["shape"]) > 1), found.members[0][0]).rpartition(".")[0]
        groups.append(
            {
                "name": name or found.members[0][0],
                "kind": "removed",
                "key": f"{name}#{number}",
                "channels": found.channels,
            }
            | {"kept": 0, "exact": None, "reasons": (), "members": members}
            | dict.fromkeys(("params_per_channel", "macs_per_channel", "params_all_but_one", "macs_all_but_one"))
        )
    return {
        "title": flow.classes.get("", "Small model"),
        "macs_at_least": None,
        "uncounted": (),
        "notes": (),
        "groups": groups,
        "locked": [],
        "layers": nodes,
        "edges": [[names[before], names[after], []] for before, after in flow.edges],
        "modules": {path: name for path, name in flow.classes.items() if path},
        "analysed": False,
    }


def _bare_node(name: str, kind: str, layers: Mapping[str, Any], flow: LayerFlow) -> Entry:
    """A node of a record alone, with the figures that the record has of it."""
    if kind == "parameter":
        path, _, leaf = name.rpartition(".")
        shapes = {t.name: t.before for t in layers[path].tensors if t.name == leaf} if path in layers else {}
        size = sum(math.prod(shape) for shape in shapes.values())
        return _entry(name, kind, "Parameter", size, 0) | {"tensors": _tensors(path, shapes)}
    layer = layers.get(name) if kind == "layer" else None
    made = name.rpartition(":")[2].partition(" ")[0] if kind == "join" else flow.classes.get(name, "")
    node = _entry(name, kind, made if kind in ("join", "layer") else kind, 0, 0)
    if layer is None:
        return node
    tensors = _tensors(name, {tensor.name: tensor.before for tensor in layer.tensors})
    return node | {"params": layer.params.before, "macs": layer.macs.before, "tensors": tensors}


def _dim_by_name(node: Entry, plan: Plan, main: Entry) -> int:
    size = len(main["before"])
    if node["kind"] == "layer":
        return output_dim_by_name(node["type"], size)
    coupled = () if plan.structure is None else plan.structure.coupled
    made = [dim for name, dim in (group.members[0] for group in coupled if group.members) if name == main["name"]]
    return first_or_last(made or [dim for dim, gone in plan.removed.get(main["name"], {}).items() if len(gone)], size)


def _bare_member(name: str, dim: int, shape: Shape) -> Entry:
    return {
        "parameter": name,
        "dim": dim,
        "role": "",
        "slots": shape[dim] if dim < len(shape) else None,
        "first": None,
        "shape": list(shape),
    }
