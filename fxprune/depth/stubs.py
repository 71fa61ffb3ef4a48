"""The modules that stand where a branch was, in calls that no module of torch can take."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxprune.depth.dropped import ARGUMENT, ONE_ZERO

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


class _Stub(nn.Module):
    """A module without parameters, with the plain attributes of the one whose place it takes.

    form: the result: 0 stands for the tensor, None for None, a tuple for a tuple, ("argument", key) for an argument, 1
        for the first number of the tensor, in as many dimensions.
    """

    def __init__(self, form: Any = 0) -> None:
        super().__init__()
        self.form = form

    def keep_attributes(self, module: nn.Module) -> None:
        """Take over the numbers, texts and flags in the attributes of a module, for the code that reads them."""
        for name, value in vars(module).items():
            own = name in vars(self) or name in ("_parameters", "_buffers", "_modules")
            parts = value if type(value) in (tuple, list) else (value,)
            if not own and all(isinstance(part, _PLAIN) for part in parts):
                setattr(self, name, value)
        for name in (*module._parameters, *module._buffers):
            if not hasattr(self, name):
                setattr(self, name, None)

    def _result(self, tensor: torch.Tensor, form: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(form, (tuple, list)):
            if form[:1] == (ARGUMENT,):
                return _argument(form[1], args, kwargs or {})
            return tuple(self._result(tensor, part, args, kwargs) for part in form)
        if form == ONE_ZERO:
            return tensor[(slice(1),) * tensor.ndim]
        return None if form is None else tensor


class PassesOn(_Stub):
    """The identity of a block whose forward has several arguments or results.

    >>> block = PassesOn(source="x", form=(0, None))
    >>> block(torch.ones(2), x=torch.zeros(2))
    (tensor([0., 0.]), None)
    """

    def __init__(self, source: int | str = 0, form: Any = 0) -> None:
        super().__init__(form)
        self.source = source

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The argument `source`, in the form of the result."""
        passed = args[self.source] if isinstance(self.source, int) else kwargs[self.source]
        return self._result(passed, self.form, args, kwargs)

    def extra_repr(self) -> str:
        """The argument that is passed on."""
        return f"argument {self.source!r}"


class GivesZeros(_Stub):
    """Zeros like the first tensor among the arguments, in the form of the result.

    >>> GivesZeros((0, None))(torch.ones(2), mask=None), GivesZeros(1)(torch.ones(2, 3))
    ((tensor([0., 0.]), None), tensor([[0.]]))
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The zeros."""
        tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        return self._result(torch.zeros_like(tensor), self.form, args, kwargs)


def _argument(key: int | str, args: Any, kwargs: Any) -> Any:
    """An argument by its position or keyword; None if it was not given."""
    if isinstance(key, int):
        return args[key] if key < len(args) else None
    return kwargs.get(key)
