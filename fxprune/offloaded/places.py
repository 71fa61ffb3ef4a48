"""The places of weights that are not in the model: memory of any device, or files."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fxprune.errors import FileError, MissingFileError, text_of
from fxprune.files import held, was_left

PREFIX = "fxprune-weights-"
"""The beginning of the names of folders with the weights of small models."""

BEGIN = 4096
"""The bytes by which files are told apart first."""

OWN_FILES = "fxprune_files"
"""The attribute of a map of accelerate with the files of a small model, by name; it keeps their folders."""

LOCK = ".lock"
"""The file in such a folder whose lock is held as long as its process lives."""


class WeightPlace(Protocol):
    """The numbers of one weight. They never change: other numbers are put into another place."""

    def read(self) -> torch.Tensor:
        """The numbers, in new memory."""

    def beside(self, values: torch.Tensor) -> WeightPlace:
        """A new place of the same kind with these numbers."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """Numbers in the memory of a device."""

    tensor: torch.Tensor

    def read(self) -> torch.Tensor:
        """The numbers, in new memory."""
        return self.tensor.detach().clone()

    def beside(self, values: torch.Tensor) -> InMemory:
        """Numbers in the memory of the same device."""
        return InMemory(values.detach().to(self.tensor.device, copy=True))


class Folder:
    """A new folder for weights, which is removed when nothing refers to it any more, or when the process ends.

    Folders of processes that were killed are removed by the next one beside them.
    """

    def __init__(self, parent: Path) -> None:
        remove_left(parent)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        except OSError as error:
            raise FileError(
                f'cannot make a folder for the weights of the small model in "{parent}"',
                why=text_of(error),
                do="check that the offload folder is there, and that it can be written to",
            ) from error
        self._count = 0
        lock = held(self.path / LOCK)
        weakref.finalize(self, _remove, self.path, os.getpid(), lock)

    def put(self, values: torch.Tensor) -> InFile:
        """A place in a new file. Raises `FileError` if the file cannot be written."""
        from safetensors.torch import save_file

        self._count += 1
        path = self.path / f"{self._count}.safetensors"
        try:
            save_file({"weight": values.detach().to("cpu").contiguous()}, path)
        except Exception as error:  # safetensors has an exception of its own for a full disk
            raise FileError(
                f'cannot write "{path}"',
                why=f"{type(error).__name__}: {error}",
                do="free some space on the disk of the offload folder",
            ) from error
        return InFile(path, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Folder:
        """The folder itself: copies of a model have one."""
        return self


def _remove(path: Path, process: int, lock: int) -> None:
    """Remove a folder. A process that was forked leaves it to its parent."""
    if os.getpid() == process:
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(lock)


def _unlink(path: Path, process: int) -> None:
    if os.getpid() == process:
        path.unlink(missing_ok=True)


def remove_left(parent: Path) -> None:
    """Remove the folders whose processes were killed."""
    for path in parent.glob(f"{PREFIX}*"):
        if was_left(path / LOCK):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _reading(place: str, do: str) -> Iterator[None]:
    """Raises `FileError` where the block cannot read a weight; `MissingFileError` where its file is gone."""
    try:
        yield
    except Exception as error:  # safetensors and numpy have exceptions of their own for files that are cut off
        gone = isinstance(error, FileNotFoundError)
        raise (MissingFileError if gone else FileError)(
            "a weight that accelerate keeps on disk cannot be read",
            at=place,
            why="the file was removed while the model was in use" if gone else text_of(error),
            do=do,
        ) from error


@dataclass(frozen=True, eq=False)
class InFile:
    """Numbers in a file of their own. folder: it is there as long as the file is needed."""

    path: Path
    folder: Folder

    def __post_init__(self) -> None:
        """Let the file go with this place."""
        weakref.finalize(self, _unlink, self.path, os.getpid()).atexit = False

    def __copy__(self) -> InFile:
        """The place itself: the file goes with it, and copies of a model have the same."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> InFile:
        """The place itself, as for a copy."""
        return self

    def read(self) -> torch.Tensor:
        """The numbers, in new memory."""
        from safetensors import safe_open

        do = "make the small model again, and keep the folder until it is saved"
        with _reading(f'"{self.path}"', do), safe_open(self.path, framework="pt") as file:
            return torch.clone(file.get_tensor("weight"))

    def beside(self, values: torch.Tensor) -> InFile:
        """Numbers in another file of the folder."""
        return self.folder.put(values)


