"""Names of layers that are cut to fit above a box."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Iterable, Mapping

LONGEST = 18
"""The most characters of a name above a box."""

SMALLER = 21
"""The most characters of a name that is written whole, in smaller letters."""


def told_apart(labels: Iterable[str]) -> dict[str, str]:
    """The shortened form of each name. Where several would have one form, a part that tells them apart stays.

    >>> told_apart(["encoder.layers.0.attn.conv", "decoder.layers.0.attn.conv", "decoder.layers.1.attn.conv", "head"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'encoder.layers.0.attn.conv': 'enc…0.attn.conv', 'decoder.layers.0.attn.conv': 'dec…0.attn.conv',
    'decoder.layers.1.attn.conv': 'dec…1.attn.conv', 'head': 'head'}
    """
    found = {label: label if len(label) <= SMALLER else shortened(label) for label in labels}
    families: dict[tuple[int, str], list[str]] = {}
    for label in found:
        families.setdefault(_family(label), []).append(label)
    for family in families.values():
        if len({found[name] for name in family}) < len(family):
            found.update(_apart(family))
    return found


def _family(label: str) -> tuple[int, str]:
    """The number of parts of a name and its end, in which the numbers of blocks do not count."""
    parts = label.split(".")
    return len(parts), re.sub(r"\d+", "0", ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:]))


def _apart(names: list[str]) -> dict[str, str]:
    """The forms of names that would have one: each with the first part in which they differ, or with all of these."""
    parts = [name.split(".")[:-1] for name in names]
    columns = [{one[place] for one in parts if place < len(one)} for place in range(max(map(len, parts)))]
    letters = {place: _letters(words) for place, words in enumerate(columns) if len(words) > 1 and not _numbers(words)}
    for place, count in letters.items():
        made = {name: _with_parts(name, {place: count}) for name in names}
        if len(set(made.values())) == len(names):
            return made
    numbers = dict.fromkeys(place for place, words in enumerate(columns) if len(words) > 1 and _numbers(words))
    made = {name: _with_parts(name, letters) for name in names}
    return made if len(set(made.values())) == len(names) else {n: _with_parts(n, letters, numbers) for n in names}


def _numbers(words: Iterable[str]) -> bool:
    return all(word.isdigit() for word in words)


def _letters(words: Iterable[str]) -> int:
    """The number of first letters that tell words apart, at least three.

    >>> _letters(["encoder", "decoder"]), _letters(["up_blocks", "up_samplers"])
    (3, 4)
    """
    wanted = sorted(words)
    longest = max(map(len, wanted))
    return next((n for n in range(3, longest) if len({word[:n] for word in wanted}) == len(wanted)), longest)


def _with_parts(name: str, letters: Mapping[int, int], whole: Collection[int] = ()) -> str:
    """A shortened name with the first letters of some parts, and other parts whole."""
    *parts, last = name.split(".")
    begun = [_begun(part, letters.get(place, len(part))) for place, part in enumerate(parts)]
    return shortened(".".join([*begun, last]), {*letters, *whole})


def _begun(part: str, letters: int) -> str:
    return part if len(part) <= letters + 1 else f"{part[:letters]}…"


def shortened(label: str, kept: Container[int] = ()) -> str:
    """A dotted name without some of its middle. The numbers of blocks and the end stay as long as they can.

    kept: the places of parts that stay.

    >>> shortened("model.layers.0.self_attn.q_proj"), shortened("model.6.m.0.cv1.conv"), shortened("layers.7.mlp.fc.0")
    ('…0…q_proj', '…6.m.0.cv1.conv', 'layers.7.mlp.fc.0')
    >>> shortened("encoder.layers.encoder_layer_11.self_attention.out_proj"), shortened("inception3a.branch2.0.conv")
    ('…11…out_proj', '…3a.branch2.0.conv')
    """
    *parts, last = label.split(".")
    if last.isdigit() and parts:
        last = f"{parts.pop()}.{last}"  # a number alone says nothing
    for short in (_without_names, _without_letters):
        while len(_joined([*parts, last])) > LONGEST and short(parts, kept):
            pass
    last = cut(last, max(12, LONGEST - len(_joined([*parts, ""]))))
    while len(_joined([*parts, last])) > LONGEST and _without_numbers(parts, kept):
        pass
    return _joined([*parts, last])


def cut(text: str, most: int = LONGEST) -> str:
    """A text without its middle if it has more characters than `most`.

    >>> cut("NonDynamicallyQuantizableLinear"), cut("Linear")
    ('NonDynam…bleLinear', 'Linear')
    """
    return text if len(text) <= most else f"{text[: most - 10]}…{text[-9:]}"


def _joined(parts: list[str]) -> str:
    """The parts with dots between them, and one "…" where parts are empty."""
    text = ".".join(part or "…" for part in parts)
    while "…." in text or ".…" in text:
        text = text.replace("….", "…").replace(".…", "…")
    while "……" in text:
        text = text.replace("……", "…")
    return text


def _without_names(parts: list[str], kept: Container[int]) -> bool:
    """Empty the first part that is no number of a block; False if there is none."""
    return _first(parts, kept, lambda part: not _number(part), lambda part: "")


def _without_letters(parts: list[str], kept: Container[int]) -> bool:
    return _first(parts, kept, lambda part: part.strip("…") != _number(part), lambda part: "…" + _number(part))


def _number(part: str) -> str:
    """The number of a block at the end of a part of a name, with a letter behind it if there is one.

    >>> _number("layer_11"), _number("inception3a"), _number("7"), _number("mlp"), _number("conv2d")
    ('11', '3a', '7', '', '')
    """
    found = re.search(r"\d+[a-z]?$", part)
    return "" if found is None or re.search(r"(conv|norm|pool)[123]d$", part) else found[0]


def _without_numbers(parts: list[str], kept: Container[int]) -> bool:
    return _first(parts, kept, lambda part: True, lambda part: "")


def _first(parts: list[str], kept: Container[int], wanted: Callable[[str], bool], new: Callable[[str], str]) -> bool:
    for place, part in enumerate(parts):
        if part and place not in kept and wanted(part):
            parts[place] = new(part)
            return True
    return False
