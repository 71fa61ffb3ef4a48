"""The options of a `GradualPruner`: what it takes, and how a state says which ones it was made with."""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from fxprune._transform import transform
from fxprune.arguments import fits, shown
from fxprune.errors import PlanError, nearest, text_of
from fxprune.files import Field
from fxprune.planning.budgets import checked_keys
from fxprune.planning.figures import COMPUTED, COUNTED, TIMED
from fxprune.schedules import Schedule, as_schedule

_OWN = tuple("keep schedule steps optimizer ema soft".split())
"""The arguments that only a `GradualPruner` has, or that it treats itself."""

_REFUSED = {
    "ratio": ("a ratio is a share of what is there, which gets smaller", 'pass a budget, as keep={"params": 0.5}'),
    "masks": ("masks say which channels go at once", "call fxprune.transform_ once"),
    "plan": ("a plan says which channels go at once", "call fxprune.transform_ once"),
    "counts": ("counts say what stays at once", "pass a budget, as keep"),
    "bias": ("constants that are folded into biases are no part of a later step", "leave it out"),
    "border": ("no constants are folded in steps", "leave it out"),
    "path": ("the model keeps its class, and takes the path that does", "leave it out"),
    "process_group": ("it is that of DistributedDataParallel or fully_shard", "pass the wrapped model"),
}
"""Name of an argument of `transform` that does not go with steps -> why, and what to do."""

_MODEL = ("model", "example_inputs")
_ONCE = {
    "scores": "scores",
    "importance": "scores by layer",
    "search": "a search",
    "depth": "a choice",
}
_NOT_IN_A_STATE = ("data", "loss", "repair_inputs", "latency_table")
_MOST_STEPS = 1000

NOISE = 1e-9
"""A value of a schedule that is lower by so much is the same."""

_LATE = 1_000_000
_EXAMPLE = "pass for example schedule=fxprune.schedules.AGP(0.0, 1.0, steps=10)"


def checked_options(options: Mapping[str, Any], soft: int) -> dict[str, Any]:
    """The options. Raises `PlanError` for one that `transform` does not have, or that is read only once."""
    known = [name for name in inspect.signature(transform).parameters if name not in (*_REFUSED, *_OWN, *_MODEL)]
    for name, value in options.items():
        if name in _REFUSED:
            why, do = _REFUSED[name]
            raise PlanError(f"GradualPruner has no option {name}", at=_at(name, value), why=why, do=do)
        if name not in known:
            raise _unknown(name, value, [*_OWN, *known])
    for name, what in _ONCE.items():
        if name in options and (name != "importance" or isinstance(options[name], Mapping)):
            why = f"{what} of the model that was given fits no model that has got smaller"
            raise PlanError(
                f"GradualPruner cannot take {name}", at=_at(name, options[name]), why=why, do="leave it out"
            )
    if options.get("uniform") == "config" and options.get("drop"):
        why = "the small model counts its layers from 0, so the plans of later steps have other names"
        do = "drop the layers by `transform` before, and prune what is left in steps"
        at = _at("drop", options["drop"])
        raise PlanError('GradualPruner cannot take drop with uniform="config"', at=at, why=why, do=do)
    for name in ("data", "repair"):
        given = options.get(name)
        at, do = _at(name, given), "pass a list of batches, or a loader"
        if isinstance(given, Iterator):
            raise PlanError(f"{name} is read at each step", at=at, why="an iterator can be read once", do=do)
        if isinstance(given, str) or not isinstance(given, Iterable | bool | None):
            raise PlanError(f"{name} must be batches", at=at, why=f"it is of the type {type(given).__name__}", do=do)
    if soft < 1:
        why = "it counts the steps from one that removes channels to the next"
        raise PlanError("soft must be at least 1", at=_at("soft", soft), why=why, do="soft=1 removes at each step")
    return dict(options)


def _at(name: str, value: Any) -> str:
    return f"GradualPruner({name}={shown(value)})"


