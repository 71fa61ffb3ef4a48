"""Vectors: one set of atoms for every slot of a dimension."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Atoms = npt.NDArray[np.int64]


class Vector:
    """The sets of atoms of one dimension, one set per slot.

    A new vector has no atoms until its `columns` are read. Until then it is *untouched*, and unifying it with another
    vector only links the two, which costs the same for every size. Most dimensions of most models stay untouched.
    After linking, two vectors are the same one if their `representative` is the same object.

    size: the number of slots.
    """

    __slots__ = ("_columns", "_link", "_make", "size")

    def __init__(
        self, size: int, columns: tuple[Atoms, ...] = (), *, make: Callable[[int], Atoms] | None = None
    ) -> None:
        self.size = size
        self._columns: tuple[Atoms, ...] | None = columns if make is None else None
        self._make = make
        self._link: Vector | None = None

    @property
    def representative(self) -> Vector:
        """The vector that this one was linked to, directly or through others; itself if it was not."""
        vector = self
        while vector._link is not None:
            vector = vector._link
        if vector is not self:
            self._link = vector
        return vector

    @property
    def columns(self) -> tuple[Atoms, ...]:
        """Arrays of atoms: `columns[k][i]` is the k-th atom of slot i, 0 for none.

        Reading them makes the atoms of an untouched vector.
        """
        vector = self.representative
        if vector._columns is None:
            assert vector._make is not None
            vector._columns = (vector._make(vector.size),)
        return vector._columns

    @property
    def fixed(self) -> bool:
        """True if there are no columns: no slot can ever be removed."""
        return self.representative._columns == ()

    @property
    def untouched(self) -> bool:
        """True if it has no atoms yet, because its `columns` have not been read."""
        return self.representative._columns is None

    def link(self, other: Vector) -> None:
        """Make this untouched vector the same one as `other`."""
        self.representative._link = other.representative

    def take(self, positions: npt.NDArray[np.int64] | slice) -> Vector:
        """The vector of the slots at `positions`, in that order.

        Any movement of data along a dimension is such a choice.
        """
        columns = tuple(column[positions] for column in self.columns)
        size = len(columns[0]) if columns else len(np.empty(self.size, bool)[positions])
        return Vector(size, columns)

    def __repr__(self) -> str:
        return f"Vector({self.size}, {[column.tolist() for column in self.columns]})"
