"""Masks of gradients that hooks of parameters read from modules: they are cut with the parameter, or are warned of."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune import record


def masked_by(module, gradient):
    return gradient * module.mask


class Around(nn.Module):
    """A linear layer with a mask beside it, which a hook of its weight reads."""

    def __init__(self, kind="method", *, persistent=None, shape=(8, 6)):
        super().__init__()
        self.linear = nn.Linear(6, 8)
        mask = (torch.rand(shape) < 0.5).float()
        if persistent is None:
            self.mask = mask
        else:
            self.register_buffer("mask", mask, persistent=persistent)
        with torch.no_grad():
            self.linear.weight *= mask
        if kind != "none":
            method, weight = self.masked, self.linear.weight
            hooks = {
                "method": self.masked,
                "closure": lambda g: g * self.mask,
                "default": lambda g, module=self: g.mul(module.mask),
                "partial": functools.partial(masked_by, self),
                "inner method": lambda g: method(g),
                "by name": lambda g: g * getattr(self, "mas" + "k"[:1]),
            }
            weight.register_hook(hooks[kind])

    def masked(self, gradient):
        return gradient * self.mask

    def forward(self, x):
        return self.linear(x)


def net(*args, **options):
    torch.manual_seed(0)
    return nn.Sequential(Around(*args, **options), nn.ReLU(), nn.Linear(8, 3)).double()


def step(model, x):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def check_against_masked(small, model, removed):
    """One more step leaves the small model as it leaves the masked original, zeros of the mask included."""
    x = torch.randn(4, 6).double()
    reference = fxprune.masked(model, removed)
    for name, old in model.named_parameters():
        for hook in (old._backward_hooks or {}).values():
            dict(reference.named_parameters())[name].register_hook(hook)
    kept = [i for i in range(8) if i not in removed["0.linear.weight"][0]]
    step(small, x)
    step(reference, x)
    weight = small[0].linear.weight
    assert torch.allclose(weight, reference[0].linear.weight[kept], rtol=0, atol=1e-12)
    assert torch.equal(weight == 0, (small[0].mask == 0).expand_as(weight))


KINDS = ["method", "closure", "default", "partial", "inner method", "by name"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_the_module_around_is_cut_with_the_weight_whose_hook_reads_it(kind):
    model = net(kind)
    before = model[0].mask.clone()
    small = fxprune.transform(model, torch.randn(2, 6).double(), ratio=0.5)
    assert small[0].mask.shape == small[0].linear.weight.shape == (4, 6)
    assert any('"mask" of "0" was [8, 6] and is [4, 6] now' in reason for reason in record(small).reasons)
    check_against_masked(small, model, record(small).removed)
    assert torch.equal(model[0].mask, before)


@pytest.mark.parametrize("kind", KINDS)
def test_in_place_and_twice(kind):
    model, x = net(kind), torch.randn(2, 6).double()
    around = model[0]
    for width in (6, 3):
        fxprune.transform_(model, x, counts={"0.linear": width})
        assert around.mask.shape == around.linear.weight.shape == (width, 6)
        step(model, x)
        assert torch.equal(around.linear.weight == 0, around.mask == 0)
    around.mask = torch.zeros(3, 6).double()
    before = around.linear.weight.clone()
    step(model, x)
    assert torch.equal(around.linear.weight, before), "the hook reads the module of the model"


def test_a_mask_that_is_broadcast_is_cut_where_it_is_wide():
    model = net("closure", shape=(8, 1))
    small = fxprune.transform(model, torch.randn(2, 6).double(), ratio=0.5)
    assert small[0].mask.shape == (4, 1)
    check_against_masked(small, model, record(small).removed)


class Two(nn.Module):
    """Two layers of one shape, each with its mask in the model."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.one, self.two = torch.arange(64).view(8, 8), torch.arange(64).view(8, 8)
        self.first.weight.register_hook(lambda g: g * self.one)
        self.second.weight.register_hook(lambda g: g * self.two)

    def forward(self, x):
        return self.second(self.first(x).relu())


def test_two_masks_of_one_shape_go_with_the_weights_whose_hooks_name_them():
    model = Two()
    small = fxprune.transform(model, torch.randn(2, 8), ratio=0.5, path="eager")
    kept = [i for i in range(8) if i not in record(small).removed["first.weight"][0]]
    assert torch.equal(small.one, model.one[kept])
    assert torch.equal(small.two, model.two[:, kept])
    small(torch.randn(2, 8)).sum().backward()


def test_a_mask_that_stays_is_warned_of():
    model = net("none")
    around = model[0]
    around.columns = np.ones(8)
    around.linear.weight.register_hook(lambda g: g * torch.from_numpy(around.columns)[:, None])
    with pytest.warns(UserWarning, match=r'reads "columns" of "0", which stays \[8\]'):
        small = fxprune.transform(model, torch.randn(2, 6).double(), ratio=0.5)
    assert any('reads "columns" of "0", which stays [8]' in reason for reason in record(small).reasons)


def test_one_mask_of_two_weights_that_lose_other_slots_is_warned_of():
    model = Two()
    model.second.weight.register_hook(lambda g: g * model.one)
    with pytest.warns(UserWarning, match=r'reads "one" of the model, which stays \[8, 8\]'):
        small = fxprune.transform(model, torch.randn(2, 8), ratio=0.5, path="eager")
    assert any("have lost other slots than each other" in reason for reason in record(small).reasons)


@pytest.mark.parametrize("how", [fxprune.transform, fxprune.transform_])
def test_a_hook_that_is_left_out_is_warned_of_once(how):
    model = net("none")
    held = [model[0]]
    model[0].linear.weight.register_hook(lambda g: g * held[0].mask)
    with pytest.warns(UserWarning, match="hooks are not on") as warned:
        small = how(model, torch.randn(2, 6).double(), ratio=0.5)
    [text] = [str(each.message) for each in warned]
    assert 'a gradient hook of "0.linear.weight" (<lambda>' in text
    assert 'is left out: it refers to "0" of the original' in text
    assert ": register them again" in text
    assert not small[0].linear.weight._backward_hooks


def test_a_graph_without_the_attribute_has_no_hook_that_reads_it():
    with pytest.warns(UserWarning, match='the small model has no "mask" there'):
        small = fxprune.transform(net(), torch.randn(2, 6).double(), ratio=0.5, path="fx")
    small(torch.randn(2, 6).double()).sum().backward()


def test_a_hook_shares_its_other_variables_with_the_original():
    model, calls = net("none"), 0
    around = model[0]

    def hook(gradient):
        nonlocal calls
        calls += 1
        return gradient * around.mask

    around.linear.weight.register_hook(hook)
    small = fxprune.transform(model, torch.randn(2, 6).double(), ratio=0.5)
    small(torch.randn(2, 6).double()).sum().backward()
    assert calls == 1


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("how", [fxprune.transform, fxprune.transform_])
def test_a_mask_in_a_buffer_stays_as_files_know_it_and_is_warned_of(how, persistent):
    model = net(persistent=persistent)
    with pytest.warns(UserWarning, match=r'reads "mask" of "0", which stays \[8, 6\](?s:.*)give it the kept part'):
        small = how(model, torch.randn(2, 6).double(), ratio=0.5)
    assert small[0].mask.shape == (8, 6)
    kept = [i for i in range(8) if i not in record(small).removed["0.linear.weight"][0]]
    small[0].mask = small[0].mask[kept]
    step(small, torch.randn(2, 6).double())
    assert torch.equal(small[0].linear.weight == 0, small[0].mask == 0)
