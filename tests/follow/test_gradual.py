"""`GradualPruner`: schedules, soft steps, and runs that are killed and go on."""

from __future__ import annotations

import io
import math
import signal
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxprune
from fxprune._record import steps_in
from fxprune.capture import containers
from fxprune.schedules import AGP, Linear
from tests.follow.nets import batch, net, step
from tests.follow.test_in_place import Interrupting


class Run:
    """A training that prunes every second step; all of its state can be saved and loaded."""

    def __init__(self, **options: Any) -> None:
        self.model = net().train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 0.01, amsgrad=True)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        steps = {} if "schedule" in options else {"steps": 4}
        self.pruner = fxprune.GradualPruner(
            self.model,
            batch(0),
            **{"keep": {"macs": 0.3}, "optimizer": self.optimizer, "ema": self.average, **steps, **options},
        )
        self.parts = {
            "pruner": self.pruner,
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "average": self.average,
        }

    def train(self, first: int, last: int) -> None:
        for number in range(first, last):
            step(self.model, self.optimizer, number)
            self.scheduler.step()
            self.average.update_parameters(self.model)
            if number % 2:
                self.pruner.step()

    def checkpoint(self) -> bytes:
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self.parts.items()}, file)
        return file.getvalue()

    def load(self, data: bytes) -> None:
        saved = torch.load(io.BytesIO(data), weights_only=True)
        for name, part in self.parts.items():  # the pruner first: the others have its shapes
            part.load_state_dict(saved[name])

    def numbers(self) -> dict[str, torch.Tensor]:
        return {**self.model.state_dict(), **{f"average.{n}": t for n, t in self.average.state_dict().items()}}


OPTIONS = {
    "plain": {},
    "soft": {"soft": 2},
    "random choice": {"importance": "random", "seed": 3},
    "with repair": {"repair": [batch(seed) for seed in range(20, 32)]},
}
PLAINER = ("plain", "random choice")


@pytest.mark.parametrize("name", ["soft", "with repair", *(pytest.param(n, marks=pytest.mark.slow) for n in PLAINER)])
def test_a_killed_run_goes_on_to_the_same_bits(name: str) -> None:
    whole = Run(**OPTIONS[name])
    checkpoints = []
    for number in range(10):
        checkpoints.append(whole.checkpoint())
        whole.train(number, number + 1)
    assert whole.pruner.done
    moments = range(0, 10, 2) if name == "plain" else (3, 6)
    for moment in moments:
        again = Run(**OPTIONS[name])
        again.load(checkpoints[moment])
        again.train(moment, 10)
        expected = whole.numbers()
        assert again.numbers().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in again.numbers().items())
        assert again.pruner.plan.removed == whole.pruner.plan.removed


def test_each_step_leaves_what_the_schedule_says() -> None:
    run = Run(schedule=Linear(0.0, 1.0, steps=4), keep={"macs": 0.3, "params": 0.5})
    full = fxprune.cost(run.model, batch(0))
    for number in range(1, 6):
        made = run.pruner.step()
        progress = min(number / 4, 1.0)
        assert (made.number, made.progress) == (number, progress)
        now = fxprune.cost(run.model, batch(0))
        assert (made.after.macs, made.after.params) == (now.macs, now.params)
        assert now.macs <= full.macs - math.floor(progress * (full.macs - math.floor(0.3 * full.macs)))
        assert now.params <= full.params - math.floor(progress * (full.params - math.floor(0.5 * full.params)))
    assert made.plan is None  # all of the way is made
    assert made.before == made.after
    assert run.pruner.done


def test_a_budget_of_memory_is_met_step_by_step() -> None:
    full = fxprune.costs.peak_memory(net(), batch(0))
    run = Run(schedule=Linear(0.0, 1.0, steps=2), keep={"memory": 0.6})
    for number in (1, 2):
        assert run.pruner.step().plan
        now = fxprune.costs.peak_memory(run.model, batch(0))
        assert now <= full - math.floor(number / 2 * (full - math.floor(0.6 * full)))
    again = Run(schedule=Linear(0.0, 1.0, steps=2), keep={"memory": 0.6})
    again.pruner.load_state_dict(run.pruner.state_dict())
    assert again.pruner.step().plan is None


