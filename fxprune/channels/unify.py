"""Unification: making the sets of two vectors equal, slot by slot.

Each side is a list of columns. The set of slot i contains the i-th atom of every column. For example, a dimension of 6
consists of two heads of width 3, and has two descriptions:

    in a weight             {x0}     {x1}     {x2}     {x3}     {x4}     {x5}      one column
    as heads and widths     {r0,c0}  {r0,c1}  {r0,c2}  {r1,c0}  {r1,c1}  {r1,c2}   two columns

Unification binds each x to its set: if head r1 is removed, x3, x4 and x5 are removed too.
"""

from __future__ import annotations

import itertools

import numpy as np

from fxprune.channels.atoms import AtomTable
from fxprune.channels.vector import Atoms

Columns = list[Atoms]


def unify(table: AtomTable, a: Columns, b: Columns) -> None:
    """Make the sets of `a` and `b` equal, slot by slot.

    The function works in rounds. A round resolves both sides and drops the columns that they share; the numbers of
    columns that are left decide what it does:

    1. none on one side: lock the other side;
    2. one and one: merge the classes of the two atoms of each slot;
    3. one and several: bind each atom to the set on the other side (this splits a dimension into several);
    4. several and several: pair the columns that vary in the same way and merge their classes; where none do, bind
       the atoms of a column to several of the other side that vary together as it does.

    The rounds end when both sides are equal. If a round changes nothing, all atoms of each slot are merged into one
    class, which makes the sides equal.
    """
    before = -1
    while True:
        a, b = _without_common(table, table.resolve(a), table.resolve(b))
        if not a and not b:
            return
        if before == table.changes:
            _join_all(table, a, b)
            return
        before = table.changes
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
    """Both sides without the columns that they share.

    Locked atoms are ignored, so that only free ones have to be equal. Two locked atoms at the same slot are merged if
    each side is one column and all free atoms agree.
    """
    if len(a) == len(b) == 1:
        if np.array_equal(a[0], b[0]):
            return [], []
        differ = a[0] != b[0]
        if not any((table.free_or_zero(column) != 0)[differ].any() for column in (a[0], b[0])):
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
    return [column for column in map(table.free_or_zero, columns) if column.any()]


def _equate(table: AtomTable, x: Atoms, y: Atoms) -> None:
    """Merge the classes of x[i] and y[i]; where one of them is 0, the other one is locked."""
    table.unite(x, y)
    table.lock(np.where((x != 0) & (y != 0), 0, x + y))


def _bind(table: AtomTable, x: Atoms, rows: Columns) -> None:
    """Make x[i] equal to the set {rows[0][i], rows[1][i], ...} for every slot i.

    Only free atoms of a set count, each once. In the example, `.` is no atom and `L` is a locked atom:

        x          x0    x1    x2    x3    L     .
        rows[0]    r0    r1    L     .     r4    r5
        rows[1]    c0    .     .     .     c4    .
                   |     |     |     |     |     r5 is locked: there is no atom on the other side
                   |     |     |     |     r4 and c4 are locked by the event of L
                   |     |     |     x3 is locked: its set is empty
                   |     |     x2 is locked by the event of L
                   |     x1 and r1 are one class
                   x0 is bound to the pair (r0, c0)

    Locks and merges are done first, because they may change the sets of other slots. If they change anything, nothing
    is bound in this round: `unify` resolves both sides again and starts the next round.
    """
    sets = np.stack(rows)
    alive = table.free_or_zero(sets)
    for k in range(1, len(alive)):  # an atom that occurs twice in a set counts once
        alive[k][(alive[:k] == alive[k]).any(0)] = 0
    many = (alive != 0).sum(0)
    stuck = (x == 0) | (table.event(x) != 0)
    changed = _lock_sets(table, x, np.where(stuck, alive, 0))
    changed |= _lock_empty(table, np.where(~stuck & (many == 0), x, 0), sets)
    changed |= _merge_single(table, np.where(~stuck & (many == 1), x, 0), alive.max(0))
    several = ~stuck & (many > 1)
    if not changed and several.any():
        _bind_several(table, x[several], alive[:, several])


