"""Weak references, wherever a model holds them, refer to what is in the small model, and in the masked reference."""

from __future__ import annotations

import collections
import functools
import types
import weakref
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import fxprune
from tests.support import relative_error

X = torch.randn(3, 4).double()


class Helper:
    def __init__(self, weak):
        self.weak = weak


class Slotted:
    __slots__ = ("weak",)

    def __init__(self, weak):
        self.weak = weak


class Layers(weakref.WeakSet):
    pass


class Reference(weakref.ref):
    __slots__ = ("name",)


def called(weak, x):
    return weak()(x)


def named(layer):
    made = Reference(layer)
    made.name = "side"
    return made


PLACES = {
    "helper": (lambda layer: Helper(weakref.ref(layer)), lambda held: held.weak()),
    "slots": (lambda layer: Slotted(weakref.ref(layer)), lambda held: held.weak()),
    "namespace": (lambda layer: types.SimpleNamespace(weak=[weakref.ref(layer)]), lambda held: held.weak[0]()),
    "deque": (lambda layer: collections.deque([weakref.ref(layer)]), lambda held: held[0]()),
    "tuple": (lambda layer: ({"weak": (weakref.ref(layer),)},), lambda held: held[0]["weak"][0]()),
    "set": (lambda layer: {weakref.ref(layer)}, lambda held: next(iter(held))()),
    "key": (lambda layer: {weakref.ref(layer): 1}, lambda held: next(iter(held))()),
    "partial": (lambda layer: functools.partial(called, weakref.ref(layer)), lambda held: held),
    "value": (
        lambda layer: weakref.WeakKeyDictionary({layer: weakref.ref(layer)}),
        lambda held: next(iter(held.values()))(),
    ),
    "derived set": (lambda layer: Layers([layer]), lambda held: next(iter(held))),
    "derived reference": (named, lambda held: held() if held.name == "side" else None),
    "method": (lambda layer: weakref.WeakMethod(layer.forward), lambda held: held()),
    "proxy": (lambda layer: [weakref.proxy(layer)], lambda held: held[0].forward),
    "parameter": (
        lambda layer: weakref.WeakValueDictionary(layer.named_parameters()),
        lambda held: lambda x: nn.functional.linear(x, held["weight"], held["bias"]),
    ),
}


class Side(nn.Module):
    """Two layers, and one beside them that forward finds through a weak reference."""

    def __init__(self, place):
        super().__init__()
        self.a, self.b, self.side = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(4, 8)
        self.double()
        put, self.get = PLACES[place]
        self.held = put(self.side)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)) + self.get(self.held)(x))


class Items(Side, dict):
    """Weak references in a hook, in a slot and among the items of the module, which is a dict."""

    __hash__, __eq__ = object.__hash__, object.__eq__
    __slots__ = ("in_slot",)

    def __init__(self):
        Side.__init__(self, "helper")
        self["weak"] = self.in_slot = weakref.ref(self.side)
        self.a.register_forward_hook(functools.partial(adds, weakref.ref(self.side)))

    def forward(self, x):
        return self.b(torch.relu(self.a(x)) + self["weak"]()(x) + self.in_slot()(x))


def adds(weak, layer, args, out):
    return out + weak()(args[0])


def check(make, in_place):
    model = make()
    reference = make()
    reference.load_state_dict(model.state_dict())
    small = (fxprune.transform_ if in_place else fxprune.transform)(model, X, ratio=0.5)
    assert type(small) is type(reference)
    assert small.side.out_features == 4
    assert fxprune.record(small).reasons == ()
    masked = fxprune.masked(reference, fxprune.record(small).removed)
    for other in (reference, *(() if in_place else (model,))):
        for parameter in other.parameters():
            nn.init.constant_(parameter, float("nan"))  # nothing may refer to it
    assert relative_error(small(X), masked(X)) < 1e-12


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_weak_references_follow_from_everywhere(place, in_place):
    check(functools.partial(Side, place), in_place)


@pytest.mark.parametrize("in_place", [False, True])
def test_weak_references_follow_from_hooks_slots_and_items(in_place):
    check(Items, in_place)


def test_handles_and_hooks_that_know_their_module_follow_in_place():
    model, seen = Side("helper"), []
    model.handle = model.a.register_forward_hook(lambda layer, args, out: seen.append(layer))
    model.a.register_load_state_dict_pre_hook(lambda layer, *_: seen.append(layer))
    fxprune.transform_(model, X, ratio=0.5)
    seen.clear()
    model(X)
    model.load_state_dict(model.state_dict())
    assert seen == [model.a, model.a]
    model.handle.remove()
    assert len(model.a._forward_hooks) == 0


