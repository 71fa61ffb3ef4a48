"""Tables that a notebook shows in the place of a text: HTML without scripts, in the colours of the notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

MOST = 12
"""The largest number of rows in a table of a notebook."""

_BORDER = "border-bottom:1px solid rgba(128,128,128,.35)"
_CELL = f"padding:2px 10px 2px 0;{_BORDER};background:none;color:inherit"


def html_table(
    title: str, headers: Sequence[str], rows: Sequence[Sequence[object]], *, right: Iterable[int] = ()
) -> str:
    """A title and a table; after `MOST` rows it says how many more there are.

    right: the positions of the columns that are aligned to the right.

    >>> print(html_table("<b>", ["a", "b"], [["x & y", "1"]], right=[1])[:67])
    <div style="color:inherit"><p style="margin:2px 0"><b>&lt;b&gt;</b>
    """
    aligned = set(right)
    head = "".join(_cell("th", text, column in aligned) for column, text in enumerate(headers))
    body = "".join(
        f"<tr>{''.join(_cell('td', text, column in aligned) for column, text in enumerate(row))}</tr>"
        for row in rows[:MOST]
    )
    first, _, rest = title.partition(": ")
    told = f"<b>{html.escape(first)}</b>{': ' if rest else ''}{html.escape(rest)}"
    more = f'<p style="margin:2px 0;opacity:.7">{len(rows) - MOST} more</p>' if len(rows) > MOST else ""
    style = "border-collapse:collapse;font-size:90%"
    made = f'<table style="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div style="color:inherit"><p style="margin:2px 0">{told}</p>{made if rows else ""}{more}</div>'


def _cell(tag: str, text: object, right: bool) -> str:
    weight = ";opacity:.7;font-weight:500" if tag == "th" else ""
    return f'<{tag} style="{_CELL};text-align:{"right" if right else "left"}{weight}">{html.escape(str(text))}</{tag}>'
