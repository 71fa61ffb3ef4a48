"""The output of `prune -o`: a .safetensors file, or a new directory of `save_pretrained` for a Hugging Face model."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

import fxprune
from fxprune.cli.output_files import check_writable
from fxprune.cli.usage import UsageError
from fxprune.errors import ClassLostWarning, FileError
from fxprune.paths import PATHS
from fxprune.planning.plan import Plan

FORM = "end it in .safetensors"


def is_directory(path: str) -> bool:
    """True if the name of an output means a directory: it has no suffix, or a slash at its end."""
    return path.endswith(os.sep) or not os.path.splitext(path)[1]


def check_small_output(path: str, inputs: Iterable[str]) -> None:
    """Raises if the small model cannot be written there. A directory must be new. inputs: as for `check_writable`."""
    if not is_directory(path):
        check_writable(path, (".safetensors",), inputs)
        return
    if os.path.lexists(path.rstrip(os.sep)):
        why = "a directory is written whole, so it must be new"
        raise FileError(f'cannot write "{path}"', why=why, do=f"name another one, or a file: {FORM}")
    plain = path.rstrip(os.sep)
    check_writable(plain, (os.path.splitext(plain)[1],), inputs)


def check_keeps_class(path: str, prefer: str | None, front_end: str | None, plan: Plan | None) -> None:
    """Raises `UsageError` for a directory, if the options ask for a graph, which has no `save_pretrained`.

    front_end: the value of `--path`. plan: that of `--plan`, which its own path is tried for first.
    """
    if not is_directory(path):
        return
    asked = "--prefer graph" if prefer == "graph" else ""
    if front_end is not None and not PATHS[front_end].keeps_class:
        asked = f"--path {front_end}"
    if plan is not None and prefer is None and front_end is None and plan.path and not PATHS[plan.path].keeps_class:
        asked = f"--plan, a plan made on the path {plan.path},"
    if asked:
        why = f"a name without suffix is a directory, and {asked} asks for a graph, which has no save_pretrained"
        raise UsageError(f'cannot write "{path}"', why=why, do=f"say --prefer class, or {FORM}")


@contextlib.contextmanager
def class_expected(path: str) -> Iterator[None]:
    """Raises `FileError` for a directory as soon as the model turns out to become a graph: before its repair."""
    if not is_directory(path):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=ClassLostWarning)
        try:
            yield
        except ClassLostWarning as lost:
            why, chosen, _ = str(lost).partition(". With `prefer=")
            why = why.partition(". Mend what")[0]
            raise (_graph_in_directory(path, why) if chosen else _graph_in_directory(path, why, FORM)) from None


def _graph_in_directory(path: str, why: str, do: str = f"add --prefer class, or {FORM}") -> FileError:
    return FileError(f'cannot write "{path}"', why=why, do=do)


def check_saves(path: str, model: nn.Module) -> None:
    """Raises `UsageError` for a directory, if the model has no `save_pretrained` that could write one."""
    if is_directory(path) and not _saves(model):
        why = f"a name without suffix is a directory, and {type(model).__name__} has no save_pretrained"
        raise UsageError(f'cannot write "{path}"', why=why, do=FORM)


def write_small(small: nn.Module, path: str) -> int:
    """Writes a small model, whole or not at all; returns the number of bytes. Raises `FileError`."""
    if not is_directory(path):
        fxprune.save(small, path)
        return os.path.getsize(path)
    if not _saves(small):
        raise _graph_in_directory(path, "the small model is a graph, which has no save_pretrained")
    saved: Any = small
    target = Path(path)
    around = target.with_name(f".{target.name}.{os.urandom(6).hex()}.tmp")
    try:
        saved.save_pretrained(around / target.name)  # the texts in it have the name of the directory
        os.rename(around / target.name, target)  # one that has come meanwhile is not replaced, unless it is empty
    finally:
        shutil.rmtree(around, ignore_errors=True)
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def _saves(model: Any) -> bool:
    return callable(getattr(model, "save_pretrained", None))
