"""Masks of other pruners, and copies of models without the hooks and parametrizations of these pruners."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from torch.ao.pruning._experimental.pruner import FPGMPruner as TorchFPGM
from torch.ao.pruning._experimental.pruner import SaliencyPruner as TorchSaliency
from torch.nn.utils import parametrize, prune

import fxprune
from fxprune.errors import CaptureError, ChannelsStayWarning, NothingRemovedWarning, PlanError
from fxprune.pruner import L1Pruner, SaliencyPruner, masks_of, plain
from tests.pruner.pruners import prepared, small_resnet, zeroed
from tests.support import randomise, relative_error

EXACT = 1e-12


def mlp():
    """Linear, ReLU, Linear, ReLU, Linear in float64."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    return randomise(net, 0, weights=True).double().eval()


def dropped(masks):
    return {name: (~mask).nonzero().flatten().tolist() for name, mask in masks.items()}


def inputs():
    return torch.randn(5, 4, dtype=torch.float64)


# -- torch.ao ---------------------------------------------------------------------------------------------------


def torch_ao(net, kind=TorchSaliency, **settings):
    pruner = kind({"sparsity_level": 0.5}) if kind is TorchSaliency else kind(0.5)
    pruner.prepare(net, [{"tensor_fqn": "0.weight", **settings}, {"tensor_fqn": "2.weight", **settings}])
    pruner.step()
    return pruner


@pytest.mark.parametrize("prune_bias", [True, False])
@pytest.mark.parametrize("kind", [TorchSaliency, TorchFPGM])
def test_masks_of_torch_ao_are_read(kind, prune_bias):
    net, x = mlp(), inputs()
    torch_ao(net, kind, prune_bias=prune_bias)
    masks = masks_of(net)
    assert {name: int((~mask).sum()) for name, mask in masks.items()} == {"0": 4, "2": 3}
    assert all(torch.equal(masks[n], net.get_submodule(n).parametrizations.weight[0].mask) for n in ("0", "2"))
    expected = net(x)  # the hook of torch.ao zeroes the bias itself here, in place
    before = {k: v.clone() for k, v in net.state_dict().items()}
    made = plain(net)
    assert relative_error(made(x), expected) < EXACT
    assert list(made.state_dict()) == list(mlp().state_dict())
    assert not any(m._forward_hooks or parametrize.is_parametrized(m) for m in made.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()), "the original was only read"
    small = fxprune.transform(made, x, masks=masks)
    assert (small.get_submodule("0").out_features, small.get_submodule("2").out_features) == (4, 3)
    if prune_bias:
        assert relative_error(small(x), net(x)) < EXACT


def test_saliency_pruner_chooses_what_that_of_torch_ao_chooses():
    theirs, ours = mlp(), mlp()
    torch_ao(theirs)
    pruner = SaliencyPruner(0.5)
    pruner.prepare(ours, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}])
    pruner.step()
    assert dropped(pruner.masks()) == dropped(masks_of(theirs))
    x = inputs()
    assert relative_error(ours(x), theirs(x)) < EXACT


def test_masks_of_single_elements_by_torch_ao_count_where_they_empty_a_row():
    net, x = mlp(), inputs()
    sparsifier = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 4), zeros_per_block=4)
    sparsifier.prepare(net, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}])
    sparsifier.step()
    with pytest.warns(ChannelsStayWarning, match=r'"2": \d+ masked weights in rows that are not masked as a whole'):
        masks = masks_of(net)
    assert int((~masks["0"]).sum()) == 4
    made = plain(net)
    assert relative_error(made(x), net(x)) < EXACT
    assert list(made.state_dict()) == list(mlp().state_dict())


