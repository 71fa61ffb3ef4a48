"""Small networks over tokens made from data: `Tokens` says the layers, the way in and out, what forward decides."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import networks_attention
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from networks import randomize
from networks_layers import TOKENS, Block, Choices, Layer, TokenProgram, kind
from torch import Tensor, nn

REGISTERED = (networks_attention,)
"""The modules whose import registers blocks of their own."""

WIDEST = 12
CHANNELS, MEMORY, WORDS = 3, 5, 7
"""Of the input, of the memory, and how many ids there are."""


class Tokens(TokenProgram):
    """A network of blocks over tokens."""


class Chain(nn.Module):
    """Blocks one after the other. One that grew too wide is made narrow again."""

    def __init__(self, layers: Sequence[Layer], x: Tensor, memory: Tensor) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for layer in layers:
            self.blocks.append(TOKENS[layer.kind](layer, x, memory))
            x = self.blocks[-1](x, memory)
            if x.shape[-1] > WIDEST:
                self.blocks.append(TOKENS["resize"](Layer("resize", (0, 2)), x, memory))
                x = self.blocks[-1](x, memory)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, memory)
        return x


@kind("residual")
class Residual(Block):
    """x + f(norm(x)), with layer scale, a gate, or the norm behind; a parallel of two."""

    def make(self, choose: Choices, x: Tensor, memory: Tensor) -> None:
        c = x.shape[-1]
        self.norm = TOKENS["norm"](Layer("norm", (choose.number(0, 9),)), x, memory)
        self.way = choose.of("way", "plain early late scale gate")
        self.body = Chain(choose.inside, x, memory)
        have = self.body(x, memory).shape[-1]
        self.fit = nn.Identity() if have == c else nn.Linear(have, c)
        self.gamma = nn.Parameter(torch.zeros(c))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        y = self.fit(self.body(self.norm(x, memory) if self.way in ("early", "scale") else x, memory))
        if self.way == "scale":
            y = y * self.gamma
        elif self.way == "gate":
            y = y * torch.sigmoid(self.gamma)
        return self.norm(x + y, memory) if self.way == "late" else x + y


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


class TokenNetwork(nn.Module):
    """A program as a module, with a plain hidden layer in its head, whose channels can always be removed."""

    def __init__(self, program: Tokens) -> None:
        super().__init__()
        choose = Choices("net", program.picks)
        self.features = choose.made
        self.source = choose.of("source", "floats ids tied images positions class-token")
        self.given = choose.of("given", "tensors dict optional")
        self.body_way = choose.of("body", "chain loop if collect number sizes")
        self.returned = choose.of("returned", "tensor dict dataclass tuple pair list")
        self.pooled = choose.of("head", "tokens mean first flatten last amax")
        c, n = program.width, program.length
        if self.source in ("ids", "tied"):
            self.stem: nn.Module = nn.Embedding(WORDS, c)
        elif self.source == "images":
            self.stem = nn.Conv2d(CHANNELS, c, 1)
        else:
            self.stem = nn.Linear(CHANNELS, c)
        if self.source in ("positions", "class-token"):
            self.places = nn.Parameter(torch.zeros(1, n + (self.source == "class-token"), c))
        if self.source == "class-token":
            self.token = nn.Parameter(torch.zeros(1, 1, c))
        memory = torch.zeros(2, 3, MEMORY)
        x = self.embedded(blank(program, self.source)[0])
        self.body = Chain(program.layers, x, memory)
        features = self.pool(self.body(x, memory))
        self.hidden = nn.Linear(features.shape[-1], 6)
        self.last = nn.Linear(6, c if self.source == "tied" else 3)

    def embedded(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.source == "images":
            x = x.flatten(2).transpose(1, 2)
        if self.source == "class-token":
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        return x + self.places if self.source in ("positions", "class-token") else x

    def pool(self, x: Tensor) -> Tensor:
        if self.pooled == "tokens":
            return x
        if self.pooled == "mean":
            return x.mean(1)
        if self.pooled == "first":
            return x[:, 0]
        if self.pooled == "last":
            return x[:, -1, :]
        return x.amax(1) if self.pooled == "amax" else x.reshape(x.shape[0], -1)

    def forward(self, x: Any, memory: Tensor | None = None) -> Any:
        if self.given == "dict":
            x, memory = x["x"], x["memory"]
        if memory is None:
            memory = torch.ones(x.shape[0], 3, MEMORY, dtype=torch.float64)
        x = first = self.embedded(x)
        if self.body_way == "loop":
            for block in self.body.blocks:
                x = block(x, memory)
        elif self.body_way == "collect":
            states = [x]
            for block in self.body.blocks:
                states.append(block(states[-1], memory))
            x = states[-1]
        elif (self.body_way == "if" and x.shape[1] < 2) or (self.body_way == "number" and float(x.abs().sum()) < 0):
            x = x * 2
        elif self.body_way == "sizes":
            x = self.body(x, memory).reshape(*x.shape[:2], -1)
        else:
            x = self.body(x, memory)
        x = self.last(F.relu(self.hidden(self.pool(x))))
        if self.source == "tied":
            x = F.linear(x, self.stem.weight)
        return self.wrapped(x, first.sum(-1) if self.returned in ("pair", "tuple") else None)

    def wrapped(self, x: Tensor, hidden: Tensor | None) -> Any:
        if self.returned == "dict":
            return {"logits": x, "more": [x * 2]}
        if self.returned == "dataclass":
            return Output(x)
        if self.returned == "pair":
            return Pair(x, hidden)
        if self.returned == "tuple":
            return x, hidden
        return [x] if self.returned == "list" else x


def blank(program: Tokens, source: str, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random tokens and memory."""
    generator = torch.Generator().manual_seed(2000 + seed)
    n = program.length
    if source in ("ids", "tied"):
        x = torch.randint(0, WORDS, (batch, n), generator=generator)
    else:
        shape = (batch, CHANNELS, 1, n) if source == "images" else (batch, n, CHANNELS)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randn(batch, 3, MEMORY, generator=generator, dtype=torch.float64)


