"""The paths to a smaller model: the table of all paths, and the loop that tries them in turn.

Each path is a `FrontEnd` in a file of `fxprune/capture/`. It captures the model, and says what kind of small model the
path gives: whether it keeps its class, and whether it needs hooks. A new path is a new file there and a new line in the
table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import fx, nn

from fxprune.capture.captured import Captured, FrontEnd
from fxprune.capture.class_forward import CLASS_FORWARD
from fxprune.capture.exported import EXPORTED
from fxprune.capture.hooked import HOOKED
from fxprune.capture.inputs import Inputs
from fxprune.capture.process_state import clean_caches
from fxprune.capture.traced import TRACED
from fxprune.errors import CaptureError, FxpruneError, PlanError

T = TypeVar("T")

PATHS: Mapping[str, FrontEnd] = {
    front_end.name: front_end
    for front_end in (
        CLASS_FORWARD,
        TRACED,
        EXPORTED,
        HOOKED,
    )
}
"""Every path by its name, in the order in which they are tried."""

PREFERENCES: Mapping[str, Callable[[FrontEnd], bool]] = {
    "class": lambda front_end: front_end.keeps_class,
    "graph": lambda front_end: not front_end.keeps_class,
}
"""Value of `prefer` -> a function that is True for the paths to try first."""


# -- which paths ------------------------------------------------------------------------------------------


def paths_for(
    model: nn.Module, path: str | None, prefer: str | None, *, usual: str | None = None, made_on: str = ""
) -> tuple[FrontEnd, ...]:
    """The paths to try, in order.

    Args:
        model: a `GraphModule` is only tried on the paths that take graphs.
        path: the name of the only path to try.
        prefer: "class" or "graph": which paths to try first.
        usual: the value of `prefer` if neither `path` nor `prefer` is given.
        made_on: the name of the path that a plan was made on. It is tried first unless `prefer` is given. If it needs
            hooks, it is the only one.

    Raises `PlanError` for names that do not exist, and if both `path` and `prefer` are given.
    """
    if path is not None and prefer is not None:
        raise PlanError("path says already which path to take", why="prefer was given too", do="pass one of them")
    if path is not None and not (isinstance(path, str) and path in PATHS):
        raise PlanError(
            f"there is no path {path!r}",
            why=f"the paths are {', '.join(PATHS)}",
            do="pass one of these, or leave path out",
        )
    if prefer is not None and not (isinstance(prefer, str) and prefer in PREFERENCES):
        names = " or ".join(f'"{name}"' for name in PREFERENCES)
        raise PlanError(
            f"there is no preference {prefer!r}", why=f"prefer is {names}", do="pass one of these, or leave prefer out"
        )
    if path is not None:
        return (PATHS[path],)
    if isinstance(model, fx.GraphModule):
        return tuple(front_end for front_end in PATHS.values() if front_end.takes_graphs)
    first = PATHS.get(made_on)
    if prefer is None and first is not None:
        return (first,) if first.needs_hooks else (first, *(other for other in PATHS.values() if other is not first))
    preference = prefer or usual
    preferred = PREFERENCES[preference] if preference else lambda front_end: True
    return tuple(sorted(PATHS.values(), key=lambda front_end: (front_end.needs_hooks, not preferred(front_end))))


def without_hooks(paths: Sequence[FrontEnd]) -> Sequence[FrontEnd]:
    """The paths that need no hooks. A single path is kept even if it needs hooks, because the user asked for it."""
    return [path for path in paths if len(paths) == 1 or not path.needs_hooks]


def capture(model: nn.Module, inputs: Inputs, path: FrontEnd) -> Captured:
    """The model, captured on one path.

    Raises `CaptureError` if the path cannot capture the model, `InputError` if the inputs do not fit.
    """
    if isinstance(model, fx.GraphModule) and not path.takes_graphs:
        graphs = next(other.name for other in PATHS.values() if other.takes_graphs)
        raise CaptureError(
            "the model is a graph already", why=f'path="{path.name}" begins with a module', do=f'use path="{graphs}"'
        )
    with clean_caches(model):
        return path.capture(model, inputs)


# -- trying them ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """The outcome of trying paths in turn.

    result: the result of the first path that gave one; None if none did.
    errors: name of a path -> the error that it raised, in the order in which they were tried.
    """

    result: T | None = None
    errors: Mapping[str, FxpruneError] = field(default_factory=dict)

    def get(self) -> T:
        """The result. If there is none, raises the most useful of the errors: see `most_useful_error`."""
        if self.result is None:
            raise most_useful_error(list(self.errors.values()))
        return self.result

    @property
    def model_runs(self) -> bool:
        """False if the model's own forward was tried and does not run on the example inputs."""
        return not any(_does_not_run(PATHS[name], error) for name, error in self.errors.items())


def is_capture_error(path: FrontEnd, error: FxpruneError) -> bool:
    """True if the path cannot capture the model, so that another path may work."""
    return isinstance(error, CaptureError)


def try_in_turn(
    paths: Iterable[FrontEnd],
    attempt: Callable[[FrontEnd], T],
    *,
    goes_on: Callable[[FrontEnd, FxpruneError], bool] = is_capture_error,
    before: Outcome[T] | None = None,
) -> Outcome[T]:
    """The outcome of calling `attempt` on one path after the other, until one gives a result.

    If the model's own forward cannot be captured, the loop ends: the model does not run on these inputs.

    Args:
        attempt: a function from a path to a result. It raises an `FxpruneError` if the path gives none.
        goes_on: a function of a path and its error. If it returns False, the error is raised; if True, the next path is
            tried.
        before: the outcome of an earlier loop, whose errors are kept.
    """
    errors = dict(before.errors) if before is not None else {}
    for path in paths:
        try:
            return Outcome(attempt(path), errors)
        except FxpruneError as error:
            if not goes_on(path, error):
                raise
            errors[path.name] = error
            if _does_not_run(path, error):
                break
    return Outcome(None, errors)


def most_useful_error(errors: Sequence[FxpruneError]) -> FxpruneError:
    """The error of several paths that helps a user most.

    The first that is not about capturing the model; else the first that forward itself raises; else the first.
    """
    captures = [error for error in errors if isinstance(error, CaptureError)]
    others = [error for error in errors if not isinstance(error, CaptureError)]
    return next(iter(others), None) or next((error for error in captures if error.raised), errors[0])


def _does_not_run(path: FrontEnd, error: FxpruneError) -> bool:
    return path.keeps_class and isinstance(error, CaptureError) and error.raised
