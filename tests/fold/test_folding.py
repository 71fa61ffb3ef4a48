"""Folded constants, compared with the original whose layers give zeros by hooks."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.artifacts import load, save
from fxprune.fold import changes
from fxprune.fold.changes import carrier
from tests.support import calibrate, randomise, torchvision

ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Hardswish, nn.GELU, nn.Tanh, nn.Softplus)


def ready(net: nn.Module, seed: int = 0) -> nn.Module:
    return randomise(net.double().eval(), seed, weights=True)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def output_masked(net: nn.Module, zeroed: Any) -> nn.Module:
    """A copy whose forward hooks replace removed outputs of layers by their bias; parameters stay as they are."""
    hooked = copy.deepcopy(net)
    for name, dims in zeroed.items():
        layer = hooked.get_submodule(name.rpartition(".")[0])
        ((_, gone),) = dims.items()

        def hook(module: Any, args: Any, output: Tensor, gone: Any = gone) -> Tensor:
            channel = -1 if isinstance(module, nn.Linear) else 1
            value = torch.zeros(len(gone), dtype=output.dtype) if module.bias is None else module.bias[gone]
            shape = [1] * output.ndim
            shape[channel] = len(gone)
            made: Tensor = output.index_fill(channel, torch.tensor(gone), 0.0)
            return made.index_add(
                channel,
                torch.tensor(gone),
                value.view(shape).expand_as(output.index_select(channel, torch.tensor(gone))),
            )

        layer.register_forward_hook(hook)
    return hooked


def check(net: nn.Module, x: Tensor, *others: Tensor, **options: Any) -> nn.Module:
    """Prune with folded constants, compare with the output-masked original on all inputs, and by `verify`."""
    small = fxprune.transform(net, x, bias="fold", **options)
    made = fxprune.record(small)
    reference = output_masked(net, made.zeroed)
    assert made.zeroed
    assert difference(net(x), reference(x)) > 1e-6, "nothing that matters went"
    assert made.cost is not None
    assert made.cost[1] == fxprune.cost(small, x) or made.path == "export"
    for inputs in (x, *others):
        assert difference(small(inputs), reference(inputs)) < 1e-9
        assert fxprune.verify(net, small, inputs) < 1e-9
    return small


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("padding", [0, 1, "same"])
@pytest.mark.parametrize("border", ["carrier", "map"])
def test_constants_fold_behind_every_activation_and_padding(activation: Any, padding: Any, border: str) -> None:
    act = activation()
    net = ready(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=padding), nn.BatchNorm2d(8), act),
            *(nn.Conv2d(8, 12, 3, padding=padding, bias=False), nn.BatchNorm2d(12), act),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5, bias=False)),
        )
    )
    others = [] if border == "map" else [images(3, 3, 17, 13, seed=1)]
    options = {} if border == "carrier" else {"prefer": "graph"}
    small = check(net, images(2, 3, 9, 9), *others, ratio=0.5, border=border, **options)
    padded = padding != 0
    carriers = int(padded and border == "carrier")
    assert small.get_submodule("0").weight.shape[0] == 4 + carriers
    assert small.get_submodule("3").weight.shape == (6, 4 + carriers, 3, 3)
    assert small.get_submodule("8").bias.shape == (5,), "a bias that was not there"
    maps = [name for name, _ in small.named_buffers() if name.endswith("_map")]
    assert len(maps) == int(padded and border == "map")


def test_even_kernels_with_same_padding_have_a_pattern_that_a_carrier_has_too() -> None:
    net = ready(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 4, 4, padding="same"), nn.ReLU()))
    small = check(net, images(2, 3, 9, 9), images(1, 3, 12, 7, seed=1), ratio=0.5)
    assert small.get_submodule("0").out_channels == 4


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_needs_no_carrier(mode: str) -> None:
    net = ready(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 4, 3, padding=1, padding_mode=mode), nn.ReLU())
    )
    small = check(net, images(2, 3, 9, 9), ratio=0.5)
    assert small.get_submodule("0").out_channels == 3


@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=4), 4),
        (lambda: nn.Conv2d(8, 8, 3, groups=4), 2),
        (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1), 5),
        (lambda: nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2), 6),
        (lambda: nn.Conv2d(8, 6, 3, padding=2, dilation=2, stride=2), 5),
        (lambda: nn.Conv2d(8, 6, 1), 4),
    ],
)
def test_constants_go_into_every_kind_of_convolution(layer: Any, kept: int) -> None:
    net = ready(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), layer(), nn.ReLU(), nn.Conv2d(layer().out_channels, 4, 1))
    )
    small = check(net, images(2, 3, 10, 9), images(2, 3, 15, 13, seed=1), ratio={"0*": 0.5, "2*": 0.0})
    assert small.get_submodule("0").out_channels >= kept


@pytest.mark.parametrize(("conv", "norm", "size"), [(nn.Conv1d, nn.BatchNorm1d, 1), (nn.Conv3d, nn.BatchNorm3d, 3)])
def test_constants_fold_in_one_and_three_dimensions(conv: Any, norm: Any, size: int) -> None:
    net = ready(nn.Sequential(conv(3, 8, 3, padding=1), norm(8), nn.SiLU(), conv(8, 4, 3, padding=1), nn.ReLU()))
    small = check(net, images(2, 3, *(7,) * size), ratio=0.5)
    assert small.get_submodule("0").out_channels == 5


class Steps(nn.Module):
    """A linear layer and a sigmoid before a recurrent cell, which is called once for each step."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(3, 8), cell, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(torch.sigmoid(self.first(x[0])))
        for step in x[1:]:
            state = self.cell(torch.sigmoid(self.first(step)), state)
        return self.last(state[0] if isinstance(self.cell, nn.LSTMCell) else state)


