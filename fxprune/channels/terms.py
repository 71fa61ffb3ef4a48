"""Terms, vectors and their unification.

Every dimension of every tensor carries a `Vector`: for each of its slots, the set of *atoms* with which
the slot is removed. A slot is removed when **any** of its atoms is; a slot without atoms is fixed.

    fixed            {}          can never be removed
    a free slot      {a}
    a merged slot    {r_h, c_j}  slot h * d + j of a flattened (h, d) grid: gone when its row or its column is

Sets instead of the pairs of first-order terms make merging associative: flattening (h, d, e) in one step
or in two gives the same vector, so the two forms unify without search.

A vector stores its sets by *columns*: column k holds the k-th atom of every slot, 0 where there is none.
An ordinary dimension has one column, a merged (heads, width) dimension two, a fixed one none. All work on
columns is done by numpy in bulk; no loop here runs over channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fxprune.channels.vector import Atoms, Vector


class Terms:
    """All atoms of one analysis: a union-find with bindings and locks.

    An atom is free, *bound* to a set of two atoms (slot `x` turned out to be `{r, c}`), or *locked* by an
    event (a number that the caller can look up: the operation that holds the channel back).
    """

    def __init__(self) -> None:
        self._count = 1  # atom 0 means "none"
        self._parent: Atoms = np.arange(1024, dtype=np.int64)
        self._left: Atoms = np.zeros(1024, dtype=np.int64)
        self._right: Atoms = np.zeros(1024, dtype=np.int64)
        self._event: Atoms = np.zeros(1024, dtype=np.int64)
        self._fixed: dict[int, Vector] = {}
        self._unified: dict[tuple[int, int], tuple[Vector, Vector]] = {}
        self._learned = 0  # counts what changes classes, locks and bindings
        self.now = 1
        """The event that a slot is locked by when it is unified with a fixed one. The caller keeps it current."""

    def with_locked(self, vectors: Sequence[Vector], event: int) -> Terms:
        """Other terms, with the same atoms, classes and bindings, in which these vectors are locked too.

        Costs four arrays. A vector of which nobody has asked the atoms stays with these terms: the others would give
        them other numbers.
        """
        made = Terms()
        made._count, made._learned, made.now = self._count, self._learned, self.now
        for name in ("_parent", "_left", "_right", "_event"):
            setattr(made, name, getattr(self, name).copy())
        made._fixed, made._unified = dict(self._fixed), dict(self._unified)
        for vector in vectors:
            if not vector.untouched:
                made.lock(vector, event)
        return made

    # -- making vectors -----------------------------------------------------------------------------------

    def fixed(self, size: int) -> Vector:
        """The vector of a dimension that never changes. Interned: one object per size."""
        vector = self._fixed.get(size)
        if vector is None:
            vector = self._fixed[size] = Vector(size)
        return vector

    def fresh(self, size: int) -> Vector:
        """A vector of new atoms; a dimension of size 1 is never removed, so it is fixed."""
        return self.fixed(size) if size <= 1 else Vector(size, make=self._new)

    def cat(self, vectors: Sequence[Vector]) -> Vector:
        """The vectors one after the other."""
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
        """Flatten dimensions into one, the last running fastest: slot h * d + j gets the atoms of h and of j."""
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
        """Take a dimension apart into `sizes`. Inverse of `merge` where the vector is already a grid.

        A column that varies along several of the new axes gets fresh atoms on each of them and is unified
        with their merge: from then on only whole rows and whole columns of the grid can go.
        """
        if sum(s > 1 for s in sizes) <= 1:
            return [vector if s > 1 else self.fixed(s) for s in sizes]
        parts: list[list[Atoms]] = [[] for _ in sizes]
        mixed: list[Atoms] = []
        for column in self.resolve(vector).columns:
            grid = column.reshape(tuple(sizes))
            axes = [a for a, s in enumerate(sizes) if s > 1 and (grid != grid.take([0], a)).any()]
            if len(axes) > 1:
                mixed.append(column)
                continue
            # without any axis, one atom holds the whole dimension: removing it would empty every axis
            axis = axes[0] if axes else max(range(len(sizes)), key=lambda a: sizes[a])
            corner: list[int | slice] = [0] * len(sizes)
            corner[axis] = slice(None)
            parts[axis].append(np.ascontiguousarray(grid[tuple(corner)]))
        if len(mixed) == 1 and self._event[mixed[0]].max() == 0 and mixed[0].all():
            grid = mixed[0].reshape(tuple(sizes))
            new = {a: self._new(s) for a, s in enumerate(sizes) if s > 1 and (grid != grid.take([0], a)).any()}
            for a, atoms in new.items():
                parts[a].append(atoms)
            grids = [Vector(s, (new[a],)) if a in new else self.fixed(s) for a, s in enumerate(sizes)]
            self._same_columns(mixed, list(self.merge(grids).columns))
        elif mixed:
            axis = max(range(len(sizes)), key=lambda a: sizes[a])
            parts[axis] += self._one_axis(mixed, sizes, axis)
        return [Vector(s, tuple(p)) if p else self.fixed(s) for s, p in zip(sizes, parts, strict=True)]

    def _one_axis(self, columns: list[Atoms], sizes: Sequence[int], axis: int) -> tuple[Atoms, ...]:
        """An irregular grid (fixed slots, several columns): all its lines along `axis` become the same."""
        lines = [np.moveaxis(c.reshape(tuple(sizes)), axis, -1).reshape(-1, sizes[axis]) for c in columns]
        first = Vector(sizes[axis], tuple(np.ascontiguousarray(line[0]) for line in lines))
        for k in range(1, len(lines[0])):
            self._same_columns(list(first.columns), [np.ascontiguousarray(line[k]) for line in lines])
        return first.columns

    # -- unification --------------------------------------------------------------------------------------

    def same(self, a: Vector, b: Vector) -> None:
        """Slot i of `a` is removed exactly when slot i of `b` is."""
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
        self._same_columns(list(a.columns), list(b.columns))
        self._unified[key] = (a, b)  # holds both, so that their ids stay theirs

    def lock(self, vector: Vector, event: int) -> Atoms:
        """No slot of `vector` may be removed, because of `event`; returns the atoms this newly locks."""
        touched = self._free_atoms(self.resolve(vector).columns)
        self._event[touched] = event
        return touched

    def free(self, vector: Vector) -> Atoms:
        """The atoms of `vector` that may still be removed, each once."""
        return self._free_atoms(self.resolve(vector).columns)

    def resolve(self, vector: Vector) -> Vector:
        """The vector in terms of unbound representatives, columns without a free atom dropped."""
        columns = [c for c in self._resolve(vector.columns) if (self._event[c] == 0)[c != 0].any()]
        if not columns:
            return Vector(vector.size)
        return Vector(vector.size, tuple(columns))

    def roots(self, atoms: Atoms) -> Atoms:
        """The representative of each atom's class."""
        return self._find(atoms)

    def event(self, atoms: Atoms) -> Atoms:
        """The event that locks each atom, 0 where it is free."""
        return self._event[self._find(atoms)]

    def expand_all(self, atoms: Atoms, column: Atoms) -> tuple[Atoms, Atoms, Atoms]:
        """All that `atoms` stand for: representatives, for each the position in `atoms`, and which column it is.

        `column` numbers the columns that the atoms stand in, from 1; the halves of what is bound in column c become
        columns 64 c + 1 and 64 c + 2, so that equal numbers are equal places.
        """
        position = np.arange(len(atoms))
        found: list[tuple[Atoms, Atoms, Atoms]] = []
        while len(atoms):
            atoms = self._find(atoms)
            bound = self._left[atoms] != 0
            plain = ~bound & (atoms != 0)
            found.append((atoms[plain], position[plain], column[plain]))
            atoms, position, column = atoms[bound], np.tile(position[bound], 2), column[bound]
            column = np.concatenate([64 * column + 1, 64 * column + 2])
            atoms = np.concatenate([self._left[atoms], self._right[atoms]])
        none = np.zeros(0, dtype=np.int64)
        parts = list(zip(*found, strict=True)) or [(none,)] * 3
        return np.concatenate(parts[0]), np.concatenate(parts[1]), np.concatenate(parts[2])

    @property
    def count(self) -> int:
        """One more than the largest atom."""
        return self._count

    # -- the machinery ------------------------------------------------------------------------------------

    def _new(self, size: int) -> Atoms:
        first, self._count = self._count, self._count + size
        if self._count > len(self._parent):
            capacity = 2 * self._count
            grown = np.arange(capacity, dtype=np.int64)
            grown[:first] = self._parent[:first]
            self._parent = grown
            for name in ("_left", "_right", "_event"):
                table = np.zeros(capacity, dtype=np.int64)
                table[:first] = getattr(self, name)[:first]
                setattr(self, name, table)
        return np.arange(first, self._count, dtype=np.int64)

    def _find(self, atoms: Atoms) -> Atoms:
        parent = self._parent
        roots: Atoms = parent[atoms]
        while True:
            above = parent[roots]
            if (above == roots).all():
                break
            roots = above
        parent[atoms] = roots  # path compression
        return roots

    def _resolve(self, columns: Sequence[Atoms]) -> list[Atoms]:
        """Replace every atom by its representative and every bound one by what it is bound to, in order."""
        resolved: list[Atoms] = []
        todo = list(reversed(columns))
        while todo:
            column = self._find(todo.pop())
            bound = self._left[column] != 0
            if bound.any():
                todo.append(np.where(bound, self._right[column], 0))
                todo.append(np.where(bound, self._left[column], column))
            elif column.any():
                resolved.append(column)
        return resolved

    def _free_atoms(self, columns: Sequence[Atoms]) -> Atoms:
        if not columns:
            return np.zeros(0, dtype=np.int64)
        atoms = np.unique(np.concatenate(columns)) if len(columns) > 1 else np.unique(columns[0])
        free: Atoms = atoms[(atoms != 0) & (self._event[atoms] == 0)]
        return free

    def _union(self, a: Atoms, b: Atoms) -> None:
        """Merge the classes of a[i] and b[i]. All are unbound and not 0. The smallest atom represents."""
        involved = np.concatenate([a, b])
        while True:
            a, b = self._find(a), self._find(b)
            differ = a != b
            if not differ.any():
                break
            self._learned += 1
            a, b = a[differ], b[differ]
            # one of several hooks of the same atom wins; the others are seen again in the next round
            self._parent[np.maximum(a, b)] = np.minimum(a, b)
        events = self._event[involved]
        if events.any():
            self._event[self._find(involved[events != 0])] = events[events != 0]

    def _lock_by(self, atoms: Atoms, events: Atoms) -> None:
        """Lock atoms[i] for the reason of events[i]."""
        free = (atoms != 0) & (self._event[atoms] == 0)
        if free.any():
            self._learned += 1
            self._event[atoms[free]] = events[free]

    def _same_columns(self, a: list[Atoms], b: list[Atoms]) -> None:
        """Make the sets of `a` and `b` equal, slot by slot.

        Cases, by the number of columns that are left once both sides are resolved:

        1. none on one side: the other side is fixed too;
        2. one and one: merge the classes;
        3. one and several: bind the atom to the set, the heart of taking a dimension apart;
        4. several and several: pair the columns that vary in the same way, then go on with the rest.
        """
        before = -1
        while True:
            a, b = self._cancel(self._resolve(a), self._resolve(b))
            if not a and not b:
                return
            if before == self._learned:  # nothing more to learn, and still not equal: one atom per slot for all
                self._join_all(a, b)
                return
            before = self._learned
            if not a or not b:  # case 1
                for column in a or b:
                    self._lock_by(column, np.full_like(column, self.now))
                return
            if len(a) == len(b) == 1:  # case 2
                self._equate(a[0], b[0])
            elif len(a) == 1 or len(b) == 1:  # case 3
                self._bind(*((a[0], b) if len(a) == 1 else (b[0], a)))
            else:  # case 4
                self._pair(a, b)

    def _cancel(self, a: list[Atoms], b: list[Atoms]) -> tuple[list[Atoms], list[Atoms]]:
        """Drop what both sides have. Locked atoms count as none, but what they hold back is kept together."""
        if len(a) == len(b) == 1:
            if np.array_equal(a[0], b[0]):
                return [], []
            differ = a[0] != b[0]
            if not any(((column != 0) & (self._event[column] == 0) & differ).any() for column in (a[0], b[0])):
                self._join(a[0], b[0])
                return [], []
            return a, b
        a, b = self._free_columns(a), self._free_columns(b)
        rest = []
        for column in a:
            twin = next((i for i, other in enumerate(b) if np.array_equal(column, other)), None)
            if twin is None:
                rest.append(column)
            else:
                b = b[:twin] + b[twin + 1 :]
        if rest and b and _equal_sets(rest, b):
            return [], []
        return rest, b

    def _free_columns(self, columns: list[Atoms]) -> list[Atoms]:
        free = (np.where(self._event[column] == 0, column, 0) for column in columns)
        return [column for column in free if column.any()]

    def _equate(self, x: Atoms, y: Atoms) -> None:
        self._join(x, y)
        lone = np.where((x != 0) & (y != 0), 0, x + y)
        self._lock_by(lone, np.full_like(lone, self.now))

    def _bind(self, x: Atoms, rows: list[Atoms]) -> None:
        """x[i] := {rows[0][i], rows[1][i], ...}"""
        table = np.stack(rows)
        event = self._event[x]
        table_event = self._event[table]
        live = (table != 0) & (table_event == 0)
        for k in range(1, len(rows)):  # an atom that stands twice in a set counts once
            live[k] &= ~(table[:k] == table[k]).any(0)
        arity = live.sum(0)
        stuck = (x == 0) | (event != 0)
        learned = bool((stuck & live).any())
        if learned:
            events = np.where(x == 0, self.now, event)
            for k in range(len(rows)):
                chosen = stuck & live[k]
                self._lock_by(table[k][chosen], events[chosen])
        still = ~stuck & (arity == 0)
        if still.any():
            learned = True
            self._lock_by(x[still], np.maximum(table_event.max(0), self.now * (table_event.max(0) == 0))[still])
        single = ~stuck & (arity == 1)
        if single.any():
            only = table[live.argmax(0), np.arange(len(x))]
            learned |= bool((x != only)[single].any())
            self._union(x[single], only[single])
        several = ~stuck & (arity > 1)
        if learned or not several.any():
            return  # what was just learned may change the rest: the caller comes back
        candidates, first = np.unique(x[several], return_index=True)
        where = np.flatnonzero(several)[first]
        sets = table[:, where]
        if np.isin(sets[live[:, where]], candidates).any():
            # x stands in a set that some x is to be bound to: no finite set solves it but one atom for all
            for k in range(len(rows)):
                chosen = several & live[k]
                self._union(x[chosen], table[k][chosen])
            return
        for k in range(len(rows) - 1, 0, -1):  # {a, b, c} as a nested pair (a, (b, c))
            if k == len(rows) - 1:
                tail = np.where(live[k][where], sets[k], 0)
            else:
                tail = self._pair_up(np.where(live[k][where], sets[k], 0), tail)
        head = np.where(live[0][where], sets[0], 0)
        self._learned += 1
        self._left[candidates] = np.where(head != 0, head, tail)
        self._right[candidates] = np.where(head != 0, tail, 0)

    def _pair_up(self, left: Atoms, right: Atoms) -> Atoms:
        """An atom bound to {left, right}, or just the one that is there."""
        both = (left != 0) & (right != 0)
        made = np.where(left != 0, left, right)
        if both.any():
            new = self._new(int(both.sum()))
            self._left[new], self._right[new] = left[both], right[both]
            made[both] = new
        return made

    def _pair(self, a: list[Atoms], b: list[Atoms]) -> None:
        """Several columns on both sides: those that change at the same slots are the same axis of the grid."""
        kinds = [_pattern(column) for column in b]
        paired, rest_a, rest_b = False, [], list(range(len(b)))
        for column in a:
            kind = _pattern(column)
            twin = next((i for i in rest_b if kinds[i] == kind), None)
            if twin is None:
                rest_a.append(column)
            else:
                rest_b.remove(twin)
                self._equate(column, b[twin])
                paired = True
        if paired:
            return
        self._join_all(a, b)  # no two axes agree

    def _join_all(self, a: list[Atoms], b: list[Atoms]) -> None:
        """One atom per slot for all that stand there; a slot with atoms on one side only is locked. Sound."""
        tables = np.stack(a), np.stack(b)
        live = [((t != 0) & (self._event[t] == 0)) for t in tables]
        lone = live[0].any(0) != live[1].any(0)
        for table in tables:
            for column in table:
                self._lock_by(column[lone], np.full(int(lone.sum()), self.now))
        both, free = np.concatenate(tables), np.concatenate(live)
        first = both[free.argmax(0), np.arange(both.shape[1])]
        for column, here in zip(both, free & ~lone, strict=True):
            self._union(first[here], column[here])

    def _join(self, x: Atoms, y: Atoms) -> None:
        both = (x != 0) & (y != 0)
        self._union(x[both], y[both])


def _equal_sets(a: list[Atoms], b: list[Atoms]) -> bool:
    """Whether every slot has the same atoms on both sides, whatever the columns they stand in."""
    tables = []
    for columns in (a, b):
        table = np.zeros((max(len(a), len(b)), len(a[0])), dtype=np.int64)
        table[: len(columns)] = columns
        table.sort(0)
        table[1:][table[1:] == table[:-1]] = 0
        table.sort(0)
        tables.append(table)
    return bool(np.array_equal(tables[0], tables[1]))


def _pattern(column: Atoms) -> bytes:
    """Which slots of a column carry the same atom, whatever the atoms are called."""
    _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
    return np.asarray(first[inverse.reshape(-1)]).tobytes()
