"""The record inside a small model: shared by deep copies of the model, plain text in a pickle of it.

So a pickled model loads where fxprune is not installed. The text is JSON; nothing of it is executed.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from fxprune._record.data import data_of, record_of
from fxprune._record.history import Record
from fxprune.arguments import checks_arguments
from fxprune.capture.tensors import Tensors
from fxprune.errors import FxpruneError
from fxprune.files import Field, parse_json
from fxprune.planning import plan_file
from fxprune.planning.plan import Plan

FORMAT, VERSION = "fxprune record", 1

_KEY = "fxprune_record"
_SOURCE = "the record in this model"


class _Holder:
    """Holds the record of a model. Deep copies share it; a pickle has the text instead.

    earlier: the records of the models that it was made from, step by step, the first one first. A pickle has none.
    """

    def __init__(self, record: Record, earlier: tuple[Record, ...] = ()) -> None:
        self._held: Mapping[str, Any] = types.MappingProxyType(
            {"last": record, "earlier": earlier}
        )  # no part of it is looked into

    @property
    def record(self) -> Record:
        """The record of the last step."""
        made: Record = self._held["last"]
        return made

    @property
    def earlier(self) -> tuple[Record, ...]:
        """Those of the steps before."""
        made: tuple[Record, ...] = self._held["earlier"]
        return made

    def __copy__(self) -> _Holder:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _Holder:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (text_of(self.record),)


def text_of(record: Record) -> str:
    """A record with its plan as JSON. Raises `PlanError` for a plan that no file can hold."""
    data = {
        "format": FORMAT,
        "version": VERSION,
        "plan": plan_file.data_of(record.plan),
        "record": data_of(record),
    }
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def record_from(text: str) -> Record:
    """The record that `text_of` wrote. Raises an `FxpruneError` for any other text."""
    data = Field(parse_json(text.encode(), _SOURCE), _SOURCE).object(("format", "version", "plan", "record"))
    data["format"].text((FORMAT,))
    if data["version"].value != VERSION:
        raise data["version"].wrong(f"this fxprune reads version {VERSION}", "read it with the fxprune that wrote it")
    return record_of(data["record"], plan_file.plan_of(data["plan"], Plan))


@checks_arguments("small")
def record(small: nn.Module | ExportedProgram) -> Record:
    """The record of a model that `transform` returned, of a deep copy of such a model, or of one that was pickled.

    A file of `torch.export.save` has no record.

    Raises `FxpruneError` for any other model.
    """
    found = _found(small)
    if isinstance(found, str):  # the model was pickled
        if isinstance(small, fx.GraphModule):
            _keep(small, found)
        return record_from(found)
    if isinstance(found, _Holder):
        return found.record
    if not isinstance(found, Record):  # pickles of version 0.1 have the record itself
        raise FxpruneError(
            f"this {type(small).__name__} has no record",
            why="it was not made by transform",
            do="pass what transform returned",
        )
    return found


def records(model: nn.Module | ExportedProgram) -> tuple[Record, ...]:
    """The records of all steps that made a model what it is, the first one first; none if it was not pruned."""
    found = _found(model)
    if found is None or not (isinstance(model, ExportedProgram) or _describes(record(model), model)):
        return ()
    return (*found.earlier, found.record) if isinstance(found, _Holder) else (record(model),)


def record_since(small: nn.Module, model: nn.Module) -> Record:
    """The record from a model to the small one: of the last step, or of all steps since the model had its shapes.

    If none fits, that of the last step.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in Tensors.of(model).items()}
    last = made = record(small)
    for earlier in reversed(records(small)[:-1]):
        if _began_with(made, shapes):
            return made
        made = earlier.then(made)
    return made if _began_with(made, shapes) else last


def _began_with(made: Record, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(tuple(made.before[name]) == shape for name, shape in shapes.items() if name in made.before)


def _found(small: nn.Module | ExportedProgram) -> Any:
    """The value under the key of the record. A deep copy of a graph keeps `meta`, a pickle of it keeps attributes."""
    if isinstance(small, ExportedProgram):
        return small.graph_module.meta.get(_KEY)
    found = small.meta.get(_KEY) if isinstance(small, fx.GraphModule) else None
    return small.__dict__.get(_KEY) if found is None else found


def _describes(made: Record, small: nn.Module) -> bool:
    shapes = {name: tuple(tensor.shape) for name, tensor in Tensors.of(small).items()}
    return all(shapes.get(name) == tuple(shape) for name, shape in made.after.items())


def attach(small: nn.Module | ExportedProgram, made: Record, *, earlier: tuple[Record, ...] = ()) -> None:
    """Store a record in a model. Deep copies of the model and pickles of it have it too.

    earlier: the records of the model that it was made from; see `records`.

    Modules inside it that have a record of their own, and other shapes than that says, lose it.
    """
    holder = _Holder(made, earlier)
    if isinstance(small, ExportedProgram):
        small.graph_module.meta[_KEY] = holder
        return
    for inner in small.modules():
        if inner is not small and _found(inner) is not None and not _describes(record(inner), inner):
            inner.__dict__.pop(_KEY, None)
            inner.__dict__.get("meta", {}).pop(_KEY, None)
    small.__dict__[_KEY] = holder
    if isinstance(small, fx.GraphModule):
        _keep(small, holder)


def _keep(graph: fx.GraphModule, held: _Holder | str) -> None:
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
