"""`GradualPruner`: a model gets smaller step by step while it is trained."""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parallel import DistributedDataParallel

from fxprune._analyze import Analysis, analyze
from fxprune._follow import check_targets, listed
from fxprune._follow.parallel import wrap_again, wrapper_of
from fxprune._gradual_options import (
    checked_options,
    computed_only,
    endless,
    function_of,
    grown,
    place_of,
    refuse_falling,
    refuse_other_settings,
    refuse_other_shapes,
    settings_of,
    state_field,
)
from fxprune._in_place import WITH_A_PLAN, refuse_sharded, transform_
from fxprune._record import steps_in
from fxprune.arguments import checks_arguments, checks_names
from fxprune.costs import Cost, cost
from fxprune.criteria.from_data import needs_data, on_data, takes_loss
from fxprune.criteria.table import MEASURED
from fxprune.errors import NothingRemovedWarning, PlanError, level_of_user
from fxprune.planning import plan_file
from fxprune.planning.budgets import budgets_of
from fxprune.planning.figures import counted, measured_of
from fxprune.planning.from_first import FromFirst
from fxprune.planning.limits import limits_of
from fxprune.planning.plan import Plan
from fxprune.planning.scopes import SEARCH, ScopeFunction
from fxprune.running.processes import Processes
from fxprune.schedules import AGP, Schedule
from fxprune.sharded import is_sharded, talk_of_model, unwrapped

VERSION = 1
"""The version of `state_dict`."""


@dataclass(frozen=True)
class PruningStep:
    """The result of one step of a `GradualPruner`.

    number: the number of the step, from 1. progress: the part of the way to the budgets, from 0 to 1.
    before, after: the cost of the model.
    plan: the channels that were removed, in the numbering of the model before the step; None if none were.
    silenced: the channels that were set to zero and stay in the model, in the same form.
    """

    number: int
    progress: float
    before: Cost
    after: Cost
    plan: Plan | None = None
    silenced: Plan | None = None

    def __str__(self) -> str:
        silenced = "" if self.silenced is None else f", {_slots(self.silenced):,} slots set to zero"
        macs = "" if self.after.macs is None else f", {self.after.macs:,} multiply-adds"
        return f"step {self.number} ({self.progress:.0%}): {self.after.params:,} parameters{macs}{silenced}"


def _slots(plan: Plan) -> int:
    return sum(len(indices) for dims in plan.removed.values() for indices in dims.values())


