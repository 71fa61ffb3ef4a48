"""The buffers, attributes and large arrays of a model whose runs may write into them all the same: they are put back.

Runs use copies of a model. But a closure over a layer calls the layer itself, and copies share large arrays.
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from fxprune.capture.code import is_torch
from fxprune.capture.equal_modules import check_told_apart
from fxprune.capture.kept_attributes import KeptAttributes, may_have_closures
from fxprune.capture.layouts import is_packed, is_sparse
from fxprune.capture.library_state import MOST_BYTES, is_array
from fxprune.capture.module_copy import copy_module
from fxprune.capture.process_state import AFTER_RUNS, public_call
from fxprune.capture.references import references_of_classes, references_to_original

TAKE_FROM_SELF = "define forward as a method of its class, and take layers from attributes; a hook gets its module"
"""The next step for a user whose code has a layer in a closure."""

_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})
_TABLES = frozenset({tuple, list, set, dict, OrderedDict})
_CONTENTS = frozenset({"_parameters", "_buffers", "_modules"})

_ParametersT = ParamSpec("_ParametersT")
_ResultT = TypeVar("_ResultT")


def called_parts(model: nn.Module) -> list[str]:
    """Sentences about code of a model that has modules of it in a closure or a variable, and not in an attribute."""
    if all(_is_plain_value(name, value) for module in model.modules() for name, value in module.__dict__.items()):
        return references_of_classes({id(module): "the original" for module in model.modules()}, model)
    named = [(name, module) for name, module in model.named_modules()]
    known = {id(module): f'"{name}" of the original' if name else "the original" for name, module in named}
    return references_to_original(known, copy_module(model, lambda tensor: tensor))


def _is_plain_value(name: str, value: Any) -> bool:
    """True if an attribute of a module has no function and no object in it; most have a number or an empty table."""
    kind = type(value)
    if kind in _PLAIN or name in _CONTENTS:
        return True
    return kind in _TABLES and (not value or (kind in (tuple, list, set) and _PLAIN.issuperset(map(type, value))))


def public_call_on_model(function: Callable[_ParametersT, _ResultT]) -> Callable[_ParametersT, _ResultT]:
    """A public function of a model and other things, as `public_call` runs it, which leaves the model as it is."""

    @functools.wraps(function)
    def call(*args: _ParametersT.args, **kwargs: _ParametersT.kwargs) -> _ResultT:
        with public_call(), buffers_kept(args[0] if args else kwargs.get("model")):
            return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def buffers_kept(model: Any) -> Iterator[None]:
    """Puts back what a run writes into the buffers and attributes of a model, if its code has its modules in a closure,
    and into its large arrays: after each run, and at the end."""
    check_told_apart(model)
    if not isinstance(model, nn.Module):
        yield
        return
    kept = _Kept(model)
    AFTER_RUNS.append(kept.restore)
    try:
        yield
    finally:
        AFTER_RUNS.remove(kept.restore)
        kept.restore(mode=True)


class _Kept:
    """The buffers, attributes and large arrays of a model, and copies of them."""

    def __init__(self, model: nn.Module) -> None:
        closed = may_have_closures(model)
        self.attributes = KeptAttributes(model, lambda: bool(called_parts(model))) if closed else None
        buffers = [buffer for buffer in model.buffers() if _is_plain(buffer)] if _may_be_written(model) else []
        if buffers and not called_parts(model):
            buffers = []
        values = (value for module in model.modules() for value in module.__dict__.values())
        arrays = {id(value): value for value in values if is_array(type(value)) and value.nbytes > MOST_BYTES}
        self.copies: list[tuple[Any, Any]] = [(buffer, buffer.detach().clone()) for buffer in buffers]
        self.copies += [(array, array.copy()) for array in arrays.values() if not array.dtype.hasobject]

    def restore(self, *, mode: bool = False) -> None:
        """Put back the attributes that have other values now, and the numbers of buffers and arrays that have others.

        mode: as in `KeptAttributes.restore`.
        """
        if self.attributes is not None:
            self.attributes.restore(mode=mode)
        with _disable_current_modes(), torch.no_grad():
            for now, before in self.copies:
                if isinstance(now, torch.Tensor):
                    if not torch.equal(now, before):
                        now.copy_(before)
                elif now.flags.writeable and now.tobytes() != before.tobytes():
                    now[...] = before


def _may_be_written(model: nn.Module) -> bool:
    """True if forward may write into buffers: layers of torch do so in training mode alone."""
    owners = [module for module in model.modules() if module._buffers]
    return any(module.training or not is_torch(type(module).__module__) for module in owners)


def _is_plain(buffer: torch.Tensor) -> bool:
    """True for a tensor with numbers that a run can write into."""
    if isinstance(buffer, FakeTensor) or is_packed(buffer) or is_sparse(buffer):
        return False
    return buffer.device.type != "meta" and not buffer.is_inference() and type(buffer) in (torch.Tensor, nn.Buffer)
