"""Thresholds behind the right activations, on a graph and in modules; the original is only read."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from fxprune.errors import CaptureError, InputError, PlanError
from fxprune.sparse.activations.insertion import insert_thresholds
from fxprune.sparse.activations.layers import ThresholdActivation, step_thresholds
from fxprune.sparse.activations.thresholds import Quantile
from tests.support import randomise


class Spellings(nn.Module):
    """Every way to write a ReLU; one module is called twice."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))
        self.act = nn.ReLU()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.GELU())
        self.head = nn.Linear(6, 2)

        self.cut = 0.0

    def forward(self, x):
        def act(y):  # the thresholds by hand
            return y if self.cut == 0 else torch.where(y.abs() < self.cut, 0.0, y)

        x = act(self.act(self.layers[0](x)))
        x = act(self.act(self.layers[1](x)))
        x = act(F.relu(self.layers[2](x)))
        x = act(torch.relu(self.layers[3](x)))
        x = act(self.layers[4](x).relu())
        x = act(F.relu(self.layers[5](x), inplace=True))
        return self.head(self.inner(x))


class Plain(nn.Module):
    """Two modules, behind a branch that tracing cannot follow unless `plain`."""

    def __init__(self, plain=False):
        super().__init__()
        self.plain = plain
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.act = nn.SiLU()
        self.again = self.act

    def forward(self, x):
        if not self.plain and x.sum() > 1e9:
            return x
        return self.again(self.act(self.body(x)) + 1)


def spellings():
    return randomise(Spellings(), seed=3).double()


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before):
    assert list(model.state_dict()) == list(before)
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_thresholds_stand_behind_every_relu_however_it_is_spelled():
    net, x = spellings(), torch.randn(9, 6).double()
    before = state(net)
    made = insert_thresholds(net, threshold=0.3)
    assert (made.path, made.why_not) == ("fx", "")
    assert list(made.layers.values()) == ["act", "act", "relu", "relu_1", "relu_2", "relu_3"]
    assert list(made.layers)[:3] == ["act_threshold", "act_threshold_1", "relu_threshold"]
    assert not torch.equal(made.model(x), net(x))
    net.cut = 0.3
    assert torch.equal(made.model(x), net(x))
    assert unchanged(net, before)
    assert not any(isinstance(m, ThresholdActivation) for m in net.modules())


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (nn.ReLU, ["act", "act"]),
        (F.relu, ["relu", "relu_3"]),
        (torch.relu, ["relu_1"]),
        (torch.Tensor.relu, ["relu_2"]),
        ((nn.ReLU, torch.relu), ["act", "act", "relu_1"]),
        ("act", ["act", "act"]),
        ("relu_?", ["relu_1", "relu_2", "relu_3"]),
        ("*", ["act", "act", "relu", "relu_1", "relu_2", "relu_3", "inner.1"]),
        ("inner.*", ["inner.1"]),
        ("inner.0", ["inner.0"]),
        (["head", nn.GELU], ["inner.1", "head"]),
    ],
    ids=[*"module function torch_function method several path glob every inner exact list".split()],
)
def test_patterns_choose_the_activations(after, expected):
    made = insert_thresholds(spellings(), after, threshold=0.3)
    assert list(made.layers.values()) == expected
    named = dict(made.model.named_modules())
    assert all(isinstance(named[name], ThresholdActivation) for name in made.layers)
    called = [node.target for node in made.model.graph.nodes if node.target in made.layers]
    assert called == list(made.layers)


def test_a_module_of_the_original_is_found_in_the_copy():
    net = spellings()
    made = insert_thresholds(net, net.inner[1], threshold=0.3)
    assert made.layers == {"inner.1_threshold": "inner.1"}


def test_thresholds_learn_each_for_themselves():
    made = insert_thresholds(spellings(), threshold=Quantile(0.8))
    made.model.train()(torch.randn(50, 6).double())
    layers = [made.model.get_submodule(name) for name in made.layers]
    assert len({layer.threshold.item() for layer in layers}) == 6
    assert all(abs(layer.zeros.item() - 0.8) < 0.01 for layer in layers[:2])  # further on, whole rows are alike
    assert step_thresholds(made.model) == 6
    loss = made.model(torch.randn(50, 6).double()).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in made.model.parameters())


def test_modes_and_gradients_are_those_of_the_original():
    net = spellings().eval()
    net.layers[0].requires_grad_(False)
    made = insert_thresholds(net, threshold=0.3)
    assert not any(m.training for m in made.model.modules())
    flags = {name: p.requires_grad for name, p in made.model.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in net.named_parameters()}
    assert not {p.data_ptr() for p in made.model.parameters()} & {p.data_ptr() for p in net.parameters()}


def test_a_graph_module_is_copied():
    traced = torch.fx.symbolic_trace(spellings())
    code = traced.code
    made = insert_thresholds(traced, threshold=0.3)
    assert traced.code == code
    assert len(made.layers) == 6
    with pytest.raises(PlanError, match='there is a threshold already\n  at   behind "act"'):
        insert_thresholds(made.model, "act", threshold=0.3)


