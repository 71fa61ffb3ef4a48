"""The reports: every figure against the model, every view against a text that a reader can check.

`python -m tests.report.test_report --write` rewrites tests/report/golden/; read the difference before you keep it.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.cli.tables import with_layers
from fxprune.errors import InputError
from fxprune.report.repeats import merge_repeats
from tests.test_golden import NETWORKS

GOLDEN = pathlib.Path(__file__).parent / "golden"
ENDINGS = {"text": "txt", "markdown": "md", "json": "json"}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Blocks(nn.Module):
    """Repeated blocks, a layer norm, a sort that locks, a raw parameter, a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.scale = nn.Linear(6, 8), nn.Parameter(torch.ones(8))
        self.blocks = nn.Sequential(*(Block(8) for _ in range(3)))
        self.sorted, self.head = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.embed(x) * self.scale)
        return self.head(self.sorted(x).sort(dim=1).values)


def analysis() -> fxprune.Analysis:
    torch.manual_seed(0)
    return fxprune.analyze(Blocks().eval(), torch.randn(2, 6))


def record() -> fxprune.Record:
    torch.manual_seed(0)
    return fxprune.record(fxprune.transform(Blocks().eval(), torch.randn(2, 6), ratio=0.5, verify=False))


REPORTS = {"analysis": analysis, "record": record}


def written(name: str, format: str) -> str:
    """A report without the directories and lines of source files, which change."""
    text = REPORTS[name]().report(format=format)
    text = re.sub(r'"file": "[^"]*/', '"file": "', text)
    text = re.sub(r'"line": \d+', '"line": 0', text)
    return re.sub(r'[^\s("]*test_report\.py:\d+', "report/test_report.py:00", text) + "\n"


@pytest.mark.parametrize("format", ENDINGS)
@pytest.mark.parametrize("name", REPORTS)
def test_reports_are_as_written(name: str, format: str) -> None:
    assert written(name, format) == (GOLDEN / f"{name}.{ENDINGS[format]}").read_text(encoding="utf-8")


# -- the schema -----------------------------------------------------------------------------------------------


class Check:
    """A small checker of JSON: a type, a tuple of types, [items], {key: check}, or {str: check} for any keys."""

    def __init__(self, expected: Any) -> None:
        self.expected = expected

    def problems(self, value: Any, at: str = "$") -> list[str]:
        return list(_problems(self.expected, value, at))


def _problems(expected: Any, value: Any, at: str) -> Any:
    if isinstance(expected, list):
        if not isinstance(value, list):
            yield f"{at} is no list"
        else:
            for number, item in enumerate(value):
                yield from _problems(expected[0], item, f"{at}[{number}]")
    elif isinstance(expected, dict):
        if not isinstance(value, dict):
            yield f"{at} is no object"
        elif str in expected:
            for key, item in value.items():
                yield from _problems(expected[str], item, f"{at}.{key}")
        else:
            yield from (f"{at}.{key} is missing" for key in expected.keys() - value.keys())
            yield from (f"{at}.{key} is not in the schema" for key in value.keys() - expected.keys())
            for key in expected.keys() & value.keys():
                yield from _problems(expected[key], value[key], f"{at}.{key}")
    elif isinstance(expected, str):
        if value != expected:
            yield f"{at} is {value!r}, not {expected!r}"
    else:
        types = expected if isinstance(expected, tuple) else (expected,)
        if type(value) not in types:
            yield f"{at} is {value!r}"


