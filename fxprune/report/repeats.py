"""Repeated blocks in one row: rows that differ only in the number of a block become one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

Row = tuple[Any, ...]


def blocks_of(names: Iterable[str]) -> frozenset[str]:
    """The modules around others, of the dotted names of some.

    >>> sorted(blocks_of(["blocks.0.up", "head"]))
    ['blocks', 'blocks.0']
    """
    return frozenset(name[: dot.start()] for name in names for dot in re.finditer(r"\.", name))


def merge_repeats(rows: Sequence[Row], blocks: Container[str] = frozenset()) -> list[Row]:
    """One row for all rows whose first cell, a dotted name, differs in one number and whose other cells are equal.

    The number must be that of a block: it stands before the last dot, or at the end of a name in blocks. Text in other
    cells that names the same block follows it. The result stands where the first of the rows stood.

    >>> merge_repeats([("block.0.conv", 8), ("block.1.conv", 8), ("block.2.conv", 8), ("block.4.conv", 8), ("head", 8)])
    [('block.0-2,4.conv', 8), ('head', 8)]
    >>> merge_repeats([("a.0.x", "a.0.x.weight"), ("a.1.x", "a.1.x.weight"), ("a.2.x", 5)])
    [('a.0-1.x', 'a.0-1.x.weight'), ('a.2.x', 5)]
    >>> merge_repeats([("a.0.x", 8), ("a.0.x", 8), ("a.1.x", 8), ("a.1.x", 8)])
    [('a.0-1.x', 8), ('a.0-1.x', 8)]
    >>> merge_repeats([("a.0", 8), ("a.1", 8)]), merge_repeats([("a.0", 8), ("a.1", 8)], blocks={"a.0", "a.1"})
    ([('a.0', 8), ('a.1', 8)], [('a.0-1', 8)])
    """
    found = list(rows)
    depth = max((len(_numbers(str(row[0]), blocks)) for row in found), default=0)
    for position in reversed(range(depth)):
        found = _merge_at(found, position, blocks)
    return found


def merge_tensors(names: Iterable[str], shapes: Mapping[str, Any] | None = None) -> list[str]:
    """Names of parameters, in which those of repeated blocks are one, if they have one shape.

    >>> merge_tensors(["a.0.up.weight", "a.1.up.weight", "0.weight", "2.weight", "scale"])
    ['a.0-1.up.weight', '0.weight', '2.weight', 'scale']
    """
    rows = merge_repeats([(*name.rpartition(".")[::2], (shapes or {}).get(name)) for name in names])
    return [".".join(filter(None, row[:2])) for row in rows]


def stands_for(row: str, name: str) -> bool:
    """True if a row of repeated blocks has this name among its own.

    >>> [stands_for("a.0-2,4.x", name) for name in ("a.1.x", "a.3.x", "a.4.x", "a.4.y")]
    [True, False, True, False]
    """
    parts, others = row.split("."), name.split(".")
    return len(parts) == len(others) and all(map(_covers, parts, others))


def _covers(part: str, other: str) -> bool:
    if part == other or not (other.isdigit() and re.fullmatch(r"\d+(?:[-,]\d+)+", part)):
        return part == other
    spans = (span.split("-") for span in part.split(","))
    return any(int(span[0]) <= int(other) <= int(span[-1]) for span in spans)


def _numbers(name: str, blocks: Container[str]) -> list[re.Match[str]]:
    """The numbers of blocks in a dotted name: those before its last dot; all, if it is the name of a block."""
    return list(re.finditer(r"\d+(?:[-,]\d+)*", name if name in blocks else name.rpartition(".")[0]))


def _merge_at(rows: list[Row], position: int, blocks: Container[str]) -> list[Row]:
    kept: list[Row] = []
    first: dict[tuple[Row, int], int] = {}
    seen: Counter[Row] = Counter()
    numbers: dict[int, list[int]] = {}
    prefixes: dict[int, str] = {}
    for row in rows:
        found = _numbers(str(row[0]), blocks)
        if position >= len(found) or not found[position][0].isdigit():
            kept.append(row)
            continue
        prefix, number = str(row[0])[: found[position].start()], found[position][0]
        seen[row] += 1  # equal rows of one block stay as many
        pattern = _renamed(row, prefix, number, "*")
        at = first.setdefault((pattern, seen[row]), len(kept))
        if at == len(kept):
            kept.append(pattern)
            prefixes[at] = prefix
        numbers.setdefault(at, []).append(int(number))
    for at, found_numbers in numbers.items():
        kept[at] = _renamed(kept[at], prefixes[at], "*", _ranges(found_numbers))
    return kept


def _renamed(row: Row, prefix: str, number: str, new: str) -> Row:
    """The row with the number of the block replaced in its name, and wherever a name begins like it.

    >>> _renamed(("1.up", "1.up.weight[1]", "1 x 8", "1.81 G"), "", "1", "*")
    ('*.up', '*.up.weight[1]', '1 x 8', '1.81 G')
    """
    name, *cells = row
    end = r"(?!\d)" if prefix else r"(?=(\.\w+)*\.[a-zA-Z_])"  # a number alone may be a size
    pattern = re.compile(rf"(?<![\w.]){re.escape(prefix + number)}{end}")
    named = f"{prefix}{new}{str(name)[len(prefix) + len(number) :]}"
    return named, *(pattern.sub(prefix + new, cell) if isinstance(cell, str) else cell for cell in cells)


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers, neighbours as a range.

    >>> _ranges([1, 2, 3, 5])
    '1-3,5'
    """
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
