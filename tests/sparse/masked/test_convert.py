"""Masked layers, plain ones, and those under `torch.nn.utils.prune` compute the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from fxprune.errors import PlanError
from fxprune.sparse import MaskedConv2d, MaskedLinear, from_prune, plain, random_mask, to_prune

LAYERS = {
    "linear": lambda: MaskedLinear(6, 4, random_mask(4, 6, fan_in=2)),
    "linear without bias": lambda: MaskedLinear(6, 4, random_mask(4, 6, fan_in=2), bias=False),
    "conv": lambda: MaskedConv2d(6, 4, 3, random_mask(4, 6, fan_in=2), 2, 1, padding_mode="reflect"),
    "conv in groups": lambda: MaskedConv2d(6, 4, (3, 2), random_mask(4, 3, fan_in=2), dilation=2, groups=2),
    "conv by position": lambda: MaskedConv2d(6, 4, 3, torch.rand(4, 6, 3, 3) < 0.5, padding="same", bias=False),
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def input_for(layer):
    return torch.randn((3, 6) if isinstance(layer, nn.Linear) else (3, 6, 9, 8), dtype=layer.weight.dtype)


@layers
def test_plain_layers_have_zeros_where_the_mask_was_false(make):
    layer = make().double().eval()
    layer.weight.requires_grad_(False)
    x = input_for(layer)
    made = plain(layer)
    assert type(made) in (nn.Linear, nn.Conv2d)
    assert str(made) == str(layer).replace("Masked", "").rpartition(", connections")[0] + ")"
    assert torch.equal(made(x), layer(x))
    assert (made.training, made.weight.requires_grad) == (False, False)
    made.weight.data.fill_(1)
    assert not torch.equal(made(x), layer(x))
    assert made.weight.data_ptr() != layer.weight.data_ptr()


@layers
def test_layers_go_to_torch_prune_and_back(make):
    layer = make().double()
    x = input_for(layer)
    pruned = to_prune(layer)
    assert prune.is_pruned(pruned)
    assert torch.equal(pruned.weight_mask != 0, layer.mask.expand(layer.weight.shape))
    assert torch.equal(pruned(x), layer(x))
    back = from_prune(pruned)
    assert type(back) is type(layer)
    assert torch.equal(back(x), layer(x))
    assert torch.equal(back.weight, layer.weight)
    back(x).sum().backward()
    pruned(x).sum().backward()
    assert torch.equal(back.weight.grad, pruned.weight_orig.grad)


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: nn.Conv2d(6, 4, 3, groups=2)])
def test_layers_that_torch_has_pruned_become_masked(make):
    layer = make().double().eval()
    x = input_for(layer)
    prune.random_unstructured(layer, "weight", 0.5)
    layer.weight_orig.data.add_(1.0)  # it has trained on: the masked entries are not zero
    original = layer.weight_orig.detach().clone()
    made = from_prune(layer)
    expected = layer(x)
    assert torch.equal(made(x), expected)
    assert made.training is False
    assert made.connections == 12 if isinstance(made, nn.Linear) else made.connections == 54
    assert torch.equal(layer.weight_orig, original)
    assert prune.is_pruned(layer)
    prune.remove(layer, "weight")
    assert torch.equal(layer.weight, made.weight)


def fractional():
    return prune.custom_from_mask(nn.Linear(3, 3), "weight", torch.full((3, 3), 0.5))


@pytest.mark.parametrize(
    ("attempt", "sentences"),
    [
        (lambda: plain(nn.Linear(2, 2)), ["not a masked layer", "it is Linear"]),
        (lambda: to_prune(nn.Linear(2, 2)), ["not a masked layer"]),
        (lambda: plain(prune.identity(LAYERS["linear"](), "weight")), ["is no parameter"]),
        (lambda: from_prune(nn.Linear(2, 2)), ["the weight of the layer is not pruned"]),
        (lambda: from_prune(prune.identity(nn.Linear(2, 2), "bias")), ["the weight of the layer is not pruned"]),
        (lambda: from_prune(prune.identity(to_prune(LAYERS["linear"]()), "bias")), ["the bias is pruned too"]),
        (lambda: from_prune(prune.identity(nn.Conv1d(2, 2, 1), "weight")), ["masked counterpart", "Conv1d"]),
        (lambda: from_prune(fractional()), ["other numbers than 0 and 1"]),
    ],
)
def test_layers_that_cannot_be_converted_are_refused(attempt, sentences):
    with pytest.raises(PlanError) as raised:
        attempt()
    assert all(sentence in str(raised.value) for sentence in sentences)
