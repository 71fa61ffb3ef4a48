"""Checks of the arguments of public functions against the kinds that their signatures declare.

>>> @checks_arguments()
... def shrink(name: str, *, share: float = 0.5, also: Sequence[str] = ()) -> str:
...     return name
>>> shrink("conv1", also=("fc",))
'conv1'
>>> shrink("conv1", also="fc")
Traceback (most recent call last):
    ...
fxprune.errors.InputError: also must be a list of texts, not str
  at   shrink(also='fc')
  do   pass a list of texts
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import numbers
import operator
import os
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
from torch import nn

from fxprune.errors import (
    CaptureError,
    FxpruneError,
    InputError,
    MissingArgumentError,
    UnknownArgumentError,
    nearest,
)

OF_OTHER_TOOLS = {
    "amount": "ratio",
    "pruning_ratio": "ratio",
    "sparsity": "ratio",
    "pruning_ratio_dict": "ratio",
    "ignored_layers": "ignore",
    "global_pruning": "scope",
    "dataloader": "data",
    "train_loader": "data",
}
"""Argument of torch.nn.utils.prune, Torch-Pruning and others -> the one that means it here."""

P = ParamSpec("P")
R = TypeVar("R")


def checks_arguments(*only: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: a call raises `InputError`, before anything else, for an argument that is not of its declared kind.

    A module is checked by `CaptureError`, as models are elsewhere. An unknown argument is an `UnknownArgumentError`, a
    missing one a `MissingArgumentError`.

    only: the arguments to check; without names all. The function checks the others itself, since it has more to say.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        least, most = len(_needed(signature)), len(_by_position(signature))

        @functools.cache
        def kinds() -> Mapping[str, Any]:
            return {name: _kind(function, name) for name in signature.parameters if not only or name in only}

        @functools.cache
        def classes() -> tuple[type, ...] | None:
            return _plain_classes(signature, kinds())

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if not kwargs and least <= len(args) <= most and _are_plainly(args, classes()):
                return function(*args, **kwargs)  # the calls that the package makes itself, by the thousand
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError:
                name = _name_of(function) if function.__name__ == "__init__" else function.__name__
                _refuse_unknown(name, kwargs, signature)
                _refuse_twice(name, args, kwargs, signature)
                _refuse_by_position(name, args, kwargs, signature)
                _refuse_missing(_name_of(function), args, kwargs, signature)
                return function(*args, **kwargs)  # Python says it best
            for name, value in given.arguments.items():
                if name in kinds():
                    order = functools.partial(_right_order, name, given, kinds())
                    _check(function, signature.parameters[name], value, kinds()[name], order)
            return function(*args, **kwargs)

        return call

    return decorate


def checks_names(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: `checks_arguments` for the names alone, of a function that checks the kinds itself.

    >>> @checks_names
    ... def shrink(model, example_inputs, *, ratio=0.5):
    ...     return model
    >>> shrink("net")
    Traceback (most recent call last):
        ...
    fxprune.errors.MissingArgumentError: shrink() is missing the argument 'example_inputs'
      at   shrink('net')
      why  there is no default
      do   call shrink(model, example_inputs, ...)
    """
    return checks_arguments("")(function)


def refuse_unknown(
    name: str, options: Mapping[str, Any], *functions: Callable[..., Any], more: Sequence[str] = ()
) -> None:
    """Raises `UnknownArgumentError` for an unknown argument among options that are handed on to functions.

    name: of the function that was called. more: options that it takes besides those of the functions.
    """
    known = dict.fromkeys([*more, *(each for function in functions for each in inspect.signature(function).parameters)])
    for option, value in options.items():
        if option not in known:
            raise _unknown_argument(name, option, value, known)


def _refuse_unknown(name: str, given: Mapping[str, Any], signature: inspect.Signature) -> None:
    known = signature.parameters
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in known.values()):
        for option, value in given.items():
            if option not in known:
                raise _unknown_argument(name, option, value, known)


_PLACES = ("first", "second", "third", "fourth", "later")


