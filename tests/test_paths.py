"""The paths: which one is taken, why another is not, and that each is right or refuses."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import prune

import fxprune
from fxprune.capture.captured import Captured, FrontEnd, captured_graph
from fxprune.paths import PATHS, most_useful_error, paths_for, try_in_turn, without_hooks
from tests.support import randomise, relative_error

BATCH, TIME, WIDTH, HEADS = 2, 5, 24, 4
without_one = pytest.mark.filterwarnings("ignore:.*is not of size 1 in dimension:fxprune.errors.FixedSizesWarning")
"""Graphs that are exported with a batch take no batch of one; tests/capture/test_size_ranges.py sees the warning."""


class Attention(nn.Module):
    """Self-attention that cannot be traced symbolically, with its sizes in attributes."""

    def __init__(self, inconsistent: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.split_size = HEADS, WIDTH // HEADS, WIDTH
        self.inconsistent = inconsistent
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        if self.inconsistent:
            shape = (*x.shape[:-1], self.num_heads, x.shape[-1] // len(range(self.num_heads)))
        q, k, v = (t.view(shape).transpose(1, 2) for t in self.qkv(x).split(self.split_size, -1))
        scores = (q @ k.mT * 0.3).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).flatten(2))


class Net(nn.Module):
    """Embedding, attention in a residual, a head; a dict comes out."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed, self.block = nn.Embedding(30, WIDTH), Attention(**options)
        self.head = nn.Sequential(nn.Linear(WIDTH, 10), nn.ReLU(), nn.Linear(10, 7))

    def forward(self, ids: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        x = self.embed(ids)
        return {"logits": self.head(x + scale * self.block(x))}


def ids() -> dict[str, Any]:
    return {"ids": torch.randint(0, 30, (BATCH, TIME)), "scale": 0.7}


def double(model: nn.Module, seed: int = 0) -> nn.Module:
    return randomise(model.eval(), seed).double()


def is_exact(model: nn.Module, small: nn.Module, inputs: Any) -> bool:
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    reference = fxprune.masked(model, fxprune.record(small).removed)
    with torch.no_grad():
        return relative_error(small(*args, **kwargs), reference(*args, **kwargs)) < 1e-9


def test_a_model_that_no_tracer_takes_keeps_its_class() -> None:
    model, inputs = double(Net()), ids()
    small = fxprune.transform(model, inputs, ratio=0.5)
    record = fxprune.record(small)
    assert (type(small), record.path, list(record.why_not)) == (Net, "eager", [])
    assert isinstance(small, Net)
    assert (small.block.qkv.out_features, small.block.head_dim, small.block.split_size) == (3 * 2 * 3, 3, 6)
    assert is_exact(model, small, inputs)
    assert fxprune.verify(model, small, {"ids": torch.randint(0, 30, (3, 8))}) < 1e-9


def test_the_original_is_only_read() -> None:
    model, inputs = double(Net()), ids()
    before, settings = copy.deepcopy(model.state_dict()), dict(model.block.__dict__)
    fxprune.transform(model, inputs, ratio=0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {k: v for k, v in model.block.__dict__.items() if isinstance(v, int)} == {
        k: v for k, v in settings.items() if isinstance(v, int)
    }
    assert type(model.block.num_heads) is int


def test_nothing_global_is_left_behind() -> None:
    fxprune.transform(double(Net()), ids(), ratio=0.5)
    assert not torch_module._has_any_global_hook()
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_size_that_comes_out_wrong_leads_to_the_next_path() -> None:
    """The width of the residual stream, divided by the number of heads, is not the width of the heads which are left.

    Nothing shows that `len(range(self.num_heads))` is the number of heads.
    """
    model, inputs = double(Net(inconsistent=True)), ids()
    with pytest.warns(fxprune.ClassLostWarning, match="the result is a graph, no Net: the class would lose"):
        small = fxprune.transform(model, inputs, ratio=0.5)
    record = fxprune.record(small)
    assert record.path == "export"
    assert "block" in record.why_not["eager"]
    assert is_exact(model, small, inputs)


def test_a_class_that_cannot_shrink_fully_shrinks_as_far_as_it_can() -> None:
    model, inputs = double(Net(inconsistent=True)), ids()
    small = fxprune.transform(model, inputs, ratio=0.5, path="eager")
    record = fxprune.record(small)
    assert type(small) is Net
    assert any("channels stay at" in reason for reason in record.reasons)
    assert is_exact(model, small, inputs)


@pytest.mark.parametrize(("prefer", "path"), [("class", "eager"), ("graph", "fx"), (None, "eager")])
def test_prefer_chooses_the_first_path(prefer: str | None, path: str) -> None:
    model = double(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    x = torch.randn(3, 4, dtype=torch.float64)
    small = fxprune.transform(model, x, ratio=0.5, prefer=prefer)
    assert fxprune.record(small).path == path
    assert isinstance(small, fx.GraphModule) is (path == "fx")
    assert fxprune.record(small).why_not == {}
    assert is_exact(model, small, x)


class Unrolled(Net):
    """Its own forward goes through the batch, so that no symbolic trace is possible."""

    def forward(self, ids: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        rows = [super(Unrolled, self).forward(row[None], scale)["logits"] for row in ids]
        return {"logits": torch.cat(rows)}


def test_prefer_graph_keeps_a_part_whole_that_cannot_be_traced() -> None:
    model, inputs = double(Net()), ids()
    small = fxprune.transform(model, inputs, ratio=0.5, prefer="graph")
    assert fxprune.record(small).path == "fx"
    assert isinstance(small.get_submodule("block"), Attention)
    assert is_exact(model, small, inputs)


def test_prefer_graph_exports_what_cannot_be_traced() -> None:
    model, inputs = double(Unrolled()), ids()
    with pytest.warns(fxprune.FixedSizesWarning, match="keeps its size"):  # the loop over the batch is unrolled
        small = fxprune.transform(model, inputs, ratio=0.5, prefer="graph")
    assert (fxprune.record(small).path, list(fxprune.record(small).why_not)) == ("export", ["fx"])
    assert is_exact(model, small, inputs)


class Rolls(nn.Module):
    """A shift by a literal: it runs on any width, and is wrong on a smaller one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 100:
            raise ValueError("too many")
        h = self.a(x)
        return self.b(torch.cat([h[..., 6:], h[..., :6]], -1).relu())


@without_one
def test_a_shrink_that_runs_and_is_wrong_is_caught() -> None:
    """Slices past the end do not raise and the shapes agree: only the operations inside and the numbers show it."""
    model, x = double(Rolls()), torch.randn(3, 4, dtype=torch.float64)
    masks = {"a": torch.tensor([False, False] + [True] * 8 + [False, False])}
    with pytest.warns(fxprune.ClassLostWarning):
        small = fxprune.transform(model, x, masks=masks)
    record = fxprune.record(small)
    assert record.path == "export"
    assert "has to give" in record.why_not["eager"]
    assert is_exact(model, small, x)
    uneven = {"a": torch.tensor([False] * 3 + [True] * 9)}
    with pytest.raises(fxprune.RewriteError):
        fxprune.transform(model, x, masks=uneven, path="eager", strict=True)


class ByPosition(nn.Module):
    """Channels are picked by positions that forward writes down: the shapes agree, whatever went."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 100:
            raise ValueError("too many")
        h = self.a(x)
        if self.way == "roll":
            h = h.roll(2, -1)
        elif self.way == "slice":
            h = torch.cat([h[..., 3:9], h[..., 3:9]], -1)
        elif self.way == "list":
            h = h[:, [11, 0, 2, 1, 3, 5, 4, 6, 7, 8, 9, 10]]
        elif self.way == "select":
            h = h + h[:, 4:5] + h.select(1, 4)[:, None]
        return self.b(h.relu())


@without_one
@pytest.mark.parametrize("way", ["roll", "slice", "list", "select"])
def test_wrong_positions_are_seen_where_shapes_are_right(way: str) -> None:
    model, x = double(ByPosition(way)), torch.randn(3, 4, dtype=torch.float64)
    keep = torch.tensor([False, False, False] + [True] * 9)
    masks = {"a": keep.flip(0) if way == "roll" else keep}
    for verify in (False, True):
        with pytest.warns(fxprune.ClassLostWarning):
            small = fxprune.transform(model, x, masks=masks, verify=verify)
        assert fxprune.record(small).path == "export"
        assert re.search(
            "roll has shifts|slice has start|list of positions|select has index|in the small model, and has to give",
            (fxprune.record(small).why_not["eager"]),
        )
        assert small.get_submodule("a").out_features == 9
        assert is_exact(model, small, x)


class Reverses(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1)


@fxprune.leaf(Reverses)
def reverses(call: Any, x: Any) -> Any:
    """Says that nothing moves, which is wrong."""
    return call.operand(x.vectors, x.zero)


def test_a_model_that_is_wrong_only_in_numbers_is_caught() -> None:
    model = double(nn.Sequential(nn.Linear(4, 12), Reverses(), nn.ReLU(), nn.Linear(12, 3)))
    x = torch.randn(3, 4, dtype=torch.float64)
    masks = {"0": torch.tensor([True] * 11 + [False])}
    for path in ("fx", "eager"):
        with pytest.raises(fxprune.VerificationError, match='group "0"'):
            fxprune.transform(model, x, masks=masks, path=path)
    with pytest.warns(fxprune.ClassLostWarning):
        small = fxprune.transform(model, x, masks=masks)  # an exported graph shows what the module does
    assert fxprune.record(small).path == "export"
    assert "the small model differs from its reference" in fxprune.record(small).why_not["eager"]
    assert is_exact(model, small, x)


class SharedWidth(nn.Module):
    """Two widths that the class can only express as one number."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.a, self.b, self.c, self.d = nn.Linear(4, 16), nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = [*x.shape[:-1]]
        a = self.a(x).view(*rows, -1, self.width).relu()
        b = self.b(x).view(*rows, -1, self.width)
        return self.c(a.flatten(1)) + self.d(b.flatten(1))


def test_a_setting_of_two_widths_keeps_them_equal() -> None:
    model, x = double(SharedWidth()), torch.randn(5, 4, dtype=torch.float64)
    analysis = fxprune.analyze(model, x, path="eager")
    names = {group.name: group for group in analysis.groups if len(group) == 8}
    assert set(names) == {"a", "b"}
    small = fxprune.transform(model, x, ratio={"a:*": 0.5, "b:*": 0.25}, path="eager", exact=True)
    assert small.width == 6
    assert any("width is one number for several widths" in reason for reason in fxprune.record(small).reasons)
    assert is_exact(model, small, x)


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    hidden: torch.Tensor
    cache: Any = None


class Cache:
    def __init__(self, keys: torch.Tensor) -> None:
        self.keys = keys


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, inputs: dict[str, torch.Tensor]) -> Result:
        keys = self.a(inputs["x"] if "x" in inputs else inputs["y"])
        hidden = self.b(keys.relu())
        return Result(self.c(hidden), hidden, Cache(keys))


def test_results_are_looked_into_and_state_is_not() -> None:
    model = double(Structured())
    inputs = {"inputs": {"x": torch.randn(3, 4, dtype=torch.float64)}}
    small = fxprune.transform(model, inputs, ratio=0.5)
    record = fxprune.record(small)
    assert record.path == "eager"
    assert (small.a.out_features, small.b.out_features) == (4, 6), "the cache may shrink, a result may not"
    assert any("Cache in the result" in reason for reason in record.reasons)


class Decides(nn.Module):
    """Numbers decide what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(4, 10), nn.Linear(10, 3), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x).relu()
        h = h[x.sum(-1) > -100.0]
        return self.up(h) if float(x.sum()) > 0 else self.down(h)


def test_decisions_by_numbers_are_observed_on_real_tensors() -> None:
    model, x = double(Decides()), torch.rand(5, 4, dtype=torch.float64)
    small = fxprune.transform(model, x, ratio=0.5)
    record = fxprune.record(small)
    assert record.path == "eager"
    assert small.down.in_features == 10
    notes = " ".join(record.reasons)
    assert "decides by numbers" in notes
    assert "not reached on the example inputs, and left as they are: down.weight, down.bias" in notes
    both = fxprune.transform(model, x, also=[-x], ratio=0.5)
    assert (both.stem.out_features, both.up.in_features, both.down.in_features) == (5, 5, 5)
    assert is_exact(model, both, x)
    assert is_exact(model, both, -x)


class HiddenScale(nn.Module):
    """Decides by numbers, and its scale follows a width; one key alone has the softmax 1, whatever the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.q, self.k, self.out = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = (layer(x).view(x.shape[0], self.width) for layer in (self.q, self.k))
        if float(x.sum()) > 1e6:
            return self.out(x)
        return self.out((q * self.width**-0.5 @ k.mT).softmax(-1) @ x)


def test_a_scale_that_the_example_does_not_show_is_seen_in_its_number() -> None:
    model, x = double(HiddenScale()), torch.randn(1, 4, dtype=torch.float64)
    small = fxprune.transform(model, x, ratio=0.5)
    assert fxprune.record(small).path == "eager"
    assert fxprune.record(small).plan.factors
    assert is_exact(model, small, torch.randn(5, 4, dtype=torch.float64))


class Positions(nn.Module):
    """Reads as many positions as there are, from a table and through a list of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 20, 6))
        self.mix, self.out = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > 20:
            raise ValueError("too long")
        return self.out(self.mix(x + self.table[:, : x.shape[1]]).relu())


@without_one
@pytest.mark.parametrize("path", ["eager", "export"])
def test_positions_beyond_the_example_stay(path: str) -> None:
    model, x = double(Positions()), torch.randn(2, 5, 6, dtype=torch.float64)
    small = fxprune.transform(model, x, ratio=0.5, path=path)
    assert 1 not in fxprune.record(small).removed.get("table", {})
    assert "mix.weight" in fxprune.record(small).removed
    if path == "eager":  # the number of positions of an exported graph may be fixed
        assert is_exact(model, small, torch.randn(3, 17, 6, dtype=torch.float64))


@functools.lru_cache
def cached_table(width: int) -> torch.Tensor:
    return torch.arange(width) * 0.1


class UsesCache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu()) * cached_table(5)