def test_an_average_has_weak_references_of_its_own():
    model = Side("deque")
    average = torch.optim.swa_utils.AveragedModel(model)
    copied = average.module
    copied.held[0] = weakref.ref(copied.side)
    fxprune.transform_(model, X, ratio=0.5, ema=average)
    assert copied.held[0]() is copied.side
    assert model.held[0]() is model.side


class Registered(Side):
    table: ClassVar[Any] = weakref.WeakKeyDictionary()

    def __init__(self):
        super().__init__("helper")
        self.table[self] = 2.0

    def forward(self, x):
        return self.b(torch.relu(self.a(x))) * self.table[self]


class Asking(Registered):
    def forward(self, x):
        return self.b(torch.relu(self.a(x))) * self.table.get(self, 1.0)


def test_a_table_outside_of_the_model_is_the_cause_that_is_told():
    with pytest.raises(fxprune.CaptureError) as found:
        fxprune.transform(Registered(), X, ratio=0.5)
    told = str(found.value)
    assert "test_weak_places.py" in told
    assert (
        "a table outside of the model has a Registered as a key, and fxprune runs copies, which are not in it" in told
    )
    assert "keep what belongs to a module in an attribute of it" in told
    assert any(
        '"table" of the class Registered has the original in it' in reason
        for reason in fxprune.record(fxprune.transform(Asking(), X, ratio=0.5)).reasons
    )


class Forgets(Side):
    """Copies of it are of the right sizes, and have none of its numbers."""

    def __init__(self, kind=None):
        super().__init__("helper")
        del self.held
        self.scale, self.sizes, self.kind = 1.0, [4, 8], kind

    def forward(self, x):
        return self.b(torch.relu(self.a(x))) * self.scale

    def __deepcopy__(self, memo):
        made = (self.kind or Forgets)()
        made._modules.pop("side", None)
        return made


def test_copies_have_what_a_deepcopy_of_the_class_forgets():
    model = Forgets()
    model.scale, model.sizes[0] = 3.0, 5
    model.a.weight.gain = 2.0
    model.eval()
    copied = fxprune.masked(model, {})
    assert (copied.scale, copied.sizes, copied.a.weight.gain, copied.training) == (3.0, [5, 8], 2.0, False)
    assert copied.sizes is not model.sizes
    assert torch.equal(copied.side.weight, model.side.weight)
    assert copied.side.weight is not model.side.weight
    assert torch.equal(copied(X), model(X))
    small = fxprune.transform(model, X, ratio=0.5)
    assert (small.scale, type(small)) == (3.0, Forgets)
    assert relative_error(small(X), fxprune.masked(model, fxprune.record(small).removed)(X)) < 1e-12


class Other(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)


@pytest.mark.filterwarnings("ignore::fxprune.ClassLostWarning")
def test_copies_of_another_class_are_named():
    model = nn.Sequential(Forgets(Other)).double()
    for call in (
        lambda: fxprune.masked(model, {}),
        lambda: fxprune.transform(model, X, ratio=0.5, path="eager"),
    ):
        with pytest.raises(fxprune.FxpruneError) as found:
            call()
        told = str(found.value)
        assert "cannot be copied" in told
        assert '"0", of class Forgets' in told
        assert "the copy of it is of class Other, and the module is of class Forgets" in told
        assert "or leave it out" in told


def test_a_graph_inside_a_model_is_copied_whole():
    inner = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 4)))
    model = nn.Sequential(torch.fx.symbolic_trace(inner), nn.Linear(4, 2)).double()
    small = fxprune.transform(model, X, ratio=0.5)
    assert type(small) is nn.Sequential
    assert relative_error(small(X), fxprune.masked(model, fxprune.record(small).removed)(X)) < 1e-12


class Slots(Side):
    __slots__ = ("width",)

    def __init__(self):
        super().__init__("helper")
        self.width = 8

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).view(-1, self.width))


def test_copies_have_what_stands_in_slots():
    model = Slots()
    small = fxprune.transform(model, X, ratio=0.5)
    assert (model.width, small.width, type(small)) == (8, 4, Slots)
    assert relative_error(small(X), fxprune.masked(model, fxprune.record(small).removed)(X)) < 1e-12
    assert fxprune.transform_(model, X, ratio=0.5).width == 4
