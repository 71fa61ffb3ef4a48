"""The part of a record's report that tells of a repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fxprune.report.repeats import merge_repeats, merge_tensors, stands_for


@dataclass(frozen=True)
class RefitData:
    """A layer that was refitted: the relative squared error of its outputs before and after, and the ridge."""

    name: str
    before: float
    after: float
    ridge: float | None


@dataclass(frozen=True)
class RepairData:
    """A repair. before, after: the relative squared error of the model's outputs on held-out samples.

    left: name of a parameter -> why its layer could not be refitted. undone: the layers whose refit was taken back.
    """

    mode: str
    before: float
    after: float
    layers: tuple[RefitData, ...]
    left: Mapping[str, str]
    undone: tuple[str, ...]


class Repaired(Protocol):
    """The attributes of a repair that its report uses."""

    @property
    def mode(self) -> str: ...  # noqa: D102
    @property
    def before(self) -> float: ...  # noqa: D102
    @property
    def after(self) -> float: ...  # noqa: D102
    @property
    def layers(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def left(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def undone(self) -> Sequence[str]: ...  # noqa: D102


def repair_data(repair: Repaired | None) -> RepairData | None:
    """The contents of the report of a repair."""
    if repair is None:
        return None
    layers = tuple(RefitData(name, layer.before, layer.after, layer.ridge) for name, layer in repair.layers.items())
    return RepairData(repair.mode, repair.before, repair.after, layers, dict(repair.left), tuple(repair.undone))


def worse_than_zeros(repair: Repaired | RepairData) -> str:
    """A sentence about outputs that are farther from those of the original than zeros are, "" if they are not."""
    if repair.after <= 1:
        return ""
    mode = "" if repair.mode == "outputs" else ', try the repair mode "outputs"'
    return (
        f"the relative squared error of the outputs is {repair.after:.2e} after the repair: above 1, they are farther "
        f"from those of the original than zeros are. Let less go, repair with more samples{mode}, or train the model"
    )


def repair_text(data: RepairData, shapes: Mapping[str, Any] | None = None, *, markdown: bool = False) -> str:
    """A row for every layer with its errors, the errors of the outputs, and what was left or taken back.

    Layers of equal blocks share a row, with the least and the largest error of them. shapes: name of a parameter ->
    its shapes; without them each layer has a row.
    """
    from tabulate import tabulate  # here, because only reports need it

    rows = [_row(name, layers) for name, layers in _folded(data.layers, shapes)]
    parts = []
    if rows:
        style, aligned = "github" if markdown else "simple", ("left", "right", "right", "right")
        headers = ("layer", "error before", "error after", "ridge")
        parts.append(tabulate(rows, headers=headers, tablefmt=style, colalign=aligned, disable_numparse=True))
    lines = [f"outputs: {data.before:.2e}, after the repair {data.after:.2e}"]
    lines += filter(None, [worse_than_zeros(data)])
    if len(rows) < len(data.layers):
        worst = max(data.layers, key=lambda layer: layer.after)
        lines.append(f"the largest error of a layer after the repair: {worst.name}, {worst.after:.2e}")
    if data.undone:
        lines.append(f"taken back, since the outputs were worse: {', '.join(data.undone)}")
    lines += [f"{name}: left as it is; {why}" if name else why for name, why in merge_repeats([*data.left.items()])]
    return ("\n\n" if markdown else "\n").join([*parts, ("  \n" if markdown else "\n").join(lines)])


def _folded(layers: Sequence[RefitData], shapes: Mapping[str, Any] | None) -> list[tuple[str, list[RefitData]]]:
    """Each row of the table: its name, and the layers that it stands for."""
    if shapes is None:
        return [(layer.name, [layer]) for layer in layers]
    names = merge_tensors((layer.name for layer in layers), shapes)
    return [(name, [layer for layer in layers if stands_for(name, layer.name)]) for name in names]


def _row(name: str, layers: Sequence[RefitData]) -> tuple[str, str, str, str]:
    before, after = (_range(errors) for errors in ([one.before for one in layers], [one.after for one in layers]))
    ridges = [one.ridge for one in layers if one.ridge is not None]
    few = f" ({len(ridges)} of {len(layers)})" if 0 < len(ridges) < len(layers) else ""
    return name, before, after, f"{_range(ridges, 'g')}{few}" if ridges else ""


def _range(numbers: Sequence[float], form: str = ".2e") -> str:
    """The least and the largest number.

    >>> _range([0.5, 0.25]), _range([1.0], "g")
    ('2.50e-01 to 5.00e-01', '1')
    """
    least, largest = format(min(numbers), form), format(max(numbers), form)
    return least if least == largest else f"{least} to {largest}"