def build_tokens(program: Tokens) -> nn.Module:
    """The network of a program, float64, evaluation mode."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(), torch.no_grad():
            net = TokenNetwork(program).eval()
    finally:
        torch.set_default_dtype(before)
    return randomize(net, program.seed)


def tokens(net: nn.Module, program: Tokens, seed: int = 0, batch: int = 2) -> tuple[Any, ...]:
    """The arguments of a network of that program."""
    x, memory = blank(program, net.source, batch, seed)
    if net.given == "dict":
        return ({"x": x, "memory": memory},)
    return (x,) if net.given == "optional" else (x, memory)


def leaves(value: Any) -> list[Tensor]:
    """The tensors in what a network returns."""
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, (list, tuple)) else []


# -- drawing --------------------------------------------------------------------------------------------------


def numbers(seed: int, kept: Sequence[int]) -> tuple[int, ...]:
    """Random numbers, those not kept 0."""
    generator = random.Random(seed)
    return tuple(generator.randrange(60) * bool(keep) for keep in kept)


PICKS = st.builds(numbers, st.integers(0, 2**32 - 1), st.lists(st.integers(0, 20), min_size=12, max_size=12))
"""Even numbers, as drawn ones are not, each of which still shrinks to 0."""


def layers(kinds: Sequence[str], depth: int, longest: int) -> st.SearchStrategy[tuple[Layer, ...]]:
    """Sequences of layers; `depth` levels of residual branches are left."""
    made: st.SearchStrategy[Layer] = st.builds(Layer, st.sampled_from(kinds), PICKS)
    if depth:
        inside = layers(kinds, depth - 1, 2)
        made = made | st.builds(Layer, st.just("residual"), PICKS, inside)
    return st.lists(made, min_size=1, max_size=longest).map(tuple)


KINDS = (
    "self",
    "self",
    "self",
    "mlp",
    "cross",
    "norm",
    "mix",
    "resize",
    "recurrent",
    "cell",
    "refuse",
    "windows",
    "module",
)


Made = TypeVar("Made", bound=TokenProgram)


def programs_of(made: type[Made], drawn: st.SearchStrategy[tuple[Layer, ...]]) -> st.SearchStrategy[Made]:
    """Random programs of a kind with layers that are drawn."""
    return st.builds(
        made,
        width=st.integers(2, 6),
        layers=drawn,
        picks=PICKS,
        length=st.integers(2, 5),
        seed=st.integers(0, 99),
    )


def token_programs(*, kinds: Sequence[str] = KINDS, longest: int = 3) -> st.SearchStrategy[Tokens]:
    """Random networks over tokens."""
    return programs_of(Tokens, layers(kinds, 1, longest))
