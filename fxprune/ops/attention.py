"""Fused attention: one operation for q [n, h, l, e], k [n, h, s, e], v [n, h, s, f].

Its rule is that of its parts, two contractions and a softmax between them. Only the fused kernels are here. Where torch
has no kernel (tensors without four dimensions, dropout on a CPU, values of another width than the queries),
`scaled_dot_product_attention` runs operations that have rules of their own. So the widths e and f may become different
here. If a graph calls a kernel that needs equal widths, its result gets another shape than the rule says; that is found
when the sizes of the graph are settled, and the channels are locked.
"""

from __future__ import annotations

import torch.nn.functional as F

from fxprune.channels.vector import Vector
from fxprune.ops.aspects import absent, carries, depends, multiplies, reads_constants, resizes
from fxprune.ops.constants import Read, Sum
from fxprune.ops.contraction import NOT_ZERO
from fxprune.ops.dependence import Dependence, Seen
from fxprune.ops.elementwise import broadcast
from fxprune.ops.factors import Asked, Way, is_one
from fxprune.ops.macs import Dims, met
from fxprune.ops.registry import Call, Operand, rule
from fxprune.ops.site import Site

KERNELS = """
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
    _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_fused_attention_overrideable
""".split()


@rule(*(f"aten::{name}" for name in KERNELS))
def attention(call: Call, query: Operand, key: Operand, value: Operand) -> list[Operand]:
    """y[n, h, l, f] = sum_s softmax_s(sum_e q[n, h, l, e] * k[n, h, s, e] + mask[n, h, l, s]) * v[n, h, s, f]

    The mask is broadcast. Where k and v have fewer heads than q, g heads of q share one: q[n, (h g)] meets k[n, h].
    """
    batch, heads, length, width = query.vectors
    call.heads(heads)
    call.same(batch, key.dim(0))
    call.same(batch, value.dim(0))
    shared = _shared(call, heads, key.dim(1))
    call.same(key.dim(1), value.dim(1))
    call.same(width, key.dim(3))
    call.same(key.dim(2), value.dim(2))
    if not query.zero[3] and not key.zero[3]:
        call.mark(width, NOT_ZERO)
    call.mark(key.dim(2), "attention takes a softmax over the keys")
    mask = call.arguments.get("attn_mask", call.arguments.get("attn_bias"))
    if isinstance(mask, Operand):
        scores = call.operand([batch, heads, length, key.dim(2)])
        broadcast(call, [scores, mask], scores.shape)
    if call.arguments["is_causal"]:
        call.lock(length, "causal attention compares positions")
        call.lock(key.dim(2), "causal attention compares positions")
    zero = [value.zero[0], value.zero[1] and not shared, False, value.zero[3]]
    outputs = [call.operand([batch, heads, length, value.dim(3)], zero)]
    for shape in call.shapes[1:]:  # logsumexp of each query's scores, random seeds, or empty tensors
        known: list[Vector] = [batch, heads, length] if len(shape) > 2 else []
        kept = [v if v.size == s else call.fixed(s) for v, s in zip(known, shape, strict=False)]
        outputs.append(call.operand([*kept, *(call.fixed(s) for s in shape[len(kept) :])], False))
    return outputs


def _shared(call: Call, heads: Vector, fewer: Vector) -> bool:
    """Tie the heads of the queries to those of the keys; True if several heads of the queries share one of the keys."""
    if heads.size == fewer.size:
        call.same(heads, fewer)
        return False
    h, _ = call.split(heads, (fewer.size, heads.size // fewer.size))
    call.same(h, fewer)
    return True


_KERNELS = tuple(f"aten::{name}" for name in KERNELS)


@depends(*_KERNELS)
def attention_dependence(seen: Seen) -> list[Dependence]:
    """Each channel of a head depends, unless all its values are zero."""
    live = seen.live(seen["value"]).any(-2, keepdim=True)
    heads = seen["query"].shape[-3]
    if live.shape[-3] != heads:
        live = live.repeat_interleave(heads // live.shape[-3], -3)
    return [live, *(True for _ in seen.func._schema.returns[1:])]


@reads_constants(*_KERNELS)
def attention_constants(seen: Seen) -> list[Read]:
    """The scores are sums over the width of queries and keys."""
    return [Sum(seen["query"], -1, seen["key"], -1)]


@multiplies(*_KERNELS)
def attention_products(query: Dims, key: Dims, value: Dims) -> list[Dims]:
    """n h l s e and n h l s f; what a causal mask leaves out is counted too"""
    batch, heads, length, width = query[0], query[1], query[2], met(query[3], key[3])
    return [(batch, heads, length, key[2], width), (batch, heads, length, key[2], value[3])]


@resizes("aten::scaled_dot_product_attention", *_KERNELS, targets=(F.scaled_dot_product_attention,))
def attention_scale(site: Site) -> None:
    """Write the scale of the original width: without one, torch would compute it from the new width."""
    query = site.operand(site.argument(0, "query"))
    if site.node.kwargs.get("scale") is None and site.removal.kept(query.dim(-1)) is not None:
        site.node.update_kwarg("scale", query.shape[-1] ** -0.5)


@carries("aten::scaled_dot_product_attention")
def attention_factors(asked: Asked) -> list[Way]:
    """The queries or the keys carry the ratio of two scales; the values a factor of the result."""
    ratio = asked.factor.new_tensor(asked.as_before("scale"))
    if is_one(ratio):
        return []
    return [{"query": ratio}, {"key": ratio}] if is_one(asked.factor) else []


absent(
    *_KERNELS,
    factors="the scale is an argument of the function that calls it",
    positions="no argument is a position",
    readers="no argument is a size",
    modules="a multi-head attention has heads and widths of its own, see `fxprune/rewrite/attention.py`",
    norms="it is no statistic",
)
