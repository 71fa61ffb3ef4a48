"""Multi-head attention whose heads are narrower, or fewer, than `embed_dim` says.

`nn.MultiheadAttention` computes the width of a head as embed_dim / num_heads and takes queries, keys and values to be
equally wide. So it cannot be the layer that is left when heads, or positions inside heads, are removed. Such a layer
becomes a `MultiheadAttention` of this file. It has the same parameters under the same names, and is called in the same
way.

Letters in shapes: N batch, L target positions, S source positions, H heads, D width of a query or key in a head, V
    width
of a value in a head, E width of the query before the projection, K and W those of key and value (`kdim`, `vdim`), O
width of the output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.channels.groups import Bools
from fxprune.ops.aspects import recounts
from fxprune.ops.module_use import Use


class MultiheadAttention(nn.MultiheadAttention):
    """Attention with any number of heads, of any two widths, and a scale of its own.

    MultiHead(Q, K, V) = Concat(head_1, ..., head_H) W_out, where
    head_i = softmax(scale * (Q W_i_q) (K W_i_k)^T + mask) (V W_i_v), with scale = 1 / sqrt(D) for the D of the original
    layer: removed rows would add zeros to the products, so the scale must not change
    (Vaswani et al. 2017, section 3.2; https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html).

    in_proj_weight: (H*D + H*D + H*V, E), or q_proj_weight (H*D, E), k_proj_weight (H*D, K), v_proj_weight (H*V, W).
    in_proj_bias: (H*D + H*D + H*V,). bias_k: (1, 1, H*D). bias_v: (1, 1, H*V).
    out_proj.weight: (O, H*V). out_proj.bias: (O,).

    >>> import torch
    >>> layer = MultiheadAttention(8, 2)
    >>> layer.in_proj_weight = torch.nn.Parameter(torch.randn(2 * 6 + 8, 8))
    >>> layer.in_proj_bias = torch.nn.Parameter(torch.randn(2 * 6 + 8))
    >>> narrow(layer, num_heads=2, head_dim=3, v_head_dim=4, scale=layer.scale)
    MultiheadAttention(
      embed_dim=8, num_heads=2, head_dim=3, v_head_dim=4, scale=0.5
      (out_proj): NonDynamicallyQuantizableLinear(in_features=8, out_features=8, bias=True)
    )
    >>> layer(*[torch.randn(5, 1, 8)] * 3)[0].shape
    torch.Size([5, 1, 8])
    """

    v_head_dim: int
    scale: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        d = self.head_dim
        narrow(self, num_heads=self.num_heads, head_dim=d, v_head_dim=d, scale=d**-0.5)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the output (L, N, O) and, if needed, the weights (N, L, S), as in `nn.MultiheadAttention`."""
        return multi_head_attention(
            query,
            key,
            value,
            heads=(self.num_heads, self.head_dim, self.v_head_dim),
            scale=self.scale,
            in_weights=(self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight),
            in_bias=self.in_proj_bias,
            bias_k=self.bias_k,
            bias_v=self.bias_v,
            out_weight=self.out_proj.weight,
            out_bias=self.out_proj.bias,
            batch_first=self.batch_first,
            add_zero_attn=self.add_zero_attn,
            dropout=self.dropout if self.training else 0.0,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )

    def extra_repr(self) -> str:
        """The sizes and the scale, for `repr`."""
        names = ("embed_dim", "num_heads", "head_dim", "v_head_dim", "scale")
        return ", ".join(f"{name}={getattr(self, name):.4g}" for name in names)


