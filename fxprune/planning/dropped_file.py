"""The branches that a plan drops, as data for its file, and back."""

from __future__ import annotations

from typing import Any

from fxprune.depth.dropped import ARGUMENT, KINDS, ONE_ZERO, OWN, PASSES, Dropped, Replacement
from fxprune.files import Field

DEPTH = 8
"""The most lists inside each other in the form of a result."""


def dropped_data(dropped: Dropped) -> dict[str, Any]:
    """A dropped branch as data for JSON."""
    return {
        "name": dropped.name,
        "at": dropped.at,
        "replaced": [_replacement_data(one) for one in dropped.replaced],
        "tensors": {name: list(shape) for name, shape in dropped.tensors.items()},
    }


def _replacement_data(one: Replacement) -> dict[str, Any]:
    made: dict[str, Any] = {"at": one.path, "kind": one.kind}
    if one.children:
        made["children"] = list(one.children)
    if one.kind in OWN:
        made["form"] = one.form
    if one.kind == PASSES:
        made["source"] = one.source
    return made


def dropped_of(data: Field) -> tuple[Dropped, ...]:
    """The branches in a file. Raises for anything that `dropped_data` would not have given."""
    made: dict[str, Dropped] = {}
    for entry in data.items():
        entry.object(("name", "at", "replaced", "tensors"))
        name = entry["name"].text()
        if name in made:
            raise entry["name"].wrong("the same branch stands here twice")
        replaced = tuple(_replacement(one) for one in entry["replaced"].items())
        tensors = {key: shape.shape() for key, shape in entry["tensors"].mapping().items()}
        made[name] = Dropped(name, entry["at"].text(), replaced, tensors)
    if not made:
        raise data.wrong("no branch is named")
    return tuple(made.values())


def _replacement(entry: Field) -> Replacement:
    entry.object(("at", "kind"), ("children", "form", "source"))
    kind = entry["kind"].text(KINDS)
    for key, needed in (("form", kind in OWN), ("source", kind == PASSES)):
        if (key in entry.value) != needed:
            raise entry.wrong(f'the key "{key}" is missing' if needed else f'"{kind}" has no "{key}"')
    children = entry["children"].texts() if "children" in entry.value else ()
    form = _form(entry["form"]) if kind in OWN else 0
    source = entry["source"].value if kind == PASSES else 0
    if not is_argument(source):
        raise entry["source"].wrong("it must be the position or the keyword of an argument")
    return Replacement(entry["at"].text(), kind, children, source, form)


def _form(field: Field, depth: int = 0) -> Any:
    if depth > DEPTH:
        raise field.wrong("it is nested too deeply")
    if isinstance(field.value, list) and field.value[:1] == [ARGUMENT]:
        if len(field.value) != 2 or not is_argument(field.value[1]):
            raise field.wrong("it must name the position or the keyword of an argument")
        return tuple(field.value)
    if isinstance(field.value, list):
        return tuple(_form(part, depth + 1) for part in field.items())
    if field.value is not None and (type(field.value) is not int or field.value not in (0, ONE_ZERO)):
        raise field.wrong("it must be 0, 1, null, or a list of these")
    return field.value


def is_argument(key: Any) -> bool:
    """True for the position of an argument, and for its keyword."""
    return isinstance(key, str) or (type(key) is int and key >= 0)
