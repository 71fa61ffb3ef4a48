"""A traced graph does what the model does: what a graph cannot express stays whole, with the reason, or is refused."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.capture.traced import WHOLE, traced_graph

C = 8


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


_stored_before = _Reverse.apply


class Part(nn.Module):
    """A layer, and something that a graph cannot express."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(C, C)
        self.count = 0
        self.seen: list[int] = []
        self.table: dict[str, Any] = {}
        self.register_buffer("steps", torch.zeros(1))
        self.steps: Tensor

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Dropout(Part):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.layer(x), 0.5, training=self.training)


class Branch(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * 2 if self.training else self.layer(x)


class Inherited(nn.Dropout):
    """A subclass of a layer of torch, which tracing would follow into torch's own forward."""


class Function(Part):
    def forward(self, x: Tensor) -> Tensor:
        return _Reverse.apply(self.layer(x))


class StoredFunction(Part):
    def forward(self, x: Tensor) -> Tensor:
        return _stored_before(self.layer(x))


class NoGrad(Part):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.layer(x)
        return y + x


class Decorated(Part):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class EnableGrad(Part):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return self.layer(x)


class SetGrad(Part):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        y = self.layer(x)
        torch.set_grad_enabled(True)
        return y + x


class Autocast(Part):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.layer(x).to(x.dtype)


class AutocastOff(Part):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.layer(x)


class Checkpoint(Part):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layer, x, use_reentrant=False)


