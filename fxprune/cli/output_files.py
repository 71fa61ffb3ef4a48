"""Checks of files before the work starts: input files exist, and output files can be written."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterable

from fxprune.artifacts.pretrained import WEIGHTS
from fxprune.cli.pretrained import CONFIG
from fxprune.cli.usage import UsageError
from fxprune.errors import FileError, nearest

NO_SMALL = (".pt", ".pth", ".pkl", ".pt2", ".json", ".onnx")
"""Suffixes of files that are no small models."""


def check_readable(*paths: str | None) -> None:
    """Raises `FileError` if one of these files is not there. None is no file."""
    for path in paths:
        if path is not None:
            _check_file(path)


def _check_file(path: str) -> None:
    if os.path.isdir(path):
        inside = os.path.join(path, WEIGHTS)
        why, do = "", f'pass "{inside}"' if os.path.exists(inside) else "pass the name of a file"
        if os.path.exists(os.path.join(path, CONFIG)) and not os.path.exists(inside):
            why, do = "its model is one that transformers loads, and has no record", "pass it as MODEL, or name a file"
        raise FileError(f'"{path}" is a directory', why=why, do=do)
    if not os.path.exists(path):
        folder = os.path.dirname(path)
        if not os.path.isdir(folder or "."):
            raise FileError(
                f'there is no file "{path}"', why=f'there is no directory "{folder}"', do="correct the path"
            )
        names = [name for name in os.listdir(folder or ".") if not name.startswith(".")]
        name = os.path.basename(path)
        near = sorted(other for other in names if _alike(name, other))
        raise FileError(
            f'there is no file "{path}"',
            why=nearest(name, near) if near else f'no name in "{folder or os.getcwd()}" is like it',
            do=f'pass the name of a file that is there; names are relative to "{os.getcwd()}"',
        )


def check_small(options: argparse.Namespace) -> None:
    """Raises `FileError` if a small model cannot be read from a file, or its suffix says that it holds none."""
    path = options.small
    if path is None:
        return
    if options.model.endswith(".safetensors") and not path.endswith(".safetensors") and not os.path.isfile(path):
        why = f'"{options.model}" is a file, and "{path}" is none'
        do = f"say `fxprune {options.command} {path} {options.model}`"
        raise UsageError("MODEL stands before SMALL", why=why, do=do)
    check_readable(path)
    if os.path.splitext(path)[1].lower() in NO_SMALL:
        do = "pass the .safetensors file that `fxprune prune -o` or `fxprune.save` wrote"
        raise FileError(f'"{path}" is no small model', why="fxprune writes those as .safetensors", do=do)


def _alike(one: str, other: str) -> bool:
    """True if two names of files are similar, whatever their suffixes are."""
    stems = [os.path.splitext(name)[0] for name in (one, other)]
    return bool(difflib.get_close_matches(stems[0], stems[1:]))


def check_writable(path: str, suffixes: tuple[str, ...], inputs: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raises if a file cannot be written, would replace an input, or has a suffix of another format.

    suffixes: the allowed ones. inputs: files that the command reads. others: other files that it writes.
    """
    suffix = os.path.splitext(path)[1]
    if suffix not in suffixes:
        raise UsageError(
            f'cannot write "{path}"', why="the suffix says the format", do=f"end it in {' or '.join(suffixes)}"
        )
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        raise FileError(f'cannot write "{path}"', why="it is a directory", do="pass the name of a file")
    if not os.path.isdir(folder):
        raise FileError(
            f'cannot write "{path}"', why=f'there is no directory "{os.path.dirname(path)}"', do="make it first"
        )
    if not os.access(folder, os.W_OK):
        raise FileError(
            f'cannot write "{path}"', why=f'the directory "{folder}" is not writable', do="choose another directory"
        )
    for other in inputs:
        if _same(path, other):
            raise FileError(f'cannot write "{path}"', why="it is read by this command", do="write to another file")
    for other in others:
        if _same(path, other):
            raise UsageError(f'cannot write "{path}" twice', why="two results have that name", do="name two files")


def _same(one: str, other: str) -> bool:
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)
