"""Pictures: their content, read from the axes; the positions of nodes; refusals.

`python -m tests.test_plot --write` draws docs/images/resnet18.png again.
"""

from __future__ import annotations

import builtins
import itertools
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
from torch import nn

import fxprune
from fxprune import plot
from fxprune.errors import FxpruneError, InputError
from fxprune.report.drawing import Box, Drawing
from fxprune.report.layout import arrange
from fxprune.report.names import told_apart
from tests.support import torchvision
from tests.test_golden import NETWORKS

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
        "1  stem: 5 → 3 channels",
        "2  conv1: 7 → 4 channels",
        "3  conv3: 4 → 2 channels",
        "outputs all locked: only channels that it reads can go",
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


def test_no_two_groups_have_the_same_colour_and_pattern() -> None:
    sizes = range(3, 38)
    net = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))).eval()
    ax = plot.dependencies(fxprune.analyze(net, torch.randn(1, 3)))
    drawn = [p for p in ax.patches if isinstance(p, Rectangle)][1::2]
    looks = {(p.get_facecolor()[:3], p.get_hatch()) for p in drawn}  # the first of a row again is faint
    assert len(looks) == 34
    assert len({colour for colour, _ in looks}) == 17
    assert {(p.get_facecolor()[:3], p.get_hatch()) for p in ax.get_legend().get_patches()} == looks


class Block(nn.Module):
    """Attention by hand with two heads of three, and an MLP."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query_key_value, self.proj = nn.Linear(6, 18), nn.Linear(6, 6)
        self.up, self.down = nn.Linear(6, hidden), nn.Linear(hidden, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.query_key_value(x).reshape(*x.shape[:2], 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj((torch.softmax(q @ k.mT, -1) @ v).transpose(1, 2).flatten(2))
        return x + self.down(torch.relu(self.up(x)))


def blocks(*hidden: int) -> fxprune.Analysis:
    net = nn.Sequential(nn.Linear(4, 6), nn.Sequential(*map(Block, hidden)), nn.Linear(6, 2)).eval()
    return fxprune.analyze(net, torch.randn(1, 5, 4))


def legend_of(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_layer_has_a_stripe_and_a_number_for_each_of_its_groups() -> None:
    ax = plot.dependencies(blocks(8))
    assert legend_of(ax) == [
        "1  0: 6 channels",
        "2  1.0.query_key_value: 2 heads",
        "3  1.0.query_key_value: 3 head width",
        "4  1.0.up: 8 channels",
        "outputs all locked: only channels that it reads can go",
    ]
    shown = texts(ax)
    at = shown.index("1.0.query_key_value")
    assert shown[at : at + 4] == ["1.0.query_key_value", "18", "2", "3"]
    bars = [p for p in ax.patches if isinstance(p, Rectangle)][1::2]
    wide = sorted(bar.get_width() for bar in bars)
    assert wide[0] == pytest.approx(wide[-1] / 2)
    assert len({bar.get_facecolor()[:3] for bar in bars}) == 5  # four groups and grey


def test_equal_blocks_in_a_row_are_drawn_once() -> None:
    analysis = blocks(8, 8, 8, 8)
    ax = plot.dependencies(analysis, analysis.plan(ratio=0.5))
    assert "x 4 blocks" in texts(ax)
    assert texts(ax).count("1.0.up") == 1
    assert not any("1.1" in text for text in texts(ax))
    assert "4  1.0-3.up: 8 → 4 channels" in legend_of(ax)
    arrows = [p for p in ax.patches if isinstance(p, FancyArrowPatch)]
    assert len(arrows) == len([p for p in plot.dependencies(blocks(8)).patches if isinstance(p, FancyArrowPatch)]) + 1


@pytest.mark.parametrize(
    ("hidden", "marks", "drawn"),
    [
        ((9, 8, 8, 8), ["x 3 blocks"], ["1.0.up", "1.1.up"]),
        ((8, 9, 9), [], ["1.0.up", "1.1.up", "1.2.up"]),
        ((8, 8, 8, 9, 9, 9, 9), ["x 3 blocks", "x 4 blocks"], ["1.0.up", "1.3.up"]),
    ],
)
def test_blocks_that_differ_are_drawn(hidden: tuple[int, ...], marks: list[str], drawn: list[str]) -> None:
    shown = texts(plot.dependencies(blocks(*hidden)))
    assert sorted(text for text in set(shown) if text.startswith("x ")) == marks  # some are drawn in two rows
    assert [text for text in shown if text.endswith(".up")] == drawn


class Collected(nn.Module):
    """Equal blocks in a row, each of whose results is read at the end as well."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)) for _ in range(3))
        self.head = nn.Linear(18, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = []
        for block in self.blocks:
            x = block(x)
            seen.append(x)
        return self.head(torch.cat(seen, -1))


def test_blocks_whose_results_are_read_elsewhere_are_drawn() -> None:
    shown = texts(plot.dependencies(fxprune.analyze(Collected().eval(), torch.ones(1, 6))))
    assert not [text for text in shown if text.startswith("x ")]
    assert {f"blocks.{number}.2" for number in range(3)} <= set(shown)


def test_blocks_of_unlike_plans_and_unfolded_ones_are_drawn() -> None:
    analysis = blocks(8, 8, 8)
    plan = analysis.plan(ratio={"1.1.up": 0.5})
    for ax in (plot.dependencies(analysis, plan), plot.dependencies(analysis, folded=False)):
        assert [text for text in texts(ax) if text.endswith(".up")] == ["1.0.up", "1.1.up", "1.2.up"]


def test_layers_that_are_no_blocks_are_drawn() -> None:
    net = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(5)))
    assert [t for t in texts(plot.dependencies(fxprune.analyze(net, torch.ones(1, 4)))) if t.endswith(".0")] == [
        f"{number}.0" for number in range(5)
    ]


