"""The table of atoms: which atoms are removed together, which stand for two others, and which are locked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxprune.channels.vector import Atoms


class AtomTable:
    """A union-find over atoms, with bindings and locks. An atom is a positive integer; 0 means "no atom".

    Atoms of one class are removed together; the smallest one represents the class. A class is in one of three states:

    - free: it can be removed;
    - bound to a pair of atoms, as slot `x` of a flattened grid is bound to `{r, c}`, its row and its column;
    - locked by an event (the number of the operation that keeps it).

    Bindings and locks are stored at the representative only. All methods work on arrays of atoms.

    Attributes:
        count: one more than the largest atom.
        current_event: the event that locks an atom which is unified with a fixed slot.
        changes: a counter, which grows whenever a class, a binding or a lock changes.
    """

    def __init__(self) -> None:
        self.count = 1
        self.current_event = 1
        self.changes = 0
        self._parent: Atoms = np.arange(1024, dtype=np.int64)
        self._left: Atoms = np.zeros(1024, dtype=np.int64)
        self._right: Atoms = np.zeros(1024, dtype=np.int64)
        self._event: Atoms = np.zeros(1024, dtype=np.int64)

    def copy(self) -> AtomTable:
        """An independent table with the same contents. Copies four arrays."""
        made = AtomTable()
        made.count, made.current_event, made.changes = self.count, self.current_event, self.changes
        for name in ("_parent", "_left", "_right", "_event"):
            setattr(made, name, getattr(self, name).copy())
        return made

    def new(self, size: int) -> Atoms:
        """Makes `size` new atoms, each of them free and the only one of its class."""
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

    # -- reading the table --------------------------------------------------------------------------------

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

    def free_or_zero(self, roots: Atoms) -> Atoms:
        """The same array with 0 in place of every locked representative."""
        return np.where(self._event[roots] == 0, roots, 0)

    def resolve(self, columns: Sequence[Atoms]) -> list[Atoms]:
        """The columns with every bound atom replaced by the pair that it is bound to, until none is bound.

        A column with bound atoms becomes two columns. Returns representatives; columns without any atom are left out.
        """
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
        """The unbound representatives that `atoms` lead to, as three arrays of one length.

        Args:
            atoms: any atoms.
            column: for each atom the number of the column that it is in, counted from 1.

        Returns:
            The representatives; for each its position in `atoms`; for each the number of its column. An atom of column
            c that is bound to a pair puts one half into column 64 c + 1 and the other into 64 c + 2, so that atoms of
            one column get the same numbers.
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

    # -- changing the table -------------------------------------------------------------------------------

    def unite(self, a: Atoms, b: Atoms) -> None:
        """Merge the classes of a[i] and b[i] for every i where neither is 0. No atom may be bound.

        The smallest atom represents the merged class. If either class was locked, the merged one is.
        """
        both = (a != 0) & (b != 0)
        a, b = a[both], b[both]
        involved = np.concatenate([a, b])
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                break
            self.changes += 1
            a, b = a[differ], b[differ]
            # where an atom is written several times, one of the writes counts; the next round does the others
            self._parent[np.maximum(a, b)] = np.minimum(a, b)
        events = self._event[involved]
        if events.any():
            self._event[self.find(involved[events != 0])] = events[events != 0]

    def lock(self, roots: Atoms, events: Atoms | int | None = None) -> None:
        """Lock every roots[i] that is free by events[i]; by `current_event` if no events are given."""
        free = (roots != 0) & (self._event[roots] == 0)
        if free.any():
            self.changes += 1
            self._event[roots[free]] = np.broadcast_to(self.current_event if events is None else events, roots.shape)[
                free
            ]

    def bind(self, roots: Atoms, rows: Sequence[Atoms]) -> None:
        """Bind every roots[i] to the set {rows[0][i], rows[1][i], ...}. No root may occur twice.

        There are two rows or more. A set {a, b, c} is stored as the nested pair (a, (b, c)).
        """
        head, *rest = rows
        tail = rest.pop()
        for row in reversed(rest):
            tail = self._pair_up(row, tail)
        self.changes += 1
        self._left[roots] = np.where(head != 0, head, tail)
        self._right[roots] = np.where(head != 0, tail, 0)

    def _pair_up(self, left: Atoms, right: Atoms) -> Atoms:
        """For every i a new atom bound to {left[i], right[i]}; the other one where one of them is 0."""
        both = (left != 0) & (right != 0)
        made = np.where(left != 0, left, right)
        if both.any():
            new = self.new(int(both.sum()))
            self._left[new], self._right[new] = left[both], right[both]
            made[both] = new
        return made
