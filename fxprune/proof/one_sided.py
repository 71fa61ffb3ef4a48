"""Operations that only one of the two models runs, or runs more often. Nothing of them is compared."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fxprune.proof.trail import Trail


@dataclass(frozen=True, repr=False)
class OneSided:
    """An operation that did not run equally often in both models.

    operation: its name.
    original, small: how often it ran in each of the modules, in the original and in the small model.
    modules: the paths of these modules, "" for the model itself.

    >>> OneSided("aten::clone", 0, 1, ("layers.0", "layers.1"))
    OneSided('aten::clone in 2 modules: 0 in the original, 1 in the small model')
    """

    operation: str
    original: int
    small: int
    modules: tuple[str, ...]

    def __str__(self) -> str:
        """One line, with the first modules by name."""
        listed = ", ".join(name or "the model" for name in self.modules[:3])
        more = f", ... ({len(self.modules)} modules)" if len(self.modules) > 3 else ""
        return f"{self.operation} in {listed}{more}: {self._counts}"

    def __repr__(self) -> str:
        where = f"{len(self.modules)} modules" if len(self.modules) > 1 else self.modules[0] or "the model"
        return f"OneSided('{self.operation} in {where}: {self._counts}')"

    @property
    def _counts(self) -> str:
        return f"{self.original} in the original, {self.small} in the small model"


def one_sided(theirs: Trail, ours: Trail, skipped: frozenset[str]) -> tuple[OneSided, ...]:
    """The operations that did not run equally often in the two models. Modules with the same counts share an entry.

    theirs, ours: the trails of the reference and of the small model.
    skipped: the scopes whose operations are others by intention.

    Operations inside a function whose operations depend on the sizes, such as `linear`, are left out.
    """
    counts = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for counted, trail in zip(counts, (theirs, ours), strict=True):
        for (scope, _, name), times in trail.calls.items():
            if "|" not in scope and scope not in skipped:
                counted[scope, name] += times
    found: dict[tuple[str, int, int], list[str]] = {}
    for scope, name in {**counts[0], **counts[1]}:
        before, after = (counted[scope, name] for counted in counts)
        if before != after:
            found.setdefault((name, before, after), []).append(scope)
    return tuple(OneSided(*counted, tuple(modules)) for counted, modules in found.items())