def _refuse_twice(name: str, args: Sequence[Any], given: Mapping[str, Any], signature: inspect.Signature) -> None:
    """Raises `UnknownArgumentError` for an argument that is given by position and by name."""
    placed = _by_position(signature)
    shift = placed[:1] == ["self"]
    twice = next((option for option in placed[: len(args)] if option in given), "")
    if not twice:
        return
    told = [shown(value) for value in args[shift:]] + [f"{option}={shown(value)}" for option, value in given.items()]
    before = placed[shift : placed.index(twice)]
    needed = [each.name for each in _needed(signature) if each.name in placed[placed.index(twice) + 1 :]]
    raise UnknownArgumentError(
        f"{name}() got the argument {twice!r} twice, by position and by name",
        at=f"{name}({', '.join(told)})",
        why=f"the {_PLACES[min(placed.index(twice) - shift, 4)]} argument by position is {twice!r}",
        do=f"call {name}({', '.join([*before, twice, *needed])}), or write the names: "
        f"{name}({', '.join([*before, *(f'{each}=...' for each in (twice, *needed))])})",
    )


def _refuse_by_position(name: str, args: Sequence[Any], given: Mapping[str, Any], signature: inspect.Signature) -> None:
    """Raises `UnknownArgumentError` for more arguments by position than a function takes, if it has others by name."""
    kinds = {each: parameter.kind for each, parameter in signature.parameters.items()}
    placed = _by_position(signature)
    named = [each for each, kind in kinds.items() if kind.name == "KEYWORD_ONLY" and each not in given]
    if inspect.Parameter.VAR_POSITIONAL in kinds.values() or len(args) <= len(placed) or not named:
        return
    shift = placed[:1] == ["self"]
    placed, count = placed[shift:], len(args) - shift
    raise UnknownArgumentError(
        f"{name}() takes {len(placed)} argument{'s' if len(placed) != 1 else ''} by position, but {count} were given",
        at=f"{name}({', '.join(shown(value) for value in args[shift:])})",
        why=f"the others have names: {', '.join(named[:6])}{', ...' if named[6:] else ''}",
        do=f"write the name, as in {name}({', '.join([*placed, f'{named[0]}=...'])})",
    )


def _refuse_missing(name: str, args: Sequence[Any], given: Mapping[str, Any], signature: inspect.Signature) -> None:
    """Raises `MissingArgumentError` for arguments without a default that were not given."""
    try:
        known = signature.bind_partial(*args, **given).arguments
    except TypeError:
        return
    parameters = [each for each in signature.parameters.values() if each.name != "self"]
    needed = [each for each in _needed(signature) if each.name != "self"]
    missing = [each.name for each in needed if each.name not in known]
    if missing:
        words = [f"{each.name}=..." if each.kind is each.KEYWORD_ONLY else each.name for each in needed]
        words += ["..."] * (len(needed) < len(parameters))
        told = [shown(value) for value in args["self" in known :]]
        told += [f"{option}={shown(value)}" for option, value in given.items()]
        raise MissingArgumentError(
            f"{name}() is missing the argument{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}",
            at=f"{name}({', '.join(told)})",
            why="there is no default",
            do=f"call {name}({', '.join(words)})",
        )


def _needed(signature: inspect.Signature) -> list[inspect.Parameter]:
    """The arguments without a default."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = signature.parameters.values()
    return [each for each in parameters if each.default is each.empty and each.kind not in variadic]


def _by_position(signature: inspect.Signature) -> list[str]:
    """The arguments that a function takes by position, but for those of `*args`."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in signature.parameters.items() if parameter.kind in kinds]


def _unknown_argument(name: str, option: str, value: Any, known: Iterable[str]) -> UnknownArgumentError:
    if option in ("scheduler", "lr_scheduler") and "optimizer" in known:
        do = "leave it out: a scheduler goes on with its optimizer, which follows where optimizer= is given"
    else:
        other = OF_OTHER_TOOLS.get(option, "")
        hint = f'did you mean "{other}"?' if other in set(known) else nearest(option, known)
        do = hint if hint.startswith("did you mean") else f"choose from {', '.join(known)}"
    what, at = f"{name}() got an unexpected keyword argument {option!r}", f"{name}({option}={shown(value)})"
    return UnknownArgumentError(what, at=at, why=f"{name} has no argument of this name", do=do)


class _Unknown:
    """Stands for declared kinds that one class does not say. No value has this class."""


