"""Terms, vectors and their unification.

Every dimension of every tensor carries a `Vector`: for each of its slots, the set of *atoms* with which
the slot is removed. A slot is removed when **any** of its atoms is; a slot without atoms is fixed.

    fixed            {}          can never be removed
    a free slot      {a}
    a merged slot    {r_h, c_j}  slot h * d + j of a flattened (h, d) grid: removed when its row or its column is

Sets make merging associative, which nested pairs would not be: flattening (h, d, e) in one step or in two gives the
same vector.

A vector stores its sets by *columns*: column k holds the k-th atom of every slot, 0 where there is none.
An ordinary dimension has one column, a merged (heads, width) dimension two, a fixed one none. All work on
columns is done by numpy on whole arrays; no loop runs over channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fxprune.channels.atoms import AtomTable
from fxprune.channels.unify import unify
from fxprune.channels.vector import Atoms, Vector


class Terms:
    """Makes, combines and unifies the vectors of one analysis. They share one table of atoms, see `AtomTable`.

    An event is a number. The caller keeps a list that says which operation each event stands for.
    """

    def __init__(self) -> None:
        self._table = AtomTable()
        self._fixed: dict[int, Vector] = {}
        self._unified: dict[tuple[int, int], tuple[Vector, Vector]] = {}

    def with_locked(self, vectors: Sequence[Vector], event: int) -> Terms:
        """A copy of the terms, in which `vectors` are locked by `event`. Copies four arrays.

        Untouched vectors (see `Vector.untouched`) are not locked: they have no atoms yet, and would get other ones from
        the copy than from the original.
        """
        made = Terms()
        made._table, made._fixed, made._unified = self._table.copy(), dict(self._fixed), dict(self._unified)
        for vector in vectors:
            if not vector.untouched:
                made.lock(vector, event)
        return made

    @property
    def current_event(self) -> int:
        """The event that locks a slot which is unified with a fixed one. The caller sets it for each operation."""
        return self._table.current_event

    @current_event.setter
    def current_event(self, event: int) -> None:
        self._table.current_event = event

    # -- making vectors -----------------------------------------------------------------------------------

    def fixed(self, size: int) -> Vector:
        """The vector of a dimension whose slots cannot be removed. There is one object per size."""
        vector = self._fixed.get(size)
        if vector is None:
            vector = self._fixed[size] = Vector(size)
        return vector

    def fresh(self, size: int) -> Vector:
        """A vector of new atoms, one per slot. A dimension of size 1 or 0 is fixed: its only slot cannot be removed."""
        return self.fixed(size) if size <= 1 else Vector(size, make=self._table.new)

    def cat(self, vectors: Sequence[Vector]) -> Vector:
        """The vector of a concatenation: the slots of the first vector, then those of the second, and so on."""
        size = sum(v.size for v in vectors)
        if all(v.fixed for v in vectors):
            return self.fixed(size)
        width = max(len(v.columns) for v in vectors)
        columns = [np.zeros(size, dtype=np.int64) for _ in range(width)]
        start = 0
        for vector in vectors:
            for column, source in zip(columns, vector.columns, strict=False):
                column[start : start + vector.size] = source
            start += vector.size
        return Vector(size, tuple(columns))

    def merge(self, vectors: Sequence[Vector]) -> Vector:
        """The vector of several dimensions that are flattened into one, the last of them running fastest.

        For sizes (h, d), slot i * d + j gets the atoms of slot i of the first and of slot j of the second.
        """
        sizes = [v.size for v in vectors]
        size = math.prod(sizes)
        moving = [(axis, v) for axis, v in enumerate(vectors) if not v.fixed]
        if not moving:
            return self.fixed(size)
        if len(moving) == 1 and moving[0][1].size == size:
            return moving[0][1]
        columns = []
        for axis, vector in moving:
            outer, inner = math.prod(sizes[:axis]), math.prod(sizes[axis + 1 :])
            for column in vector.columns:
                grid = np.broadcast_to(column[None, :, None], (outer, vector.size, inner))
                columns.append(grid.reshape(-1))
        return Vector(size, tuple(columns))

    def split(self, vector: Vector, sizes: Sequence[int]) -> list[Vector]:
        """The vectors of the dimensions of these sizes into which one dimension is split. The inverse of `merge`.

        The product of `sizes` is the vector's size. A column of atoms that varies along several of the new dimensions
        gets new atoms on each of them and is unified with their merge. From then on only whole rows and whole columns
        of the grid can be removed.
        """
        if sum(s > 1 for s in sizes) <= 1:
            return [vector if s > 1 else self.fixed(s) for s in sizes]
        longest = max(range(len(sizes)), key=lambda axis: sizes[axis])
        parts: list[list[Atoms]] = [[] for _ in sizes]
        mixed: list[Atoms] = []
        for column in self.resolve(vector).columns:
            axes = _varying(column, sizes)
            if len(axes) > 1:
                mixed.append(column)
            else:  # a column that is one atom belongs to any axis: removing it would empty all of them
                axis = axes[0] if axes else longest
                parts[axis].append(_line(column, sizes, axis))
        if len(mixed) == 1 and self._table.free_or_zero(mixed[0]).all():
            for axis, atoms in self._grid(mixed[0], sizes).items():
                parts[axis].append(atoms)
        elif mixed:
            parts[longest] += self._one_axis(mixed, sizes, longest)
        return [Vector(s, tuple(p)) if p else self.fixed(s) for s, p in zip(sizes, parts, strict=True)]

    def _grid(self, column: Atoms, sizes: Sequence[int]) -> dict[int, Atoms]:
        """New atoms for every axis along which a column varies; the column is unified with their merge.

        Axis -> atoms.
        """
        new = {axis: self._table.new(sizes[axis]) for axis in _varying(column, sizes)}
        axes = [Vector(size, (new[axis],)) if axis in new else self.fixed(size) for axis, size in enumerate(sizes)]
        unify(self._table, [column], list(self.merge(axes).columns))
        return new

    def _one_axis(self, columns: list[Atoms], sizes: Sequence[int], axis: int) -> tuple[Atoms, ...]:
        """Make all lines along one axis equal, and return the columns of one such line.

        This is for grids that cannot be split into rows and columns: they have fixed slots, or several columns that
        vary along more than one axis.
        """
        lines = [np.moveaxis(c.reshape(tuple(sizes)), axis, -1).reshape(-1, sizes[axis]) for c in columns]
        first = Vector(sizes[axis], tuple(np.ascontiguousarray(line[0]) for line in lines))
        for k in range(1, len(lines[0])):
            unify(self._table, list(first.columns), [np.ascontiguousarray(line[k]) for line in lines])
        return first.columns

    # -- unification --------------------------------------------------------------------------------------

    def same(self, a: Vector, b: Vector) -> None:
        """Unify two vectors: from now on slot i of `a` is removed exactly when slot i of `b` is.

        Raises `ValueError` for different sizes.
        """
        a, b = a.representative, b.representative
        if a is b or (a.fixed and b.fixed):
            return
        if a.size != b.size:
            raise ValueError(f"vectors of {a.size} and {b.size} slots cannot be the same")
        if a.untouched and not b.fixed:
            a.link(b)
            return
        if b.untouched and not a.fixed:
            b.link(a)
            return
        key = (id(a), id(b))
        if key in self._unified:
            return
        unify(self._table, list(a.columns), list(b.columns))
        self._unified[key] = (a, b)  # while both are referred to, no other object gets their ids

    def lock(self, vector: Vector, event: int) -> Atoms:
        """Lock all slots of a vector by `event`. Returns the atoms that were free before."""
        touched = self.free(vector)
        self._table.lock(touched, event)
        return touched

    # -- reading vectors ----------------------------------------------------------------------------------

    def free(self, vector: Vector) -> Atoms:
        """The free atoms of a vector (representatives), sorted, each once."""
        columns = self.resolve(vector).columns
        if not columns:
            return np.zeros(0, dtype=np.int64)
        atoms = np.unique(self._table.free_or_zero(np.concatenate(columns)))
        free: Atoms = atoms[atoms != 0]
        return free

    def resolve(self, vector: Vector) -> Vector:
        """The same vector in terms of unbound representatives; columns without a free atom are left out."""
        columns = (column for column in self._table.resolve(vector.columns) if self._table.free_or_zero(column).any())
        return Vector(vector.size, tuple(columns))

    def roots(self, atoms: Atoms) -> Atoms:
        """The representative of each atom's class."""
        return self._table.find(atoms)

    def event(self, atoms: Atoms) -> Atoms:
        """The event that locks each atom, 0 where it is free."""
        return self._table.event(self._table.find(atoms))

    def expand_all(self, atoms: Atoms, column: Atoms) -> tuple[Atoms, Atoms, Atoms]:
        """The unbound atoms that `atoms` lead to: see `AtomTable.expand`."""
        return self._table.expand(atoms, column)

    @property
    def count(self) -> int:
        """One more than the largest atom."""
        return self._table.count


def _varying(column: Atoms, sizes: Sequence[int]) -> list[int]:
    """The axes along which a column changes, when it is reshaped to these sizes."""
    grid = column.reshape(tuple(sizes))
    return [axis for axis, size in enumerate(sizes) if size > 1 and (grid != grid.take([0], axis)).any()]


def _line(column: Atoms, sizes: Sequence[int], axis: int) -> Atoms:
    """The first line along an axis of a column that is reshaped to these sizes."""
    corner: list[int | slice] = [0] * len(sizes)
    corner[axis] = slice(None)
    return np.ascontiguousarray(column.reshape(tuple(sizes))[tuple(corner)])
