"""Plans as files and as values: the text of the file, refusals, combination and difference of two plans."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune.planning.plan import Plan, Removed
from fxprune.planning.ranges import between, indices_of, parse, spans_of, text_of
from fxprune.planning.structure import Structure
from tests.artifacts.trips import Attention, Literal, Plain, image, pruned, run, seeded
from tests.test_golden import NETWORKS

MUTANTS = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def plan() -> Plan:
    return fxprune.record(pruned(seeded(Literal, 1), image(), prefer="graph")).plan


@pytest.fixture
def data(plan: Plan, tmp_path: Path) -> dict[str, Any]:
    plan.save(tmp_path / "plan.json")
    return json.loads((tmp_path / "plan.json").read_text())


def plan_in(folder: Path, text: str) -> Plan:
    (folder / "changed.json").write_text(text)
    return Plan.load(folder / "changed.json")


# -- what is written -----------------------------------------------------------------------------------------


def test_the_file_lists_removed_and_kept_indices_and_every_size(plan: Plan, data: dict[str, Any]) -> None:
    conv = data["tensors"]["conv.weight"]
    gone, stays = (indices_of(parse(conv[key]["0"])) for key in ("removed", "kept"))
    assert gone == plan.removed["conv.weight"][0]
    assert stays == plan.kept["conv.weight"][0]
    assert sorted(gone + stays) == list(range(16))
    assert [str(size) for size in plan.sizes] == [
        "conv.out_channels: 16 -> 10",
        "norm.num_features: 16 -> 10",
        "head.in_features: 16 -> 10",
        "%view args[2]: 16 -> 10",
    ]
    assert data["sizes"][-1] == {"kind": "argument", "at": "view", "name": "args[2]", "old": 16, "new": 10}
    assert data["versions"] == {"fxprune": fxprune.__version__, "torch": torch.__version__}
    assert (data["format"], data["version"], data["path"]) == ("fxprune plan", 1, "fx")
    assert data["coupled"][0]["in"][:2] == ["conv.weight[0]", "conv.bias[0]"]


def test_a_loaded_plan_prunes_fresh_models_and_newer_weights(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    read = Plan.load(tmp_path / "plan.json")
    for seed in (3, 4):
        net, x = seeded(Literal, seed).double(), image().double()
        small = fxprune.transform(net, x, plan=read)
        reference = fxprune.masked(net, plan.removed)
        assert torch.allclose(run(small, x)[0], run(reference, x)[0], atol=1e-12)
        assert fxprune.record(small).plan == plan


def test_a_plan_written_by_hand_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(fxprune.PlanError) as caught:
        Plan({"conv.weight": {0: [1]}}).save(tmp_path / "plan.json")
    assert "does not know what it was made for" in str(caught.value)
    assert "written by hand" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(fxprune.PlanError, match="does not know what stays"):
        _ = Plan({"conv.weight": {0: [1]}}).kept


@pytest.mark.parametrize(
    ("name", "dim", "indices"),
    [
        ("conv.weight", 0, [16]),
        ("conv.weight", 4, [0]),
        ("conv.weight", 0, [2, 1]),
        ("conv.weight", 0, [1, 1]),
        ("conv.weight", 0, []),
        ("nothing", 0, [0]),
    ],
)
def test_indices_that_are_not_there_are_not_saved(
    plan: Plan, name: str, dim: int, indices: list[int], tmp_path: Path
) -> None:
    removed: Removed = {name: {dim: indices}}
    with pytest.raises(fxprune.PlanError, match="the plan removes what is not there"):
        Plan(removed, structure=plan.structure).save(tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "dim", "indices"), [("conv.weight", 0, [16]), ("nothing", 0, [0])])
def test_zeros_that_are_not_there_are_not_saved(
    plan: Plan, name: str, dim: int, indices: list[int], tmp_path: Path
) -> None:
    with pytest.raises(fxprune.PlanError, match="the plan sets to zero what is not there"):
        Plan(plan.removed, zeroed={name: {dim: indices}}, structure=plan.structure).save(tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_goes_on_naming_the_versions_that_wrote_it(data: dict[str, Any], tmp_path: Path) -> None:
    data["versions"] = {"fxprune": "0.0.1", "torch": "2.0", "another": "3"}
    read = plan_in(tmp_path, json.dumps(data))
    assert read.versions == data["versions"]
    read.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["versions"] == data["versions"]


def test_folded_constants_are_written_too(plan: Plan, tmp_path: Path) -> None:
    zeroed = {"conv.weight": {0: [0, 1, 2]}, "norm.weight": {0: [4]}}
    for folded in (Plan(plan.removed, zeroed=zeroed, biases=("conv",), structure=plan.structure),
                   Plan(plan.removed, zeroed={}, structure=plan.structure)):  # fmt: skip
        folded.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == folded


# -- the fingerprint -------------------------------------------------------------------------------------------


def fingerprint(model: nn.Module, x: Any, **options: Any) -> str:
    analysis = fxprune.analyze(model, x, **options)
    structure = analysis.plan(ratio=0.5, importance="random", seed=0).structure
    assert structure is not None
    return structure.fingerprint


def test_the_fingerprint_knows_no_weights_dtype_device_or_batch() -> None:
    first = fingerprint(seeded(Plain, 1), image())
    assert fingerprint(seeded(Plain, 2), image()) == first
    assert fingerprint(seeded(Plain, 2).double(), torch.randn(7, 3, 9, 8).double()) == first
    assert fingerprint(seeded(Plain, 2).to("meta"), image().to("meta")) == first
    assert fingerprint(torch.fx.symbolic_trace(seeded(Plain, 2)), image()) == first


@pytest.mark.parametrize("name", ["Residual", "Concat", "GroupedConv", "Depthwise", "SqueezeExcite", "TiedWeights"])
def test_the_fingerprint_does_not_depend_on_the_path(name: str) -> None:
    """The numbers of channels differ between walks; the slots that are removed together do not."""
    make, shape = NETWORKS[name]
    plans = [
        fxprune.analyze(make().eval(), torch.randn(shape), path=path).plan(ratio=0.5, importance=lambda g: -g_order(g))
        for path in ("fx", "eager")
    ]
    assert plans[0].removed == plans[1].removed
    assert plans[0].structure == plans[1].structure


def g_order(group: fxprune.Group) -> Tensor:
    return torch.arange(group.size, dtype=torch.float64)


class Wider(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.head = nn.Conv2d(8, 13, 3), nn.Linear(13, 5)


class Renamed(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.last = self.head
        del self.head

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.wide(torch.relu(self.norm(self.conv(x)))))
        return self.last(x.mean((2, 3)))


class Longer(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.extra(super().forward(x))


class Joined(Plain):
    """The same tensors; channels 0 to 3 of `conv` are added to 4 to 7."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = torch.relu(x + x.roll(4, 1))
        return self.head(torch.relu(self.wide(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "there", "here"),
    [
        (Wider, '"wide.weight" has shape (12, 8, 3, 3)', "it has shape (13, 8, 3, 3)"),
        (Renamed, 'there is "head.weight" of shape (5, 12)', "no such tensor"),
        (Longer, 'there is no "extra.weight"', "it has shape (5, 5)"),
        (Joined, '"conv.weight" dimension 0 alone', "coupled to others"),
    ],
)
def test_a_plan_for_another_architecture_is_refused_with_the_first_difference(
    make: Callable[[], nn.Module], there: str, here: str
) -> None:
    masks = {"conv": torch.tensor([True] * 7 + [False]), "wide": torch.arange(12) > 4}
    plan = fxprune.analyze(seeded(Plain, 1), image()).plan(masks=masks)
    with pytest.raises(fxprune.PlanError) as caught:
        fxprune.transform(seeded(make, 1), image(), plan=plan)
    text = str(caught.value)
    assert "the plan is for another model" in text
    assert there in text
    assert here in text


def test_channels_coupled_in_another_way_are_refused_though_they_could_be_removed() -> None:
    """Channels 3 and 7 are removed together in the plan's model, and each alone in the other one."""
    masks = {"conv": torch.tensor([True, True, True, False, True, True, True, False])}
    plan = fxprune.analyze(seeded(Joined, 1), image()).plan(masks=masks)
    assert plan.removed["conv.weight"] == {0: [3, 7]}
    fxprune.transform(seeded(Plain, 1), image(), plan=Plan(plan.removed))  # as indices they fit
    with pytest.raises(fxprune.PlanError) as caught:
        fxprune.transform(seeded(Plain, 1), image(), plan=plan)
    assert "where it was made there go 1 channel in conv.weight[0], conv.bias[0]" in str(caught.value)
    assert "here there go 2 channels in conv.weight[0], conv.bias[0]" in str(caught.value)


# -- two plans ---------------------------------------------------------------------------------------------------


class Flipped(nn.Module):
    """Reads its hidden channels forwards or backwards."""

    def __init__(self, *, flip: bool) -> None:
        super().__init__()
        self.flip, self.first, self.last = flip, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.last(hidden.flip(1) if self.flip else hidden)


def test_the_same_slots_in_other_pairs_are_another_coupling() -> None:
    x, keep = torch.ones(1, 3), torch.tensor([True, False, False, True])
    straight, back = (fxprune.analyze(Flipped(flip=flip), x).plan(masks={"first": keep}) for flip in (False, True))
    assert straight.removed == back.removed
    assert straight.structure is not None
    assert back.structure is not None
    assert straight.structure.fingerprint != back.structure.fingerprint
    with pytest.raises(fxprune.PlanError, match="other slots go together"):
        fxprune.transform(Flipped(flip=True), x, plan=straight)


def test_buffers_outside_state_dict_that_a_plan_does_not_cut_may_be_there_or_not() -> None:
    with_one, without, x = Flipped(flip=False), Flipped(flip=False), torch.ones(1, 3)
    with_one.register_buffer("table", torch.ones(5), persistent=False)
    for there, here in ((with_one, without), (without, with_one)):
        plan = fxprune.analyze(there, x).plan(ratio=0.5)
        assert fxprune.transform(here, x, plan=plan).first.out_features == 2


def test_the_fingerprint_knows_no_order(plan: Plan) -> None:
    made = plan.structure
    assert made is not None
    backwards = Structure(dict(reversed(made.shapes.items())), made.coupled[::-1])
    assert list(backwards.shapes) != list(made.shapes)
    assert backwards.fingerprint == made.fingerprint
    assert Structure(made.shapes).fingerprint != made.fingerprint


@pytest.mark.parametrize("make", [Plain, Literal])
@pytest.mark.parametrize("seed", range(3))
def test_then_is_one_after_the_other(make: Callable[[], nn.Module], seed: int) -> None:
    net, x = seeded(make, seed).double(), image().double()
    options = {"importance": "random", "ratio": 0.3}
    first = pruned(net, x, seed=seed, **options)
    second = pruned(first, x, seed=seed + 1, **options)
    one, two = fxprune.record(first).plan, fxprune.record(second).plan
    both = one.then(two)
    direct = fxprune.transform(net, x, plan=both)
    assert {n: t.tolist() for n, t in direct.state_dict().items()} == {
        n: t.tolist() for n, t in second.state_dict().items()
    }
    assert torch.equal(run(direct, x)[0], run(second, x)[0])
    assert set(fxprune.record(direct).plan.sizes) == set(both.sizes)
    for name, dims in both.removed.items():  # by brute force: names of slots instead of numbers
        for dim, gone in dims.items():
            slots = list(range(tuple(net.state_dict()[name].shape)[dim]))
            for plan in (one, two):
                removed = set(plan.removed.get(name, {}).get(dim, []))
                slots = [slot for place, slot in enumerate(slots) if place not in removed]
            assert sorted({*gone, *slots}) == list(range(len(gone) + len(slots)))
            assert not {*gone} & {*slots}
    third = pruned(second, x, seed=seed + 2, **options)
    three = fxprune.record(third).plan
    assert one.then(two).then(three).removed == one.then(two.then(three)).removed


def test_then_takes_plans_in_the_numbering_of_the_small_model_only(plan: Plan) -> None:
    with pytest.raises(fxprune.PlanError) as caught:
        plan.then(plan)
    text = str(caught.value)
    assert "not for the model that the first one leaves" in text
    assert 'it was made where "conv.weight" has shape (16, 3, 3, 3)' in text
    assert "the first plan leaves (10, 3, 3, 3)" in text
    assert "by `analyze` of the small model" in text
    for removed, what in (
        ({"conf.weight": {0: [0]}}, 'did you mean "conv.weight"'),
        ({"conv.weight": {0: [12]}}, "index 12"),
    ):
        with pytest.raises(fxprune.PlanError, match=what):
            plan.then(Plan(removed))
    with pytest.raises(fxprune.PlanError, match="written by hand"):
        Plan({}).then(plan)


def test_zeroed_indices_are_joined_in_the_numbering_of_the_original() -> None:
    structure = fxprune.analyze(seeded(Plain, 1), image()).plan(ratio=0.0).structure
    first = Plan({"conv.bias": {0: [1, 2]}}, zeroed={"conv.bias": {0: [1, 2, 7]}}, structure=structure)
    second = Plan({"conv.bias": {0: [1]}}, zeroed={"conv.bias": {0: [0, 1]}})  # 0 and 3 by their first numbers
    assert first.then(second).removed == {"conv.bias": {0: [1, 2, 3]}}
    assert first.then(second).zeroed == {"conv.bias": {0: [0, 1, 2, 3, 7]}}


def test_diff_is_what_one_removes_and_the_other_does_not() -> None:
    analysis = fxprune.analyze(seeded(Plain, 1), image())
    first = analysis.plan(masks={"conv": torch.tensor([False, False, True, False, True, True, True, True])})
    second = analysis.plan(masks={"conv": torch.arange(8) > 0, "wide": torch.arange(12) < 10})
    diff = first.diff(second)
    assert diff
    assert diff.only_first["conv.weight"] == {0: [1, 3]}
    assert diff.only_second["wide.weight"] == {0: [10, 11]}
    assert diff.only_first["wide.weight"] == {1: [1, 3]}
    assert "conv.weight[0]: only the first 1,3" in str(diff)
    assert "wide.weight[0]: only the second 10-11" in str(diff)
    assert not first.diff(first)
    assert str(first.diff(first)) == "both remove the same"
    other = fxprune.analyze(seeded(Wider, 1), image()).plan(ratio=0.5)
    with pytest.raises(fxprune.PlanError, match="for different models"):
        first.diff(other)


# -- indices as text ---------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 60)))
def test_ranges(indices: set[int]) -> None:
    ordered = sorted(indices)
    spans = spans_of(ordered)
    assert indices_of(parse(text_of(spans))) == ordered
    assert indices_of(between(spans, 61)) == sorted(set(range(61)) - indices)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("3,1", "must ascend"),
        ("1,1", "must ascend"),
        ("0-3,2", "must ascend"),
        ("5-5", "end after it begins"),
        ("5-3", "end after it begins"),
        ("0-3,4", "one range"),
        ("1,2", "one range"),
        ("01", "written like"),
        ("-1", "written like"),
        ("1 ,2", "written like"),
        ("1,", "written like"),
        ("\N{ARABIC-INDIC DIGIT ONE}", "written like"),
        ("1e3", "written like"),
        ("9" * 30, "written like"),
    ],
)
def test_there_is_one_way_to_write_a_set(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        parse(text)


# -- what is refused -----------------------------------------------------------------------------------------------


def at(*path: Any) -> Callable[[Any, Any], None]:
    """A setter of the value at a path."""

    def put(data: Any, value: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return put


WRONG: dict[str, tuple[Callable[[Any, Any], None], Any, list[str]]] = {
    "format": (at("format"), "onnx", ["no plan of fxprune"]),
    "version": (at("version"), 6, ['key "version": 6', "reads versions 1 to 5", "the fxprune that wrote it"]),
    "version text": (at("version"), "1", ["reads versions 1 to 5"]),
    "version without factors": (at("version"), 2, ['the key "factors" is missing']),
    "version without outputs": (at("version"), 3, ['the key "outputs" is missing']),
    "unknown key": (at("shape"), 1, ['nothing is known of the key "shape"']),
    "path": (at("path"), "jit", ['key "path": jit', "'eager'"]),
    "tensors a list": (at("tensors"), [], ['key "tensors": []', "must be an object"]),
    "shape of text": (at("tensors", "conv.weight", "shape"), ["16"], ["conv.weight.shape.0", "an integer"]),
    "shape of bool": (at("tensors", "conv.weight", "shape"), [True, 3, 3, 3], ["shape.0", "an integer"]),
    "shape of floats": (at("tensors", "conv.weight", "shape"), [16.0, 3, 3, 3], ["shape.0", "an integer"]),
    "negative shape": (at("tensors", "conv.weight", "shape"), [-1], ["from 0 to"]),
    "long shape": (at("tensors", "conv.weight", "shape"), [1] * 65, ["at most 64 dimensions"]),
    "indices a list": (at("tensors", "conv.weight", "removed"), {"0": [1, 2]}, ["removed.0", "must be a string"]),
    "out of range": (at("tensors", "conv.weight", "removed"), {"0": "16"}, ["index 16 is out of range", "has 16"]),
    "unsorted": (at("tensors", "conv.weight", "removed"), {"0": "3,1"}, ["must ascend"]),
    "no index": (at("tensors", "conv.weight", "removed"), {"0": ""}, ["no index is named"]),
    "no dimension": (at("tensors", "conv.weight", "removed"), {}, ['"removed" has no such key']),
    "a dimension too many": (at("tensors", "conv.weight", "removed"), {"4": "1"}, ["a dimension of the shape"]),
    "dimension -1": (at("tensors", "conv.weight", "removed"), {"-1": "1"}, ["a dimension of the shape"]),
    "dimension 00": (at("tensors", "conv.weight", "removed"), {"00": "1"}, ["a dimension of the shape"]),
    "all removed": (at("tensors", "conv.weight", "removed"), {"0": "0-15"}, ["one must stay"]),
    "both removed and kept": (at("tensors", "conv.weight", "kept"), {"0": "0-15"}, ['it contradicts "removed"']),
    "kept is missing": (at("tensors", "conv.weight", "kept"), {}, ['it stands in "removed"']),
    "kept alone": (at("tensors", "head.bias", "kept"), {"0": "0-4"}, ['the key "removed" is missing']),
    "other shape": (at("tensors", "head.bias", "shape"), [6], ['key "fingerprint"', "of this file give"]),
    "fingerprint": (at("fingerprint"), "0" * 64, ['key "fingerprint"', "of this file give"]),
    "coupled nowhere": (at("coupled", 0, "in"), ["conv.weight[9]"], ["coupled.0.in.0", "one of its dimensions"]),
    "zeroed": (at("zeroed"), {"nothing": {"0": "1"}}, ['"tensors" has no such key']),
    "zeroed range": (at("zeroed"), {"conv.bias": {"0": "99"}}, ["zeroed.conv.bias.0", "out of range"]),
    "biases": (at("biases"), "conv", ["must be a list"]),
    "kind of size": (at("sizes", 0, "kind"), "thing", ["must be one of"]),
    "size twice": (at("sizes", 1, "at"), "conv", ["sizes.1"]),
    "size of text": (at("sizes", 0, "new"), "10", ["an attribute is a number"]),
    "size an object": (at("sizes", 0, "new"), {}, ["must be a number, a text, null"]),
    "deep size": (at("sizes", 3, "new"), json.loads("[" * 20 + "]" * 20), ["nested too deeply"]),
    "reasons": (at("reasons"), [1], ["reasons.0", "must be a string"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_plans_are_refused(name: str, data: dict[str, Any], tmp_path: Path) -> None:
    put, value, fragments = WRONG[name]
    if name == "size twice":
        data["sizes"][1]["name"] = data["sizes"][0]["name"]
        fragments = ["the same place stands here twice"]
    put(data, value)
    with pytest.raises(fxprune.PlanError) as caught:
        plan_in(tmp_path, json.dumps(data))
    text = str(caught.value)
    assert f'the plan file "{tmp_path / "changed.json"}" is not what it should be' in text
    assert [f for f in fragments if f not in text] == [], text
    assert "make the plan anew" in text or "the fxprune that wrote it" in text


TEXTS = {
    "": "no JSON",
    "{": "line 1, column",
    "[]": "no plan of fxprune",
    "null": "no plan of fxprune",
    '{"format": "fxprune plan"}': 'the key "version" is missing',
    '{"format": "fxprune plan", "version": 1}': 'the key "versions" is missing',
    '{"a": 1, "a": 2}': 'the key "a" occurs twice',
    '{"format": NaN}': "NaN is no finite number",
    '{"format": -Infinity}': "-Infinity is no finite number",
    '{"format": 1e999}': "1e999 is no finite number",
    "[" * 100_000: "nested too deeply",
    "9" * 5000: "is not what it should be",
}


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_plan_file_that_is_broken_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(fxprune.PlanError) as caught:
        plan_in(tmp_path, text)
    assert TEXTS[text] in str(caught.value)


def test_a_short_text_cannot_name_endless_indices(data: dict[str, Any], tmp_path: Path) -> None:
    data["tensors"]["conv.weight"] |= {
        "shape": [2**40],
        "removed": {"0": f"0-{2**39}"},
        "kept": {"0": f"{2**39 + 1}-{2**40 - 1}"},
    }
    with pytest.raises(fxprune.PlanError, match="names more than"):
        plan_in(tmp_path, json.dumps(data))


def test_a_text_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "changed.json").write_bytes(b"\xff\xfe")
    with pytest.raises(fxprune.PlanError, match="no text in UTF-8"):
        Plan.load(tmp_path / "changed.json")
    with pytest.raises(fxprune.FxpruneError, match="no ordinary file"):
        Plan.load(tmp_path)
    for place, call in (
        ("nothing.json", Plan.load),
        ("nothing/plan.json", fxprune.analyze(nn.Linear(2, 2), torch.zeros(1, 2)).plan(ratio=0.5).save),
    ):
        with pytest.raises(FileNotFoundError, match="nothing") as raised:
            call(tmp_path / place)
        assert isinstance(raised.value, fxprune.FileError)
        assert raised.value.do


# -- mutants -----------------------------------------------------------------------------------------------------

VALUES = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2, 7, 16, 10**9, 2**63, 0.5, 1e300, [], {}, [[]], [1], {"0": "1"}),
        *("", "0", "1-3", "0-9", "conv", "conv.weight", "fx", ["conv.weight[0]"], {"shape": [3]}, "x" * 200),
        *("\N{SNOWMAN}", "\x00"),
    ]
)
FLIPS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3)