def narrow(
    module: nn.MultiheadAttention, *, num_heads: int, head_dim: int, v_head_dim: int, scale: float
) -> MultiheadAttention:
    """Turn a layer, in place, into one with these heads. Its parameters must have their new sizes already.

    Parameters, hooks and the mode stay. `nn.TransformerEncoderLayer` and `nn.TransformerEncoder` use fused kernels and
    nested tensors only if `_qkv_same_embed_dim` is True, so it is set to False.
    """
    module.__class__ = MultiheadAttention
    made: MultiheadAttention = module  # type: ignore[assignment]
    made.num_heads, made.head_dim, made.v_head_dim, made.scale = num_heads, head_dim, v_head_dim, scale
    made.embed_dim, made.kdim, made.vdim = _widths(module)
    made._qkv_same_embed_dim = False
    return made


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    heads: tuple[int, int, int],
    scale: float,
    in_weights: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    in_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    batch_first: bool,
    add_zero_attn: bool,
    dropout: float,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    average_attn_weights: bool,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention as `F.multi_head_attention_forward` computes it, step by step, with `heads` = (H, D, V) given.

    query: (L, N, E) or (N, L, E) or unbatched (L, E); key: S, N, K; value: S, N, W, in the same order.
    key_padding_mask: (N, S) or (S,); attn_mask: (L, S) or (N*H, L, S); True is -inf, numbers are added.
    Returns the output (L, N, O) in the order of the query, and the weights (N, L, S) or (N, H, L, S), or None.

    It is a function, not a method, so that a symbolic trace which looks into the layer records it as one node.
    """
    count, width, v_width = heads
    _check_shapes(query, key, value, key_padding_mask)
    if is_causal and attn_mask is None:
        raise RuntimeError("is_causal says that attn_mask is causal: give the mask too")
    batched = query.dim() == 3
    if not batched:
        query, key, value = _of_all(lambda x: x.unsqueeze(1), query, key, value)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    elif batch_first:
        query, key, value = _of_all(lambda x: x.transpose(1, 0), query, key, value)
    key_padding_mask, attn_mask = _additive(key_padding_mask, query), _additive(attn_mask, query)
    causal_kernel = is_causal and key_padding_mask is None and not need_weights
    if causal_kernel:
        attn_mask = None
    targets, n, _ = query.shape
    attn_mask = _three_dims(attn_mask, (n * count, targets, key.shape[0]))

    q, k, v = _project(query, key, value, heads, in_weights, in_bias)
    if bias_k is not None and bias_v is not None:
        k, v = torch.cat([k, bias_k.repeat(1, n, 1)]), torch.cat([v, bias_v.repeat(1, n, 1)])
        key_padding_mask, attn_mask = _one_more(key_padding_mask), _one_more(attn_mask)
    q = q.contiguous().view(targets, n * count, width).transpose(0, 1)
    k = k.contiguous().view(k.shape[0], n * count, width).transpose(0, 1)
    v = v.contiguous().view(v.shape[0], n * count, v_width).transpose(0, 1)
    if add_zero_attn:
        k = torch.cat([k, k.new_zeros(n * count, 1, width)], dim=1)
        v = torch.cat([v, v.new_zeros(n * count, 1, v_width)], dim=1)
        key_padding_mask, attn_mask = _one_more(key_padding_mask), _one_more(attn_mask)
    sources = k.shape[1]

    if key_padding_mask is not None:
        padding = key_padding_mask.view(n, 1, 1, sources).expand(-1, count, -1, -1).reshape(n * count, 1, sources)
        attn_mask = padding if attn_mask is None else attn_mask + padding
    weights = None
    if need_weights:
        mixed, weights = _with_weights(q, k, v, attn_mask, scale, dropout)
        mixed = mixed.transpose(0, 1).reshape(targets * n, count * v_width)
        weights = weights.view(n, count, targets, sources)
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights if batched else weights.squeeze(0)
    else:
        mixed = _fused(q, k, v, attn_mask, (n, count), dropout=dropout, is_causal=causal_kernel, scale=scale)
    output = F.linear(mixed, out_weight, out_bias).view(targets, n, -1)
    if not batched:
        return output.squeeze(1), weights
    return (output.transpose(1, 0) if batch_first else output), weights


fx.wrap("multi_head_attention")


def _with_weights(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> tuple[Tensor, Tensor]:
    """softmax(scale * q k^T + mask) v, (N*H, L, V), and the weights (N*H, L, S), after dropout."""
    scaled, keys = q * scale, k.transpose(-2, -1)
    scores = torch.bmm(scaled, keys) if mask is None else torch.baddbmm(mask, scaled, keys)
    weights = torch.softmax(scores, -1)
    if dropout > 0:
        weights = F.dropout(weights, dropout)
    return torch.bmm(weights, v), weights


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    split: tuple[int, int],
    *,
    dropout: float,
    is_causal: bool,
    scale: float,
) -> Tensor:
    """Attention by one fused kernel: returns the input (L*N, H*V) of `out_proj`, and no weights. split: (N, H)."""
    n, count = split
    if mask is not None:
        mask = mask[None] if mask.shape[0] == 1 else mask.view(n, count, -1, k.shape[1])
    q, k, v = (x.view(n, count, x.shape[1], x.shape[2]) for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=scale)
    return mixed.permute(2, 0, 1, 3).reshape(n * q.shape[2], count * v.shape[3])


def _of_all(change: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a change to three tensors; arguments that are the same tensor get the same result."""
    q = change(query)
    k = q if key is query else change(key)
    return q, k, k if value is key else q if value is query else change(value)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None) -> None:
    if query.is_nested or key.is_nested or value.is_nested:
        raise ValueError("nested tensors are for the fused kernels of torch, which know heads of one width only")
    if query.dim() not in (2, 3) or not query.dim() == key.dim() == value.dim():
        dims = tuple(x.dim() for x in (query, key, value))
        raise ValueError(f"query, key and value must all have 3 dimensions, or 2 without a batch; they have {dims}")
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"key and value are two sequences: {tuple(key.shape)} and {tuple(value.shape)}")
    if key_padding_mask is not None and key_padding_mask.dim() != query.dim() - 1:
        raise ValueError(f"key_padding_mask has {key_padding_mask.dim()} dimensions, {query.dim() - 1} are needed")


