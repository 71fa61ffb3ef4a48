"""Small networks around torch's own recurrent, attention and transformer layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tests.models.zoo import Entry, ids, numbers, ready

VOCABULARY, WORDS, CLASSES = 37, 11, 7


class Recurrent(nn.Module):
    """Embedding, projection, recurrent layers, classifier of the last step."""

    def __init__(self, layer: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 24)
        self.project = nn.Linear(24, layer.input_size)
        self.layer = layer
        self.hidden = nn.Linear(width, 18)
        self.head = nn.Linear(18, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, _ = self.layer(torch.tanh(self.project(self.embedding(tokens))))
        x = x[:, -1] if self.layer.batch_first else x[-1]
        return self.head(torch.relu(self.hidden(x)))


class LastState(nn.Module):
    """Reads the final states, not the outputs, and gives the first state."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(5, 2 * 14)
        self.layer = nn.LSTM(10, 14, num_layers=2, batch_first=True)
        self.head = nn.Linear(14, CLASSES)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        h = self.start(context).view(-1, 2, 14).transpose(0, 1).contiguous()
        _, (h, c) = self.layer(x, (h, torch.zeros_like(h)))
        return self.head(h[-1] * torch.sigmoid(c[-1]))


class Attention(nn.Module):
    """Self or cross attention between two projections, with a residual sum."""

    def __init__(self, cross: bool, **options: Any) -> None:
        super().__init__()
        self.query, self.memory = nn.Linear(9, 24), nn.Linear(13, options.get("kdim", 24))
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True, **options)
        self.up, self.head = nn.Linear(24, 40), nn.Linear(40, CLASSES)
        self.cross = cross

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> Any:
        x, memory = self.query(x), self.memory(memory)
        key = memory if self.cross else x
        y, _ = self.attention(x, key, key, need_weights=False)
        return self.head(torch.relu(self.up(x + y)))


class Weights(Attention):
    """Also returns the attention weights, averaged over the heads."""

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> Any:
        x, memory = self.query(x), self.memory(memory)
        y, weights = self.attention(x, memory, memory)
        return self.head(torch.relu(self.up(x + y))), weights


class Encoder(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 36)
        layer = nn.TransformerEncoderLayer(36, 4, 52, batch_first=True, norm_first=norm_first, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(36, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


class Seq2Seq(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, 36), nn.Embedding(VOCABULARY + 4, 36)
        self.transformer = nn.Transformer(36, 4, 2, 3, 52, batch_first=batch_first)
        self.head = nn.Linear(36, VOCABULARY + 4)

    def forward(self, source: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.transformer(self.source(source), self.target(target), tgt_mask=mask))


def recurrent(layer: Callable[..., nn.RNNBase], width: int, **options: Any) -> tuple[nn.Module, Any]:
    made = layer(20, 16, **options)
    shape = (2, WORDS) if made.batch_first else (WORDS, 2)
    return ready(Recurrent(made, width), (ids(VOCABULARY, *shape),))


def sequences(make: Callable[[], nn.Module]) -> tuple[nn.Module, Any]:
    return ready(make(), (numbers(2, 6, 9), numbers(2, 5, 13)))


def seq2seq(batch_first: bool) -> tuple[nn.Module, Any]:
    source, target = ids(VOCABULARY, 2, WORDS), ids(VOCABULARY, 2, 6)
    if not batch_first:
        source, target = source.T.contiguous(), target.T.contiguous()
    mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    return ready(Seq2Seq(batch_first), (source, target, mask))


def entries() -> Iterator[Entry]:
    part = functools.partial
    rows: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
        "lstm": part(recurrent, nn.LSTM, 16, batch_first=True),
        "lstm_3_layers": part(recurrent, nn.LSTM, 16, num_layers=3),
        "lstm_bidirectional": part(recurrent, nn.LSTM, 32, num_layers=2, bidirectional=True, batch_first=True),
        "lstm_proj": part(recurrent, nn.LSTM, 10, num_layers=2, proj_size=10, batch_first=True),
        "lstm_proj_bidirectional": part(recurrent, nn.LSTM, 20, num_layers=2, proj_size=10, bidirectional=True),
        "lstm_states": lambda: ready(LastState(), (numbers(3, 8, 10), numbers(3, 5))),
        "gru": part(recurrent, nn.GRU, 16, num_layers=2, batch_first=True),
        "gru_bidirectional": part(recurrent, nn.GRU, 32, num_layers=2, bidirectional=True),
        "rnn_tanh": part(recurrent, nn.RNN, 16, num_layers=2, batch_first=True),
        "rnn_relu_bidirectional": part(recurrent, nn.RNN, 32, nonlinearity="relu", bidirectional=True),
        "attention_self": part(sequences, part(Attention, False)),
        "attention_cross": part(sequences, part(Attention, True)),
        "attention_kdim": part(sequences, part(Attention, True, kdim=15, vdim=15)),
        "attention_weights": part(sequences, part(Weights, True)),
        "transformer_encoder": lambda: ready(Encoder(False), (ids(VOCABULARY, 2, WORDS),)),
        "transformer_encoder_norm_first": lambda: ready(Encoder(True), (ids(VOCABULARY, 2, WORDS),)),
        "transformer": part(seq2seq, True),
        "transformer_batch_second": part(seq2seq, False),
    }
    for name, build in rows.items():
        yield Entry("torch.nn", name, build)
