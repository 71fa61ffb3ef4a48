"""The calls in a graph that draw random numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

_PARTS = ("gumbel_softmax", "fractional_max_pool2d", "fractional_max_pool3d")
"""Functions of torch that are made of operations, of which one draws."""

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
"""Operations that draw for their dropout in training, which they are told by a flag among many positions."""

_IN_TRAINING: Mapping[str, tuple[str, str, float]] = {
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout"),
        ("p", "training", 0.5),
    ),
    "rrelu": ("upper", "training", 1 / 3),
    "scaled_dot_product_attention": ("dropout_p", "", 0.0),
}
"""Functions that draw only sometimes: name -> the argument for how much, the one for the mode, and a default."""


def drawn_by(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The name of the function or method that a node calls, if it draws random numbers; "" if it does not.

    Dropout that is off (`training=False`, a share of 0) draws nothing. A mode that is a value of the graph may be on.

    >>> drawn_by(torch.rand_like, (None,), {}), drawn_by("bernoulli_", (None,), {}), drawn_by(torch.relu, (None,), {})
    ('rand_like', 'bernoulli_', '')
    >>> drawn_by(F.dropout, (None, 0.5), {"training": False}), drawn_by(F.dropout, (None, 0.5), {})
    ('', 'dropout')
    """
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if not isinstance(target, str) and not _of_torch(target):
        return ""
    plain = name.removesuffix("_")
    if plain in _IN_TRAINING:
        amount, mode, default = _IN_TRAINING[plain]
        given = _arguments(getattr(F, plain, target), args, kwargs)
        on = given.get(mode, given.get("train", True)) if mode else True
        return name if on is not False and given.get(amount, default) != 0 else ""
    return name if plain not in _RECURRENT and (name in _PARTS or _seeded(name)) else ""


def _of_torch(target: Any) -> bool:
    return (getattr(target, "__module__", None) or "torch").partition(".")[0] == "torch"


def _seeded(name: str) -> bool:
    """True if an operation of this name reads the random generator of torch."""
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() and not name.startswith("__") else None
    if packet is None:
        return False
    return any(torch.Tag.nondeterministic_seeded in getattr(packet, each).tags for each in packet.overloads())


def _arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, as far as the signature is known; with the defaults of the function."""
    try:
        bound = inspect.signature(function).bind_partial(*args, **kwargs)
    except (TypeError, ValueError):
        names = ("query", "key", "value", "attn_mask", "dropout_p") if "attention" in function.__name__ else ()
        return {**dict(zip(names or ("input", "p", "train"), args, strict=False)), **kwargs}
    bound.apply_defaults()
    return dict(bound.arguments)
