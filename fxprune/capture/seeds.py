"""Seeds of forward's own: how they are seen while a model runs, is traced or exported."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fxprune.capture.places import OWN, TORCH

UNSEEDED = 0x66787072756E65
"""A number that no code seeds with."""

SETS_THE_STATE = "sets the state of torch's random numbers"
"""The beginning of what is said of a forward that does so."""


@contextlib.contextmanager
def told_seeds() -> Iterator[None]:
    """Gives torch's generator a seed of its own for one run of forward, so that another seed is one of forward."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(UNSEEDED)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def seeded() -> bool:
    """True if something has seeded torch's generator since `told_seeds` began."""
    return torch.initial_seed() != UNSEEDED


@contextlib.contextmanager
def watching_seeds(report: Callable[[str], None], here: Callable[[], bool]) -> Iterator[None]:
    """Calls `report` with what the user's code does to the state of torch's generator, such as "manual_seed".

    `torch.manual_seed`, `torch.set_rng_state` and torch's context for both reach the generator by a name of
    `torch.random`, wherever the user has imported them from. `torch.default_generator` itself is not watched; a seed
    that it gets is seen by `seeded`.

    here: True in the thread that is watched.
    """
    place: Any = torch.random
    generator = place.default_generator
    with told_seeds():
        place.default_generator = _Watched(generator, report, here)
        try:
            yield
        finally:
            place.default_generator = generator


class _Watched:
    """The generator of torch, which reports what changes its state other than a draw."""

    def __init__(self, generator: Any, report: Callable[[str], None], here: Callable[[], bool]) -> None:
        self.generator, self.report, self.here = generator, report, here

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)

    def manual_seed(self, seed: int) -> torch.Generator:
        """Set the seed."""
        self._note("manual_seed")
        made: torch.Generator = self.generator.manual_seed(seed)
        return made

    def seed(self) -> int:
        """Set a seed that is not known before."""
        self._note("seed")
        return int(self.generator.seed())

    def set_state(self, state: torch.Tensor) -> torch.Generator:
        """Set the state."""
        self._note("set_rng_state")
        made: torch.Generator = self.generator.set_state(state)
        return made

    def _note(self, how: str) -> None:
        if self.here() and _called_by_user():
            self.report(how)


def _called_by_user() -> bool:
    """True if code of the user calls torch's function, and not torch or this package on its own account."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(OWN):
            if name != __file__:
                return False
        elif not name.startswith(TORCH) and name != contextlib.__file__:
            return True
        frame = frame.f_back
    return False
