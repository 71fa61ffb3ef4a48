"""Terms against a model made of Python sets.

A slot is removed when any atom of its set is, so "removed together" is equality of sets, and every promise of
`Terms` can be read off `sets` after any sequence of calls: soundness needs no knowledge of how unification works.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fxprune.channels.terms import Terms, Vector

QUICK = settings(deadline=None, derandomize=True, database=None, max_examples=300)
EVENT = 7


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Fail instead of hanging."""

    def ring(signum: int, frame: Any) -> None:
        raise AssertionError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def sets(terms: Terms, vector: Vector) -> list[frozenset[int]]:
    """For each slot the free atoms with which it is removed; empty where it cannot be removed."""
    made: list[set[int]] = [set() for _ in range(vector.size)]
    for column in terms.resolve(vector).columns:
        for slot, (atom, event) in enumerate(zip(column.tolist(), terms.event(column).tolist(), strict=True)):
            if atom and not event:
                made[slot].add(atom)
    return [frozenset(s) for s in made]


def grid(parts: Sequence[list[frozenset[int]]]) -> list[frozenset[int]]:
    """The sets of a merged dimension, the last part running fastest."""
    return [frozenset().union(*slots) for slots in itertools.product(*parts)]


# -- making vectors -------------------------------------------------------------------------------------------


def test_fresh_slots_are_free_and_different() -> None:
    terms = Terms()
    a, b = terms.fresh(3), terms.fresh(2)
    assert all(len(s) == 1 for s in sets(terms, a) + sets(terms, b))
    assert len(set(sets(terms, a) + sets(terms, b))) == 5


def test_a_dimension_of_size_one_is_fixed() -> None:
    terms = Terms()
    assert terms.fresh(1) is terms.fixed(1)
    assert sets(terms, terms.fresh(1)) == [frozenset()]


def test_more_atoms_than_the_first_tables_hold() -> None:
    terms = Terms()
    a, b = terms.fresh(700), terms.fresh(5000)
    terms.same(a, b.take(slice(0, 700)))
    assert sets(terms, a) == sets(terms, b)[:700]
    assert len(set(sets(terms, b))) == 5000


def test_cat_puts_fixed_plain_and_merged_slots_side_by_side() -> None:
    terms = Terms()
    a, h, d = terms.fresh(3), terms.fresh(2), terms.fresh(2)
    merged = terms.merge([h, d])
    whole = terms.cat([a, terms.fixed(2), merged])
    assert sets(terms, whole) == sets(terms, a) + [frozenset()] * 2 + sets(terms, merged)
    assert terms.cat([terms.fixed(2), terms.fixed(3)]) is terms.fixed(5)


@pytest.mark.parametrize(
    "move",
    [
        pytest.param(slice(1, 4), id="slice"),
        pytest.param(slice(None, None, -1), id="flip"),
        pytest.param(slice(None, None, 2), id="stride"),
        pytest.param(np.array([5, 0, 1, 2, 3, 4]), id="roll"),
        pytest.param(np.array([0, 0, 3, 3, 3]), id="repeat"),
        pytest.param(np.array([], dtype=np.int64), id="nothing"),
    ],
)
def test_take_moves_the_slots_of_any_vector(move: Any) -> None:
    terms = Terms()
    for vector in (terms.fresh(6), terms.merge([terms.fresh(2), terms.fresh(3)]), terms.fixed(6)):
        moved = vector.take(move)
        expected = [sets(terms, vector)[i] for i in np.arange(6)[move]]
        assert moved.size == len(expected)
        assert sets(terms, moved) == expected


def test_flattening_gives_each_channel_its_atom_many_times() -> None:
    terms = Terms()
    c = terms.fresh(3)
    flat = terms.merge([c, terms.fixed(2), terms.fixed(2)])
    assert sets(terms, flat) == [s for s in sets(terms, c) for _ in range(4)]


def test_flattening_one_slot_of_many() -> None:
    """x[:, :1].flatten(1): one channel that came from several."""
    terms = Terms()
    one = terms.fresh(3).take(slice(0, 1))
    flat = terms.merge([one, terms.fixed(4)])
    assert flat.size == 4
    assert sets(terms, flat) in (sets(terms, one) * 4, [frozenset()] * 4)  # it can never be removed, so both are right
    flat = terms.merge([one, terms.fresh(3)])
    assert flat.size == 3


