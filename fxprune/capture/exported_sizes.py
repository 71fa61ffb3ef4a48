"""The sizes of inputs that an export fixes: sentences about them, and whether the model itself takes other ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.capture.fake_tensors import Faker
from fxprune.capture.inputs import Inputs
from fxprune.capture.process_state import no_fake_tensor_log, no_fused_attention, same_random_state
from fxprune.capture.size_ranges import Ranges, shapes_with, user_inputs
from fxprune.capture.state import State
from fxprune.capture.trace_watch import OTHER_SIZE

FORMULA = 24
"""The most operations in the formula of a size."""

_Sizes = dict[tuple[int, int], int]
"""Number of an input and dimension -> size."""


def constants(program: torch.export.ExportedProgram, ranges: Ranges) -> list[str]:
    """Sentences about the arguments that are constants in the graph, and about sizes that are in a range only.

    ranges: what `ranges_of` returned.
    """
    notes = []
    for node in user_inputs(program):
        value = node.meta.get("val")
        if value is not None and not isinstance(value, torch.Tensor):
            notes.append(f"the argument {node.name} is the constant {value!r}")
        for dim, size in enumerate(_shape(value)):
            if not _varies(size):
                continue
            if found := ranges.get(size.node.expr):
                least, most = found
                sizes = f"{least} at least" if most is None else f"{least} to {most}"
                notes.append(f"the input {node.name} in dimension {dim} is of size {sizes}")
            if not size.node.expr.is_symbol:
                notes.append(f"the input {node.name} in dimension {dim} is of a size {size.node.expr}")
    return notes


@dataclass(frozen=True)
class FixedSizes:
    """Sentences about an exported graph whose input sizes are fixed.

    sizes: the sizes that are constants in the graph although the model itself takes other ones.
    state: what the model keeps for each size, such as a table that its first call with this size makes.
    """

    sizes: tuple[str, ...]
    state: tuple[str, ...]


def needlessly_fixed(
    program: torch.export.ExportedProgram, model: nn.Module, inputs: Inputs, ranges: Ranges
) -> FixedSizes:
    """The sizes of inputs that are constants in the graph although the model itself takes other ones.

    Whether it does is tried on fake tensors: with twice the size, and with one more, of this input alone, and of all
    dimensions that are as long. Of a size in a range (`ranges`, see `ranges_of`), the next larger one is tried, and 1.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    numbers = {id(tensor): number for number, tensor in enumerate(tensors)}
    leaves = pytree.tree_leaves(inputs)
    notes, state = list[str](), dict[str, None]()

    def runs_with(symbol: Any, size: int) -> bool:
        shapes = [shape for shape in shapes_with(program, leaves, symbol, size) if shape is not None]
        sizes = {(number, dim): size for number, shape in enumerate(shapes) for dim, size in enumerate(shape)}
        return _runs(model, inputs, tensors, sizes, state)

    for node, leaf in zip(user_inputs(program), leaves, strict=True):
        for dim, size in enumerate(_shape(node.meta.get("val"))):
            place = numbers[id(leaf)], dim
            least, most = ranges.get(size.node.expr, (1, None)) if _varies(size) else (1, None)
            if not _varies(size) and _takes_another(model, inputs, tensors, place, state):
                notes.append(f"the input {node.name} keeps its size {leaf.shape[dim]} in dimension {dim}")
            if most is not None and runs_with(size.node.expr, most + 1):
                notes.append(f"the input {node.name} is of size {most} at most in dimension {dim}")
            if least == 2 and runs_with(size.node.expr, 1):  # such as a batch of one
                notes.append(f"the input {node.name} is not of size 1 in dimension {dim}")
    return FixedSizes(tuple(notes), tuple(f"forward changes {name} {OTHER_SIZE}" for name in state))


def changed_by(model: nn.Module, inputs: Inputs) -> list[str]:
    """The attributes that a call on these inputs changes, as paths from the model. Buffers are in a program."""
    state = dict[str, None]()
    _runs(model, inputs, [], {}, state)
    return [name for name in state if name not in dict(model.named_buffers(remove_duplicate=False))]


def takes(program: torch.export.ExportedProgram, inputs: Inputs) -> bool:
    """True if every size of these inputs is open in a program, or what it was fixed to."""
    given = zip(user_inputs(program), pytree.tree_leaves(inputs), strict=True)
    sizes = (pair for node, leaf in given for pair in zip(_shape(node.meta.get("val")), _shape(leaf), strict=True))
    return all(_varies(size) or int(size) == have for size, have in sizes)


class LongFormulaError(Exception):
    """A size inside the model has become a formula that takes torch minutes."""


class ShortFormulas(TorchFunctionMode):
    """Raises `LongFormulaError` as soon as a size of a result is a formula of more than `FORMULA` operations.

    Convolutions and pooling make short ones of a height. Windows of tokens, with a padding that depends on a remainder,
    make nested ones, which take torch minutes. A limit on time would give other results on a busy machine.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of a function."""
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            for size in _shape(leaf):
                if _varies(size) and size.node.expr.count_ops() > FORMULA:
                    raise LongFormulaError(f"a size inside the model is a formula of more than {FORMULA} operations")
        return result


def _shape(value: Any) -> tuple[Any, ...]:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _varies(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and bool(size.node.expr.free_symbols)


def _takes_another(
    model: nn.Module, inputs: Inputs, tensors: list[torch.Tensor], place: tuple[int, int], state: dict[str, None]
) -> bool:
    """True if the model runs with another size at one place: the number of an input tensor, and a dimension of it.

    Adds the attributes that such a run changes to `state`.
    """
    size = tensors[place[0]].shape[place[1]]
    equal = [(number, dim) for number, t in enumerate(tensors) for dim, other in enumerate(t.shape) if other == size]
    changes: list[_Sizes] = [{place: new} for new in (2 * size, size + 1)]
    if len(equal) > 1:
        changes += [dict.fromkeys(equal, new) for new in (2 * size, size + 1)]
    return any(_runs(model, inputs, tensors, change, state) for change in changes)


def _runs(model: nn.Module, inputs: Inputs, tensors: list[torch.Tensor], sizes: _Sizes, state: dict[str, None]) -> bool:
    """True if the model runs with other sizes. Adds the attributes that the run changes to `state`."""
    faker = Faker()
    numbers = {id(tensor): number for number, tensor in enumerate(tensors)}

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        number = numbers.get(id(tensor), -1)
        return faker.smaller(tensor, [sizes.get((number, dim), size) for dim, size in enumerate(tensor.shape)])

    args, kwargs = pytree.tree_map_only(torch.Tensor, resized, inputs)
    run = faker.module(model)
    before = State(run, users=True)
    try:
        with torch.no_grad(), faker.mode, no_fused_attention(), same_random_state(), no_fake_tensor_log():
            run(*args, **kwargs)
    except Exception:
        return False
    state |= dict.fromkeys(before.changed_names())
    return True
