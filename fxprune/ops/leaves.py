"""Modules that are treated as one operation, with a rule that says what their forward does to channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from fxprune.channels.vector import Vector
from fxprune.errors import RuleError
from fxprune.ops.registry import Call, Operand

LeafRule = Callable[..., "Operand | Sequence[Operand]"]

_LEAVES: dict[type[nn.Module], LeafRule] = {}
_WEIGHTS: dict[type[nn.Module], Callable[..., Tensor]] = {}


@dataclass(eq=False)
class LeafCall(Call):
    """One observed call of a leaf module: a `Call` that knows the module, its parameters and its buffers."""

    module: nn.Module = field(default_factory=nn.Module)
    parameters: Mapping[str, Operand] = field(default_factory=dict)

    def parameter(self, name: str) -> Operand:
        """A parameter or buffer of the module by its name in `named_parameters()`."""
        if name not in self.parameters:
            raise RuleError(
                f'{self.op} has no parameter "{name}"',
                why=f"it has {', '.join(self.parameters)}",
                do="name one of these",
            )
        return self.parameters[name]

    def mark(self, vector: Vector, why: str, *, width: bool = False) -> None:
        """Lock the vector: inside such a module the reference cannot take a statistic over the kept slots alone."""
        self.lock(vector, why)


def leaf(*types: type[nn.Module], weight: Callable[..., Tensor] | None = None) -> Callable[[LeafRule], LeafRule]:
    """Treat modules of these types as one operation, with this rule.

    The rule is called with a `LeafCall` and the arguments of forward, in which tensors are `Operand`s. It ties the
    dimensions that lose the same slots (`call.same`), and returns the `Operand` of the output, or a sequence of them.
    A parameter of the module is `call.parameter("weight")`. Every dimension of every parameter must be tied, or locked
    with `call.lock`: one that is left alone could lose any slots. `call.count("width", vector)` says that the attribute
    `width` of the module is the size of that dimension, so that it is recounted when channels are removed.

    weight: a function from the module to the weight that its forward computes with. It is for subclasses of linear
        layers and convolutions that compute with another weight than their parameter; without it, constants cannot be
        folded into such a layer.

    Symbolic tracing does not trace into such a module. A class has one rule: a second one raises `RuleError`.

    >>> import torch, fxprune
    >>> class Scale(torch.nn.Module):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.width, self.weight = width, torch.nn.Parameter(torch.ones(width))
    ...     def forward(self, x):
    ...         assert x.shape[-1] == self.width  # no tracer could follow this
    ...         return x * self.weight
    >>> @fxprune.leaf(Scale)
    ... def scale(call, x):
    ...     call.same(x.dim(-1), call.parameter("weight").dim(0))
    ...     call.count("width", x.dim(-1))
    ...     return call.operand(x.vectors, x.zero)
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), Scale(8), torch.nn.Linear(8, 2))
    >>> small = fxprune.transform(net, torch.randn(1, 4), ratio=0.5)
    >>> small.get_submodule("1").width, small.get_submodule("1").weight.shape
    (4, torch.Size([4]))
    """

    def register(function: LeafRule) -> LeafRule:
        for kind in types:
            if kind in _LEAVES:
                raise RuleError(
                    f"{kind.__name__} has a rule already",
                    at=f"{_LEAVES[kind].__module__}",
                    do="register one rule for a class",
                )
            _LEAVES[kind] = function
            if weight is not None:
                _WEIGHTS[kind] = weight
        return function

    return register


def leaf_rule(module: nn.Module | None) -> LeafRule | None:
    """The rule of a module that is treated as one operation; None for all others. Subclasses need their own."""
    return None if module is None else _LEAVES.get(type(module))


def leaf_weight(module: nn.Module) -> Tensor | None:
    """The weight that a leaf computes with, None if `leaf` was not given a function for it."""
    function = _WEIGHTS.get(type(module))
    return None if function is None else function(module)
