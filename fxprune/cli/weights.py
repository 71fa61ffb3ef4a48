"""Loading of weights from a file into a model. File and model must have the same tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import nn

from fxprune.artifacts.safetensors_file import SafetensorsFile
from fxprune.artifacts.weights import KEY as SMALL
from fxprune.cli.torch_files import load_tensors
from fxprune.cli.usage import UsageError
from fxprune.errors import FileError, nearest

PARALLEL = "module."
"""The beginning of all names in a model that DataParallel or DistributedDataParallel wraps."""

SUFFIXES = (".safetensors", ".pt", ".pth")


def load_into(model: nn.Module, path: str, key: str | None) -> tuple[str, ...]:
    """Loads all weights of a file into `model`, in place; returns notes for the user.

    key: the entry of a .pt file that holds the weights. A tied tensor may have any one of its names in the file. Raises
    `FileError`, before any change, for weights of another model.
    """
    values = _read(path, key)
    state = model.state_dict(keep_vars=True)
    notes = []
    if values and all(name.startswith(PARALLEL) and name not in state for name in values):
        values = {name.removeprefix(PARALLEL): value for name, value in values.items()}
        notes.append(f'weights have "{PARALLEL}" before their names in the file, as of DataParallel; it is left out')
    tied: dict[int, list[str]] = {}
    for name, tensor in state.items():
        tied.setdefault(id(tensor), []).append(name)
    source = f'the weights in "{path}" are not those of this {type(model).__name__}'
    for name, value in values.items():
        if name not in state:
            raise FileError(
                source,
                at=f'"{name}" of the file',
                why=f"the model has no such tensor; {nearest(name, state)}",
                do="pass the weights of this model, or name the model that they belong to",
            )
        if tuple(value.shape) != tuple(state[name].shape):
            why = f"in the file its shape is {tuple(value.shape)}, in the model {tuple(state[name].shape)}"
            raise FileError(
                source,
                at=f'"{name}"',
                why=why,
                do="pass the weights of this model, or make the model with their sizes by --arg",
            )
        if _kind(value) != _kind(state[name]):
            raise FileError(
                source,
                at=f'"{name}"',
                why=f"in the file it is {value.dtype}, in the model {state[name].dtype}",
                do="save the weights in the dtype of the model",
            )
    for name, tensor in state.items():
        if not any(other in values for other in tied[id(tensor)]):
            raise FileError(
                source,
                at=f'"{name}" of the model',
                why=f"the file has no such tensor; {nearest(name, values)}",
                do="pass a file with all weights of this model",
            )
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)
    changed = {(value.dtype, state[n].dtype) for n, value in values.items() if value.dtype != state[n].dtype}
    return (*notes, *sorted(f"weights are {file} in the file and {ours} in the model" for file, ours in changed))


def _kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _read(path: str, key: str | None) -> Mapping[str, torch.Tensor]:
    suffix = os.path.splitext(path)[1]
    if suffix not in SUFFIXES:
        raise UsageError(f'--weights "{path}"', why="the suffix says the format", do=f"end it in {', '.join(SUFFIXES)}")
    if suffix != ".safetensors":
        return _pickled(path, key)
    if key is not None:
        raise UsageError("--weights-key is for .pt and .pth files", do="leave it out")
    file = SafetensorsFile(path)
    if SMALL in file.texts:
        raise FileError(
            f'"{path}" holds a small model, not the weights of MODEL',
            why="it was written by fxprune",
            do="pass it after MODEL to `fxprune verify` or `fxprune export`",
        )
    return dict(file.tensors())


def _pickled(path: str, key: str | None) -> Mapping[str, torch.Tensor]:
    """Returns the weights in a file of `torch.save`."""
    found = load_tensors(path, "save model.state_dict(), or write it as .safetensors")
    if key is not None:
        if not isinstance(found, Mapping) or key not in found:
            why = nearest(key, map(str, found)) if isinstance(found, Mapping) else f"it holds a {type(found).__name__}"
            raise FileError(
                f'"{path}" has no key "{key}"', why=why, do="name a key of the file, or leave --weights-key out"
            )
        found = found[key]
    if not isinstance(found, Mapping):
        raise FileError(
            f'"{path}" holds no state_dict', why=f"it is a {type(found).__name__}", do="save model.state_dict()"
        )
    other = next((name for name, value in found.items() if not isinstance(value, torch.Tensor)), None)
    if other is not None:
        inner = [name for name, value in found.items() if _holds_tensors(value)]
        do = f"--weights-key {inner[0]}" if inner else "save model.state_dict()"
        raise FileError(f'"{path}" holds no state_dict', why=f'"{other}" is a {type(found[other]).__name__}', do=do)
    return found


def _holds_tensors(value: object) -> bool:
    """True for a dict of tensors, such as a state_dict; that of an optimizer holds other dicts and lists."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, torch.Tensor) for v in value.values())
