"""One read of a dimension by an operation of the reference: which slots carry constants, and what can take them up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fxprune.channels.groups import Bools, Ints
from fxprune.channels.vector import Vector


@dataclass(eq=False)
class Reading:
    """A read of a dimension.

    at, why: the place, and what the slots in `bad` are there.
    vector: the dimension's.
    bad: the slots that cannot be removed: not constant, or not zero where nothing can take a constant up.
    """

    at: str
    why: str
    vector: Vector
    bad: Bools

    def read_by(self, kept: Bools | None) -> Bools:
        """The slots that the `kept` outputs read, all outputs if that is None."""
        return np.ones(self.vector.size, dtype=bool)


@dataclass(frozen=True, eq=False)
class ReadConstants:
    """The slots that carry a constant c != 0 into a product.

    planes: the values at all positions, [slots, positions or 1]. uniform: the slots that have one value everywhere.
    columns: the weight's columns for them, [out, slots, taps].
    """

    slots: Ints
    planes: torch.Tensor
    uniform: Bools
    columns: torch.Tensor

    @property
    def sizes(self) -> Any:
        """The largest value of each, without sign."""
        return self.planes.abs().amax(1).cpu().numpy()


@dataclass(frozen=True)
class Bias:
    """A bias that can take up constants: a parameter of the model, or one to be made (`new`); "" is none."""

    name: str = ""
    new: bool = False


@dataclass(eq=False)
class ProductReading(Reading):
    """A product with a constant weight, which sums over the dimension.

    reads: which outputs read which slots of their block [out, slots]; transposed [out of a block, slots of all blocks].
    blocks, out: the blocks of the dimension (conv groups) and the vector of the outputs, which are in as many blocks.
    weight: the parameter whose column can be changed, "" for none.
    """

    constants: ReadConstants
    reads: Bools
    blocks: int = 1
    transposed: bool = False
    bias: Bias = Bias()
    weight: str = ""
    out: Vector | None = None

    @property
    def carried(self) -> bool:
        """True if all constants go into the column of a carrier, and none into a bias."""
        return not self.bias.name

    @property
    def result(self) -> str:
        """The node to whose result a map can be added, "" for none."""
        return ""

    @property
    def block(self) -> Ints:
        """The block of each slot that carries a constant."""
        return np.asarray(self.constants.slots // (self.vector.size // self.blocks))

    def flags(self, chosen: Bools) -> Bools:
        """The slots of the dimension that carry the chosen constants."""
        flags = np.zeros(self.vector.size, dtype=bool)
        flags[self.constants.slots[chosen]] = True
        return flags

    def read_by(self, kept: Bools | None) -> Bools:
        """The slots that the `kept` outputs read, all outputs if that is None."""
        size, blocks = self.vector.size, self.blocks
        if self.transposed:
            made = self.reads.T.reshape(blocks, size // blocks, -1)
            return np.asarray((made if kept is None else made & kept.reshape(blocks, 1, -1)).any(2).reshape(-1))
        made = self.reads.reshape(blocks, -1, size // blocks)
        return np.asarray((made if kept is None else made & kept.reshape(blocks, -1, 1)).any(1).reshape(-1))


@dataclass(eq=False)
class BorderedReading(ProductReading):
    """A convolution with zeros around its input: a constant is another one near the border.

    node: the node of the graph that is this convolution, "" for none.
    shape, apply: the shape of its input without batch, and the convolution without bias.
    """

    node: str = ""
    shape: tuple[int, ...] = ()
    apply: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def carried(self) -> bool:
        """True: no bias can take up what differs near the border."""
        return True

    @property
    def result(self) -> str:
        """The node to whose result a map can be added, "" for none."""
        return self.node

    def mapped(self, chosen: Bools) -> torch.Tensor:
        """The result that the chosen constants give alone, [out_channels, ...]."""
        assert self.apply is not None
        space, planes = self.shape[1:], self.constants.planes
        x = planes.new_zeros(self.shape)
        rows = torch.from_numpy(np.flatnonzero(chosen))
        planes = planes[rows]
        if planes.shape[1] == 1:
            planes = planes.expand(-1, math.prod(space))
        x[torch.from_numpy(self.constants.slots)[rows]] = planes[:, : math.prod(space)].reshape(-1, *space)
        return self.apply(x[None])[0]
