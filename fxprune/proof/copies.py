"""Copies of a model in another type of numbers, whose parameters are made when forward reads them.

A parameter is copied when it is read, and the copy is dropped when the module that read it returns. So a run needs
little memory, and is as precise for float16 weights as for float64 ones. What forward writes into stays.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from fxprune.capture.complete_copy import put_mode
from fxprune.capture.given_attributes import as_parameter, give_attributes
from fxprune.capture.layouts import is_packed
from fxprune.capture.modes import has_own_train
from fxprune.capture.module_copy import copy_module
from fxprune.capture.tensors import Tensors
from fxprune.capture.thread_state import outside_levels
from fxprune.on_demand import whole
from fxprune.ops.normalization import default_eps
from fxprune.proof.precision import FLOAT64, Precision
from fxprune.proof.zeroed import zero_slots


@dataclass(frozen=True)
class Copying:
    """The differences between the tensors of a copy and those of its model.

    zeroed: name of a parameter or buffer -> dimension -> the slots that are zero in the copy.
    values: name of a parameter or buffer -> its numbers, where they are others, see `kept_weights`.
    unrounded: name of a parameter -> its numbers before they were rounded to its type. Where the parameter is that
        rounding, the copy gets the exact number, so that the rounding does not count as an error.
    moved: 1, 2, ... to change every number by one rounding, up or down as this number says; 0 for none.
    made: called with the copy and the name of each parameter and buffer when it is made.
    """

    zeroed: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)
    values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    unrounded: Mapping[str, torch.Tensor] = field(default_factory=dict)
    moved: int = 0
    made: Callable[[torch.Tensor, str], None] = lambda tensor, name: None


PLAIN = Copying()
"""No difference but the precision."""


class Copies:
    """The copies of the tensors of a model, made in this way and precision.

    tensors: the parameters and buffers of the model, where they are listed already.
    """

    def __init__(
        self,
        model: nn.Module,
        copying: Copying = PLAIN,
        precision: Precision = FLOAT64,
        tensors: Tensors | None = None,
    ) -> None:
        self.model, self.copying, self.precision = model, copying, precision
        listed = Tensors.of(model) if tensors is None else tensors
        self._names = {id(found.tensor): found.name for found in listed.unique}
        self._kept: dict[int, torch.Tensor] = {}  # id of an original -> its copy
        self._read: dict[int, tuple[torch.Tensor, int, int]] = {}  # the same for a copy that may be dropped

    def module(self, training: Callable[[str], bool]) -> nn.Module:
        """A copy of the model. training: a function from the path of a module to its mode."""
        copied = copy_module(self.model, self.keep, parameters=lambda own, attribute: _Parameters(own, self, attribute))
        if training("") != self.model.training and has_own_train(self.model):
            with contextlib.suppress(Exception):  # it has set the mode in the analysis, on tensors of other types
                copied.train(training(""))
        for (path, part), original in zip(copied.named_modules(), self.model.modules(), strict=True):
            put_mode(part, training(path))
            if isinstance(part, nn.RMSNorm) and part.eps is None:
                weight = original._parameters["weight"]
                part.eps = self.eps if weight is None else default_eps(weight.dtype)
        return copied

    @property
    def eps(self) -> float:
        """The epsilon of RMS norms that have none: that for the types of the model, not for those of the copies."""
        floating = (tensor.dtype for tensor in self.model.parameters() if tensor.is_floating_point())
        return default_eps(next(floating, torch.float32))

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """The copy of a tensor, which is never dropped."""
        if id(tensor) not in self._kept:
            read = self._read.pop(id(tensor), None)
            self._kept[id(tensor)] = read[0] if read is not None else self._copy(tensor)
        return self._kept[id(tensor)]

    def read(self, tensor: torch.Tensor, attribute: Callable[[Any], Any]) -> torch.Tensor:
        """The copy of a parameter of the model. Any other tensor, which forward has set, is given back as it is.

        attribute: a function that copies the value of an attribute.
        """
        if id(tensor) in self._kept:
            return self._kept[id(tensor)]
        if id(tensor) not in self._names:
            return tensor
        if id(tensor) not in self._read:
            with torch.inference_mode(False), outside_levels():  # forward may read it in either
                copied = self._copy(tensor)
                self._read[id(tensor)] = copied, copied._version, copied.data_ptr()
                if tensor.__dict__:
                    give_attributes(copied, tensor, attribute)
            return copied
        return self._read[id(tensor)][0]

    def release(self) -> None:
        """Drop the copies of parameters that forward did not write into."""
        for key, (copied, version, place) in self._read.items():
            if copied._version != version or copied.data_ptr() != place:
                self._kept[key] = copied
        self._read.clear()

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if is_packed(tensor):  # torch crashes for a nested one without its dispatch
            with _disable_current_modes():
                return tensor.detach().clone()
        name, given = self._names.get(id(tensor), ""), tensor
        tensor = whole(tensor)
        with torch.no_grad(), torch._C._DisableTorchDispatch():
            copied = self.precision.copy(tensor)
            tensor = tensor.to(copied.device)
            if name in self.copying.values:
                copied.copy_(self.copying.values[name])
            if self.copying.moved:
                copied = moved_by_rounding(copied, self.copying.moved)
            zero_slots(copied, self.copying.zeroed.get(name, {}))
            exact = self.copying.unrounded.get(name)
            if exact is not None and self.precision.dtype is not None:  # see `unrounded`
                rounded = tensor.detach().clone().copy_(exact)
                copied = torch.where(tensor == rounded, exact.to(copied.dtype), copied)
        if name:
            self.copying.made(copied, name)
        if isinstance(given, nn.Parameter):
            as_parameter(copied, given)
        return copied


class _Parameters(dict[str, Any]):
    """The parameters of a module of a copy. Holds the originals, and gives their copies."""

    def __init__(self, originals: Mapping[str, Any], copies: Copies, attribute: Callable[[Any], Any]) -> None:
        super().__init__(originals)
        self._copies, self._attribute = copies, attribute

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return value if value is None else self._copies.read(value, self._attribute)

    def get(self, name: str, default: Any = None) -> Any:
        if name not in self:
            return default
        return self[name]

    def values(self) -> Any:
        return [self[name] for name in self]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return {name: copy.deepcopy(self[name], memo) for name in self}

    def __copy__(self) -> dict[str, Any]:
        return dict(self.items())

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    def __reduce__(self) -> Any:
        return dict, (dict(self.items()),)


def moved_by_rounding(tensor: torch.Tensor, moved: int) -> torch.Tensor:
    """The tensor with every number that is not an integer changed by one rounding, up or down as `moved` says."""
    if not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(moved - 1)
    up = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.device)
    return tensor * (1 + torch.finfo(tensor.dtype).eps * (2 * up - 1).to(tensor.dtype))
