"""Attention over tokens, in the many ways in which models write it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from networks_layers import Block, Choices, OwnNorm, kind
from torch import Tensor, nn


def rotary(d: int, n: int, base: float = 100.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines [n, d / 2]."""
    angles = torch.arange(n)[:, None] / base ** (torch.arange(0, d, 2) / d)
    return angles.cos().double(), angles.sin().double()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, spelling: str) -> Tensor:
    """Rotate pairs of channels of [..., n, d]: halves, or neighbours."""
    d = x.shape[-1]
    if spelling == "rotary-half":
        a, b = x[..., : d // 2], x[..., d // 2 :]
        return x * torch.cat([cos, cos], -1) + torch.cat([-b, a], -1) * torch.cat([sin, sin], -1)
    if spelling == "rotary-chunk":
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    if spelling == "rotary-stack":
        a, b = x[..., ::2], x[..., 1::2]
        turned = torch.stack([-b, a], dim=-1).flatten(-2)
        return x * cos.repeat_interleave(2, -1) + turned * sin.repeat_interleave(2, -1)
    if spelling == "rotary-complex":
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


QKV = "literal sizes minus heads-last chunk split slices widths separate separate-nobias kv-fused einsum conv"
APART = "literal star-d star-h minus unflatten sizes computed settings"
SHARING = "all multi-query repeat expand enable-gqa"
POSITIONS = "none rotary-half rotary-chunk rotary-stack rotary-unflatten rotary-complex bias table alibi"
NORMS = "none layer rms own-rms cosine"
PRODUCT = "matmul einsum sdpa sdpa-scale sdpa-mask sdpa-causal bmm einsum-bnhd baddbmm loop"
MERGE = "minus literal flatten sizes view-star einsum heads-loop product"


class Attend(Block):
    """Queries, keys and values of h heads of width d, in any spelling; `cross` looks at memory."""

    cross = False

    def make(self, choose: Choices, x: Tensor, memory: Tensor) -> None:
        c, source = x.shape[-1], memory if self.cross else x
        self.num_heads = h = choose.number(2, 4)
        self.head_dim = d = choose.number(2, 4)
        self.inner, self.n = h * d, x.shape[1]
        self.qkv_way = choose.of("qkv", "separate separate-nobias kv-fused" if self.cross else QKV)
        self.apart = choose.of("apart", APART)
        self.product = choose.of("product", PRODUCT)
        self.merge = choose.of("merge", MERGE)
        self.position = choose.of("position", "none" if self.cross else POSITIONS)
        self.norm_way = choose.of("norm", NORMS)
        self.talking = choose.of("talking", "no linear einsum conv")
        separate = self.qkv_way.startswith("separate")
        self.sharing = choose.of("sharing", SHARING) if separate else "all"
        self.scaling = choose.of("scale", "fixed head-dim shape attribute none learned")
        self.gated = choose.of("gated", "no yes")
        if self.position.startswith("rotary") and d % 2:
            self.head_dim, self.inner = d + 1, h * (d + 1)
            d += 1
        h_kv = h if self.sharing == "all" else 1 if self.sharing == "multi-query" else h // 2 if h % 2 == 0 else 1
        self.num_kv_heads, self.groups = h_kv, h // h_kv
        bias = self.qkv_way != "separate-nobias"
        if separate or self.qkv_way == "kv-fused":
            self.q = nn.Linear(c, self.inner, bias=bias)
        if separate:
            self.k = nn.Linear(source.shape[-1], h_kv * d, bias=bias)
            self.v = nn.Linear(source.shape[-1], h_kv * d, bias=bias)
        elif self.qkv_way == "kv-fused":
            self.kv = nn.Linear(source.shape[-1], 2 * self.inner)
        elif self.qkv_way == "einsum":
            self.weight = nn.Parameter(torch.zeros(3, c, h, d))
        elif self.qkv_way == "conv":
            self.qkv: nn.Module = nn.Conv1d(c, 3 * self.inner, 1)
        else:
            self.qkv = nn.Linear(c, 3 * self.inner)
        self.make_extras(x)
        self.out = nn.Linear(self.inner, c)

    def make_extras(self, x: Tensor) -> None:
        h, d, n = self.num_heads, self.head_dim, x.shape[1]
        self.scale = d**-0.5
        if self.position.startswith("rotary"):
            cos, sin = rotary(d, n)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        elif self.position == "bias":
            self.head_bias = nn.Parameter(torch.zeros(h, 1, 1))
        elif self.position == "table":
            self.table = nn.Parameter(torch.zeros(2 * n - 1, h))
            self.register_buffer("index", torch.arange(n)[:, None] - torch.arange(n)[None] + n - 1)
        elif self.position == "alibi":
            self.register_buffer("slopes", 2.0 ** -torch.arange(1, h + 1).double())
        if self.norm_way in ("layer", "rms", "own-rms"):
            made = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "own-rms": lambda width: OwnNorm(width, "own-rms")}
            self.q_norm, self.k_norm = made[self.norm_way](d), made[self.norm_way](d)
        if self.norm_way == "cosine" or self.scaling == "learned":
            self.temperature = nn.Parameter(torch.zeros(h, 1, 1))
        if self.talking == "linear":
            self.talk: nn.Module = nn.Linear(h, h, bias=False)
        elif self.talking == "conv":
            self.talk = nn.Conv2d(h, h, 1)
        elif self.talking == "einsum":
            self.talk_weight = nn.Parameter(torch.zeros(h, h))
        if self.gated == "yes":
            self.gate = nn.Linear(x.shape[-1], self.inner)

    # -- heads apart --

    def heads(self, t: Tensor, count: int) -> Tensor:
        """[b, n, count * d] -> [b, count, n, d]."""
        d = self.head_dim
        if self.apart == "literal":
            t = t.view(t.shape[0], t.shape[1], count, d)
        elif self.apart == "star-d":
            t = t.view(*t.shape[:-1], -1, d)
        elif self.apart == "star-h":
            t = t.view(*t.shape[:-1], count, -1)
        elif self.apart == "minus":
            t = t.reshape(t.size(0), -1, count, d)
        elif self.apart == "unflatten":
            t = t.unflatten(-1, (count, -1))
        elif self.apart == "settings":
            if t.shape[-1] != count * d:
                raise ValueError("another width")
            t = t.view(*t.shape[:2], count, t.shape[-1] // count)
        elif self.apart == "computed":
            b, n, _ = t.shape
            return t.reshape(b, n, count, count * self.inner // self.num_heads // count).permute(0, 2, 1, 3)
        else:
            t = t.reshape(t.shape[0], t.shape[1], count, t.shape[2] // count)
        return t.transpose(1, 2)

    def projected(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, d, inner, way = self.num_heads, self.head_dim, self.inner, self.qkv_way
        b, n, _ = x.shape
        if way.startswith("separate"):
            k, v = (self.heads(t, self.num_kv_heads) for t in (self.k(source), self.v(source)))
            return self.heads(self.q(x), h), k, v
        if way == "kv-fused":
            k, v = self.kv(source).chunk(2, dim=-1)
            return self.heads(self.q(x), h), self.heads(k, h), self.heads(v, h)
        if way == "einsum":
            q, k, v = torch.einsum("bnc,tchd->tbhnd", x, self.weight)
            return q, k, v
        if way == "conv":
            qkv = self.qkv(x.transpose(1, 2))
            q, k, v = qkv.view(b, 3, h, d, n).unbind(1)
            return q.mT, k.mT, v.mT
        qkv = self.qkv(x)
        if way in ("literal", "sizes", "minus"):
            width = {"literal": d, "sizes": qkv.shape[-1] // (3 * h), "minus": -1}[way]
            q, k, v = qkv.reshape(b, n, 3, h, width).permute(2, 0, 3, 1, 4)
            return q, k, v
        if way == "heads-last":
            q, k, v = qkv.view(b, n, h, 3 * d).transpose(1, 2).chunk(3, -1)
            return q, k, v
        if way == "chunk":
            parts = qkv.chunk(3, dim=-1)
        elif way == "split":
            parts = qkv.split(inner, dim=-1)
        elif way == "slices":
            parts = qkv[..., :inner], qkv[..., inner : 2 * inner], qkv[..., -inner:]
        else:
            parts = qkv.split([h * d, self.num_heads * self.head_dim, inner], -1)
        q, k, v = parts
        return self.heads(q, h), self.heads(k, h), self.heads(v, h)

    def shared(self, t: Tensor) -> Tensor:
        """Heads of keys and values for all heads of queries."""
        if self.sharing == "repeat":
            return t.repeat_interleave(self.groups, dim=1)
        if self.sharing == "expand":
            b, h, m, d = t.shape
            return t[:, :, None].expand(b, h, self.groups, m, d).reshape(b, h * self.groups, m, d)
        if self.sharing == "multi-query":
            return t.expand(-1, self.num_heads, -1, -1)
        return t.repeat_interleave(self.groups, 1) if self.sharing == "enable-gqa" else t

    # -- products --

    def bias(self) -> Tensor | None:
        """The term that is added to the scores: [h, 1, 1] or [h, n, n]."""
        if self.position == "bias":
            return self.head_bias
        if self.position == "table":
            n = self.index.shape[0]
            return self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1)
        if self.position == "alibi":
            steps = torch.arange(self.n, device=self.slopes.device)
            return -(steps[:, None] - steps).abs() * self.slopes[:, None, None]
        return None

    def scaled(self, q: Tensor) -> Tensor:
        if self.norm_way == "cosine" or self.scaling == "learned":
            return q * torch.sigmoid(self.temperature) * 3
        if self.scaling == "head-dim":
            return q * self.head_dim**-0.5
        if self.scaling == "shape":
            return q / q.shape[-1] ** 0.5
        return q if self.scaling == "none" else q * (self.scale if self.scaling == "attribute" else 0.4)

    def fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gqa = self.sharing == "enable-gqa"
        if self.product == "sdpa-scale":
            return F.scaled_dot_product_attention(q, k, v, scale=self.scale, enable_gqa=gqa)
        if self.product == "sdpa-causal":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
        mask = self.bias()
        if self.product == "sdpa-mask":
            allowed = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(1)
            mask = allowed if mask is None else mask.masked_fill(~allowed, -9.0)
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.expand(-1, q.shape[-2], k.shape[-2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa)

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[b, h, n, d]."""
        if self.product.startswith("sdpa") and self.talking == "no":
            return self.fused(q, k if self.sharing == "enable-gqa" else self.shared(k), self.last(v))
        k, v, q = self.shared(k), self.shared(v), self.scaled(q)
        b, h, n, d = q.shape
        if self.product == "loop":
            heads = [
                self.weights(q[:, i : i + 1] @ k[:, i : i + 1].mT, i) @ v[:, i : i + 1] for i in range(self.num_heads)
            ]
            return torch.cat(heads, 1)
        if self.product == "bmm":
            scores = torch.bmm(q.reshape(b * h, n, d), k.reshape(b * h, -1, d).transpose(1, 2)).view(b, h, n, -1)
        elif self.product == "baddbmm":
            flat = torch.zeros(1, 1, 1, dtype=q.dtype)
            scores = torch.baddbmm(flat, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=0.5).unflatten(0, (-1, h))
        elif self.product == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k)
        elif self.product == "einsum-bnhd":
            scores = torch.einsum("bihd,bjhd->bhij", q.transpose(1, 2), k.transpose(1, 2))
        else:
            scores = q @ k.transpose(-2, -1)
        weights = self.weights(scores)
        if self.product == "einsum-bnhd":
            return torch.einsum("bhij,bjhd->bihd", weights, v.transpose(1, 2)).permute(0, 2, 1, 3)
        return torch.einsum("bhij,bhjd->bhid", weights, v) if self.product == "einsum" else torch.matmul(weights, v)

    def last(self, v: Tensor) -> Tensor:
        return v if self.sharing == "enable-gqa" else self.shared(v)

    def weights(self, scores: Tensor, one: int | None = None) -> Tensor:
        bias = self.bias()
        if bias is not None:
            scores = scores + (bias if one is None else bias[one : one + 1])
        if one is not None:
            return scores.softmax(-1)
        if self.talking == "linear":
            scores = self.talk(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        elif self.talking == "conv":
            scores = self.talk(scores)
        scores = torch.softmax(scores, dim=-1)
        return torch.einsum("hg,bhij->bgij", self.talk_weight, scores) if self.talking == "einsum" else scores

    # -- heads together --

    def merged(self, y: Tensor) -> Tensor:
        b, h, n, _ = y.shape
        if self.merge == "heads-loop":
            return torch.cat([y[:, i] for i in range(self.num_heads)], -1)
        if self.merge == "einsum":
            return torch.einsum("bhnd,bhnd->bnhd", y, torch.ones_like(y)).flatten(-2)
        y = y.transpose(1, 2)
        if self.merge == "literal":
            return y.reshape(b, n, self.inner)
        if self.merge == "product":
            return y.reshape(b, n, self.num_heads * self.head_dim)
        if self.merge == "flatten":
            return y.flatten(2)
        if self.merge == "sizes":
            return y.contiguous().view(b, n, h * y.shape[-1])
        if self.merge == "view-star":
            return y.contiguous().view(*y.shape[:2], self.inner)
        return y.reshape(b, n, -1)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q, k, v = self.projected(x, memory if self.cross else x)
        if self.norm_way == "cosine":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        elif self.norm_way != "none":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.position.startswith("rotary"):
            q, k = (rotate(t, self.cos, self.sin, self.position) for t in (q, k))
        y = self.merged(self.attended(q, k, v))
        if self.gated == "yes":
            y = y * torch.sigmoid(self.gate(x))
        return self.out(y)


@kind("self")
class SelfAttend(Attend):
    """Over the tokens themselves."""


@kind("cross")
class CrossAttend(Attend):
    """Over the memory."""

    cross = True


@kind("windows")
class Windows(Block):
    """Attention within windows of two, perhaps of shifted tokens."""

    def make(self, choose: Choices, x: Tensor, memory: Tensor) -> None:
        c, self.n = x.shape[-1], x.shape[1]
        self.size = 2 if self.n % 2 == 0 else 1
        self.shift = choose.number(0, 1)
        self.spelling = choose.of("partition", "view permute unfold literal")
        self.num_heads, self.head_dim = choose.number(2, 3), choose.number(2, 3)
        self.qkv, self.out = (
            nn.Linear(c, 3 * self.num_heads * self.head_dim),
            nn.Linear(self.num_heads * self.head_dim, c),
        )
        self.table = nn.Parameter(torch.zeros(self.num_heads, self.size, self.size))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        b, n, c = x.shape
        x, s, h, d = x.contiguous(), self.size, self.num_heads, self.head_dim
        if self.shift:
            x = torch.roll(x, -1, 1)
        if self.spelling == "view":
            y = x.view(b * n // s, s, c)
        elif self.spelling == "permute":
            y = x.reshape(b, n // s, s, c).permute(1, 0, 2, 3).flatten(0, 1)
        elif self.spelling == "unfold":
            y = x.unfold(1, s, s).transpose(2, 3).reshape(-1, s, c)
        else:
            y = x.view(-1, s, c)
        q, k, v = self.qkv(y).reshape(-1, s, 3, h, d).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q * d**-0.5) @ k.mT + self.table).softmax(-1) @ v
        y = self.out(y.transpose(1, 2).reshape(-1, s, h * d))
        if self.spelling == "permute":
            y = y.view(n // s, b, s, c).transpose(0, 1)
        y = y.reshape(b, n, c)
        return torch.roll(y, 1, 1) if self.shift else y


@kind("module")
class Module(Block):
    """`nn.MultiheadAttention` and the layers that hold one."""

    def make(self, choose: Choices, x: Tensor, memory: Tensor) -> None:
        h, d = choose.number(1, 3), choose.number(2, 4)
        c, e, self.wide = x.shape[-1], memory.shape[-1], h * d
        self.into, self.out = nn.Linear(c, self.wide), nn.Linear(self.wide, c)
        self.used = choose.of("used", "self cross cross-dims encoder decoder encoder-stack")
        self.first = choose.of("batch", "first second") == "first"
        self.needed = choose.of("weights", "no yes every") if self.used in ("self", "cross", "cross-dims") else ""
        self.aside = nn.Linear(e, self.wide)
        bias = choose.of("bias", "yes no") == "yes"
        if self.used in ("encoder", "encoder-stack", "decoder"):
            made = nn.TransformerDecoderLayer if self.used == "decoder" else nn.TransformerEncoderLayer
            act, early = choose.of("act", "relu gelu"), choose.of("norm", "late early") == "early"
            layer = made(self.wide, h, choose.number(3, 6), 0.1, act, batch_first=self.first, norm_first=early)
            stacked = self.used == "encoder-stack"
            self.layer: nn.Module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False) if stacked else layer
        elif self.used == "cross-dims":
            self.layer = nn.MultiheadAttention(self.wide, h, batch_first=self.first, kdim=e, vdim=e, bias=bias)
        else:
            extra = choose.of("extra", "no bias-kv zero")
            options = {"add_bias_kv": extra == "bias-kv", "add_zero_attn": extra == "zero"}
            self.layer = nn.MultiheadAttention(self.wide, h, batch_first=self.first, bias=bias, **options)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q, kv = self.into(x), memory if self.used == "cross-dims" else self.aside(memory)
        if not self.first:
            q, kv = q.transpose(0, 1), kv.transpose(0, 1)
        if self.used.startswith("encoder"):
            y = self.layer(q)
        elif self.used == "decoder":
            y = self.layer(q, kv)
        else:
            if self.used == "self":
                kv = q
            y, seen = self.layer(q, kv, kv, need_weights=self.needed != "no", average_attn_weights=self.needed == "yes")
            if self.needed != "no":
                mean = seen.mean((-1, -2) if seen.dim() == 3 else (1, 2, 3)).view(-1, 1, 1)
                y = y * (1 + mean) if self.first else y * (1 + mean.transpose(0, 1))
        return self.out(y if self.first else y.transpose(0, 1))
