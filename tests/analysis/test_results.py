"""`outputs`: parts of a result that do not count lose channels, are not compared, and are named."""

from __future__ import annotations

import collections
import copy
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.capture.output_paths import tensors_at
from tests.support import randomise, relative_error

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
GRAPHS = ["eager", "fx", "export"]

Named = collections.namedtuple("Named", "boxes features")


@dataclass
class Found:
    boxes: Any
    features: Any


class Detector(nn.Module):
    """A head over two stages, and a second head that only its own part of the result shows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1)
        self.side, self.last = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 5, 1)

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        first = torch.relu(self.stem(x))
        return [first, torch.relu(self.norm(self.deep(first)))]

    def forward(self, x: torch.Tensor) -> Any:
        features = self.features(x)
        return {"boxes": self.head(features[-1]), "features": [*features, self.last(self.side(features[-1]))]}


class InTuple(Detector):
    def forward(self, x: torch.Tensor) -> Any:
        features = self.features(x)
        return features, (self.head(features[-1]), None, 3)


class InFields(Detector):
    def forward(self, x: torch.Tensor) -> Any:
        features = self.features(x)
        return Named(self.head(features[-1]), features)


class InDataClass(Detector):
    def forward(self, x: torch.Tensor) -> Any:
        features = self.features(x)
        return Found(self.head(features[-1]), features)


class Learning(Detector):
    """Returns a loss and the boxes in training, as detectors do."""

    def forward(self, x: torch.Tensor) -> Any:
        found = super().forward(x)
        return (found["boxes"].square().mean(), self.stem(x)) if self.training else found


def detector(kind: type[Detector] = Detector) -> Detector:
    return randomise(kind(), 1).eval()


def reference(model: nn.Module, small: nn.Module) -> nn.Module:
    return fxprune.masked(model, fxprune.record(small).zeroed).double()


def part(result: Any, path: tuple[Any, ...]) -> list[torch.Tensor]:
    return [tensor for own, tensor in tensors_at(result) if own[: len(path)] == path]


@pytest.mark.parametrize(
    ("kind", "outputs", "counted"),
    [
        (Detector, ["boxes"], ("boxes",)),
        (Detector, ("features", 2), ("features", 2)),
        (InTuple, (1, 0), (1, 0)),
        (InTuple, -1, (1,)),
        (InFields, "boxes", ("boxes",)),
        (InFields, 0, ("boxes",)),
    ],
)
def test_only_the_named_part_keeps_its_shape(kind, outputs, counted):
    for path in GRAPHS:
        check_part(kind, outputs, counted, path)


@pytest.mark.parametrize("path", ["eager", "export"])
def test_a_field_of_a_data_class_is_a_part(path):
    check_part(InDataClass, ["boxes"], ("boxes",), path)


def check_part(kind, outputs, counted, path):
    model = detector(kind)
    small = fxprune.transform(model, X, ratio=0.5, outputs=outputs, path=path)
    record, before, after = fxprune.record(small), model(X), small(X)
    assert record.before["deep.weight"] == (12, 8, 3, 3)
    assert record.after["deep.weight"] == (6, 4, 3, 3)
    assert [t.shape for t in part(after, counted)] == [t.shape for t in part(before, counted)]
    ours, theirs = small.double()(X.double()), reference(model, small)(X.double())
    assert relative_error(part(ours, counted), part(theirs, counted)) < 1e-9
    assert record.compared
    assert record.error <= 1e-9
    pairs = zip(tensors_at(after), tensors_at(before), strict=True)
    changed = [own for (own, a), (_, b) in pairs if a.shape != b.shape]
    assert len(changed) >= 2


@pytest.mark.parametrize("path", GRAPHS)
def test_the_other_parts_hold_what_stays_of_them(path):
    model = detector()
    small = fxprune.transform(model, X, ratio=0.5, outputs="boxes", path=path)
    kept = [
        sorted({*range(n)} - {*fxprune.record(small).removed[name][0]})
        for n, name in ((8, "stem.bias"), (12, "deep.bias"))
    ]
    ours, theirs = small.double()(X.double())["features"], reference(model, small)(X.double())["features"]
    for number, channels in enumerate(kept):
        assert relative_error(ours[number], theirs[number][:, channels]) < 1e-9


def test_without_it_the_features_hold_their_channels():
    with pytest.raises(fxprune.PlanError, match="the only groups are side"):
        fxprune.transform(detector(), X, ratio={"deep": 0.5})


def test_several_parts_count_together():
    small = fxprune.transform(detector(), X, ratio=0.5, outputs=["boxes", ("features", 0)])
    after = fxprune.record(small).after
    assert (after["stem.weight"], after["deep.weight"]) == ((8, 3, 3, 3), (6, 8, 3, 3))
    assert fxprune.record(small).plan.outputs == (("boxes",), ("features", 0))


def test_record_and_report_name_what_does_not_count():
    model = detector()
    record = fxprune.record(fxprune.transform(model, X, ratio=0.5, outputs="boxes"))
    told = [
        'parts of the result that count as outputs: "boxes"; not compared: ("features", 0), ("features", 1), '
        '("features", 2)',
        '("features", 0) in the result has shape (2, 4, 8, 8), before (2, 8, 8, 8)',
    ]
    assert [text for text in told if text not in record.reasons] == []
    assert [text for text in told if text not in str(record)] == []
    assert [text for text in told if text not in record.report()] == []
    analysis = fxprune.analyze(model, X, outputs="boxes")
    assert told[0] in analysis.notes
    assert told[0] in json.loads(analysis.report("json"))["notes"]


def test_hooks_compare_only_what_counts():
    small = fxprune.transform(detector(), X, ratio=0.5, outputs="boxes", path="hooks")
    assert fxprune.record(small).compared == 2 * 4 * 8 * 8
    assert fxprune.record(small).after["last.weight"][0] < 5
    assert fxprune.record(small).after["head.weight"][0] == 4


def test_a_wrong_part_is_refused_before_anything_is_made():
    for call in (fxprune.analyze, fxprune.transform):
        with pytest.raises(fxprune.InputError, match='the result holds "boxes", "features"'):
            call(detector(), X, outputs="box")
        with pytest.raises(fxprune.InputError, match="outputs must be a path"):
            call(detector(), X, outputs=1.5)


def test_what_does_not_count_may_differ_and_what_counts_may_not():
    model = detector()
    small = fxprune.transform(model, X, ratio=0.5, outputs="boxes")
    with torch.no_grad():
        small.last.bias[0] += 1
    assert fxprune.verify(model, small, X) > 1e-3  # the operations inside are compared at the kept slots
    again = fxprune.transform(model, X, ratio=0.5, outputs="boxes")
    with torch.no_grad():
        again.head.bias[0] += 1
    assert fxprune.verify(model, again, X) > 1e-3


# -- plans --------------------------------------------------------------------------------------------------


def test_a_plan_says_which_outputs_count(tmp_path):
    model = detector()
    plan = fxprune.analyze(model, X, outputs=["boxes"]).plan(ratio=0.5)
    assert plan.outputs == (("boxes",),)
    plan.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    assert (data["version"], data["outputs"]) == (3, [["boxes"]])
    assert fxprune.Plan.load(tmp_path / "plan.json") == plan
    small = fxprune.transform(model, X, plan=fxprune.Plan.load(tmp_path / "plan.json"))
    assert fxprune.record(small).after["deep.weight"] == (6, 4, 3, 3)
    assert fxprune.record(small).plan.outputs == (("boxes",),)


@pytest.mark.parametrize("wrong", [[], [[]], [[True]], [[1.5]], ["boxes"], "boxes", None])
def test_a_file_with_wrong_outputs_is_refused(tmp_path, wrong):
    path = tmp_path / "plan.json"
    fxprune.analyze(detector(), X, outputs=["boxes"]).plan(ratio=0.5).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "outputs": wrong}))
    with pytest.raises(fxprune.PlanError, match="outputs"):
        fxprune.Plan.load(path)


def test_a_plan_for_one_output_is_not_asked_for_another():
    model = detector()
    plan = fxprune.analyze(model, X, outputs="boxes").plan(ratio=0.5)
    with pytest.raises(fxprune.PlanError, match='"features" is no output of the plan'):
        fxprune.transform(model, X, plan=plan, outputs="features")
    small = fxprune.transform(model, X, plan=plan)
    with pytest.raises(fxprune.PlanError, match='"features" is no output of the plan'):
        fxprune.verify(model, small, X, outputs="features")
    assert fxprune.verify(model, small, X, outputs="boxes") <= 1e-9
    with pytest.raises(fxprune.FxpruneError):  # all outputs would have to keep their shape
        fxprune.analyze(model, X).cost(plan)


def test_a_plan_for_all_outputs_is_compared_on_some():
    model = detector()
    plan = fxprune.analyze(model, X).plan(ratio={"side": 0.5})
    small = fxprune.transform(model, X, plan=plan, outputs="boxes")
    assert fxprune.record(small).plan.outputs == (("boxes",),)
    assert fxprune.record(small).after["side.weight"] == (3, 12, 1, 1)
    assert fxprune.record(small).after["deep.weight"] == (12, 8, 3, 3)


def test_two_prunings_keep_the_outputs_that_both_keep():
    model = detector()
    first = fxprune.transform(model, X, ratio=0.25, outputs=["boxes", ("features", 2)])
    second = fxprune.transform(first, X, ratio=0.25, outputs="boxes")
    both = fxprune.record(first).then(fxprune.record(second))
    assert both.plan.outputs == (("boxes",),)
    once = fxprune.transform(model, X, plan=both.plan)
    assert relative_error(once(X), second(X)) < 1e-5
    third = fxprune.transform(second, X, ratio=0.25)
    assert fxprune.record(second).plan.then(fxprune.record(third).plan).outputs == (("boxes",),)
    other = fxprune.transform(second, X, ratio=0.25, outputs=("features", 0))
    with pytest.raises(fxprune.PlanError, match='no output in common\n  why  the first keeps "boxes"'):
        fxprune.record(second).plan.then(fxprune.record(other).plan)


def test_a_file_keeps_the_outputs(tmp_path):
    model = detector()
    small = fxprune.transform(model, X, ratio=0.5, outputs="boxes")
    fxprune.save(small, tmp_path / "small.safetensors")
    loaded = fxprune.load(tmp_path / "small.safetensors", into=detector())
    assert fxprune.record(loaded).plan.outputs == (("boxes",),)
    assert fxprune.verify(model, loaded, X) <= 1e-9
    assert fxprune.record(copy.deepcopy(small)).plan.outputs == (("boxes",),)


# -- constants, modes, programs, several inputs -------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"ratio": 0.5, "bias": "fold"}, {"masks": "zeros"}, {"ratio": 0.5, "norms": "preserve"}]
)
def test_with_constants_and_preserved_norms(options):
    model = detector()
    with torch.no_grad():
        model.stem.weight[:3] = 0
    small = fxprune.transform(model, X, outputs="boxes", **options)
    assert fxprune.record(small).after["stem.weight"][0] < 8
    boxes = relative_error(small(X)["boxes"].double(), reference(model, small)(X.double())["boxes"])
    assert boxes < 1e-5
    assert fxprune.record(small).error <= 1e-9


def test_a_layer_that_no_counting_output_reads_has_no_influence():
    small = fxprune.transform(detector(), X, masks="zeros", outputs="boxes")
    assert fxprune.record(small).after["last.weight"][0] == 1
    assert fxprune.record(small).after["head.weight"] == (4, 12, 1, 1)


def test_a_result_of_another_form_counts_as_a_whole_in_training():
    model = detector(Learning)
    small = fxprune.transform(model, X, ratio=0.5, outputs="boxes")
    record = fxprune.record(small)
    assert record.after["stem.weight"] == (8, 3, 3, 3)  # training returns it
    assert record.after["deep.weight"] == (6, 8, 3, 3)
    assert "the result has another form in training mode, and all of it counts as output there" in record.reasons
    assert model.train()(X)[1].shape == small.train()(X)[1].shape


def test_a_part_of_a_result_of_another_form_counts_where_a_path_leads_to_it():
    model = detector(Learning)
    small = fxprune.transform(model, X, ratio=0.5, outputs=["boxes", 0])
    record = fxprune.record(small)
    assert record.after["stem.weight"] == (4, 3, 3, 3)
    assert "the result has another form in training mode, and 0 of it counts as output there" in record.reasons
    assert record.plan.outputs == (("boxes",), (0,))
    assert fxprune.verify(model, small, X) <= 1e-9
    again = fxprune.transform(model, X, plan=record.plan)
    assert fxprune.record(again).after == record.after
    made, expected = small.train()(X), model.train()(X)
    assert made[0].shape == expected[0].shape
    assert made[1].shape[1] == expected[1].shape[1] // 2


def test_a_path_that_no_result_has_is_refused():
    with pytest.raises(fxprune.InputError, match='no part "bxes"'):
        fxprune.transform(detector(Learning), X, ratio=0.5, outputs=["boxes", 0, "bxes"])
    with pytest.raises(fxprune.InputError, match="no part 0"):
        fxprune.transform(detector(), X, ratio=0.5, outputs=["boxes", 0, 4])


def test_a_part_may_be_one_of_a_mode_that_was_not_looked_at():
    class Raising(Detector):
        def forward(self, x: torch.Tensor) -> Any:
            if self.training:
                raise ValueError("targets are needed")
            return super().forward(x)

    record = fxprune.record(fxprune.transform(detector(Raising), X, ratio=0.5, outputs=["boxes", "loss"]))
    assert 'no result that was looked at has the part "loss", which counts as output' in record.reasons


def test_a_result_of_the_same_form_counts_in_parts_in_training():
    class Dropping(Detector):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(torch.nn.functional.dropout(x, 0.5, self.training))

    model = detector(Dropping)
    small = fxprune.transform(model, X, ratio=0.5, outputs="boxes", path="eager")
    assert fxprune.record(small).after["stem.weight"] == (4, 3, 3, 3)
    assert not [text for text in fxprune.record(small).reasons if "another form" in text]
    assert small.train()(X)["boxes"].shape == (2, 4, 8, 8)


def test_results_of_further_inputs_count_as_they_do_on_the_first():
    class Either(Detector):
        def forward(self, x: torch.Tensor) -> Any:
            found = super().forward(x)
            return found if x.shape[0] > 1 else {**found, "stem": self.stem(x)}

    model = detector(Either)
    also = fxprune.record(fxprune.transform(model, X, ratio=0.5, outputs="boxes", also=[X[:, :, :4]], path="eager"))
    assert also.after["stem.weight"] == (4, 3, 3, 3)
    other = fxprune.record(fxprune.transform(model, X, ratio=0.5, outputs="boxes", also=[X[:1]], path="eager"))
    assert other.after["stem.weight"] == (8, 3, 3, 3)
    assert "the result has another form on some of the inputs, and all of it counts as output there" in other.reasons


def test_a_program_comes_back_with_smaller_features():
    program = torch.export.export(detector(), (X,))
    small = fxprune.transform(program, X, ratio=0.5, outputs="boxes")
    assert small.module()(X)["features"][0].shape == (2, 4, 8, 8)
    assert fxprune.verify(program, small, X) <= 1e-9


def test_a_forward_that_decides_by_numbers_has_outputs_too():
    class Deciding(Detector):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x + 1 if x.sum() > 0 else x - 1)

    small = fxprune.transform(detector(Deciding), X, ratio=0.5, outputs="boxes")
    assert fxprune.record(small).after["deep.weight"] == (6, 4, 3, 3)
