"""Buffers that the example inputs do not reach, and whose sizes may be those of layers that are smaller now.

Such buffers keep their shape, which plans and files know. The record names them.
"""

from __future__ import annotations

import torch
from torch import nn

from fxprune.analysis.after_removal import kept_slots
from fxprune.analysis.findings import Findings
from fxprune.analysis.settings import read_setting
from fxprune.channels.groups import Removal
from fxprune.rewrite.attribute_masks import Shrunk, fitting, shrunk_below
from fxprune.rewrite.unread_attributes import ForwardNames, from_inside, nearest_widths

_MOST_NAMES = 4


def buffers_that_stay(small: nn.Module, findings: Findings, removal: Removal) -> tuple[str, ...]:
    """Sentences about the buffers of a small model that no run has read, and that have sizes which changed.

    One sentence for all buffers with the same sizes and the same new widths.
    """
    kept = kept_slots(findings, removal)
    names, read = ForwardNames(findings.model), {axis.parameter for axis in findings.axes}
    found = [each for each in _buffers(small, findings) if findings.first_name(each[1]) not in read]
    widths = _Changed(small, findings, removal, {size for _, _, held in found for size in held.shape})
    sentences, alike = [], dict[str, list[str]]()
    for path, full, held in found:
        below = shrunk_below(findings, kept, path, findings.model.get_submodule(path))
        why = _why_of_parameter(below, held)
        name = full.rpartition(".")[2]
        if why and not names.has(path, name):
            where = f'"{path}"' if path else "the model"
            stays = f'buffer "{name}" of {where} stays {list(held.shape)}'
            sentences.append(f"{stays}, although {why}: forward does not read it")
        elif any(shape == tuple(held.shape) and flags for _, shape, flags in below.values()):
            continue  # `unread_tensors` names it with that parameter
        elif told := widths.of(path, held.shape):
            alike.setdefault(f"{list(held.shape)}: the example inputs do not reach {{}}, and {told}", []).append(full)
    for text, same in alike.items():
        listed = ", ".join(f'"{each}"' for each in same[:_MOST_NAMES]) + ", ..." * (len(same) > _MOST_NAMES)
        what, them, count = f"buffer {listed} stays", "it", "it counts"
        if same[1:]:
            what, them, count = f"buffers {listed} stay", "them", "they count"
        sentences.append(
            f"{what} {text.format(them)}. If {count} them, give inputs that reach {them} with `also=` or `methods=`"
        )
    return tuple(sentences)


def _buffers(small: nn.Module, findings: Findings) -> list[tuple[str, str, torch.Tensor]]:
    """The buffers that have kept their shape: path of the module, name in the model, tensor."""
    originals, made = dict(findings.model.named_modules()), []
    for path, module in small.named_modules():
        original = originals.get(path)
        if original is None or type(original).__module__.startswith("fxprune."):
            continue
        for name, buffer in original._buffers.items():
            held = module._buffers.get(name)
            if buffer is not None and held is not None and held.ndim and held.shape == buffer.shape:
                made.append((path, f"{path}.{name}".strip("."), held))
    return made


def _why_of_parameter(below: Shrunk, held: torch.Tensor) -> str:
    """The parameter of the same module that the buffer may be a mask of, and that is smaller now; "" if none is."""
    found = fitting(below, held)
    if found is None or isinstance(found, str):
        return found or ""
    return f'"{found[0]}" of this shape has lost slots'


class _Changed:
    """The widths and settings of modules that are other numbers now.

    sizes: the numbers that are asked for.
    """

    def __init__(self, small: nn.Module, findings: Findings, removal: Removal, sizes: set[int]) -> None:
        self._model = findings.model
        self._counts: dict[tuple[str, int], set[int]] = {}
        for key, width in nearest_widths(findings, removal, sizes).items() if sizes else ():
            self._counts[key] = set(width.counts)
        for setting, before in findings.uses.before.items():
            if before in sizes and (now := read_setting(small, setting)) != before:
                self._counts.setdefault((setting[0], before), set()).add(now)

    def of(self, path: str, shape: torch.Size) -> str:
        """A sentence about the sizes of a buffer that are other widths now in its module; "" if none is.

        path: that of its module. One without parameters, such as a cache, has the widths of the module around it.
        """
        around = next(
            (p for p in from_inside(path) if any(True for _ in self._model.get_submodule(p).parameters())), ""
        )
        changed = {size: self._counts.get((around, size), {size}) - {size} for size in dict.fromkeys(shape) if size > 1}
        told = [f"{size} is {' or '.join(map(str, sorted(now)))} now" for size, now in changed.items() if now]
        where = f"the widths of {around}" if around else "the widths of its layers"
        return f"of {where} {', '.join(told)}" if told else ""
