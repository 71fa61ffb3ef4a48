"""Widths that forward reads from the class of a module, and from members of enumerations."""

from __future__ import annotations

import copy
import enum

import pytest
import torch
from torch import nn

import fxprune
from tests.support import relative_error

X = torch.randn(3, 4).double()


class Width(enum.IntEnum):
    HIDDEN = 8
    OTHER = 5


class OfClass(nn.Module):
    width = 8
    other = 3

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).view(-1, self.number()))

    def number(self):
        return self.width


class FromClass(OfClass):
    def number(self):
        return type(self).width


class Member(OfClass):
    def __init__(self):
        super().__init__()
        self.width = Width.HIDDEN


class Global(OfClass):
    width = None

    def number(self):
        return Width.HIDDEN


def test_a_width_in_the_body_of_a_class_is_recounted_in_the_module():
    model = OfClass().double()
    small = fxprune.transform(model, X, ratio=0.5)
    assert type(small) is OfClass
    assert (small.width, OfClass.width, model.width) == (4, 8, 8)
    assert "other" not in small.__dict__
    assert "width" not in model.__dict__
    assert relative_error(small(X), fxprune.masked(model, fxprune.record(small).removed)(X)) < 1e-12
    assert torch.equal(copy.deepcopy(small)(X), small(X))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (FromClass, '"width" = 8 may be read from the class FromClass: read it from the module, self.width'),
        (Member, '"width" is 8, a member of Width: hold its number, self.width = 8'),
        (Global, "Width.HIDDEN is 8: hold it in an attribute of the module, and read that"),
    ],
)
def test_a_width_that_cannot_change_is_named(kind, told):
    with pytest.warns(fxprune.NothingRemovedWarning):
        small = fxprune.transform(kind().double(), X, ratio=0.5, path="eager")
    assert told in "\n".join(fxprune.record(small).reasons)
