"""Parameters, bytes and multiply-adds: against formulas, against torch's counter, and of plans not yet applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune.costs import LayerCost, per_channel, withheld
from fxprune.errors import CaptureError, InputError, RuleError
from fxprune.ops import multiplies
from fxprune.ops.aspects import MULTIPLY_ADDS
from tests.networks import Program, Step, build, images
from tests.support import call
from tests.test_golden import NETWORKS


class Run(nn.Module):
    """A function of its inputs as a model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def sized(*shape: int) -> Tensor:
    return torch.randn(shape)


FORMULAS: dict[str, tuple[nn.Module, Any, int, bool]] = {
    "linear": (nn.Linear(7, 11), sized(2, 3, 7), 2 * 3 * 7 * 11, True),
    "conv": (nn.Conv2d(3, 5, 3, stride=2), sized(2, 3, 9, 7), 2 * 5 * 3 * 9 * 4 * 3, True),
    "conv of one image": (nn.Conv2d(3, 5, 3), sized(3, 9, 7), 5 * 3 * 9 * 7 * 5, True),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), sized(2, 6, 5, 5), 2 * 8 * 3 * 9 * 3 * 3, True),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), sized(2, 6, 5, 5), 2 * 12 * 1 * 9 * 3 * 3, True),
    "conv1d": (nn.Conv1d(3, 5, 4), sized(2, 3, 11), 2 * 5 * 3 * 4 * 8, True),
    "conv3d": (nn.Conv3d(3, 5, 2), sized(2, 3, 4, 5, 6), 2 * 5 * 3 * 8 * 3 * 4 * 5, True),
    "transposed": (nn.ConvTranspose2d(3, 5, 3, stride=2), sized(2, 3, 4, 5), 2 * 3 * 5 * 9 * 4 * 5, True),
    "transposed grouped": (nn.ConvTranspose2d(6, 10, 3, groups=2), sized(2, 6, 4, 5), 2 * 6 * 5 * 9 * 4 * 5, True),
    "mm": (Run(torch.mm), (sized(2, 3), sized(3, 5)), 2 * 3 * 5, True),
    "addmm": (Run(torch.addmm), (sized(2, 5), sized(2, 3), sized(3, 5)), 2 * 3 * 5, True),
    "bmm": (Run(torch.bmm), (sized(7, 2, 3), sized(7, 3, 5)), 7 * 2 * 3 * 5, True),
    "baddbmm": (Run(torch.baddbmm), (sized(7, 2, 5), sized(7, 2, 3), sized(7, 3, 5)), 7 * 2 * 3 * 5, True),
    "addbmm": (Run(torch.addbmm), (sized(2, 5), sized(7, 2, 3), sized(7, 3, 5)), 7 * 2 * 3 * 5, False),
    "mv": (Run(torch.mv), (sized(2, 3), sized(3)), 2 * 3, False),
    "addmv": (Run(torch.addmv), (sized(2), sized(2, 3), sized(3)), 2 * 3, False),
    "dot": (Run(torch.dot), (sized(3), sized(3)), 3, False),
    "addr": (Run(torch.addr), (sized(2, 3), sized(2), sized(3)), 2 * 3, False),
    "einsum": (
        Run(lambda a, b: torch.einsum("nqhd,nkhd->nhqk", a, b)),
        (sized(2, 3, 5, 7), sized(2, 4, 5, 7)),
        840,
        True,
    ),
    "bilinear": (nn.Bilinear(3, 5, 7), (sized(2, 3), sized(2, 5)), 2 * 7 * 3 * 5 + 2 * 7 * 5, False),
    "distances": (Run(torch.cdist), (sized(2, 3, 7), sized(2, 5, 7)), 2 * 3 * 5 * 7, False),
    "attention": (
        Run(F.scaled_dot_product_attention),
        (sized(2, 3, 5, 8), sized(2, 3, 7, 8), sized(2, 3, 7, 8)),
        2 * (2 * 3 * 5 * 7 * 8),
        False,
    ),
    "attention with other values": (
        Run(F.scaled_dot_product_attention),
        (sized(2, 3, 5, 8), sized(2, 3, 7, 8), sized(2, 3, 7, 6)),
        2 * 3 * 5 * 7 * (8 + 6),
        True,
    ),
    "shared heads": (
        Run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)),
        (sized(2, 6, 5, 8), sized(2, 3, 7, 8), sized(2, 3, 7, 8)),
        2 * (2 * 6 * 5 * 7 * 8),
        False,
    ),
    "multi-head attention": (
        nn.MultiheadAttention(8, 2, batch_first=True),
        (sized(3, 5, 8),) * 3,
        3 * 5 * 8 * 24 + 2 * (3 * 5 * 5 * 8) + 3 * 5 * 8 * 8,
        False,
    ),
    "lstm": (nn.LSTM(3, 5, batch_first=True), sized(2, 7, 3), 2 * 7 * 20 * (3 + 5), False),
    "lstm both ways": (nn.LSTM(3, 5, bidirectional=True), sized(7, 2, 3), 2 * (2 * 7 * 20 * (3 + 5)), False),
    "projected": (nn.LSTM(3, 5, proj_size=2), sized(7, 2, 3), 2 * 7 * (20 * (3 + 2) + 2 * 5), False),
    "gru": (nn.GRU(3, 5), sized(7, 2, 3), 2 * 7 * 15 * (3 + 5), False),
    "rnn": (nn.RNN(3, 5), sized(7, 2, 3), 2 * 7 * 5 * (3 + 5), False),
    "elementwise": (nn.Sequential(nn.ReLU(), nn.LayerNorm(8), nn.Softmax(-1)), sized(2, 8), 0, True),
    "pooling": (
        nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Upsample(scale_factor=2)),
        sized(2, 3, 8, 8),
        0,
        True,
    ),
    "embedding": (nn.Embedding(10, 4), torch.tensor([[1, 2, 3]]), 0, True),
}
"""Name -> model, inputs, multiply-adds by formula, and whether torch counts all of them as well."""