def test_legends_are_whole_and_names_keep_their_numbers() -> None:
    net = nn.Sequential(*(nn.ModuleDict({"a_long_name": nn.Linear(4 + n, 5 + n)})["a_long_name"] for n in range(30)))
    outer = nn.ModuleDict({"first_part": nn.ModuleDict({"second_part": net})})

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = outer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts["first_part"]["second_part"](x)

    ax = plot.dependencies(fxprune.analyze(Net().eval(), torch.ones(1, 4)))
    assert len(legend_of(ax)) == 30  # 29 groups, and the output
    shown = [text for text in texts(ax) if text.startswith("…")]
    assert len(set(shown)) == 30
    assert "…second_part.17" in shown


def test_details_are_written_on_request() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, (3, 5), stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).eval()
    ax = plot.dependencies(fxprune.analyze(net, torch.ones(1, 3, 9, 9)), details=True)
    shown = texts(ax)
    assert "4\nConv2d 3x5 / 2x2\n1 x 4 x 4 x 3\n184 params\n2160 MACs" in shown
    assert "2\nLinear\n1 x 2\n98 params\n96 MACs" in shown
    long = type("NonDynamicallyQuantizableLinear", (nn.Linear,), {})
    ax = plot.dependencies(fxprune.analyze(nn.Sequential(long(3, 2)), torch.ones(1, 3)), details=True)
    assert "2\nNonDynam…bleLinear\n1 x 2\n8 params\n6 MACs" in texts(ax)


def test_details_have_no_shape_where_a_layer_gives_several() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x)[..., :2]).relu()

    ax = plot.dependencies(fxprune.analyze(Twice().eval(), torch.ones(1, 3, 4, 4)), details=True)
    assert any(text.startswith("3\nConv2d 1x1\n12 params") for text in texts(ax))


def test_long_names_of_operations_and_inputs_fit_their_column() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, a_mask_of_the_encoder: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.smooth_l1_loss(self.one(a_mask_of_the_encoder), self.two(x), reduction="none")

    ax = plot.dependencies(fxprune.analyze(Net().eval(), (torch.ones(1, 4), torch.ones(1, 4))))
    sizes = {text.get_text(): text.get_fontsize() for text in ax.texts}
    assert sizes["a_mas…e_encoder"] == pytest.approx(8 * 10 / 15)
    assert sizes["smooth_l1_loss"] < sizes["output"] == 8


def test_names_that_fit_in_smaller_letters_are_whole() -> None:
    net = nn.Sequential()
    for name, size in (("layer2_0_downsample_0", 4), ("a_name_of_18_chars", 5), ("a_name_of_22_characters", 6)):
        net.add_module(name, nn.Linear(size, size + 1))
    ax = plot.dependencies(fxprune.analyze(net.eval(), torch.randn(1, 4)))
    sizes = {text.get_text(): text.get_fontsize() for text in ax.texts}
    assert sizes["layer2_0_downsample_0"] == 6
    assert sizes["a_name_of_18_chars"] == 7
    assert "a_name_of_22_characters" not in sizes


