"""The files of the result: each is written whole or not at all, and not again after a run that was killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fxprune.artifacts.safetensors_file import header
from fxprune.errors import FileError
from fxprune.files import replacing
from fxprune.streaming.copying import Scratch, copy_piece
from fxprune.streaming.pieces import Output, Piece

AT_ONCE = 2
"""The files that are open at a time: one is flushed to the disk while the next is written."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A file of the result. header: its bytes before the tensors. offsets: name of a tensor -> where it begins."""

    name: str
    outputs: tuple[Output, ...]
    header: bytes = field(repr=False)
    offsets: Mapping[str, int] = field(repr=False)

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return len(self.header) + sum(output.bytes for output in self.outputs)

    def is_in(self, folder: Path) -> bool:
        """True if the file is there: it has the size and the header that it will have."""
        path = folder / self.name
        if not path.is_file() or path.stat().st_size != self.bytes:
            return False
        with open(path, "rb") as file:
            return file.read(len(self.header)) == self.header


def shards_of(outputs: Sequence[Output], limit: int, stem: str, texts: Mapping[str, str]) -> list[Shard]:
    """The files for these tensors, in their order, each of at most `limit` bytes if no tensor is larger.

    stem: the beginning of their names. texts: the metadata of a file that stands alone.
    """
    packed: list[list[Output]] = [[]]
    size = 0
    for output in outputs:
        if packed[-1] and size + output.bytes > limit:
            packed.append([])
            size = 0
        packed[-1].append(output)
        size += output.bytes
    count, made = len(packed), []
    for number, group in enumerate(packed, 1):
        name = f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.safetensors"
        own = texts if count == 1 else {"format": "pt"}
        text, offsets = header({output.name: (output.dtype, output.shape) for output in group}, own)
        made.append(Shard(name, tuple(group), text, offsets))
    return made


def index_of(shards: Sequence[Shard], texts: Mapping[str, str]) -> str:
    """The index of several files as JSON. texts: the metadata beside the size."""
    total = sum(output.bytes for shard in shards for output in shard.outputs)
    places = {output.name: shard.name for shard in shards for output in shard.outputs}
    data = {"metadata": {"total_size": total, **texts}, "weight_map": dict(sorted(places.items()))}
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def write_shards(
    shards: Sequence[Shard],
    folder: Path,
    workers: int,
    tell: Callable[[int], None],
    note: Callable[[Shard], None] = lambda _: None,
) -> None:
    """Write files; each appears when it is complete and on the disk.

    workers: threads that read, cut and write, one tensor each. tell: gets the number of bytes that were written.
    note: gets each file that is there.
    """

    def one(shard: Shard) -> None:
        _write(shard, folder, pool, scratch, tell)
        note(shard)

    scratch = threading.local()
    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(AT_ONCE) as files:
        tasks = [files.submit(one, shard) for shard in shards]
        _finish(tasks)


def _finish(tasks: Sequence[Future[None]]) -> None:
    """Wait for all tasks; if one raises, or the process is interrupted, the others do not begin."""
    try:
        wait(tasks, return_when=FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
    for task in tasks:
        if not task.cancelled():
            task.result()


def _write(
    shard: Shard, folder: Path, pool: ThreadPoolExecutor, scratch: threading.local, tell: Callable[[int], None]
) -> None:
    with replacing(folder / shard.name) as file:
        file.write(shard.header)
        file.flush()
        file.truncate(shard.bytes)
        writer = _Writer(file, tell)
        tasks = [
            pool.submit(_copy, piece, output, writer.at(shard.offsets[output.name]), scratch)
            for output in shard.outputs
            for piece in output.pieces
        ]
        try:
            _finish(tasks)
        finally:
            wait(tasks)  # none writes into a file that is closed


def _copy(piece: Piece, output: Output, write: Callable[[int, Any], None], scratch: threading.local) -> None:
    if not hasattr(scratch, "own"):
        scratch.own = Scratch()
    with open(piece.stored.path, "rb", buffering=0) as source:
        copy_piece(piece, output, source, write, scratch.own)


class _Writer:
    """Writes into one file from several threads."""

    def __init__(self, file: IO[bytes], tell: Callable[[int], None]) -> None:
        self.file, self.tell, self._lock = file, tell, threading.Lock()

    def at(self, begin: int) -> Callable[[int, Any], None]:
        """A function that writes bytes to an offset from `begin`."""

        def write(offset: int, data: memoryview) -> None:
            done = 0
            if hasattr(os, "pwrite"):
                while done < len(data):
                    done += os.pwrite(self.file.fileno(), data[done:], begin + offset + done)
            else:
                with self._lock:
                    self.file.seek(begin + offset)
                    self.file.write(data)
            self.tell(len(data))

        return write


def checksum_of(path: Path) -> str:
    """The SHA-256 of a file, read from what is on the disk."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_without_space(folder: Path, bytes_needed: int) -> None:
    """Raises `FileError` if the disk of a directory, which may not be there yet, has not enough space."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if bytes_needed > free:
        raise FileError(
            f'the disk of "{folder}" has not enough space',
            why=f"{bytes_needed} bytes are needed, {free} are free",
            do="free some, or write to another disk",
        )
