"""Settings in attributes, in containers, and behind functions with a cache: each gets its new value."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.analysis.settings import mark_settings, name_of, read_setting, write_setting

Shape = namedtuple("Shape", "heads width")


@dataclasses.dataclass
class Options:
    heads: int
    width: int


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    heads: int
    width: int


class Config:
    """A configuration that gives an attribute a second name, as those of transformers do."""

    def __init__(self, heads: int, width: int) -> None:
        self.n_head, self.width, self.names = heads, width, {"model": "toy"}

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, {"heads": "n_head"}.get(name, name))


Holder = Callable[[int, int], Any]
Read = Callable[[Any], tuple[int, int]]

HOLDERS: dict[str, tuple[Holder, Read, str]] = {
    "dict": (lambda h, w: {"heads": h, "width": w}, lambda s: (s["heads"], s["width"]), "held['heads']"),
    "nested list": (lambda h, w: [["a", h], {"w": [w]}], lambda s: (s[0][1], s[1]["w"][0]), "held[0][1]"),
    "named tuple": (Shape, lambda s: (s.heads, s.width), "held"),
    "namespace": (
        lambda h, w: SimpleNamespace(heads=h, width=w),
        lambda s: (s.heads, s.width),
        "held.heads",
    ),
    "data class": (Options, lambda s: (s.heads, s.width), "held.heads"),
    "frozen data class": (lambda h, w: [Frozen(h, w)], lambda s: (s[0].heads, s[0].width), "held[0].heads"),
    "configuration": (Config, lambda s: (s.heads, s.width), "held.n_head"),
}


class Attention(nn.Module):
    def __init__(self, held: Any, read: Read, split: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.held, self.read, self.split = held, read, split
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        heads, width = self.read(self.held)
        sizes = (*x.shape[:2], heads, width) if self.split is None else self.split(*x.shape[:2], heads, width)
        q, k, v = (t.view(sizes).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return x + self.out(((q @ k.mT * 0.35).softmax(-1) @ v).transpose(1, 2).flatten(2))


def of_class(net: nn.Module, **options: Any) -> Any:
    """A small model of the net's class, which equals the masked original."""
    net, x = net.double().eval(), torch.randn(2, 5, 24, dtype=torch.float64)
    small = fxprune.transform(net, x, path="eager", **options)
    reference = fxprune.masked(net, fxprune.record(small).removed)
    assert type(small) is type(net)
    assert (small(x) - reference(x)).abs().max() <= 1e-9 * reference(x).abs().max()
    return small


@pytest.mark.parametrize("kind", HOLDERS)
def test_a_size_in_a_container_gets_its_new_value(kind: str) -> None:
    holder, read, name = HOLDERS[kind]
    net = Attention(holder(4, 6), read)
    small = of_class(net, ratio=0.5)
    assert (read(small.held), read(net.held)) == ((2, 3), (4, 6)), "the user's object stays as it is"
    changed = {size.name: (size.old, size.new) for size in fxprune.record(small).plan.sizes if size.at == ""}
    assert changed[name] == (([4, 6], [2, 3]) if kind == "named tuple" else (4, 2))


@pytest.mark.parametrize("kind", HOLDERS)
def test_a_small_model_with_sizes_in_a_container_is_loaded_from_its_file(kind: str, tmp_path: Any) -> None:
    holder, read, _ = HOLDERS[kind]
    small, x = of_class(Attention(holder(4, 6), read), ratio=0.5), torch.randn(2, 5, 24, dtype=torch.float64)
    fxprune.save(small, tmp_path / "small.safetensors")
    again: Any = fxprune.load(tmp_path / "small.safetensors", into=Attention(holder(4, 6), read).double().eval())
    assert read(again.held) == (2, 3)
    assert torch.equal(again(x), small(x))


