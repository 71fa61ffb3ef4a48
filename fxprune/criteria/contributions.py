"""Contributions of every input channel of a layer to sampled outputs, measured by running the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.arguments import checks_arguments, checks_names
from fxprune.capture.inputs import bound, check_initialised, check_unwrapped, normalize
from fxprune.capture.process_state import no_fused_attention
from fxprune.capture.tensors import Tensors
from fxprune.errors import InputError, PlanError
from fxprune.given_seeds import generator_of
from fxprune.progress import bar
from fxprune.running.inputs import called, not_finite
from fxprune.running.products import Matrix
from fxprune.running.watch import Parameters, ProductCall, Watch

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BLOCK = 1 << 22
"""The most elements of gathered inputs in memory at a time."""


@dataclass(frozen=True)
class Sampled:
    """Sampled outputs of one layer, as sums over its input slots.

    parts: [m, slots of weight dimension 1]; the sum of a row is that output without the bias.
    outputs: [m], the output channel of each row.
    """

    parts: torch.Tensor
    outputs: torch.Tensor


@dataclass(frozen=True)
class Contributions:
    """The terms that input slots add to sampled outputs, for each convolution and linear layer that was called.

        parts[m, c] = sum over taps k of weight[o, c, k] * x[n, c, position + k],  (n, o, position) drawn for row m

    Luo et al. 2017, "ThiNet" (https://arxiv.org/abs/1707.06342), collect these as training examples. In a grouped
    convolution slot c is the c-th input channel of the conv group that output o belongs to.

    layers: by the path of the layer its samples; of layers that share a weight, those of all under the first path. A
        matrix that is no layer's `weight`, such as `in_proj_weight` of attention, stands under its own name.
    """

    model: nn.Module
    layers: dict[str, Sampled]

    @checks_names
    def of(self, weight: torch.Tensor) -> Sampled | None:
        """The samples of the layers with this weight, None if no such layer was called."""
        path = self._paths.get(id(weight))
        return None if path is None else self.layers[path]

    @cached_property
    def _paths(self) -> dict[int, str]:
        return {id(_matrix(self.model, path)): path for path in self.layers}


def _matrix(model: nn.Module, path: str) -> Any:
    """The weight of the layer with this path, or the parameter with this name."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters[path] if path in parameters else model.get_submodule(path).weight


@checks_arguments("progress")
def sample_contributions(
    model: nn.Module, loader: Iterable[Any], *, samples: int = 10, seed: int = 0, progress: bool = True
) -> Contributions:
    """Run the model on every batch; in every layer, sample `samples` outputs per input, as sums over input slots.

    Layers are `nn.Linear` and `nn.Conv1d`, `2d`, `3d` that are called as modules and own their weight, and matrices
    that code multiplies with itself, as `nn.MultiheadAttention` does with its projections. Of each input,
    outputs are drawn uniformly over positions and output channels, with replacement: the same ones for any sizes of the
    batches. Runs in evaluation mode without
    gradients; the model is as before afterwards. What is kept is one float per input slot, input and
    sample of every layer: 1 GB for a linear layer of 25088 features on 1000 images.

    Args:
        model: only read.
        loader: batches, each in the form of `example_inputs`: a tensor, a tuple of positional arguments, or a dict of
            keyword arguments. For pairs of images and labels pass `(x for x, _ in loader)`.
        samples: outputs per input and layer; the paper takes 10 per image.
        seed: of the draws.
        progress: False for no bar; there is one only where stderr is a terminal or a notebook.

    Raises `InputError` for batches that do not fit, `PlanError` for wrong samples or seeds.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[2.0, 3.0]]))
    >>> found = sample_contributions(torch.nn.Sequential(layer), [torch.tensor([[1.0, 10.0]])], samples=1)
    >>> found.layers["0"].parts
    tensor([[ 2., 30.]])
    """
    if not isinstance(model, nn.Module):
        raise PlanError("not a model", why=f"{type(model).__name__} is no torch.nn.Module", do="pass a module")
    check_unwrapped(model)
    check_initialised(Tensors.of(model))
    for name, value, least in (("samples", samples, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise PlanError(
                f"{name} must be an integer of at least {least}, not {value!r}", do=f"pass {name}={least} or more"
            )
    if isinstance(loader, (torch.Tensor, dict, str)) or not isinstance(loader, Iterable):
        raise InputError(
            f"loader must give batches, not be a {type(loader).__name__}",
            do="pass a data loader or a list of batches, for example `[torch.randn(64, 3, 32, 32)]`",
        )
    generator_of(seed)  # raises for a seed that torch does not take
    collector = _Collector(model, samples, seed)
    batches = 0
    with collector.hooked(), _evaluating(model), torch.no_grad(), no_fused_attention():
        for batch in bar(loader, what="contributions", unit="batch", show=progress):
            collector.batch(batch, batches)
            batches += 1
    if not batches:
        raise InputError("loader gave no batch", why="nothing can be sampled", do="pass at least one batch")
    return Contributions(model, collector.layers())


class _Collector:
    """Samples layers as they are called.

    Each call of a layer in a forward has random numbers of its own, in the order of the inputs: so the batches that the
    inputs come in make no difference.
    """

    def __init__(self, model: nn.Module, samples: int, seed: int) -> None:
        self.model, self.samples, self.seed = model, samples, seed
        self.size = self.number = 0
        self.found: dict[int, list[Sampled]] = {}
        self._parameters = Parameters(model)
        self._names = {id(p): name for name, p in reversed(list(model.named_parameters(remove_duplicate=False)))}
        self._sequences_first = {
            id(p) for m in model.modules() if isinstance(m, nn.MultiheadAttention) for p in m.parameters()
        }
        self._inside: set[int] = set()
        self._calls: dict[int, int] = {}
        self._generators: dict[tuple[int, int], torch.Generator] = {}

    def batch(self, batch: Any, number: int) -> None:
        """Run the model on one batch. number: of the batch, for messages."""
        args, kwargs = normalize(batch)
        try:
            bound(self.model, (args, kwargs))
        except InputError as error:
            raise InputError(
                "a batch of the loader does not fit the model",
                why=error.why,
                do="give what one call of the model takes, for example `(x for x, _ in loader)`",
            ) from None
        first = next(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        self.size, self.number = first.shape[0] if first.ndim else 1, number
        self._calls.clear()
        with Watch(self._parameters, after=self._multiplied):
            called(self.model, (args, kwargs), number)

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Watch every layer."""
        layers = [
            module
            for module in self.model.modules()
            if isinstance(module, (nn.Linear, *CONVOLUTIONS)) and "weight" in module._parameters
        ]
        handles = [module.register_forward_hook(self._called, with_kwargs=True) for module in layers]
        handles += [module.register_forward_pre_hook(self._begins) for module in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def layers(self) -> dict[str, Sampled]:
        """The samples, by the first path of each weight."""
        result: dict[str, Sampled] = {}
        for path, module in self.model.named_modules():
            parts = self.found.pop(id(module._parameters.get("weight")), None)
            if parts is not None:
                parts_of = torch.cat([p.parts for p in parts])
                result[path] = Sampled(parts_of, torch.cat([p.outputs for p in parts]))
        for key, parts in self.found.items():
            outputs = torch.cat([p.outputs for p in parts])
            result[self._names[key]] = Sampled(torch.cat([p.parts for p in parts]), outputs)
        return result

    def _begins(self, module: Any, args: tuple[Any, ...]) -> None:
        self._inside.add(id(module.weight))

    def _multiplied(self, call: ProductCall) -> None:
        """Sample a product that code computes with a matrix, outside of the layer that owns it."""
        place, product = call.place, call.product
        weight = self._parameters.tensors[place.name]
        if id(weight) in self._inside or not isinstance(product.form, Matrix) or weight.ndim != 2 or place.dim:
            return
        if id(weight) not in self._names:
            return  # a buffer
        matrix = product.form.matrix(product.weight)[0]
        wide = torch.promote_types(matrix.dtype, torch.float32)
        rows, outputs = self._draw(weight, len(product.x), [len(matrix)])
        parts = matrix[outputs].to(wide) * product.x[rows].to(wide)
        self._check(product.x, parts, weight)
        self.found.setdefault(id(weight), []).append(_real(Sampled(parts.detach(), outputs + place.start)))

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
        x = args[0] if args else kwargs["input"]
        self._inside.discard(id(module.weight))
        weight = cast(torch.Tensor, module.weight).detach()
        wide = torch.promote_types(weight.dtype, torch.float32)
        take = _linear if isinstance(module, nn.Linear) else _convolution
        parts = take(self._draw, module, x.detach().to(wide), weight.to(wide), output)
        self._check(x, parts.parts, cast(torch.Tensor, module.weight))
        self.found.setdefault(id(module.weight), []).append(_real(parts))

    def _check(self, x: torch.Tensor, parts: torch.Tensor, weight: torch.Tensor) -> None:
        """Raises `InputError` if what a layer reads, or what it computes of it, is not finite."""
        if not bool(x.isfinite().all() and parts.isfinite().all()):
            raise not_finite(self._names.get(id(weight), "a layer"), f"batch {self.number}")

    def _draw(self, parameter: torch.Tensor, rows: int, sizes: Sequence[int]) -> list[torch.Tensor]:
        """For each drawn output a row, and an integer below each of `sizes`, [m] each.

        The rows are cut into as many equal parts as there are inputs, and as many outputs are drawn of each part; if
        that is not possible, of all rows together.
        """
        weight = id(parameter)
        number = self._calls[weight] = self._calls.get(weight, -1) + 1
        if (weight, number) not in self._generators:
            self._generators[weight, number] = generator_of(self.seed + number)
        inputs = self.size if rows % max(self.size, 1) == 0 else 1
        each = rows // inputs
        count = self.samples * self.size
        drawn = torch.rand(
            count, 1 + len(sizes), dtype=torch.float64, generator=self._generators[weight, number]
        ) * torch.tensor([each, *sizes], dtype=torch.float64)
        first, *others = drawn.to(parameter.device).long().unbind(1)
        parts = torch.arange(inputs, device=first.device).repeat_interleave(count // inputs)
        if weight in self._sequences_first:  # the rows of an input are `inputs` apart
            return [first * inputs + parts, *others]
        return [first + each * parts, *others]


def _real(sampled: Sampled) -> Sampled:
    """Complex samples as two of real numbers each: their sums of squares are those of the complex ones."""
    if not sampled.parts.is_complex():
        return sampled
    return Sampled(torch.cat([sampled.parts.real, sampled.parts.imag]), torch.cat([sampled.outputs] * 2))


Draw = Callable[[torch.Tensor, int, Sequence[int]], list[torch.Tensor]]


def _linear(draw: Draw, module: Any, x: torch.Tensor, weight: torch.Tensor, output: Any) -> Sampled:
    rows = x.reshape(-1, x.shape[-1])
    chosen, outputs = draw(module.weight, len(rows), [len(weight)])
    return Sampled(weight[outputs] * rows[chosen], outputs)


def _convolution(draw: Draw, module: Any, x: torch.Tensor, weight: torch.Tensor, output: Any) -> Sampled:
    dims = weight.ndim - 2
    x = x if x.ndim == dims + 2 else x.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    images, outputs, *places = draw(module.weight, len(x), [len(weight), *output.shape[-dims:]])
    count = len(images)
    taps = torch.zeros(count, 1, dtype=torch.int64, device=x.device)  # [m, kernel], into the flattened space
    for d in range(dims):
        start = places[d] * module.stride[d]
        along = start[:, None] + torch.arange(weight.shape[2 + d], device=x.device) * module.dilation[d]
        taps = (taps[:, :, None] * x.shape[2 + d] + along[:, None, :]).flatten(1)
    width = weight.shape[1]
    block = outputs // (len(weight) // module.groups)
    channels = block[:, None] * width + torch.arange(width, device=x.device)
    flat, kernels = x.flatten(2), weight.flatten(2)
    parts = []
    for some in torch.arange(count, device=x.device).split(max(1, BLOCK // kernels[0].numel())):  # type: ignore[no-untyped-call]
        patches = flat[images[some, None, None], channels[some, :, None], taps[some, None, :]]
        parts.append((patches * kernels[outputs[some]]).sum(-1))
    return Sampled(torch.cat(parts), outputs)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode for a while; afterwards every module has its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
