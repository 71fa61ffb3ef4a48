"""Objects of the standard library and of numpy in a model: its copies have their own, and the original's stay."""

from __future__ import annotations

import array
import copy
import io
import itertools
import queue
import random
import threading
import warnings
from collections import ChainMap, UserDict, UserList
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture.containers import is_container
from fxprune.capture.kept_values import Kept
from fxprune.capture.module_copy import copy_module

HOLDERS = (UserDict, UserList, ChainMap, queue.Queue, queue.LifoQueue)


def put(held: Any, value: Any) -> Any:
    """The value that was put there before, or None."""
    if isinstance(held, queue.Queue):
        before = None if held.empty() else held.get()
        held.put(value)
    elif isinstance(held, UserList):
        before = held[-1] if held else None
        held.append(value)
    else:
        before = held.get("h")
        held["h"] = value
    return before


def items_in(held: Any) -> list[Any]:
    return list(held.queue if isinstance(held, queue.Queue) else held if isinstance(held, UserList) else held.values())


class Remembers(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.a, self.b, self.held = nn.Linear(3, 8), nn.Linear(16, 2), held

    def forward(self, x: Tensor) -> Tensor:
        new = torch.relu(self.a(x))
        before = put(self.held, new.detach())
        return self.b(torch.cat([torch.zeros_like(new) if before is None else before, new], 1))


@pytest.mark.parametrize("kind", HOLDERS)
@pytest.mark.parametrize("function", [fxprune.analyze, fxprune.cost, fxprune.trace])
def test_a_holder_of_the_original_stays_empty(kind: Any, function: Callable[..., Any]) -> None:
    net = Remembers(kind())
    if function is fxprune.trace:
        with pytest.raises(fxprune.CaptureError, match=r"its forward changes self\.held"):
            function(net, torch.ones(2, 3))
    else:
        function(net, torch.ones(2, 3))
    assert items_in(net.held) == []


@pytest.mark.parametrize("kind", HOLDERS)
def test_what_a_holder_has_is_cut_in_the_small_model(kind: Any) -> None:
    net = Remembers(kind()).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    net(x)
    held = items_in(net.held)
    small: Any = fxprune.transform(net, x, ratio=0.5)
    assert small.a.out_features == 4
    assert [part.shape for part in items_in(small.held)] == [(2, 4)]
    reference = fxprune.masked(net, fxprune.record(small))
    for given in (x, 2 * x):
        torch.testing.assert_close(small(given), reference(given), rtol=0, atol=1e-12)
    assert all(now is before for now, before in zip(items_in(net.held), held, strict=True))


class Configured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.config = nn.Linear(3, 8), nn.Linear(8, 2), UserDict(width=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)).view(-1, self.config["width"]))


def test_a_number_in_a_holder_follows_the_width() -> None:
    net = Configured()
    small: Any = fxprune.transform(net, torch.ones(2, 3), ratio=0.5)
    assert (small.config["width"], net.config["width"]) == (4, 8)


def test_a_copy_of_a_queue_has_its_own_locks() -> None:
    net: Any = Remembers(queue.Queue(3))
    copied: Any = copy_module(net, lambda tensor: tensor)
    assert copied.held.mutex is not net.held.mutex
    copied.held.put(1, timeout=5)
    assert (copied.held.get(timeout=5), copied.held.maxsize, net.held.qsize()) == (1, 3, 0)


def test_what_comes_into_a_holder_in_a_variable_is_taken_out_again() -> None:
    table: Any = UserDict()
    kept = Kept((), [table])
    table["h"] = torch.ones(1)
    kept.restore()
    assert not table


# -- objects with a state ---------------------------------------------------------------------------------


def iterator() -> Any:
    made = iter([1, 2, 3, 4, 5, 6, 7, 8] * 50)
    next(made)
    return made


