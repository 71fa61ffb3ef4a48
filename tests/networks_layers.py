"""Blocks over tokens [batch, time, channels]: gated layers, norms, mixing over time, recurrent layers, and code that
symbolic tracing refuses.

A block is a `Layer`: its kind and a list of small numbers, which `Choices` turns into named features, so that a test
can count what was seen. Every block learns its sizes from the tensor that enters it, and any list of numbers is valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """One block: its kind, what it chooses, and what happens inside (a residual branch)."""

    kind: str
    picks: tuple[int, ...] = ()
    inside: tuple[Layer, ...] = ()

    def __repr__(self) -> str:
        picks = self.picks
        while picks and not picks[-1]:
            picks = picks[:-1]
        return f"Layer({self.kind!r}, {picks}{f', {self.inside!r}' if self.inside else ''})"


@dataclass(frozen=True)
class TokenProgram:
    """A network: width of the stem, layers, what the rest chooses, length of the input, seed of all numbers."""

    width: int = 4
    layers: tuple[Layer, ...] = ()
    picks: tuple[int, ...] = ()
    length: int = 4
    seed: int = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.width}, {self.layers!r}, {self.picks}, {self.length}, {self.seed})"


class Choices:
    """The numbers of a block, read one after the other; none left is 0. `offered` collects all features there are."""

    offered: ClassVar[set[str]] = set()

    def __init__(self, kind: str, picks: Sequence[int], inside: Sequence[Layer] = ()) -> None:
        self.kind, self.rest, self.inside = kind, list(picks), inside
        self.made: list[str] = []

    def number(self, low: int, high: int) -> int:
        """A random integer from low to high, both included."""
        return low + (self.rest.pop(0) if self.rest else 0) % (high - low + 1)

    def of(self, what: str, options: str) -> str:
        """One of the words. What was chosen becomes a feature."""
        words = options.split()
        self.offered.update(f"{self.kind} {what} {word}" for word in words)
        word = words[self.number(0, len(words) - 1)]
        self.made.append(f"{self.kind} {what} {word}")
        return word


class Block(nn.Module):
    """A block that maps [b, n, c] to [b, n, c'], perhaps with a look at `memory` [b, m, e].

    features: what it chose, as words.
    """

    def __init__(self, layer: Layer, x: Tensor, memory: Tensor) -> None:
        super().__init__()
        choose = Choices(layer.kind, layer.picks, layer.inside)
        self.features = choose.made
        choose.made.append(layer.kind)
        self.make(choose, x, memory)

    def make(self, choose: Choices, x: Tensor, memory: Tensor) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        raise NotImplementedError


TOKENS: dict[str, Callable[[Layer, Tensor, Tensor], nn.Module]] = {}


def kind(name: str) -> Callable[[type[Block]], type[Block]]:
    """Register a kind of block."""

    def register(made: type[Block]) -> type[Block]:
        TOKENS[name] = made
        return made

    return register


def features(net: nn.Module) -> set[str]:
    """The choices that the blocks of a network made."""
    return {feature for module in net.modules() for feature in getattr(module, "features", ())}


# -- layers ---------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "sigmoid": torch.sigmoid}


@kind("mlp")
class Mlp(Block):
    """Two layers, or two and a gate in every spelling."""

    def make(self, choose: Choices, x: Tensor, memory: Tensor) -> None:
        c, self.hidden = x.shape[-1], choose.number(3, 6)
        gates = "none chunk split slices glu three view unbind unflatten stride conv1x1 einsum"
        self.gate = choose.of("gate", gates)
        self.act = choose.of("act", " ".join(ACTIVATIONS))
        bias = choose.of("bias", "yes no") == "yes"
        if self.gate == "conv1x1":
            self.up: nn.Module = nn.Conv1d(c, self.hidden, 1, bias=bias)
            self.down: nn.Module = nn.Conv1d(self.hidden, c, 1)
            return
        if self.gate == "einsum":
            self.matrix = nn.Parameter(torch.zeros(c, self.hidden))
        else:
            self.up = nn.Linear(c, self.hidden * (1 if self.gate in ("none", "three") else 2), bias=bias)
        if self.gate == "three":
            self.beside = nn.Linear(c, self.hidden, bias=bias)
        self.down = nn.Linear(self.hidden, c, bias=bias)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        act = ACTIVATIONS[self.act]
        if self.gate == "conv1x1":
            return self.down(act(self.up(x.transpose(1, 2)))).transpose(1, 2)
        if self.gate == "einsum":
            return self.down(act(torch.einsum("bnc,cd->bnd", x, self.matrix)))
        y = self.up(x)
        if self.gate == "none":
            return self.down(act(y))
        if self.gate == "three":
            return self.down(act(y) * self.beside(x))
        if self.gate == "glu":
            return self.down(F.glu(y, -1))
        if self.gate == "chunk":
            a, b = y.chunk(2, dim=-1)
        elif self.gate == "split":
            a, b = y.split(self.hidden, -1)
        elif self.gate == "slices":
            a, b = y[..., : self.hidden], y[..., self.hidden :]
        elif self.gate == "view":
            y = y.view(y.shape[0], y.shape[1], 2, self.hidden)
            a, b = y[:, :, 0], y[:, :, 1]
        elif self.gate == "unbind":
            a, b = y.reshape(y.size(0), -1, 2, y.size(-1) // 2).unbind(2)
        elif self.gate == "unflatten":
            a, b = y.unflatten(-1, (self.hidden, 2)).unbind(-1)
        else:
            a, b = y[..., ::2], y[..., 1::2]
        return self.down(act(a) * b)


class OwnNorm(nn.Module):
    """Norms as models write them."""

    def __init__(self, c: int, spelling: str) -> None:
        super().__init__()
        self.weight, self.eps, self.spelling = nn.Parameter(torch.ones(c)), 1e-5, spelling
        self.bias = nn.Parameter(torch.zeros(c)) if spelling == "own-layer" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "own-rms":
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
        if self.spelling == "own-scale":
            return F.normalize(x, dim=-1) * self.weight * x.shape[-1] ** 0.5
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(variance + self.eps) * self.weight + self.bias


@kind("norm")
class Norm(Block):
    NAMES = "layer rms group batch own-rms own-layer own-scale function function-shape instance"

    def make(self, choose: Choices, x: Tensor, memory: Tensor) -> None:
        c, self.name = x.shape[-1], choose.of("name", self.NAMES)
        if self.name.startswith("own"):
            self.norm: nn.Module = OwnNorm(c, self.name)
        elif self.name == "rms":
            self.norm = nn.RMSNorm(c, eps=1e-5)
        elif self.name == "group":
            self.norm = nn.GroupNorm(choose.number(1, 2) if c % 2 == 0 else 1, c)
        elif self.name == "batch":
            self.norm = nn.BatchNorm1d(c)
        elif self.name == "instance":
            self.norm = nn.InstanceNorm1d(c, affine=True)
        else:
            self.norm = nn.LayerNorm(c)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        if self.name in ("group", "batch", "instance"):
            return self.norm(x.transpose(1, 2)).transpose(1, 2)
        if self.name == "function":
            return F.layer_norm(x, self.norm.normalized_shape, self.norm.weight, self.norm.bias, 1e-5)
        if self.name == "function-shape":
            return F.layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias)
        return self.norm(x)


@kind("mix")
class Mix(Block):
    """Over time: convolutions, a layer over literal positions, views, gates from averages, recurrences by hand."""

    WAYS = "depthwise dense over-time shift excite excite-max cumulative pool windows two-views heads-view scan decay"

    def make(self, choose: Choices, x: Tensor, memory: Tensor) -> None:
        self.n, self.c = x.shape[1:]
        self.way = choose.of("way", self.WAYS)
        self.groups = next((g for g in (2, 3) if self.c % g == 0), 1)
        if self.way == "depthwise":
            self.conv: nn.Module = nn.Conv1d(self.c, self.c, 3, padding=1, groups=self.c)
        elif self.way == "dense":
            self.conv = nn.Conv1d(self.c, choose.number(2, 6), 3, padding=1)
        elif self.way in ("over-time", "two-views"):
            self.time = nn.Linear(self.n, self.n)
        elif self.way.startswith("excite"):
            self.down, self.up = nn.Linear(self.c, 3), nn.Linear(3, self.c)
        elif self.way == "decay":
            self.decay = nn.Parameter(torch.zeros(self.c))
        self.gain = nn.Parameter(torch.zeros(self.c))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        b, n, c = x.shape
        x = x * self.gain
        if self.way in ("depthwise", "dense"):
            return self.conv(x.transpose(1, 2)).transpose(1, 2)
        if self.way == "over-time":
            return self.time(x.mT).mT
        if self.way == "two-views":
            return self.time(x.transpose(1, 2).reshape(b * c, n)).view(b, c, n).transpose(1, 2)
        if self.way == "shift":
            return x + F.pad(x, (0, 0, 1, 0))[:, :-1]
        if self.way == "excite":
            return x * torch.sigmoid(self.up(F.relu(self.down(x.mean(1))))).unsqueeze(1)
        if self.way == "excite-max":
            return x * self.up(F.silu(self.down(x.amax(1, keepdim=True)))).sigmoid()
        if self.way == "cumulative":
            return x.cumsum(1) * 0.4
        if self.way == "pool":
            return x + F.adaptive_avg_pool1d(x.transpose(1, 2), 1).transpose(1, 2)
        if self.way == "windows":
            return (
                x.view(b, n, self.groups, self.c // self.groups).permute(0, 2, 1, 3).flip(2).transpose(1, 2).flatten(2)
            )
        if self.way == "heads-view":
            return x.view(b, n, self.groups, -1).softmax(1).reshape(b, n, self.c)
        if self.way == "scan":
            state, made = torch.zeros_like(x[:, 0]), []
            for token in x.unbind(1):
                state = state * 0.5 + token
                made.append(state)
            return torch.stack(made, 1)
        state, made = x.new_zeros(b, self.c), []
        for i in range(self.n):
            state = torch.sigmoid(self.decay) * state + x[:, i]
            made.append(state)
        return torch.stack(made, dim=1)


@kind("resize")
class Resize(Block):
    """Another width: a layer, a concatenation with itself, part of it."""

    def make(self, choose: Choices, x: Tensor, memory: Tensor) -> None:
        self.way, self.c = choose.of("way", "linear twice interleave slice pad drop"), x.shape[-1]
        self.linear = nn.Linear(self.c, choose.number(3, 6)) if self.way in ("linear", "drop") else nn.Identity()

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        if self.way == "twice":
            return torch.cat([x, torch.tanh(x)], -1)
        if self.way == "interleave":
            return torch.stack([x, x * 0.5], -1).flatten(-2)
        if self.way == "slice":
            return x[..., : max(2, self.c - 1)]
        if self.way == "pad":
            return F.pad(x, (1, 1))
        if self.way == "drop":
            return F.dropout(self.linear(x), 0.5, self.training)
        return self.linear(x)


# -- recurrent ------------------------------------------------------------------------------------------------


@kind("recurrent")
class Recurrent(Block):
    """LSTM, GRU and RNN in every setting, and the hidden state where it is wanted."""

    def make(self, choose: Choices, x: Tensor, memory: Tensor) -> None:
        c, hidden = x.shape[-1], choose.number(3, 5)
        made = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[choose.of("class", "lstm gru rnn")]
        self.first = choose.of("batch", "first second") == "first"
        options: dict[str, Any] = {
            "num_layers": 1 + (choose.of("layers", "one two") == "two"),
            "bidirectional": choose.of("directions", "one two") == "two",
            "batch_first": self.first,
            "bias": choose.of("bias", "yes no") == "yes",
        }
        if made is nn.LSTM and choose.of("projected", "no yes") == "yes":
            options["proj_size"] = hidden - 1
        if made is nn.RNN:
            options["nonlinearity"] = choose.of("nonlinearity", "tanh relu")
        self.used = choose.of("used", "all hidden both init")
        self.layer = made(c, hidden, **options)
        self.states = options["num_layers"] * (1 + options["bidirectional"])
        self.start = nn.Parameter(torch.zeros(self.states, 1, options.get("proj_size", hidden)))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        y = x if self.first else x.transpose(0, 1)
        if self.used == "init" and not isinstance(self.layer, nn.LSTM):
            out, state = self.layer(y, self.start.expand(-1, x.shape[0], -1).contiguous())
        else:
            out, state = self.layer(y)
        out = out if self.first else out.transpose(0, 1)
        last = (state[0] if isinstance(self.layer, nn.LSTM) else state)[-1].unsqueeze(1)
        if self.used == "hidden":
            return last + x.mean(-1, keepdim=True)
        if self.used == "both":
            return torch.cat([out, last.expand(-1, x.shape[1], -1)], -1)
        return out


@kind("cell")
class Cell(Block):
    """Cells in a loop over time, with states made in every way."""

    def make(self, choose: Choices, x: Tensor, memory: Tensor) -> None:
        c, self.hidden = x.shape[-1], choose.number(3, 5)
        self.name = choose.of("class", "lstm gru rnn")
        self.loop = choose.of("loop", "range unbind literal")
        self.initial = choose.of("initial", "zeros none new linear")
        self.n = x.shape[1]
        self.cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}[self.name](c, self.hidden)
        self.begin = nn.Linear(c, self.hidden) if self.initial == "linear" else nn.Identity()

    def state(self, x: Tensor) -> Tensor | None:
        if self.initial == "zeros":
            return torch.zeros(x.shape[0], self.hidden, dtype=x.dtype)
        if self.initial == "new":
            return x.new_zeros(x.shape[0], self.cell.hidden_size)
        return self.begin(x.mean(1)) if self.initial == "linear" else None

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        state: Any = self.state(x)
        if self.name == "lstm" and state is not None:
            state = (state, state)
        made = []
        if self.loop == "unbind":
            steps: Iterable[Tensor] = x.unbind(1)
        else:
            steps = (x[:, i] for i in range(self.n if self.loop == "literal" else x.shape[1]))
        for token in steps:
            state = self.cell(token, state)
            made.append(state[0] if self.name == "lstm" else state)
        return torch.stack(made, 1)


# -- what symbolic tracing refuses ----------------------------------------------------------------------------


@kind("refuse")
class Refuse(Block):
    """Code that decides by sizes and counts by attributes."""

    WAYS = "star loop raise heads-loop inconsistent if length number dict-inside literal list-state property"

    def make(self, choose: Choices, x: Tensor, memory: Tensor) -> None:
        c = x.shape[-1]
        self.way = choose.of("way", self.WAYS)
        self.num_heads, self.head_dim = choose.number(2, 3), choose.number(2, 3)
        self.inner = self.num_heads * self.head_dim
        self.into, self.out = nn.Linear(c, self.inner), nn.Linear(self.inner, c)
        self.bias = nn.Parameter(torch.zeros(self.num_heads, 1))

    @property
    def width(self) -> int:
        return self.inner

    def mixed(self, y: Tensor) -> Tensor:
        """Heads apart, something to each, together again."""
        if self.way == "star":
            return (y.view(*y.shape[:-1], self.num_heads, -1) * self.bias).view(*y.shape)
        if self.way == "inconsistent":
            y = y.view(*y.shape[:-1], self.num_heads, self.inner // self.num_heads) + self.bias
            return y.reshape(*y.shape[:-2], self.inner)
        if self.way == "literal":
            b, n, c = (int(size) for size in y.shape)
            y = y.reshape(b, n, self.num_heads, self.head_dim).transpose(1, 2)
            return (y.softmax(2) * self.bias[:, None]).transpose(1, 2).reshape(b, n, c)
        if self.way == "property":
            assert y.shape[-1] == self.width
            return (y.view(*y.shape[:2], self.num_heads, self.width // self.num_heads) * self.bias).flatten(2)
        if self.way == "raise":
            if y.shape[-1] != self.inner:
                raise ValueError(f"expected {self.inner} channels, got {y.shape[-1]}")
            return y
        if self.way == "heads-loop":
            d, made = self.head_dim, []
            for head in range(self.num_heads):
                made.append(y[..., head * d : (head + 1) * d] * self.bias[head])
            return torch.cat(made, -1)
        if self.way == "if":
            return y.relu() if y.shape[1] > 2 and y.dim() == 3 else y
        if self.way == "length":
            return y * (len(y.shape) / 3) if len(y) > 1 else y
        if self.way == "number":
            return y.relu() if float(y.abs().sum()) >= 0 else y.tanh()
        if self.way == "dict-inside":
            parts = dict(zip("ab", y.chunk(2, -1), strict=True))
            return torch.cat([value * 0.5 if name == "a" else value for name, value in parts.items()], -1)
        return y

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        if self.way == "loop":
            return torch.stack([self.out(self.into(x[:, i]).relu()) for i in range(x.shape[1])], 1)
        if self.way == "list-state":
            states: list[Tensor] = []
            for i in range(x.size(1)):
                states = [*states, self.into(x[:, i])]
            return self.out(torch.tanh(torch.stack(states, dim=1)))
        return self.out(self.mixed(self.into(x)))
