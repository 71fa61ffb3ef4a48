"""The function mode that marks settings and sizes during the walk, and notes what they count."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fxprune.analysis.expressions import Expression
from fxprune.analysis.marked_integers import Notes
from fxprune.analysis.observer import Observer
from fxprune.analysis.settings import Setting, mark_settings
from fxprune.analysis.uses import Count, NumberUse, SizeComparison, Uses
from fxprune.capture.opened_functions import opened
from fxprune.channels.vector import Vector
from fxprune.ops.aspects import READERS
from fxprune.ops.layers import widths_of
from fxprune.ops.python_call import Counted, PythonCall

_SHAPE = torch.Tensor.shape
REPEATING = ("expand", "broadcast_to")
"""Functions that make dimensions of equal slots."""


class Settings(TorchFunctionMode):
    """Marks the integers that forward reads, and notes where they count something or are compared."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer
        self.notes = Notes(self._compared)
        self._before: dict[Setting, int] = {}
        self._uses: list[NumberUse] = []
        self._seen: set[tuple[Expression, str, bool]] = set()

    def mark(self, module: nn.Module) -> None:
        """Replace the integers in the attributes of a module and its submodules by marked ones. Changes `module`."""
        mark_settings(module, self._marked)
        for layer in module.modules():
            for name, dim in widths_of(layer).items():
                weight = layer._parameters.get("weight")
                if weight is not None and dim < weight.ndim:
                    layer.__dict__[name] = self._size(getattr(layer, name), self.observer.peek(weight).vectors[dim])

    def _marked(self, value: int, setting: Setting) -> int:
        self._before[setting] = value
        return self.notes.marked(value, Expression.of(setting))

    @contextlib.contextmanager
    def tentative(self) -> Iterator[None]:
        """Forget what is noted inside if it raises an error."""
        before, seen = len(self._uses), set(self._seen)
        try:
            yield
        except Exception:
            del self._uses[before:]
            self._seen = seen
            raise

    def uses(self, unread: Sequence[Vector]) -> Uses:
        """Everything that was noted. Call it after the run: from then on marks count no more.

        unread: the dimensions of tensors that no operation reads. Comparisons with their sizes are left out: forward
            only asks whether to make such a tensor again.
        """
        self.notes.closed = True
        self._tie_repeated()
        left_out = set(map(id, unread))
        uses = (use for use in self._uses if left_out.isdisjoint(map(id, use.vectors)))
        return Uses(tuple(uses), self._before)

    def _tie_repeated(self) -> None:
        """Tie each dimension of equal slots that nothing looks at to another one that the same number counts.

        `weights.expand(n, self.heads, t, t)` makes such slots. They may go with any others, and one number counts both.
        """
        counts = [use for use in self._uses if isinstance(use, Count) and use.until is None and use.under is None]
        others = {use.expression: use.vector for use in reversed(counts) if not use.vector.representative.untouched}
        for use in counts:
            other = others.get(use.expression)
            if use.function in REPEATING and use.vector.representative.untouched and other is not None:
                self.observer.terms.same(use.vector, other)

    # -- the mode -----------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        notes = self.notes
        body = opened(func, self.observer.scopes.current.module)
        if body is not None:
            with self:
                return body(*args, **kwargs)
        before, notes.listening = notes.listening, False
        try:
            made = func(*args, **kwargs)
            name = getattr(func, "__name__", "")
            if name == "numel" and type(made) is int and self._inside():
                return self._numel(args[0], made)
            if name == "size" or (name == "__get__" and func.__self__ is _SHAPE):
                return self._sizes(args[0], made, *args[1:], **kwargs) if self._inside() else made
            reader = READERS.keys.get(name)
            if reader is not None:
                call = PythonCall(args, kwargs, made, self.observer.peek, notes.owns, self.observer.counted)
                for counted in reader(call):
                    if isinstance(counted.value, Vector):
                        self._equal(counted.value, counted.vector, name)
                    elif notes.owns(counted.value):
                        self._counted(counted, name)
            return made
        finally:
            notes.listening = before

    def _inside(self) -> bool:
        """True if code of a module runs that no graph shows, and not torch's own."""
        module = self.observer.scopes.current.module
        return module is not None and not type(module).__module__.startswith("torch.")

    def _sizes(self, tensor: Any, sizes: Any, dim: Any = None, *_: Any, **__: Any) -> Any:
        """The size, or sizes, of a tensor, with marks at the dimensions that may shrink."""
        if type(sizes) not in (int, torch.Size) or not isinstance(tensor, torch.Tensor):
            return sizes
        vectors = self.observer.peek(tensor).vectors
        if isinstance(sizes, torch.Size):
            if all(vector.fixed for vector in vectors) or len(vectors) != len(sizes):
                return sizes
            return torch.Size(map(self._size, sizes, vectors))
        return self._size(sizes, vectors[int(dim)]) if isinstance(dim, int) else sizes

    def _numel(self, tensor: Any, made: int) -> int:
        """The number of elements of a tensor, as the product of its sizes."""
        sizes = self._sizes(tensor, torch.Size(tensor.shape))
        product = math.prod(sizes)
        return product if product == made else made

    def _size(self, size: int, vector: Vector) -> int:
        if vector.fixed or size != vector.size:
            return size
        return self.notes.marked(size, Expression.of(vector.representative))

    # -- notes --------------------------------------------------------------------------------------------

    def _counted(self, counted: Counted, function: str) -> None:
        marked, vector = counted.value, counted.vector
        if counted.until is None and counted.under is None:
            if marked.expression == Expression.of(vector.representative):
                return
            size = vector.size
        else:
            under = 1 if counted.under is None else counted.under.size
            size = vector.size // under if counted.until is None else counted.until
        if size == marked:
            place = self.observer.current_place()
            self._uses.append(Count(marked.expression, vector, place, function, counted.until, counted.under))

    def _equal(self, width: Vector, other: Vector, function: str) -> None:
        """Note that a function makes two dimensions equally large."""
        if self._inside() and not (width.fixed and other.fixed):
            expression = Expression.of(width.representative)
            self._uses.append(Count(expression, other, self.observer.current_place(), function))

    def _compared(self, left: Expression, operator: str, right: Expression, outcome: bool) -> None:
        if left == right or not self._inside():
            return
        difference = left - right
        key = (difference, operator, outcome)
        if difference.constant is None and key not in self._seen:
            self._seen.add(key)
            self._uses.append(SizeComparison(difference, operator, outcome, self.observer.current_place()))
