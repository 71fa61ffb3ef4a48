"""Frozen parameters stay bit for bit under every optimizer, the others move, and all of it can be undone."""

import copy
import gc
import io

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import InputError, PlanError
from fxprune.sparse.freezing import optimizer_hooks as elements
from fxprune.sparse.freezing.parameters import freeze, unfreeze
from tests.support import randomise

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, weight_decay=0.1, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, amsgrad=True, foreach=True),
    "fused": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, weight_decay=0.1, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05, weight_decay=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=4),
}


def network():
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten()]
    return randomise(nn.Sequential(*layers, nn.Linear(16, 3)), seed=5).double()


def train(net, optimizer, steps, *, set_to_none=True, accumulate=1):
    """Steps on random batches, in training mode; gradients summed over `accumulate` batches."""
    net.train()
    for _ in range(steps):
        batches = [(torch.randn(5, 2, 6, 6).double(), torch.randn(5, 3).double()) for _ in range(accumulate)]

        def closure(batches=batches):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss = sum(nn.functional.mse_loss(net(x), y) for x, y in batches)
            loss.backward()
            return loss

        optimizer.step(closure)


def state(net):
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def moved(before, net):
    return {name for name, value in net.state_dict().items() if not torch.equal(before[name], value)}


FIRST = {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_stay_bit_for_bit_and_the_rest_moves(name, set_to_none):
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters())
    train(net, optimizer, 3, set_to_none=set_to_none)  # momentum has built up, gradients are left over
    before = state(net)
    report = freeze(net, ["0", "1"], optimizer=optimizer if name == "lbfgs" else None)
    assert report.parameters == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert report.norms == ("1",)
    train(net, optimizer, 50, set_to_none=set_to_none, accumulate=2)
    assert moved(before, net) == set(before) - FIRST


def test_momentum_and_decay_move_parameters_with_a_gradient_of_zeros():
    net = network()
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    train(net, optimizer, 3, set_to_none=False)
    before = state(net)
    net[0].weight.requires_grad_(False)  # what freeze does more than this
    train(net, optimizer, 1, set_to_none=False)
    assert "0.weight" in moved(before, net)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unfreeze_undoes_freeze(name):
    net = network()
    net[6].bias.requires_grad_(False)
    optimizer = OPTIMIZERS[name](net.parameters())
    flags = [p.requires_grad for p in net.parameters()]
    before = state(net)
    freeze(net, "*", optimizer=optimizer)
    assert not any(p.requires_grad for p in net.parameters())
    assert unfreeze(net).norms == ("1", "4")
    assert [p.requires_grad for p in net.parameters()] == flags
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert moved(before, net) == set()
    train(net, optimizer, 3)
    assert moved(before, net) == set(before) - {"6.bias"}


def test_a_part_can_be_unfrozen():
    net = network()
    freeze(net, nn.Conv2d)
    freeze(net, "1")
    assert unfreeze(net, "3").parameters == ("3.weight", "3.bias")
    before = state(net)
    train(net, OPTIMIZERS["adamw"](net.parameters()), 4)
    assert moved(before, net) == set(before) - FIRST


def test_freezing_between_forward_and_backward_leaves_no_gradient():
    net = network()
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    train(net, optimizer, 2)
    loss = net(torch.randn(5, 2, 6, 6).double()).square().mean()
    freeze(net, "0")
    before = state(net)
    loss.backward()
    optimizer.step()
    assert "0.weight" not in moved(before, net)
    assert "6.weight" in moved(before, net)


def test_patterns_choose_parameters_and_norms():
    for patterns, names in [
        ("0", ("0.weight", "0.bias")),
        ("0.weight", ("0.weight",)),
        ("?.bias", ("0.bias", "1.bias", "3.bias", "4.bias", "6.bias")),
        (nn.Linear, ("6.weight", "6.bias")),
    ]:
        assert freeze(network(), patterns).parameters == names
    net = network()
    assert freeze(net, net[6]).parameters == ("6.weight", "6.bias")
    assert len(freeze(network(), nn.Sequential).parameters) == 10


