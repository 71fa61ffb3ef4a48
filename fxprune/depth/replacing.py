"""The modules that take the place of those that go with some branches.

A block that only passes its input on, or calls modules without further arguments one after the other, becomes that. In
any other block the modules of the branch give zeros, and its own code adds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from fxprune.depth.branches import Branch, within
from fxprune.depth.dropped import ARGUMENT, CHAIN, GIVES, IDENTITY, ONE_ZERO, PASSES, ZEROS, Replacement
from fxprune.depth.flow import Cut, Flow, ModuleCall
from fxprune.depth.gone import Gone, gone_from
from fxprune.depth.zeros import results, values_in


def replacements(
    model: nn.Module, flows: Sequence[Flow], branches: Sequence[Branch], *, blocks: bool, plain: bool
) -> tuple[Replacement, ...]:
    """The modules that take the place of others where these branches go.

    blocks: True to replace whole blocks where that is possible. plain: True to take modules of torch where these can be
        called in the same way.
    """
    gone = gone_from(model, flows, [branch.place for branch in branches])
    modules = dict(model.named_modules())
    lifted: dict[str, Replacement] = {}
    if blocks:
        for branch in branches:
            path = branch.place[0][0]
            while path and type(modules[path]) is not nn.Sequential:
                if (
                    type(modules[path]) is nn.ModuleList
                ):  # it is not called itself, as the list of parts in a block of T5
                    path = path.rpartition(".")[0]
                    continue
                found = _block(model, flows, gone, path, plain)
                if found is None:
                    break
                lifted[path] = found
                if found.kind == CHAIN:
                    break
                path = path.rpartition(".")[0]
    outermost = [r for path, r in lifted.items() if not any(within(path, o) for o in lifted if o != path)]
    chained = {f"{r.path}.{child}" for r in outermost for child in r.children}
    inside = [
        _part(flows, gone, path, plain)
        for path in gone.modules
        if not any(within(path, r.path) for r in outermost) or any(within(path, child) for child in chained)
    ]
    return (*inside, *outermost)


# -- parts of a branch -----------------------------------------------------------------------------------------


def _part(flows: Sequence[Flow], gone: Gone, path: str, plain: bool) -> Replacement:
    """The replacement of one module of a branch."""
    calls = [(flow, call) for flow in flows for call in flow.calls if call.path == path]
    simple = all(is_simple(call) for _, call in calls)
    if plain and simple and all(_read_by_gone(flow, gone, call) for flow, call in calls):
        return Replacement(path, IDENTITY)
    if simple and any(_of_another_shape(flow, gone, call) for flow, call in calls):
        return Replacement(path, GIVES, form=ONE_ZERO)
    if plain and simple:
        return Replacement(path, ZEROS)
    flow, call = calls[0]
    read = {v for number, o in enumerate(flow.operations) if number not in _inside(flow, call) for v in o.reads}
    keys = {value: key for key, (value, _) in call.arguments.items()}
    return Replacement(path, GIVES, form=_form(call.form, read, keys))


def is_simple(call: ModuleCall) -> bool:
    """True if a module is called with one floating tensor, and gives one tensor."""
    return (
        call.positional == 1 and not call.keywords and call.arguments.get(0, (0, False))[1] and type(call.form) is int
    )


def _of_another_shape(flow: Flow, gone: Gone, call: ModuleCall) -> bool:
    """True if zeros like the argument of a call may not fit where its result is added.

    The modules of the branch before it, in the same block, give their own argument on, whatever shape their result had.
    """
    beside = gone.calls(flow)
    return call.reshapes or any(c.reshapes and c.number in beside for c in flow.calls if c.outer == call.outer)


def _read_by_gone(flow: Flow, gone: Gone, call: ModuleCall) -> bool:
    """True if only modules that go read the result of a call."""
    given, calls = results(call), gone.calls(flow)
    readers = [o for number, o in enumerate(flow.operations) if {*o.reads} & given]
    return all(any(c in calls and c != call.number for c in o.calls) for o in readers if call.number not in o.calls)


def _inside(flow: Flow, call: ModuleCall) -> set[int]:
    return {number for number, operation in enumerate(flow.operations) if call.number in operation.calls}


def _form(form: Any, read: set[int], keys: Mapping[int, int | str]) -> Any:
    """The form of a result: 0 for each tensor that is read, None for the others; those that are arguments stay them.

    keys: the value of an argument -> its position or keyword.
    """
    if isinstance(form, list):
        return tuple(_form(part, read, keys) for part in form)
    if form is None or form not in read:
        return None
    return (ARGUMENT, keys[form]) if form in keys else 0


# -- whole blocks ------------------------------------------------------------------------------------------------


def _block(model: nn.Module, flows: Sequence[Flow], gone: Gone, path: str, plain: bool) -> Replacement | None:
    """The replacement of a block that passes one argument on, or to modules in a row; None for any other block."""
    found: list[Replacement | None] = []
    for flow in flows:
        walk = _Block(flow, gone, model)
        found += [walk.replacement(call, plain) for call in flow.calls if call.path == path]
    same = found and all(one == found[0] for one in found)
    return found[0] if same else None


class _Block:
    """The blocks of one flow, once some additions have lost an operand."""

    def __init__(self, flow: Flow, gone: Gone, model: nn.Module) -> None:
        self.flow, self.model = flow, model
        self.cuts: set[int] = set()
        self.live = gone.live[id(flow)]
        self.calls = gone.calls(flow)
        self.same: dict[int, int] = {}
        self._pass_on(gone.cuts[id(flow)])

    def _pass_on(self, cut: Cut) -> None:
        """Note the additions that pass one operand on, because the other one goes or is a sum of two that go."""
        zero: set[int] = set()
        for number, operation in enumerate(self.flow.operations):
            if operation.addition is None:
                continue
            vanish = {i for i, values in enumerate(operation.operands) if zero & {*values}} | {*cut.get(number, ())}
            if len(vanish) == 2:
                zero |= {*operation.writes}
            elif vanish and operation.keeps[next(iter(vanish))]:
                self.same |= dict.fromkeys(operation.writes, max(operation.operands[1 - next(iter(vanish))]))
            if vanish:
                self.cuts.add(number)

    def root(self, value: int) -> int:
        """The value that is passed on under this one."""
        while value in self.same:
            value = self.same[value]
        return value

    def replacement(self, call: ModuleCall, plain: bool) -> Replacement | None:
        """The replacement of the module of a call; None if it does more."""
        children = list(self._children(call))
        source = self._source(call, children)
        if source is None or not self._only_children(call, {child.number for child in children}):
            return None
        if not children:
            if plain and is_simple(call) and source == 0:
                return Replacement(call.path, IDENTITY)
            return Replacement(call.path, PASSES, source=source, form=self._passed(call, call.form, source))
        names = [child.path.removeprefix(f"{call.path}.") for child in children]
        in_a_row = self._in_a_row(call, children) and len({*names}) == len(names)
        direct = {*names} <= {name for name, _ in self.model.get_submodule(call.path).named_children()}
        if plain and in_a_row and direct and is_simple(call):
            return Replacement(call.path, CHAIN, tuple(names))
        return None

    def _children(self, call: ModuleCall) -> Iterator[ModuleCall]:
        """The calls directly in a call that stay, of modules that compute something or may in another mode."""
        for child in self.flow.calls:
            if child.outer != call.number or child.number in self.calls:
                continue
            inside = [n for n, o in enumerate(self.flow.operations) if child.number in o.calls]
            if any(n in self.live and n not in self.cuts for n in inside):
                yield child
            elif not inside and type(self.model.get_submodule(child.path)) is not nn.Identity:
                given = [value for value, _ in child.arguments.values()]
                if any(self._stays(value) for value in given):
                    yield child

    def _stays(self, value: int) -> bool:
        maker = self.flow.maker.get(self.root(value))
        return maker is None or maker in self.live

    def _only_children(self, call: ModuleCall, children: set[int]) -> bool:
        """True if everything that stays of a call runs in these calls in it."""
        for number in self.live:
            operation = self.flow.operations[number]
            if number not in self.cuts and call.number in operation.calls and not children & {*operation.calls}:
                return False
        return True

    def _source(self, call: ModuleCall, children: Sequence[ModuleCall]) -> int | str | None:
        """The argument that a block passes on, to its result or to its first module; None if there is none.

        A block may pass others on beside it, in the rest of its result.
        """
        if children:
            wanted = list(dict.fromkeys(self.root(value) for value, _ in children[0].arguments.values()))
        else:
            wanted = list(dict.fromkeys(map(self.root, values_in(call.form))))
        given = [self._key(call, value) for value in wanted]
        if not given or None in given or (children and given[1:]) or call.parts - {"tuple"} - {"Tensor"}:
            return None
        return given[0]

    def _key(self, call: ModuleCall, value: int) -> int | str | None:
        """The argument of a call that is passed on as this value."""
        return next((key for key, (given, _) in call.arguments.items() if self.root(given) == self.root(value)), None)

    def _passed(self, call: ModuleCall, form: Any, source: int | str) -> Any:
        """The form of a result whose tensors are all arguments."""
        if isinstance(form, list):
            return tuple(self._passed(call, part, source) for part in form)
        key = None if form is None else self._key(call, form)
        return key if key is None else 0 if key == source else (ARGUMENT, key)

    def _in_a_row(self, call: ModuleCall, children: Sequence[ModuleCall]) -> bool:
        """True if each module takes what the one before gives, and nothing else."""
        value = self.root(call.arguments[0][0]) if 0 in call.arguments else -1
        for child in children:
            if not is_simple(child) or self.root(child.arguments[0][0]) != value:
                return False
            value = self.root(child.form)
        return type(call.form) is int and self.root(call.form) == value
