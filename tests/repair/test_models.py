"""Repairs of models of every kind: what is refitted, what is left and why, and what stays as it was."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def batches(*shape: int, count: int = 10, size: int = 8) -> list[Tensor]:
    return [torch.randn(size, *shape) for _ in range(count)]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 4)).eval()


def repaired(net: nn.Module, data: list[Any], *, ratio: float = 0.5, ignore: Any = (), **options: Any) -> Any:
    """The small model, its repaired copy, and what the record says about the repair. The promise holds."""
    small = fxprune.transform(net, data[0], ratio=ratio, ignore=ignore, **options)
    made = fxprune.repair(small, net, data)
    done = fxprune.record(made).repair
    assert done is not None
    assert done.after <= done.before
    return small, made, done


def repair_of(net: nn.Module, data: list[Any], **options: Any) -> Any:
    return repaired(net.eval(), data, **options)[2]


class Net(nn.Module):
    """A model of some layers and a forward."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, Tensor):
                layer = nn.Parameter(layer)
            setattr(self, name, layer)
        self.code = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


# -- what is refitted ---------------------------------------------------------------------------------------


def heads(net: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    made = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return net.o(made)


def each_expert(net: Any, x: Tensor) -> Tensor:
    shares, made = net.route(x).softmax(-1), torch.zeros_like(x)
    for number in range(3):
        hidden = torch.relu(F.linear(x, net.up[number], net.bias[number]))
        made = made + F.linear(hidden, net.down[number]) * shares[:, number : number + 1]
    return made


def all_experts(net: Any, x: Tensor) -> Tensor:
    hidden = torch.relu(torch.bmm(x.expand(3, *x.shape), net.up))
    return (torch.bmm(hidden, net.down) * net.route(x).softmax(-1).T[..., None]).sum(0)


def columns(net: Any, x: Tensor) -> Tensor:
    size = (*x.shape[:-1], 6)
    hidden = torch.addmm(net.a_bias, x.view(-1, 6), net.a)
    return torch.addmm(net.b_bias, torch.tanh(hidden), net.b).view(size)


REFITTED = {
    "a layer called twice": (
        lambda: Net(
            lambda net, x: net.c(torch.tanh(net.b(torch.tanh(net.b(torch.tanh(net.a(x))))))),
            a=nn.Linear(6, 20), b=nn.Linear(20, 20), c=nn.Linear(20, 3),
        ),
        (6,), ["b.weight", "c.weight"],
    ),
    "packed projections": (
        lambda: Net(
            lambda net, x: net.o(x + net.m(net.n(x), net.n(x), net.n(x), need_weights=False)[0]),
            n=nn.LayerNorm(16), m=nn.MultiheadAttention(16, 4, batch_first=True), o=nn.Linear(16, 3),
        ),
        (5, 16), ["m.out_proj.weight"],
    ),
    "an encoder that torch runs as one operation": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1),
        (5, 8), ["layers.0.self_attn.out_proj.weight", "layers.0.linear2.weight"],
    ),
    "weights of inputs x outputs": (
        lambda: Net(
            columns, a=torch.randn(6, 20), a_bias=torch.randn(20), b=torch.randn(20, 6), b_bias=torch.randn(6)
        ),
        (4, 6), ["b"],
    ),
    "experts, one after the other": (
        lambda: Net(
            each_expert, up=torch.randn(3, 20, 8), bias=torch.randn(3, 20), down=torch.randn(3, 8, 20),
            route=nn.Linear(8, 3),
        ),
        (8,), ["down, block 0", "down, block 1", "down, block 2"],
    ),
    "experts, all at once": (
        lambda: Net(all_experts, up=torch.randn(3, 8, 20), down=torch.randn(3, 20, 8), route=nn.Linear(8, 3)),
        (8,), ["down"],
    ),
    "attention by separate projections": (
        lambda: Net(heads, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8), o=nn.Linear(8, 8)),
        (5, 8), ["o.weight"],
    ),
    "an LSTM": (
        lambda: Net(
            lambda net, x: net.o(net.l(torch.tanh(net.a(x)))[0]),
            a=nn.Linear(6, 16), l=nn.LSTM(16, 6, batch_first=True), o=nn.Linear(6, 3),
        ),
        (4, 6), ["l.weight_ih_l0", "l.weight_hh_l0", "o.weight"],
    ),
    "a GRU of two layers": (
        lambda: Net(
            lambda net, x: net.o(net.l(torch.tanh(net.a(x)))[0]),
            a=nn.Linear(6, 16), l=nn.GRU(16, 6, 2, batch_first=True), o=nn.Linear(6, 3),
        ),
        (4, 6), ["l.weight_ih_l0", "l.weight_ih_l1", "o.weight"],
    ),
    "a norm without running statistics": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)
        ),
        (3, 5, 5), ["2.weight"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFITTED)
