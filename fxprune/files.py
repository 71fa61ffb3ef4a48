"""Safe files: written whole or not at all, read up to a limit, and JSON whose values are all checked."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import IO, Any

from fxprune.errors import FileError, FxpruneError, InputError, MissingFileError, nearest, text_of

PathLike = str | os.PathLike[str]

WHOLE = "write the file again, or take a whole copy of it"
"""The next step for a file that is damaged."""

SHOWN = 60
"""The number of characters of a wrong value that an error shows."""


_LOCKS: Any = importlib.import_module("fcntl") if os.name == "posix" else None
"""Locks of files, which end with the process that holds them; there are none on Windows."""

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp")


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[IO[bytes]]:
    """A context manager with a temporary file to write to, which replaces the file at `path` when the block ends.

    Until then the file at `path` does not change. It does not change either if the block raises, or if the process is
    killed; in the latter case a hidden temporary file stays beside it, until the next call for this path removes it. A
    new file gets the usual permissions; an existing one keeps its own. If `path` is a symbolic link, its target is
    replaced and the link stays.

    Raises `FileError` if `path` is a directory, and `MissingFileError` if its folder is not there.
    """
    target = os.path.realpath(path)
    if os.path.isdir(target):
        raise FileError(f'cannot write "{os.fspath(path)}"', why="it is a directory", do="pass the name of a file")
    folder, name = os.path.split(target)
    check_folder(path)
    remove_litter(folder, name)
    temporary, handle = _locked_file(folder, name)
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
            if _LOCKS is not None:  # Windows does not rename a file that is open
                os.replace(temporary, target)
        if _LOCKS is None:
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def check_folder(path: PathLike) -> None:
    """Raises `MissingFileError` if the folder of a file that will be written is not there."""
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        why = f'there is no folder "{os.path.dirname(os.fspath(path))}"'
        raise MissingFileError(f'cannot write "{os.fspath(path)}"', why=why, do="make the folder, or pass another path")


def check_directory(path: PathLike) -> None:
    """Raises `FileError` for a path that is no directory, or that lies below a file, `InputError` for none at all."""
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise InputError(
            "a directory is a path that is not empty",
            at=repr(path)[:SHOWN],
            why="nothing says where the files go",
            do='pass its name, such as "small"; the current one is "."',
        )
    place = os.path.abspath(path)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise FileError(f'"{place}" is no directory', do="name a new directory for the result")


def _locked_file(folder: str, name: str) -> tuple[str, int]:
    """A new temporary file beside the file `name`, and a handle that holds its lock."""
    while True:
        temporary = os.path.join(folder, f".{name}.{os.urandom(6).hex()}.tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if _lock(handle) is not False and os.path.exists(temporary):
            return temporary, handle
        os.close(handle)  # it was taken for litter before it had its lock


def _lock(handle: int) -> bool | None:
    """True if the lock of a file is held now, False if another process holds it, None where there are no locks."""
    if _LOCKS is None:
        return None
    try:
        _LOCKS.flock(handle, _LOCKS.LOCK_EX | _LOCKS.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def held(path: PathLike) -> int:
    """A new file whose lock this process holds until it closes the handle, or ends."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    _lock(handle)
    return handle


def was_left(path: PathLike) -> bool:
    """True if the process that held the lock of a file (see `held`) has ended; the file is removed then."""
    return os.path.isfile(path) and _was_left(os.fspath(path))


def remove_litter(folder: PathLike, name: str | None = None) -> tuple[str, ...]:
    """Remove the temporary files in a folder whose writers were killed; returns their names.

    A file that is being written has a lock, and stays. Where there are no locks (Windows, some network file systems),
    all stay.

    name: only those of this file.
    """
    removed = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder or ".") as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found and name in (None, found[1]) and entry.is_file(follow_symlinks=False) and _was_left(entry.path):
                removed.append(entry.name)
    return tuple(sorted(removed))


def _was_left(path: str) -> bool:
    """True if the writer of a temporary file was killed; the file is removed then."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # its writer has just finished, or it is another user's
        return False
    try:
        left = _lock(handle) is True
        if left:
            os.unlink(path)
    except OSError:
        return False
    finally:
        os.close(handle)
    return left


def _sync_folder(folder: str) -> None:
    """Write a rename to the disk, so that it survives a loss of power.

    Does nothing where directories cannot be opened.
    """
    with contextlib.suppress(OSError):
        handle = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: PathLike, text: str) -> None:
    """Write a text in UTF-8. The file is written whole or not at all: see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def save_picture(figure: Any, path: PathLike, **options: Any) -> None:
    """Write a picture in the format of the path's suffix.

    Raises `InputError` for a suffix that matplotlib does not know, `MissingFileError` if there is no such folder.
    """
    check_folder(path)
    try:
        figure.savefig(os.fspath(path), **options)
    except ValueError as error:
        raise InputError(
            "the picture cannot be written",
            at=f'path="{os.fspath(path)}"',
            why=text_of(error),
            do="end the path with .png, .svg or .pdf",
        ) from error


def check_there(path: PathLike) -> None:
    """Raises `MissingFileError` if there is no file of this name."""
    if not os.path.exists(path):
        do = f"check the path; names are relative to {os.getcwd()}" if not os.path.isabs(path) else "check the path"
        raise MissingFileError(f'there is no file "{os.fspath(path)}"', do=do)


