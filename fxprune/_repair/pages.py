"""Weights that lie elsewhere, in memory as long as a repair works on them.

A repair looks for weights by their memory, and changes views of them. So such a weight is a plain tensor here, whose
memory is given back when other weights need it, and filled again when an operation needs the weight.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fxprune.capture.layouts import memory_of
from fxprune.capture.module_copy import copy_module
from fxprune.offloaded import StoredTensor
from fxprune.offloaded.places import WeightPlace


@dataclass(eq=False)
class _Page:
    """A weight. tensor: a plain one, with or without its memory. stored: the one that it stands for.

    changed: True if its numbers are newer than those of its place.
    """

    tensor: Tensor
    stored: StoredTensor
    changed: bool = False

    @property
    def bytes(self) -> int:
        """The bytes of its numbers."""
        return self.tensor.numel() * self.tensor.element_size()


class Pages:
    """The weights of some models that lie elsewhere. At most `limit` bytes of them, or one, are in memory at a time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._pages: dict[int, _Page] = {}  # memory of the plain tensor -> the weight
        self._there: dict[int, _Page] = {}  # those in memory, that of the last use at the end
        self._plain: dict[int, Tensor] = {}  # id of a stored tensor -> the plain one

    def __bool__(self) -> bool:
        return bool(self._pages)

    def of(self, model: nn.Module) -> nn.Module:
        """The model with plain tensors, a copy around the same other tensors; the model itself if all are plain."""
        tensors = [*model.parameters(), *model.buffers()]
        if not any(isinstance(tensor, StoredTensor) for tensor in tensors):
            return model
        return copy_module(model, self._as_plain)

    def _as_plain(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, StoredTensor):
            return tensor
        if id(tensor) not in self._plain:
            with _disable_current_modes():
                made = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
                made.untyped_storage().resize_(0)
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, requires_grad=tensor.requires_grad)
            self._plain[id(tensor)] = made
            if made.numel():
                self._pages[memory_of(made)] = _Page(made, tensor)
        return self._plain[id(tensor)]

    def mode(self) -> contextlib.AbstractContextManager[Any]:
        """A dispatch mode in which each operation finds its weights. It is the outermost of the modes of a run."""
        return _Paging(self) if self._pages else contextlib.nullcontext()

    def fetch(self, tensors: Iterable[Any]) -> None:
        """Bring the weights that these tensors are, or are views of, into memory."""
        found = [page for page in map(self._page, tensors) if page is not None]
        for page in found:
            key = memory_of(page.tensor)
            if self._there.pop(key, None) is None:
                self._make_space(page.bytes, found)
                with _disable_current_modes(), torch.no_grad():
                    values = page.stored.whole()
                    page.tensor.untyped_storage().resize_(page.bytes)
                    page.tensor.detach().copy_(values)
            self._there[key] = page

    def written(self, tensor: Any) -> None:
        """Note that a weight has other numbers now."""
        page = self._page(tensor)
        if page is not None:
            page.changed = True

    def kept(self, tensor: Tensor) -> Callable[[], object]:
        """A function that gives a tensor the numbers back that it has now."""
        page = self._page(tensor)
        if page is None:
            return functools.partial(tensor.copy_, tensor.detach().clone())
        self._put_back(page)
        return functools.partial(self._back_to, page, page.stored.place)

    def _back_to(self, page: _Page, place: WeightPlace) -> None:
        self._drop(page)
        page.stored.place = place

    def close(self) -> None:
        """Put all that has changed to its place, and give the memory back."""
        for page in list(self._there.values()):
            self._put_back(page)
            self._drop(page)

    def _page(self, tensor: Any) -> _Page | None:
        plain = isinstance(tensor, Tensor) and tensor.layout is torch.strided
        return self._pages.get(memory_of(tensor)) if plain else None

    def _make_space(self, size: int, needed: list[_Page]) -> None:
        """Give back the memory of weights that were not used for the longest time, but for those that are needed."""
        for page in list(self._there.values()):
            if sum(one.bytes for one in self._there.values()) + size <= self.limit:
                return
            if page not in needed:
                self._put_back(page)
                self._drop(page)

    def _put_back(self, page: _Page) -> None:
        if page.changed:
            with _disable_current_modes(), torch.no_grad():
                page.stored.write(page.tensor.detach())
            page.changed = False

    def _drop(self, page: _Page) -> None:
        page.changed = False
        self._there.pop(memory_of(page.tensor), None)
        page.tensor.untyped_storage().resize_(0)


class _Paging(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The mode of some pages."""

    def __init__(self, pages: Pages) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pages = pages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.pages.fetch(pytree.tree_leaves((args, kwargs)))
        made = func(*args, **kwargs)
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.pages.written(args[number] if number < len(args) else kwargs.get(argument.name))
        return made
