"""The page for a browser that `--html` writes: where it may stand, and the analysis that the page of a record needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx, nn

import fxprune
from fxprune._record import Record
from fxprune.cli.output_files import check_writable
from fxprune.files import write_text


def check_page(path: str | None, inputs: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raises if the page cannot be written. inputs, others: as for `check_writable`."""
    if path is not None:
        check_writable(path, (".html",), inputs, others)


def write_page(path: str | None, make: Callable[[], str], say: Callable[[str], None]) -> None:
    """Writes a page, if one is asked for."""
    if path is not None:
        write_text(path, make())
        say(f"wrote {path}")


def page_of_record(made: Record, model: nn.Module, inputs: Any, *, strict: bool) -> str:
    """The page of a record. The original is analysed once more, on the path of the record."""
    outputs = None if made.plan.outputs is None else list(made.plan.outputs)
    path = None if isinstance(model, fx.GraphModule) else made.path
    analysis = fxprune.analyze(model, inputs, path=path, norms=made.norms, strict=strict, outputs=outputs)
    return made.report("html", analysis=analysis)