def read_bytes(path: PathLike, limit: int) -> bytes:
    """The content of an ordinary file of at most `limit` bytes.

    Raises `MissingFileError` if there is none, `FileError` if the file is larger, or if it is no ordinary file;
    `OSError` if it cannot be opened.
    """
    check_there(path)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FileError(f'"{os.fspath(path)}" is no ordinary file', do="pass the name of a file")
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise FileError(
            f'"{os.fspath(path)}" is too large',
            why=f"at most {limit} bytes are read",
            do="pass a file that fxprune wrote",
        )
    return content


def parse_json(content: bytes, source: str, error: type[FxpruneError] = FileError, do: str = WHOLE) -> Any:
    """The value of a JSON text in UTF-8.

    Raises `error` for a text that is no JSON, and for keys that occur twice, NaN, infinities, and too deep nesting.

    source: the name of the file, for the error. do: the advice in it.

    >>> parse_json(b'{"a": 1, "a": 2}', "plan.json")
    Traceback (most recent call last):
    ...
    fxprune.errors.FileError: plan.json is not what it should be
      why  the key "a" occurs twice
      do   write the file again, or take a whole copy of it
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f'the key "{shown(twice)}" occurs twice')
        return made

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{shown(text)} is no finite number")
        return number

    try:
        return json.loads(content.decode(), object_pairs_hook=once, parse_float=finite, parse_constant=finite)
    except RecursionError:
        raise error(f"{source} is not what it should be", why="it is nested too deeply", do=do) from None
    except UnicodeDecodeError:
        raise error(f"{source} is not what it should be", why="it is no text in UTF-8", do=do) from None
    except json.JSONDecodeError as wrong:
        where = f"line {wrong.lineno}, column {wrong.colno}"
        raise error(f"{source} is not what it should be", at=where, why=f"it is no JSON: {wrong.msg}", do=do) from None
    except ValueError as wrong:
        raise error(f"{source} is not what it should be", why=str(wrong), do=do) from None


def shown(value: Any) -> str:
    """A value from a file as errors show it: printable characters only, and not too many."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else "?" for c in text[: SHOWN + 1])
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


@dataclass(frozen=True)
class Field:
    """A value from a file, with its place there. Its methods check the value, and raise an error that shows both.

    source: the name of the file. key: the keys that lead to the value, separated by dots.
    error: the class of the errors. do: the advice in the errors.

    >>> Field({"version": "one"}, "plan.json")["version"].integer(1, 9)
    Traceback (most recent call last):
    ...
    fxprune.errors.FileError: plan.json is not what it should be
      at   key "version": one
      why  it must be an integer from 1 to 9
      do   write the file again, or take a whole copy of it
    """

    value: Any
    source: str
    key: str = ""
    error: type[FxpruneError] = FileError
    do: str = WHOLE

    def wrong(self, rule: str, do: str = "") -> FxpruneError:
        """The error for a value that breaks a rule, such as "it must be a list"."""
        at = f'key "{shown(self.key)}": {shown(self.value)}' if self.key else ""
        return self.error(f"{self.source} is not what it should be", at=at, why=rule, do=do or self.do)

    def __getitem__(self, name: str | int) -> Field:
        key = f"{self.key}.{name}" if self.key else str(name)
        return Field(self.value[name], self.source, key, self.error, self.do)

    def object(self, required: Collection[str], optional: Collection[str] = ()) -> Field:
        """The same field, checked to be an object with these keys and no others."""
        self.mapping()
        missing = [name for name in required if name not in self.value]
        if missing:
            raise self.wrong(f'the key "{missing[0]}" is missing')
        known = [*required, *optional]
        unknown = next((name for name in self.value if name not in known), None)
        if unknown is not None:
            raise self.wrong(f'nothing is known of the key "{shown(unknown)}"; {nearest(unknown, known)}')
        return self

    def mapping(self) -> dict[str, Field]:
        """The fields of an object by their keys, which may be any."""
        if not isinstance(self.value, dict):
            raise self.wrong("it must be an object")
        return {name: self[name] for name in self.value}

    def items(self) -> list[Field]:
        """The fields of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("it must be a list")
        return [self[i] for i in range(len(self.value))]

    def text(self, choices: Collection[str] = ()) -> str:
        """The value, checked to be a string, and one of `choices` if these are given."""
        if not isinstance(self.value, str):
            raise self.wrong("it must be a string")
        if choices and self.value not in choices:
            raise self.wrong(f"it must be one of {', '.join(repr(c) for c in choices)}")
        return self.value

    def integer(self, low: int, high: int) -> int:
        """The value, checked to be an integer from `low` to `high`. True and false are no integers here."""
        if type(self.value) is not int or not low <= self.value <= high:
            raise self.wrong(f"it must be an integer from {low} to {high}")
        return self.value

    def number(self) -> int | float | bool:
        """The value, checked to be a number, true or false."""
        if not isinstance(self.value, (int, float)):
            raise self.wrong("it must be a number")
        return self.value

    def texts(self) -> tuple[str, ...]:
        """The value, checked to be a list of strings."""
        return tuple(item.text() for item in self.items())

    def shape(self) -> tuple[int, ...]:
        """The value, checked to be a list of sizes."""
        if len(self.items()) > MAX_DIMS:
            raise self.wrong(f"a tensor has at most {MAX_DIMS} dimensions here")
        return tuple(item.integer(0, 2**40) for item in self.items())


MAX_DIMS = 64
