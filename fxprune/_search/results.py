"""The results of `sensitivity` and `pareto`: frozen objects, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fxprune._search.drawing import draw
from fxprune.arguments import checks_arguments
from fxprune.files import PathLike, write_text
from fxprune.notebooks import html_table


@dataclass(frozen=True)
class SensitivityPoint:
    """The score when a share of one group's channels goes, and all other groups stay.

    group: its key. ratio: the share that was asked for. channels, kept: how many it has, and how many stay.
    macs: the share of the model's MACs that stays, None where they are not known.
    value: the score of the small model. repaired: that of the repaired one, None where nothing was repaired.
    """

    group: str
    ratio: float
    channels: int
    kept: int
    macs: float | None
    value: float
    repaired: float | None


@dataclass(frozen=True)
class Sensitivity:
    """The score against the ratio, group by group.

    measure: "score", of which more is better, or "error", of which less is better: the relative squared error of the
    outputs against those of the original. whole: that of the original. points: by group, then by ratio.
    """

    measure: str
    whole: float
    points: tuple[SensitivityPoint, ...]

    def table(self) -> str:
        """A row for each group, a column for each ratio; of a repaired model the value stands behind an arrow."""
        return _table(*self._rows(), self._title)

    def _repr_html_(self) -> str:
        rows, head = self._rows()
        return html_table(self._title, head, rows, right=range(1, len(head)))

    def _rows(self) -> tuple[list[list[Any]], list[str]]:
        """The rows of the table, and its head."""
        ratios = list(dict.fromkeys(point.ratio for point in self.points))
        rows = []
        for group, points in _by_group(self.points).items():
            values = {point.ratio: _both(point.value, point.repaired) for point in points}
            rows.append([self._names[group], points[0].channels, *(values.get(ratio, "") for ratio in ratios)])
        return rows, ["group", "channels", *(f"{ratio:.0%}" for ratio in ratios)]

    @property
    def _names(self) -> dict[str, str]:
        """Key of a group -> its short name, or the key where several have that name."""
        short = {key: key.partition("@")[0].removesuffix(":channels") for key in _by_group(self.points)}
        several = {name for name, count in Counter(short.values()).items() if count > 1}
        return {key: key if name in several else name for key, name in short.items()}

    @property
    def _title(self) -> str:
        arrow = ", without and with repair" if any(point.repaired is not None for point in self.points) else ""
        return f"{self.measure} by the share of a group that goes (the original has {_number(self.whole)}){arrow}"

    @checks_arguments()
    def to_json(self, path: PathLike | None = None) -> str:
        """The result as JSON; with a path it is also written there."""
        return _json("fxprune.sensitivity/1", self, path)

    @checks_arguments()
    def plot(self, path: PathLike | None = None, ax: Any = None) -> Any:
        """A line for each group: the score against the ratio, dashed without and full with repair.

        path: also write the picture to this file. ax: axes of matplotlib to draw into. Returns the axes. Raises
        `FxpruneError` if matplotlib is missing.
        """
        lines = []
        for group, points in _by_group(self.points).items():
            ratios = [0.0, *(point.ratio for point in points)]
            repaired = [point.repaired for point in points if point.repaired is not None]
            lines.append(
                (self._names[group], ratios, [self.whole, *(point.value for point in points)], [self.whole, *repaired])
            )
        return draw(lines, "share of the group that goes", self.measure, path, ax)

    def __str__(self) -> str:
        return self.table()


@dataclass(frozen=True)
class ParetoPoint:
    """The score of the small model of one budget.

    budget: as it was asked for. kept: the share of the budget's cost that stays. params, bytes, macs: of the small
    model. value: its score. repaired: that of the repaired one, None where nothing was repaired. met: False if no
    model within the budget can be made, so that the smallest one was taken.
    """

    budget: float | int | str
    kept: float
    params: int
    bytes: int
    macs: int | None
    value: float
    repaired: float | None
    met: bool = True


@dataclass(frozen=True)
class Pareto:
    """The score against a cost.

    key: the cost, such as "macs". measure, whole: as in `Sensitivity`. points: in the order of the budgets.
    """

    key: str
    measure: str
    whole: float
    points: tuple[ParetoPoint, ...]

    def table(self) -> str:
        """A row for each budget."""
        return _table(*self._rows(), self._title)

    def _repr_html_(self) -> str:
        rows, head = self._rows()
        return html_table(self._title, head, rows, right=range(1, len(head)))

    @property
    def _title(self) -> str:
        return f"{self.measure} of the original: {_number(self.whole)}"

    def _rows(self) -> tuple[list[list[Any]], list[str]]:
        """The rows of the table, and its head."""
        repaired = any(point.repaired is not None for point in self.points)
        rows = [
            [
                str(point.budget) + ("" if point.met else " (not met)"),
                f"{point.kept:.1%}",
                point.params,
                point.bytes,
                "" if point.macs is None else point.macs,
                _number(point.value),
                *([_number(point.repaired)] if repaired and point.repaired is not None else []),
            ]
            for point in self.points
        ]
        head = [f"budget ({self.key})", "kept", "params", "bytes", "MACs", self.measure, *["repaired"] * repaired]
        return rows, head

    @checks_arguments()
    def to_json(self, path: PathLike | None = None) -> str:
        """The result as JSON; with a path it is also written there."""
        return _json("fxprune.pareto/1", self, path)

    @checks_arguments()
    def plot(self, path: PathLike | None = None, ax: Any = None) -> Any:
        """The score against the share of the cost that stays, dashed without and full with repair.

        path, ax: as in `Sensitivity.plot`. Returns the axes.
        """
        kept = [1.0, *(point.kept for point in self.points)]
        repaired = [point.repaired for point in self.points if point.repaired is not None]
        lines = [("", kept, [self.whole, *(point.value for point in self.points)], [self.whole, *repaired])]
        return draw(lines, f"share of the {self.key} that stays", self.measure, path, ax)

    def __str__(self) -> str:
        return self.table()


def _by_group(points: Sequence[SensitivityPoint]) -> dict[str, list[SensitivityPoint]]:
    found: dict[str, list[SensitivityPoint]] = {}
    for point in points:
        found.setdefault(point.group, []).append(point)
    return found


def _number(value: float) -> str:
    """A number in four digits."""
    return f"{value:.4g}"


def _both(value: float, repaired: float | None) -> str:
    return _number(value) if repaired is None else f"{_number(value)} -> {_number(repaired)}"


def _table(rows: list[list[Any]], head: list[str], title: str) -> str:
    from tabulate import tabulate  # here, because only tables need it

    return f"{title}\n\n{tabulate(rows, headers=head, disable_numparse=True)}"


def _json(schema: str, result: Sensitivity | Pareto, path: PathLike | None) -> str:
    text = json.dumps({"schema": schema, **asdict(result)}, indent=1, allow_nan=False)
    if path is not None:
        write_text(path, text + "\n")
    return text
