"""Recurrent layers: unit j is row j of every gate, column j of the recurrent weight and slot j of the state.

If the state starts at zero, a unit whose weights and biases are zero stays zero: its gates are sigmoid(0), and its
candidate is tanh(0). Mostly torch runs a recurrent layer step by step, by operations that have rules of their own.
Here are the kernels that run a whole layer, or all layers, at once.

The weights of each layer and direction are w_ih [(gate unit), input], w_hh [(gate unit), unit], the biases b_ih and
b_hh [(gate unit)], and a projection w_hr [output, unit]. The gates stand one after the other in their first dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fxprune.channels.vector import Vector
from fxprune.ops.aspects import NO_FACTOR, SLOT_BY_SLOT, absent, depends, multiplies, reads_constants, recounts, resizes
from fxprune.ops.constants import whole
from fxprune.ops.contraction import NOT_ZERO
from fxprune.ops.dependence import Dependence, Seen, anything, over
from fxprune.ops.macs import Dims
from fxprune.ops.module_use import Use
from fxprune.ops.registry import Call, Operand, rule
from fxprune.ops.site import Site

GATES = {0: 1, 1: 1, 2: 4, 3: 3}
"""The number of gates, by the number of the mode: relu, tanh, LSTM, GRU."""

GATES_BY_NAME = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
"""The number of gates, by `nn.RNNBase.mode`."""

_LAYERS = ("aten::mkldnn_rnn_layer", "aten::_cudnn_rnn")

TIME = "a recurrent layer runs over the steps in order"


@rule("aten::mkldnn_rnn_layer")
def one_layer(
    call: Call,
    input: Operand,
    weight0: Operand,
    weight1: Operand,
    weight2: Operand,
    weight3: Operand,
    hx_: Operand,
    cx_: Operand,
    mode: int,
    hidden_size: int,
    has_biases: bool,
) -> list[Operand]:
    """h[t, n, j], c[t, n, j] = f_j(sum_i w_ih[(g j), i] * x[t, n, i] + sum_k w_hh[(g j), k] * h[t - 1, n, k])"""
    weights = [weight0, weight1, *([weight2, weight3] if has_biases else [])]
    call.lock(input.dim(0), TIME)
    for state in (hx_, cx_):
        call.same(input.dim(1), state.dim(0))
    unit, zero = _cell(call, input.dim(-1), input.zero[-1], weights, GATES[mode], hidden_size, hx_, cx_)
    call.count("hidden_size", unit)
    last = call.operand([input.dim(1), unit], [False, zero])
    rest = [call.operand([call.fixed(s) for s in shape]) for shape in call.shapes[3:]]
    return [call.operand([*input.vectors[:2], unit], [False, False, zero]), last, last, *rest]


@multiplies("aten::mkldnn_rnn_layer")
def one_layer_products(input: Dims, weight0: Dims, weight1: Dims, weight2: Dims, weight3: Dims) -> list[Dims]:
    """All matrices, at each step of each sequence"""
    return [(*input[:-1], *weight) for weight in (weight0, weight1, weight2, weight3) if len(weight) == 2]


@resizes("aten::mkldnn_rnn_layer")
def one_layer_sizes(site: Site) -> None:
    """The number of units."""
    site.put(10, "hidden_size", site.counted("hidden_size")[0])


@rule("aten::_cudnn_rnn")
def all_layers(
    call: Call,
    input: Operand,
    weight: Sequence[Operand],
    weight_stride0: int,
    weight_buf: Operand | None,
    hx: Operand,
    cx: Operand | None,
    mode: int,
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    batch_first: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
) -> list[Operand]:
    """h[t, n, j], c[t, n, j] = f_j(sum_i w_ih[(g j), i] * x[t, n, i] + sum_k w_hh[(g j), k] * h[t - 1, n, k])

    This is for each layer and direction; a layer reads both directions of the layer below. The states of all layers are
    one tensor, so unit j is removed from all layers together.
    """
    if weight_buf is not None:
        call.refuse([weight_buf], "all weights of the layers in one buffer")
    vectors, zero = input.vectors[-1], input.zero[-1]
    steps = input.vectors[:-1]
    batch = 0 if batch_first else 1
    for d, vector in enumerate(steps):
        if batch_sizes or d != batch:
            call.lock(vector, TIME)
    for state in (hx, cx):
        if state is not None:
            call.lock(state.dim(0), "the states of all layers")
            if batch_sizes:
                call.lock(state.dim(1), TIME)
            else:
                call.same(steps[batch], state.dim(1))
    directions = 2 if bidirectional else 1
    states = [Operand(s.vectors[1:], s.zero[1:]) if s is not None else None for s in (hx, cx)]
    hidden, cells = states[0], states[1]
    assert hidden is not None
    every = True
    for layer in range(num_layers):
        outputs = []
        kept = True
        for direction in range(directions):
            first = (layer * directions + direction) * weight_stride0
            weights = weight[first : first + weight_stride0]
            unit, vanishes = _cell(call, vectors, zero, weights, GATES[mode], hidden_size, hidden, cells)
            outputs.append(unit)
            kept = kept and vanishes
        vectors, zero, every = call.terms.cat(outputs) if directions == 2 else outputs[0], kept, every and kept
    call.count("hidden_size", hidden.dim(-1) if cells is None else cells.dim(-1))
    call.count("proj_size", hidden.dim(-1) if proj_size else call.fixed(0))
    made = [call.operand([*steps, vectors], [*(False for _ in steps), zero])]
    for state, shape in zip((hx, cx), call.shapes[1:3], strict=True):
        if state is not None and state.shape == shape:
            made.append(call.operand(state.vectors, [False, False, every]))
        else:
            made.append(call.operand([call.fixed(s) for s in shape]))
    return [*made, *(call.operand([call.fixed(s) for s in shape]) for shape in call.shapes[3:])]


@multiplies("aten::_cudnn_rnn")
def all_layers_products(input: Dims, weight: Sequence[Dims]) -> list[Dims]:
    """All matrices, at each step of each sequence"""
    return [(*input[:-1], *matrix) for matrix in weight if len(matrix) == 2]


@resizes("aten::_cudnn_rnn")
def all_layers_sizes(site: Site) -> None:
    """The numbers of units and of outputs of a projection."""
    site.put(7, "hidden_size", site.counted("hidden_size")[0])
    site.put(8, "proj_size", site.counted("proj_size")[0])


def _cell(
    call: Call,
    entering: Vector,
    zero: bool,
    weights: Sequence[Operand],
    gates: int,
    hidden_size: int,
    hx: Operand,
    cx: Operand | None,
) -> tuple[Vector, bool]:
    """Tie the dimensions of one layer in one direction.

    entering: the dimension of its input; zero: True if that is zero at removed slots. weights: as in the module's
    docstring. hx, cx: the states, [batch, unit].

    Returns the dimension of its output, and whether that is zero at removed slots.
    """
    into, recurrent, *rest = weights
    projected = recurrent.shape[1] != hidden_size or (rest and rest[-1].ndim == 2)
    projection = rest.pop() if projected else None
    call.same(entering, into.dim(1))
    if not zero and not into.zero[1]:
        call.mark(entering, NOT_ZERO)
    unit = into.dim(0).take(slice(0, hidden_size))
    for part in (into, recurrent, *rest):
        for k in range(gates):
            call.same(unit, part.dim(0).take(slice(k * hidden_size, (k + 1) * hidden_size)))
    out = unit
    vanishes = all(part.zero[0] for part in (into, recurrent, *rest))
    if gates == 4 and cx is not None:
        call.same(unit, cx.dim(-1))
        vanishes = vanishes and cx.zero[-1]
    elif gates == 3:
        vanishes = vanishes and hx.zero[-1]
    if projection is not None:
        call.same(unit, projection.dim(1))
        if not vanishes and not projection.zero[1]:
            call.mark(unit, NOT_ZERO)
        out, vanishes = projection.dim(0), projection.zero[0]
    call.same(out, recurrent.dim(1))
    call.same(out, hx.dim(-1))
    if not hx.zero[-1] and not recurrent.zero[1]:
        call.mark(out, NOT_ZERO)
    return out, vanishes


@recounts("aten::mkldnn_rnn_layer", "aten::_cudnn_rnn", modules=(nn.RNNBase,))
def layer_attributes(module: Any, use: Use) -> dict[str, Any]:
    """The sizes, from the weights of the first layer. Raises `SizeError` if other layers have others.

    weight_ih: [gates * H, inputs]; weight_hh: [gates * H, R]; weight_hr: [R, H] with a projection, else R = H.
    """
    gates, directions = GATES_BY_NAME[module.mode], 2 if module.bidirectional else 1
    hidden = module.weight_hh_l0.shape[0] // gates
    inputs = module.weight_ih_l0.shape[1]
    projected = module.weight_hr_l0.shape[0] if module.proj_size else 0
    out = projected or hidden
    if projected >= hidden:
        why = f"a projection to {projected} is not narrower than the {hidden} hidden units it would have"
        raise use.impossible(why, {"weight_hr_l0": 1})
    for layer in range(module.num_layers):
        for suffix in [f"_l{layer}", f"_l{layer}_reverse"][:directions]:
            want = {
                "weight_ih": (gates * hidden, directions * out if layer else inputs),
                "weight_hh": (gates * hidden, out),
                "weight_hr": (projected, hidden),
            }
            for name, shape in want.items():
                weight = getattr(module, name + suffix, None)
                if weight is not None and tuple(weight.shape) != shape:
                    why = f"{name + suffix} would have shape {tuple(weight.shape)}, the layer needs {shape}"
                    raise use.impossible(why, {name + suffix: 0, "weight_hh_l0": 1, "weight_hr_l0": 1})
    return {"input_size": inputs, "hidden_size": hidden, "proj_size": projected}


depends(*_LAYERS)(anything)
reads_constants(*_LAYERS)(whole)
absent(*_LAYERS, readers="no function of torch takes a number of units")


@rule("aten::_thnn_fused_lstm_cell")
def lstm_cell(
    call: Call,
    input_gates: Operand,
    hidden_gates: Operand,
    cx: Operand,
    input_bias: Operand | None,
    hidden_bias: Operand | None,
) -> list[Operand]:
    """h[n, j], c[n, j] = f_j(x[n, (g j)] + z[n, (g j)] + b[(g j)] + d[(g j)], c'[n, j])"""
    parts = [part for part in (input_gates, hidden_gates, input_bias, hidden_bias) if part is not None]
    unit = cx.dim(-1)
    for part in parts:
        for start in range(0, 4 * unit.size, unit.size):
            call.same(part.dim(-1).take(slice(start, start + unit.size)), unit)
    batch = input_gates.dim(0)
    call.same(batch, hidden_gates.dim(0))
    call.same(batch, cx.dim(0))
    made = call.operand([batch, unit], [False, cx.zero[-1] and all(part.zero[-1] for part in parts)])
    return [made, made, call.operand([batch, input_gates.dim(-1)], False)]


@recounts("aten::_thnn_fused_lstm_cell", modules=(nn.RNNCellBase,))
def cell_attributes(module: Any, use: Use) -> dict[str, Any]:
    """The sizes of the weights."""
    return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}


