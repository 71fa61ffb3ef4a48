"""Plans edited by hand: what is coupled follows, and what does not fit together is refused."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Net(nn.Module):
    """A residual stream of convolutions, one of them with groups, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.split = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.outer = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.split(torch.relu(self.inner(x)))))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


class Attention(nn.Module):
    """Attention whose head width is one number for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 4
        self.q, self.k, self.v = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 12)
        self.out, self.norm = nn.Linear(12, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens."""
        q, k, v = (f(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.norm(self.out(y.transpose(1, 2).flatten(2)))


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def made(model: nn.Module) -> nn.Module:
    """The model with random statistics, in evaluation mode."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5) if "var" in name else tensor.data.normal_()
    return model.eval()


def net() -> tuple[nn.Module, fxprune.Analysis]:
    torch.manual_seed(0)
    model = made(Net())
    return model, fxprune.analyze(model, IMAGES)


def proven(model: nn.Module, x: Tensor, plan: fxprune.Plan) -> nn.Module:
    """The small model of a plan, which equals its reference."""
    small = fxprune.transform(model, x, plan=plan)
    error = fxprune.record(small).error
    assert error is not None
    assert error < 1e-9
    return small


def test_coupled_channels_go_and_come_back_together() -> None:
    model, analysis = net()
    plan = analysis.plan(ratio=0.0)
    edited = plan.remove("stem", [1, 5])
    assert edited.removed["outer.weight"][0] == edited.removed["norm.running_var"][0] == [1, 5]
    assert edited.removed["head.weight"][1] == [4, 5, 6, 7, 20, 21, 22, 23]
    assert proven(model, IMAGES, edited).stem.out_channels == 6
    again = edited.restore("outer", 5)
    assert again.removed["stem.weight"][0] == [1]
    assert again.restore("norm", torch.tensor([1])).removed == {} == plan.removed
    assert again.reasons[-1].startswith("by hand: plan.restore of 1 channel in group")
    assert plan.removed == {}  # a plan does not change


@pytest.mark.parametrize("layer", ["stem", "stem:channels", 0, "stem.weight"])
def test_layers_and_groups_are_named_as_elsewhere(layer: Any) -> None:
    model, analysis = net()
    plan = analysis.plan(counts={0: 8})
    assert plan.remove(layer, range(2)) == plan.remove({layer: [1, 0]})
    assert plan.remove(layer, [0, 1]).removed == plan.remove(model.stem, (0, 1)).removed
    assert plan.remove(analysis.groups[0], [0, 1]).removed == plan.remove("stem", [0, 1]).removed


def test_an_edit_undone_is_the_plan_itself() -> None:
    _, analysis = net()
    plan = analysis.plan(ratio=0.5)
    gone = plan.removed["stem.weight"][0]
    back = plan.restore("stem", gone).remove("stem", gone)
    assert (back.removed, back.structure, back.path) == (plan.removed, plan.structure, plan.path)


def test_rows_of_a_grid_go_whole() -> None:
    model, analysis = net()
    plan = analysis.plan(ratio=0.0)
    with pytest.raises(fxprune.PlanError, match="only whole rows or columns"):
        plan.remove("split", [4])
    with pytest.raises(fxprune.PlanError, match="index 4 cannot go") as raised:
        plan.remove("inner", [4])
    assert ":blocks@" in raised.value.do
    whole = plan.remove("inner", range(4, 8))
    assert proven(model, IMAGES, whole).split.groups == 2
    with pytest.raises(fxprune.PlanError, match="index 4 cannot come back alone") as raised:
        whole.restore("inner", [4])
    assert "index 5, 6, 7 would come back too" in raised.value.why
    assert ":blocks@" in raised.value.why
    assert whole.restore("inner", range(4, 8)).removed == {}
    block = next(group for group in analysis.groups if group.kind == "blocks")
    assert plan.remove(block, [1]).removed == whole.removed
    assert whole.restore(block.key, 1).removed == {}


def test_widths_that_are_one_number_are_edited_together() -> None:
    torch.manual_seed(0)
    model = made(Attention())
    plan = fxprune.analyze(model, TOKENS).plan(ratio=0.0)
    widths = ["q:head width", "v:head width"]
    assert [f"{group.name}:{group.kind}" for group in plan.findings.groups if group.kind == "head width"] == widths
    for edit, start in (("remove", plan), ("restore", plan.remove({key: [0, 1] for key in widths}))):
        with pytest.raises(fxprune.PlanError, match="cannot run") as raised:
            getattr(start, edit)(widths[0], 0)
        assert "head_dim" in raised.value.why
        assert 'group "q:head width' in raised.value.at
        assert f"in one call: plan.{edit}(" in raised.value.do
        small = proven(model, TOKENS, getattr(start, edit)(dict.fromkeys(widths, 0)))
        assert small.head_dim == 3


class Chooses(nn.Module):
    """Takes the three largest of its hidden numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors to their three largest features."""
        return self.first(x).topk(3).values


def test_a_dimension_is_not_emptied_nor_too_small_to_choose_from() -> None:
    _, analysis = net()
    plan = analysis.plan(counts={"stem": 1})
    (last,) = {*range(8)} - {*plan.removed["stem.weight"][0]}
    with pytest.raises(fxprune.PlanError, match="cannot run") as raised:
        plan.remove("stem", last)
    assert 'group "stem:channels@stem.weight[0]"' in raised.value.at
    assert "it would be empty" in raised.value.why
    choosing = fxprune.analyze(Chooses(), torch.randn(2, 4)).plan(ratio=0.0)
    choosing.remove("first", [0, 1, 2])
    with pytest.raises(fxprune.PlanError, match="chooses 3 of its slots"):
        choosing.remove("first", [0, 1, 2, 3])


def test_a_statistic_that_changes_is_refused_under_exact() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    plan = fxprune.analyze(model, torch.randn(2, 4)).plan(ratio=0.0)
    assert plan.remove("2", 1, exact=True).removed["2.weight"] == {0: [1]}
    assert plan.remove("0", 1).removed["1.weight"] == {0: [1]}
    with pytest.raises(fxprune.PlanError, match="not exact") as raised:
        plan.remove("0", 1, exact=True)
    assert "layer_norm" in raised.value.why
    assert 'group "0:channels' in raised.value.at


WRONG: list[tuple[str, Any, Any, str]] = [
    ("remove", "head", [1], "output of the model"),
    ("remove", "stem", [8], "no index 8"),
    ("remove", "stem", [-1], "no index -1"),
    ("remove", "stem", [], "no index is given"),
    ("remove", "stem", None, "no index is given"),
    ("remove", "stem", "12", "no numbers"),
    ("remove", "stem", [True, False], "flags, not numbers"),
    ("remove", "stem", torch.ones(8, dtype=torch.bool), "flags, not numbers"),
    ("remove", "stem", [1.0], "no numbers"),
    ("remove", "stem", 3.5, "no numbers"),
    ("remove", "stem", [0], "index 0 goes already"),
    ("restore", "stem", [1], "index 1 stays already"),
    ("remove", "*er", [0], "names 2"),
    ("remove", nn.Conv2d, [0], "names 4"),
    ("remove", "stam", [0], "stem"),
    ("remove", 99, [0], "group 99"),
    ("remove", {}, None, "the dict is empty"),
    ("remove", {"stem": 1}, [1], "a dict has the indices"),
]


@pytest.mark.parametrize(("edit", "layer", "indices", "text"), WRONG)
def test_an_edit_that_makes_no_sense_is_refused(edit: str, layer: Any, indices: Any, text: str) -> None:
    _, analysis = net()
    plan = analysis.plan(ratio=0.0).remove("stem", 0)
    with pytest.raises(fxprune.PlanError, match=text):
        getattr(plan, edit)(layer, indices)


def test_plans_of_files_and_records_are_edited_with_an_analysis(tmp_path: Path) -> None:
    model, analysis = net()
    plan = analysis.plan(ratio=0.5)
    plan.save(tmp_path / "plan.json")
    index = plan.removed["stem.weight"][0][0]
    for other in (
        fxprune.Plan.load(tmp_path / "plan.json"),
        fxprune.record(analysis.transform(plan)).plan,
        pickle.loads(pickle.dumps(plan)),
        copy.deepcopy(plan),
    ):
        with pytest.raises(fxprune.PlanError, match="knows no analysis"):
            other.restore("stem", index)
        edited = other.restore("stem", index, analysis=analysis)
        assert edited.removed == plan.restore("stem", index).removed
        edited.save(tmp_path / "edited.json")
        assert fxprune.Plan.load(tmp_path / "edited.json") == edited
        assert proven(model, IMAGES, edited).stem.out_channels == 5


def test_a_record_does_not_hold_the_original() -> None:
    model, analysis = net()
    small, alive = analysis.transform(analysis.plan(ratio=0.5)), weakref.ref(model)
    del model, analysis
    gc.collect()
    assert small(IMAGES).shape == (2, 5)
    assert alive() is None


def test_a_plan_of_another_model_and_a_folded_one_are_refused() -> None:
    model, analysis = net()
    with torch.no_grad():
        model.inner.weight[:4] = 0.0
        model.outer.weight[0] = 0.0
    other = fxprune.analyze(nn.Linear(3, 4), torch.randn(1, 3))
    with pytest.raises(fxprune.PlanError, match="another model"):
        analysis.plan(ratio=0.5).restore("stem", 0, analysis=other)
    with pytest.raises(fxprune.PlanError, match="folded constants cannot be edited"):
        analysis.plan(ratio=0.5, bias="fold").remove("stem", 0)
