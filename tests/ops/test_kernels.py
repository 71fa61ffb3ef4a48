"""Kernels that do the work of many operations: their rules must claim the same as the rules of the parts.

Every dimension of every input is open. Ties, locks and marks must be the same for the kernel and for the same
computation written out. Most of these kernels run on devices that this machine lacks, so that only their shapes are
computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import fxprune
from fxprune.analysis.observer import Observer
from fxprune.capture.scopes import Scopes
from fxprune.channels.terms import Terms, Vector
from fxprune.ops import Operand

ATEN = torch.ops.aten
Shapes = Sequence[tuple[int, ...]]


class Claims:
    """The claims of the rules about a function of tensors, without the names of atoms."""

    def __init__(self, function: Callable[..., Any], shapes: Shapes, device: str = "cpu") -> None:
        self.terms, mode = Terms(), FakeTensorMode(allow_non_fake_inputs=True)
        observer = Observer(self.terms, Scopes(nn.Module()), strict=True)
        given = []
        for shape in shapes:
            dtype = torch.float16 if device == "cuda" else torch.float64
            fake = FakeTensor(mode, torch.empty(shape, dtype=dtype, device="meta"), torch.device(device))
            vectors = tuple(self.terms.fresh(size) for size in shape)
            observer.bind(fake, Operand(vectors, (True,) * len(vectors)))
            given.append(fake)
        with mode, torch.no_grad(), observer:
            made = function(*given)
            made = [t for t in (made if isinstance(made, (tuple, list)) else [made]) if isinstance(t, torch.Tensor)]
            self.inputs = [observer.operand(t).vectors for t in given]
            self.outputs = [observer.operand(t) for t in made]
        self.marks = [vector for _, vector in observer.marks]

    def __call__(self, outputs: int = 1) -> tuple[Any, ...]:
        """Per slot of every dimension the atoms it goes with, numbered as they come; the marked atoms; `zero`."""
        names: dict[int, int] = {}

        def slots(vector: Vector) -> list[list[int]]:
            columns = [c.tolist() for c in self.terms.resolve(vector).columns]
            free = [
                [a for a in atoms if a and not self.terms.event(np.array([a]))] for atoms in zip(*columns, strict=True)
            ]
            return [sorted(names.setdefault(a, len(names)) for a in atoms) for atoms in free]

        ties = [[slots(v) for v in vectors] for vectors in self.inputs]
        made = [[slots(v) for v in operand.vectors] for operand in self.outputs[:outputs]]
        marked = sorted({names[int(a)] for v in self.marks for a in self.terms.free(v)})
        return ties, made, marked


# -- attention --------------------------------------------------------------------------------------------------

Q, K, V, BIAS = (2, 4, 5, 6), (2, 4, 7, 6), (2, 4, 7, 3), (1, 4, 5, 7)
FEWER = (2, 2, 7, 6)


def by_hand(q: Any, k: Any, v: Any, bias: Any = None, shared: int = 1) -> Any:
    scores = q @ k.repeat_interleave(shared, 1).transpose(-1, -2)
    scores = scores if bias is None else scores + bias
    return scores.softmax(-1) @ v.repeat_interleave(shared, 1)


KERNELS: dict[str, tuple[Callable[..., Any], str, Shapes]] = {
    "flash on a CPU": (lambda q, k, v: ATEN._scaled_dot_product_flash_attention_for_cpu(q, k, v), "cpu", (Q, K, K)),
    "flash on a CPU, bias": (
        lambda q, k, v, b: ATEN._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=b),
        "cpu",
        (Q, K, K, BIAS),
    ),
    "flash": (lambda q, k, v: ATEN._scaled_dot_product_flash_attention(q, k, v), "cuda", (Q, K, K)),
    "efficient": (
        lambda q, k, v: ATEN._scaled_dot_product_efficient_attention(q, k, v, None, True),
        "cuda",
        (Q, K, V),
    ),
    "efficient, bias": (
        lambda q, k, v, b: ATEN._scaled_dot_product_efficient_attention(q, k, v, b, False),
        "cuda",
        (Q, K, V, BIAS),
    ),
    "cudnn": (lambda q, k, v: ATEN._scaled_dot_product_cudnn_attention(q, k, v, None, True), "cuda", (Q, K, V)),
    "cudnn, bias": (
        lambda q, k, v, b: ATEN._scaled_dot_product_cudnn_attention(q, k, v, b, False),
        "cuda",
        (Q, K, V, BIAS),
    ),
    "overrideable, bias": (
        lambda q, k, v, b: ATEN._scaled_dot_product_fused_attention_overrideable(q, k, v, b),
        "cuda",
        (Q, K, V, BIAS),
    ),
    "flash on a CPU, shared keys": (
        lambda q, k, v: ATEN._scaled_dot_product_flash_attention_for_cpu(q, k, v),
        "cpu",
        (Q, FEWER, FEWER),
    ),
    "flash, shared keys": (
        lambda q, k, v: ATEN._scaled_dot_product_flash_attention(q, k, v),
        "cuda",
        (Q, FEWER, FEWER),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_attention_is_two_products_and_a_softmax(name: str) -> None:
    kernel, device, shapes = KERNELS[name]
    ties, made, marked = Claims(kernel, shapes, device)()
    assert (ties, made, marked) == Claims(lambda *x: by_hand(*x, shared=shapes[0][1] // shapes[1][1]), shapes)()
    assert len(marked) == shapes[1][2], "the keys are marked, and nothing else"


def test_attention_reports_sums_over_values_that_are_not_zero() -> None:
    def marked(function: Callable[..., Any]) -> int:
        return len(Claims(function, (Q, K, K))()[2])

    attend = F.scaled_dot_product_attention
    assert marked(lambda q, k, v: attend(q.cos(), k, v)) == K[2]
    assert marked(lambda q, k, v: attend(q, k.cos(), v)) == K[2]
    assert marked(lambda q, k, v: attend(q.cos(), k.cos(), v)) == K[2] + K[3]


def test_attention_without_a_kernel_has_the_rule_of_its_parts() -> None:
    kernels = Claims(
        lambda q, k, v, b: ATEN._scaled_dot_product_fused_attention_overrideable(q, k, v, b), (Q, K, V, BIAS)
    )
    assert Claims(F.scaled_dot_product_attention, (Q, K, V, BIAS))() == kernels()


# -- recurrent --------------------------------------------------------------------------------------------------


def parameters(
    gates: int, hidden: int, inputs: int, layers: int, directions: int, outputs: int
) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    for layer in range(layers):
        entering = inputs if layer == 0 else directions * (outputs or hidden)
        one = [(gates * hidden, entering), (gates * hidden, outputs or hidden), (gates * hidden,), (gates * hidden,)]
        shapes += (one + ([(outputs, hidden)] if outputs else [])) * directions
    return shapes


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("mode", "outputs"), [(0, 0), (1, 0), (2, 0), (2, 3), (3, 0)])
def test_a_kernel_of_all_layers_equals_layer_by_layer(
    mode: int, layers: int, directions: int, outputs: int, batch_first: bool
) -> None:
    gates, hidden, stacked = (1, 1, 4, 3)[mode], 5, layers * directions
    function = (torch.rnn_relu, torch.rnn_tanh, torch.lstm, torch.gru)[mode]
    weights = parameters(gates, hidden, 7, layers, directions, outputs)
    x = (2, 6, 7) if batch_first else (6, 2, 7)
    states = [(stacked, 2, outputs or hidden), *([(stacked, 2, hidden)] if mode == 2 else [])]

    def at_once(x: Any, *rest: Any) -> Any:
        state, w = rest[: len(states)], list(rest[len(states) :])
        cells = state[1] if mode == 2 else None
        return ATEN._cudnn_rnn(
            *(x, w, len(w) // stacked, None, state[0], cells, mode, hidden, outputs, layers, batch_first),
            *(0.0, False, directions == 2, [], None),
        )[: 1 + len(states)]

    def one_by_one(x: Any, *rest: Any) -> Any:
        state, w = rest[: len(states)], list(rest[len(states) :])
        return function(x, state if mode == 2 else state[0], w, True, layers, 0.0, False, directions == 2, batch_first)

    shapes = [x, *states, *weights]
    assert Claims(at_once, shapes)(1 + len(states)) == Claims(one_by_one, shapes)(1 + len(states))


def test_weights_in_one_buffer_are_locked() -> None:
    def with_buffer(x: Any, h: Any, *w: Any) -> Any:
        return ATEN._cudnn_rnn(x, list(w[:4]), 4, w[4], h, h, 2, 5, 0, 1, False, 0.0, False, False, [], None)[:1]

    ties = Claims(with_buffer, [(6, 2, 7), (1, 2, 5), *parameters(4, 5, 7, 1, 1, 0), (240,)])()[0]
    assert not any(atoms for atoms in ties[-1][0])


def lstm_cell(x: Any, z: Any, c: Any, b: Any, d: Any) -> Any:
    i, f, g, o = (x + z + b + d).chunk(4, 1)
    cell = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def test_a_fused_cell_has_the_rule_of_its_gates() -> None:
    four = [(2, 20), (2, 20), (2, 5), (20,), (20,)]
    assert Claims(ATEN._thnn_fused_lstm_cell, four)(2) == Claims(lstm_cell, four)(2)


class Recurrent(nn.Module):
    """producer -> recurrent layer -> consumer."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.producer, self.layer, self.consumer = nn.Linear(3, 7), layer, nn.Linear(width, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.consumer(self.layer(torch.relu(self.producer(x)))[0])


