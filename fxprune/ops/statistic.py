"""A node that takes a statistic, as functions registered with `respells` see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

if TYPE_CHECKING:
    from torch import fx


class StatisticNode(Protocol):
    """A node whose statistic runs over the slots that are left, and has to count `width` slots.

    The removed slots were zero in the original, so each of them adds a zero to the statistic.
    """

    @property
    def counts(self) -> tuple[int, ...]:
        """The new sizes of the dimensions over which the statistic runs."""

    @property
    def width(self) -> int:
        """The number of slots that the statistic ran over in the original."""

    def argument(self, position: int, name: str) -> Any:
        """An argument by position or keyword, None where it is not given."""

    def scaled(self, factor: float) -> fx.Node:
        """Add a node: the result times a number."""

    def layer(self, kind: type[nn.Module], eps: float | None, *arguments: Any) -> fx.Node:
        """Add a node: a call of the norm layer of this package that counts `width` slots.

        kind: the layer of torch that it is a variant of. arguments: those of the call.
        """