NUMBER = (int, type(None))
CHANGE = {"before": NUMBER, "after": NUMBER}
SCHEMAS: dict[str, Any] = {
    "analysis": {
        "schema": "fxprune.report/1",
        "kind": "analysis",
        "model": str,
        "path": str,
        "params": int,
        "bytes": int,
        "macs": NUMBER,
        "macs_at_least": int,
        "uncounted": [str],
        "groups": [
            {
                "name": str,
                "kind": str,
                "channels": int,
                "params_per_channel": int,
                "macs_per_channel": NUMBER,
                "exact": bool,
                "reasons": [str],
                "members": [{"parameter": str, "dim": int, "role": str}],
            }
        ],
        "locked": [
            {
                "operation": str,
                "module": str,
                "node": str,
                "file": (str, type(None)),
                "line": NUMBER,
                "why": str,
                "params": int,
                "macs": NUMBER,
                "holds": [{"parameter": str, "dim": int, "slots": int}],
            }
        ],
        "layers": [{"name": str, "type": str, "params": int, "macs": NUMBER, "shapes": {str: [int]}}],
        "notes": [str],
    },
    "record": {
        "schema": "fxprune.report/1",
        "kind": "record",
        "path": str,
        "why_not": {str: str},
        "exact": bool,
        "error": (float, type(None)),
        "norms": str,
        "params": CHANGE,
        "bytes": CHANGE,
        "macs": CHANGE,
        "layers": [
            {
                "name": str,
                "params": CHANGE,
                "macs": CHANGE,
                "tensors": [{"name": str, "before": [int], "after": (list, type(None))}],
            }
        ],
        "reasons": [str],
        "training": [str],
        "one_sided": [str],
        "repair": (dict, type(None)),
        "measured": {str: {"before": (float, int), "after": (float, int)}},
    },
}


@pytest.mark.parametrize("name", REPORTS)
def test_json_follows_the_schema(name: str) -> None:
    found = json.loads(REPORTS[name]().report(format="json"))
    assert Check(SCHEMAS[name]).problems(found) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_json_of_other_networks_follows_the_schema(name: str) -> None:
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.randn(shape)
    found = json.loads(fxprune.analyze(model, x).report(format="json"))
    assert Check(SCHEMAS["analysis"]).problems(found) == []
    small = fxprune.transform(model, x, ratio=0.5, prefer="graph")
    assert Check(SCHEMAS["record"]).problems(json.loads(fxprune.record(small).report(format="json"))) == []


def test_the_checker_finds_what_is_wrong() -> None:
    good = json.loads(analysis().report(format="json"))
    for broken, problem in (
        ({**good, "schema": "2"}, "$.schema is '2', not 'fxprune.report/1'"),
        ({k: v for k, v in good.items() if k != "notes"}, "$.notes is missing"),
        ({**good, "extra": 1}, "$.extra is not in the schema"),
        ({**good, "params": True}, "$.params is True"),
        ({**good, "notes": [1]}, "$.notes[0] is 1"),
        ({**good, "layers": 3}, "$.layers is no list"),
    ):
        assert Check(SCHEMAS["analysis"]).problems(broken) == [problem]


