"""The record between two models, of which one was made from the other in any number of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.export import ExportedProgram

from fxprune._record.history import Record
from fxprune._record.holder import record, steps_in
from fxprune.capture.tensors import Tensors
from fxprune.errors import PlanError


def record_since(small: nn.Module | ExportedProgram, model: nn.Module) -> Record:
    """The record from a model to the small one: of the last step, or of all steps since the model had its shapes.

    Raises `PlanError` if the small one was not made from this model, and if the steps since cannot be joined.
    """
    steps = steps_in(small)
    single = (record(small),) if steps is None else steps.single
    shapes = {name: tuple(tensor.shape) for name, tensor in Tensors.of(model).items()}
    made = since(single, shapes)
    if made is None:
        name = next(iter(_differing(single[-1], shapes, {*single[-1].removed})), "the model")
        raise another_model(name, f"it has shape {shapes.get(name)}, and had {single[-1].before.get(name)} before")
    return made


def since(single: Sequence[Record], shapes: Mapping[str, tuple[int, ...]]) -> Record | None:
    """The record of those of some steps that were made since a model had these shapes; None if it never had them."""
    lost = {name for one in single for name in one.removed}
    for number in reversed(range(len(single))):
        dropped = {name for one in single[:number] for branch in one.plan.dropped for name in branch.tensors}
        if not dropped & shapes.keys() and not _differing(single[number], shapes, lost):
            made = single[-1]
            for earlier in reversed(single[number:-1]):
                made = earlier.then(made)
            return made
    return None


def _differing(made: Record, shapes: Mapping[str, tuple[int, ...]], names: set[str]) -> list[str]:
    """Those of some tensors that have another shape than before a step."""
    return [n for n, shape in made.before.items() if n in names and n in shapes and shapes[n] != tuple(shape)]


def another_model(name: str, why: str) -> PlanError:
    """The error for a model that the small one was not made from."""
    return PlanError(
        "the small model was not made from this model",
        at=f'"{name}"',
        why=why,
        do="pass the model that was given to transform, as it was then, and what transform returned. A small model "
        "without the records of all its steps knows its last step alone: make one by fxprune.transform(model, "
        "example_inputs, plan=plan) with the plan of all steps (`pruner.plan`, or `first.then(second)`), load the "
        "trained weights, and pass it",
    )