def test_layers_that_read_removed_channels_are_refitted(name: str) -> None:
    make, shape, layers = REFITTED[name]
    done = repair_of(make(), batches(*shape), ignore=["*route"] if "all at once" in name else ())
    assert not done.left
    assert done.after < done.before
    for layer in layers:
        assert done.layers[layer].after < done.layers[layer].before, layer


def test_layers_that_lack_nothing_stay_as_they_are() -> None:
    net = mlp()
    small, made, _ = repaired(net, batches(6))
    assert torch.equal(small.get_parameter("0.weight"), made.get_parameter("0.weight"))
    assert not torch.equal(small.get_parameter("2.weight"), made.get_parameter("2.weight"))


# -- what is left, and why ------------------------------------------------------------------------------------


def tied() -> nn.Module:
    net = Net(
        lambda net, x: net.c(torch.tanh(net.a(net.b(torch.tanh(net.a(x)))))),
        a=nn.Linear(6, 20), b=nn.Linear(20, 6), c=nn.Linear(20, 6),
    )  # fmt: skip
    net.c.weight = net.b.weight
    return net


def low_precision(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return net.b(torch.tanh(net.a(x)))


LEFT = {
    "tied weights": (tied, "b.weight", "it is tied: b.weight, c.weight"),
    "weight norm": (
        lambda: nn.Sequential(
            nn.Linear(6, 20), nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(20, 4))
        ),
        "2.parametrizations.weight.original1", "by what aten::_weight_norm_interface computes",
    ),
    "weight norm by hooks": (
        lambda: nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.utils.weight_norm(nn.Linear(20, 4))),
        "2.weight_v", "by what aten::_weight_norm_interface computes",
    ),
    "spectral norm": (
        lambda: nn.Sequential(
            nn.Linear(6, 20), nn.Tanh(), nn.utils.parametrizations.spectral_norm(nn.Linear(20, 4))
        ),
        "2.parametrizations.weight.original", "multiplies by what aten::",
    ),
    "autocast inside": (
        lambda: Net(low_precision, a=nn.Linear(6, 20), b=nn.Linear(20, 4)), "b.weight", "by what aten::_to_copy"
    ),
    "a sum of two weights": (
        lambda: Net(
            lambda net, x: torch.tanh(net.a(x)) @ (net.b + net.c), a=nn.Linear(6, 20), b=torch.randn(20, 4),
            c=torch.randn(20, 4),
        ),
        "b", "multiplies by what aten::add",
    ),
    "queries without an input": (
        lambda: Net(
            lambda net, x: F.scaled_dot_product_attention(
                torch.zeros_like(net.q) + net.q, *(torch.tanh(net.a(x)),) * 2
            ) @ net.b,
            a=nn.Linear(6, 20), q=torch.randn(4, 20), b=torch.randn(20, 4),
        ),
        "q", "forward multiplies by what aten::add computes from it, not by the parameter itself",
    ),
    "a weight that is used twice, in two ways": (
        lambda: Net(
            lambda net, x: torch.tanh(net.a(x)) @ net.b * net.b.square().mean(),
            a=nn.Linear(6, 20), b=torch.randn(20, 4),
        ),
        "b", "it is used elsewhere too: aten::pow",
    ),
    "a weight on the left": (
        lambda: Net(lambda net, x: (net.b @ torch.tanh(net.a(x)).T).T, a=nn.Linear(6, 20), b=torch.randn(4, 20)),
        "b", "its layer is aten::mm",
    ),
    "other biases in other calls": (
        lambda: Net(
            lambda net, x: F.linear(torch.tanh(F.linear(torch.tanh(net.a(x)), net.b, net.c)), net.b, net.d),
            a=nn.Linear(6, 20), b=torch.randn(20, 20), c=torch.randn(20), d=torch.randn(20),
        ),
        "b", "its calls add different biases",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_layers_that_cannot_be_refitted_are_named_with_the_reason(name: str) -> None:
    make, parameter, why = LEFT[name]
    small, made, done = repaired(make().eval(), batches(6))
    assert why in done.left[parameter]
    assert parameter not in done.layers
    assert torch.equal(small.get_parameter(parameter), made.get_parameter(parameter))


def test_every_weight_that_lost_inputs_is_refitted_or_named() -> None:
    for make, shape, _ in REFITTED.values():
        small, _, done = repaired(make().eval(), batches(*shape))
        lost = {name for name, gone in fxprune.record(small).removed.items() if len(gone) > 1 or 1 in gone}
        lost -= {name for name in lost if "bias" in name}
        assert lost <= {name.partition(",")[0] for name in (*done.layers, *done.left)}
    for make, _, _ in LEFT.values():
        small, _, done = repaired(make().eval(), batches(6))
        lost = {name for name, gone in fxprune.record(small).removed.items() if 1 in gone}
        lost = {name for name in lost if name in dict(small.named_parameters())}
        assert lost <= {*done.layers, *done.left}


# -- paths, forwards that decide, and other models ---------------------------------------------------------------


@pytest.mark.parametrize("options", [{"prefer": "graph"}, *({"path": p} for p in ("eager", "fx", "export", "hooks"))])
def test_all_paths_are_repaired_alike(options: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 6, 3)).eval()
    small, made, done = repaired(net, batches(3, 6, 6), **options)
    assert isinstance(made, torch.fx.GraphModule) == isinstance(small, torch.fx.GraphModule)
    assert done.after < 0.9 * done.before


