"""Small convolutional networks made from data: a `Program` is drawn, printed and shrunk; `build` makes it a module.

A program prints as the Python that makes it again. Every block learns its sizes by running on a tensor of the shape
that enters it, so that any sequence of steps is a valid network: what a step cannot use of `width` and `pick` it
takes modulo what is possible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """One block: its kind, a number of channels, which variant, and what happens inside (two branches)."""

    kind: str
    width: int = 2
    pick: int = 0
    first: tuple[Step, ...] = ()
    second: tuple[Step, ...] = ()

    def __repr__(self) -> str:
        inner = f", {self.first!r}, {self.second!r}" if self.first or self.second else ""
        return f"Step({self.kind!r}, {self.width}, {self.pick}{inner})"


@dataclass(frozen=True)
class Program:
    """A network: stem width, blocks, head variant, size of the input images, seed of all numbers."""

    stem: int = 4
    steps: tuple[Step, ...] = ()
    head: int = 0
    height: int = 4
    seed: int = 0


Blocks = dict[str, Callable[[Step, Tensor], nn.Module]]
PLAIN: Blocks = {}
NESTED: Blocks = {}
SPATIAL: Blocks = {}
STATISTIC: Blocks = {}
ODD: Blocks = {}
EFFECTS: Blocks = {}
WIDEST = 16


def block(kind: str, table: Blocks = PLAIN) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a kind of block: PLAIN keeps the spatial size, SPATIAL does not, NESTED has insides; STATISTIC may be
    inexact, ODD locks channels, EFFECTS do what a traced graph cannot express (`networks_effects.py`).
    """

    def register(made: type[nn.Module]) -> type[nn.Module]:
        table[kind] = made
        return made

    return register


def divisor(c: int, pick: int) -> int:
    """One of the divisors of c, larger than 1 where there is a choice."""
    choices = [d for d in range(2, c + 1) if c % d == 0] or [1]
    return choices[pick % len(choices)]


# -- layers ---------------------------------------------------------------------------------------------------


class FunctionalConv(nn.Module):
    """A convolution whose weight is a parameter of a module that torch does not know."""

    def __init__(self, c: int, out: int, groups: int = 1) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(out, c // groups, 3, 3))
        self.shift = nn.Parameter(torch.zeros(out))
        self.conv_groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, self.shift, padding=1, groups=self.conv_groups)


@block("conv")
class Conv(nn.Module):
    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        c, out = x.shape[1], step.width
        variants: list[Callable[[], nn.Module]] = [
            lambda: nn.Conv2d(c, out, 3, padding=1),
            lambda: nn.Conv2d(c, out, 1, bias=False),
            lambda: nn.Conv2d(c, out, 3, padding=1, padding_mode="circular"),
            lambda: nn.Conv2d(c, out, 3, padding="same", dilation=2, bias=False),
            lambda: nn.ConvTranspose2d(c, out, 3, padding=1),
            lambda: FunctionalConv(c, out),
        ]
        self.conv = variants[step.pick % len(variants)]()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@block("norm")
class Norm(nn.Module):
    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(x.shape[1], affine=step.pick % 4 != 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x)


ACTIVATIONS = (nn.ReLU(), torch.sigmoid, F.silu, nn.GELU(), torch.tanh, F.softplus, nn.ReLU6(), F.leaky_relu)


@block("act")
class Act(nn.Module):
    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.act = ACTIVATIONS[step.pick % len(ACTIVATIONS)]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


