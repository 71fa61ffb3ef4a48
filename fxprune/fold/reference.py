"""Runs the reference once, and lists every reading of it.

The reference is the original with the weights of the removed channels set to zero. It runs in float64 under a dispatch
mode (`_Watcher`), which sees every operation. The mode knows the vectors of every tensor, from the analysis, and which
elements depend on the inputs. Each operation says itself which of its tensors it reads, and how, as values of
`fxprune.ops.constants` (`WeightedSum`, `Sum`, `Whole`). Here these become readings: with the names of parameters and
the vectors of dimensions.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from fxprune.analysis.arguments import bound
from fxprune.analysis.findings import Findings
from fxprune.analysis.observed import Walked
from fxprune.capture.layouts import is_sparse
from fxprune.capture.modes import reads_training
from fxprune.capture.process_state import clean_caches
from fxprune.capture.scopes import Scope
from fxprune.capture.state import State
from fxprune.capture.values import objects_in, tensors_in
from fxprune.channels.groups import Bools
from fxprune.channels.vector import Vector
from fxprune.errors import CaptureError
from fxprune.fold.dependence import Shadows, execute, is_view
from fxprune.fold.reading import Bias, BorderedReading, ProductReading, ReadConstants, Reading
from fxprune.fold.second_call import holding
from fxprune.ops import Operand
from fxprune.ops.aspects import CONSTANTS
from fxprune.ops.constants import Read, Sum, WeightedSum, Whole
from fxprune.ops.dependence import Seen, along, constant_planes
from fxprune.ops.leaves import leaf_rule, leaf_weight
from fxprune.proof.copies import Copying
from fxprune.proof.deterministic import deterministic
from fxprune.proof.kept_weights import kept_weights, making_weights
from fxprune.proof.operations import Operations
from fxprune.proof.precision import FLOAT64
from fxprune.proof.runs import GraphRun
from fxprune.rewrite.constants import WITH_BIAS


def read(findings: Findings, zeroed: Mapping[str, Mapping[int, Any]]) -> list[Reading]:
    """Run the reference and return its readings, in the order of the run.

    Where the analysis has seen both modes, what only training reads counts as well, such as an auxiliary head. There
    the modules whose code reads its mode are in training, and the layers of torch in evaluation mode: a constant behind
    a dropout, or behind statistics of a batch, is the one of evaluation.

    zeroed: the slots that are set to zero in the original, {parameter or buffer: {dimension: slots}}.

    Raises `CaptureError` where an input is an object whose tensors cannot be found.
    """
    found: list[Reading] = []
    known: set[tuple[str, str, int]] = set()
    for walked in sorted(findings.walked, key=lambda walked: walked.training):
        main = replace(findings.observed.main, nodes=walked.nodes, observations=walked.observations)
        seen = replace(findings.observed, main=main)
        readings = _read_in(replace(findings, observed=seen), walked, zeroed)
        found += [reading for reading in readings if _key(reading) not in known]
        known.update(map(_key, readings))
    return found


def _key(reading: Reading) -> tuple[str, str, int]:
    """The place, the weight and the dimension of a reading: the same ones in both modes are one."""
    weight = reading.weight if isinstance(reading, ProductReading) else ""
    return reading.at, weight, id(reading.vector.representative)


def _read_in(findings: Findings, walked: Walked, zeroed: Mapping[str, Mapping[int, Any]]) -> list[Reading]:
    """The readings of one run of the reference. The arguments are those of `read`, `findings` those of that run."""
    watcher = _Watcher(findings)
    captured = findings.captured
    with clean_caches(findings.model), deterministic():
        values = watcher.inputs(captured.arguments(walked.inputs, walked.method))
        parts = pytree.tree_leaves(values)
        hidden = objects_in([part for part in parts if not isinstance(part, torch.Tensor)])
        if hidden:
            raise CaptureError(
                "constants cannot be told from what depends on the inputs",
                why=f"an input is an object of type {hidden[0]}, whose content is unknown",
                do='pass tensors, or use bias="prune"',
            )
        both = walked.training and len(findings.modes) > 1
        reading = {
            path
            for path, part in captured.module.named_modules()
            if both and (path in walked.readers or reads_training(part))
        }
        kept = kept_weights(findings.model, zeroed)
        copying = Copying(kept.zeroed, kept.values, made=watcher.name)
        run = GraphRun(
            captured.graph,
            captured.module,
            copying,
            watcher,
            modes=lambda path: path in reading,
            gradients=walked.gradients,
        )
        state = State(run.copied, users=True)
        run.run_on(values)
        if state.changed():
            with contextlib.suppress(Exception):  # such as a cache that is full; the analysis has noted it
                watcher.found += _read_again(run, watcher, state, captured.arguments(walked.inputs, walked.method))
    return watcher.found


def _read_again(run: GraphRun, watcher: _Watcher, state: State, values: list[Any]) -> list[Reading]:
    """The readings of a second call, which reads the state that the first one has left: see `holding`."""
    for tensor in state.changed_tensors():
        watcher.shadows.set(tensor, True)
    first, watcher.found = watcher.found, []
    try:
        watcher.scopes.restart()
        run.run_on(watcher.inputs(values))
        return holding(first, watcher.found)
    finally:
        watcher.found = first


class _Watcher(Operations):  # type: ignore[no-untyped-call]
    """The dispatch mode of the run; `found` are the readings so far."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(findings)
        self.shadows = Shadows()
        self.found: list[Reading] = []
        self._weights = making_weights(findings)  # norms of weights: what they sum over changes no weight that stays
        self._nodes = {node.name: node for node in findings.captured.graph.nodes}
        self._canonical = {alias: name for name, aliases in findings.aliases.items() for alias in aliases}
        self._vectors: dict[str, dict[int, Vector]] = {}
        for axis in findings.axes:
            self._vectors.setdefault(axis.parameter, {})[axis.dim] = axis.vector
        self._leaf: Scope | None = None
        self.scopes.on_enter, self.scopes.on_leave = self._enter, self._leave
        self._names: dict[int, tuple[weakref.ref[torch.Tensor], str]] = {}
        self._operands: dict[int, tuple[weakref.ref[torch.Tensor], tuple[Vector, ...]]] = {}

    def inputs(self, values: list[Any]) -> list[Any]:
        """Copies of inputs in float64, on which all that is computed from them depends."""
        copies: list[Any] = FLOAT64.copies(values)
        parts = [part for part in pytree.tree_leaves(copies) if isinstance(part, torch.Tensor)]
        for tensor in [*tensors_in(copies), *parts]:
            self.shadows.set(tensor, True)
        return copies

    # -- names and vectors of tensors ----------------------------------------------------------------------

    def name(self, tensor: torch.Tensor, name: str) -> None:
        """Note the name of a parameter or buffer of the reference; tied ones get the same name."""
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
        if self._leaf is not None:  # operations inside a leaf are not readings; the leaf is one, see `_leave`
            return execute(seen, args, kwargs, self.shadows)
        key = self.scopes.current.next_key(name)
        promised = self.observation.outputs.get(key)
        sums: list[tuple[WeightedSum, ProductReading]] = []
        for read in () if is_view(func) or key in self._weights else reads_of(name, seen):
            sums += self._note(name, seen, read)
        made = execute(seen, args, kwargs, self.shadows)
        outputs = [made] if isinstance(made, torch.Tensor) else tensors_in(made)
        self._follow(name, seen, outputs, promised)
        self._finish(sums, outputs)
        return made

    def _finish(self, sums: Sequence[tuple[WeightedSum, ProductReading]], outputs: Sequence[torch.Tensor]) -> None:
        """Add the readings of products to `found`, now that the vectors of their outputs are known."""
        for read, reading in sums:
            known = self.vectors(outputs[0])
            reading.out = None if known is None else known[read.out]
            self.found.append(reading)

    @torch.no_grad()
    def _enter(self, scope: Scope) -> None:
        if self._leaf is None and leaf_rule(scope.module) is not None:
            self._leaf = scope

    @torch.no_grad()
    def _leave(self, scope: Scope, args: Any, kwargs: Any, made: Any) -> None:
        """A module returns: if it is a leaf, one operation for the analysis, note its reading."""
        if scope is not self._leaf or scope.module is None:
            return
        self._leaf = None
        with _disable_current_modes():
            self._read_leaf(scope, scope.module, tensors_in((args, kwargs)), tensors_in(made))

    def _read_leaf(
        self, scope: Scope, module: nn.Module, entering: list[torch.Tensor], outputs: list[torch.Tensor]
    ) -> None:
        name = type(module).__name__
        promised = self.observation.outputs.get(self.scopes.current.next_key(name))
        weight = leaf_weight(module)
        seen = Seen(torch.ops.aten.alias.default, {str(i): t for i, t in enumerate(entering)}, self.shadows.of)
        self.scopes.stack.append(scope)  # so that a reading is named after the leaf
        read = Whole(entering) if weight is None else layer_read(module, entering[0], weight)
        sums = self._note(name, seen, read)
        if weight is not None and not sums:
            self._note(name, seen, Whole(entering))
        self._follow(name, seen, outputs, promised)
        self.scopes.stack.pop()
        self._finish(sums, outputs)

    def _follow(self, name: str, seen: Seen, outputs: list[torch.Tensor], promised: list[Operand] | None) -> None:
        """Give the results of an operation the vectors that the analysis found for them.

        promised: the results in the analysis, None if it saw no such operation there. Then the vectors are unknown, and
        every removed slot of the arguments must be zero. An operation may have fewer results here than in the analysis
        or more (batch normalisation in training).
        """
        if (
            promised is None and name == "aten::_to_copy"
        ):  # a cast that is no operation of the original, which has that type already
            known = self.vectors(seen["self"])
            return None if known is None else self._bind(outputs[0], known)
        shapes = [] if promised is None else [o.shape for o in promised]
        for number, output in enumerate(outputs):
            if promised is not None and len(shapes) == len(outputs) and tuple(output.shape) == shapes[number]:
                self._bind(output, promised[number].vectors)
            elif output.numel():
                return self._zero_in_all(name, seen, Whole(seen.tensors), "an operation that the analysis did not see")
        return None

    # -- readings -----------------------------------------------------------------------------------------

    def _note(self, name: str, seen: Seen, read: Read) -> list[tuple[WeightedSum, ProductReading]]:
        """Turn one read into readings. That of a product is returned with it: it lacks the vector of its outputs."""
        if isinstance(read, WeightedSum):
            reading = self._product(seen, read)
            return [] if reading is None else [(read, reading)]
        if isinstance(read, Sum):
            self._zero_in_sum(name, seen, read)
        else:
            self._zero_in_all(name, seen, read)
        return []

    def _product(self, seen: Seen, read: WeightedSum) -> ProductReading | None:
        """The reading of a layer, None if no slot of the dimension can be removed."""
        x, dim, columns = read.x, read.dim, read.columns
        known = self.vectors(x)
        if known is None or known[dim].fixed:
            return None
        rows = x.movedim(dim, 0).flatten(1)
        live = (columns != 0).any(2)
        live = live.any(0) if read.transposed else live.view(read.blocks, -1, live.shape[1]).any(1).flatten()
        depending = along(seen.of(x), x, dim)
        constant = torch.nonzero(live & ~depending & (rows != 0).any(1)).flatten()
        planes = rows[constant]
        uniform = constant_planes(planes)
        if bool(uniform.all()):
            planes = planes[:, :1]
        picked = _columns(columns, constant, read.blocks, read.transposed)
        options: dict[str, Any] = {}
        if read.padded:
            node = self._shown() if read.apply is not None else None
            name = node.name if node is not None and node.users else ""
            options = {"node": name, "shape": tuple(x.shape[dim:]), "apply": read.apply}
        return (BorderedReading if read.padded else ProductReading)(
            at=self._at(),
            why="it depends on the input there",
            vector=known[dim],
            bad=_numpy(live & depending),
            constants=ReadConstants(constant.cpu().numpy(), planes.clone(), _numpy(uniform), picked),
            reads=_numpy((columns != 0).any(2)),
            blocks=read.blocks,
            transposed=read.transposed,
            bias=self._bias(read.bias, read.outputs),
            weight=self.named(read.weight),
            **options,
        )

    def _bias(self, bias: torch.Tensor | None, outputs: int) -> Bias:
        """The bias that can take up constants: that of the operation, else a new one, for the layer or the node."""
        if bias is not None:
            return Bias(self.named(bias) if bias.shape == (outputs,) else "")
        scope, node = self.scopes.current, self._shown()
        layer = scope.module
        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
            count = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            if count == outputs:
                name = f"{scope.path}.bias"
                return Bias(self._canonical.get(name, name), layer.bias is None)
        return Bias(f"%{node.name}", True) if node is not None and node.op == "call_function" else Bias()

    def _zero_in_sum(self, name: str, seen: Seen, read: Sum) -> None:
        """Note the slots that are not zero in a sum, or with a second factor, those that are zero in neither."""
        x, factor = read.x, read.factor
        vector = (self.vectors(x) or (None,) * x.ndim)[read.dim]
        if vector is None and factor is not None:
            vector = (self.vectors(factor) or (None,) * factor.ndim)[read.factor_dim]
        if vector is None or vector.fixed:
            return
        bad = along(seen.live(x), x, read.dim)
        if factor is not None:
            bad = bad & along(seen.live(factor), factor, read.factor_dim)
        if bool(bad.any()):
            self.found.append(Reading(self._at(), f"{name} sums over it and it is not zero", vector, _numpy(bad)))

    def _zero_in_all(self, name: str, seen: Seen, read: Whole, why: str = "") -> None:
        """Note the slots that are not zero, in every dimension of some tensors."""
        for tensor in read.tensors:
            for dim, vector in enumerate(self.vectors(tensor) or ()):
                if not vector.fixed and tensor.numel():
                    bad = along(seen.live(tensor), tensor, dim)
                    if bool(bad.any()):
                        self.found.append(Reading(self._at(), why or f"{name} is given it", vector, _numpy(bad)))

    def _shown(self) -> fx.Node | None:
        """The node that is the running operation and nothing else; None where the rewritten model shows no graph."""
        node, scope = self._nodes[self.node], self.scopes.current
        if self.findings.captured.keeps_class:
            return None
        if node.op == "call_module":
            of_torch = type(scope.module).__module__.startswith("torch.nn.")
            return node if of_torch and scope.path == node.target else None
        return node if node.target in WITH_BIAS else None

    def _at(self) -> str:
        """The place of the running operation, for messages."""
        path = self.scopes.current.path
        if path and not path.startswith("%"):
            return f'"{path}"'
        return "the model" if self.findings.captured.keeps_class else f"%{self.node}"


