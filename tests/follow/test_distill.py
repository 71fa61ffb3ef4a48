"""`distillation`: losses between a small model and its original."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fxprune
from tests.depth.models import Residuals, made
from tests.follow.nets import batch, kept, net, pruned, step
from tests.follow.test_optimizers import Scaled


def test_the_losses_are_relative_squared_errors_at_the_channels_that_stay() -> None:
    model = net()
    small = pruned(model)
    removed = fxprune.record(small).removed
    made = fxprune.distillation(small, model, batch(0), layers=["norm", "inner"])(batch(1))
    x = batch(1)
    expected = {}
    for name, path in (("norm", lambda m: m.norm(m.stem(x))), ("inner", lambda m: m.inner(m.norm(m.stem(x)).relu()))):
        target = kept(path(model), {1: removed[f"{name}.weight"][0]})
        expected[name] = (path(small) - target).square().sum() / target.square().sum()
    assert {name: loss.item() for name, loss in made.layers.items()} == pytest.approx(
        {name: loss.item() for name, loss in expected.items()}, rel=1e-12, abs=1e-30
    )
    assert made.layers["norm"].item() == 0  # nothing before it was removed
    assert made.layers["inner"].item() > 0
    assert made.features.item() == pytest.approx(sum(expected.values()).item() / 2, rel=1e-12)
    error = (small(x) - model(x)).square().sum() / model(x).square().sum()
    assert made.outputs.item() == pytest.approx(error.item(), rel=1e-12)
    assert torch.equal(made.output, small(x))
    assert torch.equal(made.target, model(x))


def test_only_the_small_model_gets_gradients() -> None:
    model = net()
    small = pruned(model)
    made = fxprune.distillation(small, model, batch(0), layers=["inner"])(batch(1))
    (made.features + made.outputs).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert bool(small.inner.weight.grad.any())
    assert not made.target.requires_grad


def test_training_on_them_brings_the_small_model_nearer() -> None:
    model = net()
    small = pruned(model)
    distill = fxprune.distillation(small, model, batch(0), layers=["inner", "outer"])
    optimizer = torch.optim.Adam(small.parameters(), 0.01)
    losses = []
    for seed in range(30):
        made = distill(batch(seed))
        optimizer.zero_grad()
        (made.features + made.outputs).backward()
        optimizer.step()
        losses.append(made.outputs.item())
    assert losses[-1] < losses[0] / 2


def test_layers_without_parameters_and_several_outputs() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.relu(), x.flatten(1)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.two, self.last = nn.Conv2d(3, 8, 1), Two(), nn.Linear(8 * 36, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(sum(part.flatten(1) for part in self.two(self.first(x))))

    torch.manual_seed(0)
    model = Whole().double().eval()
    small = pruned(model)
    assert small.first.out_channels == 4
    made = fxprune.distillation(small, model, batch(0), layers=["two", "last"])(batch(1))
    assert made.layers["two"].item() == 0
    assert made.layers["last"].item() == made.outputs.item() > 0


class Mixed(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, object]:
        return {"before": None, "whole": (x.relu(), 3), "name": "mixed", "last": [x.tanh(), None]}


class WithMixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.mixed, self.last = nn.Linear(6, 8), Mixed(), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.mixed(self.first(x))
        return self.last(parts["whole"][0] + parts["last"][0])


def test_parts_of_a_result_that_are_no_tensors_are_left_out() -> None:
    torch.manual_seed(0)
    model, x = WithMixed().double().eval(), torch.randn(3, 6).double()
    small = fxprune.transform(model, x, ratio=0.5)
    assert fxprune.distillation(small, model, x, layers=["mixed"])(x).features.item() < 1e-20
    small.first.weight.data.zero_()
    small.first.bias.data.zero_()
    assert fxprune.distillation(small, model, x, layers=["mixed"])(x).features.item() == 1


def test_an_attention_that_returns_no_weights_is_compared() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).double().eval()
    x = torch.randn(2, 5, 16).double()
    small = fxprune.transform(model, x, ratio=0.5)
    made = fxprune.distillation(small, model, x, layers=["self_attn"])(x)
    target, result = (each.self_attn(x, x, x)[0] for each in (model, small))
    expected = (result - target).square().sum() / target.square().sum()
    assert made.layers["self_attn"].item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("drop", "layers"),
    [
        ("layer1.1", ["stem", "layer1.0.bn1", "layer1.1", "layer2.0.relu", "layer2.0", "layer2"]),
        ("layer2.1", ["stem", "layer1", "layer2.0.bn1", "layer2.1"]),
        (["layer1.0", "layer1.1"], ["stem", "layer1.0", "layer1", "layer2.1.bn1"]),
    ],
)
def test_layers_beside_branches_that_went_whole_are_compared_at_the_channels_that_stay(
    drop: str | list[str], layers: list[str]
) -> None:
    model, x = made(Residuals), torch.randn(2, 3, 8, 8).double()
    small = fxprune.transform(model, x, ratio=0.4, drop=drop)
    losses = fxprune.distillation(small, model, x, layers=layers)(x).layers
    assert losses["stem"].item() < 1e-20
    shallow = copy.deepcopy(model)  # with zeros in the branch, the large model differs by the removed channels alone
    fxprune.expand(small, shallow, others="zero")
    again = fxprune.distillation(small, shallow, x, layers=layers)(x)
    assert {name: loss.item() < 1e-20 for name, loss in again.layers.items()} == dict.fromkeys(layers, True)
    assert losses[layers[-1]].item() > 1e-4


@pytest.mark.parametrize("layer", ["layer1.1.conv1", "layer1.1.bn2", "layer2.1.bn3", "layer2.1.conv2"])
def test_a_layer_of_a_branch_that_went_whole_is_refused(layer: str) -> None:
    model, x = made(Residuals), torch.randn(2, 3, 8, 8).double()
    small = fxprune.transform(model, x, drop=["layer1.1", "layer2.1"])
    with pytest.raises(fxprune.PlanError, match="went with the residual branch"):
        fxprune.distillation(small, model, x, layers=[layer])


def test_a_layer_that_a_branch_called_first_is_refused() -> None:
    model, x = made(Residuals), torch.randn(2, 3, 8, 8).double()
    small = fxprune.transform(model, x, drop="layer1.1")
    with pytest.raises(fxprune.PlanError, match="the large model calls it 2 times, the small one 1 times"):
        fxprune.distillation(small, model, x, layers=["layer1.1.relu"])(x)


def test_no_layers_compare_the_outputs_alone() -> None:
    model = net()
    small = pruned(model)
    made = fxprune.distillation(small, model, batch(0))(batch(1))
    assert made.features.item() == 0
    assert made.outputs.item() > 0


def test_hooks_are_gone_after_a_call() -> None:
    model = net()
    small = pruned(model)
    fxprune.distillation(small, model, batch(0), layers=["inner"])(batch(1))
    assert not model.inner._forward_hooks
    assert not small.inner._forward_hooks


def test_layers_that_cannot_be_compared_are_refused() -> None:
    model = net()
    small = pruned(model)
    for name in ("nothing", ""):
        with pytest.raises(fxprune.PlanError, match="there is no such layer"):
            fxprune.distillation(small, model, batch(0), layers=[name])

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.unused = net(), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    unused = Unused().eval()
    with pytest.raises(fxprune.PlanError, match="was not seen in the analysis"):
        fxprune.distillation(pruned(unused), unused, batch(0), layers=["unused"])


class Blocks(nn.Module):
    """Attention in a block, and layers before and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(6, 16), nn.ModuleDict({"attention": Scaled()}), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        return self.head(h + self.block["attention"](h))


