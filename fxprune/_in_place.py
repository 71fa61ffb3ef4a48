"""`transform_`: the model itself gets smaller, so references to it and to its modules stay valid."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import fx, nn
from torch.export import ExportedProgram

from fxprune._follow import at_once, become, check_targets, holders_of, listed, made, prepared_for, stay_on, watch
from fxprune._follow.averages import check_average
from fxprune._record import change_record, joined_in_place, record
from fxprune._transform import transform
from fxprune.arguments import checks_names, refuse_unknown, shown, why_no_model
from fxprune.capture.dispatched import undispatched
from fxprune.capture.process_state import public_call
from fxprune.errors import InputError, PlanError, level_of_user
from fxprune.offloaded import dispatch_of, is_dispatched, without_hooks
from fxprune.rewrite.tensor_hooks import HOOK_TABLES, rebind
from fxprune.running.processes import Processes
from fxprune.sharded import Wrapping, is_sharded, sharded_parameters, talk_of_model, unwrapped, wrap_again

ModuleT = TypeVar("ModuleT", bound=nn.Module)

WITH_A_PLAN = {"also", "methods", "strict", "verify", "prefer", "norms", "outputs"}
"""The options of `transform` that choose no channels: they go with a plan."""


@public_call()
@checks_names
def transform_(model: ModuleT, example_inputs: Any, **options: Any) -> ModuleT:
    """The same model object, smaller: `transform` in place.

    The small model is made and proven beside the model. Then the model takes over its parameters, buffers and
    attributes, and so do the modules in it: whatever refers to them, such as a trainer, a logger or the handle of a
    hook, goes on with the small ones. Parameters are new objects, so an optimizer has to follow: `optimizer=`. A
    wrapper that looks at parameters when it is made, such as `DistributedDataParallel`, has to be made again.

    A model under `torch.distributed.fsdp.fully_shard` is pruned by all its processes together, with one weight whole at
    a time on each: see docs/training.md.

    Args:
        model: a module or a traced graph. It keeps its class.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        options: those of `transform`.

    Returns the model. Raises as `transform` does, and `PlanError` if the class of the model cannot be kept; the model
    is as it was then.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> first = net[0]
    >>> fxprune.transform_(net, torch.randn(1, 4), ratio=0.5) is net
    True
    >>> first
    Linear(in_features=4, out_features=4, bias=True)
    """
    if isinstance(model, ExportedProgram) or not isinstance(model, nn.Module):
        kind = model.__name__ if isinstance(model, type) else type(model).__name__
        why, do = why_no_model(model)
        if isinstance(model, ExportedProgram):
            do = "use fxprune.transform"
        raise InputError(f"{kind} cannot be changed in place", at=f"transform_(model={shown(model)})", why=why, do=do)
    refuse_unknown("transform_", options, transform, more=("optimizer", "ema"))
    if not isinstance(model, fx.GraphModule) and not {"path", "prefer"} & options.keys():
        options["prefer"] = "class"
    followers = [*listed(options.pop("optimizer", None)), *listed(options.pop("ema", None))]
    holders = holders_of(model)
    if is_sharded(model):
        _sharded(model, example_inputs, followers, options)
    elif is_dispatched(model):
        _dispatched(model, example_inputs, followers, options)
    else:
        with Processes(options.get("process_group")).together():
            check_targets(followers, model)
            small = _small(model, example_inputs, options)
            changes = prepared_for(followers, model, small)
        _warn_of_lost_hooks(model, small)
        with at_once():
            _note(small, made(changes))
            joined_in_place(small, model)
            stay_on(model, small)
            rebind(small, model)
            become(model, small)
    watch(holders, model, in_place=True)
    return model


def _dispatched(model: nn.Module, example_inputs: Any, followers: Sequence[Any], options: dict[str, Any]) -> None:
    """`transform_` of a model that accelerate has dispatched: it gets the hooks and the weights of its small model."""
    small = _small(model, example_inputs, {**options, "optimizer": followers or None})
    dispatch, plain = dispatch_of(small), undispatched(small)
    _warn_of_lost_hooks(model, plain)
    with at_once():
        for module in model.modules():
            without_hooks(module)
        joined_in_place(plain, model)
        stay_on(model, plain)
        rebind(plain, model)
        become(model, plain)
        dispatch.again(model)


def _sharded(model: nn.Module, example_inputs: Any, followers: Sequence[Any], options: dict[str, Any]) -> None:
    """`transform_` of a model under `fully_shard`: all processes do this together.

    An average gets smaller by the plan of the model, as a model of its own: a sharded one cannot be copied.
    """
    talk = talk_of_model(model)
    averages = [each for each in followers if isinstance(each, nn.Module)]
    others = [each for each in followers if not isinstance(each, nn.Module)]
    with talk.together():
        refuse_sharded(options)
        check_targets(followers, model)
        first = _made_beside(model, example_inputs, {**options, "process_group": talk.group})
        parameters = dict(model.named_parameters(remove_duplicate=False))
        known = {name: value for name, value in options.items() if name in WITH_A_PLAN}
        known |= {"plan": record(first.small).plan, "process_group": talk.group}
        made_too = [
            _made_beside(average.get_submodule(check_average(average, parameters)), example_inputs, known)
            for average in averages
        ]
        changes = prepared_for(others, model, first.small)
    _warn_of_lost_hooks(model, first.small)
    with at_once():
        _note(first.small, (*made(changes), talk.note()))
        for each in (first, *made_too):
            joined_in_place(each.small, each.model)
            stay_on(each.model, each.small)
            rebind(each.small, each.model)
            become(each.model, each.small)
            wrap_again(each.model, each.wrappings)


@dataclass(frozen=True, eq=False)
class _Beside:
    """A model, the small one that was made of it, and how it was wrapped."""

    model: nn.Module
    small: nn.Module
    wrappings: Sequence[Wrapping]


def _made_beside(model: nn.Module, example_inputs: Any, options: Mapping[str, Any]) -> _Beside:
    """The small model of one that may be sharded."""
    if not is_sharded(model):
        return _Beside(model, _small(model, example_inputs, options), ())
    with unwrapped(model) as wrappings:
        small = _small(model, example_inputs, options)
    sharded_parameters(small)
    return _Beside(model, small, wrappings)


def refuse_sharded(options: Mapping[str, Any]) -> None:
    """Raises `PlanError` for what cannot be done while a model is sharded."""
    reasons = {
        "repair": ("a repair", "it refits views of whole weights in place"),
        "bias": ('bias="fold"', "the constants come from running statistics, and each process has its own"),
        "masks": ('masks="zeros"', "its constants come from running statistics, and each process has its own"),
        "search": ('scope="search"', "it makes and repairs many small models"),
        "depth": ("depth=True", "it makes and repairs many small models"),
    }
    given = {
        "repair": options.get("repair") not in (None, False),
        "bias": options.get("bias") == "fold",
        "masks": isinstance(options.get("masks"), str),
        "search": options.get("scope") == "search",
        "depth": options.get("depth") is True,
    }
    for name, is_given in given.items():
        if is_given:
            what, why = reasons[name]
            at = f"{name}={shown(options[name])}" if name in options else 'scope="search"'
            raise PlanError(
                f"{what} is not possible for a sharded model", at=at, why=why, do="prune before fully_shard"
            )


def _small(model: nn.Module, example_inputs: Any, options: Mapping[str, Any]) -> nn.Module:
    """The small model. Raises `PlanError` if it is a graph, and the model is none."""
    small = transform(model, example_inputs, **options)
    if isinstance(small, fx.GraphModule) != isinstance(model, fx.GraphModule):
        why = "the result is a graph, and the model cannot become one in place"
        do = "use fxprune.transform, or leave path and prefer out"
        raise PlanError("the class of the model is lost", at=type(model).__name__, why=why, do=do)
    return small


def _warn_of_lost_hooks(model: nn.Module, small: nn.Module) -> None:
    """Warn of hooks that parameters of the small model do not have: an optimizer may step in them.

    `transform` has warned of those that its record names.
    """
    news = dict(small.named_parameters())
    told = [reason for reason in record(small).reasons if "is left out" in reason]
    lost = [
        name
        for name, old in model.named_parameters()
        for table in HOOK_TABLES
        if name in news and len(getattr(old, table, None) or ()) > len(getattr(news[name], table, None) or ())
        if not any(f'of "{name}" (' in reason for reason in told)
    ]
    if lost:
        listed = ", ".join(f'"{name}"' for name in lost[:4]) + (", ..." if lost[4:] else "")
        text = f"hooks are not on the new parameters of {listed}: register them again"
        warnings.warn(f"{text}. record(model).reasons says why, where it is known", UserWarning, level_of_user())


def _note(small: nn.Module, notes: tuple[str, ...]) -> None:
    if notes:
        change_record(small, lambda known: replace(known, reasons=known.reasons + notes))
