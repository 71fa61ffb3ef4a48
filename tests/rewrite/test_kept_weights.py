"""Weights that a layer computes with a norm keep their values when the norm is taken over less."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import fxprune


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(layer)


NORMS = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight norm of all": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "old weight norm": old_weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": spectral_norm,
}


def network(norm):
    net = nn.Sequential(
        norm(nn.Conv1d(6, 12, 3)), nn.Sigmoid(), norm(nn.ConvTranspose1d(12, 10, 2)), nn.ReLU(), nn.Conv1d(10, 3, 1)
    ).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    return net.eval()


@pytest.fixture(params=NORMS, ids=str)
def net(request):
    return network(NORMS[request.param])


X = torch.randn(2, 6, 9, dtype=torch.float64)
MASKS = {"0": torch.arange(12) % 3 > 0, "2": torch.arange(10) % 4 > 0}


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"prefer": "graph"}, {"path": "export"}], ids=str)
def test_what_stays_of_a_normed_weight_keeps_its_value(net, options):
    small = fxprune.transform(net, X, masks=MASKS, **options)
    made = fxprune.record(small)
    assert made.exact
    assert made.params[1] < made.params[0] * 0.7
    with torch.no_grad():
        want, _ = fxprune.masked(net, made.removed)(X), net(X)
        assert torch.allclose(small(X), want, rtol=0, atol=1e-12)
        assert fxprune.verify(net, small, X) < 1e-9
        if made.path == "eager":
            kept = net[2].weight[torch.arange(12) % 3 > 0][:, torch.arange(10) % 4 > 0]
            assert torch.allclose(small[2].weight, kept, rtol=0, atol=1e-12)


def test_gradients_in_training_are_those_of_the_masked_original(net):
    small = fxprune.transform(net, X, masks=MASKS)
    removed = fxprune.record(small).removed
    reference = fxprune.masked(net, removed)
    results = []
    for model in (small.train(), reference.train()):
        model(X)  # of a spectral norm, another step of its iteration
        results.append(model(X))
        results[-1].square().sum().backward()
    assert torch.allclose(*results, rtol=0, atol=1e-10)
    for name, parameter in reference.named_parameters():
        want = parameter.grad
        for dim, gone in removed.get(name, {}).items():
            want = want.index_select(dim, torch.tensor([i for i in range(want.shape[dim]) if i not in gone]))
        assert torch.allclose(small.get_parameter(name).grad, want, rtol=0, atol=1e-9), name


@pytest.mark.parametrize("norm", sorted(NORMS.keys() - {"weight norm of all"}))
def test_constants_are_folded_behind_normed_weights(norm):
    norm = NORMS[norm]
    net = nn.Sequential(norm(nn.Linear(6, 12)), nn.Sigmoid(), norm(nn.Linear(12, 10)), nn.ReLU(), nn.Linear(10, 3))
    net, x = net.double().eval(), X[:, :, 0]
    small = fxprune.transform(net, x, masks={"0": torch.arange(12) > 3}, bias="fold")
    made = fxprune.record(small)
    assert made.error < 1e-9
    assert small[0].out_features == 8
    assert torch.allclose(small(x), fxprune.masked(net, made.plan.zeroed)(x), rtol=0, atol=1e-12)


def test_a_plan_keeps_the_weights_of_another_model():
    one, two = network(parametrizations.weight_norm), network(parametrizations.weight_norm)
    plan = fxprune.analyze(one, X).plan(masks=MASKS)
    small = fxprune.transform(two, X, plan=plan)
    assert torch.allclose(small(X), fxprune.masked(two, plan.removed)(X), rtol=0, atol=1e-12)


def test_a_row_of_which_only_zeros_stay_is_zero():
    net = network(parametrizations.weight_norm)
    with torch.no_grad():
        net[2].parametrizations.weight.original1[0] = 0.0
        net[2].parametrizations.weight.original1[1, 1:] = 0.0
        net[2].parametrizations.weight.original1[0, 0] = 1.0
    small = fxprune.transform(net, X, masks={"2": torch.arange(10) > 0})
    reference = fxprune.masked(net, fxprune.record(small).removed)
    assert small(X).isfinite().all()
    assert torch.allclose(small(X), reference(X), rtol=0, atol=1e-12)


def test_the_second_pruning_keeps_the_first_ones_weights():
    net = network(parametrizations.weight_norm)
    first = fxprune.transform(net, X, masks=MASKS, prefer="graph")
    second = fxprune.transform(first, X, ratio=0.3)
    assert fxprune.record(second).exact
    removed = fxprune.record(first).plan.then(fxprune.record(second).plan).removed
    assert torch.allclose(second(X), fxprune.masked(net, removed)(X), rtol=0, atol=1e-12)


def test_a_g_of_two_weights_is_left_alone():
    net = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(6, 6)) for _ in range(2)), nn.Linear(6, 2)).double()
    net[1].parametrizations.weight.original0 = net[0].parametrizations.weight.original0
    small = fxprune.transform(net.eval(), X[:, :, 0], ratio=0.5)
    assert fxprune.verify(net, small, X[:, :, 0]) < 1e-9
    assert not fxprune.record(small).exact
