"""The parametrizations of a pruned layer's weight, and the hooks on its output.

The weight loses the pruned outputs, so that the layer computes only those that are kept; `ActivationReconstruction`
puts them back among zeros, so that what follows sees the shape it always saw; `BiasHook` adds the bias then. Both
hooks are without state, and read from the layer they are called for: a deep copy of a layer is a layer of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import PlanError
from fxprune.pruner.outputs import OriginalOutputs, PrunedOutputs

BIAS = "_bias"
"""Where the bias of a pruned layer stands while the layer itself has none."""


class OutputsParametrization(nn.Module):
    """A parametrization that knows which outputs of a layer are pruned.

    mask: bool buffer [outputs], True = keep; saved with the model.
    kept: int64 buffer [outputs that are kept], derived from the mask; not saved.

    Change the set through `pruned_outputs`. What is written into `mask` itself takes effect with `refresh`, which
    every `step` of a pruner calls.
    """

    mask: Tensor
    kept: Tensor

    def __init__(self, size: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mask", torch.ones(size, dtype=torch.bool, device=device))
        self.register_buffer("kept", torch.arange(size, device=device), persistent=False)

    @property
    def original_outputs(self) -> OriginalOutputs:
        """All outputs that the layer had: a set, which `random.sample` takes too."""
        return OriginalOutputs(self.size)

    @property
    def pruned_outputs(self) -> PrunedOutputs:
        """The outputs that are pruned: a set that can be changed."""
        return PrunedOutputs(self)

    @pruned_outputs.setter
    def pruned_outputs(self, indices: Any) -> None:
        self.pruned_outputs.replace(set(indices) if isinstance(indices, PrunedOutputs) else indices)

    def set_mask(self, mask: Tensor) -> None:
        """Take another mask. Raises `PlanError` if it has another shape or type, or keeps nothing."""
        if mask.dtype is not torch.bool or mask.shape != (self.size,):
            raise PlanError(
                "a mask of outputs must be a bool tensor with one entry per output",
                why=f"it is {str(mask.dtype).removeprefix('torch.')} of shape {tuple(mask.shape)}, "
                f"the layer has {self.size} outputs",
            )
        kept = mask.nonzero().flatten()
        if not len(kept):
            raise PlanError(
                f"all {len(mask)} outputs would be pruned", why="a layer cannot be empty", do="keep at least one"
            )
        self.mask.copy_(mask)
        self.kept = kept.to(self.mask.device)

    def refresh(self) -> None:
        """Read the mask again, after it was written to."""
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
        """Kept and original outputs."""
        return f"{len(self.kept)} of {self.size} outputs kept"


class PruningParametrization(OutputsParametrization):
    """w[k, ...] = original[kept[k], ...]: pruned outputs are taken out along `dim`.

    >>> import torch
    >>> parametrization = PruningParametrization(4)
    >>> parametrization.pruned_outputs.update([1, 2])
    >>> parametrization(torch.arange(8.0).view(4, 2))
    tensor([[0., 1.],
            [6., 7.]])
    """

    def __init__(self, size: int, *, dim: int = 0, device: torch.device | str | None = None) -> None:
        super().__init__(size, device=device)
        self.dim = dim

    def forward(self, original: Tensor) -> Tensor:
        """The rows that are kept."""
        return original.index_select(self.dim, self.kept)


class ZeroesParametrization(OutputsParametrization):
    """w[k, ...] = original[k, ...] if k is kept, else 0: where the shape has to stay.

    So for batch normalisation, whose input keeps its channels, and for convolutions with groups, which need equally
    many outputs in each.

    >>> import torch
    >>> parametrization = ZeroesParametrization(3)
    >>> parametrization.pruned_outputs.add(1)
    >>> parametrization(torch.tensor([3.0, 4.0, 5.0]))
    tensor([3., 0., 5.])
    """

    def forward(self, original: Tensor) -> Tensor:
        """The same shape, pruned outputs zero."""
        return zeroed(original, self.mask)


class FollowingParametrization(nn.Module):
    """`ZeroesParametrization` by the mask of another parametrization.

    The bias of a layer follows its weight, and a batch normalisation its convolution: one mask, saved once, that
    cannot come apart. `mask` and `pruned_outputs` are those that are followed.
    """

    def __init__(self, followed: OutputsParametrization) -> None:
        super().__init__()
        self._followed = (followed,)  # in a tuple: followed, not owned, so that its mask is saved in one place

    @property
    def followed(self) -> OutputsParametrization:
        """The parametrization whose mask it is."""
        return self._followed[0]

    @property
    def mask(self) -> Tensor:
        """True = keep."""
        return self.followed.mask

    @property
    def original_outputs(self) -> OriginalOutputs:
        """All outputs that the followed layer had."""
        return self.followed.original_outputs

    @property
    def pruned_outputs(self) -> PrunedOutputs:
        """The outputs of the followed layer that are pruned."""
        return self.followed.pruned_outputs

    def forward(self, original: Tensor) -> Tensor:
        """The same shape, pruned outputs zero."""
        return zeroed(original, self.mask.to(original.device))


def zeroed(tensor: Tensor, mask: Tensor) -> Tensor:
    """A copy of a tensor [outputs, ...] that is zero where the mask is False, also where it held inf or NaN."""
    return tensor.masked_fill(~mask.view(-1, *[1] * (tensor.ndim - 1)), 0)


class ActivationReconstruction:
    """A forward hook: y[.., k, ..] of the kept outputs becomes [.., outputs, ..], zero where they are pruned.

    dim: the dimension of the outputs in y, counted from the end, because y may have no batch.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """The output at its original size."""
        pruning = pruning_of(module)
        shape = list(output.shape)
        if shape[self.dim] == pruning.size:
            return output
        shape[self.dim] = pruning.size
        return output.new_zeros(shape).index_copy(self.dim, pruning.kept, output)


class BiasHook:
    """A forward hook: y[.., k, ..] + bias[k], after the zeros are back; without the pruned entries if `prune`.

    dim: the dimension of the outputs in y, counted from the end.
    """

    def __init__(self, dim: int, *, prune: bool) -> None:
        self.dim, self.prune = dim, prune

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """The output with its bias, in the type of the output (under autocast not that of the bias)."""
        bias = module._parameters[BIAS]
        assert bias is not None
        used = zeroed(bias, pruning_of(module).mask) if self.prune else bias
        return output + used.to(output.dtype).view(-1, *[1] * (-1 - self.dim))


def pruning_of(module: nn.Module) -> OutputsParametrization:
    """The parametrization that says which outputs of a prepared layer are pruned."""
    found: Any = module.parametrizations
    return found["weight"][0]  # type: ignore[no-any-return]
