"""Pruners, configs and schedulers as they are written for `torch.ao.pruning`."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from torch import nn
from torch.ao.pruning import LambdaSL
from torch.ao.pruning._experimental.pruner import SaliencyPruner as TorchSaliency

from fxprune.errors import NothingRemovedWarning, PlanError
from fxprune.pruner import BasePruner, L1Pruner, PruningParametrization, RandomPruner, ZeroesParametrization
from tests.pruner.pruners import ListPruner, small_resnet, zeroed
from tests.support import randomise, relative_error

EXACT = 1e-12


class Saliency(BasePruner):
    """The pruner of torch.ao, with this package's base class."""

    def update_mask(self, module, tensor_name, **kwargs):
        TorchSaliency.update_mask(self, module, tensor_name, **kwargs)


def mlp():
    torch.manual_seed(0)
    return randomise(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), 0)


def convs():
    """Two convolutions with norms, of the same width, in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)),
    )
    return randomise(net, 0).double().eval()


# -- configs --------------------------------------------------------------------------------------------------


FLAT = [{"tensor_fqn": "0.weight", "prune": [1, 2]}, {"tensor_fqn": "1.weight"}]


@pytest.mark.parametrize(
    "config",
    [
        FLAT,
        FLAT[::-1],
        [{"name": "0", "prune": [1, 2]}, "1"],
        [{"name": "0", "prune": [1, 2]}, {"name": "1", "prune": [1, 2]}],
        [{"name": ("0", "1"), "prune": [1, 2]}],
    ],
)
def test_a_norm_in_a_flat_config_is_pruned_with_its_convolution(config):
    net, x = convs(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    plain = convs()
    for tensor in (plain[0].weight, plain[0].bias, plain[1].weight, plain[1].bias):
        tensor.data = zeroed(tensor, [1, 2])
    pruner = ListPruner()
    pruner.prepare(net, config)
    pruner.step()
    assert relative_error(net(x), plain(x)) < EXACT
    assert pruner.masks().keys() == {"0"}, "one mask for both"
    assert type(net[0].parametrizations.weight[0]) is PruningParametrization
    assert isinstance(net[1].parametrizations.weight[0], ZeroesParametrization)
    assert net[1].parametrizations.weight[0].pruned_outputs == {1, 2}
    assert net[1].weight.shape == (8,)
    assert "6 of 8" in repr(net[1].parametrizations.weight[0])
    pruner.squash_mask()
    assert relative_error(net(x), plain(x)) < EXACT


def test_norms_follow_through_activations_and_subclasses():
    class Own(nn.Conv2d):
        pass

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.other = Own(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
            self.second = nn.Conv2d(8, 8, 3)

        def forward(self, x):
            x = self.norm(torch.relu(self.first(x)))
            return self.other(self.second(x) + 1)

    pruner = ListPruner()
    net = Net()
    pruner.prepare(net, [{"name": n, "prune": [k]} for k, n in enumerate(("first", "second", "other"))] + ["norm"])
    pruner.step()
    assert net.norm.parametrizations.weight[0].pruned_outputs == {0}
    assert net.other.parametrizations.weight[0].pruned_outputs == {2}, "a sum is before it: it has a mask of its own"
    assert pruner.masks().keys() == {"first", "second", "other"}


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else x


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.a(x)) + self.norm(self.b(x))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.also = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) + self.also(x)


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (Deciding, ["conv", "norm"], r'the layer that "norm" follows is not known\n.*traced.*\n.*\("conv", "norm"\)'),
        (Shared, ["a", "norm"], r'"norm" follows is not known\n.*several layers: "a", "b"'),
        (Twice, ["conv", "norm", "also"], r'"also" follows is not known\n.*"norm" follows "conv" already'),
        (Twice, [{"name": "conv", "a": 1}, {"name": "norm", "a": 2}], r'"norm" has other settings than "conv"'),
    ],
)
def test_norms_whose_layer_is_not_known_are_refused(make, config, message):
    net = make()
    state = list(net.state_dict())
    with pytest.raises(PlanError, match=message):
        ListPruner().prepare(net, config)
    assert list(net.state_dict()) == state
    if make is Deciding:
        ListPruner().prepare(net, [("conv", "norm")])


@pytest.mark.parametrize(
    ("config", "biases"),
    [
        ([{"name": ("0", "1"), "prune_bias": False}, "4"], (False, False, True)),
        ([{"tensor_fqn": "0.weight", "prune_bias": False}, {"tensor_fqn": "1.weight"}, "4"], (False, False, True)),
        ([{"name": "0"}, {"name": "1", "prune_bias": False}, {"name": "4", "prune_bias": False}], (True, False, False)),
        ([("0", "1"), "4"], (True, True, True)),
    ],
)
@pytest.mark.parametrize("default", ["argument", "defaults", None])
def test_prune_bias_is_a_setting_of_each_layer(config, biases, default):
    class Two(BasePruner):
        def update_mask(self, layer, **kwargs):
            assert "prune_bias" not in kwargs
            layer.parametrizations.weight[0].pruned_outputs.update([1, 2])

    net, plain, x = convs(), convs(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    pruner = Two({"prune_bias": False} if default == "defaults" else None, default != "argument")
    pruner.prepare(net, config)
    pruner.step()
    said = {0: [e for e in config if "prune_bias" in str(e)]}
    for index, zero in zip((0, 1, 4), biases, strict=True):
        plain[index].weight.data = zeroed(plain[index].weight, [1, 2])
        if zero and default is None:
            plain[index].bias.data = zeroed(plain[index].bias, [1, 2])
    assert relative_error(net(x), plain(x)) < EXACT, said
    pruner.squash_mask()
    assert relative_error(net(x), plain(x)) < EXACT


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (L1Pruner, {"sparsity": 0.5}, "there is no setting 'sparsity'"),
        (
            ListPruner,
            {"prune": [0], "prune_biases": False},
            "no setting 'prune_biases'\n.*\n.*did you mean .*prune_bias",
        ),
        (ListPruner, {"prune": [0], "also_prune_bias": False}, "there is no setting 'also_prune_bias'"),
        (ListPruner, {"prune": [0], "parametrization": nn.Identity}, "there is no setting 'parametrization'"),
        (ListPruner, {"prune": [0], "prune_bias": 0}, "prune_bias must be True or False, not 0"),
    ],
)
def test_unknown_settings_are_refused_before_anything_changes(kind, settings, message):
    net = mlp()
    with pytest.raises(PlanError, match=message):
        kind().prepare(net, [{"name": "0", **settings}])
    assert list(net.state_dict()) == list(mlp().state_dict())


def test_the_signature_says_which_settings_there_are():
    class Chosen(BasePruner):
        def update_mask(self, layer, prune, *, more=()):
            layer.parametrizations.weight[0].pruned_outputs.update([*prune, *more])

    for settings, message in (
        ({}, "the setting 'prune' is missing\n  at   layer \"0\""),
        ({"prune": [0], "mor": [1]}, 'there is no setting \'mor\'\n  at   layer "0"\n  why  did you mean "more"'),
    ):
        with pytest.raises(PlanError, match=message):
            Chosen().prepare(mlp(), [{"name": "0", **settings}])
    net, pruner = mlp(), Chosen({"more": [2]})
    pruner.prepare(net, [{"name": "0", "prune": [1]}])
    pruner.step()
    assert (~pruner.masks()["0"]).nonzero().flatten().tolist() == [1, 2]


# -- pruners and schedulers -------------------------------------------------------------------------------------


def test_a_pruner_of_torch_ao_chooses_the_same_step_after_step():
    ours, theirs = mlp(), mlp()
    config = [{"tensor_fqn": "0.weight", "sparsity_level": 0.25}, {"tensor_fqn": "2.weight"}]
    pruners = Saliency({"sparsity_level": 0.5}), TorchSaliency({"sparsity_level": 0.5})
    for pruner, net in zip(pruners, (ours, theirs), strict=True):
        pruner.prepare(net, config)
    for level in (0.25, 0.5, 0.75):
        for pruner in pruners:
            pruner.groups[0]["sparsity_level"] = level
            pruner.step()
        for fqn, state in pruners[1].state.items():
            assert torch.equal(pruners[0].state[fqn]["mask"], state["mask"])
    assert pruners[0].masks()["0"].sum() == 2
    assert ours[0].weight.shape == (2, 4), "outside of update_mask the pruned rows are gone"
    x = torch.randn(3, 4)
    assert relative_error(ours(x), theirs(x)) < 1e-6


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Linear(4, 6)])
def test_update_mask_of_torch_ao_sees_the_weight_in_its_original_shape(layer):
    shapes = []

    class Writer(BasePruner):
        def update_mask(self, module, tensor_name, tensor_fqn, prune):
            shapes.append(
                (tensor_fqn, getattr(module, tensor_name).shape, getattr(module, tensor_name).count_nonzero())
            )
            getattr(module.parametrizations, tensor_name)[0].mask.data[prune] = False

    net, pruner = nn.Sequential(layer), Writer()
    full = layer.weight.shape
    pruner.prepare(net, [{"name": "0", "prune": [1, 2]}])
    pruner.step()
    pruner.step()
    assert [s[:2] for s in shapes] == [("0.weight", full)] * 2
    assert shapes[1][2] * 3 == shapes[0][2] * 2, "a third is zero in the second step"


def test_groups_and_state_are_those_of_torch_ao():
    net, pruner = mlp(), L1Pruner(0.25)
    pruner.prepare(net, [{"tensor_fqn": "0.weight", "sparsity_level": 0.5}, {"tensor_fqn": "2.weight"}])
    first = {"module": net[0], "module_fqn": "0", "tensor_name": "weight", "tensor_fqn": "0.weight"}
    assert pruner.groups[0] == {**first, "sparsity_level": 0.5}
    assert pruner.groups[1]["sparsity_level"] == 0.25
    mask = pruner.state["0.weight"]["mask"]
    pruner.step()
    assert pruner.state["0.weight"]["mask"] is mask, "the mask itself"
    assert mask.sum() == 4
    pruner.groups[1]["sparsity_level"] = 0.5
    pruner.step()
    assert pruner.masks()["2"].sum() == 3
    pruner.enable_mask_update = False
    pruner.groups[1]["sparsity_level"] = 0.75
    pruner.step()
    assert (pruner.steps, int(pruner.masks()["2"].sum())) == (2, 3)


def test_lambda_sl_of_torch_ao_schedules_the_levels():
    net, pruner = mlp(), L1Pruner(0.5)
    pruner.prepare(net, pruner.make_config_from_model(net))
    scheduler = LambdaSL(pruner, sl_lambda=[lambda epoch: epoch / 2, lambda epoch: 1.0])
    kept = []
    for _ in range(3):
        pruner.step()
        kept.append([int(mask.sum()) for mask in pruner.masks().values()])
        scheduler.step()
    assert kept == [[8, 3], [6, 3], [4, 3]]
    assert scheduler.get_last_sl() == [0.75, 0.5]


def test_a_config_is_made_from_the_model():
    pruner, net = L1Pruner(0.25), convs()
    assert pruner.make_config_from_model(net) == [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "4.weight"}]
    assert pruner.config == [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "4.weight"}]
    assert RandomPruner().make_config_from_model(small_resnet(), {nn.Linear}) == [{"tensor_fqn": "head.weight"}]
    pruner.prepare(net, config=pruner.config)
    pruner.step()
    assert [int(mask.sum()) for mask in pruner.masks().values()] == [6, 6]


def test_squash_mask_keeps_the_settings_that_are_named():
    net, pruner = mlp(), L1Pruner(0.25)
    pruner.prepare(net, [{"tensor_fqn": "0.weight", "prune_bias": False}, {"tensor_fqn": "2.weight"}])
    pruner.step()
    for options, message in (
        ({"params_to_keep": ("sparsity",)}, "\"0\" has no setting 'sparsity'\n"),
        ({"params_to_keep_per_layer": {"3": ("sparsity_level",)}}, 'names no prepared layer: "3"'),
    ):
        with pytest.raises(PlanError, match=message):
            pruner.squash_mask(**options)
    assert net[0].weight.shape == (6, 4), "nothing is changed"
    pruner.squash_mask(params_to_keep=("sparsity_level",), params_to_keep_per_layer={"0": ("prune_bias",)})
    assert net[0].sparse_params == {"sparsity_level": 0.25, "prune_bias": False}
    assert net[2].sparse_params == {"sparsity_level": 0.25}
    with_none = L1Pruner(0.25)
    with_none.prepare(net, ["0"])
    with_none.step()
    del net[0].sparse_params
    with_none.squash_mask()
    assert not hasattr(net[0], "sparse_params")


def test_a_state_dict_of_the_pruner_holds_the_masks(tmp_path):
    config = [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight", "sparsity_level": 0.5}]
    nets, pruners = [mlp(), mlp()], [RandomPruner(0.25, seed=seed) for seed in (0, 1)]
    for net, pruner in zip(nets, pruners, strict=True):
        pruner.prepare(net, config)
    pruners[0].step()
    pruners[0].groups[0]["sparsity_level"] = 0.5
    torch.save(pruners[0].state_dict(), tmp_path / "pruner.pt")
    pruners[1].load_state_dict(torch.load(tmp_path / "pruner.pt"))
    assert pruners[1].steps == 1
    assert all(torch.equal(mask, pruners[1].masks()[name]) for name, mask in pruners[0].masks().items())
    assert pruners[1].masks()["0"].sum() == 6
    assert pruners[1].groups[0]["sparsity_level"] == 0.5
    x = torch.randn(2, 4)
    assert torch.equal(nets[0](x), nets[1](x))
    pruners[0].state_dict()["state"]["0.weight"]["mask"].fill_(False)
    assert pruners[0].masks()["0"].sum() == 6, "a copy"
    assert L1Pruner().state_dict() == {"steps": 0, "state": {}, "groups": []}


def test_a_state_of_torch_ao_is_loaded_and_a_wrong_one_refused():
    ours, theirs = L1Pruner(0.5), TorchSaliency({"sparsity_level": 0.5})
    ours.prepare(mlp(), ["0"])
    theirs.prepare(mlp(), [{"tensor_fqn": "0.weight"}])
    theirs.step()
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.masks()["0"], theirs.state["0.weight"]["mask"])
    assert ours.steps == 0
    before = ours.masks()["0"]
    for state, message in (
        (
            {"0.weight": {"mask": torch.ones(3) > 0}},
            r"does not fit\n  at   0.weight\n.*torch.bool \(3,\), .* 8 outputs",
        ),
        ({"0.weight": {"mask": torch.zeros(8) > 0}}, r"does not fit"),
        ({"2.weight": {"mask": torch.ones(6) > 0}}, r"of other layers\n.*it has 2.weight"),
    ):
        with pytest.raises(PlanError, match=message):
            ours.load_state_dict({"steps": 5, "state": state, "groups": []})
    assert torch.equal(ours.masks()["0"], before)
    assert ours.steps == 0
    ours.load_state_dict({"steps": 5, "state": {"2.weight": {"mask": torch.ones(6) > 0}}}, strict=False)
    assert ours.steps == 5
    with pytest.raises(PlanError, match="with masks was called before prepare"):
        L1Pruner().load_state_dict(ours.state_dict())


# -- the document of the eager pruner ---------------------------------------------------------------------------


def test_the_pruner_of_the_document_prunes_a_third():
    class ImplementedPruner(BasePruner):
        def update_mask(self, layer, **kwargs):
            param = layer.parametrizations.weight[0]  # PruningParametrization
            all_outputs = param.original_outputs
            prune = random.sample(all_outputs, len(all_outputs) // 3)
            param.pruned_outputs.update(prune)

    model, config = convs(), [{"module": None}, {"module": None}]
    config[0]["module"], config[1]["module"] = model[0], model[1]
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    pruner = ImplementedPruner(defaults=None, also_prune_bias=True)
    pruner.prepare(model, config)
    pruner.step()
    seen = model(x)
    pruner.squash_mask()
    assert relative_error(model(x), seen) < EXACT
    gone = (model[0].weight.flatten(1).abs().sum(1) == 0).nonzero().flatten().tolist()
    assert len(gone) == 2
    assert model[0].bias[gone].tolist() == model[1].weight[gone].tolist() == model[1].bias[gone].tolist() == [0, 0]


def test_a_parametrization_is_made_from_a_set_of_outputs():
    for outputs in ({0, 1, 2, 3}, frozenset(range(4)), range(4), torch.tensor(4), 4):
        param = PruningParametrization(outputs)
        assert param.original_outputs == {0, 1, 2, 3}
        param.pruned_outputs.update({1})
        assert param(torch.arange(8.0).view(4, 2)).shape == (3, 2)
    for wrong in ({1, 2}, {0, 2}, set(), 0, True, 2.5, "4", torch.ones(2)):
        with pytest.raises(PlanError, match="the outputs must be their number or the set of all"):
            PruningParametrization(wrong)


def test_nothing_pruned_still_warns():
    class Idle(BasePruner):
        def update_mask(self, module, tensor_name, **kwargs):
            pass

    pruner = Idle()
    pruner.prepare(mlp(), ["0"])
    with pytest.warns(NothingRemovedWarning, match="Idle.update_mask left every output"):
        pruner.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.enable_mask_update = False
        pruner.step()
