"""The table of all tensors of a model, which a call makes once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fxprune.capture.containers import found_in, key_text
from fxprune.capture.given_attributes import given_attributes, parameters_with_attributes
from fxprune.capture.hook_parts import attributes_of_hooks
from fxprune.capture.layouts import is_packed

PARAMETER, BUFFER, CONSTANT = "parameter", "buffer", "constant"


@dataclass(frozen=True, eq=False)
class NamedTensor:
    """A tensor of a model.

    name: its first name.
    kind: "parameter", "buffer", or "constant" for a plain tensor in an attribute.
    persistent: True if `state_dict` contains it.
    others: its other names, if it is tied.
    """

    name: str
    tensor: torch.Tensor
    kind: str
    persistent: bool
    others: tuple[str, ...] = ()

    @property
    def owner(self) -> str:
        """The path of the module that has it as an attribute, "" for the model itself."""
        return self.name.rpartition(".")[0]


class Tensors(Mapping[str, torch.Tensor]):
    """All tensors of a model by all their names: parameters first, then buffers, then constants.

    `unique` lists every tensor once. The table does not follow later changes of the model.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3))
    >>> net[1].weight = net[0].weight
    >>> tensors = Tensors.of(net)
    >>> list(tensors)
    ['0.weight', '0.bias', '1.weight', '1.bias']
    >>> [(found.name, found.others) for found in tensors.unique]
    [('0.weight', ('1.weight',)), ('0.bias', ()), ('1.bias', ())]
    """

    def __init__(self, listed: Iterable[NamedTensor]) -> None:
        self._by_name = {found.name: found for found in listed}
        first: dict[int, NamedTensor] = {}
        for found in self._by_name.values():
            before = first.get(id(found.tensor))
            first[id(found.tensor)] = found if before is None else replace(before, others=(*before.others, found.name))
        self.unique = tuple(first.values())

    @classmethod
    def of(cls, model: nn.Module) -> Tensors:
        """The table of a model's parameters and buffers; names as in `named_parameters()` and `named_buffers()`."""
        found: dict[str, list[NamedTensor]] = {PARAMETER: [], BUFFER: []}
        for path, module in model.named_modules(remove_duplicate=False):
            prefix, hidden = f"{path}." if path else "", module._non_persistent_buffers_set
            for kind, own in ((PARAMETER, module._parameters), (BUFFER, module._buffers)):
                found[kind] += [
                    NamedTensor(prefix + name, tensor, kind, name not in hidden)
                    for name, tensor in own.items()
                    if tensor is not None
                ]
        return cls(found[PARAMETER] + found[BUFFER])

    def with_constants(self, constants: Iterable[tuple[str, torch.Tensor]]) -> Tensors:
        """A table with these constants added, given as pairs of name and tensor.

        Names that exist already are left out.
        """
        more = {name: NamedTensor(name, tensor, CONSTANT, persistent=False) for name, tensor in constants}
        return Tensors([*self._by_name.values(), *(found for name, found in more.items() if name not in self)])

    def names(self, *kinds: str) -> tuple[str, ...]:
        """The first name of every tensor of one of these kinds."""
        return tuple(found.name for found in self.unique if found.kind in kinds)

    @property
    def weightless(self) -> bool:
        """True if some tensor is on the meta device, and so has no numbers."""
        return any(found.tensor.device.type == "meta" for found in self.unique)

    def entry(self, name: str) -> NamedTensor:
        """The tensor of this name, with its kind. `others` is empty here: read it from `unique`."""
        return self._by_name[name]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._by_name[name].tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


def constants_of(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors in attributes of a model's modules and parameters, each with its name as in code:
    `block.cache['k'][0]`, `block.weight.scale`.

    Parameters and buffers that an attribute holds are among them.
    """
    seen: dict[int, Any] = {}
    for path, module in model.named_modules():
        own = [(name, value) for name, value in module.__dict__.items() if name not in _OF_EVERY_MODULE]
        for name, parameter in parameters_with_attributes(module):
            own += [(f"{name}.{attribute}", value) for attribute, value in given_attributes(parameter).items()]
        for name, value in own:
            held = f"{path}.{name}" if path else name
            for keys, tensor in found_in(value, _is_tensor, seen):
                yield "".join((held, *map(key_text, keys))), tensor


def computed_tensors(model: nn.Module) -> dict[int, torch.Tensor]:
    """Id of a tensor that a forward has left in an attribute or buffer, with its gradient function -> a plain copy.

    `copy.deepcopy` refuses such tensors. With these as its memo it takes the copies. For example, the old `weight_norm`
    leaves the weight of the last forward, a cache the keys of earlier ones, and a hook that collects has what it saw.
    """
    buffers = (buffer for module in model.modules() for buffer in module._buffers.values() if buffer is not None)
    kept = (value for own in attributes_of_hooks(model) for _, value in found_in(own, _is_tensor, {}))
    held = (*buffers, *kept, *(tensor for _, tensor in constants_of(model)))
    return {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf}


_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not is_packed(value)
