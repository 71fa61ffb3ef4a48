"""The directories around the weights: the model of a config, and the files that a result has beside its weights."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.artifacts.pretrained import refuse_other_weights, write_guarded
from fxprune.artifacts.safetensors_file import INDEX
from fxprune.configs.builder import NotBuiltError, built_from
from fxprune.errors import FileError, text_of
from fxprune.files import replacing, write_text
from fxprune.streaming.checkpoint import CONFIG, Checkpoint

WEIGHT_FILES = (
    ".safetensors",
    INDEX,
    ".bin",
    ".pt",
    ".pth",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
    ".ot",
    ".ckpt",
    ".npz",
)
"""Ends of the names of files with weights, which are not copied."""

NOT_COPIED = (CONFIG, "SHA256SUMS", "pytorch_model.bin.index.json")

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


def copy_others(source: Path, target: Path) -> tuple[str, ...]:
    """Copy the files beside the weights (tokenizers, generation config, licence), whole or not at all; their names."""
    copied = []
    for path in sorted(source.rglob("*") if (source / "additional_chat_templates").is_dir() else source.iterdir()):
        name = path.relative_to(source)
        nested = len(name.parts) > 1 and name.parts[0] != "additional_chat_templates"
        if nested or not path.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        if str(name) in NOT_COPIED or path.name.endswith(WEIGHT_FILES):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "rb") as original, replacing(target / name) as file:
            shutil.copyfileobj(original, file)
        copied.append(str(name))
    return tuple(copied)


def write_plain(config: Mapping[str, Any], target: Path) -> None:
    """Write the config of a small model that its config says. It is the last file, without which nothing is loaded."""
    write_text(target / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def new_config(checkpoint: Checkpoint, original: nn.Module, small: nn.Module) -> dict[str, Any]:
    """The content of the checkpoint's config with the fields that the small model has otherwise."""
    before, after = _data(original), _data(small)
    return _changed(dict(checkpoint.config or {}), before, after)


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
    write_guarded(type(original), config, {**_data(original), **(checkpoint.config or {})}, target, why)
