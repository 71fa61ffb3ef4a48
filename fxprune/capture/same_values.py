"""The check that tables, lists and variables hold the objects that they held before, in one pass over all of them."""

from __future__ import annotations

import functools
import operator
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from itertools import chain
from typing import Any

from fxprune.capture.code import content_of

_SEQUENCES: tuple[Any, ...] = (list, deque, set)
_TABLES: tuple[Any, ...] = (OrderedDict, dict, types.MappingProxyType)


class SameValues:
    """The objects that some owners held when this was made.

    A file of a large package has thousands of variables, and is looked at many times in one call. So everything is
    compared by functions of Python itself, one call for all owners.

    tables: dicts, and the variables of classes and functions; their keys are compared too. sequences: lists, deques,
    sets, and instances of classes that derive from these. cells: variables of closures. others: functions that give
    the values of one owner each.

    >>> table, items = {"a": 1}, [2.5]
    >>> same = SameValues([table], [items])
    >>> same.unchanged(), items.append(3), same.unchanged()
    (True, None, False)
    """

    def __init__(
        self,
        tables: Iterable[Any],
        sequences: Iterable[Any] = (),
        cells: Iterable[types.CellType] = (),
        others: Iterable[Callable[[], Iterable[Any]]] = (),
    ) -> None:
        self._views: list[Collection[Any]] = []
        self._others = list(others)
        for table in tables:
            base = _base(table, _TABLES)
            self._views += (base.values(table), base.keys(table))  # views of a table show what it holds now
        for sequence in sequences:
            if type(sequence) in _SEQUENCES:
                self._views.append(sequence)
            else:
                self._others.append(functools.partial(_base(sequence, _SEQUENCES).__iter__, sequence))
        self._cells = list(cells)
        self._sizes = list(map(len, self._views))
        self._values = list(self._now())

    def unchanged(self) -> bool:
        """True if all owners hold the same objects in the same order."""
        if list(map(len, self._views)) != self._sizes:
            return False
        end = object()  # stands behind both: one may be longer
        return all(map(operator.is_, chain(self._now(), (end,)), chain(self._values, (end,))))

    def _now(self) -> Iterable[Any]:
        cells = map(content_of, self._cells)
        return chain(chain.from_iterable(self._views), cells, *(each() for each in self._others))


def _base(owner: Any, classes: tuple[Any, ...]) -> Any:
    """The first of some classes that an owner is of: its methods do what they say."""
    return next(base for base in classes if issubclass(type(owner), base))
