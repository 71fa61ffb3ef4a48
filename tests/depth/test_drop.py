"""Branches that are dropped: the small model equals the original whose branches are multiplied by zero."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import PlanError
from tests.depth.models import (
    EndsInItsOwnParameter,
    InPlaceFirst,
    Parallel,
    ReadTwice,
    Residuals,
    Scaled,
    WithoutResidual,
    encoder,
    made,
    with_functions,
)

IMAGE = (4, 3, 8, 8)


def dropped_names(small: nn.Module) -> list[str]:
    return [one.name for one in fxprune.record(small).plan.dropped]


def zeroing(model: nn.Module, modules: list[str]) -> nn.Module:
    """The reference: hooks multiply what these modules give by zero."""

    def hook(module: nn.Module, args: Any, result: Any) -> Any:
        return (result[0] * 0, *result[1:]) if isinstance(result, tuple) else result * 0

    for path in modules:
        model.get_submodule(path).register_forward_hook(hook)
    return model


CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], list[str], list[str], list[str]]] = [
    ("basic", Residuals, IMAGE, ["layer1.1"], ["layer1.1"], ["layer1.1.bn2"]),
    ("shortcut", Residuals, IMAGE, ["layer2.0"], ["layer2.0"], ["layer2.0.bn2"]),
    ("shortcut of another shape, with functions", with_functions, IMAGE, ["1"], ["1"], ["1.bn2"]),
    ("bottleneck", Residuals, IMAGE, ["layer2.1"], ["layer2.1"], ["layer2.1.bn3"]),
    ("stage", Residuals, IMAGE, ["layer1"], ["layer1.0", "layer1.1"], ["layer1.0.bn2", "layer1.1.bn2"]),
    ("glob", Residuals, IMAGE, ["layer*.1"], ["layer1.1", "layer2.1"], ["layer1.1.bn2", "layer2.1.bn3"]),
    ("scale", Scaled, (3, 6), ["down"], ["down"], ["down"]),
    ("subtracted", Scaled, (3, 6), ["other"], ["other"], ["other"]),
    ("one of two", Parallel, (3, 6), ["two"], ["two"], ["two"]),
    ("two of two", Parallel, (3, 6), ["one", "two"], ["one", "two"], ["one", "two"]),
    ("in place", InPlaceFirst, (3, 4), ["g"], ["g"], ["g"]),
    *(
        (f"{name} {first}", functools.partial(encoder, norm_first=first), (2, 5, 16), drop, names, zero)
        for first in (True, False)
        for name, drop, names, zero in (
            ("attention", ["layers.0.self_attn"], ["layers.0.self_attn"], ["layers.0.self_attn"]),
            ("feed-forward", ["layers.1.linear2"], ["layers.1.linear2"], ["layers.1.linear2"]),
            (
                "layer",
                ["layers.1"],
                ["layers.1.self_attn", "layers.1.linear2"],
                ["layers.1.self_attn", "layers.1.linear2"],
            ),
        )
    ),
]


@pytest.mark.parametrize(("make", "shape", "drop", "names", "zero"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_the_result_equals_the_original_with_the_branch_multiplied_by_zero(make, shape, drop, names, zero):
    model, x = made(make), torch.randn(shape, dtype=torch.double)
    small = fxprune.transform(model, x, drop=drop)
    assert dropped_names(small) == names
    assert type(small) is type(model)
    assert fxprune.verify(model, small, x) <= 1e-12
    assert not {name for name, _ in small.named_parameters()} & {
        name for one in fxprune.record(small).plan.dropped for name in one.tensors
    }
    for training in (False, True):
        x1, x2 = (x.clone().requires_grad_() for _ in range(2))
        reference, ours = zeroing(made(make).train(training), zero), small.train(training)
        for m in (*reference.modules(), *ours.modules()):
            if isinstance(m, nn.Dropout | nn.MultiheadAttention):
                m.p = m.dropout = 0.0
        theirs, mine = reference(x1), ours(x2)
        assert (mine - theirs).abs().max() <= 1e-12
        assert (theirs - made(make).eval()(x)).abs().max() > 1e-3  # the branch matters
        theirs.square().sum().backward()
        mine.square().sum().backward()
        assert (x1.grad - x2.grad).abs().max() <= 1e-9 * x1.grad.abs().max()
        kept = dict(reference.named_parameters())
        for name, parameter in ours.named_parameters():
            if parameter.grad is not None:
                assert (parameter.grad - kept[name].grad).abs().max() <= 1e-9 * max(1, kept[name].grad.abs().max())
        ours.zero_grad()


def test_channels_of_the_rest_go_too_and_the_whole_is_proven():
    model, x = made(Residuals), torch.randn(IMAGE, dtype=torch.double)
    small = fxprune.transform(model, x, drop=["layer1.1", "layer2.0"], ratio=0.5)
    record = fxprune.record(small)
    assert record.error <= 1e-9
    assert fxprune.verify(model, small, x) <= 1e-9
    reference = zeroing(fxprune.masked(model, record.zeroed), ["layer1.1.bn2", "layer2.0.bn2"])
    assert (small(x) - reference(x)).abs().max() <= 1e-9
    assert small.stem.out_channels == 4


def test_a_budget_counts_from_the_original():
    model, x = made(Residuals), torch.randn(IMAGE, dtype=torch.double)
    whole = fxprune.cost(model, x)
    small = fxprune.transform(model, x, drop="layer1.1", keep={"macs": 0.5, "params": 0.9})
    before, after = fxprune.record(small).cost
    assert before.macs == whole.macs
    assert after == fxprune.cost(small, x)
    assert 0.4 * whole.macs < after.macs <= 0.5 * whole.macs


def test_a_budget_that_the_dropped_branches_meet_takes_nothing_else():
    model, x = made(Residuals), torch.randn(IMAGE, dtype=torch.double)
    small = fxprune.transform(model, x, drop="layer1.1", keep={"macs": 0.99})
    assert fxprune.record(small).removed == {}
    assert dropped_names(small) == ["layer1.1"]


def test_a_result_of_torchs_own_modules_is_loaded_without_this_package(tmp_path):
    model = nn.Sequential(_Residual(), nn.Linear(4, 2)).eval()
    small = fxprune.transform(model, torch.randn(2, 4), drop="0")
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps(small[0]))
    load = f"import pickle, sys; print(pickle.load(open({str(path)!r}, 'rb')))"
    code = f"{load}; assert 'fxprune' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Identity()" in done.stdout, done.stderr


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.f(x)


def test_modules_of_this_package_are_named_in_the_record():
    x = torch.randn(2, 5, 16, dtype=torch.double)
    small = fxprune.transform(made(functools.partial(encoder, norm_first=True)), x, drop="layers.1.self_attn")
    assert any("layers.1.self_attn" in r and "pickled model needs fxprune" in r for r in fxprune.record(small).reasons)


@pytest.mark.parametrize(
    ("make", "shape", "drop", "words"),
    [
        (
            WithoutResidual,
            (2, 4),
            "a",
            ["the model has no residual branch", "no addition in its forward", "leave drop"],
        ),
        (Residuals, IMAGE, "layer1.1.conv1", ["names no residual branch", 'part of the branch "layer1.1"']),
        (Residuals, IMAGE, "stem", ["names no residual branch", '"layer1.0"']),
        (Residuals, IMAGE, "layer9", ["drop names nothing", "did you mean"]),
        (Residuals, IMAGE, [], None),
        (ReadTwice, (2, 4), "f", ["no residual branch"]),
        (EndsInItsOwnParameter, (2, 4), "f", ["cannot be removed", "parameter"]),
    ],
)
def test_what_cannot_be_dropped_is_refused_with_the_reason(make, shape, drop, words):
    model, x = made(make), torch.randn(shape, dtype=torch.double)
    if words is None:
        with pytest.raises(PlanError):
            fxprune.transform(model, x, drop=drop)
        return
    with pytest.raises(PlanError) as caught:
        fxprune.transform(model, x, drop=drop)
    for word in words:
        assert word in str(caught.value)


def test_a_plan_with_branches_excludes_drop():
    model, x = made(Residuals), torch.randn(IMAGE, dtype=torch.double)
    plan = fxprune.record(fxprune.transform(model, x, drop="layer1.1")).plan
    with pytest.raises(PlanError, match="drop"):
        fxprune.transform(model, x, plan=plan, drop="layer1.0")


def test_the_original_is_not_changed():
    model, x = made(Residuals), torch.randn(IMAGE, dtype=torch.double)
    before, state = str(model), {k: v.clone() for k, v in model.state_dict().items()}
    fxprune.transform(model, x, drop="layer*")
    assert str(model) == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_an_exported_graph_says_that_it_has_no_modules():
    model, x = made(Residuals), torch.randn(IMAGE, dtype=torch.double)
    program = torch.export.export(model, (x,))
    with pytest.raises(PlanError, match="an exported graph has no modules"):
        fxprune.transform(program, x, drop="layer1.1")


def test_hooks_that_go_with_a_branch_are_named():
    net, x = made(Residuals), torch.randn(*IMAGE, dtype=torch.double)
    net.layer1[1].conv1.register_forward_hook(lambda *call: None)
    net.layer1[0].register_forward_hook(lambda *call: None)
    small = fxprune.transform(net, x, drop=["layer1.1"])
    assert 'hooks go with the branches: those of "layer1.1.conv1"' in fxprune.record(small).reasons
    again = fxprune.transform(net, x, plan=fxprune.record(small).plan)
    assert 'hooks go with the branches: those of "layer1.1.conv1"' in fxprune.record(again).reasons


def blocks() -> nn.Sequential:
    """Three blocks of linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), *(Inner() for _ in range(3)), nn.Linear(8, 2)).eval()


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.g, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x + self.g(torch.relu(self.f(x))))