def _plain_classes(signature: inspect.Signature, kinds: Mapping[str, Any]) -> tuple[type, ...] | None:
    """The class that a value of each argument may have, `object` for any, `_Unknown` for none; None with `*args`."""
    parameters = signature.parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    declared = (kinds.get(parameter.name, Any) for parameter in parameters)
    return tuple(object if kind is Any else kind if isinstance(kind, type) else _Unknown for kind in declared)


def _are_plainly(values: Sequence[Any], classes: Sequence[type] | None) -> bool:
    """True if values are certainly of the declared kinds. False says nothing: subclasses and unions take longer.

    >>> _are_plainly(("a", 1), (str, object)), _are_plainly((True,), (int,))
    (True, False)
    """
    return classes is not None and all(
        kind is object or type(value) is kind for value, kind in zip(values, classes, strict=False)
    )


def _kind(function: Callable[..., Any], name: str) -> Any:
    """The declared kind of an argument; `Any` if none is declared, or one of a package that is imported late."""
    own = inspect.unwrap(function)
    declared = types.SimpleNamespace(__annotations__={name: own.__annotations__.get(name, Any)})
    try:
        kind = typing.get_type_hints(declared, own.__globals__)[name]
    except NameError:
        return Any
    if isinstance(kind, TypeVar):
        return functools.reduce(operator.or_, kind.__constraints__) if kind.__constraints__ else kind.__bound__ or kind
    return kind


def _right_order(name: str, given: inspect.BoundArguments, kinds: Mapping[str, Any]) -> str:
    """The order of the arguments by position if this one and a later one stand in each other's place, else ""."""
    placed = _by_position(given.signature)
    for other in placed[placed.index(name) + 1 :] if name in placed else ():
        mine, theirs = given.arguments[name], given.arguments.get(other)
        if other in given.arguments and fits(mine, kinds.get(other, Any)) and fits(theirs, kinds[name]):
            return ", ".join(each for each in placed if each != "self")
    return ""


def _check(
    function: Callable[..., Any], parameter: inspect.Parameter, value: Any, kind: Any, order: Callable[[], str]
) -> None:
    """Raises an error if the value of an argument is not of its kind; of `*args` and `**kwargs`, each of the values.

    order: gives the order of the arguments if two of them stand in each other's place.
    """
    values = [value]
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        values = list(value)
    elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
        values = list(value.values())
    for one in values:
        if not fits(one, kind):
            error = _error(function.__qualname__.removesuffix(".__init__"), parameter.name, one, kind)
            if known := order():
                error = type(error)(error.what, at=error.at, why=error.why, do=f"call {_name_of(function)}({known})")
            raise error


def _name_of(function: Callable[..., Any]) -> str:
    """The name of a function for an error; of a constructor that of its class."""
    return function.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")


def _error(function: str, name: str, value: Any, kind: Any) -> FxpruneError:
    where = f"{function}({name}={shown(value)})"
    if _is_model(kind):
        return CaptureError(
            "not a model",
            at=where,
            why=why_no_model(value)[0],
            do="pass `program.module()`" if type(value).__name__ == "ExportedProgram" else why_no_model(value)[1],
        )
    wrong = next(_wrong_parts(value, kind), "")
    return InputError(
        f"{name} must be {described(kind)}, not {type(value).__name__}",
        at=where,
        why=wrong,
        do=f"pass {described(kind)}",
    )


def why_no_model(value: Any) -> tuple[str, str]:
    """The reason why something is no model, and what to pass.

    >>> why_no_model(nn.Linear)
    ('Linear is a class', 'pass an object of it, as Linear(...)')
    """
    if isinstance(value, type):
        return f"{value.__name__} is a class", f"pass an object of it, as {value.__name__}(...)"
    return f"{type(value).__name__} is no torch.nn.Module", "pass a module"


def _is_model(kind: Any) -> bool:
    return any(isinstance(part, type) and issubclass(part, nn.Module) for part in (kind, *typing.get_args(kind)))


def shown(value: Any) -> str:
    """A short text of a value, also of one whose `repr` raises.

    >>> shown("a" * 100)
    "'aaaaaaaaaaaa...aaaaaaaaaaaaa'"
    >>> shown(nn.Sequential(nn.ReLU()))
    'Sequential(...)'
    """
    first, _, rest = reprlib.repr(value).partition("\n")
    return f"{first}...)" if rest and first.endswith("(") else first