def test_a_model_with_hooks_is_refused_with_what_to_do():
    theirs, ours = mlp(), mlp()
    torch_ao(theirs)
    prepared(ours, {"0": [1]})
    for net in (theirs, ours):
        with pytest.raises(CaptureError) as raised:
            fxprune.transform(net, inputs(), masks=masks_of(net))
        assert str(raised.value).splitlines() == [
            "the model carries the masks and hooks of a pruner",
            '  at   "0"',
            "  why  their sizes follow the masks, not the channels",
            "  do   pruner.convert(example_inputs), or pass fxprune.pruner.plain(model), with masks=masks_of(model)",
        ]


# -- torch.nn.utils.prune ---------------------------------------------------------------------------------------


def keeping(size, *gone):
    mask = torch.ones(size)
    mask[list(gone)] = 0
    return mask


def test_masks_of_torch_prune_of_every_kind_are_read():
    net = mlp()
    prune.ln_structured(net[0], "weight", 3, n=1, dim=0)
    prune.random_structured(net[2], "weight", 2, dim=0)
    rows = net[0].weight.detach().abs().sum(1)
    masks = masks_of(net)
    assert dropped(masks)["0"] == (rows == 0).nonzero().flatten().tolist()
    assert (~masks["2"]).sum() == 2
    prune.custom_from_mask(net[0], "weight", keeping(8, 0)[:, None].expand(8, 4))
    assert dropped(masks_of(net))["0"] == sorted({0, *(rows == 0).nonzero().flatten().tolist()})


def test_torch_prune_shrinks_directly_and_plain():
    net, x = mlp(), inputs()
    prune.custom_from_mask(net[0], "weight", keeping(8, 1, 6)[:, None].expand(8, 4))
    prune.custom_from_mask(net[0], "bias", keeping(8, 1, 6))
    prune.custom_from_mask(net[2], "weight", keeping(6, 0)[:, None].expand(6, 8))
    prune.custom_from_mask(net[2], "bias", keeping(6, 0))
    net(x)  # the masked weight is the result of a computation now, which copy.deepcopy refuses
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(net)
    with pytest.warns(ChannelsStayWarning, match='masks_of ignores "0": the mask of bias; "2": the mask of bias'):
        masks = masks_of(net)
    assert dropped(masks) == {"0": [1, 6], "2": [0]}
    made = plain(net)
    assert relative_error(made(x), net(x)) < EXACT
    assert list(made.state_dict()) == list(mlp().state_dict())
    assert not any(m._forward_pre_hooks for m in made.modules())
    assert net[0]._forward_pre_hooks
    for model in (net, made):
        small = fxprune.transform(model, x, masks=masks)
        assert relative_error(small(x), net(x)) < EXACT
        assert fxprune.record(small).after[
            next(n for n in fxprune.record(small).after if n.startswith("0.weight"))
        ] == (6, 4)


def test_unstructured_masks_count_where_they_empty_a_row():
    net = mlp()
    mask = torch.ones(8, 4)
    mask[3], mask[5, :2], mask[6, 1] = 0, 0, 0
    prune.custom_from_mask(net[0], "weight", mask)
    with pytest.warns(ChannelsStayWarning, match='"0": 3 masked weights in rows that are not masked as a whole'):
        assert dropped(masks_of(net)) == {"0": [3]}
    prune.l1_unstructured(net[2], "weight", 1)
    with pytest.warns(ChannelsStayWarning, match='"2": 1 masked weights'):
        assert dropped(masks_of(net)) == {"0": [3], "2": []}


def test_transposed_convolutions_have_their_outputs_in_dimension_one():
    net = nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.ReLU(), nn.Conv2d(5, 2, 1)).double().eval()
    mask = torch.ones(3, 5, 2, 2)
    mask[:, 4] = 0
    prune.custom_from_mask(net[0], "weight", mask)
    masks = masks_of(net)
    assert dropped(masks) == {"0": [4]}
    net[0].bias.data[4] = 0
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    small = fxprune.transform(plain(net), x, masks=masks)
    assert small.get_submodule("0").out_channels == 4
    assert relative_error(small(x), net(x)) < EXACT


