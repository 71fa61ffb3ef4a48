"""Models in a directory that `save_pretrained` of transformers wrote. Nothing is downloaded; no code in it is run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from fxprune.errors import FileError, FxpruneError

CONFIG = "config.json"


def is_pretrained(spec: str) -> bool:
    """True if a word names a directory with a config."""
    return os.path.isfile(os.path.join(spec, CONFIG))


def load_pretrained(spec: str, args: Mapping[str, Any]) -> nn.Module:
    """The model in a directory, in evaluation mode.

    Its class is the first of `architectures` in the config. A small model of fxprune is loaded by
    `fxprune.from_pretrained`. args: keyword arguments of `from_pretrained`.
    """
    path = os.path.join(spec, CONFIG)
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError) as error:
        raise FileError(
            f'"{path}" cannot be read',
            why=f"{type(error).__name__}: {error}",
            do="pass a directory that save_pretrained wrote",
        ) from None
    if not isinstance(config, Mapping):
        raise FileError(
            f'"{path}" is no config',
            why=f"it holds a {type(config).__name__}, no object",
            do="pass a directory that save_pretrained wrote",
        )
    if "fxprune" in config:
        from fxprune.artifacts.pretrained import from_pretrained

        return from_pretrained(spec)
    kind = _class_of(path, config)
    options = {"local_files_only": True, "trust_remote_code": False, **args}
    try:
        model: nn.Module = kind.from_pretrained(spec, **options)
    except Exception as error:  # whatever the other library raises is told with its text
        text = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
        raise FxpruneError(f'transformers cannot load "{spec}"', why=why, do="--debug shows all of it") from error
    return model


def _class_of(path: str, config: Mapping[str, Any]) -> Any:
    """The class of transformers that a config names."""
    try:
        import transformers
    except (ImportError, RuntimeError, OSError) as error:
        why = f"{type(error).__name__}: {error}"
        raise FxpruneError("transformers cannot be imported", why=why, do="pip install transformers") from error
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
        why = f'its "architectures" is {names!r}, and transformers has no such class'
        raise FileError(f'"{path}" names no model', why=why, do="name the model as package.module:callable")
    return found