def test_programs_are_repaired_when_they_are_made() -> None:
    net, data = mlp(), batches(6)
    program = torch.export.export(net, (data[0],))
    small = fxprune.transform(program, data[0], ratio=0.5, repair=data)
    done = fxprune.record(small).repair
    assert isinstance(small, torch.export.ExportedProgram)
    assert done is not None
    assert done.after < 0.1 * done.before
    with pytest.raises(fxprune.InputError, match="when it is made"):
        fxprune.repair(small, program, data)


def branching(net: Any, x: Tensor) -> Tensor:
    x = torch.tanh(net.i(x))
    for layer in (net.a, net.b) if x.sum() > 0 else (net.b, net.a):
        x = torch.tanh(layer(x))
    return net.o(x if x.sum() > 0 else net.c(x))


def test_forwards_that_decide_by_numbers_are_looked_at_on_all_batches() -> None:
    layers = {name: nn.Linear(16, 16) for name in "abc"}
    net = Net(branching, i=nn.Linear(6, 16), **layers, o=nn.Linear(16, 3)).eval()
    data = batches(6, count=16)
    small = fxprune.transform(net, data[0], ratio=0.5, also=data[1:])
    made = [fxprune.repair(small, net, data, memory=m, disk=d) for m, d in ((1 << 30, 0), (0, 0), (0, 1 << 30))]
    done = [fxprune.record(one).repair for one in made]
    assert done[0] == done[1] == done[2]
    assert {"a.weight", "b.weight", "c.weight", "o.weight"} <= {*done[0].layers, *done[0].left}
    assert done[0].after <= done[0].before


def test_experts_that_get_other_rows_are_named() -> None:
    def routed(net: Any, x: Tensor) -> Tensor:
        x = torch.tanh(net.i(x))
        chosen, made = net.r(x).argmax(-1), torch.zeros(len(x), 6)
        for number in chosen.unique().tolist():
            rows = (chosen == number).nonzero()[:, 0]
            made[rows] = net.experts[number](x[rows])
        return made

    experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 6)) for _ in range(3))
    net = Net(routed, i=nn.Linear(6, 16), r=nn.Linear(16, 3), experts=experts)
    data = batches(6)
    done = repair_of(net, data, also=data[1:])
    assert "r.weight" in done.layers
    assert all("the original" in why or "other rows" in why for why in done.left.values())
    assert {f"experts.{number}.2.weight" for number in range(3)} <= {*done.left, *done.layers}


