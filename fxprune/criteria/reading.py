"""Second moments of what layers read, weighed by what their outputs are worth."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.process_state import no_fused_attention, no_fused_recurrence
from fxprune.criteria.losses import Loss, check_has_values, check_loss, loss_of, with_gradients
from fxprune.errors import InputError
from fxprune.running.inputs import called, each_batch, inputs_of, sample_count
from fxprune.running.processes import Processes
from fxprune.running.products import Convolution, Matrices, Matrix, WeightProduct, double
from fxprune.running.watch import Block, Parameters, ProductCall, Watch

FLOOR = 1e-4
"""A share of the mean squared length of rows, which is added to each: rows of zeros do not count without end."""

ROW_NORMS = ("LayerNorm", "RMSNorm")
"""Parts of the names of norms after which the length of a row says nothing."""


@dataclass
class ReadBlock:
    """The inputs of one block of a parameter, as sums over rows: g blocks, k inputs, o outputs, float64.

    name: of the parameter. dim: its dimension of inputs. slots: the slot of that dimension that each input belongs to,
    [g, k]. weight: [g, o, k]. rows: the sum of the weights v of rows, [g]. x: of v x, [g, k]. xx: of v x x^T,
    [g, k, k]. outputs: the weight of each output, [g, o]. shifted: True if the layer can add an offset.
    """

    name: str
    dim: int
    slots: Tensor
    weight: Tensor
    rows: Tensor
    x: Tensor
    xx: Tensor
    outputs: Tensor
    shifted: bool

    @property
    def centred(self) -> Tensor:
        """The second moments that an offset cannot take up, [g, k, k]."""
        if not self.shifted:
            return self.xx
        count = self.rows.clamp(min=torch.finfo(torch.float64).tiny)
        return self.xx - self.x[..., None] * self.x[:, None] / count[:, None, None]

    def add(self, other: ReadBlock) -> None:
        """Add the rows of another reading of the same block, in place."""
        for own, theirs in ((self.rows, other.rows), (self.x, other.x), (self.xx, other.xx)):
            own += theirs
        self.outputs += other.outputs

    def cpu(self) -> ReadBlock:
        """The same on the CPU."""
        return ReadBlock(
            self.name,
            self.dim,
            self.slots,
            self.weight.cpu(),
            self.rows.cpu(),
            self.x.cpu(),
            self.xx.cpu(),
            self.outputs.cpu(),
            self.shifted,
        )


@dataclass
class Readings:
    """The readings of a model, by the block of a parameter. samples: the number of samples that were seen.

    informed: True if rows and outputs are weighed by gradients of a loss.
    """

    blocks: dict[Block, ReadBlock] = field(default_factory=dict)
    samples: int = 0
    informed: bool = False


def readings_of(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss | None,
    progress: bool = True,
    processes: Processes,
) -> Readings:
    """Run the model on batches and add up what each layer reads.

    Without a loss a row counts v = 1, or 1 / |y|^2 for rows of matrices in models with layer norms or RMS norms, where
    a few rows are a thousand times as long as the others; outputs count alike. With a loss

        v[row] = sum over outputs of (dL/dy[row, o])^2,  outputs[o] = sum over rows of (dL/dy[row, o])^2

    for the loss L of one sample: the product of both, over its total, stands for (dL/dy[row, o])^2.
    """
    check_has_values(model)
    gather = _Gather(model, informed=loss is not None)
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    recurrence = no_fused_recurrence() if recurrent else contextlib.nullcontext()
    with no_fused_attention(), recurrence:
        if loss is None:
            data = inputs_of(model, batches, None, option="")
            with _evaluating(model), torch.no_grad():
                if gather.row_norms:
                    for number, inputs in each_batch(data, what="lengths", progress=progress):
                        gather.measure(partial(called, model, inputs, number))
                    gather.join_lengths(processes)
                for number, inputs in each_batch(data, what="readings", progress=progress):
                    gather.forward(partial(called, model, inputs, number), number, sample_count(inputs))
        else:
            check_loss(loss)
            with with_gradients(model) as parameters:
                for number, batch in each_batch(batches, what="readings", progress=progress):
                    gather.backward(partial(loss_of, model, batch, loss, number), number, sample_count(batch))
                    for parameter in parameters.values():
                        parameter.grad = None
    return gather.joined(processes)


class _Gather:
    """Adds up readings, batch by batch."""

    def __init__(self, model: nn.Module, *, informed: bool) -> None:
        self.model = model
        self.parameters = Parameters(model)
        self.found = Readings(informed=informed)
        self._lengths: dict[Block, tuple[float, int]] = {}
        self.row_norms = any(part in type(m).__name__ for m in model.modules() for part in ROW_NORMS)

    def measure(self, run: Callable[[], Any]) -> None:
        """Add the lengths of the rows of a batch: the floor below which a row counts no more is the same for all."""

        def add(call: ProductCall) -> None:
            assert call.y is not None
            product = call.product
            if isinstance(product.form, Convolution) or product.weight.is_complex():
                return
            for _, outputs in product.form.rows(product.x.detach(), call.y.detach(), product.weight):
                lengths = outputs.square().sum(-1)
                total, count = self._lengths.get(call.place, (0.0, 0))
                self._lengths[call.place] = total + float(lengths.sum()), count + lengths.numel()

        with Watch(self.parameters, after=add):
            run()

    def join_lengths(self, processes: Processes) -> None:
        """Add the lengths of other processes."""
        joined: dict[Block, tuple[float, int]] = {}
        for part in processes.all(self._lengths):
            for place, (total, count) in part.items():
                before = joined.get(place, (0.0, 0))
                joined[place] = before[0] + total, before[1] + count
        self._lengths = joined

    def forward(self, run: Callable[[], Any], number: int, samples: int) -> None:
        """Add a batch without a loss."""

        def add(call: ProductCall) -> None:
            assert call.y is not None
            if not call.product.weight.is_complex():  # sums of real numbers cannot hold what it reads
                self._add(call.place, call.product, call.y, number)

        with Watch(self.parameters, after=add):
            run()
        self.found.samples += samples

    def backward(self, run: Callable[[], Tensor], number: int, samples: int) -> None:
        """Add a batch with its loss. Layers that read inputs of the model alone are left out."""
        value = run()
        for node, product in _products_behind(value):
            place = self.parameters.place(product)
            if place is not None and not product.weight.is_complex():
                node.register_prehook(partial(self._add_gradient, place, product, number, samples))
        value.backward()  # type: ignore[no-untyped-call]
        self.found.samples += samples

    def _add_gradient(
        self, place: Block, product: WeightProduct, number: int, samples: int, gradients: tuple[Tensor | None, ...]
    ) -> None:
        if gradients[0] is not None:
            self._add(place, product, gradients[0] * samples, number, informed=True)

    @torch.no_grad()
    def _add(self, place: Block, product: WeightProduct, made: Tensor, number: int, *, informed: bool = False) -> None:
        """Add the rows of a product. made: its result, or the gradient of it if `informed`."""
        reading = self.found.blocks.get(place)
        if reading is None:
            reading = self.found.blocks[place] = self._empty(place, product)
        relative = not informed and self.row_norms and not isinstance(product.form, Convolution)
        for x, outputs in product.form.rows(product.x.detach(), made.detach(), product.weight):
            if not bool(x.isfinite().all() and outputs.isfinite().all()):
                why = "what its layer reads, or the gradient of its outputs, holds NaN or infinities"
                do = "leave out that batch, or repair the weights"
                raise InputError("activations are not finite", at=f'"{place.name}", batch {number}', why=why, do=do)
            squares = outputs.square()
            v = squares.sum(-1) if informed else torch.ones_like(x[..., 0])
            if relative:
                lengths, (total, count) = squares.sum(-1), self._lengths[place]
                v = 1 / (lengths + FLOOR * total / count).clamp(min=torch.finfo(torch.float64).tiny)
            weighted = x * v[..., None]
            reading.rows += v.sum(1)
            reading.x += weighted.sum(1)
            reading.xx += weighted.mT @ x
            if informed:
                reading.outputs += squares.sum(1)

    def _empty(self, place: Block, product: WeightProduct) -> ReadBlock:
        """No rows yet."""
        weight = double(product.form.matrix(product.weight.detach()))
        blocks, outputs, inputs = weight.shape
        dim, slots = slots_of(place, product, self.parameters.tensors[place.name].ndim)

        def made(*shape: int) -> Tensor:
            return torch.zeros(blocks, *shape, dtype=torch.float64, device=weight.device)

        owner = place.name.rpartition(".")[0]
        siblings = dict(self.model.get_submodule(owner).named_parameters(recurse=False))
        shifted = isinstance(product.form, Convolution) or any("bias" in name for name in siblings)
        empty = (made(), made(inputs), made(inputs, inputs), made(outputs))
        return ReadBlock(place.name, dim, slots.cpu(), weight, *empty, shifted)

    def joined(self, processes: Processes) -> Readings:
        """The readings with those of other processes, on the CPU."""
        joined: dict[Block, ReadBlock] = {}
        for part in processes.all({place: reading.cpu() for place, reading in self.found.blocks.items()}):
            for place, reading in part.items():
                if place in joined:
                    joined[place].add(reading)
                else:
                    joined[place] = reading
        return Readings(joined, sum(processes.all(self.found.samples)), self.found.informed)


def slots_of(place: Block, product: WeightProduct, ndim: int) -> tuple[int, Tensor]:
    """The dimension of inputs of a parameter, and the slot there of each input of the product, [g, k].

    ndim: the number of dimensions of the parameter.
    """
    form, weight = product.form, product.weight
    if not isinstance(form, Convolution):
        dim = 2 * ndim - 3 - place.dim  # the other one of the last two
        inputs = form.matrix(weight).shape
        return dim, torch.arange(inputs[2]).expand(inputs[0], inputs[2])
    dim = 1 - place.dim
    shape = [1] * weight.ndim
    shape[dim] = weight.shape[dim]
    slots = torch.arange(weight.shape[dim]).view(shape).expand(weight.shape).contiguous()
    return dim, form.matrix(slots)[:, 0]


def _products_behind(loss: Tensor) -> Iterator[tuple[Any, WeightProduct]]:
    """The nodes of the graph of a loss that multiply what they read with a matrix or a kernel, with their products."""
    seen: set[Any] = set()
    queue = [loss.grad_fn]
    while queue:
        node: Any = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        queue += [following for following, _ in node.next_functions]
        read = SAVED.get(node.name())
        product = None if read is None else read(node)
        if product is not None and product.x is not None and product.weight is not None:
            yield node, product


def _saved_convolution(node: Any) -> WeightProduct:
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    stride, padding, dilation, transposed, output_padding, groups = (getattr(node, f"_saved_{n}") for n in names)
    form = Convolution(tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(output_padding), groups)
    return WeightProduct(node._saved_input, node._saved_weight, None, form)


SAVED: Mapping[str, Callable[[Any], WeightProduct]] = {
    "MmBackward0": lambda node: WeightProduct(node._saved_self, node._saved_mat2, None, Matrix()),
    "AddmmBackward0": lambda node: WeightProduct(node._saved_mat1, node._saved_mat2, None, Matrix()),
    "BmmBackward0": lambda node: WeightProduct(node._saved_self, node._saved_mat2, None, Matrices()),
    "ConvolutionBackward0": _saved_convolution,
}
"""Name of a node of autograd -> the product that it was made for, from the tensors that it saved; None for those that
it did not need."""


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