def mutated(data: Any, choose: random.Random, value: Any) -> Any:
    """A copy in which one value somewhere is another one, or is gone, or stands twice."""
    data = copy.deepcopy(data)
    node, path = data, []
    while isinstance(node, (dict, list)) and len(node) and (not path or choose.random() < 0.8):
        key = choose.choice(list(node) if isinstance(node, dict) else range(len(node)))
        path.append((node, key))
        node = node[key]
    parent, key = path[-1]
    match choose.randrange(4):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[choose.randrange(len(parent))]))
        case 2 if isinstance(parent, dict):
            parent[value if isinstance(value, str) else str(value)] = parent.pop(key)
        case _:
            parent[key] = value
    return data


def check_mutant(text: bytes, folder: Path) -> None:
    """Checks that a text is refused by an error of fxprune, or is a plan that is written as the same text again."""
    path = folder / "mutant.json"
    path.write_bytes(text)
    try:
        read = Plan.load(path)
    except fxprune.PlanError:
        return
    read.save(folder / "again.json")
    assert Plan.load(folder / "again.json") == read
    for name, dims in read.removed.items():
        for dim, gone in dims.items():
            assert np.array_equal(np.union1d(gone, read.kept[name][dim]), np.arange(read.structure.shapes[name][dim]))
    net = seeded(Literal, 1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    try:
        pruned(net, image(), plan=read, ratio=None, verify=False)
    except fxprune.FxpruneError:
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def mutant_test(examples: int) -> Callable[..., None]:
    @settings(MUTANTS, max_examples=examples)
    @given(seed=st.integers(0, 2**32), value=VALUES, flips=FLIPS)
    def test(seed: int, value: Any, flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.getbasetemp()
        original = folder / "original.json"
        if not original.exists():
            fxprune.record(pruned(seeded(Literal, 1), image())).plan.save(original)
        text = bytearray(original.read_bytes())
        if flips:
            for place, byte in flips:
                text[place % len(text)] = byte
        else:
            text = bytearray(json.dumps(mutated(json.loads(text), random.Random(seed), value)).encode())
        check_mutant(bytes(text), folder)

    return test


test_mutants = mutant_test(200)
test_many_mutants = pytest.mark.slow(mutant_test(2000))


def test_a_mutant_that_is_read_as_it_is_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of mutants fails where indices that are kept and removed are let through."""
    plan = fxprune.record(pruned(seeded(Literal, 1), image())).plan
    plan.save(tmp_path / "plan.json")
    monkeypatch.setattr(Plan, "kept", property(lambda self: self.removed))
    with pytest.raises(AssertionError):
        check_mutant((tmp_path / "plan.json").read_bytes(), tmp_path)


def test_attention_has_its_settings_in_the_plan() -> None:
    sizes = fxprune.record(pruned(seeded(Attention, 1), torch.randn(2, 3, 16))).plan.sizes
    assert {("attribute", "", "head_dim", 4), ("attribute", "", "split", 16)} <= {(*s.place, s.old) for s in sizes}


class Kinds(nn.Module):
    """Reads a layer only where an optional input is given."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.head = nn.Linear(4, 8), nn.Embedding(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, kind: Tensor | None = None) -> Tensor:
        x = self.body(x)
        out: Tensor = self.head(x if kind is None else x + self.kind(kind))
        return out


def test_a_layer_that_the_example_inputs_do_not_reach_is_named() -> None:
    model, x, kind = Kinds().eval(), torch.randn(2, 4), torch.tensor([0, 2])
    small = fxprune.transform(model, (x, kind), ratio=0.5)
    with pytest.raises(fxprune.PlanError, match=r'do not reach "kind.weight"(.|\n)*is an optional one missing'):
        fxprune.verify(model, small, x)
