"""The aspects of an operation besides its channel rule.

Each aspect is one thing that the package has to know of an operation. It has a table, from operations to functions, and
a decorator that puts a function into it.

All functions of an operation stand together in the file of its family, its rule first. Layer norm, for example:

    @rule("aten::native_layer_norm")                       # its effect on channels
    def layer_norm(call, input, normalized_shape, weight, bias): ...

    @resizes("aten::native_layer_norm", targets=(F.layer_norm,))     # arguments in a graph that are sizes
    def layer_norm_sizes(site): ...

    @reads("aten::native_layer_norm", functions=("layer_norm",))     # arguments in hidden code that are sizes
    def layer_norm_integers(call): ...

    @recounts("aten::native_layer_norm", modules=(nn.LayerNorm,))    # attributes of its module that are sizes
    def layer_norm_attributes(module, use): ...

    @respells("aten::native_layer_norm", targets=(F.layer_norm,))    # its node, counting the original width
    def wide_layer_norm(statistic): ...

    @depends("aten::native_layer_norm")                    # the results that depend on the inputs of the model
    def layer_norm_dependence(seen): ...

    @reads_constants("aten::native_layer_norm")            # the channels that it sums over
    def layer_norm_constants(seen): ...

    @carries("aten::native_layer_norm")                    # the arguments that can carry a factor of the result
    def layer_norm_factors(asked): ...

    absent("aten::native_layer_norm", multiply_adds="statistics are not counted", positions="no argument is one")

Layer norm lacks two aspects, those of `multiplies` and `repositions`, and `absent` says why. An operation of the
package has every aspect, or a reason for each one that it lacks.
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
    """The table of one aspect.

    functions: name of an operation -> its functions, the first one counts.
    keys: the same functions by another key: the target of a node, the name of a Python function, the type of a module.
    reasons: name of an operation -> why it lacks this aspect.
    replaceable: the operations whose function says only that nothing is known; another one takes its place.
    """

    name: str
    functions: dict[str, list[FunctionT]] = field(default_factory=dict)
    keys: dict[Any, FunctionT] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    replaceable: set[str] = field(default_factory=set)

    def add(self, function: FunctionT, operations: Iterable[Any], keys: Iterable[Any] = (), twice: str = "") -> None:
        """Register a function for operations, and under keys.

        twice: the message for an operation that has a function already, with {} for its name; "" if it may have
            several.

        Raises `RuleError` where a key has another function, an operation has one and `twice` is given, or `absent` has
        said that an operation lacks this aspect.
        """
        names = [name_of(operation) for operation in operations]
        taken = [name for name in names if name in self.functions and name not in self.replaceable] if twice else []
        if taken or any(name in self.reasons for name in names):
            raise RuleError(
                twice.format(taken[0]) if taken else f"{', '.join(names)}: {self.name} was said to be absent",
                do="register it once, or remove the other",
            )
        for name in names:
            if name in self.replaceable:
                self.replaceable.remove(name)
                del self.functions[name]
            self.functions.setdefault(name, []).append(function)
        for key in keys:
            if self.keys.get(key, function) is not function:
                raise RuleError(
                    f"{key!r} has {self.name} already",
                    at=self.keys[key].__qualname__,
                    do="register another key, or remove one of the two",
                )
            self.keys[key] = function

    def of(self, operation: str) -> FunctionT | None:
        """The function of an operation, None if it has none; `relu_` has that of `relu`."""
        found = self.functions.get(operation) or self.functions.get(operation.removesuffix("_"))
        return found[0] if found else None

    def at(self, target: Any) -> FunctionT | None:
        """The function for the target of a node (a Python function, the name of a method, an operation), or None."""
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
FACTORS: Aspect[Any] = Aspect("factors")

ASPECTS: Mapping[str, Aspect[Any]] = {
    aspect.name: aspect
    for aspect in (MULTIPLY_ADDS, SIZES, POSITIONS, READERS, MODULES, RESPELLINGS, DEPENDENCE, CONSTANTS, FACTORS)
}
"""All tables by name, in the order in which the functions of an operation stand."""


NO_FACTOR = "no factor is carried through it"
"""The reason why an operation has no `carries`: it does not keep a factor, or no function says how."""

SLOT_BY_SLOT = "no sum runs over channels that can be removed: a constant stays one, or the dimension stays"
"""The reason why most operations read no constants."""


def multiplies(*operations: Any) -> Callable[[FunctionT], FunctionT]:
    """Register the multiply-adds of operations.

    The function returns a list of products, each a tuple of dimensions: the number of multiply-adds is the sum of these
    products. An integer is a factor of its own. It returns an empty list if the operation multiplies nothing, and None
    if the number is unknown.

    Its parameters are arguments of the operation, by the names of the operator's schema. A tensor comes as the tuple of
    its dimensions, a list of tensors as a list of such tuples. `out` is the (first) output.

    An operation has one formula: registering a second one raises `RuleError`. Where the package says that the number is
    unknown, as for a Fourier transform, a formula takes the place of that.

    >>> @multiplies("mylib::filter")
    ... def filter_rows(input, kernel):  # y[n, s] = sum_k kernel[k] * x[n, s + k]
    ...     return [(*input, *kernel)]
    """
    return _decorator(MULTIPLY_ADDS, operations, twice="the multiply-adds of {} are counted already")


def uncounted(*operations: Any) -> Callable[[FunctionT], FunctionT]:
    """Register a function that returns None, since the multiply-adds of these operations are unknown."""
    register = multiplies(*operations)

    def mark(function: FunctionT) -> FunctionT:
        register(function)
        MULTIPLY_ADDS.replaceable.update(map(name_of, operations))
        return function

    return mark


def resizes(
    *operations: Any, targets: Iterable[Any] = (), calls: Iterable[Any] = ()
) -> Callable[[FunctionT], FunctionT]:
    """Register how the arguments of a node that are sizes get their new values.

    The function is called with the `Site` of the node, and changes its arguments.

    operations: the operations with these arguments. targets: Python functions, and names of methods, that have the same
        arguments at the same positions. calls: operations with other arguments, which these Python functions call.
    """
    return _decorator(SIZES, (*operations, *calls), _targets(operations, targets))


def repositions(
    *operations: Any, targets: Iterable[Any] = (), calls: Iterable[Any] = ()
) -> Callable[[FunctionT], FunctionT]:
    """Register how the arguments of a node that are positions get their new values; used like `resizes`."""
    return _decorator(POSITIONS, (*operations, *calls), _targets(operations, targets))


def reads(*operations: Any, functions: Iterable[str]) -> Callable[[FunctionT], FunctionT]:
    """Register which integers in the call of a Python function count dimensions.

    The function is called with a `PythonCall`, and returns a `Counted` for each such integer.

    functions: the names of the Python functions and methods.
    """
    return _decorator(READERS, operations, functions)


def recounts(*operations: Any, modules: Iterable[type]) -> Callable[[FunctionT], FunctionT]:
    """Register which attributes of modules of these types count something.

    The function is called with the module, whose parameters have their new sizes, and a `Use`. It returns
    {attribute: new value}, None for a value that is unknown.
    """
    return _decorator(MODULES, operations, modules)


def respells(*operations: Any, targets: Iterable[Any] = ()) -> Callable[[FunctionT], FunctionT]:
    """Register how the node of a statistic is replaced by one that keeps counting the original width.

    The function is called with a `StatisticNode`, and returns the new node.
    """
    return _decorator(RESPELLINGS, operations, _targets(operations, targets))


def depends(*operations: Any) -> Callable[[FunctionT], FunctionT]:
    """Register which elements of the results depend on the inputs of the model.

    The function is called with the operation that is about to run, a `Seen`. It returns one `Dependence` for all
    results, or a list with one for each.
    """
    return _decorator(DEPENDENCE, operations, twice="the dependence of {} is known already")


def reads_constants(*operations: Any) -> Callable[[FunctionT], FunctionT]:
    """Register over which channels an operation sums.

    The function is called with the operation that is about to run, a `Seen`. It returns a list of `WeightedSum`, `Sum`
    or `Whole`, see `fxprune.ops.constants`. If an operation has no function, and no reason in `absent`, removed slots
    of all its arguments must be zero.
    """
    return _decorator(CONSTANTS, operations, twice="the reading of constants of {} is known already")


def carries(*operations: Any) -> Callable[[FunctionT], FunctionT]:
    """Register which arguments of an operation can be multiplied so that its results are.

    The function is called with an `Asked`. It returns the ways to do so, see `fxprune.ops.factors`; none if there is
    none.
    """
    return _decorator(FACTORS, operations, twice="the factors of {} are known already")


def absent(*operations: Any, **reasons: str) -> None:
    """Say why operations lack aspects: `absent("aten::relu", sizes="no argument is one")`.

    reasons: name of an aspect in `ASPECTS` -> the reason.

    Raises `RuleError` where an operation has the aspect, or a reason already.
    """
    for aspect, why in reasons.items():
        table = ASPECTS[aspect]
        for name in map(name_of, operations):
            if name in table.functions or name in table.reasons:
                raise RuleError(
                    f"{aspect} of {name} cannot be absent",
                    why="it was said before",
                    do="say it once, and only where no function is registered",
                )
            table.reasons[name] = why


def _targets(operations: Iterable[Any], targets: Iterable[Any]) -> tuple[Any, ...]:
    """The keys of an aspect of nodes: operations by name, and other targets."""
    return (*map(name_of, operations), *targets)


def _decorator(
    table: Aspect[Any], operations: Iterable[Any], keys: Iterable[Any] = (), twice: str = ""
) -> Callable[[FunctionT], FunctionT]:
    def register(function: FunctionT) -> FunctionT:
        table.add(function, operations, keys, twice)
        return function

    return register