def test_a_factor_counts_where_it_leaves_the_layer() -> None:
    torch.manual_seed(0)
    model = Blocks().double().eval()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    small = fxprune.transform(model, x, ratio=0.5)
    factors = {factor.tensor for factor in fxprune.record(small).plan.factors}
    assert factors
    scaled = {name.rpartition(".")[0] for name in factors}
    attention = "block.attention"
    layers = [f"{attention}.{name}" for name in "qkv"] + [f"{attention}.out", attention, "stem", "head"]
    reference = fxprune.masked(model, fxprune.record(small).zeroed)
    for layer in layers:
        if layer in scaled:
            with pytest.raises(
                fxprune.PlanError, match=f'(?s)have another scale.*at +layers: "{layer}".*outside'
            ) as caught:
                fxprune.distillation(small, model, x, layers=[layer])
            assert caught.value.do == f'choose "{attention}", which is around it'
        else:  # from the masked original, whose features the small model has, nothing is to be learned
            assert fxprune.distillation(small, reference, x, layers=[layer])(x).features < 1e-20


def test_a_distillation_says_what_it_compares() -> None:
    model = net()
    small = pruned(model)
    made = fxprune.distillation(small, model, batch(0), layers=["norm", "head"])
    assert repr(made) == "Distillation of Net from Net: the results and 'norm', 'head'"
    assert made.layers == ("norm", "head")
    assert repr(fxprune.distillation(small, model, batch(0))).endswith("the results and no layers")