def _lock_sets(table: AtomTable, x: Atoms, sets: Atoms) -> bool:
    """Lock all atoms of `sets`: by the event of x, or by the current event where x is 0. True if there were any."""
    events = np.where(x == 0, table.current_event, table.event(x))
    for row in sets:
        table.lock(row, events)
    return bool(sets.any())


def _lock_empty(table: AtomTable, x: Atoms, sets: Atoms) -> bool:
    """Lock every x, whose set has no free atom, by an event that locks an atom of the set. True if there were any."""
    events = table.event(sets).max(0)
    table.lock(x, np.where(events == 0, table.current_event, events))
    return bool(x.any())


def _merge_single(table: AtomTable, x: Atoms, only: Atoms) -> bool:
    """Merge each x with the only atom of its set. True if any of them was a different atom."""
    table.unite(x, only)
    return bool((x != only)[x != 0].any())


def _bind_several(table: AtomTable, x: Atoms, sets: Atoms) -> None:
    """Bind each x to its set of several atoms.

    If some x is itself in one of these sets, it cannot be bound: a set would contain itself. Then every x is merged
    with all atoms of its set, which makes both sides equal too.
    """
    candidates, first = np.unique(x, return_index=True)
    chosen = sets[:, first]
    if np.isin(chosen[chosen != 0], candidates).any():
        for row in sets:
            table.unite(x, row)
        return
    table.bind(candidates, list(chosen))


def _pair(table: AtomTable, a: Columns, b: Columns) -> None:
    """Merge each column of `a` with one of `b` that changes at the same slots: both are the same axis of a grid.

    If there is no such pair, a column may be an axis that the other side has split; else all atoms of each slot are
    merged.
    """
    kinds = [_pattern(column) for column in b]
    paired, left = False, list(range(len(b)))
    for column in a:
        kind = _pattern(column)
        same = next((i for i in left if kinds[i] == kind), None)
        if same is not None:
            left.remove(same)
            _equate(table, column, b[same])
            paired = True
    if not paired and not (_bind_split(table, a, b) or _bind_split(table, b, a)):
        _join_all(table, a, b)


def _bind_split(table: AtomTable, a: Columns, b: Columns) -> bool:
    """Bind a column of `a` to several of `b` that are together the same axis of a grid; False if there are none.

    For example, `a` is a batch of 3 times 4 heads, and `b` knows the heads as 2 times 2. The batch is no atom of `b`.
    The next round finds it alone, and locks it.
    """
    full = [column for column in b if column.all()]
    for column in a:
        kind = _pattern(column) if column.all() else b""
        for size in range(2, len(full) + 1):
            for parts in itertools.combinations(full, size):
                if kind and _pattern(np.stack(parts)) == kind:
                    _bind(table, column, list(parts))
                    return True
    return False


def _join_all(table: AtomTable, a: Columns, b: Columns) -> None:
    """Merge all atoms of each slot into one class; lock the slots that have atoms on one side only.

    This is right, but coarser than necessary: fewer slots can be removed independently of each other.
    """
    alive = [table.free_or_zero(np.stack(columns)) for columns in (a, b)]
    lone = (alive[0] != 0).any(0) != (alive[1] != 0).any(0)
    both = np.concatenate(alive)
    for column in both:
        table.lock(np.where(lone, column, 0))
    both = np.where(lone, 0, both)
    first = both[(both != 0).argmax(0), np.arange(both.shape[1])]
    for column in both:
        table.unite(first, column)


def _equal_sets(a: Columns, b: Columns) -> bool:
    """True if every slot has the same set of atoms on both sides; the order of the columns does not matter."""
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
    """A key that is equal for two columns if the same slots share an atom in both, whatever the atoms are.

    Of several columns, slots share their atoms if they do in each.
    """
    _, first, inverse = np.unique(column, axis=-1, return_index=True, return_inverse=True)
    return np.asarray(first[inverse.reshape(-1)]).tobytes()