@pytest.mark.parametrize("path", ["fx", "eager", "export"])
def test_function_caches_hold_no_fakes_afterwards(path: str) -> None:
    cached_table.cache_clear()
    model, x = double(UsesCache()), torch.randn(2, 4, dtype=torch.float64)
    small = fxprune.transform(model, x, ratio=0.5, path=path)
    assert cached_table.cache_info().currsize == 0
    assert type(cached_table(5)) is torch.Tensor
    assert is_exact(model, small, x)


class Scaled(nn.Module):
    """Scores divided by a root of the width, written in a way that only numbers show."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.q, self.k, self.out = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 100:
            raise ValueError("too many")
        q, k = self.q(x), self.k(x)
        if self.way == "attention":
            return self.out(F.scaled_dot_product_attention(q, k, x))
        width = q.shape[-1]
        scale = {"float": width**0.5, "tensor": torch.sqrt(torch.tensor(width))}[self.way]
        return self.out((q @ k.mT / scale).softmax(-1) @ x)


@pytest.mark.parametrize("way", ["float", "tensor", "attention"])
def test_a_scale_that_follows_the_width_is_seen_without_weights(way: str) -> None:
    model, x = double(Scaled(way)), torch.randn(5, 4, dtype=torch.float64)
    for verify in (False, True):
        small = fxprune.transform(model, x, ratio=0.5, verify=verify, path="eager")
        factors = [factor.factor for factor in fxprune.record(small).plan.factors]
        exact = way != "tensor"  # the root of a tensor of one integer is a float32
        assert factors == pytest.approx([0.5**0.5] * 2, rel=1e-12 if exact else 1e-7)
        assert small.get_submodule("q").out_features == 6
        assert is_exact(model, small, x)


class Outside(nn.Module):
    """Leaves torch between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Linear(8, 10), nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.from_numpy(abs(self.a(x).detach().numpy())).mean((2, 3))
        assert h.shape[1] == 8
        return self.c(torch.from_numpy(self.b(h).detach().numpy()).relu())