def test_zeros_that_prune_remove_leaves_are_no_masks():
    net, x = mlp(), inputs()
    for layer, gone in ((net[0], (1, 6)), (net[2], (0,))):
        size, width = layer.weight.shape
        prune.custom_from_mask(layer, "weight", keeping(size, *gone)[:, None].expand(size, width))
        prune.remove(layer, "weight")
        layer.bias.data = zeroed(layer.bias, gone)
    with pytest.warns(NothingRemovedWarning, match=r"no layer has a mask; rows of zeros .* are read with zeros=True"):
        assert masks_of(net) == {}
    masks = masks_of(net, zeros=True)
    assert dropped(masks) == {"0": [1, 6], "2": [0]}
    small = fxprune.transform(net, x, masks=masks)
    assert relative_error(small(x), net(x)) < EXACT
    with pytest.warns(NothingRemovedWarning, match="no output of this model is pruned: no layer has a mask$"):
        masks_of(mlp(), zeros=True)


def test_a_layer_that_is_zero_altogether_is_left_out():
    net = mlp()
    net[2].weight.data.zero_()
    net[0].weight.data[1] = 0
    with pytest.warns(ChannelsStayWarning, match='"2": the masks of all its 6 outputs, a layer cannot be empty'):
        assert dropped(masks_of(net, zeros=True)) == {"0": [1]}


# -- our own ----------------------------------------------------------------------------------------------------


def test_masks_of_this_package_are_read_before_and_after_squash():
    net, x = small_resnet(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    pruner = prepared(net, {("stem", "norm"): [1], ("block1.conv1", "block1.bn1"): [0, 5]})
    expected = {"stem": [1], "block1.conv1": [0, 5]}
    assert dropped(masks_of(net)) == expected
    made = plain(net)
    assert relative_error(made(x), net(x)) < EXACT
    assert made.norm.weight[1] == 0
    assert list(made.state_dict()) == list(small_resnet().state_dict())
    assert net.stem.weight.shape == (7, 3, 3, 3), "the original still carries its masks"
    small = fxprune.transform(made, x, masks={"block1.conv1": masks_of(net)["block1.conv1"]})
    assert relative_error(small(x), net(x)) < EXACT
    pruner.squash_mask()
    assert dropped(masks_of(net, zeros=True)) == expected
    assert relative_error(plain(net)(x), net(x)) == 0.0


def test_a_mask_that_is_read_is_a_copy():
    net = mlp()
    prepared(net, {"0": [1]})
    masks_of(net)["0"].fill_(False)
    assert dropped(masks_of(net)) == {"0": [1]}


def test_before_the_first_step_nothing_is_pruned():
    net = mlp()
    L1Pruner().prepare(net, ["0"])
    with pytest.warns(NothingRemovedWarning, match="the masks of 1 layer keep every output"):
        assert dropped(masks_of(net)) == {"0": []}


def test_plain_refuses_what_it_cannot_squash():
    net = mlp()
    prepared(net, {"0": [1]})
    parametrize.register_parametrization(net[0], "weight", nn.Tanh())
    with pytest.raises(PlanError, match=r'"0" cannot be squashed\n.*Tanh was registered'):
        plain(net)
    net = mlp()
    torch_ao(net)
    parametrize.register_parametrization(net[0], "weight", nn.Tanh())
    with pytest.raises(PlanError, match="masks and other parametrizations"):
        plain(net)


def test_layers_whose_weight_a_hook_computes_are_recounted():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 6), nn.ReLU(), nn.Linear(6, 2))
    net = net.double().eval()
    prune.ln_structured(net[0], "weight", amount=0.25, n=2, dim=0)
    prune.ln_structured(net[3], "weight", amount=0.5, n=2, dim=0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    small = fxprune.transform(net, x, masks=fxprune.masks_of(net))
    assert small.get_submodule("0").out_channels == 6
    assert (small.get_submodule("3").in_features, small.get_submodule("3").out_features) == (24, 3)
    assert fxprune.verify(net, small, x) < 1e-12
