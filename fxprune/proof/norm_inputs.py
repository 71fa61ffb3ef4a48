"""Numbers that enter norms: the small model takes those of the reference, where they are equal but for rounding.

A norm divides by a deviation. Over two values that are nearly equal, as a batch norm in training has them for a batch
of one that was doubled, it makes their difference hundreds of times larger, and its rounding too. A few such norms in a
row make a rounding as large as any number. So the numbers that enter a norm are compared, and then both models go on
with those of the reference: every stretch between two norms is compared as if it were a model of its own.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fxprune.capture.scopes import Key
from fxprune.channels.groups import Bools
from fxprune.proof.digests import Digest, Digester, cut

DIVIDING = frozenset(
    {
        "aten::native_batch_norm",
        "aten::_native_batch_norm_legit",
        "aten::native_layer_norm",
        "aten::native_group_norm",
        "aten::_fused_rms_norm",
    }
)
"""The operations whose first argument is divided by a deviation of its own numbers."""


@dataclass
class NormInputs:
    """The numbers that enter the norms of the reference, for the small model.

    tolerance: a relative error up to this is rounding.
    taken: the kept slots of what enters, by operation, and their digest; one for each call of the model.
    followed: the norms that give other numbers for those of the small model than for those of the reference.
    """

    digester: Digester
    tolerance: float
    taken: dict[Key, deque[tuple[torch.Tensor, Digest]]] = field(default_factory=lambda: defaultdict(deque))
    followed: list[Key] = field(default_factory=list)

    def take(self, key: Key, entering: torch.Tensor, kept: Sequence[Bools | None]) -> None:
        """Note the kept slots of what enters a norm of the reference."""
        numbers = cut(entering.detach(), kept).clone()
        self.taken[key].append((numbers, self.digester.digest(numbers)))

    def follow(self, key: Key, func: Any, args: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments of a norm of the small model, with the numbers of the reference."""
        if not self.taken[key]:
            return tuple(args)
        numbers, digest = self.taken[key].popleft()
        if not self.digester.digest(args[0]).error(digest) <= self.tolerance:
            return tuple(args)
        own, theirs = (_result(func, (given, *args[1:])) for given in (args[0], numbers))
        if self.digester.digest(own).error(self.digester.digest(theirs)) > self.tolerance:
            self.followed.append(key)
        return numbers, *args[1:]

    def note(self) -> str:
        """A sentence about what was followed, "" if nothing was."""
        if not self.followed:
            return ""
        places = list(dict.fromkeys(scope or "the model" for scope, *_ in self.followed))
        listed = ", ".join(places[:3]) + (", ..." if len(places) > 3 else "")
        return (
            f"norms over nearly equal numbers make roundings larger ({listed}): what enters them is compared, and the "
            "proof goes on with the numbers of the original"
        )


def _result(func: Any, args: Sequence[Any]) -> torch.Tensor:
    """The result of a norm, on copies of its arguments: it may update the statistics among them."""
    copied = [value.clone() if isinstance(value, torch.Tensor) else value for value in args]
    made: torch.Tensor = func(*copied)[0]
    return made
