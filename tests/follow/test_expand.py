"""`expand`: weights go back into the slots that they came from."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxprune
from tests.depth.models import Residuals, encoder, made
from tests.follow.nets import batch, kept, net, pruned, step
from tests.follow.test_optimizers import Scaled
from tests.support import relative_error


def test_with_zeros_the_large_model_computes_what_the_small_one_does() -> None:
    model = net()
    small = pruned(model).train()
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    for seed in range(3):
        step(small, optimizer, seed)
    small.eval()
    assert fxprune.record(small).exact
    result = fxprune.expand(small, model, others="zero")
    assert len(result.written) == 12
    assert result.left == ()
    assert relative_error(small(batch(5)), model(batch(5))) < 1e-12


def test_what_was_removed_stays_as_it_is_by_default() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    small = pruned(model)
    removed = fxprune.record(small).removed
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1)
    fxprune.expand(small, model)
    for name, parameter in model.named_parameters():
        dims = removed.get(name, {})
        assert torch.equal(kept(parameter, dims), small.get_parameter(name))
        outside = torch.ones_like(parameter, dtype=torch.bool)
        inner = outside
        for dim, indices in dims.items():
            inner = inner & ~torch.zeros_like(outside).index_fill(dim, torch.tensor(indices), True)
        assert torch.equal(parameter[~inner], before[name][~inner])


@pytest.mark.parametrize("drop", ["layer1.1", "layer2.0", "layer2.1", "layer1"])
@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_with_zeros_branches_that_went_whole_add_nothing(drop: str, ratio: float) -> None:
    model, x = made(Residuals), torch.randn(2, 3, 8, 8).double()
    small = fxprune.transform(model, x, ratio=ratio, drop=drop)
    assert fxprune.record(small).exact
    assert relative_error(small(x), model(x)) > 1e-3
    fxprune.expand(small, model, others="zero")
    assert relative_error(small(x), model(x)) < 1e-9


@pytest.mark.parametrize("drop", ["layers.1", "layers.1.self_attn", "layers.1.linear2"])
def test_with_zeros_branches_of_an_encoder_of_torch_add_nothing(drop: str) -> None:
    model, x = made(lambda: encoder(norm_first=True)), torch.randn(2, 5, 16).double()
    small = fxprune.transform(model, x, ratio=0.3, drop=drop)
    assert fxprune.record(small).exact
    fxprune.expand(small, model, others="zero")
    assert relative_error(small(x), model(x)) < 1e-9


def test_an_encoder_layer_with_a_part_of_another_class_is_refused() -> None:
    class Halved(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0.5

    model, x = made(lambda: encoder(norm_first=True)), torch.randn(2, 5, 16).double()
    model.layers[1].linear2 = Halved(model.layers[1].linear2.in_features, 16).double()
    small = fxprune.transform(model, x, drop="layers.1")
    with pytest.raises(fxprune.PlanError, match="is a Halved, which is no module of torch"):
        fxprune.expand(small, model, others="zero")


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).sigmoid()


class WithBranch(nn.Module):
    def __init__(self, branch: nn.Module, tied: bool = False) -> None:
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(6, 6), branch, nn.Linear(6, 2)
        if tied:
            self.branch.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(x + self.branch(x))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WithBranch(Shifted()), "is a Shifted"),
        (lambda: WithBranch(nn.Sequential(nn.Linear(6, 6), nn.Sigmoid())), "is a Sigmoid"),
        (
            lambda: WithBranch(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6, elementwise_affine=False))),
            "without a weight",
        ),
        (lambda: WithBranch(nn.Linear(6, 6), tied=True), "which stays"),
    ],
)
def test_a_branch_that_zeros_do_not_switch_off_is_refused(make: Callable[[], nn.Module], words: str) -> None:
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(3, 6).double()
    small = fxprune.transform(model, x, drop="branch*")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(fxprune.PlanError, match=words):
        fxprune.expand(small, model, others="zero")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    fxprune.expand(small, model)


def test_factors_are_divided_out() -> None:
    torch.manual_seed(0)
    model = Scaled().double().eval()
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    small = fxprune.transform(model, x, ratio=0.5)
    assert fxprune.record(small).plan.factors
    before = copy.deepcopy(model.state_dict())
    fxprune.expand(small, model)
    assert all(torch.allclose(tensor, before[name], rtol=1e-14) for name, tensor in model.state_dict().items())


def test_buffers_that_belong_to_the_code_stay() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.register_buffer("scale", torch.ones(3, 1, 1, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x * self.scale)

    model = Buffered().eval()
    result = fxprune.expand(pruned(model), model)
    assert result.left == ("scale",)
    assert str(result).endswith("left as they are: scale")


def test_a_bias_without_a_place_is_refused_before_anything_is_written() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight[:3] = 0
    small = fxprune.transform(model, torch.randn(5, 4, dtype=torch.float64), masks="zeros")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(fxprune.PlanError, match=r"no place.*\n  at   2.bias\n  why .*\n  do "):
        fxprune.expand(small, model, others="zero")
    with pytest.raises(fxprune.PlanError, match="others is one of keep, zero"):
        fxprune.expand(small, model, others="none")
    with pytest.raises(fxprune.PlanError, match="was not made from this model"):
        fxprune.expand(pruned(net()), model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("computed", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_weights_that_are_computed_from_others_cannot_become_zero(computed: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(computed(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 4)).double().eval()
    x = torch.randn(5, 8, dtype=torch.float64)
    small, before = fxprune.transform(model, x, ratio=0.5), model(x)
    with pytest.raises(fxprune.PlanError, match=r"cannot be set to zero\n  at   \"0\"\n  why .*computed from others"):
        fxprune.expand(small, model, others="zero")
    assert torch.equal(model(x), before)
    fxprune.expand(small, model)
    assert bool(model(x).isfinite().all())


@pytest.mark.parametrize("make", [net, lambda: Scaled().double().eval()])
def test_a_model_that_got_smaller_in_several_steps_goes_back_into_the_first_one(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    x = batch(0) if make is net else torch.randn(4, 6, 16, dtype=torch.float64)
    first = fxprune.transform(model, x, ratio=0.3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    small = fxprune.transform(fxprune.transform(first, x, ratio=0.3), x, ratio=0.3)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(1.1)
    fxprune.follow(optimizer, model, small)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in small.parameters()]
    large = copy.deepcopy(model)
    fxprune.expand(small, large, others="zero")
    assert relative_error(small(x), large(x)) < 1e-12
    fxprune.expand(small, first, others="zero")
    assert relative_error(small(x), first(x)) < 1e-12


def test_models_that_stand_the_other_way_round_are_told_so() -> None:
    model = net()
    small = fxprune.transform(model, batch(0), ratio=0.5)
    with pytest.raises(fxprune.InputError, match=r"the other way round(.|\n)*call expand\(small, model\)"):
        fxprune.expand(model, small)
