"""The base of the eager pruners: prepare, step, squash, convert."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import NothingRemovedWarning, PlanError
from fxprune.pruner.config import LayerToPrune, layers_to_prune
from fxprune.pruner.convert import converted
from fxprune.pruner.layers import follow, is_prepared, prepare_layer, squash_layer, why_not_squash
from fxprune.pruner.parametrization import OutputsParametrization, pruning_of


class BasePruner(abc.ABC):
    """Prunes outputs of layers of a model in place, while the shapes of all outputs stay what they are.

    A pruned output is neither computed nor trained: its row of the weight is taken out, and a forward hook puts a
    zero in its place. The interface is that of `torch.ao.pruning`; `convert` then makes the smaller model.

    Write `update_mask`, and the rest follows:

    >>> import random, torch
    >>> class ThirdPruner(BasePruner):
    ...     def update_mask(self, layer, **kwargs):
    ...         param = layer.parametrizations.weight[0]
    ...         outputs = param.original_outputs
    ...         param.pruned_outputs.update(random.sample(outputs, len(outputs) // 3))
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)).eval()
    >>> pruner = ThirdPruner()
    >>> pruner.prepare(net, ["0"])
    >>> pruner.step()
    >>> net[0].weight.shape, net[0](torch.randn(1, 4)).shape
    (torch.Size([4, 4]), torch.Size([1, 6]))
    >>> pruner.convert(torch.randn(1, 4)).get_submodule("0")
    Linear(in_features=4, out_features=4, bias=True)

    Args:
        defaults: settings that `update_mask` is called with, where the config of a layer does not say otherwise.
        also_prune_bias: the bias of a pruned output is zero too, and with it the whole output. Otherwise the output
            is the constant bias.
    """

    def __init__(self, defaults: Mapping[str, Any] | None = None, also_prune_bias: bool = True) -> None:
        if defaults is not None and not isinstance(defaults, Mapping):
            raise PlanError(f"defaults must be a dict, not {type(defaults).__name__}")
        self.defaults = dict(defaults or {})
        self.also_prune_bias = also_prune_bias
        self.model: nn.Module | None = None
        self.targets: list[LayerToPrune] = []
        self.steps = 0
        self._squashed: dict[str, Tensor] | None = None

    @abc.abstractmethod
    def update_mask(self, layer: nn.Module, **kwargs: Any) -> None:
        """Change `layer.parametrizations.weight[0].pruned_outputs`; called for every layer by `step`.

        Args:
            layer: one of the prepared layers.
            kwargs: the defaults, overridden by the settings in the config of this layer.
        """

    def prepare(self, model: nn.Module, config: list[Any] | None = None) -> None:
        """Put parametrizations and hooks on layers of `model`, in place. Its function stays what it was, to rounding.

        Parameters stay the objects they are, so that an optimizer made before stays valid: the weight as
        `layer.parametrizations.weight.original`, the bias as `layer._bias`.

        Args:
            model: the model.
            config: a list whose entries say which layers, or None for every `nn.Linear` and convolution in it. An
                entry is a pattern (see `fxprune.names`), a pair (layer, batch norm that follows it) of modules or
                names, or a dict {"name" or "module": one of these, or "tensor_fqn": "conv1.weight"} whose other
                keys are settings of this layer. A batch norm in a pair loses the channels its layer loses.

        Raises `PlanError`, before anything is changed, for a layer that is unknown, named twice, or cannot be pruned
        (another kind, shared or parametrized weights, its own way to compute), and when called twice.
        """
        if self.model is not None and self._squashed is None:
            raise PlanError("the pruner has prepared a model already", do="squash_mask() first, or make another pruner")
        targets = layers_to_prune(model, config)
        for target in targets:
            prepare_layer(target.layer, prune_bias=self.also_prune_bias)
            if target.norm is not None:
                follow(target.norm, target.layer, prune_bias=self.also_prune_bias)
        self.model, self.targets, self.steps, self._squashed = model, targets, 0, None

    def step(self) -> None:
        """Call `update_mask` for every layer, and count the call in `steps`.

        Raises what `update_mask` raises, and `PlanError` where it left a layer without outputs; all masks are then
        what they were. Warns with `NothingRemovedWarning` when no output of any layer is pruned afterwards.
        """
        self._check("step")
        before = [(p, p.mask.clone()) for p in map(self._pruning, self.targets)]
        try:
            with torch.no_grad():
                for target in self.targets:
                    self._update(target)
        except BaseException:
            for pruning, mask in before:
                pruning.mask = mask
                pruning.refresh()
            raise
        self.steps += 1
        if self._pruned() == 0 and self._asks():
            warnings.warn(
                f"step {self.steps} pruned nothing: {self._why_nothing()}", NothingRemovedWarning, stacklevel=2
            )

    def squash_mask(self) -> None:
        """Take the machinery off, in place: weights of the original shapes, zero where outputs are pruned.

        Biases are zero there too if `also_prune_bias`. Parameters stay the objects they are, with their gradients
        and `requires_grad`, so that an optimizer stays valid; it would train the zeros again, though.

        Warns with `NothingRemovedWarning` when no output is pruned.
        """
        self._check("squash_mask")
        masks = self.masks()
        for name, module in self._modules():
            why = why_not_squash(module)
            if why:
                raise PlanError(f'"{name}" cannot be squashed', why=why)
        if self._pruned() == 0:
            warnings.warn(f"no output is pruned: {self._why_nothing()}", NothingRemovedWarning, stacklevel=2)
        for _, module in self._modules():
            squash_layer(module)
        self._squashed = masks

    def masks(self) -> dict[str, Tensor]:
        """Layer name -> bool mask [outputs], True = keep; as `transform` takes them. Also after `squash_mask`."""
        if self._squashed is not None:
            return {name: mask.clone() for name, mask in self._squashed.items()}
        self._check("masks")
        return {t.name: self._pruning(t).mask.clone() for t in self.targets}

    def convert(self, example_inputs: Any, **options: Any) -> nn.Module:
        """The smaller model: the same function without pruned outputs and without hooks. The model is only read.

        The zeros are squashed into a copy, and `fxprune.transform` takes the pruned outputs out of that, folding
        into what follows what is left of them (a bias, the shift of a batch norm, an activation at zero). The result
        is compared with the pruned model in float64 and evaluation mode.

        Outputs that cannot go, or that are added to others which are not pruned, stay as rows of zeros: that is the
        same function too. A `ChannelsStayWarning` and `record(small).reasons` name the layers and the reasons.

        Args:
            example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
            options: of `fxprune.transform`, such as `path`, `ignore` or `verify`. `exact` is True, and `norms` is
                "preserve" unless given.

        Raises `VerificationError` where the result is another function, and what `transform` raises.
        """
        if self._squashed is None:
            self._check("convert")
        assert self.model is not None
        return converted(self.model, self.masks(), example_inputs, options)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps. The masks are buffers of the model, and in its `state_dict`."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the steps that `state` counts."""
        steps = state.get("steps") if isinstance(state, Mapping) else None
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise PlanError("this is no state of a pruner", why=f"its steps are {steps!r}", do="pass state_dict()")
        self.steps = steps

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}({self.steps} steps"]
        for target in self.targets if self._squashed is None else ():
            norm = f", {target.norm_name}" if target.norm_name else ""
            lines.append(f"  {target.name}{norm}: {self._pruning(target).extra_repr()}")
        return "\n".join(lines) + ")"

    # -- what subclasses may say ----------------------------------------------------------------------------

    def _asks(self) -> bool:
        """True if the last step asked for any output to be pruned."""
        return True

    # -- inside ---------------------------------------------------------------------------------------------

    def _update(self, target: LayerToPrune) -> None:
        try:
            self.update_mask(target.layer, **{**self.defaults, **target.settings})
            self._pruning(target).refresh()
        except PlanError as error:
            where = f'layer "{target.name}"' + (f", {error.at}" if error.at else "")
            raise PlanError(error.what, at=where, why=error.why, do=error.do) from error

    def _check(self, what: str) -> None:
        if self.model is None:
            raise PlanError(f"{what} was called before prepare", do="prepare(model, config) first")
        if self._squashed is not None:
            raise PlanError(f"{what} was called after squash_mask", why="the masks are in the weights already")
        for name, module in self._modules():
            if not is_prepared(module):
                raise PlanError(f'"{name}" has lost the parametrization that prepare put on its weight')

    def _modules(self) -> list[tuple[str, nn.Module]]:
        norms = [(t.norm_name, t.norm) for t in self.targets if t.norm is not None]
        return [*norms, *((t.name, t.layer) for t in self.targets)]

    @staticmethod
    def _pruning(target: LayerToPrune) -> OutputsParametrization:
        return pruning_of(target.layer)

    def _pruned(self) -> int:
        return sum(len(self._pruning(t).pruned_outputs) for t in self.targets)

    def _why_nothing(self) -> str:
        if not self.steps:
            return "step was not called"
        return f"{type(self).__name__}.update_mask left every output of {len(self.targets)} layers"