def test_parameters_frozen_already_are_reported():
    net = network()
    freeze(net, "0.weight")
    report = freeze(net, "0")
    assert report.parameters == ("0.bias",)
    assert report.unchanged == ("0.weight",)
    assert str(report) == "parameters: 0.bias\nalready so: 0.weight"
    unfreeze(net)
    assert all(p.requires_grad for p in net.parameters())


def test_tied_parameters_are_one():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert freeze(net, "1.weight").parameters == ("0.weight",)
    assert unfreeze(net[1], "weight").parameters == ("weight",)
    assert net[0].weight.requires_grad


# -- running statistics -----------------------------------------------------------------------------------


def test_a_frozen_norm_layer_computes_what_it_does_in_evaluation():
    net = network()
    x = torch.randn(5, 2, 6, 6).double()
    net.eval()
    expected = net[1](net[0](x))
    freeze(net, "1")
    net.train()
    net.eval()
    net.train()
    assert net[1].training
    assert torch.equal(net[1](net[0](x)), expected)
    unfreeze(net)
    assert not torch.allclose(net[1](net[0](x)), expected)


@pytest.mark.parametrize(
    ("patterns", "norms", "held"),
    [
        ("1", True, ("1",)),
        ("1", False, ()),
        (["1.weight", "1.bias"], True, ("1",)),
        ("1.weight", True, ()),
        ("?.weight", True, ()),
        ("*", True, ("1", "4")),
    ],
)
def test_which_norm_layers_are_frozen(patterns, norms, held):
    net = network()
    assert freeze(net, patterns, norms=norms).norms == held
    before = state(net)
    net.train()
    net(torch.randn(5, 2, 6, 6).double())
    free = {"1", "4"} - set(held)
    assert moved(before, net) == {
        f"{name}.{buffer}" for name in free for buffer in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_freezing_something_else_does_not_hold_a_norm_layer_that_was_left_running():
    net = network()
    freeze(net, "1", norms=False)
    assert freeze(net, "6").norms == ()


def test_the_mode_comes_back_when_the_layer_raises():
    net = network()
    freeze(net, "1")
    net.train()
    with pytest.raises(ValueError, match="expected 4D input"):
        net[1](torch.zeros(3).double())
    assert net[1].training


def test_layers_without_parameters_and_spectral_norm():
    net = nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)))
    assert freeze(net, "0").norms == ("0",)
    report = freeze(net, "1")
    assert report.parameters == ("1.bias", "1.parametrizations.weight.original")
    assert report.norms == ("1.parametrizations.weight.0",)
    before, weight = state(net), net[1].weight.detach().clone()
    net.train()
    net(torch.randn(5, 3))
    assert moved(before, net) == set()
    assert torch.equal(net[1].weight, weight)
    unfreeze(net)
    net(torch.randn(5, 3))
    assert "1.parametrizations.weight.0._u" in moved(before, net)


def test_torch_compile_traces_a_frozen_layer():
    net = network()
    freeze(net, "1")
    net.train()
    before = state(net)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    x = torch.randn(5, 2, 6, 6).double()
    assert torch.equal(compiled(x), net(x))
    assert {name for name in moved(before, net) if name.startswith("1.")} == set()


# -- copies, saved models, the pass -----------------------------------------------------------------------


