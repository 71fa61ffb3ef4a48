"""Code of the proof in place of kernels of torch that refuse the precision, or widths that only the proof meets."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.analysis.arguments import bound
from fxprune.ops.attention import KERNELS as ATTENTION


def own_kernel(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation that its kernel refuses; None if the proof has no code for it."""
    name = func._schema.name.removeprefix("aten::")
    if name == "_grouped_mm":
        return _grouped_mm(*args, **kwargs)
    return _attention(func, args, kwargs) if name in ATTENTION else None


def _grouped_mm(a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor | None = None, *rest: Any, **options: Any) -> Any:
    """The product of each row of `a` with one matrix of `b`: [row, out]. Rows after the last offset give zeros.

    a: [row, in]. b: [group, in, out]. offs: [group], ascending; row i belongs to the first group g with i < offs[g].
    Other forms of this operation have no code here: None.
    """
    if offs is None or (a.ndim, b.ndim) != (2, 3):
        return None
    starts = [0, *offs.tolist()]
    parts = [a[start:stop] @ b[g] for g, (start, stop) in enumerate(itertools.pairwise(starts))]
    return torch.cat([*parts, a.new_zeros(a.shape[0] - starts[-1], b.shape[2])])


def _attention(func: Any, args: Any, kwargs: Any) -> Any:
    """The results of a fused kernel of attention, by products and a softmax, which take all widths and types.

    Only gradients read the results behind the first one (logarithms of sums, random states): they are zeros here.
    """
    _, named = bound(func, args, kwargs)
    query, key = named["query"], named["key"]
    mask = named.get("attn_mask", named.get("attn_bias"))
    shared = query.shape[-3] != key.shape[-3]
    first, _ = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, named["value"], mask, 0.0, named["is_causal"], scale=named.get("scale"), enable_gqa=shared
    )
    with torch._C._DisableTorchDispatch():
        on_meta = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        others = func(*on_meta[0], **on_meta[1])[1:]
        made = [torch.zeros_like(t, device=first.device) if isinstance(t, torch.Tensor) else t for t in others]
    return (first, *made)