def test_merging_is_associative() -> None:
    terms = Terms()
    a, b, c = terms.fresh(2), terms.fresh(3), terms.fresh(2)
    at_once = terms.merge([a, b, c])
    before = terms.count
    for stepwise in (terms.merge([terms.merge([a, b]), c]), terms.merge([a, terms.merge([b, c])])):
        assert sets(terms, stepwise) == sets(terms, at_once)
        terms.same(at_once, stepwise)
    assert terms.count == before
    assert len(terms.free(at_once)) == 7


# -- splitting ------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
@QUICK
def test_split_is_the_inverse_of_merge(sizes: list[int]) -> None:
    terms = Terms()
    parts = [terms.fresh(s) for s in sizes]
    wanted = [sets(terms, v) for v in parts]
    before = terms.count
    again = terms.split(terms.merge(parts), sizes)
    assert [sets(terms, v) for v in again] == wanted
    assert terms.count == before, "no new atoms are needed"


def test_merge_is_the_inverse_of_split() -> None:
    terms = Terms()
    whole = terms.fresh(6)
    rows, columns = terms.split(whole, (2, 3))
    assert sets(terms, whole) == grid([sets(terms, rows), sets(terms, columns)])
    assert len(set(sets(terms, rows))) == 2
    assert len(set(sets(terms, columns))) == 3
    assert [sets(terms, v) for v in terms.split(whole, (2, 3))] == [sets(terms, rows), sets(terms, columns)]


def test_a_grid_splits_further() -> None:
    terms = Terms()
    whole = terms.fresh(24)
    six, four = terms.split(whole, (6, 4))
    two, three = terms.split(six, (2, 3))
    assert sets(terms, whole) == grid([sets(terms, v) for v in (two, three, four)])
    assert [sets(terms, v) for v in terms.split(whole, (2, 3, 4))] == [sets(terms, v) for v in (two, three, four)]
    assert len(terms.free(whole)) == 9


def test_two_ways_to_split_that_disagree_stay_sound() -> None:
    """2 x 3 rows and columns, and 3 x 2 as well: then all slots can only be removed together."""
    terms = Terms()
    whole = terms.fresh(6)
    for sizes in ((2, 3), (3, 2)):
        parts = terms.split(whole, sizes)
        assert sets(terms, whole) == grid([sets(terms, v) for v in parts])


def test_equal_grids_are_unified_axis_by_axis() -> None:
    terms = Terms()
    h, d, h2, d2 = terms.fresh(2), terms.fresh(3), terms.fresh(2), terms.fresh(3)
    terms.same(terms.merge([h, d]), terms.merge([h2, d2]))
    assert sets(terms, h) == sets(terms, h2)
    assert sets(terms, d) == sets(terms, d2)
    assert len(set(sets(terms, h) + sets(terms, d))) == 5, "rows and columns stay apart"


def test_a_plain_vector_adopts_a_grid() -> None:
    """A weight's output dimension that is viewed as heads: bound to pairs, whichever comes first."""
    for swap in (False, True):
        terms = Terms()
        weight, h, d = terms.fresh(6), terms.fresh(2), terms.fresh(3)
        merged = terms.merge([h, d])
        terms.same(*((merged, weight) if swap else (weight, merged)))
        assert sets(terms, weight) == grid([sets(terms, h), sets(terms, d)])
        assert len(terms.free(weight)) == 5


def test_a_grid_adopts_a_finer_grid_beside_a_fixed_dimension() -> None:
    """A batch of 3 times 4 heads that forward makes, and 2 times 2 heads of weights in a batch of 3."""
    terms = Terms()
    batch, heads, outer, inner = (terms.fresh(size) for size in (3, 4, 2, 2))
    terms.same(terms.merge([batch, heads]), terms.merge([terms.fixed(3), outer, inner]))
    assert sets(terms, batch) == [frozenset()] * 3
    assert sets(terms, heads) == grid([sets(terms, outer), sets(terms, inner)])
    assert len({*sets(terms, outer), *sets(terms, inner)}) == 4


