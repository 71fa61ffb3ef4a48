"""Rows of recurrent layers and of what stands around them."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import nn

from tests.ops.cases.row import ENTRIES, EVEN, FLAT, INSIDE, TOKENS, OpCase, fn, gated


def _weights(gates: int, inputs: int, hidden: int, outputs: int = 0, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """The parameters of one layer in one direction."""
    made: dict[str, tuple[int, ...]] = {
        "ih": (gates * hidden, inputs),
        "hh": (gates * hidden, outputs or hidden),
        "bi": (gates * hidden,),
        "bh": (gates * hidden,),
    }
    return {prefix + name: shape for name, shape in {**made, **({"hr": (outputs, hidden)} if outputs else {})}.items()}


def _layer_losses(*prefixes: str) -> tuple[str, ...]:
    ends = ("ih[0]", "ih[1]", "hh[0]", "hh[1]", "bi[0]", "bh[0]")
    return ("producer.weight[0]", "consumer.weight[1]", *(f"op.{p}{end}" for p in prefixes for end in ends))


def _zeros(h: torch.Tensor, layers: int, hidden: int) -> torch.Tensor:
    return h.new_zeros(layers, h.shape[1], hidden)


def _lstm(h: torch.Tensor, layers: int = 1, both: bool = False, hidden: int = 7, **weights: torch.Tensor) -> Any:
    states = layers * (2 if both else 1)
    state = _zeros(h, states, weights["hr"].shape[0] if "hr" in weights else hidden), _zeros(h, states, hidden)
    return torch.lstm(h, state, list(weights.values()), True, layers, 0.0, False, both, False)


def _stacked(function: Any, h: torch.Tensor, hidden: int = 7, layers: int = 1, **weights: torch.Tensor) -> Any:
    return function(h, _zeros(h, layers, hidden), list(weights.values()), True, layers, 0.0, False, False, False)


@torch.fx.wrap
def _packed(h: torch.Tensor) -> Any:
    return nn.utils.rnn.pack_padded_sequence(h, torch.tensor([5, 3]), batch_first=True)


def _unpadded(layer: nn.Module, h: torch.Tensor) -> torch.Tensor:
    return nn.utils.rnn.pad_packed_sequence(layer(_packed(h))[0], batch_first=True)[0]


STEPS: dict[str, Any] = {"shape": TOKENS, "axis": -1, "out": -1, "mixes": INSIDE}

CELL: dict[str, Any] = {"shape": FLAT, "mixes": INSIDE, "loses": _layer_losses("")}

RECURRENT = [
    OpCase("lstm", fn(lambda h, **w: _lstm(h, **w)[0], **_weights(4, 11, 7)), **STEPS, loses=_layer_losses("")),
    OpCase(
        "lstm, last state", fn(lambda h, **w: _lstm(h, **w)[1], **_weights(4, 11, 7)), **STEPS, loses=_layer_losses("")
    ),
    OpCase(
        "lstm, last cell", fn(lambda h, **w: _lstm(h, **w)[2], **_weights(4, 11, 7)), **STEPS, loses=_layer_losses("")
    ),
    OpCase(
        "lstm, two layers",
        fn(lambda h, **w: _lstm(h, 2, **w)[0], **_weights(4, 11, 7), **_weights(4, 7, 7, prefix="up_")),
        **STEPS,
        loses=_layer_losses("", "up_"),
    ),
    OpCase(
        "lstm, both directions",
        fn(lambda h, **w: _lstm(h, 1, True, **w)[0], **_weights(4, 11, 7), **_weights(4, 11, 7, prefix="back_")),
        **STEPS,
        loses=_layer_losses("", "back_"),
    ),
    OpCase(
        "lstm, two layers in both directions",
        fn(
            lambda h, **w: _lstm(h, 2, True, **w)[0],
            **_weights(4, 11, 7),
            **_weights(4, 11, 7, prefix="back_"),
            **_weights(4, 14, 7, prefix="up_"),
            **_weights(4, 14, 7, prefix="up_back_"),
        ),
        **STEPS,
        loses=_layer_losses("", "back_", "up_", "up_back_"),
    ),
    OpCase(
        "lstm with a projection",
        fn(lambda h, **w: _lstm(h, **w)[0], **_weights(4, 11, 7, 5)),
        **STEPS,
        loses=(*_layer_losses(""), "op.hr[0]", "op.hr[1]"),
    ),
    OpCase(
        "lstm, states given",
        fn(
            lambda h, h0, c0, **w: torch.lstm(h, (h0, c0), list(w.values()), True, 1, 0.0, False, False, False)[0],
            h0=(1, 5, 7),
            c0=(1, 5, 7),
            **_weights(4, 11, 7),
        ),
        **STEPS,
        loses=(*_layer_losses(""), "op.h0[2]", "op.c0[2]"),
    ),
    OpCase(
        "sum over the units of an lstm",
        fn(lambda h, **w: _lstm(h, **w)[0].sum(-1), **_weights(4, 11, 7)),
        TOKENS,
        "inexact",
        axis=-1,
        out=None,
        mixes=INSIDE,
        loses=("producer.weight[0]", "op.hh[1]"),
    ),
    OpCase(
        "gru",
        fn(lambda h, **w: _stacked(torch.gru, h, **w)[0], **_weights(3, 11, 7)),
        **STEPS,
        loses=_layer_losses(""),
    ),
    OpCase(
        "gru, two layers, last state",
        fn(
            lambda h, **w: _stacked(torch.gru, h, layers=2, **w)[1],
            **_weights(3, 11, 7),
            **_weights(3, 7, 7, prefix="up_"),
        ),
        **STEPS,
        loses=_layer_losses("", "up_"),
    ),
    OpCase(
        "gru, a state that is not zero",
        fn(
            lambda h, **w: torch.gru(h, h.new_ones(1, 5, 7), list(w.values()), True, 1, 0.0, False, False, False)[0],
            **_weights(3, 11, 7),
        ),
        **STEPS,
        loses=_layer_losses(""),
    ),
    *(
        OpCase(
            name,
            fn(lambda h, function=function, **w: _stacked(function, h, **w)[0], **_weights(1, 11, 7)),
            **STEPS,
            loses=_layer_losses(""),
        )
        for name, function in (("rnn_tanh", torch.rnn_tanh), ("rnn_relu", torch.rnn_relu))
    ),
    OpCase(
        "lstm_cell",
        fn(
            lambda h, **w: torch.lstm_cell(h, (h.new_zeros(2, 7), h.new_zeros(2, 7)), *w.values())[0],
            **_weights(4, 11, 7),
        ),
        **CELL,
    ),
    OpCase(
        "lstm_cell, two steps",
        fn(
            lambda h, **w: torch.lstm_cell(
                h, torch.lstm_cell(h.cos(), (h.new_zeros(2, 7), h.new_zeros(2, 7)), *w.values()), *w.values()
            )[1],
            **_weights(4, 11, 7),
        ),
        **CELL,
    ),
    OpCase(
        "gru_cell", fn(lambda h, **w: torch.gru_cell(h, h.new_zeros(2, 7), *w.values()), **_weights(3, 11, 7)), **CELL
    ),
    OpCase(
        "rnn_tanh_cell",
        fn(lambda h, **w: torch.rnn_tanh_cell(h, h.new_zeros(2, 7), *w.values()), **_weights(1, 11, 7)),
        **CELL,
    ),
    OpCase(
        "packed sequences",
        fn(
            lambda h, layer: _unpadded(layer, h),
            layer=lambda: nn.LSTM(11, 7, batch_first=True),
        ),
        **{**STEPS, "mixes": ENTRIES},
        loses=("producer.weight[0]", "op.layer.weight_hh_l0[1]", "consumer.weight[1]"),
    ),
    OpCase(
        "packed sequences, the steps",
        fn(lambda h: _packed(h).data),
        (2, 5, 7),
        "refused",
        ("aten::_pack_padded_sequence", "the lengths of the sequences are data"),
        mixes=ENTRIES,
    ),
    OpCase("unsafe_split of another axis", fn(lambda h: torch.unsafe_split(h, 2, 2)[1])),
    OpCase("unsafe_chunk", fn(lambda h: gated(torch.unsafe_chunk(h, 2, 1))), EVEN),
    OpCase("unsafe_split_with_sizes of another axis", fn(lambda h: torch.unsafe_split_with_sizes(h, [2, 3], 2)[1])),
]