def test_a_warning_points_at_the_line_of_the_user() -> None:
    calls: list[Callable[[nn.Module], Any]] = [
        lambda model: fxprune.transform(model, batch(0), ratio=0.0),
        lambda model: fxprune.transform_(model, batch(0), ratio=0.0),
        lambda model: fxprune.analyze(model, batch(0)).transform(ratio=0.0),
    ]
    for call in calls:
        with pytest.warns(fxprune.NothingRemovedWarning) as caught:
            call(net())
        assert caught[0].filename == __file__


def test_the_plan_of_all_steps_makes_a_model_of_the_same_shapes() -> None:
    run = Run()
    run.train(0, 8)
    small = fxprune.transform(net().train(), batch(0), plan=run.pruner.plan)
    assert {n: t.shape for n, t in small.state_dict().items()} == {
        n: t.shape for n, t in run.model.state_dict().items()
    }


def test_a_soft_step_sets_weights_to_zero_and_training_brings_them_back() -> None:
    run = Run(soft=2, steps=4, keep={"macs": 0.1})
    shapes = {name: tensor.shape for name, tensor in run.model.state_dict().items()}
    made = run.pruner.step()
    assert made.plan is None
    assert made.silenced.removed
    assert {name: tensor.shape for name, tensor in run.model.state_dict().items()} == shapes
    gone = made.silenced.removed["stem.weight"][0]
    assert bool((run.model.stem.weight[gone] == 0).all())
    assert bool((run.model.inner.weight != 0).any(0).all())  # what reads them stays, so they have gradients
    step(run.model, run.optimizer, 0)
    assert bool((run.model.stem.weight[gone] != 0).any())
    again = run.pruner.step()
    assert again.plan
    assert again.silenced is None


def test_the_last_step_removes_whatever_soft_says() -> None:
    run = Run(soft=100, steps=3)
    assert [bool(run.pruner.step().plan) for _ in range(3)] == [False, False, True]


def test_a_step_that_fails_changes_nothing() -> None:
    sizes = []
    run = Run(importance=lambda group: [1.0] * (sizes[0] if sizes else group.size))
    sizes.append(1)
    before = run.checkpoint()
    with pytest.raises(fxprune.PlanError):
        run.pruner.step()
    assert run.checkpoint() == before
    assert run.pruner.number == 0


def test_a_state_of_another_run_is_refused() -> None:
    run = Run()
    run.train(0, 4)
    state = run.pruner.state_dict()
    with pytest.raises(fxprune.PlanError, match="has made steps already"):
        run.pruner.load_state_dict(state)
    with pytest.raises(fxprune.FxpruneError, match="has the budgets"):
        Run(keep={"macs": 0.5}).pruner.load_state_dict(state)
    for wrong in (None, [1], "state", {}):
        with pytest.raises(fxprune.FxpruneError, match="the state of the pruner"):
            Run().pruner.load_state_dict(wrong)
    for key, wrong in (("version", 2), ("number", -1), ("progress", "x"), ("progress", 5), ("plan", {"format": "no"})):
        with pytest.raises(fxprune.FxpruneError, match="the state of the pruner"):
            Run().pruner.load_state_dict({**state, key: wrong})
    other = fxprune.GradualPruner(nn.Linear(4, 4), torch.ones(1, 4), keep={"macs": 0.3})
    with pytest.raises(fxprune.FxpruneError):
        other.load_state_dict({**state, "budgets": other.state_dict()["budgets"]})


def ranked(group: Any) -> Any:
    return torch.arange(float(len(group.channels)))


