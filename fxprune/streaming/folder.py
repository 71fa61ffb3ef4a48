"""The directories around the weights: the model of a config, and the files that a result has beside its weights."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from torch import nn

from fxprune.artifacts.pretrained import refuse_other_weights, write_guarded
from fxprune.configs.builder import NotBuiltError, built_from
from fxprune.errors import FileError, text_of
from fxprune.files import replacing, write_text
from fxprune.streaming.checkpoint import CONFIG, INDEX, Checkpoint

WEIGHT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*model*.bin",
    "*model*.bin.index.json",
    "consolidated*.bin",
    "*.pt",
    "*.pth",
    "*.h5",
    "*.msgpack",
    "*.gguf",
    "*.onnx",
    "*.onnx_data",
    "*.ot",
    "*.ckpt",
    "*.npz",
)
"""Names of files with weights, which are not copied; other files that end with `.bin` may hold vocabularies."""

SUMS = "SHA256SUMS"
"""The file with the checksums of a result."""

LIBRARY = "transformers"
"""The package in which the class of a config's `architectures` is looked for."""


def model_of(checkpoint: Checkpoint, model_class: type[nn.Module] | None) -> nn.Module:
    """The model of a checkpoint's config; its weights have no memory.

    Raises `FileError` where there is no config, where it names no class of transformers, and where the class cannot be
    built from it.
    """
    config = dict(checkpoint.config or {})
    if checkpoint.config is None:
        raise FileError(
            f'"{checkpoint.folder}" has no {CONFIG}',
            why="without the model it is not known which parameter each tensor belongs to",
            do="pass the original, also one on the meta device: stream(..., model=model)",
        )
    kind = model_class or _class_of(config)
    try:
        return built_from(kind, {k: v for k, v in config.items() if k != "quantization_config"})
    except NotBuiltError as error:
        raise FileError(
            f'{kind.__name__} cannot be built from "{checkpoint.folder / CONFIG}"',
            why=str(error),
            do="pass `model_class`, or take the transformers that wrote the config",
        ) from None


def _class_of(config: Mapping[str, Any]) -> Any:
    names = config.get("architectures") or ()
    name = str(names[0]) if names else ""
    try:
        found = getattr(importlib.import_module(LIBRARY), name, None) if name.isidentifier() else None
    except ImportError as error:
        raise FileError(
            "the class of the model cannot be imported",
            at=f'"architectures" in {CONFIG}: {json.dumps(names)}',
            why=f"{LIBRARY} raised {text_of(error)}",
            do="install what is missing, or pass the class: stream(..., model_class=...)",
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)) or config.get("auto_map"):
        raise FileError(
            "the class of the model is not known",
            at=f'"architectures" in {CONFIG}: {json.dumps(names)}',
            why=f"{LIBRARY} has no such class, or the directory brings its own code, which is not run",
            do="pass it: stream(..., model_class=...)",
        )
    return found


def others_of(checkpoint: Checkpoint, result: Path) -> tuple[list[str], list[str]]:
    """The files beside the weights of a checkpoint: those to copy, and what is left out.

    Left out are weights in other formats, checksums, links that lead nowhere, and hidden files and directories. A
    directory is walked once, also one with several links, and that of the result not at all.
    """
    source, copied, left_out = checkpoint.folder, list[str](), list[str]()
    replaced, seen = {*checkpoint.files, CONFIG, INDEX}, {result.resolve()}
    for place, directories, files in os.walk(source, followlinks=True):
        folder = Path(place)
        within = folder.relative_to(source)
        here = folder.resolve()
        if here in seen:
            directories.clear()
            continue
        seen.add(here)
        left_out += [(within / name).as_posix() for name in directories if name.startswith(".")]
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        for name in files:
            path = (within / name).as_posix()
            if path in replaced:
                continue
            goes = name.startswith(".") or path == SUMS or not (folder / name).is_file()
            goes = goes or any(PurePosixPath(name).match(pattern) for pattern in WEIGHT_FILES)
            (left_out if goes else copied).append(path)
    return sorted(copied), sorted(left_out)


def copy_others(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy files into another directory, each whole or not at all."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with open(source / name, "rb") as original, replacing(target / name) as file:
            shutil.copyfileobj(original, file)


def write_plain(config: Mapping[str, Any], target: Path) -> None:
    """Write the config of a small model that its config says. It is the last file, without which nothing is loaded."""
    write_text(target / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def new_config(checkpoint: Checkpoint, original: nn.Module, small: nn.Module) -> dict[str, Any]:
    """The content of the checkpoint's config with the fields that the small model has otherwise."""
    before, after = _data(original), _data(small)
    return _changed(_config_data(checkpoint, original), before, after)


def _config_data(checkpoint: Checkpoint, original: nn.Module) -> dict[str, Any]:
    """The content of the checkpoint's config; without one that of the model, whose types may be others than stored."""
    if checkpoint.config is not None:
        return dict(checkpoint.config)
    data = {name: value for name, value in _data(original).items() if name not in ("dtype", "torch_dtype")}
    return {**data, "architectures": [type(original).__name__]}


def _data(model: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(model.config.to_dict(), default=str))
    return data


def _changed(data: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(data)
    for key, value in after.items():
        old = before.get(key)
        if value == old:
            continue
        inner = isinstance(value, Mapping) and isinstance(old, Mapping) and isinstance(made.get(key), Mapping)
        made[key] = _changed(made[key], old or {}, value) if inner else value
    return made


def guard(checkpoint: Checkpoint, original: nn.Module, target: Path, why: str) -> None:
    """Write the config and the README of a small model that no config says, as `save_pretrained` does."""
    refuse_other_weights(target, why)
    config: Any = original.config
    write_guarded(type(original), config, {**_data(original), **_config_data(checkpoint, original)}, target, why)
