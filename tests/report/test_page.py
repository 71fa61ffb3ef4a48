"""The page for a browser as a file: one, self-contained, ASCII, with the figures of the reports as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune._record.holder import record_from, text_of
from fxprune.errors import FxpruneError, InputError, PlanError
from fxprune.report import record_data
from fxprune.report.html.page import LIBRARIES, SCRIPTS
from tests.report.pages import EVIL, PAGES, analysis, curves
from tests.test_golden import NETWORKS

ASSETS = files("fxprune.report.html") / "assets"


def data_of(text: str) -> Any:
    """The data inside a page, read as a browser does: up to the next end of a script."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_operations_that_are_not_counted_are_named_once_each() -> None:
    class Spectrum(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.irfft(torch.fft.rfft(super().forward(x), dim=0), dim=0)

    page = fxprune.analyze(nn.Sequential(*(Spectrum(4, 4) for _ in range(3))), torch.randn(4, 4)).report("html")
    assert data_of(page)["uncounted"] == [
        "aten::_fft_r2c in 0 and 2 more modules",
        "aten::_fft_c2r in 0 and 2 more modules",
    ]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_one_file_of_ascii_that_asks_for_nothing(name: str) -> None:
    text = PAGES[name]()
    assert text.isascii()
    assert "default-src 'none'" in text
    assert not re.search(r"<(link|iframe|object)[^>]*(href|src|data)=\"(?!data:)", text)
    assert "sourceMappingURL" not in text
    assert "{{" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_the_figures_are_those_of_the_json_report() -> None:
    found = analysis()
    report, page = json.loads(found.report("json")), data_of(found.report("html"))
    assert page["title"] == report["model"]
    assert {key: pair["before"] for key, pair in page["totals"].items()} == {
        k: report[k] for k in ("params", "bytes", "macs")
    }
    assert page["locked"] == [lock | {"count": 1} for lock in report["locked"]]
    for mine, group in zip(page["groups"], report["groups"], strict=True):
        assert {key: mine[key] for key in group if key != "members"} == {k: group[k] for k in group if k != "members"}
        assert [{k: m[k] for k in ("parameter", "dim", "role")} for m in mine["members"]] == group["members"]
    layers = {layer["id"]: layer for layer in page["layers"]}
    for layer in report["layers"]:
        if layer["name"]:
            assert layers[layer["name"]]["params"] == layer["params"]
            assert layers[layer["name"]]["macs"] == layer["macs"]


def channels_left(group: fxprune.Group, plan: fxprune.Plan) -> int:
    """The channels of a group that still have a slot in its producer."""
    gone = plan.removed.get(group.producer.parameter, {}).get(group.producer.dim, [])
    slots = zip(group.producer.slots.tolist(), group.producer.index.tolist(), strict=True)
    return len({channel for slot, channel in slots if slot not in gone})


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_and_a_record_show_the_widths_of_the_small_model(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    found = fxprune.analyze(make().eval(), torch.randn(*shape))
    plan = found.plan(ratio=0.5)
    small = found.transform(plan, verify=False)
    record = fxprune.record(small)
    assert record.cost is not None
    left = [channels_left(group, plan) for group in found.groups]
    for page in map(data_of, (found.report("html", plan=plan), record.report("html", analysis=found))):
        totals = [page["totals"][key]["after"] for key in ("params", "macs")]
        assert totals == [record.cost[1].params, record.cost[1].macs]
        shapes = {tensor["name"]: tensor["after"] for layer in page["layers"] for tensor in layer["tensors"]}
        expected = {key: list(tensor.shape) for key, tensor in small.state_dict().items() if key in shapes}
        assert {key: shapes[key] for key in expected} == expected
        assert expected
        assert [group["kept"] for group in page["groups"]] == left


def test_layers_of_a_branch_that_went_whole_are_left_out() -> None:
    found = analysis()
    small = fxprune.transform(found.model, torch.randn(2, 6), drop=["blocks.1"], ratio=0.5, verify=False)
    page = data_of(fxprune.record(small).report("html", analysis=found))
    layers = {layer["id"]: layer for layer in page["layers"]}
    assert [tensor["after"] for tensor in layers["blocks.1.up"]["tensors"]] == [None, None]
    assert layers["blocks.1.up"]["after"] == {"params": 0, "macs": 0}
    assert {group["name"]: group["kept"] for group in page["groups"]}["blocks.1.up"] == 0
    assert {group["name"]: group["kept"] for group in page["groups"]}["embed"] == 4


def test_a_record_alone_draws_the_layers_of_a_branch_that_went_whole() -> None:
    found = analysis()
    small = fxprune.transform(found.model, torch.randn(2, 6), drop=["blocks.1"], ratio=0.5, verify=False)
    record = fxprune.record(small)
    whole = {layer["id"]: layer for layer in data_of(record.report("html", analysis=found))["layers"]}
    for one in (record, record_from(text_of(record))):
        page = data_of(one.report("html"))
        layers = {layer["id"]: layer for layer in page["layers"] if layer["drawn"]}
        inside = [name for name in layers if name.startswith("blocks.1.") and ":" not in name]
        assert inside
        assert all(tensor["after"] is None for name in inside for tensor in layers[name]["tensors"])
        assert [layers[name]["type"] for name in inside] == [whole[name]["type"] for name in inside]
        assert page["modules"]["blocks.1"] == page["modules"]["blocks.0"]
        assert not {end for a, b, _ in page["edges"] for end in (a, b)} & set(inside)
        assert ("blocks.0:add", "blocks.2.norm") in {(a, b) for a, b, _ in page["edges"]}
        named = [name for name in layers if ":" not in name]
        assert named.index("blocks.0.down") < named.index(inside[0]) < named.index("blocks.2.up")


@pytest.mark.parametrize(
    "how",
    [{"ratio": 0.5, "drop": ["blocks.1"]}, {"drop": ["blocks.1"]}, {"ratio": 0.3, "drop": ["blocks.0", "blocks.2"]}],
    ids=["ratio", "alone", "two"],
)
def test_a_plan_that_drops_branches_shows_what_the_small_model_has(how: dict[str, Any]) -> None:
    found = analysis()
    plan = found.plan(**how)
    small = found.transform(plan, verify=False)
    record = fxprune.record(small)
    assert record.cost is not None
    planned, made = (data_of(text) for text in (found.report("html", plan=plan), record.report("html", analysis=found)))
    for name in ("params", "macs"):
        assert planned["totals"][name]["after"] == made["totals"][name]["after"] == getattr(record.cost[1], name)
    for name in ("layers", "groups"):
        for one, other in zip(planned[name], made[name], strict=True):
            assert one == other
    assert f"the residual branch {how['drop'][0]} goes whole" in planned["notes"]
    plain = found.report("html", plan=found.plan(ratio=0.5))
    assert all(tensor["after"] is not None for layer in data_of(plain)["layers"] for tensor in layer["tensors"])


def test_every_edge_joins_layers_that_are_drawn() -> None:
    page = data_of(analysis().report("html"))
    drawn = {layer["id"] for layer in page["layers"] if layer["drawn"]}
    graph = analysis().to_networkx("flow")
    assert {(a, b) for a, b, _ in page["edges"]} == set(graph.edges)
    assert drawn == set(graph.nodes)


PARTS = ("id", "kind", "type", "params", "macs", "after", "drawn", "width", "tensors")


@pytest.mark.parametrize("path", ["fx", "eager", "export", "hooks"])
@pytest.mark.parametrize("name", ["Residual", "Concat", "SqueezeExcite", "SharedModule", "LayerNorm"])
def test_a_record_alone_draws_what_one_with_an_analysis_does(name: str, path: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(*shape)
    found = fxprune.analyze(model, x, path=path)
    record = fxprune.record(fxprune.transform(model, x, ratio=0.5, path=path, verify=False))
    again = record_from(text_of(record))
    whole = data_of(record.report("html", analysis=found))
    for page in (data_of(record.report("html")), data_of(again.report("html"))):
        assert {(a, b) for a, b, _ in page["edges"]} == {(a, b) for a, b, _ in whole["edges"]}
        assert len(page["edges"]) > 3
        assert page["modules"] == whole["modules"]
        assert page["title"] == whole["title"]
        layers = {layer["id"]: layer for layer in page["layers"] if layer["drawn"]}
        for layer in whole["layers"]:
            if layer["drawn"]:
                assert {key: layers[layer["id"]][key] for key in PARTS} == {key: layer[key] for key in PARTS}


def test_a_record_of_two_steps_draws_the_first_model() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 2)).eval(), torch.randn(3, 4)
    first = fxprune.transform(model, x, ratio=0.5, verify=False)
    second = fxprune.transform(first, x, ratio={"2": 0.5}, verify=False)
    joined = fxprune.record(first).then(fxprune.record(second))
    page = data_of(joined.report("html"))
    assert {(a, b) for a, b, _ in page["edges"]} == {("input:input", "0"), ("0", "2"), ("2", "3"), ("3", "output")}
    assert {layer["id"]: layer["width"] and layer["width"]["after"] for layer in page["layers"]}["2"] == 2


def test_a_record_of_an_old_file_has_no_edges_and_says_so() -> None:
    made = fxprune.record(analysis().transform(ratio=0.5, verify=False))
    data = json.loads(text_of(made))
    del data["record"]["flow"]
    old = record_from(json.dumps(data))
    assert old.flow is None
    page = data_of(old.report("html"))
    assert page["edges"] == []
    assert {layer["id"] for layer in page["layers"]} == {layer.name or "(model)" for layer in record_data(made).layers}


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ({"edges": [[0, 99]]}, "flow.edges"),
        ({"edges": [[0]]}, "flow.edges"),
        ({"edges": [[0, "1"]]}, "flow.edges"),
        ({"edges": [[0, True]]}, "flow.edges"),
        ({"nodes": {"a": "loop"}}, "flow.nodes"),
        ({"classes": {"": 3}}, "flow.classes"),
        ({"colours": {}}, "flow"),
    ],
)
def test_data_that_are_no_flow_are_refused(change: dict[str, Any], at: str) -> None:
    data = json.loads(text_of(fxprune.record(analysis().transform(ratio=0.5, verify=False))))
    data["record"]["flow"].update(change)
    with pytest.raises(FxpruneError, match=re.escape(at)):
        record_from(json.dumps(data))


