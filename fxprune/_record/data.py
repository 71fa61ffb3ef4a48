"""Records as plain data for JSON, and back. The plan of a record is stored separately."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from fxprune._record import flows, repaired
from fxprune._record.history import Record
from fxprune.analysis.held_back import HeldBack
from fxprune.costs import Cost, LayerCost
from fxprune.files import Field
from fxprune.ops import Event
from fxprune.planning import plan_file
from fxprune.planning.plan import Plan
from fxprune.proof.one_sided import OneSided

_KEYS = "exact before after reasons training error why_not norms cost".split()
_OPTIONAL = "compared one_sided methods repair weights measured steps layers_gone flow held".split()
_EVENT_KEYS = "op node module source why".split()
_COST_KEYS = "params bytes macs at_least uncounted layers".split()


def data_of(record: Record) -> dict[str, Any]:
    """Returns a record as plain data, without its plan and without what the plan contains."""
    return {
        "exact": record.exact,
        "before": {name: list(shape) for name, shape in record.before.items()},
        "after": {name: list(shape) for name, shape in record.after.items()},
        "reasons": list(record.reasons),
        "training": list(record.training),
        "error": record.error,
        "why_not": dict(record.why_not),
        "norms": record.norms,
        "cost": None if record.cost is None else [_cost_data(cost) for cost in record.cost],
        **({} if record.compared is None else {"compared": record.compared}),
        **({} if not record.one_sided else {"one_sided": [asdict(found) for found in record.one_sided]}),
        **({"methods": list(record.methods)} if record.methods else {}),
        **({} if record.repair is None else {"repair": repaired.data_of(record.repair)}),
        **({"weights": record.weights} if record.weights else {}),
        **(
            {"layers_gone": {path: list(gone) for path, gone in record.layers_gone.items()}}
            if record.layers_gone
            else {}
        ),
        **({"measured": {k: list(v) for k, v in record.measured.items()}} if record.measured else {}),
        **({"steps": record.steps} if record.steps > 1 else {}),
        **({} if record.flow is None else {"flow": flows.data_of(record.flow)}),
        **({"held": [_held_data(one) for one in record.held]} if record.held else {}),
    }


def plan_data(record: Record) -> dict[str, Any]:
    """Returns the plan of a record as plain data, without norms: those are the record's, which older readers know."""
    return plan_file.data_of(replace(record.plan, norms="kept"))


def _cost_data(cost: Cost) -> dict[str, Any]:
    made = {key: getattr(cost, key) for key in _COST_KEYS[:4]}
    layers = {path: [layer.params, layer.bytes, layer.macs] for path, layer in cost.layers.items()}
    return {**made, "uncounted": list(cost.uncounted), "layers": layers}


def record_of(data: Field, plan: Plan) -> Record:
    """Returns the record that plain data and its plan describe. Raises for data that is no record."""
    data.object(_KEYS, _OPTIONAL)
    plan = replace(plan, norms=data["norms"].text(("kept", "preserve")))
    if not isinstance(data["exact"].value, bool):
        raise data["exact"].wrong("it must be true or false")
    return Record(
        plan.path,
        plan.removed,
        data["exact"].value,
        {name: shape.shape() for name, shape in data["before"].mapping().items()},
        {name: shape.shape() for name, shape in data["after"].mapping().items()},
        data["reasons"].texts(),
        data["training"].texts(),
        None if data["error"].value is None else float(data["error"].number()),
        {path: why.text() for path, why in data["why_not"].mapping().items()},
        plan.norms,
        plan,
        _costs(data["cost"]),
        _count(data["compared"]) if "compared" in data.mapping() else None,
        tuple(map(_one_sided, data["one_sided"].items())) if "one_sided" in data.mapping() else (),
        data["methods"].texts() if "methods" in data.mapping() else (),
        repaired.repair_of(data["repair"]) if "repair" in data.mapping() else None,
        data["weights"].text() if "weights" in data.mapping() else "",
        _measured(data["measured"]) if "measured" in data.mapping() else {},
        (_count(data["steps"]) or 1) if "steps" in data.mapping() else 1,
        _layers(data["layers_gone"]) if "layers_gone" in data.mapping() else {},
        flows.flow_of(data["flow"]) if "flow" in data.mapping() else None,
        tuple(map(_held, data["held"].items())) if "held" in data.mapping() else (),
    )


def _held_data(held: HeldBack) -> dict[str, Any]:
    return {**asdict(held.event), "slots": [list(slot) for slot in held.slots]}


def _held(data: Field) -> HeldBack:
    data.object((*_EVENT_KEYS, "slots"))
    event = Event(*(data[key].text() for key in _EVENT_KEYS))
    slots = [slot.items() for slot in data["slots"].items()]
    if any(len(slot) != 2 for slot in slots):
        raise data["slots"].wrong("they must be pairs of a name and a dimension")
    return HeldBack(event, tuple((name.text(), _count(dim) or 0) for name, dim in slots))


def _layers(data: Field) -> dict[str, tuple[int, ...]]:
    found = {}
    for path, positions in data.mapping().items():
        found[path] = tuple(_count(part) or 0 for part in positions.items())
        if sorted({*found[path]}) != [*found[path]]:
            raise positions.wrong("they must be positions, ascending")
    return found


def _measured(data: Field) -> dict[str, tuple[float, float]]:
    found = {}
    for key, pair in data.mapping().items():
        numbers = [part.number() for part in pair.items()]
        if len(numbers) != 2 or any(isinstance(number, bool) or number < 0 for number in numbers):
            raise pair.wrong("it must be two numbers, before and after")
        found[key] = (numbers[0], numbers[1])
    return found


def _one_sided(data: Field) -> OneSided:
    data.object("operation original small modules".split())
    original, small = (_count(data[key]) for key in ("original", "small"))
    if original is None or small is None:
        raise data.wrong("it must say how often the operation ran")
    return OneSided(data["operation"].text(), original, small, data["modules"].texts())


def _costs(data: Field) -> tuple[Cost, Cost] | None:
    if data.value is None:
        return None
    found = [_cost(entry) for entry in data.items()]
    if len(found) != 2:
        raise data.wrong("it must be the cost before and the cost after")
    return found[0], found[1]


def _cost(data: Field) -> Cost:
    data.object(_COST_KEYS)
    layers = {}
    for path, entry in data["layers"].mapping().items():
        numbers = [_count(part) for part in entry.items()]
        if len(numbers) != 3 or None in numbers[:2]:
            raise entry.wrong("it must be parameters, bytes and MACs")
        layers[path] = LayerCost(numbers[0] or 0, numbers[1] or 0, numbers[2])
    params, octets, macs, least = (_count(data[key]) for key in _COST_KEYS[:4])
    if params is None or octets is None or least is None:
        raise data.wrong("only MACs may be unknown")
    return Cost(params, octets, macs, layers, least, data["uncounted"].texts())


def _count(data: Field) -> int | None:
    """Returns a count, or None for an unknown one."""
    if data.value is None:
        return None
    if type(data.value) is not int or data.value < 0:
        raise data.wrong("it must be an integer of at least 0, or null")
    return int(data.value)
