"""Vectors: one set of atoms for every slot of a dimension."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Atoms = npt.NDArray[np.int64]


class Vector:
    """The terms of one dimension, one per slot. Compared by identity of its `representative`.

    A fresh vector has no atoms until its `columns` are asked for. Until then, unifying it with another vector is a link
    from one to the other, whatever their size: most dimensions of most models never get further.
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
        """The vector that this one was linked to, itself if none."""
        vector = self
        while vector._link is not None:
            vector = vector._link
        if vector is not self:
            self._link = vector
        return vector

    @property
    def columns(self) -> tuple[Atoms, ...]:
        """`columns[k][i]` is the k-th atom of slot i, 0 for none. Makes the atoms of a fresh vector."""
        vector = self.representative
        if vector._columns is None:
            assert vector._make is not None
            vector._columns = (vector._make(vector.size),)
        return vector._columns

    @property
    def fixed(self) -> bool:
        """True if no slot can ever be removed: there are no columns."""
        return self.representative._columns == ()

    @property
    def untouched(self) -> bool:
        """True if it is fresh: its atoms have not been asked for."""
        return self.representative._columns is None

    def link(self, other: Vector) -> None:
        """Let this untouched vector be the other one, from now on."""
        self.representative._link = other.representative

    def take(self, positions: npt.NDArray[np.int64] | slice) -> Vector:
        """The slots at `positions`, in that order: the effect of any data movement along this dimension."""
        columns = tuple(column[positions] for column in self.columns)
        size = len(columns[0]) if columns else len(np.empty(self.size, bool)[positions])
        return Vector(size, columns)

    def __repr__(self) -> str:
        return f"Vector({self.size}, {[column.tolist() for column in self.columns]})"