@pytest.mark.parametrize("name", FORMULAS)
def test_multiply_adds_by_formula(name: str) -> None:
    model, inputs, expected, _ = FORMULAS[name]
    found = fxprune.cost(model.eval(), inputs)
    assert found.macs == found.at_least == expected
    assert found.uncounted == ()
    assert sum(layer.macs for layer in found.layers.values()) == expected


@pytest.mark.parametrize("name", [name for name, row in FORMULAS.items() if row[3]])
def test_torch_counts_the_same(name: str) -> None:
    model, inputs, expected, _ = FORMULAS[name]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(model.eval(), inputs)
    assert counter.get_total_flops() == 2 * expected


class Tied(nn.Module):
    """A tied weight, a buffer, a parameter of the model itself, parameters of another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))
        self.first, self.second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, dtype=torch.float64)
        self.third = nn.Linear(5, 5, bias=False)
        self.third.weight = self.first.weight
        self.register_buffer("offset", torch.zeros(5, dtype=torch.int16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(torch.tanh(self.first(x * self.scale) + self.offset))
        return self.second(x.double())


def test_parameters_and_bytes_by_module() -> None:
    found = fxprune.cost(Tied(), torch.randn(2, 5))
    assert (found.params, found.bytes, found.macs) == (5 + 25 + 30, 5 * 4 + 25 * 4 + 30 * 8 + 5 * 2, 3 * 2 * 25)
    assert found.layers == {
        "": LayerCost(5, 30, 0),
        "first": LayerCost(25, 100, 50),
        "second": LayerCost(30, 240, 50),
        "third": LayerCost(0, 0, 50),
    }


def test_the_repr_is_short() -> None:
    assert str(fxprune.cost(nn.Linear(2, 3), torch.zeros(1, 2))) == "Cost(params=9, bytes=36, macs=6)"
    assert hash(fxprune.cost(nn.Linear(2, 3), torch.zeros(1, 2)))


class Decides(nn.Module):
    """A forward that decides by numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.often, self.never = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.often(x) if bool((x * 0 + 1).sum() > 0) else self.never(x)


def test_a_forward_that_decides_by_numbers_runs_on_real_ones() -> None:
    model, x = Decides(), torch.randn(2, 3)
    assert fxprune.cost(model, x).macs == 2 * 12 + 2 * 16
    assert fxprune.analyze(model, x).cost() == fxprune.cost(model, x)


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="do not fit Linear"):
        fxprune.cost(nn.Linear(2, 3), (torch.zeros(1, 2), torch.zeros(1)))
    with pytest.raises(CaptureError, match="the model's forward raises"):
        fxprune.cost(nn.Linear(2, 3), torch.zeros(1, 5))


# -- plans not yet applied ------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Queries, keys and values of one matrix, the fused kernel, an output projection."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).reshape(n, length, -1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Linear(3, 6), kind(6, 8, batch_first=True, **options)
        self.head = nn.Linear(16 if options.get("bidirectional") else options.get("proj_size") or 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(torch.relu(self.embed(x)))[0][:, -1])


