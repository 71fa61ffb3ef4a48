"""The data of a repair: the forms in which it is given, what is refused, what is held out, and interruptions."""

from __future__ import annotations

import copy
import math
import sys
import threading
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune._repair.outputs import relative_squared_error
from fxprune.planning.plan import Plan
from tests.repair.test_models import Net, batches, mlp


def small_of(net: nn.Module, data: list[Any], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fxprune.transform(net, data[0], ratio=0.5, **options)


def report(small: nn.Module, net: nn.Module, data: Any, **options: Any) -> Any:
    return fxprune.record(fxprune.repair(small, net, data, **options)).repair


# -- forms ----------------------------------------------------------------------------------------------------


class Several(nn.Module):
    """Takes a dict, and a tensor behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, given: dict[str, Tensor], more: Tensor | None = None) -> Tensor:
        out: Tensor = self.body(given["x"] if more is None else given["x"] + more)
        return out


@pytest.mark.parametrize("count", [1, 2])
def test_labels_behind_several_inputs_or_a_dict_are_left_out(count: int) -> None:
    torch.manual_seed(0)
    net = Several().eval()
    inputs = [({"x": torch.randn(8, 6)}, torch.randn(8, 6))[:count] for _ in range(4)]
    with_labels = [(*given, torch.zeros(8)) for given in inputs]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model(*batch[:count]).square().mean()

    made = [
        fxprune.transform(net, inputs[0], ratio=0.5, importance="taylor", data=data, loss=loss, repair=True)
        for data in (inputs, with_labels)
    ]
    assert fxprune.record(made[0]).repair is not None
    for name, tensor in made[0].state_dict().items():
        assert torch.equal(tensor, made[1].state_dict()[name])


class Kinds(nn.Module):
    """Takes a number of a kind beside its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds, self.body = nn.Embedding(3, 6), mlp()

    def forward(self, x: Tensor, kind: Tensor, scale: float = 1.0) -> Tensor:
        out: Tensor = self.body(x * scale + self.kinds(kind))
        return out


def test_inputs_by_name_may_stand_in_a_batch_by_position_before_labels() -> None:
    torch.manual_seed(0)
    net = Kinds().eval()
    data = [(torch.randn(8, 6), torch.randint(3, (8,)), torch.zeros(8, dtype=torch.long)) for _ in range(6)]
    (x, kind, _), states = data[0], []
    for example in ((x, kind), {"x": x, "kind": kind}, {"kind": kind, "x": x}):
        made = fxprune.transform(
            net, example, ratio=0.5, importance="taylor", data=data, loss=lambda m, b: m(*b[:2]).sum(), repair=True
        )
        assert fxprune.record(made).repair is not None
        states.append(made.state_dict())
    assert all(torch.equal(tensor, state[name]) for state in states for name, tensor in states[0].items())
    with pytest.raises(fxprune.InputError, match="in the order of forward's arguments, or hold it by") as caught:
        fxprune.transform(net, {"x": x, "kind": kind}, ratio=0.5, data=[(x,)], repair=True)
    assert "example inputs" not in str(caught.value)


def test_batches_may_have_any_form_and_be_read_once() -> None:
    torch.manual_seed(0)
    net, data = mlp(), batches(6)
    small = small_of(net, data)
    plain = report(small, net, data)
    labelled = [(x, torch.zeros(8)) for x in data]
    assert report(small, net, iter(data)) == plain
    assert report(small, net, [(x,) for x in data]) == plain
    assert report(small, net, ({"input": x} for x in data)) == plain
    assert report(small, net, labelled, inputs=lambda batch: batch[0]) == plain
    assert report(small, net, torch.utils.data.DataLoader(torch.cat(data), batch_size=8)) == plain
    for one in (iter(data), ({"input": x} for x in data)):
        assert fxprune.record(fxprune.transform(net, data[0], ratio=0.5, repair=one)).repair == plain
    made = fxprune.transform(net, data[0], ratio=0.5, repair=labelled, repair_inputs=lambda batch: batch[0])
    assert fxprune.record(made).repair == plain


@pytest.mark.filterwarnings("ignore:the relative squared error of the outputs")
def test_samples_of_which_one_alone_is_held_out_are_warned_of() -> None:
    net = mlp()
    small = small_of(net, [X])
    with pytest.warns(UserWarning, match="the repair has 4 samples, of which one alone judges") as caught:
        fxprune.repair(small, net, [X[:4]])
    assert caught[0].filename == __file__
    assert report(small, net, [X]).after >= 0


def test_one_batch_is_split() -> None:
    net, data = mlp(), batches(6, count=1, size=80)
    small = small_of(net, data)
    assert report(small, net, data) == report(small, net, list(data[0].chunk(10)))


def test_activations_that_do_not_wait_change_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 6, 3, bias=False))
    net, data = net.append(nn.BatchNorm2d(6)).eval(), batches(3, 6, 6)
    small = small_of(net, data)
    limits = [(1 << 30, 0), (200_000, 0), (0, 0), (0, 1 << 30), (40_000, 60_000)]
    made = [fxprune.repair(small, net, data, memory=memory, disk=disk) for memory, disk in limits]
    for other in made[1:]:
        assert fxprune.record(other).repair == fxprune.record(made[0]).repair
        assert all(map(torch.equal, made[0].state_dict().values(), other.state_dict().values()))