def test_shuffled_channels_are_the_transposed_grid() -> None:
    terms = Terms()
    whole = terms.fresh(6)
    g, c = terms.split(whole, (2, 3))
    shuffled = terms.merge([c, g])
    order = [g_ * 3 + c_ for c_ in range(3) for g_ in range(2)]
    assert sets(terms, shuffled) == [sets(terms, whole)[i] for i in order]


# -- locks ----------------------------------------------------------------------------------------------------


def test_meeting_a_fixed_dimension_locks() -> None:
    terms = Terms()
    terms.current_event = EVENT
    a, b = terms.fresh(3), terms.fresh(3)
    terms.same(a, b)
    terms.same(terms.fixed(3), b)
    assert sets(terms, a) == [frozenset()] * 3
    assert (terms.event(a.columns[0]) == EVENT).all(), "with the event that was going on"


def test_lock_returns_what_it_newly_locks() -> None:
    terms = Terms()
    a = terms.fresh(3)
    assert len(terms.lock(a, EVENT)) == 3
    assert len(terms.lock(a, EVENT + 1)) == 0
    assert (terms.event(a.columns[0]) == EVENT).all(), "the first reason stays"


def test_some_fixed_slots_lock_only_their_partners() -> None:
    """Padded channels, or an input that is concatenated: [a, b, fixed] meets the columns of a weight."""
    terms = Terms()
    a, weight = terms.fresh(2), terms.fresh(3)
    terms.same(terms.cat([a, terms.fixed(1)]), weight)
    assert sets(terms, weight) == [*sets(terms, a), frozenset()]
    assert len(terms.free(weight)) == 2
    again = terms.fresh(3)
    terms.same(terms.cat([terms.fixed(1), a.take(slice(1, 2)), a.take(slice(0, 1))]), again)
    assert sets(terms, again) == [frozenset(), *reversed(sets(terms, a))]


def test_a_locked_row_leaves_the_columns_of_a_grid_free() -> None:
    terms = Terms()
    h, d = terms.fresh(2), terms.fresh(3)
    merged, weight = terms.merge([h, d]), terms.fresh(6)
    terms.lock(h, EVENT)
    terms.same(weight, merged)
    assert sets(terms, weight) == sets(terms, d) * 2
    assert len(terms.free(weight)) == 3


def test_a_locked_slot_of_a_grid_locks_its_row_and_column_and_joins_nothing() -> None:
    """A round of locks alone is a change, after which the other slots are bound to their sets."""
    terms = Terms()
    h, d, weight = terms.fresh(2), terms.fresh(2), terms.fresh(4)
    terms.lock(weight.take(slice(0, 1)), EVENT)
    terms.same(weight, terms.merge([h, d]))
    assert sets(terms, weight) == grid([sets(terms, h), sets(terms, d)])
    assert (len(terms.free(h)), len(terms.free(d)), len(terms.free(weight))) == (1, 1, 2)


def test_equal_sets_in_other_columns_join_nothing() -> None:
    terms = Terms()
    ((a,), (b,)) = terms.fresh(2).columns, terms.fresh(2).columns
    crossed = Vector(2, (np.array([a[0], b[1]]), np.array([b[0], a[1]])))
    before = sets(terms, crossed)
    terms.same(Vector(2, (a, b)), crossed)
    assert sets(terms, crossed) == before
    assert len(terms.free(crossed)) == 4


def test_vectors_of_different_sizes_are_refused() -> None:
    terms = Terms()
    with pytest.raises(ValueError, match="vectors of 3 and 2 slots"):
        terms.same(terms.fresh(3), terms.fresh(2))


# -- one atom per slot: the reference is a partition ----------------------------------------------------------


Moves = tuple[int, list[int]]
moves = st.tuples(st.integers(0, 2), st.lists(st.integers(-1, 5), min_size=1, max_size=6))
pairs = st.lists(st.tuples(moves, moves), min_size=1, max_size=6)


def taken(terms: Terms, sources: list[Vector], move: Moves, size: int) -> tuple[Vector, list[int]]:
    """Slots of one of the sources in any order, -1 a fixed slot; and its atoms as numbers, 0 for fixed."""
    source, positions = sources[move[0]], (move[1] * 6)[:size]
    parts = [source.take(slice(p, p + 1)) if p >= 0 else terms.fixed(1) for p in positions]
    return terms.cat(parts), [source.columns[0].tolist()[p] if p >= 0 else 0 for p in positions]


