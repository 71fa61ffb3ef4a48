"""The tables of docs/benchmarks.md and the figures of the picture in docs/choosing.md, from the measured lines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.choosing.run import RESULTS, Results
from tests.benchmarks.common import table

FIGURES = Path(__file__).parents[3] / "docs" / "images" / "accuracy.json"
PEER, NAS, OURS = "torch-pruning", "FastNAS", "fxprune"
Lines = Sequence[dict[str, Any]]

TITLES = {
    "resnet": "ResNet of width 32, digits",
    "vgg": "VGG-like of width 24, digits",
    "vit": "vision transformer of width 64, digits",
    "signals": "1-D ResNet of width 10, mnist1d",
    "crepe": "CREPE tiny, pretrained, tones",
    "minilm": "MiniLM, pretrained: cosine / same ten nearest neighbours",
}
STAGES = {"one-shot": "as cut", "statistics": "own statistics", "repaired": "repaired", "outputs": "repaired (outputs)"}


def of(lines: Lines, task: str, budget: str, tool: str, way: str, stage: str) -> list[list[float]]:
    """The scores of all seeds, each with one or several figures."""
    key = (task, budget, tool, way)
    found = [line for line in lines if (line["task"], line["budget"], line["tool"], line["way"]) == key]
    return [line["scores"][stage] for line in found if stage in line.get("scores", {})]


def mean(scores: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """The mean over seeds, of each figure."""
    return tuple(statistics.fmean(some) for some in zip(*scores, strict=True))


def best(lines: Lines, task: str, budget: str, tool: str, stage: str) -> tuple[str, list[list[float]]] | None:
    """The way of a tool with the best mean on the test set, among those that have most seeds, and its scores."""
    ways = dict.fromkeys(line["way"] for line in lines if (line["task"], line["tool"]) == (task, tool))
    found = {way: of(lines, task, budget, tool, way, stage) for way in ways}
    most = max(map(len, found.values()), default=0)
    whole = {way: scores for way, scores in found.items() if scores and len(scores) == most}
    return max(whole.items(), key=lambda item: mean(item[1])) if whole else None


def shown(found: tuple[str, list[list[float]]] | None, *, named: bool = True) -> str:
    """A cell: the mean, the way, the number of seeds if it is not three."""
    if found is None:
        return "-"
    way, scores = found
    figures = " / ".join(f"{figure:.1f}" for figure in mean(scores))
    seeds = "" if len(scores) == 3 else f", {len(scores)} seed" + "s" * (len(scores) > 1)
    return f"{figures} ({way}{seeds})" if named else f"{figures}{seeds}"


def report(lines: Lines) -> str:
    """One table per model: rows are budgets, columns are tools and what was done after the cut."""
    parts = []
    for task, title in TITLES.items():
        own = [line for line in lines if line["task"] == task]
        whole = of(own, task, "100 %", "", "unpruned", "one-shot")
        budgets = list(dict.fromkeys(line["budget"] for line in own if line["tool"]))
        rows: list[tuple[str, ...]] = []
        for budget in budgets:
            cells = [shown(best(own, task, budget, PEER, stage)) for stage in ("one-shot", "statistics")]
            cells.append(shown(best(own, task, budget, NAS, "statistics"), named=False))
            cells += [shown(best(own, task, budget, OURS, stage)) for stage in STAGES]
            if any(cell != "-" for cell in cells):
                rows.append((budget, *cells))
        if not rows:
            continue
        headers = ["MACs left", *(f"{PEER}, {STAGES[stage]}" for stage in ("one-shot", "statistics"))]
        headers += [f"{NAS}, {STAGES['statistics']}", *(f"{OURS}, {stage}" for stage in STAGES.values())]
        kept = [i for i in range(len(headers)) if not i or any(row[i] != "-" for row in rows)]
        some = table([headers[i] for i in kept], [[row[i] for i in kept] for row in rows])
        seeds = f"{len(whole)} seed" + "s" * (len(whole) > 1)
        figures = " / ".join(f"{figure:.1f} %" for figure in mean(whole))
        parts.append(f"{title}; unpruned {figures} ({seeds}):\n\n{some}")
    return "\n\n".join([*parts, _trained(lines), *_failures(lines)])


def _trained(lines: Lines) -> str:
    """The scores after two epochs of training, of each way at the budget where that is measured."""
    rows = []
    for tool, way in dict.fromkeys((line["tool"], line["way"]) for line in lines if line["task"] == "resnet"):
        stages = [f"{stage}, trained" for stage in ("one-shot", "repaired", "outputs")]
        found = [of(lines, "resnet", "15 %", tool, way, stage) for stage in stages]
        if any(found):
            rows.append((f"{tool}, {way}", *(shown(("", one), named=False) if one else "-" for one in found)))
    headers = ("choice", "as cut, then trained", "repaired, then trained", "repaired (outputs), then trained")
    return "The ResNet at 15 % of the MACs, then trained for two epochs:\n\n" + table(headers, rows)


def _failures(lines: Lines) -> list[str]:
    """Sentences about what a tool could not do."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for line in lines:
        if "failed" in line:
            found.setdefault((line["tool"], line["task"], line["failed"]), set()).add(
                f"{line['way']}, {line['budget']}"
            )
    return [f"{tool} on `{task}` ({'; '.join(sorted(what))}): {why}" for (tool, task, why), what in found.items()]


CURVES: dict[str, tuple[str, str | None, str]] = {
    "fxprune, l2, repaired (outputs)": (OURS, "l2", "outputs"),
    "fxprune, l2, repaired": (OURS, "l2", "repaired"),
    "fxprune, l2, as cut": (OURS, "l2", "one-shot"),
    "Torch-Pruning, best of 16, own statistics": (PEER, None, "statistics"),
    "Torch-Pruning, best of 16, as cut": (PEER, None, "one-shot"),
    "FastNAS, own statistics": (NAS, None, "statistics"),
}
"""Name of a curve -> tool, way (None: the best one), and what was done after the cut."""


def curves(lines: Lines) -> str:
    """The figures of the picture, of the ResNet and its first seed, as JSON."""
    own = [line for line in lines if line["task"] == "resnet" and line["seed"] == 0]
    budgets = ["50 %", "30 %", "15 %", "8 %", "5 %"]
    made: dict[str, list[list[float]]] = {}
    for name, (tool, way, stage) in CURVES.items():
        for budget in reversed(budgets):
            chosen = way or (best(own, "resnet", budget, tool, stage) or ("",))[0]
            line = next(one for one in own if (one["tool"], one["way"], one["budget"]) == (tool, chosen, budget))
            made.setdefault(name, []).append([line["kept"], line["scores"][stage][0]])
    whole = of(own, "resnet", "100 %", "", "unpruned", "one-shot")[0][0]
    text = ",\n".join(f"  {json.dumps(name)}: {json.dumps(points)}" for name, points in made.items())
    shares = [float(budget.split()[0]) / 100 for budget in budgets]
    return f'{{\n "unpruned": {whole},\n "budgets": {json.dumps(shares)},\n "curves": {{\n{text}\n }}\n}}\n'


def measure() -> str:
    """The tables, from the lines that `run.py` has written."""
    return report(Results(RESULTS).lines)


def write(into: Callable[[str], Any] = FIGURES.write_text) -> None:
    """Write the figures of the picture."""
    into(curves(Results(RESULTS).lines))


if __name__ == "__main__":
    write()