def with_zeros(net: nn.Module, zeroed: Any) -> nn.Module:
    """A copy with these slots of its weights set to zero."""
    made = copy.deepcopy(net)
    for name, dims in zeroed.items():
        for dim, slots in dims.items():
            made.get_parameter(name).detach().index_fill_(dim, torch.tensor(slots), 0.0)
    return made


CELLS = ((nn.RNNCell, 1), (nn.LSTMCell, 4), (nn.GRUCell, 3))


@pytest.mark.filterwarnings("ignore:the small model is an exported graph")
@pytest.mark.parametrize(("kind", "gates"), CELLS)
@pytest.mark.parametrize("path", ["eager", "export"])
def test_constant_inputs_of_a_recurrent_cell_fold_into_its_bias(kind: Any, gates: int, path: str) -> None:
    net = ready(Steps(kind(8, 6)))
    x = images(3, 4, 3)
    small = fxprune.transform(net, x, ratio=0.5, bias="fold", path=path)
    plan = fxprune.record(small).plan
    assert small.get_parameter("cell.weight_ih").shape == (6 * gates, 4)
    assert plan.zeroed.keys() == {"first.weight"}, "units with a bias vary from step to step, and stay"
    assert any("cell.weight_ih" in reason for reason in plan.reasons)
    for inputs in (x, images(3, 5, 3, seed=1)):
        assert difference(net(inputs), with_zeros(net, plan.zeroed)(inputs)) > 1e-6
        assert difference(small(inputs), with_zeros(net, plan.zeroed)(inputs)) < 1e-9


@pytest.mark.parametrize(("kind", "gates"), CELLS)
def test_a_recurrent_cell_without_bias_keeps_constant_inputs_and_loses_units(kind: Any, gates: int) -> None:
    net = ready(Steps(kind(8, 6, bias=False)))
    x = images(3, 4, 3)
    small = fxprune.transform(net, x, ratio=0.5, bias="fold", path="eager")
    plan = fxprune.record(small).plan
    assert small.get_parameter("cell.weight_ih").shape == (3 * gates, 8)
    assert plan.zeroed.keys() == {"cell.weight_ih", "cell.weight_hh"}
    assert any("first" in reason and "no bias there" in reason for reason in plan.reasons)
    for inputs in (x, images(3, 5, 3, seed=1)):
        assert difference(net(inputs), with_zeros(net, plan.zeroed)(inputs)) > 1e-6
        assert difference(small(inputs), with_zeros(net, plan.zeroed)(inputs)) < 1e-9


