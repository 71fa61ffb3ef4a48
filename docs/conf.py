"""The settings of the documentation site: `sphinx-build -W docs build/site`."""

from __future__ import annotations

import dataclasses
import re
import sys
from typing import Any

import fxprune

project = "fxprune"
author = "the fxprune authors"
version = release = fxprune.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_show_copyright = False
html_title = f"fxprune {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
exclude_patterns = ["images"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]
"""Files outside `docs/`, such as the examples; `tests/test_docs.py` checks that every link leads somewhere."""

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
napoleon_google_docstring = True

FIELD = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): ")
"""The beginning of a line about a field: "params, bytes: ..."."""
SPECIAL = re.compile(r"(`[^`]*`)|([|*]|_(?=[^\w`]|$))")
"""Code, or a character that reStructuredText reads as markup."""


def as_restructured_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Change a docstring in place: lines about fields become a field list, special characters are only characters."""
    if what == "module":
        return
    field = False
    for i, line in enumerate(lines):
        starts = FIELD.match(line) is not None and (field or not i or not lines[i - 1].strip())
        field = bool(line.strip()) and (field or starts)
        if line.lstrip().startswith((">>>", "...")) or _is_output(lines, i):
            continue
        escaped = SPECIAL.sub(lambda found: found[1] or "\\" + found[2], line)
        lines[i] = FIELD.sub(r":\1: ", escaped, count=1) if starts else "    " * field + escaped


def _is_output(lines: list[str], i: int) -> bool:
    """True for a line that an example prints: it follows a prompt without an empty line between."""
    while i and lines[i].strip():
        i -= 1
        if lines[i].lstrip().startswith(">>>"):
            return True
    return False


MADE_BY_USERS = ("AGP", "Constant", "Histogram", "InverseDecay", "Linear", "Quantile", "Scheduled")
"""The dataclasses that users make themselves. All others are results, which functions return."""


def makes_a_result(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """True for the `__init__` of a dataclass that users get and never make: the reference leaves it out."""
    if name != "__init__":
        return None
    owner = getattr(obj, "__qualname__", "").partition(".")[0]
    made = getattr(sys.modules.get(getattr(obj, "__module__", "")), owner, None)
    return True if dataclasses.is_dataclass(made) and owner not in MADE_BY_USERS else None


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", makes_a_result)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
