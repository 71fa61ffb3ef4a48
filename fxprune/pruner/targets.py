"""A layer that a pruner prunes, as a config names it, and the settings that its `update_mask` takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fxprune.errors import PlanError, nearest

PRUNE_BIAS = "prune_bias"
"""The setting that every pruner has: whether the bias of a pruned output becomes zero."""

OF_TORCH_AO = ("parametrization", "mask")
"""Keys of a config of `torch.ao.pruning` that mean nothing here."""

KEYS = ("module", "module_fqn", "tensor_name", "tensor_fqn")
"""The keys of a group that say which tensor is meant; the others are settings."""


@dataclass(frozen=True)
class LayerToPrune:
    """A layer to prune, the batch normalisation that loses the same channels, and the layer's own settings.

    prune_bias, norm_prune_bias: the setting of this name for the layer and for the norm; None means that of the pruner.
    """

    name: str
    layer: nn.Module
    norm_name: str = ""
    norm: nn.Module | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    prune_bias: bool | None = None
    norm_prune_bias: bool | None = None

    def group(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the group of `torch.ao.pruning`: the keys that name the weight, and the settings."""
        named = {"module": self.layer, "module_fqn": self.name, "tensor_name": "weight"}
        own = {} if self.prune_bias is None else {PRUNE_BIAS: self.prune_bias}
        return {**defaults, **self.settings, **own, **named, "tensor_fqn": f"{self.name}.weight"}


def bias_setting(value: Any) -> bool:
    """Returns a value of "prune_bias". Raises `PlanError` if it is neither True nor False."""
    if not isinstance(value, bool):
        raise PlanError(f"prune_bias must be True or False, not {value!r}", do="pass True or False")
    return value


class MaskUpdate:
    """A pruner's `update_mask`, in either form: (layer, **settings), or (module, tensor_name, **group) of torch.ao."""

    def __init__(self, function: Callable[..., Any], known: Sequence[str] | None) -> None:
        self.function, self.known = function, known
        parameters = list(inspect.signature(function).parameters.values())
        self.takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.accepted = [p.name for p in named]
        self.of_torch_ao = "tensor_name" in self.accepted
        first = {p.name for p in named[:1] if p.kind is not p.KEYWORD_ONLY}
        self.names = [p.name for p in named if p.name not in first and p.name not in KEYS]
        self.needed = [p.name for p in named if p.name in self.names and p.default is p.empty]

    def check(self, settings: Mapping[str, Any], at: str) -> None:
        """Raises `PlanError` for settings that `update_mask` does not take, and for one that it needs."""
        known = self.known if self.known is not None else None if self.takes_all else self.names
        possible = [*(known if known is not None else self.names), PRUNE_BIAS]
        for name in settings:
            strange = name not in known if known is not None else name in OF_TORCH_AO or _is_misspelt(name)
            if strange and name not in self.names:
                hint = nearest(str(name), possible)
                listed = f"the settings are {', '.join(possible)}"
                raise PlanError(f"there is no setting {name!r}", at=at, why=hint or listed, do="leave it out")
        for name in self.needed:
            if name not in settings:
                raise PlanError(
                    f"the setting {name!r} is missing",
                    at=at,
                    why="update_mask has no default for it",
                    do="add it to config or defaults",
                )

    def __call__(self, group: Mapping[str, Any]) -> None:
        """Calls the function for a group."""
        if self.of_torch_ao:
            own = {k: v for k, v in group.items() if self.takes_all or k in self.accepted}
            self.function(**own)
        else:
            self.function(group["module"], **{k: v for k, v in group.items() if k not in (*KEYS, PRUNE_BIAS)})


def _is_misspelt(name: Any) -> bool:
    """True for a word that is nearly "prune_bias", such as "also_prune_bias" and "prune_biases"."""
    return bool(difflib.get_close_matches(str(name), [PRUNE_BIAS], cutoff=0.8))