def touched(vector: Vector) -> Vector:
    """The vector with its atoms made now, so that their numbers do not depend on what is asked first."""
    assert vector.columns
    return vector


def partition_by_terms(constraints: list[tuple[Moves, Moves]]) -> tuple[set[frozenset[int]], frozenset[int]]:
    """Classes of free atoms, and the locked ones, as `Terms` sees it."""
    terms = Terms()
    sources = [touched(terms.fresh(6)) for _ in range(3)]
    with time_limit(10):
        for left, right in constraints:
            size = min(len(left[1]), len(right[1]))
            terms.same(taken(terms, sources, left, size)[0], taken(terms, sources, right, size)[0])
    classes: dict[int, set[int]] = {}
    locked = set()
    for source in sources:
        for atom, root, event in zip(
            source.columns[0].tolist(),
            terms.roots(source.columns[0]).tolist(),
            terms.event(source.columns[0]).tolist(),
            strict=True,
        ):
            if event:
                locked.add(atom)
            else:
                classes.setdefault(root, set()).add(atom)
    return {frozenset(c) for c in classes.values()}, frozenset(locked)


def partition_by_sets(constraints: list[tuple[Moves, Moves]]) -> tuple[set[frozenset[int]], frozenset[int]]:
    """The same, by merging Python sets; 0 is the fixed slot."""
    terms = Terms()
    sources = [touched(terms.fresh(6)) for _ in range(3)]
    classes = [{atom} for source in sources for atom in source.columns[0].tolist()] + [{0}]
    for left, right in constraints:
        size = min(len(left[1]), len(right[1]))
        for x, y in zip(taken(terms, sources, left, size)[1], taken(terms, sources, right, size)[1], strict=True):
            a, b = (next(c for c in classes if atom in c) for atom in (x, y))
            if a is not b:
                classes.remove(b)
                a |= b
    locked = next(c for c in classes if 0 in c)
    return {frozenset(c) for c in classes if c is not locked}, frozenset(locked - {0})


@given(constraints=pairs)
@example(constraints=[((0, [0, -1]), (1, [0, 1])), ((0, [0, -1]), (1, [0, 1]))])
@example(constraints=[((0, [0, 1, 2]), (0, [1, 2, 0]))])
@example(constraints=[((0, [0, 0]), (1, [0, 1])), ((2, [0, -1]), (1, [1, 0]))])
@QUICK
def test_plain_slots_are_merged_as_sets_are(constraints: list[tuple[Moves, Moves]]) -> None:
    assert partition_by_terms(constraints) == partition_by_sets(constraints)


@given(constraints=pairs, seed=st.integers(0, 99))
@QUICK
def test_the_order_of_plain_constraints_does_not_matter(constraints: list[tuple[Moves, Moves]], seed: int) -> None:
    shuffled = [pair[::-1] if random.Random(seed).random() < 0.5 else pair for pair in constraints]
    random.Random(seed).shuffle(shuffled)
    assert partition_by_terms(constraints) == partition_by_terms(shuffled)


# -- anything at all ------------------------------------------------------------------------------------------