def test_a_record_has_its_proof_sizes_repair_and_measures() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(64, 4)
    small = fxprune.transform(net, x, ratio=0.5, repair=[x])
    made = fxprune.record(small)
    page = data_of(made.report("html"))
    assert page["record"]["exact"] is made.exact
    assert page["record"]["error"] == made.error
    assert page["record"]["repair"]["after"] == made.repair.after
    assert {"at": "0", "kind": "attribute", "text": "0.out_features: 8 -> 4"} in page["record"]["sizes"]
    assert page["groups"][0]["channels"] == 4
    assert [m["parameter"] for m in page["groups"][0]["members"]] == ["0.weight", "0.bias", "2.weight"]
    timed = fxprune.Record("fx", {}, True, {}, {}, measured={"latency": (0.02, 0.01)}).report("html")
    assert data_of(timed)["totals"]["latency"] == {"before": 0.02, "after": 0.01}


def test_text_in_the_page_ends_no_element() -> None:
    text = PAGES["nothing"]()
    assert EVIL not in text
    assert data_of(text)["title"] == f"Net{EVIL}"
    assert "&lt;/script&gt;" in re.search(r"<title>(.*?)</title>", text)[1]


def test_the_page_holds_the_licences_of_its_libraries() -> None:
    text = analysis().report("html")
    for name in ("Cytoscape Consortium", "Chris Pettitt", "WITHOUT WARRANTY OF ANY KIND"):
        assert name in text


