"""The operations, and the whole modules, that nothing reads any more where additions lose an operand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from fxprune.depth.calls import Addition
from fxprune.depth.flow import Cut, Flow

BranchPlace = tuple[Addition, int]
"""An addition and the number of its operand that is a branch."""


@dataclass(frozen=True, eq=False)
class Gone:
    """The modules that go, the outermost ones, in the order in which they run.

    cuts: for each flow the additions that lose operands.
    live: for each flow the operations that stay.
    """

    modules: tuple[str, ...]
    cuts: Mapping[int, Cut] = field(default_factory=dict)
    live: Mapping[int, set[int]] = field(default_factory=dict)

    def calls(self, flow: Flow) -> set[int]:
        """The numbers of the calls of these modules."""
        return {call.number for call in flow.calls if call.path in self.modules}


def gone_from(model: nn.Module, flows: Sequence[Flow], places: Sequence[BranchPlace]) -> Gone:
    """The modules and operations that go with some operands of additions."""
    wanted = by_addition(places)
    cuts, lives = {}, {}
    staying: set[str] = set()
    going: dict[str, None] = {}
    for flow in flows:
        cut = {n: wanted[o.addition] for n, o in enumerate(flow.operations) if o.addition in wanted}
        live = flow.live(cut)
        dead = flow.live({}) - live
        cuts[id(flow)], lives[id(flow)] = cut, live
        staying |= _paths(flow, live) | _read_directly(flow, live, cut)
        going |= dict.fromkeys(sorted(_paths(flow, dead), key=_order(flow)))
    for path in list(staying):
        while path:
            path = path.rpartition(".")[0]
            staying.add(path)
    modules = dict(model.named_modules())
    alone = [p for p in going if p and p not in staying and not _is_dropout(modules[p])]
    outermost = [p for p in alone if not any(p.startswith(f"{other}.") for other in alone)]
    return Gone(tuple(outermost), cuts, lives)


def by_addition(places: Iterable[BranchPlace]) -> dict[Addition, frozenset[int]]:
    """Each addition, and the numbers of its operands among some places."""
    made: dict[Addition, frozenset[int]] = {}
    for addition, operand in places:
        made[addition] = made.get(addition, frozenset()) | {operand}
    return made


def _paths(flow: Flow, operations: set[int]) -> set[str]:
    """The paths of the modules in whose calls operations run."""
    return {flow.calls[call].path for number in operations for call in flow.operations[number].calls}


def _read_directly(flow: Flow, operations: set[int], cut: Cut) -> set[str]:
    """The modules that own parameters which operations read."""
    read = {value for number in operations for value in flow.read_by(number, cut)}
    return {name.rpartition(".")[0] for value in read for name in flow.state.get(value, ())[:1]}


def _order(flow: Flow) -> Any:
    first: dict[str, int] = {}
    for call in flow.calls:
        first.setdefault(call.path, call.number)
    return first.__getitem__


def _is_dropout(module: nn.Module) -> bool:
    """True for what gives zeros for zeros and costs nothing, and so may stay."""
    kinds = ("DropPath", "StochasticDepth")
    return isinstance(module, _DropoutNd) or type(module).__name__ in kinds
