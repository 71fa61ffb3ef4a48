"""Assignments to attributes in Python code."""

from __future__ import annotations

import dis
import types

_BY_NAME = frozenset(("register_buffer", "setattr", "__setattr__"))


def stores(code: types.CodeType, attribute: str) -> bool:
    """True if code assigns to an attribute of this name, of any object, or to an item of it.

    >>> def grow(self, n):
    ...     self.table = self.make(n)
    >>> def remember(self, n):
    ...     self.cache[n] = self.table
    >>> stores(grow.__code__, "table"), stores(remember.__code__, "cache"), stores(remember.__code__, "table")
    (True, True, False)
    """
    held = False  # the attribute was read, and nothing was assigned since
    for instruction in dis.get_instructions(code):
        name, argument = instruction.opname, instruction.argval
        if name == "STORE_ATTR" and argument == attribute:
            return True
        if name in ("LOAD_ATTR", "LOAD_METHOD"):
            held = argument == attribute
        elif name == "STORE_SUBSCR" and held:
            return True
    return attribute in code.co_consts and not _BY_NAME.isdisjoint(code.co_names)