@pytest.mark.parametrize("pattern", ["2.f", "2", "2.?", "2.f.weight"])
@pytest.mark.parametrize(
    "option",
    [
        lambda name: {"ratio": {name: 0.5}},
        lambda name: {"counts": {name: 4}},
        lambda name: {"masks": {name: torch.arange(8) > 2}},
        lambda name: {"ratio": 0.5, "ignore": [name, "0"]},
        lambda name: {"ratio": 0.5, "importance": {name: range(8)}},
    ],
)
def test_options_that_name_a_branch_that_goes_are_refused(option: Callable[[str], Any], pattern: str) -> None:
    with pytest.raises(PlanError, match="names a branch that is dropped") as caught:
        fxprune.transform(blocks(), torch.zeros(1, 4), drop="2", **option(pattern))
    assert caught.value.at.endswith(f'"{pattern}"')
    assert caught.value.why == "it goes whole, with 2"
    with pytest.raises(PlanError, match="names a branch that is dropped"):
        fxprune.analyze(blocks(), torch.zeros(1, 4)).plan(drop="2", **option(pattern))


def test_options_mean_in_the_rest_what_they_mean_in_the_model() -> None:
    model, x = blocks(), torch.zeros(1, 4)
    for pattern in ("?.f", "3.f", model[3].f):
        small = fxprune.transform(model, x, drop="2", ratio={pattern: 0.5})
        assert small[3].f.out_features == 4
        assert small[1].f.out_features == (4 if pattern == "?.f" else 8)
    small = fxprune.transform(model, x, drop="2", ratio=0.5, ignore=(model[3].f, nn.ReLU))
    assert (small[1].f.out_features, small[3].f.out_features) == (4, 8)
    with pytest.raises(PlanError, match="ratio names group 1 by its number") as caught:
        fxprune.transform(model, x, drop="2", ratio={1: 0.5})
    assert "name of the group" in caught.value.do