def pickled(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_a_copy_is_as_frozen_and_can_be_unfrozen_on_its_own(again):
    net = network()
    freeze(net, ["0", "1"])
    other = again(net)
    before = state(other)
    train(other, OPTIMIZERS["adamw"](other.parameters()), 3)
    assert moved(before, other) == set(before) - FIRST
    unfreeze(other)
    train(other, OPTIMIZERS["adamw"](other.parameters()), 3)
    assert moved(before, other) == set(before)
    before = state(net)
    train(net, OPTIMIZERS["adamw"](net.parameters()), 3)
    assert moved(before, net) == set(before) - FIRST


def test_state_dict_says_nothing_of_freezing_and_loads_into_it():
    net, other = network(), network()
    keys = list(net.state_dict())
    freeze(net, "*")
    assert list(net.state_dict()) == keys
    with torch.no_grad():
        other[0].weight.add_(1)
    net.load_state_dict(other.state_dict())
    assert torch.equal(net[0].weight, other[0].weight)
    assert not net[0].weight.requires_grad


@pytest.mark.parametrize("path", ["fx", "eager"])
def test_a_pruned_model_is_frozen_where_its_original_was(path):
    net = network()
    freeze(net, ["0", "1"])
    small = fxprune.transform(net.eval(), torch.randn(5, 2, 6, 6).double(), ratio=0.5, path=path)
    before = state(small)
    train(small, OPTIMIZERS["adamw"](small.parameters()), 3)
    assert moved(before, small) == set(before) - FIRST
    unfreeze(small)
    train(small, OPTIMIZERS["adamw"](small.parameters()), 3)
    assert moved(before, small) == set(before)
    assert not net[0].weight.requires_grad
    assert len(net[1]._forward_hooks) == 1


# -- single elements --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_elements_stay_bit_for_bit_and_the_others_move(name):
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters())
    train(net, optimizer, 3)
    before = state(net)
    mask, rows = torch.rand(4, 4, 3, 3) < 0.5, torch.tensor([True, False, True, False])
    report = freeze(net, {"3.weight": mask, "0.weight": rows}, optimizer=optimizer)
    assert report.partial == {"3.weight": int(mask.sum()), "0.weight": 2 * 2 * 9}
    train(net, optimizer, 50)
    assert torch.equal(net[3].weight[mask], before["3.weight"][mask])
    assert torch.equal(net[0].weight[rows], before["0.weight"][rows])
    assert (net[3].weight != before["3.weight"])[~mask].all()
    assert (net[0].weight != before["0.weight"])[~rows].all()
    assert moved(before, net) == set(before)
    assert unfreeze(net, ["0.weight", "3.weight"]).partial == report.partial
    train(net, optimizer, 3)
    assert (net[3].weight != before["3.weight"])[mask].any()


def test_the_other_elements_move_as_if_nothing_were_frozen():
    net = nn.Linear(4, 3).double()
    with torch.no_grad():
        other = copy.deepcopy(net)
    mask = torch.rand(3, 4) < 0.5
    optimizers = [torch.optim.AdamW(m.parameters(), 0.01, weight_decay=0.1) for m in (net, other)]
    freeze(net, {"weight": mask}, optimizer=optimizers[0])
    slope = torch.randn(3, 4).double()
    for _ in range(5):
        for model, optimizer in zip((net, other), optimizers, strict=True):
            optimizer.zero_grad()
            (model.weight * slope).sum().backward()  # a gradient that does not depend on the weights
            optimizer.step()
    assert torch.equal(net.weight[~mask], other.weight[~mask])
    assert not torch.equal(net.weight[mask], other.weight[mask])
    assert torch.equal(net.weight.grad, slope.masked_fill(mask, 0))


