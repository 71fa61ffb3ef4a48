"""The exceptions and warnings of fxprune, and the one place that lays out their text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class FxpruneError(Exception):
    """Anything fxprune refuses. The text has four parts: what, where (`at`), `why`, and the next step (`do`).

    >>> print(PlanError("mask has the wrong length", at='layer "conv1"', why="it has 3 entries for 8 channels"))
    mask has the wrong length
      at   layer "conv1"
      why  it has 3 entries for 8 channels
    """

    def __init__(self, what: str, *, at: str = "", why: str = "", do: str = "") -> None:
        self.what, self.at, self.why, self.do = what, at, why, do
        super().__init__(lay_out(what, at=at, why=why, do=do))


class InputError(FxpruneError, ValueError):
    """The example inputs do not fit the model."""


class CaptureError(FxpruneError, RuntimeError):
    """The model could not be traced or run on fake tensors; `raised` if its own forward raised."""

    def __init__(self, what: str, *, raised: bool = False, at: str = "", why: str = "", do: str = "") -> None:
        self.raised = raised
        super().__init__(what, at=at, why=why, do=do)


class PlanError(FxpruneError, ValueError):
    """A request (ratio, mask, importance, name, plan) that cannot be carried out as it was said."""


class FileError(FxpruneError, ValueError):
    """A file that is not what it should be (foreign, truncated, contradictory), or what no such file can hold."""


class RuleError(FxpruneError, RuntimeError):
    """An operation without a rule under `strict=True`, or a rule that contradicts its own operation."""


class RewriteError(FxpruneError, RuntimeError):
    """The smaller graph could not be proven to have the shapes that the analysis promises.

    node, scope: where, in the graph and in which module inside that node. vectors: the dimensions that contradict.
    """

    def __init__(
        self,
        what: str,
        *,
        node: str,
        scope: str = "",
        vectors: tuple[Any, ...] = (),
        at: str = "",
        why: str = "",
        do: str = "",
    ) -> None:
        self.node, self.scope, self.vectors = node, scope, vectors
        super().__init__(what, at=at, why=why, do=do)


class VerificationError(FxpruneError, RuntimeError):
    """The small model and its reference give different numbers."""


class NothingRemovedWarning(UserWarning):
    """A request was carried out and removed nothing; the text says why."""


def lay_out(what: str, *, at: str = "", why: str = "", do: str = "") -> str:
    """The four parts of a message, one a line, empty ones left out."""
    parts = [what] + [f"  {label:<4} {text}" for label, text in (("at", at), ("why", why), ("do", do)) if text]
    return "\n".join(parts)


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint that names the closest of `names`, or lists the first few.

    >>> nearest("layer1.conv", ["layer1.conv1", "fc"])
    'did you mean "layer1.conv1"?'
    """
    known = list(names)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f'did you mean "{close[0]}"?'
    more = ", ..." if len(known) > 8 else ""
    return "known names: " + ", ".join(known[:8]) + more if known else "there are none"
