"""A checkpoint in a directory: safetensors files with their index, read tensor by tensor, never mapped into memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from fxprune.artifacts.safetensors_file import SafetensorsFile
from fxprune.errors import FileError
from fxprune.files import Field, PathLike, parse_json, read_bytes

CONFIG, WHOLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

LIMIT = 1 << 28
"""The most bytes of a config or an index."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. offset: of its first byte."""

    name: str
    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """The size of its numbers."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Checkpoint:
    """The tensors in a directory, by their names there.

    folder: the directory. tensors: in the order of the files. config: the content of `config.json`, None without one.
    files: name of a file with weights -> its size and the time of its last change.
    """

    folder: Path
    tensors: Mapping[str, Stored]
    config: Mapping[str, Any] | None
    files: Mapping[str, tuple[int, int]]

    @property
    def quantization(self) -> Mapping[str, Any]:
        """The part of the config about packed weights, empty if it has none."""
        found = (self.config or {}).get("quantization_config")
        return found if isinstance(found, Mapping) else {}


def open_checkpoint(directory: PathLike) -> Checkpoint:
    """The checkpoint in a directory; the headers of its files are read and checked.

    Raises `FileError` for a directory without safetensors files, for files that contradict the index or themselves, and
    for a small model that no config says.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FileError(f'there is no directory "{folder}"', do="pass the directory of a checkpoint")
    config = _config(folder)
    if config is not None and "fxprune" in config and "original_config" in config:
        raise FileError(
            f'"{folder}" holds a small model that no config says',
            why="its plan is in its files, and a second plan would need both",
            do="load it with fxprune.from_pretrained, or stream the original with first.then(second)",
        )
    weight_map = _weight_map(folder)
    tensors: dict[str, Stored] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for name in dict.fromkeys(weight_map.values()):
        file = SafetensorsFile(folder / name)
        for tensor, shape in file.shapes.items():
            if tensor in tensors:
                raise file.wrong(f'"{tensors[tensor].path.name}" has it too', at=f'"{tensor}"')
            tensors[tensor] = Stored(tensor, folder / name, file.offsets[tensor], shape, file.dtypes[tensor])
        state = os.stat(folder / name)
        sizes[name] = state.st_size, state.st_mtime_ns
    for tensor, name in weight_map.items():
        if tensor and (tensor not in tensors or tensors[tensor].path.name != name):
            raise FileError(
                f'"{folder / INDEX}" contradicts the files',
                at=f'"{tensor}"',
                why=f'"{name}" has it not',
                do="load all files of the checkpoint again",
            )
    return Checkpoint(folder, tensors, config, sizes)


def _config(folder: Path) -> Mapping[str, Any] | None:
    if not (folder / CONFIG).exists():
        return None
    source = f'"{folder / CONFIG}"'
    field = Field(parse_json(read_bytes(folder / CONFIG, LIMIT), source), source)
    return {name: value.value for name, value in field.mapping().items()}


def _weight_map(folder: Path) -> Mapping[str, str]:
    """Name of a tensor -> its file; without an index the files alone, each under an empty name.

    Raises `FileError` for an index of other files beside a file with all weights, which transformers loads instead.
    """
    if (folder / INDEX).exists():
        source = f'"{folder / INDEX}"'
        found = Field(parse_json(read_bytes(folder / INDEX, LIMIT), source), source).mapping()
        if "weight_map" not in found:
            raise FileError(
                f"{source} is no index", why='it has no "weight_map"', do="pass a directory that save_pretrained wrote"
            )
        made = {tensor: name.text() for tensor, name in found["weight_map"].mapping().items()}
        for name in {*made.values()}:
            if name != os.path.basename(name) or not (folder / name).is_file():
                raise FileError(f"{source} names a file that is not there", at=f'"{name}"', do="load all files first")
        if (folder / WHOLE).exists() and {*made.values()} != {WHOLE}:
            raise FileError(
                f'"{folder}" holds two checkpoints',
                at=f"{WHOLE} and {INDEX}",
                why="transformers loads the single file, the index names others, and the weights may differ",
                do="remove the one that is not meant, with its files",
            )
        return made
    if (folder / WHOLE).is_file():
        return {"": WHOLE}
    raise _without_weights(folder)


def _without_weights(folder: Path) -> FileError:
    """The error for a directory without weights that can be read, which names those that are there or below it."""
    suffixes = (".safetensors", ".bin", ".pt", ".gguf")
    others = sorted(path.name for path in folder.iterdir() if path.suffix in suffixes)
    below = sorted({path.parent.name for path in folder.glob("*/*.safetensors")})
    why = f"there is neither {WHOLE} nor {INDEX}" + (f", only {', '.join(others[:4])}" if others else "")
    do = "save the model with save_pretrained of transformers, which writes safetensors"
    if len(others) == 1 and others[0].endswith(suffixes[0]):
        do = f"link or rename {others[0]} to {WHOLE}, and pass the model that it is of (model=)"
    if below:
        why += f"; {', '.join(below)} {'have' if len(below) > 1 else 'has'} weights, each of a model of its own"
        do = f'stream each with its own plan, such as stream("{folder / below[0]}", plan, ...)'
    return FileError(f'"{folder}" has no weights that can be read here', why=why, do=do)


def read_into(file: IO[bytes], offset: int, buffer: memoryview) -> None:
    """Fill a buffer with the bytes of an open file from an offset on. Raises `FileError` if the file ends before."""
    done = 0
    if hasattr(os, "preadv"):
        while done < len(buffer):
            count = os.preadv(file.fileno(), [buffer[done:]], offset + done)
            done += count if count else _ended(file)
        return
    file.seek(offset)  # Windows has no pread; every task has a file of its own
    while done < len(buffer):
        count = file.readinto(buffer[done:])  # type: ignore[attr-defined]
        done += count if count else _ended(file)


def _ended(file: IO[bytes]) -> int:
    raise FileError(
        f'"{file.name}" ends too early',
        why="it was changed while it was read",
        do="begin again when nothing writes to the checkpoint",
    )
