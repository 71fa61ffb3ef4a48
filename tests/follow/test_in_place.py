"""`transform_`: the same objects, smaller."""

from __future__ import annotations

import copy
import signal
import warnings
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import fxprune
from tests.follow.nets import Net, batch, net, step


def test_the_model_and_its_modules_stay_the_same_objects() -> None:
    model = net()
    expected = fxprune.transform(model, batch(0), ratio=0.5)
    modules = dict(model.named_modules())
    assert fxprune.transform_(model, batch(0), ratio=0.5) is model
    assert {name: id(module) for name, module in model.named_modules()} == {n: id(m) for n, m in modules.items()}
    assert type(model) is Net
    assert model.stem.out_channels == model.norm.num_features == 4
    assert torch.equal(model(batch(1)), expected(batch(1)))
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in expected.state_dict().items()}
    assert fxprune.record(model).removed == fxprune.record(expected).removed


def test_handles_of_hooks_work_on() -> None:
    model = net()
    seen: list[tuple[int, ...]] = []
    handle = model.stem.register_forward_hook(lambda module, args, made: seen.append(tuple(made.shape)))
    fxprune.transform_(model, batch(0), ratio=0.5)
    seen.clear()
    model(batch(1))
    assert seen == [(4, 4, 6, 6)]
    handle.remove()
    model(batch(1))
    assert len(seen) == 1


def test_training_goes_on_with_the_same_objects() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    average = AveragedModel(model)
    step(model, optimizer, 0)
    average.update_parameters(model)
    fxprune.transform_(model, batch(0), ratio=0.5, optimizer=optimizer, ema=average)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer, 1)
    average.update_parameters(model)
    assert not torch.equal(before["stem.weight"], model.stem.weight)
    assert average.module.stem.weight.shape == model.stem.weight.shape
    fxprune.transform_(model, batch(0), ratio=0.5, optimizer=optimizer, ema=average)
    assert model.stem.out_channels == 2
    step(model, optimizer, 2)


def test_an_optimizer_that_steps_in_hooks_of_parameters_is_warned_of() -> None:
    model = net()
    own = {p: torch.optim.SGD([p], 0.1) for p in model.parameters()}
    for parameter in own:
        parameter.register_post_accumulate_grad_hook(lambda p: own[p].step())
    with pytest.warns(
        UserWarning, match=r'not on the new parameters of "stem.weight"(?s:.*)register them again'
    ) as caught:
        fxprune.transform_(model, batch(0), ratio=0.5, optimizer=list(own.values()))
    assert caught[0].filename == __file__


def test_a_shared_module_stays_shared() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 8)
            self.again = nn.Sequential(nn.ReLU(), nn.Linear(8, 8))
            self.layers = [self.again[1]]
            self.other = self.again[1]
            self.last = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.other(self.again(self.first(x))).relu() + self.layers[0](self.first(x)))

    torch.manual_seed(0)
    model = Shared().double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = fxprune.transform(model, x, ratio=0.5)(x)
    fxprune.transform_(model, x, ratio=0.5)
    assert model.other is model.again[1]
    assert model.other.weight.shape[0] < 8
    assert model.layers[0].weight is model.other.weight
    assert torch.equal(model(x), expected)


def test_a_traced_graph_stays_one() -> None:
    traced = fxprune.trace(net(), batch(0))
    expected = fxprune.transform(traced, batch(0), ratio=0.5)
    assert fxprune.transform_(traced, batch(0), ratio=0.5) is traced
    assert isinstance(traced, torch.fx.GraphModule)
    assert torch.equal(traced(batch(1)), expected(batch(1)))


