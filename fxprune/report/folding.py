"""Repeated blocks of a graph of layers: of blocks in a row that are equal, the first one stands for all."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FEWEST = 3
"""The smallest number of equal blocks in a row that are folded."""


@dataclass(frozen=True)
class Repeated:
    """Equal blocks in a row, such as "layers.0" to "layers.7". prefix: the path of a block before its number."""

    prefix: str
    numbers: tuple[int, ...]

    @property
    def first(self) -> str:
        """The path of the block that stays."""
        return f"{self.prefix}{self.numbers[0]}"

    def named(self, name: str) -> str:
        """The name of a thing in the first block with the numbers of all; any other name as it is.

        >>> Repeated("layers.", (0, 1, 2)).named("layers.0.up"), Repeated("layers.", (0, 1, 2)).named("layers.01.up")
        ('layers.0-2.up', 'layers.01.up')
        """
        if name != self.first and not name.startswith(f"{self.first}."):
            return name
        return f"{self.prefix}{self.numbers[0]}-{self.numbers[-1]}{name[len(self.first) :]}"


def fold_repeats(flow: Any, looks: Mapping[str, Hashable]) -> tuple[Any, tuple[Repeated, ...]]:
    """The graph with the first block of each run, and the runs. A node of kind "join" says how many blocks there are.

    Blocks are equal if their nodes have the same names, the same looks and the same edges, and if each block hands its
    results to the next one alone. looks: what is drawn of a node.
    """
    runs: list[Repeated] = []
    while (run := next(_runs(flow, looks), None)) is not None:
        flow = _folded(flow, run)
        runs.append(run)
    return flow, tuple(runs)


def _runs(flow: Any, looks: Mapping[str, Hashable]) -> Iterator[Repeated]:
    """The runs of equal blocks, the outermost first."""
    families: dict[str, set[int]] = {}
    for node in flow:
        for found in re.finditer(r"\d+(?=[.:]|$)", node):
            prefix = node[: found.start()]
            if ":" not in prefix and (not prefix or not prefix[-1].isdigit()):
                families.setdefault(prefix, set()).add(int(found[0]))
    for prefix in sorted(families, key=lambda p: p.count(".")):
        numbers = sorted(families[prefix])
        pictures = {number: _picture(flow, f"{prefix}{number}", looks) for number in numbers}
        start = 0
        for stop in range(1, len(numbers) + 1):
            before = numbers[stop - 1]
            if stop < len(numbers) and numbers[stop] == before + 1 and _continues(flow, prefix, before, pictures):
                continue
            if stop - start >= FEWEST:
                yield Repeated(prefix, tuple(numbers[start:stop]))
            start = stop


def _inside(flow: Any, block: str) -> dict[str, str]:
    """The nodes of a block, and what their names say after its path."""
    return {
        node: node[len(block) :]
        for node in flow
        if node == block or (node.startswith(block) and node[len(block)] in ".:")
    }


def _picture(flow: Any, block: str, looks: Mapping[str, Hashable]) -> Hashable:
    """The names, looks and edges of a block; None for one node, which is no block."""
    inside = _inside(flow, block)
    if len(inside) < 2:
        return None
    edges = {(inside[a], inside[b]) for a, b in flow.edges(inside) if b in inside}
    return tuple((name, looks.get(node)) for node, name in inside.items()), frozenset(edges)


def _continues(flow: Any, prefix: str, number: int, pictures: Mapping[int, Hashable]) -> bool:
    """True if the next block looks like this one, and reads it and what this one reads as well."""
    if pictures[number] is None or pictures[number] != pictures[number + 1]:
        return False
    here, after = (_inside(flow, f"{prefix}{n}") for n in (number, number + 1))
    if any(b not in here and b not in after for _, b in flow.edges(here)):
        return False
    read = {(a, here[b]) for a, b in flow.in_edges(here) if a not in here}
    others = {(a, after[b]) for a, b in flow.in_edges(after) if a not in here and a not in after}
    return others <= read


def _folded(flow: Any, run: Repeated) -> Any:
    """The graph with the first block of a run, and a node behind it."""
    blocks = [_inside(flow, f"{run.prefix}{number}") for number in run.numbers]
    first, last = blocks[0], blocks[-1]
    gone = set().union(*blocks[1:])
    names = {name: node for node, name in first.items()}
    mark = f"{run.first}:repeats"
    made = type(flow)()
    for node, found in flow.nodes(data=True):
        if node not in gone:
            made.add_node(node, **found)
        if node == next(reversed(first)):
            made.add_node(mark, **{**_NOTHING, "type": f"x {len(blocks)} blocks"})
    made.add_edges_from(edge for edge in flow.edges(data=True) if not {edge[0], edge[1]} & gone)
    for a, b, found in flow.edges(last, data=True):
        if b not in last:
            made.add_edge(names[last[a]], mark, **found)
            made.add_edge(mark, b, **found)
    return made


_NOTHING: Mapping[str, Any] = {"kind": "join", "params": 0, "macs": 0, "shapes": {}, "groups": ()}


def names_of(runs: Sequence[Repeated], name: str) -> str:
    """A name with the numbers of all blocks that it stands for."""
    for run in reversed(runs):  # inner blocks first: their paths have the number of the outer one's first block
        name = run.named(name)
    return name
