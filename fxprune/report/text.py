"""Tables of plain text and of Markdown. Nothing is computed here but what a reader sees: shares, sums, short names."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence

from fxprune.costs.count import uncounted_text
from fxprune.costs.latency import milliseconds
from fxprune.notebooks import html_table
from fxprune.planning.figures import COMPUTED, TIMED
from fxprune.report.data import AnalysisData, Change, GroupData, LayerChange, LockedData, RecordData, TensorChange
from fxprune.report.locks import merged_locks
from fxprune.report.repairs import repair_text
from fxprune.report.repeats import Row, blocks_of, merge_repeats

ROLES = ("producer", "norm", "consumer", "raw")
"""The roles of members, in the order in which a row lists them."""


def analysis_text(data: AnalysisData, *, markdown: bool = False) -> str:
    """Groups, then what is locked, then the notes; blocks that are the same share a row."""
    channels = sum(group.channels for group in data.groups)
    name = f"**{data.model}**" if markdown else data.model
    macs = figure(data.macs) if data.macs is not None else f"unknown (at least {figure(data.macs_at_least)})"
    rows = merge_repeats(_groups(data.groups), _blocks(data))
    folded = ", equal ones in one row" if len(rows) < len(data.groups) else ""
    parts = [
        f"{name}: {figure(data.params)} parameters, {macs} MACs, "
        f"{_plural(channels, 'channel')} in {_plural(len(data.groups), 'group')}{folded}"
    ]
    if data.uncounted:
        parts.append(f"MACs are unknown: nobody counts {uncounted_text(data.uncounted)}")
    if data.groups:
        headers = ("group", "kind", "channels", "members", "params per channel", "MACs per channel", "exact")
        parts.append(table(headers, rows, markdown, right=(2, 4, 5)))
    else:
        parts.append("no removable channels")
    if data.locked:
        headers = ("module", "operation", "source", "why", "holds", "params", "MACs")
        rows = _locked_rows(data)
        parts.append(f"locked:{_gap(markdown)}" + table(headers, rows, markdown, right=(5, 6)))
    return "\n\n".join(parts) + _notes(data.notes, _blocks(data), markdown)


def analysis_table(data: AnalysisData) -> str:
    """The groups as a table for notebooks, and what is locked as another."""
    channels = _plural(sum(group.channels for group in data.groups), "channel")
    macs = figure(data.macs) if data.macs is not None else f"unknown (at least {figure(data.macs_at_least)})"
    counts = f"{figure(data.params)} parameters, {macs} MACs, {channels} in {_plural(len(data.groups), 'group')}"
    headers = ("group", "kind", "channels", "members", "params per channel", "MACs per channel", "exact")
    rows = merge_repeats(_groups(data.groups), _blocks(data))
    folded = ", equal ones in one row" if len(rows) < len(data.groups) else ""
    return html_table(f"{data.model}: {counts}{folded}", headers, rows, right=(2, 4, 5)) + _locked_table(data)


def _locked_table(data: AnalysisData) -> str:
    """The locks as a table for notebooks, "" if nothing is locked."""
    rows = _locked_rows(data)
    headers = ("module", "operation", "source", "why", "holds", "params", "MACs")
    return html_table("Locked: channels that stay, and why", headers, rows, right=(5, 6)) if rows else ""


def record_table(data: RecordData) -> str:
    """The layers that changed as a table for notebooks."""
    when = "" if data.repair is None else " before the repair"
    error = "not compared" if data.error is None else f"relative error{when} {data.error:.1e}"
    counts = f"{change(data.params)} parameters, {change(data.macs)} MACs, {error}"
    rows = merge_repeats([_layer(layer) for layer in data.layers if _changed(layer)], _blocks(data))
    if data.repair is not None:
        counts += f", error of the outputs after it {data.repair.after:.2e}"
    return html_table(f"Small model: {counts}", ("layer", "shape", "params", "MACs"), rows, right=(2, 3))


def record_text(data: RecordData, *, markdown: bool = False) -> str:
    """A row for every layer that changed and one for the totals, then the path, the proof and the notes."""
    rows = merge_repeats([_layer(layer) for layer in data.layers if _changed(layer)], _blocks(data))
    rows.append(("total", "", change(data.params), change(data.macs)))
    lines = [table(("layer", "shape", "params", "MACs"), rows, markdown), ""]
    lines.append(f"path {data.path}, bytes {change(data.bytes)}")
    for key, figures in data.measured.items():
        label = COMPUTED[key].label if key in COMPUTED else key.replace("_", " ")
        lines.append(f"{label} {times(figures) if key in TIMED else change(figures)}")
    lines += [f"not {path}: {why}" for path, why in data.why_not.items()]
    lines.append("exact" if data.exact else "not exact: some statistics are taken over fewer channels")
    if data.norms == "preserve":
        lines.append(f"statistics count the original width{'' if data.exact else ', but for those in the notes'}")
    error = "unknown, it was not compared" if data.error is None else f"{data.error:.1e}"
    lines.append(f"relative error against the reference{'' if data.repair is None else ' before the repair'}: {error}")
    if data.one_sided:
        first, more = data.one_sided[0], ", ..." if data.one_sided[1:] else ""
        count = _plural(len(data.one_sided), "operation")
        lines.append(f"not compared, as they ran another number of times: {count} ({first}{more})")
    told = ("  \n" if markdown else "\n").join(lines).replace("  \n  \n", "\n\n") + _notes(
        data.reasons, _blocks(data), markdown
    )
    return (
        told
        if data.repair is None
        else f"{told}\n\nrepair:{_gap(markdown)}{repair_text(data.repair, _shapes_of_tensors(data), markdown=markdown)}"
    )


def _shapes_of_tensors(data: RecordData) -> dict[str, tuple[object, object]]:
    """The name of each tensor -> its shapes before and after."""
    return {f"{layer.name}.{t.name}": (t.before, t.after) for layer in data.layers for t in layer.tensors}


def figure(number: float | None) -> str:
    """A count, exact below 100 000, else with three digits and a prefix; "unknown" where it is.

    >>> [figure(n) for n in (0, 99_999, 123_456, 999_999, 1_814_073_344, None)]
    ['0', '99999', '123 k', '1 M', '1.81 G', 'unknown']
    """
    if number is None:
        return "unknown"
    if number < 100_000:
        return str(number)
    rounded = float(f"{number:.3g}")
    size, prefix = next(p for p in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if rounded >= p[0])
    return f"{rounded / size:.3g} {prefix}"


def change(figures: Change) -> str:
    """Both figures and the share that is left.

    >>> change(Change(200, 150)), change(Change(None, 7)), change(Change(0, 0))
    ('200 -> 150 (75 %)', 'unknown -> 7', '0')
    """
    before, after = figures.before, figures.after
    if before == after:
        return figure(before)
    share = f" ({share_of(after, before)})" if before and after is not None else ""
    return f"{figure(before)} -> {figure(after)}{share}"


def share_of(after: float, before: float) -> str:
    """A share in percent: 100 % is all of it and 0 % nothing, and what is near them has a digit more.

    >>> [share_of(after, 100_000) for after in (33_333, 99_700, 99_999, 100_000, 100_200, 300, 1, 0)]
    ['33 %', '99.7 %', '> 99.9 %', '100 %', '100.2 %', '0.3 %', '< 0.1 %', '0 %']
    """
    share = after / before
    text = f"{share:.0%}"
    if text in ("0%", "100%") and share not in (0, 1):
        text = f"{share:.1%}"
    text = {"0.0%": "< 0.1%", "100.0%": "> 99.9%" if share < 1 else "< 100.1%"}.get(text, text)
    return text.replace("%", " %")


def times(seconds: Change) -> str:
    """Two times, and the share that is left.

    >>> times(Change(0.02, 0.0095))
    '20 ms -> 9.5 ms (48 %)'
    """
    before, after = seconds.before or 0.0, seconds.after or 0.0
    share = f" ({share_of(after, before)})" if before else ""
    return f"{milliseconds(before)} -> {milliseconds(after)}{share}"


def _groups(groups: Sequence[GroupData]) -> list[Row]:
    """A row for each group. Those of one name and kind are told apart by a layer that the others do not have."""
    layers = [dict.fromkeys(m.parameter.rpartition(".")[0] for m in group.members) for group in groups]
    rows = []
    for number, group in enumerate(groups):
        same = [n for n, other in enumerate(groups) if (other.name, other.kind) == (group.name, group.kind)]
        others = {layer for n in same if n != number for layer in layers[n]}
        own = next((layer for layer in layers[number] if layer not in others), "")
        name = f"{group.name} with {own.rpartition('.')[2]}" if others and own else group.name
        rows.append((name, *_group(group)))
    return rows


def _group(group: GroupData) -> Row:
    owners = {(m.role, m.parameter if m.role == "raw" else m.parameter.rpartition(".")[0]) for m in group.members}
    counts = Counter(role for role, _ in owners)
    statistics = dict.fromkeys(reason.split(" in ")[0] for reason in group.reasons)
    return (
        group.kind,
        group.channels,
        ", ".join(_plural(counts[role], role) for role in ROLES if counts[role]),
        figure(group.params_per_channel),
        figure(group.macs_per_channel),
        "yes" if group.exact else "no: " + "; ".join(sorted(statistics)),
    )


def _locked_rows(data: AnalysisData) -> list[Row]:
    merged = merged_locks(data.locked, lambda locked: _locked(locked)[:5])  # all but the figures
    return merge_repeats([_locked(locked, count) for locked, count in merged], _blocks(data))


def _locked(locked: LockedData, count: int = 1) -> Row:
    names = [f"{held.parameter}[{held.dim}]" for held in locked.holds]
    more = f", ... {len(names) - 2} more" if len(names) > 2 else ""
    return (
        locked.module or "(model)",
        locked.operation if count == 1 else f"{locked.operation} ({count} times)",
        f"%{locked.node}" if locked.file is None else f"{'/'.join(locked.file.split('/')[-2:])}:{locked.line}",
        locked.why,
        ", ".join(names[:2]) + more,
        figure(locked.params),
        figure(locked.macs),
    )


def _changed(layer: LayerChange) -> bool:
    return any(t.before != t.after for t in layer.tensors) or layer.macs.before != layer.macs.after


def _layer(layer: LayerChange) -> Row:
    return layer.name or "(model)", _shapes(layer.tensors), change(layer.params), change(layer.macs)


def _shapes(tensors: Sequence[TensorChange]) -> str:
    """The shapes of the largest tensor that changed, with its name if it is not the weight."""
    changed = [t for t in tensors if t.before != t.after]
    if not changed:
        return ""
    main = max(changed, key=lambda t: math.prod(t.before))
    name = "" if main.name == "weight" else f"{main.name} "
    return f"{name}{_shape(main.before)} -> {'left out' if main.after is None else _shape(main.after)}"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "1"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count != 1 and word != 'raw' else ''}"


def _blocks(data: AnalysisData | RecordData) -> frozenset[str]:
    """The modules around the layers."""
    return blocks_of(layer.name for layer in data.layers)


def _gap(markdown: bool) -> str:
    return "\n\n" if markdown else "\n"


_STATISTIC = re.compile(r"a statistic changed: (\S+) in (\S+): (.*)")
_OF_BLOCK = re.compile(r"((?:\w+\.)*\d+\.\w[\w.]*) (.*)")


def merged_notes(notes: Iterable[str], blocks: Container[str]) -> list[str]:
    """The notes, in which equal ones of repeated blocks are merged; those about a statistic come last."""
    matches = [(note, _STATISTIC.fullmatch(note)) for note in notes]
    rows = merge_repeats([(found[2], found[1], found[3]) for _, found in matches if found], blocks)
    changed = [f"a statistic changed: {operation} in {module}: {why}" for module, operation, why in rows]
    others = [_OF_BLOCK.fullmatch(note) or note for note, found in matches if not found]
    rows = merge_repeats([("", note) if isinstance(note, str) else (note[1], note[2]) for note in others], blocks)
    return [*(f"{name} {text}" if name else text for name, text in rows), *changed]


def _notes(notes: Iterable[str], blocks: Container[str], markdown: bool) -> str:
    notes = merged_notes(notes, blocks)
    if markdown:
        return "".join(f"\n{'' if n else chr(10)}- note: {note}" for n, note in enumerate(notes))
    return "".join(f"\nnote: {note}" for note in notes)


def table(headers: Sequence[str], rows: Sequence[Row], markdown: bool, *, right: Iterable[int] = ()) -> str:
    """A table as plain text or as Markdown. right: the positions of the columns that are aligned to the right."""
    from tabulate import tabulate  # here, because only reports need it

    aligned = ["right" if column in set(right) else "left" for column in range(len(headers))]
    cells = [[str(cell).replace("|", "\\|") if markdown else str(cell) for cell in row] for row in rows]
    style = "github" if markdown else "simple"
    return tabulate(cells, headers=headers, tablefmt=style, colalign=aligned, disable_numparse=True)
