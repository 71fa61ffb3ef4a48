"""Integers that forward does not read, but other methods may: each gets the new width of the layers that it counts.

Nothing shows what such an attribute counts. It is taken for a width if layers of its module have that width, and is
recounted if these layers agree on the new one. Where they do not, the values decide that enter and leave the modules
inside: a block counts the channels that it hands to its parts, not those inside the parts. Attributes whose names
differ in underscores only, and that hold the same integers, are taken for one: einops' layers keep `axes_lengths` for
copies, and `_axes_lengths` for forward. An attribute that equals another number of its module's own layers too, such as
a kernel size, stays. What is done, or cannot be done, is said in the record.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.analysis.settings import ITEMS, Setting, name_of, read_setting, write_setting
from fxprune.capture.code import is_torch, names_read_by
from fxprune.capture.values import leaves
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector
from fxprune.ops import Operand


def recount_unread(small: nn.Module, findings: Findings, removal: Removal) -> tuple[str, ...]:
    """Give the attributes that no run has used the width that their module's layers have now. Changes `small`.

    Returns a sentence about each attribute whose layers have another width now. An attribute stays if the layers do
    not agree on the new width, or if forward reads it: then it counts something else.
    """
    used = {setting for use in findings.uses.all for setting in use.expression.settings}
    settings = [s for s in findings.uses.before if _is_guessed(small, s) and s not in used]
    sizes = {findings.uses.before[setting] for setting in settings}
    widths = nearest_widths(findings, removal, sizes) if settings else {}
    handed = functools.cache(lambda: _handed(findings, removal, sizes))
    numbers = functools.cache(lambda path: _layer_numbers(small, findings.model, path))
    sentences, names = [], ForwardNames(small)
    for setting in settings:
        before = findings.uses.before[setting]
        if _taken_from_layer(small, setting, findings.model, before):
            continue
        key = (setting[0], before)
        found = widths.get(key)
        if found is not None and len(found.counts) > 1:
            found = _one_of(found, handed().get(key))
        if found is None or found.counts == {before} or read_setting(small, setting) != before:
            continue
        if names.has(setting[0], _last_name(setting)):
            if len(found.counts) == 1:
                sentences.append(_stays(setting, before, found, "forward reads it and counts nothing with it"))
        elif same := numbers(setting[0]).get(before):
            sentences.append(_stays(setting, before, found, f"{same} is {before} too, which it may count instead"))
        elif len(found.counts) == 1:
            (now,) = found.counts
            write_setting(small, setting, now)
            sentences.append(
                f"{name_of(setting)} was {before} and is {now} now: forward does not read this attribute, which had "
                f"the width of {_layer(found.layer)} and follows it. If it counts something else, set it back"
            )
        else:
            sentences.append(_stays(setting, before, found, "forward does not read it, other methods may"))
    return (*sentences, *_recount_namesakes(small, findings.uses.before, used))


def _layer(path: str) -> str:
    """The layer at a path for a sentence; the model where it holds the parameter itself."""
    return f"the layer {path}" if path else "the model"


def _last_name(setting: Setting) -> str:
    """The name under which code reads a setting: the last one, such as `width` of `self.sizes.width`."""
    return str(setting[2][-1]).removeprefix(".") if setting[2] else setting[1]


def _is_guessed(small: nn.Module, setting: Setting) -> bool:
    """True for an integer in an attribute of a module that is no layer, or one level below it.

    That is an item of a module that is a dict, or an attribute of a helper object. Configurations are left out: they
    say how the original was made.
    """
    path, name, keys = setting
    if keys and name != ITEMS:
        holder = getattr(small.get_submodule(path), name, None)
        if not str(keys[0]).startswith(".") or hasattr(holder, "to_dict"):
            return False
    return len(keys) <= 1 and not _is_layer(small, path)


def _taken_from_layer(small: nn.Module, setting: Setting, model: nn.Module, before: int) -> bool:
    """Give an attribute the number of the one layer inside that has this name, if both had the same. Changes `small`.

    Returns True if it was so: a wrapper around a layer, as low-rank adapters are, has the attributes of the layer. The
    record says nothing of it, since nothing was guessed. model: the original.
    """
    path, name, _ = setting
    inside = [f"{path}.{child}".strip(".") for child, _ in small.get_submodule(path).named_children()]
    layers = [child for child in inside if _is_layer(small, child) and hasattr(small.get_submodule(child), name)]
    if len(layers) != 1 or getattr(model.get_submodule(layers[0]), name, None) != before:
        return False
    if read_setting(small, setting) != before:
        return False
    write_setting(small, setting, getattr(small.get_submodule(layers[0]), name))
    return True


NO_WIDTHS = (
    *("kernel_size", "stride", "padding", "output_padding", "dilation", "groups", "num_groups", "num_heads"),
    *("num_layers", "p", "output_size", "upscale_factor", "downscale_factor", "scale_factor", "size"),
)
"""The attributes of torch's layers that count no channels of one tensor."""


