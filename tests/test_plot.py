"""Pictures: their content, read from the axes; the positions of nodes; refusals.

`python tests/test_plot.py --write` draws docs/images/resnet18.png again (`python -m tests.test_plot --write` where
fxprune is not installed).
"""

from __future__ import annotations

import builtins
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import networkx as nx
import pytest
import torch
from matplotlib.patches import FancyArrowPatch, Rectangle
from support import torchvision
from test_golden import NETWORKS
from torch import nn

import fxprune
from fxprune import plot
from fxprune.errors import FxpruneError, InputError
from fxprune.report.layout import arrange

PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "images" / "resnet18.png"

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def residual() -> fxprune.Analysis:
    make, shape = NETWORKS["Residual"]
    return fxprune.analyze(make().eval(), torch.zeros(shape))


def texts(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_layers_and_widths_are_shown() -> None:
    analysis = residual()
    ax = plot.dependencies(analysis, analysis.plan(ratio=0.5))
    shown = texts(ax)
    for layer, change in (("stem", "5 → 3"), ("conv1", "7 → 4"), ("conv3", "4 → 2"), ("head", "2")):
        assert shown[shown.index(layer) + 1] == change
    assert shown.count("+") == 2
    assert {"x", "output"} <= set(shown)
    assert "bn1" not in shown, "a norm is drawn with its layer"
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == [
        "stem: 5 → 3 channels",
        "conv1: 7 → 4 channels",
        "conv3: 4 → 2 channels",
        "keeps all of its channels",
    ]


def test_colours_are_groups_and_heights_are_widths() -> None:
    analysis = residual()
    ax = plot.dependencies(analysis)
    bars = [p for p in ax.patches if isinstance(p, Rectangle)][1::2]  # each is drawn on a white one
    names = [text for text in texts(ax) if text in dict(analysis.model.named_modules())]
    shown = dict(zip(names, bars, strict=True))
    assert shown["stem"].get_facecolor() == shown["conv2"].get_facecolor() != shown["conv1"].get_facecolor()
    assert shown["conv3"].get_facecolor() == shown["shortcut"].get_facecolor()
    heights = {name: bar.get_height() ** 2 for name, bar in shown.items()}
    assert heights["conv1"] / heights["stem"] == pytest.approx(7 / 5)
    assert heights["head"] / heights["conv3"] == pytest.approx(2 / 4)


def test_every_edge_is_an_arrow() -> None:
    analysis = residual()
    ax = plot.dependencies(analysis)
    arrows = [p for p in ax.patches if isinstance(p, FancyArrowPatch)]
    # x, stem to conv1 and the sum, conv1 to conv2 to the sum, it to conv3 and shortcut, both to a sum, head, output
    assert len(arrows) == 1 + 2 + 2 + 2 + 2 + 1 + 1


def test_pictures_are_written(tmp_path: pathlib.Path) -> None:
    analysis = residual()
    for ending, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        path = tmp_path / f"picture{ending}"
        plot.dependencies(analysis, path=path)
        assert path.read_bytes().startswith(start)
    figure, ax = plt.subplots()
    assert plot.dependencies(analysis, ax=ax) is ax
    assert plt.get_fignums()[-1] == figure.number


def test_a_picture_that_cannot_be_written_says_what_can(tmp_path: pathlib.Path) -> None:
    analysis = residual()
    with pytest.raises(InputError, match="the picture cannot be written") as raised:
        plot.dependencies(analysis, path=tmp_path / "picture.xyz")
    assert "Format 'xyz' is not supported" in raised.value.why
    assert ".png, .svg or .pdf" in raised.value.do
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        plot.dependencies(analysis, path=tmp_path / "nothing" / "picture.png")


def test_widths_before_and_after(tmp_path: pathlib.Path) -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    small = fxprune.transform(net, torch.randn(1, 3), ratio={"0": 0.5, "2": 1 / 3})
    for given in (small, fxprune.record(small)):
        ax = plot.widths(given, path=tmp_path / "widths.png")
        before, after = ax.containers
        assert [bar.get_width() for bar in before] == [8, 6, 2]
        assert [bar.get_width() for bar in after] == [4, 4, 2]
        assert texts(ax) == [" 8 → 4", " 6 → 4", " 2"]
        assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "2", "4"]
    assert (tmp_path / "widths.png").stat().st_size > 1000


