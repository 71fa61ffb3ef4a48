"""Tables that a notebook shows of an analysis, a plan, a record and a group: HTML without scripts."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

import fxprune
from fxprune import Pareto, Sensitivity, Summary
from fxprune._search.results import ParetoPoint, SensitivityPoint
from fxprune._summary import ModelFigures
from fxprune.notebooks import MOST, html_table


class Table(HTMLParser):
    """The title, the rows of the table, and what stands below it. Fails at tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.told: list[str] = []
        self.tags: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)
        assert self.tags == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert {name for name, _ in attrs} <= {"style"}
        self.tags.append(tag)
        self.seen.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "p":
            self.told.append("")
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.tags):
            self.rows[-1][-1] += data
        else:
            self.told[-1] += data


@pytest.fixture
def found() -> fxprune.Analysis:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    return fxprune.analyze(net, torch.randn(1, 3, 8, 8))


def test_an_analysis_shows_its_groups(found: fxprune.Analysis) -> None:
    made = Table(found._repr_html_())
    locked = "Locked: channels that stay, and why"
    assert made.told == ["Sequential: 532 parameters, 12384 MACs, 8 channels in 1 group", locked]
    assert made.rows[1] == ["0", "channels", "8", "1 producer, 1 norm, 1 consumer", "66", "1548", "yes"]
    (held,) = (row for row in made.rows if row[1] == "output")
    assert held[3:6] == ["output of the model", "3.weight[0], 3.bias[0]", "292"]


def test_a_group_shows_its_tensors(found: fxprune.Analysis) -> None:
    made = Table(found.groups[0]._repr_html_())
    assert made.told == ["0: 8 channels, exact"]
    assert made.rows[0] == ["tensor", "dim", "role", "shape", "slots"]
    assert made.rows[1] == ["0.weight", "0", "producer", "8 x 3 x 3 x 3", "8"]
    assert [row[0] for row in made.rows[1:]] == [member.parameter for member in found.groups[0].members]


def test_a_plan_shows_what_goes(found: fxprune.Analysis) -> None:
    plan = found.plan(ratio=0.5)
    made = Table(plan._repr_html_())
    assert made.told == [f"Plan: removes from {len(plan.removed)} tensors"]
    assert made.rows[1:3] == [["0.weight", "0", "4 of 8"], ["0.bias", "0", "4 of 8"]]
    assert len(made.rows) == 1 + len(plan.removed)
    by_hand = Table(fxprune.Plan({"0.weight": {0: [1]}})._repr_html_())
    assert by_hand.rows[1] == ["0.weight", "0", "1"]
    assert Table(fxprune.Plan({})._repr_html_()).told == ["Plan: removes nothing"]


def test_a_record_shows_the_layers_that_changed(found: fxprune.Analysis) -> None:
    record = fxprune.record(found.transform(ratio=0.5))
    made = Table(record._repr_html_())
    params = found.cost().params, found.cost(record.plan).params
    assert made.told[0].startswith(f"Small model: {params[0]} -> {params[1]} (")
    assert f"relative error {record.error:.1e}" in made.told[0]
    assert made.rows[1][:2] == ["0", "8 x 3 x 3 x 3 -> 4 x 3 x 3 x 3"]
    assert "not compared" in Table(fxprune.record(found.transform(ratio=0.5, verify=False))._repr_html_()).told[0]


def test_the_results_of_searches_and_a_summary_are_tables_and_their_pictures_are_shown(
    found: fxprune.Analysis, tmp_path: Path
) -> None:
    curve, kept = Sensitivity("score", 0.5, (SensitivityPoint("0", 0.5, 8, 4, 0.5, 0.25, None),)), 0.5
    front = Pareto("macs", "score", 0.5, (ParetoPoint(0.5, kept, 266, 1064, 6192, 0.25, None),))
    made = Table(curve._repr_html_())
    assert made.told == ["score by the share of a group that goes (the original has 0.5)"]
    assert made.rows == [["group", "channels", "50%"], ["0", "8", "0.25"]]
    assert Table(front._repr_html_()).rows[1] == ["0.5", "50.0%", "266", "1064", "6192", "0.25"]
    figures = ModelFigures(532, 2128, 12384, 64), ModelFigures(266, 1064, 6192, 32)
    made = Table(Summary(*figures)._repr_html_())
    assert made.told == ["Summary: 532 -> 266 parameters"]
    assert made.rows[3] == ["MACs", "12384", "6192", "50.0%"]
    for one in (curve, front):
        plt.close("all")
        one.plot(tmp_path / "found.png")
        assert not plt.get_fignums()
        assert one.plot().figure.number in plt.get_fignums()
    plt.close("all")


def test_texts_are_escaped_and_long_tables_say_how_many_rows_more_there_are() -> None:
    evil = "<script>alert('x')</script>&"
    made = Table(html_table(f"a: {evil}", ["h"], [[evil]] * (MOST + 3)))
    assert made.told == [f"a: {evil}", "3 more"]
    assert len(made.rows) == 1 + MOST
    assert made.rows[1] == [evil]
    assert "script" not in made.seen
    assert "table" not in Table(html_table("a", ["h"], [])).seen


def test_the_colours_are_those_of_the_notebook(found: fxprune.Analysis) -> None:
    text = found._repr_html_()
    assert "#" not in text
    assert "color:inherit" in text
    assert "<script" not in text