def _layer_numbers(small: nn.Module, model: nn.Module, path: str) -> dict[int, str]:
    """Each number in an attribute of a module's own layers that is no width and stays -> a text that names it.

    Layers in lists of the module are its own too. model: the original.
    """
    found: dict[int, str] = {}
    for layer in _own_layers(small, path):
        kept, original = small.get_submodule(layer), model.get_submodule(layer)
        for name in NO_WIDTHS:
            value, now = getattr(original, name, None), getattr(kept, name, None)
            values, same = (each if isinstance(each, tuple) else (each,) for each in (value, now))
            if values == same:
                for number in values:
                    if type(number) is int:
                        found.setdefault(number, f"{name} of {layer}")
    return found


def _own_layers(model: nn.Module, path: str) -> Iterator[str]:
    """The paths of torch's layers in a module, and in the lists, sequences and dicts of modules there."""
    for name, child in model.get_submodule(path).named_children():
        inside = f"{path}.{name}".strip(".")
        if _is_layer(model, inside):
            yield inside
        elif isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            yield from _own_layers(model, inside)


def _recount_namesakes(small: nn.Module, before: Mapping[Setting, int], used: set[Setting]) -> Iterator[str]:
    """Give the attributes that no run has used the numbers of others by name. Changes `small`; yields sentences."""
    attributes: dict[tuple[str, str], list[Setting]] = {}
    for setting in before:
        attributes.setdefault((setting[0], setting[1].strip("_")), []).append(setting)
    for settings in attributes.values():
        names = dict.fromkeys(name for _, name, _ in settings)
        parts = {name: [s for s in settings if s[1] == name] for name in names}
        read = [part for part in parts.values() if not used.isdisjoint(part)]
        unread = [part for part in parts.values() if used.isdisjoint(part)]
        for own in unread:
            same = next((part for part in read if [before[s] for s in part] == [before[s] for s in own]), ())
            for mine, other in zip(own, same, strict=bool(same)):
                now = read_setting(small, other)
                if now != before[mine] == read_setting(small, mine):
                    write_setting(small, mine, now)
                    yield (
                        f"{name_of(mine)} was {before[mine]} and is {now} now: forward does not read this attribute, "
                        f"which had the number of {name_of(other)} and follows it. If it counts something else, set it "
                        "back"
                    )


@dataclass(frozen=True)
class _Width:
    """The layers of a module that had one width: how far below it they are, their first one, and their new widths."""

    depth: int
    layer: str
    counts: set[int]


_Widths = Mapping[tuple[str, int], _Width]
"""Path of a module, width -> the layers nearest to it that had this width."""


def nearest_widths(findings: Findings, removal: Removal, sizes: Collection[int]) -> _Widths:
    """The layers that had a width, one of these sizes, in one of the dimensions of their tensors."""
    axes = (axis for axis in findings.axes if axis.vector.size in sizes)
    names = ((name, axis.vector) for axis in axes for name in findings.names_of(axis.parameter))
    return _nearest(((name.rpartition(".")[0], vector) for name, vector in names), removal)


def _handed(findings: Findings, removal: Removal, sizes: Collection[int]) -> _Widths:
    """The modules inside that had a width, one of these sizes, in their inputs or results."""
    visits = findings.observed.visits.items()
    operands = ((name, o) for name, visit in visits for o in leaves((visit.inputs, visit.output), Operand))
    vectors = (
        (name, v)
        for name, o in operands
        if isinstance(o, Operand)
        for v in o.vectors
        if v.size in sizes and not v.fixed
    )
    return _nearest(vectors, removal, outside=True)


def _nearest(found: Iterable[tuple[str, Vector]], removal: Removal, *, outside: bool = False) -> _Widths:
    """The nearest of some layers, for each module around them; not for themselves, if `outside`."""
    made: dict[tuple[str, int], _Width] = {}
    for layer, vector in found:
        now = removal.count(vector)
        for depth, path in enumerate(from_inside(layer)):
            known = made.get((path, vector.size))
            if outside and not depth:
                continue
            if known is None or depth < known.depth:
                made[path, vector.size] = _Width(depth, layer, {now})
            elif depth == known.depth:
                known.counts.add(now)
    return made


def _one_of(layers: _Width, handed: _Width | None) -> _Width:
    """The width of what the modules inside are handed, if it is one number, which some of the layers have too."""
    if handed is None or len(handed.counts) > 1 or not handed.counts <= layers.counts:
        return layers
    return handed


def from_inside(path: str) -> Iterator[str]:
    """A path and the paths of the modules around it, up to the model."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _stays(setting: Setting, before: int, found: _Width, why: str) -> str:
    counts = " or ".join(map(str, sorted(found.counts)))
    layer = f" ({found.layer})" if found.layer else ""
    return f"{name_of(setting)} stays {before}, although layers of that width have {counts} now{layer}: {why}"


def _is_layer(model: nn.Module, path: str) -> bool:
    """True for a module that is one of torch's layers, or of a class derived from one: they are recounted elsewhere."""
    bases = type(model.get_submodule(path)).__mro__
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Module, object)
    return any(is_torch(base.__module__) and base not in containers for base in bases)


class ForwardNames:
    """The names that forward of the modules of a model uses, found once for each module."""

    def __init__(self, model: nn.Module) -> None:
        self._of = functools.cache(lambda path: names_read_by(model.get_submodule(path)))

    def has(self, path: str, attribute: str) -> bool:
        """True if forward of a module, or of a module around it, uses the name of the attribute."""
        return any(attribute in self._of(around) for around in from_inside(path))
