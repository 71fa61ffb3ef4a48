"""Attributes that code gives tensors, such as `weight.scale`, on parameters and on the tensors that stand for them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def given_attributes(tensor: torch.Tensor) -> Mapping[str, Any]:
    """The attributes that code has given a tensor, by name. Those that torch gives a fake tensor are left out."""
    own = tensor.__dict__
    return {name: value for name, value in own.items() if name not in _of_torch()} if own else own


def parameters_with_attributes(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The parameters of one module that have such attributes, by name."""
    own = dict.items(module._parameters)
    return [(name, tensor) for name, tensor in own if tensor is not None and given_attributes(tensor)]


def as_parameter(tensor: torch.Tensor, parameter: torch.Tensor) -> None:
    """Let a tensor that stands for a parameter pass for it.

    Forward may assign it to a layer, to tie two weights, and ask if it is trained.
    """
    stand_in: Any = tensor
    stand_in._is_param = True
    if parameter.requires_grad and tensor.is_leaf:
        tensor.requires_grad_()  # so results need gradients where they are recorded


def give_attributes(tensor: torch.Tensor, parameter: torch.Tensor, attribute: Callable[[Any], Any]) -> None:
    """Give a tensor that stands for a parameter the attributes of it, which forward may read.

    attribute: a function that gives the value of the stand-in for each value of the parameter.
    """
    for name, value in given_attributes(parameter).items():
        tensor.__dict__[name] = attribute(value)


@contextlib.contextmanager
def same_attributes(module: nn.Module) -> Iterator[None]:
    """A context after which the parameters of a module have the attributes that they have now."""
    held = (parameter for part in module.modules() for parameter in dict.values(part._parameters))
    before = [(parameter, dict(given_attributes(parameter))) for parameter in held if parameter is not None]
    try:
        yield
    finally:
        for parameter, own in before:
            for name in given_attributes(parameter).keys() - own.keys():
                del parameter.__dict__[name]
            parameter.__dict__.update(own)


@functools.cache
def _of_torch() -> frozenset[str]:
    """The names of the attributes that a fake tensor has from torch, and the mark of what passes for a parameter."""
    return frozenset({"_is_param", *vars(FakeTensorMode().from_tensor(torch.empty(0)))})