def test_hooks_serve_models_that_no_other_path_serves() -> None:
    model, x = double(Outside()), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    small = fxprune.transform(model, x, ratio=0.5)
    record = fxprune.record(small)
    assert (type(small), record.path) == (Outside, "hooks")
    assert list(record.why_not) == ["eager", "fx", "export"]
    shapes = (small.a.weight.shape[0], small.b.weight.shape, small.c.weight.shape)
    assert shapes == (4, (5, 8), (4, 10)), "results of the model stay, and so do inputs of layers"
    assert is_exact(model, small, x)
    assert fxprune.verify(model, small, torch.randn(1, 3, 7, 7, dtype=torch.float64)) < 1e-9
    again = copy.deepcopy(small)
    assert torch.equal(again(x), small(x))
    assert set(small.state_dict()) == set(model.state_dict())


class UnusedTied(nn.Module):
    """Decides by a number, cuts at a number in its code, and runs code with a tied weight whose result is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.tied, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        h = h[:, :4] + h[:, 4:]
        if float(h.detach().sum()) > -1e9:
            h = h * 2
        nn.functional.linear(self.tied(h.flatten(2).mT).relu(), self.tied.weight.t())
        return self.b(h.permute(0, 2, 3, 1).flatten(1, 2))


@pytest.mark.parametrize("options", [{"path": "eager"}, {"prefer": "class"}])
def test_channels_that_are_all_held_are_no_error_where_forward_decides_by_numbers(options: dict[str, str]) -> None:
    model, x = UnusedTied().eval(), torch.randn(2, 3, 6, 6)
    with pytest.warns(fxprune.NothingRemovedWarning, match="cannot be recounted"):
        small = fxprune.transform(model, x, ratio=0.25, **options)
    assert fxprune.record(small).path == "eager"
    assert torch.equal(small(x), model(x))


class WrittenHeads(nn.Module):
    """Writes the number of heads in its code, so that they are held, and has a layer that is free."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 16), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 12), nn.Linear(12, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.qkv(x).view(*x.shape[:2], 4, 4).softmax(-1)
        return self.down(self.up(self.out(h.flatten(2))).relu())


