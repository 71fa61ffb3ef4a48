"""The options that errors and warnings of the package name as arguments in Python."""

from __future__ import annotations

import re

SPOKEN = (
    (r"has other weights than the one that it was made from", r"\g<0>: check --weights"),
    (
        r"make the plan with this model's `analyze`",
        "make the plan with this model, or give the --arg NAME=VALUE of the model that it was made with",
    ),
    (r"`?analyze\(\.\.\.\)\.report\(\)`?", "`fxprune inspect`"),
    (r"keep=\{'(\w+)': '?([^'}]*)'?\}", r"--keep \1=\2"),
    (r"pick it out: `repair_inputs=lambda[^\n]*", "say --data package.module:loader --repair for inputs with labels"),
)
"""The name of an argument in Python (a pattern) -> the words for a user of the command line."""


def spoken(text: str) -> str:
    """A text with the options of the command line in place of arguments.

    >>> spoken("a share must be in (0, 1]\\n  at   keep={'macs': 0}")
    'a share must be in (0, 1]\\n  at   --keep macs=0'
    """
    for pattern, words in SPOKEN:
        text = re.sub(pattern, words, text)
    return text
