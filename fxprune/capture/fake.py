"""Fake twins: the same modules and inputs on tensors that have shape, dtype and device but no memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError


class Faker:
    """Makes fake tensors under one mode; the same real tensor always becomes the same fake one.

    A tensor on the meta device becomes a fake tensor on the CPU, so that models without weights can be analysed.
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def tensor(self, real: torch.Tensor) -> torch.Tensor:
        """The fake twin of a tensor."""
        known = self._made.get(id(real))
        if known is not None:
            return known[1]
        if nn.parameter.is_lazy(real):
            raise CaptureError(
                "the model has lazy modules that were never run",
                why=f"a {type(real).__name__} has no shape yet",
                do="run the model once on real inputs, then prune it",
            )
        device = torch.device("cpu") if real.device.type == "meta" else real.device
        if real.layout is not torch.strided:
            fake = self.mode.from_tensor(real)
        else:
            meta = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device="meta")
            fake = FakeTensor(self.mode, meta, device)
        self._made[id(real)] = (real, fake)
        return fake

    def tree(self, values: Any) -> Any:
        """Every tensor of a nested structure as a fake one."""
        return pytree.tree_map_only(torch.Tensor, self.tensor, values)

    def module(self, module: nn.Module) -> nn.Module:
        """The module with fake parameters and buffers. Settings are shared, containers of them copied."""
        made: dict[int, nn.Module] = {}

        def clone(original: nn.Module) -> nn.Module:
            if id(original) in made:
                return made[id(original)]
            twin = object.__new__(type(original))  # a GraphModule's own class holds its compiled forward
            made[id(original)] = twin
            settings = {k: v.copy() if type(v) in (dict, list, set) else v for k, v in original.__dict__.items()}
            twin.__dict__.update(settings)
            fakes = {k: None if p is None else self.tensor(p) for k, p in original._parameters.items()}
            twin.__dict__["_parameters"] = fakes
            twin.__dict__["_buffers"] = {k: None if b is None else self.tensor(b) for k, b in original._buffers.items()}
            twin.__dict__["_modules"] = {k: None if m is None else clone(m) for k, m in original._modules.items()}
            return twin

        return clone(module)
