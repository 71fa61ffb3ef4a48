"""Criteria that need data, by name, as in `transform(..., importance="taylor", data=batches, loss=f)`."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from fxprune.criteria import MEASURED, product
from fxprune.criteria.from_data import on_data, takes_loss
from fxprune.errors import InputError, PlanError
from tests.criteria.names import OF_EXPERTS, OTHERS
from tests.support import randomise

X, Y = torch.randn(24, 3, 8, 8, dtype=torch.float64), torch.randint(5, (24,))
PAIRS = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]


def net():
    made = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    )
    return randomise(made.double(), 0).eval()


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def arguments(name):
    return {"importance": name, "data": PAIRS} | ({} if takes_loss(name) is None else {"loss": loss})


@pytest.mark.parametrize("name", [name for name in MEASURED if name not in OF_EXPERTS])
def test_a_name_with_data_is_the_importance_that_the_function_makes(name):
    model = net()
    batches = PAIRS if takes_loss(name) is not None else [x for x, _ in PAIRS]
    made = MEASURED[name](model, batches, **({} if takes_loss(name) is None else {"loss": loss}))
    wanted = fxprune.analyze(model, X[:1]).plan(ratio=0.5, importance=made)
    assert fxprune.analyze(model, X[:1]).plan(ratio=0.5, **arguments(name)).removed == wanted.removed
    small = fxprune.transform(model, X[:1], ratio=0.5, **arguments(name))
    assert fxprune.record(small).removed == wanted.removed


@pytest.mark.parametrize("path", ["eager", "fx", "export"])
def test_every_path_takes_them(path):
    model = net()
    removed = fxprune.record(fxprune.transform(model, X[:1], ratio=0.5, path=path, **arguments("taylor"))).removed
    made = fxprune.analyze(model, X[:1]).plan(ratio=0.5, **arguments("taylor")).removed
    assert removed["0.weight"] == made["0.weight"]


def test_the_repair_reads_the_same_data():
    model = net()
    small = fxprune.transform(model, X[:1], ratio=0.5, repair=True, **arguments("taylor"))
    alone = fxprune.transform(model, X[:1], ratio=0.5, repair=[x for x, _ in PAIRS], **arguments("taylor"))
    assert fxprune.record(small).repair == fxprune.record(alone).repair
    once = fxprune.transform(model, X[:1], ratio=0.5, repair=True, importance="taylor", data=iter(PAIRS), loss=loss)
    assert fxprune.record(once).repair == fxprune.record(alone).repair


def test_a_repair_alone_reads_the_data_too():
    small = fxprune.transform(net(), X[:1], ratio=0.5, repair=True, data=PAIRS)
    assert fxprune.record(small).repair.layers


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x, scale):
        return self.second(torch.relu(self.first(x)) * scale)


@pytest.mark.parametrize("name", [name for name in MEASURED if takes_loss(name) is None and name not in OTHERS])
@pytest.mark.parametrize(
    ("example", "form"),
    [
        (tuple, lambda x, s, y: (x, s)),
        (tuple, lambda x, s, y: ((x, s), y)),
        (dict, lambda x, s, y: {"scale": s, "x": x}),
        (dict, lambda x, s, y: {"x": x, "scale": s, "labels": y}),
        (dict, lambda x, s, y: [{"x": x, "scale": s}, y]),
    ],
)
def test_inputs_are_picked_by_the_form_of_the_example(name, example, form):
    model = TwoInputs().eval()
    x, s, y = torch.randn(9, 3), torch.rand(9, 1), torch.arange(9)
    inputs = (x, s) if example is tuple else {"x": x, "scale": s}
    analysis = fxprune.analyze(model, inputs)
    made = MEASURED[name](model, [{"x": x, "scale": s}])
    wanted = analysis.plan(ratio=0.5, importance=made)
    assert analysis.plan(ratio=0.5, importance=name, data=[form(x, s, y)]).removed == wanted.removed


@pytest.mark.parametrize("name", ["thinet", "obs", "apoz"])
@pytest.mark.parametrize("repair", [None, True])
def test_inputs_are_picked_by_a_function_where_the_form_does_not_say(name, repair):
    model = net()
    data = [{"image": x, "label": y} for x, y in PAIRS]
    small = fxprune.transform(
        model, X[:1], ratio=0.5, importance=name, data=data, repair=repair, repair_inputs=lambda batch: batch["image"]
    )
    wanted = fxprune.transform(model, X[:1], ratio=0.5, importance=name, data=PAIRS, repair=repair)
    assert fxprune.record(small).removed == fxprune.record(wanted).removed
    with pytest.raises(InputError, match="a batch does not fit the model"):
        fxprune.transform(model, X[:1], ratio=0.5, importance=name, data=data, repair=repair)


REFUSED = {
    "no loader for both": (
        {"importance": "taylor", "data": X, "loss": loss, "repair": True},
        "batches must be a data loader or a list",
    ),
    "no loader for several": (
        {"importance": product("thinet", "apoz"), "data": X},
        "batches must be a data loader or a list",
    ),
    "no data": ({"importance": "taylor", "loss": loss}, '"taylor" needs data'),
    "no data for a repair": ({"repair": True}, "there is no data to repair on"),
    "no loss": ({"importance": "fisher", "data": PAIRS}, '"fisher" needs a loss'),
    "data for nothing": ({"data": PAIRS}, "data is without effect here"),
    "data for a name that is none": ({"data": PAIRS, "importance": "talyor"}, "unknown importance 'talyor'"),
    "loss for nothing": ({"loss": loss}, "loss is without effect here"),
    "no batch": ({"importance": "taylor", "data": [], "loss": loss}, "there is no batch"),
    "no batch for ThiNet": ({"importance": "thinet", "data": []}, "there is no batch"),
    "no loader": ({"importance": "taylor", "data": X, "loss": loss}, "batches must be a data loader or a list"),
    "a loss of torch": ({"importance": "taylor", "data": PAIRS, "loss": F.cross_entropy}, "at   loss=cross_entropy"),
    "a loss module": ({"importance": "taylor", "data": PAIRS, "loss": nn.MSELoss()}, "at   loss=MSELoss"),
    "a part of a loss": (
        {"importance": "taylor", "data": PAIRS, "loss": functools.partial(F.cross_entropy, reduction="sum")},
        "at   loss=cross_entropy",
    ),
    "a loss of one argument": ({"importance": "taylor", "data": PAIRS, "loss": lambda model: 0}, "too many positional"),
    "no function": ({"importance": "taylor", "data": PAIRS, "loss": 3}, "loss cannot be a int"),
    "labels missing": ({"importance": "taylor", "data": [X[:8]], "loss": loss}, "let the data give pairs of inputs"),
    "labels missing in a tuple": (
        {"importance": "taylor", "data": [(X[:8],)], "loss": loss},
        "IndexError: tuple index out of range; it was called with the model and a batch that is a tuple with",
    ),
    "a batch that does not fit": (
        {"importance": "taylor", "data": [*PAIRS, (X[:, :2], Y)], "loss": loss},
        "the loss raises\n  at   batch 3\n  why  RuntimeError: ",
    ),
    "a batch that ThiNet cannot run": (
        {"importance": "thinet", "data": [*PAIRS, (X[:, :2], Y)]},
        "the model raises on a batch\n  at   batch 3\n  why  RuntimeError: ",
    ),
    "a batch that coactivation cannot run": (
        {"importance": "coactivation", "data": [X[:, :2]]},
        "the model raises on a batch\n  at   batch 0\n  why  RuntimeError: ",
    ),
    "a batch that is no input": ({"importance": "thinet", "data": [[3]]}, "a batch does not fit the model"),
    "no scalar": ({"importance": "taylor", "data": PAIRS, "loss": lambda m, b: m(b[0])}, "the loss is no scalar"),
    "NaN in the data": (
        {"importance": "taylor", "data": [(X * float("nan"), Y)], "loss": loss},
        "the batch holds NaN or infinities",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_and_losses_of_no_use_are_refused_in_four_parts(case):
    given, text = REFUSED[case]
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises((InputError, PlanError)) as caught:
        fxprune.transform(model, X[:1], ratio=0.5, **given)
    assert text in str(caught.value)
    assert caught.value.why
    assert caught.value.do
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        {"ratio": 2},
        {"ratio": {"conv9": 0.5}},
        {"keep": {"mcas": 0.5}},
        {"keep": {"params": 10**9}},
        {"ratio": 0.5, "round_to": 0},
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_measured(wrong):
    def never(model, batch):
        raise AssertionError("the loss was called")

    with pytest.raises(PlanError):
        fxprune.transform(net(), X[:1], importance="taylor", data=PAIRS, loss=never, **wrong)


def test_an_importance_is_measured_once_for_all_paths():
    calls = []

    def counted(model, batch):
        calls.append(1)
        return loss(model, batch)

    fxprune.transform(net(), X[:1], keep={"macs": 0.5}, scope="global", importance="taylor", data=PAIRS, loss=counted)
    assert len(calls) == len(PAIRS)


class Logarithm(nn.Module):
    def forward(self, x):
        return torch.log(x.clamp(max=0))


def test_the_first_layer_with_nan_is_named():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), Logarithm()), nn.Linear(4, 2)).eval()
    with pytest.raises(InputError, match=r'the first NaN or infinity is in the output of "1\.1"') as caught:
        fxprune.transform(
            model, torch.ones(1, 3), ratio=0.5, importance="taylor", data=[torch.ones(2, 3)],
            loss=lambda model, x: model(x).sum(),
        )  # fmt: skip
    assert caught.value.at == "batch 0"


class Root(nn.Module):
    def forward(self, x):
        return (x * 0).sqrt()


def test_gradients_that_are_not_finite_are_named_by_the_last_layer_that_has_them():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), Root(), nn.Linear(4, 2)).eval()
    with pytest.raises(InputError, match="a gradient is not finite") as caught:
        MEASURED["taylor"](model, [torch.ones(2, 3)], loss=lambda model, x: model(x).sum())
    assert caught.value.at == '"2.bias", batch 0'
    assert all(p.grad is None for p in model.parameters())


def test_a_model_without_values_is_refused():
    with pytest.raises(PlanError, match="nothing can be measured without weights"):
        fxprune.analyze(net().to("meta"), X[:1].to("meta")).plan(ratio=0.5, **arguments("taylor"))


def test_other_importances_pass_as_they_are():
    assert on_data("l1", net(), ((X,), {})) == "l1"
    assert on_data(len, net(), ((X,), {}), data=PAIRS, used_elsewhere=True) is len


def test_an_interrupt_leaves_the_model_as_it_was():
    model = net().train()

    def interrupted(model, batch):
        loss(model, batch).backward()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fxprune.transform(model, X[:1], ratio=0.5, importance="taylor", data=PAIRS, loss=interrupted)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