class Eager(nn.Module):
    """A forward that no tracer takes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Attention(24, 4), Attention(24, 3)])
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x) if x.ndim == int(x.ndim) and len(x.shape) == sum(1 for _ in x.shape) else x
        return self.head(x.mean(1))


def convolutions() -> nn.Module:
    return build(Program(6, (Step("conv", 8), Step("norm"), Step("act"), Step("conv", 6, 4)), 0, 6, 1))


def small_cases() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]]:
    for name, (make, shape) in NETWORKS.items():
        yield name, make, shape, {}
    yield "attention", Attention, (2, 5, 24), {}
    yield "attention without graph", Eager, (2, 5, 24), {}
    yield "attention exported", Eager, (2, 5, 24), {"path": "export"}
    yield "attention behind hooks", Eager, (2, 5, 24), {"path": "hooks"}
    yield "lstm", lambda: Recurrent(nn.LSTM), (2, 4, 3), {}
    yield "lstm both ways", lambda: Recurrent(nn.LSTM, bidirectional=True, num_layers=2), (2, 4, 3), {}
    yield "projected", lambda: Recurrent(nn.LSTM, proj_size=4), (2, 4, 3), {}
    yield "gru", lambda: Recurrent(nn.GRU), (2, 4, 3), {}
    encoder = nn.TransformerEncoderLayer(16, 4, 20, batch_first=True)
    yield "encoder", lambda: nn.Sequential(encoder, nn.Linear(16, 2)), (2, 5, 16), {}
    yield "preserved", lambda: NETWORKS["LayerNorm"][0](), (2, 6, 5), {"norms": "preserve"}
    yield "traced before", lambda: torch.fx.symbolic_trace(Attention().eval()), (2, 5, 24), {}


CASES = {name: (make, shape, options) for name, make, shape, options in small_cases()}


@pytest.mark.parametrize("name", CASES)
def test_a_plan_costs_what_the_model_costs_that_it_makes(name: str) -> None:
    """Equal in every figure of every layer, before and after, without making the small model."""
    make, shape, options = CASES[name]
    model, x = make().eval(), torch.randn(shape)
    options = options if "path" in options else {"prefer": "graph", **options}
    small = fxprune.transform(model, x, ratio=0.5, importance="random", seed=1, verify=False, **options)
    made = fxprune.record(small)
    kept = {key: value for key, value in options.items() if key == "norms"}
    analysis = fxprune.analyze(model, x, path=made.path, **kept)
    plan = fxprune.Plan({key: dict(value) for key, value in made.removed.items()})
    assert plan
    before, after = analysis.cost(), analysis.cost(plan)
    assert before == fxprune.cost(model, x)
    assert after == fxprune.cost(small, x)
    assert made.cost == (before, after)
    assert after.params < before.params
    assert before.macs > 0


@pytest.mark.parametrize("name", [name for name in CASES if name != "attention behind hooks"])
def test_a_channel_costs_everything_that_is_removed_with_it(name: str) -> None:
    """Each group's first channel removed alone, and both models counted."""
    make, shape, options = CASES[name]
    model, x = make().eval(), torch.randn(shape)
    analysis = fxprune.analyze(model, x, **options)
    before = analysis.cost()
    assert analysis.groups
    for group, costs in zip(analysis.groups, per_channel(analysis), strict=True):
        removed: dict[str, dict[int, list[int]]] = {}
        for member in group.members:
            gone = member.slots[member.index == 0].tolist()
            for alias in (member.parameter, *analysis.aliases.get(member.parameter, ())):
                removed.setdefault(alias, {})[member.dim] = sorted(gone)
        after = analysis.cost(fxprune.Plan(removed))
        assert (costs.params, costs.macs) == (before.params - after.params, before.macs - after.macs)
        assert costs.params > 0


def test_the_cost_of_an_analysis_is_that_of_its_first_example() -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(2, 3)
    assert fxprune.analyze(net, x, also=[torch.randn(5, 3)]).cost() == fxprune.cost(net, x)