# -- kinds ------------------------------------------------------------------------------------------------


def _has_a_float(value: numbers.Real) -> bool:
    """True if a number is not too large for a float; NaN and infinity are floats."""
    try:
        float(value)
    except OverflowError:
        return False
    return True


_PLAIN: Mapping[Any, Callable[[Any], bool]] = {
    Any: lambda value: True,
    bool: lambda value: isinstance(value, bool | np.bool_),
    int: lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool),
    float: lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool) and _has_a_float(value),
}
"""Kinds for which `isinstance` is not what is meant -> a function that is True for their values."""

_NAMES: Mapping[Any, tuple[str, str]] = {
    Any: ("anything", "anything"),
    bool: ("True or False", "True or False"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    type(None): ("None", "None"),
    os.PathLike: ("a path", "paths"),
    type: ("a class", "classes"),
    collections.abc.Callable: ("a function", "functions"),
}
"""The names of kinds in errors: of one value, and of several."""


def fits(value: Any, kind: Any) -> bool:
    """True if a value is of a declared kind. Elements of sequences and mappings are looked at too.

    >>> fits([1, 2], Sequence[int]), fits("ab", Sequence[str]), fits({"a": True}, Mapping[str, float])
    (True, False, False)
    """
    if kind in _PLAIN:
        return _PLAIN[kind](value)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is typing.Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    plain = kind if origin is None else origin
    if plain is type:
        return isinstance(value, type) and (not parts or not isinstance(parts[0], type) or issubclass(value, parts[0]))
    if not isinstance(plain, type) or (getattr(plain, "_is_protocol", False) and not issubclass(plain, os.PathLike)):
        return True  # a type variable, a protocol: there is nothing to compare with
    if plain is collections.abc.Iterable:
        return not isinstance(value, str | bytes) and (hasattr(value, "__iter__") or hasattr(value, "__getitem__"))
    if not isinstance(value, plain) or (isinstance(value, str | bytes) and plain is collections.abc.Sequence):
        return False
    return next(_wrong_parts(value, kind), None) is None


def _wrong_parts(value: Any, kind: Any) -> Iterator[str]:
    """Sentences about the parts of a list or dict that are not of their kind."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            if fits(value, typing.get_origin(part) or part):
                yield from _wrong_parts(value, part)
    elif isinstance(value, Mapping) and isinstance(origin, type) and issubclass(origin, Mapping):
        for key, element in value.items():
            if not fits(key, parts[0]):
                yield f"its key {shown(key)} is not {described(parts[0])}"
            elif not fits(element, parts[1]):
                yield f"its value {shown(element)} for {shown(key)} is not {described(parts[1])}"
    elif origin is tuple and isinstance(value, tuple) and parts[-1] is not ...:
        if len(value) != len(parts) or not all(map(fits, value, parts)):
            yield f"its {len(parts)} elements are not {', '.join(map(described, parts))}"
    elif isinstance(origin, type) and issubclass(origin, Sequence) and isinstance(value, Sequence):
        for place, element in enumerate(value):
            if not fits(element, parts[0]):
                yield f"its element {place}, {shown(element)}, is not {described(parts[0])}"


def described(kind: Any, *, several: bool = False) -> str:
    """The name of a kind in a sentence.

    >>> described(float | Mapping[str, int] | None)
    'a number, a dict from texts to integers, or None'
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        names = list(dict.fromkeys(described(part, several=several) for part in parts))
        return f"{', '.join(names[:-1])}{',' if len(names) > 2 else ''} or {names[-1]}" if len(names) > 1 else names[0]
    if origin is typing.Literal:
        return " or ".join(map(repr, parts))
    plain = kind if origin is None else origin
    if plain in _NAMES:
        return _NAMES[plain][several]
    if isinstance(plain, type) and issubclass(plain, Mapping):
        name = "dicts" if several else "a dict"
        return (
            f"{name} from {described(parts[0], several=True)} to {described(parts[1], several=True)}" if parts else name
        )
    if plain in (collections.abc.Sequence, collections.abc.Iterable, list, tuple):
        name = "lists" if several else "a list"
        return f"{name} of {described(parts[0], several=True)}" if parts and parts[0] is not Any else name
    name = getattr(plain, "__name__", str(plain))
    return f"values of type {name}" if several else f"a value of type {name}"