def test_traced_graphs_have_branches_and_exported_ones_are_refused() -> None:
    model, x = blocks(), torch.zeros(1, 4)
    wanted = fxprune.transform(model, x, drop="2")(torch.ones(1, 4))
    for graph in (torch.fx.symbolic_trace(model), fxprune.trace(model, x)):
        small = fxprune.transform(graph, x, drop="2")
        assert dropped_names(small) == ["2"]
        torch.testing.assert_close(small(torch.ones(1, 4)), wanted)
    program = torch.export.export(model, (x,))
    for exported in (program, program.module()):
        with pytest.raises(PlanError, match="no residual branch") as caught:
            fxprune.transform(exported, x, drop="2")
        assert "drop them before it is exported" in caught.value.why


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.f(x).relu()


class KnowsLayers(nn.Module):
    """A model with parameters that have layers in attributes, one of them tied."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.blocks, self.o = nn.Linear(3, 8), nn.ModuleList(Block() for _ in range(3)), nn.Linear(8, 8)
        self.o.weight = self.blocks[2].f.weight
        weights: list[Any] = [self.i.weight, self.o.weight]
        weights[0].owner, weights[1].users = self.blocks[2], [self.o, self.blocks[2].f]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.i(x)
        for block in self.blocks:
            x = block(x)
        return self.o(x)


def test_attributes_of_parameters_refer_to_layers_of_the_small_model() -> None:
    model = KnowsLayers().eval()
    small: Any = fxprune.transform(model, torch.randn(2, 3), drop=["blocks.0"])
    assert small.o.weight is small.blocks[2].f.weight
    assert small.i.weight.owner is small.blocks[2]
    assert small.o.weight.users[0] is small.o
    assert small.o.weight.users[1] is small.blocks[2].f
    owner: Any = model.i.weight
    assert owner.owner is model.blocks[2]
