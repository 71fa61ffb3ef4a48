"""The plain numbers that an `autograd.Function` keeps for its backward, such as `ctx.n = x.shape[1]`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fxprune.capture.code import is_torch
from fxprune.capture.places import users_line
from fxprune.capture.trace_watch import replace_attribute


@dataclass(frozen=True)
class FunctionContext:
    """One call of an `autograd.Function`: its name, the line that called it, and the numbers in its context by name."""

    function: str
    source: str
    numbers: dict[str, int | float]


@contextlib.contextmanager
def noted_contexts(found: list[FunctionContext]) -> Iterator[None]:
    """Appends what each `autograd.Function` keeps that is called in this thread; those of torch are left out."""
    original: Any = vars(torch.autograd.Function)["apply"]
    thread = threading.get_ident()

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        here = threading.get_ident() == thread and torch._C._functorch.maybe_current_level() is None
        watched = None if is_torch(cls.__module__) or not here else _watched(cls, found)
        return original.__get__(None, watched or cls)(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        replace_attribute(stack, torch.autograd.Function, "apply", classmethod(apply))
        yield


def _watched(cls: Any, found: list[FunctionContext]) -> Any:
    """A class as `cls`, which notes the numbers in its context after the method that writes them."""
    split = cls.setup_context is not torch.autograd.Function.setup_context
    name = "setup_context" if split else "forward"
    method: Callable[..., Any] = getattr(cls, name)

    def noted(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        made = method(ctx, *args, **kwargs)
        kept = getattr(ctx, "__dict__", {})
        numbers = {key: value for key, value in kept.items() if isinstance(value, (int, float))}
        found.append(FunctionContext(cls.__name__, users_line(), numbers))
        return made

    try:
        return type(cls)(cls.__name__, (cls,), {name: staticmethod(noted), "__module__": cls.__module__})
    except Exception:  # a class that refuses to be derived from
        return None


def context_notes(before: list[FunctionContext], after: list[FunctionContext]) -> list[str]:
    """Sentences about numbers that are others in the small model. Both lists are those of one run."""
    if [one.function for one in before] != [one.function for one in after]:
        return []
    notes = [
        f"the autograd.Function {now.function} ({now.source}) keeps {name} = {now.numbers[name]} for its backward, "
        f"{number} in the original: its gradients may be others than those of the masked original, and are not compared"
        for was, now in zip(before, after, strict=True)
        for name, number in was.numbers.items()
        if name in now.numbers and now.numbers[name] != number
    ]
    return list(dict.fromkeys(notes))
