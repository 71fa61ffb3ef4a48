"""One report, several formats."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from fxprune.errors import InputError, nearest
from fxprune.report.data import AnalysisData, RecordData
from fxprune.report.text import analysis_text, record_text

FORMATS = ("text", "markdown", "json")
"""The formats of a report that a terminal shows."""

PAGE = "html"
"""The format of the page for a browser, which `fxprune.report.html` makes."""


def checked(format: str, formats: Sequence[str] = FORMATS) -> str:
    """The format, if it is one. Raises `InputError` if not."""
    if format not in formats:
        raise InputError(
            f"there is no report format {format!r}",
            why=nearest(format, formats) if isinstance(format, str) else f"it is a {type(format).__name__}",
            do=f"pass one of {', '.join(formats)}",
        )
    return format


def page_wanted(format: str, **options: Any) -> bool:
    """True if a report is to be a page. Raises `InputError` for a format that is none, and options without effect."""
    if checked(format, (*FORMATS, PAGE)) == PAGE:
        return True
    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"{name} is without effect here",
                at=f'report("{format}", {name}=...)',
                why="only the page for a browser shows it",
                do=f'pass format="{PAGE}", or leave it out',
            )
    return False


def view(data: AnalysisData | RecordData, format: str) -> str:
    """The report as "text", "markdown" or "json". JSON has every row; the others merge and shorten rows."""
    if checked(format) == "json":
        return json.dumps(dataclasses.asdict(data), indent=1, allow_nan=False)
    markdown = format == "markdown"
    if isinstance(data, AnalysisData):
        return analysis_text(data, markdown=markdown)
    return record_text(data, markdown=markdown)
