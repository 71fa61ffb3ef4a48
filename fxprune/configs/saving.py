"""`save_pretrained` of a small model: the library's own where the config says the model, else a directory of fxprune.

The config of a small model may still say the widths of before. A directory with it would be refused by
`from_pretrained`, or loaded as a model that computes something else.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxprune.capture.dispatched import readable
from fxprune.configs.builder import Builder, Built, NotBuiltError, difference, has_config
from fxprune.configs.directory import written_whole
from fxprune.errors import FileError, InputError
from fxprune.files import check_directory
from fxprune.offloaded import is_dispatched

ORIGINAL = "fxprune_config"
"""The attribute of a small model with the config of its original, as JSON."""

ELSEWHERE = ("push_to_hub", "distributed_checkpoint")
"""Options of `save_pretrained` by which it uploads the directory, or several processes write into it."""

Writer = Callable[[nn.Module, Any, str], None]


@dataclass
class _Written:
    """The function that writes a directory of fxprune, which `fxprune.artifacts` gives."""

    by: Writer | None = None


_WRITTEN = _Written()


def write_with(writer: Writer) -> None:
    """Let `writer` write models whose config does not say their widths: called with model, directory and why."""
    _WRITTEN.by = writer


def guard(small: Any, original: Any) -> None:
    """Let a small model with a config save itself so that it is not loaded wrongly. Changes `small`.

    original: the model that it was made from.
    """
    if isinstance(small, fx.GraphModule) or not (has_config(small) and has_config(original)):
        return
    before = original.__dict__.get(ORIGINAL)
    if before is None or not beyond_config(original):
        before = json.dumps(original.config.to_dict(), default=str)
    guard_with(small, before)


def guard_with(small: nn.Module, original: str) -> None:
    """The same, with the config of the original as JSON."""
    small.__dict__[ORIGINAL] = original
    small.__dict__["save_pretrained"] = types.MethodType(save_pretrained, small)


def save_pretrained(self: Any, save_directory: Any, *args: Any, **options: Any) -> Any:
    """Writes the model and its config into a directory; if the config does not say the model, so that fxprune reads it.

    See docs/transformers.md. (Its name is that of the method that it stands for, so a pickled model has that again.)
    The library's own is called with `state_dict` too: trainers write checkpoints so, and load their weights themselves.
    """
    if "state_dict" in options:
        return type(self).save_pretrained(self, save_directory, *args, **options)
    check_directory(save_directory)
    _refuse_without_values(self)
    adapted = getattr(self, "_hf_peft_config_loaded", False)  # adapters alone are saved then
    why = "" if adapted else beyond_config(self)
    if not why or _WRITTEN.by is None:
        return _by_library(self, save_directory, args, options)
    _refuse_options(args, options)
    if options.get("is_main_process", True):
        _WRITTEN.by(self, save_directory, why)
    return None


def _refuse_without_values(model: nn.Module) -> None:
    """Raises `FileError` for a model on the meta device. The weights of a dispatched one lie elsewhere."""
    name = next((name for name, tensor in model.named_parameters() if tensor.is_meta), "")
    if name and not is_dispatched(model):
        raise FileError(
            "a small model without values cannot be saved",
            at=f'"{name}"',
            why="it is on the meta device",
            do="prune the checkpoint by its plan: fxprune.stream(directory, fxprune.record(small).plan, new_directory)",
        )


def _by_library(model: Any, directory: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Lets the library's own method write into a folder whose files then go to the directory.

    Where its options concern other places too, it writes into the directory itself.
    """
    model = readable(model) if is_dispatched(model) else model
    if len(args) > 1 or any(options.get(name) for name in ELSEWHERE):
        return type(model).save_pretrained(model, directory, *args, **options)
    with written_whole(directory) as folder:
        return type(model).save_pretrained(model, folder, *args, **options)


def _refuse_options(args: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Raises `InputError` for options of the library that fxprune's own files do not follow."""
    plain = {"safe_serialization": True, "push_to_hub": False, "variant": None, "max_shard_size": None}
    wrong = [name for name, value in options.items() if name != "is_main_process" and plain.get(name, ...) != value]
    if args or wrong:
        raise InputError(
            "save_pretrained of a small model that no config says writes files of fxprune, in one form",
            at=", ".join(f"{name}={options[name]!r}" for name in wrong)
            or "the positional arguments after the directory",
            why="it has no such option",
            do='leave it out (a folder is uploaded by huggingface_hub), or prune with uniform="config"',
        )


def beyond_config(model: nn.Module) -> str:
    """Why the class of a model, built from its config, is another model; "" if it is this one, but for its weights."""
    builder = Builder(model)
    try:
        built = builder.build(builder.data)
    except NotBuiltError as error:
        return f"the class cannot be built from the config: {error}"
    return difference(model, built) or _other_part(model, built)


def _other_part(model: nn.Module, built: Built) -> str:
    """The first module of another class, or number that is no integer and another one than the class computes."""
    made = dict(built.model.named_modules())
    for path, module in model.named_modules():
        if path not in made or _class_of(module) != _class_of(made[path]):
            return f'"{path}" is a {type(module).__name__}, which the class does not make'
        for name, value in made[path].__dict__.items():
            if type(value) in (int, float) and module.__dict__.get(name) != value:
                return f"{path}.{name}".lstrip(".") + f" is {module.__dict__.get(name)}, the class computes {value}"
    return ""


def _class_of(module: nn.Module) -> tuple[str, str]:
    """The name of a class; each module with a parametrization has a class of its own, of one name."""
    return type(module).__module__, type(module).__qualname__