def _additive(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """A mask as numbers to add to the scores: a boolean mask becomes -inf where it is True."""
    if mask is None or mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        raise ValueError(f"masks are boolean or floating, this one is {mask.dtype}")
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, float("-inf"))


def _three_dims(mask: Tensor | None, shape: tuple[int, int, int]) -> Tensor | None:
    """The attention mask as (1 or N*H, L, S)."""
    if mask is None:
        return None
    want = shape[1:] if mask.dim() == 2 else shape
    if tuple(mask.shape) != want:
        raise RuntimeError(
            f"attn_mask has shape {tuple(mask.shape)}, (L, S) = {shape[1:]} or (N*H, L, S) = {shape} fits"
        )
    return mask.unsqueeze(0) if mask.dim() == 2 else mask


def _one_more(mask: Tensor | None) -> Tensor | None:
    """The mask with one more source position, which is not masked."""
    return None if mask is None else F.pad(mask, (0, 1))


def _project(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: tuple[int, int, int],
    weights: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (L, N, H*D), keys (S, N, H*D) and values (S, N, H*V); inputs that are one tensor share one product."""
    rows = [heads[0] * heads[1], heads[0] * heads[1], heads[0] * heads[2]]
    none = (None, None, None)
    packed, *apart = weights
    if packed is not None and query is key is value:
        q, k, v = F.linear(query, packed, bias).split_with_sizes(rows, -1)
    elif packed is not None and key is value:
        parts = [rows[0], rows[1] + rows[2]]
        w_q, w_kv = packed.split_with_sizes(parts)
        b_q, b_kv = none[1:] if bias is None else bias.split_with_sizes(parts)
        q, (k, v) = F.linear(query, w_q, b_q), F.linear(key, w_kv, b_kv).split_with_sizes(rows[1:], -1)
    else:
        matrices: Any = apart if packed is None else packed.split_with_sizes(rows)
        biases = none if bias is None else bias.split_with_sizes(rows)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), matrices, biases, strict=True))
    return q, k, v


def _widths(module: nn.MultiheadAttention) -> tuple[int, int, int]:
    """The widths E, K and W of query, key and value, as the weights have them."""
    if module.in_proj_weight is not None:
        return (module.in_proj_weight.shape[1],) * 3
    q, k, v = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    return q.shape[1], k.shape[1], v.shape[1]


@recounts(modules=(nn.MultiheadAttention,))
def _attention(module: nn.MultiheadAttention, use: Use) -> dict[str, Any]:
    """The numbers of heads and the widths, from the kept rows of the projections.

    A layer that `nn.MultiheadAttention` can still be keeps its class; any other gets the one of this file, in place.

    Raises `SizeError` where heads would differ in width.
    """
    h, d = module.num_heads, module.head_dim
    v = module.v_head_dim if isinstance(module, MultiheadAttention) else d
    if module.in_proj_weight is not None:
        read = {"in_proj_weight": 0}
        rows = np.split(use.kept("in_proj_weight", 0, h * (2 * d + v)), [h * d, 2 * h * d])
    else:
        read = {"q_proj_weight": 0, "k_proj_weight": 0, "v_proj_weight": 0}
        rows = [use.kept(name, 0, h * width) for name, width in zip(read, (d, d, v), strict=True)]
    grids = [kept.reshape(h, -1) for kept in rows]
    left: Bools = np.asarray(grids[0].any(1))
    q_width, k_width, v_width = (int(grid.any(0).sum()) for grid in grids)
    if q_width != k_width or any(not np.array_equal(grid, np.outer(left, grid.any(0))) for grid in grids):
        raise use.impossible("heads would differ in width, or queries, keys and values in their heads", read)
    heads = int(left.sum())
    embed_dim, kdim, vdim = _widths(module)
    plain = q_width == v_width == d and heads * d == embed_dim == module.out_proj.weight.shape[0]
    if plain and type(module) is nn.MultiheadAttention:
        return {"embed_dim": embed_dim, "kdim": kdim, "vdim": vdim, "num_heads": heads}
    scale = module.scale if isinstance(module, MultiheadAttention) else d**-0.5
    narrow(module, num_heads=heads, head_dim=q_width, v_head_dim=v_width, scale=scale)
    return {}


@recounts(modules=(nn.TransformerEncoder,))
def _encoder(module: nn.TransformerEncoder, use: Use) -> dict[str, Any]:
    """Turn nested tensors off if any layer cannot take them: the encoder checks only its first layer."""
    narrowed = any(isinstance(m, MultiheadAttention) for m in module.modules())
    return {"use_nested_tensor": False} if narrowed else {}


@recounts(modules=(nn.Transformer,))
def _transformer(module: nn.Transformer, use: Use) -> dict[str, Any]:
    """The width that its forward checks in source and target: that of the first query."""
    layers = (m for m in module.modules() if isinstance(m, nn.MultiheadAttention))
    return {"d_model": next((_widths(m)[0] for m in layers), None)}
