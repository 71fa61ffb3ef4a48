"""Completion of commands and options for a shell, written by shtab: `fxprune --print-completion bash`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from fxprune.cli.usage import Parser, UsageError
from fxprune.errors import FxpruneError, nearest

SHELLS = ("bash", "zsh", "tcsh")


def completion(shell: str, about: Mapping[str, str], add: Callable[[str, Parser], None]) -> str:
    """A script that a shell reads to complete commands and options.

    Args:
        shell: a name in `SHELLS`.
        about: command -> a sentence about it.
        add: a function that adds the arguments and options of a command to a parser.
    """
    if shell not in SHELLS:
        raise UsageError(
            f'there is no completion for "{shell}"', why=nearest(shell, SHELLS), do=f"say one of {', '.join(SHELLS)}"
        )
    try:
        import shtab
    except ImportError:
        raise FxpruneError(
            "completion needs shtab", why="it is not installed", do='pip install "fxprune[completion]"'
        ) from None
    whole = argparse.ArgumentParser("fxprune")
    commands = whole.add_subparsers(parser_class=Parser)
    for name, text in about.items():
        add(name, commands.add_parser(name, help=text, description=text))
    made: str = shtab.complete(whole, shell)
    return made
