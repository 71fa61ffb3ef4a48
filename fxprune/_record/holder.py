"""The record inside a small model: shared by deep copies of the model, plain text in a pickle of it.

So a pickled model loads where fxprune is not installed. The text is JSON; nothing of it is executed.
"""

from __future__ import annotations

import json
import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from fxprune._record.data import data_of, plan_data, record_of
from fxprune._record.history import Record
from fxprune.arguments import checks_arguments
from fxprune.capture.tensors import Tensors
from fxprune.depth.numbering import name_after
from fxprune.errors import FxpruneError, PlanError
from fxprune.files import Field, parse_json
from fxprune.planning import plan_file
from fxprune.planning.plan import Plan

FORMAT, VERSION = "fxprune record", 1

_KEY = "fxprune_record"
_SOURCE = "the record in this model"


class MadeBy:
    """The records of the steps that made a model what it is. Deep copies share them; a pickle has a text instead.

    single: the records, step by step, the first one first. joined: how many of them, the last ones, were made in place:
    on one model object, which is relative to what it was before them.
    """

    def __init__(self, single: tuple[Record, ...], joined: int = 1) -> None:
        self._held: Mapping[str, Any] = types.MappingProxyType(
            {"single": single, "joined": joined, "cache": []}
        )  # no part of it is looked into

    @property
    def single(self) -> tuple[Record, ...]:
        """The records of all steps."""
        made: tuple[Record, ...] = self._held["single"]
        return made

    @property
    def joined(self) -> int:
        """The number of steps that were made in place, one after the other."""
        made: int = self._held["joined"]
        return made

    @property
    def earlier(self) -> tuple[Record, ...]:
        """The records of the models that the object was made from."""
        return self.single[: -self.joined]

    @property
    def record(self) -> Record:
        """The record of the model since it was given: of one step, or of all that were made in place."""
        cache: list[Record] = self._held["cache"]
        if not cache:
            cache.append(_joined(self.single[-self.joined :]))
        return cache[0]

    def __copy__(self) -> MadeBy:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> MadeBy:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (text_of(self.record, self.earlier),)


def _joined(single: Sequence[Record]) -> Record:
    """One record of several steps, with the largest of their errors: each was compared with the model before it.

    Of steps that cannot be joined that of the last ones, with a reason.
    """
    made = single[-1]
    for number, one in reversed(list(enumerate(single[:-1], 1))):
        try:
            made = one.then(made)
        except PlanError as error:
            why = f"the steps up to step {number} are not in this record: {error.what}, because {error.first_why}"
            return replace(made, reasons=(*made.reasons, why))
    errors, counts = [one.error for one in single], [one.compared for one in single]
    known = [error for error in errors if error is not None]
    worst = next((error for error in known if math.isnan(error)), max(known, default=None))
    least = min((count for count in counts if count is not None), default=None)
    return replace(
        made,
        error=worst if len(known) == len(errors) else None,
        compared=None if None in counts else least,
        reasons=tuple(dict.fromkeys(made.reasons)),
    )


def text_of(record: Record, earlier: Sequence[Record] = ()) -> str:
    """A record with its plan as JSON. Raises `PlanError` for a plan that no file can hold.

    earlier: the records of the models that the small one was made from.
    """
    data = {"format": FORMAT, "version": VERSION, **step_data(record)}
    if earlier:
        data["earlier"] = [step_data(one) for one in earlier]
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def step_data(record: Record) -> dict[str, Any]:
    """A record and its plan as plain data."""
    return {"plan": plan_data(record), "record": data_of(record)}


def steps_of(data: Field) -> tuple[Record, ...]:
    """The records that a list of such plain data describes."""
    found = [entry.object(("plan", "record")) for entry in data.items()]
    return tuple(record_of(entry["record"], plan_file.plan_of(entry["plan"], Plan)) for entry in found)


def record_from(text: str) -> Record:
    """The record that `text_of` wrote. Raises an `FxpruneError` for any other text."""
    return _steps_from(text).record


def _steps_from(text: str) -> MadeBy:
    keys = ("format", "version", "plan", "record")
    data = Field(parse_json(text.encode(), _SOURCE), _SOURCE).object(keys, ("earlier",))
    data["format"].text((FORMAT,))
    if data["version"].value != VERSION:
        raise data["version"].wrong(f"this fxprune reads version {VERSION}", "read it with the fxprune that wrote it")
    earlier = steps_of(data["earlier"]) if "earlier" in data.mapping() else ()
    return MadeBy((*earlier, record_of(data["record"], plan_file.plan_of(data["plan"], Plan))))


@checks_arguments("small")
def record(small: nn.Module | ExportedProgram) -> Record:
    """The record of a model that `transform` returned, of a deep copy of such a model, or of one that was pickled.

    It is relative to the model that was given: to the argument of `transform`, and for a model that `transform_` or a
    `GradualPruner` made smaller in steps, to what it was before the first of them. A file of `torch.export.save` has no
    record.

    Raises `FxpruneError` for any other model.
    """
    return _steps(small).record


