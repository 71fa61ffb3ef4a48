"""The aspects of an operation besides its channel rule: one table per aspect, one decorator per table.

All functions of an operation stand together in the file of its family, its rule first. Layer norm, for example:

    @rule("aten::native_layer_norm")                       # what it does to channels
    def layer_norm(call, input, normalized_shape, weight, bias): ...

    @resizes("aten::native_layer_norm", targets=(F.layer_norm,))     # arguments in a graph that are sizes
    def layer_norm_sizes(site): ...

    @reads("aten::native_layer_norm", functions=("layer_norm",))     # arguments in hidden code that are sizes
    def layer_norm_integers(call): ...

    @recounts("aten::native_layer_norm", modules=(nn.LayerNorm,))    # attributes of its module that are sizes
    def layer_norm_attributes(module, use): ...

    @respells("aten::native_layer_norm", targets=(F.layer_norm,))    # its node, counting the original width
    def wide_layer_norm(statistic): ...

    @depends("aten::native_layer_norm")                    # which results follow the inputs of the model
    def layer_norm_dependence(seen): ...

    @reads_constants("aten::native_layer_norm")            # over which channels it sums
    def layer_norm_constants(seen): ...

    absent("aten::native_layer_norm", multiply_adds="statistics are not counted", positions="no argument is one")

`multiplies` and `repositions` are the two that layer norm lacks. `absent` says why; an operation of the package has
every aspect, or a reason for each that it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from fxprune.errors import RuleError
from fxprune.ops.registry import name_of

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False)
class Aspect(Generic[FunctionT]):
    """A table of functions.

    functions: those of an operation, by its name. keys: the function that is found by something else: the target of a
        node, the name of a Python function, the type of a module.
    reasons: why an operation has none.
    """

    name: str
    functions: dict[str, list[FunctionT]] = field(default_factory=dict)
    keys: dict[Any, FunctionT] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, function: FunctionT, operations: Iterable[Any], keys: Iterable[Any] = (), twice: str = "") -> None:
        """Register a function. Raises `RuleError` where a key has one already, or an operation and `twice` says so."""
        names = [name_of(operation) for operation in operations]
        taken = [name for name in names if name in self.functions] if twice else []
        if taken or any(name in self.reasons for name in names):
            raise RuleError(
                twice.format(taken[0]) if taken else f"{', '.join(names)}: {self.name} was said to be absent"
            )
        for name in names:
            self.functions.setdefault(name, []).append(function)
        for key in keys:
            if self.keys.get(key, function) is not function:
                raise RuleError(f"{key!r} has {self.name} already", at=self.keys[key].__qualname__)
            self.keys[key] = function

    def of(self, operation: str) -> FunctionT | None:
        """The function of an operation; `relu_` has that of `relu`."""
        found = self.functions.get(operation) or self.functions.get(operation.removesuffix("_"))
        return found[0] if found else None

    def at(self, target: Any) -> FunctionT | None:
        """The function of a node's target: a Python function, the name of a method, an operation."""
        if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
            return self.keys.get(name_of(target))
        return self.keys.get(target)


MULTIPLY_ADDS: Aspect[Any] = Aspect("multiply_adds")
SIZES: Aspect[Any] = Aspect("sizes")
POSITIONS: Aspect[Any] = Aspect("positions")
READERS: Aspect[Any] = Aspect("readers")
MODULES: Aspect[Any] = Aspect("modules")
RESPELLINGS: Aspect[Any] = Aspect("norms")
DEPENDENCE: Aspect[Any] = Aspect("dependence")
CONSTANTS: Aspect[Any] = Aspect("constants")

ASPECTS: Mapping[str, Aspect[Any]] = {
    aspect.name: aspect
    for aspect in (MULTIPLY_ADDS, SIZES, POSITIONS, READERS, MODULES, RESPELLINGS, DEPENDENCE, CONSTANTS)
}
"""All tables, in the order in which an operation's functions stand."""


SLOT_BY_SLOT = "no sum runs over channels that can be removed: a constant stays one, or the dimension stays"
"""The reason for which most operations read no constants."""


