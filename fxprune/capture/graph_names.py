"""Names of parts of a model that no graph can have: `torch.fx.GraphModule` has something else there."""

from __future__ import annotations

from torch import fx, nn

from fxprune.errors import CaptureError

_OF_A_MODULE = nn.Module()
_OF_A_GRAPH = fx.GraphModule(nn.Module(), fx.Graph())
_TAKEN = frozenset(dir(fx.GraphModule)).union(vars(_OF_A_GRAPH)).difference(dir(nn.Module), vars(_OF_A_MODULE))


def check_names(model: nn.Module) -> None:
    """Raise `CaptureError` for a parameter, buffer or submodule of the model itself with such a name."""
    parts = (*model._parameters, *model._buffers, *model._modules)
    taken = [name for name in parts if name in _TAKEN]
    if taken and not isinstance(model, fx.GraphModule):
        raise CaptureError(
            f'no graph can have a part that is named "{taken[0]}"',
            at=type(model).__name__,
            why=f"torch.fx.GraphModule.{taken[0]} is something else",
            do="give it another name, or keep the class",
        )
