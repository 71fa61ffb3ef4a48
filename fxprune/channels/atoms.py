"""Atoms: classes of them that go together, sets that an atom turned out to be, and locks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxprune.channels.vector import Atoms


class AtomTable:
    """A union-find over atoms, with bindings and locks. Atom 0 means "none".

    An atom is free, *bound* to a pair of atoms (slot `x` turned out to be `{r, c}`), or *locked* by an event, a number.
    Only the representative of a class is bound or locked. Everything works on arrays of atoms.

    count: one more than the largest atom. now: the event that an atom is locked by when it meets something fixed.
    learned: grows with everything that changes classes, bindings and locks.
    """

    def __init__(self) -> None:
        self.count = 1
        self.now = 1
        self.learned = 0
        self._parent: Atoms = np.arange(1024, dtype=np.int64)
        self._left: Atoms = np.zeros(1024, dtype=np.int64)
        self._right: Atoms = np.zeros(1024, dtype=np.int64)
        self._event: Atoms = np.zeros(1024, dtype=np.int64)

    def copy(self) -> AtomTable:
        """A table of its own with the same contents. Costs four arrays."""
        made = AtomTable()
        made.count, made.now, made.learned = self.count, self.now, self.learned
        for name in ("_parent", "_left", "_right", "_event"):
            setattr(made, name, getattr(self, name).copy())
        return made

    def new(self, size: int) -> Atoms:
        """New atoms, each a free class of its own."""
        first, self.count = self.count, self.count + size
        if self.count > len(self._parent):
            capacity = 2 * self.count
            grown = np.arange(capacity, dtype=np.int64)
            grown[:first] = self._parent[:first]
            self._parent = grown
            for name in ("_left", "_right", "_event"):
                table = np.zeros(capacity, dtype=np.int64)
                table[:first] = getattr(self, name)[:first]
                setattr(self, name, table)
        return np.arange(first, self.count, dtype=np.int64)

    # -- what is known ------------------------------------------------------------------------------------

    def find(self, atoms: Atoms) -> Atoms:
        """The representative of each atom's class."""
        parent = self._parent
        roots: Atoms = parent[atoms]
        while True:
            above = parent[roots]
            if (above == roots).all():
                break
            roots = above
        parent[atoms] = roots  # path compression
        return roots

    def event(self, roots: Atoms) -> Atoms:
        """The event that locks each representative, 0 where it is free."""
        return self._event[roots]

    def alive(self, roots: Atoms) -> Atoms:
        """The representatives that are free, 0 in place of the others."""
        return np.where(self._event[roots] == 0, roots, 0)

    def resolve(self, columns: Sequence[Atoms]) -> list[Atoms]:
        """Columns of representatives: bound atoms replaced by the pair that they are bound to, in order."""
        resolved: list[Atoms] = []
        todo = list(reversed(columns))
        while todo:
            column = self.find(todo.pop())
            bound = self._left[column] != 0
            if bound.any():
                todo.append(np.where(bound, self._right[column], 0))
                todo.append(np.where(bound, self._left[column], column))
            elif column.any():
                resolved.append(column)
        return resolved

    def expand(self, atoms: Atoms, column: Atoms) -> tuple[Atoms, Atoms, Atoms]:
        """All representatives that `atoms` stand for, for each its position in `atoms`, and which column it is.

        `column` numbers the columns that the atoms stand in, from 1; the halves of what is bound in column c become
        columns 64 c + 1 and 64 c + 2, so that equal numbers are equal places.
        """
        position = np.arange(len(atoms))
        found: list[tuple[Atoms, Atoms, Atoms]] = []
        while len(atoms):
            atoms = self.find(atoms)
            bound = self._left[atoms] != 0
            plain = ~bound & (atoms != 0)
            found.append((atoms[plain], position[plain], column[plain]))
            atoms, position, column = atoms[bound], np.tile(position[bound], 2), column[bound]
            column = np.concatenate([64 * column + 1, 64 * column + 2])
            atoms = np.concatenate([self._left[atoms], self._right[atoms]])
        none = np.zeros(0, dtype=np.int64)
        parts = list(zip(*found, strict=True)) or [(none,)] * 3
        return np.concatenate(parts[0]), np.concatenate(parts[1]), np.concatenate(parts[2])

    # -- what is learned ----------------------------------------------------------------------------------

    def unite(self, a: Atoms, b: Atoms) -> None:
        """Merge the classes of a[i] and b[i] where both are there. None is bound. The smallest atom represents."""
        both = (a != 0) & (b != 0)
        a, b = a[both], b[both]
        involved = np.concatenate([a, b])
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                break
            self.learned += 1
            a, b = a[differ], b[differ]
            # one of several hooks of the same atom wins; the others are seen again in the next round
            self._parent[np.maximum(a, b)] = np.minimum(a, b)
        events = self._event[involved]
        if events.any():
            self._event[self.find(involved[events != 0])] = events[events != 0]

    def lock(self, roots: Atoms, events: Atoms | int | None = None) -> None:
        """Lock the representatives that are free, roots[i] for the reason of events[i], `now` without any."""
        free = (roots != 0) & (self._event[roots] == 0)
        if free.any():
            self.learned += 1
            self._event[roots[free]] = np.broadcast_to(self.now if events is None else events, roots.shape)[free]

    def bind(self, roots: Atoms, rows: Sequence[Atoms]) -> None:
        """Bind roots[i], each there once, to the set of rows[0][i], rows[1][i], ..., two of them or more.

        A set {a, b, c} becomes a nested pair (a, (b, c)).
        """
        head, *rest = rows
        tail = rest.pop()
        for row in reversed(rest):
            tail = self._pair_up(row, tail)
        self.learned += 1
        self._left[roots] = np.where(head != 0, head, tail)
        self._right[roots] = np.where(head != 0, tail, 0)

    def _pair_up(self, left: Atoms, right: Atoms) -> Atoms:
        """An atom bound to {left, right}, or just the one that is there."""
        both = (left != 0) & (right != 0)
        made = np.where(left != 0, left, right)
        if both.any():
            new = self.new(int(both.sum()))
            self._left[new], self._right[new] = left[both], right[both]
            made[both] = new
        return made
