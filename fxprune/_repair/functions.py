"""The functions that users call: `repair` and `recalibrate`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar, cast

from torch import nn
from torch.export import ExportedProgram

from fxprune._record import change_record, record, record_since
from fxprune._record.repaired import Repair
from fxprune._repair.batch_norms import take_statistics
from fxprune._repair.batches import DataPart
from fxprune._repair.layer_by_layer import check_values, repaired
from fxprune._repair.original import has_other_weights
from fxprune._repair.settings import DISK, MEMORY, RIDGES, STEPS, RepairSettings
from fxprune.arguments import checks_arguments
from fxprune.capture.dispatched import undispatched
from fxprune.capture.inputs import check_initialised, check_plain_tensors
from fxprune.capture.kept_buffers import public_call_on_model
from fxprune.capture.module_copy import deep_copy
from fxprune.capture.process_state import public_call
from fxprune.capture.tensors import Tensors
from fxprune.depth.numbering import count_from_zero, in_original_numbering
from fxprune.errors import InputError, OtherWeightsWarning, level_of_user
from fxprune.offloaded import dispatch_of, is_dispatched, refuse_dispatched
from fxprune.report.repairs import worse_than_zeros
from fxprune.running.inputs import inputs_of
from fxprune.running.processes import Processes

ModuleT = TypeVar("ModuleT", bound=nn.Module)
ModelT = TypeVar("ModelT", bound=nn.Module | ExportedProgram)


@checks_arguments(
    "small", "model", "inputs", "mode", "ridge", "holdout", "memory", "disk", "steps", "noise", "progress"
)
@public_call()
def repair(
    small: ModelT,
    model: ModelT,
    batches: Iterable[Any],
    *,
    inputs: Callable[[Any], Any] | None = None,
    mode: str = "weights",
    ridge: float | None = None,
    holdout: float = 0.2,
    memory: int = MEMORY,
    disk: int = DISK,
    steps: int = STEPS,
    noise: float = 0.0,
    progress: bool = True,
    process_group: Any = None,
) -> ModelT:
    """A copy of a small model whose layers compute again what they computed in the original, without training.

    Each linear layer and convolution is refitted, in the order in which they run. With x what the layer reads in the
    small model (after the layers before it were refitted), y the outputs of the original there, without the removed
    channels, and W the weight that it has, the new weight is the ridge regression

        min over V, b of  sum over rows of v |y - V x - b|^2 + ridge * mean(x^2) * |V - W|^2

    The offset b goes to the bias, or to the running mean of the batch norm that follows; without both there is none.
    The weight v of a row is 1, or 1 / |y|^2 where a layer norm or an RMS norm comes later: the length of such a row
    says little, and a few rows are a thousand times as long as the others.

    The result is not worse than `small` on samples that were held out. On them the ridge of each layer is chosen, and
    whether it is refitted at all. At the end the last refits are taken back until the error of the outputs is not
    above that of `small`. `record(result).repair` has the errors of all layers.

    Only what `forward` returns is looked at: other methods that share layers with it may get better or worse.

    Runs both models in evaluation mode without gradients, some times per batch. Neither of them is changed. Parameters
    that are frozen (`requires_grad=False`) are refitted too, and stay frozen.

    Args:
        small: the model that `transform` made from `model`, or that was trained after it.
        model: the original, with its weights.
        batches: what the model is called with, in the form of `example_inputs`: some hundred samples. It is read once.
            Fewer than ten batches are split.
        inputs: a function that picks the inputs out of a batch, such as `lambda batch: batch[0]` of images and labels.
        mode: "weights" refits weights and offsets. "outputs" does so too, and then moves all weights together towards
            the outputs of the original, by gradient steps without labels: the best result, some seconds more. "bias"
            refits the offsets only. "norms" measures the statistics of batch norms again.
        ridge: the only one to try, as a share of the mean square of an input. By default several are tried, 1e-6 to 10.
        holdout: the share of the samples that are held out.
        memory: the most bytes of activations that wait between layers in memory. If accelerate has dispatched the
            models, also the most bytes of weights that are read and stay in memory until others need it.
        disk: the most bytes of further ones, which wait in temporary files in `tempfile.gettempdir()`; at most half of
            what is free there is used. Batches for which neither is enough are run again for each layer, which takes
            longer. 0 for no files.
        steps: the number of gradient steps of "outputs".
        noise: in each of these steps Gaussian noise is added to inputs of fractions, of this share of the standard
            deviation of the sample, and both models see it. 0.2 is a good share where few samples are at hand and much
            was removed; the held-out samples get none.
        progress: False for no bar; there is one only where stderr is a terminal or a notebook.
        process_group: a group of `torch.distributed`, whose processes have the same models and a part of the batches
            each. All of them get the model that one process gets from all batches.

    Warns with `OtherWeightsWarning` if `small` was made from other weights than those of `model`, and with a
    `UserWarning` if the outputs are farther from those of the original than zeros are. Raises `InputError`
    for batches that do not fit, fewer than two samples, NaN or infinities in a layer, and wrong
    arguments. Raises `FxpruneError` if `small` has no record.

    >>> import torch, fxprune
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3)).eval()
    >>> data = [torch.randn(64, 8) for _ in range(10)]
    >>> small = fxprune.transform(net, data[0], ratio=0.5)
    >>> done = fxprune.record(fxprune.repair(small, net, data)).repair
    >>> done.after < 0.2 * done.before
    True
    """
    settings = RepairSettings(
        mode, RIDGES if ridge is None else (float(ridge),), holdout, memory, disk, progress, steps, noise
    )
    known = record(small) if isinstance(model, ExportedProgram) else record_since(small, model)
    if isinstance(model, ExportedProgram) or isinstance(small, ExportedProgram):
        raise InputError(
            "a program is repaired when it is made",
            why="the names in an exported program are not those of a module",
            do="pass `repair=batches` to `transform`, or repair the module before it is exported",
        )
    dispatch = dispatch_of(small) if is_dispatched(small) else None
    whole: Any = small if dispatch is None else undispatched(small)
    original: Any = undispatched(model) if is_dispatched(model) else model
    ours: nn.Module = in_original_numbering(whole, known.layers_gone)
    for each in (original, ours):
        check_plain_tensors(each.named_parameters())
    _check_original(original, known.before)
    if has_other_weights(original, ours, known):
        text = "the small model was made from other weights than those of this model; it is repaired towards these"
        text += ". Pass the model that it was made from if that is not meant"
        warnings.warn(text, OtherWeightsWarning, stacklevel=4)
    data = inputs_of(original, batches, inputs, option="inputs")
    processes = Processes(process_group)
    with processes.together():
        made, done = repaired(ours, original, data, known.plan, settings, processes)
    warn_of_outputs(done)
    count_from_zero(made)
    if dispatch is not None:
        dispatch.again(made)
    change_record(made, lambda last: replace(last, repair=done.following(last.repair)))
    return cast(ModelT, made)


def warn_of_outputs(done: Repair) -> None:
    """Warns if the outputs are farther from those of the original than zeros are."""
    if text := worse_than_zeros(done):
        warnings.warn(text, UserWarning, stacklevel=level_of_user())


def _check_original(model: nn.Module, shapes: Any) -> None:
    """Raises `InputError` for a model that is not the original."""
    found = Tensors.of(model)
    check_initialised(found)
    given = {name: tuple(tensor.shape) for name, tensor in found.items()}
    for name, shape in shapes.items():
        if given.get(name) != tuple(shape):
            raise InputError(
                "the model is not the original of the small one",
                at=f'"{name}"',
                why=f"it has {list(given[name]) if name in given else 'no such parameter'}, the original {list(shape)}",
                do="pass the model that `transform` was called with",
            )


@checks_arguments("model", "inputs", "progress")
@public_call_on_model
def recalibrate(
    model: ModuleT, batches: Iterable[Any], *, inputs: Callable[[Any], Any] | None = None, progress: bool = True
) -> ModuleT:
    """A copy of a model whose batch norms have the statistics of these batches.

    The running mean and variance become the means over the batches. After a removal of channels this alone brings much
    of the accuracy back, see docs/choosing.md. Nothing is held out; `repair(..., mode="norms")` does that.

    Args:
        model: any model. It is not changed.
        batches, inputs, progress: as in `repair`.

    Raises `InputError` for a model without running statistics, and as `repair`.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    >>> fxprune.recalibrate(net, [torch.tensor([[0.0, 4.0], [2.0, 4.0]])])[0].running_mean
    tensor([1., 4.])
    """
    refuse_dispatched(model, "recalibrate")
    check_initialised(Tensors.of(model))
    data = inputs_of(model, batches, inputs, option="inputs")
    check_values(model)
    made = deep_copy(model)
    parts = [DataPart(batch, number) for number, batch in enumerate(data)]
    if not take_statistics(made, parts, progress=progress):
        raise InputError(
            "there is nothing to recalibrate",
            why="no batch norm of the model has running statistics",
            do="use `fxprune.repair`, which refits the layers themselves",
        )
    return made