class GradualPruner:
    """Makes a model smaller in steps, while it is trained. The model, its modules and its optimizer stay the same.

    A step at which the schedule says p leaves at most full - p * (full - budget) of each cost in `keep`, where full is
    the cost of the model that was given. Between two steps the model is trained, so that the next choice is made on
    weights that have recovered (Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878).

    The share that a group loses, and `max_ratio` (0.9 by default), count from the model that was given: many small
    steps leave about the widths that one step leaves, and narrow groups get smaller with the others.

    Args:
        model: the model, which is changed in place by each step; see `fxprune.transform_`. It may be in a
            `DistributedDataParallel`, which stays the same object, or under `fully_shard`. Then all processes make each
            step together, each with its own part of the data; if one of them raises, all do.
        example_inputs: as for `transform`.
        keep: the budgets of the last step, as for `transform`: {"macs": 0.3}. All but a latency.
        schedule: a function from the number of a step, from 1, to the part of the way to the budgets, from 0 to 1,
            where it ends. By default `AGP(0.0, 1.0, steps=steps)`.
        steps: the number of steps of the default schedule, 10 if it is not given.
        optimizer, ema: what follows at each step, as for `transform`.
        soft: with soft=k only every k-th step, and the one that reaches the budgets, removes channels. The others set
            the weights that make them to zero, and not the biases, and training may bring them back (soft filter
            pruning, He et al. 2018, https://arxiv.org/abs/1808.06866). Behind a ReLU without a norm before it that
            needs a positive bias: at zero its gradient is zero.
        options: further options of `transform`, such as importance, scope, round_to, repair, data and loss. Data is
            read at each step, so it must be a list or a loader, and no iterator.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    >>> optimizer = torch.optim.SGD(net.parameters(), 0.1)
    >>> pruner = fxprune.GradualPruner(net, torch.randn(1, 8), keep={"macs": 0.25}, steps=3, optimizer=optimizer)
    >>> for _ in range(3):
    ...     print(pruner.step())
    step 1 (70%): 394 parameters, 360 multiply-adds
    step 2 (96%): 225 parameters, 204 multiply-adds
    step 3 (100%): 212 parameters, 192 multiply-adds
    >>> pruner.done, net[0]
    (True, Linear(in_features=8, out_features=16, bias=True))
    """

    @checks_arguments("model", "soft")
    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        keep: Mapping[str, Any],
        schedule: Schedule | None = None,
        steps: int | None = None,
        optimizer: Any = None,
        ema: Any = None,
        soft: int = 1,
        **options: Any,
    ) -> None:
        self._wrapper = model if isinstance(model, DistributedDataParallel) else None
        model = model if self._wrapper is None else self._wrapper.module
        self.model, self.example_inputs = model, example_inputs
        self.optimizer, self.ema, self.soft = optimizer, ema, soft
        if schedule is not None and steps is not None:
            why = "the schedule says when it ends"
            raise PlanError("steps is without effect here", at=f"steps={steps!r}", why=why, do="leave it out")
        steps = 10 if steps is None else steps
        self.schedule = AGP(0.0, 1.0, steps=steps) if schedule is None else function_of(schedule)
        self.options = checked_options(options, soft)
        refuse_falling(self.schedule)
        if endless(self.schedule):
            warnings.warn(endless(self.schedule), UserWarning, level_of_user())
        prefer = {} if isinstance(model, fx.GraphModule) else {"prefer": "class"}
        with self._plain():
            self._cost = cost(model, example_inputs, **prefer)
            self._beside = measured_of([model], example_inputs, computed_only(keep))
            self._sizes = {group.key: group.size for group in self._analysis().groups}
        self._budgets = budgets_of(self._figures, keep, self._cost.uncounted)
        self._number, self._progress = 0, 0.0
        self._plan: Plan | None = None
        self._shapes = self._first_shapes = _shapes(model)
        self._check()

    def __repr__(self) -> str:
        figures = self._figures
        budgets = ", ".join(f"{b.key} {b.of(figures):,.0f} -> {b.limit:,.0f}" for b in self._budgets)
        return f"GradualPruner of {type(self.model).__name__}: step {self._number} ({self._progress:.0%}), {budgets}"

    @property
    def number(self) -> int:
        """The number of steps that were made."""
        return self._number

    @property
    def done(self) -> bool:
        """True if the last step asked for the whole budgets."""
        return self._progress >= 1.0

    @property
    def plan(self) -> Plan | None:
        """The channels that all steps have removed, in the numbering of the model that was given; None for none.

        `transform(original, example_inputs, plan=pruner.plan)` makes a model of the same shapes.
        """
        return self._plan

    def step(self) -> PruningStep:
        """Removes channels until the costs are what the schedule says, or sets them to zero (`soft`).

        Returns what was done. Raises as `transform` does; the model and the number of steps are as before then. An
        interrupt from the keyboard while the model is changed comes after the step.
        """
        self._refuse_changes()
        if self._wrapper is None:
            self._wrapper = wrapper_of(self.model)
        number = self._number + 1
        progress = grown(self.schedule(number), number, self._progress)
        before, keep = self._cost, self._keep(progress)
        removed = silenced = None
        if keep and (number % self.soft == 0 or progress >= 1.0):
            removed = self._remove(keep, number, progress)
        elif keep:
            silenced = self._silence(keep)
        self._number, self._progress = number, progress
        return PruningStep(number, progress, before, self._cost, removed, silenced)

    def _check(self) -> None:
        """Raises what the first step would raise, about what follows, how channels are chosen, and the repair.

        All processes raise if one does.
        """
        group = talk_of_model(self.model).group if is_sharded(self.model) else self._training["process_group"]
        with Processes(group).together():
            check_targets([*listed(self.optimizer), *listed(self.ema)], self.model)
            if is_sharded(self.model):
                refuse_sharded(self.options)
                return
            if self.options.get("repair") is True and self.options.get("data") is None:
                why, do = "repair=True takes those of `data`", "pass data=batches"
                raise PlanError("there is no data to repair on", at="repair=True", why=why, do=do)
            with _small_steps():
                self._choose({budget.key: int(budget.full) for budget in self._budgets}, None, measure=False)

    def _refuse_changes(self) -> None:
        """Raises `PlanError` if something else made the model smaller since the last step."""
        now = _shapes(self.model)
        for name, shape in self._shapes.items():
            if now.get(name, shape) != shape:
                raise PlanError(
                    "the model was changed between two steps",
                    at=f'"{name}"',
                    why=f"it has shape {now[name]}, and had {shape} after the last step of this pruner",
                    do="let one pruner alone make the model smaller, or make a new pruner for the model as it is now",
                )

    def _keep(self, progress: float) -> dict[str, int]:
        """The figures that a step leaves, of those budgets that the model does not meet yet."""
        limits = {b.key: (b, int(b.full) - math.floor(progress * (b.full - b.limit))) for b in self._budgets}
        return {key: limit for key, (budget, limit) in limits.items() if budget.of(self._figures) > limit}

    def _remove(self, keep: Mapping[str, int], number: int, progress: float) -> Plan | None:
        try:
            with _small_steps():
                transform_(
                    self.model, self.example_inputs, keep=keep, **self._training, **self._step_options(progress >= 1.0)
                )
        except BaseException:
            if _shapes(self.model) != self._shapes:  # an interrupt, which has waited until the model was changed
                self._removed()
                self._number, self._progress = number, progress
            raise
        return self._removed()

    def _removed(self) -> Plan | None:
        """The plan of a step that has made the model smaller, which becomes a part of the plan of all steps."""
        if self._wrapper is not None:
            wrap_again(self._wrapper)
        plan = self._look_again()
        if not plan:
            return None
        self._plan = plan if self._plan is None else self._plan.then(plan)
        return plan

    def _step_options(self, last: bool) -> dict[str, Any]:
        """The options of a step. Branches go in the first one that removes something."""
        gone = self._plan is not None and self._plan.dropped
        options = {name: value for name, value in self.options.items() if name != "drop" or not gone}
        return {**options, "scope": self._scope(last)}

    def _scope(self, last: bool) -> str | ScopeFunction:
        """The scope, with shares that count from the model that was given."""
        scope = self.options.get("scope", "local")
        if scope == SEARCH:
            return SEARCH
        limits = limits_of(1, self.options.get("min_channels", 1), self.options.get("max_ratio"), True)
        return FromFirst(self._sizes, limits.max_ratio, limits.min_channels, scope, last)

    def _analysis(self) -> Analysis:
        """The analysis of the model as it is now."""
        known = inspect.signature(analyze).parameters.keys()
        options = {name: value for name, value in self.options.items() if name in known}
        if not isinstance(self.model, fx.GraphModule):
            options.setdefault("prefer", "class")
        return analyze(self.model, self.example_inputs, **options)

    @property
    def _figures(self) -> dict[str, float | None]:
        """The figures of the model as it is now."""
        return {**counted(self._cost), **{key: figures[0] for key, figures in self._beside.items()}}

    def _look_again(self) -> Plan:
        """Takes the figures of the model that has got smaller. Returns the plan that made it so."""
        steps = steps_in(self.model)
        assert steps is not None
        made = steps.single[-1]
        if made.cost is not None:
            self._cost = made.cost[1]
        with self._plain():
            self._beside = measured_of([self.model], self.example_inputs, self._beside)
        self._shapes = _shapes(self.model)
        return made.plan

    @property
    def _training(self) -> dict[str, Any]:
        """The arguments of `transform_` about what follows, and about other processes."""
        group = None if self._wrapper is None else self._wrapper.process_group
        return {"optimizer": self.optimizer, "ema": self.ema, "process_group": group}

    @contextlib.contextmanager
    def _plain(self) -> Iterator[Processes]:
        """The model without wrappers of `fully_shard`, and the processes that train it."""
        if not is_sharded(self.model):
            yield Processes(self._training["process_group"])
            return
        group = talk_of_model(self.model).group
        with unwrapped(self.model):
            yield Processes(group)

    def _choose(self, keep: Mapping[str, int], process_group: Any, *, measure: bool = True) -> tuple[Analysis, Plan]:
        """The analysis of the model as it is now, and the plan for these budgets.

        measure: False for a plan by the norms of weights where the importance would read the data.
        """
        of_analysis = inspect.signature(analyze).parameters.keys()
        choice = {name: value for name, value in self.options.items() if name not in (*of_analysis, "drop")}
        for name in ("repair", "repair_mode", "repair_inputs", "verify"):
            choice.pop(name, None)
        choice["scope"] = self._scope(last=False)
        analysis = self._analysis()
        measured = {name: choice.pop(name, None) for name in ("data", "loss")}
        measured["used_elsewhere"] = "repair" in self.options
        importance = choice.pop("importance", "l2")
        reads = needs_data(importance) and measured["data"] is not None
        late = isinstance(importance, str) and importance in MEASURED and takes_loss(importance)
        if measure or not reads or late:
            made = on_data(importance, self.model, analysis.inputs, process_group=process_group, **measured)
        if reads and not measure:
            made = "l2"
        return analysis, analysis.plan(keep=keep, importance=made, **choice)

    def _silence(self, keep: Mapping[str, int]) -> Plan:
        """Set the weights to zero that make the channels which would be removed now."""
        with self._plain() as processes, processes.together(), torch.no_grad():
            analysis, plan = self._choose(keep, processes.group)
            processes.agree(plan.removed)
            for member in {(m.parameter, m.dim): m for group in analysis.groups for m in group.members}.values():
                indices = plan.removed.get(member.parameter, {}).get(member.dim)
                if member.role == "producer" and indices and member.tensor.ndim > 1:
                    member.tensor.index_fill_(member.dim, torch.tensor(indices, device=member.tensor.device), 0)
        return plan

    # -- state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state as plain data: the number of steps, the progress, the budgets, the plan, and all settings.

        With those of the model, the optimizer and the average it is a checkpoint.
        """
        plan = None if self._plan is None else plan_file.data_of(self._plan)
        budgets = {budget.key: [budget.limit, budget.full] for budget in self._budgets}
        state = {"version": VERSION, "number": self._number, "progress": self._progress}
        shapes = {name: list(shape) for name, shape in self._first_shapes.items()}
        settings = settings_of(self.schedule, self.soft, self.options)
        return {**state, "budgets": budgets, "plan": plan, "shapes": shapes, "settings": settings}

    @checks_names
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state: the model loses the channels that were removed, and the optimizer follows.

        Call it on a new pruner of the original, and load the states of the model, the optimizer and the average after
        it: their shapes are right then.

        state: what `state_dict` gave. Raises `PlanError` if it is no such state, of another model, or of a pruner with
        another budget, schedule or option: it names the first that differs. Data, losses and batches are not compared.
        """
        if self._number:
            raise PlanError(
                "this pruner has made steps already",
                at="load_state_dict",
                why=f"it is at step {self._number}, and the plan is for the model that was given",
                do="make the model and the pruner again, then load",
            )
        field = state_field(state)
        if field["version"].value != VERSION:
            raise field["version"].wrong(f"this fxprune reads version {VERSION}")
        refuse_other_shapes({name: shape.value for name, shape in field["shapes"].mapping().items()}, self.model)
        budgets = {budget.key: [budget.limit, budget.full] for budget in self._budgets}
        if field["budgets"].value != budgets:
            do = "make the pruner for the original model, with the budgets of the run that was saved"
            raise field["budgets"].wrong(f"this pruner has the budgets {budgets}", do)
        saved = {name: setting.value for name, setting in field["settings"].mapping().items()}
        refuse_other_settings(saved, settings_of(self.schedule, self.soft, self.options))
        number, progress = place_of(field, self.schedule)
        if field["plan"].value is not None:
            plan = plan_file.plan_of(field["plan"], Plan)
            transform_(self.model, self.example_inputs, plan=plan, **self._training, **_without_choice(self.options))
            if self._wrapper is not None:
                wrap_again(self._wrapper)
            self._plan = plan
            self._look_again()
        self._number, self._progress = number, progress


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}


def _without_choice(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that do not choose channels: a plan has chosen them."""
    return {name: value for name, value in options.items() if name in WITH_A_PLAN}


@contextlib.contextmanager
def _small_steps() -> Iterator[None]:
    """No warning where a step of a schedule is too small for a channel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingRemovedWarning)
        yield