def _named(analysis: fxprune.Analysis, parameter: str) -> list[str]:
    return [g.name for g in analysis.groups if any(m.parameter == parameter for m in g.members)]


@pytest.mark.filterwarnings("ignore:ratio. .qkv. means 2 groups")
@pytest.mark.parametrize("key", ["name", "number"])
def test_a_ratio_may_name_groups_that_are_locked_before_the_plan_is_made_again(key: str) -> None:
    model, x = double(WrittenHeads()), torch.randn(2, 3, 16, dtype=torch.float64)
    analysis = fxprune.analyze(model, x, path="eager")
    heads, free = _named(analysis, "qkv.weight"), _named(analysis, "up.weight")
    numbers = {group.name: group.number for group in analysis.groups}
    names = [*heads, "up" if key == "name" else free[-1]]
    ratio = {name if key == "name" else numbers[name]: 0.5 for name in names}
    small = fxprune.transform(model, x, ratio=ratio, path="eager")
    assert small.up.weight.shape == (6, 16)
    assert small.qkv.weight.shape == (16, 16)
    assert any("channels stay" in reason for reason in fxprune.record(small).reasons)
    assert is_exact(model, small, x)


class OwnLinear(nn.Linear):
    """A class of the user's own, which may do anything with its weight."""


def test_only_plain_layers_that_own_their_weight_alone_shrink_behind_hooks() -> None:
    layers = {
        "plain": nn.Conv2d(4, 4, 1),
        "grouped": nn.Conv2d(4, 4, 1, groups=2),
        "transposed": nn.ConvTranspose2d(4, 4, 1),
        "tied": nn.Conv2d(4, 4, 1),
        "tied_too": nn.Conv2d(4, 4, 1),
        "computed": nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
        "masked": nn.Conv2d(4, 4, 1),
        "flat": nn.Flatten(),
        "own": OwnLinear(36, 8),
        "row": nn.Linear(8, 6),
        "last": nn.Linear(6, 2),
    }
    layers["tied_too"].weight = layers["tied"].weight
    with torch.no_grad():
        prune.identity(layers["masked"], "weight")
    model, x = double(nn.Sequential(OrderedDict(layers))), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    assert [group.name for group in fxprune.analyze(model, x, path="hooks").groups] == ["plain", "row"]
    with torch.no_grad():
        assert is_exact(model, fxprune.transform(model, x, ratio=0.5, path="hooks"), x)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(6, 8), nn.Linear(8, 1), nn.Linear(1, 3)],
        [nn.Linear(6, 1), nn.Linear(1, 8), nn.Linear(8, 3)],
        [nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 1)],
        [nn.Conv2d(6, 8, 1), nn.Conv2d(8, 1, 1, bias=False), nn.Conv2d(1, 3, 1)],
    ],
    ids=["in the middle", "first", "last", "convolution"],
)
def test_a_layer_with_one_output_stays_behind_hooks(layers: list[Any]) -> None:
    model = double(nn.Sequential(*layers))
    x = torch.randn(2, 6, *[5] * (layers[0].weight.ndim - 2), dtype=torch.float64)
    small = fxprune.transform(model, x, ratio=0.5, path="hooks")
    before, after = fxprune.record(small).cost
    assert after.params < before.params
    assert is_exact(model, small, x)


