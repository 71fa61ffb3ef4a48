"""Code of the documents that the package goes back to, as a user would write it: masks by hand, and frozen layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.utils.prune as prune
from torch import nn

import fxprune
from fxprune.sparse import MaskedLinear, from_prune, sparsify


def test_custom_sparse_connections_by_a_mask_of_numpy():
    out_features, in_features = 5, 10
    layer = nn.Linear(in_features, out_features, bias=False)
    mask = np.random.default_rng(0).integers(2, size=(out_features, in_features))
    mask[2] = 0
    prune.custom_from_mask(layer, name="weight", mask=torch.tensor(mask))
    ours = from_prune(layer)
    assert torch.equal(ours.mask, torch.tensor(mask) != 0)
    x = torch.randn(3, in_features)
    assert torch.equal(ours(x), layer(x))
    net = nn.Sequential(layer, nn.ReLU(), nn.Linear(out_features, 2)).eval()
    small = fxprune.transform(net, x, masks="zeros")
    assert small.get_submodule("0").out_features == 4
    assert torch.allclose(small(x), net(x), atol=1e-6)
    prune.remove(layer, "weight")
    assert sparsify(layer).values.numel() == mask.sum()


class Thread(nn.Module):
    """The module of the thread, whose forward and backward use the masked weight, in today's PyTorch."""

    def __init__(self, input_features, output_features, mask):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(output_features, input_features))
        self.mask = nn.Parameter(torch.from_numpy(mask), requires_grad=False)

    def forward(self, input):
        return input.mm((self.weight * self.mask).t())


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_the_module_of_the_thread_and_a_masked_layer_train_alike(optimizer):
    mask = np.random.default_rng(1).integers(2, size=(4, 6))
    theirs, ours = Thread(6, 4, mask).double(), MaskedLinear(6, 4, mask, bias=False, dtype=torch.float64)
    ours.weight.data.copy_(theirs.weight.data)
    steps = [(m, optimizer([m.weight])) for m in (theirs, ours)]
    for _ in range(5):
        x = torch.randn(8, 6, dtype=torch.float64)
        for model, one in steps:
            one.zero_grad()
            (model(x) - 1).square().mean().backward()
            one.step()
    assert (theirs.weight * theirs.mask - ours.weight).abs().max() < 1e-12


@pytest.mark.parametrize("spell", [np.asarray, torch.tensor, lambda m: torch.tensor(m, dtype=torch.float32)])
def test_masks_of_outputs_may_be_zeros_and_ones(spell):
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    small = fxprune.transform(net, torch.randn(1, 4), masks={"0": spell([1, 0, 1, 1, 0, 1])})
    assert fxprune.record(small).removed["0.weight"][0] == [1, 4]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(10, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


def freeze_weights(model, layer_name):
    """The function of the document on activation pruning."""
    with torch.no_grad():
        layer = getattr(model, layer_name)
        if hasattr(layer, "weight") and layer.weight is not None:
            layer.weight.requires_grad = False
        if hasattr(layer, "bias") and layer.bias is not None:
            layer.bias.requires_grad = False


def sparse_matrix_representation(model, threshold=0.01):
    """The function of the same document: weights under other names, small ones zero."""
    sparse_model = Model()
    for name, param in model.named_parameters():
        if "weight" in name:
            mask = torch.abs(param) > threshold
            indices = torch.nonzero(mask, as_tuple=False).t()
            sparse_weight = torch.zeros_like(param)
            sparse_weight[indices[0], indices[1]] = param[mask]
            setattr(sparse_model, name.replace(".", "_"), nn.Parameter(sparse_weight.to_dense()))
    return sparse_model


def test_layers_frozen_by_hand_stay_frozen_in_the_small_model():
    model = Model().eval()
    freeze_weights(model, "fc1")
    small = fxprune.transform(model, torch.randn(1, 10), ratio=0.5)
    assert {n: p.requires_grad for n, p in small.named_parameters()} == {
        "fc1.weight": False,
        "fc1.bias": False,
        "fc2.weight": True,
        "fc2.bias": True,
    }


def test_weights_under_other_names_are_named_since_no_forward_reaches_them():
    made = sparse_matrix_representation(Model(), threshold=0.1).eval()
    small = fxprune.transform(made, torch.randn(1, 10), ratio=0.5)
    assert small.fc1.weight.shape == (3, 10)
    assert small.fc1_weight.shape == (6, 10)
    assert "fc1_weight, fc2_weight" in " ".join(fxprune.record(small).reasons)
