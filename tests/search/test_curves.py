"""Sensitivity and pareto: their numbers are those of the slow way, and runs go on from their files."""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune._repair import repaired
from fxprune._search import candidates
from fxprune._search.drawing import draw
from fxprune.errors import FileError, InputError, PlanError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    ).eval()  # fmt: skip


def data(count: int = 4, size: int = 16) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.randn(count * size, 3, 8, 8).split(size))


def away(model: nn.Module, made: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((made(x) - model(x)).square().mean())


def score(made: nn.Module) -> float:
    """The mean square of the difference to the original, as a score."""
    return -away(net(), made, data()[0])


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# -- numbers ---------------------------------------------------------------------------------------------------


def test_sensitivity_scores_what_transform_and_repair_give() -> None:
    model, batches = net(), data()
    found = fxprune.sensitivity(model, batches[0], score, ratios=(0.5, 0.25), repair=batches)
    assert found.measure == "score"
    assert found.whole == pytest.approx(0.0, abs=1e-12)
    assert [(point.group[0], point.ratio, point.kept) for point in found.points] == [
        ("0", 0.25, 6), ("0", 0.5, 4), ("3", 0.25, 9), ("3", 0.5, 6),
    ]  # fmt: skip
    for point in found.points:
        small = fxprune.transform(model, batches[0], ratio={point.group: point.ratio})
        assert point.value == pytest.approx(score(small), rel=1e-6)
        assert point.repaired == pytest.approx(score(fxprune.repair(small, model, batches)), rel=1e-6)
        assert point.repaired > point.value
        assert point.macs == pytest.approx(fxprune.cost(small, batches[0]).macs / fxprune.cost(model, batches[0]).macs)


def test_pareto_scores_what_transform_and_repair_give() -> None:
    model, batches = net(), data()
    found = fxprune.pareto(model, batches[0], score, budgets=(0.6, 0.3), repair=batches, importance="l1")
    for point in found.points:
        small = fxprune.transform(model, batches[0], keep={"macs": point.budget}, importance="l1")
        assert point.value == pytest.approx(score(small), rel=1e-6)
        assert point.repaired == pytest.approx(score(fxprune.repair(small, model, batches)), rel=1e-6)
        made = fxprune.cost(small, batches[0])
        assert (point.params, point.bytes, point.macs) == (made.params, made.bytes, made.macs)
        assert point.kept <= point.budget
        assert point.met
    assert found.points[0].kept > found.points[1].kept


def test_without_a_score_the_outputs_are_compared_on_samples_that_take_no_part_in_the_repair() -> None:
    model, batches = net(), data(12, 8)
    found = fxprune.pareto(model, batches[0], budgets=(0.3,), repair=batches)
    small = fxprune.transform(model, batches[0], keep={"macs": 0.3})
    held = [3, 7, 11]
    errors = []
    for number in held:
        with torch.no_grad():
            ours, theirs = small(batches[number]), model(batches[number])
        errors.append(((ours - theirs).square().sum(1) / theirs.square().sum(1)).double())
    assert found.measure == "error"
    assert found.whole == 0.0
    assert found.points[0].value == pytest.approx(float(torch.cat(errors).mean()), rel=1e-5)
    poisoned = [torch.full_like(x, torch.nan) if number in held else x for number, x in enumerate(batches)]
    with pytest.raises(InputError, match="not finite"):
        fxprune.pareto(model, batches[0], budgets=(0.3,), repair=poisoned)


def test_one_batch_of_several_samples_is_split_and_labels_are_left_out() -> None:
    model, batches = net(), data(1, 40)
    labelled = [(batches[0], torch.zeros(40))]
    plain = fxprune.pareto(model, batches[0], budgets=(0.3,), repair=batches)
    assert plain == fxprune.pareto(
        model, batches[0], budgets=(0.3,), repair=iter(labelled), repair_inputs=lambda batch: batch[0]
    )
    assert plain == fxprune.pareto(model, batches[0], budgets=(0.3,), repair=batches[0].split(4))


def test_a_share_that_removes_no_channel_has_the_score_of_the_original() -> None:
    calls: list[nn.Module] = []

    def counted(made: nn.Module) -> float:
        calls.append(made)
        return 1.0

    found = fxprune.sensitivity(net(), data()[0], counted, ratios=(0.01, 0.5), groups="0")
    assert (found.points[0].kept, found.points[0].macs) == (8, 1.0)
    assert len(calls) == 2  # the original, and half of the group


def test_groups_and_ignore_choose_the_groups() -> None:
    model, x = net(), data()[0]
    for options in ({"groups": "3"}, {"groups": ["3"]}, {"groups": 1}, {"ignore": "0"}):
        found = fxprune.sensitivity(model, x, score, ratios=(0.5,), **options)
        assert [point.group[0] for point in found.points] == ["3"], options
    with pytest.raises(PlanError, match="conv"):
        fxprune.sensitivity(model, x, score, groups="conv")


def test_scores_of_a_criterion_are_computed_once() -> None:
    seen: list[int] = []

    def importance(group: fxprune.Group) -> Any:
        seen.append(group.number)
        return torch.arange(group.size)

    fxprune.pareto(net(), data()[0], score, budgets=(0.7, 0.5, 0.3), importance=importance)
    assert sorted(seen) == [0, 1]


# -- what stays as it was --------------------------------------------------------------------------------------


def test_the_original_does_not_change_even_if_the_score_trains_what_it_gets() -> None:
    model, batches = net().train(), data()
    before = state(model)

    def trained(made: nn.Module) -> float:
        for parameter in made.parameters():
            parameter.data.zero_()
        return 1.0

    found = fxprune.sensitivity(model, batches[0], trained, ratios=(0.5,), repair=batches)
    assert all(point.repaired == 1.0 for point in found.points)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_models_that_were_measured_are_freed_as_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[nn.Module]] = []

    def noted(*args: Any) -> Any:
        assert not any(reference() is not None for reference in made)
        found = repaired(*args)
        made.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(candidates, "repaired", noted)
    fxprune.pareto(net(), data()[0], budgets=(0.7, 0.6, 0.5), repair=data())
    assert len(made) == 3


