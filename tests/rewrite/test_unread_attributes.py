"""Attributes that forward does not read, but other methods do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.rewrite import unread_attributes


class Split(nn.Module):
    """A block whose other method reads a width that forward takes from its input."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.c = width
        self.first, self.inner = nn.Conv2d(3, 2 * width, 1), nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(3 * width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.joined(list(self.first(x).chunk(2, 1)))

    def forward_split(self, x: Tensor) -> Tensor:
        return self.joined(list(self.first(x).split((self.c, self.c), 1)))

    def joined(self, parts: list[Tensor]) -> Tensor:
        return self.last(torch.cat([*parts, self.inner(parts[-1])], 1))


class TwoWidths(nn.Module):
    """Two layers of one width, which shrink to different ones, and an attribute that may count either."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class Repeats(nn.Module):
    """An attribute with the number of a width, which forward reads as the number of repetitions."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 6
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.depth):
            x = self.b(torch.relu(self.a(x)))
        return x


def test_an_attribute_that_only_another_method_reads_follows_the_width_of_its_layers() -> None:
    model, x = Split().eval(), torch.randn(1, 3, 8, 8)
    small = fxprune.transform(model, x, ratio=0.5, path="eager")
    assert (small.c, model.c) == (8, 16)
    assert torch.equal(small.forward_split(x), small(x))
    (reason,) = (text for text in fxprune.record(small).reasons if text.startswith("c "))
    assert "was 16 and is 8 now: forward does not read this attribute" in reason


def test_the_layers_nearest_to_the_module_say_what_its_attribute_counts() -> None:
    model, x = nn.Sequential(Split(8), nn.Conv2d(4, 16, 1), Split2(16)).eval(), torch.randn(1, 3, 8, 8)
    small = fxprune.transform(model, x, ratio=0.5, path="eager")
    assert (small.get_submodule("0").c, small.get_submodule("2").width) == (4, 8)


class Split2(nn.Module):
    """A block with an attribute that counts the channels of its input, and layers of other widths inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.a, self.inner = nn.Conv2d(width, 6, 1), nn.Sequential(nn.Conv2d(6, 16, 1), nn.Conv2d(16, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.a(x))


class Part(nn.Module):
    """A block whose inside has the width of what goes in, and one that shrinks otherwise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.a, self.b = nn.Conv2d(width, half, 1), nn.Conv2d(width, half, 1)
        self.out = nn.Conv2d(2 * half, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.a(x), self.b(x)], 1)).relu()


class SplitOverParts(Split):
    """A `Split` whose inner layer is a list of blocks."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.inner = nn.Sequential(Part(width))


@pytest.mark.parametrize(("outside", "inside"), [(0.5, 0.25), (0.25, 0.5), (0.25, 0)])
def test_what_a_block_hands_to_its_parts_decides_where_their_layers_disagree(outside: float, inside: float) -> None:
    model, x = SplitOverParts().eval(), torch.randn(1, 3, 8, 8)
    ratio = {"first": outside, "inner.0.out": outside, "inner.0.a": inside, "inner.0.b": inside}
    small = fxprune.transform(model, x, ratio=ratio, path="eager")
    assert small.c == 16 * (1 - outside)
    assert torch.equal(small.forward_split(x), small(x))
    assert any("had the width of the layer inner and follows it" in reason for reason in fxprune.record(small).reasons)


def test_an_attribute_stays_and_is_named_where_layers_of_its_width_shrink_differently() -> None:
    model, x = TwoWidths().eval(), torch.randn(2, 4)
    small = fxprune.transform(model, x, ratio={"a": 0.5, "b": 0.25}, path="eager")
    assert small.width == 12
    (reason,) = fxprune.record(small).reasons
    assert reason.startswith("width stays 12, although layers of that width have 6 or 9 now"), reason


def test_an_attribute_that_forward_uses_otherwise_stays_and_is_named() -> None:
    small = fxprune.transform(Repeats().eval(), torch.randn(2, 4), ratio=0.5, path="eager")
    assert small.depth == 6
    (reason,) = fxprune.record(small).reasons
    assert reason.startswith("depth stays 6")
    assert "forward reads it" in reason


class Plain(nn.Module):
    """Two layers, and an attribute with the width between them."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def test_a_hook_that_reads_an_attribute_counts_as_forward() -> None:
    def repeated(module: Plain, args: tuple[Tensor]) -> Tensor:
        return args[0] * sum(1 for _ in range(module.width))

    model = Plain().eval()
    model.register_forward_pre_hook(repeated)
    small = fxprune.transform(model, torch.randn(2, 4), ratio=0.5, path="eager")
    assert (small.width, small.a.out_features) == (6, 3)


def test_attributes_of_layers_of_a_derived_class_are_no_widths_of_others() -> None:
    class Own(nn.Linear):
        """A layer of the user's own."""

    model = nn.Sequential(Own(4, 8), nn.ReLU(), Own(8, 8), Own(8, 2)).eval()
    small = fxprune.transform(model, torch.randn(2, 4), ratio={"0": 0.5}, path="eager")
    layers = [small.get_submodule(name) for name in ("0", "2")]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(4, 4), (4, 8)]
    assert fxprune.record(small).reasons == ()


class Heads(nn.Module):
    """A layer without parameters that says itself how it is copied, as those of einops do: by its first arguments."""

    def __init__(self, **axes: int) -> None:
        super().__init__()
        self.axes, self._axes = axes, tuple(axes.items())

    def __getstate__(self) -> dict[str, Any]:
        return {"axes": self.axes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state["axes"])

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (dict(self._axes)["heads"], -1)).transpose(-2, -3)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(5, 24), nn.Linear(5, 24), nn.Linear(24, 3)
        self.split = Heads(heads=4)

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.split(self.query(x)), self.split(self.key(x))
        scores = (query @ key.transpose(-2, -1)).softmax(-1)
        return self.out((scores @ key).transpose(-2, -3).flatten(-2))


