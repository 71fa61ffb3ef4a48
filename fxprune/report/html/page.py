"""One self-contained file: the frame, the style, the scripts, two libraries and the data as JSON."""

from __future__ import annotations

import html
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from fxprune.analysis.findings import Findings
from fxprune.planning.plan import Plan
from fxprune.report.data import analysis_data, record_data
from fxprune.report.html.content import Entry, Planned, curves_of, of_analysis, of_record
from fxprune.report.text import analysis_text, record_text

LIBRARIES = ("cytoscape.min.js", "dagre.min.js")
SCRIPTS = "elements tree wrap layout graph charts lists details search page".split()


def analysis_page(
    findings: Findings, plan: Plan | None = None, curves: Any = None, shallow: Findings | None = None
) -> str:
    """The page of an analysis. See `Analysis.report`.

    shallow: of the model without the branches that the plan drops; None if it drops none.
    """
    data = analysis_data(findings)
    made = of_analysis(findings, data, plan, findings if shallow is None else shallow, curves_of(curves))
    return page(made, analysis_text(data))


def record_page(record: Planned, findings: Findings | None = None, curves: Any = None) -> str:
    """The page of a record. See `Record.report`."""
    data = record_data(record)
    return page(of_record(record, data, findings, curves_of(curves)), record_text(data))


def page(data: Entry, text: str) -> str:
    """The page. text: the report as text, for readers without scripts. Every character of the page is ASCII."""
    parts = {
        "title": html.escape(f"{data['title']}: fxprune report"),
        "style": _asset("style.css"),
        "libraries": "\n".join(_asset(f"libraries/{name}") for name in LIBRARIES),
        "scripts": "\n".join(_asset(f"{name}.js") for name in SCRIPTS),
        "licenses": html.escape(_asset("libraries/LICENSES.txt")),
        "text": html.escape(text),
        "data": in_script(data),
    }
    made = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))
    return made.encode("ascii", "xmlcharrefreplace").decode("ascii")


def in_script(data: Entry) -> str:
    """JSON that can stand in a script element, whatever texts are in it.

    >>> in_script({"</script>": "<!-- é"})
    '{"\\\\u003c/script\\\\u003e": "\\\\u003c!-- \\\\u00e9"}'
    """
    text = json.dumps(data, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _asset(name: str) -> str:
    """A file of `assets/`. What is not ASCII in a script is written as an escape."""
    text = files(__package__).joinpath("assets", *name.split("/")).read_text(encoding="utf-8")
    return re.sub(r"[^\x00-\x7f]", lambda found: f"\\u{ord(found[0]):04x}", text) if name.endswith(".js") else text