# -- what is refused ------------------------------------------------------------------------------------------


def without_numbers(x: Tensor) -> Tensor:
    y = x.clone()
    y[1, 2] = float("nan")
    return y


X = torch.randn(8, 6)
REFUSED = {
    "no batch": ([], ["there is no batch"]),
    "a tensor": (X, ["batches must be a data loader or a list of batches, not Tensor"]),
    "one sample": ([X[:1]], ["at least two samples"]),
    "no tensor": ([X, 3], ["does not fit the model", "batch 1", "int"]),
    "labels": ([(X, X)] * 10, ["does not fit the model", "batch 0", "inputs=lambda"]),
    "another width": ([X, X[:, :5]], ["the model raises an error on a batch", "batch 1", "shapes"]),
    "another width, alone": ([X[:, :5]], ["the model raises an error on a batch", "batch 0"]),
    "another dtype": ([X, X.long()], ["the model raises an error on a batch", "batch 1", "dtype"]),
    "NaN that judges": ([X] * 9 + [without_numbers(X)], ["not finite", '"0.weight", batch 9']),
    "NaN": ([without_numbers(X)] + [X] * 9, ["not finite", '"0.weight"']),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("mode", ["weights", "norms"])
def test_batches_of_no_use_are_refused(name: str, mode: str) -> None:
    data, texts = REFUSED[name]
    net = mlp()
    small = small_of(net, [X])
    if name == "NaN" and mode == "norms":
        return
    with pytest.raises(fxprune.InputError) as caught:
        fxprune.repair(small, net, data, mode=mode)
    for text in texts:
        assert text in str(caught.value)
    assert not [thread for thread in threading.enumerate() if thread.name == "fxprune repair"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_statistics_are_not_taken_from_numbers_that_are_not_finite(bad: float) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.BatchNorm1d(6)).eval()
    inside = nn.Sequential(nn.BatchNorm1d(6), Inverse(), nn.BatchNorm1d(6)).eval()
    for model, data, norm in (
        (net, [X, X.clone().index_fill(0, torch.tensor(3), bad)], "1"),
        (inside, [X, torch.zeros(8, 6)], "2"),
    ):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(fxprune.InputError) as caught:
            fxprune.recalibrate(model, data)
        assert caught.value.at == f'"{norm}", batch 1'
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    small = small_of(net, [X])
    with pytest.raises(fxprune.InputError, match=r'not finite[\s\S]*"1", batch 0'):
        fxprune.repair(small, net, [X.clone().fill_(bad)] + [X] * 10, mode="norms")


class Inverse(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 / x


def test_recalibrate_refuses_a_batch_that_the_model_does_not_take() -> None:
    net = nn.Sequential(nn.BatchNorm1d(6))
    with pytest.raises(fxprune.InputError, match=r"raises an error on a batch[\s\S]*batch 1[\s\S]*more than 1 value"):
        fxprune.recalibrate(net, [X, X[:1]])


def test_outputs_that_cannot_be_compared_are_refused() -> None:
    net = Net(lambda net, x: net.b(torch.tanh(net.a(x))).argmax(-1), a=nn.Linear(6, 20), b=nn.Linear(20, 4)).eval()
    with pytest.raises(fxprune.InputError, match="cannot be compared"):
        fxprune.repair(small_of(net, [X]), net, batches(6))


def test_weights_without_values_are_refused() -> None:
    net = mlp().to("meta")
    small = small_of(net, [X.to("meta")], importance="random", seed=0)
    with pytest.raises(fxprune.InputError, match="no values"):
        fxprune.repair(small, net, [X.to("meta")])
    with pytest.raises(fxprune.InputError, match="no values"):
        fxprune.recalibrate(nn.Sequential(nn.BatchNorm1d(6)).to("meta"), [X.to("meta")])


def test_infinities_that_both_models_have_do_not_count() -> None:
    ours, theirs = torch.tensor([[1.0, -torch.inf]]), torch.tensor([[2.0, -torch.inf]])
    assert relative_squared_error([(ours, theirs)]) == 0.25
    assert relative_squared_error([(torch.tensor([[3 + 4j]]), torch.tensor([[3 - 4j]]))]) == 64 / 25


# -- interruptions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [3, 14, 30])
@pytest.mark.parametrize(("memory", "disk"), [(0, 0), (0, 1 << 30), (1 << 30, 0)])
def test_an_interrupted_repair_leaves_nothing_behind(call: int, memory: int, disk: int) -> None:
    calls = -1000

    def forward(net: Any, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return net.b(torch.tanh(net.a(x)))

    torch.manual_seed(0)
    net, data = Net(forward, a=nn.Linear(6, 20), b=nn.Linear(20, 4)).train(), batches(6)
    small = small_of(net, data)
    before = [{name: tensor.clone() for name, tensor in one.state_dict().items()} for one in (net, small)]
    calls = 0
    with pytest.raises(KeyboardInterrupt):
        fxprune.repair(small, net, data, memory=memory, disk=disk)
    assert not [thread for thread in threading.enumerate() if thread.name == "fxprune repair"]
    for one, state in zip((net, small), before, strict=True):
        assert one.training
        assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()
    assert fxprune.record(small).repair is None
    calls = 1000
    assert report(small, net, data).after > 0


# -- the promise ----------------------------------------------------------------------------------------------


def layer_of(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    norm = nn.BatchNorm2d(12)
    norm.running_mean, norm.running_var = torch.randn(12), torch.rand(12) + 0.5
    return {
        "linear": (mlp(), (6,)),
        "no bias": (nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4, bias=False)), (6,)),
        "norm": (nn.Sequential(nn.Linear(6, 20), nn.GELU(), nn.Linear(20, 6), nn.LayerNorm(6)), (3, 6)),
        "conv": (nn.Sequential(nn.Conv2d(3, 12, 3), norm, nn.ReLU(), nn.Conv2d(12, 4, 3, bias=False)), (3, 6, 6)),
        "deep": (nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4)), (6,)),
    }[kind]


