"""The report on a repair, for the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fxprune.files import Field
from fxprune.report.repairs import repair_data, repair_text

_KEYS = "mode layers left before after undone".split()
_OPTIONAL = ("changed",)


@dataclass(frozen=True)
class RepairedLayer:
    """One layer of a repair.

    before, after: the relative squared error of its outputs on held-out samples. ridge: of the regression, None if the
    weight stays. Both errors are equal if the layer stays as it was.
    """

    before: float
    after: float
    ridge: float | None


@dataclass(frozen=True)
class Repair:
    """The report on a repair of a small model.

    mode: "weights", "outputs", "bias" or "norms". layers: name of a parameter -> what happened to its layer, in the
    order of the run. left: name of a parameter -> why its layer could not be refitted. before, after: the relative
    squared error of the model's outputs on held-out samples. undone: the layers whose refit was taken back, since the
    outputs were worse with it. changed: the names of all parameters and buffers that it may have changed, such as the
    bias that a layer adds, whatever its name; None in a record of an old file, which does not know.
    """

    mode: str
    layers: Mapping[str, RepairedLayer]
    left: Mapping[str, str]
    before: float
    after: float
    undone: tuple[str, ...] = field(default=())
    changed: tuple[str, ...] | None = field(default=None, repr=False)

    def following(self, earlier: Repair | None) -> Repair:
        """This repair of a model that had an earlier one: what that has changed counts too."""
        if earlier is None or self.changed is None or earlier.changed is None:
            return self if earlier is None else replace(self, changed=None)
        return replace(self, changed=tuple(dict.fromkeys((*earlier.changed, *self.changed))))

    def __str__(self) -> str:
        made = repair_data(self)
        assert made is not None
        return repair_text(made)


def data_of(repair: Repair) -> dict[str, Any]:
    """Returns it as plain data for JSON."""
    layers = {name: [layer.before, layer.after, layer.ridge] for name, layer in repair.layers.items()}
    errors = {"before": repair.before, "after": repair.after}
    made = {"mode": repair.mode, "layers": layers, "left": dict(repair.left), **errors, "undone": list(repair.undone)}
    return made if repair.changed is None else {**made, "changed": list(repair.changed)}


def repair_of(data: Field) -> Repair:
    """Returns the repair that plain data describe. Raises for other data."""
    data.object(_KEYS, _OPTIONAL)
    layers = {}
    for name, entry in data["layers"].mapping().items():
        parts = entry.items()
        if len(parts) != 3:
            raise entry.wrong("it must be two errors and a ridge")
        ridge = None if parts[2].value is None else float(parts[2].number())
        layers[name] = RepairedLayer(float(parts[0].number()), float(parts[1].number()), ridge)
    return Repair(
        data["mode"].text(),
        layers,
        {name: why.text() for name, why in data["left"].mapping().items()},
        float(data["before"].number()),
        float(data["after"].number()),
        data["undone"].texts(),
        data["changed"].texts() if "changed" in data.mapping() else None,
    )
