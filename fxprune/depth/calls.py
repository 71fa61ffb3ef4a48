"""The modules that run, and the places of additions in their code, by which another run finds them again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

Addition = tuple[str, int]
"""An addition in the code of a model: the path of the module whose forward adds, and its number there, from 1."""


class Calls:
    """The stack of running modules, and the places of additions in the code of each."""

    def __init__(self, model: nn.Module) -> None:
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.stack: list[tuple[str, int, nn.Module]] = []
        self._entered: Counter[str] = Counter()
        self._additions: Counter[tuple[str, int]] = Counter()

    def enter(self, module: nn.Module) -> bool:
        """Note that a module begins. False for one that is not of the model."""
        path = self.paths.get(id(module))
        if path is None:
            return False
        self._entered[path] += 1
        self.stack.append((path, self._entered[path], module))
        return True

    def leave(self, module: nn.Module) -> bool:
        """Note that a module ends. False for one that is not of the model."""
        if not self.stack or self.stack[-1][2] is not module:
            return False
        self.stack.pop()
        return True

    def next_addition(self) -> Addition:
        """The place of an addition that runs now. Counts it."""
        path, number = self.stack[-1][:2] if self.stack else ("", 0)
        self._additions[path, number] += 1
        return path, self._additions[path, number]


def adds(func: Any, args: Any) -> bool:
    """True for an addition of two tensors, or a subtraction."""
    return func._schema.name in ("aten::add", "aten::add_", "aten::sub", "aten::sub_") and (
        len(args) > 1 and isinstance(args[0], torch.Tensor) and isinstance(args[1], torch.Tensor)
    )
