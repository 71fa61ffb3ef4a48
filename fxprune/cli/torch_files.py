"""Files of `torch.save`, of which only tensors and plain containers are read."""

from __future__ import annotations

import pickle
import re
from typing import Any

import torch

from fxprune.errors import FileError


def load_tensors(path: str, instead: str) -> Any:
    """The content of a file; `weights_only=True` executes no code from it.

    instead: the next step for a user whose file holds more than that. Raises `FileError`.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
        kind = re.search(r"Unsupported global: GLOBAL ([\w.]+)", text)
        why = f"it holds a {kind[1]}, and reading that runs code" if kind else f"torch says: {text.splitlines()[0]}"
        raise FileError(f'"{path}" holds more than tensors', why=why, do=instead) from None
    except (RuntimeError, EOFError, ValueError) as error:
        lines = str(error).strip().splitlines()
        why = f"torch says: {lines[0]}" if lines else type(error).__name__
        raise FileError(f'"{path}" is no file of torch.save', why=why, do="write it with torch.save") from None