@block("prelu")
class PReLU(nn.Module):
    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.act = nn.PReLU(x.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


@block("grouped")
class Grouped(nn.Module):
    """A grouped convolution, as a module, transposed, or as a function."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        c = x.shape[1]
        groups = divisor(c, step.pick)
        out = groups * max(1, step.width // 2)
        if step.pick % 3 == 1:
            self.conv: nn.Module = nn.ConvTranspose2d(c, out, 3, padding=1, groups=groups, bias=False)
        elif step.pick % 3 == 2:
            self.conv = FunctionalConv(c, out, groups)
        else:
            self.conv = nn.Conv2d(c, out, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@block("depthwise")
class Depthwise(nn.Module):
    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        c = x.shape[1]
        self.conv = nn.Conv2d(c, c * (1 + step.pick % 2), 3, padding=1, groups=c, bias=step.width % 2 == 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@block("pointwise")
class Pointwise(nn.Module):
    """A linear layer over channels that are last, or a product with a raw parameter."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        c, self.variant = x.shape[1], step.pick % 3
        if self.variant == 0:
            self.linear = nn.Linear(c, step.width)
        else:
            self.matrix = nn.Parameter(torch.zeros(c, step.width))

    def forward(self, x: Tensor) -> Tensor:
        if self.variant == 0:
            return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.variant == 1:
            return torch.einsum("nchw,cd->ndhw", x, self.matrix)
        n, _, h, w = x.shape
        return (x.flatten(2).transpose(1, 2) @ self.matrix).transpose(1, 2).reshape(n, -1, h, w)


@block("shared")
class Shared(nn.Module):
    """One module called twice."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(x.shape[1], x.shape[1], 3, padding=1, bias=step.pick % 2 == 0)
        self.bn = nn.BatchNorm2d(x.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(F.relu(self.bn(self.conv(x)))))


@block("tied")
class Tied(nn.Module):
    """Two modules that share a parameter."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        c = x.shape[1]
        self.there = nn.Conv2d(c, step.width, 1)
        self.back = nn.ConvTranspose2d(step.width, c, 1)
        self.back.weight = self.there.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.back(torch.tanh(self.there(x)))


@block("scale")
class Scale(nn.Module):
    """Raw parameters, broadcast in several ways."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        c, self.variant = x.shape[1], step.pick % 4
        self.gamma = nn.Parameter(torch.zeros(((c,), (1, c, 1, 1), (c, 1, 1), (1,))[self.variant]))
        self.beta = nn.Parameter(torch.zeros(c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.gamma[None, :, None, None] if self.variant == 0 else self.gamma
        return x * gamma + self.beta


@block("excite")
class Excite(nn.Module):
    """Squeeze and excite, with 1 x 1 convolutions or linear layers."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        c, self.linear = x.shape[1], step.pick % 2 == 1
        made = (lambda i, o: nn.Linear(i, o)) if self.linear else (lambda i, o: nn.Conv2d(i, o, 1))
        self.down, self.up = made(c, step.width), made(step.width, c)

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            scale = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
            return x * scale.view(x.size(0), x.size(1), 1, 1)
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


# -- channels that move ---------------------------------------------------------------------------------------


@block("shuffle")
class Shuffle(nn.Module):
    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.c, self.h, self.w = x.shape[1:]
        self.groups, self.variant = divisor(self.c, step.width), step.pick % 5
        self.module = nn.ChannelShuffle(self.groups)

    def forward(self, x: Tensor) -> Tensor:
        g = self.groups
        if self.variant == 0:
            return x.view(-1, g, self.c // g, self.h, self.w).transpose(1, 2).reshape(-1, self.c, self.h, self.w)
        if self.variant == 1:
            n, c, h, w = x.shape
            return x.view(n, g, c // g, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        if self.variant == 2:
            n, c, h, w = x.size()
            return x.reshape(n, g, -1, h, w).permute(0, 2, 1, 3, 4).flatten(1, 2)
        if self.variant == 3:
            return x.unflatten(1, (g, -1)).transpose(1, 2).reshape(x.shape)
        return self.module(x)


@block("move")
class Move(nn.Module):
    """Roll, flip, permutations as list, slice pair and buffer."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        c, self.variant, self.shift = x.shape[1], step.pick % 7, step.width
        order = torch.randperm(c, generator=torch.Generator().manual_seed(step.width))
        self.order = order.tolist()
        self.cut = step.width % c
        if self.variant in (3, 4):
            self.register_buffer("positions", order)

    def forward(self, x: Tensor) -> Tensor:
        if self.variant == 0:
            return torch.roll(x, self.shift, 1)
        if self.variant == 1:
            return x.flip(1)
        if self.variant == 2:
            return x[:, self.order]
        if self.variant == 3:
            return x[:, self.positions]
        if self.variant == 4:
            return torch.index_select(x, 1, self.positions)
        if self.variant == 5:
            return torch.cat([x[:, self.cut :], x[:, : self.cut]], 1)
        return torch.roll(x, (-self.shift, 1), (1, 2))


@block("pad")
class Pad(nn.Module):
    """More channels: zeros, constants, repetition."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.before, self.after, self.variant = step.width % 3, 1 + step.width % 2, step.pick % 5

    def forward(self, x: Tensor) -> Tensor:
        if self.variant == 0:
            return F.pad(x, (0, 0, 0, 0, self.before, self.after))
        if self.variant == 1:
            return F.pad(x, (0, 0, 0, 0, self.after, self.before), value=0.7)
        if self.variant == 2:
            return x.repeat(1, 2, 1, 1)
        if self.variant == 3:
            return torch.cat([x, x.new_zeros(x.shape[0], 2, x.shape[2], x.shape[3])], 1)
        return x.repeat_interleave(2, dim=1)


@block("drop")
class Drop(nn.Module):
    """Fewer channels: a slice, a stride, negative padding, narrow."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.keep, self.variant = max(2, x.shape[1] - step.width), step.pick % 5
        self.many = x.shape[1] > 3

    def forward(self, x: Tensor) -> Tensor:
        if self.variant == 0 or not self.many:
            return x[:, : self.keep]
        if self.variant == 1:
            return x[:, ::2]
        if self.variant == 2:
            return x[:, -self.keep :]
        if self.variant == 3:
            return F.pad(x, (0, 0, 0, 0, -1, 0))
        return x.narrow(1, 1, x.shape[1] - 1)


@block("gate")
class Gate(nn.Module):
    """Halves that are multiplied."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(x.shape[1], 2 * step.width, 1)
        self.width, self.variant = step.width, step.pick % 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.variant == 0:
            a, b = x.chunk(2, 1)
            return a * torch.sigmoid(b)
        if self.variant == 1:
            return F.glu(x, 1)
        if self.variant == 2:
            a, b = x.split(self.width, 1)
            return F.silu(a) * b
        return x[:, : self.width] * torch.tanh(x[:, self.width :])


@block("pick")
class Pick(nn.Module):
    """Single channels, interleaved copies, sums over blocks, products of channels with channels."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        c, self.variant = x.shape[1], step.pick % 10
        self.one, self.groups, self.few = step.width % c, divisor(c, step.width), c <= 4

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if self.variant == 0:
            return torch.stack([x, torch.tanh(x)], 2).flatten(1, 2)
        if self.variant == 1:
            return x * x[:, self.one : self.one + 1]
        if self.variant == 2:
            return x + x[:, self.one].unsqueeze(1)
        if self.variant == 3:
            return x.unsqueeze(1).expand(-1, 2, -1, -1, -1).reshape(n, 2 * c, h, w)
        if self.variant == 4:
            return x.view(n, self.groups, c // self.groups, h, w).sum(1)
        if self.variant == 5:
            return torch.stack(x.unbind(1), 1) * 0.5
        if self.variant == 6 and self.few:
            return (x[:, :, None] * x[:, None]).flatten(1, 2)
        if self.variant == 7:
            return F.unfold(x, 3, padding=1).view(n, c, 9, h, w).sum(2)
        if self.variant == 8:
            return torch.where(x > 0, x, x.flip(1))
        return torch.cat([x, x], 1)


@block("in_place")
class InPlace(nn.Module):
    """Writes into the tensor or into a part of it."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        c, self.variant = x.shape[1], step.pick % 7
        self.cut = 1 + step.width % c
        self.gain = nn.Parameter(torch.zeros(c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.gain
        if self.variant == 0:
            return F.relu(y, inplace=True)
        if self.variant == 1:
            y[:, : self.cut].mul_(2.0)
        elif self.variant == 2:
            y.narrow(1, 0, self.cut).zero_()
        elif self.variant == 3:
            y.add_(0.5).sigmoid_()
        elif self.variant == 4:
            y[:, : self.cut].copy_(x[:, : self.cut])
        elif self.variant == 5:
            y = torch.zeros_like(x)
            y[:, 1:].add_(x[:, :-1])
        else:
            y[:, : self.cut].fill_(0.3)
        return y


@block("weights", STATISTIC)
class Weights(nn.Module):
    """A convolution whose weight is computed from parameters."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        c, out, self.variant = x.shape[1], step.width, step.pick % 7
        self.out = out
        self.a = nn.Parameter(torch.zeros(out + 2 * (self.variant == 3), c, 3, 3))
        if self.variant == 1:
            self.a = nn.Parameter(torch.zeros(out, 3))
        self.b = nn.Parameter(torch.zeros(((out, c, 1, 1), (3, c), (out, c, 1, 1), (out,))[min(self.variant, 3)]))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a, self.b
        if self.variant == 0:
            weight = (a - a.mean((1, 2, 3), keepdim=True)) / (a.std((1, 2, 3), keepdim=True) + 0.1) + b
        elif self.variant == 1:
            return F.conv2d(x, (a @ b)[:, :, None, None])
        elif self.variant == 2:
            weight = a + F.pad(b, (1, 1, 1, 1))
        elif self.variant == 3:
            weight = a[: self.out] * b.view(-1, 1, 1, 1)
        elif self.variant == 4:
            weight = F.softplus(a)
        elif self.variant == 5:
            weight = torch.cat([a, a.flip(1)], 0)
        else:
            weight = a / a.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return F.conv2d(x, weight, padding=1)


# -- insides --------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Blocks one after the other. One that grew too wide is made narrow again."""

    def __init__(self, steps: Sequence[Step], x: Tensor) -> None:
        super().__init__()
        kinds = {**PLAIN, **NESTED, **SPATIAL, **STATISTIC, **ODD, **EFFECTS}
        made: list[nn.Module] = []
        for step in steps:
            made.append(kinds[step.kind](step, x))
            x = made[-1](x)
            if x.shape[1] > WIDEST:
                made.append(nn.Conv2d(x.shape[1], 5, 1))
                x = made[-1](x)
        self.body = nn.Sequential(*made)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def chain_to(steps: Sequence[Step], x: Tensor, channels: int) -> nn.Module:
    """Blocks that end with `channels` channels."""
    chain = Chain(steps, x)
    have = chain(x).shape[1]
    return chain if have == channels else nn.Sequential(chain, nn.Conv2d(have, channels, 1))


@block("residual", NESTED)
class Residual(nn.Module):
    """x + f(x), where f may be a mere movement of channels; in place, stacked and summed, or with a projection."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.variant = step.pick % 4
        out = step.width if self.variant == 3 else x.shape[1]
        self.body = chain_to(step.first, x, out)
        self.shortcut = nn.Conv2d(x.shape[1], out, 1, bias=False) if self.variant == 3 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.variant == 1:
            return torch.stack([x, y], 0).sum(0)
        if self.variant == 2:
            y = y * 1.5
            y += x
            return y
        return F.relu(y + self.shortcut(x))


@block("branches", NESTED)
class Branches(nn.Module):
    """cat(f(x), g(x)), perhaps with x itself between them."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.first, self.second = Chain(step.first, x), Chain(step.second, x)
        self.dense = step.pick % 3 == 2

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        return torch.cat([a, x, b] if self.dense else (a, b), dim=1)


@block("split", NESTED)
class Split(nn.Module):
    """Parts of the channels go through different blocks and come together again."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.c, self.variant, self.swap = x.shape[1], step.pick % 7, step.pick % 2 == 1
        self.cut = max(1, min(self.c - 1, step.width))
        self.trivial = self.c < 2
        parts = self.parts(x)
        self.first, self.second = Chain(step.first, parts[0]), Chain(step.second, parts[1])

    def parts(self, x: Tensor) -> Sequence[Tensor]:
        c, cut = self.c, self.cut
        if self.trivial:
            return x, x
        if self.variant == 0:
            return x.chunk(2, dim=1)
        if self.variant == 1:
            return x.split([cut, c - cut], dim=1)
        if self.variant == 2:
            return x[:, :cut], x[:, cut:]
        if self.variant == 3:
            return x.split(-(-c // 2), 1)
        if self.variant == 4:
            return x.tensor_split(2, dim=1)
        if self.variant == 5:
            half = x.shape[1] // 2
            return x[:, :half], x[:, half:]
        return x.narrow(1, 0, cut), x.narrow(1, cut, c - cut)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.parts(x)
        a, b = self.first(parts[0]), self.second(parts[1])
        return torch.cat([b, a] if self.swap else [a, b], 1)


# -- space ----------------------------------------------------------------------------------------------------


@block("pool", SPATIAL)
class Pool(nn.Module):
    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        variants = [
            nn.MaxPool2d(2, ceil_mode=True),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.AdaptiveAvgPool2d((3, 2)),
            nn.Conv2d(x.shape[1], step.width, 3, stride=2, padding=1),
            nn.AdaptiveMaxPool2d(2),
        ]
        self.pool = variants[step.pick % len(variants)]

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


@block("grow", SPATIAL)
class Grow(nn.Module):
    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.variant = step.pick % 5 if x.shape[2] <= 6 else 4
        out = (x.shape[1], x.shape[1], 4 * step.width, step.width, step.width)[self.variant]
        conv = nn.ConvTranspose2d(x.shape[1], out, 2, stride=2) if self.variant == 3 else nn.Conv2d(x.shape[1], out, 1)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.variant == 0:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        if self.variant == 1:
            return F.interpolate(x, size=(5, 6), mode="bilinear", align_corners=False)
        if self.variant == 2:
            return F.pixel_shuffle(x, 2)
        if self.variant == 4:
            return F.pixel_unshuffle(F.adaptive_avg_pool2d(x, (4, 2)), 2)
        return x


# -- statistics -----------------------------------------------------------------------------------------------


@block("group_norm", STATISTIC)
class GroupNorm(nn.Module):
    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        groups = 1 if step.pick % 3 == 2 else divisor(x.shape[1], step.pick)
        self.norm = nn.GroupNorm(groups, x.shape[1], affine=step.width % 3 != 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


@block("layer_norm", STATISTIC)
class LayerNorm(nn.Module):
    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.variant = step.pick % 3
        self.norm = nn.LayerNorm(x.shape[1]) if self.variant < 2 else nn.LayerNorm(x.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        if self.variant == 0:
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.variant == 1:
            y = F.layer_norm(x.movedim(1, -1), self.norm.normalized_shape, self.norm.weight, self.norm.bias)
            return y.movedim(-1, 1)
        return self.norm(x)


@block("instance_norm", STATISTIC)
class InstanceNorm(nn.Module):
    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        tracked = step.pick % 3 == 2
        self.norm = nn.InstanceNorm2d(x.shape[1], affine=step.pick % 3 > 0, track_running_stats=tracked)
        self.grown = nn.Identity() if x.shape[2] * x.shape[3] > 1 else nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.grown(x))


@block("over_channels", STATISTIC)
class OverChannels(nn.Module):
    """Statistics over the channels themselves."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.variant, self.pairs = step.pick % 5, divisor(x.shape[1], step.width)

    def forward(self, x: Tensor) -> Tensor:
        if self.variant == 0:
            return x - x.mean(1, keepdim=True)
        if self.variant == 1:
            return x.softmax(1)
        if self.variant == 2:
            return x * torch.sigmoid(x.amax(1, keepdim=True))
        if self.variant == 3:
            return torch.cat([x, x.sum(1, keepdim=True)], 1)
        n, c, h, w = x.shape
        return x.view(n, self.pairs, c // self.pairs, h, w).amax(1)


@block("attention", STATISTIC)
class Attention(nn.Module):
    """Heads over positions, with literal or computed head sizes."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        c = x.shape[1]
        self.heads, self.literal = 1 + step.pick % 3, step.pick % 2 == 1
        self.width = self.heads * step.width
        self.qkv = nn.Linear(c, 3 * self.width)
        self.out = nn.Linear(self.width, c)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        if self.literal:
            q, k, v = (t.view(n, h * w, self.heads, self.width // self.heads).transpose(1, 2) for t in (q, k, v))
        else:
            q, k, v = (t.reshape(n, -1, self.heads, t.shape[-1] // self.heads).transpose(1, 2) for t in (q, k, v))
        mixed = ((q @ k.transpose(-2, -1)) * 0.4).softmax(-1) @ v
        mixed = mixed.transpose(1, 2).reshape(n, h * w, self.width if self.literal else -1)
        return self.out(mixed).transpose(1, 2).reshape(n, c, h, w)


# -- operations that hold channels back -----------------------------------------------------------------------


@block("odd", ODD)
class Odd(nn.Module):
    """Operations that mix channels by position or by value: without a rule, or with one that refuses."""

    def __init__(self, step: Step, x: Tensor) -> None:
        super().__init__()
        self.variant = step.pick % 9

    def forward(self, x: Tensor) -> Tensor:
        if self.variant == 0:
            return torch.fft.fft(x, dim=1).real
        if self.variant == 1:
            return x.sort(1).values
        if self.variant == 2:
            return x.cumsum(1) * 0.3
        if self.variant == 3:
            flat = x.flatten(2)
            return torch.bmm(torch.tanh(torch.bmm(flat, flat.transpose(1, 2))), flat).view(x.shape)
        if self.variant == 4:
            return x[:, x.mean((0, 2, 3)).argsort()]
        if self.variant == 5:
            return x * torch.arange(x.shape[1]).view(1, -1, 1, 1)
        if self.variant == 6:
            return torch.gather(x, 1, x.argsort(1))
        if self.variant == 7:
            return x.transpose(1, 2).tril().transpose(1, 2)
        return x.reshape(x.shape[0], x.shape[2], -1, x.shape[3]).transpose(1, 2).cos()


# -- the whole network ----------------------------------------------------------------------------------------


class Head(nn.Module):
    """Features to outputs: average or flatten and one or two linear layers, or the features themselves."""

    def __init__(self, variant: int, x: Tensor) -> None:
        super().__init__()
        self.variant = variant % HEADS
        self.c, self.h, self.w = x.shape[1:]
        features = self.features(x)
        if features.ndim == 2:
            self.hidden = nn.Linear(features.shape[1], 5) if self.variant % 2 else nn.Identity()
            self.bn = nn.BatchNorm1d(5) if self.variant % 2 else nn.Identity()
            self.last: nn.Module = nn.Linear(5 if self.variant % 2 else features.shape[1], 3)
        else:
            self.hidden, self.bn, self.last = nn.Identity(), nn.Identity(), nn.Conv2d(self.c, 3, 1)

    def features(self, x: Tensor) -> Tensor:
        if self.variant == 0:
            return x.mean((2, 3))
        if self.variant == 1:
            return torch.flatten(x, 1)
        if self.variant == 2:
            return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)
        if self.variant == 3:
            return x.contiguous().view(x.size(0), -1)
        if self.variant == 4:
            return x.reshape(-1, self.c * self.h * self.w)
        if self.variant == 5:
            return F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)
        if self.variant == 6:
            return x.flatten(2).transpose(1, 2).flatten(1)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.bn(self.hidden(self.features(x)))))


HEADS = 8


class Network(nn.Module):
    """A program as a module. `rename` gives every block another name."""

    def __init__(self, program: Program, rename: Callable[[str], str] = str) -> None:
        super().__init__()
        x = torch.zeros(2, 3, program.height, program.height + 1)
        made: dict[str, nn.Module] = {"stem": nn.Conv2d(3, program.stem, 3, padding=1)}
        x = made["stem"](x)
        for number, step in enumerate(program.steps):
            made[f"{step.kind}{number}"] = chain = Chain((step,), x)
            x = chain(x)
        made["head"] = Head(program.head, x)
        self.order = [rename(name) for name in made]
        for name, module in zip(self.order, made.values(), strict=True):
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x)
        return x


def randomize(net: nn.Module, seed: int) -> nn.Module:
    """Every parameter and statistic gets numbers of both signs, weights such that activations keep their size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in net.parameters():
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
            scale = max(fan_in, 1) ** -0.5 * (1.5 if tensor.ndim > 1 else 0.8)
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * scale)
        for name, buffer in net.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
            elif buffer.is_floating_point():
                buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
    return net


def build(program: Program, rename: Callable[[str], str] = str) -> nn.Module:
    """The network of a program, float64, evaluation mode."""
    with torch.random.fork_rng(), torch.no_grad():
        net = Network(program, rename).eval()
    return randomize(net.double(), program.seed)


def images(program: Program, seed: int = 0, batch: int = 2) -> Tensor:
    """An input of the network."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(batch, 3, program.height, program.height + 1, generator=generator, dtype=torch.float64)


# -- drawing --------------------------------------------------------------------------------------------------


def chains(kinds: Sequence[str], depth: int, longest: int) -> st.SearchStrategy[tuple[Step, ...]]:
    """Sequences of steps; `depth` levels of nesting are left."""
    widths, picks = st.integers(2, 6), st.integers(0, 13)
    step: st.SearchStrategy[Step] = st.builds(Step, st.sampled_from(kinds), widths, picks)
    if depth:
        insides = [k for k in kinds if k not in SPATIAL]
        inner = chains(insides, depth - 1, 2)
        step = step | st.builds(Step, st.sampled_from(list(NESTED)), widths, picks, inner, inner)
    return st.lists(step, max_size=longest).map(tuple)


def programs(*, longest: int = 5) -> st.SearchStrategy[Program]:
    """Random networks."""
    kinds = [*PLAIN, *SPATIAL, *STATISTIC, *ODD]
    return st.builds(
        Program,
        stem=st.integers(2, 7),
        steps=chains(kinds, 2, longest),
        head=st.integers(0, HEADS - 1),
        height=st.integers(3, 6),
        seed=st.integers(0, 99),
    )
