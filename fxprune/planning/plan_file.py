"""The file of a plan: JSON that a person can read, the same bytes every time, checked in full when it is read.

The format is described in `docs/files.md`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from fxprune.capture.output_paths import OutputPath, output_paths
from fxprune.errors import InputError, PlanError
from fxprune.files import Field, PathLike, parse_json, read_bytes, write_text
from fxprune.paths import PATHS
from fxprune.planning.dropped_file import dropped_data, dropped_of
from fxprune.planning.factors import Factor
from fxprune.planning.fields import PlanFields, PlanT, Removed
from fxprune.planning.ranges import between, indices_of, parse, spans_of, text_of
from fxprune.planning.sizes import KINDS, Size, norms_by_sizes
from fxprune.planning.structure import Coupled, Structure

FORMAT, VERSION = "fxprune plan", 1

WITH_FACTORS = 2
"""The version of a file whose plan has factors; a reader that knows none must refuse it."""

WITH_OUTPUTS = 3
"""The version of a file whose plan says which outputs count; it may have factors too."""

WITH_DROPPED = 4
"""The version of a file whose plan drops branches; it may have factors and outputs too."""

WITH_NORMS = 5
"""The version of a file whose plan preserves norms; it may have factors, outputs and dropped branches too."""

_NEEDED: dict[int, tuple[str, ...]] = {
    VERSION: (),
    WITH_FACTORS: ("factors",),
    WITH_OUTPUTS: ("outputs",),
    WITH_DROPPED: ("dropped",),
    WITH_NORMS: ("norms",),
}
"""Version of a file -> the keys that it has beside those of version 1."""

_ALLOWED: dict[int, tuple[str, ...]] = {
    VERSION: (),
    WITH_FACTORS: (),
    WITH_OUTPUTS: ("factors",),
    WITH_DROPPED: ("factors", "outputs"),
    WITH_NORMS: ("factors", "outputs", "dropped"),
}
"""Version of a file -> the keys that it may have beside these."""

LIMIT = 1 << 28
"""The most bytes of a plan file."""

INDICES = 1 << 25
"""The most indices that the ranges of one file may name altogether."""

DEPTH = 8
"""The most lists inside each other in the value of a size."""

_KEYS = "format version versions path fingerprint tensors outside zeroed biases maps coupled sizes reasons".split()
_ADVICE = "make the plan anew (analysis.plan, record(small).plan) and save it"


def save(plan: PlanFields, path: PathLike) -> None:
    """Write a plan, whole or not at all."""
    write_text(path, _layout(data_of(plan)))


def load(path: PathLike, kind: type[PlanT]) -> PlanT:
    """The plan in a file. Raises `PlanError` for anything that `save` would not have written."""
    source = f'the plan file "{os.fspath(path)}"'
    data = parse_json(read_bytes(path, LIMIT), source, PlanError, _ADVICE)
    return plan_of(Field(data, source, "", PlanError, _ADVICE), kind)


# -- writing ----------------------------------------------------------------------------------------------


def data_of(plan: PlanFields) -> dict[str, Any]:
    """A plan as data for JSON. Raises `PlanError` for a plan that no file can hold."""
    structure = plan.known_structure("what it was made for")
    _refuse_what_no_file_holds(plan, structure)
    return {
        "format": FORMAT,
        "version": _version(plan),
        "versions": dict(plan.versions) or versions(),
        "path": plan.path,
        "fingerprint": structure.fingerprint,
        "tensors": {name: _tensor(shape, plan.removed.get(name)) for name, shape in structure.shapes.items()},
        "outside": list(structure.outside),
        "zeroed": None if plan.zeroed is None else {name: _texts(dims) for name, dims in plan.zeroed.items()},
        "biases": list(plan.biases),
        "maps": list(plan.maps),
        "coupled": [
            {"channels": c.channels, "in": [f"{name}[{dim}]" for name, dim in c.members], "slots": c.slots}
            for c in structure.coupled
        ],
        "sizes": [{k: getattr(size, k) for k in ("kind", "at", "name", "old", "new")} for size in plan.sizes],
        "reasons": list(plan.reasons),
        **({"factors": [_factor_data(factor) for factor in plan.factors]} if plan.factors else {}),
        **({} if plan.outputs is None else {"outputs": [list(path) for path in plan.outputs]}),
        **({"dropped": [dropped_data(one) for one in plan.dropped]} if plan.dropped else {}),
        **({"norms": plan.norms} if plan.norms != "kept" else {}),
    }


def _version(plan: PlanFields) -> int:
    """The lowest version of a file that can hold a plan."""
    if plan.norms != "kept":
        return WITH_NORMS
    if plan.dropped:
        return WITH_DROPPED
    return WITH_OUTPUTS if plan.outputs is not None else WITH_FACTORS if plan.factors else VERSION


def versions() -> dict[str, str]:
    """The versions of the packages that run now."""
    import torch

    return {"fxprune": str(sys.modules["fxprune"].__version__), "torch": str(torch.__version__)}


def _tensor(shape: tuple[int, ...], dims: Mapping[int, list[int]] | None) -> dict[str, Any]:
    made: dict[str, Any] = {"shape": list(shape)}
    if dims:
        stays = {dim: between(spans_of(gone), shape[dim]) for dim, gone in sorted(dims.items())}
        made |= {"removed": _texts(dims), "kept": {str(dim): text_of(spans) for dim, spans in stays.items()}}
    return made


def _factor_data(factor: Factor) -> dict[str, Any]:
    slots = None if factor.slots is None else text_of(spans_of(factor.slots))
    return {"tensor": factor.tensor, "dim": factor.dim, "slots": slots, "factor": factor.factor}


def _texts(dims: Mapping[int, list[int]]) -> dict[str, str]:
    return {str(dim): text_of(spans_of(indices)) for dim, indices in sorted(dims.items())}


def _refuse_what_no_file_holds(plan: PlanFields, structure: Structure) -> None:
    for kind, removed in (("removes", plan.removed), ("sets to zero", plan.zeroed or {})):
        for name, dims in removed.items():
            shape = structure.shapes.get(name)
            for dim, indices in dims.items():
                fits = shape is not None and 0 <= dim < len(shape) and len(indices)
                if not fits or list(indices) != sorted({*indices} & {*range((shape or ())[dim])}):
                    raise PlanError(
                        f'the plan {kind} what is not there: "{name}" dimension {dim}',
                        why=f"its shape is {shape}; indices are sorted, unique, and below its size",
                        do="take a plan from analysis.plan(...), or record(small).plan",
                    )


def _layout(data: Mapping[str, Any]) -> str:
    """The data as JSON, with one line for every tensor, size and reason."""
    lines = []
    for key, value in data.items():
        if isinstance(value, (dict, list)) and len(value) > 0 and key not in ("versions", "outside", "biases", "maps"):
            pairs = (
                [f"{_json(k)}: {_json(v)}" for k, v in value.items()] if isinstance(value, dict) else map(_json, value)
            )
            begin, end = "{}" if isinstance(value, dict) else "[]"
            lines.append(f"  {_json(key)}: {begin}\n" + ",\n".join(f"    {pair}" for pair in pairs) + f"\n  {end}")
        else:
            lines.append(f"  {_json(key)}: {_json(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


# -- reading ----------------------------------------------------------------------------------------------


def plan_of(data: Field, kind: type[PlanT]) -> PlanT:
    """The plan from data of JSON. Raises `PlanError` for anything that `data_of` would not have given."""
    if not isinstance(data.value, dict) or data.value.get("format") != FORMAT:
        raise data.wrong(f'it is no plan of fxprune: there is no "format": "{FORMAT}"')
    version = data.value.get("version")
    if type(version) is not int or version not in _NEEDED:
        if "version" not in data.value:
            raise data.wrong('the key "version" is missing')
        why = f"this fxprune reads versions {VERSION} to {WITH_NORMS}"
        raise data["version"].wrong(why, "load it with the fxprune that wrote it")
    data.object([*_KEYS, *_NEEDED[version]], _ALLOWED[version])
    budget = _Budget(data)
    shapes: dict[str, tuple[int, ...]] = {}
    removed: Removed = {}
    for name, entry in data["tensors"].mapping().items():
        shapes[name] = entry.object(("shape",), ("removed", "kept"))["shape"].shape()
        if "removed" in entry.value or "kept" in entry.value:
            entry.object(("shape", "removed", "kept"))
            removed[name] = _dims(entry["removed"], entry["kept"], shapes[name], budget)
    coupled = tuple(_coupled(entry, shapes) for entry in data["coupled"].items())
    structure = Structure(shapes, coupled, data["outside"].texts())
    if data["fingerprint"].text() != structure.fingerprint:
        raise data["fingerprint"].wrong(f"names, shapes and couplings of this file give {structure.fingerprint}")
    sizes = _sizes(data["sizes"])
    return kind(
        removed,
        data["reasons"].texts(),
        None if data["zeroed"].value is None else _zeroed(data["zeroed"], shapes, budget),
        data["biases"].texts(),
        data["maps"].texts(),
        sizes,
        structure,
        data["path"].text(("", *PATHS)),
        {name: version.text() for name, version in data["versions"].mapping().items()},
        _factors(data["factors"], shapes, budget) if "factors" in data.value else (),
        _outputs(data["outputs"]) if "outputs" in data.value else None,
        dropped_of(data["dropped"]) if "dropped" in data.value else (),
        data["norms"].text(("preserve",)) if "norms" in data.value else norms_by_sizes(sizes),
    )


class _Budget:
    """Reads indices, and counts them: a short text in a file could name very many. left: how many more it may name."""

    def __init__(self, data: Field) -> None:
        self.data, self.left = data, INDICES

    def indices(self, field: Field, size: int) -> list[int]:
        """The indices that a text names, all below `size`."""
        try:
            spans = parse(field.text())
        except ValueError as error:
            raise field.wrong(str(error)) from None
        if not spans:
            raise field.wrong("no index is named")
        if spans[-1][1] >= size:
            raise field.wrong(f"index {spans[-1][1]} is out of range, the dimension has {size}")
        self.left -= sum(last - first + 1 for first, last in spans)
        if self.left < 0:
            raise self.data.wrong(f"it names more than {INDICES} indices")
        return indices_of(spans)


def _dims(removed: Field, kept: Field, shape: tuple[int, ...], budget: _Budget) -> dict[int, list[int]]:
    made = {}
    stays = kept.mapping()
    for key, field in removed.mapping().items():
        dim = _dim(field, key, shape)
        if key not in stays:
            raise kept.wrong(f'the key "{key}" is missing, it stands in "removed"')
        made[dim] = budget.indices(field, shape[dim])
        there = text_of(between(spans_of(made[dim]), shape[dim]))
        if stays[key].value != there:
            why = f'it contradicts "removed": of {shape[dim]} the others are "{there}"'
            raise stays[key].wrong(why if there else "every index is removed, and one must stay")
        if not there:
            raise stays[key].wrong("every index is removed, and one must stay")
    unknown = next((key for key in stays if key not in removed.value), None)
    if unknown is not None:
        raise stays[unknown].wrong('"removed" has no such key')
    if not made:
        raise removed.wrong("no dimension is named")
    return made


def _dim(field: Field, key: str, shape: tuple[int, ...]) -> int:
    if key not in [str(dim) for dim in range(len(shape))]:
        raise field.wrong(f"the key must be a dimension of the shape {shape}, counted from 0")
    return int(key)


def _zeroed(data: Field, shapes: Mapping[str, tuple[int, ...]], budget: _Budget) -> Removed:
    made: Removed = {}
    for name, dims in data.mapping().items():
        if name not in shapes:
            raise dims.wrong('"tensors" has no such key')
        fields = dims.mapping().items()
        made[name] = {d: budget.indices(f, shapes[name][d]) for k, f in fields for d in [_dim(f, k, shapes[name])]}
    return made


def _factors(data: Field, shapes: Mapping[str, tuple[int, ...]], budget: _Budget) -> tuple[Factor, ...]:
    made: dict[tuple[str, int, str | None], Factor] = {}
    for entry in data.items():
        entry.object(("tensor", "dim", "slots", "factor"))
        name, place = entry["tensor"].text(), entry["slots"].value
        if name not in shapes:
            raise entry["tensor"].wrong('"tensors" has no such key')
        dim = entry["dim"].integer(0, max(len(shapes[name]) - 1, 0))
        slots = None if place is None else tuple(budget.indices(entry["slots"], shapes[name][dim]))
        number = float(entry["factor"].number())
        if not number > 0 or number == 1:
            raise entry["factor"].wrong("a factor is positive and not 1")
        if (name, dim, place) in made:
            raise entry.wrong("the same place stands here twice")
        made[name, dim, place] = Factor(name, dim, slots, number)
    if not made:
        raise data.wrong(f"a file of version {WITH_FACTORS} has factors")
    return tuple(made.values())


def _outputs(data: Field) -> tuple[OutputPath, ...] | None:
    """The paths in a file, each a list of names and numbers."""
    paths = []
    for entry in data.items():
        if not isinstance(entry.value, list):
            raise entry.wrong("it must be a list of names and numbers")
        paths.append(tuple(entry.value))
    try:
        return output_paths(paths)
    except InputError as error:
        raise data.wrong(error.first_why) from None


def _coupled(entry: Field, shapes: Mapping[str, tuple[int, ...]]) -> Coupled:
    entry.object(("channels", "in", "slots"))
    members = []
    for item in entry["in"].items():
        name, _, dim = item.text().removesuffix("]").rpartition("[")
        if name not in shapes or dim not in [str(d) for d in range(len(shapes[name]))]:
            raise item.wrong('it must be a tensor of "tensors" and one of its dimensions, like "conv1.weight[0]"')
        members.append((name, int(dim)))
    return Coupled(entry["channels"].integer(1, 2**31), tuple(members), entry["slots"].text())


def _sizes(data: Field) -> tuple[Size, ...]:
    made: dict[tuple[str, str, str], Size] = {}
    for entry in data.items():
        entry.object(("kind", "at", "name", "old", "new"))
        old, new = _value(entry["old"]), _value(entry["new"])
        size = Size(entry["kind"].text(KINDS), entry["at"].text(), entry["name"].text(), old, new)
        if size.kind == "attribute":
            _refuse_other_kind(entry, size)
        if size.place in made:
            raise entry.wrong("the same place stands here twice")
        made[size.place] = size
    return tuple(made.values())


def _refuse_other_kind(entry: Field, size: Size) -> None:
    """Attributes hold a number, or a list of them; `old` may be null where there was none."""
    for key, value in (("old", size.old), ("new", size.new)):
        flat = value if isinstance(value, list) else [value]
        if not all(isinstance(v, (int, float)) or (v is None and key == "old") for v in flat):
            raise entry[key].wrong("an attribute is a number or a list of numbers")


def _value(field: Field, depth: int = 0) -> Any:
    if depth > DEPTH:
        raise field.wrong("it is nested too deeply")
    if isinstance(field.value, list):
        return [_value(item, depth + 1) for item in field.items()]
    if field.value is not None and not isinstance(field.value, (int, float, str)):
        raise field.wrong("it must be a number, a text, null, or a list of these")
    return field.value