@pytest.mark.parametrize(
    ("options", "name", "why"),
    [
        ({"steps": 5}, "schedule", "at step 1 it gives 0.578125 in the state, and 0.488 in this pruner"),
        ({"schedule": Linear(0.0, 1.0, steps=4)}, "schedule", "and 0.25 in this pruner"),
        ({"soft": 2}, "soft", "it is 1 in the state, and 2 in this pruner"),
        ({"importance": "l1"}, "importance", "it is its default in the state, and 'l1' in this pruner"),
        ({"importance": ranked}, "importance", "test_gradual.ranked'"),
        ({"scope": "global"}, "scope", "and 'global' in this pruner"),
        ({"round_to": 2}, "round_to", "and 2 in this pruner"),
        ({"ignore": ["stem"]}, "ignore", "and ['stem'] in this pruner"),
        ({"repair": [batch(1)] * 10}, "repair", "and True in this pruner"),
    ],
)
def test_a_state_with_another_setting_is_refused_by_name(options: dict[str, Any], name: str, why: str) -> None:
    run = Run()
    run.train(0, 2)
    state = torch.load(io.BytesIO(run.checkpoint()), weights_only=True)["pruner"]
    for one, other in ((state, Run(**options)), (Run(**options).pruner.state_dict(), Run())):
        with pytest.raises(fxprune.PlanError, match="the state was made with another") as caught:
            other.pruner.load_state_dict(one)
        assert caught.value.at == f"load_state_dict: {name}"
        assert caught.value.do
        if one is state:
            assert why in caught.value.why
    Run(**options).pruner.load_state_dict(Run(**options).pruner.state_dict())


def test_a_schedule_that_ends_at_another_step_is_another_one() -> None:
    shares = AGP(0.0, 1.0, steps=4)
    state = Run(schedule=lambda number: [shares(1), shares(2)][number - 1]).pruner.state_dict()
    with pytest.raises(fxprune.PlanError, match="it gives 2 shares in the state, and 4 in this pruner"):
        Run().pruner.load_state_dict(state)


def test_a_state_of_a_model_with_other_widths_says_which() -> None:
    run = Run()
    run.train(0, 2)
    wide = net().train()
    wide.inner, wide.outer = nn.Conv2d(8, 13, 3, padding=1).double(), nn.Conv2d(13, 8, 1).double()
    other = fxprune.GradualPruner(wide, batch(0), keep={"macs": 0.3}, steps=4)
    with pytest.raises(fxprune.PlanError, match="the state is of another model") as caught:
        other.load_state_dict(run.pruner.state_dict())
    assert (caught.value.at, caught.value.why) == (
        '"inner.weight"',
        "there is shape [12, 8, 3, 3] in the state, and shape [13, 8, 3, 3] in this model",
    )


@pytest.mark.parametrize("key", ["shapes", "settings", "version"])
def test_a_state_that_lacks_a_key_is_refused(key: str) -> None:
    state = Run().pruner.state_dict()
    del state[key]
    with pytest.raises(fxprune.PlanError, match=f'the key "{key}" is missing'):
        Run().pruner.load_state_dict(state)


def test_what_is_no_state_is_refused_with_advice() -> None:
    run = Run()
    for wrong in ({}, run.model.state_dict(), run.optimizer.state_dict(), None, {**run.pruner.state_dict(), "more": 1}):
        with pytest.raises(fxprune.PlanError, match="the state of the pruner") as caught:
            run.pruner.load_state_dict(wrong)
        assert caught.value.at
        assert caught.value.why
        assert "what `state_dict` of a GradualPruner gave" in caught.value.do
    with pytest.raises(fxprune.PlanError, match=r'has "stem\.weight"'):
        run.pruner.load_state_dict(run.model.state_dict())


