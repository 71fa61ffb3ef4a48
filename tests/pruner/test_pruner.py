"""Prepare, step and squash: outputs, training, saved state, and the model afterwards."""

from __future__ import annotations

import copy
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxprune.errors import NothingRemovedWarning, PlanError
from fxprune.pruner import BasePruner, L1Pruner, PruningParametrization, RandomPruner, ZeroesParametrization
from tests.pruner.pruners import ListPruner, prepared, small_resnet, zeroed
from tests.support import randomise, relative_error

EXACT = 1e-12


def layer_and_input(kind):
    """A layer with 6 outputs, an input, and the dimension of the outputs in its weight."""
    cases = {
        "linear": (nn.Linear(4, 6), (3, 4)),
        "linear, tokens": (nn.Linear(4, 6), (2, 3, 5, 4)),
        "linear, one": (nn.Linear(4, 6), (4,)),
        "linear, no bias": (nn.Linear(4, 6, bias=False), (3, 4)),
        "conv1d": (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 7)),
        "conv2d": (nn.Conv2d(4, 6, 3, stride=2), (2, 4, 7, 9)),
        "conv2d, no batch": (nn.Conv2d(4, 6, 3), (4, 7, 9)),
        "conv2d, reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 9)),
        "conv2d, groups": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 9)),
        "conv2d, depthwise": (nn.Conv2d(6, 6, 3, groups=6), (2, 6, 7, 9)),
        "conv3d": (nn.Conv3d(4, 6, 2), (2, 4, 3, 4, 5)),
        "transposed1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5)),
        "transposed2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5, 3)),
        "transposed3d": (nn.ConvTranspose3d(4, 6, 2), (1, 4, 3, 2, 3)),
    }
    layer, shape = cases[kind]
    return (
        layer.double(),
        torch.randn(shape, dtype=torch.float64),
        int(isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)),
    )


KINDS = """linear|linear, tokens|linear, one|linear, no bias|conv1d|conv2d|conv2d, no batch|conv2d, reflect|
conv2d, groups|conv2d, depthwise|conv3d|transposed1d|transposed2d|transposed3d""".replace("\n", "").split("|")


@pytest.mark.parametrize("also_prune_bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_layer_is_the_layer_with_zeros_in_its_rows(kind, also_prune_bias):
    layer, x, dim = layer_and_input(kind)
    plain, net = copy.deepcopy(layer), nn.Sequential(layer)
    before = net(x)
    pruner = ListPruner(also_prune_bias=also_prune_bias)
    pruner.prepare(net, [{"module": layer, "prune": [1, 4, 5]}])
    assert relative_error(net(x), before) < EXACT, "nothing is pruned yet"
    pruner.step()

    plain.weight.data = zeroed(plain.weight, [1, 4, 5], dim)
    if plain.bias is not None and also_prune_bias:
        plain.bias.data = zeroed(plain.bias, [1, 4, 5])
    assert relative_error(net(x), plain(x)) < EXACT
    assert net(x).shape == before.shape

    pruner.squash_mask()
    assert relative_error(net(x), plain(x)) < EXACT
    assert type(layer) is type(plain)
    assert not layer._forward_hooks
    assert [(n, p.shape) for n, p in layer.named_parameters()] == [(n, p.shape) for n, p in plain.named_parameters()]
    for ours, reference in zip(layer.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, reference)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("also_prune_bias", [True, False])
def test_a_batch_norm_loses_the_channels_of_its_convolution(also_prune_bias, training):
    net = randomise(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), 0).double().train(training)
    plain = copy.deepcopy(net)
    pruner = prepared(net, {("0", "1"): [0, 3]}, also_prune_bias=also_prune_bias)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    tensors = (plain[0].weight, plain[0].bias, plain[1].weight, plain[1].bias)
    for tensor in tensors if also_prune_bias else (tensors[0], tensors[2]):
        tensor.data = zeroed(tensor, [0, 3])
    assert relative_error(net(x), plain(x)) < EXACT
    assert net[1].weight.shape == (6,)
    assert net[1].weight[[0, 3]].tolist() == [0, 0]
    assert pruner.masks().keys() == {"0"}
    pruner.squash_mask()
    assert relative_error(net.state_dict()["1.weight"], plain.state_dict()["1.weight"]) == 0.0
    assert relative_error(net(x), plain(x)) < EXACT


def test_a_batch_norm_alone_has_a_mask_of_its_own():
    net = randomise(nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), 0).double().eval()
    pruner = prepared(net, {"1": [2]})
    out = net(torch.randn(2, 3, 5, dtype=torch.float64))
    assert out[:, 2].abs().max() == 0
    assert (out.abs().amax((0, 2)) > 0).sum() == 5
    assert isinstance(net[1].parametrizations.weight[0], ZeroesParametrization)
    assert pruner.masks()["1"].tolist() == [True, True, False, True, True, True]


