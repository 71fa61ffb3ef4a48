"""The command line: `fxprune`, or `python -m fxprune`. docs/cli.md describes it.

Results go to stdout, everything else to stderr, what the model's own code prints too.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from fxprune.cli.commands import COMMANDS, ERROR, INTERRUPTED, USAGE, WRONG, Answer
from fxprune.cli.parser import parse
from fxprune.cli.usage import UsageError
from fxprune.errors import FxpruneError, VerificationError

__all__ = ["main"]

BROKEN_PIPE = 141
"""The exit code that a shell reports of a process whose reader has gone: 128 + SIGPIPE."""

QUIET = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""Warnings for the author of the code that is called, not for the user of the command line."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        words: the command and its options; those of the process if None.

    Returns the exit code: 0 done, 1 an error in model, inputs or files, 2 wrong usage, 3 nothing was pruned,
    4 verification failed, 130 interrupted. Prints the result on stdout, all else on stderr.
    """
    words = sys.argv[1:] if words is None else list(words)
    try:
        return _run(words)
    except KeyboardInterrupt:
        _say("interrupted; files that are not complete were not written")
        return INTERRUPTED
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # so that the exit does not flush into it once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        _say(f"error: {_text(error)}")
        if isinstance(error, UsageError):
            return USAGE
        return WRONG if isinstance(error, VerificationError) else ERROR


def _run(words: Sequence[str]) -> int:
    try:
        options = parse(words)
    except SystemExit:  # --help and --version have printed what they are
        return 0
    with _warnings_in_a_line(), contextlib.redirect_stdout(sys.stderr):
        answer: Answer = COMMANDS[options.command](options, (lambda line: None) if options.quiet else _say)
    print(answer.text, flush=True)
    return answer.code


@contextlib.contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Warnings as one line each, the same one once."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _say("warning: " + " ".join(str(message).split()))

    with warnings.catch_warnings():
        if not sys.warnoptions:  # python -W says otherwise
            warnings.simplefilter("default")
            for category in QUIET:
                warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _text(error: Exception) -> str:
    """The text of an error: all four parts of one of fxprune's, one line of any other."""
    if isinstance(error, FxpruneError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f'{error.strerror}: "{error.filename}"' if error.filename else error.strerror
    lines = str(error).strip().splitlines()
    shown = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{shown}\n  do   --debug shows where"
