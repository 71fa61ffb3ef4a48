"""Configs: the layers that they name, and refusals before any change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.errors import ChannelsStayWarning, PlanError
from fxprune.pruner import L1Pruner, masks_of
from fxprune.pruner.config import layers_to_prune
from tests.pruner.pruners import small_resnet


def names(model, config):
    return [(t.name, t.norm_name) for t in layers_to_prune(model, config)]


def test_a_layer_may_be_spelled_in_every_way():
    net = small_resnet()
    expected = [("stem", "")]
    for entry in (
        "stem",
        net.stem,
        {"name": "stem"},
        {"module": net.stem},
        {"tensor_fqn": "stem.weight"},
        {"tensor_fqn": ".stem.weight", "module": net.stem, "name": "stem"},
    ):
        assert names(net, [entry]) == expected, entry
    for entry in (
        ("stem", "norm"),
        (net.stem, net.norm),
        {"name": ("stem", "norm")},
        {"module": (net.stem, net.norm), "sparsity_level": 0.1},
    ):
        assert names(net, [entry]) == [("stem", "norm")], entry
    assert layers_to_prune(net, [{"name": "stem", "sparsity_level": 0.1}])[0].settings == {"sparsity_level": 0.1}
    assert names(net, ["block?.conv1"]) == [("block1.conv1", ""), ("block2.conv1", "")]
    assert names(net, ["block1.*"]) == [("block1.conv1", ""), ("block1.conv2", "")], "layers, no batch norms"
    assert names(net, ["block1"]) == names(net, [net.block1]) == names(net, ["block1.*"]), "a block"
    assert names(net, [nn.Linear]) == [("head", "")], "a type"
    assert names(net, None) == [
        (n, "") for n in ("stem", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "head")
    ]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("stem", r"config must be a list, or None for every layer, not str\n.*pass a list of names"),
        (("stem", "norm"), r"config must be a list, or None for every layer, not tuple"),
        ([], r"config is empty\n.*names no layer\n.*pass None for every layer"),
        (["stemm"], r'config names nothing: "stemm"\n.*did you mean "stem"\?'),
        (["stem*x"], r'config names nothing: "stem\*x"\n.*did you mean "stem"'),
        (["norm*"], r'config names no layer that can be pruned: "norm\*"'),
        ([nn.Linear(3, 4)], r"a module that is not part of the model: Linear"),
        ([3], r"config cannot be a int\n.*pass names"),
        (["act"], r'"act" cannot be pruned\n.*ReLU is not one of Linear, Conv1d, Conv2d'),
        ([""], r"the model itself is the layer to prune\n.*no name\n.*nn.Sequential\(layer\)"),
        (["stem", {"name": "stem"}], r'config names "stem" twice\n.*with all its settings'),
        ([("stem", "norm"), "norm"], r'config names "norm" twice'),
        ([("stem", "norm", "act")], r"tuple of 3 entries that is no \(layer, batch norm\) pair\n.*pass \(conv, bn\)"),
        ([("norm", "stem")], r'"norm" cannot be pruned\n.*BatchNorm2d is not one of Linear'),
        ([("head", "norm")], r'"norm" cannot follow "head"\n.*normalises 8 channels, the layer has 5 outputs'),
        ([{}], r"names no layer: its keys are none\n.*say which"),
        ([{"sparsity_level": 0.5}], r"names no layer: its keys are 'sparsity_level'"),
        ([{"tensor_fqn": "stem.bias"}], r"names a tensor that is no weight: 'stem.bias'\n.*\n.*layer.weight"),
        ([{"tensor_fqn": 3}], r"names a tensor that is no weight: 3"),
        ([{"name": "stem", "tensor_fqn": "head.weight"}], r"names two layers: by 'name' one, by 'tensor_fqn' another"),
    ],
)
def test_a_config_of_another_form_is_refused(config, message):
    net = small_resnet()
    state = list(net.state_dict())
    pruner = L1Pruner()
    with pytest.raises(PlanError, match=message):
        pruner.prepare(net, config)
    assert list(net.state_dict()) == state
    pruner.prepare(net, ["stem"])


class Twisted(nn.Linear):
    def forward(self, x):
        return x @ self.weight.t() * 2


class Renamed(nn.Linear):
    pass


def wrapped(layer):
    return nn.Sequential(layer, nn.ReLU())


def tied():
    net = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    net[1].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("make", "name", "why"),
    [
        (lambda: wrapped(Twisted(3, 4)), "0", "Twisted computes its output in its own way"),
        (
            lambda: nn.MultiheadAttention(4, 2),
            "out_proj",
            "NonDynamicallyQuantizableLinear is used without being called",
        ),
        (lambda: wrapped(nn.LazyLinear(3)), "0", "its parameters are not initialised yet"),
        (lambda: wrapped(nn.ConvTranspose1d(4, 4, 3, groups=2)), "0", "the groups of a transposed convolution share"),
        (lambda: wrapped(nn.Linear(3, 4, device="meta")), "0", "its parameters are on the meta device"),
        (lambda: wrapped(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))), "0", "parametrized already"),
        (
            lambda: wrapped(nn.utils.prune.l1_unstructured(nn.Linear(3, 4), "weight", 2)),
            "0",
            "masked by torch.nn.utils.prune",
        ),
        (lambda: wrapped(nn.BatchNorm1d(3, affine=False)), "0", "it has no weight parameter of its own"),
        (tied, "1", "it shares a parameter with another layer"),
        (lambda: wrapped(nn.LSTM(3, 4)), "0", "LSTM is not one of"),
    ],
)
def test_layers_that_cannot_be_pruned(make, name, why):
    with pytest.raises(PlanError, match=f'"{name}" cannot be pruned\n.*{why}'):
        L1Pruner().prepare(make(), [name])


def test_subclasses_that_compute_as_their_base_can_be_pruned():
    net = wrapped(Renamed(3, 4))
    L1Pruner().prepare(net, ["0"])
    assert masks_of_quietly(net).keys() == {"0"}


def masks_of_quietly(net):
    with pytest.warns(UserWarning, match="no output of this model is pruned"):
        return masks_of(net)


def test_every_layer_says_which_it_leaves_out():
    net = nn.Sequential(nn.Linear(3, 4), Twisted(4, 4), nn.Linear(4, 1))
    with pytest.warns(ChannelsStayWarning, match='"1": Twisted computes .*; "2": it has one output'):
        assert names(net, None) == [("0", "")]
    with pytest.raises(PlanError, match=r'no layer that can be pruned\n.*"1": Twisted'):
        layers_to_prune(nn.Sequential(nn.ReLU(), Twisted(4, 4)), None)
    with pytest.raises(PlanError, match="none of its layers is one of Linear, Conv1d"):
        layers_to_prune(nn.Sequential(nn.ReLU()), None)


def test_buffers_stand_where_the_weight_stands():
    net = small_resnet()
    L1Pruner().prepare(net)
    assert net.stem.parametrizations.weight[0].kept.device == torch.device("cpu")