def test_a_number_of_steps_that_does_not_fit_the_progress_is_refused() -> None:
    run = Run()
    run.train(0, 2)
    state = run.pruner.state_dict()
    for wrong in ({"number": state["number"] + 1}, {"number": 0}, {"progress": 0.25}, {"progress": 0.0}):
        with pytest.raises(fxprune.PlanError, match="the schedule gives"):
            Run().pruner.load_state_dict({**state, **wrong})
    listed = Run(schedule=lambda number: [0.5, 1.0][number - 1]).pruner
    with pytest.raises(fxprune.PlanError, match="the schedule has no such step"):
        listed.load_state_dict({**listed.state_dict(), "number": 3, "progress": 1.0})


@pytest.mark.parametrize("schedule", [Linear(0.0, 0.8, steps=4), lambda number: 0.5, lambda number: 1 - 1 / number])
def test_a_schedule_without_an_end_is_warned_of(schedule: Any) -> None:
    with pytest.warns(UserWarning, match="so the pruner is never done") as caught:
        fxprune.GradualPruner(net(), batch(0), keep={"macs": 0.3}, schedule=schedule)
    assert caught[0].filename == __file__


def test_a_schedule_from_a_list_is_taken() -> None:
    run = Run(schedule=lambda number: [0.5, 1.0][number - 1])
    run.pruner.step()
    run.pruner.step()
    assert run.pruner.done


def test_a_schedule_that_falls_where_nobody_looked_before_is_refused_at_its_step() -> None:
    shares = iter([0.2, 0.5, 0.5, 0.3])
    given: dict[int, float] = {}

    def schedule(number: int) -> float:
        if asked:
            given.setdefault(number, next(shares))
            return given[number]
        raise IndexError(number)

    asked = False
    run = Run(schedule=schedule)
    asked = True
    for _ in range(3):
        run.pruner.step()
    widths = {name: tensor.shape for name, tensor in run.model.state_dict().items()}
    with pytest.raises(fxprune.PlanError, match=r"must not fall.*\n  at   step 4\n  why .*0.3, and gave 0.5"):
        run.pruner.step()
    assert {name: tensor.shape for name, tensor in run.model.state_dict().items()} == widths
    assert run.pruner.number == 3


def test_a_schedule_that_falls_by_a_rounding_is_taken() -> None:
    run = Run(schedule=lambda number: [0.1 + 0.2, 0.3, 1.0][min(number, 3) - 1])
    run.pruner.step()
    assert run.pruner.step().progress == 0.1 + 0.2


def narrow() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3)]
    return nn.Sequential(*layers)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("key", "options"),
    [("params", {}), ("macs", {"soft": 2}), ("macs", {"max_ratio": 0.6}), ("params", {"round_to": 2})],
)
def test_many_small_steps_leave_the_widths_of_one(key: str, options: dict[str, Any]) -> None:
    found = []
    for steps in (1, 4, 12):
        model = narrow()
        schedule = Linear(0.0, 1.0, steps=steps)
        pruner = fxprune.GradualPruner(model, torch.ones(2, 8), keep={key: 0.4}, schedule=schedule, **options)
        for _ in range(steps):
            pruner.step()
        found.append([model[place].out_features for place in (0, 2, 4)])
        assert 0.98 * 0.4 <= getattr(fxprune.cost(model, torch.ones(2, 8)), key) / whole(key) <= 0.4
    assert all(widths == found[0] for widths in found)


@pytest.mark.parametrize("steps", [1, 24])
def test_a_narrow_group_beside_equal_blocks_gets_smaller_with_them(steps: int) -> None:
    model = narrow()
    schedule = Linear(0.0, 1.0, steps=steps)
    keep, uniform = {"macs": 0.4}, ["[04]"]
    pruner = fxprune.GradualPruner(model, torch.ones(2, 8), keep=keep, schedule=schedule, uniform=uniform)
    for _ in range(steps):
        pruner.step()
    assert model[0].out_features == model[4].out_features
    assert model[2].out_features == 2