def test_docs_state_the_schema() -> None:
    page = (pathlib.Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")

    def keys(part: Any) -> set[str]:
        if isinstance(part, list):
            return keys(part[0])
        if isinstance(part, dict):
            return {k for k in part if k is not str} | {k for value in part.values() for k in keys(value)}
        return set()

    missing = {key for schema in SCHEMAS.values() for key in keys(schema) if f"`{key}`" not in page}
    assert missing == set()


# -- figures --------------------------------------------------------------------------------------------------


def test_figures_of_an_analysis() -> None:
    found = json.loads(analysis().report(format="json"))
    model = Blocks()
    assert found["params"] == sum(p.numel() for p in model.parameters())
    assert sum(layer["params"] for layer in found["layers"]) == found["params"]
    assert (
        sum(layer["macs"] for layer in found["layers"]) == found["macs"] == fxprune.cost(model, torch.randn(2, 6)).macs
    )
    assert {layer["name"]: layer["type"] for layer in found["layers"]}["blocks.1.up"] == "Linear"
    stream, *inner = found["groups"]
    # a row of embed and its bias, scale; thrice a norm, 16 that read it, 16 that make it, a bias; 12 that read it
    assert stream["params_per_channel"] == 6 + 1 + 1 + 3 * (2 + 16 + 16 + 1) + 12
    assert stream["macs_per_channel"] == 2 * (6 + 3 * (16 + 16) + 12)
    assert [group["params_per_channel"] for group in inner] == [8 + 1 + 8] * 3
    assert [group["macs_per_channel"] for group in inner] == [2 * 16] * 3
    assert (stream["exact"], [group["exact"] for group in inner]) == (False, [True] * 3)
    assert all("layer_norm" in reason for reason in stream["reasons"])
    roles = {(m["parameter"], m["dim"]): m["role"] for m in stream["members"]}
    assert roles["embed.weight", 0] == roles["blocks.2.down.bias", 0] == "producer"
    assert roles["blocks.0.up.weight", 1] == roles["sorted.weight", 1] == "consumer"
    assert roles["blocks.1.norm.weight", 0] == "norm"
    assert roles["scale", 0] == "raw"


def test_figures_of_locked_channels() -> None:
    found = {row["operation"]: row for row in json.loads(analysis().report(format="json"))["locked"]}
    sort = found["aten::sort"]
    assert (sort["macs"], pathlib.Path(sort["file"]).name) == (2 * 8 * 12, "test_report.py")
    assert "sort(dim=1)" in pathlib.Path(sort["file"]).read_text(encoding="utf-8").splitlines()[sort["line"] - 1]
    assert {(h["parameter"], h["dim"]): h["slots"] for h in sort["holds"]} == {
        ("sorted.weight", 0): 12,
        ("sorted.bias", 0): 12,
    }
    assert found["aten::addmm"]["macs"] == 2 * 12 * 4  # those of the head, the last of that operation
    assert (found["output"]["macs"], found["output"]["file"], found["output"]["line"]) == (2 * 12 * 4, None, None)


def test_figures_of_a_record() -> None:
    made = record()
    found = json.loads(made.report(format="json"))
    for key in ("params", "bytes", "macs"):
        assert found[key] == {"before": getattr(made.cost[0], key), "after": getattr(made.cost[1], key)}
    for key in ("params", "macs"):
        assert sum(layer[key]["after"] for layer in found["layers"]) == found[key]["after"]
    shapes = {f"{row['name']}.{t['name']}".strip("."): t for row in found["layers"] for t in row["tensors"]}
    assert {name: tuple(t["before"]) for name, t in shapes.items()} == dict(made.before)
    assert {name: tuple(t["after"]) for name, t in shapes.items()} == dict(made.after)
    assert found["error"] is None
    assert found["why_not"] == {}


def test_a_record_says_which_statistics_could_not_be_preserved_and_why() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1), nn.LayerNorm(5), nn.Conv2d(4, 2, 1))
    text = fxprune.record(
        fxprune.transform(net.eval(), torch.randn(2, 3, 5, 5), ratio=0.5, norms="preserve", verify=False)
    ).report()
    assert "statistics count the original width, but for those in the notes\n" in text
    (note,) = re.findall("note: a statistic changed: (.*)", text)
    assert note.startswith("aten::native_group_norm in 1: ")
    why = 'norms="preserve" does not keep it: only layer norms, RMS norms and means can count channels that are gone'
    assert note.endswith(why)


def test_locks_that_look_alike_are_one_row_with_their_number() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.scales = nn.Linear(3, 4), nn.Linear(4, 2), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.b(self.a(x)) * self.scales[n] for n in range(3)]

    found = fxprune.analyze(Scaled().eval(), torch.randn(2, 3))
    (row,) = [line for line in found.report().splitlines() if "select" in line]
    assert re.search(r"aten::select \(3 times\) .* scales\[0\] +3 +0$", row.rstrip())
    assert [lock["params"] for lock in json.loads(found.report("json"))["locked"] if "select" in lock["operation"]] == [
        1
    ] * 3


