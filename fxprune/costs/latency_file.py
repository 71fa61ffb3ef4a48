"""Files of measured latencies: one for each model, device, version of torch and number of threads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.costs.latency import device_name, device_of, threads
from fxprune.errors import FileError, FxpruneError
from fxprune.files import Field, PathLike, parse_json, read_bytes, write_text

SCHEMA = "fxprune.latency/1"
LARGEST = 64 * 2**20


@dataclass(frozen=True)
class Point:
    """A measurement: the seconds of the original, of a small model, and of each of its layers."""

    original: float
    whole: float
    layers: Mapping[str, float]


@dataclass(frozen=True)
class LatencyFile:
    """A folder of measurements, and the conditions under which they are made.

    folder: where the files are. must_write: True if a folder that cannot be written to is an error.
    """

    folder: Path
    conditions: Mapping[str, Any]
    must_write: bool = False

    @classmethod
    def of(cls, model: nn.Module, folder: PathLike | bool | None) -> LatencyFile | None:
        """The measurements of a model on this machine.

        folder: None for the user's cache directory; False for no files; else the folder.
        """
        if folder is False:
            return None
        device = device_of(model)
        conditions = {"device": device_name(device), "type": device.type, "torch": torch.__version__}
        given = not (folder is None or folder is True)
        place = Path(os.fspath(folder)) if not isinstance(folder, bool) and folder is not None else cache_folder()
        return cls(place, {**conditions, "threads": threads()}, given)

    def path(self, digest: str) -> Path:
        """The file for a model. digest: a short text that tells models apart."""
        text = json.dumps([digest, self.conditions], sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def read(self, digest: str) -> dict[str, Point]:
        """The measurements of a model, by widths. A file that is not there, or not as it should be, holds none."""
        path = self.path(digest)
        try:
            content = Field(parse_json(read_bytes(path, LARGEST), path.name), path.name)
            content.object(["schema", "conditions", "points"])
            content["schema"].text([SCHEMA])
            return {widths: _point(entry) for widths, entry in content["points"].mapping().items()}
        except (OSError, FxpruneError):
            return {}

    def drop(self, digest: str) -> Path:
        """Delete the measurements of a model, so that the next ones are made again. Returns the path of their file."""
        path = self.path(digest)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return path

    def write(self, digest: str, points: Mapping[str, Point]) -> None:
        """Write all measurements of a model, whole or not at all."""
        made = {widths: asdict(point) for widths, point in points.items()}
        text = json.dumps({"schema": SCHEMA, "conditions": self.conditions, "points": made}, allow_nan=False)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.path(digest), text)
        except OSError as error:
            if self.must_write:
                why, do = str(error), "pass a folder that can be written to, or False"
                raise FileError(f'latencies cannot be kept in "{self.folder}"', why=why, do=do) from error
            with contextlib.suppress(FxpruneError):
                do = "set XDG_CACHE_HOME to a folder that can be written to"
                warnings.warn(f"measured latencies are not kept: {error}; {do}", stacklevel=2)


def cache_folder() -> Path:
    """The folder for measurements in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or os.path.join("~", ".cache")
    return Path(base).expanduser() / "fxprune" / "latency"


def _point(entry: Field) -> Point:
    entry.object(["original", "whole", "layers"])
    layers = {path: _seconds(field) for path, field in entry["layers"].mapping().items()}
    return Point(_seconds(entry["original"]), _seconds(entry["whole"]), layers)


def _seconds(field: Field) -> float:
    seconds = float(field.number())
    if seconds < 0:
        raise field.wrong("it must be a time")
    return seconds
