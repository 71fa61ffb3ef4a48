"""Tiny models, one idea each: what a pruner has to get right to be right on real ones.

`GRAPHS` has them all. A graph is its layers, a forward of a line or two, and its inputs. Layers whose name begins with
"head" compute the output: they keep their width. Widths of one graph differ where they can, so that no wrong dimension
fits by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.support import randomise

Layers = Mapping[str, Any]


class Net(nn.Module):
    """The layers, parameters, buffers and numbers of a graph as attributes, and its forward."""

    def __init__(self, layers: Layers, body: Callable[..., Any]) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


@dataclass(frozen=True)
class Graph:
    """One model.

    name: its idea.
    layers: makes the attributes of the model: modules, parameters, buffers (as tensors), numbers.
    body: the forward, of the model and its inputs.
    inputs: makes the inputs.
    heads: name of a layer -> its number of heads, for tools that have to be told.
    mend: writes new widths into the attributes of a pruned model, for tools that leave this to their user.
    """

    name: str
    layers: Callable[[], Layers]
    body: Callable[..., Any]
    inputs: Callable[[], Tensor] = lambda: torch.randn(16, 3, 8, 8)
    heads: Mapping[str, int] = field(default_factory=dict)
    mend: Callable[[Any], None] = lambda _: None

    def build(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The model in float64 and evaluation mode, its statistics, biases and affines random, and its inputs."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            torch.manual_seed(0)
            return randomise(Net(self.layers(), self.body).eval(), 0), (self.inputs(),)
        finally:
            torch.set_default_dtype(before)


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def weight(*shape: int) -> nn.Parameter:
    """A parameter that belongs to no layer."""
    return nn.Parameter(torch.randn(*shape))


def tokens() -> Tensor:
    """Sixteen sequences of six tokens of width 12."""
    return torch.randn(16, 6, 12)


def words() -> Tensor:
    """Sixteen sentences of six words, of a vocabulary of 11."""
    return torch.randint(0, 11, (16, 6))


def pooled(h: Tensor) -> Tensor:
    """The mean over height and width."""
    return h.mean((2, 3))


def tied(layer: nn.Linear, other: nn.Linear) -> nn.Linear:
    """The layer, its weight that of the other one."""
    layer.weight = other.weight
    return layer


def split_heads(h: Tensor, heads: int) -> Tensor:
    """[n, tokens, heads * width] -> [n, heads, tokens, width]."""
    return h.view(h.size(0), h.size(1), heads, -1).transpose(1, 2)


def join_heads(h: Tensor) -> Tensor:
    """[n, heads, tokens, width] -> [n, tokens, heads * width]."""
    return h.transpose(1, 2).flatten(2)


def rotated(h: Tensor) -> Tensor:
    """The second half of the last dimension, negated, and the first: of rotary embeddings."""
    first, second = h.chunk(2, -1)
    return torch.cat((-second, first), -1)


def c2f(m: Any, x: Tensor) -> Tensor:
    """The block of YOLOv8: the halves of a convolution, and what more layers make of the last one, side by side."""
    parts = list(m.a(x).chunk(2, 1))
    parts.extend(layer(parts[-1]) for layer in (m.b, m.c))
    return m.head(torch.cat(parts, 1))


def timm_attention(m: Any, x: Tensor) -> Tensor:
    """The attention of timm: queries, keys and values from one layer, its width written down."""
    n, length, _ = x.shape
    q, k, v = m.qkv(x).reshape(n, length, 3, m.heads, m.width).permute(2, 0, 3, 1, 4).unbind(0)
    h = ((q * m.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
    return m.head(m.out(h.transpose(1, 2).reshape(n, length, m.heads * m.width)))


def grouped_queries(m: Any, x: Tensor) -> Tensor:
    """Attention whose four heads of queries share two heads of keys and values."""
    q, k, v = split_heads(m.q(x), 4), split_heads(m.k(x), 2), split_heads(m.v(x), 2)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    return m.head(m.out(join_heads(F.scaled_dot_product_attention(q, k, v))))


def rotary(m: Any, x: Tensor) -> Tensor:
    """Attention with rotary embeddings, whose tables are buffers as wide as a head."""
    q, k, v = (split_heads(layer(x), 2) for layer in (m.q, m.k, m.v))
    q, k = (t * m.cos + rotated(t) * m.sin for t in (q, k))
    return m.head(m.out(join_heads(F.scaled_dot_product_attention(q, k, v))))


def non_local(m: Any, x: Tensor) -> Tensor:
    """Attention between pixels, added to what it was computed from."""
    h = m.a(x)
    q, k, v = (layer(h).flatten(2) for layer in (m.q, m.k, m.v))
    return m.head(h + m.out((v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)).view(x.size(0), -1, 8, 8)))


def rms(m: Any, x: Tensor) -> Tensor:
    """The root mean square norm, written by hand."""
    h = m.a(x)
    return m.head(h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * m.g)


def spatial_gate(m: Any, x: Tensor) -> Tensor:
    """A gate for each pixel, from the mean and the maximum over the channels."""
    h = m.a(x)
    return m.head(h * m.b(torch.cat((h.mean(1, keepdim=True), h.amax(1, keepdim=True)), 1)).sigmoid())


def cross_attention(m: Any, x: Tensor) -> Tensor:
    """The first three tokens ask the others; one layer makes keys and values."""
    h = m.a(x)
    k, v = m.kv(h[:, 3:]).chunk(2, -1)
    q, k, v = split_heads(m.q(h[:, :3]), 2), split_heads(k, 2), split_heads(v, 2)
    return m.head(h[:, :3] + m.out(join_heads(F.scaled_dot_product_attention(q, k, v))))


def windows(m: Any, x: Tensor) -> Tensor:
    """The windows of Swin: a linear layer mixes the pixels of each, which are then put back."""
    h = m.a(x).permute(0, 2, 3, 1)
    n, height, width, c = h.shape
    h = h.view(n, height // 4, 4, width // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
    h = m.b(h).transpose(1, 2)
    h = m.mix(h).transpose(1, 2).reshape(n, height // 4, width // 4, 4, 4, -1)
    return m.head(h.permute(0, 1, 3, 2, 4, 5).reshape(n, height, width, -1).permute(0, 3, 1, 2))


def standardised(m: Any, x: Tensor) -> Tensor:
    """Weight standardisation: filters of mean 0 and variance 1."""
    deviation, mean = torch.std_mean(m.b.weight, (1, 2, 3), keepdim=True)
    return m.head(F.conv2d(m.a(x).relu(), (m.b.weight - mean) / (deviation + 1e-5), m.b.bias, padding=1).relu())


def channel_attention(m: Any, x: Tensor) -> Tensor:
    """The gate of ECA-Net: a convolution that slides over the channels."""
    h = m.a(x)
    return m.head(h * m.b(pooled(h).unsqueeze(1)).sigmoid().view(x.size(0), -1, 1, 1))


def written_in_place(m: Any, x: Tensor) -> Tensor:
    """Half of the channels are replaced by those of another layer."""
    h = m.a(x).relu()
    h[:, :4] = m.b(x)
    return m.head(h)


def unpooled(m: Any, x: Tensor) -> Tensor:
    """Values go back to the places of their maxima (SegNet)."""
    h, places = F.max_pool2d(m.a(x), 2, return_indices=True)
    return m.head(F.max_unpool2d(m.b(h), places, 2))


def frozen_backbone(m: Any, x: Tensor) -> Tensor:
    """The first layers take no part in training."""
    with torch.no_grad():
        h = m.bn(m.a(x)).relu()
    return m.head(m.b(h))


def frozen(layers: dict[str, Any]) -> dict[str, Any]:
    """The layers, none of which takes part in training."""
    for layer in layers.values():
        layer.requires_grad_(False)
    return layers


def split_in_two(m: Any, x: Tensor) -> Tensor:
    """Two parts of different widths go through different layers."""
    h, g = m.a(x).split((4, 8), 1)
    return m.head(m.b(h) + m.c(g))


def unbound(m: Any, x: Tensor) -> Tensor:
    """Two tensors out of one, by a new dimension."""
    h, g = m.a(x).view(x.size(0), 2, 6, 8, 8).unbind(1)
    return m.head(h * g.tanh())


def res2net(m: Any, x: Tensor) -> Tensor:
    """The parts of a tensor; each layer also sees the result of the one before it."""
    first, second, third = m.a(x).split(4, 1)
    second = m.b(second).relu()
    third = m.c(third + second).relu()
    return m.head(torch.cat((first, second, third), 1))


def shuffle_unit(m: Any, x: Tensor) -> Tensor:
    """The unit of ShuffleNet v2: one half is computed, then the halves take turns."""
    left, right = m.a(x).chunk(2, 1)
    return m.head(F.channel_shuffle(torch.cat((left, m.b(right)), 1), 2))


def selective_kernels(m: Any, x: Tensor) -> Tensor:
    """Two branches, weighted for each channel (SKNet)."""
    h = torch.stack((m.a(x), m.b(x)), 1)
    weights = m.d(m.c(h.sum(1).mean((2, 3))).relu()).view(-1, 2, 8).softmax(1)
    return m.head((h * weights[..., None, None]).sum(1))


def styled(m: Any, x: Tensor) -> Tensor:
    """Scale and shift of an instance norm come from another layer (AdaIN)."""
    scale, shift = m.style(pooled(x)).chunk(2, 1)
    return m.head(F.instance_norm(m.a(x)) * (1 + scale[..., None, None]) + shift[..., None, None])


def experts(m: Any, x: Tensor) -> Tensor:
    """Three small networks as two parameters, weighted by a gate."""
    h = m.a(x).flatten(0, 1)
    made = torch.bmm(torch.bmm(h.expand(3, -1, -1), m.w1).relu(), m.w2)
    return m.head(torch.einsum("eto,te->to", made, m.gate(h).softmax(-1)))


def one_key_for_all(m: Any, x: Tensor) -> Tensor:
    """Attention whose four heads of queries share one head of keys and values."""
    k, v = (layer(x).unsqueeze(1).expand(-1, 4, -1, -1) for layer in (m.k, m.v))
    return m.head(m.out(join_heads(F.scaled_dot_product_attention(split_heads(m.q(x), 4), k, v))))


def state_space(m: Any, x: Tensor) -> Tensor:
    """The outside of a Mamba block: a convolution over time, and a gate."""
    h, gate = m.a(x).chunk(2, -1)
    h = F.silu(m.b(h.transpose(1, 2))[..., :6]).transpose(1, 2)
    return m.head(m.out(h * F.silu(gate)))


def quantised(m: Any, x: Tensor) -> Tensor:
    """Each vector becomes the nearest one of a book."""
    h = m.a(x)
    return m.head(m.book((h.unsqueeze(-2) - m.book.weight).pow(2).sum(-1).argmin(-1)))


def cells(m: Any, x: Tensor) -> Tensor:
    """A recurrent cell, called in a loop."""
    h = c = x.new_zeros(x.size(0), 6)
    for step in range(3):
        h, c = m.cell(m.a(x[:, step]), (h, c))
    return m.head(h)


def dynamic(m: Any, x: Tensor) -> Tensor:
    """A depthwise convolution whose filters another layer computes, for each sample."""
    h = m.a(x)
    filters = m.b(pooled(h)).view(-1, 1, 3, 3)
    return m.head(F.conv2d(h.reshape(1, -1, 8, 8), filters, padding=1, groups=filters.size(0)).view(h.shape))


def sinusoids(m: Any, x: Tensor) -> Tensor:
    """Positions as sines, made in forward."""
    h = m.a(x)
    places, waves = (torch.arange(size, dtype=x.dtype) for size in h.shape[1:])
    return m.head(h + torch.sin(places[:, None] * torch.exp(-waves / 8)))


def decided(m: Any, x: Tensor) -> Tensor:
    """A layer that the numbers decide about."""
    h = m.a(x)
    return m.head(m.b(h) if h.mean() > 0 else h)


def in_training(m: Any, x: Tensor) -> Tensor:
    """Noise that only training adds, and dropout."""
    h = m.bn(m.a(x)).relu()
    if m.training:
        h = h + torch.randn_like(h)
    return m.head(m.drop(h))


def pyramid(m: Any, x: Tensor) -> dict[str, Tensor]:
    """Two scales; the coarse one is made larger and added to the fine one."""
    fine = m.a(x).relu()
    coarse = m.c(m.b(fine).relu())
    return {"fine": m.head1(m.d(fine) + F.interpolate(coarse, scale_factor=2)), "coarse": m.head2(coarse)}


def unet(m: Any, x: Tensor) -> Tensor:
    """Down and up again; the input itself is a skip connection."""
    h = m.up(m.b(m.a(x).relu()).relu())
    return m.head(torch.cat((h, x), 1))


def option_a(m: Any, x: Tensor) -> Tensor:
    """The shortcut of CIFAR ResNets without weights: every second pixel, zeros for new channels."""
    h = m.a(x).relu()
    return m.head(m.b(h) + F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3)))


def shuffled(m: Any, x: Tensor) -> Tensor:
    """Channels of two groups in turns."""
    n, c, height, width = m.a(x).shape
    return m.head(m.a(x).view(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width))


def dense(m: Any, x: Tensor) -> Tensor:
    """Layers that each see all the tensors before them."""
    h = m.stem(x)
    h = torch.cat((h, m.a(h)), 1)
    h = torch.cat((h, m.b(m.bn(h).relu())), 1)
    return m.head(torch.cat((h, m.c(h)), 1))


def halves(m: Any, x: Tensor) -> Tensor:
    """The halves of a tensor go through different layers."""
    h = m.a(x)
    return m.head(torch.cat((m.b(h[:, :4]), h[:, 4:]), 1))


GRAPHS: tuple[Graph, ...] = (
    # -- sums and concatenations
    Graph(
        "chain",
        lambda: {"a": conv(3, 8), "bn": nn.BatchNorm2d(8), "head": conv(8, 5)},
        lambda m, x: m.head(m.bn(m.a(x)).relu()),
    ),
    Graph(
        "residual add",
        lambda: {"a": conv(3, 8), "b": conv(8, 8), "head": conv(8, 5)},
        lambda m, x: (lambda h: m.head(h + m.b(h.relu())))(m.a(x)),
    ),
    Graph(
        "concat of two branches",
        lambda: {"a": conv(3, 8), "b": conv(3, 6), "head": conv(14, 5)},
        lambda m, x: m.head(torch.cat((m.a(x), m.b(x)), 1)),
    ),
    Graph(
        "concat with the graph's input",
        lambda: {"a": conv(3, 8), "head": conv(11, 5)},
        lambda m, x: m.head(torch.cat((x, m.a(x)), 1)),
    ),
    Graph(
        "concat with a constant (CoordConv)",
        lambda: {"a": conv(3, 8), "places": torch.rand(1, 2, 8, 8), "head": conv(10, 5)},
        lambda m, x: m.head(torch.cat((m.places.expand(x.size(0), -1, -1, -1), m.a(x)), 1)),
    ),
    Graph(
        "concat of a tensor with itself",
        lambda: {"a": conv(3, 8), "head": conv(16, 5)},
        lambda m, x: (lambda h: m.head(torch.cat((h.relu(), (-h).relu()), 1)))(m.a(x)),
    ),
    Graph(
        "dense block",
        lambda: {
            "stem": conv(3, 6),
            "a": conv(6, 8),
            "bn": nn.BatchNorm2d(14),
            "b": conv(14, 6),
            "c": conv(20, 4),
            "head": conv(24, 5),
        },
        dense,
    ),
    Graph(
        "U-Net skip of the input",
        lambda: {
            "a": conv(3, 8),
            "b": conv(8, 6, stride=2),
            "up": nn.ConvTranspose2d(6, 4, 2, stride=2),
            "head": conv(7, 5),
        },
        unet,
    ),
    Graph(
        "stack and sum",
        lambda: {"a": conv(3, 8), "b": conv(3, 8), "head": conv(8, 5)},
        lambda m, x: m.head(torch.stack((m.a(x), m.b(x))).sum(0)),
    ),
    Graph(
        "maximum of two branches",
        lambda: {"a": conv(3, 8), "b": conv(3, 8), "head": conv(8, 5)},
        lambda m, x: m.head(torch.maximum(m.a(x), m.b(x))),
    ),
    Graph(
        "sum over channels",
        lambda: {"a": conv(3, 8), "b": conv(1, 6), "head": conv(6, 5)},
        lambda m, x: m.head(m.b(m.a(x).relu().sum(1, keepdim=True))),
    ),
    # -- the order of channels
    Graph(
        "flatten, channels first",
        lambda: {"a": conv(3, 8), "head": nn.Linear(8 * 64, 5)},
        lambda m, x: m.head(m.a(x).flatten(1)),
    ),
    Graph(
        "flatten, channels last",
        lambda: {"a": conv(3, 8), "head": nn.Linear(8 * 64, 5)},
        lambda m, x: m.head(m.a(x).permute(0, 2, 3, 1).flatten(1)),
    ),
    Graph(
        "roll over channels",
        lambda: {"a": conv(3, 8), "head": conv(8, 5)},
        lambda m, x: m.head(torch.roll(m.a(x), 3, 1)),
    ),
    Graph(
        "flip of channels",
        lambda: {"a": conv(3, 8), "head": conv(8, 5)},
        lambda m, x: m.head(torch.flip(m.a(x), (1,))),
    ),
    Graph("channel shuffle by view", lambda: {"a": conv(3, 8), "head": conv(8, 5)}, shuffled),
    Graph(
        "F.channel_shuffle",
        lambda: {"a": conv(3, 8), "head": conv(8, 5)},
        lambda m, x: m.head(F.channel_shuffle(m.a(x), 2)),
    ),
    Graph(
        "every second channel",
        lambda: {"a": conv(3, 8), "head": conv(4, 5)},
        lambda m, x: m.head(m.a(x)[:, ::2]),
    ),
    Graph(
        "halves by slices",
        lambda: {"a": conv(3, 8), "b": conv(4, 6), "head": conv(10, 5)},
        halves,
    ),
    Graph(
        "gather at constant indices",
        lambda: {"a": conv(3, 8), "order": torch.tensor([5, 0, 3, 3, 7, 1]), "head": conv(6, 5)},
        lambda m, x: m.head(m.a(x)[:, m.order]),
    ),
    Graph(
        "chunk into a gate (two halves multiplied)",
        lambda: {"a": conv(3, 12), "head": conv(6, 5)},
        lambda m, x: (lambda h, gate: m.head(h * gate.sigmoid()))(*m.a(x).chunk(2, 1)),
    ),
    Graph(
        "split with sizes",
        lambda: {"a": conv(3, 12), "b": conv(4, 6), "c": conv(8, 6), "head": conv(6, 5)},
        split_in_two,
    ),
    Graph(
        "unbind of a view",
        lambda: {"a": conv(3, 12), "head": conv(6, 5)},
        unbound,
    ),
    Graph("C2f of YOLO", lambda: {"a": conv(3, 8), "b": conv(4, 4), "c": conv(4, 4), "head": conv(16, 5)}, c2f),
    Graph(
        "maxout over a view",
        lambda: {"a": conv(3, 12), "head": conv(6, 5)},
        lambda m, x: m.head(m.a(x).unflatten(1, (6, 2)).amax(2)),
    ),
    Graph(
        "Res2Net",
        lambda: {"a": conv(3, 12), "b": conv(4, 4), "c": conv(4, 4), "head": conv(12, 5)},
        res2net,
    ),
    Graph(
        "unit of ShuffleNet v2",
        lambda: {"a": conv(3, 8), "b": conv(4, 4), "head": conv(8, 5)},
        shuffle_unit,
    ),
    Graph(
        "even and odd channels in turns",
        lambda: {"a": nn.Linear(12, 8), "head": nn.Linear(8, 5)},
        lambda m, x: (lambda h: m.head(torch.stack((-h[..., 1::2], h[..., ::2]), -1).flatten(-2)))(m.a(x)),
        tokens,
    ),
    Graph(
        "cumulative sum over channels",
        lambda: {"a": conv(3, 8), "head": conv(8, 5)},
        lambda m, x: m.head(m.a(x).cumsum(1)),
    ),
    # -- padding, repeats, sizes written down
    Graph(
        "padding of channels",
        lambda: {"a": conv(3, 8), "head": conv(12, 5)},
        lambda m, x: m.head(F.pad(m.a(x), (0, 0, 0, 0, 1, 3))),
    ),
    Graph(
        "option A shortcut of CIFAR ResNets",
        lambda: {"a": conv(3, 6), "b": conv(6, 12, stride=2), "head": conv(12, 5)},
        option_a,
    ),
    Graph(
        "sizes written in a view",
        lambda: {"a": conv(3, 8), "head": nn.Linear(8 * 64, 5)},
        lambda m, x: m.head(m.a(x).view(-1, 512)),
    ),
    Graph(
        "sizes taken from a shape",
        lambda: {"a": conv(3, 8), "head": nn.Linear(8 * 64, 5)},
        lambda m, x: (lambda h: m.head(h.reshape(h.shape[0], h.shape[1] * h.shape[2] * h.shape[3])))(m.a(x)),
    ),
    Graph(
        "repeat of channels",
        lambda: {"a": conv(3, 8), "head": conv(16, 5)},
        lambda m, x: m.head(m.a(x).repeat(1, 2, 1, 1)),
    ),
    Graph(
        "repeat_interleave of channels",
        lambda: {"a": conv(3, 8), "head": conv(16, 5)},
        lambda m, x: m.head(m.a(x).repeat_interleave(2, 1)),
    ),
    Graph(
        "expand to a written width",
        lambda: {"a": conv(3, 8), "gate": conv(3, 1), "head": conv(8, 5)},
        lambda m, x: m.head(m.a(x) * m.gate(x).sigmoid().expand(-1, 8, -1, -1)),
    ),
    Graph(
        "zeros of a written width",
        lambda: {"a": conv(3, 8), "head": conv(8, 5)},
        lambda m, x: m.head(torch.maximum(m.a(x), torch.zeros(1, 8, 1, 1, dtype=x.dtype))),
    ),
    # -- buffers and parameters outside of layers
    Graph(
        "buffer of channel size",
        lambda: {"a": conv(3, 8), "scale": torch.rand(8, 1, 1), "head": conv(8, 5)},
        lambda m, x: m.head(m.a(x) * m.scale),
    ),
    Graph(
        "mask of channels in a buffer",
        lambda: {"a": conv(3, 8), "mask": torch.arange(8).view(8, 1, 1) % 3 == 0, "head": conv(8, 5)},
        lambda m, x: m.head(m.a(x).masked_fill(m.mask, 0.5)),
    ),
    Graph(
        "matmul with a parameter",
        lambda: {"a": nn.Linear(12, 8), "w": weight(8, 6), "head": nn.Linear(6, 5)},
        lambda m, x: m.head(m.a(x).relu() @ m.w),
        tokens,
    ),
    Graph(
        "F.linear with a parameter",
        lambda: {"a": nn.Linear(12, 8), "w": weight(6, 8), "head": nn.Linear(6, 5)},
        lambda m, x: m.head(F.linear(m.a(x).relu(), m.w)),
        tokens,
    ),
    Graph(
        "F.conv2d with a parameter",
        lambda: {"a": conv(3, 8), "w": weight(6, 8, 3, 3), "head": conv(6, 5)},
        lambda m, x: m.head(F.conv2d(m.a(x).relu(), m.w, padding=1)),
    ),
    Graph(
        "add of a parameter",
        lambda: {"a": conv(3, 8), "shift": weight(1, 8, 1, 1), "head": conv(8, 5)},
        lambda m, x: m.head(m.a(x) + m.shift),
    ),
    Graph(
        "layer scale",
        lambda: {"a": conv(3, 8), "b": conv(8, 8), "scale": weight(8), "head": conv(8, 5)},
        lambda m, x: (lambda h: m.head(h + m.b(h) * m.scale.view(-1, 1, 1)))(m.a(x)),
    ),
    Graph(
        "position embedding and class token",
        lambda: {"a": nn.Linear(12, 8), "token": weight(1, 1, 8), "places": weight(1, 7, 8), "head": nn.Linear(8, 5)},
        lambda m, x: m.head((torch.cat((m.token.expand(x.size(0), -1, -1), m.a(x)), 1) + m.places)[:, 0]),
        tokens,
    ),
    Graph(
        "einsum with a parameter",
        lambda: {"a": nn.Linear(12, 8), "w": weight(8, 6), "head": nn.Linear(6, 5)},
        lambda m, x: m.head(torch.einsum("btc,cd->btd", m.a(x).relu(), m.w)),
        tokens,
    ),
    Graph(
        "tied weights of two layers",
        lambda: (lambda a: {"a": a, "b": tied(nn.Linear(12, 8), a), "head": nn.Linear(8, 5)})(nn.Linear(12, 8)),
        lambda m, x: m.head(m.a(x).relu() + m.b(x.tanh())),
        tokens,
    ),
    Graph(
        "layer and its transpose",
        lambda: {"a": nn.Linear(12, 8), "head": nn.Linear(12, 5)},
        lambda m, x: m.head(m.a(x).relu() @ m.a.weight),
        tokens,
    ),
    Graph(
        "module called twice",
        lambda: {"a": conv(3, 8), "b": conv(8, 8), "head": conv(8, 5)},
        lambda m, x: m.head(m.b(m.b(m.a(x)).relu())),
    ),
    Graph(
        "constant made in forward",
        lambda: {"a": conv(3, 8), "head": conv(8, 5)},
        lambda m, x: m.head(m.a(x) * torch.linspace(0.5, 2, 8, dtype=x.dtype).view(-1, 1, 1)),
    ),
    Graph(
        "sinusoids made in forward",
        lambda: {"a": nn.Linear(12, 8), "head": nn.Linear(8, 5)},
        sinusoids,
        tokens,
    ),
    Graph(
        "experts as one parameter",
        lambda: {
            "a": nn.Linear(12, 8),
            "gate": nn.Linear(8, 3),
            "w1": weight(3, 8, 10),
            "w2": weight(3, 10, 6),
            "head": nn.Linear(6, 5),
        },
        experts,
        tokens,
    ),
    Graph(
        "low-rank adapter",
        lambda: {"a": nn.Linear(12, 8), "down": weight(4, 12), "up": weight(8, 4), "head": nn.Linear(8, 5)},
        lambda m, x: m.head(m.a(x) + x @ m.down.t() @ m.up.t()),
        tokens,
    ),
    Graph(
        "vector quantisation",
        lambda: {"a": nn.Linear(12, 8), "book": nn.Embedding(7, 8), "head": nn.Linear(8, 5)},
        quantised,
        tokens,
    ),
    Graph(
        "write into half of the channels",
        lambda: {"a": conv(3, 8), "b": conv(3, 4), "head": conv(8, 5)},
        written_in_place,
    ),
    # -- kinds of layers
    Graph(
        "depthwise convolution",
        lambda: {"a": conv(3, 8), "b": conv(8, 8, groups=8), "head": conv(8, 5)},
        lambda m, x: m.head(m.b(m.a(x))),
    ),
    Graph(
        "depthwise convolution with multiplier",
        lambda: {"a": conv(3, 8), "b": conv(8, 16, groups=8), "head": conv(16, 5)},
        lambda m, x: m.head(m.b(m.a(x))),
    ),
    Graph(
        "grouped convolution",
        lambda: {"a": conv(3, 8), "b": conv(8, 12, groups=2), "head": conv(12, 5)},
        lambda m, x: m.head(m.b(m.a(x))),
    ),
    Graph(
        "convolution to one channel",
        lambda: {"a": conv(3, 8), "b": conv(8, 1), "c": conv(8, 6), "head": conv(6, 5)},
        lambda m, x: (lambda h: m.head(m.c(h) * m.b(h)))(m.a(x)),
    ),
    Graph(
        "transposed convolution",
        lambda: {"a": conv(3, 8), "b": nn.ConvTranspose2d(8, 6, 2, stride=2), "head": conv(6, 5)},
        lambda m, x: m.head(m.b(m.a(x))),
    ),
    Graph(
        "grouped transposed convolution",
        lambda: {"a": conv(3, 8), "b": nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2), "head": conv(12, 5)},
        lambda m, x: m.head(m.b(m.a(x))),
    ),
    Graph(
        "1-D convolutions",
        lambda: {"a": nn.Conv1d(12, 8, 3), "bn": nn.BatchNorm1d(8), "b": nn.Conv1d(8, 6, 2), "head": nn.Linear(6, 5)},
        lambda m, x: m.head(m.b(m.bn(m.a(x)).relu()).mean(2)),
        lambda: torch.randn(16, 12, 9),
    ),
    Graph(
        "3-D convolutions",
        lambda: {"a": nn.Conv3d(2, 8, 3), "bn": nn.BatchNorm3d(8), "head": nn.Conv3d(8, 5, 2)},
        lambda m, x: m.head(m.bn(m.a(x)).relu()),
        lambda: torch.randn(16, 2, 5, 6, 7),
    ),
    Graph(
        "weight norm",
        lambda: {
            "a": parametrizations.weight_norm(conv(3, 8)),
            "b": parametrizations.weight_norm(conv(8, 6)),
            "head": conv(6, 5),
        },
        lambda m, x: m.head(m.b(m.a(x).relu()).relu()),
    ),
    Graph(
        "spectral norm",
        lambda: {
            "a": parametrizations.spectral_norm(conv(3, 8)),
            "b": parametrizations.spectral_norm(conv(8, 6)),
            "head": conv(6, 5),
        },
        lambda m, x: m.head(m.b(m.a(x).relu()).relu()),
    ),
    Graph("weight standardisation", lambda: {"a": conv(3, 8), "b": conv(8, 6), "head": conv(6, 5)}, standardised),
    Graph(
        "bilinear layer",
        lambda: {"a": nn.Linear(12, 8), "b": nn.Linear(12, 6), "c": nn.Bilinear(8, 6, 7), "head": nn.Linear(7, 5)},
        lambda m, x: m.head(m.c(m.a(x), m.b(x))),
        tokens,
    ),
    Graph(
        "outer product (bilinear pooling)",
        lambda: {"a": nn.Linear(12, 8), "b": nn.Linear(12, 6), "head": nn.Linear(48, 5)},
        lambda m, x: m.head(torch.einsum("bti,btj->btij", m.a(x), m.b(x)).flatten(2)),
        tokens,
    ),
    Graph(
        "unfold into patches",
        lambda: {"a": conv(3, 8), "b": nn.Linear(32, 6), "head": nn.Linear(6, 5)},
        lambda m, x: m.head(m.b(F.unfold(m.a(x), 2, stride=2).transpose(1, 2)).relu()),
    ),
    Graph("max unpooling", lambda: {"a": conv(3, 8), "b": conv(8, 8), "head": conv(8, 5)}, unpooled),
    Graph(
        "dynamic convolution",
        lambda: {"a": conv(3, 8), "b": nn.Linear(8, 72), "head": conv(8, 5)},
        dynamic,
    ),
    Graph(
        "embedding",
        lambda: {"a": nn.Embedding(11, 8), "b": nn.Linear(8, 6), "head": nn.Linear(6, 5)},
        lambda m, x: m.head(m.b(m.a(x)).relu()),
        words,
    ),
    Graph(
        "embedding tied with the output",
        lambda: {"a": nn.Embedding(11, 8), "b": nn.Linear(8, 8)},
        lambda m, x: (m.a(x) + m.b(m.a(x)).relu()) @ m.a.weight.t(),
        words,
    ),
    Graph(
        "LSTM",
        lambda: {"a": nn.Linear(12, 8), "rnn": nn.LSTM(8, 6, batch_first=True), "head": nn.Linear(6, 5)},
        lambda m, x: m.head(m.rnn(m.a(x))[0]),
        tokens,
    ),
    Graph(
        "LSTM of two layers, both directions",
        lambda: {
            "a": nn.Linear(12, 8),
            "rnn": nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True),
            "head": nn.Linear(12, 5),
        },
        lambda m, x: m.head(m.rnn(m.a(x))[0]),
        tokens,
    ),
    Graph(
        "GRU",
        lambda: {"a": nn.Linear(12, 8), "rnn": nn.GRU(8, 6, batch_first=True), "head": nn.Linear(6, 5)},
        lambda m, x: m.head(m.rnn(m.a(x))[0]),
        tokens,
    ),
    Graph(
        "recurrent cell in a loop",
        lambda: {"a": nn.Linear(12, 8), "cell": nn.LSTMCell(8, 6), "head": nn.Linear(6, 5)},
        cells,
        tokens,
    ),
    Graph(
        "pixel shuffle",
        lambda: {"a": conv(3, 8), "b": conv(2, 6), "head": conv(6, 5)},
        lambda m, x: m.head(m.b(F.pixel_shuffle(m.a(x), 2))),
    ),
    Graph(
        "space to depth",
        lambda: {"a": conv(3, 8), "b": conv(32, 6), "head": conv(6, 5)},
        lambda m, x: m.head(m.b(F.pixel_unshuffle(m.a(x), 2))),
    ),
    Graph(
        "global pools, side by side",
        lambda: {"a": conv(3, 8), "head": nn.Linear(16, 5)},
        lambda m, x: (lambda h: m.head(torch.cat((pooled(h), h.amax((2, 3))), 1)))(m.a(x)),
    ),
    Graph(
        "adaptive pool and flatten",
        lambda: {"a": conv(3, 8), "pool": nn.AdaptiveAvgPool2d(2), "head": nn.Linear(32, 5)},
        lambda m, x: m.head(torch.flatten(m.pool(m.a(x)), 1)),
    ),
    Graph(
        "squeeze and excite",
        lambda: {"a": conv(3, 8), "b": conv(8, 4, 1), "c": conv(4, 8, 1), "head": conv(8, 5)},
        lambda m, x: (lambda h: m.head(h * m.c(m.b(h.mean((2, 3), keepdim=True)).relu()).sigmoid()))(m.a(x)),
    ),
    Graph(
        "selective kernels",
        lambda: {"a": conv(3, 8), "b": conv(3, 8, 5), "c": nn.Linear(8, 4), "d": nn.Linear(4, 16), "head": conv(8, 5)},
        selective_kernels,
    ),
    Graph(
        "convolution over channels (ECA)",
        lambda: {"a": conv(3, 8), "b": nn.Conv1d(1, 1, 3, padding=1), "head": conv(8, 5)},
        channel_attention,
    ),
    # -- norms and statistics
    Graph(
        "batch norm without affine",
        lambda: {"a": conv(3, 8), "bn": nn.BatchNorm2d(8, affine=False), "head": conv(8, 5)},
        lambda m, x: m.head(m.bn(m.a(x)).relu()),
    ),
    Graph(
        "group norm",
        lambda: {"a": conv(3, 8), "norm": nn.GroupNorm(2, 8), "head": conv(8, 5)},
        lambda m, x: m.head(m.norm(m.a(x)).relu()),
    ),
    Graph(
        "instance norm",
        lambda: {"a": conv(3, 8), "norm": nn.InstanceNorm2d(8, affine=True), "head": conv(8, 5)},
        lambda m, x: m.head(m.norm(m.a(x)).relu()),
    ),
    Graph(
        "AdaIN",
        lambda: {"a": conv(3, 8), "style": nn.Linear(3, 16), "head": conv(8, 5)},
        styled,
    ),
    Graph(
        "layer norm",
        lambda: {"a": nn.Linear(12, 8), "norm": nn.LayerNorm(8), "head": nn.Linear(8, 5)},
        lambda m, x: m.head(m.norm(m.a(x)).relu()),
        tokens,
    ),
    Graph(
        "layer norm without affine",
        lambda: {"a": nn.Linear(12, 8), "norm": nn.LayerNorm(8, elementwise_affine=False), "head": nn.Linear(8, 5)},
        lambda m, x: m.head(m.norm(m.a(x)).relu()),
        tokens,
    ),
    Graph(
        "layer norm, channels last (ConvNeXt)",
        lambda: {"a": conv(3, 8), "norm": nn.LayerNorm(8), "head": conv(8, 5)},
        lambda m, x: m.head(m.norm(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    ),
    Graph(
        "layer norm with a written width",
        lambda: {"a": nn.Linear(12, 8), "g": weight(8), "b": weight(8), "head": nn.Linear(8, 5)},
        lambda m, x: m.head(F.layer_norm(m.a(x), (8,), m.g, m.b)),
        tokens,
    ),
    Graph("RMS norm by hand", lambda: {"a": nn.Linear(12, 8), "g": weight(8), "head": nn.Linear(8, 5)}, rms, tokens),
    Graph(
        "PReLU",
        lambda: {"a": conv(3, 8), "act": nn.PReLU(8), "head": conv(8, 5)},
        lambda m, x: m.head(m.act(m.a(x))),
    ),
    Graph(
        "softmax over channels",
        lambda: {"a": conv(3, 8), "head": conv(8, 5)},
        lambda m, x: m.head(m.a(x).softmax(1)),
    ),
    Graph(
        "mean over channels",
        lambda: {"a": conv(3, 8), "b": conv(1, 6), "head": conv(6, 5)},
        lambda m, x: m.head(m.b(m.a(x).relu().mean(1, keepdim=True))),
    ),
    Graph(
        "mean and maximum over channels (CBAM)",
        lambda: {"a": conv(3, 8), "b": conv(2, 1), "head": conv(8, 5)},
        spatial_gate,
    ),
    Graph(
        "vectors of length one",
        lambda: {"a": nn.Linear(12, 8), "head": nn.Linear(8, 5)},
        lambda m, x: m.head(F.normalize(m.a(x), dim=-1)),
        tokens,
    ),
    # -- attention and transformers
    Graph(
        "nn.MultiheadAttention",
        lambda: {"a": nn.Linear(12, 8), "att": nn.MultiheadAttention(8, 2, batch_first=True), "head": nn.Linear(8, 5)},
        lambda m, x: (lambda h: m.head(h + m.att(h, h, h, need_weights=False)[0]))(m.a(x)),
        tokens,
        {"att": 2},
    ),
    Graph(
        "attention",
        lambda: {
            "q": nn.Linear(12, 8),
            "k": nn.Linear(12, 8),
            "v": nn.Linear(12, 8),
            "out": nn.Linear(8, 6),
            "head": nn.Linear(6, 5),
        },
        lambda m, x: m.head(
            m.out(join_heads(F.scaled_dot_product_attention(*(split_heads(layer(x), 2) for layer in (m.q, m.k, m.v)))))
        ),
        tokens,
        {"q": 2, "k": 2, "v": 2},
    ),
    Graph(
        "attention of timm, widths written down",
        lambda: {
            "qkv": nn.Linear(12, 24),
            "out": nn.Linear(8, 6),
            "head": nn.Linear(6, 5),
            "heads": 2,
            "width": 4,
            "scale": 4**-0.5,
        },
        timm_attention,
        tokens,
        {"qkv": 2},
        lambda m: setattr(m, "width", m.qkv.out_features // (3 * m.heads)),
    ),
    Graph(
        "cross attention",
        lambda: {
            "a": nn.Linear(12, 8),
            "q": nn.Linear(8, 8),
            "kv": nn.Linear(8, 16),
            "out": nn.Linear(8, 8),
            "head": nn.Linear(8, 5),
        },
        cross_attention,
        tokens,
        {"q": 2, "kv": 2},
    ),
    Graph(
        "nn.TransformerEncoderLayer",
        lambda: {
            "a": nn.Linear(12, 8),
            "layer": nn.TransformerEncoderLayer(8, 2, 10, batch_first=True),
            "head": nn.Linear(8, 5),
        },
        lambda m, x: m.head(m.layer(m.a(x))),
        tokens,
        {"layer.self_attn": 2},
    ),
    Graph(
        "windows of Swin",
        lambda: {"a": conv(3, 8), "b": nn.Linear(8, 6), "mix": nn.Linear(16, 16), "head": conv(6, 5)},
        windows,
    ),
    Graph(
        "grouped queries",
        lambda: {
            "q": nn.Linear(12, 16),
            "k": nn.Linear(12, 8),
            "v": nn.Linear(12, 8),
            "out": nn.Linear(16, 6),
            "head": nn.Linear(6, 5),
        },
        grouped_queries,
        tokens,
        {"q": 4, "k": 2, "v": 2},
    ),
    Graph(
        "one head of keys for all queries",
        lambda: {
            "q": nn.Linear(12, 16),
            "k": nn.Linear(12, 4),
            "v": nn.Linear(12, 4),
            "out": nn.Linear(16, 6),
            "head": nn.Linear(6, 5),
        },
        one_key_for_all,
        tokens,
        {"q": 4, "k": 1, "v": 1},
    ),
    Graph(
        "rotary embeddings",
        lambda: {
            "q": nn.Linear(12, 8),
            "k": nn.Linear(12, 8),
            "v": nn.Linear(12, 8),
            "cos": torch.rand(6, 2).repeat(1, 2),
            "sin": torch.rand(6, 2).repeat(1, 2),
            "out": nn.Linear(8, 6),
            "head": nn.Linear(6, 5),
        },
        rotary,
        tokens,
        {"q": 2, "k": 2, "v": 2},
    ),
    Graph(
        "attention between pixels",
        lambda: {
            "a": conv(3, 8),
            "q": conv(8, 4, 1),
            "k": conv(8, 4, 1),
            "v": conv(8, 6, 1),
            "out": conv(6, 8, 1),
            "head": conv(8, 5),
        },
        non_local,
    ),
    Graph(
        "block of Mamba without its scan",
        lambda: {
            "a": nn.Linear(12, 16),
            "b": nn.Conv1d(8, 8, 3, groups=8, padding=2),
            "out": nn.Linear(8, 6),
            "head": nn.Linear(6, 5),
        },
        state_space,
        tokens,
    ),
    Graph(
        "SwiGLU",
        lambda: {
            "gate": nn.Linear(12, 8, bias=False),
            "up": nn.Linear(12, 8, bias=False),
            "down": nn.Linear(8, 6, bias=False),
            "head": nn.Linear(6, 5),
        },
        lambda m, x: m.head(m.down(F.silu(m.gate(x)) * m.up(x))),
        tokens,
    ),
    Graph(
        "mixing of tokens (MLP-Mixer)",
        lambda: {"a": nn.Linear(6, 10), "b": nn.Linear(10, 6), "head": nn.Linear(12, 5)},
        lambda m, x: m.head(x + m.b(m.a(x.transpose(1, 2)).relu()).transpose(1, 2)),
        tokens,
    ),
    Graph(
        "product of two tensors over channels",
        lambda: {"a": nn.Linear(12, 8), "b": nn.Linear(12, 8), "head": nn.Linear(6, 5)},
        lambda m, x: m.head(m.a(x) @ m.b(x).transpose(1, 2)),
        tokens,
    ),
    # -- results and modes
    Graph(
        "nested outputs of a pyramid",
        lambda: {
            "a": conv(3, 8),
            "b": conv(8, 10, stride=2),
            "c": conv(10, 6),
            "d": conv(8, 6),
            "head1": conv(6, 5),
            "head2": conv(6, 4),
        },
        pyramid,
    ),
    Graph(
        "dropout and a branch for training",
        lambda: {"a": conv(3, 8), "bn": nn.BatchNorm2d(8), "drop": nn.Dropout(0.5), "head": conv(8, 5)},
        in_training,
    ),
    Graph(
        "branch that depends on numbers",
        lambda: {"a": conv(3, 8), "b": conv(8, 8), "head": conv(8, 5)},
        decided,
    ),
    Graph(
        "frozen parameters",
        lambda: frozen({"a": conv(3, 8), "bn": nn.BatchNorm2d(8), "head": conv(8, 5)}),
        lambda m, x: m.head(m.bn(m.a(x)).relu()),
    ),
    Graph(
        "backbone without gradients",
        lambda: {"a": conv(3, 8), "bn": nn.BatchNorm2d(8), "b": conv(8, 6), "head": conv(6, 5)},
        frozen_backbone,
    ),
)
