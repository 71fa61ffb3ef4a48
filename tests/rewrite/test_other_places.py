"""Numbers of a model beside the attributes of its modules: in slots, in the items of a dict, on parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from tests.support import relative_error

X = torch.randn(3, 4).double()


class Two(nn.Module):
    """Two layers with 8 channels between them, and a method that forward does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

    def in_heads(self, x):
        return self.a(x).view(len(x), self.the_width(), 1)


class Slots(Two):
    __slots__ = ("width",)

    def __init__(self):
        super().__init__()
        self.width = 8

    def the_width(self):
        return self.width

    def __getstate__(self):
        return self.__dict__, self.width

    def __setstate__(self, state):
        self.__dict__.update(state[0])
        self.width = state[1]


class Items(Two, dict):
    __hash__ = nn.Module.__hash__

    def __init__(self):
        Two.__init__(self)
        self["width"] = 8

    def the_width(self):
        return self["width"]


class Sizes:
    __slots__ = ("width",)

    def __init__(self, width):
        self.width = width


class Helper(Two):
    def __init__(self):
        super().__init__()
        self.sizes = Sizes(8)

    def the_width(self):
        return self.sizes.width


class Reading:
    def forward(self, x):
        return self.b(torch.relu(self.a(x)).view(-1, self.the_width()))


READING = [type(f"Reading{kind.__name__}", (Reading, kind), {"__slots__": ()}) for kind in (Slots, Items, Helper)]


class Body(Two):
    width = 8

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).view(-1, self.width))


@pytest.mark.parametrize("kind", [*READING, Body])
def test_a_file_sets_integers_in_slots_items_helpers_and_class_bodies(kind, tmp_path):
    small = fxprune.transform(kind().double(), X, ratio=0.5)
    fxprune.save(small, tmp_path / "small.safetensors")
    loaded = fxprune.load(tmp_path / "small.safetensors", into=kind().double())
    assert torch.equal(loaded(X), small(X))
    (size,) = [str(size) for size in fxprune.record(small).plan.sizes if "width" in size.name]
    assert (
        size == {"ReadingItems": "['width']", "ReadingHelper": "sizes.width"}.get(kind.__name__, "width") + ": 8 -> 4"
    )


@pytest.mark.parametrize("kind", [Slots, Items, Helper, *READING])
def test_integers_in_slots_items_and_helpers_get_the_new_width(kind):
    model = kind().double()
    small = fxprune.transform(model, X, ratio=0.5)
    assert type(small) is kind
    assert (model.the_width(), small.the_width()) == (8, 4)
    assert relative_error(small(X), fxprune.masked(model, fxprune.record(small).removed)(X)) < 1e-12
    assert small.in_heads(X).shape == (3, 4, 1)
    told = [reason for reason in fxprune.record(small).reasons if "width" in reason and "was 8 and is 4 now" in reason]
    assert bool(told) == (kind not in READING)


@pytest.mark.parametrize("kind", [Slots, Items, Helper])
def test_a_model_that_gets_smaller_in_place_has_them_too(kind):
    model = kind().double()
    fxprune.transform_(model, X, ratio=0.5)
    assert model.in_heads(X).shape == (3, 4, 1)


def test_tensors_on_parameters_are_cut_like_them_or_named():
    model = Two().double()
    weight = model.a.weight
    weight.main_grad, weight.rows, weight.note = torch.arange(32.0).view(8, 4), torch.arange(8), "kept"
    weight.state = {"mask": torch.ones(8)}
    small = fxprune.transform(model, X, masks={"a": torch.tensor([True, False] * 4)})
    new = small.a.weight
    assert torch.equal(new.main_grad, weight.main_grad[::2])
    assert new.note == "kept"
    new.main_grad.zero_()
    assert weight.main_grad.sum() == 496
    reasons = "\n".join(fxprune.record(small).reasons)
    for where in ("rows", r"state['mask']"):
        assert (
            f'the attribute "{where}" of the parameter "a.weight" stays [8], and the parameter is [4, 4] now' in reasons
        )
    new.rows.zero_()
    assert weight.rows.sum() == 28


def test_a_parameter_of_the_model_itself_is_no_layer_without_a_name():
    class Scaled(Two):
        def __init__(self):
            super().__init__()
            self.width = 8
            self.scale = nn.Parameter(torch.rand(8))

        def forward(self, x):
            return self.b(torch.relu(self.a(x)) * self.scale)

    small = fxprune.transform(Scaled().double(), X, ratio=0.5)
    (told,) = fxprune.record(small).reasons
    assert "the width of the model and follows it" in told
