"""The command line: `fxprune`, or `python -m fxprune`. docs/cli.md describes it.

Results go to stdout; everything else goes to stderr, also what the code of the model prints.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Container, Iterator, Sequence
from typing import Any

from fxprune.arguments import checks_arguments
from fxprune.cli.commands import COMMANDS, ERROR, INTERRUPTED, USAGE, WRONG, Answer
from fxprune.cli.parser import parse
from fxprune.cli.usage import UsageError
from fxprune.cli.wording import spoken
from fxprune.errors import FxpruneError, VerificationError

__all__ = ["main"]

BROKEN_PIPE = 141
"""The exit code if the reader of the output has ended: 128 + SIGPIPE, as shells report it."""

NOTE = re.compile("^note: ")

QUIET = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""Warnings that are meant for authors of code and not for users of the command line."""


@checks_arguments()
def main(words: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        words: the command and its options; None means the arguments of the process.

    Returns the exit code: 0 done, 1 an error in model, inputs or files, 2 wrong usage, 3 nothing was pruned,
    4 verification failed, 5 a budget was not met, 130 interrupted. Prints the result on stdout, all else on stderr.
    """
    words = sys.argv[1:] if words is None else list(words)
    try:
        return _run(words)
    except KeyboardInterrupt:
        _print_line("interrupted; files that are not complete were not written")
        return INTERRUPTED
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # or the exit would flush into it again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        _print_line(f"error: {_error_text(error)}")
        if isinstance(error, UsageError):
            return USAGE
        return WRONG if isinstance(error, VerificationError) else ERROR


def _run(words: Sequence[str]) -> int:
    try:
        options = parse(words)
    except SystemExit:  # after --help and --version
        return 0
    with _one_line_warnings() as warned, contextlib.redirect_stdout(sys.stderr):
        answer: Answer = COMMANDS[options.command](options, (lambda line: None) if options.quiet else _print_line)
    print(_spoken_notes(answer.text, warned) if options.format == "text" else answer.text, flush=True)
    return answer.code


def _spoken_notes(text: str, warned: Container[str]) -> str:
    """The text with its notes in words of the command line, without those that a warning has said."""
    lines = (spoken(line) if NOTE.match(line) else line for line in text.split("\n"))
    return "\n".join(line for line in lines if not (NOTE.match(line) and _one_line(NOTE.sub("", line)) in warned))


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[list[str]]:
    """Prints each warning as one line, and equal warnings once. Yields the list of what it has printed."""
    warned: list[str] = []

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        warned.append(_one_line(spoken(str(message))))
        _print_line(f"warning: {warned[-1]}")

    with warnings.catch_warnings():
        if not sys.warnoptions:  # not with python -W
            warnings.simplefilter("default")
            for category in QUIET:
                warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield warned


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _error_text(error: Exception) -> str:
    """Returns the text of an error: all four parts for an error of fxprune, one line for any other."""
    if isinstance(error, FxpruneError):
        return spoken(str(error))
    if isinstance(error, OSError) and error.strerror:
        return f'{error.strerror}: "{error.filename}"' if error.filename else error.strerror
    lines = str(error).strip().splitlines()
    shown = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{shown}\n  do   --debug shows where"
