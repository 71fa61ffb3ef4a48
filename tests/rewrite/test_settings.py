"""Settings and sizes that forward computes with: the small model keeps its class, and its settings fit its widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from tests.support import randomise, relative_error

RATIOS: tuple[tuple[Any, str], ...] = ((0.5, "l2"), (0.3, "random"), (0.4, "l1"))


class Attention(nn.Module):
    """Separate projections, 4 heads of 6; `heads` and `merge` say how forward computes the sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.dim = 4, 6, 24
        self.q, self.k, self.v, self.o = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = (self.heads(t, k).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.4).transpose(1, 2)
        return self.o(self.merge(y))

    def check(self, x: Tensor) -> None:
        """Compares nothing."""

    def heads(self, t: Tensor, k: Tensor) -> Tensor:
        return t.view(*t.shape[:2], self.num_heads, self.head_dim)

    def merge(self, y: Tensor) -> Tensor:
        return y.reshape(*y.shape[:2], self.num_heads * self.head_dim)


class SumOfProducts(Attention):
    def merge(self, y: Tensor) -> Tensor:
        half = self.num_heads // 2
        return y.reshape(*y.shape[:2], half * self.head_dim + self.head_dim * (self.num_heads - half))


class Halves(Attention):
    """The product is a factor of another number, which `split` takes."""

    def merge(self, y: Tensor) -> Tensor:
        doubled = torch.cat([y.flatten(2)] * 2, -1)
        return doubled.split(self.num_heads * self.head_dim, -1)[1]


class Zeros(Attention):
    """A new tensor has the product as its width."""

    def merge(self, y: Tensor) -> Tensor:
        return y.flatten(2) + torch.zeros(y.shape[0], 1, self.num_heads * self.head_dim, dtype=y.dtype)