def test_all_assets_are_used() -> None:
    named = {*(f"{name}.js" for name in SCRIPTS), "page.html", "style.css", "libraries"}
    assert {entry.name for entry in ASSETS.iterdir()} == named
    assert {entry.name for entry in (ASSETS / "libraries").iterdir()} == {*LIBRARIES, "LICENSES.txt"}


@pytest.mark.parametrize("format", ["text", "markdown", "json"])
def test_options_of_the_page_are_refused_elsewhere(format: str) -> None:
    found = analysis()
    plan = found.plan(ratio=0.5)
    record = fxprune.record(found.transform(plan, verify=False))
    calls: list[Callable[[], str]] = [
        lambda: found.report(format, plan=plan),
        lambda: found.report(format, curves=curves(found)),
        lambda: record.report(format, analysis=found),
    ]
    for call in calls:
        with pytest.raises(InputError, match="is without effect here") as caught:
            call()
        assert 'pass format="html"' in str(caught.value)


def test_what_is_no_curve_and_what_is_of_another_model_is_refused() -> None:
    found = analysis()
    with pytest.raises(InputError, match="a Cost is no curve"):
        found.report("html", curves=found.cost())
    other = fxprune.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4))
    with pytest.raises(PlanError):
        found.report("html", plan=other.plan(ratio=0.5))
    with pytest.raises(PlanError):
        fxprune.record(other.transform(ratio=0.5, verify=False)).report("html", analysis=found)


