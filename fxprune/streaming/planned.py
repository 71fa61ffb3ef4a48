"""A plan for a checkpoint, made without the model in memory: shapes are analysed, norms are read in one pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune._analyze import analyze
from fxprune._record import record
from fxprune._transform import transform
from fxprune.analysis.findings import Findings, Group
from fxprune.capture.tensors import PARAMETER
from fxprune.criteria.table import GroupsImportance
from fxprune.errors import InputError, PlanError
from fxprune.planning.plan import Plan
from fxprune.streaming.checkpoint import Checkpoint
from fxprune.streaming.copying import Scratch, blocks, numbers_of
from fxprune.streaming.layout import StoredPart

POWERS = {"l1": 1, "l2": 2}
"""The criteria that are read from the files: name -> the power."""

WITHOUT_WEIGHTS = ("random", "uniform")
"""The criteria that read no weights."""

NormSums = dict[int, npt.NDArray[np.float64]]


def planned(
    checkpoint: Checkpoint,
    parts: Sequence[StoredPart],
    original: nn.Module,
    request: Mapping[str, Any],
    example_inputs: Any,
    tell: Callable[[int], None],
) -> Plan:
    """The plan of a request, with sizes and factors.

    request: the options of `analysis.plan`. example_inputs: None for those that the model brings (`dummy_inputs`).
    Raises `PlanError` for an importance that needs the model, `InputError` where there are no inputs.
    """
    given = getattr(original, "dummy_inputs", None) if example_inputs is None else example_inputs
    if given is None:
        raise InputError("the model brings no inputs of its own", do="pass stream(..., example_inputs=...)")
    inputs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), given)
    model = copy.deepcopy(original).to("meta")
    options = dict(request)
    importance = options.pop("importance", "l2")
    if importance in POWERS:
        importance = StreamedNorms(checkpoint, parts, POWERS[importance], tell)
    elif isinstance(importance, str) and importance not in WITHOUT_WEIGHTS:
        raise PlanError(
            f'the importance "{importance}" needs the model in memory',
            why="its weights are read once, tensor by tensor",
            do=f"use one of {', '.join((*POWERS, *WITHOUT_WEIGHTS))}, or measure scores elsewhere and pass the plan",
        )
    plan = analyze(model, inputs, prefer="class").plan(importance=importance, **options)
    uniform = {"uniform": options["uniform"]} if "uniform" in options else {}
    return record(transform(model, inputs, plan=plan, prefer="class", **uniform)).plan


class StreamedNorms(GroupsImportance):
    """The p-norm of all parameter elements that are removed with a channel, as "l1" and "l2" have it, from files."""

    def __init__(
        self, checkpoint: Checkpoint, parts: Sequence[StoredPart], p: int, tell: Callable[[int], None]
    ) -> None:
        self.checkpoint, self.parts, self.p, self.tell = checkpoint, parts, p, tell
        self._sums: dict[str, NormSums] = {}
        for part in parts:
            if not checkpoint.tensors[part.stored].dtype.is_floating_point:
                raise PlanError(
                    f'"{part.stored}" is packed, and its norms are not known',
                    do='use importance="random", or pass a plan',
                )

    def of_groups(self, findings: Findings, groups: Sequence[Group], seed: int | None) -> npt.NDArray[np.float64]:
        """One score per channel of the analysis. The files are read once."""
        solution, trained = findings.solution, set(findings.captured.tensors.names(PARAMETER))
        wanted = [
            (number, axis)
            for number, axis in enumerate(solution.axes)
            if axis.parameter in trained and number in solution.shrinkable_axes
        ]
        if not self._sums:
            self._read(findings, {axis.parameter for _, axis in wanted})
        sums = {number: self._sums[axis.parameter][axis.dim] for number, axis in wanted if axis.parameter in self._sums}
        return np.asarray(solution.sum_over_slots(sums) ** (1 / self.p), dtype=np.float64)

    def _read(self, findings: Findings, wanted: set[str]) -> None:
        """Read all that is wanted, once; of several stored copies of a tied parameter the first."""
        scratch, taken = Scratch(), dict[str, str]()
        for part in self.parts:
            key = findings.first_name(part.parameter)
            if key in wanted and taken.setdefault(key, part.parameter) == part.parameter:
                shape = findings.tensors[key].shape
                sums = self._sums.setdefault(key, {d: np.zeros(size) for d, size in enumerate(shape)})
                self._add(part, sums, scratch)

    def _add(self, part: StoredPart, sums: NormSums, scratch: Scratch) -> None:
        stored = self.checkpoint.tensors[part.stored]
        picks = [
            None if axis.count == size else np.arange(axis.start, axis.start + axis.count)
            for axis, size in zip(part.axes, stored.shape, strict=True)
        ]
        with open(stored.path, "rb", buffering=0) as source:
            for start, block in blocks(stored, picks, source, scratch):
                values = numbers_of(block, stored.dtype).to(torch.float64).abs().pow(self.p).numpy()
                for dim, index in part.fixed.items():
                    sums[dim][index] += values.sum()
                for d, axis in enumerate(part.axes):
                    if axis.dim is not None:
                        others = tuple(other for other in range(values.ndim) if other != d)
                        slots = axis.slots[start[d] : start[d] + values.shape[d]]
                        sums[axis.dim][slots] += values.sum(axis=others)
                self.tell(block.nbytes)