LAYERS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "LSTM": (nn.LSTM, {}),
    "LSTM, batch first": (nn.LSTM, {"batch_first": True}),
    "LSTM, two layers": (nn.LSTM, {"num_layers": 2}),
    "LSTM, both directions": (nn.LSTM, {"bidirectional": True}),
    "LSTM, two layers in both directions": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "LSTM without bias": (nn.LSTM, {"bias": False}),
    "LSTM with projections": (nn.LSTM, {"proj_size": 3, "num_layers": 2}),
    "GRU": (nn.GRU, {}),
    "GRU, two layers in both directions": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "GRU, batch first, without bias": (nn.GRU, {"bias": False, "batch_first": True}),
    "RNN": (nn.RNN, {"num_layers": 2}),
    "RNN, relu": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
}


def recurrent(name: str) -> tuple[Recurrent, Callable[[int, int], nn.RNNBase]]:
    kind, options = LAYERS[name]

    def make(hidden: int, outputs: int) -> nn.RNNBase:
        return kind(7, hidden, **{**options, **({"proj_size": outputs} if "proj_size" in options else {})})

    torch.manual_seed(0)
    directions = 2 if options.get("bidirectional") else 1
    return Recurrent(make(5, 3), directions * options.get("proj_size", 5)).eval(), make


