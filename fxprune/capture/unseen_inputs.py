"""Example inputs whose tensors nothing can see: data classes and other objects that torch does not look into."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.capture.containers import found_in
from fxprune.capture.layouts import nested_kind
from fxprune.errors import InputError


def is_known_to_torch(value: Any) -> bool:
    """True for one object that torch takes apart: a data class or another class that was registered with its pytree."""
    return not pytree.tree_is_leaf(value)


def of_no_tensor(value: Any) -> InputError | None:
    """The error for an object that holds tensors which torch does not see; None for any other value."""
    if isinstance(value, type) or not any(found_in(value, lambda part: isinstance(part, torch.Tensor), {})):
        return None
    name = type(value).__name__
    what = f"example inputs hold a {name}, whose tensors are not seen"
    if dataclasses.is_dataclass(value):
        return InputError(
            what,
            why="torch looks into no data class that was not registered",
            do=f"torch.export.register_dataclass({name}), before this call",
        )
    return InputError(
        what,
        why="torch looks into no object of a class that was not registered",
        do=f"torch.utils._pytree.register_pytree_node({name}, flatten, unflatten), before this call; "
        "or pass a model whose forward takes tensors and makes the object",
    )


def check_tensors(leaves: list[Any]) -> None:
    """Raises `InputError` for an example input that is empty, or nested."""
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            continue
        if nested_kind(leaf):
            raise InputError(
                "an example input is a nested tensor",
                why=f"it is {nested_kind(leaf)}, whose rows have lengths of their own",
                do="pass a padded tensor: torch.nested.to_padded_tensor(x, 0.0), and a mask where forward takes one",
            )
        if not leaf.numel():
            raise InputError(
                "an example input is empty",
                why=f"its shape is {tuple(leaf.shape)}: nothing could be compared on it",
                do="use a batch of at least one",
            )
