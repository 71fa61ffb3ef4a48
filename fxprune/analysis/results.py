"""The tensors in the result of a forward, and which of them count as outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fxprune.capture.output_paths import OutputPath, Outputs, path_text, paths_text
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector


@dataclass(frozen=True, eq=False)
class Results:
    """The tensors in the result of the forward.

    outputs: the parts that count as outputs; None if all do.
    others: the tensors that do not count: their paths, and the vectors of their dimensions.
    """

    outputs: Outputs | None = None
    others: tuple[tuple[OutputPath, tuple[Vector, ...]], ...] = ()

    @property
    def paths(self) -> tuple[OutputPath, ...] | None:
        """The paths to the parts that count; None if all do."""
        return None if self.outputs is None else (*self.outputs.paths, *self.outputs.elsewhere)

    def note(self) -> str:
        """The sentence that says which parts count; "" if all do."""
        if self.outputs is None:
            return ""
        names = paths_text([path for path, _ in self.others])
        counted = paths_text(self.outputs.paths)
        return f"parts of the result that count as outputs: {counted}; not compared: {names or 'none'}"

    def changes(self, removal: Removal) -> Iterator[str]:
        """Sentences about the tensors that do not count and have another shape in the small model."""
        for path, vectors in self.others:
            before, after = tuple(v.size for v in vectors), tuple(removal.count(v) for v in vectors)
            if before != after:
                yield f"{path_text(path)} in the result has shape {after}, before {before}"
