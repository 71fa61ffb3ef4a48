"""A reading: one place where an operation of the reference sums over a dimension, or uses it in an unknown way.

It says which slots are constants there, and which parameters can take these up. Nothing is decided here.
"""

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
    """A place where an operation reads a dimension.

    at: the place, as it stands in messages. vector: the vector of the dimension.
    bad: flags of the slots that cannot be removed while this place reads them, and `why`: because they depend on the
        input, or because they are not zero and nothing here can take a constant up.
    """

    at: str
    why: str
    vector: Vector
    bad: Bools

    def read_by(self, kept: Bools | None) -> Bools:
        """Flags of the slots that at least one kept output reads. kept: flags of the outputs, None for all."""
        return np.ones(self.vector.size, dtype=bool)


@dataclass(frozen=True, eq=False)
class ReadConstants:
    """The slots that are constants other than zero where a product reads them.

    slots: their numbers in the dimension; "constant i" is the one at slots[i].
    planes: their values at every position in space, [constants, positions], or [constants, 1] if all are uniform.
    uniform: flags of the constants that have the same value at every position.
    columns: the columns of the weight that multiply them, [out, constants, taps]. A tap is a position in the kernel.
    """

    slots: Ints
    planes: torch.Tensor
    uniform: Bools
    columns: torch.Tensor

    @property
    def sizes(self) -> Any:
        """The largest absolute value of each constant."""
        return self.planes.abs().amax(1).cpu().numpy()


@dataclass(frozen=True)
class Bias:
    """A bias that can take up constants.

    name: that of a parameter of the model, or "%node" for a function in a graph; "" if there is no such bias.
    new: True if the bias has to be made.
    """

    name: str = ""
    new: bool = False


@dataclass(eq=False)
class ProductReading(Reading):
    """A layer: a product that sums over the dimension, with a weight that does not depend on the inputs.

    reads: True where the weight is not zero, so that an output reads a slot of its block: [out, slots of a block];
        [out of a block, slots of all blocks] if `transposed`.
    blocks: the number of conv groups. Slots and outputs are in as many blocks, and a block's outputs read its slots.
    bias: the bias that can take constants up. weight: the parameter whose columns can be changed, "" for none.
    out: the vector of the outputs, None if it is unknown.
    """

    constants: ReadConstants
    reads: Bools
    blocks: int = 1
    transposed: bool = False
    bias: Bias = Bias()
    weight: str = ""
    out: Vector | None = None

    @property
    def carrier_only(self) -> bool:
        """True if only a carrier can take constants up, since there is no bias."""
        return not self.bias.name

    @property
    def map_node(self) -> str:
        """The name of the node to whose result a map can be added, "" for none."""
        return ""

    @property
    def block(self) -> Ints:
        """The number of the block that each constant is in."""
        return np.asarray(self.constants.slots // (self.vector.size // self.blocks))

    def flags(self, chosen: Bools) -> Bools:
        """Flags of the dimension's slots, True at the chosen constants. chosen: flags of the constants."""
        flags = np.zeros(self.vector.size, dtype=bool)
        flags[self.constants.slots[chosen]] = True
        return flags

    def read_by(self, kept: Bools | None) -> Bools:
        """Flags of the slots that at least one kept output reads. kept: flags of the outputs, None for all."""
        size, blocks = self.vector.size, self.blocks
        if self.transposed:
            made = self.reads.T.reshape(blocks, size // blocks, -1)
            return np.asarray((made if kept is None else made & kept.reshape(blocks, 1, -1)).any(2).reshape(-1))
        made = self.reads.reshape(blocks, -1, size // blocks)
        return np.asarray((made if kept is None else made & kept.reshape(blocks, -1, 1)).any(1).reshape(-1))


@dataclass(eq=False)
class BorderedReading(ProductReading):
    """A convolution that pads its input with zeros, so that a constant adds less to the results near the border.

    node: the name of the node that is this convolution, "" if no graph shows it.
    shape: the shape of its input without the batch, [slots, *space]. apply: the convolution without its bias.
    """

    node: str = ""
    shape: tuple[int, ...] = ()
    apply: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def carrier_only(self) -> bool:
        """True: a bias is one number for all positions, and what is added differs near the border."""
        return True

    @property
    def map_node(self) -> str:
        """The name of the node to whose result a map can be added, "" for none."""
        return self.node

    def map_of(self, chosen: Bools) -> torch.Tensor:
        """The convolution of the chosen constants alone, [out, *space]. chosen: flags of the constants."""
        assert self.apply is not None
        space, planes = self.shape[1:], self.constants.planes
        x = planes.new_zeros(self.shape)
        rows = torch.from_numpy(np.flatnonzero(chosen))
        planes = planes[rows]
        if planes.shape[1] == 1:
            planes = planes.expand(-1, math.prod(space))
        x[torch.from_numpy(self.constants.slots)[rows]] = planes[:, : math.prod(space)].reshape(-1, *space)
        return self.apply(x[None])[0]
