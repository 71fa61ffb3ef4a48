"""A record as plain data, beside its plan."""

from __future__ import annotations

from typing import Any

from fxprune.files import Field
from fxprune.planning.plan import Plan
from fxprune.record import Record

_KEYS = "exact before after reasons training error why_not norms".split()


def data_of(record: Record) -> dict[str, Any]:
    """A record as plain data, without its plan and what the plan says already."""
    return {
        "exact": record.exact,
        "before": {name: list(shape) for name, shape in record.before.items()},
        "after": {name: list(shape) for name, shape in record.after.items()},
        "reasons": list(record.reasons),
        "training": list(record.training),
        "error": record.error,
        "why_not": dict(record.why_not),
        "norms": record.norms,
    }


def record_of(data: Field, plan: Plan) -> Record:
    """A record of plain data and its plan."""
    data.object(_KEYS)
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
        {rung: why.text() for rung, why in data["why_not"].mapping().items()},
        data["norms"].text(("kept", "preserve")),
        plan,
    )