def members(net: nn.Module) -> dict[Any, Any]:
    groups = fxprune.analyze(net, torch.randn(2, 4, 3, dtype=next(net.parameters()).dtype), strict=True).groups
    return {frozenset((m.parameter, m.dim) for m in g.members): (g.size, g.exact) for g in groups}


@pytest.mark.parametrize("name", [n for n in LAYERS if n != "LSTM with projections"])
def test_a_kernel_of_a_layer_equals_step_by_step(name: str) -> None:
    """A CPU has a kernel for a whole layer of an LSTM in single precision, and none in double precision."""
    net, _ = recurrent(name)
    assert members(net) == members(net.double())


@pytest.mark.parametrize("name", LAYERS)
def test_a_smaller_layer_made_by_hand_is_the_zeroed_one(name: str) -> None:
    """A layer without the units of a group, made by hand, equals the layer with these units set to zero."""
    net, make = recurrent(name)
    net.double()
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    groups = fxprune.analyze(net, x, strict=True).groups
    inside = [g for g in groups if any(m.parameter.startswith("layer.weight_hh") for m in g.members)]
    assert sorted(g.size for g in inside) == ([3, 5] if "projections" in name else [5])
    assert all(g.exact for g in inside)
    gone: dict[str, dict[int, set[int]]] = {}
    for member in (m for g in inside for m in g.members):
        went = {int(slot) for channel, slot in zip(member.index, member.slots, strict=True) if channel == 1}
        gone.setdefault(member.parameter, {}).setdefault(member.dim, set()).update(went)
    zeroed = fxprune.masked(net, {n: {d: sorted(s) for d, s in dims.items()} for n, dims in gone.items()})
    small = make(4, 2).double().eval()
    for own, tensor in small.named_parameters():
        kept = dict(net.layer.named_parameters())[own].detach()
        for d, slots in gone.get(f"layer.{own}", {}).items():
            kept = kept.index_select(d, torch.tensor([i for i in range(kept.shape[d]) if i not in slots]))
        assert kept.shape == tensor.shape, own
        tensor.data.copy_(kept)
    columns = [i for i in range(net.consumer.in_features) if i not in gone["consumer.weight"][1]]
    with torch.no_grad():
        h = small(torch.relu(net.producer(x)))[0]
        y = F.linear(h, net.consumer.weight[:, columns], net.consumer.bias)
        reference = zeroed(x)
    assert (y - reference).abs().max() < 1e-12
    assert (y - net(x)).abs().max() > 1e-3


