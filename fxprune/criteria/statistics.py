"""Statistics of activations over a set of inputs: how often they are zero, and how large."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.arguments import checks_arguments, fits
from fxprune.capture.inputs import Inputs, bound, normalize
from fxprune.capture.process_state import no_fused_attention
from fxprune.criteria.activation import ActivationStatistics, LayerStatistics
from fxprune.errors import InputError, PlanError
from fxprune.names import Level, checked, find_all, names_of, show
from fxprune.progress import bar
from fxprune.running.activation_nodes import is_activation_module
from fxprune.running.activations import CONVOLUTIONS, Recorder, Sums
from fxprune.running.processes import Processes


@checks_arguments("through", "prepare", "progress", "device", "ranks")
def activation_statistics(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    where: Any = None,
    threshold: float = 0.0,
    through: bool = True,
    channel_dim: int | None = None,
    prepare: Callable[[Any], Any] | None = None,
    limit: int | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
    ranks: bool = False,
    process_group: Any = None,
) -> ActivationStatistics:
    """Measures zeros, magnitude and variance of every channel, over the batches of a loader.

        zeros[c] = share of (sample, position) with |x[.., c, ..]| <= threshold;  mean_abs[c] = mean of |x[.., c, ..]|
        variance[c] = mean of x[.., c, ..]^2 - (mean of x[.., c, ..])^2

    After a ReLU, with a threshold of 0, `zeros` is the average percentage of zeros, APoZ (Hu et al. 2016, "Network
    Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures", equation 1;
    https://arxiv.org/abs/1607.03250).

    The model runs in evaluation mode without gradients. Its modes are restored and the hooks removed afterwards, also
    if a batch raises. The numbers of a layer that is called several times are added up.

    Args:
        model: run, and not changed.
        loader: any iterable of batches: a tensor; a tuple or list, whose first entry is the input; or a dict of
            keyword arguments.
        where: names, globs, modules or types, or a list of them. A pattern may name convolutions, linear layers and
            activation modules, and also any other module without submodules, unless the pattern is a glob. A module
            with submodules stands for the convolutions and linear layers in it. None means all convolutions and linear
            layers.
        threshold: a magnitude up to it counts as zero, for activations that are never exactly zero (GELU).
        through: True records a convolution or linear layer after the first activation that follows it. Only norms,
            sums, products, dropout and pooling may stand in between, and each result must be used once. If no
            activation follows, the layer is recorded after its norm. `LayerStatistics.at` names the point. This needs
            a traced graph; if tracing fails, or with False, the layer's own output is recorded.
        channel_dim: the dimension of the channels of activation modules, needed where it follows neither from the
            layer before nor from an output of two dimensions.
        prepare: a function from a batch to the input of one call of the model: a tensor, a tuple of positional
            arguments, or a dict of keywords. Without it, see `loader`.
        limit: the largest number of batches.
        progress: False for no bar; there is one only where stderr is a terminal or a notebook.
        device: the device for the inputs; by default that of the first parameter.
        ranks: True also measures the mean rank of the maps of channels with two dimensions of space, which is slow.
        process_group: a group of `torch.distributed`, whose processes have the same model and some of the batches each.
            All of them get the statistics that one process gets from all batches.

    Raises `PlanError` if `where` matches nothing or its layers are never called, and `InputError` for a loader without
    batches and for batches that do not fit.

    >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).requires_grad_(False)
    >>> _ = net[0].weight.copy_(torch.tensor([[1.0], [-1.0]])), net[0].bias.zero_()
    >>> found = activation_statistics(net, [torch.tensor([[1.0], [2.0], [3.0], [-4.0]])], where="0", progress=False)
    >>> found["0"].at, found["0"].zeros.tolist(), found["0"].mean_abs.tolist()
    ('1', [0.25, 0.75], [1.5, 1.0])
    """
    _check_options(threshold, limit, channel_dim)
    layers, named = _layers(checked(model), where)
    if any(t.is_meta for t in [*model.parameters(), *model.buffers()]):
        why = "its parameters have no values"
        raise InputError("the model is on the meta device", why=why, do="load its weights first")
    target = _device(model, device)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), no_fused_attention():
            recorder = Recorder(model, layers, threshold, through, channel_dim, ranks=ranks)
            batches = 0
            with recorder.hooked():
                for batch in _with_progress(loader, limit, progress):
                    recorder.run(_inputs(model, batch, prepare, target))
                    batches += 1
    finally:
        for module, mode in modes:
            module.training = mode
    if not batches:
        raise InputError("the loader has no batches", do="pass at least one; a generator that was used up gives none")
    processes = Processes(process_group)
    seen = {layer for some in processes.all(list(recorder.sums)) for layer in some}
    found = {layer: _statistics(layer, recorder, processes) for layer in layers if layer in seen}
    missing = tuple(layer for layer in layers if layer not in found)
    unmet = [layer for layer in missing if layer in named]
    if unmet or not found:
        raise PlanError(
            "no batch went through what is named" if unmet else "no batch went through any layer",
            at=", ".join(f'"{layer}"' for layer in (unmet or missing)[:4]),
            why="forward does not call it as a module, or a graph was traced through it",
            do="pass batches that reach these layers",
        )
    return ActivationStatistics(found, batches, missing, recorder.path, recorder.why_not)


def measured_activations(
    model: nn.Module, batches: Iterable[Any], *, progress: bool, process_group: Any, ranks: bool = False
) -> ActivationStatistics:
    """The statistics of all convolutions and linear layers. batches: in the form of `example_inputs`.

    Raises `InputError` for activations that are not finite, with the first layer that has some.
    """
    found = activation_statistics(
        model,
        batches,
        prepare=lambda batch: batch,
        progress=progress,
        process_group=process_group,
        ranks=ranks,
    )
    for layer, statistics in found.items():
        bad = int((~statistics.mean_abs.isfinite()).sum())
        if bad:
            why = f"NaN or infinities are in {bad} of its {len(statistics.mean_abs)} channels, taken at {statistics.at}"
            do = "leave out the batches that make them, or repair the weights"
            raise InputError("activations are not finite", at=f'"{layer}"', why=why, do=do)
    return found


# -- options ------------------------------------------------------------------------------------


def _check_options(threshold: Any, limit: Any, channel_dim: Any) -> None:
    number = fits(threshold, float) and math.isfinite(threshold)
    if not number or threshold < 0:
        raise PlanError(
            f"the threshold must be a finite number of at least 0, not {threshold!r}",
            do="pass 0.0, or a small positive number",
        )
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise PlanError(
            f"limit must be an integer of at least 1, or None, not {limit!r}",
            do="pass limit=1000, or None for no limit",
        )
    if channel_dim is not None and (isinstance(channel_dim, bool) or not isinstance(channel_dim, int)):
        raise PlanError(
            f"channel_dim must be an integer or None, not {channel_dim!r}",
            do="pass channel_dim=1 or -1, or None where the layers say it",
        )


def _layers(model: nn.Module, where: Any) -> tuple[list[str], set[str]]:
    """Returns the layers to record, in the order of the model; and those of them that are named directly."""
    first: dict[int, str] = {}
    for name, module in model.named_modules():
        first.setdefault(id(module), name)
    everything = {name: module for name, module in model.named_modules() if isinstance(module, _PRODUCERS)}
    if where is None:
        if not everything:
            raise PlanError("the model has no convolutions and no linear layers", do="say where: activation modules")
        return list(everything), set()
    chosen: set[str] = set()
    named: set[str] = set()
    for match in find_all(names_of(model, parameters=False), where, what="where"):
        exact = match.level is not Level.GLOB  # a glob also matches dropout and the like, which are not recorded
        hits = match.modules.values()
        own = {first[id(m)] for m in hits if _is_recorded(m, exact)}
        around = [m for m in hits if first[id(m)] not in own]
        inside = {first[id(m)] for outer in around for m in outer.modules() if isinstance(m, _PRODUCERS)}
        if not own and not inside:
            why = "there is no convolution, no linear layer and no activation"
            raise PlanError(
                f"there are no activations to look at in {show(match.pattern)}",
                why=why,
                do="name activations, convolutions or linear layers, or a block around them",
            )
        chosen |= own | inside
        named |= own if not isinstance(match.pattern, type) else set()
    return [name for name in first.values() if name in chosen], named


_PRODUCERS = (*CONVOLUTIONS, nn.Linear)


def _is_recorded(module: nn.Module, exact: bool) -> bool:
    """True if a named module is recorded itself; if not, it stands for the layers inside."""
    return isinstance(module, _PRODUCERS) or is_activation_module(module) or (exact and not module._modules)


def _device(model: nn.Module, device: torch.device | str | None) -> torch.device | None:
    first = next(iter([*model.parameters(), *model.buffers()]), None)
    own = None if first is None else first.device
    if device is None:
        return own
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InputError(
            f"there is no device {device!r}",
            why=str(error).splitlines()[0],
            do='pass a device of this machine, such as "cpu"',
        ) from error
    if own is not None and wanted.type != own.type:
        raise InputError(f"the model is on {own}, not on {wanted}", do="move the model first")
    return wanted


# -- the loader -------------------------------------------------------------------------------------------


def _with_progress(loader: Iterable[Any], limit: int | None, progress: bool) -> Iterator[Any]:
    """Yields the batches, at most `limit`, with a progress bar."""
    if isinstance(loader, (Tensor, str, Mapping)) or not isinstance(loader, Iterable):
        what = f"the loader must be an iterable of batches, not {type(loader).__name__}"
        raise InputError(what, do="pass a DataLoader, or a list of batches: [batch]")
    try:
        size: int | None = len(loader)  # type: ignore[arg-type]
    except TypeError:
        size = None
    total = limit if size is None else size if limit is None else min(size, limit)
    with bar(total=total, what="activation statistics", unit="batch", show=progress) as drawn:
        for number, batch in enumerate(loader):
            if number == limit:
                break
            yield batch
            drawn.update()


def _inputs(model: nn.Module, batch: Any, prepare: Callable[[Any], Any] | None, device: torch.device | None) -> Inputs:
    if prepare is not None:
        batch = prepare(batch)
    elif isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    inputs = normalize(batch)
    bound(model, inputs)
    on_device: Inputs = pytree.tree_map_only(Tensor, lambda t: t.to(device), inputs) if device is not None else inputs
    return on_device


def _double(tensor: Tensor) -> Tensor:
    """A tensor in float64; in complex128 if it is complex."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _statistics(layer: str, recorder: Recorder, processes: Processes) -> LayerStatistics:
    own = recorder.sums.get(layer, Sums())
    at = ", ".join(recorder.places.get(layer, ()))
    sums, count = processes.sums({name: _double(tensor.cpu()) for name, tensor in own.sums.items()}, own.count)
    calls, maps = (sum(numbers) for numbers in zip(*processes.all((own.calls, own.maps)), strict=True))
    mean = sums["values"] / count
    return LayerStatistics(
        layer,
        at,
        calls,
        count,
        zeros=sums["zeros"] / count,
        mean_abs=sums["magnitudes"] / count,
        variance=(sums["squares"] / count - mean.abs().square()).clamp(min=0),
        rank=sums["ranks"] / maps if maps else None,
    )
