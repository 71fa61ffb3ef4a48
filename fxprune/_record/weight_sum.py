"""A checksum of the weights of a model: it tells whether they were changed since."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from fxprune.capture.layouts import dense_parts
from fxprune.capture.tensors import Tensors

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


def checksum(model: nn.Module) -> str:
    """A short text that depends on every bit of the parameters and buffers; "" if some have no values."""
    tensors = Tensors.of(model)
    if tensors.weightless:
        return ""
    made = hashlib.blake2b(digest_size=8)
    for found in tensors.unique:
        made.update(f"{found.name} {tuple(found.tensor.shape)} {found.tensor.dtype}".encode())
        flats = (part.contiguous().view(-1) for part in dense_parts(found.tensor.detach()))
        for flat in filter(torch.Tensor.numel, flats):
            octets = flat.view(torch.uint8)
            size = next(size for size in _WORDS if not octets.numel() % size)
            made.update(str(int(octets.view(_WORDS[size]).sum(dtype=torch.int64))).encode())
    return made.hexdigest()
