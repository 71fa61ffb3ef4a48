"""Numbers of a model beside the attributes of its modules: in slots, in the items of a dict, on parameters."""

from __future__ import annotations

import copy
import functools
import threading
import types
import weakref

import pytest
import torch
import torch.nn.functional as F
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


ON_PARAMETERS = {
    "tensor": (lambda model: torch.arange(8.0), lambda held, h: h + held),
    "list": (lambda model: [torch.arange(8.0), 2], lambda held, h: h + held[0] * held[1]),
    "object": (
        lambda model: types.SimpleNamespace(shift={"b": torch.arange(8.0)}),
        lambda held, h: h + held.shift["b"],
    ),
    "partial": (
        lambda model: functools.partial(F.linear, weight=model.side.weight),
        lambda held, h: held(h),
    ),
    "layer": (lambda model: [model.side], lambda held, h: h + held[0](h)),
    "method": (lambda model: model.side.forward, lambda held, h: h + held(h)),
    "weak reference": (lambda model: weakref.ref(model.side), lambda held, h: h + held()(h)),
    "weak reference in a tuple": (lambda model: (weakref.ref(model.side),), lambda held, h: h + held[0]()(h)),
    "lock": (lambda model: [threading.Lock(), model.side], lambda held, h: h + held[1](h) * (not held[0].locked())),
}


class OnParameter(Two):
    """Forward reads an attribute of a parameter."""

    def __init__(self, kind):
        super().__init__()
        self.side = nn.Linear(8, 8)
        self.double()
        put, self.read = ON_PARAMETERS[kind]
        self.a.weight.held = put(self)

    def forward(self, x):
        return self.b(self.read(self.a.weight.held, torch.relu(self.a(x))))


@pytest.mark.parametrize("options", [{}, {"verify": False}], ids=["proven", "unproven"])
@pytest.mark.parametrize("kind", ON_PARAMETERS)
def test_attributes_of_parameters_that_forward_reads_are_those_of_the_small_model(kind, options):
    model = OnParameter(kind)
    before, expected = copy.copy(model.a.weight.__dict__), model(X)
    small = fxprune.transform(model, X, ratio=0.5, path="eager", **options)
    assert small.a.out_features == 4
    reference = fxprune.masked(model, fxprune.record(small).removed)
    assert model.a.weight.__dict__ == before
    assert torch.equal(model(X), expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))  # nothing may refer to it
    if kind == "lock":
        model.a.weight.held[0].acquire()
    assert relative_error(small(X), reference(X)) < 1e-9


@pytest.mark.parametrize("kind", ["tensor", "object", "layer", "weak reference", "lock"])
def test_a_model_that_gets_smaller_in_place_and_a_loaded_one_have_them(kind, tmp_path):
    model, other = OnParameter(kind), OnParameter(kind)
    other.load_state_dict(model.state_dict())
    small = fxprune.transform(model, X, ratio=0.5)
    fxprune.save(small, tmp_path / "small.safetensors")
    given = {} if kind in ("layer", "weak reference", "lock") else {"example_inputs": X}
    loaded = fxprune.load(tmp_path / "small.safetensors", into=other, **given)
    expected = small(X)
    fxprune.transform_(model, X, plan=fxprune.record(small).plan)
    assert torch.allclose(model(X), expected, rtol=0, atol=1e-12)
    for parameter in other.parameters():
        nn.init.constant_(parameter, float("nan"))
    assert torch.allclose(loaded(X), expected, rtol=0, atol=1e-12)


def test_a_lock_on_a_parameter_is_told():
    small = fxprune.transform(OnParameter("lock"), X, ratio=0.5)
    assert any(text.startswith("a.weight.held[0] is a new lock") for text in fxprune.record(small).reasons)


def test_what_forward_stores_on_a_parameter_is_state_and_stays_out_of_the_original():
    class Cached(Two):
        def forward(self, x):
            held = self.a.weight.__dict__
            h = torch.relu(self.a(x))
            if "last" in held:
                h = h + h[:, 5:6]
            self.a.weight.last = h
            return self.b(h)

    model = Cached().double()
    with pytest.warns(fxprune.NothingRemovedWarning, match="in a second call"):
        fxprune.transform(model, X, ratio=0.5, path="eager")
    assert "last" not in model.a.weight.__dict__