@pytest.mark.parametrize(("kind", "gates"), CELLS)
def test_units_without_weights_are_found_in_a_recurrent_cell(kind: Any, gates: int) -> None:
    net = ready(Steps(kind(8, 6, bias=False)))
    rows = [unit + 6 * gate for gate in range(gates) for unit in (1, 4)]
    for weight in (net.cell.weight_ih, net.cell.weight_hh):
        weight.detach()[rows] = 0.0
    x = images(3, 4, 3)
    for options in ({"masks": "zeros"}, {"masks": "zeros", "bias": "prune"}):
        small = fxprune.transform(net, x, **options)
        assert small.get_parameter("cell.weight_hh").shape == (4 * gates, 4)
        assert difference(small(x), net(x)) < 1e-9


class Residual(nn.Module):
    """A sum, a concatenation, several readers, pooling, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv, self.bn2 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.gate, self.side = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 6, 5, padding=2, bias=False)
        self.last, self.head = nn.Conv2d(18, 8, 1, bias=False), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn(self.stem(x)))
        x = F.hardswish(x + self.bn2(self.conv(x)))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = torch.cat([F.max_pool2d(x, 3, 1, 1), torch.tanh(self.side(x))], 1)
        return self.head(F.softplus(self.last(x)).amax((2, 3)))


@pytest.mark.parametrize("path", ["fx", "eager", "export"])
def test_constants_fold_through_sums_and_concatenations_into_several_readers(path: str) -> None:
    small = check(ready(Residual()), images(2, 3, 8, 8), ratio=0.4, path=path)
    assert fxprune.record(small).path == path
    assert small.get_parameter("stem.weight").shape[0] <= 9


def test_one_carrier_serves_all_readers() -> None:
    net = Residual()
    small = check(ready(net), images(2, 3, 8, 8), ratio={"stem*": 0.5, "side*": 0.5, "last*": 0.0})
    reasons = [r for r in fxprune.record(small).reasons if "constants of others" in r]
    assert len(reasons) == 1
    assert "1 of the channels asked for stay" in reasons[0]
    assert small.get_parameter("stem.weight").shape[0] == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_are_right_but_for_the_rounding_of_their_type(dtype: torch.dtype) -> None:
    net = ready(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 2, 1, bias=False))
    )
    net, x = net.to(dtype), images(2, 3, 9, 9).to(dtype)
    small = fxprune.transform(net, x, ratio=0.5, bias="fold")
    error = fxprune.record(small).error
    assert error is not None
    assert error < 1e-12
    assert {p.dtype for p in small.parameters()} == {dtype}


# -- weights that are zero ------------------------------------------------------------------------------


def emptied(net: nn.Module, gone: dict[str, list[int]], dim: int = 0) -> nn.Module:
    with torch.no_grad():
        for name, indices in gone.items():
            net.get_parameter(name).index_fill_(dim, torch.tensor(indices), 0.0)
    return net


def test_zeros_keep_the_function() -> None:
    net = emptied(
        ready(Residual()),
        {"stem.weight": [1, 5, 7], "conv.weight": [1, 5, 9], "gate.weight": [1, 3, 5], "side.weight": [0, 4]},
    )
    x, other = images(2, 3, 8, 8), images(1, 3, 13, 9, seed=1)
    small = fxprune.transform(net, x, masks="zeros")
    made = fxprune.record(small)
    assert difference(fxprune.masked(net, made.zeroed)(x), net(x)) == 0.0, "only what is zero already"
    assert made.zeroed["side.weight"] == {0: [0, 4]}
    assert made.removed["side.weight"][0] == [0, 4], made.reasons
    assert "stem.weight" in made.removed, made.reasons
    assert made.removed["stem.weight"] == {0: [5]}, "1 is the carrier"
    for inputs in (x, other):
        assert difference(small(inputs), net(inputs)) < 1e-9
        assert fxprune.verify(net, small, inputs) < 1e-9
    text = "\n".join(made.reasons)
    assert '"conv": 2 channels without weights stay (1, 9): ' in text
    assert '"stem": 2 channels without weights stay (1, 7): it carries the constants of others into ' in text


def test_channels_without_readers_are_removed_too() -> None:
    net = ready(nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)))
    emptied(net, {"2.weight": [0, 6]}, dim=1)
    x = images(4, 5)
    small = fxprune.transform(net, x, masks="zeros")
    assert fxprune.record(small).removed == {"0.weight": {0: [0, 6]}, "0.bias": {0: [0, 6]}, "2.weight": {1: [0, 6]}}
    assert difference(small(x), net(x)) < 1e-12


def test_norms_without_scale_make_constants() -> None:
    net = ready(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)))
    emptied(net, {"1.weight": [2, 3]})
    x = images(2, 3, 9, 9)
    small = fxprune.transform(net, x, masks="zeros")
    assert fxprune.record(small).removed["0.weight"] == {0: [2, 3]}
    assert difference(small(x), net(x)) < 1e-12


def test_a_layer_without_any_weights_keeps_one_output() -> None:
    net = emptied(ready(nn.Sequential(nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3))), {"0.weight": [0, 1, 2, 3]})
    x = images(2, 5)
    small = fxprune.transform(net, x, masks="zeros")
    assert small.get_submodule("0").out_features == 1
    assert difference(small(x), net(x)) < 1e-12
    assert "a dimension would be empty without it" in fxprune.record(small).reasons[0]


def test_zeros_are_pruned_without_constants_on_request() -> None:
    net = emptied(ready(nn.Sequential(nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3))), {"0.weight": [1, 3]})
    small = fxprune.transform(net, images(2, 5), masks="zeros", bias="prune")
    made = fxprune.record(small)
    assert made.removed == made.zeroed == {"0.weight": {0: [1, 3]}, "0.bias": {0: [1, 3]}, "2.weight": {1: [1, 3]}}
    with pytest.raises(fxprune.PlanError, match="no layer has an output channel whose weights are all zero"):
        fxprune.transform(ready(nn.Linear(3, 2)), images(2, 3), masks="zeros", bias="prune")


# -- what stays, and why --------------------------------------------------------------------------------


class Read(nn.Module):
    def __init__(self, function: Any, parts: Any = None, width: int = 6) -> None:
        super().__init__()
        self.first, self.function = nn.Conv2d(3, 6, 3), function
        self.parts, self.last = nn.ModuleDict(parts or {}), nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(torch.sigmoid(self.first(x)), **self.parts))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda h: h + h[:, :1], "it depends on the input there"),
        (lambda h: h * h.sum((2, 3), keepdim=True), 'read by "last": it depends on the input there'),
        (lambda h: h * h.mean(2, keepdim=True).amax(1, keepdim=True), "statistic"),
        (lambda h: F.avg_pool2d(h, 3, 1, 1), "it depends on the input there"),
        (
            lambda h: h + torch.linspace(0, 1, h.shape[-1], dtype=h.dtype),
            "no constant channel has its pattern, to carry it",
        ),
        (lambda h: h.sum(1, keepdim=True).expand(-1, 6, -1, -1), ""),
    ],
)
def test_a_channel_that_cannot_be_folded_stays_and_says_why(function: Any, says: str) -> None:
    net, x = ready(Read(function)), images(2, 3, 7, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.NothingRemovedWarning)
        small = fxprune.transform(net, x, ratio=0.5, bias="fold")
    made = fxprune.record(small)
    assert small.get_parameter("first.weight").shape[0] == 6
    assert difference(small(x), fxprune.masked(net, made.zeroed)(x)) < 1e-9
    if says != "statistic":
        assert any(says in reason for reason in made.reasons), made.reasons


def test_an_output_bias_that_does_not_exist_in_a_class() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.weight = nn.Linear(5, 6), nn.Parameter(torch.randn(3, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.sigmoid(self.first(x)), self.weight)

    net, x = ready(Raw()), images(4, 5)
    with pytest.warns(fxprune.NothingRemovedWarning, match="no bias there can take its constant up"):
        fxprune.transform(net, x, ratio=0.5, bias="fold", path="eager")
    with pytest.warns(fxprune.ClassLostWarning, match="the class would lose 0 parameters"):
        small = fxprune.transform(net, x, ratio=0.5, bias="fold")
    made = fxprune.record(small)
    assert made.plan.biases == ("%linear",)
    assert small.get_parameter("linear_bias").shape == (3,)
    assert difference(small(x), fxprune.masked(net, made.zeroed)(x)) < 1e-12


def test_a_layer_that_is_called_twice_takes_equal_constants_only() -> None:
    class Twice(nn.Module):
        def __init__(self, same: bool) -> None:
            super().__init__()
            self.same, self.first, self.other = same, nn.Linear(5, 6), nn.Linear(5, 6)
            self.last = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.sigmoid(self.first(x)), torch.sigmoid(self.first(2 * x) if self.same else self.other(x))
            return self.last(a) - self.last(b) * 2

    x = images(4, 5)
    small = check(ready(Twice(True)), x, ratio=0.5)
    assert small.get_parameter("last.weight").shape == (3, 3)
    with pytest.warns(fxprune.NothingRemovedWarning, match="last.bias is shared by readings that would change it"):
        fxprune.transform(ready(Twice(False)), x, ratio=0.5, bias="fold")


def test_attention_loses_positions_of_its_width_that_are_zero() -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, activation="gelu")
    net, x = ready(net), images(2, 5, 16)
    small = check(net, x, ratio=0.5)
    assert small.linear1.out_features == 12
    slots = torch.tensor([0, 4, 8, 12])  # the first position of each head, for queries, keys and values
    with torch.no_grad():
        net.self_attn.in_proj_weight[torch.cat([slots, 16 + slots, 32 + slots])] = 0.0
        net.self_attn.in_proj_bias[slots] = 0.0  # so that it does not matter what the keys are
    with pytest.warns(fxprune.NothingRemovedWarning, match="12 channels without weights stay"):
        fxprune.transform(net, x, masks="zeros")
    with torch.no_grad():
        net.self_attn.in_proj_bias[32 + slots] = 0.0
    small = fxprune.transform(net, x, masks="zeros")
    assert difference(small(x), net(x)) < 1e-9
    assert small.self_attn.in_proj_weight.shape == (36, 16)


# -- plans and bad input --------------------------------------------------------------------------------


def test_a_plan_is_carried_out_on_another_checkpoint_where_the_channels_are_constant_too() -> None:
    net, x = ready(Residual()), images(2, 3, 8, 8)
    plan = fxprune.analyze(net, x).plan(ratio=0.4, bias="fold")
    assert plan.zeroed
    assert plan.biases
    newer = ready(Residual(), seed=7)
    small = fxprune.transform(newer, x, plan=plan)
    assert difference(small(x), output_masked(newer, plan.zeroed)(x)) < 1e-9
    zeros = fxprune.analyze(emptied(net, {"side.weight": [0, 4]}), x).plan(masks="zeros")
    assert zeros.zeroed == {"side.weight": {0: [0, 4]}}
    assert fxprune.transform(newer, x, plan=zeros).get_parameter("side.weight").shape[0] == 4
    wrong = dataclasses.replace(zeros, zeroed={})
    with pytest.raises(fxprune.PlanError, match="removes channels that carry no constant in this model"):
        fxprune.transform(newer, x, plan=wrong)


@pytest.mark.parametrize("border", ["carrier", "map"])
@pytest.mark.parametrize("path", ["fx", "eager", "export"])
def test_files_hold_the_tensors_that_took_constants_up(border: str, path: str, tmp_path: Path) -> None:
    if (border, path) == ("map", "eager"):
        return  # a map needs a graph
    net, x = ready(Residual()), images(2, 3, 8, 8)
    small = fxprune.transform(net, x, ratio=0.4, bias="fold", border=border, path=path)
    plan = fxprune.record(small).plan
    plan.save(tmp_path / "plan.json")
    assert fxprune.Plan.load(tmp_path / "plan.json") == plan
    save(small, tmp_path / "small.safetensors")
    example = x if path == "export" else None
    again = load(tmp_path / "small.safetensors", into=Residual().double(), example_inputs=example)
    assert torch.equal(again(x), small(x))
    assert again.state_dict().keys() == small.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratio": 0.5, "bias": "keep"}, 'bias is "prune" or "fold"'),
        ({"ratio": 0.5, "bias": "fold", "border": "wide"}, 'border is "carrier" or "map"'),
        ({"ratio": 0.5, "bias": "fold", "path": "hooks"}, "they put zeros back"),
        ({"masks": "ones"}, 'the only ones with a name are "zeros"'),
        ({"plan": fxprune.Plan({}), "bias": "fold"}, "a plan says already what goes"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(fxprune.PlanError, match=says):
        fxprune.transform(ready(Residual()), images(2, 3, 8, 8), **options)


def test_without_weights_nothing_can_be_folded() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    with pytest.raises(fxprune.PlanError, match="constants cannot be folded without weights"):
        fxprune.transform(net, torch.zeros(1, 4, device="meta"), ratio=0.5, importance="random", bias="fold")


def test_a_map_needs_a_graph() -> None:
    with pytest.raises(fxprune.CaptureError, match="a map can only be added in a graph"):
        fxprune.transform(ready(Residual()), images(2, 3, 8, 8), ratio=0.5, bias="fold", border="map", path="eager")


def test_inputs_of_unknown_contents_are_refused() -> None:
    class Box:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, box: Box) -> Tensor:
            return self.last(torch.relu(self.first(x)) * box.x)

    net = ready(Net())
    with pytest.raises(fxprune.CaptureError, match="an input is an object of type Box"):
        fxprune.transform(net, (images(2, 4), Box(images(2, 1))), ratio=0.5, bias="fold", path="eager")


def test_the_proof_sees_a_constant_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = changes.ratios
    monkeypatch.setattr(changes, "ratios", lambda *args: (right(*args)[0] * (1 + 1e-6), right(*args)[1]))
    net = ready(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU()))
    with pytest.raises(fxprune.VerificationError, match="a channel whose constant was folded"):
        fxprune.transform(net, images(2, 3, 9, 9), ratio=0.5, bias="fold")


def test_the_original_is_only_read_and_the_result_trains() -> None:
    net, x = ready(Residual()), images(2, 3, 8, 8)
    before = copy.deepcopy(net.state_dict())
    small = fxprune.transform(net, x, ratio=0.4, bias="fold")
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    small.train()(x).square().mean().backward()
    grads = [p.grad for p in small.parameters()]
    assert all(grad is not None and np.isfinite(grad.numpy()).all() for grad in grads)


QUICK = ("resnet18", "mobilenet_v3_small")
SLOW = """
    alexnet vgg11_bn vgg16 mobilenet_v2 densenet121 densenet169 efficientnet_b0 efficientnet_v2_s googlenet inception_v3
    resnet50 resnext50_32x4d wide_resnet50_2 squeezenet1_1 shufflenet_v2_x1_0 regnet_x_400mf regnet_y_400mf mnasnet0_5
    convnext_tiny