def test_attributes_that_torch_ao_users_know_are_there():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    class ImplementedPruner(BasePruner):
        def update_mask(self, layer, **kwargs):
            param = layer.parametrizations.weight[0]  # PruningParametrization
            all_outputs = param.original_outputs
            prune = random.sample(all_outputs, len(all_outputs) // 3)
            param.pruned_outputs.update(prune)

    pruner = ImplementedPruner(defaults=None, also_prune_bias=True)
    pruner.prepare(net, [net[0]])
    param = net[0].parametrizations.weight[0]
    assert isinstance(param, PruningParametrization)
    assert (param.original_outputs, param.pruned_outputs) == (set(range(6)), set())
    assert (net[0].bias, net[0]._bias.shape) == (None, (6,))
    pruner.step()
    assert len(param.pruned_outputs) == 2
    assert net[0].weight.shape == (4, 4)
    assert (net[0](torch.randn(3, 4)) == 0).all(0).nonzero().flatten().tolist() == sorted(param.pruned_outputs)


def test_a_mask_written_by_update_mask_itself_counts():
    """Writes the mask as pruners for torch.ao do: mask.data[rows] = False."""
    net = nn.Sequential(nn.Linear(4, 6))

    class Writer(BasePruner):
        def update_mask(self, layer, **kwargs):
            layer.parametrizations.weight[0].mask.data[[1, 2]] = False

    pruner = Writer()
    pruner.prepare(net)
    pruner.step()
    assert net[0].weight.shape == (4, 4)
    assert (net[0](torch.randn(3, 4))[:, [1, 2]] == 0).all()


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, 0.1), lambda p: torch.optim.Adam(p, 0.1)])
def test_gradients_reach_kept_rows_only(optimizer):
    """Against the same training of the plain layers, whose outputs are multiplied by the mask."""
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    reference, keep = copy.deepcopy(net), torch.tensor([1.0, 0, 1, 1, 0, 1], dtype=torch.float64)
    ours, theirs = optimizer(net.parameters()), optimizer(reference.parameters())  # before prepare: still valid
    prepared(net, {"0": [1, 4]})
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    for _ in range(5):
        ours.zero_grad()
        loss = F.mse_loss(net(x), y)
        loss.backward()
        ours.step()
        theirs.zero_grad()
        expected = F.mse_loss(reference[2](torch.tanh(reference[0](x) * keep)), y)
        expected.backward()
        theirs.step()
        assert relative_error(loss, expected) < EXACT
    original = net[0].parametrizations.weight.original
    assert original.grad[[1, 4]].abs().max() == 0
    assert net[0]._bias.grad[[1, 4]].abs().max() == 0
    assert relative_error(original, reference[0].weight) < EXACT
    assert relative_error(net[0]._bias, reference[0].bias) < EXACT


def test_an_output_can_come_back():
    net = nn.Sequential(nn.Linear(4, 6)).double()
    plain, x = copy.deepcopy(net), torch.randn(3, 4, dtype=torch.float64)
    prepared(net, {"0": [1, 4]})
    net[0].parametrizations.weight[0].pruned_outputs.remove(4)
    plain[0].weight.data, plain[0].bias.data = zeroed(plain[0].weight, [1]), zeroed(plain[0].bias, [1])
    assert relative_error(net(x), plain(x)) < EXACT


def test_a_state_dict_holds_the_masks():
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    nets = [small_resnet(seed) for seed in (0, 1)]
    config = [("stem", "norm"), ("block1.conv1", "block1.bn1"), "block2.conv1"]
    pruners = [RandomPruner(0.5, seed=seed) for seed in (0, 1)]
    for net, pruner in zip(nets, pruners, strict=True):
        pruner.prepare(net, config)
        pruner.step()
    pruners[0].step()
    state = nets[0].state_dict()
    assert state["stem.parametrizations.weight.0.mask"].sum() == 4
    assert sum("mask" in key for key in state) == 3, "one per layer, none per batch norm"
    nets[1].load_state_dict(state)
    pruners[1].load_state_dict(pruners[0].state_dict())
    assert pruners[1].steps == 2
    assert relative_error(nets[1](x), nets[0](x)) == 0.0
    assert (
        nets[1].stem.parametrizations.weight[0].pruned_outputs == nets[0].stem.parametrizations.weight[0].pruned_outputs
    )
    assert nets[1].stem.parametrizations.weight[0].pruned_outputs, "not empty"
    nets[1].load_state_dict(state, assign=True)
    assert relative_error(nets[1](x), nets[0](x)) == 0.0


