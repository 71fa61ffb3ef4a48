"""Comparing the fractions that operations are called with, in the run of the original and of the small model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.arguments import bound, numbers_of
from fxprune.capture.scopes import Key, Scopes
from fxprune.proof.operations import NOTHING


class CalledNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that notes the fractions that operations are called with.

    It finds a scale that forward computes from a width, such as `width ** -0.5`. In the small model such a scale is
    wrong, even if the outputs for the example inputs do not show it.

    seen: key of an operation -> its fractions.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scopes = Scopes(NOTHING)
        self.scopes.on_attention = self._scaled
        self.seen: dict[Key, tuple[float, ...]] = {}

    def _scaled(self, key: Key, named: dict[str, Any], made: Any) -> None:
        self.seen[key] = (named["scale"],)

    @contextlib.contextmanager
    def inside(self, module: nn.Module, path: str) -> Iterator[None]:
        """Note the operations of a module while it runs. `module` may be a copy; `path` is its name in the model."""
        self.scopes.follow(module, path)
        with self.scopes.watching(), self:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "prim":
            name, named = bound(func, args, kwargs or {})
            key = self.scopes.current.next_key(name)
            if not self.scopes.current.depends_on_sizes and (found := numbers_of(named.values(), named)):
                self.seen[key] = found
        return func(*args, **(kwargs or {}))

    def same_numbers(self, other: CalledNumbers, rounding: float) -> bool:
        """True if all operations that ran in both runs were called with the same numbers.

        Operations with different counts of numbers are not compared. rounding: the largest relative difference.
        """
        pairs = ((mine, other.seen[key]) for key, mine in self.seen.items() if key in other.seen)
        return all(len(a) != len(b) or np.allclose(a, b, rtol=rounding, atol=0, equal_nan=True) for a, b in pairs)
