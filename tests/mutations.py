"""Small changes of a small model, each of which makes it wrong, and the proof tried on them: `unseen_mutations`.

A proof that passes says something only if it fails for a model that is wrong. So one kept weight is changed by 1 %, or
two kept slots of one parameter are exchanged, and the proof runs again, as `transform` has run it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn

import fxprune
from fxprune import _attempt
from fxprune.errors import VerificationError

FACTOR = 1.01
OPTIONS = {"ratio": 0.3, "importance": "random", "seed": 3}


@dataclass(frozen=True)
class Mutation:
    """A change of one tensor of a small model.

    text: what is changed, for the reader.
    name: the name of the tensor.
    apply: a function that changes the tensor in place.
    """

    text: str
    name: str
    apply: Callable[[torch.Tensor], None]


@dataclass(frozen=True)
class Tried:
    """The outcome.

    tried: the changes that were made.
    unseen: those that the proof did not see, although they change what the small model gives.
    without_effect: those that it did not see, and that change nothing that the small model gives on these inputs.
    """

    tried: tuple[str, ...]
    unseen: tuple[str, ...]
    without_effect: tuple[str, ...]


def unseen_mutations(
    model: nn.Module, inputs: Any, run: Callable[[nn.Module, Any], list[torch.Tensor]], *, each: int = 2, **options: Any
) -> Tried:
    """Prune a model, and try the proof on changes of the small model.

    Args:
        model: the original, in float64.
        inputs: its example inputs.
        run: a function from a model and inputs to the results that count, as tensors.
        each: how many weights are changed, and how many pairs exchanged.
        options: those of `transform`, instead of `OPTIONS`.
    """
    proven: list[tuple[Any, ...]] = []

    def proof(*args: Any) -> Any:
        proven.append(args)
        return prove(*args)

    prove = _attempt._proof
    with mock.patch.object(_attempt, "_proof", proof):
        small = fxprune.transform(model, inputs, **{**OPTIONS, **options})
    args = next(args for args in proven if args[1].small is small)
    tensors = {**dict(small.named_parameters()), **dict(small.named_buffers())}
    removed = fxprune.record(small).removed
    chosen = list(mutations(tensors, removed, each=each))
    before = run(small, inputs)
    unseen, without_effect = [], []
    for mutation in chosen:
        tensor = tensors[mutation.name]
        kept = tensor.detach().clone()
        with torch.no_grad():
            mutation.apply(tensor)
        try:
            prove(*args)
        except VerificationError:
            continue
        else:
            effect = _apart(before, run(small, inputs))
            (unseen if effect else without_effect).append(f"{mutation.text}: the results change by {effect:.1e}")
        finally:
            with torch.no_grad():
                tensor.copy_(kept)
    return Tried(tuple(m.text for m in chosen), tuple(unseen), tuple(without_effect))


def mutations(tensors: dict[str, torch.Tensor], removed: Any, *, each: int) -> Iterator[Mutation]:
    """Changes of some tensors, chosen at random, the same at every call."""
    draw = random.Random(0)
    weights = [name for name, tensor in tensors.items() if tensor.is_floating_point() and bool((tensor != 0).any())]
    for name in draw.sample(weights, min(each, len(weights))):
        large = tensors[name].detach().abs().flatten()
        slot = draw.choice(torch.topk(large, (len(large) + 1) // 2).indices.tolist())
        yield Mutation(f"{name}.view(-1)[{slot}] * {FACTOR}", name, lambda t, slot=slot: _multiply(t, slot))
    dims = [
        (name, dim)
        for name, slots in removed.items()
        for dim in slots
        if name in weights and tensors[name].shape[dim] > 1
    ]
    for name, dim in draw.sample(dims, min(each, len(dims))):
        a, b = draw.sample(range(tensors[name].shape[dim]), 2)
        if not torch.equal(tensors[name].select(dim, a), tensors[name].select(dim, b)):
            text = f"{name}: slots {a} and {b} of dimension {dim} exchanged"
            yield Mutation(text, name, lambda t, dim=dim, a=a, b=b: _exchange(t, dim, a, b))


def _multiply(tensor: torch.Tensor, slot: int) -> None:
    index = torch.unravel_index(torch.tensor(slot), tensor.shape)
    tensor[index] *= FACTOR


def _exchange(tensor: torch.Tensor, dim: int, a: int, b: int) -> None:
    first = tensor.select(dim, a).clone()
    tensor.select(dim, a).copy_(tensor.select(dim, b))
    tensor.select(dim, b).copy_(first)


def _apart(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """The largest relative difference of two lists of tensors; inf for other shapes."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(before, after, strict=True) if a.numel()]
    return max(
        (float((a - b).abs().nan_to_num().max() / (a.abs().nan_to_num().max() or 1)) for a, b in pairs), default=0.0
    )