def test_a_state_dict_that_prunes_all_is_refused():
    net = nn.Sequential(nn.Linear(4, 3))
    prepared(net, {"0": [0]})
    state = net.state_dict()
    state["0.parametrizations.weight.0.mask"] = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="prunes all 3 outputs of the layer"):
        net.load_state_dict(state)


def test_a_deep_copy_is_on_its_own():
    net, x = small_resnet(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    pruner = prepared(net, {("stem", "norm"): [0, 1], ("block1.conv1", "block1.bn1"): [5]})
    before, clone = net(x), copy.deepcopy(net)
    assert relative_error(clone(x), before) == 0.0
    clone.stem.parametrizations.weight[0].pruned_outputs.update([2, 3, 4])
    changed = clone(x)
    assert relative_error(changed, before) > 1e-3
    assert relative_error(net(x), before) == 0.0
    assert clone.norm.weight[[2, 3, 4]].abs().max() == 0, "the copied batch norm follows the copied convolution"
    pruner.squash_mask()
    assert relative_error(net(x), before) < EXACT
    assert relative_error(clone(x), changed) == 0.0
    with torch.no_grad():
        net.stem.weight.fill_(7.0)
    assert relative_error(clone(x), changed) == 0.0


def test_pruned_layers_run_in_half_precision_and_under_autocast():
    net, x = small_resnet().float(), torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dtypes = net.stem(x).dtype, net.head(torch.randn(2, 8)).dtype
    prepared(net, {"stem": [0, 1], "head": [2]})
    exact = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (net.stem(x).dtype, net.head(torch.randn(2, 8)).dtype) == dtypes == (torch.bfloat16, torch.bfloat16)
        assert relative_error(net(x).float(), exact) < 0.1
    assert relative_error(net.half()(x.half()).float(), exact) < 0.02


def test_it_compiles_without_a_break():
    net, x = small_resnet(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    prepared(net, {("stem", "norm"): [0, 1], ("block1.conv1", "block1.bn1"): [5], "head": [0]})
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert relative_error(compiled(x), net(x)) < EXACT
    net.stem.parametrizations.weight[0].pruned_outputs.add(7)
    assert relative_error(compiled(x), net(x)) < EXACT


def test_hooks_of_other_code_see_outputs_of_the_original_size():
    net, seen = nn.Sequential(nn.Linear(4, 6)), []
    net[0].register_forward_hook(
        lambda module, args, output: seen.append(("before", output.shape, bool((output[:, 1] == 0).all())))
    )
    pruner = prepared(net, {"0": [1]})
    net[0].register_forward_hook(
        lambda module, args, output: seen.append(("after", output.shape, bool((output[:, 1] == 0).all())))
    )
    net(torch.randn(3, 4))
    assert seen == [("before", (3, 6), True), ("after", (3, 6), True)]
    pruner.squash_mask()
    net(torch.randn(3, 4))
    assert len(seen) == 4, "and are still there after squash_mask"


def test_squash_keeps_what_optimizers_and_training_hold():
    net = small_resnet().train()
    net.stem.requires_grad_(False)
    net.block1.eval()
    parameters = dict(net.named_parameters())
    order = list(parameters)
    flags = {name: (p.requires_grad, id(p)) for name, p in parameters.items()}
    modes = {name: m.training for name, m in net.named_modules()}
    pruner = prepared(net, {("stem", "norm"): [0, 1], ("block1.conv1", "block1.bn1"): [5], "head": [0]})
    net(torch.randn(2, 3, 6, 6, dtype=torch.float64)).sum().backward()
    assert net.stem.parametrizations.weight.original is parameters["stem.weight"]
    pruner.squash_mask()
    assert {name: (p.requires_grad, id(p)) for name, p in net.named_parameters()} == flags
    assert list(dict(net.named_parameters())) == order
    assert {name: m.training for name, m in net.named_modules()} == modes
    assert net.head.weight.grad is not None
    assert pruner.masks()["head"].tolist() == [False, True, True, True, True]
    for again in (pruner.step, pruner.squash_mask):
        with pytest.raises(PlanError, match=f"{again.__name__} was called after squash_mask"):
            again()
    pruner.prepare(net, ["block2.conv1"])
    assert pruner.masks().keys() == {"block2.conv1"}


def test_layers_called_twice_and_in_traced_graphs_are_sampled():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
            self.alias = self.inner

        def forward(self, x):
            return self.head(torch.tanh(self.alias(torch.tanh(self.inner(x)))))

    net, x = Twice().double(), torch.randn(3, 4, dtype=torch.float64)
    plain = copy.deepcopy(net)
    plain.inner.weight.data, plain.inner.bias.data = zeroed(plain.inner.weight, [1]), zeroed(plain.inner.bias, [1])
    traced = torch.fx.symbolic_trace(copy.deepcopy(net))
    assert prepared(net, {"alias": [1]}).masks().keys() == {"inner"}
    prepared(traced, {"inner": [1]})
    assert relative_error(net(x), plain(x)) < EXACT
    assert relative_error(traced(x), plain(x)) < EXACT


def test_frozen_layers_are_pruned_all_the_same():
    net = nn.Sequential(nn.Linear(4, 6)).requires_grad_(False)
    pruner = L1Pruner(0.5)
    pruner.prepare(net)
    pruner.step()
    assert net[0].weight.shape == (3, 4)
    pruner.squash_mask()
    assert not any(p.requires_grad for p in net.parameters())
    assert (net[0].weight.abs().sum(1) == 0).sum() == 3


# -- refusals -------------------------------------------------------------------------------------------------


def test_step_before_prepare_and_prepare_twice_are_refused():
    pruner = L1Pruner()
    for method in (pruner.step, pruner.squash_mask, pruner.masks, lambda: pruner.convert(torch.zeros(1))):
        with pytest.raises(PlanError, match=r"was called before prepare\n.*prepare\(model, config\) first"):
            method()
    pruner.prepare(nn.Sequential(nn.Linear(4, 6)))
    with pytest.raises(PlanError, match=r"has prepared a model already\n.*squash_mask\(\) first"):
        pruner.prepare(nn.Sequential(nn.Linear(4, 6)))


def test_a_step_that_fails_leaves_all_masks():
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    pruner = ListPruner()
    pruner.prepare(net, [{"name": "0", "prune": [1]}, {"name": "1", "prune": [0, 1, 2]}])
    before = net(torch.ones(1, 4))
    with pytest.raises(PlanError, match='all 3 outputs would be pruned\n  at   layer "1"\n'):
        pruner.step()
    assert pruner.steps == 0
    assert all(mask.all() for mask in pruner.masks().values())
    assert torch.equal(net(torch.ones(1, 4)), before)

    class Broken(BasePruner):
        def update_mask(self, layer, **kwargs):
            layer.parametrizations.weight[0].mask = torch.zeros(2)

    net = nn.Sequential(nn.Linear(4, 6))
    pruner = Broken()
    pruner.prepare(net)
    with pytest.raises(
        PlanError, match=r'must be a bool tensor with one entry per output\n  at   layer "0"\n.*float32'
    ):
        pruner.step()
    assert net[0](torch.ones(1, 4)).shape == (1, 6)


def test_a_pruner_that_does_nothing_warns():
    class Idle(BasePruner):
        def update_mask(self, layer, **kwargs):
            pass

    pruner = Idle()
    pruner.prepare(nn.Sequential(nn.Linear(4, 6)))
    with pytest.warns(NothingRemovedWarning, match="no output is pruned: step was not called"):
        pruner.squash_mask()
    pruner.prepare(nn.Sequential(nn.Linear(4, 6)))
    with pytest.warns(
        NothingRemovedWarning, match="step 1 pruned nothing: Idle.update_mask left every output of 1 layer"
    ):
        pruner.step()


def test_a_lost_parametrization_is_noticed():
    net = nn.Sequential(nn.Linear(4, 6))
    pruner = L1Pruner()
    pruner.prepare(net)
    nn.utils.parametrize.register_parametrization(net[0], "weight", nn.Tanh())
    with pytest.raises(PlanError, match=r'"0" cannot be squashed\n.*Tanh was registered on its weight after'):
        pruner.squash_mask()
    nn.utils.parametrize.remove_parametrizations(net[0], "weight", leave_parametrized=False)
    with pytest.raises(PlanError, match='"0" has lost the parametrization'):
        pruner.step()


def test_a_state_that_is_no_state_is_refused():
    with pytest.raises(PlanError, match=r"no state of a pruner\n.*steps are None\n.*pass state_dict\(\)"):
        L1Pruner().load_state_dict({})


def test_defaults_and_settings_reach_update_mask():
    seen = []

    class Recorder(BasePruner):
        def update_mask(self, layer, **kwargs):
            seen.append(kwargs)

    pruner = Recorder({"a": 1, "b": 2})
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    pruner.prepare(net, [{"tensor_fqn": "0.weight", "b": 3, "c": 4}, "1"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingRemovedWarning)
        pruner.step()
    assert seen == [{"a": 1, "b": 3, "c": 4}, {"a": 1, "b": 2}]
    with pytest.raises(PlanError, match="defaults must be a dict, not int"):
        Recorder(3)