def test_hooks_are_not_taken_for_a_model_that_is_merely_wrong() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x).view(7, 3)

    with pytest.raises(fxprune.CaptureError, match="forward raises"):
        fxprune.transform(Broken(), torch.randn(2, 4), ratio=0.5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"path": "magic"}, "there is no path 'magic'"),
        ({"path": ["fx", "eager"]}, r"there is no path \['fx', 'eager'\]"),
        ({"prefer": "speed"}, "there is no preference 'speed'"),
        ({"prefer": ["class"]}, r"there is no preference \['class'\]"),
        ({"path": "fx", "prefer": "graph"}, "path says already"),
    ],
)
def test_unknown_paths_are_refused_alike_everywhere(options: dict[str, str], text: str) -> None:
    model, x, errors = nn.Linear(4, 4), torch.randn(1, 4), set()
    calls = (fxprune.analyze, fxprune.cost, functools.partial(fxprune.transform, ratio=0.5))
    for function in calls:
        with pytest.raises(fxprune.PlanError, match=text) as caught:
            function(model, x, **options)
        errors.add(str(caught.value))
    assert len(errors) == 1
    assert "path" in options or '"class" or "graph"' in errors.pop()


def test_the_error_of_an_unknown_path_lists_the_paths() -> None:
    with pytest.raises(fxprune.PlanError, match="the paths are eager, fx, export, hooks"):
        fxprune.cost(nn.Linear(4, 4), torch.randn(1, 4), path="magic")


