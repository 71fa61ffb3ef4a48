"""Masks that a user keeps in attributes of layers shrink with the layers, or are named."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import fxprune
from fxprune import record
from tests.document_models import SparseActivationModel


@pytest.mark.parametrize("path", ["eager", "fx", "export"])
def test_the_masks_of_the_document_shrink_with_their_layers(path):
    model = SparseActivationModel(threshold=0.1).eval()
    model.apply_activation_sparsity()
    before = model.fc1.activation_mask.clone()
    small = fxprune.transform(model, torch.randn(1, 10), ratio=0.4, path=path)
    keep = [i for i in range(5) if i not in record(small).removed["fc1.weight"][0]]
    assert len(keep) == 3
    assert torch.equal(small.fc1.activation_mask, model.fc1.activation_mask[keep])
    assert torch.equal(small.fc2.activation_mask, model.fc2.activation_mask[:, keep])
    assert torch.equal(model.fc1.activation_mask, before)
    told = [r for r in record(small).reasons if "activation_mask" in r]
    assert told[0].startswith('attribute "activation_mask" of "fc1" was [5, 10] and is [3, 10] now')
    assert len(told) == 2
    torch.sum(small(torch.randn(8, 10))).backward()
    for layer in (small.fc1, small.fc2):
        layer.weight.grad[layer.activation_mask] = 0


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False)).eval()


def pruned(model):
    small = fxprune.transform(model, torch.randn(2, 3, 9, 9), ratio=0.5)
    gone = record(small).removed["0.weight"][0]
    return small, [i for i in range(8) if i not in gone]


def test_arrays_vectors_and_dicts_shrink_too():
    model = net()
    model[0].numbers = np.arange(216).reshape(8, 3, 3, 3)
    model[0].of_bias = torch.arange(8)
    model[2].masks = {"weight": torch.rand(4, 8, 3, 3) > 0.5, "other": 3}
    model.masks = {"0.weight": torch.arange(216).view(8, 3, 3, 3), "2": torch.zeros(4, 8, 3, 3), "1": torch.zeros(8)}
    small, keep = pruned(model)
    assert np.array_equal(small[0].numbers, model[0].numbers[keep])
    assert torch.equal(small[0].of_bias, torch.tensor(keep))
    assert torch.equal(small[2].masks["weight"], model[2].masks["weight"][:, keep])
    assert small[2].masks["other"] == 3
    assert torch.equal(small.masks["0.weight"], model.masks["0.weight"][keep])
    assert small.masks["2"].shape == (4, 4, 3, 3)
    assert small.masks["1"].shape == (8,), "it is of no parameter"
    assert model.masks["2"].shape == (4, 8, 3, 3), "the dict of the original is its own"
    told = [r for r in record(small).reasons if r.startswith("attribute")]
    said = "attribute \"masks\" of the model for '0.weight' was [8, 3, 3, 3] and is [4, 3, 3, 3] now"
    assert sum(r.startswith(said) for r in told) == 1


def test_what_may_count_something_else_stays_and_is_named():
    model = net()
    model[2].columns = torch.ones(8)  # no parameter has this shape, but the weight has lost slots of such a dimension
    model[2].far = torch.ones(5, 5)
    model[0].kernel = torch.ones(3, 3)
    small, _ = pruned(model)
    assert (small[2].columns.shape, small[2].far.shape, small[0].kernel.shape) == ((8,), (5, 5), (3, 3))
    told = [r for r in record(small).reasons if r.startswith("attribute")]
    assert told == [
        'attribute "columns" of "2" stays [8], although "2.weight" has lost slots in a dimension of that size'
    ]


def test_a_buffer_that_forward_does_not_read_is_named():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    model[0].register_buffer("activation_mask", torch.ones(8, 3, 3, 3) > 0)
    model[3].register_buffer("other", torch.ones(7))
    small, _ = pruned(model)
    assert small[0].activation_mask.shape == (8, 3, 3, 3)
    told = [r for r in record(small).reasons if r.startswith("buffer")]
    why = 'although "0.weight" of this shape has lost slots: forward does not read it'
    assert told == [f'buffer "activation_mask" of "0" stays [8, 3, 3, 3], {why}']


def test_a_layer_that_reads_its_attribute_is_left_to_the_pass():
    class Masking(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight * self.own, self.bias)

    model = nn.Sequential(Masking(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    model[0].own = (torch.rand(8, 4) > 0.3).float()
    small = fxprune.transform(model, torch.randn(2, 4), ratio=0.5)
    assert small[0].own.shape == small[0].weight.shape == (4, 4)
    assert not [r for r in record(small).reasons if r.startswith("attribute")]


def test_nothing_is_said_where_nothing_has_shrunk():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    for layer in (model[0], model[2], model[4]):
        layer.seen = torch.ones_like(layer.weight)
    small = fxprune.transform(model, torch.randn(2, 4), ratio={"0": 0.5})
    assert [layer.seen.shape == layer.weight.shape for layer in (small[0], small[2], small[4])] == [True] * 3
    assert len([r for r in record(small).reasons if r.startswith("attribute")]) == 2


def test_the_weight_that_torch_prune_computes_is_cut_and_not_talked_of() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    prune.ln_structured(net[0], "weight", 0.5, 2, 0)
    small = fxprune.transform(net, torch.randn(1, 4), ratio=0.5)
    assert small[0].weight.shape == small[0].weight_orig.shape == (4, 4)
    assert not any('attribute "weight"' in reason for reason in fxprune.record(small).reasons)
    prune.remove(small[0], "weight")
    assert small[0].weight.shape == (4, 4)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_the_weight_that_a_hook_computes_is_not_talked_of(norm) -> None:
    net = nn.Sequential(norm(nn.Linear(4, 8)), nn.ReLU(), norm(nn.Linear(8, 2))).eval()
    small = fxprune.transform(net, torch.randn(1, 4), ratio=0.5, exact=False)
    assert small[0].weight.shape == (4, 4)
    assert not [reason for reason in record(small).reasons if 'attribute "weight"' in reason]


class Shadowed(nn.Module):
    """A moving average of a module inside, by the names that its tensors have there."""

    def __init__(self, kind: type = dict) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        self.shadow = kind((name, tensor.clone()) for name, tensor in self.net.state_dict().items())

    def forward(self, x):
        return self.net(x)

    def differences(self):
        return sum((self.shadow[name] - tensor).abs().sum() for name, tensor in self.net.state_dict().items())


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_dict_with_the_names_of_a_module_inside_shrinks_with_it(kind) -> None:
    model = Shadowed(kind).eval()
    small = fxprune.transform(model, torch.randn(4, 8), ratio=0.5)
    assert type(small.shadow) is kind
    assert small.net[0].out_features == 8
    assert small.differences() == model.differences() == 0
    told = [reason for reason in record(small).reasons if "shadow" in reason]
    assert len(told) == 7
    assert "attribute \"shadow\" of the model for '1.running_mean' was [16] and is [8] now" in told[4]
    assert told[4].endswith('its key names "net.1.running_mean"')


def test_names_that_several_modules_inside_have_are_said_to_be_unclear() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2))
            self.shadow = {name: tensor.detach().clone() for name, tensor in self.a.named_parameters()}

        def forward(self, x):
            return self.b(self.a(x))

    small = fxprune.transform(Two().eval(), torch.randn(4, 8), ratio={"a.0": 0.5})
    assert small.shadow["0.weight"].shape == (16, 8)
    said = "attribute \"shadow\" of the model for '0.weight' stays [16, 8], although tensors of its name have lost"
    assert any(reason.startswith(said) for reason in record(small).reasons)


def test_the_sentences_about_a_long_dict_are_counted() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(12))).eval()
    model.shadow = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    reasons = record(fxprune.transform(model, torch.randn(2, 8), ratio=0.5)).reasons
    told = [reason for reason in reasons if "shadow" in reason]
    assert len(told) == 9
    assert told[-1] == 'attribute "shadow" of the model: the same of 15 more tensors there'