def test_a_record_says_which_path_was_taken_and_how_it_was_proven() -> None:
    class NoTrace(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if len([*x.shape]) == 2 else x

    x = torch.randn(2, 6)
    made = fxprune.record(fxprune.transform(NoTrace().eval(), x, ratio=0.5, norms="preserve", prefer="graph"))
    found = json.loads(made.report(format="json"))
    assert (found["path"], list(found["why_not"]), found["norms"]) == ("export", ["fx"], "preserve")
    assert found["error"] == made.error
    assert found["error"] < 1e-9
    text = made.report()
    assert "path export, bytes" in text
    assert "not fx: NoTrace cannot be traced symbolically" in text
    assert "statistics count the original width\n" in text
    assert re.search(r"relative error against the reference: \d\.\de-\d\d", text)


def test_a_record_that_was_not_counted_says_unknown() -> None:
    made = fxprune.Record("fx", {}, True, {"0.weight": (4, 3)}, {"0.weight": (2, 3)})
    text = made.report()
    assert re.search(r"^0 +4 x 3 -> 2 x 3 +unknown +unknown$", text, re.MULTILINE)
    assert re.search(r"^total +unknown +unknown$", text, re.MULTILINE)
    assert "relative error against the reference: unknown, it was not compared" in text
    assert json.loads(made.report(format="json"))["macs"] == {"before": None, "after": None}


class Product(nn.Module):
    """A module without parameters that multiplies."""

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(1, 2)).softmax(-1)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.product, self.v, self.head = nn.Linear(6, 8), Product(), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        return self.head(self.product(q, q) @ self.v(x))


def test_a_notebook_says_that_the_error_is_that_before_the_repair() -> None:
    model, x = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3)).eval(), torch.randn(40, 4)
    cut = fxprune.record(fxprune.transform(model, x[:1], ratio=0.5))
    mended = fxprune.record(fxprune.transform(model, x[:1], ratio=0.5, repair=[x]))
    assert mended.repair is not None
    assert "before the repair" not in cut._repr_html_()
    assert "relative error before the repair" in mended._repr_html_()
    assert f"error of the outputs after it {mended.repair.after:.2e}" in mended._repr_html_()


def test_layers_without_parameters_stand_where_the_model_has_them() -> None:
    model, x = Mixed().eval(), torch.randn(2, 5, 6)
    ordered = ["", "q", "product", "v", "head"]  # the model itself multiplies too
    assert list(fxprune.cost(model, x).layers) == ordered
    assert list(fxprune.analyze(model, x).cost().layers) == ordered
    made = fxprune.record(fxprune.transform(model, x, ratio=0.5))
    assert [layer["name"] for layer in json.loads(made.report("json"))["layers"]] == ordered
    rows = [line.split()[0] for line in made.report().splitlines()[2:8]]
    assert rows == ["(model)", *ordered[1:], "total"]


