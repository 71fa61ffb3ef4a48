"""Example inputs from the words of a command line: `1x3x224x224`, `ids=2x16:int64<30000`, `batch.npz`."""

from __future__ import annotations

import argparse
import inspect
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.cli.input_files import READERS, InputFile
from fxprune.cli.usage import UsageError
from fxprune.errors import nearest
from fxprune.given_seeds import generator_of

DTYPES = {
    name: getattr(torch, name)
    for name in """
    float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128
    """.split()
}

_FORM = re.compile(r"(?:(?P<name>[^\W\d]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>[^<]*)(?:<(?P<below>\d+))?)?")


@dataclass(frozen=True)
class Example:
    """One `--input`. name: that of a keyword argument, "" for a positional one. below: integers are in [0, below).

    >>> example("ids=2x16:int64<30000")
    Example(name='ids', shape=(2, 16), dtype='int64', below=30000)
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    below: int | None = None

    def fill(self, generator: torch.Generator) -> torch.Tensor:
        """Returns a tensor of normal numbers, of integers in [0, below) (zeros without `below`), or of True."""
        dtype = DTYPES[self.dtype]
        if dtype.is_floating_point or dtype.is_complex:
            wide = dtype if dtype.is_complex else torch.float64  # so that all dtypes get the same numbers
            return torch.randn(self.shape, generator=generator, dtype=wide).to(dtype)
        if self.below is not None:
            return torch.randint(self.below, self.shape, generator=generator).to(dtype)
        return torch.full(self.shape, dtype is torch.bool, dtype=dtype)


def example(text: str) -> Example | InputFile:
    """Parses a value of `--input`."""
    if os.path.splitext(text)[1] in READERS:
        return InputFile(text)
    found = _FORM.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f'"{text}" is not [NAME=]SHAPE[:DTYPE[<N]], like 1x3x224x224 or ids=2x16:int64<99, '
            f"and no file that ends in {', '.join(READERS)}"
        )
    dtype = found["dtype"] if found["dtype"] is not None else "float32"
    if dtype not in DTYPES:
        raise argparse.ArgumentTypeError(f'there is no dtype "{dtype}": {nearest(dtype, DTYPES)}')
    below = None if found["below"] is None else int(found["below"])
    kind = DTYPES[dtype]
    if below is not None:
        if kind.is_floating_point or kind.is_complex or kind is torch.bool:
            raise argparse.ArgumentTypeError(f'"{text}": a bound is for integers, not for {dtype}')
        if not 1 <= below <= torch.iinfo(kind).max:
            raise argparse.ArgumentTypeError(f'"{text}": the bound of {dtype} is from 1 to {torch.iinfo(kind).max}')
    return Example(found["name"] or "", tuple(map(int, found["shape"].split("x"))), dtype, below)


def filled(examples: Sequence[Example | InputFile], model: nn.Module, seed: int, device: torch.device) -> Any:
    """Returns the example inputs: a tuple of positional arguments, or a dict if one of them has a name.

    In the dict, positional arguments get their names from the signature of forward. The numbers depend only on the
    seed. The values in files stay as they are.
    """
    generator = generator_of(seed)
    made: list[tuple[str, Any]] = []
    for entry in examples:
        found = entry.named() if isinstance(entry, InputFile) else [(entry.name, entry.fill(generator))]
        made += [(name, pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), value)) for name, value in found]
    args = tuple(value for name, value in made if not name)
    kwargs = {name: value for name, value in made if name}
    if not kwargs:
        return args
    if len(kwargs) + len(args) < len(made):
        names = [name for name, _ in made if name]
        raise UsageError(f'--input "{next(n for n in names if names.count(n) > 1)}" is given twice', do="give it once")
    named = list(inspect.signature(model.forward).parameters.values())
    places = [p.name for p in named if p.kind is p.POSITIONAL_OR_KEYWORD]
    taken = next((name for name in places[: len(args)] if name in kwargs), None)
    if len(args) > len(places) or taken is not None:
        why = f'"{taken}" is given by its place too' if taken else f"forward has {len(places)} arguments with a name"
        raise UsageError("the inputs cannot all be named", why=why, do="give each as --input NAME=SHAPE")
    return {**dict(zip(places, args, strict=False)), **kwargs}
