"""Which setting of a module counts which dimension: integers that remember where they come from.

Inside a module that no graph shows, `view(batch, -1, self.num_heads, self.head_dim)` says what `num_heads` counts, and
nothing else does. During the walk the integers in attributes are replaced by marked ones: a subclass of `int` that
keeps its mark through multiplication and division by plain numbers. A function mode finds them in the arguments of what
takes sizes, and notes the vector that they count there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from fxprune.analysis.observer import Observer
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector
from fxprune.ops import Operand

Setting = tuple[str, str, "int | None"]
"""The path of a module, an attribute, and the position in it where that is a tuple or list of integers."""


class Marked(int):
    """An integer that is `times` the setting it was read from."""

    setting: Setting
    times: Fraction

    @classmethod
    def make(cls, value: int, setting: Setting, times: Fraction = Fraction(1)) -> Marked:
        """A marked `value`."""
        made = cls(value)
        made.setting, made.times = setting, times
        return made

    def __mul__(self, other: Any) -> Any:
        product = int(self) * other
        return Marked.make(product, self.setting, self.times * other) if type(other) is int and other else product

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        quotient = int(self) // other
        if type(other) is int and quotient * other == self and quotient:
            return Marked.make(quotient, self.setting, self.times / other)
        return quotient

    def __copy__(self) -> int:
        return int(self)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)


@dataclass(frozen=True)
class Sizing:
    """One place where a marked integer stood: `times` the setting is a count there.

    vector: what is counted, all of it, or what stands before slot `until`; or how often it repeats the vector `under`.
    """

    times: Fraction
    vector: Vector
    place: str
    until: int | None = None
    under: Vector | None = None

    @property
    def plain(self) -> bool:
        """Whether it is simply the size of a dimension."""
        return self.until is None and self.under is None

    def setting(self, removal: Removal) -> Fraction:
        """What the setting must be for this place."""
        if self.until is not None:
            kept = removal.kept(self.vector)
            count = Fraction(self.until if kept is None else int(np.count_nonzero(kept[: self.until])))
        else:
            count = Fraction(removal.count(self.vector), 1 if self.under is None else removal.count(self.under))
        return count / self.times


class Settings(TorchFunctionMode):
    """Notes what the marked integers of a walk count; `found` holds every place of every setting."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer
        self.found: dict[Setting, list[Sizing]] = {}

    def mark(self, module: nn.Module) -> None:
        """Replace the integers in the attributes of a twin; torch's own modules are counted anew by type."""
        for path, part in module.named_modules():
            if type(part).__module__.startswith("torch.") or isinstance(part, (fx.GraphModule, nn.MultiheadAttention)):
                continue
            for name, value in part.__dict__.items():
                if type(value) is int and value > 1:
                    part.__dict__[name] = Marked.make(value, (path, name, None))
                elif type(value) in (tuple, list) and value and all(type(v) is int for v in value):
                    items = [Marked.make(v, (path, name, i)) if v > 1 else v for i, v in enumerate(value)]
                    part.__dict__[name] = type(value)(items)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        reader = _READERS.get(getattr(func, "__name__", ""))
        if reader is not None:
            for marked, vector, *more in reader(self, args, kwargs, made):
                if type(marked) is Marked:
                    at = self.observer.where()
                    place = f"{func.__name__} in {at.module or 'the model'} ({at.source})"
                    sizing = Sizing(marked.times, vector, place, *more)
                    self.found.setdefault(marked.setting, []).append(sizing)
        return made

    def operand(self, tensor: torch.Tensor) -> Operand:
        """What is known of a tensor."""
        return self.observer.peek(tensor)


Readings = Sequence["tuple[Any, ...]"]
"""The value of an argument, and the fields of its `Sizing`: vector, until, under."""

Reader = Callable[[Settings, Any, Any, Any], Readings]
_READERS: dict[str, Reader] = {}


def _reads(*functions: str) -> Callable[[Reader], Reader]:
    def register(reader: Reader) -> Reader:
        _READERS.update(dict.fromkeys(functions, reader))
        return reader

    return register


def _source(args: Any, kwargs: Any) -> Any:
    """The tensor that a function or method is applied to."""
    return args[0] if args else kwargs.get("input", kwargs.get("self"))


def _sizes(args: Any, kwargs: Any, first: int, *names: str) -> Sequence[Any]:
    """Sizes written as one sequence or as several integers, from position `first` on."""
    given = args[first:] or tuple(kwargs[name] for name in names if name in kwargs)
    return given[0] if given and isinstance(given[0], (tuple, list)) else given


@_reads("view", "reshape", "expand", "broadcast_to", "new_zeros", "new_ones", "new_empty", "new_full")
def _shape(settings: Settings, args: Any, kwargs: Any, made: Any) -> Readings:
    sizes = _sizes(args, kwargs, 1, "shape", "size")
    if not any(type(size) is Marked for size in sizes):
        return ()
    return [(size, v) for size, v in zip(sizes, settings.operand(made).vectors, strict=False)]


