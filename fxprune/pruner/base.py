"""The base class of the eager pruners: prepare, step, squash, convert."""

from __future__ import annotations

import abc
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.arguments import checks_arguments, checks_names
from fxprune.errors import NothingRemovedWarning, PlanError, counted
from fxprune.pruner.config import layers_to_prune
from fxprune.pruner.convert import converted
from fxprune.pruner.layers import follow, is_prepared, prepare_layer, squash_layer, why_not_squash
from fxprune.pruner.parametrization import OutputsParametrization, pruning_of
from fxprune.pruner.state import (
    LayerGroup,
    kept_settings,
    load_groups,
    load_masks,
    register_with_torch_ao,
    saved_groups,
)
from fxprune.pruner.targets import PRUNE_BIAS, LayerToPrune, MaskUpdate, bias_setting


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
            output is the bias, a constant. "prune_bias" in the defaults or in the config of a layer overrides it.

    `update_mask` may also have the form of `torch.ao.pruning`, (module, tensor_name, **kwargs). It then gets all keys
    of the layer's group, and sees a weight of the original shape with zeros at pruned outputs.

    groups: a dict for every layer, as in torch.ao: "module", "module_fqn", "tensor_name", "tensor_fqn" and settings.
    Schedulers such as `torch.ao.pruning.LambdaSL` change the settings in it. enable_mask_update: False makes `step` do
    nothing.
    """

    known_settings: Sequence[str] | None = None
    """The settings that `update_mask` takes in **kwargs; None if it takes any."""

    def __init__(self, defaults: Mapping[str, Any] | None = None, also_prune_bias: bool = True) -> None:
        if defaults is not None and not isinstance(defaults, Mapping):
            raise PlanError(
                f"defaults must be a dict, not {type(defaults).__name__}",
                do='pass a dict, such as {"sparsity_level": 0.5}',
            )
        self.defaults = dict(defaults or {})
        self.also_prune_bias = also_prune_bias
        self.model: nn.Module | None = None
        self.targets: list[LayerToPrune] = []
        self.steps = 0
        self.config: list[Any] | None = None
        self.enable_mask_update = True
        self._groups: list[LayerGroup] = []
        self._state: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        self._squashed: dict[str, Tensor] | None = None

    @property
    def groups(self) -> list[LayerGroup]:
        """The groups of the prepared layers."""
        register_with_torch_ao(BasePruner)
        return self._groups

    @property
    def state(self) -> dict[str, dict[str, Any]]:
        """Returns {"layer.weight": {"mask": bool [outputs], True = keep}}, the masks themselves, as in torch.ao."""
        for target, group in zip(self.targets, self._groups, strict=True):
            if self._squashed is None:
                self._state[group["tensor_fqn"]]["mask"] = self._pruning(target).mask
        return self._state

    @checks_names
    def make_config_from_model(self, model: nn.Module, supported: Iterable[type[nn.Module]] | None = None) -> list[Any]:
        """Sets `config` to every layer that can be pruned, in the form of torch.ao, and returns it.

        supported: the types of layers; every `nn.Linear` and convolution by default.
        """
        kinds = None if supported is None else tuple(supported)
        targets = layers_to_prune(model, None)
        chosen = [t for t in targets if kinds is None or isinstance(t.layer, kinds)]
        self.config = [{"tensor_fqn": f"{target.name}.weight"} for target in chosen]
        return self.config

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
                this layer. The batch norm of a pair loses the same channels as its layer; so does one that has an entry
                of its own, beside the entry of the layer before it.

        Raises `PlanError`, before anything is changed, for a layer that is unknown, named twice, or cannot be pruned
        (another type, shared or parametrized weights, a forward of its own), for settings that `update_mask` does not
        take, and on a second call.
        """
        if self.model is not None and self._squashed is None:
            raise PlanError("the pruner has prepared a model already", do="squash_mask() first, or make another pruner")
        defaults = dict(self.defaults)
        bias = bias_setting(defaults.pop(PRUNE_BIAS, self.also_prune_bias))
        targets = layers_to_prune(model, config)
        update = MaskUpdate(self.update_mask, self.known_settings)
        for target in targets:
            update.check({**defaults, **target.settings}, f'layer "{target.name}"')
        for target in targets:
            prepare_layer(target.layer, prune_bias=bias if target.prune_bias is None else target.prune_bias)
            if target.norm is not None:
                own = target.norm_prune_bias
                follow(target.norm, target.layer, prune_bias=bias if own is None else own)
        self.model, self.targets, self.steps, self._squashed = model, targets, 0, None
        self.config, self._groups = config, [target.group(self.defaults) for target in targets]
        self._state.clear()

    def step(self) -> None:
        """Calls `update_mask` for every layer, and adds 1 to `steps`.

        Raises the errors of `update_mask`, and `PlanError` if a layer would have no outputs; all masks then stay as
        they were. Warns with `NothingRemovedWarning` if no output of any layer is pruned afterwards.
        """
        self._check("step")
        if not self.enable_mask_update:
            return
        before = [(p, p.mask, p.mask.clone()) for p in map(self._pruning, self.targets)]
        update = MaskUpdate(self.update_mask, self.known_settings)
        try:
            with torch.no_grad():
                for target, group in zip(self.targets, self._groups, strict=True):
                    self._update(update, target, group)
        except BaseException:
            for pruning, mask, values in before:
                pruning.mask = mask  # the same tensor, which `state` and other code hold
                pruning.set_mask(values)
            raise
        self.steps += 1
        if self._pruned() == 0 and self._asks():
            warnings.warn(
                f"step {self.steps} pruned nothing: {self._why_nothing()}", NothingRemovedWarning, stacklevel=2
            )

    def squash_mask(
        self,
        params_to_keep: Sequence[str] | None = None,
        params_to_keep_per_layer: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Removes parametrizations and hooks, in place; weights have their original shapes, zero at pruned outputs.

        Biases are zero there too if `also_prune_bias`. Parameters stay the same objects, with their gradients and
        `requires_grad`, so that an optimizer stays valid; further training may change the zeros.

        Args:
            params_to_keep: names of settings that every layer keeps, in a dict `sparse_params` of the layer.
            params_to_keep_per_layer: {layer: names of settings} for single layers, in addition.

        Raises `PlanError`, before anything is changed, for settings and layers that there are not. Warns with
        `NothingRemovedWarning` if no output is pruned.
        """
        self._check("squash_mask")
        kept = kept_settings(self._groups, params_to_keep, params_to_keep_per_layer)
        masks = self.masks()
        for name, module in self._modules():
            why = why_not_squash(module)
            if why:
                raise PlanError(
                    f'"{name}" cannot be squashed', why=why, do="remove what was registered, or prepare the model again"
                )
        if self._pruned() == 0:
            warnings.warn(f"no output is pruned: {self._why_nothing()}", NothingRemovedWarning, stacklevel=2)
        for _, module in self._modules():
            squash_layer(module)
        for target in self.targets:
            if target.name in kept:
                target.layer.sparse_params = kept[target.name]  # type: ignore[assignment]
        self._squashed = masks

    def masks(self) -> dict[str, Tensor]:
        """Returns {layer name: bool mask [outputs], True = keep}, for `transform`; works after `squash_mask` too."""
        if self._squashed is not None:
            return {name: mask.clone() for name, mask in self._squashed.items()}
        self._check("masks")
        return {t.name: self._pruning(t).mask.clone() for t in self.targets}

    @checks_names
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
        """Returns the number of steps, the masks, and the settings that are plain data (a schedule is none).

        {"steps": int, "state": {"layer.weight": {"mask": bool [outputs]}}, "groups": [{"tensor_fqn": ..., settings}]}.
        The masks are in the `state_dict` of the prepared model too.
        """
        masks = {f"{name}.weight": {"mask": mask} for name, mask in (self.masks() if self.targets else {}).items()}
        return {"steps": self.steps, "state": masks, "groups": saved_groups(self._groups)}

    @checks_names
    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Goes on from a result of `state_dict`: sets the steps, the masks and the settings.

        A state without masks, of an older version, sets the steps alone; one of a pruner of `torch.ao.pruning` has no
        steps.

        Args:
            state: the state of a pruner that has prepared the same layers.
            strict: False leaves out layers that only one of the two has.

        Raises `PlanError`, before anything is changed, for a state that does not fit.
        """
        known = isinstance(state, Mapping) and ("steps" in state or "state" in state)
        steps = state.get("steps", self.steps) if known else None
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise PlanError("this is no state of a pruner", why=f"its steps are {steps!r}", do="pass state_dict()")
        if state.get("state"):
            self._check("load_state_dict with masks")
            prunings = {g["tensor_fqn"]: self._pruning(t) for t, g in zip(self.targets, self._groups, strict=True)}
            load_masks(state["state"], prunings, strict=strict)
            load_groups(state.get("groups", ()), self._groups)
        self.steps = steps

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}({counted(self.steps, 'step')}"]
        for target in self.targets if self._squashed is None else ():
            norm = f", {target.norm_name}" if target.norm_name else ""
            lines.append(f"  {target.name}{norm}: {self._pruning(target).extra_repr()}")
        return "\n".join(lines) + ")"

    # -- overridden by subclasses ----------------------------------------------------------------------------

    def _asks(self) -> bool:
        """True if the last step should have pruned an output; False suppresses the warning that nothing was pruned."""
        return True

    # -- internal ---------------------------------------------------------------------------------------------

    def _update(self, update: MaskUpdate, target: LayerToPrune, group: LayerGroup) -> None:
        pruning = self._pruning(target)
        pruning.whole = update.of_torch_ao
        try:
            update(group)
            pruning.refresh()
        except PlanError as error:
            where = f'layer "{target.name}"' + (f", {error.at}" if error.at else "")
            raise PlanError(error.what, at=where, why=error.why, do=error.do) from error
        finally:
            pruning.whole = False

    def _check(self, what: str) -> None:
        if self.model is None:
            raise PlanError(f"{what} was called before prepare", do="prepare(model, config) first")
        if self._squashed is not None:
            raise PlanError(
                f"{what} was called after squash_mask",
                why="the masks are in the weights already",
                do="make a new pruner, and prepare the model again",
            )
        for name, module in self._modules():
            if not is_prepared(module):
                raise PlanError(
                    f'"{name}" has lost the parametrization that prepare put on its weight',
                    do="prepare the model again, and leave the parametrizations until squash_mask()",
                )

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
        return f"{type(self).__name__}.update_mask left every output of {counted(len(self.targets), 'layer')}"