def reads_of(name: str, seen: Seen) -> Sequence[Read]:
    """The reads of an operation, from its own function. Without one it reads all arguments, unless it is `absent`."""
    if any(map(is_sparse, seen.tensors)):
        return ()  # no dimension that can shrink is summed over: those of a sparse factor are fixed
    function = CONSTANTS.of(name)
    if function is not None:
        return function(seen)  # type: ignore[no-any-return]
    return () if name in CONSTANTS.reasons or name.removesuffix("_") in CONSTANTS.reasons else [Whole(seen.tensors)]


def layer_read(layer: Any, x: torch.Tensor, weight: torch.Tensor) -> WeightedSum:
    """The read of a linear layer or convolution that computes with `weight` instead of its parameter."""
    padding = getattr(layer, "padding", "valid")
    zeros = getattr(layer, "padding_mode", "zeros") == "zeros"
    return WeightedSum(
        x,
        x.ndim + 1 - weight.ndim,
        weight.flatten(2) if weight.ndim > 2 else weight[:, :, None],
        weight.shape[0],
        layer.bias,
        out=1 - weight.ndim,
        blocks=getattr(layer, "groups", 1),
        padded=zeros and padding != "valid" and (isinstance(padding, str) or any(padding)),
    )


def _columns(columns: torch.Tensor, slots: torch.Tensor, blocks: int, transposed: bool) -> torch.Tensor:
    """The columns of some slots, [outputs of all blocks, slots, taps]; an output of another block gets zeros.

    columns: as in `WeightedSum`. slots: numbers in the whole dimension.
    """
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