@_reads("zeros", "ones", "empty", "full", "rand", "randn")
def _made(settings: Settings, args: Any, kwargs: Any, made: Any) -> Readings:
    sizes = _sizes(args, kwargs, 0, "size")
    return [(size, v) for size, v in zip(sizes, settings.operand(made).vectors, strict=False)]


@_reads("arange")
def _arange(settings: Settings, args: Any, kwargs: Any, made: Any) -> Readings:
    return [(args[0], settings.operand(made).dim(0))] if len(args) == 1 else ()


@_reads("histc")
def _histc(settings: Settings, args: Any, kwargs: Any, made: Any) -> Readings:
    return [(args[1] if len(args) > 1 else kwargs.get("bins", 100), settings.operand(made).dim(0))]


@_reads("one_hot")
def _one_hot(settings: Settings, args: Any, kwargs: Any, made: Any) -> Readings:
    return [(args[1] if len(args) > 1 else kwargs.get("num_classes", -1), settings.operand(made).dim(-1))]


@_reads("unflatten")
def _unflatten(settings: Settings, args: Any, kwargs: Any, made: Any) -> Readings:
    dim = args[1] if len(args) > 1 else kwargs["dim"]
    sizes = args[2] if len(args) > 2 else kwargs["sizes"]
    vectors = settings.operand(made).vectors
    first = dim % (len(vectors) - len(sizes) + 1)
    return [(size, v) for size, v in zip(sizes, vectors[first:], strict=False)]


@_reads("split", "split_with_sizes")
def _split(settings: Settings, args: Any, kwargs: Any, made: Any) -> Readings:
    sizes = args[1] if len(args) > 1 else next((v for k, v in kwargs.items() if k.startswith("split_s")), ())
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    if isinstance(sizes, int):
        sizes = [sizes if part.shape[dim] == sizes else None for part in made]
    parts = [settings.operand(part).dim(dim) for part in made]
    return [(size, v) for size, v in zip(sizes, parts, strict=True)]


@_reads("repeat", "tile")
def _repeat(settings: Settings, args: Any, kwargs: Any, made: Any) -> Readings:
    times = _sizes(args, kwargs, 1, "repeats", "dims")
    source, target = settings.operand(_source(args, kwargs)).vectors, settings.operand(made).vectors
    pad = len(target) - len(times), len(target) - len(source)
    return [
        (t, target[pad[0] + d], None, source[pad[0] + d - pad[1]] if pad[0] + d >= pad[1] else None)
        for d, t in enumerate(times)
    ]


@_reads("repeat_interleave")
def _repeat_interleave(settings: Settings, args: Any, kwargs: Any, made: Any) -> Readings:
    times = args[1] if len(args) > 1 else kwargs.get("repeats")
    dim = args[2] if len(args) > 2 else kwargs.get("dim")
    if type(times) is not Marked or dim is None:
        return ()
    return [(times, settings.operand(made).dim(dim), None, settings.operand(_source(args, kwargs)).dim(dim))]


@_reads("narrow")
def _narrow(settings: Settings, args: Any, kwargs: Any, made: Any) -> Readings:
    if kwargs:
        return ()
    source, dim, start, length = args
    return [
        (start, settings.operand(source).dim(dim), int(start)),
        (length, settings.operand(made).dim(dim)),
    ]


@_reads("__getitem__")
def _getitem(settings: Settings, args: Any, kwargs: Any, made: Any) -> Readings:
    source, index = args
    items = index if isinstance(index, tuple) else (index,)
    if not any(isinstance(i, slice) and (type(i.start) is Marked or type(i.stop) is Marked) for i in items):
        return ()
    vectors = settings.operand(source).vectors
    readings = []
    dim = 0
    for position, item in enumerate(items):
        if item is Ellipsis:
            dim = len(vectors) - sum(i is not None for i in items[position + 1 :])
            continue
        if isinstance(item, slice):
            readings += [(bound, vectors[dim], int(bound)) for bound in (item.start, item.stop) if bound]
        dim += item is not None
    return readings


@_reads("layer_norm", "rms_norm")
def _layer_norm(settings: Settings, args: Any, kwargs: Any, made: Any) -> Readings:
    shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
    vectors = settings.operand(made).vectors[-len(shape) :]
    return [(size, v) for size, v in zip(shape, vectors, strict=True)]


@_reads("group_norm")
def _group_norm(settings: Settings, args: Any, kwargs: Any, made: Any) -> Readings:
    return _counted(settings, args[1] if len(args) > 1 else kwargs["num_groups"], "group")


@_reads("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolution(settings: Settings, args: Any, kwargs: Any, made: Any) -> Readings:
    return _counted(settings, args[6] if len(args) > 6 else kwargs.get("groups", 1), "groups")


def _counted(settings: Settings, value: Any, argument: str) -> Readings:
    """What the rule of the operation counted under that name."""
    vectors = settings.observer.counted(argument)
    return [(value, vectors[0])] if vectors else ()
