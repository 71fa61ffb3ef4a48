"""One report, several formats."""

from __future__ import annotations

import dataclasses
import json

from fxprune.errors import InputError, nearest
from fxprune.report.data import AnalysisData, RecordData
from fxprune.report.text import analysis_text, record_text

FORMATS = ("text", "markdown", "json")
"""The formats of a report."""


def checked(format: str) -> str:
    """The format, if it is one. Raises `InputError` if not."""
    if format not in FORMATS:
        raise InputError(
            f"there is no report format {format!r}",
            why=nearest(format, FORMATS) if isinstance(format, str) else f"it is a {type(format).__name__}",
            do=f"pass one of {', '.join(FORMATS)}",
        )
    return format


def view(data: AnalysisData | RecordData, format: str) -> str:
    """The report as "text", "markdown" or "json". JSON has every row; the others merge and shorten rows."""
    if checked(format) == "json":
        return json.dumps(dataclasses.asdict(data), indent=1, allow_nan=False)
    markdown = format == "markdown"
    if isinstance(data, AnalysisData):
        return analysis_text(data, markdown=markdown)
    return record_text(data, markdown=markdown)
