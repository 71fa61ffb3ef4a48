"""The directory of a small model: it gets all files of a save or none, and keeps none of the save before."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fxprune.errors import FileError, FxpruneError, text_of
from fxprune.files import PathLike, check_directory, held, was_left

SMALL, CONFIG, README = "small_model", "config.json", "README.md"
"""The stem of the weights of a small model that no config says, and the names of the files beside them."""

PREFIX, LOCK = ".fxprune-saving-", ".lock"
"""The beginning of the names of folders to which a save writes first, and the file in it that says that it goes on."""

WITHOUT_LOCK = 60.0
"""The age in seconds from which on an empty folder of this name is one of a save that was killed."""

_WEIGHTS = re.compile(r"(.+?)(?:-\d{5}-of-\d{5})?\.safetensors(?:\.index\.json)?")


@contextlib.contextmanager
def written_whole(directory: PathLike) -> Iterator[Path]:
    """A context manager with a new folder of the same name to write to, whose files go to `directory` at the end.

    There they replace the files of the same names and those of an earlier save: its other files of weights, and what
    fxprune said in its README, which is in the new folder too. Other files stay. If the block raises, or the process is
    killed in it, `directory` is as it was; in the latter case a hidden folder stays in it until the next call. The
    config goes first and comes last, so that nothing loads a part of the files.

    Raises `FileError` for a path that is no directory, or that cannot be written to, and where a disk is full.
    """
    check_directory(directory)
    folder = Path(directory)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"{PREFIX}*"):
            if was_left(path / LOCK) or _has_no_lock(path):
                shutil.rmtree(path, ignore_errors=True)
        around = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
    except OSError as error:
        raise FileError(
            f'cannot write into "{folder}"',
            why=text_of(error),
            do="pass a directory that can be written to",
        ) from error
    lock = held(around / LOCK)
    try:
        new = around / (folder.resolve().name or "model")
        new.mkdir()
        before = _said_before(folder)
        _take_readme(folder / README, new / README, before)
        with _failures_named(folder):
            yield new
            _move(new, folder, was_small=bool(before))
    except BaseException:
        shutil.rmtree(around, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process writes into it
            for place in made:
                place.rmdir()
        raise
    finally:
        shutil.rmtree(around, ignore_errors=True)
        os.close(lock)


def _has_no_lock(path: Path) -> bool:
    """True for a folder of a save that was killed before it had a lock; one of another process gets it at once."""
    return not any(path.iterdir()) and time.time() - path.stat().st_mtime > WITHOUT_LOCK


@contextlib.contextmanager
def _failures_named(folder: Path) -> Iterator[None]:
    """A context manager in which errors of the system, and of the writer of safetensors, name the directory."""
    try:
        yield
    except Exception as error:
        foreign = isinstance(error, OSError) or type(error).__name__ == "SafetensorError"
        if isinstance(error, FxpruneError) or not foreign:
            raise
        raise FileError(
            f'cannot write into "{folder}"',
            why=text_of(error),
            do="free some space on its disk, or pass a directory on another one",
        ) from error


def _said_before(folder: Path) -> str:
    """The sentence of fxprune in a directory with a small model that no config says, "" in any other."""
    with contextlib.suppress(OSError, ValueError):
        data = json.loads((folder / CONFIG).read_bytes())
        if isinstance(data, dict) and "original_config" in data and isinstance(data.get("fxprune"), dict):
            return str(data["fxprune"].get("load", ""))
    return ""


def _take_readme(old: Path, new: Path, said: str) -> None:
    """Copy a README without a sentence. Without any other there is none."""
    if old.is_file():
        text = old.read_bytes()
        if said and said.encode() in text:
            text = text.replace(said.encode(), b"").rstrip() + b"\n"
        if text.strip():
            new.write_bytes(text)


def _move(new: Path, folder: Path, *, was_small: bool) -> None:
    """Let the files of a new folder replace those of a save before. Those of a process that writes none change none."""
    names = sorted(str(path.relative_to(new)) for path in new.rglob("*") if path.is_file())
    if not {*names} - {README}:
        return
    for name in names:
        _refuse_directory(folder / name)
        with open(new / name, "rb") as file:
            os.fsync(file.fileno())
    stems = {stem for name in names if (stem := _stem(name))} | ({SMALL} if was_small else set())
    old = [path for path in folder.iterdir() if path.name not in names and _stem(path.name) in stems]
    if was_small and README not in names:
        old.append(folder / README)
    if CONFIG in names:
        old.insert(0, folder / CONFIG)
    for path in old:
        path.unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: (name == CONFIG, name)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, folder / name)


def _refuse_directory(path: Path) -> None:
    if path.is_dir():
        raise FileError(
            f'cannot write "{path}"',
            why="it is a directory, and a file of the small model has its name",
            do="rename it, or save into another directory",
        )


def _stem(name: str) -> str:
    """The beginning of the names of all files of the same weights, "" for other files."""
    found = _WEIGHTS.fullmatch(name)
    return found[1] if found else ""
