"""Recurrent layers: recounted sizes, the list of weights beside the parameters, and whole networks pruned."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.capture.module_copy import copy_module
from fxprune.ops.module_use import Use
from fxprune.ops.recurrent import GATES_BY_NAME as GATES
from fxprune.rewrite.modules import recount
from fxprune.rewrite.recurrent import refresh
from tests.support import randomise, relative_error

STEPS, N, INPUTS, H = 5, 3, 6, 8
UNITS = [0, 2, 3, 6, 7]
COLUMNS = [1, 2, 4, 5]

LAYERS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm, 2 layers, both directions": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "lstm, projections": (nn.LSTM, {"proj_size": 4}),
    "lstm, projections, 2 layers, both directions": (
        nn.LSTM,
        {"proj_size": 4, "num_layers": 2, "bidirectional": True, "batch_first": True},
    ),
    "lstm, no bias": (nn.LSTM, {"bias": False, "num_layers": 3}),
    "gru": (nn.GRU, {}),
    "gru, 2 layers, both directions": (nn.GRU, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "rnn": (nn.RNN, {"num_layers": 2}),
    "rnn, relu, both directions": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
}
PROJECTED = [0, 3]


def layer(name: str) -> nn.RNNBase:
    kind, options = LAYERS[name]
    torch.manual_seed(0)
    return randomise(kind(INPUTS, H, dtype=torch.float64, **options), 0, weights=True)


def use() -> Use:
    nothing: Any = SimpleNamespace()
    return Use(nothing)


def rows(units: list[int], size: int, blocks: int) -> list[int]:
    """Indices of these units in `blocks` blocks of `size` rows: j, size + j, 2 size + j, ..."""
    return [block * size + j for block in range(blocks) for j in units]


def kept_slots(module: nn.RNNBase) -> dict[str, dict[int, list[int]]]:
    """The kept slots of each parameter, if COLUMNS of the input, UNITS and PROJECTED outputs are kept."""
    gates, directions = GATES[module.mode], 2 if module.bidirectional else 1
    out, width = (PROJECTED, module.proj_size) if module.proj_size else (UNITS, H)
    kept: dict[str, dict[int, list[int]]] = {}
    for name, _ in module.named_parameters():
        if name.startswith("weight_ih"):
            first = name.startswith("weight_ih_l0")
            kept[name] = {0: rows(UNITS, H, gates), 1: COLUMNS if first else rows(out, width, directions)}
        elif name.startswith("weight_hh"):
            kept[name] = {0: rows(UNITS, H, gates), 1: out}
        elif name.startswith("weight_hr"):
            kept[name] = {0: PROJECTED, 1: UNITS}
        else:
            kept[name] = {0: rows(UNITS, H, gates)}
    return kept


def cut(module: nn.Module, kept: dict[str, dict[int, list[int]]]) -> nn.Module:
    """Smaller parameters put where the pass puts them: into the dict, past `__setattr__`."""
    small = copy.deepcopy(module)
    for name, dims in kept.items():
        value = small._parameters[name].detach()
        for dim, index in dims.items():
            value = value.index_select(dim, torch.tensor(index))
        small._parameters[name] = nn.Parameter(value)
    recount(small, use())
    return small


def removed(module: nn.Module, kept: dict[str, dict[int, list[int]]]) -> dict[str, dict[int, list[int]]]:
    shapes = {name: p.shape for name, p in module.named_parameters()}
    return {n: {d: sorted({*range(shapes[n][d])} - {*i}) for d, i in dims.items()} for n, dims in kept.items()}


@pytest.mark.parametrize("refreshed", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_cut_layer_computes_what_the_masked_one_does(name: str, refreshed: bool) -> None:
    original = layer(name)
    kept = kept_slots(original)
    small, reference = cut(original, kept), fxprune.masked(original, removed(original, kept))
    if refreshed:
        refresh(small)
    assert isinstance(small, nn.RNNBase)
    projected = len(PROJECTED) if original.proj_size else 0
    assert (small.input_size, small.hidden_size, small.proj_size) == (len(COLUMNS), len(UNITS), projected)
    x = torch.randn(STEPS, N, INPUTS, dtype=torch.float64)
    directions, out = 2 if original.bidirectional else 1, PROJECTED if projected else UNITS
    output, state = small(x[..., COLUMNS])
    expected, expected_state = reference(x)
    columns = rows(out, original.proj_size or H, directions)
    assert relative_error(output, expected[..., columns]) < 1e-12
    hidden, expected_hidden = (state[0], expected_state[0]) if original.mode == "LSTM" else (state, expected_state)
    assert relative_error(hidden, expected_hidden[..., out]) < 1e-12
    if original.mode == "LSTM":
        assert relative_error(state[1], expected_state[1][..., UNITS]) < 1e-12
    again, _ = small(x[..., COLUMNS], state)
    assert relative_error(again, reference(x, expected_state)[0][..., columns]) < 1e-12
    packed = nn.utils.rnn.pack_padded_sequence(x[:2, :2], [2, 2], batch_first=original.batch_first)
    ours = nn.utils.rnn.PackedSequence(packed.data[:, COLUMNS], packed.batch_sizes)
    assert relative_error(small(ours)[0].data, reference(packed)[0].data[:, columns]) < 1e-12


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_cells_are_cut_too(kind: type[nn.RNNCellBase], gates: int) -> None:
    torch.manual_seed(0)
    original = kind(INPUTS, H, dtype=torch.float64)
    every = rows(UNITS, H, gates)
    kept = {"weight_ih": {0: every, 1: COLUMNS}, "weight_hh": {0: every, 1: UNITS}}
    kept |= {"bias_ih": {0: every}, "bias_hh": {0: every}}
    small, reference = cut(original, kept), fxprune.masked(original, removed(original, kept))
    assert (small.input_size, small.hidden_size) == (len(COLUMNS), len(UNITS))
    x = torch.randn(N, INPUTS, dtype=torch.float64)
    ours, expected = small(x[:, COLUMNS]), reference(x)
    expected = [s[:, UNITS] for s in expected] if isinstance(expected, tuple) else expected[:, UNITS]
    assert relative_error(ours, expected) < 1e-12


def test_sizes_that_no_layer_has_are_refused() -> None:
    original = layer("lstm, 2 layers, both directions")
    kept = kept_slots(original)
    del kept["weight_ih_l1_reverse"]
    with pytest.raises(
        ValueError, match=r"weight_ih_l1_reverse would have shape \(32, 16\), the layer needs \(20, 10\)"
    ):
        cut(original, kept)
    original = layer("lstm, projections")
    kept = {name: {0: rows([0, 2, 3, 5], H, 4)} for name, _ in original.named_parameters()}
    with pytest.raises(ValueError, match="a projection to 4 is not narrower than the 4 hidden units"):
        cut(original, {**kept, "weight_hr_l0": {1: [0, 2, 3, 5]}})


def held_by(module: nn.RNNBase) -> bool:
    """True if the list of weights has the parameters, and its weak references point at them."""
    own = [module._parameters[name] for name in module._flat_weights_names]
    listed = all(a is b for a, b in zip(own, module._flat_weights, strict=True))
    return listed and all(a is b() for a, b in zip(own, module._flat_weight_refs, strict=True))


def test_the_list_of_weights_follows_the_parameters() -> None:
    original = layer("gru")
    small = cut(original, kept_slots(original))
    assert not held_by(small)
    refresh(small)
    assert held_by(small)
    assert held_by(original)
    for moved in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert held_by(moved)
        x = torch.randn(STEPS, N, len(COLUMNS), dtype=torch.float64)
        assert relative_error(moved(x), small(x)) == 0
    refresh(nn.Linear(2, 2))


def test_a_fake_copy_lists_its_own_weights() -> None:
    original = layer("lstm, projections")
    assert held_by(copy_module(original, lambda t: t))
    other: dict[int, torch.Tensor] = {}
    copied = copy_module(original, lambda t: other.setdefault(id(t), t.detach().clone()))
    assert held_by(copied)
    assert held_by(original)
    assert copied._flat_weights[0] is not original._flat_weights[0]


# -- through the whole pass -----------------------------------------------------------------------------------------


class Words(nn.Module):
    """Embedding, recurrent layers, a linear layer on the outputs."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(11, INPUTS), layer(name)
        out = (self.layer.proj_size or H) * (2 if self.layer.bidirectional else 1)
        self.last = nn.Linear(out, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.last(self.layer(self.embedding(tokens))[0])


class Unrolled(nn.Module):
    """A cell called for every step."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.embedding, self.cell, self.last = nn.Embedding(11, INPUTS), cell, nn.Linear(H, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, state = self.embedding(tokens), None
        for step in range(STEPS):
            state = self.cell(x[step]) if state is None else self.cell(x[step], state)
        return self.last(state[0] if isinstance(self.cell, nn.LSTMCell) else state)


TOKENS = torch.arange(STEPS * N).reshape(STEPS, N) * 3 % 11


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_networks_are_pruned_whole(name: str, ratio: float) -> None:
    net = randomise(Words(name).double().eval(), 1)
    small = fxprune.transform(net, TOKENS, ratio=ratio, strict=True)
    assert small.layer.hidden_size == H - int(ratio * H)
    assert small.layer.input_size == INPUTS - int(ratio * INPUTS)
    if net.layer.proj_size:
        assert small.layer.proj_size < net.layer.proj_size
    assert held_by(small.layer)
    assert held_by(net.layer)
    reference = fxprune.masked(net, fxprune.record(small).removed)
    assert relative_error(small(TOKENS), reference(TOKENS)) < 1e-9
    assert relative_error(copy.deepcopy(small)(TOKENS), reference(TOKENS)) < 1e-9


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_unrolled_cells_are_pruned_whole(kind: type[nn.RNNCellBase]) -> None:
    torch.manual_seed(0)
    net = randomise(Unrolled(kind(INPUTS, H)).double().eval(), 1)
    small = fxprune.transform(net, TOKENS, ratio=0.5, strict=True)
    assert (small.cell.input_size, small.cell.hidden_size) == (INPUTS // 2, H // 2)
    reference = fxprune.masked(net, fxprune.record(small).removed)
    assert relative_error(small(TOKENS), reference(TOKENS)) < 1e-9


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
def test_a_projection_stays_narrower_than_what_it_projects() -> None:
    """Half of 8 hidden units, and 3 of 5 outputs made a multiple of 4, would be the same number."""
    torch.manual_seed(0)
    net = Words("lstm").double().eval()
    net.layer, net.last = nn.LSTM(INPUTS, H, proj_size=5, dtype=torch.float64), nn.Linear(5, 5, dtype=torch.float64)
    small = fxprune.transform(net, TOKENS, ratio=0.5, round_to=4)
    assert (small.layer.input_size, small.layer.hidden_size, small.layer.proj_size) == (4, 8, 4)
    assert any("not narrower" in reason for reason in fxprune.record(small).reasons)
    reference = fxprune.masked(net, fxprune.record(small).removed)
    assert relative_error(small(TOKENS), reference(TOKENS)) < 1e-9
