"""The parametrizations of a pruned layer's weight, and the hooks on its output.

The weight loses the pruned outputs, so that the layer computes only the others. Then `ActivationReconstruction` inserts
zeros for the pruned outputs, so that the next layer gets the original shape, and `BiasHook` adds the bias. Both hooks
have no state and read the mask from the layer that they are called for, so that they work in deep copies.
"""

from __future__ import annotations

import numbers
from collections.abc import Set
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import PlanError
from fxprune.pruner.outputs import OriginalOutputs, PrunedOutputs

BIAS = "_bias"
"""The name of the bias of a prepared layer, whose own `bias` is None."""


class OutputsParametrization(nn.Module):
    """The base of the parametrizations that hold the mask of a layer's outputs.

    mask: bool buffer [outputs], True = keep; saved with the model.
    kept: int64 buffer, the indices of the kept outputs; computed from the mask, not saved.

    Change the mask through `pruned_outputs`. Values written directly into `mask` take effect after `refresh`, which
    every `step` of a pruner calls.
    """

    mask: Tensor
    kept: Tensor

    whole = False
    """True while an `update_mask` of torch.ao runs, which reads a weight of the original shape with zeros in it."""

    def __init__(self, size: int | Set[int] | Tensor, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.size = size = _number_of(size)
        self.register_buffer("mask", torch.ones(size, dtype=torch.bool, device=device))
        self.register_buffer("kept", torch.arange(size, device=device), persistent=False)

    @property
    def original_outputs(self) -> OriginalOutputs:
        """All outputs that the layer had: a set, and also a sequence, for `random.sample`."""
        return OriginalOutputs(self.size)

    @property
    def pruned_outputs(self) -> PrunedOutputs:
        """The pruned outputs: a set that can be changed."""
        return PrunedOutputs(self)

    @pruned_outputs.setter
    def pruned_outputs(self, indices: Any) -> None:
        self.pruned_outputs.replace(set(indices) if isinstance(indices, PrunedOutputs) else indices)

    def set_mask(self, mask: Tensor) -> None:
        """Sets another mask. Raises `PlanError` if it has another shape or type, or keeps nothing."""
        if mask.dtype is not torch.bool or mask.shape != (self.size,):
            raise PlanError(
                "a mask of outputs must be a bool tensor with one entry per output",
                why=f"it is {str(mask.dtype).removeprefix('torch.')} of shape {tuple(mask.shape)}, "
                f"the layer has {self.size} outputs",
                do=f"pass a bool tensor of shape ({self.size},), True = keep",
            )
        kept = mask.nonzero().flatten()
        if not len(kept):
            raise PlanError(
                f"all {len(mask)} outputs would be pruned", why="a layer cannot be empty", do="keep at least one"
            )
        self.mask.copy_(mask)
        self.kept = kept.to(self.mask.device)

    def refresh(self) -> None:
        """Applies values that were written directly into the mask."""
        self.set_mask(self.mask)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        saved = state_dict.get(prefix + "mask")
        if isinstance(saved, Tensor) and not bool(saved.any()):
            error_msgs.append(f"{prefix}mask prunes all {len(saved)} outputs of the layer; a layer cannot be empty")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self.refresh()

    def extra_repr(self) -> str:
        """The numbers of kept and of all outputs."""
        return f"{len(self.kept)} of {self.size} outputs kept"


def _number_of(outputs: Any) -> int:
    """Returns how many outputs there are, from their number or from the set of them."""
    number = outputs.tolist() if isinstance(outputs, Tensor) else outputs
    if isinstance(number, (Set, range, list, tuple)):
        number = len(number) if set(number) == set(range(len(number))) else outputs
    if not isinstance(number, numbers.Integral) or isinstance(number, bool) or number < 1:
        raise PlanError(
            f"the outputs must be their number or the set of all, not {outputs!r}", do="pass 4, or {0, 1, 2, 3}"
        )
    return int(number)


class PruningParametrization(OutputsParametrization):
    """w[k, ...] = original[kept[k], ...]: pruned outputs are removed along `dim`.

    size: the number of outputs, or the set of all of them, {0, ..., size - 1}.

    >>> import torch
    >>> parametrization = PruningParametrization(4)
    >>> parametrization.pruned_outputs.update([1, 2])
    >>> parametrization(torch.arange(8.0).view(4, 2))
    tensor([[0., 1.],
            [6., 7.]])
    """

    def __init__(
        self, size: int | Set[int] | Tensor, *, dim: int = 0, device: torch.device | str | None = None
    ) -> None:
        super().__init__(size, device=device)
        self.dim = dim

    def forward(self, original: Tensor) -> Tensor:
        """Returns the kept rows."""
        if self.whole:
            return zeroed(original.movedim(self.dim, 0), self.mask).movedim(0, self.dim)
        return original.index_select(self.dim, self.kept)


class ZeroesParametrization(OutputsParametrization):
    """w[k, ...] = original[k, ...] if k is kept, else 0: the weight keeps its shape.

    For batch norms, whose input keeps its channels, and for convolutions with groups, which need the same number of
    outputs in each group.

    >>> import torch
    >>> parametrization = ZeroesParametrization(3)
    >>> parametrization.pruned_outputs.add(1)
    >>> parametrization(torch.tensor([3.0, 4.0, 5.0]))
    tensor([3., 0., 5.])
    """

    def forward(self, original: Tensor) -> Tensor:
        """Returns a tensor of the same shape, with zeros for pruned outputs."""
        return zeroed(original, self.mask)


class FollowingParametrization(ZeroesParametrization):
    """A `ZeroesParametrization` that uses the mask of another parametrization.

    The bias of a layer uses the mask of the weight, and a batch norm that of the layer before it. So there is one mask,
    which is saved once. `mask` and `pruned_outputs` are those of the other parametrization.
    """

    def __init__(self, followed: OutputsParametrization) -> None:
        nn.Module.__init__(self)
        self._followed = (followed,)  # in a tuple it is no submodule, so that its mask is saved once

    def __getattr__(self, name: str) -> Any:
        """The mask, the kept outputs and their number are those of the other parametrization."""
        if name in ("mask", "kept", "size"):
            return getattr(self.followed, name)
        return super().__getattr__(name)

    @property
    def followed(self) -> OutputsParametrization:
        """The parametrization that holds the mask."""
        return self._followed[0]

    def set_mask(self, mask: Tensor) -> None:
        """Sets the mask of the other parametrization."""
        self.followed.set_mask(mask)

    def forward(self, original: Tensor) -> Tensor:
        """Returns a tensor of the same shape, with zeros for pruned outputs."""
        return zeroed(original, self.mask.to(original.device))


def zeroed(tensor: Tensor, mask: Tensor) -> Tensor:
    """Returns a copy of a tensor [outputs, ...] that is zero where the mask is False, also if it held inf or NaN."""
    return tensor.masked_fill(~mask.view(-1, *[1] * (tensor.ndim - 1)), 0)


class ActivationReconstruction:
    """A forward hook that extends an output from the kept to all outputs, with zeros for the pruned ones.

    dim: the dimension of the outputs, counted from the end, because there may be no batch dimension.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Returns the output in its original size."""
        pruning = pruning_of(module)
        shape = list(output.shape)
        if shape[self.dim] == pruning.size:
            return output
        shape[self.dim] = pruning.size
        return output.new_zeros(shape).index_copy(self.dim, pruning.kept, output)


class BiasHook:
    """A forward hook that adds the bias, after `ActivationReconstruction`: y[.., k, ..] + bias[k].

    dim: the dimension of the outputs, counted from the end. prune: True adds no bias to pruned outputs.
    """

    def __init__(self, dim: int, *, prune: bool) -> None:
        self.dim, self.prune = dim, prune

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Returns the output with its bias, in the type of the output, which under autocast differs from the bias's."""
        bias = module._parameters[BIAS]
        assert bias is not None
        used = zeroed(bias, pruning_of(module).mask) if self.prune else bias
        return output + used.to(output.dtype).view(-1, *[1] * (-1 - self.dim))


def pruning_of(module: nn.Module) -> OutputsParametrization:
    """Returns the parametrization of the weight of a prepared layer, which holds or knows the mask."""
    found: Any = module.parametrizations
    return found["weight"][0]  # type: ignore[no-any-return]
