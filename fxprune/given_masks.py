"""Masks that users give, as tensors of True and False."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def bool_mask(mask: Any) -> torch.Tensor | str:
    """Returns a mask as a bool tensor, or why it is none.

    mask: a dense tensor or a numpy array, of booleans or of zeros and ones in any type of real numbers. A bool tensor
    is returned as it is.

    >>> bool_mask(np.array([[1, 0], [0, 1]]))
    tensor([[ True, False],
            [False,  True]])
    >>> bool_mask(torch.tensor([0.0, 0.5]))
    'it is torch.float32 and has other values than 0 and 1: 0.5'
    """
    if isinstance(mask, np.ndarray):
        if mask.dtype.kind not in "biuf":
            return f"it is an array of {mask.dtype}"
        other = mask[(mask != 0) & (mask != 1)]
        if not other.size:
            return torch.from_numpy(np.ascontiguousarray(mask != 0))
        return f"it is an array of {mask.dtype} and has other values than 0 and 1: {other.flat[0]}"
    if not isinstance(mask, torch.Tensor):
        how = "; torch.tensor(...) makes one of it" if isinstance(mask, list | tuple) else ""
        return f"it is {type(mask).__name__}{how}"
    if mask.layout is not torch.strided or mask.is_complex():
        return f"it is {mask.dtype if mask.is_complex() else mask.layout}"
    if mask.dtype is torch.bool:
        return mask
    if mask.is_meta:
        return f"it is {mask.dtype}, without values"
    odd = mask.detach()[(mask != 0) & (mask != 1)]
    if not odd.numel():
        return mask.detach() != 0
    return f"it is {mask.dtype} and has other values than 0 and 1: {odd[0].item():g}"
