"""The repair of a small model, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fxprune._record.repaired import Repair, RepairedLayer
from fxprune._repair.batch_norms import take_statistics
from fxprune._repair.batches import held_out, parts_of
from fxprune._repair.lanes import Lane, Model
from fxprune._repair.layer import LayerFit
from fxprune._repair.outputs import relative_squared_error
from fxprune._repair.pairs import LayerPair, layers_of
from fxprune._repair.settings import RepairSettings
from fxprune._repair.watch import LayerKey, survey
from fxprune.capture.inputs import Inputs
from fxprune.errors import InputError
from fxprune.planning.plan import Plan


def repaired(
    small: nn.Module, model: nn.Module, batches: Sequence[Inputs], plan: Plan, settings: RepairSettings
) -> tuple[nn.Module, Repair]:
    """A repaired copy of a small model, and what was done.

    model: the original. batches: the inputs of both. plan: the plan that made `small`.
    """
    made = copy.deepcopy(small)
    modes = [(module, module.training) for one in (made, model) for module in one.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            work = _Work(Model(made), Model(model), batches, settings)
            report = work.norms() if settings.mode == "norms" else work.layers(plan)
    finally:
        for module, training in modes:
            module.training = training
    return made, report


class _Work:
    """A repair of `small` in place."""

    def __init__(self, small: Model, original: Model, batches: Sequence[Inputs], settings: RepairSettings) -> None:
        self.small, self.original, self.settings = small, original, settings
        self.parts = parts_of(batches, self._takes)
        if len(self.parts) < 2:
            raise InputError(
                "a repair needs at least two samples",
                why="one part of them is held out, to see whether the repair helps on other inputs",
                do="pass more batches, or a batch of several samples",
            )
        self.held = held_out(len(self.parts), settings.holdout)
        self.judges = [part for part, held in zip(self.parts, self.held, strict=True) if held]
        self.wanted = [self.original.run(part) for part in self.judges]

    def _takes(self, inputs: Inputs) -> bool:
        try:
            self.original.run(inputs)
        except Exception:
            return False
        return True

    def error(self) -> float:
        """The error of the outputs on the held-out samples."""
        return relative_squared_error(zip(map(self.small.run, self.judges), self.wanted, strict=True))

    def norms(self) -> Repair:
        """Measure the statistics of the batch norms again, unless the outputs are worse with them."""
        before = self.error()
        state = _tensors(self.small.module)
        some = [part for part, held in zip(self.parts, self.held, strict=True) if not held]
        count = take_statistics(self.small.module, some)
        after = self.error()
        left = {} if count else {"": "the model has no batch norm with running statistics"}
        if after <= before:
            return Repair("norms", {}, left, before, after)
        _restore(self.small.module, state)
        return Repair("norms", {}, left, before, before, ("the statistics of batch norms",))

    def layers(self, plan: Plan) -> Repair:
        """Refit layer by layer; then take back the last refits, as many as make the outputs worse."""
        before = self.error()
        surveys = [survey(one.module, partial(one.run, self.parts[0])) for one in (self.small, self.original)]
        parameters = self.small.parameters, self.original.parameters
        found = layers_of(surveys[0], surveys[1], plan, parameters)
        left = dict(found.left)
        waiting_at = {key for key, pair in found.pairs.items() if pair.small.calls == 1}
        memory = sum(one.memory for one in surveys)
        lanes = [
            Lane(self.small, self.original, part, waiting_at, waits=(number + 1) * memory <= self.settings.memory)
            for number, part in enumerate(self.parts)
        ]
        done: dict[LayerKey, RepairedLayer] = {}
        states: list[tuple[LayerKey, dict[str, Tensor]]] = []
        try:
            for key, pair in self._bar(found.pairs):
                fit = LayerFit(pair, *parameters)
                why = self._gather(fit, lanes)
                if why:
                    left[key[0]] = why
                    continue
                states.append((key, self._tensors_of(pair)))
                refit = fit.solve(self.settings.ridges, weights=self.settings.mode == "weights")
                done[key] = RepairedLayer(refit.error, refit.repaired, refit.ridge)
        finally:
            for lane in lanes:
                lane.stop()
        undone, after = self._judged(states, before)
        names = _names(done)
        layers = {names[key]: layer for key, layer in done.items()}
        return Repair(self.settings.mode, layers, left, before, after, tuple(names[key] for key in undone))

    def _bar(self, pairs: dict[LayerKey, LayerPair]) -> Iterable[tuple[LayerKey, LayerPair]]:
        from tqdm import tqdm

        return tqdm(pairs.items(), desc="repair", unit="layer", disable=not self.settings.progress)

    def _gather(self, fit: LayerFit, lanes: Sequence[Lane]) -> str:
        """Give a layer all its rows. Returns why it cannot be refitted, "" if it can."""
        found = [fit.add(lane.at(fit.pair), held_out=held) for lane, held in zip(lanes, self.held, strict=True)]
        return next(filter(None, found), "" if fit.product is not None else "no batch reached it")

    def _tensors_of(self, pair: LayerPair) -> dict[str, Tensor]:
        """Copies of the tensors that a refit of the layer changes."""
        names = (pair.key[0], pair.small.bias and pair.small.bias[0], pair.small.mean)
        return {name: self.small.parameters.tensors[name].detach().clone() for name in names if name}

    def _judged(self, states: list[tuple[LayerKey, dict[str, Tensor]]], before: float) -> tuple[list[LayerKey], float]:
        """Take back refits from the last one on, until the outputs are not worse than before. Returns these refits."""
        undone: list[LayerKey] = []
        after = self.error()
        while states and not after <= before:
            for key, tensors in reversed(states[len(states) // 2 :]):
                for name, tensor in tensors.items():
                    with torch.no_grad():
                        self.small.parameters.tensors[name].copy_(tensor)
                undone.append(key)
            del states[len(states) // 2 :]
            after = self.error()
        return undone[::-1], after


def _names(keys: Iterable[LayerKey]) -> dict[LayerKey, str]:
    """A name of each layer: that of its parameter, with a number where several blocks of it are layers."""
    found = list(keys)
    several = {name for name, number in found if number}
    return {key: f"{key[0]}, block {key[1]}" if key[0] in several else key[0] for key in found}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _restore(model: nn.Module, state: dict[str, Tensor]) -> None:
    model.load_state_dict(state)