@given(
    kind=st.sampled_from(["linear", "no bias", "norm", "conv", "deep"]),
    ridge=st.sampled_from([None, 0.0, 1e-12, 1e-3, 100.0]),
    mode=st.sampled_from(["weights", "bias", "norms"]),
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    rows=st.sampled_from(["plain", "all the same", "a huge one", "many zeros"]),
    holdout=st.sampled_from([0.01, 0.5, 0.9]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12, deadline=None)
@pytest.mark.filterwarnings("ignore:the repair has [0-9]+ sample")
@pytest.mark.filterwarnings("ignore:[0-9]+ of the [0-9]+ samples? that judge")
@pytest.mark.filterwarnings("ignore:the relative squared error of the outputs")
def test_a_repair_is_never_worse_on_held_out_samples(
    kind: str, ridge: float | None, mode: str, sizes: list[int], rows: str, holdout: float, seed: int
) -> None:
    torch.manual_seed(seed)
    net, shape = layer_of(kind)
    net.eval()
    data = [torch.randn(size, *shape) for size in sizes]
    if rows == "all the same":
        data = [data[0][:1].expand_as(x).clone() for x in data]
    elif rows == "a huge one":
        data[0][0] *= 1e4
    elif rows == "many zeros":
        data[1:] = [torch.zeros_like(x) for x in data[1:]]
    small = small_of(net, [torch.randn(4, *shape)])
    done = report(small, net, data, ridge=ridge, mode=mode, holdout=holdout)
    assert done.after <= done.before
    assert all(layer.after <= layer.before for layer in done.layers.values())


@given(seed=st.integers(0, 1000), removed=st.integers(1, 8), bias=st.booleans(), conv=st.booleans())
@settings(max_examples=6, deadline=None)
def test_inputs_that_are_combinations_of_kept_ones_cost_nothing(
    seed: int, removed: int, bias: bool, conv: bool
) -> None:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(20, 12, 1), nn.Conv2d(12, 5, 3, bias=bias)] if conv else None
    net = nn.Sequential(*(layers or [nn.Linear(20, 12), nn.Linear(12, 5, bias=bias)])).double().eval()
    mixing = torch.randn(removed, 12 - removed, dtype=torch.float64)
    with torch.no_grad():
        for tensor in net[0].parameters():
            tensor[:removed] = torch.tensordot(mixing, tensor[removed:], 1)
    shape = (20, 4, 4) if conv else (20,)
    data = [torch.randn(16, *shape, dtype=torch.float64) for _ in range(10)]
    gone = list(range(removed))
    plan = Plan({"0.weight": {0: gone}, "0.bias": {0: gone}, "1.weight": {1: gone}})
    done = report(fxprune.transform(net, data[0], plan=plan), net, data, ridge=0.0)
    assert done.before > 1e-6
    assert done.after < 1e-18  # a square


