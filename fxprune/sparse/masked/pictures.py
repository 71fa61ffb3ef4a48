"""A picture of a layer's connections."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError, PlanError
from fxprune.sparse.masked.layers import is_masked

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def spy(
    layer_or_mask: nn.Module | Tensor, *, ax: Axes | None = None, path: str | os.PathLike[str] | None = None
) -> Axes:
    """Draw which inputs (columns) a layer connects with which outputs (rows); returns the axes.

    Args:
        layer_or_mask: a bool mask [out, in], drawn in black; or a masked layer, an `nn.Linear` or `nn.Conv2d`, or a
            matrix of weights, drawn in colours, red above zero and blue below, where it is connected (not zero, if
            there is no mask). A kernel [h, w] counts by its L2 norm.
        ax: the axes to draw on; without them a new figure.
        path: where to save the figure, in a format that the suffix names.

    Raises `FxpruneError` without matplotlib (`pip install 'fxprune[plot]'`), and `PlanError` for what is no matrix.

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
    """Weights [out, in], None for a bare mask, and where they are connected; on the CPU."""
    if isinstance(given, nn.Module):
        weight, mask = getattr(given, "weight", None), getattr(given, "mask", None)
        if not isinstance(given, (nn.Linear, nn.Conv2d)) or not isinstance(weight, Tensor):
            raise PlanError("no layer with connections to draw", why=f"it is {type(given).__name__}")
        values: Tensor = weight.detach()
        connected = mask.expand(values.shape) if is_masked(given) and mask is not None else values != 0
    elif isinstance(given, Tensor):
        values, connected = given.detach(), given.detach() != 0
    else:
        raise PlanError("neither a layer nor a mask", why=f"it is {type(given).__name__}")
    if values.ndim not in (2, 4):
        raise PlanError("what is drawn is a matrix", why=f"the shape is {tuple(values.shape)}", do="pass [out, in]")
    values, connected = values.cpu(), connected.cpu()
    if values.ndim == 4:
        connected = connected.flatten(2).any(2)
        values = connected if values.dtype is torch.bool else values.float().flatten(2).norm(dim=2)
    return (None if values.dtype is torch.bool else values.float()), connected


def _axes(path: Any) -> Axes:
    """New axes; of a figure that no window knows if it only goes to a file."""
    try:
        if path is not None:
            from matplotlib.figure import Figure

            return Figure().subplots()
        from matplotlib import pyplot

        return pyplot.subplots()[1]
    except ImportError as error:
        raise FxpruneError("drawing needs matplotlib", why=str(error), do="pip install 'fxprune[plot]'") from error
