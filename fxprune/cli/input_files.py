"""Example inputs from a file: arrays of numpy, tensors of torch or of safetensors. No code of a file is run."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fxprune.artifacts.safetensors_file import SafetensorsFile
from fxprune.cli.torch_files import load_tensors
from fxprune.errors import FileError

Named = tuple[str, Any]
"""A value and the name of its argument, "" for a positional one."""


@dataclass(frozen=True)
class InputFile:
    """One `--input` that is a file.

    A list or a tuple in it holds positional arguments, a mapping holds keyword arguments, and a tensor is one
    positional argument. Arrays that `numpy.savez` was given without names are positional.
    """

    path: str

    def named(self) -> list[Named]:
        """The values in the file. Raises `FileError` if it is not what its suffix says."""
        return READERS[os.path.splitext(self.path)[1]](self.path)


def _numpy(path: str) -> list[Named]:
    import numpy as np  # here, because only such files need it

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        text = str(error).splitlines()
        raise FileError(
            f'"{path}" holds no arrays',
            why=f"numpy says: {text[0]}" if text else type(error).__name__,
            do="write arrays of numbers with numpy.savez",
        ) from None
    return [(_argument(name), _tensor(path, name, array)) for name, array in arrays.items()]


def _argument(name: str) -> str:
    """The name of an argument, "" for a name that `numpy.savez` has made."""
    return "" if name.startswith("arr_") and name[4:].isdigit() else name


def _tensor(path: str, name: str, array: Any) -> torch.Tensor:
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        why = str(error).partition(".")[0]
        raise FileError(f'"{name}" in "{path}" is no tensor', why=why, do="write numbers") from None


def _torch(path: str) -> list[Named]:
    found = load_tensors(path, "write the tensors themselves: torch.save((x,), FILE)")
    if isinstance(found, Mapping):
        return [(str(name), value) for name, value in found.items()]
    return [("", value) for value in (found if isinstance(found, (list, tuple)) else [found])]


def _safetensors(path: str) -> list[Named]:
    return list(SafetensorsFile(path).tensors())


READERS: dict[str, Callable[[str], list[Named]]] = {
    ".npz": _numpy,
    ".pt": _torch,
    ".pth": _torch,
    ".safetensors": _safetensors,
}
"""Suffix -> a function that reads such a file."""
