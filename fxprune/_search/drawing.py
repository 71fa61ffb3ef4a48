"""Pictures of scores against ratios and costs, with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxprune.errors import FxpruneError, InputError
from fxprune.files import PathLike, save_picture

Line = tuple[str, Sequence[float], Sequence[float], Sequence[float]]
"""A name, the positions, the values without repair, and those with it: one number if nothing was repaired."""

LISTED = 10
"""The largest number of lines whose legend stands inside the axes."""

TALLEST = 30
"""The most rows of a legend beside the axes."""

_MARKERS = "osD^vPX*"
"""The markers of lines: each ten lines have one, since their colours are those of the ten before."""


def draw(lines: Sequence[Line], across: str, up: str, path: PathLike | None, ax: Any) -> Any:
    """Draw lines, dashed without and full with repair. Returns the axes.

    The picture is written if there is a path; else a notebook shows it.

    Raises `FxpruneError` if matplotlib is missing, `InputError` if `ax` is something else than axes.
    """
    if ax is not None and not hasattr(ax, "plot"):
        raise InputError(
            f"ax must be axes of matplotlib, not {type(ax).__name__}", do="pass `plt.gca()`, or leave it out"
        )
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise FxpruneError("pictures need matplotlib", why=str(error), do="pip install 'fxprune[plot]'") from error
    paired = any(name and len(repaired) == len(places) for name, places, _, repaired in lines)
    told: dict[str, Any] = {"as cut": "--", "repaired": "-"} if paired else {}
    columns = -(-(len(lines) + len(told)) // TALLEST) if len(lines) > LISTED else 0
    if ax is None:
        wide = columns * (0.6 + 0.075 * max((len(name) for name, *_ in lines), default=0))
        tall = max(4.2, 0.18 * min(len(lines) + len(told), TALLEST) + 0.5)
        size: dict[str, Any] = {"figsize": (7 + wide, tall), "layout": "constrained"}
        ax = (_shown_figure(**size) if path is None else Figure(**size)).add_subplot()
    for number, (name, places, plain, repaired) in enumerate(lines):
        colour, marker = f"C{number % 10}", _MARKERS[number // 10 % len(_MARKERS)]
        both = len(repaired) == len(places)
        label = f"{name} repaired".strip() if both and not name else name
        if both:
            ax.plot(places, repaired, f"-{marker}", color=colour, label=label or None, markersize=4)
        style: dict[str, Any] = {"label": _plain_label(name, both=both), "alpha": 0.6 if both else 1.0}
        ax.plot(places, plain, f"{'--' if both else '-'}{marker}", color=colour, markersize=3, **style)
    ax.set_xlabel(across)
    ax.set_ylabel(up)
    ax.grid(alpha=0.3)
    handles, labels = ax.get_legend_handles_labels()
    handles += [Line2D([], [], linestyle=dashes, color="#606060") for dashes in told.values()]
    labels += told
    if labels:
        beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "ncols": columns}
        ax.legend(handles, labels, fontsize=8, **(beside if columns else {}))
    if path is not None:
        save_picture(ax.figure, path)
    return ax


def _shown_figure(**size: Any) -> Any:
    """A figure that a notebook shows, and `plt.show()`."""
    from matplotlib import pyplot  # here, because a picture that is only written needs no window

    return pyplot.figure(**size)


def _plain_label(name: str, *, both: bool) -> str | None:
    """The name of a line without repair: none where the full line beside it has it."""
    if name:
        return None if both else name
    return "as cut" if both else None
