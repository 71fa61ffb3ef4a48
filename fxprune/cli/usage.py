"""The syntax of commands: an argparse parser that raises errors of fxprune, and the types of options."""

from __future__ import annotations

import argparse
import ast
import difflib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

from fxprune.errors import FxpruneError, PlanError, nearest
from fxprune.planning.budgets import checked_keys


class UsageError(FxpruneError, ValueError):
    """A command line is wrong, independently of the model and the files."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UsageError`, allows no abbreviations, and suggests the nearest option."""

    def __init__(self, **options: Any) -> None:
        self.known = ["--help"]
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def option(self, *names: str, **settings: Any) -> None:
        """Adds an argument or option; `known` gets the names of options."""
        self.known += self.add_argument(*names, **settings).option_strings

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError` with the message, which argparse would print."""
        raise UsageError(message, do=f"`{self.prog} --help` says what it takes")

    def refuse_unknown(self, words: Sequence[str], others: Mapping[str, Collection[str]]) -> None:
        """Raises `UsageError` for an unknown option. argparse would take its value for an argument first.

        others: command -> its options, for the hint.
        """
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            if name.startswith("--") and name not in self.known:
                plain = {option[2:]: option for option in self.known if option.startswith("--")}
                near = difflib.get_close_matches(name[2:], plain, n=1)
                why = f'did you mean "{plain[near[0]]}"?' if near else ""
                theirs = [command for command, options in others.items() if name in options]
                if theirs:
                    why = f"{self.prog} does not take it; {name} is an option of {', '.join(theirs)}"
                do = f"`{self.prog} --help` lists the options"
                raise UsageError(f"there is no option {name}", why=why, do=do)


def one_of(what: str, names: Collection[str]) -> Callable[[str], str]:
    """Returns the type of an option that takes one of several names.

    >>> one_of("importance", ("l1", "fpgm"))("fpmg")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: there is no importance "fpmg": did you mean "fpgm"?
    """

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f'there is no {what} "{text}": {nearest(text, names)}')
        return text

    return parse


def integer(least: int) -> Callable[[str], int]:
    """Returns the type of an option that takes an integer of at least `least`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f'"{text}" is no integer of at least {least}')
        return number

    return parse


def multiple(text: str) -> int | str:
    """Parses a value of `--round-to`: an integer of at least 1, or "auto"."""
    return text if text == "auto" else integer(1)(text)


def tolerance(text: str) -> float:
    """Parses a finite number that is not negative."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f'"{text}" is no finite number of at least 0')
    return number


def share(text: str) -> tuple[str | None, float]:
    """Parses a value of `--ratio`: a share in [0, 1) for every group, or for the groups that a glob names.

    >>> share("0.5"), share("layer1.*=0.25")
    ((None, 0.5), ('layer1.*', 0.25))
    """
    glob, equals, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1 or (equals and not glob):
        raise argparse.ArgumentTypeError(f'"{text}" is no number in [0, 1), alone or as PATTERN=NUMBER')
    return glob or None, number


def ratio_of(shares: Sequence[tuple[str | None, float]] | None) -> float | dict[str, float] | None:
    """Returns several `--ratio` as one argument of `transform`. Raises `UsageError` if they contradict each other."""
    if not shares:
        return None
    if len(shares) == 1 and shares[0][0] is None:
        return shares[0][1]
    globs = [glob for glob, _ in shares]
    if None in globs or len({*globs}) < len(globs):
        raise UsageError(
            "several --ratio contradict each other",
            why="one for every group stands alone, and each pattern stands once",
            do="say --ratio 0.5, or --ratio 'PATTERN=0.5' for each pattern",
        )
    return {glob: number for glob, number in shares if glob is not None}


def kept(text: str) -> tuple[str, float | int | str]:
    """Parses a value of `--keep`: a measure, and a share, an integer or a text with a unit.

    >>> kept("macs=0.5"), kept("params=3000000"), kept("bytes=20 MB")
    (('macs', 0.5), ('params', 3000000), ('bytes', '20 MB'))
    """
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f'"{text}" is no KEY=AMOUNT, like macs=0.5')
    amount = _amount(value)
    wrong = _wrong(key, amount)
    if wrong:
        raise argparse.ArgumentTypeError(f'"{text}": {wrong}')
    return key, amount


def check_amounts(key: str, values: Sequence[float | int | str]) -> None:
    """Raises `UsageError` for a value of `--budgets` that makes no sense of the cost that `--key` names."""
    for amount in values:
        wrong = _wrong(key, amount)
        if wrong:
            raise UsageError(f'argument --budgets: "{amount}" with --key {key}: {wrong}', do="give --budgets 0.5,0.25")


def _wrong(key: str, amount: float | int | str) -> str:
    """The reason why an amount is no budget of a measure; empty if it is one."""
    try:
        checked_keys({key: amount})
    except PlanError as error:
        return "; ".join(part for part in (error.what, error.why, error.do) if part)
    return ""


def _amount(text: str) -> float | int | str:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def amounts(text: str) -> tuple[float | int | str, ...]:
    """Parses a value of `--budgets`: what stays, each a share, an integer or a text with a unit.

    >>> amounts("0.5,3000000,20 MB")
    (0.5, 3000000, '20 MB')
    """
    return tuple(_amount(one) for one in text.split(","))


def shares(text: str) -> tuple[float, ...]:
    """Parses a value of `--ratios`: shares in (0, 1).

    >>> shares("0.5,0.75")
    (0.5, 0.75)
    """
    found = tuple(tolerance(one) for one in text.split(","))
    if not all(0 < one < 1 for one in found):
        raise argparse.ArgumentTypeError(f'"{text}" is no list of shares between 0 and 1, like 0.3,0.5')
    return found


def count(text: str) -> tuple[str, int]:
    """Parses a value of `--counts`: a pattern, and how many channels stay.

    >>> count("layer1.0.conv1=24")
    ('layer1.0.conv1', 24)
    """
    pattern, _, value = text.rpartition("=")
    if not pattern or not value.isascii() or not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" is no PATTERN=N with N of at least 1')
    return pattern, int(value)


def largest(text: str) -> float:
    """Parses a value of `--max-ratio`: a share in (0, 1]."""
    number = tolerance(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f'"{text}" is no share in (0, 1]')
    return number


def output_path(text: str) -> tuple[str | int, ...]:
    """Parses a value of `--outputs`: keys with dots between them, where digits are a number.

    >>> output_path("boxes"), output_path("features.0")
    (('boxes',), ('features', 0))
    """
    keys = text.split(".")
    if not all(keys):
        raise argparse.ArgumentTypeError(f'"{text}" is no path into the result, like boxes or features.0')
    return tuple(int(key) if key.isascii() and key.isdigit() else key for key in keys)


def literal(text: str) -> tuple[str, Any]:
    """Parses a value of `--arg`: a name, and a Python literal, or else a text.

    >>> literal("width=64"), literal("sizes=(1, 2)"), literal("act=relu")
    (('width', 64), ('sizes', (1, 2)), ('act', 'relu'))
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f'"{text}" is not NAME=VALUE')
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return name, value


def unique_dict(what: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Returns pairs as a dict. Raises `UsageError` if a name occurs twice. what: the option, for the message."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f'{what} "{twice}" is given twice', do="give it once")
    return made
