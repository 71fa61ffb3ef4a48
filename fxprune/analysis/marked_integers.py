"""Integers that remember which attribute of a module they were read from. They show what a setting counts.

When a small model keeps its class, a setting such as `self.num_heads` must become the new number of heads. But only
its use shows that it counts heads: `view(batch, -1, self.num_heads, self.head_dim)`. So during the walk the integers in
the attributes of modules are replaced by `Marked` ones, a subclass of `int` that keeps its mark when it is multiplied
or divided by a plain integer. A function mode finds marked integers in the arguments of functions that take sizes, and
notes which vector they count there.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from fxprune.analysis.observer import Observer
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector
from fxprune.ops.aspects import READERS
from fxprune.ops.python_call import Counted, PythonCall

Setting = tuple[str, str, "int | None"]
"""The path of a module, the name of an attribute, and the position in it if it is a tuple or list (else None)."""


class Marked(int):
    """An integer that was computed from a setting.

    setting: the setting. times: the factor; the integer is `times` times the value of the setting.
    """

    setting: Setting
    times: Fraction

    @classmethod
    def make(cls, value: int, setting: Setting, times: Fraction = Fraction(1)) -> Marked:
        """A marked integer with this value."""
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
    """One place where a marked integer was used: there, `times` times the setting is the size of something.

    vector: the dimension whose slots are counted.
    place: the function, the module and the source line, for errors.
    until: if not None, only the slots before this one are counted.
    under: if not None, the number is the size of `vector` divided by the size of `under`, which it repeats.
    """

    times: Fraction
    vector: Vector
    place: str
    until: int | None = None
    under: Vector | None = None

    @property
    def is_size(self) -> bool:
        """True if it is the size of a whole dimension."""
        return self.until is None and self.under is None

    def setting(self, removal: Removal) -> Fraction:
        """The value that the setting must have after a removal, as far as this place is concerned."""
        if self.until is not None:
            kept = removal.kept(self.vector)
            count = Fraction(self.until if kept is None else int(np.count_nonzero(kept[: self.until])))
        else:
            count = Fraction(removal.count(self.vector), 1 if self.under is None else removal.count(self.under))
        return count / self.times


class Settings(TorchFunctionMode):
    """A function mode that notes what marked integers count. `found`: setting -> all places where it is used."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer
        self.found: dict[Setting, list[Sizing]] = {}

    def mark(self, module: nn.Module) -> None:
        """Replace the integers in the attributes of a module and its submodules by marked ones. Changes `module`.

        Modules of torch are left out: the rewrite knows their attributes.
        """
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
        reader = READERS.keys.get(getattr(func, "__name__", ""))
        if reader is not None:
            call = PythonCall(args, kwargs, made, self.observer.peek, _is_marked, self.observer.counted)
            for counted in reader(call):
                if _is_marked(counted.value):
                    self._note(counted, func.__name__)
        return made

    def _note(self, counted: Counted, function: str) -> None:
        at, marked = self.observer.current_place(), counted.value
        place = f"{function} in {at.module or 'the model'} ({at.source})"
        sizing = Sizing(marked.times, counted.vector, place, counted.until, counted.under)
        self.found.setdefault(marked.setting, []).append(sizing)


def _is_marked(value: Any) -> bool:
    return type(value) is Marked
