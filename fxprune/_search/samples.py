"""The data of a measured choice: a part repairs the small models, another part judges them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fxprune._repair.batches import PARTS, DataPart, held_out, split
from fxprune._repair.lanes import Model
from fxprune.capture.inputs import Inputs
from fxprune.capture.process_state import no_fused_attention, same_random_state
from fxprune.errors import InputError
from fxprune.running.inputs import inputs_of

JUDGED = 0.25
"""The share of the samples that judge and take no part in a repair."""


@dataclass(frozen=True)
class Samples:
    """Batches as they were given, and the inputs in them.

    repairing: the inputs on which small models are repaired. judging: the inputs on which they are judged.
    batches: those that `judging` was picked from, with their labels.
    """

    repairing: list[Inputs] = field(default_factory=list)
    judging: list[Inputs] = field(default_factory=list)
    batches: list[Any] = field(default_factory=list)

    @property
    def form(self) -> dict[str, int]:
        """The shapes of the inputs and how many batches have them, by which a file knows its data."""
        return dict(Counter(" ".join(_shapes(inputs)) for inputs in (*self.repairing, *self.judging)))


def _shapes(inputs: Inputs) -> list[str]:
    args, kwargs = inputs
    return ["x".join(map(str, value.shape)) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def samples_of(model: nn.Module, batches: Iterable[Any], pick: Callable[[Any], Any] | None, *, judge: bool) -> Samples:
    """The samples in some batches, which are read once.

    judge: True to set a part aside that judges; it is chosen by sample. Fewer than ten batches are split then.

    Raises `InputError` for batches that do not fit the model, and for a single sample of which none can judge.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, (Tensor, dict, str)):
        return Samples(inputs_of(model, batches, pick))  # which raises
    given = list(batches)
    whole = inputs_of(model, given, pick)
    if not judge:
        return Samples(whole)
    if len(given) < PARTS:
        pieces = [piece for batch in given for piece in split(batch, -(-PARTS // len(given)))]
        given = pieces if _runs(model, inputs_of(model, pieces[-1:], pick)[0]) else given
    if len(given) < 2:
        raise InputError(
            "a measured choice needs at least two samples",
            why="one part of them judges, and the others repair",
            do="pass more batches, or a batch of several samples",
        )
    held = held_out(len(given), JUDGED)
    repairing, judging = ([one for one, h in zip(given, held, strict=True) if h is wanted] for wanted in (False, True))
    return Samples(inputs_of(model, repairing, pick), inputs_of(model, judging, pick), judging)


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    """True if the model takes these inputs."""
    with evaluating(model):
        try:
            Model(model).run(DataPart(inputs, 0))
        except InputError:
            return False
    return True


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode, and back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with no_fused_attention(), same_random_state():
            yield
    finally:
        for module, training in modes:
            module.training = training