def test_widths_are_those_of_outputs() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 5, 1)).eval()
    small = fxprune.transform(net, torch.randn(1, 3, 4, 4), ratio=0.5)
    assert texts(plot.widths(small)) == [" 8 → 4", " 5"]
    assert texts(plot.widths(fxprune.record(small))) == [" 3", " 8 → 4"]


def test_an_object_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(InputError, match="analysis must be a value of type Analysis, not Linear"):
        plot.dependencies(nn.Linear(2, 3))
    with pytest.raises(FxpruneError, match="this Linear has no record"):
        plot.widths(nn.Linear(2, 3))
    with pytest.raises(FxpruneError, match="there are no widths to draw"):
        plot.widths(fxprune.Record("fx", {}, True, {"0.weight": (2, 3)}, {"0.weight": (2, 3)}))
    with pytest.raises(fxprune.PlanError, match="the plan is for another model"):
        plot.dependencies(residual(), fxprune.Plan({"nowhere": {0: [1]}}))


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    for draw in (lambda: plot.dependencies(residual()), lambda: plot.widths(nn.Linear(2, 3))):
        with pytest.raises(FxpruneError, match="pictures need matplotlib") as caught:
            draw()
        assert "pip install 'fxprune[plot]'" in str(caught.value)


# -- where nodes stand ----------------------------------------------------------------------------------------


def test_a_node_stands_right_of_all_that_reach_it() -> None:
    graph = nx.DiGraph()
    graph.add_nodes_from("abpcd")
    graph.add_edges_from([("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("p", "d")])
    placed = {node.node: (node.row, node.column, node.lane) for node in arrange(graph, 9).nodes}
    assert placed == {"a": (0, 0, 0), "b": (0, 1, 0), "c": (0, 2, 0), "p": (0, 2, 1), "d": (0, 3, 0)}


def test_branches_keep_their_lanes() -> None:
    graph = nx.DiGraph([("a", "b1"), ("a", "b2"), ("b2", "c2"), ("b1", "d"), ("c2", "d")])
    lanes = {node.node: node.lane for node in arrange(graph, 9).nodes}
    assert lanes == {"a": 0, "b1": 0, "b2": 1, "c2": 1, "d": 0}


def test_rows_end_where_all_goes_through_one_node() -> None:
    edges = [(k, k + 1) for k in range(12)] + [(4, 6), (8, 10)]
    graph = nx.DiGraph([(str(a), str(b)) for a, b in edges])
    layout = arrange(graph, 6)
    rows: dict[int, list[str]] = {}
    for node in layout.nodes:
        rows.setdefault(node.row, []).append(node.node + ("'" if node.repeated else ""))
    assert rows == {0: ["0", "1", "2", "3", "4"], 1: ["4'", "5", "6", "7", "8"], 2: ["8'", "9", "10", "11", "12"]}
    for before, after in layout.edges:
        assert layout.nodes[before].row == layout.nodes[after].row
    named = {(layout.nodes[a].node, layout.nodes[b].node) for a, b in layout.edges}
    assert named == set(graph.edges)


def test_loops_are_drawn_too() -> None:
    graph = nx.DiGraph([("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")])
    layout = arrange(graph, 9)
    assert len(layout.edges) == 4
    assert [node.column for node in layout.nodes] == [0, 1, 2, 3]


def draw(path: pathlib.Path) -> None:
    """The picture of the README: ResNet-18, two fifths of every group gone."""
    torch.manual_seed(0)
    model = torchvision().models.resnet18(weights=None).eval()
    analysis = fxprune.analyze(model, torch.randn(1, 3, 224, 224))
    plot.dependencies(analysis, analysis.plan(ratio=0.4), path=path)


def test_the_picture_of_the_readme(tmp_path: pathlib.Path) -> None:
    """It is there, small, and of the size that is drawn today."""
    draw(tmp_path / "resnet18.png")
    now, then = (plt.imread(path) for path in (tmp_path / "resnet18.png", PICTURE))
    assert abs(now.shape[0] - then.shape[0]) < 30
    assert abs(now.shape[1] - then.shape[1]) < 30
    assert PICTURE.stat().st_size < 150_000


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PICTURE.parent.mkdir(exist_ok=True)
        draw(PICTURE)
