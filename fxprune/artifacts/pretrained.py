"""Directories with a small model that no config says: `save_pretrained` writes them, `from_pretrained` reads them.

A program that does not know fxprune refuses such a directory: its `model_type` is unknown, and the file of its weights
has another name.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.arguments import checks_arguments, shown
from fxprune.artifacts.safetensors_file import INDEX
from fxprune.artifacts.weights import load, save
from fxprune.capture.process_state import public_call
from fxprune.configs.builder import NotBuiltError, built_from
from fxprune.configs.directory import CONFIG, README, SMALL, written_whole
from fxprune.configs.saving import ORIGINAL, guard_with, write_with
from fxprune.errors import FileError, InputError
from fxprune.files import Field, PathLike, parse_json, read_bytes, write_text

WEIGHTS = f"{SMALL}.safetensors"

WEIGHTS_INDEX = f"{WEIGHTS}{INDEX}"
"""The index of weights that stand in several files, as `fxprune.stream` writes them."""

VERSION = 1

LIMIT = 1 << 26
"""The largest config, in bytes, that is read."""

TRUSTED = "transformers."
"""Classes of this package are found by their names; any other class has to be given."""

OTHER_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*", "tf_model.h5", "flax_model.msgpack")


def write(small: nn.Module, directory: PathLike, why: str) -> None:
    """Writes a small model that no config says into a directory, so that only `fxprune.from_pretrained` loads it.

    Raises `FileError` for a directory that has the weights of another model, which would be loaded instead.
    """
    refuse_other_weights(Path(directory), why)
    with written_whole(directory) as folder:
        save(small, folder / WEIGHTS)
        write_guarded(type(small), small.config, json.loads(small.__dict__[ORIGINAL]), folder, why)
        generation: Any = getattr(small, "generation_config", None)
        if callable(getattr(generation, "save_pretrained", None)):
            generation.save_pretrained(folder)


def refuse_other_weights(folder: Path, why: str) -> None:
    """Raises `FileError` for a directory with weights that other programs would load. why: no config says the model."""
    for pattern in OTHER_WEIGHTS:
        for other in folder.glob(pattern):
            raise FileError(
                f'"{folder}" holds the weights of another model',
                at=f'"{other.name}"',
                why=f"other programs would load them instead: the config cannot say the small model ({why})",
                do="save into another directory",
            )


def write_guarded(kind: type[nn.Module], config: Any, original: Mapping[str, Any], folder: Path, why: str) -> None:
    """Writes the config and the README of a small model that no config says.

    kind: its class. config: of this class. original: the data of the config of its original.
    """
    name = getattr(type(config), "model_type", "") or kind.__name__
    says = (
        f"This is a {kind.__name__} that was pruned with fxprune to widths that no {type(config).__name__} says. "
        f'Load it with fxprune.from_pretrained("{folder.name}"); transformers alone cannot load it.'
    )
    own = {"version": VERSION, "class": f"{kind.__module__}.{kind.__qualname__}", "load": says, "why": why}
    data = {"model_type": f"fxprune-{name}", "architectures": [f"Fxprune{kind.__name__}"], "fxprune": own}
    _write_readme(folder / README, says)
    write_text(folder / CONFIG, json.dumps({**data, "original_config": original}, indent=2) + "\n")


def _write_readme(path: Path, says: str) -> None:
    """Writes a sentence into a README; one that is there keeps its text, and gets the sentence at its end."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if says not in before:
        write_text(path, f"{before.rstrip()}\n\n{says}\n".lstrip())


@checks_arguments("directory", "also", "methods")
@public_call()
def from_pretrained(
    directory: PathLike,
    *,
    model_class: type[nn.Module] | None = None,
    example_inputs: Any = None,
    also: Sequence[Any] = (),
    methods: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Loads a small Hugging Face model that `save_pretrained` wrote where no config could say its widths.

    A small model whose config says its widths (`uniform="config"`) is loaded by transformers' own `from_pretrained`.

    Args:
        directory: the directory that `small.save_pretrained` wrote.
        model_class: the class of the model. One of transformers is found by its name.
        example_inputs, also, methods: as for `fxprune.load`. They are needed where the plan changes more than tensors
            and attributes of modules.

    Returns the model on the CPU, with the weights, dtypes and record of the saved one. Raises `FileError` for another
    directory, and the errors of `fxprune.load`.
    """
    folder = Path(directory)
    source = f'"{folder / CONFIG}"'
    data = Field(parse_json(read_bytes(folder / CONFIG, LIMIT), source), source).mapping()
    if "fxprune" not in data or "original_config" not in data:
        raise FileError(
            f"{source} was not written by fxprune",
            why='it has no "fxprune"',
            do=f'load it with from_pretrained("{folder}") of its own library',
        )
    own = data["fxprune"].object(("version", "class", "load", "why"))
    if own["version"].value != VERSION:
        raise own["version"].wrong(f"this fxprune reads version {VERSION}", "load it with the fxprune that wrote it")
    kind = _class_named(own["class"]) if model_class is None else _checked(model_class)
    original = data["original_config"].value
    try:
        into = built_from(kind, original)
    except NotBuiltError as error:
        raise FileError(
            f"{kind.__name__} cannot be built from the config in {source}",
            why=str(error),
            do="pass `model_class`, or load it with the transformers that wrote the config",
        ) from None
    several = (folder / WEIGHTS_INDEX).exists() and not (folder / WEIGHTS).exists()
    weights = folder / (WEIGHTS_INDEX if several else WEIGHTS)
    small = load(weights, into=into, example_inputs=example_inputs, also=also, methods=methods)
    guard_with(small, json.dumps(original))
    generation: Any = getattr(small, "generation_config", None)
    if (folder / "generation_config.json").exists() and hasattr(type(generation), "from_pretrained"):
        small.generation_config = type(generation).from_pretrained(os.fspath(folder))
    return small


def _checked(model_class: Any) -> type[nn.Module]:
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise InputError(
            f"model_class must be a class of models, not {shown(model_class)}",
            do="pass the class of the original, such as LlamaForCausalLM",
        )
    return model_class


def _class_named(name: Field) -> type[nn.Module]:
    """The class of a name. Raises `FileError` for one that is not of transformers, whose module is not imported."""
    module, _, own = name.text().rpartition(".")
    if not module.startswith(TRUSTED):
        raise FileError(
            f"the class {name.text()} is not looked for",
            why="importing it would run code that a file names",
            do="pass it: from_pretrained(directory, model_class=...)",
        )
    found = getattr(importlib.import_module(module), own, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise FileError(f"there is no class {name.text()}", do="install the transformers that the model was saved with")
    return found


write_with(write)
