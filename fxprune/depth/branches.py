"""The residual branches of a model: what an addition adds to a value that the branch itself was computed from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from torch import nn

from fxprune.costs import Cost
from fxprune.depth.flow import Flow, Operation
from fxprune.depth.gone import BranchPlace, Gone, gone_from
from fxprune.depth.zeros import Zeros


@dataclass(frozen=True)
class Branch:
    """A residual branch: f(x) in x + f(x), or in s(x) + f(x) with one layer s.

    name: of the innermost module around its layers that holds no part of another branch, else of its last layer.
    at: the module whose forward adds it, and the line.
    modules: the modules that go with it, the outermost ones. layers: those of them that have a matrix or a kernel.
    params: the numbers of its parameters. macs: the multiply-adds, None where some are not counted.
    why_not: why it cannot be removed, "" if it can.
    """

    name: str
    at: str
    modules: tuple[str, ...]
    params: int
    macs: int | None
    why_not: str = ""
    layers: tuple[str, ...] = field(default=(), repr=False)
    place: BranchPlace = field(default=(("", 0), 0), repr=False)


def branches_of(model: nn.Module, flows: Sequence[Flow], cost: Cost) -> tuple[Branch, ...]:
    """The residual branches of a model, in the order in which they are added.

    flows: of one forward or several; a branch is one in all of those that reach it.
    """
    found: dict[BranchPlace, tuple[Gone, str, str]] = {}
    for place, line in _places(flows):
        gone = gone_from(model, flows, [place])
        if gone.modules:
            found[place] = gone, line, _why_not(flows, place, gone)
    layers = {place: _layers(model, gone.modules) for place, (gone, _, _) in found.items()}
    names = _names(layers)
    made = []
    for place, (gone, line, why_not) in found.items():
        if not layers[place]:
            continue
        params, macs = cost_of_modules(cost, gone.modules)
        at = f"{place[0][0] or 'the model'} ({os.path.basename(line)})" if line else place[0][0] or "the model"
        made.append(Branch(names[place], at, gone.modules, params, macs, why_not, layers[place], place))
    return tuple(made)


def nothing_to_drop(branches: Sequence[Branch]) -> str:
    """Why a model has no branch that can be removed; "" if it has one."""
    if any(not branch.why_not for branch in branches):
        return ""
    if branches:
        return "; ".join(dict.fromkeys(f"{branch.name}: {branch.why_not}" for branch in branches[:4]))
    return "no addition in its forward adds to a value what modules have computed from that value"


def cost_of_modules(cost: Cost, modules: Iterable[str]) -> tuple[int, int | None]:
    """The parameters and multiply-adds of modules and of those in them."""
    inside = [layer for path, layer in cost.layers.items() if any(within(path, module) for module in modules)]
    counts = [layer.macs for layer in inside]
    return sum(layer.params for layer in inside), None if None in counts else sum(n for n in counts if n is not None)


def within(path: str, module: str) -> bool:
    """True for a module and everything in it."""
    return path == module or path.startswith(f"{module}.")


# -- additions that are residual -----------------------------------------------------------------------------


def _places(flows: Sequence[Flow]) -> Iterator[tuple[BranchPlace, str]]:
    """The places of branches, in order, and the lines. Where one is a sum of several, these are branches instead."""
    seen: set[BranchPlace] = set()
    for flow in flows:
        for number, operation in enumerate(flow.operations):
            if operation.addition is None:
                continue
            for operand in (1, 0):
                place = operation.addition, operand
                if place not in seen and _is_residual(flow, number, operand):
                    summands = list(_summands(flow, operation, operand)) or [(place, operation.line)]
                    yield from ((inner, line) for inner, line in summands if inner not in seen)
                    seen |= {place, *(inner for inner, _ in summands)}


def _summands(flow: Flow, operation: Operation, operand: int) -> Iterator[tuple[BranchPlace, str]]:
    """The operands of the additions that make a branch a sum of several."""
    maker = flow.maker.get(max(operation.operands[operand]))
    inner = None if maker is None else flow.operations[maker]
    if inner is not None and inner.addition is not None and all(inner.keeps):
        for number in (0, 1):
            yield from list(_summands(flow, inner, number)) or [((inner.addition, number), inner.line)]


def _is_residual(flow: Flow, number: int, operand: int) -> bool:
    """True if an operand of an addition was computed from the other one, or beside it and with more layers."""
    operation = flow.operations[number]
    if not operation.keeps[operand]:
        return False
    kept, added = max(operation.operands[1 - operand]), max(operation.operands[operand])
    if kept == added:
        return False
    before = flow.before(added)
    if kept in before:
        return True
    if added in flow.before(kept) or not before:
        return False
    return _is_shortcut(flow, number, operand, before)


def _is_shortcut(flow: Flow, number: int, operand: int, before: set[int]) -> bool:
    """True if the other operand comes through one layer from a value that this one comes from through several."""
    alive = flow.live({})
    beside = alive - flow.live({number: frozenset({1 - operand})})
    branch = alive - flow.live({number: frozenset({operand})})
    entering = _entering(flow, beside)
    return len(entering) == 1 and entering <= before and _kernels(flow, beside) == 1 and _kernels(flow, branch) > 1


def _entering(flow: Flow, operations: set[int]) -> set[int]:
    """The floating values that these operations read and that others have made."""
    read = {value for number in operations for value in flow.operations[number].reads}
    return {v for v in read if v in flow.floating and flow.maker[v] not in operations}


def _kernels(flow: Flow, operations: set[int]) -> int:
    """The number of matrices and kernels that these operations read."""
    names = {flow.state[v][0] for n in operations for v in flow.operations[n].reads if v in flow.state}
    return len(names & flow.kernels)


def _why_not(flows: Sequence[Flow], place: BranchPlace, gone: Gone) -> str:
    """Why a branch cannot be removed, "" if it can."""
    for flow in flows:
        zeros = Zeros(flow, gone.calls(flow))
        for operation in flow.operations:
            if operation.addition == place[0]:
                why = zeros.why_not(max(operation.operands[place[1]]))
                if why:
                    return why
    return ""


# -- names ---------------------------------------------------------------------------------------------------


def _layers(model: nn.Module, modules: Iterable[str]) -> tuple[str, ...]:
    """The modules in these that own a parameter of two dimensions or more, in the order of the model."""
    return tuple(
        path
        for path, module in model.named_modules()
        if any(within(path, outer) for outer in modules)
        and any(p is not None and p.ndim > 1 for p in module._parameters.values())
    )


def _names(layers: Mapping[BranchPlace, tuple[str, ...]]) -> dict[BranchPlace, str]:
    """A name for each branch. layers: the layers of each."""
    names = {}
    for place, own in layers.items():
        if own:
            others = {path for other in layers.values() for path in other} - {*own}
            around = _around(own)
            alone = around and not any(within(path, around) for path in others)
            names[place] = around if alone else own[-1]
    return names


def _around(paths: Sequence[str]) -> str:
    """The innermost module around some modules; of one module itself, of an attention that module."""
    parts = [path.split(".") for path in paths]
    same = takewhile(lambda words: len({*words}) == 1, zip(*parts, strict=False))
    return ".".join(words[0] for words in same)
