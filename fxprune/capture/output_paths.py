"""Paths into the result of a forward: the parts of it that count as outputs.

A path is a tuple of keys. A key is the number of an element of a list or tuple, the key of a dict, or the name of a
field of a data class or a named tuple, or of a parameter of a distribution. The key "*" stands for every one, as for
the elements of a list with a dict for each image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxprune.capture.values import leaves, named_parts
from fxprune.errors import InputError, PlanError

OutputPath = tuple[str | int, ...]
"""The keys that lead to a part of a result, the outermost first."""

EVERY = "*"
"""The key that stands for every key of a container."""


def output_paths(outputs: Any) -> tuple[OutputPath, ...] | None:
    """The paths that a user gives as `outputs`; None for None, if the whole result counts.

    A key alone and a tuple of keys are one path; a list has several. Raises `InputError` for anything else.

    >>> output_paths("boxes"), output_paths(("a", 0)), output_paths(["boxes", ("a", 0)])
    ((('boxes',),), (('a', 0),), (('boxes',), ('a', 0)))
    """
    if outputs is None:
        return None
    given = outputs if isinstance(outputs, list) else [outputs]
    paths = tuple(path if isinstance(path, tuple) else (path,) for path in given)
    wrong = next((path for path in paths if not path or not all(map(_is_key, path))), None)
    if wrong is not None or not paths:
        why = "the list is empty" if wrong is None else f"{_short(wrong)} is no path"
        raise InputError(
            "outputs must be a path into the result, or a list of paths",
            why=f"{why}; a path is a name, a number, or a tuple of names and numbers",
            do='write for example outputs=["boxes"], outputs=0 or outputs=[("features", 0)]',
        )
    return tuple(dict.fromkeys(paths))


def _is_key(key: Any) -> bool:
    return isinstance(key, str | int) and not isinstance(key, bool)


def _short(path: Any) -> str:
    """A path as text; the types of its keys where they are no names and numbers."""
    return ", ".join(repr(key) if _is_key(key) else f"a {type(key).__name__}" for key in path) or "an empty tuple"


def path_text(path: OutputPath) -> str:
    """A path as it is written in `outputs`.

    >>> path_text(("boxes",)), path_text(("a", 0))
    ('"boxes"', '("a", 0)')
    """
    keys = [f'"{key}"' if isinstance(key, str) else str(key) for key in path]
    return keys[0] if len(keys) == 1 else f"({', '.join(keys)})"


def paths_text(paths: Sequence[OutputPath], *, most: int = 6) -> str:
    """Paths in one sentence; the first of them, if there are more than `most`."""
    more = f", ... {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(map(path_text, paths[:most])) + more


def _covers(own: OutputPath, path: OutputPath) -> bool:
    """True if what is at `path` is what `own` leads to, or in it.

    >>> _covers(("*", "boxes"), (1, "boxes", 0)), _covers((0,), ("*", "boxes"))
    (True, False)
    """
    return len(own) <= len(path) and all(a in (EVERY, b) for a, b in zip(own, path, strict=False))


def _meet(a: OutputPath, b: OutputPath) -> OutputPath | None:
    """The path to what two paths have in common, None if they have nothing.

    >>> _meet(("*", "boxes"), (0,)), _meet(("a",), ("b",))
    ((0, 'boxes'), None)
    """
    if any(x != y and EVERY not in (x, y) for x, y in zip(a, b, strict=False)):
        return None
    longer = a if len(a) > len(b) else b
    return (*(y if x == EVERY else x for x, y in zip(a, b, strict=False)), *longer[min(len(a), len(b)) :])


# -- containers -------------------------------------------------------------------------------------------


def parts_of(value: Any) -> dict[Any, Any] | None:
    """Key -> part of a container; None for a leaf, as a size is."""
    if isinstance(value, torch.Size | torch.Tensor | type):
        return None
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    return named_parts(value)


def _key_in(value: Any, parts: Mapping[Any, Any], key: str | int) -> Any:
    """The key of a container that a key of a path means. Raises `KeyError` if there is none.

    A negative number counts from the end. A number is also found as the text of it in a dict, and as the position of a
    field in a named tuple.
    """
    if key in parts:
        return key
    if isinstance(key, int) and isinstance(value, tuple | list) and -len(parts) <= key < len(parts):
        return list(parts)[key]
    if isinstance(key, int) and str(key) in parts:
        return str(key)
    raise KeyError(key)


def tensors_at(value: Any, before: OutputPath = ()) -> Iterator[tuple[OutputPath, torch.Tensor]]:
    """The tensors of a nested result, each with its path.

    >>> [path for path, _ in tensors_at({"a": (torch.zeros(1), None, torch.zeros(2))})]
    [('a', 0), ('a', 2)]
    """
    if isinstance(value, torch.Tensor):
        yield before, value
        return
    for key, part in (parts_of(value) or {}).items():
        yield from tensors_at(part, (*before, key))


# -- the parts that count ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outputs:
    """The parts of a result that count as outputs.

    paths: the paths to them, as the result has its keys.
    keys: for each path, the keys of the containers on it, the outermost first.
    elsewhere: paths that the result does not have. They are for results of another form, such as the losses that a
        detector returns in training mode.
    """

    paths: tuple[OutputPath, ...]
    keys: tuple[tuple[tuple[Any, ...], ...], ...]
    elsewhere: tuple[OutputPath, ...] = ()

    @classmethod
    def of(cls, result: Any, paths: Sequence[OutputPath]) -> Outputs:
        """The parts of a result at these paths. Raises `InputError` if it has none of them, or no tensor there."""
        missing = tuple(path for path in paths if not _leads_to_tensors(result, path))
        found = [_followed(result, path) for path in paths if path not in missing or missing == tuple(paths)]
        return cls(tuple(path for path, _ in found), tuple(keys for _, keys in found), missing)

    def counts(self, path: OutputPath) -> bool:
        """True if the tensor at a path of the result is one of these parts, or in one of them."""
        return any(_covers(own, path) for own in self.paths)

    def fit(self, result: Any) -> bool:
        """True if a result has the containers that lead to these parts, with the keys that they had."""
        return all(_containers(result, path) == keys for path, keys in zip(self.paths, self.keys, strict=True))

    def tensors(self, result: Any) -> list[torch.Tensor]:
        """The tensors that count in a result.

        In a result of another form than the one that is known, the paths in `elsewhere` say it. If it has none of
        these parts, all of it counts.
        """
        if self.fit(result):
            return [tensor for path, tensor in tensors_at(result) if self.counts(path)]
        found = self.found_elsewhere(result)
        if not found:
            return [tensor for _, tensor in tensors_at(result)]
        return Outputs.of(result, found).tensors(result)

    def found_elsewhere(self, result: Any) -> tuple[OutputPath, ...]:
        """The paths in `elsewhere` that lead to tensors of a result."""
        return tuple(path for path in self.elsewhere if _leads_to_tensors(result, path))

    def others(self, result: Any) -> list[tuple[OutputPath, torch.Tensor]]:
        """The tensors that do not count in a result of the known form, with their paths."""
        return [(path, tensor) for path, tensor in tensors_at(result) if not self.counts(path)]


def tensors_that_count(outputs: Outputs | None, result: Any) -> list[torch.Tensor]:
    """The tensors of a result that count as outputs. outputs: None for all."""
    return [tensor for _, tensor in tensors_at(result)] if outputs is None else outputs.tensors(result)


def _followed(result: Any, path: OutputPath) -> tuple[OutputPath, tuple[tuple[Any, ...], ...]]:
    """A path as the result has its keys, and the keys of the containers on it; ("*",) where every key is meant."""
    value, made, keys = result, list[Any](), list[tuple[Any, ...]]()
    for place, key in enumerate(path, start=1):
        parts = parts_of(value)
        if parts is None:
            raise _no_such_part(result, path, f"{_place(made)} is {_described(value)}, which has no parts")
        if key == EVERY:
            made.append(EVERY)
            keys.append((EVERY,))
            fitting = [part for part in parts.values() if _leads_to_tensors(part, path[place:])]
            if not fitting:
                raise _no_such_part(result, path, f"no part of {_place(made[:-1])} holds that, or a tensor there")
            value = fitting[0]
            continue
        try:
            made.append(_key_in(value, parts, key))
        except KeyError:
            why = f"{_place(made)} holds {', '.join(map(_key_text, parts)) or 'nothing'}"
            raise _no_such_part(result, path, why) from None
        keys.append(tuple(parts))
        value = parts[made[-1]]
    if not any(isinstance(leaf, torch.Tensor) for leaf in leaves(value)):
        raise _no_such_part(result, path, f"{_place(made)} is {_described(value)} and holds no tensor")
    return tuple(made), tuple(keys)


def _leads_to_tensors(result: Any, path: OutputPath) -> bool:
    try:
        _followed(result, path)
    except InputError:
        return False
    return True


def _containers(value: Any, path: OutputPath) -> tuple[tuple[Any, ...], ...] | None:
    """The keys of the containers on a path, as in `_followed`; None if the result has no such path.

    Below "*", parts without the rest of the path are left out; the others must have the same keys.
    """
    if not path:
        return ()
    parts = parts_of(value)
    if parts is not None and path[0] == EVERY:
        found = {_containers(part, path[1:]) for part in parts.values()} - {None}
        rest = found.pop() if len(found) == 1 else None
        return None if rest is None else ((EVERY,), *rest)
    if parts is None or path[0] not in parts:
        return None
    rest = _containers(parts[path[0]], path[1:])
    return None if rest is None else (tuple(parts), *rest)


def _place(path: Sequence[Any]) -> str:
    return path_text(tuple(path)) if path else "the result"


def _key_text(key: Any) -> str:
    return f'"{key}"' if isinstance(key, str) else repr(key)


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"of type {type(value).__name__}"


def _no_such_part(result: Any, path: OutputPath, why: str) -> InputError:
    paths = [path for path, _ in tensors_at(result)]
    tensors = paths_text(paths) if all(paths) else ""
    return InputError(
        f"the result has no part {path_text(path)}",
        at="outputs",
        why=why,
        do=f"the tensors of the result are {tensors}" if tensors else "leave outputs out",
    )


# -- two requests -----------------------------------------------------------------------------------------


def narrowed(
    known: tuple[OutputPath, ...] | None, given: tuple[OutputPath, ...] | None
) -> tuple[OutputPath, ...] | None:
    """The outputs of a plan, or some of them that a user gives. Raises `PlanError` for others than those of the plan.

    >>> narrowed((("a",),), (("a", 0),)), narrowed((("a",),), None), narrowed(None, (("b",),))
    ((('a', 0),), (('a',),), (('b',),))
    """
    if given is None or known is None:
        return known if given is None else given
    for path in given:
        if not any(_covers(own, path) for own in known):
            raise PlanError(
                f"{path_text(path)} is no output of the plan",
                at="outputs",
                why=f"the plan was made with outputs {paths_text(known)}, other parts of the result may have changed",
                do="leave outputs out, or make a plan that counts it",
            )
    return given


def in_both(
    first: tuple[OutputPath, ...] | None, second: tuple[OutputPath, ...] | None
) -> tuple[OutputPath, ...] | None:
    """The outputs that count in both of two requests; empty if there are none.

    >>> in_both((("a",), ("b",)), (("a", 0), ("c",))), in_both(None, (("a",),))
    ((('a', 0),), (('a',),))
    """
    if first is None or second is None:
        return second if first is None else first
    met = [_meet(a, b) for a in first for b in second]
    return tuple(dict.fromkeys(path for path in met if path is not None))
