"""The options that errors and warnings of the package name as arguments in Python."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from fxprune.paths import PATHS

OPTIONS = {
    **dict.fromkeys(("data", "repair"), "package.module:loader"),
    "loss": "package.module:loss",
    "score": "package.module:function",
    **dict.fromkeys(("strict", "exact", "depth", "checksum"), None),
    **dict.fromkeys("bias border importance masks norms path prefer scope seed uniform".split(), ""),
    **dict.fromkeys("keep ratio counts drop ignore outputs groups ratios budgets key".split(), ""),
    **dict.fromkeys("round_to min_channels max_ratio repair_mode scores plan".split(), ""),
    **dict.fromkeys("file rounds opset tolerance memory workers shard_size".split(), ""),
}
"""Argument in Python -> the value that its option takes instead of an object, "" for the same value, None for no value.
The option has the name of the argument, with hyphens."""

OTHER_NAMES = {"mode": "repair_mode"}
"""Argument of a function that `transform` calls -> that of `transform`."""

SUBJECTS = "ratio counts ignore drop groups uniform keep masks outputs scope score scores importance".split()
"""Arguments with which a sentence of an error may begin."""

NAMED = "give each as --input SHAPE, in the order of forward, or as --input NAME=SHAPE"

RUNS = "check that the model runs on these example inputs"

SPOKEN = (
    (rf"(?m)^(?:{'|'.join(SUBJECTS)})(?= (?:names|must|asks|cannot|needs|is without)\b)", r"--\g<0>"),
    (
        r"pass names, globs, modules or types of modules[^\n]*",
        "write a name, a glob or name:kind, as `fxprune inspect` lists them",
    ),
    (rf"(?s)(scalar types: Long.*){RUNS}", r"\1give integers, such as token ids, as --input [NAME=]1x16:int64<N"),
    (rf"{RUNS}: their numbers[^\n]*", "check the numbers of --input, such as token ids below N: [NAME=]1x16:int64<N"),
    (RUNS, "check shapes and dtypes of --input"),
    (r"the example inputs are (\d+) positional and the keywords (\[.*\])", r"--input gives \1 without a name, and \2"),
    (r"pass a tuple of all positional arguments, or a dict of keyword arguments(?:; a dict that[^\n]*)?", NAMED),
    (r"make the plan \w+ \(.*\) and save it", "write it with `fxprune prune --save-plan`"),
    (r"has other weights than the one that it was made from", r"\g<0>: check --weights"),
    (
        r"make the plan with this model's `analyze`",
        "make the plan with this model, or give the --arg NAME=VALUE of the model that it was made with",
    ),
    (r"`?analyze\(\.\.\.\)\.report\(\)`?", "`fxprune inspect`"),
    (r"The report of fxprune\.analyze \(fxprune inspect\)", "`fxprune inspect`"),
    (r"pick it out: `repair_inputs=lambda[^\n]*", "say --data package.module:loader --repair for inputs with labels"),
    (r"; or pass a function that picks it out, such as `repair_inputs=lambda[^\n]*", ""),
    (r"pass (the names of the arguments that have one, for example dynamic_batch=)", r"call fxprune.export with \1"),
    (r"\b(?:stream|summary)\((\w+=[^()\n]*)\)", r"\1"),
    (r"search=\{'(steps|file)': ('[^']*'|[^}]*)\}", r"--search-\1 \2"),
)
"""A pattern of a text -> the words for a user of the command line."""

_VALUE = r"""(?:"[^"\n]*"|'[^'\n]*'|\{[^}\n]*\}|\[[^\]\n]*\]|\([^)\n]*\)|lambda [^`\n]*|-?\w+(?:\.\d+)?%?|\.\.\.|)"""
_CALL = r"[\w.]+\((?:[^()\n]|\([^()\n]*\))*\)"
_ARGUMENT = re.compile(rf"{_CALL}|(?<![\w.\-\"'])({'|'.join((*OPTIONS, *OTHER_NAMES))})=(?!=)({_VALUE})(?![\w(])")


def spoken(text: str) -> str:
    """A text with the options of the command line in place of arguments. Calls stay as they are: they are Python.

    >>> spoken("a share must be in (0, 1]\\n  at   keep={'macs': 0}")
    'a share must be in (0, 1]\\n  at   --keep macs=0'
    >>> spoken('pass repair=batches, or drop strict=True; write outputs=["boxes"] or outputs=[("features", 0)]')
    'pass --repair package.module:loader, or drop --strict; write --outputs boxes or --outputs features.0'
    """
    for pattern, words in SPOKEN:
        text = re.sub(pattern, words, text)
    return _ARGUMENT.sub(_option, text)


def _option(found: re.Match[str]) -> str:
    """The option for an argument in a text."""
    if found[1] is None:
        return found[0]  # a call
    if found[1] == "path" and found[2].strip("\"'") not in PATHS:
        return found[0]  # of a file
    name, value = OTHER_NAMES.get(found[1], found[1]), found[2]
    option, placeholder = f"--{name.replace('_', '-')}", OPTIONS[name]
    if placeholder is None or (placeholder and value == "True"):
        return option
    if placeholder:
        return f"{option} {placeholder}" if value else option
    return " ".join(f"{option} {one}".rstrip() for one in _words(name, value))


def _words(name: str, value: str) -> list[str]:
    """The words in which a value is written behind its option, one for each time that the option stands there."""
    try:
        known: Any = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return [value]
    if isinstance(known, Mapping):
        return [f"{key}={_word(one)}" for key, one in known.items()]
    if name in ("budgets", "ratios"):
        return [",".join(map(_word, known))] if isinstance(known, tuple | list) else [_word(known)]
    return [_word(one) for one in known] if isinstance(known, list) else [_word(known)]


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return ".".join(map(str, value))
    return "..." if value is ... else str(value)
