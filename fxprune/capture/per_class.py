"""Answers about classes that are found once, and keep no class alive."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TypeVar

AnswerT = TypeVar("AnswerT")


def once_per_class(function: Callable[[type], AnswerT]) -> Callable[[type], AnswerT]:
    """A function of a class that remembers what it has returned for each.

    >>> once_per_class(lambda kind: kind.__name__)(int)
    'int'
    """
    known: weakref.WeakKeyDictionary[type, AnswerT] = weakref.WeakKeyDictionary()

    @functools.wraps(function)
    def call(kind: type) -> AnswerT:
        try:
            return known[kind]
        except KeyError:
            known[kind] = found = function(kind)
            return found
        except TypeError:  # a class whose own class cannot be hashed
            return function(kind)

    return call
