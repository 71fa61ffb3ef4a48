"""The base class of the eager pruners: prepare, step, squash, convert."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.arguments import checks_arguments
from fxprune.errors import NothingRemovedWarning, PlanError
from fxprune.pruner.config import LayerToPrune, layers_to_prune
from fxprune.pruner.convert import converted
from fxprune.pruner.layers import follow, is_prepared, prepare_layer, squash_layer, why_not_squash
from fxprune.pruner.parametrization import OutputsParametrization, pruning_of


class BasePruner(abc.ABC):
    """Prunes outputs of layers of a model in place, while all tensors between layers keep their shapes.

    A pruned output is neither computed nor trained: its row of the weight is removed, and a forward hook puts zeros in
    its place. The interface is that of `torch.ao.pruning`; `convert` then makes the smaller model.

    A subclass defines `update_mask`:

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
        defaults: settings passed to `update_mask`, unless the config of a layer overrides them.
        also_prune_bias: True makes the bias of a pruned output zero too, so that the output is zero. With False the
            output is the bias, a constant.
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
        """Changes `layer.parametrizations.weight[0].pruned_outputs`; `step` calls it for every layer.

        Args:
            layer: one of the prepared layers.
            kwargs: the defaults, overridden by the settings in the config of this layer.
        """

    @checks_arguments("model")
    def prepare(self, model: nn.Module, config: list[Any] | None = None) -> None:
        """Sets parametrizations and hooks on layers of `model`, in place. The model computes the same, up to rounding.

        Parameters stay the same objects, so that an optimizer made before stays valid. The weight becomes
        `layer.parametrizations.weight.original`, the bias `layer._bias`.

        Args:
            model: changed in place.
            config: the layers to prune, a list; None means every `nn.Linear` and convolution. An entry is a pattern
                (see `fxprune.names`); or a pair (layer, batch norm after it) of modules or names; or a dict with
                "name" or "module" (one of these) or "tensor_fqn" ("conv1.weight"), whose other keys are settings of
                this layer. The batch norm of a pair loses the same channels as its layer.

        Raises `PlanError`, before anything is changed, for a layer that is unknown, named twice, or cannot be pruned
        (another type, shared or parametrized weights, a forward of its own), and on a second call.
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
        """Calls `update_mask` for every layer, and adds 1 to `steps`.

        Raises the errors of `update_mask`, and `PlanError` if a layer would have no outputs; all masks then stay as
        they were. Warns with `NothingRemovedWarning` if no output of any layer is pruned afterwards.
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
        """Removes parametrizations and hooks, in place; weights have their original shapes, zero at pruned outputs.

        Biases are zero there too if `also_prune_bias`. Parameters stay the same objects, with their gradients and
        `requires_grad`, so that an optimizer stays valid; further training may change the zeros.

        Warns with `NothingRemovedWarning` if no output is pruned.
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
        """Returns {layer name: bool mask [outputs], True = keep}, for `transform`; works after `squash_mask` too."""
        if self._squashed is not None:
            return {name: mask.clone() for name, mask in self._squashed.items()}
        self._check("masks")
        return {t.name: self._pruning(t).mask.clone() for t in self.targets}

    def convert(self, example_inputs: Any, **options: Any) -> nn.Module:
        """Returns a smaller model that computes the same, without pruned outputs and hooks. The model is only read.

        The zeros are written into a copy, and `fxprune.transform` removes the pruned outputs of the copy. The constants
        that these leave (a bias, the shift of a batch norm, an activation of zero) are folded into the next layers. The
        result is compared with the pruned model in float64 and evaluation mode.

        Some pruned outputs cannot be removed, such as those that are added to outputs which are not pruned. They stay
        as rows of zeros, and the model computes the same. A `ChannelsStayWarning` and `record(small).reasons` name the
        layers and the reasons.

        Args:
            example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
            options: passed to `fxprune.transform`, such as `path`, `ignore` or `verify`. `exact` is always True, and
                `norms` is "preserve" by default.

        Raises `VerificationError` if the result computes something else, and the errors of `transform`.
        """
        if self._squashed is None:
            self._check("convert")
        assert self.model is not None
        return converted(self.model, self.masks(), example_inputs, options)

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of steps; the masks are in the `state_dict` of the model."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from the number of steps in `state`, a result of `state_dict`."""
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

    # -- overridden by subclasses ----------------------------------------------------------------------------

    def _asks(self) -> bool:
        """True if the last step should have pruned an output; False suppresses the warning that nothing was pruned."""
        return True

    # -- internal ---------------------------------------------------------------------------------------------

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
