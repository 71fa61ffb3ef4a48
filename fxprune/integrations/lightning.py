"""A callback for Lightning: `pip install lightning`."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fxprune._follow import listed
from fxprune._follow.averages import holds_copy
from fxprune._follow.optimizers import parameters_of
from fxprune._gradual import GradualPruner
from fxprune.errors import FileError, PlanError
from fxprune.files import PathLike
from fxprune.integrations.moments import When, moved, refuse_optimizer


class LightningPruningCallback(Callback):
    """Makes one module of a LightningModule smaller while a Trainer trains it; see `fxprune.GradualPruner`.

    The optimizers of the trainer follow, and the averages of its callbacks (`WeightAveraging`,
    `StochasticWeightAveraging`) and of the LightningModule. Checkpoints of the trainer hold the state of the pruner. To
    go on from one, give its path to the trainer: `trainer.fit(model, ckpt_path=path)` makes the module smaller, and
    loads its weights. A second `fit` with the same callback and module goes on with the same pruner.

    Args:
        module: the path of the module in the LightningModule, such as "net".
        example_inputs: the inputs of that module, as for `fxprune.transform`.
        every_n_epochs, every_n_steps: when the pruner makes a step; after each epoch by default.
        resume_from: the path of a checkpoint whose state of the pruner is taken, whatever the trainer loads.
        options: those of `fxprune.GradualPruner`: keep, schedule, steps, importance, repair and so on.

    `callback.pruner` is the pruner, None before the training begins.
    """

    def __init__(
        self,
        module: str,
        example_inputs: Any,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        resume_from: PathLike | None = None,
        **options: Any,
    ) -> None:
        refuse_optimizer(options)
        self.module, self.example_inputs, self.options = module, example_inputs, options
        self.resume_from = resume_from
        self.when = When.of(every_n_epochs, every_n_steps)
        self.pruner: GradualPruner | None = None
        self._steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the pruner. With `resume_from` the module loses what was removed before that checkpoint."""
        if stage != "fit":
            return
        module = self._find(pl_module)
        if self.pruner is None or self.pruner.model is not module:  # else this fit goes on from the last one
            self.pruner = GradualPruner(module, moved(self.example_inputs, module), **self.options)
        self.pruner.ema = self._averages(trainer, pl_module)
        if self.resume_from is not None:
            saved = torch.load(self.resume_from, map_location="cpu", weights_only=True)
            self._resume(saved, str(self.resume_from), trainer, pl_module)
            return
        loaded: Any = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            """Lets the module lose what was removed, before the trainer loads its weights."""
            vars(pl_module).pop("on_load_checkpoint")
            self._resume(checkpoint, str(trainer.ckpt_path), trainer, pl_module)
            loaded(checkpoint)

        vars(pl_module)["on_load_checkpoint"] = on_load_checkpoint

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the optimizers of the trainer follow from now on, and the averages of its callbacks."""
        vars(pl_module).pop("on_load_checkpoint", None)
        pruner = self._made()
        own = set(map(id, pruner.model.parameters()))
        pruner.optimizer = [each for each in trainer.optimizers if own & set(map(id, parameters_of(each)))]
        pruner.ema = self._averages(trainer, pl_module)
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Makes a step of the pruner after every n steps of the optimizer, each of which may take several batches."""
        before, self._steps = self._steps, trainer.global_step
        if self.when.between(before, self._steps):
            self._step(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes a step of the pruner after every n epochs."""
        if self.when.after_epoch(trainer.current_epoch + 1):
            self._step(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {} if self.pruner is None else {"pruner": self.pruner.state_dict()}

    def _averages(self, trainer: Trainer, pl_module: LightningModule) -> list[Any]:
        """The averages that are given, those in the LightningModule, and those of the trainer's callbacks."""
        owners = [*pl_module.modules(), *(value for each in _callbacks(trainer) for value in vars(each).values())]
        found = [*listed(self.options.get("ema")), *(each for each in owners if isinstance(each, AveragedModel))]
        for callback in _callbacks(trainer):
            if isinstance(callback, StochasticWeightAveraging) and callback._average_model is not None:
                found.append(_Copy(callback._average_model))
        shapes = dict(self._made().model.named_parameters(remove_duplicate=False))
        return [each for each in {id(each): each for each in found}.values() if holds_copy(each, shapes)]

    def _resume(self, checkpoint: dict[str, Any], path: str, trainer: Trainer, pl_module: LightningModule) -> None:
        found = checkpoint.get("callbacks", {}).get(self.state_key, {})
        if "pruner" not in found:
            why, do = f'it has no callback "{self.state_key}"', "go on from a training with the callback"
            raise FileError("the checkpoint has no state of a pruner", at=path, why=why, do=do)
        pruner = self._made()
        if not pruner.number:
            pruner.ema = self._averages(trainer, pl_module)
            pruner.load_state_dict(found["pruner"])
        elif pruner.state_dict() != found["pruner"]:
            raise PlanError(
                "the module is no longer what it was at the checkpoint",
                at=path,
                why=f"it has made {pruner.number} steps, the checkpoint {found['pruner'].get('number')}",
                do="make the LightningModule and the callback again, then fit with ckpt_path",
            )

    def _step(self, pl_module: LightningModule) -> None:
        pruner = self._made()
        pruner.example_inputs = moved(self.example_inputs, pruner.model)
        made = pruner.step()
        pl_module.log_dict({"pruned_params": float(made.after.params), "pruning_progress": made.progress})

    def _made(self) -> GradualPruner:
        if self.pruner is None:
            at, why = type(self).__name__, "the pruner is made in setup"
            raise PlanError("the training has not begun", at=at, why=why, do="call trainer.fit")
        return self.pruner

    def _find(self, pl_module: LightningModule) -> nn.Module:
        found: nn.Module | None = dict(pl_module.named_modules()).get(self.module)
        if found is None or found is pl_module:
            children = ", ".join(name for name, _ in pl_module.named_children()) or "none"
            raise PlanError(
                "there is no such module to prune",
                at=f'module="{self.module}"',
                why=f"the modules of {type(pl_module).__name__} are: {children}",
                do="name the module that makes the predictions, not the LightningModule itself",
            )
        return found


class _Copy(nn.Module):
    """A copy of a LightningModule that a callback averages itself, in the form of an average."""

    def __init__(self, copied: nn.Module) -> None:
        super().__init__()
        self.module = copied


def _callbacks(trainer: Trainer) -> list[Any]:
    return list(getattr(trainer, "callbacks", ()))
