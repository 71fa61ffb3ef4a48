"""`transform_`: the model itself gets smaller, so references to it and to its modules stay valid."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import fx, nn
from torch.export import ExportedProgram

from fxprune._follow import let_follow, listed, optimizers_of, watch
from fxprune._record import attach, record
from fxprune._transform import transform
from fxprune.capture.containers import MOST_PARTS, parts, with_parts
from fxprune.capture.process_state import public_call
from fxprune.errors import InputError, PlanError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@public_call()
def transform_(model: ModuleT, example_inputs: Any, **options: Any) -> ModuleT:
    """The same model object, smaller: `transform` in place.

    The small model is made and proven beside the model. Then the model takes over its parameters, buffers and
    attributes, and so do the modules in it: whatever refers to them, such as a trainer, a logger or the handle of a
    hook, goes on with the small ones. Parameters are new objects, so an optimizer has to follow: `optimizer=`. A
    wrapper that looks at parameters when it is made, such as `DistributedDataParallel`, has to be made again.

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
        kind = type(model).__name__
        raise InputError(f"{kind} cannot be changed in place", why="it is no module", do="use fxprune.transform")
    if not isinstance(model, fx.GraphModule) and not {"path", "prefer"} & options.keys():
        options["prefer"] = "class"
    followers = [*listed(options.pop("optimizer", None)), *listed(options.pop("ema", None))]
    optimizers = optimizers_of(model)
    small = transform(model, example_inputs, **options)
    if isinstance(small, fx.GraphModule) != isinstance(model, fx.GraphModule):
        why = "the result is a graph, and the model cannot become one in place"
        do = "use fxprune.transform, or leave path and prefer out"
        raise PlanError("the class of the model is lost", why=why, do=do)
    notes = let_follow(followers, model, small)
    if notes:
        made = record(small)
        attach(small, replace(made, reasons=made.reasons + notes))
    _become(model, small)
    watch(optimizers, model, told=followers)
    return model


def _become(model: nn.Module, small: nn.Module) -> None:
    """Give every module of a model the class and the attributes of its small counterpart, which share them then."""
    olds = dict(model.named_modules(remove_duplicate=False))
    news = dict(small.named_modules(remove_duplicate=False))
    counterparts = {id(new): olds[path] for path, new in reversed(news.items()) if path in olds}
    for new in {id(new): new for new in news.values()}.values():
        for name, value in new.__dict__.items():
            new.__dict__[name] = _with_counterparts(value, counterparts)
        old = counterparts.get(id(new))
        if old is not None and old.__dict__ is not new.__dict__:
            _keep_hooks(old.__dict__, new.__dict__)
            object.__setattr__(old, "__class__", type(new))
            object.__setattr__(old, "__dict__", new.__dict__)


def _with_counterparts(value: Any, counterparts: Mapping[int, nn.Module]) -> Any:
    """A value of an attribute, with the modules of the model in the place of their small counterparts.

    A list or dict is changed; of a tuple or a bound method there is a new one.
    """
    if isinstance(value, nn.Module):
        return counterparts.get(id(value), value)
    if isinstance(value, types.MethodType) and id(value.__self__) in counterparts:
        return types.MethodType(value.__func__, counterparts[id(value.__self__)])
    if isinstance(value, (dict, list, tuple)) and len(value) <= MOST_PARTS:
        found = parts(value)
        new = {key: _with_counterparts(part, counterparts) for key, part in found.items()}
        return with_parts(value, new) if any(new[key] is not part for key, part in found.items()) else value
    return value


def _keep_hooks(old: Mapping[str, Any], new: dict[str, Any]) -> None:
    """Put the hooks into the dicts that the handles of the user's hooks refer to."""
    for name, hooks in old.items():
        if name.endswith("_hooks") and isinstance(hooks, dict) and isinstance(new.get(name), dict):
            made = dict(new[name])
            hooks.clear()
            hooks.update(made)
            new[name] = hooks
