"""State that a model keeps between calls follows its channels: caches, statistics, tensors in containers."""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from tests.support import relative_error


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Attention(nn.Module):
    """Attention whose keys and values go through `cached`; `begin` makes the empty cache."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 16), nn.Linear(16, 3)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.heads, self.head_dim = 4, 4
        self.begin()

    def begin(self) -> None:
        raise NotImplementedError

    def cached(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_dim).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.enter(x)
        k, v = self.cached(self.split(self.k(h)), self.split(self.v(h)))
        y = F.scaled_dot_product_attention(self.split(self.q(h)), k, v)
        return self.leave(torch.relu(h + self.o(y.transpose(1, 2).flatten(2))))


class Growing(Attention):
    def begin(self) -> None:
        self.ck: Any = None
        self.cv: Any = None

    def cached(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.ck is not None:
            k, v = torch.cat([self.ck, k], 2), torch.cat([self.cv, v], 2)
        self.ck, self.cv = k, v
        return k, v


class GrowingDict(Attention):
    def begin(self) -> None:
        self.cache: dict[str, Any] = {}

    def cached(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if "k" in self.cache:
            k, v = torch.cat([self.cache["k"], k], 2), torch.cat([self.cache["v"], v], 2)
        self.cache.update(k=k, v=v)
        return k, v


class GrowingList(Attention):
    def begin(self) -> None:
        self.pairs: list[Any] = []

    def cached(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.pairs.append((k, v))
        return torch.cat([k for k, _ in self.pairs], 2), torch.cat([v for _, v in self.pairs], 2)


@dataclass
class Pair:
    k: Any = None
    v: Any = None


class Named(NamedTuple):
    k: Any
    v: Any


class GrowingData(Attention):
    kind: Any = Pair

    def begin(self) -> None:
        self.pair = self.kind(None, None)

    def cached(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.pair.k is not None:
            k, v = torch.cat([self.pair.k, k], 2), torch.cat([self.pair.v, v], 2)
        self.pair = self.kind(k, v)
        return k, v


class GrowingNamed(GrowingData):
    kind = Named


class Layers:
    """A cache as an object with a method."""

    def __init__(self) -> None:
        self.layers: dict[int, Any] = {}

    def update(self, at: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if at in self.layers:
            k, v = torch.cat([self.layers[at][0], k], 2), torch.cat([self.layers[at][1], v], 2)
        self.layers[at] = [k, v]
        return k, v


class GrowingObject(Attention):
    def begin(self) -> None:
        self.cache = Layers()

    def cached(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cache.update(3, k, v)


class Allocated(Attention):
    """Writes into two tensors that are allocated beforehand: buffers, attributes, or in a container."""

    def begin(self) -> None:
        self.at = 0
        self.allocate(*(torch.zeros(1, self.heads, 25, self.head_dim) for _ in range(2)))

    def allocate(self, k: torch.Tensor, v: torch.Tensor) -> None:
        self.register_buffer("ck", k)
        self.register_buffer("cv", v, persistent=False)

    def held(self) -> tuple[Any, Any]:
        return self.ck, self.cv

    def cached(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        until = self.at + k.shape[2]
        for held, new in zip(self.held(), (k, v), strict=True):
            held[:, :, self.at : until] = new
        self.at = until
        k, v = self.held()
        return k[:, :, :until], v[:, :, :until]


class AllocatedPlain(Allocated):
    def allocate(self, k: torch.Tensor, v: torch.Tensor) -> None:
        self.ck, self.cv = k, v


class AllocatedList(Allocated):
    def allocate(self, k: torch.Tensor, v: torch.Tensor) -> None:
        self.cache = [k, v]

    def held(self) -> tuple[Any, Any]:
        return self.cache[0], self.cache[1]


class AllocatedData(Allocated):
    def allocate(self, k: torch.Tensor, v: torch.Tensor) -> None:
        self.caches = {"self": Pair(k, v)}

    def held(self) -> tuple[Any, Any]:
        return self.caches["self"].k, self.caches["self"].v


class Layered(nn.Module):
    """Three layers; `mix` does something with the state between the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.begin()

    def begin(self) -> None:
        raise NotImplementedError

    def mix(self, h: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.second(self.mix(torch.relu(self.first(x))))))


class Previous(Layered):
    def begin(self) -> None:
        self.before: Any = None

    def mix(self, h: torch.Tensor) -> torch.Tensor:
        before, self.before = self.before, h
        return h if before is None else h - 0.5 * before


class LayerOfLaterCalls(Layered):
    """Has a layer that only a second call reaches, since it reads what the first one has left."""

    def begin(self) -> None:
        self.before: Any = None
        self.later = nn.Linear(16, 16)

    def mix(self, h: torch.Tensor) -> torch.Tensor:
        before, self.before = self.before, h
        return h if before is None else h + self.later(before)


