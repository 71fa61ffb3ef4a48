"""Fake tensors (shape, dtype and device without memory), and copies of modules and inputs around them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree

from fxprune.capture.given_attributes import as_parameter
from fxprune.capture.layouts import is_packed, is_sparse
from fxprune.capture.module_copy import copy_module
from fxprune.capture.shared_parameters import SharedParameters, may_share

MOST_NUMBERS = 64
"""The most numbers of a tensor that a fake one knows."""


class Real:
    """Replaces a `Faker` for a forward that reads the numbers in tensors: copies, with the numbers of the model.

    The copies of parameters share their memory. So a run has to be in `mode`, where it may write into them.

    own: True to give the copies of parameters memory of their own, so that no run needs `mode`.
    """

    def __init__(self, *, own: bool = False) -> None:
        self._own = own
        self._made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._shared = SharedParameters()

    @property
    def mode(self) -> contextlib.AbstractContextManager[Any]:
        """A context for one run, which leaves the parameters as they are: see `SharedParameters`."""
        return self._shared.kept()

    def tensor(self, real: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor, since the forward may write into it: into parameters too, as an average of them is.

        The same tensor always gets the same copy.
        """
        known = self._made.get(id(real))
        if known is not None:
            return known[1]
        if may_share(real) and not self._own:
            copy = self._shared.stand_in(real)
        else:
            copy = real.detach().clone()
            if isinstance(real, nn.Parameter):
                as_parameter(copy, real)
        self._made[id(real)] = (real, copy)
        return copy

    def of_state(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of a small model: a buffer is copied, since the forward may write into it."""
        return self.tensor(tensor)

    def tree(self, values: Any) -> Any:
        """The nested structure `values` with every tensor replaced: see `tensor`."""
        return pytree.tree_map_only(torch.Tensor, self.tensor, values)

    def module(self, module: nn.Module) -> nn.Module:
        """A copy of a module with copies of its parameters and buffers."""
        return copy_module(module, self.tensor)


class Faker:
    """Makes fake tensors under one `FakeTensorMode`. The same real tensor always gets the same fake one.

    A tensor on the meta device becomes a fake tensor on the CPU, so that models without weights can be analysed.
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def tensor(self, real: torch.Tensor) -> torch.Tensor:
        """The fake tensor for a real one."""
        known = self._made.get(id(real))
        if known is not None:
            return known[1]
        if is_packed(real):
            fake: torch.Tensor = real.detach().clone()  # an operation on it gives numbers that count as fixed
        elif real.layout is not torch.strided:
            fake = self.mode.from_tensor(real)
        else:
            fake = self._wrap(torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device="meta"), real)
        self._made[id(real)] = (real, fake)
        return fake

    def known(self, real: torch.Tensor) -> torch.Tensor:
        """The fake tensor for a real one of the model, which knows its numbers if it is small and is not trained.

        So a forward can read a number from it, such as the stride of a detector's level.
        """
        fake = self.tensor(real)
        self._give_numbers(fake, real)
        return fake

    def of_state(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of a small model with fake parameters: one that is real, in a container, becomes a fake one."""
        return tensor if isinstance(tensor, FakeTensor) else self.known(tensor)

    def smaller(self, real: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A new fake tensor with the dtype and device of `real`, but another shape.

        It knows its numbers where the shape is the same: see `known`.
        """
        if is_sparse(real):
            return self.tensor(real)  # nothing is cut out of it
        fake = self._wrap(torch.empty(tuple(shape), dtype=real.dtype, device="meta"), real)
        if fake.shape == real.shape:
            self._give_numbers(fake, real)
        return fake

    def _give_numbers(self, fake: torch.Tensor, real: torch.Tensor) -> None:
        plain = type(real) is torch.Tensor and real.layout is torch.strided and not real.requires_grad
        if plain and isinstance(fake, FakeTensor) and real.device.type == "cpu" and real.numel() <= MOST_NUMBERS:
            with unset_fake_temporarily():  # torch computes with the numbers where it expects no fake tensor
                fake.constant = real.detach().clone()
            self.mode.fake_tensor_converter.add_constant_storage_mapping(fake)

    def _wrap(self, meta: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        fake = FakeTensor(self.mode, meta, torch.device("cpu") if real.device.type == "meta" else real.device)
        if isinstance(real, nn.Parameter):
            as_parameter(fake, real)
        return fake

    def tree(self, values: Any) -> Any:
        """The nested structure `values` with every tensor replaced by its fake one."""
        return pytree.tree_map_only(torch.Tensor, self.tensor, values)

    def module(self, module: nn.Module) -> nn.Module:
        """A copy of a module with fake parameters and buffers."""
        return copy_module(module, self.known)