def test_parameters_and_macs_that_locks_withhold() -> None:
    """Locked outputs withhold all multiply-adds of a linear layer, locked inputs those that read them."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1)).eval()
    analysis = fxprune.analyze(net, torch.randn(2, 3, 4, 4))
    first, second = 2 * 8 * 3 * 9 * 16, 2 * 5 * 8 * 16
    events = {event: (analysis.events[event].op, analysis.events[event].module) for event in withheld(analysis)}
    by_event = {events[event]: macs for event, macs in withheld(analysis).items()}
    assert by_event == {("aten::convolution", "0"): first, ("output", ""): second}


def test_a_slot_that_one_lock_holds_twice_is_withheld_once() -> None:
    """Two heads of four outputs each go to the result: each slot has an atom of its head and one of its width."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x).view(-1, 2, 4)

    analysis = fxprune.analyze(Heads().eval(), torch.randn(5, 3))
    macs = {analysis.events[event].op: macs for event, macs in withheld(analysis).items()}
    assert macs == {"aten::addmm": 5 * 3 * 8, "output": 5 * 3 * 8}


class First(nn.Module):
    """Returns the first result of a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """A sequence to a sequence."""
        out: Tensor = self.layer(x)[0]
        return out


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_lock_withholds_each_parameter_once(kind: type[nn.Module], directions: int) -> None:
    """The weight behind a state that is returned is held in both of its dimensions."""
    model = First(kind(3, 5, directions, batch_first=True, bidirectional=directions == 2))
    most = max(lock.parameters for lock in fxprune.analyze(model, torch.randn(2, 7, 3)).locked)
    assert most == sum(parameter.numel() for parameter in model.parameters())


def test_a_lock_withholds_no_buffers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5)).eval()
    (lock,) = (lock for lock in fxprune.analyze(model, torch.randn(2, 3, 4, 4)).locked if lock.event.op == "output")
    assert lock.parameters == 5 * 3 + 5 + 5


def test_a_plan_of_another_model_is_refused() -> None:
    analysis = fxprune.analyze(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(1, 3))
    with pytest.raises(fxprune.PlanError, match='removes from "9'):
        analysis.cost(fxprune.Plan({"9.weight": {0: [1]}}))


# -- operations without a formula -----------------------------------------------------------------------------


class Mixed(nn.Module):
    """A Fourier transform between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.fft.fft(self.first(x), dim=0).real)


def test_uncounted_operations_are_unknown_and_never_zero() -> None:
    model, x = Mixed(), torch.randn(4, 3)
    found = fxprune.cost(model, x)
    assert found.macs is None
    assert found.at_least == 4 * 24 + 4 * 16
    assert found.uncounted == ("aten::_fft_r2c in the model",)
    assert found.layers["first"].macs == 4 * 24
    assert found.layers[""].macs is None
    analysis = fxprune.analyze(model, x)
    assert analysis.cost() == found
    assert analysis.cost(analysis.plan(ratio=0.5)).macs is None


@pytest.fixture
def unknown_again() -> Iterator[None]:
    """The multiply-adds of a Fourier transform are unknown afterwards, as they were."""
    name = "aten::_fft_r2c"
    before = MULTIPLY_ADDS.functions[name]
    yield
    MULTIPLY_ADDS.functions[name] = before
    MULTIPLY_ADDS.replaceable.add(name)