class Model:
    """A pool of vectors, made and tied by random operations, with the constraints that must hold for them."""

    def __init__(self) -> None:
        self.terms = Terms()
        self.pool = [self.terms.fresh(6), self.terms.fresh(4), self.terms.fixed(2), self.terms.fresh(2)]
        self.told: list[tuple[str, Any, Any]] = []
        self.locked: set[int] = set()

    def pick(self, number: int, size: int | None = None) -> Vector:
        fitting = [v for v in self.pool if size in (None, v.size)]
        return fitting[number % len(fitting)]

    def do(self, op: str, a: int, b: int, c: int) -> None:
        terms, x = self.terms, self.pick(a)
        if op == "fresh":
            self.pool.append(terms.fresh(2 + b % 5))
        elif op == "cat" and x.size <= 8:
            y = self.pick(b)
            self.add("cat", terms.cat([x, y]), [x, y])
        elif op == "take":
            positions = np.roll(np.arange(x.size), c)
            if b % 4 == 1:
                positions = positions[::-1].copy()
            elif b % 4 == 2:
                positions = np.arange(x.size) // 2
            elif b % 4 == 3:
                positions = np.arange(x.size)[: max(1, x.size - c % x.size)]
            self.add("take", x.take(positions), (x, positions.tolist()))
        elif op == "merge":
            y = self.pick(b)
            if x.size * y.size <= 24:
                self.add("merge", terms.merge([x, y]), [x, y])
        elif op == "split":
            choices = [(d, x.size // d) for d in range(1, x.size + 1) if x.size % d == 0]
            choices += [(p, q, x.size // p // q) for p in (2, 3) for q in (2, 3) if x.size % (p * q) == 0]
            parts = terms.split(x, choices[b % len(choices)])
            self.pool += parts
            self.told.append(("split", x, parts))
        elif op == "same":
            y = self.pick(b, x.size)
            terms.same(x, y)
            self.told.append(("same", x, y))
        elif op == "lock":
            terms.lock(x, 2 + c)
            self.told.append(("same", x, terms.fixed(x.size)))

    def add(self, what: str, made: Vector, parts: Any) -> None:
        self.pool.append(made)
        self.told.append((what, made, parts))

    def check(self) -> None:
        """All constraints so far hold. The slot of a dimension of size 1 is never removed, whatever its atoms are."""
        every = {id(v): sets(self.terms, v) for v in self.pool}
        stuck = frozenset().union(*(s for v in self.pool if v.size == 1 for s in every[id(v)]))

        def of(vector: Vector) -> list[frozenset[int]]:
            return [s - stuck for s in (every.get(id(vector)) or sets(self.terms, vector))]

        for what, made, parts in self.told:
            if what == "same":
                assert of(made) == of(parts), "same"
            elif what == "cat":
                assert of(made) == [s for part in parts for s in of(part)], "cat"
            elif what == "take":
                source, positions = parts
                assert of(made) == [of(source)[p] for p in positions], "take"
            else:
                assert made.size == math.prod(v.size for v in parts), what
                assert of(made) == grid([of(v) for v in parts]), what
        atoms = np.arange(1, self.terms.count)
        locked = set(atoms[self.terms.event(atoms) != 0].tolist())
        assert self.locked <= locked, "what is locked stays locked"
        self.locked = locked


OPERATIONS = ("same", "split", "merge", "cat", "take", "fresh", "lock")
numbers = st.integers(0, 11)
sequences = st.lists(st.tuples(st.sampled_from(OPERATIONS), numbers, numbers, numbers), max_size=14)


@given(sequence=sequences)
@settings(QUICK, max_examples=1000)
def test_every_constraint_holds_after_all_later_ones(sequence: list[tuple[str, int, int, int]]) -> None:
    model = Model()
    with time_limit(10):
        for operation in sequence:
            model.do(*operation)
            model.check()


@given(sequence=sequences)
@settings(QUICK, max_examples=200)
def test_repeating_a_constraint_changes_nothing(sequence: list[tuple[str, int, int, int]]) -> None:
    model = Model()
    with time_limit(10):
        for operation in sequence:
            model.do(*operation)
        before = [sets(model.terms, v) for v in model.pool]
        for what, x, y in model.told:
            if what == "same":  # copies, so that nothing is looked up
                model.terms.same(Vector(x.size, x.columns), Vector(y.size, y.columns))
                model.terms.same(Vector(y.size, y.columns), Vector(x.size, x.columns))
        assert [sets(model.terms, v) for v in model.pool] == before


@pytest.mark.slow
@given(sequence=sequences)
@settings(QUICK, max_examples=50_000, derandomize=False)
def test_every_constraint_holds_in_many_sequences(sequence: list[tuple[str, int, int, int]]) -> None:
    model = Model()
    with time_limit(10):
        for operation in sequence:
            model.do(*operation)
        model.check()


def test_a_fresh_vector_is_linked_without_atoms() -> None:
    terms = Terms()
    chain = [terms.fresh(4) for _ in range(5)]
    before = terms.count
    for left, right in itertools.pairwise(chain):
        terms.same(left, right)
    assert terms.count == before, "no atoms are needed for what is never taken apart"
    assert len({v.representative for v in chain}) == 1
    part = chain[0].take(slice(0, 2))
    assert part.columns[0].tolist() == chain[4].columns[0][:2].tolist()
    terms.same(terms.fixed(4), chain[2])
    assert all(len(terms.free(v)) == 0 for v in (*chain, part))
