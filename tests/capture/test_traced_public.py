"""`fxprune.trace`: the graph that users get, its arguments, its operators in place, and what it is compared with."""

from __future__ import annotations

import copy
import io
import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune

C = 8


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y = self.last(h)
        y += h
        y *= 2
        return y


def targets(graph: fx.Graph) -> list[Any]:
    return [node.target for node in graph.nodes if node.op not in ("placeholder", "output", "call_module")]


@pytest.mark.parametrize("name", "add sub mul truediv floordiv mod pow".split())
def test_operators_in_place_stay_in_place(name: str) -> None:
    target = getattr(operator, f"i{name}")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(C, C)

        def forward(self, x: Tensor) -> Tensor:
            return target(self.layer(x), 2)

    assert targets(fxprune.trace(Net(), torch.randn(2, C)).graph) == [target]


@pytest.mark.parametrize("name", "and or xor lshift rshift".split())
def test_operators_in_place_on_integers_stay_in_place(name: str) -> None:
    target = getattr(operator, f"i{name}")

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return target(x.int() * 3, 1)

    assert target in targets(fxprune.trace(Net(), torch.randn(2, C)).graph)


class Views(nn.Module):
    """A view of a tensor is read after the tensor was changed in place, and the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(C, C)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.layer(x)
        same, part = y, y[:, 0]
        y += 1
        z = self.layer(x)
        half = z[:, : C // 2]
        half *= 3
        return same, part, z


class Sizes(nn.Module):
    """Numbers are changed, and read afterwards."""

    def forward(self, x: Tensor, steps: int = 2) -> tuple[Any, ...]:
        size, length = x.shape[0], x.size(1)
        before = size, length, steps
        size += 1
        length *= 2
        steps += 1
        return *before, size, length, steps, x.sum()


class Lists(nn.Module):
    def forward(self, x: Tensor) -> tuple[Any, ...]:
        parts = [x]
        same = parts
        parts += [x * 2]
        return torch.cat(same), len(parts)


def pickled(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("kind", [Views, Sizes, Lists, Residual])
def test_values_read_after_an_operator_in_place_are_those_of_the_model(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = kind(), torch.randn(3, C)
    traced = fxprune.trace(model, x)
    expected = model(x)
    for graph in (traced, copy.deepcopy(traced), pickled(traced)):
        torch.testing.assert_close(graph(x), expected, rtol=0, atol=0)
        torch.testing.assert_close(fx.Interpreter(graph).run(x), expected, rtol=0, atol=0)


def test_a_number_that_is_given_may_change_in_place() -> None:
    traced = fxprune.trace(Sizes(), {"x": torch.randn(3, C), "steps": 4})
    assert traced(torch.ones(5, 2), 7)[:-1] == (5, 2, 7, 6, 4, 8)


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(C, 16), nn.Linear(16, C)

    def forward(self, x: Tensor, scale: Tensor | None = None, double: bool = False, how: str = "relu") -> Tensor:
        h = self.layer(x)
        h = h + 1 if scale is None else h * scale
        if double:
            h = h * 2
        h = torch.relu(h) if how == "relu" else torch.sigmoid(h)
        return self.head(h)


CALLS: list[dict[str, Any]] = [
    {},
    {"scale": None},
    {"scale": torch.tensor(3.0)},
    {"double": True},
    {"how": "sigmoid", "double": False},
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: ",".join(call) or "defaults")
def test_flags_and_missing_arguments_are_constants_that_the_graph_checks(call: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Optional().eval(), torch.randn(3, C)
    traced = fxprune.trace(model, {"x": x, **call})
    torch.testing.assert_close(traced(x=x, **call), model(x=x, **call), rtol=0, atol=0)
    for other in CALLS:
        try:
            made = traced(x=x, **other)
        except (AssertionError, TypeError, RuntimeError):
            continue
        torch.testing.assert_close(made, model(x=x, **other), rtol=0, atol=0)
    small = fxprune.transform(model, {"x": x, **call}, ratio=0.5, path="fx")
    reference = fxprune.masked(model, fxprune.record(small).removed)
    torch.testing.assert_close(small(x=x, **call), reference(x=x, **call))


def test_a_flag_of_another_value_raises() -> None:
    traced = fxprune.trace(Optional(), torch.randn(3, C))
    with pytest.raises(AssertionError, match="the graph was traced with double=False"):
        traced(torch.randn(3, C), double=True)
    with pytest.raises(AssertionError, match="the graph was traced with scale=None"):
        traced(torch.randn(3, C), torch.ones(1))


def test_a_traced_model_becomes_a_smaller_graph() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Residual(), nn.ReLU(), nn.Linear(C, 4)).eval(), torch.randn(5, C)
    traced = fxprune.trace(model, x)
    small = fxprune.transform(traced, x, ratio=0.5)
    assert isinstance(small, fx.GraphModule)
    assert operator.iadd in targets(small.graph)
    removed = fxprune.record(small).removed
    assert len(removed["0.last.weight"][0]) == C // 2
    again = fxprune.transform(model, x, ratio=0.5, prefer="graph")
    assert fxprune.record(again).removed == removed
    torch.testing.assert_close(small(x), fxprune.masked(model, removed)(x))


def test_a_graph_module_is_returned_as_it_is() -> None:
    graph = fx.symbolic_trace(nn.Sequential(nn.Linear(C, C)))
    assert fxprune.trace(graph, torch.randn(1, C)) is graph


def test_the_result_shares_the_parameters_and_follows_the_mode() -> None:
    model = nn.Sequential(nn.Linear(C, C), nn.Dropout(0.5))
    traced = fxprune.trace(model, torch.randn(2, C))
    assert {id(p) for p in traced.parameters()} == {id(p) for p in model.parameters()}
    x = torch.randn(4, C)
    assert torch.equal(traced.eval()(x), traced(x))
    assert not torch.equal(traced.train()(x), traced(x))


class Other(nn.Module):
    """A forward that asks what its argument is, which a symbol answers in another way than a tensor."""

    def forward(self, x: Any) -> Tensor:
        return x * 2 if isinstance(x, Tensor) else x * 3


def test_a_graph_that_gives_other_numbers_than_the_model_is_refused() -> None:
    with pytest.raises(fxprune.CaptureError, match="does something else than the model") as caught:
        fxprune.trace(Other(), torch.randn(2, C))
    assert "in evaluation mode, its results are other ones" in caught.value.why


def test_a_model_that_raises_is_said_to() -> None:
    with pytest.raises(fxprune.CaptureError, match="forward raises") as caught:
        fxprune.trace(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, C))
    assert caught.value.raised


@pytest.mark.parametrize("wrong", [None, 3, "model", [nn.Linear(2, 2)]])
def test_what_is_no_model_is_refused(wrong: Any) -> None:
    with pytest.raises(fxprune.CaptureError, match="not a model"):
        fxprune.trace(wrong, torch.randn(2, C))


def test_a_model_without_numbers_is_traced_and_not_compared() -> None:
    with torch.device("meta"):
        model = nn.Sequential(Residual(), nn.Linear(C, C))
    assert operator.iadd in targets(fxprune.trace(model, torch.randn(1, C, device="meta")).graph)


def test_trace_works_under_inference_mode() -> None:
    model, x = nn.Sequential(Residual(), nn.Dropout()).train(), torch.randn(2, C)
    with torch.inference_mode():
        traced = fxprune.trace(model, x)
    traced(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


class Rows(nn.Module):
    """Goes through the rows of its input one by one."""

    def __init__(self, size: int = C) -> None:
        super().__init__()
        self.inner = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.relu(self.inner(row)) for row in x])


class BySize(nn.Module):
    """Decides by the size of its input; one of its layers is not reached."""

    def __init__(self, size: int = C) -> None:
        super().__init__()
        self.inner, self.other = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.shape[0] > 1 else self.other(x)


class Unpacks(nn.Module):
    def __init__(self, size: int = C) -> None:
        super().__init__()
        self.inner = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        first, *_ = x.unsqueeze(0)
        return self.inner(first)


class ToNumbers(nn.Module):
    def __init__(self, size: int = C) -> None:
        super().__init__()
        self.inner = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * float(len(x))


class Around(nn.Module):
    """Two modules of one class between layers."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.first, self.one, self.middle = nn.Linear(C, 16), kind(16), nn.Linear(16, 12)
        self.two, self.last = kind(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(torch.relu(self.middle(self.one(torch.relu(self.first(x)))))))


