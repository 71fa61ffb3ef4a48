"""The result of `follow`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fxprune.errors import counted


@dataclass(frozen=True)
class Followed:
    """The report of an optimizer or an averaged model that followed: its parameters.

    kind: the name of the class that follows.
    moved: the parameters that have a counterpart in the small model.
    dropped: those that the small model does not have. They left their group, with their state.
    added: parameters of the small model that the original does not have, such as a bias that takes up a constant. They
        are in the group of the weight of their layer, without state.
    notes: sentences about what is not as it would be in the masked original.
    """

    kind: str
    moved: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.kind}: {counted(len(self.moved), 'parameter')} moved"]
        parts += [f"{text}: {', '.join(names)}" for text, names in self._changes() if names]
        return "; ".join([*parts, *self.notes])

    def _changes(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return ("left out", self.dropped), ("new", self.added)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A change that is prepared and not yet made.

    result: what it will have done. make: makes it, and cannot fail.
    """

    result: Followed
    make: Callable[[], None]