def test_an_optimizer_that_was_not_told_is_warned_of() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    fxprune.transform_(model, batch(0), ratio=0.5)
    with pytest.warns(fxprune.OptimizerLeftBehindWarning):
        step(model, optimizer, 0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ratio": 2.0}, fxprune.PlanError),
        ({"ratio": 0.5, "prefer": "graph"}, fxprune.PlanError),
        ({"ratio": 0.5, "ema": AveragedModel(nn.Linear(2, 2))}, fxprune.InputError),
        ({"ratio": 0.5, "no_such_option": 1}, TypeError),
    ],
)
def test_nothing_is_changed_by_a_call_that_fails(options: dict[str, Any], error: type[Exception]) -> None:
    model = net()
    attributes = {name: dict(module.__dict__) for name, module in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error):
        fxprune.transform_(model, batch(0), **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == attributes


def test_a_program_cannot_be_changed_in_place() -> None:
    program = torch.export.export(net(), (batch(0),))
    with pytest.raises(fxprune.InputError, match="cannot be changed in place"):
        fxprune.transform_(program, batch(0), ratio=0.5)


def test_a_class_is_no_model() -> None:
    calls: list[Any] = [
        lambda: fxprune.transform_(type(net()), batch(0), ratio=0.5),
        lambda: fxprune.transform(type(net()), batch(0), ratio=0.5),
        lambda: fxprune.transform(type(net()), batch(0), ratio=0.5, optimizer=torch.optim.SGD(net().parameters())),
        lambda: fxprune.GradualPruner(type(net()), batch(0), keep={"params": 0.5}),
    ]
    for call in calls:
        with pytest.raises(fxprune.FxpruneError) as caught:
            call()
        assert (caught.value.why, caught.value.do) == ("Net is a class", "pass an object of it, as Net(...)")
    wrong: Any = "net"
    with pytest.raises(fxprune.InputError, match="pass a module"):
        fxprune.transform_(wrong, batch(0), ratio=0.5)


def test_modules_that_get_another_class_have_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 4, 8, dtype=torch.float64)

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = nn.Linear(8, 32), nn.LayerNorm(32)
            self.attention, self.outer = nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.norm(self.inner(x))
            return self.outer(self.attention(h, h, h, need_weights=False)[0])

    for options in ({"norms": "preserve"}, {}):
        torch.manual_seed(0)
        model = Attending().double().eval()
        expected = fxprune.transform(model, x, ratio=0.5, **options)
        attention = model.attention
        fxprune.transform_(model, x, ratio=0.5, **options)
        assert model.attention is attention
        assert [type(m) for m in model.modules()] == [type(m) for m in expected.modules()]
        assert torch.equal(model(x), expected(x))
        fxprune.transform_(model, x, ratio=0.5, **options)


@pytest.mark.parametrize("options", [{"prefer": "graph"}, {"path": "fx"}, {"path": "export"}])
def test_an_optimizer_does_not_follow_a_call_that_fails(options: dict[str, Any]) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    average = AveragedModel(model)
    inner = average.module
    with pytest.raises(fxprune.PlanError, match="class of the model is lost"):
        fxprune.transform_(model, batch(0), ratio=0.5, optimizer=optimizer, ema=average, **options)
    assert optimizer.param_groups[0]["params"][0] is model.stem.weight
    assert average.module is inner


def test_modules_in_lists_and_bound_hooks_stay_the_same_objects() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.drop, self.b = nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 2)
            self.order = [self.a, (self.drop,), {"last": self.b}]
            self.seen: list[int] = []
            self.a.register_forward_hook(self.note)

        def note(self, module: nn.Module, args: Any, made: torch.Tensor) -> None:
            self.seen.append(made.shape[-1])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.order[2]["last"](self.order[1][0](self.order[0](x)).relu())

    torch.manual_seed(0)
    model = Listed().double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    for width in (16, 8):
        fxprune.transform_(model, x, ratio=0.5)
        assert model.a.out_features == width
        assert model.order[0] is model.a
        assert model.order[1][0] is model.drop
        assert model.order[2]["last"] is model.b
        assert next(iter(model.a._forward_hooks.values())).__self__ is model
    again = copy.deepcopy(model).train()
    assert again.drop.training
    assert again.order[1][0] is again.drop
    assert torch.equal(copy.deepcopy(model)(x), model(x))


class Interrupting(defaultdict[torch.Tensor, Any]):
    """The state of an optimizer; a signal comes while it changes."""

    def __init__(self, state: dict[torch.Tensor, Any], number: signal.Signals) -> None:
        super().__init__(dict, state)
        self.number, self.interrupted = number, False

    def pop(self, key: torch.Tensor, *default: Any) -> Any:
        if not self.interrupted:
            self.interrupted = True
            signal.raise_signal(self.number)
        return super().pop(key, *default)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("in_place", [True, False])
def test_an_interrupt_in_the_middle_of_the_change_comes_after_it(number: signal.Signals, in_place: bool) -> None:
    model, previous = net(), signal.signal(number, signal.default_int_handler)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    average = AveragedModel(model)
    step(model, optimizer, 0)
    prune = fxprune.transform_ if in_place else fxprune.transform
    state = Interrupting(optimizer.state, number)
    optimizer.state = state
    try:
        with pytest.raises(KeyboardInterrupt):
            prune(model, batch(0), ratio=0.5, optimizer=optimizer, ema=average)
    finally:
        assert signal.signal(number, previous) is signal.default_int_handler
    assert state.interrupted
    assert {tuple(p.shape) for p in optimizer.state} == {
        (4, 3, 3, 3),
        (4,),
        (6, 4, 3, 3),
        (6,),
        (4, 6, 1, 1),
        (5, 4),
        (5,),
    }
    assert average.module.stem.out_channels == 4
    if in_place:
        assert model.stem.out_channels == 4
        step(model, optimizer, 1)
        average.update_parameters(model)


def test_a_warning_that_is_an_error_leaves_all_as_it_was() -> None:
    model = net()
    own = {model.stem.weight: torch.optim.SGD([model.stem.weight], 0.1)}
    model.stem.weight.register_post_accumulate_grad_hook(lambda p: own[p].step())
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="hooks are not on the new parameters"):
            fxprune.transform_(model, batch(0), ratio=0.5, optimizer=optimizer)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == list(before.values())
