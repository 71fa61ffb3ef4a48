"""Weak references in attributes of a small model refer to its own modules."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

import fxprune
from fxprune.capture.weak_references import with_referents
from tests.support import relative_error

X = torch.randn(3, 4).double()


class Weak(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        self.first = weakref.ref(self.a)
        self.inside = {"last": [weakref.ref(self.b)]}
        self.names = weakref.WeakKeyDictionary({self.a: "a", self.b: "b"})
        self.layers = weakref.WeakValueDictionary({"a": self.a})
        self.all = weakref.WeakSet([self.a])

    def forward(self, x):
        return self.inside["last"][0]()(torch.relu(self.first()(x)))

    def check(self):
        assert self.first() is self.a
        assert self.inside["last"][0]() is self.b
        assert dict(self.names) == {self.a: "a", self.b: "b"}
        assert dict(self.layers) == {"a": self.a}
        assert list(self.all) == [self.a]


@pytest.mark.parametrize("in_place", [False, True])
def test_weak_references_follow(in_place):
    model = Weak().double()
    before = copy.deepcopy(model)
    before.first, before.inside = weakref.ref(before.a), {"last": [weakref.ref(before.b)]}
    if in_place:
        fxprune.transform_(model, X, ratio=0.5)
        small = model
    else:
        small = fxprune.transform(model, X, ratio=0.5, path="eager")
        model.check()
        assert model.a.out_features == 8
    small.check()
    assert small.a.out_features == 4
    assert fxprune.record(small).reasons == ()
    assert relative_error(small(X), fxprune.masked(before, fxprune.record(small).removed)(X)) < 1e-12


def test_references_to_other_objects_stay_the_same():
    layer = nn.Linear(1, 1)
    gone = weakref.ref(nn.Linear(1, 1))
    for weak in (weakref.ref(layer), gone, weakref.WeakSet([layer]), weakref.WeakKeyDictionary({layer: 1})):
        assert with_referents(weak, lambda value: value) is weak