class AnotherShape(Attention):
    """The width of the heads of keys is that of the values, too."""

    def heads(self, t: Tensor, k: Tensor) -> Tensor:
        return t.view(t.shape[0], -1, self.num_heads, k.shape[-1] // self.num_heads)


class AnotherSize(Attention):
    def heads(self, t: Tensor, k: Tensor) -> Tensor:
        return t.unflatten(-1, (self.num_heads, k.size(-1) // self.num_heads))

    def merge(self, y: Tensor) -> Tensor:
        return y.reshape(y.size(0), y.size(1), y.size(-1) * y.size(2))


class KeptForLater(Attention):
    """An attribute that forward computes."""

    def heads(self, t: Tensor, k: Tensor) -> Tensor:
        self.width = k.shape[-1] // self.num_heads
        return t.view(t.shape[0], -1, self.num_heads, self.width)

    def merge(self, y: Tensor) -> Tensor:
        return y.reshape(*y.shape[:2], self.num_heads * self.width)


class Checked(Attention):
    def check(self, x: Tensor) -> None:
        if x.shape[-1] != self.dim:
            raise ValueError("another width")
        assert self.dim >= self.head_dim


ATTENTIONS = (Attention, SumOfProducts, Halves, Zeros, AnotherShape, AnotherSize, KeptForLater, Checked)


class Wide(nn.Module):
    """A layer that makes 32 channels, code of the class, and a layer that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.groups, self.state = 16, 2, 4
        self.stem, self.up = nn.Linear(5, 12), nn.Linear(12, 32)
        self.down = nn.Linear(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.middle(self.up(torch.relu(self.stem(x)))))

    def middle(self, y: Tensor) -> Tensor:
        raise NotImplementedError


class SplitByASum(Wide):
    """The parts of a Mamba projection: inner, and two for each group of states."""

    def middle(self, y: Tensor) -> Tensor:
        a, b = y.split([self.inner, 2 * self.groups * self.state], -1)
        return torch.cat([a.relu(), b.tanh()], -1)


class SplitByADifference(Wide):
    def middle(self, y: Tensor) -> Tensor:
        width = 2 * self.inner
        a, b = y.split([width - self.state, self.state], -1)
        return torch.cat([a.relu(), b.tanh()], -1)


class SliceByAProduct(Wide):
    def middle(self, y: Tensor) -> Tensor:
        start = self.groups * self.state
        return torch.cat([y[..., :start].relu(), y[..., start:].tanh()], -1)


class SliceFromTheEnd(Wide):
    def middle(self, y: Tensor) -> Tensor:
        return torch.cat([y[..., : -self.inner].relu(), y[..., -self.inner :].tanh()], -1)


class SliceObject(Wide):
    def middle(self, y: Tensor) -> Tensor:
        first = slice(self.inner)
        return torch.cat([y[..., first].relu(), y[..., self.inner :].tanh()], -1)


class Half(Wide):
    def middle(self, y: Tensor) -> Tensor:
        a, b = y.split(y.shape[-1] // 2, -1)
        return torch.cat([a.relu(), b.tanh()], -1)


class Ratio(Wide):
    """A part of a width, by a float."""

    def middle(self, y: Tensor) -> Tensor:
        part = round(self.inner * 0.5)
        a, b, c = y.split([part, part, self.inner], -1)
        return torch.cat([a.relu(), b.tanh(), c], -1)


class Third(Wide):
    """A quotient that does not come out even."""

    def middle(self, y: Tensor) -> Tensor:
        part = math.floor(self.inner / 3)
        return torch.cat([y[..., :part].relu(), y[..., part:].tanh()], -1)


WIDES = (SplitByASum, SplitByADifference, SliceByAProduct, SliceFromTheEnd, SliceObject, Half, Ratio, Third)


class Compared(nn.Module):
    """A convolution that halves the size, behind a comparison of its width."""

    def __init__(self, check: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.channels, self.check = 16, check
        self.a, self.down, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, 2, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if not self.check(self, x):
            x = x * 2
        return self.b(self.down(x))


CHECKS: dict[str, tuple[Callable[[Any, Tensor], Any], int, int]] = {
    "equal": (lambda m, x: x.shape[1] == m.channels, 12, 12),
    "unequal": (lambda m, x: (m.channels != x.size(1)) is False, 12, 12),
    "twice": (lambda m, x: 2 * x.shape[1] <= 2 * m.channels, 12, 16),
    "in a tuple": (lambda m, x: x.shape[1:2] == (m.channels,), 12, 12),
    "wider than a number": (lambda m, x: x.shape[1] > 13, 14, 16),
    "a multiple": (lambda m, x: x.shape[1] % 8 == 0, 16, 16),
    "false": (lambda m, x: x.shape[1] < 14, 14, 16),
    "true as a number": (lambda m, x: x.shape[1] // m.channels, 16, 16),
}


def ready(model: nn.Module) -> nn.Module:
    return randomise(model.eval(), 0).double()


def error_of(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return relative_error(small(x), fxprune.masked(model, fxprune.record(small).removed)(x))


@pytest.mark.parametrize(("ratio", "importance"), RATIOS)
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_heads_and_head_width_shrink_together(kind: type[Attention], ratio: float, importance: str) -> None:
    model, x = ready(kind()), torch.randn(2, 5, 24).double()
    small: Any = fxprune.transform(model, x, ratio=ratio, importance=importance, seed=0, path="eager")
    heads, inner = small.num_heads, small.q.out_features
    assert 1 <= heads < 4
    assert inner % heads == 0
    assert inner // heads < 6
    assert small.v.out_features == inner
    assert error_of(model, small, x) < 1e-9
    assert error_of(model, small, torch.randn(3, 7, 24).double()) < 1e-9


def test_heads_alone_shrink_where_the_product_is_read() -> None:
    model, x = ready(Attention()), torch.randn(2, 5, 24).double()
    small: Any = fxprune.transform(model, x, ratio={"*:heads": 0.5}, path="eager")
    assert (small.num_heads, small.head_dim, fxprune.record(small).params) == (2, 6, (2400, 1212))
    (reason,) = fxprune.record(small).reasons
    assert reason.startswith("dim stays 24, although layers of that width have 12 or 24 now"), (
        "forward does not read it"
    )
    assert error_of(model, small, x) < 1e-9


@pytest.mark.parametrize(("ratio", "importance"), RATIOS)
@pytest.mark.parametrize("kind", WIDES)
def test_parts_made_of_several_settings_shrink(kind: type[Wide], ratio: float, importance: str) -> None:
    model, x = ready(kind()), torch.randn(6, 5).double()
    small: Any = fxprune.transform(model, x, ratio=ratio, importance=importance, seed=0, path="eager")
    assert small.stem.out_features < 12
    assert small.up.out_features < 32
    assert error_of(model, small, x) < 1e-9


@pytest.mark.parametrize("check", CHECKS)
def test_a_comparison_of_widths_comes_out_as_it_did(check: str) -> None:
    function, width, channels = CHECKS[check]
    model, x = ready(Compared(function)), torch.randn(1, 3, 9, 9).double()
    small: Any = fxprune.transform(model, x, ratio=0.3, path="eager")
    assert (small.a.out_channels, small.channels) == (width, channels)
    assert small.down.out_channels == 12
    assert error_of(model, small, x) < 1e-9


def test_the_reason_names_the_setting_its_places_and_the_numbers() -> None:
    model, x = ready(Compared(CHECKS["wider than a number"][0])), torch.randn(1, 3, 9, 9).double()
    reason, unread = fxprune.record(fxprune.transform(model, x, ratio=0.3, path="eager")).reasons
    assert unread.startswith("channels stays 16, although layers of that width have 12 or 14 now")
    assert "the comparison by > in the model (" in reason
    assert "test_settings.py:" in reason
    assert "needs the result True" in reason


def test_no_mark_is_left_in_the_small_model_or_the_original() -> None:
    model, x = ready(KeptForLater()), torch.randn(2, 5, 24).double()
    small: Any = fxprune.transform(model, x, ratio=0.5, path="eager")
    small(x)
    for part in (model, small):
        assert {type(value) for value in vars(part).values() if isinstance(value, int)} == {int, bool}


class _WrittenOnce(nn.Module):
    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self) and name != "training":
            raise AttributeError(f"{name} is constant")
        super().__setattr__(name, value)


class OnceLinear(_WrittenOnce, nn.Linear):
    pass


class Once(_WrittenOnce):
    """A width in attributes that can be written once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = OnceLinear(6, 16), OnceLinear(16, 4)
        self.width, self.sizes = 16, (16,)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(self.a(x).relu().view(-1, self.width).view(-1, self.sizes[0]))
        return y


class Sealed(Once):
    """No attribute can be set any more, not even the mode."""

    def __init__(self) -> None:
        super().__init__()
        vars(self)["sealed"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        if vars(self).get("sealed"):
            raise RuntimeError("this model is sealed")
        super().__setattr__(name, value)


class WithoutSetter(Once):
    @property
    def width(self) -> int:
        width: int = vars(self)["width"]
        return width

    @width.setter
    def width(self, value: int) -> None:
        if "width" in vars(self):
            raise AttributeError("property 'width' has no setter")
        vars(self)["width"] = value


@pytest.mark.parametrize("kind", [Once, Sealed, WithoutSetter])
def test_a_setting_that_its_class_does_not_let_be_written_is_recounted(kind: type[Once]) -> None:
    model, x = kind().double(), torch.randn(3, 6).double()
    small: Any = fxprune.transform(model, x, ratio=0.5, path="eager")
    assert type(small) is kind
    assert (small.width, small.sizes, small.a.out_features, model.width) == (8, (8,), 8, 16)
    reference = fxprune.masked(model, fxprune.record(small).removed)
    assert relative_error(reference(x), small(x)) < 1e-9