def _unknown(name: str, value: Any, known: list[str]) -> PlanError:
    do = "a scheduler of the learning rate goes on with its optimizer: pass that, as optimizer="
    if name not in ("scheduler", "lr_scheduler"):
        hint = nearest(name, known)
        do = hint if hint.startswith("did you mean") else f"choose from {', '.join(known)}"
    why = "neither it nor fxprune.transform has an argument of this name"
    return PlanError(f"GradualPruner has no option {name}", at=_at(name, value), why=why, do=do)


def computed_only(keep: Mapping[str, Any]) -> Mapping[str, Any]:
    """The budgets, if they are computed. Raises `PlanError` for a latency, which is measured."""
    if timed := [key for key in checked_keys(keep) if key in TIMED]:
        raise PlanError(
            f"a schedule has no budget of {timed[0]}",
            at=f"keep={shown(dict(keep))}",
            why="it is measured, and differs from run to run: no run could go on from a checkpoint to the same model",
            do=f"choose from {', '.join((*COUNTED, *COMPUTED))}, or call fxprune.transform_ with it once, at the end",
        )
    return keep


# -- the schedule ---------------------------------------------------------------------------------------------


def function_of(schedule: Any) -> Schedule:
    """The schedule. Raises `PlanError` for a number, which `as_schedule` takes for one that stays the same."""
    if not callable(schedule):
        why = f"{type(schedule).__name__} is none, and the part of the way to the budgets has to grow"
        at = f"schedule={shown(schedule)}"
        raise PlanError("schedule must be a function of the step", at=at, why=why, do=_EXAMPLE)
    return as_schedule(schedule)


def share(value: Any, number: int) -> float:
    """The value of a schedule at a step. Raises `PlanError` for anything but a number from 0 to 1."""
    if not fits(value, float) or not 0 <= value <= 1:
        what = "a schedule must give the part of the way to the budgets, from 0 to 1"
        raise PlanError(what, at=f"step {number}", why=f"it gives {value!r}", do=_EXAMPLE)
    return float(value)


def grown(value: Any, number: int, before: float) -> float:
    """The value of a schedule at a step, which is not below the one before. Raises `PlanError` if it is."""
    now = share(value, number)
    if now < before - NOISE:
        raise PlanError(
            "a schedule must not fall: channels that are gone do not come back",
            at=f"step {number}",
            why=f"it gives {now:.6g}, and gave {before:.6g} before",
            do="let it grow from 0 to 1: it is the part of the way to the budgets, not what stays",
        )
    return max(now, before)


def refuse_falling(schedule: Schedule) -> None:
    """Raises `PlanError` for a schedule that gives less at a step than at the one before."""
    before = 0.0
    for number, value in enumerate(_shares(schedule), 1):
        before = grown(value, number, before)


def endless(schedule: Schedule) -> str:
    """A sentence about a schedule that has not reached 1 after a million steps; "" for others.

    A function that raises there, such as one that looks into a list, has an end that is not known.
    """
    try:
        last = schedule(_LATE)
    except Exception:
        return ""
    if not fits(last, float) or not 0 <= last < 1:
        return ""
    return (
        f"the schedule gives {float(last):.6g} at step {_LATE:,}, so the pruner is never done: it stays at this part "
        "of the way to the budgets. Let it reach 1, and say in `keep` how much stays"
    )


def _shares(schedule: Schedule) -> list[float]:
    """The values of a schedule at the steps from 1, up to the one at which it gives 1."""
    made: list[float] = []
    for number in range(1, _MOST_STEPS + 1):
        try:
            made.append(share(schedule(number), number))
        except Exception:
            return made
        if made[-1] >= 1:
            return made
    return made


# -- a state --------------------------------------------------------------------------------------------------

_KEYS = "version number progress budgets plan shapes settings".split()


def state_field(state: Any) -> Field:
    """A state of a pruner. Raises `PlanError` for anything that lacks one of its keys, or has others."""
    what, do = "the state of the pruner", "pass what `state_dict` of a GradualPruner gave"
    if not isinstance(state, Mapping):
        why = f"it is of the type {type(state).__name__}, and not a dict"
        raise PlanError(f"{what} is not what it should be", at=_loaded(state), why=why, do=do)
    lacking = [key for key in _KEYS if key not in state]
    if lacking:
        why = f'the key "{lacking[0]}" is missing'
        if lacking == _KEYS and state:
            why = f'it has none of the keys of such a state, and has "{next(iter(state))}"'
            do = f"{do}; the states of the model and of the optimizer are loaded into these"
        raise PlanError(f"{what} is not what it should be", at=_loaded(state), why=why, do=do)
    unknown = next((key for key in state if key not in _KEYS), None)
    if unknown is not None:
        why = f"nothing is known of the key {shown(unknown)}"
        raise PlanError(f"{what} is not what it should be", at=_loaded(state), why=why, do=do)
    return Field(dict(state), what, error=PlanError, do=do)