class Asks(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if torch.is_grad_enabled() else self.layer(x) * 3


class Count(Part):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.layer(x) * self.count


class Append(Part):
    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(1)
        return self.layer(x) * len(self.seen)


class Cache(Part):
    def forward(self, x: Tensor) -> Tensor:
        before = self.table.get("last", 0)
        self.table["last"] = before + 1
        return self.layer(x) + before


class CountInBuffer(Part):
    def forward(self, x: Tensor) -> Tensor:
        self.steps = self.steps + 1
        return self.layer(x) * self.steps


class DecidesByBuffer(Part):
    def forward(self, x: Tensor) -> Tensor:
        self.steps.add_(1)
        return self.layer(x) if self.steps > 1 else self.layer(x) * 2


class Data(Part):
    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight.data = self.layer.weight.data * 0.5
        return self.layer(x)


class Noise(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * torch.rand(C)


class Bernoulli(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * torch.empty(C).bernoulli_(0.5)


class NoiseLike(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + torch.rand_like(x)


class NoiseInPlace(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * x.new_empty(C).exponential_()


class AlwaysDropout(Part):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.layer(x), 0.5)


class DropoutOperator(Part):
    def forward(self, x: Tensor) -> Tensor:
        return torch.dropout(self.layer(x), p=0.5, train=True)


class Gumbel(Part):
    def forward(self, x: Tensor) -> Tensor:
        return F.gumbel_softmax(self.layer(x), dim=-1)


class AttentionDropout(Part):
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).unsqueeze(0)
        return F.scaled_dot_product_attention(y, y, y, dropout_p=0.5)[0]


class PythonNoise(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * random.random()


class NumpyNoise(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * float(np.random.rand())


class Seeds(Part):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return self.layer(x)


class Forks(Part):
    def forward(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            return self.layer(x)


class Accumulates(Part):
    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(C)
        total += self.layer(x).sum(0)
        return x + total


class OwnTrain(Part):
    def train(self, mode: bool = True) -> OwnTrain:
        super().train(mode)
        self.layer.requires_grad_(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


KINDS: dict[type[nn.Module], str] = {
    Dropout: "reads self.training",
    Branch: "reads self.training",
    Inherited: "reads self.training",
    Function: "applies the autograd.Function _Reverse",
    StoredFunction: "autograd.Function",
    NoGrad: "enters the context no_grad",
    Decorated: "enters the context no_grad",
    EnableGrad: "enters the context enable_grad",
    SetGrad: "changes a setting of torch",
    Autocast: "enters the context autocast",
    AutocastOff: "enters the context autocast",
    Checkpoint: "enters the context checkpoint",
    Asks: "asks torch.is_grad_enabled()",
    Count: "assigns to self.count",
    Append: "changes self.seen",
    Cache: "changes self.table",
    CountInBuffer: "assigns to self.steps",
    DecidesByBuffer: "decides by the numbers in its tensors",
    Data: "assigns to .data of a tensor",
    Noise: "draws random numbers (rand)",
    Bernoulli: "draws random numbers (bernoulli_)",
    NoiseLike: "draws random numbers (rand_like)",
    NoiseInPlace: "draws random numbers (exponential_)",
    AlwaysDropout: "draws random numbers (dropout)",
    DropoutOperator: "draws random numbers (dropout)",
    Gumbel: "draws random numbers (gumbel_softmax)",
    AttentionDropout: "draws random numbers (scaled_dot_product_attention)",
    PythonNoise: "draws random numbers (of Python or numpy)",
    NumpyNoise: "draws random numbers (of Python or numpy)",
    Seeds: "sets the state of torch's random numbers (manual_seed)",
    Forks: "sets the state of torch's random numbers (set_rng_state)",
    Accumulates: "changes in place a tensor that it makes in every call",
    OwnTrain: "train() of its own",
}
"""A class -> a part of the reason why it stays whole."""

NODES_AT_THE_ROOT = (NoiseLike, NoiseInPlace, AlwaysDropout, DropoutOperator, Gumbel, AttentionDropout)
"""Those whose operations draw new numbers in each call of a graph."""


class Wrapper(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.first, self.parts, self.last = nn.Linear(C, C), nn.ModuleList(parts), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for part in self.parts:
            x = torch.relu(part(x))
        return self.last(x)


class Twice(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.again = part, part

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.part(x) + 1)


PLACES: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "a submodule": (lambda part: Wrapper(part), "parts.0"),
    "two deep": (lambda part: Wrapper(nn.ReLU(), Wrapper(part)), "parts.1.parts.0"),
    "in a Sequential": (lambda part: nn.Sequential(nn.Linear(C, C), part, nn.ReLU()), "1"),
    "repeated": (lambda part: Twice(part), "part"),
}


def _run(model: nn.Module, x: Tensor, *, training: bool) -> list[Tensor]:
    """The results of two calls, and the gradients after a backward pass of each that has one."""
    model = copy.deepcopy(model).train(training)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    made: list[Tensor] = []
    for _ in range(2):
        y = model(x.clone().requires_grad_())
        made.append(y.detach().clone())
        if y.requires_grad:
            y.backward(torch.ones_like(y))
        made += [p.grad.clone() for _, p in sorted(model.named_parameters()) if p.grad is not None]
    return made


def assert_same(model: nn.Module, traced: nn.Module, x: Tensor) -> None:
    """Both give the same numbers and gradients, in both modes, in two calls in a row, with and without gradients."""
    for training in (False, True):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                expected = _run(model, x, training=training)
            with torch.set_grad_enabled(grad):
                got = _run(traced, x, training=training)
            assert len(expected) == len(got)
            for a, b in zip(expected, got, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_a_graph_cannot_express_is_one_node(kind: type[nn.Module], place: str) -> None:
    torch.manual_seed(0)
    build, path = PLACES[place]
    model = build(kind()).eval()
    state = copy.deepcopy(model.state_dict())
    traced = traced_graph(model)
    assert list(traced.meta[WHOLE]) == [path]
    assert KINDS[kind] in traced.meta[WHOLE][path]
    if kind is not Inherited:  # its forward is torch's own
        assert "test_traced.py:" in traced.meta[WHOLE][path] or kind in (PythonNoise, NumpyNoise)
    assert path in [node.target for node in traced.graph.nodes if node.op == "call_module"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert_same(model, traced, torch.randn(3, C))


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in NODES_AT_THE_ROOT], ids=lambda kind: kind.__name__
)
def test_a_model_that_a_graph_cannot_express_is_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(fxprune.CaptureError, match="does what a graph cannot express") as caught:
        traced_graph(kind())
    assert KINDS[kind] in caught.value.why
    assert "the model itself" in caught.value.at


def _hook(*args: Any) -> None:
    return None


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "a forward hook": lambda m: m.register_forward_hook(lambda module, args, out: out + 1),
    "a forward pre-hook": lambda m: m.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "a backward hook": lambda m: m.register_full_backward_hook(lambda module, into, out: (into[0] * 2,)),
    "a backward pre-hook": lambda m: m.register_full_backward_pre_hook(lambda module, out: (out[0] * 3,)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("kind", [Wrapper, nn.Sequential])
def test_a_module_with_hooks_is_one_node(kind: type[nn.Module], name: str, place: str) -> None:
    build, path = PLACES[place]
    part = kind(nn.Linear(C, C))
    HOOKS[name](part)
    model = build(part).eval()
    traced = traced_graph(model)
    assert list(traced.meta[WHOLE]) == [path]
    assert f"it carries {name}" in traced.meta[WHOLE][path]
    assert_same(model, traced, torch.randn(3, C))


@pytest.mark.parametrize("name", HOOKS)
def test_a_layer_of_torch_keeps_its_hooks(name: str) -> None:
    layer = nn.Linear(C, C)
    HOOKS[name](layer)
    model = Wrapper(layer).eval()
    traced = traced_graph(model)
    assert traced.meta[WHOLE] == {}
    assert_same(model, traced, torch.randn(3, C))


@pytest.mark.parametrize("name", HOOKS)
def test_a_model_with_hooks_is_refused(name: str) -> None:
    model = nn.Sequential(nn.Linear(C, C), nn.ReLU())
    HOOKS[name](model)
    with pytest.raises(fxprune.CaptureError, match=f"it carries {name}"):
        fxprune.transform(model, torch.randn(2, C), ratio=0.5, path="fx")


class _Faithful(nn.Module):
    """A model that a graph does express, though it looks like the above."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop, self.rate = nn.Linear(C, C), nn.Dropout(0.5), 0.0
        self.register_buffer("mean", torch.zeros(C))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = torch.ones(C) * 2  # a constant, with or without gradients
        if self.training and self.rate:
            x = x * 2
        y = F.dropout(x, self.rate if self.training else 0.0)
        return self.drop(self.layer(y)) * scale + self.mean


def test_what_a_graph_expresses_is_traced_through() -> None:
    model = Wrapper(_Faithful(), nn.Sequential(_Faithful())).eval()
    traced = traced_graph(model)
    assert traced.meta[WHOLE] == {}
    assert_same(model, traced, torch.randn(3, C))


def test_only_the_innermost_module_that_does_it_stays_whole() -> None:
    class Outer(Wrapper):
        def forward(self, x: Tensor) -> Tensor:
            flag = self.training  # read, and given to nobody
            return super().forward(x) if flag is not None else x

    traced = traced_graph(Outer(Dropout(), nn.ReLU()))
    assert list(traced.meta[WHOLE]) == ["parts.0"]


def test_the_module_stays_whole_that_gives_the_flag_to_a_function_or_to_another_module() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, training: bool) -> Tensor:
            return x * 2 if training else x

    class Outer(Part):
        def __init__(self) -> None:
            super().__init__()
            self.scaled = Scaled()

        def forward(self, x: Tensor) -> Tensor:
            return self.scaled(self.layer(x), self.training)

    model = Wrapper(Outer()).eval()
    traced = traced_graph(model)
    assert list(traced.meta[WHOLE]) == ["parts.0"]
    assert_same(model, traced, torch.randn(3, C))


def test_modules_that_stay_whole_shrink_inside() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 16), nn.Sequential(nn.Linear(16, 16), Branch16()), nn.Linear(16, 3)), None
    x = torch.randn(5, 4)
    small = fxprune.transform(model.eval(), x, ratio=0.5, path="fx")
    assert isinstance(small, fx.GraphModule)
    made = fxprune.record(small)
    assert made.removed["1.1.layer.weight"][0]
    assert any("1.1 (Branch16), its forward reads self.training" in reason for reason in made.reasons)
    reference = fxprune.masked(model, made.removed)
    for training in (False, True):
        assert_close(small.train(training)(x), reference.train(training)(x))


class Branch16(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x)) * (2 if self.training else 1)


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_trace_leaves_random_numbers_and_the_model_as_they_were() -> None:
    model = Wrapper(Noise(), PythonNoise(), NumpyNoise(), Append(), CountInBuffer())
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[2]
    traced_graph(model)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[2]) == before[1:]
    assert model.parts[3].seen == []
    assert float(model.parts[4].steps) == 0


def test_nothing_of_torch_stays_replaced() -> None:
    names = [(nn.Module, "__setattr__"), (nn.Module, "__delattr__"), (torch, "is_grad_enabled")]
    before = [getattr(owner, name) for owner, name in names], vars(torch.autograd.Function)["apply"]
    traced_graph(Wrapper(Dropout(), NoGrad(), Function()))
    with pytest.raises(fxprune.CaptureError):
        traced_graph(Dropout())
    assert ([getattr(owner, name) for owner, name in names], vars(torch.autograd.Function)["apply"]) == before
    assert "training" not in vars(nn.Module)


class _NoiseAtTheRoot(nn.Module):
    """Draws in the forward of the model itself, and has dropout that is off."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.layer(x), 0.5, training=False)
        return F.scaled_dot_product_attention(y[None], y[None], y[None])[0] + torch.randn_like(x)


def test_operations_that_draw_in_the_forward_of_the_model_are_nodes_and_draw_anew_in_each_call() -> None:
    model, x = _NoiseAtTheRoot(), torch.randn(3, C)
    traced = traced_graph(model)
    assert traced.meta[WHOLE] == {}
    assert_same(model, traced, x)
    assert not torch.equal(traced(x), traced(x))


def test_a_graph_that_was_loaded_does_not_end_the_traces_of_the_process(monkeypatch):
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x, scale=None):
            return self.b(torch.relu(self.a(x)))

    x, wrapped = torch.randn(3, 4), torch.fx._symbolic_trace._wrapped_fns_to_patch
    for _ in range(2):
        file = io.BytesIO()
        torch.save(fxprune.transform(Optional(), x, ratio=0.5, path="fx"), file)
        torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    with pytest.raises(AssertionError, match="traced with scale=None"):
        fxprune.transform(Optional(), x, ratio=0.5, path="fx")(x, torch.ones(1))
    of_torch = (0, "torch.fx._symbolic_trace._assert_is_none")
    monkeypatch.setitem(wrapped, of_torch, {})  # as loading a graph of torch's own tracer does
    for path in ("fx", "export"):
        assert fxprune.record(fxprune.transform(Optional(), x, ratio=0.5, path=path)).path == path
    assert of_torch in wrapped