class Recurrent(nn.Module):
    """A recurrent layer, whose outputs are read by a linear one."""

    def __init__(self, layer: nn.Module, outputs: int) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(6, 16), layer, nn.Linear(outputs, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.layer(torch.relu(self.first(x)))
        return self.last(made[0] if isinstance(self.layer, nn.RNNBase) else made)


def test_the_rows_of_an_in_projection_are_those_of_query_key_and_value() -> None:
    model, x = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), torch.randn(2, 5, 16)
    found = fxprune.analyze(model, x)
    small = found.transform(ratio=0.5, verify=False)
    for text in (found.report("html"), fxprune.record(small).report("html")):
        widths = {node["id"]: node["width"] for node in data_of(text)["layers"]}
        assert (widths["self_attn"]["before"], widths["self_attn"]["parts"]) == (48, "query, key, value")
        assert (widths["linear1"]["before"], widths["linear1"]["parts"]) == (32, "")


RECURRENT = {
    "GRU": (lambda: nn.GRU(16, 12, batch_first=True), (2, 5, 6), 12, 6),
    "two layers in both directions": (
        lambda: nn.LSTM(16, 10, 2, bidirectional=True, batch_first=True),
        (2, 5, 6),
        20,
        10,
    ),
    "projection": (lambda: nn.LSTM(16, 20, proj_size=8, batch_first=True), (2, 5, 6), 8, 4),
    "RNN": (lambda: nn.RNN(16, 12, batch_first=True), (2, 5, 6), 12, 6),
    "cell": (lambda: nn.GRUCell(16, 12), (2, 6), 12, 6),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_the_outputs_of_a_recurrent_layer_are_its_state_and_not_its_gates(name: str) -> None:
    layer, shape, before, after = RECURRENT[name]
    found = fxprune.analyze(Recurrent(layer(), before).eval(), torch.randn(*shape))
    plan = found.plan(ratio=0.5)
    record = fxprune.record(found.transform(plan, verify=False))
    pages = found.report("html", plan=plan), record.report("html", analysis=found), record.report("html")
    for page in map(data_of, pages):
        widths = {node["id"]: node["width"] for node in page["layers"]}
        assert (widths["layer"]["before"], widths["layer"]["after"]) == (before, after)
        assert (widths["first"]["before"], widths["last"]["before"]) == (16, 4)


def test_equal_notes_about_repeated_blocks_are_one() -> None:
    shapes = {f"layers.{n}.up.weight": (4, 3) for n in range(3)}
    notes = tuple(f"layers.{n}.up keeps its rows" for n in range(3))
    made = fxprune.Record("fx", {}, True, shapes, shapes, reasons=notes).report("html")
    assert "layers.0-2.up keeps its rows" in made
    assert "layers.1.up keeps its rows" not in made