# -- what the table cannot run ----------------------------------------------------------------------------------


def test_a_grouped_product_is_its_products() -> None:
    """The kernel knows no double precision; the rows that the offsets count, and the groups, stay."""
    ends = torch.tensor([8, 24], dtype=torch.int32)

    def grouped(a: Any, b: Any) -> Any:
        return ATEN._grouped_mm(a.bfloat16(), b.bfloat16(), ends)

    forms: dict[str, tuple[Shapes, list[str], list[str]]] = {
        "rows": (((24, 8), (2, 8, 16)), ["", "k"], ["", "k", "n"]),
        "columns": (((2, 16, 8), (8, 24)), ["", "m", "k"], ["k", ""]),
        "sum": (((16, 24), (24, 8)), ["m", ""], ["", "n"]),
    }
    for shapes, left, right in forms.values():
        ties = Claims(grouped, shapes)()[0]
        letters: dict[str, Any] = {}
        for slots, letter in zip([*ties[0], *ties[1]], [*left, *right], strict=True):
            assert any(slots) == bool(letter)
            if letter:
                assert letters.setdefault(letter, slots) == slots
    batched = Claims(lambda a, b: ATEN._grouped_mm(a.bfloat16(), b.bfloat16()), ((2, 16, 8), (2, 8, 24)))()
    assert batched == Claims(torch.bmm, ((2, 16, 8), (2, 8, 24)))()


def test_a_mask_locks_what_it_covers_and_lets_the_rest_through() -> None:
    """Fake tensors know no shapes that depend on numbers, so that the observer sees real ones here."""
    terms = Terms()
    observer = Observer(terms, Scopes(nn.Module()), strict=True)
    x = torch.randn(3, 4, 5, 6)
    channels = [terms.fresh(size) for size in x.shape]
    observer.bind(x, Operand(tuple(channels), (True,) * 4))
    mask = torch.rand(4, 5) > 0.5
    mask[0, 0] = True
    with observer:
        picked = observer.operand(x[:, mask])
    assert [len(terms.free(v)) for v in channels] == [3, 0, 0, 6]
    assert picked.dim(0) is channels[0]
    assert picked.dim(2) is channels[3]
    assert picked.shape == (3, int(mask.sum()), 6)


def test_assertions_lock_no_channel() -> None:
    def checked(x: Any) -> Any:
        ATEN._assert_tensor_metadata(x, dtype=x.dtype)
        ATEN._assert_async(x.sum() > 0)
        return x

    assert any(Claims(checked, [(7,)])()[0][0][0])