def _loaded(state: Any) -> str:
    said = f"a {type(state).__name__} of {len(state)} keys" if isinstance(state, Mapping) else shown(state)
    return f"load_state_dict: {said}"


def place_of(state: Field, schedule: Schedule) -> tuple[int, float]:
    """The number of steps in a state, and its progress. Raises `PlanError` if they are not those of the schedule."""
    number, progress = state["number"].value, state["progress"].number()
    if not 0 <= progress <= 1:
        raise state["progress"].wrong("it must be between 0 and 1")
    if type(number) is not int or number < 0:
        raise state["number"].wrong("it must be an integer of at least 0")
    try:
        expected = share(schedule(number), number) if number else 0.0
    except Exception as error:
        raise state["number"].wrong(f"the schedule has no such step: {text_of(error)}") from error
    if not math.isclose(expected, progress, abs_tol=1e-9):
        rule = f"the progress is {progress:.6g}, and the schedule gives {expected:.6g} at this step"
        raise state["number"].wrong(rule)
    return number, float(progress)


# -- the settings in a state ----------------------------------------------------------------------------------


def settings_of(schedule: Schedule, soft: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as plain data: the shares of the schedule, and all options that differ from their defaults.

    Data, a loss and batches for a repair are not in it: they are objects of one process.
    """
    defaults = {name: _plain(p.default) for name, p in inspect.signature(transform).parameters.items()}
    plain = {name: _plain(value) for name, value in options.items() if name not in (*_NOT_IN_A_STATE, "repair")}
    if options.get("repair") is not None and options["repair"] is not False:
        plain["repair"] = True
    changed = {name: value for name, value in plain.items() if value != defaults[name]}
    return {"schedule": _shares(schedule), "soft": soft, **changed}


def _plain(value: Any) -> Any:
    """A value as plain data; of an object its name."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Mapping):
        return {_name(key): _plain(part) for key, part in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_name, value))
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return _name(value)


def _name(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, functools.partial):
        return _name(value.func)
    if isinstance(value, type | types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value) if isinstance(value, int | float) else type(value).__qualname__


def refuse_other_settings(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises `PlanError` for a state that was made with other settings. It names the first that differs."""
    for name in dict.fromkeys((*saved, *own)):
        there, here = saved.get(name), own.get(name)
        if there == here:
            continue
        what = "schedule or other steps" if name == "schedule" else name
        if name == "schedule" and isinstance(there, list) and isinstance(here, list):
            step = next((n for n, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), None)
            if step is None:
                why = f"it gives {len(there)} shares in the state, and {len(here)} in this pruner"
            else:
                why = f"at step {step + 1} it gives {there[step]:.6g} in the state, and {here[step]:.6g} in this pruner"
        else:
            said = ["its default" if each is None else shown(each) for each in (there, here)]
            why = f"it is {said[0]} in the state, and {said[1]} in this pruner"
        raise PlanError(
            f"the state was made with another {what}",
            at=f"load_state_dict: {name}",
            why=why,
            do="make the pruner with the options of the run that was saved",
        )


def refuse_other_shapes(saved: Mapping[str, Any], model: nn.Module) -> None:
    """Raises `PlanError` for a state of a model whose parameters have other names or shapes."""
    own = {name: list(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    for name in dict.fromkeys((*saved, *own)):
        there, here = saved.get(name), own.get(name)
        if there != here:
            said = [f"shape {shape}" if shape is not None else "no such parameter" for shape in (there, here)]
            raise PlanError(
                "the state is of another model",
                at=f'"{name}"',
                why=f"there is {said[0]} in the state, and {said[1]} in this model",
                do="make the pruner for the model that was given to the first one, as it was then",
            )