def halved(module: nn.Module, arguments: Any, result: Tensor) -> Tensor:
    return result / 2


@pytest.mark.parametrize("training", [False, True])
def test_a_layer_that_says_how_it_is_copied_keeps_its_numbers_mode_and_hooks(training: bool) -> None:
    model, x = Attention().train(training), torch.randn(2, 7, 5)
    model.split.register_forward_hook(halved)
    small = fxprune.transform(model, x, ratio=0.4, importance="random", exact=True, path="eager")
    assert small.split.axes == {"heads": 3}
    assert small.split._axes == (("heads", 3),)
    assert small.split.training == training
    assert list(small.split._forward_hooks.values()) == [halved]
    assert any("split.axes['heads'] was 4 and is 3 now" in reason for reason in fxprune.record(small).reasons)
    reference = fxprune.masked(model, fxprune.record(small).removed)
    assert reference.split.training == training
    torch.testing.assert_close(small(x), reference(x))
    copied = copy.deepcopy(small)
    copied.split.register_forward_hook(halved)  # its own copies have no hooks
    torch.testing.assert_close(copied(x), small(x))


class TwoNumbers(nn.Module):
    """An attribute with the name of another one, in which other numbers stand."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self._sizes = (4, 7), (4, 6)
        self.first, self.last = nn.Linear(5, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        heads, width = self._sizes
        return self.last(self.first(x).view(-1, heads, width).sin().flatten(1))


def test_an_attribute_of_the_same_name_with_other_numbers_stays() -> None:
    model, x = TwoNumbers().eval(), torch.randn(2, 5)
    small = fxprune.transform(model, x, masks={"first": torch.arange(24) // 6 != 1}, path="eager")
    assert (small._sizes, small.sizes) == ((3, 6), (4, 7))


class Adapted(nn.Module):
    """A wrapper with the attributes of its layer, whose two widths had one number."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.in_features, self.out_features = layer, layer.in_features, layer.out_features
        self.down, self.up = nn.Linear(layer.in_features, 2, bias=False), nn.Linear(2, layer.out_features, bias=False)
        self.down, self.up = nn.ModuleDict({"default": self.down}), nn.ModuleDict({"default": self.up})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up["default"](self.down["default"](x))


@pytest.mark.parametrize("widths", [(12, 12), (12, 8)])
def test_a_wrapper_has_the_attributes_of_its_layer_and_nothing_is_said(widths: tuple[int, int]) -> None:
    net = nn.Sequential(
        *(nn.Linear(3, widths[0]), nn.ReLU(), Adapted(nn.Linear(*widths)), nn.ReLU(), nn.Linear(widths[1], 2)),
    ).eval()
    small: Any = fxprune.transform(net, torch.randn(2, 3), counts={"0": 5, "2.base_layer": 7})
    layer = small[2].base_layer
    assert (layer.in_features, layer.out_features) == (small[2].in_features, small[2].out_features) == (5, 7)
    assert not any("forward does not read it" in reason for reason in fxprune.record(small).reasons)


def test_an_attribute_that_two_layers_have_is_not_taken_from_one() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.a, self.b = 12, nn.Linear(12, 4), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    net = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), Both()).eval()
    small: Any = fxprune.transform(net, torch.randn(2, 3), counts={"0": 5})
    assert small[2].in_features == 5
    assert any("in_features was 12 and is 5 now" in reason for reason in fxprune.record(small).reasons)


def test_a_sentence_names_a_layer_or_leaves_the_place_out() -> None:
    """The model itself has no path."""
    counts = unread_attributes._Width(0, "", {33}), unread_attributes._Width(0, "up", {33})
    own, below = (unread_attributes._stays(("", "dim", ()), 48, found, "why") for found in counts)
    assert own.endswith("dim stays 48, although layers of that width have 33 now: why")
    assert below.endswith("have 33 now (up): why")


class Streams(nn.Module):
    """A block with a kernel as wide as one of its layers; another method keeps as many steps as the kernel has."""

    def __init__(self, *, listed: bool) -> None:
        super().__init__()
        self.steps, self.parts = 4, 16
        self.a, self.narrow, self.b = nn.Linear(3, 16), nn.Linear(16, 4), nn.Linear(4, 2)
        conv = nn.Conv1d(16, 16, 4, groups=16, padding=3)
        self.convs = nn.ModuleList([conv]) if listed else conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.convs[0] if isinstance(self.convs, nn.ModuleList) else self.convs
        h = conv(self.a(x).transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        return self.b(torch.relu(self.narrow(torch.relu(h))))

    def state(self) -> Tensor:
        return torch.zeros(1, self.parts, self.steps)


@pytest.mark.parametrize("listed", [True, False])
def test_what_equals_a_kernel_size_too_stays_and_is_named(listed: bool) -> None:
    small = fxprune.transform(Streams(listed=listed).eval(), torch.randn(2, 6, 3), ratio=0.5)
    assert small.narrow.out_features == 2
    assert small.state().shape == (1, 8, 4), "16 parts are groups too, which have followed"
    place = "convs.0" if listed else "convs"
    said = f"kernel_size of {place} is 4 too, which it may count instead"
    assert f"steps stays 4, although layers of that width have 2 now (narrow): {said}" in fxprune.record(small).reasons