depends("aten::_thnn_fused_lstm_cell")(anything)
reads_constants("aten::_thnn_fused_lstm_cell")(whole)
absent(
    "aten::_thnn_fused_lstm_cell",
    multiply_adds="the products come before it",
    sizes="no argument is a size",
    readers="no argument is a size",
)


@rule("aten::_pack_padded_sequence")
def pack(call: Call, input: Operand, lengths: Operand) -> list[Operand]:
    """y[(t n), i] = x[t, n, i] for the steps t that sequence n has"""
    for vector in (*input.vectors[:2], *lengths.vectors):
        call.lock(vector, "the lengths of the sequences are data")
    packed = call.operand([call.fixed(call.shapes[0][0]), *input.vectors[2:]], [True, *input.zero[2:]])
    return [packed, call.constant(1)]


@depends("aten::_pack_padded_sequence")
def pack_dependence(seen: Seen) -> list[Dependence]:
    """A feature i depends if it does in any step of any sequence."""
    x, lengths = seen["input"], seen.of(seen["lengths"])
    features = over(seen.of(x), x, (0, 1))
    if lengths is not False:
        return [True, True]
    return [features if isinstance(features, bool) else features[0], False]


absent(
    "aten::_pack_padded_sequence",
    multiply_adds="nothing is multiplied",
    sizes="no argument is a size",
    readers="no argument is a size",
    modules="no module of torch packs",
    constants=SLOT_BY_SLOT,
)
absent(
    *(*_LAYERS, "aten::_thnn_fused_lstm_cell", "aten::_pack_padded_sequence"),
    positions="no argument is a position",
    norms="it is no statistic",
    factors=NO_FACTOR,
)
