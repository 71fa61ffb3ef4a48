"""Names of parts of a model that no graph can have: `torch.fx.GraphModule` has something else there."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Set

from torch import fx, nn

from fxprune.errors import CaptureError

_OF_A_MODULE = nn.Module()
_OF_A_GRAPH = fx.GraphModule(nn.Module(), fx.Graph())
_TAKEN = frozenset(dir(fx.GraphModule)).union(vars(_OF_A_GRAPH)).difference(dir(nn.Module), vars(_OF_A_MODULE))


def free_names(names: Iterable[str]) -> dict[str, str]:
    """Names of tensors that no graph can have -> others, which no tensor and no module has.

    names: of all tensors. A part of a model cannot have the name of something of `torch.fx.GraphModule`; no part at any
    depth can have that of a keyword of Python.

    >>> free_names(["meta.weight", "meta_", "heads.class.bias", "head.bias"])
    {'meta.weight': 'meta__.weight', 'heads.class.bias': 'heads.class_.bias'}
    """
    listed = list(names)
    paths = {path for name in listed for path in _paths_to(name)}
    return {name: free for name in listed if (free := _freed(name, paths)) != name}


def _freed(name: str, paths: Set[str]) -> str:
    """The name with other parts in the place of those that no graph can have. paths: of all modules and tensors."""
    parts = []
    for path in _paths_to(name):
        before, dot, part = path.rpartition(".")
        refused = keyword.iskeyword(part) or path in _TAKEN
        while refused and (part == path[len(before + dot) :] or f"{before}{dot}{part}" in paths):
            part += "_"
        parts.append(part)
    return ".".join(parts)


def _paths_to(name: str) -> list[str]:
    """The paths of the modules around a tensor, from the outermost, and its own name."""
    parts = name.split(".")
    return [".".join(parts[: number + 1]) for number in range(len(parts))]


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
