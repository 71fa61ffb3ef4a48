"""Parts with modes, state, contexts and hooks."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from networks_layers import Choices
from networks_parts import Part, part
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Pair(Part):
    """Two linear layers; what lies between them is the part."""

    kinds = "plain"

    def make(self, choose: Choices, x: Tensor) -> None:
        c, self.width = x.shape[-1], choose.number(3, 6)
        self.way = choose.of("way", self.kinds)
        self.up, self.down = nn.Linear(c, self.width), nn.Linear(self.width, c)
        self.more(choose, x)

    def more(self, choose: Choices, x: Tensor) -> None:
        """Make what the part has besides."""


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Whole examples become zero."""
    if not training or rate == 0.0:
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    return x * x.new_empty(shape).bernoulli_(1 - rate).div_(1 - rate)


class FrozenNorm(nn.BatchNorm1d):
    """A batch norm that stays in evaluation mode."""

    def train(self, mode: bool = True) -> FrozenNorm:
        return super().train(False)


@part("mode")
class Mode(Pair):
    """Code that runs in one mode only."""

    kinds = "dropout module branch layer early path noise batchnorm inverse nested frozen count annealed"

    def more(self, choose: Choices, x: Tensor) -> None:
        if self.way == "module":
            self.dropout = nn.Dropout(0.2)
        if self.way in ("layer", "inverse", "nested"):
            self.extra = nn.Linear(self.width, self.width)
        if self.way == "batchnorm":
            self.norm = nn.BatchNorm1d(self.width)
        if self.way == "frozen":
            self.norm = FrozenNorm(self.width)
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        if self.way == "dropout":
            y = F.dropout(y, 0.2, self.training)
        elif self.way == "module":
            y = self.dropout(y)
        elif self.way == "branch" and self.training:
            y = y * 2 + 1
        elif self.way == "layer" and self.training:
            y = y + self.extra(y)
        elif self.way == "inverse" and not self.training:
            y = F.relu(self.extra(y))
        elif self.way == "nested":
            y = self.extra(y) if self.extra.training else y
        elif self.way == "noise" and self.training:
            y = y + torch.randn_like(y) * 0.1
        elif self.way == "count" and self.training:
            self.steps += 1
        elif self.way == "annealed":
            y = y * (1.0 / (1 + self.steps) if self.training else 1.0)
            self.steps += int(self.training)
        elif self.way in ("batchnorm", "frozen"):
            y = self.norm(y.transpose(1, 2)).transpose(1, 2)
        y = self.down(y)
        if self.way == "path":
            y = x + drop_path(y, 0.25, self.training)
        if self.way == "early" and not self.training:
            return x
        return y