def test_scales_that_weights_carry_are_part_of_what_is_wanted() -> None:
    def scaled(net: Any, x: Tensor) -> Tensor:
        q, k = net.q(x), net.k(x)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return net.o(weights @ x)

    net = Net(scaled, q=nn.Linear(8, 12), k=nn.Linear(8, 12), o=nn.Linear(8, 3)).double().eval()
    data = [torch.randn(8, 5, 8).double() for _ in range(10)]
    small, _, done = repaired(net, data)
    assert fxprune.record(small).plan.factors
    assert done.layers["q.weight"].before < 1e-20
    assert done.layers["k.weight"].before < 1e-20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_refitted(dtype: torch.dtype) -> None:
    _, made, done = repaired(mlp().to(dtype), [x.to(dtype) for x in batches(6)])
    assert done.after < 0.2 * done.before
    assert {parameter.dtype for parameter in made.parameters()} == {dtype}


def test_integers_may_be_the_inputs() -> None:
    net = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    data = [torch.randint(0, 11, (4, 5)) for _ in range(10)]
    assert not repaired(net, data, ignore=["0"])[2].left


# -- what stays as it was ----------------------------------------------------------------------------------------


class Writing(nn.Module):
    """A model whose forward writes into a buffer, a list and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 20), nn.Linear(20, 3)
        self.register_buffer("calls", torch.zeros(1))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        self.last = x
        return self.b(torch.tanh(self.a(x))) + 0.01 * self.calls


def test_what_a_forward_writes_is_gone_afterwards() -> None:
    net, data = Writing().eval(), batches(6)
    small = fxprune.transform(net, data[0], ratio=0.5)
    results = [fxprune.repair(small, net, data, memory=m, disk=d) for m, d in ((1 << 30, 0), (0, 0), (0, 1 << 30))]
    for one in (net, small, *results):
        assert float(one.calls) == 0
        assert one.seen == []
        assert not hasattr(one, "last")
    assert torch.equal(results[0].b.weight, results[1].b.weight)
    assert torch.equal(results[0].b.weight, results[2].b.weight)


def test_both_models_keep_their_modes_and_numbers() -> None:
    net = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.Dropout(0.5), nn.Tanh(), nn.Linear(20, 4))
    net[1].eval()
    net[4].requires_grad_(requires_grad=False)
    small = fxprune.transform(net, batches(6)[0], ratio=0.5)
    before = [copy.deepcopy(one.state_dict()) for one in (net, small)]
    made = fxprune.repair(small, net, batches(6))
    for one, state in zip((net, small), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())
    modes = [module.training for module in net.modules()]
    for one in (small, made):
        assert [module.training for module in one.modules()] == modes
        assert [p.requires_grad for p in one.parameters()] == [p.requires_grad for p in net.parameters()]


def test_the_state_of_the_caller_has_no_influence() -> None:
    net, data = mlp(), batches(6)
    plain = fxprune.record(fxprune.transform(net, data[0], ratio=0.5, repair=data)).repair
    for context in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.no_grad()):
        with context:
            small = fxprune.transform(net, data[0], ratio=0.5, repair=data)
        assert fxprune.record(small).repair == plain
        assert not any(parameter.is_inference() for parameter in small.parameters())
    state = torch.get_rng_state()
    fxprune.repair(small, net, data)
    assert torch.equal(torch.get_rng_state(), state)


def test_hooks_of_users_run_in_both_models() -> None:
    net = mlp()
    net[2].register_forward_hook(lambda module, args, made: 2 * made)
    _, made, done = repaired(net, batches(6))
    assert done.after < 0.2 * done.before
    assert len(made[2]._forward_hooks) == 1


def test_the_default_device_is_the_same_in_all_runs() -> None:
    seen: set[str] = set()

    def forward(net: Any, x: Tensor) -> Tensor:
        seen.add(str(torch.get_default_device()))
        return net.b(torch.tanh(net.a(x)))

    net, data = Net(forward, a=nn.Linear(6, 20), b=nn.Linear(20, 4)).eval(), batches(6)
    small = fxprune.transform(net, data[0], ratio=0.5)
    seen.clear()
    with torch.device("cpu:0"):
        fxprune.repair(small, net, data)
    assert seen == {"cpu:0"}


def test_copies_of_exported_graphs_warn_of_nothing() -> None:
    net = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.Linear(20, 4)).eval()
    data = batches(6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", "the graph is that of evaluation mode"
        )  # as `transform` says of any such graph
        small = fxprune.transform(net, data[0], ratio=0.5, path="export", repair=data)
        fxprune.recalibrate(small, data)
        fxprune.transform(torch.export.export(net, (data[0],)), data[0], ratio=0.5, repair=data)