def sequence() -> nn.Module:
    return double(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)))


def points() -> torch.Tensor:
    return torch.randn(3, 4, dtype=torch.float64)


ORDERS = {
    None: ("eager", "fx", "export", "hooks"),
    "graph": ("fx", "export", "eager", "hooks"),
    "class": ("eager", "fx", "export", "hooks"),
}


@pytest.mark.parametrize("prefer", ORDERS)
def test_the_order_of_the_paths(prefer: str | None) -> None:
    model = sequence()
    assert tuple(path.name for path in paths_for(model, None, prefer)) == ORDERS[prefer]
    assert [path.name for path in paths_for(fx.symbolic_trace(model), None, prefer)] == ["fx"]
    assert [path.name for path in paths_for(model, "export", None)] == ["export"]


@pytest.mark.parametrize(
    ("made_on", "prefer", "order"),
    [
        ("eager", None, ("eager", "fx", "export", "hooks")),
        ("export", None, ("export", "eager", "fx", "hooks")),
        ("export", "class", ORDERS["class"]),
        ("eager", "graph", ORDERS["graph"]),
        ("hooks", None, ("hooks",)),
        ("hooks", "graph", ORDERS["graph"]),
        ("", None, ORDERS[None]),
    ],
)
def test_the_path_of_a_plan_comes_first_unless_something_is_preferred(
    made_on: str, prefer: str | None, order: tuple[str, ...]
) -> None:
    assert tuple(path.name for path in paths_for(sequence(), None, prefer, made_on=made_on)) == order


@pytest.mark.parametrize(
    ("path", "answers"),
    [
        ("fx", (False, True, True, False)),
        ("eager", (True, False, True, False)),
        ("export", (False, True, True, False)),
        ("hooks", (True, False, False, True)),
    ],
)
def test_a_captured_model_answers_what_its_path_means(path: str, answers: tuple[bool, ...]) -> None:
    captured = fxprune.analyze(sequence(), points(), path=path).captured
    assert captured.path == path
    assert (captured.keeps_class, captured.has_graph, captured.can_fold, captured.needs_hooks) == answers
    assert isinstance(captured.module, fx.GraphModule) is captured.has_graph


@pytest.mark.parametrize(
    ("options", "of_a_sequence", "of_a_net"),
    [
        ({}, "eager", "eager"),
        ({"prefer": "class"}, "eager", "eager"),
        ({"prefer": "graph"}, "fx", "export"),
        ({"path": "export"}, "export", "export"),
        ({"path": "hooks"}, "hooks", "hooks"),
    ],
)
def test_analyze_takes_path_and_preference(options: dict[str, str], of_a_sequence: str, of_a_net: str) -> None:
    assert fxprune.analyze(sequence(), points(), **options).captured.path == of_a_sequence
    assert fxprune.analyze(double(Unrolled()), ids(), **options).captured.path == of_a_net


@pytest.mark.parametrize(
    "options", [*({"path": path} for path in PATHS), *({"prefer": kind} for kind in ("class", "graph"))]
)
def test_cost_takes_path_and_preference(options: dict[str, str]) -> None:
    model, x = sequence(), points()
    assert fxprune.cost(model, x, **options) == fxprune.cost(model, x)


def test_cost_counts_the_operations_of_the_path_that_is_asked_for() -> None:
    model, inputs = double(Unrolled()), ids()
    own = fxprune.cost(model, inputs)
    assert own == fxprune.cost(model, inputs, path="eager") == fxprune.cost(model, inputs, prefer="class")
    with pytest.raises(fxprune.CaptureError, match="Unrolled cannot be traced"):
        fxprune.cost(model, inputs, path="fx")
    exported = fxprune.cost(model, inputs, prefer="graph")
    assert (exported.params, exported.macs) == (own.params, own.macs)