@pytest.mark.parametrize("kind", [Rows, BySize, Unpacks, ToNumbers])
def test_a_submodule_that_cannot_be_traced_stays_whole(kind: type[nn.Module]) -> None:
    torch.manual_seed(3)
    model, x = Around(kind).double().eval(), torch.randn(4, C).double()
    traced = fxprune.trace(model, x)
    whole = traced.meta["fxprune_whole"]
    assert list(whole) == ["one", "two"]
    assert all("its forward cannot be traced" in why and "test_traced_public.py" in why for why in whole.values())
    small = fxprune.transform(traced, x, ratio=0.5)
    made = fxprune.record(small)
    assert (made.path, small.get_submodule("one").inner.out_features) == ("fx", 8)
    assert torch.allclose(small(x), fxprune.masked(model, made.removed)(x), rtol=1e-9, atol=1e-12)
    assert any("one and 1 more" in reason for reason in made.reasons)
    assert any("one.other.weight" in reason for reason in made.reasons) == (kind is BySize)


@pytest.mark.parametrize("inner", [True, False])
def test_a_model_that_cannot_be_traced_is_refused(inner: bool) -> None:
    model = nn.Sequential(Rows(), nn.ReLU()) if inner else Rows()
    with pytest.raises(fxprune.CaptureError, match=f"{type(model).__name__} cannot be traced symbolically"):
        fxprune.trace(model, torch.randn(2, C))
