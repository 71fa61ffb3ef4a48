"""Weights that lie elsewhere, for a library that looks for them in the hooks of accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fxprune.offloaded.hooks import HOOK, without_numbers
from fxprune.offloaded.stored import StoredTensor

DEVICES = "hf_device_map"
"""The attribute of a model by which transformers sees that weights lie elsewhere."""


@dataclass(frozen=True, eq=False)
class _Weights(Mapping[str, torch.Tensor]):
    """The weights of one module by name, each read when it is asked for."""

    stored: Mapping[str, StoredTensor]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.stored[name].place.read().to("cpu")

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


@dataclass(frozen=True, eq=False)
class _Reads:
    """Stands for a hook of accelerate in what transformers asks of one: the map of its weights."""

    weights_map: Mapping[str, torch.Tensor]


def let_library_read(model: nn.Module) -> None:
    """Put tensors without numbers for the `StoredTensor`s of a model, and a map to read them on each module.

    Changes `model`, which cannot run any more. Tied weights stay tied.
    """
    meta: dict[int, torch.Tensor] = {}
    for module in model.modules():
        stored = {}
        tables = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if isinstance(tensor, StoredTensor):
                    stored[name] = tensor
                    table[name] = meta.setdefault(id(tensor), without_numbers(tensor))  # type: ignore[assignment]
        if stored:
            module.__dict__[HOOK] = _Reads(_Weights(stored))
    model.__dict__[DEVICES] = {"": "disk"}