_OF_PEFT = ", such as what merge_and_unload() of peft returns,"


def _steps(small: nn.Module | ExportedProgram) -> MadeBy:
    """The records in a model. Raises `FxpruneError` if it has none."""
    found = _found(small)
    if isinstance(found, str):  # the model was pickled
        if isinstance(small, fx.GraphModule):
            _keep(small, found)
        return _steps_from(found)
    if isinstance(found, MadeBy):
        return found
    if not isinstance(found, Record):  # pickles of version 0.1 have the record itself
        raise FxpruneError(
            f"this {type(small).__name__} has no record",
            why="it was not made by transform",
            do=f"pass what transform returned, as a whole: a module in it{_OF_PEFT if 'peft' in sys.modules else ''} "
            "has none",
        )
    return MadeBy((found,))


def steps_in(model: nn.Module | ExportedProgram) -> MadeBy | None:
    """The records of all steps that made a model what it is; None if it was not pruned, or changed otherwise since."""
    if _found(model) is None:
        return None
    made = _steps(model)
    return made if isinstance(model, ExportedProgram) or _describes(made.single[-1], model) else None


def _found(small: nn.Module | ExportedProgram) -> Any:
    """The value under the key of the record. A deep copy of a graph keeps `meta`, a pickle of it keeps attributes."""
    if isinstance(small, ExportedProgram):
        return small.graph_module.meta.get(_KEY)
    found = small.meta.get(_KEY) if isinstance(small, fx.GraphModule) else None
    return small.__dict__.get(_KEY) if found is None else found


def _describes(made: Record, small: nn.Module) -> bool:
    shapes = {name: tuple(tensor.shape) for name, tensor in Tensors.of(small).items()}
    names = {name_after(name, made.layers_gone): shape for name, shape in made.after.items()}
    return all(shapes.get(name or "") == tuple(shape) for name, shape in names.items())


def attach(small: nn.Module | ExportedProgram, made: Record, *, after: MadeBy | None = None) -> None:
    """Store the record of a step in a model. Deep copies of the model and pickles of it have it too.

    after: the steps of the model that it was made from.

    Modules inside it that have a record of their own, and other shapes than that says, lose it.
    """
    _store(small, MadeBy((*(after.single if after else ()), made)))


def joined_in_place(small: nn.Module, model: nn.Module) -> None:
    """Note in a small model that it becomes the model that it was made from: their records are one from then on."""
    made, before = _steps(small), steps_in(model)
    _store(small, MadeBy(made.single, made.joined + (0 if before is None else before.joined)))


def change_record(small: nn.Module | ExportedProgram, changed: Callable[[Record], Record]) -> None:
    """Store another record of the last step. changed: a function from the one that is known to that."""
    made = _steps(small)
    _store(small, MadeBy((*made.single[:-1], changed(made.single[-1])), made.joined))


def _store(small: nn.Module | ExportedProgram, made: MadeBy) -> None:
    if isinstance(small, ExportedProgram):
        small.graph_module.meta[_KEY] = made
        return
    for inner in small.modules():
        if inner is not small and _found(inner) is not None and not _describes(_steps(inner).single[-1], inner):
            inner.__dict__.pop(_KEY, None)
            inner.__dict__.get("meta", {}).pop(_KEY, None)
    small.__dict__[_KEY] = made
    if isinstance(small, fx.GraphModule):
        _keep(small, made)


def _keep(graph: fx.GraphModule, held: MadeBy | str) -> None:
    """Store a record where deep copies of a graph module take it along."""
    graph.meta[_KEY] = held
    if _keep_in_pickles not in graph._deepcopy_hooks:
        graph._deepcopy_hooks.append(_keep_in_pickles)
    _keep_in_pickles(graph)


def _keep_in_pickles(graph: fx.GraphModule) -> None:
    """Make pickles of a graph module keep its record. Also a hook of deep copies, since each is of a class of its own.

    Torch leaves `meta` out of a pickle, and every other attribute out of a deep copy.
    """
    type.__setattr__(type(graph), "__reduce__", _reduced)


def _reduced(graph: fx.GraphModule) -> tuple[Any, ...]:
    """The parts of a pickle: those of torch, without the hook, and the record for `meta`."""
    load, (attributes, imports) = fx.GraphModule.__reduce__(graph)
    hooks = [hook for hook in attributes["_deepcopy_hooks"] if hook is not _keep_in_pickles]
    meta = {_KEY: graph.meta[_KEY]} if _KEY in graph.meta else {}
    return load, ({**attributes, "_deepcopy_hooks": hooks}, imports), {"meta": meta}