class Blocks(nn.Module):
    """A model whose blocks share one configuration, which it holds too."""

    def __init__(self, depth: int, held: Any, read: Read, split: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.held, self.read = held, read
        self.blocks = nn.Sequential(*(Attention(held, read, split) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


@pytest.mark.parametrize("kind", ["dict", "namespace", "data class", "configuration"])
def test_an_object_that_several_modules_share_stays_one_object_with_one_value(kind: str) -> None:
    holder, read, _ = HOLDERS[kind]
    small = of_class(Blocks(3, holder(4, 6), read), ratio=0.4, importance="random", seed=1)
    heads = {block.qkv.weight.shape[0] // (3 * read(block.held)[1]) for block in small.blocks}
    assert {id(block.held) for block in small.blocks} == {id(small.held)}
    assert heads == {read(small.held)[0]}
    assert read(small.held)[1] < 6


def test_modules_with_objects_of_their_own_are_pruned_by_different_numbers() -> None:
    net: Any = Blocks(2, None, lambda held: held)
    for block in net.blocks:
        block.held, block.read = {"h": 4, "w": 6}, lambda held: (held["h"], held["w"])
    small = of_class(net, ratio={"blocks.0.qkv:heads": 0.5, "blocks.1.qkv:heads": 0.25})
    assert [block.held["h"] for block in small.blocks] == [2, 3]


# -- caches -----------------------------------------------------------------------------------------------


@functools.lru_cache
def cached_globally(*sizes: int) -> tuple[int, ...]:
    return sizes


TABLE: dict[tuple[int, ...], tuple[int, ...]] = {}


def kept_in_a_table(*sizes: int) -> tuple[int, ...]:
    return TABLE.setdefault(sizes, sizes)


def calls_a_cached_function(*sizes: int) -> tuple[int, ...]:
    return cached_globally(*sizes)


class Splits:
    @staticmethod
    @functools.lru_cache
    def sizes(*sizes: int) -> tuple[int, ...]:
        return sizes


def cached_locally() -> Callable[..., tuple[int, ...]]:
    return functools.lru_cache(lambda *sizes: sizes)


def behind_a_closure() -> Callable[..., tuple[int, ...]]:
    cached = cached_locally()
    return lambda *sizes: cached(*sizes)


class Calls(Attention):
    """Attention that calls a function with a cache by its name, as most code does."""

    def forward(self, x: Tensor) -> Tensor:
        heads, width = self.read(self.held)
        sizes = NAMED(*x.shape[:2], heads, width)
        q, k, v = (t.view(sizes).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return x + self.out(((q @ k.mT * 0.35).softmax(-1) @ v).transpose(1, 2).flatten(2))


NAMED: Callable[..., Any] = cached_globally
CACHES = {
    "global": lambda: cached_globally,
    "called by another": lambda: calls_a_cached_function,
    "of a class": lambda: Splits.sizes,
    "closure": behind_a_closure,
}


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "called before"])
@pytest.mark.parametrize("kind", CACHES)
def test_layers_of_one_width_behind_a_function_with_a_cache_get_their_own_sizes(
    kind: str, warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "NAMED", CACHES[kind]())
    for _ in range(2):  # the second model of a process
        net = nn.Sequential(*(Calls({"h": 4, "w": 6}, lambda held: (held["h"], held["w"])) for _ in range(2)))
        if warm:
            net.double()(torch.randn(2, 5, 24, dtype=torch.float64))
        small = of_class(net, ratio={"0.qkv:heads": 0.5, "1.qkv:heads": 0.25})
        assert [block.held["h"] for block in small] == [2, 3]


def test_layers_of_one_width_behind_a_table_get_their_own_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "NAMED", kept_in_a_table)
    for _ in range(2):
        TABLE.clear()
        net = nn.Sequential(*(Calls({"h": 4, "w": 6}, lambda held: (held["h"], held["w"])) for _ in range(2)))
        small = of_class(net, ratio={"0.qkv:heads": 0.5, "1.qkv:heads": 0.25})
        assert [block.held["h"] for block in small] == [2, 3]


def test_heads_stay_where_a_table_with_their_number_was_filled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "NAMED", kept_in_a_table)
    net = nn.Sequential(*(Calls({"h": 4, "w": 6}, lambda held: (held["h"], held["w"])) for _ in range(2)))
    net.double()(torch.randn(2, 5, 24, dtype=torch.float64))
    said = r"channels stay at the model, in 0 \(.*\): RuntimeError: shape"
    with pytest.warns(fxprune.NothingRemovedWarning, match=said):
        of_class(net, ratio=0.5)


class WithCachedMethod(nn.Module):
    """A module with a cache of its own around one of its methods."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(24, 72), nn.Linear(24, 24)
        self.sizes = functools.lru_cache(maxsize=8)(self._sizes)

    def _sizes(self, batch: int, tokens: int) -> tuple[int, ...]:
        return batch, tokens, self.heads, -1

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.view(self.sizes(*x.shape[:2])).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return x + self.out(((q @ k.mT * 0.35).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_a_cached_method_of_the_small_model_reads_the_small_model() -> None:
    net = WithCachedMethod()
    small = of_class(net, ratio=0.5)
    assert (small.heads, small.sizes(1, 2), net.sizes(1, 2)) == (2, (1, 2, 2, -1), (1, 2, 4, -1))


# -- the functions themselves -----------------------------------------------------------------------------


def test_settings_are_marked_read_written_and_named_by_their_keys() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.sizes = 4, (1, 8, [16])
            self.axes = {"h": 3, "unused": True, "big": list(range(1000))}

    net = nn.Sequential(Net())
    found: dict[Any, int] = {}

    def marked(value: int, setting: Any) -> int:
        found[setting] = value
        return value

    mark_settings(copy.deepcopy(net), marked)
    assert {name_of(setting): value for setting, value in found.items()} == {
        "0.heads": 4,
        "0.sizes[1]": 8,
        "0.sizes[2][0]": 16,
        "0.axes['h']": 3,
    }
    for setting, value in found.items():
        assert read_setting(net, setting) == value
        write_setting(net, setting, value + 1)
        assert read_setting(net, setting) == value + 1
    assert (net[0].heads, net[0].sizes, net[0].axes["h"]) == (5, (1, 9, [17]), 4)