@pytest.mark.parametrize("seed", [16, 30, 36, 38])
@pytest.mark.parametrize("tiny", [1e-4, 0.0])
def test_one_sample_with_outputs_near_zero_does_not_decide_alone(seed: int, tiny: float) -> None:
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)]
    net, data = nn.Sequential(*layers).eval(), [torch.randn(16, 6) for _ in range(10)]
    with torch.no_grad():
        net[4].bias -= net(data[4][:1])[0] * (1 - tiny)  # the first sample of a batch that is held out
    small = fxprune.transform(net, data[0], keep={"macs": 0.4})
    repaired = fxprune.repair(small, net, data)
    done = fxprune.record(repaired).repair
    assert done.undone == ()
    assert done.after < 0.8 * done.before < 8
    with torch.no_grad():
        x = torch.randn(500, 6)
        before, after = ((one(x) - net(x)).square().sum() for one in (small, repaired))
    assert after < 0.5 * before


def test_a_function_of_the_user_that_raises_is_named_with_the_batch() -> None:
    model = mlp()
    small = fxprune.transform(model, torch.randn(1, 6), ratio=0.5)
    labelled = [(torch.randn(4, 6), torch.zeros(4)) for _ in range(3)]

    def pick(batch: Any) -> Any:
        return batch["x"]

    given = {"ratio": 0.5, "repair": labelled, "repair_inputs": pick}
    for option, call in (
        ("inputs", lambda: fxprune.repair(small, model, labelled, inputs=pick)),
        ("repair_inputs", lambda: fxprune.transform(model, torch.randn(1, 6), **given)),
    ):
        with pytest.raises(fxprune.InputError, match="the function that picks the inputs out") as raised:
            call()
        assert raised.value.at == f"{option}=pick, batch 0"
        assert raised.value.why.startswith("TypeError: tuple indices must be integers or slices, not str; it was")
        assert "lambda batch: batch[0]" in raised.value.do


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions take notes since Python 3.11")
def test_an_exception_of_the_loader_keeps_its_type_and_says_where() -> None:
    model = mlp()

    def loader() -> Any:
        yield torch.randn(4, 6)
        raise RuntimeError("disk gone")

    for options in ({"repair": loader()}, {"importance": "activation_mean", "data": loader()}):
        with pytest.raises(RuntimeError, match="disk gone") as raised:
            fxprune.transform(model, torch.randn(1, 6), ratio=0.5, **options)
        assert any("at batch 1" in note for note in raised.value.__notes__)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ridge": -1.0},
        {"ridge": float("nan")},
        {"holdout": 1.5},
        {"mode": "weight"},
        {"memory": -1},
        {"mode": "outputs", "steps": 0},
        {"mode": "outputs", "noise": -1.0},
    ],
    ids=str,
)
def test_settings_of_no_use_are_refused_in_four_parts(wrong: dict[str, Any]) -> None:
    model = mlp()
    small = fxprune.transform(model, torch.randn(1, 6), ratio=0.5)
    with pytest.raises(fxprune.InputError) as raised:
        fxprune.repair(small, model, [torch.randn(4, 6)] * 3, **wrong)
    name = list(wrong)[-1]
    assert raised.value.at.startswith(f"{name}=")
    assert raised.value.why
    assert raised.value.do


def test_one_tensor_is_no_list_of_batches() -> None:
    with pytest.raises(fxprune.InputError, match="not Tensor"):
        fxprune.transform(mlp(), torch.randn(1, 6), ratio=0.5, repair=torch.randn(20, 6))


def test_a_batch_of_another_shape_names_the_argument_that_picks_inputs_out():
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    with pytest.raises(fxprune.InputError, match="pick it out: `repair_inputs=lambda batch"):
        fxprune.transform(net, torch.randn(2, 4), ratio=0.5, repair=[torch.randn(8, 3)])
