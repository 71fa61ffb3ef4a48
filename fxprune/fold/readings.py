"""The places where channels are read: what each slot that is summed over carries there, in the reference.

The reference is run once in float64 under a dispatch mode that knows the vectors of every tensor from the analysis and
which elements depend on the inputs. Nothing is decided here.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from fxprune.analysis.arguments import bound
from fxprune.analysis.findings import Findings
from fxprune.capture.process_state import clean_caches
from fxprune.capture.scopes import Scope
from fxprune.capture.values import objects_in, tensors_in
from fxprune.channels.groups import Bools, Ints
from fxprune.channels.vector import Vector
from fxprune.errors import CaptureError
from fxprune.fold.dependence import Shadows, execute, is_view
from fxprune.ops import Operand
from fxprune.ops.aspects import DEPENDENCE
from fxprune.ops.attention import KERNELS
from fxprune.ops.dependence import Seen, along, constant_planes
from fxprune.ops.leaves import leaf_rule, leaf_weight
from fxprune.ops.reduction import STATISTICS, SUMS, reduced_dims
from fxprune.proof.deterministic import deterministic
from fxprune.proof.float64 import Float64Run, in_float64
from fxprune.proof.operations import Operations
from fxprune.rewrite.constants import WITH_BIAS

NORMS = {f"aten::{name}" for name in ("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")}
WHOLE = NORMS | {
    f"aten::{name}"
    for name in """
        _weight_norm _weight_norm_interface _cdist_forward _euclidean_dist _grouped_mm _trilinear addbmm linear
        mkldnn_rnn_layer _cudnn_rnn _thnn_fused_lstm_cell embedding_renorm histc
    """.split()
}


@dataclass(eq=False)
class Reading:
    """One dimension that an operation sums over, or reads in any other way.

    at, why: the place, and what the slots in `bad` are there.
    vector: the dimension's, S slots.
    bad: the slots that cannot go: not constant, or not zero where nothing can take a constant up.
    slots, planes, columns: the slots that carry a constant c != 0 into a product with a weight, the values that they
        have at all positions [slots, positions or 1], and the weight's columns for them [out, slots, taps].
    reads: which outputs read which slots of their block [out, slots]; transposed [out of a block, slots of all blocks].
    blocks, out: the blocks of the dimension (conv groups) and the vector of the outputs, which are in as many blocks.
    bias: the bias that can take up constants, a parameter of the model or one to be made (`new`); "" for none.
    weight, dim: the weight whose column can be changed, and the dimension of its columns; "" for none.
    bordered: whether a constant is another one near the border, so that it takes a carrier.
    result: the node to whose result a map can be added; "" for none. again: that operation, for an input of `shape`.
    """

    at: str
    why: str
    vector: Vector
    bad: Bools
    slots: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    planes: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 1))
    columns: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, 1))
    uniform: Bools = field(default_factory=lambda: np.zeros(0, dtype=bool))
    reads: Bools | None = None
    blocks: int = 1
    out: Vector | None = None
    bias: str = ""
    new: bool = False
    weight: str = ""
    dim: int = 1
    bordered: bool = False
    result: str = ""
    shape: tuple[int, ...] = ()
    again: Callable[[torch.Tensor], torch.Tensor] = field(default=lambda x: x)

    def read_by(self, left: Bools | None) -> Bools:
        """The slots that outputs read which are `left`, all if that is None."""
        size, blocks = self.vector.size, self.blocks
        if self.reads is None:
            return np.ones(size, dtype=bool)
        if self.dim == 0:  # transposed
            made = self.reads.T.reshape(blocks, size // blocks, -1)
            return np.asarray((made if left is None else made & left.reshape(blocks, 1, -1)).any(2).reshape(-1))
        made = self.reads.reshape(blocks, -1, size // blocks)
        return np.asarray((made if left is None else made & left.reshape(blocks, -1, 1)).any(1).reshape(-1))

    def mapped(self, chosen: Bools) -> torch.Tensor:
        """What the chosen ones of the constants make of the result, [out_channels, ...]."""
        space = self.shape[1:]
        x = self.planes.new_zeros(self.shape)
        rows = torch.from_numpy(np.flatnonzero(chosen))
        planes = self.planes[rows]
        if planes.shape[1] == 1:
            planes = planes.expand(-1, math.prod(space))
        x[torch.from_numpy(self.slots)[rows]] = planes[:, : math.prod(space)].reshape(-1, *space)
        made: torch.Tensor = self.again(x[None])[0]
        return made


def read(findings: Findings, zeroed: Mapping[str, Mapping[int, Any]]) -> list[Reading]:
    """Run the reference, the original with the slots in `zeroed` set to zero, and list every reading."""
    watcher = _Readings(findings)
    captured = findings.captured
    with clean_caches(findings.model), deterministic():
        values = in_float64(captured.values(findings.inputs))
        parts = pytree.tree_leaves(values)
        hidden = objects_in([part for part in parts if not isinstance(part, torch.Tensor)])
        if hidden:
            raise CaptureError(
                "constants cannot be told from what depends on the inputs",
                why=f"an input is an object of type {hidden[0]}, which nobody looks into",
                do='pass tensors, or use bias="prune"',
            )
        for tensor in [*tensors_in(values), *(part for part in parts if isinstance(part, torch.Tensor))]:
            watcher.shadows.set(tensor, True)
        _Reference(captured.graph, captured.module, zeroed, watcher).run(*values)
    return watcher.found


class _Reference(Float64Run):
    """Tells the watcher the name of every parameter and buffer."""

    def _tensor(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        made = super()._tensor(name, tensor)
        assert isinstance(self.operations, _Readings)
        self.operations.name(made, name)
        return made


class _Readings(Operations):  # type: ignore[no-untyped-call]
    def __init__(self, findings: Findings) -> None:
        super().__init__(findings)
        self.shadows = Shadows()
        self.found: list[Reading] = []
        self._nodes = {node.name: node for node in findings.captured.graph.nodes}
        self._canonical = {alias: name for name, aliases in findings.aliases.items() for alias in aliases}
        self._vectors: dict[str, dict[int, Vector]] = {}
        for axis in findings.axes:
            self._vectors.setdefault(axis.parameter, {})[axis.dim] = axis.vector
        self._leaf: Scope | None = None
        self.scopes.enter, self.scopes.leave = self._enter, self._leave
        self._names: dict[int, tuple[weakref.ref[torch.Tensor], str]] = {}
        self._operands: dict[int, tuple[weakref.ref[torch.Tensor], tuple[Vector, ...]]] = {}

    # -- what the reference tells -------------------------------------------------------------------------

    def name(self, tensor: torch.Tensor, name: str) -> None:
        """A parameter or buffer of the reference; tied ones have one name."""
        name = self._canonical.get(name, name)
        known = self._vectors.get(name, {})
        fixed = self.findings.solution.terms.fixed
        self._names[id(tensor)] = (weakref.ref(tensor), name)
        self._bind(tensor, [known.get(d) or fixed(size) for d, size in enumerate(tensor.shape)])

    def _bind(self, tensor: torch.Tensor, vectors: Sequence[Vector]) -> None:
        self._operands[id(tensor)] = (weakref.ref(tensor), tuple(vectors))

    def vectors(self, tensor: torch.Tensor) -> tuple[Vector, ...] | None:
        """The vectors of a tensor, None where they are not known."""
        known = self._operands.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    def named(self, tensor: Any) -> str:
        """The name of a parameter or buffer, "" for any other tensor."""
        known = self._names.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else ""

    # -- operations ---------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        name, raw = bound(func, args, kwargs)
        seen = Seen(func, raw, self.shadows.of)
        if self._leaf is not None:  # its rule says it all, see `_leave`
            return execute(seen, args, kwargs, self.shadows)
        promised = self.observation.outputs.get(self.scopes.now.next_key(name))
        reading = None
        if not is_view(func):
            reading = self._reading(name, seen)
            if DEPENDENCE.of(name) is None or name in WHOLE:
                self._all_zero(name, seen)
        made = execute(seen, args, kwargs, self.shadows)
        outputs = [made] if isinstance(made, torch.Tensor) else tensors_in(made)
        self._follow(name, seen, outputs, promised)
        if reading is not None:
            reading.out = (self.vectors(outputs[0]) or (None,))[reading_dim(name, seen)]
            self.found.append(reading)
        return made

    def _enter(self, scope: Scope) -> None:
        if self._leaf is None and leaf_rule(scope.module) is not None:
            self._leaf = scope

    def _leave(self, scope: Scope, args: Any, kwargs: Any, made: Any) -> None:
        """A module that the analysis treats as one operation has returned."""
        if scope is not self._leaf or scope.module is None:
            return
        self._leaf = None
        with _disable_current_modes():
            self._read_leaf(scope, scope.module, tensors_in((args, kwargs)), tensors_in(made))

    def _read_leaf(
        self, scope: Scope, module: nn.Module, entering: list[torch.Tensor], outputs: list[torch.Tensor]
    ) -> None:
        name = type(module).__name__
        promised = self.observation.outputs.get(self.scopes.now.next_key(name))
        weight = leaf_weight(module)
        seen = Seen(torch.ops.aten.alias.default, {str(i): t for i, t in enumerate(entering)}, self.shadows.of)
        self.scopes.stack.append(scope)  # so that a reading is named after the leaf
        reading = None if weight is None else self._layer(seen, module, entering[0], weight)
        if reading is None:
            self._all_zero(name, seen)
        self._follow(name, seen, outputs, promised)
        self.scopes.stack.pop()
        if reading is not None and weight is not None:
            known = self.vectors(outputs[0])
            reading.out = None if known is None else known[1 - weight.ndim]
            self.found.append(reading)

    def _layer(self, seen: Seen, layer: Any, x: torch.Tensor, weight: torch.Tensor) -> Reading | None:
        """What a linear layer or convolution reads that computes with another weight than its parameter."""
        blocks = getattr(layer, "groups", 1)
        columns = weight.flatten(2) if weight.ndim > 2 else weight[:, :, None]
        reading = self._weighted(seen, x, x.ndim + 1 - weight.ndim, columns, blocks, False)
        if reading is not None:
            padding = getattr(layer, "padding", "valid")
            zeros = getattr(layer, "padding_mode", "zeros") == "zeros"
            reading.bordered = zeros and padding != "valid" and (isinstance(padding, str) or any(padding))
            self._bias(reading, layer.bias, weight.shape[0])
        return reading

    def _follow(self, name: str, seen: Seen, outputs: list[torch.Tensor], promised: list[Operand] | None) -> None:
        """The vectors of the results, from the analysis. Where it saw no such operation, nothing may go unseen.

        What batch normalisation in training makes besides its result is not there in evaluation.
        """
        if promised is None and name == "aten::_to_copy":  # to single precision, where the model is in it anyway
            known = self.vectors(seen["self"])
            return None if known is None else self._bind(outputs[0], known)
        shapes = [] if promised is None else [o.shape for o in promised]
        for number, output in enumerate(outputs):
            if promised is not None and len(shapes) == len(outputs) and tuple(output.shape) == shapes[number]:
                self._bind(output, promised[number].vectors)
            elif output.numel():
                return self._all_zero(name, seen, "an operation that the analysis did not see")
        return None

    # -- readings -----------------------------------------------------------------------------------------

    def _reading(self, name: str, seen: Seen) -> Reading | None:
        short = name.removeprefix("aten::")
        if "convolution" in short and "weight" in seen.raw:
            if seen.of(seen["weight"]) is False:
                return self._convolution(seen)
            self._all_zero(name, seen)
        if short in ("mm", "addmm"):
            a, b = (seen["self"], seen["mat2"]) if short == "mm" else (seen["mat1"], seen["mat2"])
            if seen.of(b) is False:
                return self._linear(seen, a, b)
        if short in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot"):
            self._product(name, seen)
        elif short in KERNELS:
            self._zero(name, seen, seen["query"], -1, seen["key"], -1)
        elif short in ("cumsum", *SUMS, *STATISTICS) and not isinstance(seen.raw.get("other"), torch.Tensor):
            for dim in reduced_dims(seen):
                self._zero(name, seen, seen["self"], dim)
        return None

    def _convolution(self, seen: Seen) -> Reading | None:
        x, w = seen["input"], seen["weight"]
        space, transposed, groups = w.ndim - 2, seen["transposed"], seen["groups"]
        channel = x.ndim - space - 1
        columns = w.flatten(2)  # [o, i, taps]; of a transposed one [i, o, taps]
        if transposed:
            columns = columns.transpose(0, 1)
        padded = any(seen["padding"]) or transposed
        reading = self._weighted(seen, x, channel, columns, groups, transposed)
        if reading is None:
            return None
        reading.bordered = padded
        reading.shape = tuple(x.shape[channel:])
        options = {k: seen[k] for k in ("stride", "padding", "dilation", "transposed", "output_padding", "groups")}
        reading.again = lambda x: torch.convolution(x, w, None, **options)
        node = self._shown()
        if node is not None and node.users:
            reading.result = node.name
        if self.named(w):
            reading.weight = self.named(w)
        self._bias(reading, seen["bias"], w.shape[1] * groups if transposed else w.shape[0])
        return reading

    def _linear(self, seen: Seen, a: torch.Tensor, b: torch.Tensor) -> Reading | None:
        reading = self._weighted(seen, a, 1, b.t()[:, :, None], 1, False)
        if reading is not None:
            self._bias(reading, seen["self"] if "mat1" in seen.raw else None, b.shape[1])
        return reading

    def _weighted(
        self, seen: Seen, x: torch.Tensor, dim: int, columns: torch.Tensor, blocks: int, transposed: bool
    ) -> Reading | None:
        """A product with a constant weight [out, slots of a block, taps]; transposed [out of a block, slots, taps]."""
        known = self.vectors(x)
        if known is None or known[dim].fixed:
            return None
        rows = x.movedim(dim, 0).flatten(1)
        live = (columns != 0).any(2)
        live = live.any(0) if transposed else live.view(blocks, -1, live.shape[1]).any(1).flatten()
        depending = along(seen.of(x), x, dim)
        constant = torch.nonzero(live & ~depending & (rows != 0).any(1)).flatten()
        planes = rows[constant]
        uniform = constant_planes(planes)
        if bool(uniform.all()):
            planes = planes[:, :1]
        return Reading(
            at=self._at(),
            why="it depends on the input there",
            vector=known[dim],
            bad=_numpy(live & depending),
            slots=constant.cpu().numpy(),
            planes=planes.clone(),
            columns=_columns(columns, constant, blocks, transposed),
            uniform=_numpy(uniform),
            reads=_numpy((columns != 0).any(2)),
            blocks=blocks,
            dim=0 if transposed else 1,
        )

    def _bias(self, reading: Reading, bias: torch.Tensor | None, outputs: int) -> None:
        """Which bias can take up constants: that of the operation, else one that its layer does not have yet."""
        if bias is not None:
            if self.named(bias) and bias.shape == (outputs,):
                reading.bias = self.named(bias)
            return
        scope, node = self.scopes.now, self._shown()
        if node is not None and node.op == "call_function":
            reading.bias, reading.new = f"%{node.name}", True
        layer = scope.module
        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
            count = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            if count == outputs:
                name = f"{scope.path}.bias"
                reading.bias, reading.new = self._canonical.get(name, name), layer.bias is None

    def _product(self, name: str, seen: Seen) -> None:
        """A product of two tensors that both follow the input: what goes must be zero in one of them."""
        a, b = seen.tensors[-2:]
        self._zero(name, seen, a, a.ndim - 1, b, max(b.ndim - 2, 0))

    def _zero(
        self, name: str, seen: Seen, x: torch.Tensor, dim: int, other: torch.Tensor | None = None, along_other: int = 0
    ) -> None:
        """What goes from this dimension must be zero, in one of two factors if there are two."""
        vector = (self.vectors(x) or (None,) * x.ndim)[dim]
        if vector is None and other is not None:
            vector = (self.vectors(other) or (None,) * other.ndim)[along_other]
        if vector is None or vector.fixed:
            return
        bad = along(seen.live(x), x, dim)
        if other is not None:
            bad = bad & along(seen.live(other), other, along_other)
        if bool(bad.any()):
            self.found.append(Reading(self._at(), f"{name} sums over it and it is not zero", vector, _numpy(bad)))

    def _all_zero(self, name: str, seen: Seen, why: str = "") -> None:
        """An operation that may do anything: what goes must be zero in its inputs; of a norm in the first."""
        for tensor in seen.tensors[:1] if name in NORMS else seen.tensors:
            for dim, vector in enumerate(self.vectors(tensor) or ()):
                if not vector.fixed and tensor.numel():
                    bad = along(seen.live(tensor), tensor, dim)
                    if bool(bad.any()):
                        self.found.append(Reading(self._at(), why or f"{name} is given it", vector, _numpy(bad)))

    def _shown(self) -> fx.Node | None:
        """The node of a graph that is this operation and nothing else."""
        node, scope = self._nodes[self.node], self.scopes.now
        if self.findings.captured.keeps_class:
            return None
        if node.op == "call_module":
            plain = type(scope.module).__module__.startswith("torch.nn.")
            return node if plain and scope.path == node.target else None
        return node if node.target in WITH_BIAS else None

    def _at(self) -> str:
        path = self.scopes.now.path
        if path and not path.startswith("%"):
            return f'"{path}"'
        return "the model" if self.findings.captured.keeps_class else f"%{self.node}"


def reading_dim(name: str, seen: Seen) -> int:
    """The dimension of the result in which the outputs of a layer stand, counted from the end."""
    return -1 - (seen["weight"].ndim - 2) if "convolution" in name else -1


def _columns(columns: torch.Tensor, slots: torch.Tensor, blocks: int, transposed: bool) -> torch.Tensor:
    """The weight's columns [out, slots, taps] for slots of the whole dimension, zero outside their block."""
    if blocks == 1:
        return columns[:, slots].clone()
    if transposed:  # [o of a block, (g i), taps]
        made = columns.new_zeros(blocks, columns.shape[0], len(slots), columns.shape[2])
        block = slots // (columns.shape[1] // blocks)
        made[block, :, torch.arange(len(slots))] = columns[:, slots].transpose(0, 1)
        return made.flatten(0, 1)
    width = columns.shape[1]
    per_block = columns.view(blocks, -1, *columns.shape[1:])
    made = columns.new_zeros(blocks, per_block.shape[1], len(slots), columns.shape[2])
    block = slots // width
    made[block, :, torch.arange(len(slots))] = per_block[block, :, slots % width]
    return made.flatten(0, 1)


def _numpy(flags: torch.Tensor) -> Bools:
    return np.asarray(flags.detach().cpu().numpy(), dtype=bool)
