"""Module attributes that count something: `out_channels`, `groups`, `num_features` and their kind.

Nothing is patched: every attribute is counted anew, from the module's new weight where it has one, else from the
vectors of its input or from what its operation was seen to count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules import batchnorm, conv, instancenorm

from fxprune.analysis.observed import Observation
from fxprune.channels.groups import Bools, Removal
from fxprune.channels.vector import Vector
from fxprune.ops import Operand
from fxprune.ops.leaves import leaf_rule
from fxprune.rewrite.sizes import padding


@dataclass(frozen=True)
class Use:
    """A call of a module in the graph: what went in, what came out, what was counted. None where it is not called.

    vectors: the name of each parameter and buffer below the module, relative to it -> the vector of each dimension.
    """

    removal: Removal
    input: Operand | None
    output: Any
    observation: Observation | None
    vectors: Mapping[str, Mapping[int, Vector]] = field(default_factory=dict)

    def counted(self, argument: str) -> tuple[int, ...] | None:
        """The new value of a counted argument, None where the operation did not count it."""
        counts = {} if self.observation is None else self.observation.counts
        return self.removal.shape(counts[argument]) if argument in counts else None

    def input_size(self, dim: int) -> int | None:
        """The new size of a dimension of the module's input."""
        return None if self.input is None or self.input.ndim == 0 else self.removal.count(self.input.dim(dim))

    def kept(self, parameter: str, dim: int, size: int) -> Bools:
        """Which of the `size` slots that a parameter of the module had in a dimension are left."""
        vector = self.vectors.get(parameter, {}).get(dim)
        kept = None if vector is None else self.removal.kept(vector)
        return np.ones(size, dtype=bool) if kept is None else kept

    def impossible(self, why: str, parameters: Mapping[str, int]) -> SizeError:
        """The error to raise where the module cannot have its new sizes: the named dimensions of these stay."""
        found = (self.vectors.get(name, {}).get(dim) for name, dim in parameters.items())
        return SizeError(why, tuple(vector for vector in found if vector is not None))


class SizeError(ValueError):
    """A module cannot express its new sizes; `vectors` are the dimensions that had better stay what they are."""

    def __init__(self, why: str, vectors: tuple[Vector, ...]) -> None:
        self.vectors = vectors
        super().__init__(why)


Recount = Callable[[Any, Use], dict[str, Any]]
_RECOUNTS: list[tuple[tuple[type, ...], Recount]] = []


def recounts(*types: type) -> Callable[[Recount], Recount]:
    """Register what to count anew in modules of these types: a function from (module, use) to attributes."""

    def register(function: Recount) -> Recount:
        _RECOUNTS.append((types, function))
        return function

    return register


def recount(module: nn.Module, use: Use) -> None:
    """Set every counting attribute of a module whose parameters have their new sizes."""
    for types, function in _RECOUNTS:
        if isinstance(module, types):
            for name, value in function(module, use).items():
                if value is not None and getattr(module, name) != value:
                    setattr(module, name, value)
    if leaf_rule(module) is not None and use.observation is not None:
        for name, vectors in use.observation.counts.items():
            sizes = use.removal.shape(vectors)
            setattr(module, name, sizes if isinstance(getattr(module, name), tuple) else sizes[0])


def _weight(module: Any) -> Any:
    """The weight, or what an old hook of torch (masks, weight and spectral norm) computes it from in every forward."""
    for name in ("weight_orig", "weight_v"):
        if module._parameters.get(name) is not None:
            return module._parameters[name]
    return module.weight


@recounts(conv._ConvNd)
def _convolution(module: Any, use: Use) -> dict[str, Any]:
    groups = (use.counted("groups") or (module.groups,))[0]
    first, second = _weight(module).shape[:2]
    if module.transposed:
        return {"groups": groups, "in_channels": first, "out_channels": second * groups}
    return {"groups": groups, "out_channels": first, "in_channels": second * groups}


@recounts(nn.Linear)
def _linear(module: Any, use: Use) -> dict[str, Any]:
    return {"out_features": _weight(module).shape[0], "in_features": _weight(module).shape[1]}


@recounts(nn.Bilinear)
def _bilinear(module: Any, use: Use) -> dict[str, Any]:
    out, first, second = module.weight.shape
    return {"out_features": out, "in1_features": first, "in2_features": second}


@recounts(batchnorm._BatchNorm, instancenorm._InstanceNorm)
def _batch_norm(module: Any, use: Use) -> dict[str, Any]:
    for tensor in (module.weight, module.running_mean):
        if tensor is not None:
            return {"num_features": tensor.shape[0]}
    if use.input is None:
        return {}
    batched = isinstance(module, batchnorm._BatchNorm) or use.input.ndim > module._get_no_batch_dim()
    return {"num_features": use.input_size(1 if batched else 0)}


@recounts(nn.LayerNorm, nn.RMSNorm)
def _layer_norm(module: Any, use: Use) -> dict[str, Any]:
    if module.weight is not None:
        return {"normalized_shape": tuple(module.weight.shape)}
    if use.input is None:
        return {}
    return {"normalized_shape": use.removal.shape(use.input.vectors[-len(module.normalized_shape) :])}


@recounts(nn.GroupNorm)
def _group_norm(module: Any, use: Use) -> dict[str, Any]:
    groups, channels = use.counted("group"), use.counted("C")
    return {"num_groups": groups and groups[0], "num_channels": channels and channels[0]}


@recounts(nn.PReLU)
def _prelu(module: Any, use: Use) -> dict[str, Any]:
    return {"num_parameters": module.weight.shape[0]}


@recounts(nn.Embedding, nn.EmbeddingBag)
def _embedding(module: Any, use: Use) -> dict[str, Any]:
    return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}


@recounts(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
def _constant_pad(module: Any, use: Use) -> dict[str, Any]:
    if use.input is None or not isinstance(use.output, Operand):
        return {}
    return {"padding": tuple(padding(use.removal, use.input, use.output, module.padding))}


@recounts(nn.ChannelShuffle)
def _channel_shuffle(module: Any, use: Use) -> dict[str, Any]:
    groups = use.counted("groups")
    return {"groups": groups and groups[0]}


@recounts(nn.Unflatten)
def _unflatten(module: Any, use: Use) -> dict[str, Any]:
    if not isinstance(use.output, Operand) or not isinstance(module.dim, int) or use.input is None:
        return {}
    first = module.dim % use.input.ndim
    count = len(module.unflattened_size)
    sizes = use.removal.shape(use.output.vectors[first : first + count])
    return {"unflattened_size": sizes}