def whole(key: str) -> int:
    return int(getattr(fxprune.cost(narrow(), torch.ones(2, 8)), key))


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
def test_no_group_loses_more_than_it_may_in_all_steps_together(scope: str) -> None:
    model = narrow()
    schedule = Linear(0.0, 1.0, steps=5)
    options: dict[str, Any] = {"scope": scope, "max_ratio": 0.5, "min_channels": 3}
    pruner = fxprune.GradualPruner(model, torch.ones(2, 8), keep={"params": 0.1}, schedule=schedule, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            pruner.step()
    assert "max_ratio=0.5" in next(str(w.message) for w in caught if w.category is fxprune.BudgetMissedWarning)
    assert [model[place].out_features for place in (0, 2, 4)] == [32, 3, 32]


def test_a_pruner_says_where_it_is() -> None:
    run = Run(keep={"macs": 0.3, "params": 0.5})
    full = fxprune.cost(run.model, batch(0))
    assert repr(run.pruner) == (
        f"GradualPruner of Net: step 0 (0%), macs {full.macs:,} -> {math.floor(full.macs * 0.3):,}, "
        f"params {full.params:,} -> {math.floor(full.params * 0.5):,}"
    )
    run.train(0, 2)
    assert f"step 1 (58%), macs {fxprune.cost(run.model, batch(0)).macs:,} -> " in repr(run.pruner)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": {"macs": 2.0}}, "a share must be in"),
        ({"keep": {"latency": 0.5}}, "no budget of latency"),
        ({"soft": 0}, "soft must be at least 1"),
        ({"importence": "l1"}, "no option importence"),
        ({"ratio": 0.5}, r"no option ratio(?s:.*)pass a budget, as keep=\{"),
        ({"scheduler": 1}, "no option scheduler(?s:.*)goes on with its optimizer"),
        ({"zzz": 1}, "no option zzz(?s:.*)choose from keep, schedule, steps, optimizer, ema, soft, "),
        ({"shedule": 1}, 'no option shedule(?s:.*)did you mean "schedule"'),
        ({"process_group": None}, "no option process_group"),
        ({"data": iter([])}, "data is read at each step"),
        ({"scores": "scores.json"}, "cannot take scores"),
        ({"importance": {"stem": [1.0] * 8}}, "cannot take importance"),
        ({"max_ratio": 1.5}, r"max_ratio must be in \(0, 1\]"),
        ({"schedule": Linear(1.0, 0.3, steps=4)}, r"must not fall(?s:.*)step 2(?s:.*)it gives 0.65, and gave 0.825"),
        ({"schedule": lambda number: [0.5, 0.4, 1.0][number - 1]}, "must not fall"),
        ({"schedule": AGP(0.0, 1.0, steps=2), "steps": 2}, "steps is without effect here"),
        ({"schedule": "agp"}, "schedule must be a function of the step"),
        ({"schedule": 0.5}, "schedule must be a function of the step"),
        ({"importance": "l7"}, "unknown importance 'l7'"),
        ({"importance": 3}, "unknown importance 3"),
        ({"importance": lambda group: [1.0]}, "importance has the wrong shape"),
        ({"importance": "taylor"}, 'importance "taylor" needs data'),
        ({"importance": "taylor", "data": [1]}, 'importance "taylor" needs a loss'),
        ({"importance": "thinet"}, 'importance "thinet" needs data'),
        ({"data": [1]}, "data is without effect here"),
        ({"data": "batches", "importance": "thinet"}, "data must be batches"),
        ({"repair": "batches"}, "repair must be batches"),
        ({"repair": 3}, "repair must be batches"),
        ({"repair": True}, "there is no data to repair on"),
        ({"round_to": 0}, "round_to must be an integer"),
        ({"scope": "x"}, "there is no scope 'x'"),
        ({"ignore": ["nothing"]}, "ignore names nothing"),
        ({"optimizer": torch.optim.SGD(net().parameters(), 0.1)}, "SGD holds no parameter of the model"),
        ({"optimizer": {torch.optim.SGD(net().parameters(), 0.1)}}, "set cannot follow"),
        ({"ema": net()}, "Net cannot follow"),
        ({"ema": AveragedModel(nn.Linear(2, 2))}, "AveragedModel holds no copy of the model"),
    ],
)
def test_wrong_options_are_refused_before_the_first_step(options: dict[str, Any], message: str) -> None:
    with pytest.raises(fxprune.FxpruneError, match=message) as caught:
        Run(**options)
    lines = str(caught.value).splitlines()
    if {"optimizer", "ema", "soft", "schedule", "repair", "ratio"} & set(options):
        assert [line[:6].strip() for line in lines[1:4]] == ["at", "why", "do"]