# -- files -----------------------------------------------------------------------------------------------------


def test_a_run_that_was_interrupted_goes_on_from_its_file(tmp_path: Path) -> None:
    model, batches, path = net(), data(), tmp_path / "run.json"
    before = state(model)
    left = [3]

    def dying(made: nn.Module) -> float:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return score(made)

    options: dict[str, Any] = {"ratios": (0.5,), "repair": batches, "file": path}
    with pytest.raises(KeyboardInterrupt):
        fxprune.sensitivity(model, batches[0], dying, **options)
    done = json.loads(path.read_text())["steps"]
    assert len(done) == 2  # the original and one small model, as cut and repaired
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    left[0] = 2
    found = fxprune.sensitivity(model, batches[0], dying, **options)
    assert left[0] == 0
    assert found == fxprune.sensitivity(model, batches[0], score, ratios=(0.5,), repair=batches)
    assert found == fxprune.sensitivity(model, batches[0], dying, **options)  # which measures nothing
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ({"budgets": (0.4,)}, "budgets"),
        ({"importance": "l1"}, "options"),
        ({"key": "params"}, "key"),
        ({"repair_mode": "bias"}, "mode"),
        ({"score": None}, "measure"),
        ({"repair": data(3)}, "data"),
        ({"model": copy.deepcopy(net())}, ""),
        ({"model": net().apply(lambda module: [p.data.mul_(2) for p in module.parameters(recurse=False)])}, "weights"),
    ],
)  # fmt: skip
def test_a_file_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any], at: str) -> None:
    path = tmp_path / "run.json"
    same: dict[str, Any] = {"model": net(), "score": score, "budgets": (0.5,), "repair": data()}

    def run(model: nn.Module, **options: Any) -> Any:
        return fxprune.pareto(model, data()[0], file=path, **options)

    first = run(**same)
    text = path.read_text()
    if not at:
        assert run(**{**same, **change}) == first
        return
    with pytest.raises(FileError, match="is of another run") as raised:
        run(**{**same, **change})
    assert raised.value.at == at
    assert path.read_text() == text


def test_files_that_are_no_such_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for text in ("", "[]", "{}", '{"schema": "fxprune.pareto-run/1", "run": {}, "steps": {}}', '{"a": NaN}'):
        path.write_text(text)
        with pytest.raises(FileError):
            fxprune.sensitivity(net(), data()[0], score, file=path)
    path.unlink()
    fxprune.sensitivity(net(), data()[0], score, ratios=(0.5,), file=path)
    path.write_text(path.read_text().replace('"value": -', '"value": [], "more": -'))
    with pytest.raises(FileError, match="number"):
        fxprune.sensitivity(net(), data()[0], score, ratios=(0.5,), file=path)
    with pytest.raises(FileError, match="cannot write"):
        fxprune.sensitivity(net(), data()[0], score, file=tmp_path / "none" / "run.json")


# -- results ---------------------------------------------------------------------------------------------------