@part("state")
class State(Pair):
    """State that one call leaves for the next."""

    kinds = "calls last hidden table mean trace memory counted list"

    def more(self, choose: Choices, x: Tensor) -> None:
        self.calls, self.previous, self.tables, self.kept = 0, None, dict[Any, Tensor](), list[Tensor]()
        if self.way == "mean":
            self.register_buffer("mean", torch.zeros(self.width))
        if self.way == "counted":
            self.register_buffer("count", torch.zeros(()))
        if self.way == "memory":
            self.register_buffer("memory", torch.zeros(1, self.width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        if self.way == "calls":
            self.calls += 1
            y = y * self.calls
        elif self.way == "last":
            self.last = y.detach()
        elif self.way == "hidden":
            if self.previous is not None and self.previous.shape == y.shape:
                y = y + 0.5 * self.previous
            self.previous = y.detach()
        elif self.way == "table":
            key = (y.shape[1], y.shape[2])
            if key not in self.tables:
                self.tables[key] = torch.arange(y.shape[1], dtype=y.dtype)[:, None].sin().expand(key).clone()
            y = y + self.tables[key]
        elif self.way == "mean":
            if self.training:
                with torch.no_grad():
                    self.mean.mul_(0.9).add_(y.mean((0, 1)), alpha=0.1)
            y = y - self.mean
        elif self.way == "trace":
            self.kept.append(y.mean())
        elif self.way == "memory":
            y = y + self.memory
            self.memory = y.detach().mean(1)[:1]
        elif self.way == "counted":
            self.count += 1
            y = y * self.count
        elif self.way == "list":
            self.kept[:] = [y.detach()]
        return self.down(y)

    def reset(self) -> None:
        self.previous, self.calls = None, 0
        self.kept.clear()


class _Twice(torch.autograd.Function):
    """Twice the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


@part("context")
class Context(Pair):
    """Gradients off, on, of its own or computed again; automatic types."""

    kinds = "no-grad enable autocast checkpoint function set-grad decorated detach record device forked saved stack"

    @torch.no_grad()
    def fixed(self, y: Tensor) -> Tensor:
        return torch.sigmoid(y.mean(1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "no-grad":
            with torch.no_grad():
                y = self.up(x)
            y = y * (1 + x.mean())
        elif self.way == "enable":
            with torch.enable_grad():
                y = self.up(x)
        elif self.way == "autocast":
            with torch.autocast("cpu", enabled=False):
                y = self.up(x)
        elif self.way == "checkpoint":
            y = checkpoint(self.up, x, use_reentrant=False)
        elif self.way == "set-grad":
            with torch.set_grad_enabled(self.training):
                y = self.up(x)
        elif self.way == "record":
            with torch.profiler.record_function("up"):
                y = self.up(x)
        elif self.way == "device":
            with torch.device("cpu"):
                y = self.up(x) + torch.ones((), dtype=x.dtype)
        elif self.way == "forked":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.width)
                y = self.up(x) + torch.rand((), dtype=x.dtype)
        elif self.way == "saved":
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
                y = self.up(x)
        elif self.way == "stack":
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
                y = self.up(x)
        else:
            y = self.up(x)
        if self.way == "function":
            y = _Twice.apply(y)
        elif self.way == "decorated":
            y = y * self.fixed(y)
        elif self.way == "detach":
            y = y * torch.sigmoid(y.detach())
        return self.down(y)


@part("hook")
class Hook(Pair):
    """Hooks of modules and of parameters."""

    kinds = "after before bound behind kwargs parameter frozen root none mask"

    def more(self, choose: Choices, x: Tensor) -> None:
        if self.way == "after":
            self.up.register_forward_hook(lambda module, args, out: out * 2)
        elif self.way == "before":
            self.down.register_forward_pre_hook(lambda module, args: (args[0] + 0.5,))
        elif self.way == "bound":
            self.up.register_forward_hook(self.seen)
        elif self.way == "behind":
            self.up.register_full_backward_hook(lambda module, into, out: (into[0] * 3,))
        elif self.way == "kwargs":
            self.up.register_forward_hook(lambda module, args, kwargs, out: torch.tanh(out), with_kwargs=True)
        elif self.way == "parameter":
            self.up.weight.register_hook(double)
        elif self.way == "frozen":
            self.up.weight.requires_grad_(False)
        elif self.way == "root":
            self.register_forward_hook(lambda module, args, out: out + args[0])
        elif self.way == "mask":
            self.register_buffer("gains", torch.zeros(self.width))
            self.up.register_forward_hook(self.scaled)
        self.norms: list[float] = []

    def seen(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self.width_seen = out.shape[-1]

    def scaled(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return out * self.gains

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.sigmoid(self.up(x)))


def double(gradient: Tensor) -> Tensor:
    return gradient * 2


@part("one")
class One(Pair):
    """A layer with one output, behind a hook or not: a gate, a score, a sum over positions."""

    kinds = "gate score weights squeeze add"

    def more(self, choose: Choices, x: Tensor) -> None:
        hook = choose.of("hook", "none after before")
        self.single = nn.Linear(self.width, 1)
        if hook == "after":
            self.single.register_forward_hook(lambda module, args, out: torch.tanh(out))
        elif hook == "before":
            self.single.register_forward_pre_hook(lambda module, args: (args[0] * 2,))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        one = self.single(y)
        if self.way == "gate":
            y = y * torch.sigmoid(one)
        elif self.way == "score":
            y = y * one.softmax(1)
        elif self.way == "weights":
            y = y + (one.transpose(1, 2).softmax(-1) @ y)
        elif self.way == "squeeze":
            y = y * one.squeeze(-1)[:, :, None]
        else:
            y = y + one
        return self.down(y)
