"""Which elements of a tensor depend on the inputs of a model: one rule per family of operations.

What does not depend on them is a constant of the model, and stands in the tensor as a number. A *dependence* is a bool
tensor of the shape of the tensor or one that broadcasts to it, True where an element depends on the inputs; `True` and
`False` stand for all and for none. A rule may say that a constant depends on the inputs, and does so for constants that
follow the size of the inputs, but never the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fxprune.capture.values import tensors_in
from fxprune.ops.creation import FILLS, ZEROS
from fxprune.ops.elementwise import COPIES, ELEMENTWISE
from fxprune.ops.pooling import SPATIAL
from fxprune.ops.reduction import STATISTICS, SUMS

Dependence = bool | torch.Tensor
Rule = Callable[["Seen"], Dependence | Sequence[Dependence]]


class Shadows:
    """The dependence of every tensor, kept per storage: views and what is written in place need no rule."""

    SWEEP = 64

    def __init__(self) -> None:
        self._known: dict[int, tuple[StorageWeakRef, Dependence]] = {}

    def of(self, tensor: torch.Tensor) -> Dependence:
        """The dependence of a tensor; a constant where nobody said anything."""
        shadow = self._shadow(tensor)
        if isinstance(shadow, bool):
            return shadow
        if not tensor.numel():
            return False
        if shadow.numel() != _elements(tensor):
            return True  # seen as another type
        return shadow.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def set(self, tensor: torch.Tensor, dependence: Dependence) -> None:
        """From now on a tensor, and what shares memory with it, has this dependence."""
        before = self._shadow(tensor)
        if not tensor.numel() or before is dependence:
            return None
        whole = tensor.numel() == _elements(tensor)
        if isinstance(dependence, bool) and whole:
            return self._keep(tensor, dependence)
        if isinstance(before, bool):
            before = torch.full((_elements(tensor),), before, device=tensor.device)
        if before.numel() != _elements(tensor):
            return self._keep(tensor, True)
        if isinstance(dependence, torch.Tensor):
            dependence = dependence.expand(tensor.shape)
        for dim, stride in enumerate(tensor.stride()):  # one place in memory depends on what any of its elements does
            if stride == 0 and tensor.shape[dim] > 1:
                tensor = tensor.narrow(dim, 0, 1)
                dependence = dependence if isinstance(dependence, bool) else dependence.any(dim, keepdim=True)
        place = before.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        place.copy_(torch.as_tensor(dependence, device=tensor.device))
        return self._keep(tensor, before)

    def _shadow(self, tensor: torch.Tensor) -> Dependence:
        known = self._known.get(tensor.untyped_storage()._cdata)
        return known[1] if known is not None and not _expired(known[0]) else False

    def _keep(self, tensor: torch.Tensor, dependence: Dependence) -> None:
        if len(self._known) % self.SWEEP == self.SWEEP - 1:
            self._known = {key: entry for key, entry in self._known.items() if not _expired(entry[0])}
        storage = tensor.untyped_storage()
        self._known[storage._cdata] = (StorageWeakRef(storage), dependence)  # type: ignore[no-untyped-call]


def _expired(storage: StorageWeakRef) -> bool:
    return bool(storage.expired())  # type: ignore[no-untyped-call]


def _elements(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


class Seen:
    """An operation that is about to run: its arguments by name, and the dependence of each tensor among them."""

    def __init__(self, func: Any, raw: Mapping[str, Any], shadows: Shadows) -> None:
        self.func, self.raw, self.of = func, raw, shadows.of

    def __getitem__(self, name: str) -> Any:
        return self.raw[name]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Every tensor among the arguments, in order."""
        found = (v for value in self.raw.values() for v in (value if isinstance(value, (list, tuple)) else (value,)))
        return [v for v in found if isinstance(v, torch.Tensor)]

    def live(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elements at which a tensor is not always zero."""
        dependence = self.of(tensor)
        if dependence is True:
            return torch.ones_like(tensor, dtype=torch.bool)
        return torch.as_tensor(tensor != 0) if isinstance(dependence, bool) else dependence | (tensor != 0)


def either(*dependences: Dependence) -> Dependence:
    """Depends where any of them does, broadcast."""
    made: Dependence = False
    for other in dependences:
        if made is True or other is True:
            return True
        made = other if made is False else made if other is False else made | other
    return made


def along(dependence: Dependence, tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Per index of a dimension whether any element there depends, shape [size of the dimension]."""
    size = tensor.shape[dim]
    if isinstance(dependence, bool):
        return torch.full((size,), dependence, device=tensor.device)
    return dependence.expand(tensor.shape).movedim(dim, 0).reshape(size, -1).any(1)


def rule_of(name: str) -> Rule | None:
    """The rule of an operation; `relu_` has that of `relu`."""
    return RULES.get(name) or RULES.get(name.removesuffix("_"))


def is_view(func: Any) -> bool:
    """Whether the result shares memory with an argument, and with it its dependence."""
    return bool(func.is_view) or func._schema.name == "aten::_unsafe_view"


def execute(seen: Seen, args: Sequence[Any], kwargs: Mapping[str, Any], shadows: Shadows) -> Any:
    """Run an operation and keep the dependence of its results; without a rule all depend where anything does."""
    func = seen.func
    rule = None if is_view(func) else rule_of(func._schema.name)
    if rule is not None:
        made_of = rule(seen)  # before it runs, since it may write into its arguments
    else:
        made_of = not is_view(func) and any(seen.of(t) is not False for t in seen.tensors)
    before = {t.untyped_storage()._cdata for t in seen.tensors}
    made = func(*args, **kwargs)
    for number, output in enumerate([made] if isinstance(made, torch.Tensor) else tensors_in(made)):
        if func._schema.is_mutable or output.untyped_storage()._cdata not in before:
            shadows.set(output, made_of[number] if isinstance(made_of, Sequence) else made_of)
    return made


RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update({f"aten::{name}": function for name in names})
        return function

    return register


@_rule(*ELEMENTWISE, *COPIES, "eq", "ne", "copy")
def _elementwise(seen: Seen) -> Dependence:
    """y[i] = f(a[i], b[i], ...)"""
    if "src" in seen.raw:
        return seen.of(seen["src"])
    return either(*map(seen.of, seen.tensors))


@_rule("mul")
def _mul(seen: Seen) -> Dependence:
    """y[i] = a[i] * b[i]: zero where one of them always is."""
    a, b = seen["self"], seen["other"]
    if not isinstance(b, torch.Tensor):
        return False if b == 0 else seen.of(a)
    return either(_and(seen.of(a), seen, b), _and(seen.of(b), seen, a))


def _and(dependence: Dependence, seen: Seen, factor: torch.Tensor) -> Dependence:
    if dependence is False:
        return False
    live = seen.live(factor)
    return live if isinstance(dependence, bool) else dependence & live


@_rule("glu")
def _glu(seen: Seen) -> Dependence:
    """y[c] = x[c] * sigmoid(x[n + c])"""
    x, dim = seen["self"], seen["dim"]
    dependence = seen.of(x)
    if isinstance(dependence, bool):
        return dependence
    a, b = dependence.expand(x.shape).chunk(2, dim)
    return either(a, b & seen.live(x.chunk(2, dim)[0]))


@_rule(
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
    *("batch_norm", "_batch_norm_no_update", "_batch_norm_impl_index"),
)
def _batch_norm(seen: Seen) -> Dependence | list[Dependence]:
    """y[n, c, s] = x[n, c, s] * a[c] + b[c], where the statistics are those that were learned."""
    x, weight = seen["input"], seen["weight"]
    if seen.raw.get("training") or seen["running_mean"] is None:
        return True
    made = seen.of(x)
    if weight is not None and made is not False:
        scale = (weight != 0).view(-1, *(1,) * (x.ndim - 2))
        made = scale if isinstance(made, bool) else made & scale
    return [made, *(False for _ in seen.func._schema.returns[1:])]


NORMS = {f"aten::{name}" for name in ("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")}


@_rule(*(name.removeprefix("aten::") for name in NORMS))
def _layer_norm(seen: Seen) -> list[Dependence]:
    """y[.., c] = (x[.., c] - mean) / deviation * w[c] + b[c]: all of x goes into each, but where w is zero."""
    x, weight = seen["input"], seen["weight"]
    made: Dependence = any(seen.of(t) is not False for t in seen.tensors)
    if made is True and weight is not None and seen.of(weight) is False:
        made = torch.as_tensor(weight != 0).expand(x.shape)
    return [made, *(True for _ in seen.func._schema.returns[1:])]


@_rule("convolution", "_convolution", "cudnn_convolution", "convolution_overrideable")
def _convolution(seen: Seen) -> Dependence:
    """y[n, (g o), s'] = sum_{i, k} w[(g o), i, k] * x[n, (g i), s + k] + b[(g o)], every channel as a whole."""
    x, w, bias = seen["input"], seen["weight"], seen.raw.get("bias")
    if seen.of(w) is not False:
        return True
    space, groups = w.ndim - 2, seen["groups"]
    channels = along(seen.of(x), x, -1 - space).view(groups, -1)
    live = torch.as_tensor(w != 0).flatten(2).any(2)
    if seen["transposed"]:
        made = (live.view(*channels.shape, -1) & channels[:, :, None]).any(1)
    else:
        made = (live.view(groups, -1, live.shape[1]) & channels[:, None, :]).any(2)
    made = made.reshape(-1, *(1,) * space)
    if bias is None or seen.of(bias) is False:
        return made
    return True


@_rule("mm", "bmm", "mv", "dot", "vdot")
def _product(seen: Seen) -> Dependence:
    """y[.., m, n] = sum_k a[.., m, k] * b[.., k, n], all m as one."""
    a, b = list(seen.raw.values())[:2]
    if a.ndim < 2 or b.ndim < 2:
        return seen.of(a) is not False or seen.of(b) is not False
    return product(seen, a, b)


@_rule("addmm", "baddbmm", "addmv")
def _add_product(seen: Seen) -> Dependence:
    """y = c + a b"""
    addend, a, b = list(seen.raw.values())[:3]
    if b.ndim < 2:
        return any(seen.of(t) is not False for t in (addend, a, b))
    return either(seen.of(addend), product(seen, a, b))


def product(seen: Seen, a: torch.Tensor, b: torch.Tensor) -> Dependence:
    """[.., m, k] times [.., k, n]: shape [.., 1, n]."""
    da, db = seen.of(a), seen.of(b)
    if da is False and db is False:
        return False
    rows = da if isinstance(da, torch.Tensor) else torch.full(a.shape, da, device=a.device)
    made = rows.any(-2)[..., :, None] & seen.live(b)
    if db is not False:
        made = made | (seen.live(a).any(-2)[..., :, None] & db)
    return made.any(-2, keepdim=True)


ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)