def test_results_are_shown_as_a_table_as_json_and_as_a_picture(tmp_path: Path) -> None:
    model, batches = net(), data()
    for repair in (None, batches):
        found = fxprune.sensitivity(model, batches[0], lambda made: 0.5, ratios=(0.5,), repair=repair)
        text = found.to_json(tmp_path / "found.json")
        assert json.loads(text) == json.loads((tmp_path / "found.json").read_text())
        assert json.loads(text)["points"][0]["value"] == 0.5
        assert str(found).splitlines()[2].split() == ["group", "channels", "50%"]
        row = str(found).splitlines()[4].split()
        assert row == ["0", "8", "0.5"] + ["->", "0.5"] * (repair is not None)
        curve = fxprune.pareto(model, batches[0], lambda made: 0.5, budgets=(0.5,), repair=repair)
        assert json.loads(curve.to_json())["key"] == "macs"
        assert str(curve).splitlines()[4].split()[-2:] == ["0.5"] * 2 if repair else True
        for one in (found, curve):
            with pytest.raises(fxprune.InputError, match="the picture cannot be written"):
                one.plot(tmp_path / "found.xyz")
            ax = one.plot(tmp_path / "found.png")
            assert len(ax.lines) == len({point.group for point in found.points} if one is found else [0]) * (
                1 + (repair is not None)
            )
            assert (tmp_path / "found.png").stat().st_size > 1000


# -- wrong requests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "much", True, torch.ones(2), [0.5], 1j])
def test_a_score_that_is_no_finite_number_is_refused(value: Any) -> None:
    for run in (fxprune.sensitivity, fxprune.pareto):
        with pytest.raises(InputError, match="the score is no finite number"):
            run(net(), data()[0], lambda made: value)


@pytest.mark.parametrize("value", [1, 0.5, torch.tensor(0.5), torch.tensor([2]), torch.ones(1, requires_grad=True)])
def test_a_score_may_be_any_number(value: Any) -> None:
    assert fxprune.pareto(net(), data()[0], lambda made: value, budgets=(0.5,)).whole == torch.as_tensor(value).item()


def test_errors_in_a_score_are_told_with_their_cause() -> None:
    def broken(made: nn.Module) -> float:
        raise KeyError("labels")

    with pytest.raises(InputError, match="the score raises") as raised:
        fxprune.sensitivity(net(), data()[0], broken)
    assert "KeyError" in raised.value.why
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize("ratios", [(), (0.0,), (1.0,), (0.5, 2), ("a",), (True,), 0.5, "half", (float("nan"),)])
def test_wrong_ratios_are_refused(ratios: Any) -> None:
    with pytest.raises(InputError, match="ratio"):
        fxprune.sensitivity(net(), data()[0], score, ratios=ratios)


@pytest.mark.parametrize(
    ("budgets", "key"), [((1.5,), "macs"), ((0.5, "50%"), "macs"), ((0.5, 1), "params"), ((5,), "latency")]
)
def test_budgets_that_make_no_sense_are_refused_before_the_model_is_run(budgets: Any, key: str) -> None:
    model = net()
    model.register_forward_pre_hook(lambda *_: pytest.fail("it was run"))
    with pytest.raises(PlanError):
        fxprune.pareto(model, data()[0], score, budgets=budgets, key=key)


@pytest.mark.parametrize("budgets", [(), 0.5, (1.5,), (10**12,), ("much",), (1,), (0.5, None)])
def test_wrong_budgets_are_refused_before_anything_is_measured(budgets: Any) -> None:
    with pytest.raises((InputError, PlanError)):
        fxprune.pareto(net(), data()[0], lambda made: pytest.fail("it was scored"), budgets=budgets)


def test_other_wrong_requests_are_refused() -> None:
    model, x = net(), data()[0]
    with pytest.raises(InputError, match="nothing to measure by"):
        fxprune.pareto(model, x)
    with pytest.raises(InputError, match="there is no batch"):
        fxprune.pareto(model, x, repair=[])
    with pytest.raises(InputError, match="batches must be"):
        fxprune.pareto(model, x, repair=x)
    with pytest.raises(InputError, match="at least two samples"):
        fxprune.pareto(model, x, repair=[x[:1]])
    with pytest.raises(InputError, match="there is no option 'importanc'"):
        fxprune.pareto(model, x, score, importanc="l1")
    with pytest.raises(InputError, match="there is no repair mode"):
        fxprune.sensitivity(model, x, score, repair=[x], repair_mode="all")
    with pytest.raises(PlanError, match="there is no such budget"):
        fxprune.pareto(model, x, score, key="mac")
    with pytest.raises(PlanError, match="nothing to measure"):
        fxprune.sensitivity(nn.Linear(3, 2), torch.randn(1, 3), score)


