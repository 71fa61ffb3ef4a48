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
from fxprune.capture.scopes import Scopes
from fxprune.capture.trace_watch import replace_attribute


@dataclass(frozen=True)
class FunctionContext:
    """One call of an `autograd.Function`.

    function: its name.
    path: that of the module whose forward called it; "" for the model itself.
    source: the line that called it.
    numbers: those in its context, by name.
    """

    function: str
    path: str
    source: str
    numbers: dict[str, int | float]


@contextlib.contextmanager
def noted_contexts(found: list[FunctionContext], scopes: Scopes) -> Iterator[None]:
    """Appends what each `autograd.Function` keeps that is called in this thread; those of torch are left out.

    scopes: those of the run, which know the module that calls it.
    """
    original: Any = vars(torch.autograd.Function)["apply"]
    thread = threading.get_ident()

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        here = threading.get_ident() == thread and torch._C._functorch.maybe_current_level() is None
        watched = None if is_torch(cls.__module__) or not here else _watched(cls, found, scopes)
        return original.__get__(None, watched or cls)(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        replace_attribute(stack, torch.autograd.Function, "apply", classmethod(apply))
        yield


def _watched(cls: Any, found: list[FunctionContext], scopes: Scopes) -> Any:
    """A class as `cls`, which notes the numbers in its context after the method that writes them."""
    split = cls.setup_context is not torch.autograd.Function.setup_context
    name = "setup_context" if split else "forward"
    method: Callable[..., Any] = getattr(cls, name)

    def noted(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        made = method(ctx, *args, **kwargs)
        kept = getattr(ctx, "__dict__", {})
        numbers = {key: value for key, value in kept.items() if isinstance(value, (int, float))}
        path = scopes.current.path
        found.append(FunctionContext(cls.__name__, "" if path.startswith("%") else path, users_line(), numbers))
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
        f"the autograd.Function {now.function}{_in(now.path)} ({now.source}) keeps {name} = {now.numbers[name]} for "
        f"its backward, {number} in the original: its gradients may be others than those of the masked original, and "
        "are not compared"
        for was, now in zip(before, after, strict=True)
        for name, number in was.numbers.items()
        if name in now.numbers and now.numbers[name] != number
    ]
    return list(dict.fromkeys(notes))


def _in(path: str) -> str:
    return f' in "{path}"' if path else ""