def test_the_data_of_an_importance_are_not_read_before_the_first_step() -> None:
    class Batches(list[torch.Tensor]):
        def __iter__(self) -> Any:
            raise AssertionError("read")

    for importance, loss in (("thinet", None), ("taylor", lambda model, found: model(found).sum())):
        run = Run(importance=importance, data=Batches([batch(1)]), loss=loss)
        with pytest.raises(Exception, match="read"):
            run.pruner.step()


def test_a_pruner_takes_no_random_numbers_before_its_first_step() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    model = net()
    torch.manual_seed(3)
    fxprune.GradualPruner(model, batch(0), keep={"macs": 0.3}, importance="random", seed=1)
    assert torch.equal(torch.rand(2), expected)


def test_a_model_that_something_else_made_smaller_is_refused() -> None:
    run = Run()
    run.train(0, 2)
    fxprune.transform_(run.model, batch(0), ratio=0.3, optimizer=run.optimizer, ema=run.average)
    before = run.model.state_dict()
    with pytest.raises(fxprune.PlanError, match=r'between two steps\n  at   "stem.weight"\n  why .*\n  do   let one'):
        run.pruner.step()
    assert run.model.state_dict().keys() == before.keys()


def test_a_step_that_is_interrupted_while_the_model_changes_is_made() -> None:
    whole, run = Run(), Run()
    for each in (whole, run):
        step(each.model, each.optimizer, 0)
    whole.pruner.step()
    run.optimizer.state = Interrupting(run.optimizer.state, signal.SIGINT)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.pruner.step()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert run.pruner.state_dict() == whole.pruner.state_dict()
    for each in (whole, run):
        each.train(1, 6)
    assert all(torch.equal(run.model.state_dict()[name], t) for name, t in whole.model.state_dict().items())


def test_a_step_costs_the_same_after_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    pruner = fxprune.GradualPruner(model, torch.ones(2, 8), keep={"params": 0.2}, schedule=Linear(0.0, 1.0, steps=15))
    looked = [0]
    own = containers._plain

    def counted(*args: Any) -> bool:
        looked[0] += 1
        return own(*args)

    monkeypatch.setattr(containers, "_plain", counted)
    counts = []
    for _ in range(14):
        before = looked[0]
        pruner.step()
        counts.append(looked[0] - before)
    assert len(steps_in(model).single) > 8
    assert counts[-1] <= 1.2 * counts[1] + 50


def test_a_schedule_may_give_numbers_of_numpy() -> None:
    run = Run(schedule=lambda number: np.float32(number / 2))
    run.train(0, 4)
    assert run.pruner.done


@pytest.mark.parametrize("value", [1.5, -0.1, math.nan, None, True])
def test_a_schedule_gives_a_part_of_the_way(value: Any) -> None:
    run = Run(schedule=lambda number: value)
    with pytest.raises(fxprune.PlanError, match=r"part of the way.*\n  at   step 1\n"):
        run.pruner.step()


def test_nothing_happens_before_a_schedule_begins() -> None:
    run = Run(schedule=AGP(0.0, 1.0, steps=2, begin=2))
    assert [run.pruner.step().plan is None for _ in range(3)] == [True, True, False]