def test_labels_among_the_inputs_are_refused_with_the_option_that_picks_them() -> None:
    model, batches = net(), [(x, torch.zeros(len(x))) for x in data()]
    small = fxprune.transform(model, data()[0], ratio=0.5)
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("repair_inputs=lambda", lambda: fxprune.pareto(model, data()[0], repair=batches)),
        ("repair_inputs=lambda", lambda: fxprune.sensitivity(model, data()[0], repair=batches)),
        ("repair_inputs=lambda", lambda: fxprune.transform(model, data()[0], keep={"macs": 0.5}, repair=batches)),
        (" inputs=lambda", lambda: fxprune.repair(small, model, batches)),
    ]
    for text, call in calls:
        with pytest.raises(InputError, match="does not fit the model") as raised:
            call()
        assert text in f" {raised.value.do}".replace("`", " ")


def test_no_groups_are_no_request():
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    with pytest.raises(fxprune.PlanError, match="groups names nothing"):
        fxprune.sensitivity(net, x, lambda model: 0.5, ratios=(0.5,), groups=[])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.g(torch.relu(self.f(x))))


def test_curves_of_a_model_without_branches_count_from_the_original(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), *(Block() for _ in range(3)), nn.Linear(8, 3)).eval()
    batches, file = [torch.randn(8, 4) for _ in range(6)], tmp_path / "run.json"
    options: dict[str, Any] = {"budgets": (0.9, 0.4), "repair": batches, "drop": [model[2]], "ignore": model[3].f}
    found = fxprune.pareto(model, batches[0], **options, file=file)
    whole = fxprune.cost(model, batches[0]).macs
    for point, share in zip(found.points, (0.9, 0.4), strict=True):
        small = fxprune.transform(model, batches[0], keep={"macs": share}, drop=[model[2]], ignore=model[3].f)
        assert point.macs == fxprune.cost(small, batches[0]).macs
        assert point.kept == point.macs / whole <= share
        assert 0 < point.repaired < point.value
    assert found.points[0].kept < 0.75  # nothing but the branch goes
    with pytest.raises(FileError, match="is of another run"):
        fxprune.pareto(model, batches[0], **{**options, "drop": [model[1]]}, file=file)


@pytest.mark.parametrize(
    ("budgets", "key", "at"),
    [
        ([0.5, 1.5], "macs", "budgets=[1.5], key='macs'"),
        ([{}], "macs", "budgets=[{}], key='macs'"),
        ([0.5], "mac", "budgets=[0.5], key='mac'"),
        (["1000s"], "latency", "budgets=['1000s'], key='latency'"),
        (["5 GB"], "memory", "budgets=['5 GB'], key='memory'"),
    ],
)
def test_an_error_of_a_budget_names_budgets_and_not_keep(budgets: Any, key: str, at: str) -> None:
    with pytest.raises(PlanError) as raised:
        fxprune.pareto(net(), data()[0], score, budgets=budgets, key=key)
    assert raised.value.at == at
    assert "keep=" not in str(raised.value)


def test_budgets_that_nothing_meets_are_told_to_shrink() -> None:
    with pytest.raises(PlanError, match="there is nothing to measure") as raised:
        fxprune.pareto(net(), data()[0], score, budgets=[1.0])
    assert raised.value.do.startswith("give a smaller budget")


@pytest.mark.parametrize("option", [{"scope": "search"}, {"depth": True}, {"search": {"steps": 3}}])
def test_curves_refuse_choices_that_need_a_run_for_each_budget(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="pareto takes no") as raised:
        fxprune.pareto(net(), data()[0], repair=data(), **option)
    assert "fxprune.transform" in raised.value.do


@pytest.mark.parametrize("repaired", [[0.9], [0.9, 0.8]], ids=["plain", "repaired"])
@pytest.mark.parametrize("count", [3, 25, 70])
def test_each_line_of_a_picture_has_a_look_of_its_own_and_a_name(count, repaired):
    lines = [(f"layers.{number}.conv", [0.0, 0.5], [0.9, 0.7], repaired) for number in range(count)]
    ax = draw(lines, "share", "score", None, None)
    legend = ax.get_legend()
    dashes = {"as cut": "--", "repaired": "-"} if len(repaired) > 1 else {}
    assert [text.get_text() for text in legend.get_texts()] == [*(name for name, *_ in lines), *dashes]
    assert [line.get_linestyle() for line in legend.get_lines()[len(lines) :]] == [*dashes.values()]
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in ax.lines}
    assert len(looks) == len(ax.lines) == count * len(repaired)