class Steps(Layered):
    """Has a layer that a counter switches on."""

    def begin(self) -> None:
        self.steps, self.later = 0, nn.Linear(16, 16)

    def mix(self, h: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        return h if self.steps < 2 else self.later(h)


class Average(Layered):
    def begin(self) -> None:
        self.register_buffer("average", torch.zeros(16))

    def mix(self, h: torch.Tensor) -> torch.Tensor:
        y = h - self.average
        self.average.mul_(0.9).add_(h.mean(0), alpha=0.1)
        return y


class AverageAnew(Average):
    def mix(self, h: torch.Tensor) -> torch.Tensor:
        y = h - self.average
        self.average = 0.9 * self.average + 0.1 * h.mean(0)
        return y


class Bank(Layered):
    def begin(self) -> None:
        self.bank: deque[Any] = deque(maxlen=3)

    def mix(self, h: torch.Tensor) -> torch.Tensor:
        self.bank.append(h)
        return sum(self.bank) / len(self.bank)


class Table(Layered):
    """Writes its features into the rows of a table. The rows are no channels."""

    def begin(self) -> None:
        self.register_buffer("table", torch.zeros(9, 16))
        self.at = 0

    def mix(self, h: torch.Tensor) -> torch.Tensor:
        y = h + 0.1 * self.table.mean(0)
        self.table[self.at : self.at + h.shape[0]] = h
        self.at += h.shape[0] if self.at == 0 else -self.at
        return y


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.leave = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.h = torch.zeros(1, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.h = torch.tanh(self.enter(x) + self.again(self.h))
        return self.leave(self.h)


class Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv1d(6, 12, 1), nn.Conv1d(12, 8, 3), nn.Conv1d(8, 3, 1)
        self.rest = torch.zeros(1, 12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.cat([self.rest, torch.relu(self.first(x))], -1)
        self.rest = h[..., -2:]
        return self.last(torch.relu(self.second(h)))


ATTENTION = (
    *(Growing, GrowingDict, GrowingList, GrowingData, GrowingNamed, GrowingObject),
    *(Allocated, AllocatedPlain, AllocatedList, AllocatedData),
)
LAYERED = (Previous, LayerOfLaterCalls, Steps, Average, AverageAnew, Bank, Table)
SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    **dict.fromkeys(ATTENTION, (1, 3, 6)),
    **dict.fromkeys((*LAYERED, Recurrent), (4, 6)),
    Stream: (1, 6, 9),
}


def made(kind: type[nn.Module], seed: int = 0) -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(seed)
    shape = SHAPES.get(kind, (1, 3, 6) if issubclass(kind, Attention) else (4, 6))
    model = kind().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model, [torch.randn(shape) for _ in range(3)]


def calls(model: nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(x) for x in inputs]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("called", ["never", "before", "with gradients"])
@pytest.mark.parametrize("kind", SHAPES, ids=lambda kind: kind.__name__)
def test_calls_in_a_row_give_what_the_masked_original_gives(kind: type[nn.Module], called: str) -> None:
    model, inputs = made(kind)
    with torch.set_grad_enabled(called == "with gradients"):
        for x in inputs[:2] if called != "never" else ():
            model(x)
    small = fxprune.transform(model, inputs[2], ratio=0.5, importance="random", seed=1)
    masked = fxprune.masked(model, fxprune.record(small).removed)
    assert (type(small), fxprune.record(small).path, fxprune.record(small).exact) == (kind, "eager", True)
    assert sum(p.numel() for p in small.parameters()) < 0.45 * sum(p.numel() for p in model.parameters())
    assert relative_error(calls(small, inputs), calls(masked, inputs)) < 1e-9


def test_slots_of_a_state_alone_are_no_channels() -> None:
    for kind in (Table, Allocated):
        model, inputs = made(kind)
        groups = fxprune.analyze(model, inputs[0]).groups
        parameters = {name for name, _ in model.named_parameters()}
        assert all(parameters & {member.parameter for member in group.members} for group in groups)
        small = fxprune.transform(model, inputs[0], ratio=0.5)
        assert [b.shape[-2] for b in small.buffers()] == [b.shape[-2] for b in model.buffers()]


# -- statistics that a second call reads --------------------------------------------------------------------


class Level(Layered):
    def begin(self) -> None:
        self.level = torch.ones(())

    def mix(self, h: torch.Tensor) -> torch.Tensor:
        y, self.level = h * self.level, h.mean()
        return y


class LevelAtFirstNone(Layered):
    def begin(self) -> None:
        self.state: dict[str, Any] = {"level": None}

    def mix(self, h: torch.Tensor) -> torch.Tensor:
        level, self.state["level"] = self.state["level"], h.mean(-1).mean()
        return h if level is None else h / (1 + level)


class LevelBuffer(Level):
    def begin(self) -> None:
        self.register_buffer("level", torch.ones(()))

    def mix(self, h: torch.Tensor) -> torch.Tensor:
        y = h * self.level
        self.level.copy_(h.mean())
        return y


class LevelNumber(Layered):
    def begin(self) -> None:
        self.level = 1.0

    def mix(self, h: torch.Tensor) -> torch.Tensor:
        y, self.level = h * self.level, h.mean().item()
        return y


@pytest.mark.parametrize("kind", [Level, LevelAtFirstNone, LevelBuffer, LevelNumber], ids=lambda kind: kind.__name__)
def test_a_statistic_that_the_next_call_reads_counts(kind: type[nn.Module]) -> None:
    model, inputs = made(kind)
    assert not fxprune.record(fxprune.transform(model, inputs[0], ratio=0.5)).exact
    small = fxprune.transform(model, inputs[0], ratio=0.5, exact=True)
    masked = fxprune.masked(model, fxprune.record(small).removed)
    assert (small.first.out_features, small.second.out_features) == (16, 6)
    assert relative_error(calls(small, inputs), calls(masked, inputs)) < 1e-9


# -- other calls of the package -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Previous, LayerOfLaterCalls, Average, Recurrent, Steps, Bank])
def test_constants_that_change_between_calls_are_not_folded(kind: type[nn.Module]) -> None:
    model, inputs = made(kind)
    layer = model.enter if kind is Recurrent else model.first
    with torch.no_grad():
        layer.weight[[1, 5]] = 0.0
        layer.bias[[1, 5]] = 0.7
    graph = pytest.warns(fxprune.ChannelsStayWarning) if kind is Bank else contextlib.nullcontext()
    with pytest.warns(fxprune.errors.NothingRemovedWarning), graph:
        small = fxprune.transform(model, inputs[0], masks="zeros")
    found, expected = calls(small, inputs), calls(model, inputs)
    assert relative_error(found, expected) < 1e-9


class Full(Allocated):
    def cached(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.at > 0:
            raise ValueError("the cache is full")
        return super().cached(k, v)


def test_a_second_call_that_raises_is_noted() -> None:
    model, inputs = made(Full)
    small = fxprune.transform(model, inputs[0], ratio=0.5)
    reasons = fxprune.record(small).reasons
    assert fxprune.record(small).error < 1e-9
    assert any("a second call was not looked at" in reason and "the cache is full" in reason for reason in reasons)


def test_further_inputs_begin_with_the_state_of_the_model() -> None:
    model, inputs = made(Growing)
    other = torch.randn(2, 4, 6)
    small = fxprune.transform(model, inputs[0], also=[other], ratio=0.5)
    masked = fxprune.masked(model, fxprune.record(small).removed)
    assert relative_error([small(other)], [masked(other)]) < 1e-9


class Decoder(Growing):
    def step(self, x: torch.Tensor) -> torch.Tensor:
        return self(x[:, -1:])


def test_methods_are_called_twice_too() -> None:
    model, inputs = made(Decoder)
    small = fxprune.transform(model, inputs[0], methods={"step": inputs[0]}, ratio=0.5)
    masked = fxprune.masked(model, fxprune.record(small).removed)
    found, expected = ([m.step(x) for x in inputs] for m in (small, masked))
    assert relative_error(found, expected) < 1e-9


@pytest.mark.parametrize("kind", [Allocated, AllocatedPlain, AllocatedList, Previous, Recurrent])
def test_files_give_the_state_back_at_its_width(kind: type[nn.Module], tmp_path: Path) -> None:
    model, inputs = made(kind)
    small = fxprune.transform(model, inputs[0], ratio=0.5)
    fxprune.save(small, tmp_path / "small.safetensors")
    again = fxprune.load(tmp_path / "small.safetensors", into=made(kind)[0], example_inputs=inputs[0])
    assert relative_error(calls(again, inputs), calls(copy.deepcopy(small), inputs)) < 1e-12


class Listed(nn.Module):
    """Reads its parameters from a list and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.listed, self.held = [self.first.weight, self.first.bias], (self.last.weight,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.relu(F.linear(x, *self.listed)), self.held[0])


def test_parameters_in_containers_are_those_of_the_small_model() -> None:
    model, x = Listed(), torch.randn(4, 6)
    small = fxprune.transform(model, x, ratio=0.5)
    masked = fxprune.masked(model, fxprune.record(small).removed)
    assert small.listed[0] is small.first.weight
    assert small.held[0] is small.last.weight
    assert relative_error([small(x)], [masked(x)]) < 1e-9
