"""Blocks that do what a traced graph cannot express: modes, contexts, state, gradients of their own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from networks import EFFECTS, HEADS, PLAIN, Program, Step, block, chains
from torch import Tensor, nn


class _Scaled(torch.autograd.Function):
    """Twice the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


class _Conv(nn.Module):
    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.conv, self.variant = nn.Conv2d(x.shape[1], step.width, 1), step.pick


@block("mode", EFFECTS)
class Mode(_Conv):
    """Functional dropout, or another course in training."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.variant % 3 == 0:
            return F.dropout(y, 0.3, self.training)
        if self.variant % 3 == 1:
            return F.dropout2d(y, 0.3, self.training)
        return y * 2 if self.training else y


@block("gradient", EFFECTS)
class Gradient(_Conv):
    """A function with a backward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return _Scaled.apply(self.conv(x))


@block("context", EFFECTS)
class Context(_Conv):
    """A part without gradients, or with gradients although they are off."""

    def forward(self, x: Tensor) -> Tensor:
        if self.variant % 3 == 0:
            with torch.no_grad():
                y = self.conv(x)
            return y * (1 + x.mean())
        if self.variant % 3 == 1:
            with torch.enable_grad():
                return self.conv(x)
        with torch.autocast("cpu", enabled=False):
            return self.conv(x)


@block("state", EFFECTS)
class State(_Conv):
    """A forward that counts its calls, or keeps what it computed."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__(step, x)
        self.calls, self.kept = 0, dict[str, Any]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.variant % 2:
            self.calls += 1
        else:
            self.kept["last"] = y.detach()
        return y


@block("noise", EFFECTS)
class Noise(_Conv):
    """Numbers that are drawn in forward, in training only."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * torch.rand(1) if self.training else y


@block("hooked", EFFECTS)
class Hooked(nn.Module):
    """A block with a hook before, after, or behind its forward."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(x.shape[1], step.width, 1))
        if step.pick % 3 == 0:
            self.inner.register_forward_hook(lambda module, args, out: out * 2)
        elif step.pick % 3 == 1:
            self.inner.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        else:
            self.inner.register_full_backward_hook(lambda module, into, out: (into[0] * 3,))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def programs_with_effects(*, longest: int = 4) -> st.SearchStrategy[Program]:
    """Random networks with such blocks, some of them in nested blocks."""
    return st.builds(
        Program,
        stem=st.integers(2, 7),
        steps=chains([*EFFECTS, *EFFECTS, *PLAIN], 2, longest),
        head=st.integers(0, HEADS - 1),
        height=st.integers(3, 6),
        seed=st.integers(0, 99),
    )