def following(one: Any) -> Any:
    """The next item of an iterator, which stays where it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return next(copy.copy(one) if type(one).__name__ == "_tee" else copy.deepcopy(one))


ITERATORS: dict[str, Callable[[], Any]] = {
    "cycle": lambda: itertools.cycle([1, 2, 3, 4, 5, 6, 7]),
    "chain": lambda: itertools.chain(range(50), [51]),
    "islice": lambda: itertools.islice(range(100), 60),
    "permutations": lambda: itertools.permutations(range(5)),
    "product": lambda: itertools.product(range(9), range(9)),
    "accumulate": lambda: itertools.accumulate(range(1, 60)),
    "takewhile": lambda: itertools.takewhile(lambda n: n < 40, range(50)),
    "zip_longest": lambda: itertools.zip_longest(range(50), [1]),
    "tee": lambda: itertools.tee(range(50))[0],
    "map": lambda: map(abs, range(50)),
    "zip": lambda: zip(range(50), range(60), strict=True),
    "enumerate": lambda: enumerate(range(50)),
    "reversed": lambda: reversed(list(range(50))),
}


def values_of_threads() -> Any:
    made = threading.local()
    made.count = 1
    return made


def queue_of_items() -> Any:
    made = queue.SimpleQueue[int]()
    made.put(1)
    return made


STATES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "array of numpy": (lambda: np.zeros(3), lambda one: one.__iadd__(1), np.ndarray.tolist),
    "array of objects": (
        lambda: np.array([[], 1], dtype=object),
        lambda one: one[0].append(2),
        lambda one: str(one.tolist()),
    ),
    "counter": (itertools.count, next, repr),
    "counter with a step": (lambda: itertools.count(1.5, 2), next, repr),
    "iterator": (iterator, next, lambda one: one.__length_hint__()),
    **{name: (make, next, following) for name, make in ITERATORS.items()},
    "values of threads": (
        values_of_threads,
        lambda one: setattr(one, "count", one.count + 1),
        lambda one: one.count,
    ),
    "queue without places": (queue_of_items, lambda one: one.put(2), lambda one: one.qsize()),
    "generator of Python": (lambda: random.Random(0), random.Random.random, random.Random.getstate),
    "generator of numpy": (
        lambda: np.random.default_rng(0),
        lambda one: one.random(),
        lambda one: str(one.bit_generator.state),
    ),
    "older generator of numpy": (
        lambda: np.random.RandomState(0),
        lambda one: one.rand(),
        lambda one: str(one.get_state()),
    ),
    "file of bytes": (io.BytesIO, lambda one: one.write(b"x"), io.BytesIO.getvalue),
    "file of text": (io.StringIO, lambda one: one.write("x"), io.StringIO.getvalue),
    "array": (lambda: array.array("i"), lambda one: one.append(1), list),
    "bytes": (bytearray, lambda one: one.append(1), bytes),
}


class Helper:
    def __init__(self, state: Any) -> None:
        self.state = state


class Advances(nn.Module):
    def __init__(self, state: Any, advance: Callable[[Any], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        self.state, self.helper, self.advance = state, Helper(state), advance

    def forward(self, x: Tensor) -> Tensor:
        self.advance(self.helper.state)
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("function", [fxprune.analyze, fxprune.transform])
def test_the_state_of_an_object_of_the_original_stays(name: str, function: Callable[..., Any]) -> None:
    make, advance, note = STATES[name]
    net = Advances(make(), advance)
    before = note(net.state)
    made = function(net, torch.ones(2, 3), **({"ratio": 0.5} if function is fxprune.transform else {}))
    assert note(net.state) == before
    if function is fxprune.transform:
        assert made.state is made.helper.state is not net.state
        assert note(made.state) == before


@pytest.mark.parametrize("name", STATES)
def test_a_copy_for_a_run_has_one_such_object_in_both_places(name: str) -> None:
    make, advance, note = STATES[name]
    net = Advances(make(), advance)
    before = note(net.state)
    copied: Any = copy_module(net, lambda tensor: tensor)
    assert note(copied.state) == before
    copied(torch.ones(2, 3))
    assert copied.state is copied.helper.state
    assert note(copied.state) != before
    assert note(net.state) == before


def test_a_counter_of_other_objects_is_shared() -> None:
    net: Any = Advances(itertools.count(Fraction(1, 2)), next)
    assert copy_module(net, lambda tensor: tensor).state is net.state


def test_an_object_with_a_generator_is_a_container() -> None:
    assert is_container(Helper(random.Random(0)))
    assert not is_container(random.Random(0))


class Alternates(nn.Module):
    """Takes another layer in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.first, self.second, self.b = (nn.Linear(*s) for s in ((3, 8), (8, 8), (8, 8), (8, 2)))
        self.turn = itertools.cycle([self.first, self.second])

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(next(self.turn)(torch.relu(self.a(x)))))


def test_an_iterator_over_layers_goes_over_those_of_the_small_model() -> None:
    net = Alternates().double()
    x = torch.randn(4, 3, dtype=torch.float64)
    small: Any = fxprune.transform(net, x, ratio=0.5)
    assert type(small) is Alternates
    assert small.first.weight.shape == small.second.weight.shape == (4, 4)
    assert next(net.turn) is net.first
    assert [next(small.turn) for _ in range(3)] == [small.first, small.second, small.first]


def test_an_iterator_over_a_generator_gives_runs_no_value() -> None:
    net: Any = Advances(itertools.cycle(n for n in range(5)), next)
    copied: Any = copy_module(net, lambda tensor: tensor)
    with pytest.raises(fxprune.CaptureError, match="at   state, of type generator"):
        next(copied.state)
    assert next(net.state) == 0


def test_the_record_says_what_is_new_in_the_small_model() -> None:
    for make, text in ((values_of_threads, "state is a new threading.local"), (queue_of_items, "state is a queue of")):
        small = fxprune.transform(Advances(make(), type), torch.ones(2, 3), ratio=0.5)
        assert fxprune.record(small).reasons[0].startswith(text)
