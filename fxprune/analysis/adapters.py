"""Low-rank adapters: two weights whose product is added to what another weight does to the same input.

    y = x W^T + s (x A^T) B^T          A: [rank, in], B: [out, rank]
    y = x (W + s B A)^T

The rank is a choice of whoever added the adapter, and the adapter is not trained yet or trained alone. So a plain ratio
leaves it. Two things say that a group is a rank:

- names: all its tensors have a part in their path that adapters are called by, such as "lora_A" or "lora_down";
- structure: it is in two weights and nothing else (no bias, no norm), both of whose other widths are larger; nothing
  but movements, dropout and numbers stands between the two products; and their result is added to that of another
  weight with the same input, or to another weight.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from torch import nn

from fxprune.analysis.findings import Findings, Group
from fxprune.analysis.steps import Step, Steps
from fxprune.ops.factors import Value

_NAME = re.compile(r"lora_?(embedding_?)?(a|b|down|up|mid)", re.IGNORECASE)
"""A part of the path of a parameter of an adapter, as peft, loralib, torchtune and diffusers write it."""

_MOVEMENTS = frozenset(
    "aten::" + name
    for name in """view _unsafe_view reshape t transpose permute numpy_T unsqueeze squeeze expand flatten unflatten
    contiguous clone alias detach to _to_copy dropout native_dropout""".split()
)
"""Operations that hand on the numbers of their first argument."""

_PRODUCTS = frozenset(
    f"aten::{name}" for name in "mm bmm matmul linear addmm baddbmm convolution conv1d conv2d conv3d".split()
)
SUM = 8
"""The most sums in a row that are looked through: adapters stand next to the layer that they adapt."""

_SUMS = frozenset(("aten::add", "aten::add_"))
_RANDOM = frozenset(("aten::bernoulli_", "aten::bernoulli", "aten::rand_like", "aten::empty_like"))


def low_rank_adapters(findings: Findings) -> frozenset[int]:
    """The numbers of the groups that are the rank of a low-rank adapter."""
    named = {group.number for group in findings.groups if all(_is_named(m.parameter) for m in group.members)}
    narrow = {frozenset(m.parameter for m in g.members): g.number for g in findings.groups if _is_narrow(g)}
    pairs = _Sums(findings.observed.steps).adapters() if narrow.keys() else ()
    return frozenset(named | {narrow[pair] for pair in pairs if pair in narrow})


def idle_adapters(model: nn.Module, cut: Iterable[str]) -> dict[str, list[str]]:
    """Name of an adapter that forward does not use -> the paths of the layers that it is in, if they lose channels.

    Layers as peft writes them: adapters by name, of which some are active, unless all are merged or disabled. cut: the
    names of the parameters that lose channels.
    """
    layers: dict[str, list[str]] = {}
    changed = {name.rpartition(".base_layer.")[0] for name in cut if ".base_layer." in name}
    for path, module in model.named_modules():
        if path in changed and hasattr(module, "active_adapters"):
            tables = [child for child in module.children() if isinstance(child, nn.ModuleDict | nn.ParameterDict)]
            off = getattr(module, "merged", False) or getattr(module, "disable_adapters", False)
            used = [] if off else module.active_adapters
            for name in dict.fromkeys(name for table in tables for name in table):
                if name not in used:
                    layers.setdefault(name, []).append(path)
    return layers


def _is_named(parameter: str) -> bool:
    return "lora" in parameter.lower() and any(_NAME.fullmatch(part) for part in parameter.split("."))


def _is_narrow(group: Group) -> bool:
    """True if a group is one dimension of two weights whose other widths are both larger."""
    members = group.members
    if len(members) != 2 or any(m.tensor.ndim < 2 for m in members) or members[0].parameter == members[1].parameter:
        return False
    sizes = [m.tensor.shape[m.dim] for m in members]
    others = [max(size for dim, size in enumerate(m.tensor.shape) if dim != m.dim) for m in members]
    return sizes[0] == sizes[1] == group.size < min(others)


class _Sums:
    """The sums of a run, and the products in them."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.made: dict[Value, Step] = {value: step for step in steps.done for value in step.made}

    def adapters(self) -> Iterator[frozenset[str]]:
        """The names of the two weights of each adapter."""
        for step in self.steps.done:
            if step.name in _SUMS or step.name in ("aten::addmm", "aten::baddbmm"):
                terms = [*self._terms(step.made[0], SUM)]
                for term in terms:
                    pair, source = self._pair(term)
                    if pair and any(self._is_base(other, source) for other in terms if other is not term):
                        yield pair

    def _terms(self, value: Value, depth: int) -> Iterator[tuple[Value, ...]]:
        """The terms of a sum: each a value, or the two factors of a product. depth: the most sums to look through."""
        value = self._source(value)
        step = self.made.get(value)
        if step is not None and step.name in _PRODUCTS:
            *added, left, right = _factors(step)
            yield left, right
        elif step is not None and step.name in _SUMS and depth:
            added = step.read
        else:
            added = []
            yield (value,)
        for other in added:
            yield from self._terms(other, depth - 1)

    def _source(self, value: Value) -> Value:
        """The value whose numbers a value has, but for their places, dropout and a number that multiplies all."""
        while (step := self.made.get(value)) is not None and (before := self._handed_on(step)) is not None:
            value = before
        return value

    def _handed_on(self, step: Step) -> Value | None:
        """The argument whose numbers an operation hands on, None if it does something else."""
        read = step.read
        if step.name in _MOVEMENTS:
            return read[0]
        if step.name not in ("aten::mul", "aten::div", "aten::mul_", "aten::div_"):
            return None
        others = [value for value in read if len(value.shape) and not self._is_random(value)]
        return others[0] if len(others) == 1 else None

    def _is_random(self, value: Value) -> bool:
        step = self.made.get(value)
        while step is not None and step.name in ("aten::div_", "aten::div") and step.read:
            step = self.made.get(step.read[0])
        return step is not None and step.name in _RANDOM

    def _pair(self, term: tuple[Value, ...]) -> tuple[frozenset[str], Value | None]:
        """The weights of a product of three factors, and the third one; of a product of two weights both and None."""
        sources = [self._source(value) for value in term]
        names = [value.name for value in sources]
        if len(sources) != 2 or not any(names):
            return frozenset(), None
        if all(names):
            return frozenset(filter(None, names)), None
        inner, weight = sources if names[1] else sources[::-1]
        step = self.made.get(inner)
        if step is None or step.name not in _PRODUCTS:
            return frozenset(), None
        factors = [self._source(value) for value in _factors(step)]
        weights = [value for value in factors if value.name]
        if len(factors) != 2 or len(weights) != 1 or weight.name is None or weights[0].name is None:
            return frozenset(), None
        return frozenset((weights[0].name, weight.name)), next(value for value in factors if not value.name)

    def _is_base(self, term: tuple[Value, ...], source: Value | None) -> bool:
        """True if a term is a weight and `source` is None, or the product of a weight and `source`."""
        values = [self._source(value) for value in term]
        weights = [value for value in values if value.name and len(value.shape) > 1]
        if len(weights) != 1:
            return False
        return len(values) == 1 if source is None else source in values


def _factors(step: Step) -> list[Value]:
    """The arguments of a product; those that are added to it come first."""
    read = step.read
    if step.name in ("aten::addmm", "aten::baddbmm"):
        return read
    return [*read[2:], *read[:2]]
