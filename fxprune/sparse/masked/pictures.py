"""A picture of a layer's connections."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxprune.arguments import checks_names
from fxprune.errors import FxpruneError, PlanError
from fxprune.sparse.masked.layers import is_masked

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@checks_names
def spy(
    layer_or_mask: nn.Module | Tensor, *, ax: Axes | None = None, path: str | os.PathLike[str] | None = None
) -> Axes:
    """Draws which inputs (columns) a layer connects with which outputs (rows); returns the axes.

    Args:
        layer_or_mask: a bool mask [out, in], drawn in black. Or weights, drawn in colours, red above zero and blue
            below: a masked layer, an `nn.Linear`, an `nn.Conv2d` or a matrix. Only connected weights are drawn; without
            a mask these are the weights that are not zero. A kernel [h, w] is drawn as its L2 norm.
        ax: the axes to draw on; None makes a new figure.
        path: the file to save the figure to; its suffix is the format.

    Raises `FxpruneError` without matplotlib (`pip install 'fxprune[plot]'`), and `PlanError` for anything that is no
    matrix.

    >>> from matplotlib.figure import Figure
    >>> ax = spy(torch.eye(3, dtype=torch.bool), ax=Figure().subplots())
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('input', 'output')
    """
    values, connected = _matrix(layer_or_mask)
    ax = _axes(path) if ax is None else ax
    import numpy as np

    if values is None:
        ax.imshow(connected.numpy(), cmap="binary", vmin=0, vmax=1, interpolation="nearest")
    else:
        hidden = np.ma.masked_array(values.numpy(), mask=~connected.numpy())
        bound = float(values[connected].abs().max()) if connected.any() else 1.0
        shown = ax.imshow(hidden, cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
        ax.figure.colorbar(shown, ax=ax)
    ax.set_xlabel("input")
    ax.set_ylabel("output")
    ax.set_title(f"{int(connected.sum())} of {connected.numel()} connected")
    if path is not None:
        ax.figure.savefig(path)  # type: ignore[union-attr]
    return ax


def _matrix(given: Any) -> tuple[Tensor | None, Tensor]:
    """Returns the weights [out, in] (None for a mask) and a bool matrix of the connections, both on the CPU."""
    if isinstance(given, nn.Module):
        weight, mask = getattr(given, "weight", None), getattr(given, "mask", None)
        if not isinstance(given, (nn.Linear, nn.Conv2d)) or not isinstance(weight, Tensor):
            raise PlanError(
                "no layer with connections to draw",
                at=type(given).__name__,
                why=f"it is {type(given).__name__}",
                do="pass a linear layer, a convolution or a mask",
            )
        values: Tensor = weight.detach()
        connected = mask.expand(values.shape) if is_masked(given) and mask is not None else values != 0
    elif isinstance(given, Tensor):
        values, connected = given.detach(), given.detach() != 0
    else:
        raise PlanError(
            "neither a layer nor a mask",
            at="draw",
            why=f"it is {type(given).__name__}",
            do="pass a linear layer, a convolution or a mask",
        )
    if values.ndim not in (2, 4):
        raise PlanError(
            "what is drawn is a matrix",
            at=type(given).__name__,
            why=f"the shape is {tuple(values.shape)}",
            do="pass [out, in]",
        )
    values, connected = values.cpu(), connected.cpu()
    if values.ndim == 4:
        connected = connected.flatten(2).any(2)
        values = connected if values.dtype is torch.bool else values.float().flatten(2).norm(dim=2)
    return (None if values.dtype is torch.bool else values.float()), connected


def _axes(path: Any) -> Axes:
    """Returns new axes; those of a figure that is saved to a path open no window."""
    try:
        if path is not None:
            from matplotlib.figure import Figure

            return Figure().subplots()
        from matplotlib import pyplot

        return pyplot.subplots()[1]
    except ImportError as error:
        raise FxpruneError(
            "drawing needs matplotlib", at="fxprune.sparse", why=str(error), do="pip install 'fxprune[plot]'"
        ) from error
