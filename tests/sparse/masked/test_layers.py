"""Masked layers: entries without a connection carry no signal, have no gradient, and stay exactly zero."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import nn
from torch.nn.utils import parametrize

from fxprune.errors import PlanError
from fxprune.sparse import MaskedConv2d, MaskedLinear

OUT, IN = 5, 7


def some_mask(*shape):
    """A random mask with about half of the connections; at least one is connected and one is not."""
    mask = torch.rand(shape) < 0.5
    mask.view(-1)[0], mask.view(-1)[-1] = True, False
    return mask


def linear(**options):
    return MaskedLinear(IN, OUT, some_mask(OUT, IN), **options)


def conv(**options):
    return MaskedConv2d(6, 4, 3, some_mask(4, 6 // options.get("groups", 1)), padding=1, **options)


def conv_by_position(**options):
    return MaskedConv2d(6, 4, (3, 2), some_mask(4, 6, 3, 2), stride=2, **options)


MAKERS = {
    "linear": linear,
    "linear without bias": lambda **o: linear(bias=False, **o),
    "conv": conv,
    "conv in groups": lambda **o: conv(groups=2, **o),
    "conv by position": conv_by_position,
    "conv padded in circles": lambda **o: conv(padding_mode="circular", **o),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def input_for(layer, batch=3, dtype=torch.float64):
    return torch.randn((batch, IN) if isinstance(layer, MaskedLinear) else (batch, 6, 9, 8), dtype=dtype)


def whole_mask(layer):
    return layer.mask.expand(layer.weight.shape)


def stored(layer):
    """The parameter as optimizers see it, without reading `layer.weight`."""
    return dict(layer.named_parameters())["weight"]


def brute_force(layer, x, weight):
    """Sum over every connection by itself, in Python; the kernel of a convolution is placed by hand."""
    mask = whole_mask(layer)
    if isinstance(layer, MaskedLinear):
        y = torch.zeros(len(x), OUT, dtype=x.dtype)
        for o, i in mask.nonzero().tolist():
            y[:, o] += weight[o, i] * x[:, i]
        return y if layer.bias is None else y + layer.bias
    if layer.padding_mode == "circular":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode="circular")
    else:
        x = F.pad(x, (layer.padding[1], layer.padding[1], layer.padding[0], layer.padding[0]))
    (kh, kw), s = layer.kernel_size, layer.stride[0]
    h, w = (x.shape[2] - kh) // s + 1, (x.shape[3] - kw) // s + 1
    y = torch.zeros(len(x), layer.out_channels, h, w, dtype=x.dtype)
    per_group = layer.in_channels // layer.groups
    for o, i, a, b in mask.nonzero().tolist():
        c = o // (layer.out_channels // layer.groups) * per_group + i
        y[:, o] += weight[o, i, a, b] * x[:, c, a : a + s * h : s, b : b + s * w : s]
    return y if layer.bias is None else y + layer.bias[:, None, None]


@makers
def test_output_is_the_sum_over_connections(make):
    layer = make(dtype=torch.float64)
    x, weight = input_for(layer), stored(layer).detach().clone()
    assert (layer(x) - brute_force(layer, x, weight)).abs().max() < 1e-12
    assert (layer(x) - brute_force(layer, x, weight.roll(1, 0))).abs().max() > 1e-3  # the reference can fail


@makers
def test_gradients_are_those_of_the_connections(make):
    layer = make(dtype=torch.float64)
    x = input_for(layer).requires_grad_()
    toward = torch.randn_like(layer(x))
    (layer(x) * toward).sum().backward()
    weight = stored(layer).detach().clone().requires_grad_()
    again = x.detach().clone().requires_grad_()
    (brute_force(layer, again, weight) * toward).sum().backward()
    assert (layer.weight.grad - weight.grad).abs().max() < 1e-11
    assert (x.grad - again.grad).abs().max() < 1e-11
    assert (layer.weight.grad[~whole_mask(layer)] == 0).all()
    assert (layer.weight.grad[whole_mask(layer)] != 0).any()


@makers
def test_no_signal_and_no_gradient_even_where_a_compiler_reads_what_was_written(make):
    layer = make(dtype=torch.float64)
    x, y = input_for(layer), None
    with torch.no_grad():
        y = layer(x)
        stored(layer)[~whole_mask(layer)] = 3.7
    values = {name: tensor.detach().clone() for name, tensor in layer.named_parameters()}  # not the layer's own
    assert torch.equal(torch.func.functional_call(layer, values, (x,)), y)
    assert (values["weight"][~whole_mask(layer)] == 3.7).all()
    gradient = torch.func.grad(lambda v: torch.func.functional_call(layer, v, (x,)).square().sum())(values)
    assert (gradient["weight"][~whole_mask(layer)] == 0).all()


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05),
    "SGD momentum": lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, weight_decay=0.1, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, foreach=True),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01, weight_decay=0.1),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01, weight_decay=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.01, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.001, momentum=0.9, centered=True, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.05, weight_decay=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=0.1),
    "Adafactor": lambda p: torch.optim.Adafactor(p, weight_decay=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.01, weight_decay=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.001),
}


def train(layer, optimizer, steps):
    """Steps on fresh numbers each, toward what the layer cannot reach."""
    before = stored(layer).detach().clone()
    for _ in range(steps):
        x = input_for(layer, dtype=stored(layer).dtype)
        y = layer(x)
        loss = (y - 1 - x.flatten(1).sum(1).reshape(-1, *(1,) * (y.ndim - 1))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not torch.equal(before, stored(layer)), "nothing was trained"


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_thousand_steps_leave_exact_zeros_in_what_is_stored(optimizer):
    layer = linear()
    train(layer, optimizer(layer.parameters()), 1000)
    assert stored(layer).isfinite().all()
    assert (stored(layer)[~layer.mask] == 0).all()
    assert (stored(layer)[layer.mask] != 0).all()


@pytest.mark.parametrize("name", ["SGD momentum", "Adam", "AdamW"])
def test_a_thousand_steps_of_a_convolution(name):
    layer = MaskedConv2d(6, 4, 3, some_mask(4, 6))
    train(layer, OPTIMIZERS[name](layer.parameters()), 1000)
    assert (stored(layer)[~whole_mask(layer)] == 0).all()


def test_lbfgs_leaves_exact_zeros():
    layer = linear()
    optimizer = torch.optim.LBFGS(layer.parameters(), lr=0.1, line_search_fn="strong_wolfe")
    x, y = torch.randn(16, IN), torch.randn(16, OUT)
    before = layer.weight.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    assert not torch.equal(before, layer.weight)
    assert (stored(layer)[~layer.mask] == 0).all()


def test_an_optimizer_that_mixes_entries_is_put_right_when_the_weight_is_read():
    layer = linear(bias=False)
    optimizer = torch.optim.Muon(layer.parameters(), lr=0.02, weight_decay=0.1)
    train(layer, optimizer, 50)
    assert (stored(layer)[~layer.mask] != 0).any(), "the reason why reading clears"
    assert (layer.weight[~layer.mask] == 0).all()
    assert (stored(layer)[~layer.mask] == 0).all()


def test_connections_that_are_cut_in_training_stay_cut_under_momentum():
    layer = MaskedLinear(IN, OUT, torch.ones(OUT, IN, dtype=torch.bool))
    optimizer = torch.optim.Adam(layer.parameters(), 0.01)
    train(layer, optimizer, 20)
    layer.set_mask(some_mask(OUT, IN))
    assert (stored(layer)[~layer.mask] == 0).all()
    train(layer, optimizer, 3)
    assert (stored(layer)[~layer.mask] != 0).any(), "momentum goes on"
    assert (layer.weight[~layer.mask] == 0).all()


WRITES = {
    "data.fill_": lambda w: w.data.fill_(1),
    "data of NaN": lambda w: w.data.fill_(torch.nan),
    "init.ones_": nn.init.ones_,
    "init.kaiming_uniform_": nn.init.kaiming_uniform_,
    "init.orthogonal_": nn.init.orthogonal_,
    "copy_": lambda w: w.detach().copy_(torch.ones_like(w)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@makers
def test_values_written_into_a_weight_stay_where_there_are_connections(make, write):
    layer = make()
    for write_again in (False, True):
        write(layer.weight)
        cut = layer.weight[~whole_mask(layer)]
        assert (cut == 0).all()
        assert not cut.signbit().any()
        kept = layer.weight[whole_mask(layer)]
        assert (kept != 0).all(), write_again
    assert (layer.state_dict()["weight"][~whole_mask(layer)] == 0).all()


def test_a_saved_state_has_zeros_though_the_weight_was_not_read():
    layer = linear()
    parameter = stored(layer)
    parameter.data.fill_(1)
    saved = layer.state_dict()["weight"]
    assert torch.equal(saved != 0, layer.mask)


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_of_numbers_is_cleared(dtype):
    layer = linear(dtype=dtype)
    layer.weight.data.fill_(-1)
    assert torch.equal(layer.weight != 0, layer.mask)


def test_reading_does_not_disturb_autograd():
    layer = linear(dtype=torch.float64)
    x = input_for(layer)
    y = layer(x) + layer(2 * x)
    version = layer.weight._version
    stored(layer).data[~layer.mask] = 5.0
    assert (layer.weight[~layer.mask] == 0).all()
    y.sum().backward()
    assert layer.weight._version == version
    assert (layer.weight.grad - 3 * x.sum(0) * layer.mask).abs().max() < 1e-12


def test_reading_under_inference_mode():
    layer = linear()
    with torch.inference_mode():
        layer.weight.data.fill_(1)
        assert torch.equal(layer.weight != 0, layer.mask)
        made_there = linear()
    y = layer(torch.randn(2, IN))
    y.sum().backward()
    assert made_there.weight.shape == (OUT, IN)


# -- checkpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@makers
def test_a_dense_checkpoint_loads_and_is_masked(make, assign):
    layer = make()
    mask = layer.mask.clone()
    dense = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    before = {name: t.clone() for name, t in dense.items()}
    layer.load_state_dict(dense, assign=assign)
    assert torch.equal(layer.mask, mask)
    assert torch.equal(stored(layer), torch.where(mask, dense["weight"], torch.zeros(())))
    assert isinstance(stored(layer), nn.Parameter)
    layer.weight.data.fill_(1)
    layer(input_for(layer, dtype=torch.float32)).sum().backward()
    assert all(torch.equal(dense[name], t) for name, t in before.items() if name != "bias" or not assign)


@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_inside_a_model_keeps_mask_and_weight(assign):
    net, other = (nn.Sequential(nn.Linear(3, IN), linear(), nn.ReLU()) for _ in range(2))
    x = torch.randn(2, 3)
    assert not torch.equal(net[1].mask, other[1].mask)
    loaded = load(save(net.state_dict()))  # no pickle
    assert loaded["1.mask"].dtype is torch.bool
    other.load_state_dict(loaded, assign=assign)
    assert torch.equal(other[1].mask, net[1].mask)
    assert torch.equal(other(x), net(x))


def test_a_mask_of_positions_loads_into_a_layer_with_one_of_channels():
    layer = MaskedConv2d(3, 2, 3, some_mask(2, 3, 3, 3))
    other = MaskedConv2d(3, 2, 3, some_mask(2, 3))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.mask, layer.mask)
    assert torch.equal(other.weight, layer.weight)


BAD_MASKS = {
    "half": (lambda: torch.ones(OUT, IN) / 2, ("must be dense and boolean", "torch.float32", "0.5", "`mask != 0`")),
    "index": (lambda: torch.full((OUT, IN), 3), ("must be dense and boolean", "torch.int64", "than 0 and 1: 3")),
    "nan": (lambda: torch.full((OUT, IN), torch.nan), ("must be dense and boolean", "than 0 and 1: nan")),
    "text": (lambda: np.full((OUT, IN), "1"), ("must be dense and boolean", "an array of <U1")),
    "turned": (lambda: some_mask(IN, OUT), ("wrong shape", f"it is ({IN}, {OUT})", "pass mask.T")),
    "flat": (lambda: some_mask(OUT), ("wrong shape", f"it is ({OUT},)", "outputs come first, then inputs")),
    "empty": (lambda: torch.zeros(OUT, IN, dtype=torch.bool), ("connects nothing", "at least one")),
}


@pytest.mark.parametrize(("bad", "sentences"), BAD_MASKS.values(), ids=BAD_MASKS)
def test_bad_masks_are_refused_everywhere(bad, sentences):
    mask, layer = bad(), linear()
    before = layer.mask.clone(), layer.weight.detach().clone()
    attempts = (
        (PlanError, lambda: MaskedLinear(IN, OUT, mask)),
        (PlanError, lambda: MaskedLinear.from_linear(nn.Linear(IN, OUT), mask)),
        (PlanError, lambda: layer.set_mask(mask)),
        (RuntimeError, lambda: layer.load_state_dict({**layer.state_dict(), "mask": mask, "weight": before[1] + 1})),
    )
    for kind, attempt in attempts:
        with pytest.raises(kind) as raised:
            attempt()
        assert all(sentence in str(raised.value) for sentence in sentences)
    assert torch.equal(layer.mask, before[0])
    assert torch.equal(layer.weight, before[1])


@pytest.mark.parametrize("mask", [None, [[True]], torch.eye(3, dtype=torch.bool).to_sparse()], ids=type)
def test_a_value_that_is_no_mask_is_refused(mask):
    with pytest.raises(PlanError, match="a mask must be dense and boolean"):
        MaskedLinear(3, 3, mask)


SPELLINGS = {
    "numpy int": lambda mask: mask.int().numpy(),
    "numpy bool, turned strides": lambda mask: mask.numpy()[::-1][::-1],
    "numpy float": lambda mask: mask.double().numpy(),
    "int": lambda mask: mask.long(),
    "byte": lambda mask: mask.byte(),
    "float": lambda mask: mask.float(),
    "half": lambda mask: mask.half(),
    "parameter": lambda mask: nn.Parameter(mask.float()),
    "frozen parameter of integers": lambda mask: nn.Parameter(mask.long(), requires_grad=False),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_masks_of_zeros_and_ones_are_taken_in_every_type(spell):
    mask = some_mask(OUT, IN)
    spelled = spell(mask)
    layers = [MaskedLinear(IN, OUT, spelled), MaskedLinear.from_linear(nn.Linear(IN, OUT), spelled), linear()]
    layers[2].set_mask(spelled)
    for layer in layers:
        assert layer.mask.dtype is torch.bool
        assert torch.equal(layer.mask, mask)
        assert not layer.mask.requires_grad
    conv = MaskedConv2d(IN, OUT, 3, spelled)
    assert torch.equal(conv.mask[..., 0, 0], mask)
    given = linear()
    if isinstance(spelled, torch.Tensor):
        given.load_state_dict({**layers[0].state_dict(), "mask": spelled})
        assert torch.equal(given.mask, mask)
    layers[0].mask.fill_(False)
    assert torch.equal(torch.as_tensor(spelled) != 0, mask), "the mask was copied"


def test_the_adjacency_of_both_layers_gives_its_block():
    mask = some_mask(OUT, IN)
    both = torch.zeros(IN + OUT, IN + OUT)
    both[:IN, IN:] = mask.T.float()
    for adjacency in (both, both + both.T, both.int().numpy()):
        assert torch.equal(MaskedLinear(IN, OUT, adjacency).mask, mask)
    both[0, 1] = 1
    with pytest.raises(PlanError) as raised:
        MaskedLinear(IN, OUT, both)
    assert f"the adjacency of {IN} inputs and then {OUT} outputs: nodes 0 and 1 are two inputs" in str(raised.value)


def test_shapes_of_a_convolutions_mask():
    with pytest.raises(PlanError) as raised:
        MaskedConv2d(6, 4, 3, some_mask(4, 6), groups=2)
    assert "the layer needs (4, 3) or (4, 3, 3, 3)" in str(raised.value)
    assert MaskedConv2d(6, 4, 3, some_mask(4, 3), groups=2).mask.shape == (4, 3, 1, 1)


def test_an_empty_mask_that_the_pass_has_made_loads_back():
    layer = linear()
    layer.mask.fill_(False)
    layer.load_state_dict(layer.state_dict())
    assert (layer.weight == 0).all()


# -- made, copied, moved ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_copies_a_dense_layer(bias):
    dense = nn.Linear(IN, OUT, bias=bias, dtype=torch.float64).eval()
    dense.weight.requires_grad_(False)
    mask, before = some_mask(OUT, IN), dense.weight.clone()
    layer = MaskedLinear.from_linear(dense, mask)
    x = input_for(layer)
    assert torch.equal(layer(x), F.linear(x, dense.weight * mask, dense.bias))
    assert (layer.training, layer.weight.requires_grad, layer.weight.device) == (False, False, dense.weight.device)
    layer.weight.data.fill_(1)
    mask.fill_(False)
    assert torch.equal(dense.weight, before)
    assert layer.mask.any()


def test_from_conv_copies_a_dense_convolution():
    dense = nn.Conv2d(4, 6, (3, 1), 2, (1, 0), groups=2, padding_mode="reflect", dtype=torch.float64)
    mask, x = some_mask(6, 2), torch.randn(2, 4, 7, 5, dtype=torch.float64)
    layer = MaskedConv2d.from_conv(dense, mask)
    reference = copy.deepcopy(dense)
    reference.weight.data *= mask[:, :, None, None]
    assert torch.equal(layer(x), reference(x))
    assert not torch.equal(layer(x), dense(x))


def test_only_real_layers_are_taken():
    mask = some_mask(OUT, IN)
    for layer, sentence in (
        (nn.Conv2d(1, 1, 1), "not an nn.Linear"),
        (nn.LazyLinear(OUT), "no shape yet"),
        (nn.utils.prune.identity(nn.Linear(IN, OUT), "weight"), "from_prune"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(IN, OUT)), "parametrization"),
    ):
        with pytest.raises(PlanError, match=sentence):
            MaskedLinear.from_linear(layer, mask)


def test_same_numbers_as_a_dense_layer_of_the_same_seed():
    mask = some_mask(OUT, IN)
    torch.manual_seed(0)
    dense = nn.Linear(IN, OUT)
    torch.manual_seed(0)
    assert torch.equal(MaskedLinear(IN, OUT, mask).weight, torch.where(mask, dense.weight, torch.zeros(())))


@makers
def test_copies_are_equal_and_independent(make):
    layer = make()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        x = input_for(layer, dtype=torch.float32)
        assert type(other) is type(layer)
        assert torch.equal(other(x), layer(x))
        other.set_mask(torch.ones_like(other.mask))
        other.weight.data.fill_(1)
        assert (layer.weight[~whole_mask(layer)] == 0).all()


def test_masks_move_with_their_layer():
    layer = linear().to("meta")
    assert (layer.mask.device.type, layer.weight.device.type, layer.mask.dtype) == ("meta", "meta", torch.bool)
    assert repr(layer) == f"MaskedLinear(in_features={IN}, out_features={OUT}, bias=True)"
    assert layer(torch.randn(2, IN, device="meta")).shape == (2, OUT)
    half = linear().half()
    assert (half.mask.dtype, half(torch.randn(2, IN).half()).dtype) == (torch.bool, torch.float16)
    assert MaskedLinear(IN, OUT, some_mask(OUT, IN), device="meta").mask.device.type == "meta"


def test_set_mask_connects_others_from_zero():
    layer = linear()
    old, new = layer.mask.clone(), some_mask(OUT, IN)
    weight = layer.weight.detach().clone()
    layer.set_mask(new)
    assert torch.equal(layer.weight, torch.where(new & old, weight, torch.zeros(())))
    assert layer.connections == int(new.sum())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@makers
def test_masked_layers_compile_into_one_graph(make, backend):
    torch._dynamo.reset()
    layer = make(dtype=torch.float64)
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, fullgraph=True, backend=backend)
    x = input_for(layer)
    stored(other).data[~whole_mask(other)] = 4.0  # nothing clears inside the compiler, and nothing is let through
    for module in (layer, compiled):
        module(x).square().sum().backward()
    assert (compiled(x) - layer(x)).abs().max() < 1e-12
    assert (stored(other).grad - stored(layer).grad).abs().max() < 1e-11
    assert (stored(other).grad[~whole_mask(layer)] == 0).all()
    other.set_mask(torch.ones_like(other.mask))  # no value is compiled in
    other.weight.data.fill_(1)
    assert (compiled(x) - other(x)).abs().max() < 1e-12
    assert not torch.equal(compiled(x), layer(x))


@makers
def test_masked_layers_are_exported_and_traced(make):
    layer = make(dtype=torch.float64).eval()
    x = input_for(layer)
    with torch.no_grad():
        assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))
        traced = torch.fx.symbolic_trace(layer)
        assert torch.equal(traced(x), layer(x))
    assert {n for n, _ in traced.named_parameters()} == {n for n, _ in layer.named_parameters()}
    assert {n for n, _ in traced.named_buffers()} == {"mask"}


def test_batched_over_masked_weights():
    layer = linear(dtype=torch.float64)
    weights = torch.randn(4, OUT, IN, dtype=torch.float64)
    x = input_for(layer)
    y = torch.vmap(lambda w: torch.func.functional_call(layer, {"weight": w}, (x,)))(weights)
    for k in range(4):
        assert (y[k] - F.linear(x, weights[k] * layer.mask, layer.bias)).abs().max() < 1e-12


def test_under_parametrization_and_pruning_of_torch():
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    layer = linear(dtype=torch.float64)
    x, before = input_for(layer), layer.weight.detach().clone()
    other = copy.deepcopy(layer)
    parametrize.register_parametrization(layer, "weight", Double())
    assert torch.equal(layer(x), F.linear(x, 2 * before, layer.bias))
    nn.utils.prune.custom_from_mask(other, "weight", torch.eye(OUT, IN))
    assert torch.equal(other(x), F.linear(x, before * torch.eye(OUT, IN), other.bias))
