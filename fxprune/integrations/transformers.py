"""A callback for the Trainer of transformers: `pip install transformers accelerate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fxprune._gradual import GradualPruner
from fxprune.arguments import shown
from fxprune.errors import FileError, PlanError
from fxprune.files import PathLike, parse_json, replacing
from fxprune.integrations.moments import When, moved, refuse_optimizer

FILE = "fxprune_pruner.json"
"""The file in a checkpoint that holds the state of the pruner."""


class TrainerPruningCallback(TrainerCallback):
    """Makes the model of a Trainer smaller while it is trained; see `fxprune.GradualPruner`.

    The optimizer of the trainer follows. Each checkpoint holds the state of the pruner. To go on from one, give its
    folder twice: `TrainerPruningCallback(..., resume_from=folder)` makes the new model smaller when the trainer is
    made, and `trainer.train(resume_from_checkpoint=folder)` loads the weights.

    Args:
        example_inputs: as for `fxprune.transform`, for example a dict with `input_ids` and `attention_mask`.
        every_n_epochs, every_n_steps: when the pruner makes a step; after each epoch by default.
        resume_from: the folder of a checkpoint, None for a new training.
        options: those of `fxprune.GradualPruner`: keep, schedule, steps, importance, repair and so on.

    `callback.pruner` is the pruner, None before the trainer is made.
    """

    def __init__(
        self,
        example_inputs: Any,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        resume_from: PathLike | None = None,
        **options: Any,
    ) -> None:
        refuse_optimizer(options)
        self.example_inputs, self.options, self.resume_from = example_inputs, options, resume_from
        self.when = When.of(every_n_epochs, every_n_steps)
        self.pruner: GradualPruner | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Makes the pruner. With `resume_from` the model loses what was removed before that checkpoint."""
        model: nn.Module = kwargs["model"]
        self.pruner = GradualPruner(model, moved(self.example_inputs, model), **self.options)
        if self.resume_from is not None:
            path = Path(self.resume_from) / FILE
            if not path.exists():
                why, do = "the file is not there", "go on from a training with the callback"
                raise FileError("the checkpoint has no state of a pruner", at=str(path), why=why, do=do)
            self.pruner.load_state_dict(parse_json(path.read_bytes(), str(path)))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lets the optimizer of the trainer follow from now on. Makes the pruner of a callback that was added later."""
        if self.pruner is None:
            if self.resume_from is not None:
                raise PlanError(
                    "the weights of the checkpoint are loaded before the pruner is made",
                    at=f"resume_from={shown(self.resume_from)}",
                    why="the callback was added to a trainer that was there already",
                    do="pass Trainer(..., callbacks=[callback])",
                )
            self.on_init_end(args, state, control, **kwargs)
        self._made().optimizer = kwargs["optimizer"]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Makes a step of the pruner after every n steps of the optimizer."""
        if self.when.between(state.global_step - 1, state.global_step):
            self._made().step()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Makes a step of the pruner after every n epochs."""
        if self.when.after_epoch(round(state.epoch or 0)):
            self._made().step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the state of the pruner into the checkpoint."""
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        if args.should_save and folder.is_dir():
            with replacing(folder / FILE) as file:
                file.write(json.dumps(self._made().state_dict()).encode())

    def _made(self) -> GradualPruner:
        assert self.pruner is not None  # the trainer calls on_init_end or on_train_begin first
        return self.pruner