class Folders:
    """The folders in which the weights of one small model are put, one on each disk; made when they are needed."""

    def __init__(self) -> None:
        self._folders: dict[Path, Folder] = {}

    def folder(self, parent: Path) -> Folder:
        """The folder in another one."""
        if parent not in self._folders:
            self._folders[parent] = Folder(parent)
        return self._folders[parent]


@dataclass(frozen=True, eq=False)
class OfMap:
    """Numbers that a map of accelerate reads. parent: the folder beside which those of a small model are put.

    The map may read a file, or hold the numbers in memory, without a parent then. file: the weight and its file, for
    errors.
    """

    weights: Mapping[str, torch.Tensor]
    name: str
    folders: Folders
    parent: Path | None = None
    file: str = ""

    def read(self) -> torch.Tensor:
        """The numbers, in new memory."""
        if not self.file:
            return self.weights[self.name].detach().to("cpu", copy=True)
        with _reading(self.file, "load the model again, and keep its files while it is used"):
            return self.weights[self.name].detach().to("cpu", copy=True)

    def beside(self, values: torch.Tensor) -> WeightPlace:
        """Numbers in memory, or in a file of a new folder."""
        if self.parent is None:
            return InMemory(values.detach().to("cpu", copy=True))
        return self.folders.folder(self.parent).put(values)


def place_of(weights: Mapping[str, torch.Tensor], name: str, folders: Folders) -> tuple[WeightPlace, Any]:
    """The place of a weight in a map, and what is the same for weights that are tied.

    weights: the map of a hook, with the prefixes of accelerate around others.
    """
    inner: Any = weights
    key = name
    while hasattr(inner, "dataset") and hasattr(inner, "prefix"):
        inner, key = inner.dataset, f"{inner.prefix}{key}"
    own: dict[str, InFile] = getattr(inner, OWN_FILES, {})
    if key in own:
        return own[key], own[key].path
    held_in_memory = inner.state_dict if hasattr(inner, "state_dict") else inner
    if isinstance(held_in_memory, dict) and isinstance(held_in_memory.get(key), torch.Tensor):
        tensor = held_in_memory[key]
        return OfMap(weights, name, folders), (tensor.data_ptr(), tensor.shape, tensor.dtype)
    entry = getattr(inner, "index", {}).get(key, {})
    file, folder = entry.get("safetensors_file"), getattr(inner, "save_folder", None)
    if folder is None or file is not None:
        text = f'"{key}"' + (f' in "{file}"' if file else "")
        place = OfMap(weights, name, folders, Path(tempfile.gettempdir()), text)
        return place, (file, entry.get("weight_name", key)) if file else object()
    path = Path(folder) / f"{key}.dat"
    return OfMap(weights, name, folders, Path(folder), f'"{path}"'), FileContent(path)


class FileContent:
    """The content of a file, equal to that of another file with the same bytes.

    accelerate writes a tied weight once under each of its names, and forgets that it was one. Files that begin with one
    number again and again are not compared: the weights of norms are equal, and not tied.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with contextlib.suppress(OSError), open(path, "rb") as file:
            self.begin = os.fstat(file.fileno()).st_size, file.read(BEGIN)

    def __hash__(self) -> int:
        return hash(getattr(self, "begin", id(self)))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, FileContent) or getattr(self, "begin", 0) != getattr(other, "begin", 1):
            return False
        begin = self.begin[1]
        return begin != begin[:8] * (len(begin) // 8) and filecmp.cmp(self.path, other.path, shallow=False)