def test_the_result_can_be_pruned():
    net = insert_thresholds(spellings().eval(), threshold=0.3).model
    x = torch.randn(9, 6).double()
    small = fxprune.transform(net, x, ratio=0.5)
    assert fxprune.record(small).path == "fx"
    assert small.get_submodule("layers.0").out_features == 3
    assert fxprune.verify(net, small, torch.randn(4, 6).double()) < 1e-12


# -- where no graph can be had ----------------------------------------------------------------------------


@pytest.mark.parametrize(("plain", "path"), [(False, None), (True, "modules")])
def test_modules_are_replaced_where_there_is_no_graph(plain, path):
    net = randomise(Plain(plain), seed=4).double()
    x = torch.randn(3, 2, 8, 8).double()
    before = state(net)
    made = insert_thresholds(net, ["body.1", nn.SiLU], threshold=0.4, path=path)
    assert made.path == "modules"
    if plain:
        assert made.why_not == ""
    else:
        assert made.why_not.startswith("Plain cannot be traced symbolically; TraceError: symbolically traced variables")
    assert made.layers == {"body.1.1": "body.1", "act.1": "act"}
    assert type(made.model) is Plain
    assert made.model.act is made.model.again

    def cut(y):
        return torch.where(y.abs() < 0.4, 0.0, y)

    expected = cut(F.silu(cut(F.silu(net.body[2](cut(torch.relu(net.body[0](x)))))) + 1))
    assert torch.equal(made.model(x), expected)
    assert unchanged(net, before)
    assert isinstance(net.act, nn.SiLU)


def test_a_glob_and_the_default_choose_the_same():
    assert insert_thresholds(Plain(), threshold=0.4).layers == {"body.1.1": "body.1"}
    assert insert_thresholds(Plain(), "*", threshold=0.4).layers == {"act.1": "act", "body.1.1": "body.1"}


# -- refusals ---------------------------------------------------------------------------------------------


class InPlace(nn.Module):
    def forward(self, x):
        y = x + 1
        F.relu_(y)
        return y


def at(net, *args, **options):
    return lambda: insert_thresholds(net(), *args, **{"threshold": 0.3, **options})


REFUSED = [
    (at(spellings, "rleu"), PlanError, 'after names nothing: "rleu"\n  why  did you mean "relu"?'),
    (at(spellings, "zzz*"), PlanError, 'after names nothing: "zzz*"\n  why  known names: '),
    (at(spellings, nn.LSTM), PlanError, "after names a type that the model has no module of: LSTM"),
    (at(spellings, F.gelu), PlanError, "the model does not call gelu"),
    (at(spellings, [nn.ReLU, torch.tanh]), PlanError, "the model does not call tanh"),
    (at(spellings, nn.ReLU()), PlanError, "a module that is not part of the model: ReLU"),
    (at(spellings, []), PlanError, "after names nothing"),
    (at(spellings, 3), PlanError, "after cannot be a int"),
    (at(spellings, threshold=-1), PlanError, "the threshold must be at least 0"),
    (at(spellings, path="export"), PlanError, "unknown path 'export'"),
    (at(lambda: nn.Linear(2, 2)), PlanError, "the model does not call ReLU"),
    (at(lambda: "net"), InputError, "the model must be a torch.nn.Module, not str"),
    (at(InPlace), PlanError, "the result of an activation is not used"),
    (at(Plain, F.relu), PlanError, "calls of relu cannot be found\n  at   after=relu\n  why  Plain cannot be traced"),
    (at(Plain, path="fx"), CaptureError, "Plain cannot be traced symbolically"),
    (at(Plain, 3, path="modules"), PlanError, "after cannot be a int"),
    (at(Plain, "act_"), PlanError, 'did you mean "act"?'),
    (at(Plain, nn.GELU), PlanError, "after names a type that the model has no module of: GELU"),
    (
        at(lambda: nn.Sequential(nn.Sequential(nn.Linear(2, 2))), ["0", "0.0"], path="modules"),
        PlanError,
        "a module is meant together with one around it",
    ),
    (at(lambda: nn.Sequential(nn.Tanh()), path="modules"), PlanError, "the model does not call ReLU"),
]


@pytest.mark.parametrize(("call", "kind", "text"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_insertion_refuses_bad_arguments(call, kind, text):
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value)


def test_a_copy_of_the_result_works_and_loads():
    net = spellings()
    made = insert_thresholds(net, threshold=Quantile(0.6)).model
    made(torch.randn(30, 6).double())
    other = insert_thresholds(net, threshold=Quantile(0.6)).model
    other.load_state_dict(made.state_dict())
    x = torch.randn(5, 6).double()
    assert torch.equal(other.eval()(x), made.eval()(x))
    assert torch.equal(copy.deepcopy(made)(x), made(x))
