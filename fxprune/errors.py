"""The exceptions and warnings of fxprune, and the layout of their text."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class FxpruneError(Exception):
    """The base class of all errors. The text has four parts: what is wrong, where (`at`), `why`, and what to `do`.

    >>> print(PlanError("mask has the wrong length", at='layer "conv1"', why="it has 3 entries for 8 channels"))
    mask has the wrong length
      at   layer "conv1"
      why  it has 3 entries for 8 channels
    """

    def __init__(self, what: str, *, at: str = "", why: str = "", do: str = "") -> None:
        self.what, self.at, self.why, self.do = what, at, why, do
        super().__init__(lay_out(what, at=at, why=why, do=do))

    @property
    def first_why(self) -> str:
        """The first line of `why`, for a sentence."""
        return self.why.partition("\n")[0]


class InputError(FxpruneError, ValueError):
    """The example inputs do not fit the model."""


class UnknownArgumentError(FxpruneError, TypeError):
    """An argument that a function does not have, or does not take by position. Also a `TypeError`, as Python's own."""


class MissingArgumentError(FxpruneError, TypeError):
    """An argument that a function needs, and did not get. Also a `TypeError`, as Python's own."""


class CaptureError(FxpruneError, RuntimeError):
    """The model could not be captured, or run on fake tensors.

    raised: True if the model's own forward raised an exception.
    """

    def __init__(self, what: str, *, raised: bool = False, at: str = "", why: str = "", do: str = "") -> None:
        self.raised = raised
        super().__init__(what, at=at, why=why, do=do)


class PlanError(FxpruneError, ValueError):
    """A request (ratio, mask, importance, name, plan) that cannot be carried out."""


class FileError(FxpruneError, ValueError):
    """A file that is foreign, truncated or contradictory, or something that cannot be written into such a file."""


class MissingFileError(FileError, FileNotFoundError):
    """A file, or the folder for one, that is not there. Also a `FileNotFoundError`, as Python raises it."""


class RuleError(FxpruneError, RuntimeError):
    """An operation without a rule under `strict=True`, or a rule that contradicts its own operation."""


SIZES = "its sizes cannot be recounted"


class RewriteError(FxpruneError, RuntimeError):
    """A size could not be recounted: the smaller graph does not have the shapes that the analysis promises.

    node: the name of the node in the graph.
    scope: the path of the module inside that node; "" if it is unknown.
    vectors: the vectors of the dimensions that have the wrong size, if they are known.
    operation, places: the key of the operation inside that has a wrong shape, and where, if it is known: the number of
        the result, and the dimension.
    line: the line of the user's code, as file:line; "" if it is unknown.
    held: the cause that is given for the channels which stay because of it.
    """

    def __init__(
        self,
        what: str,
        *,
        node: str,
        scope: str = "",
        vectors: tuple[Any, ...] = (),
        operation: Any = None,
        places: tuple[tuple[int, int], ...] = (),
        line: str = "",
        at: str = "",
        why: str = "",
        do: str = "",
        held: str = SIZES,
    ) -> None:
        self.node, self.scope, self.vectors, self.held = node, scope, vectors, held
        self.operation, self.places, self.line = operation, places, line
        super().__init__(what, at=at, why=why, do=do)


class VerificationError(FxpruneError, RuntimeError):
    """The small model is wrong. The text says how: its numbers differ, it raises, or it computes with another scale."""


class BudgetMissedWarning(UserWarning):
    """The cost of a small model is above a budget that was asked for with `keep`."""


class NothingRemovedWarning(UserWarning):
    """A request removed nothing. The text says why."""


class NotProvenWarning(UserWarning):
    """A small model could not be compared with its reference, or nothing that depends on what was removed was."""


class OtherWeightsWarning(UserWarning):
    """The weights of a small model are not those of the original.

    It was repaired or trained, so that `verify` proves it with the weights of the original in it; or `repair` got a
    model that it was not made from. Also: scores were measured with other weights than the model has.
    """