""".split()


@pytest.mark.parametrize(
    "name",
    [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
@pytest.mark.parametrize("how", ["ratio", "zeros"])
def test_constants_fold_in_whole_networks(name: str, how: str) -> None:
    torch.manual_seed(0)
    extra: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    net = torchvision().models.get_model(name, **extra).double().eval()
    pixels = 96 if name == "inception_v3" else 64
    x = images(2, 3, pixels, pixels)
    randomise(net, 1, weights=True)
    calibrate(net, x, 2)
    if how == "ratio":
        small = fxprune.transform(net, x, ratio=0.3, bias="fold")
        reference = output_masked(net, fxprune.record(small).zeroed)
    else:
        coin = torch.Generator().manual_seed(3)
        layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and len(m.weight) >= 8]
        with torch.no_grad():
            for layer in layers:
                layer.weight[torch.rand(len(layer.weight), generator=coin) < 0.3] = 0.0
        small = reference = net
        small = fxprune.transform(net, x, masks="zeros")
    with torch.no_grad():
        assert difference(small(x), reference(x)) < 1e-9
    before, after = (sum(p.numel() for p in m.parameters()) for m in (net, small))
    assert after < before


def test_a_carrier_is_the_strongest_constant_and_none_that_is_tiny_beside_the_others() -> None:
    reading: Any = SimpleNamespace(constants=SimpleNamespace(sizes=np.array([1.0, 3.0, 1e-4, 0.5])))
    flags = np.eye(4, dtype=bool)
    assert carrier(reading, flags[0] | flags[1] | flags[2]) == 1
    assert carrier(reading, flags[3]) == 3
    assert carrier(reading, flags[2]) is None
    assert carrier(reading, np.zeros(4, dtype=bool)) is None