@pytest.mark.usefixtures("unknown_again")
def test_a_formula_takes_the_place_of_an_unknown_number() -> None:
    """Its integers are factors, and the dimensions of its tensors follow a plan."""

    @multiplies("aten::_fft_r2c")
    def fourier(self: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return [(*self, 10)]

    model, x = Mixed(), torch.randn(4, 3)
    assert fxprune.cost(model, x).macs == 4 * 24 + 4 * 8 * 10 + 4 * 16
    small = fxprune.transform(model, x, keep={"macs": 0.5})
    width = small.first.out_features
    assert fxprune.cost(small, x).macs == 4 * width * (3 + 10 + 2)
    assert fxprune.record(small).macs == (480, 4 * width * (3 + 10 + 2))
    with pytest.raises(RuleError, match="the multiply-adds of aten::_fft_r2c are counted already"):
        multiplies("aten::_fft_r2c")(fourier)


def test_a_budget_of_multiply_adds_that_are_not_known_names_what_is_not_counted() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Mixed(), Mixed()

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    model, x = Twice(), torch.randn(4, 3)
    what = "the macs of this model are not known"
    why = r"nothing counts aten::_fft_r2c in a and 1 more module\n"
    how = r'@fxprune.ops.multiplies\("aten::_fft_r2c"\), as docs/report.md shows below "Cost"'
    assert (
        '@fxprune.ops.multiplies("aten::_fft_r2c"'
        in Path(__file__).parents[2].joinpath("docs", "report.md").read_text().partition("\n## Cost\n")[2]
    )
    calls: tuple[Callable[[], object], ...] = (
        lambda: fxprune.transform(model, x, keep={"macs": 0.5}),
        lambda: fxprune.GradualPruner(model, x, keep={"macs": 0.5}),
        lambda: fxprune.pareto(model, x, budgets=(0.5,), key="macs", repair=[x] * 4),
    )
    for call_it in calls:
        with pytest.raises(fxprune.PlanError, match=f"{what}(.|\n)*{why}(.|\n)*{how}"):
            call_it()


def test_an_operation_without_a_formula_is_unknown() -> None:
    found = fxprune.cost(Run(torch.linalg.inv_ex), torch.randn(3, 3))
    assert found.macs is None
    assert found.uncounted == ("aten::linalg_inv_ex in the model",)


def test_an_operator_of_ones_own_is_unknown_until_it_has_a_formula() -> None:
    with torch.library._scoped_library("costtest", "DEF") as library:
        library.define("filter(Tensor input, Tensor kernel) -> Tensor")
        library.impl("filter", lambda input, kernel: torch.outer(input, kernel), "CompositeExplicitAutograd")
        model = Run(torch.ops.costtest.filter)
        found = fxprune.cost(model, (torch.randn(3), torch.randn(4)))
        assert (found.macs, found.uncounted) == (None, ("costtest::filter in the model",))

        @multiplies("costtest::filter")
        def formula(input: tuple[Any, ...], kernel: tuple[Any, ...]) -> list[tuple[Any, ...]]:
            return [(*input, *kernel)]

        assert fxprune.cost(model, (torch.randn(3), torch.randn(4))).macs == 12
        with pytest.raises(RuleError, match="the multiply-adds of costtest::filter are counted already"):
            multiplies("costtest::filter")(formula)


def test_a_formula_that_names_what_the_operator_lacks_is_refused() -> None:
    with torch.library._scoped_library("costtest", "DEF") as library:
        library.define("twice(Tensor values) -> Tensor")
        library.impl("twice", lambda values: 2 * values, "CompositeExplicitAutograd")

        @multiplies("costtest::twice")
        def formula(value: tuple[Any, ...]) -> list[tuple[Any, ...]]:
            return [value]

        with pytest.raises(RuleError, match='names an argument "value", which the operator lacks') as caught:
            fxprune.cost(Run(torch.ops.costtest.twice), torch.randn(3))
        assert 'did you mean "values"?' in str(caught.value)


class Whole(nn.Module):
    """Treated as one operation by a rule; inside it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@fxprune.leaf(Whole)
def _whole(call: Any, x: Any) -> Any:
    call.lock(call.parameter("weight").dim(1), "for the test")
    call.same(x.dim(-1), call.parameter("weight").dim(0))
    return call.operand([*x.vectors[:-1], call.parameter("weight").dim(1)], False)


def test_inside_a_module_with_a_rule_of_its_own_only_the_original_is_known() -> None:
    net = nn.Sequential(nn.Linear(3, 6), Whole(), nn.Linear(6, 2)).eval()
    x = torch.randn(4, 3)
    analysis = fxprune.analyze(net, x)
    assert analysis.cost() == fxprune.cost(net, x)
    assert analysis.cost().macs == 4 * (18 + 36 + 12)
    assert analysis.cost(fxprune.Plan({})).macs == 4 * (18 + 36 + 12)
    plan = analysis.plan(ratio={"0": 0.5})
    assert analysis.cost(plan).macs is None
    assert analysis.cost(plan).layers["0"].macs == 4 * 9
    assert [c.macs for c in per_channel(analysis)] == [None]


def test_multiply_adds_that_a_lock_inside_such_a_module_withholds_are_unknown() -> None:
    """They stay unknown, although the layer behind it reads the same channels and is counted."""
    net = nn.Sequential(nn.Linear(3, 6), Whole(), nn.Linear(6, 2)).eval()
    analysis = fxprune.analyze(net, torch.randn(4, 3))
    by_event = {analysis.events[event].op: macs for event, macs in withheld(analysis).items()}
    assert by_event == {"aten::addmm": 4 * 18, "Whole": None, "output": 4 * 12}


def test_a_plan_of_a_generated_network_of_images_costs_what_its_model_costs() -> None:
    """Convolutions of the generator, several seeds of its variants."""
    for pick in range(6):
        program = Program(4, (Step("conv", 6, pick), Step("norm"), Step("act", 2, pick)), 0, 5, pick)
        model, x = build(program).eval(), images(program)
        analysis = fxprune.analyze(model, x)
        plan = analysis.plan(ratio=0.5)
        small = fxprune.transform(model, x, plan=plan, verify=False)
        assert analysis.cost(plan) == fxprune.cost(small, x), program