class OptimizerLeftBehindWarning(UserWarning):
    """An optimizer makes a step with the parameters of a model that was pruned, while the small model is trained."""


class AdapterLeftWarning(UserWarning):
    """A low-rank adapter that forward does not use keeps its widths, although its layers got smaller."""


class ChannelsStayWarning(UserWarning):
    """Some channels stay although their removal was requested. The text says which, and why."""


class FixedSizesWarning(UserWarning):
    """The small model takes fewer sizes of its inputs than the original, and raises for others. The text says which.

    Or forward makes a table again for other sizes, which the example inputs do not show.
    """


class ClassLostWarning(UserWarning):
    """The result is a graph and has no longer the model's class. The text says why, or what of forward is not in it.

    So it does for an exported graph, which has one mode: the text names the layers that have two.
    """


def lay_out(what: str, *, at: str = "", why: str = "", do: str = "") -> str:
    """The text of an error: one line for each part that is not empty. Further lines of a part are indented."""
    labelled = [(label, text) for label, text in (("at", at), ("why", why), ("do", do)) if text]
    return "\n".join([what, *(f"  {label:<4} {text}".replace("\n", "\n       ") for label, text in labelled)])


def text_of(error: BaseException, *, lines: int = 20) -> str:
    """The type of an exception and its text. Of a longer text, as many lines as `lines`, and "...".

    >>> text_of(ValueError("first\\n\\nsecond")).splitlines()
    ['ValueError: first', 'second']
    >>> text_of(ValueError("first\\nsecond"), lines=1)
    'ValueError: first'
    """
    text = [line.rstrip() for line in str(error).strip().splitlines() if line.strip()]
    shown = text[:lines] + (["..."] if lines > 1 and len(text) > lines else [])
    return "\n".join([f"{type(error).__name__}: {shown[0]}", *shown[1:]]) if shown else type(error).__name__


def level_of_user() -> int:
    """The `stacklevel` with which the caller of this function warns at the line that called this package."""
    frame: types.FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and frame.f_code.co_filename.startswith((_PACKAGE, contextlib.__file__)):
        frame, level = frame.f_back, level + 1
    return level


_PACKAGE = str(Path(__file__).parent) + os.sep


def counted(count: int, word: str, verb: str = "") -> str:
    """A number and its word, in the plural unless the number is 1; a verb that stands behind them follows it.

    >>> counted(1, "group"), counted(3, "group"), counted(1, "channel", "stay"), counted(2, "channel", "stay")
    ('1 group', '3 groups', '1 channel stays', '2 channels stay')
    """
    one = count == 1
    said = f"{count} {word}{'' if one else 's'}"
    return f"{said} {verb}{'s' if one else ''}" if verb else said


def _alike(name: str, other: str) -> bool:
    """True if two dotted names are alike in the parts that differ: one part is more, or they are numbers or similar."""
    one, two = name.split("."), other.split(".")
    while one and two and one[-1] == two[-1]:
        one, two = one[:-1], two[:-1]
    while one and two and one[0] == two[0]:
        one, two = one[1:], two[1:]
    if not one or not two or (one[0].isdigit() and two[0].isdigit()):
        return True
    return difflib.SequenceMatcher(None, ".".join(one), ".".join(two)).ratio() >= 0.5


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for an error: the one of `names` that is most similar to `name`, or a list of the first few.

    >>> nearest("layer1.conv", ["layer1.conv1", "fc"])
    'did you mean "layer1.conv1"?'
    >>> nearest("lift.weight", ["ctc.weight"])  # they have nothing in common but the name of the parameter
    'known names: ctc.weight'
    """
    known = list(names)
    same = [other for other in known if other.lower() == name.lower()]
    cutoff = 0.6 if len(name) > 3 else 0.57  # "fuz" is near "fuse"
    close = same or [other for other in difflib.get_close_matches(name, known, cutoff=cutoff) if _alike(name, other)]
    if close:
        return f'did you mean "{close[0]}"?'
    more = ", ..." if len(known) > 8 else ""
    return "known names: " + ", ".join(known[:8]) + more if known else "there are none"