@_rule(*ATTENTION)
def _attention(seen: Seen) -> list[Dependence]:
    """y[.., t, j] = sum_s a[.., t, s] * v[.., s, j]: zero where v always is."""
    live = seen.live(seen["value"]).any(-2, keepdim=True)
    heads = seen["query"].shape[-3]
    if live.shape[-3] != heads:
        live = live.repeat_interleave(heads // live.shape[-3], -3)
    return [live, *(True for _ in seen.func._schema.returns[1:])]


def dims_of(seen: Seen) -> list[int]:
    """The dimensions that a reduction or a softmax runs over."""
    ndim, dim = seen["self"].ndim, seen.raw.get("dim")
    dims: Sequence[int] = range(ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return sorted({d % ndim for d in dims}) if ndim else []


def is_reduction(name: str, seen: Seen) -> bool:
    """Whether an operation sums or selects over dimensions; the maximum of two tensors does not."""
    known = name in _SUMS or name in _STATISTICS
    return known and not isinstance(seen.raw.get("other"), torch.Tensor)


_SUMS = {f"aten::{name}" for name in SUMS}
_STATISTICS = {f"aten::{name}" for name in STATISTICS}


@_rule(*SUMS, *STATISTICS)
def _reduction(seen: Seen) -> Dependence:
    """y = f over i of x[i]. A sum of constants follows the size of what is summed over."""
    if isinstance(seen.raw.get("other"), torch.Tensor):
        return _elementwise(seen)  # type: ignore[return-value]
    x = seen["self"]
    sums = seen.func._schema.name in _SUMS
    dependence: Dependence = seen.live(x) if sums else seen.of(x)
    if isinstance(dependence, bool):
        return dependence
    dims, keep = dims_of(seen), bool(seen.raw.get("keepdim", False))
    return dependence.expand(x.shape).amax(dims, keepdim=keep) if dims else dependence


@_rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def _softmax(seen: Seen) -> Dependence:
    """y = exp(x[i]) / sum_i exp(x[i]): even of a constant it follows the size."""
    return True


_PADDED = {f"aten::avg_pool{k}d" for k in (1, 2, 3)}


@_rule(*(name for names in SPATIAL.values() for name in names.split() if "unpool" not in name))
def _spatial(seen: Seen) -> Dependence | list[Dependence]:
    """y[.., c, s'] = f over a window of x[.., c, s]: a constant stays one, unless zeros of the padding are averaged."""
    name = seen.func._schema.name
    x = next(iter(seen.raw.values()))
    space = next(k for k, names in SPATIAL.items() if name.removeprefix("aten::") in names.split())
    padded = name in _PADDED and any(_listed(seen["padding"])) and seen.raw.get("count_include_pad", True)
    dependence: Dependence = seen.live(x) if padded else seen.of(x)
    if isinstance(dependence, torch.Tensor):
        dependence = dependence.expand(x.shape).amax(tuple(range(-space, 0)), keepdim=True)
    return [dependence, *(True for _ in seen.func._schema.returns[1:])]


def _listed(value: Any) -> Iterable[int]:
    return value if isinstance(value, (list, tuple)) else (value,)


@_rule("embedding")
def _embedding(seen: Seen) -> Dependence:
    """y[.., c] = w[index[..], c]: a constant where a column is the same in every row."""
    w = seen["weight"]
    return ~(w == w[:1]).all(0) if seen.of(w) is False else True


@_rule(
    *FILLS, *ZEROS, "zeros_like", "ones_like", "empty_like", "full_like", "arange", "linspace", "eye", "tril_indices"
)
def _made(seen: Seen) -> Dependence:
    """Made from a shape alone."""
    return False


@_rule(
    *("cat", "stack", "flip", "roll", "rot90", "repeat", "tile", "constant_pad_nd", "im2col", "tril", "triu"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "_reshape_copy"),
    *("index", "index_select", "gather", "_unsafe_index", "slice_scatter", "select_scatter"),
)
def _moved(seen: Seen) -> Dependence | list[Dependence]:
    """Data that is moved: what depends is found by moving the dependence."""
    numbers = [t for t in seen.tensors if not t.is_floating_point()]
    if any(seen.of(t) is not False for t in numbers):
        return True
    raw = {name: _shadowed(value, seen) for name, value in seen.raw.items()}
    if "pad" in raw:
        raw["value"] = 0.0
    positional = [raw.pop(a.name) for a in seen.func._schema.arguments if not a.kwarg_only]
    made = seen.func(*positional, **{k: v for k, v in raw.items() if v is not None})
    return made > 0.5 if isinstance(made, torch.Tensor) else [part > 0.5 for part in made]


def _shadowed(value: Any, seen: Seen) -> Any:
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point():
            return value
        dependence = seen.of(value)
        if isinstance(dependence, bool):
            return torch.full(value.shape, float(dependence), dtype=torch.float64, device=value.device)
        return dependence.to(torch.float64).contiguous()
    if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
        return [_shadowed(v, seen) for v in value]
    return value


def constant_planes(planes: torch.Tensor, rounding: float = 1e-13) -> torch.Tensor:
    """Which rows of [n, positions] hold one number at all positions, but for rounding."""
    if not planes.numel():
        return torch.ones(len(planes), dtype=torch.bool, device=planes.device)
    spread = (planes - planes[:, :1]).abs().amax(1)
    return spread <= rounding * planes.abs().amax(1).clamp_min(math.ulp(0.0))