def multiplies(*operations: Any) -> Callable[[FunctionT], FunctionT]:
    """Register how many multiply-adds operations do: a list of products, each a tuple of dimensions.

    The function is called with those arguments of the operation that it names, as the operator's schema spells them: a
    tensor is the tuple of its dimensions, a list of tensors a list of such tuples; `out` is the output, the first one
    where there are several. What multiplies nothing returns an empty list, None says that the number is unknown.

    An operation has one formula: registering a second one raises `RuleError`.

    >>> @multiplies("mylib::filter")
    ... def filter_rows(input, kernel):  # y[n, s] = sum_k kernel[k] * x[n, s + k]
    ...     return [(*input, *kernel)]
    """
    return _decorator(MULTIPLY_ADDS, operations, twice="the multiply-adds of {} are counted already")


def resizes(
    *operations: Any, targets: Iterable[Any] = (), calls: Iterable[Any] = ()
) -> Callable[[FunctionT], FunctionT]:
    """Register how the arguments of a node that are sizes get their new values: a function of the `Site`.

    operations: those that have these arguments. targets: the Python functions and names of methods that have them too.
    calls: operations with other arguments that such a function calls.
    """
    return _decorator(SIZES, (*operations, *calls), _targets(operations, targets))


def repositions(
    *operations: Any, targets: Iterable[Any] = (), calls: Iterable[Any] = ()
) -> Callable[[FunctionT], FunctionT]:
    """Register how the arguments of a node that are positions get their new values. Otherwise as `resizes`."""
    return _decorator(POSITIONS, (*operations, *calls), _targets(operations, targets))


def reads(*operations: Any, functions: Iterable[str]) -> Callable[[FunctionT], FunctionT]:
    """Register which integers in a call of Python functions with these names count which dimension.

    The function is called with a `PythonCall` and returns, for each, its value and what it counts, see `Counted`.
    """
    return _decorator(READERS, operations, functions)


def recounts(*operations: Any, modules: Iterable[type]) -> Callable[[FunctionT], FunctionT]:
    """Register which attributes of modules of these types count something: a function from (module, use) to them."""
    return _decorator(MODULES, operations, modules)


def respells(*operations: Any, targets: Iterable[Any] = ()) -> Callable[[FunctionT], FunctionT]:
    """Register how the node of a statistic is written that keeps counting its original width: a new node."""
    return _decorator(RESPELLINGS, operations, _targets(operations, targets))


def depends(*operations: Any) -> Callable[[FunctionT], FunctionT]:
    """Register which elements of the results depend on the inputs of the model: a function of what was `Seen`."""
    return _decorator(DEPENDENCE, operations, twice="the dependence of {} is known already")


def reads_constants(*operations: Any) -> Callable[[FunctionT], FunctionT]:
    """Register over which channels an operation sums: a function from what is `Seen` to a list of its reads.

    Without one, and without `absent`, removed slots of every argument must be zero. See `fxprune.ops.constants`.
    """
    return _decorator(CONSTANTS, operations, twice="the reading of constants of {} is known already")


def absent(*operations: Any, **reasons: str) -> None:
    """Say why operations lack aspects: `absent("aten::relu", sizes="no argument is one")`.

    Raises `RuleError` where an operation has the aspect.
    """
    for aspect, why in reasons.items():
        table = ASPECTS[aspect]
        for name in map(name_of, operations):
            if name in table.functions or name in table.reasons:
                raise RuleError(f"{aspect} of {name} cannot be absent", why="it was said before")
            table.reasons[name] = why


def _targets(operations: Iterable[Any], targets: Iterable[Any]) -> tuple[Any, ...]:
    return (*map(name_of, operations), *targets)


def _decorator(
    table: Aspect[Any], operations: Iterable[Any], keys: Iterable[Any] = (), twice: str = ""
) -> Callable[[FunctionT], FunctionT]:
    def register(function: FunctionT) -> FunctionT:
        table.add(function, operations, keys, twice)
        return function

    return register