class Scaled(Block):
    """A block that owns a parameter itself, and whose own code locks."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.scale = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(self.up(self.norm(x)).sort(-1).values)


def test_blocks_that_own_parameters_are_one_row_before_their_layers() -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), *(Scaled(8) for _ in range(3)), nn.Linear(8, 2)).eval(), torch.randn(2, 6)
    analysed = fxprune.analyze(model, x)
    rows = [line.split()[0] for line in analysed.report().split("locked:")[1].splitlines()[3:]]
    assert [row for row in rows if row[0] in "123"] == ["1-3", "1-3.down"]
    made = fxprune.record(fxprune.transform(model, x, ratio=0.5, verify=False))
    rows = [line.split()[0] for line in made.report().splitlines()[2:8]]
    assert rows == ["0", "1-3", "1-3.norm", "1-3.up", "1-3.down", "4"]
    assert "<td>1-3</td>" in re.sub(r"<td[^>]*>", "<td>", made._repr_html_())
    layers = with_layers("", json.loads(analysed.report("json"))["layers"], "text")
    assert [line.split()[0] for line in layers.splitlines()[2:] if line] == rows


def test_the_report_names_operations_that_are_not_counted() -> None:
    class Transform(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(self.first(x), dim=0).real

    analysed = fxprune.analyze(Transform(), torch.randn(4, 3))
    assert "32 parameters, unknown (at least 96) MACs" in analysed.report()
    assert "MACs are unknown: nobody counts aten::_fft_r2c in the model" in analysed.report()
    found = json.loads(analysed.report(format="json"))
    assert (found["macs"], found["macs_at_least"], found["uncounted"]) == (None, 96, ["aten::_fft_r2c in the model"])


def test_the_report_says_that_no_channel_can_be_removed() -> None:
    text = fxprune.analyze(nn.Linear(3, 2), torch.randn(1, 3)).report()
    assert "no removable channels" in text
    assert "0 channels in 0 groups" in text


@pytest.mark.parametrize("format", ["htm", "Text", ""])
def test_formats_that_do_not_exist_are_refused(format: Any) -> None:
    for report in (analysis().report, record().report):
        with pytest.raises(InputError, match=f"there is no report format {format!r}") as caught:
            report(format=format)
        assert "pass one of text, markdown, json, html" in str(caught.value)


def test_markdown_escapes_what_would_end_a_cell() -> None:
    made = fxprune.Record("fx", {}, True, {"a|b.weight": (4, 3)}, {"a|b.weight": (2, 3)}, reasons=("kept",))
    text = made.report(format="markdown")
    assert "| a\\|b    | 4 x 3 -> 2 x 3 |" in text
    assert text.endswith("\n\n- note: kept")


# -- folding --------------------------------------------------------------------------------------------------


def test_rows_that_differ_otherwise_stay() -> None:
    rows = [("b.0.x", 1), ("b.1.x", 2), ("b.2.x", 1)]
    assert merge_repeats(rows) == [("b.0,2.x", 1), ("b.1.x", 2)]


def test_the_last_number_of_a_name_is_no_block() -> None:
    rows = [("b.conv1", 1), ("b.conv2", 1), ("features.0", 1), ("features.1", 1)]
    assert merge_repeats(rows) == rows


def test_blocks_of_blocks() -> None:
    rows = [(f"stage{s}.{b}.conv", f"stage{s}.{b}.conv.weight[0], head", 8) for s in (1, 2) for b in range(3)]
    assert merge_repeats(rows) == [("stage1-2.0-2.conv", "stage1-2.0-2.conv.weight[0], head", 8)]


def test_a_number_is_replaced_as_a_whole() -> None:
    rows = [("b.1.x", "b.1.x, b.10.y, ab.1.x"), ("b.2.x", "b.2.x, b.10.y, ab.1.x")]
    assert merge_repeats(rows) == [("b.1-2.x", "b.1-2.x, b.10.y, ab.1.x")]


def test_folding_loses_no_group() -> None:
    """Every group is in one row; a row of the numbers a to b, c stands for as many."""

    def expanded(cell: str) -> int:
        count = 1
        for numbers in re.findall(r"(?<=blocks\.)[\d,-]+", cell):
            parts = [part.split("-") for part in numbers.split(",")]
            count *= sum(int(part[-1]) - int(part[0]) + 1 for part in parts)
        return count

    analysed = analysis()
    table = analysed.report().split("\n\n")[1].splitlines()[2:]
    assert sum(expanded(line.split()[0]) for line in table) == len(analysed.groups) == 4
    assert len(table) == 2


def main(arguments: list[str]) -> None:
    """Print the texts, or write them."""
    for name in REPORTS:
        for format, ending in ENDINGS.items():
            if arguments == ["--write"]:
                GOLDEN.mkdir(exist_ok=True)
                (GOLDEN / f"{name}.{ending}").write_text(written(name, format), encoding="utf-8")
            else:
                print(f"== {name}.{ending}\n{written(name, format)}")


if __name__ == "__main__":
    main(sys.argv[1:])


class Wide(nn.Module):
    """A block with an attribute that forward does not read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.up, self.down = nn.Linear(4, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return out


def test_equal_notes_about_blocks_are_one() -> None:
    model = nn.Sequential(*(Wide(width) for width in (12, 12, 12, 16))).eval()
    text = fxprune.record(fxprune.transform(model, torch.randn(2, 4), ratio={"*.up": 0.5})).report()
    notes = [line for line in text.split("\n") if line.startswith("note: ")]
    rest = "now: forward does not read this attribute, which had the width of the layer"
    end = "and follows it. If it counts something else, set it back"
    assert notes == [
        f"note: 0-2.width was 12 and is 6 {rest} 0-2.up {end}",
        f"note: 3.width was 16 and is 8 {rest} 3.up {end}",
    ]