def test_equal_ends_of_names_are_told_apart_by_their_beginning() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder_blocks, self.decoder_blocks = (
                nn.ModuleList(nn.ModuleDict({"conv_in": nn.Linear(4, 4)}) for _ in range(2)) for _ in range(2)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in (*self.encoder_blocks, *self.decoder_blocks):
                x = torch.relu(block["conv_in"](x))
            return x

    shown = texts(plot.dependencies(fxprune.analyze(Net().eval(), torch.ones(1, 4))))
    assert [text for text in shown if "conv_in" in text] == [f"{c}…{n}.conv_in" for c in ("enc", "dec") for n in (0, 1)]


@pytest.mark.parametrize("end", ["conv1", "time_emb_proj", "relative_position_bias"])
def test_names_in_two_numbered_blocks_keep_both_numbers_where_they_are_needed(end: str) -> None:
    names = [f"{a}_blocks.{i}.resnets.{j}.{end}" for a in ("down", "up") for i in (0, 11) for j in (0, 10)]
    assert len(set(told_apart(names).values())) == len(names)


def test_rows_of_repeated_blocks_are_one_bar() -> None:
    analysis = blocks(8, 8, 8)
    small = analysis.transform(ratio={"*.up": 0.5}, verify=False)
    for given in (small, fxprune.record(small)):
        ax = plot.widths(given)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["1.0-2.up", "1.0-2.down"]
        assert texts(ax) == [" 8 → 4", " 6"]


def test_a_parameter_of_ones_own_is_drawn_by_the_dimension_that_changed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
            self.token = nn.Parameter(torch.ones(1, 1, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.first(x) + self.token))

    small = fxprune.transform(Net().eval(), torch.ones(1, 3, 4), ratio=0.5)
    for given in (small, fxprune.record(small)):
        ax = plot.widths(given)
        assert dict(zip([t.get_text() for t in ax.get_yticklabels()], texts(ax), strict=True))["token"] == " 8 → 4"


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


class Both(nn.Module):
    """A recurrent layer in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.LSTM(3, 10, bidirectional=True, batch_first=True), nn.Linear(20, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.layer(x)[0])


def test_the_width_of_a_recurrent_layer_is_that_of_its_outputs() -> None:
    analysis = fxprune.analyze(Both().eval(), torch.randn(2, 5, 3))
    plan = analysis.plan(ratio=0.5)
    small = analysis.transform(plan, verify=False)
    for given in (small, fxprune.record(small)):
        ax = plot.widths(given)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["layer", "last"]
        assert texts(ax) == [" 20 → 10", " 2"]
    shown = texts(plot.dependencies(analysis, plan))
    assert shown[shown.index("layer") + 1] == "20 → 10"


def test_an_object_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(InputError, match="a Linear is no analysis"):
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


def test_a_node_stands_in_no_lane_in_which_another_edge_passes() -> None:
    graph = nx.DiGraph()
    graph.add_nodes_from(["a", "p", "*", "b", "e", "+", "sum"])
    graph.add_edges_from([("a", "*"), ("p", "*"), ("*", "b"), ("b", "+"), ("e", "+"), ("+", "sum"), ("p", "sum")])
    lanes = {node.node: node.lane for node in arrange(graph, 9).nodes}
    assert (lanes["p"], lanes["e"]) == (1, 2)


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


def test_an_input_stands_left_of_its_reader_though_that_is_known_first() -> None:
    graph = nx.DiGraph()
    graph.add_nodes_from(["proj", "IN", "next", "last"])
    graph.add_edges_from([("IN", "proj"), ("proj", "next"), ("next", "last")])
    column = {node.node: node.column for node in arrange(graph, 9).nodes}
    assert column["IN"] < column["proj"] < column["last"]


def test_layers_that_one_early_node_feeds_stand_by_their_late_readers() -> None:
    chain = [str(n) for n in range(24)]
    graph = nx.DiGraph()
    graph.add_nodes_from(["time", "early", "late", *chain])
    graph.add_edges_from([("time", "early"), ("time", "late"), ("early", "5"), ("late", "20"), ("time", "1")])
    graph.add_edges_from(itertools.pairwise(chain))
    found = {node.node: (node.row, node.column) for node in arrange(graph, 9).nodes if not node.repeated}
    assert found["early"] == (0, 1)
    assert found["late"] == (found["20"][0], found["20"][1] - 1)


def test_no_row_has_the_output_alone() -> None:
    for length in range(5, 40):
        chain = [str(n) for n in range(length)]
        layout = arrange(nx.DiGraph(itertools.pairwise(chain)), 9)
        last = [node.node for node in layout.nodes if node.row == len(layout.lanes) - 1 and not node.repeated]
        assert len(last) > 1, length


def test_loops_are_drawn_too() -> None:
    graph = nx.DiGraph([("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")])
    layout = arrange(graph, 9)
    assert len(layout.edges) == 4
    assert [node.column for node in layout.nodes] == [0, 1, 2, 3]


def ways(edges: list[str]) -> tuple[Drawing, dict[str, list[tuple[float, float]]]]:
    """A drawing of boxes, of which those named in capitals are operations, and the points of each edge."""
    known = nx.DiGraph([tuple(edge.split("-")) for edge in edges])
    graph = nx.DiGraph()
    graph.add_nodes_from(nx.lexicographical_topological_sort(known, key=lambda node: (node.isupper(), node)))
    graph.add_edges_from(known.edges)
    boxes = {node: Box(node, None if node.isupper() else 8, None if node.isupper() else 8) for node in graph}
    drawing = Drawing(arrange(graph, 20), boxes, {}, False)
    names = [node.node for node in drawing.layout.nodes]
    return drawing, {f"{names[a]}-{names[b]}": drawing.way(a, b) for a, b in drawing.layout.edges}


@pytest.mark.parametrize(
    "edges",
    [
        ["patch-CAT", "cls-CAT", "CAT-ADD", "pos-ADD", "ADD-head"],
        ["a-b", "b-c", "c-ADD", "a-ADD", "ADD-MUL", "s-t", "t-u", "s-MUL", "MUL-CAT", "u-CAT"],
        ["a-b", "b-c", "c-d", "d-ADD", "e-ADD", "a-MUL", "p-SUM", "ADD-MUL", "MUL-SUM", "b-SUM"],
        ["A-b", "A-LAST", "b-c", "b-D", "c-D", "E-F", "F-LAST"],
    ],
)
def test_edges_pass_behind_no_other_box_and_along_no_other_edge(edges: list[str]) -> None:
    drawing, found = ways(edges)
    for name, points in found.items():
        for node in drawing.layout.nodes:
            if node.node in name.split("-"):
                continue
            (x, y), wide, tall = drawing.place(node), 0.05 if node.node.isupper() else 0.31, drawing.tall(node) / 2
            for a, b in itertools.pairwise(points):
                (left, right), (low, high) = sorted((a[0], b[0])), sorted((a[1], b[1]))
                beside = right < x - wide or left > x + wide or high < y - tall or low > y + tall
                assert beside, f"{name} passes behind {node.node}"
    for (one, here), (other, there) in itertools.combinations(found.items(), 2):
        if not set(one.split("-")) & set(other.split("-")):
            for (a, b), (c, d) in itertools.product(itertools.pairwise(here), itertools.pairwise(there)):
                assert not along(a, b, c, d), f"{one} lies on {other}"


def along(*points: tuple[float, float]) -> bool:
    """True if two lines, each with two ends, have more than a point in common."""
    for across, length in ((0, 1), (1, 0)):
        if len({round(point[across], 6) for point in points}) == 1:
            (_, a), (c, _) = sorted(sorted(p[length] for p in pair) for pair in (points[:2], points[2:]))
            return c < a - 1e-6
    return False


def test_layers_of_which_only_inputs_can_go_are_striped() -> None:
    ax = plot.dependencies(residual())
    assert "outputs all locked: only channels that it reads can go" in legend_of(ax)
    named = nn.Sequential(nn.Linear(3, 2))
    assert legend_of(plot.dependencies(fxprune.analyze(named, torch.randn(1, 3)))) == ["keeps all of its channels"]
    bars = [p for p in ax.patches if isinstance(p, Rectangle) and p.get_hatch()]
    assert len(bars) == 1  # the head


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


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.head, self.shift = nn.Linear(3, 8), nn.Linear(8, 2), nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.up(x) + self.shift))


def test_a_parameter_has_cut_corners_and_says_what_it_is() -> None:
    ax = plot.dependencies(fxprune.analyze(Shifted().eval(), torch.randn(2, 3)))
    assert [text.get_text() for text in ax.texts].count("8\nparameter") == 1
    clips = [bar.get_clip_path() for bar in ax.patches if isinstance(bar, Rectangle)]
    corners = [clip.get_fully_transformed_path().vertices for clip in clips if clip is not None]
    assert [len(one) for one in corners] == [9, 9]  # a white box and a coloured one with eight corners, closed


def test_a_model_in_place_of_an_analysis_is_told_what_makes_one():
    with pytest.raises(
        fxprune.InputError, match=r"a Linear is no analysis\n  do   pass what fxprune\.analyze\(model, ex"
    ):
        fxprune.plot.dependencies(torch.nn.Linear(2, 2))