@pytest.mark.parametrize("path", PATHS)
def test_a_plan_is_carried_out_on_the_path_that_it_was_made_on(path: str) -> None:
    model, x = sequence(), points()
    plan = fxprune.analyze(model, x, path=path).plan(ratio=0.5)
    assert plan.path == path
    small = fxprune.transform(model, x, plan=plan)
    assert (fxprune.record(small).path, fxprune.record(small).why_not) == (path, {})
    assert isinstance(small, fx.GraphModule) is not PATHS[path].keeps_class
    assert is_exact(model, small, x)


def refuses(model: nn.Module, inputs: Any) -> Captured:
    raise AssertionError("this path was tried")


def test_no_path_is_tried_after_a_forward_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PATHS, "export", FrontEnd("export", refuses))
    monkeypatch.setitem(PATHS, "hooks", FrontEnd("hooks", refuses, keeps_class=True, needs_hooks=True))
    model, inputs = nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (7, 3))), torch.randn(2, 4)
    for function in (fxprune.analyze, functools.partial(fxprune.transform, ratio=0.5)):
        with pytest.raises(fxprune.CaptureError, match="forward raises") as caught:
            function(model, inputs)
        assert caught.value.raised
    monkeypatch.setitem(PATHS, "fx", FrontEnd("fx", refuses))
    with pytest.raises(fxprune.CaptureError, match="forward raises"):
        fxprune.cost(model, inputs)


def test_a_request_that_is_wrong_is_wrong_on_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fx", "export", "hooks"):
        monkeypatch.setitem(PATHS, name, FrontEnd(name, refuses))
    model, x = sequence(), points()
    other = fxprune.analyze(nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 2)), torch.randn(3, 4)).plan(ratio=0.5)
    for request in ({"ratio": {"nothing": 0.5}}, {"plan": other}):
        with pytest.raises(fxprune.PlanError):
            fxprune.transform(model, x, **request)


@without_one
def test_a_plan_is_carried_out_on_the_next_path_where_its_own_fails() -> None:
    model, x = double(Rolls()), points()
    plan = fxprune.analyze(model, x, path="export").plan(ratio=0.5)
    small = fxprune.transform(model, x, plan=dataclasses.replace(plan, path="eager"))
    assert (fxprune.record(small).path, list(fxprune.record(small).why_not)) == ("export", ["eager", "fx"])


def failing(errors: dict[str, fxprune.FxpruneError]) -> Callable[[FrontEnd], str]:
    def attempt(path: FrontEnd) -> str:
        if path.name in errors:
            raise errors[path.name]
        return path.name

    return attempt


ALL = tuple(PATHS.values())
CANNOT = fxprune.CaptureError("it cannot")
RAISES = fxprune.CaptureError("it raises", raised=True)
SIZE = fxprune.RewriteError("a size", node="n")


def test_the_first_result_counts_and_errors_before_it_are_kept() -> None:
    outcome = try_in_turn(ALL, failing({"eager": CANNOT}))
    assert (outcome.get(), dict(outcome.errors)) == ("fx", {"eager": CANNOT})
    assert outcome.model_runs
    assert try_in_turn(ALL[2:], failing({}), before=outcome).errors == {"eager": CANNOT}


def test_a_model_that_does_not_run_ends_the_search() -> None:
    outcome = try_in_turn(ALL, failing({"fx": CANNOT, "eager": RAISES}))
    assert (outcome.result, list(outcome.errors), outcome.model_runs) == (None, ["eager"], False)
    with pytest.raises(fxprune.CaptureError, match="it raises"):
        outcome.get()


def test_only_errors_that_say_so_lead_to_the_next_path() -> None:
    errors = {"eager": CANNOT, "fx": SIZE}
    with pytest.raises(fxprune.RewriteError):
        try_in_turn(ALL, failing(errors))
    assert try_in_turn(ALL, failing(errors), goes_on=lambda path, error: error is not RAISES).get() == "export"


@pytest.mark.parametrize(
    ("errors", "telling"),
    [([CANNOT], CANNOT), ([CANNOT, RAISES], RAISES), ([RAISES, SIZE], SIZE), ([SIZE, CANNOT], SIZE)],
)
def test_the_error_that_says_most(errors: list[fxprune.FxpruneError], telling: fxprune.FxpruneError) -> None:
    assert most_useful_error(errors) is telling


def test_hooks_are_tried_only_where_they_are_asked_for() -> None:
    assert [path.name for path in without_hooks(ALL)] == ["eager", "fx", "export"]
    assert [path.name for path in without_hooks(ALL[3:])] == ["hooks"]


