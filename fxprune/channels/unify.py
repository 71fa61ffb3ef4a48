"""Unification: the sets of two vectors are made equal, slot by slot.

Each side is a list of columns, and slot i of a side is the set of its columns' atoms at i. An example, the two forms of
a dimension of 6 that is two heads of width 3:

    as a weight has it      {x0}     {x1}     {x2}     {x3}     {x4}     {x5}      one column
    as heads and widths     {r0,c0}  {r0,c1}  {r0,c2}  {r1,c0}  {r1,c1}  {r1,c2}   two columns

From then on each x is bound to its set: when head r1 goes, so do x3, x4 and x5.
"""

from __future__ import annotations

import numpy as np

from fxprune.channels.atoms import AtomTable
from fxprune.channels.vector import Atoms

Columns = list[Atoms]


def unify(table: AtomTable, a: Columns, b: Columns) -> None:
    """Make the sets of `a` and `b` equal, slot by slot.

    Both sides are resolved, what they share is dropped, and the columns that are left decide:

    1. none on one side: the other side is fixed too;
    2. one and one: merge the classes;
    3. one and several: bind each atom to its set, the heart of taking a dimension apart;
    4. several and several: pair the columns that vary in the same way, then go on with the rest.

    Each round may change how the sides resolve, so it starts over until both are equal. A round that teaches nothing
    ends it: then all atoms of a slot become one.
    """
    before = -1
    while True:
        a, b = _without_common(table, table.resolve(a), table.resolve(b))
        if not a and not b:
            return
        if before == table.learned:
            _join_all(table, a, b)
            return
        before = table.learned
        if not a or not b:  # case 1
            for column in a or b:
                table.lock(column)
            return
        if len(a) == len(b) == 1:  # case 2
            _equate(table, a[0], b[0])
        elif len(a) == 1:  # case 3
            _bind(table, a[0], b)
        elif len(b) == 1:
            _bind(table, b[0], a)
        else:  # case 4
            _pair(table, a, b)


def _without_common(table: AtomTable, a: Columns, b: Columns) -> tuple[Columns, Columns]:
    """Drop the columns that both sides have. Locked atoms count as none; those at the same slots become one class."""
    if len(a) == len(b) == 1:
        if np.array_equal(a[0], b[0]):
            return [], []
        differ = a[0] != b[0]
        if not any((table.alive(column) != 0)[differ].any() for column in (a[0], b[0])):
            table.unite(a[0], b[0])
            return [], []
        return a, b
    a, b = _alive_columns(table, a), _alive_columns(table, b)
    rest = []
    for column in a:
        same = next((i for i, other in enumerate(b) if np.array_equal(column, other)), None)
        if same is None:
            rest.append(column)
        else:
            b = b[:same] + b[same + 1 :]
    if rest and b and _equal_sets(rest, b):
        return [], []
    return rest, b


def _alive_columns(table: AtomTable, columns: Columns) -> Columns:
    return [column for column in map(table.alive, columns) if column.any()]


def _equate(table: AtomTable, x: Atoms, y: Atoms) -> None:
    """x[i] is y[i]; an atom without another one at its slot is fixed."""
    table.unite(x, y)
    table.lock(np.where((x != 0) & (y != 0), 0, x + y))


def _bind(table: AtomTable, x: Atoms, rows: Columns) -> None:
    """x[i] is the set {rows[0][i], rows[1][i], ...}.

    Of each set the atoms count that are alive, each once. Slot by slot, with `.` for none and `L` for locked:

        x          x0    x1    x2    x3    L     .
        rows[0]    r0    r1    L     .     r4    r5
        rows[1]    c0    .     .     .     c4    .
                   |     |     |     |     |     r5 is locked: nothing at all stands on the other side
                   |     |     |     |     r4 and c4 are locked by the event of L
                   |     |     |     x3 is locked: its set is empty
                   |     |     x2 is locked by the event of L
                   |     x1 and r1 are one class
                   x0 is bound to the pair (r0, c0)

    What can be locked or merged comes first. It may change the sets of other slots, so where it teaches anything,
    nothing is bound yet: the caller resolves both sides and comes back.
    """
    sets = np.stack(rows)
    alive = table.alive(sets)
    for k in range(1, len(alive)):  # an atom that stands twice in a set counts once
        alive[k][(alive[:k] == alive[k]).any(0)] = 0
    many = (alive != 0).sum(0)
    stuck = (x == 0) | (table.event(x) != 0)
    learned = _lock_sets(table, x, np.where(stuck, alive, 0))
    learned |= _lock_empty(table, np.where(~stuck & (many == 0), x, 0), sets)
    learned |= _merge_single(table, np.where(~stuck & (many == 1), x, 0), alive.max(0))
    several = ~stuck & (many > 1)
    if not learned and several.any():
        _bind_several(table, x[several], alive[:, several])


def _lock_sets(table: AtomTable, x: Atoms, sets: Atoms) -> bool:
    """Lock all of `sets`, by the events of x, or by what fixes it where x is none; says whether there were any."""
    events = np.where(x == 0, table.now, table.event(x))
    for row in sets:
        table.lock(row, events)
    return bool(sets.any())


def _lock_empty(table: AtomTable, x: Atoms, sets: Atoms) -> bool:
    """Lock x, whose sets are empty, by an event of what is locked in them; says whether there were any."""
    events = table.event(sets).max(0)
    table.lock(x, np.where(events == 0, table.now, events))
    return bool(x.any())


def _merge_single(table: AtomTable, x: Atoms, only: Atoms) -> bool:
    """Merge x with the only atom of its set; says whether any of them was another one."""
    table.unite(x, only)
    return bool((x != only)[x != 0].any())


def _bind_several(table: AtomTable, x: Atoms, sets: Atoms) -> None:
    """Bind each x to its set of several atoms.

    An x that stands in such a set itself would be a set that contains itself. No finite set solves that, except where
    all its atoms are the same one: they are merged.
    """
    candidates, first = np.unique(x, return_index=True)
    chosen = sets[:, first]
    if np.isin(chosen[chosen != 0], candidates).any():
        for row in sets:
            table.unite(x, row)
        return
    table.bind(candidates, list(chosen))


def _pair(table: AtomTable, a: Columns, b: Columns) -> None:
    """Make those columns equal that change at the same slots: they are the same axis of the grid."""
    kinds = [_pattern(column) for column in b]
    paired, left = False, list(range(len(b)))
    for column in a:
        kind = _pattern(column)
        same = next((i for i in left if kinds[i] == kind), None)
        if same is not None:
            left.remove(same)
            _equate(table, column, b[same])
            paired = True
    if not paired:
        _join_all(table, a, b)


def _join_all(table: AtomTable, a: Columns, b: Columns) -> None:
    """Make all atoms of a slot one class; a slot with atoms on one side only is locked. Coarser, and still right."""
    alive = [table.alive(np.stack(columns)) for columns in (a, b)]
    lone = (alive[0] != 0).any(0) != (alive[1] != 0).any(0)
    both = np.concatenate(alive)
    for column in both:
        table.lock(np.where(lone, column, 0))
    both = np.where(lone, 0, both)
    first = both[(both != 0).argmax(0), np.arange(both.shape[1])]
    for column in both:
        table.unite(first, column)


def _equal_sets(a: Columns, b: Columns) -> bool:
    """True if every slot has the same atoms on both sides, whatever the columns they stand in."""
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
    """A key of the slots of a column that carry the same atom, whatever the atoms are called."""
    _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
    return np.asarray(first[inverse.reshape(-1)]).tobytes()
