"""A node that takes a statistic, as the functions of `respells` see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

if TYPE_CHECKING:
    from torch import fx


class StatisticNode(Protocol):
    """A node whose statistic runs over `counts` slots and is to count `width` of them, the others being zero."""

    @property
    def counts(self) -> tuple[int, ...]:
        """The sizes that are left of the dimensions over which it runs."""

    @property
    def width(self) -> int:
        """The number of slots that it ran over in the original."""

    def argument(self, position: int, name: str) -> Any:
        """An argument by position or keyword, None where it is not given."""

    def scaled(self, factor: float) -> fx.Node:
        """A new node: the result times a number."""

    def layer(self, kind: type[nn.Module], eps: float | None, *arguments: Any) -> fx.Node:
        """A new node: a call of the norm layer that stands in for one of torch's and counts `width` slots."""
