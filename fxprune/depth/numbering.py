"""Models in which some layers are gone whole, and the others are counted from 0: names there and in the original.

In the plan and in the record of such a model all names are those of the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import nn

from fxprune.capture.module_copy import copy_module

ModuleT = TypeVar("ModuleT")

LayersGone = Mapping[str, tuple[int, ...]]
"""The path of a list of layers -> the positions of those that are gone, ascending."""


def name_before(name: str, gone: LayersGone) -> str:
    """The name in the original of something in a model without some layers."""
    return _renamed(name, gone, _position_before)


def name_after(name: str, gone: LayersGone) -> str | None:
    """The name in the model without some layers; None for what is gone."""
    for path, positions in gone.items():
        number = _position(name, path)
        if number in positions:
            return None
    return _renamed(name, gone, lambda number, positions: number - sum(p < number for p in positions))


def _position(name: str, path: str) -> int | None:
    rest = name.removeprefix(f"{path}.") if name.startswith(f"{path}.") else ""
    first = rest.partition(".")[0]
    return int(first) if first.isdigit() else None


def _position_before(number: int, positions: Sequence[int]) -> int:
    for position in positions:
        number += position <= number
    return number


def _renamed(name: str, gone: LayersGone, counted: Callable[[int, Sequence[int]], int]) -> str:
    for path, positions in gone.items():
        number = _position(name, path)
        if number is not None:
            rest = name[len(path) + 1 :].partition(".")[2]
            name = ".".join(filter(None, (path, str(counted(number, positions)), rest)))
    return name


class _InOriginalNumbering(nn.ModuleList):
    """A list whose entries have the numbers that they have in the original. Indices count those that are there."""

    def __getitem__(self, index: Any) -> Any:
        found = list(self._modules.values())[index]
        return nn.ModuleList(found) if isinstance(index, slice) else found


def without_layers(model: nn.Module, gone: LayersGone) -> nn.Module:
    """A copy of a model around the same tensors, without some layers. The others are counted from 0."""
    made = copy_module(model, lambda tensor: tensor)
    for path, positions in gone.items():
        modules = made.get_submodule(path)._modules
        left = [module for name, module in modules.items() if int(name) not in positions]
        modules.clear()
        modules.update({str(number): module for number, module in enumerate(left)})
    return made


def in_original_numbering(model: ModuleT, gone: LayersGone, like: nn.Module | None = None) -> ModuleT:
    """A copy of a model without some layers around the same tensors, whose layers have the numbers of the original.

    like: a model with other modules at the places of these layers, which the copy gets too; None to leave them free.
    """
    if not gone:
        return model
    assert isinstance(model, nn.Module)
    made: Any = copy_module(model, lambda tensor: tensor)
    for path, positions in gone.items():
        layers = made.get_submodule(path)
        modules = {str(_position_before(int(name), positions)): module for name, module in layers._modules.items()}
        if like is not None:
            modules |= {str(number): like.get_submodule(f"{path}.{number}") for number in positions}
        layers._modules.clear()
        layers._modules.update(sorted(modules.items(), key=lambda entry: int(entry[0])))
        if like is None:
            object.__setattr__(layers, "__class__", _InOriginalNumbering)
    return cast(ModuleT, made)


def count_from_zero(model: nn.Module) -> None:
    """Let a model of `in_original_numbering` count its layers from 0 again. Changes it."""
    for layers in list(model.modules()):
        if type(layers) is _InOriginalNumbering:
            left = list(layers._modules.values())
            layers._modules.clear()
            layers._modules.update({str(number): module for number, module in enumerate(left)})
            object.__setattr__(layers, "__class__", nn.ModuleList)
