"""The directory of a result: what may stand in it before, and what a run that was killed has finished there."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path

from fxprune.artifacts.pretrained import OTHER_WEIGHTS
from fxprune.errors import FileError, text_of
from fxprune.files import write_text
from fxprune.streaming.shards import Shard, checksum_of

STATE = ".fxprune_stream.json"
"""The file that says for what job the files of a result are, as long as it is not complete."""


class FinishedFiles:
    """The notes of a run in the directory of its result: its job, and the sums of the files that are finished.

    key: of the job. sums: name of a file -> its SHA-256, for the files that a run with checksums has finished.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.sums: dict[str, str] = {}
        self._lock = threading.Lock()
        self.same_job = False
        with contextlib.suppress(OSError, ValueError):
            data = json.loads((folder / STATE).read_text())
            if isinstance(data, dict) and data.get("job") == key:
                self.same_job = True
                sums = data.get("sums")
                self.sums = dict(sums) if isinstance(sums, dict) else {}

    def finished(self, shards: Sequence[Shard], *, checksum: bool) -> list[Shard]:
        """The files that a run before has finished.

        checksum: True to take only those that have the sum that was noted when they were written.

        Raises `FileError` for a directory with files that are not of this job. Hidden files are left alone.
        """
        if not self.same_job:
            _refuse_files(self.folder)
            return []
        found = [shard for shard in shards if shard.is_in(self.folder)]
        if checksum:
            found = [s for s in found if self.sums.get(s.name) == checksum_of(self.folder / s.name)]
        names = {shard.name for shard in found}
        self.sums = {name: text for name, text in self.sums.items() if name in names}
        return found

    def begin(self) -> None:
        """Make the directory, with the notes. Raises `FileError` for one that cannot be written to."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.write()
        except OSError as error:
            raise FileError(
                f'cannot write into "{self.folder}"',
                why=text_of(error),
                do="name a directory that can be written to",
            ) from error

    def write(self) -> None:
        """Write the notes."""
        write_text(self.folder / STATE, json.dumps({"job": self.key, "sums": self.sums}) + "\n")

    def add(self, shard: Shard) -> None:
        """Note the sum of a file that has just been finished."""
        text = checksum_of(self.folder / shard.name)
        with self._lock:
            self.sums[shard.name] = text
            self.write()


def _refuse_files(folder: Path) -> None:
    if not folder.is_dir():
        return
    weights = [path for pattern in (*OTHER_WEIGHTS, "small_model*.safetensors*") for path in folder.glob(pattern)]
    others = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for path in (*weights, *others):
        raise FileError(
            f'"{folder}" holds {"weights" if weights else "files"} already',
            at=f'"{path.name}"',
            why="they are not of this checkpoint and plan, or they are complete"
            if weights
            else "they are not of a run of this checkpoint and plan, and could be replaced",
            do="name a new directory" + (f"; weights with no {STATE} beside them are complete" if weights else ""),
        )
