"""The steps of a long run, in a file from which a run that was killed goes on."""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import nn

from fxprune._record import checksum
from fxprune._search.measure import Measure
from fxprune._search.samples import Samples
from fxprune.arguments import shown
from fxprune.errors import FileError
from fxprune.files import Field, PathLike, parse_json, read_bytes, write_text
from fxprune.progress import bar

T = TypeVar("T")

LIMIT = 64 << 20
"""The largest file that is read."""

Values = dict[str, Any]
"""The facts of a step: name -> number, text or None."""


class SavedSteps:
    """The steps that are done, by their keys. With a file, it is written whole after each of them.

    schema: the kind of the run. about: what the run depends on, as plain data: a file of another run is refused.

    Raises `FileError` for a file that cannot be read, or is of another run.
    """

    def __init__(self, path: PathLike | None, schema: str, about: Mapping[str, Any]) -> None:
        self.path, self.schema = path, schema
        self.about: dict[str, Any] = json.loads(json.dumps(about))
        self.done: dict[str, Values] = {}
        if path is not None:
            self._open(path)

    def get(self, key: str, measure: Callable[[], Values]) -> Values:
        """The values of a step; they are measured if the file does not have them."""
        if key not in self.done:
            self.done[key] = measure()
            gc.collect(0)  # the models of the step, which are in circles: no collection runs in a public call
            if self.path is not None:
                self._write(self.path)
        return self.done[key]

    def _write(self, path: PathLike) -> None:
        data = {"schema": self.schema, "run": self.about, "steps": self.done}
        write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")

    def _open(self, path: PathLike) -> None:
        """Read the file if there is one, else write one without steps, to see that it can be written."""
        name = os.fspath(path)
        if not os.path.exists(path):
            try:
                self._write(path)
            except FileError:
                raise
            except OSError as error:
                raise FileError(f'cannot write "{name}"', why=str(error), do="pass the path of a file") from error
            return
        found = Field(parse_json(read_bytes(path, LIMIT), name), name).object(("schema", "run", "steps"))
        found["schema"].text((self.schema,))
        run = found["run"].object(self.about)
        for key, value in self.about.items():
            if run[key].value != value:
                raise FileError(
                    f'"{name}" is of another run',
                    at=f"{key}",
                    why=f"it has {shown(run[key].value)}, this run has {shown(value)}",
                    do="pass another file, or delete it to start again",
                )
        self.done = {key: dict(_values(step)) for key, step in found["steps"].mapping().items()}


def _values(step: Field) -> Values:
    """The values of a step in a file. Raises `FileError` if one of them is no number, text or null."""
    for field in step.mapping().values():
        if field.value is not None and not isinstance(field.value, str):
            field.number()
    return dict(step.value)


def run_of(
    model: nn.Module, measure: Measure, samples: Samples | None, options: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """The things that a run depends on, as plain data: weights, measure, form of the data, options."""
    return {
        "model": type(model).__qualname__,
        "weights": checksum(model),
        "measure": measure.name,
        "function": measure.source,
        "data": None if samples is None else samples.form,
        "options": {name: _plain(value) for name, value in sorted(options.items()) if name != "data"},
        **{name: _plain(value) for name, value in more.items()},
    }


def _plain(value: Any) -> Any:
    """A value as plain data; a function by its name."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return getattr(value, "__qualname__", type(value).__qualname__)


@contextlib.contextmanager
def counted(total: int, name: str, *, progress: bool) -> Iterator[Callable[[], Any]]:
    """A function that counts a step on a progress bar, if there is to be one."""
    with bar(total=total, what=name, unit="model", show=progress) as shown:
        yield lambda: shown.update()