def test_half_precision_does_not_overflow() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = 20 * torch.randn(2000, 8)
    small = fxprune.transform(model, x[:2], ratio=0.5)
    expected = fxprune.distillation(small, model, x[:2], layers=["2"])(x)
    halves = fxprune.distillation(small.bfloat16(), model.bfloat16(), x[:2].bfloat16(), layers=["2"])(x.bfloat16())
    assert halves.features.dtype is torch.float32
    assert halves.features.item() == pytest.approx(expected.features.item(), rel=0.1)
    assert halves.outputs.item() == pytest.approx(expected.outputs.item(), rel=0.1)


def test_an_operation_in_place_that_follows_changes_no_loss() -> None:
    losses = []
    for inplace in (False, True):
        torch.manual_seed(0)
        layers = (nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(inplace=inplace), nn.Linear(16, 4))
        model = nn.Sequential(*layers).double().eval()
        x = torch.randn(5, 8, dtype=torch.float64)
        made = fxprune.distillation(fxprune.transform(model, x, ratio=0.5), model, x, layers=["2"])(x)
        losses.append(made.features.item())
        made.features.backward()
    assert losses[0] == losses[1] > 0


def test_another_model_is_refused_before_a_call() -> None:
    model = net()
    small = pruned(model)
    twice = fxprune.transform(small, batch(0), ratio=0.5)
    for student, teacher in ((small, small), (small, twice), (pickled(small), small)):
        with pytest.raises(fxprune.PlanError, match=r"(?s)not made from this model.*plan=plan\) with the plan of all"):
            fxprune.distillation(student, teacher, batch(0))


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def test_a_model_that_got_smaller_in_several_steps_is_compared_with_the_first_one() -> None:
    original, model = net(), net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    pruner = fxprune.GradualPruner(model, batch(0), keep={"macs": 0.3}, steps=3, optimizer=optimizer)
    while not pruner.done:
        pruner.step()
        step(model, optimizer, pruner.number)
    at_once = fxprune.transform(original, batch(0), plan=pruner.plan)
    at_once.load_state_dict(model.state_dict())
    expected = fxprune.distillation(at_once, original, batch(0), layers=["norm", "outer"])(batch(1))
    for student in (model, copy.deepcopy(model)):
        made = fxprune.distillation(student, original, batch(0), layers=["norm", "outer"])(batch(1))
        assert made.features.item() == expected.features.item()
        assert made.outputs.item() == expected.outputs.item()


def test_a_pickled_model_knows_all_its_steps() -> None:
    original = net()
    twice = fxprune.transform(pruned(original), batch(0), ratio=0.5)
    losses = [fxprune.distillation(each, original, batch(0))(batch(1)).outputs for each in (twice, pickled(twice))]
    assert losses[0].item() == losses[1].item() > 0


def test_what_to_do_for_a_model_without_its_records_works() -> None:
    original = net()
    first = pruned(original)
    trained = fxprune.transform(first, batch(0), ratio=0.5)
    plan = fxprune.record(first).then(fxprune.record(trained)).plan
    small = fxprune.transform(original, batch(0), plan=plan)
    small.load_state_dict(trained.state_dict())
    fxprune.distillation(small, original, batch(0))