def test_a_frozen_channel_of_a_transposed_convolution_is_an_output_channel():
    net = nn.ConvTranspose2d(3, 5, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    freeze(net, {"weight": torch.tensor([True, False, False, False, True])}, optimizer=optimizer)
    before = net.weight.detach().clone()
    net(torch.randn(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    same = net.weight == before
    assert same[:, [0, 4]].all()
    assert not same[:, 1:4].any()


def test_loaded_weights_are_kept_by_a_mask():
    net, other = network(), network()
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    mask = torch.rand(4, 4, 3, 3) < 0.5
    freeze(net, {"3.weight": mask}, optimizer=optimizer)
    with torch.no_grad():
        other[3].weight.add_(1)
    net.load_state_dict(other.state_dict())
    train(net, optimizer, 3)
    assert torch.equal(net[3].weight[mask], other[3].weight[mask])


def test_a_deep_copy_has_no_masks():
    net = network()
    freeze(net, {"3.weight": torch.rand(4, 4, 3, 3) < 0.5}, optimizer=OPTIMIZERS["adamw"](net.parameters()))
    other = copy.deepcopy(net)
    before = state(other)
    train(other, OPTIMIZERS["adamw"](other.parameters()), 2)
    assert (other[3].weight != before["3.weight"]).all()
    with pytest.raises(PlanError, match="nothing of what is named is frozen"):
        unfreeze(other)


def test_guards_die_with_their_parameters():
    gc.collect()
    before = len(elements._GUARDS)
    net = network()
    freeze(net, {"6.bias": torch.tensor([True, False, False])}, optimizer=OPTIMIZERS["adamw"](net.parameters()))
    assert len(elements._GUARDS) == before + 1
    del net
    gc.collect()
    assert len(elements._GUARDS) == before


# -- refusals ---------------------------------------------------------------------------------------------


def masked(mask, name="6.bias", other=None):
    def call(net):
        optimizer = torch.optim.SGD(other or net.parameters(), 0.1)
        return freeze(net, {"0.bias": torch.tensor([True, False, True, True]), name: mask}, optimizer=optimizer)

    return call


REFUSED = [
    (lambda net: freeze(net, "7"), PlanError, 'freeze names nothing: "7"'),
    (lambda net: freeze(net, "0.wieght"), PlanError, 'did you mean "0.weight"?'),
    (lambda net: freeze(net, ["0", "nothing*"]), PlanError, 'freeze names nothing: "nothing*"'),
    (lambda net: freeze(net, []), PlanError, "the list of patterns is empty"),
    (lambda net: freeze(net, ""), PlanError, 'freeze names nothing: ""'),
    (lambda net: freeze(net, nn.LSTM), PlanError, "a type that the model has no module of: LSTM"),
    (lambda net: freeze(net, nn.Linear(2, 2)), PlanError, "a module that is not part of the model: Linear"),
    (lambda net: freeze(net, 3), PlanError, "freeze cannot be a int"),
    (lambda net: freeze(net, nn.ReLU), PlanError, "it has no parameters and no statistics"),
    (lambda net: freeze(net, "0", optimizer="adam"), PlanError, "must be a torch.optim.Optimizer, not str"),
    (lambda net: freeze("net", "0"), InputError, "the model must be a torch.nn.Module, not str"),
    (lambda net: unfreeze(net), PlanError, "nothing of what is named is frozen"),
    (lambda net: unfreeze(net, "9"), PlanError, 'unfreeze names nothing: "9"'),
    (lambda net: freeze(net, {}), PlanError, "the dict of masks is empty"),
    (lambda net: freeze(net, {"6.bias": torch.ones(3) > 0}), PlanError, "masks need the optimizer"),
    (
        masked(torch.ones(3) / 2),
        PlanError,
        'the mask of "6.bias" is not boolean\n  at   "6.bias"\n  why  it is torch.float32',
    ),
    (masked([True, False, True]), PlanError, "it is list"),
    (masked(torch.tensor([True, False])), PlanError, "its shape is (2,), that of the parameter (3,)"),
    (masked(torch.zeros(3) > 0), PlanError, 'the mask of "6.bias" freezes nothing'),
    (
        masked(torch.ones(3) > 0),
        PlanError,
        'freezes everything\n  at   "6.bias"\n  why  all of its entries are True\n  '
        'do   pass the name alone: freeze(model, "6.bias")',
    ),
    (masked(torch.ones(3) > 0, "6.bais"), PlanError, 'freeze names nothing: "6.bais"\n  why  did you mean "6.bias"?'),
    (masked(torch.ones(3) > 0, "6"), PlanError, 'the mask of "6.weight" freezes everything'),
    (masked(torch.tensor([True, False, True]), other=[torch.zeros(1)]), PlanError, 'does not update "0.bias"'),
]


@pytest.mark.parametrize(("call", "kind", "text"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_a_refused_freeze_changes_nothing(call, kind, text):
    net = network()
    before = state(net)
    with pytest.raises(kind) as caught:
        call(net)
    assert text in str(caught.value)
    assert all(p.requires_grad for p in net.parameters())
    assert moved(before, net) == set()
    assert not any(m._forward_hooks for m in net.modules())
    with pytest.raises(PlanError, match="nothing of what is named is frozen"):
        unfreeze(net)


def test_masks_of_frozen_parameters_are_refused():
    net = network()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    mask = {"6.bias": torch.tensor([True, False, False])}
    freeze(net, "6")
    with pytest.raises(PlanError, match="all or some of it is frozen already"):
        freeze(net, mask, optimizer=optimizer)
    unfreeze(net)
    freeze(net, mask, optimizer=optimizer)
    with pytest.raises(PlanError, match="all or some of it is frozen already"):
        freeze(net, mask, optimizer=optimizer)
    with pytest.raises(PlanError, match=r'elements of "6\.bias" are frozen already'):
        freeze(net, "6")
    assert net[6].weight.requires_grad