def test_a_new_front_end_is_one_line_of_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def capture(model: nn.Module, inputs: Any) -> Captured:
        return captured_graph(flattened, fx.symbolic_trace(model))

    flattened = FrontEnd("flattened", capture)
    monkeypatch.setitem(PATHS, "flattened", flattened)
    model, x = sequence(), points()
    assert fxprune.cost(model, x, path="flattened") == fxprune.cost(model, x)
    small = fxprune.transform(model, x, ratio=0.5, path="flattened")
    assert fxprune.record(small).path == "flattened"
    assert is_exact(model, small, x)
    assert fxprune.verify(model, small, points()) < 1e-9
    fxprune.record(small).plan.save(tmp_path / "plan.json")
    again = fxprune.transform(model, x, plan=fxprune.Plan.load(tmp_path / "plan.json"))
    assert fxprune.record(again).path == "flattened"
    fxprune.save(small, tmp_path / "small.safetensors")
    loaded = fxprune.load(tmp_path / "small.safetensors", into=sequence(), example_inputs=x)
    assert torch.equal(loaded(x), small(x))


class DecidesAndReverses(nn.Module):
    """Decides by a number; one of its layers has a rule that is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.reverses, self.b = nn.Linear(4, 12), Reverses(), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.reverses(self.a(x)).relu()
        return self.b(h if float(x.sum()) < 1e6 else -h)


def test_a_failed_proof_shows_a_public_error() -> None:
    masks = {"a": torch.tensor([True] * 11 + [False])}
    with pytest.raises(fxprune.VerificationError) as caught:
        fxprune.transform(double(DecidesAndReverses()), points(), masks=masks, path="eager")
    assert type(caught.value) is fxprune.VerificationError
    model = double(nn.Sequential(nn.Linear(4, 12), Reverses(), nn.ReLU(), nn.Linear(12, 3)))
    for path in ("fx", "eager"):
        with pytest.raises(fxprune.VerificationError, match='group "0"') as caught:
            fxprune.transform(model, points(), masks={"0": masks["a"]}, path=path)
        assert type(caught.value) is fxprune.VerificationError


def test_a_path_that_is_asked_for_raises_its_own_error() -> None:
    with pytest.raises(fxprune.CaptureError, match="Unrolled cannot be traced"):
        fxprune.transform(Unrolled(), ids(), ratio=0.5, path="fx")
    with pytest.raises(fxprune.InputError, match=r"do not fit Net\.forward"):
        fxprune.transform(Net(), {"tokens": torch.zeros(2, 3).long()}, ratio=0.5, path="eager")


class Opaque(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.weight = width, nn.Parameter(torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] == self.width
        return torch.from_numpy(x.detach().numpy()) * self.weight


@fxprune.leaf(Opaque)
def opaque(call: Any, x: Any) -> Any:
    call.same(x.dim(-1), call.parameter("weight").dim(0))
    call.count("width", x.dim(-1))
    return call.operand(x.vectors, x.zero)


def test_a_leaf_has_its_own_rule() -> None:
    model = double(nn.Sequential(nn.Linear(4, 8), Opaque(8), nn.Linear(8, 3)))
    x = torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(fxprune.CaptureError):  # numpy cannot be asked about fake tensors
        fxprune.analyze(model, x, path="fx")
    small = fxprune.transform(model, x, ratio=0.5)
    assert (small[1].width, small[1].weight.shape) == (4, (4,))
    assert is_exact(model, small, x)


class Wrong(Opaque):
    pass


@fxprune.leaf(Wrong)
def wrong(call: Any, x: Any) -> Any:
    return call.operand(x.vectors[:-1])


def test_a_leaf_rule_that_contradicts_its_module_holds_the_channels() -> None:
    model, x = double(nn.Sequential(nn.Linear(4, 8), Wrong(8), nn.Linear(8, 3))), torch.randn(2, 4).double()
    locked = fxprune.analyze(model, x, path="eager").locked
    assert any(held.event.op == "Wrong" and "its rule failed" in held.event.why for held in locked)
    with pytest.raises(fxprune.RuleError, match="contradicts"):
        fxprune.analyze(model, x, path="eager", strict=True)


def test_a_class_has_one_leaf_rule() -> None:
    with pytest.raises(fxprune.RuleError, match="has a rule already"):
        fxprune.leaf(Opaque)(opaque)


def test_the_comparison_sees_a_wrong_model() -> None:
    model, inputs = double(Net()), ids()
    small = fxprune.transform(model, inputs, ratio=0.5)
    with torch.no_grad():
        small.head[2].bias[0] += 1e-6
    assert not is_exact(model, small, inputs)
