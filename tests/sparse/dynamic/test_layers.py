"""The dynamic layers: outputs, counts, updates, and use in training loops."""

from __future__ import annotations

import copy
import io
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune.criteria.connections import coactivation
from fxprune.errors import PlanError
from fxprune.schedules import AGP
from fxprune.sparse.dynamic import selection
from fxprune.sparse.dynamic.layers import DynamicSparseConv2d, DynamicSparseLinear, update_layers
from fxprune.sparse.dynamic.selection import Update, forget, new_values, ranks, shares
from tests.criteria.slow_coactivation import brute_force
from tests.sparse.dynamic import two_processes


def conv(**options):
    settings = {"sparsity": 0.6, "every": 1} | options
    return DynamicSparseConv2d(4, 6, 3, padding=1, dtype=torch.float64, **settings)


def batch(n=3):
    return torch.randn(n, 4, 5, 7, dtype=torch.float64)


def by_hand(strengths, weight, mask, dims, k1, k2):
    """The notes' progress_connections, slice by slice and connection by connection: active and fresh."""
    active, fresh = torch.zeros_like(mask), torch.zeros_like(mask)
    others = [d for d in range(weight.ndim) if d not in dims]
    for place in itertools.product(*(range(weight.shape[d]) for d in dims)):
        found = []
        for number, rest in enumerate(itertools.product(*(range(weight.shape[d]) for d in others))):
            where = dict(zip(dims, place, strict=True)) | dict(zip(others, rest, strict=True))
            index = tuple(where[d] for d in range(weight.ndim))
            found.append((-strengths[index].item(), -weight[index].abs().item(), number, index))
        for position, (*_, index) in enumerate(sorted(found)[:k2]):
            active[index] = True
            fresh[index] = position >= k1 or not mask[index]
    return active, fresh


# -- what they compute -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (lambda: conv(), batch()),
        (lambda: conv(stride=2, padding_mode="circular", bias=False), batch()),
        (lambda: conv(groups=2, dilation=2), batch()),
        (lambda: conv(), batch()[0]),
        (lambda: DynamicSparseLinear(7, 5, sparsity=0.5, dtype=torch.float64), batch()),
    ],
)
def test_forward_and_gradients_are_those_of_the_masked_weight(layer, x):
    layer = layer()
    plain = layer.squashed()
    assert type(plain) in (nn.Conv2d, nn.Linear)
    with torch.no_grad():
        layer.weight.masked_fill_(~layer.mask, 3.0)  # as if an optimizer had changed them
    y, expected = layer(x), plain(x)
    assert torch.equal(y, expected)
    scale = torch.randn_like(y)
    (y * scale).sum().backward()
    (expected * scale).sum().backward()
    assert torch.equal(layer.weight.grad, torch.where(layer.mask, plain.weight.grad, 0.0))
    assert torch.equal(layer.squashed().weight, plain.weight)


def test_not_even_infinity_passes_the_mask():
    layer = DynamicSparseLinear(3, 1, sparsity=0.6, bias=False)
    with torch.no_grad():
        layer.weight.masked_fill_(~layer.mask, math.inf)
    y = layer(torch.ones(1, 3))
    assert y.isfinite().all()
    y.backward(torch.full_like(y, math.inf))
    assert torch.equal(layer.weight.grad[~layer.mask], torch.zeros(2))


@pytest.mark.parametrize("dims", [(), (0,), (1,), (0, 1), (2, 3)])
def test_the_first_mask_has_the_sparsity_in_every_slice(dims):
    layer = conv(sparsity=0.7, dims=dims)
    size = math.prod(n for d, n in enumerate(layer.mask.shape) if d not in dims)
    others = [d for d in range(4) if d not in dims]
    assert (layer.mask.sum(others) == round(0.3 * size)).all()
    assert torch.equal(layer.weight != 0, layer.mask)
    other = conv(sparsity=0.7, dims=dims)
    assert not torch.equal(layer.mask, other.mask)


# -- what they count -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
def test_strengths_are_the_sum_over_every_few_steps(every):
    layer, expected, applied = conv(every=every, threshold=0.1), 0, 0
    for step in range(7):
        x = batch(step + 1)
        y = layer(x)
        if step % every == 0:
            expected = expected + coactivation(x, y, layer, 0.1)
            applied += (step + 1) * 5 * 7
    assert torch.equal(layer.strengths, expected)
    assert (layer.steps, layer.opportunities) == (7, applied)


def test_inputs_without_a_batch_and_with_positions_are_counted():
    layer, x = conv(), batch(1)
    y = layer(x[0])
    assert torch.equal(layer.strengths.double(), brute_force(layer)(x, y[None].detach()))
    assert layer.opportunities == 35
    linear = DynamicSparseLinear(7, 5, sparsity=0.5, every=1, dtype=torch.float64)
    x = batch(2)
    assert torch.equal(linear.strengths, coactivation(x, linear(x), linear))
    linear(x)
    assert linear.opportunities == 2 * (2 * 4 * 5)


def test_nothing_is_counted_in_evaluation_mode_and_by_random_growth():
    for layer, steps in ((conv().eval(), 0), (conv(growth="random"), 1)):
        layer(batch())
        assert (layer.steps, layer.opportunities, int(layer.strengths.sum())) == (steps, 0, 0)


def test_an_empty_batch_is_a_step_without_a_count():
    layer = conv()
    layer(batch(0))
    assert (layer.steps, layer.opportunities) == (1, 0)


def test_counts_are_exact_under_autocast():
    layer = DynamicSparseLinear(4, 3, sparsity=0.5, every=1)
    x = torch.rand(2049, 4) + 0.1
    with torch.no_grad():
        layer.weight.abs_()
        layer.bias.fill_(1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    assert layer.strengths.unique().tolist() == [2049]


# -- what an update does ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:a sparsity of")
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(), (0,), (1,), (0, 1), (2, 3), (3, 0)]),
    st.floats(0, 0.95),
    st.floats(0, 0.95),
    st.integers(0, 3),
    st.integers(0, 2**31),
)
def test_an_update_equals_the_loop_over_slices(dims, sparsity, regrow, most, seed):
    torch.manual_seed(seed)
    layer = conv(sparsity=sparsity, regrow=regrow, dims=dims)
    layer(batch())
    layer.strengths.copy_(torch.randint(0, most + 1, layer.strengths.shape))  # many are equal
    layer.strengths[0, 0, 0, 0] += 1  # not all are 0
    old, mask = layer.weight.detach().clone(), layer.mask.clone()
    size = math.prod(n for d, n in enumerate(old.shape) if d not in dims)
    active, fresh = by_hand(layer.strengths, old, mask, dims, *shares(size, sparsity, regrow))
    values = new_values(old, torch.Generator().manual_seed(seed))
    done = layer.update(generator=torch.Generator().manual_seed(seed))
    assert torch.equal(layer.mask, active)
    assert torch.equal(layer.weight[fresh], values[fresh])
    assert torch.equal(layer.weight[active & ~fresh], old[active & ~fresh])
    assert not layer.weight[~active].any()
    expected = [(active & ~fresh).sum(), fresh.sum(), (mask & ~active).sum()]
    assert [done.kept, done.grown, done.pruned] == [int(n) for n in expected]
    assert done.sparsity == pytest.approx(1 - active.double().mean().item())
    assert (layer.opportunities, int(layer.strengths.sum()), layer.steps) == (0, 0, 1)


def test_the_reference_of_an_update_can_fail():
    layer = conv()
    layer(batch())
    active, _ = by_hand(layer.strengths, layer.weight, layer.mask, (0,), 7, 14)
    other, _ = by_hand(layer.strengths, layer.weight, layer.mask, (1,), 7, 14)
    weakest, _ = by_hand(-layer.strengths, layer.weight, layer.mask, (0,), 7, 14)
    assert not torch.equal(active, other)
    assert not torch.equal(active, weakest)
    assert (active.flatten(1).sum(1) == 14).all()


@pytest.mark.filterwarnings("ignore:the update changed nothing", "ignore:a sparsity of")
@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(), (0,), (0, 1)]), st.floats(0, 0.95), st.floats(0, 0.95), st.floats(0, 0.95), st.integers(0, 99)
)
def test_random_growth_equals_the_loop_over_slices(dims, first, sparsity, regrow, seed):
    """Any sparsity can follow any other: k2 connections are active, and of the k1 first those stay that were active."""
    torch.manual_seed(seed)
    values = iter([first, first, sparsity])  # asked for the first mask, for a warning, and at the update
    layer = conv(sparsity=lambda step: next(values), regrow=regrow, dims=dims, growth="random")
    old, mask = layer.weight.detach().clone(), layer.mask.clone()
    layer.update(generator=torch.Generator().manual_seed(seed))
    others = [d for d in range(4) if d not in dims]
    k1, k2 = shares(math.prod(old.shape[d] for d in others), sparsity, regrow)
    assert (layer.mask.sum(others) == k2).all()
    kept = layer.mask & (layer.weight == old)
    assert torch.equal(kept.sum(others), mask.sum(others).clamp(max=k1))
    assert torch.equal(layer.weight != 0, layer.mask)


def test_random_growth_is_uniform():
    """With 2 active and 18 other connections, 1 stays and 1 grows, each with its probability, over 20000 slices."""
    layer = DynamicSparseLinear(20, 20000, sparsity=0.9, regrow=0.5, growth="random")
    with torch.no_grad():
        layer.mask.fill_(False)
        layer.mask[:, :2] = True
        layer.weight.fill_(9.0)
    layer.update(generator=torch.Generator().manual_seed(0))
    kept = (layer.mask & (layer.weight == 9.0)).double().mean(0)
    grown = (layer.mask & (layer.weight != 9.0)).double().mean(0)
    torch.testing.assert_close(kept[:2], torch.full((2,), 0.5, dtype=torch.float64), atol=0.02, rtol=0)
    assert not kept[2:].any()
    expected = torch.tensor([0.5 / 19] * 2 + [1 / 19] * 18, dtype=torch.float64)  # half of the time the first two stay
    torch.testing.assert_close(grown, expected, atol=0.01, rtol=0)


def test_new_values_are_those_of_a_fresh_layer():
    """Uniform within 1 / sqrt(fan_in), the variance a third of the square."""
    values = new_values(torch.empty(500, 8, 5, 5), None)
    bound = 1 / math.sqrt(8 * 25)
    assert 0.999 * bound < values.abs().max() <= bound
    assert values.var().item() == pytest.approx(bound**2 / 3, rel=0.02)
    torch.manual_seed(3)
    reference = nn.Conv2d(4, 6, 3, bias=False).weight
    assert torch.equal(new_values(torch.empty(6, 4, 3, 3), torch.Generator().manual_seed(3)), reference)


def test_ranks_by_hand():
    scores, ties = (
        torch.tensor([[1, 3, 3, 2], [0, 0, 0, 0]]),
        torch.tensor([[0.0, 0.1, 0.2, 0.0], [0.5, 0.5, 0.7, 0.1]]),
    )
    assert ranks(scores, ties).tolist() == [[3, 1, 0, 2], [1, 2, 0, 3]]


def test_dense_to_sparse_by_a_schedule():
    schedule = AGP(0.0, 0.9, steps=20)
    layer = DynamicSparseLinear(100, 10, sparsity=schedule, every=1)
    assert layer.mask.all()
    for step in range(1, 25):
        layer(torch.randn(16, 100))
        if step % 4 == 0:
            assert layer.update().sparsity == pytest.approx(round(100 * schedule(step)) / 100, abs=1e-9)
    assert layer.mask.sum(1).tolist() == [10] * 10


# -- optimizers ------------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_forget_what_changed_and_pruned_weights_stay_zero(name):
    layer = conv(regrow=0.5)
    optimizer = OPTIMIZERS[name]([*layer.parameters()])

    def train():
        optimizer.zero_grad()
        (layer(batch()) - 1).square().sum().backward()
        optimizer.step()

    for _ in range(3):
        train()
    before = {key: value.clone() for key, value in optimizer.state[layer.weight].items()}
    bias = {key: value.clone() for key, value in optimizer.state[layer.bias].items()}
    old, grad = layer.weight.detach().clone(), layer.weight.grad.clone()
    layer.update(optimizer)
    kept = layer.mask & (layer.weight == old)
    assert kept.any()
    assert (layer.mask & ~kept).any()
    moments = [key for key, value in before.items() if value.shape == layer.weight.shape]
    assert moments
    for key, value in optimizer.state[layer.weight].items():
        expected = before[key] * kept if key in moments else before[key]
        assert torch.equal(value, expected), key
        assert key not in moments or before[key][~kept].any(), "there was something to forget"
    assert torch.equal(layer.weight.grad, grad * kept)
    assert all(torch.equal(value, bias[key]) for key, value in optimizer.state[layer.bias].items())
    grown = layer.mask & ~kept
    values = layer.weight.detach().clone()
    for _ in range(3):
        train()
        assert not layer.weight[~layer.mask].any()
    assert (layer.weight != values)[grown].all()


def test_without_the_optimizer_forward_is_masked_all_the_same():
    layer = conv()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        layer(batch()).square().sum().backward()
        optimizer.step()
    layer.update()
    assert not layer.weight[~layer.mask].any()
    optimizer.step()
    assert layer.weight[~layer.mask].any(), "momentum moves what is stored"
    x = batch()
    expected = torch.nn.functional.conv2d(x, layer.weight * layer.mask, layer.bias, padding=1)
    assert torch.equal(layer(x), expected)


def test_forget_leaves_other_shapes_alone():
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.state[weight] = {"step": torch.tensor(4.0), "row": torch.ones(3), "all": torch.ones(2, 3), "n": 5}
    forget(optimizer, weight, torch.tensor([[True, False, False], [False, False, True]]))
    state = optimizer.state[weight]
    assert state["all"].tolist() == [[0, 1, 1], [1, 1, 0]]
    assert (state["step"].item(), state["row"].tolist(), state["n"]) == (4.0, [1, 1, 1], 5)


# -- life in a training loop -----------------------------------------------------------------------------------------


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        DynamicSparseConv2d(3, 8, 3, sparsity=0.5, every=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        DynamicSparseLinear(8 * 36, 10, sparsity=0.8, every=2, dims=()),
    )


def steps(model, optimizer, seeds):
    for seed in seeds:
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


def states(model, optimizer):
    moments = [s["exp_avg"] for s in optimizer.state.values()]
    return [*model.state_dict().values(), *moments]


def test_state_dict_in_the_middle_of_training():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    steps(model, optimizer, range(5))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert saved["model"]["0.strengths"].dtype is torch.int64
    assert saved["model"]["0.strengths"].sum() > 0
    other = nn.Sequential(*(copy.deepcopy(m) for m in net()))
    for module in other.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert not torch.equal(other[0].mask, model[0].mask)
    other_optimizer = torch.optim.Adam(other.parameters())
    other.load_state_dict(saved["model"])
    other_optimizer.load_state_dict(saved["optimizer"])
    assert other[0].steps == 5
    assert other[0].opportunities == 3 * 4 * 36
    for one, its in ((model, optimizer), (other, other_optimizer)):
        steps(one, its, range(5, 8))
        torch.manual_seed(2)
        update_layers(one, its)
        steps(one, its, range(8, 10))
    assert all(torch.equal(a, b) for a, b in zip(states(model, optimizer), states(other, other_optimizer), strict=True))


def test_state_dicts_that_do_not_fit_are_refused():
    model = net()
    dense = nn.Conv2d(3, 8, 3).state_dict()
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "mask", "strengths", "tally"'):
        model[0].load_state_dict(dense)
    model[0].load_state_dict(dense, strict=False)
    state = model[0].state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for strengths: \(4,\) for \(8, 3, 3, 3\)"):
        model[0].load_state_dict({**state, "strengths": torch.zeros(4)})
    assert list(state) == ["weight", "bias", "mask", "strengths", "tally"]
    assert [name for name, _ in model[0].named_buffers()] == ["mask"]


def test_copies_share_nothing():
    layer = conv()
    layer(batch())
    other = copy.deepcopy(layer)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    other(batch())
    other.update()
    assert other.steps == 2
    assert all(torch.equal(layer.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_counts_survive_a_move_to_another_dtype(dtype):
    layer = DynamicSparseLinear(3, 2, sparsity=0.5, every=1)
    layer.strengths.fill_(2**24 + 1)
    layer.to(dtype)
    assert layer.weight.dtype is dtype
    assert layer.strengths.tolist() == [[2**24 + 1] * 3] * 2
    layer(torch.ones(5, 3, dtype=dtype))
    layer.update()
    assert layer.weight.dtype is dtype
    assert layer.mask.dtype is torch.bool


def test_meta_device_and_reset_parameters():
    with torch.device("meta"):
        layer = DynamicSparseConv2d(4, 6, 3, sparsity=0.6)
    assert layer.mask.is_meta
    assert layer.strengths.is_meta
    assert conv().to("meta").strengths.is_meta
    layer.to_empty(device="cpu").reset_parameters()
    assert (layer.mask.flatten(1).sum(1) == round(0.4 * 36)).all()
    assert torch.equal(layer.weight != 0, layer.mask)
    assert not layer.strengths.any()
    layer(torch.randn(2, 4, 5, 5))
    assert (layer.steps, layer.opportunities) == (1, 18)
    layer.reset_parameters()
    assert (layer.steps, layer.opportunities, int(layer.strengths.sum())) == (0, 0, 0)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_one_graph_that_counts(backend):
    torch._dynamo.reset()
    model, other = net(), net()
    compiled = torch.compile(other, backend=backend, fullgraph=True)
    optimizers = [torch.optim.Adam(m.parameters()) for m in (model, other)]
    for round_ in range(2):
        steps(model, optimizers[0], range(5))
        for seed in range(5):
            with torch._dynamo.config.patch(error_on_recompile=seed > 0 or round_ > 0):
                steps(compiled, optimizers[1], [seed])
        assert (other[0].steps, other[0].opportunities) == (model[0].steps, model[0].opportunities)
        assert other[0].opportunities > 0
        assert torch.equal(model[0].strengths, other[0].strengths)
        for one, optimizer in zip((model, other), optimizers, strict=True):
            torch.manual_seed(7)
            update_layers(one, optimizer)
    for a, b in zip(states(model, optimizers[0]), states(other, optimizers[1]), strict=True):
        torch.testing.assert_close(a, b)


def test_ranks_agree_and_sum_their_counts(tmp_path):
    """Two processes over the loopback, with other masks, data and random numbers, under DistributedDataParallel."""
    torch.multiprocessing.spawn(two_processes.train, args=(2, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for growth in ("coactivation", "random"):
        a, b = one[growth], two[growth]
        for name, tensor in a["after"].items():
            assert torch.equal(tensor, b["after"][name]), name
        assert all(torch.equal(m, n) for m, n in zip(a["moments"], b["moments"], strict=True))
        assert a["counts"] == b["counts"]
        assert a["counts"]["0"][1] > 0
    for layer, k in (("0", shares(27, 0.6, 0.3)), ("3", shares(150, 0.8, 0.3))):
        counts = [rank["coactivation"]["before"][f"{layer}.strengths"] for rank in (one, two)]
        assert not torch.equal(*counts), "each rank has counted its own data"
        weight, mask = (one["coactivation"]["before"][f"{layer}.{name}"] for name in ("weight", "mask"))
        active, fresh = by_hand(counts[0] + counts[1], weight, mask, (0,), *k)
        after = one["coactivation"]["after"]
        assert torch.equal(after[f"{layer}.mask"], active)
        assert torch.equal(after[f"{layer}.weight"] == weight, (active & ~fresh) | (~active & ~mask))
        assert not torch.equal(by_hand(counts[0], weight, mask, (0,), *k)[0], active), (
            "one rank alone chooses otherwise"
        )
    assert one["random"]["before"]["0.strengths"].sum() == 0


# -- around them -----------------------------------------------------------------------------------------------------


def test_from_dense_takes_the_values_and_leaves_the_layer_alone():
    for layer, kind in (
        (nn.Conv2d(4, 6, (3, 1), 2, "valid", 2, 2, padding_mode="reflect", dtype=torch.float64), DynamicSparseConv2d),
        (nn.Linear(9, 4, bias=False).eval(), DynamicSparseLinear),
    ):
        layer.weight.requires_grad_(False)
        before = layer.weight.clone()
        made = kind.from_dense(layer, sparsity=0.5, growth="random")
        assert torch.equal(made.weight, layer.weight * made.mask)
        assert made.bias is None or torch.equal(made.bias, layer.bias)
        assert (made.training, made.weight.requires_grad) == (layer.training, False)
        assert torch.equal(layer.weight, before)
        assert str(made.squashed()) == str(layer)
    made = DynamicSparseConv2d.from_dense(nn.Conv2d(4, 4, 3), sparsity=0)
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(made(x), made.squashed()(x))
    with pytest.raises(PlanError, match=r"from_dense takes an nn\.Conv2d, not Linear"):
        DynamicSparseConv2d.from_dense(nn.Linear(2, 2), sparsity=0.5)
    with pytest.raises(PlanError, match=r"from_dense takes an nn\.Conv2d, not DynamicSparseConv2d"):
        DynamicSparseConv2d.from_dense(made, sparsity=0.5)


@pytest.mark.parametrize("path", ["fx", "eager", "export"])
def test_channels_of_a_dynamic_model_can_be_removed(path):
    model, x = net().eval(), torch.randn(4, 3, 8, 8)
    small = fxprune.transform(model, x, ratio=0.5, path=path)
    assert fxprune.record(small).removed["0.weight"] == fxprune.record(small).removed["0.mask"]
    assert fxprune.record(small).after["4.weight"] == (10, 4 * 36)
    assert fxprune.verify(model, small, torch.randn(3, 3, 8, 8)) < 1e-12


@pytest.mark.parametrize("training", [False, True])
def test_a_smaller_dynamic_model_trains_on(training):
    model, x = net(), torch.randn(4, 3, 8, 8)
    model(x)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = fxprune.transform(model.train(training), x, ratio=0.5, path="eager").train()
    optimizer = torch.optim.Adam(small.parameters())
    steps(small, optimizer, range(2))
    assert small[0].strengths.shape == small[0].mask.shape == (4, 3, 3, 3)
    done = update_layers(small, optimizer)
    assert done["0"].sparsity == pytest.approx(1 - 14 / 27)
    steps(small, optimizer, range(1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_symbolic_trace_in_training_mode_counts_nothing():
    model = net()
    traced = torch.fx.symbolic_trace(model)
    assert model[0].steps == 0
    traced(torch.randn(2, 3, 8, 8))
    assert model[0].steps == 1


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every": 0}, "every must be an integer of at least 1, not 0"),
        ({"every": True}, "every must be an integer of at least 1, not True"),
        ({"threshold": math.nan}, "threshold must be a finite number, not nan"),
        ({"growth": "coactivations"}, 'did you mean "coactivation"?'),
        ({"growth": "dense"}, "use one of coactivation, random"),
        ({"sparsity": 1.0}, "sparsity must be in [0, 1), not 1.0"),
        ({"sparsity": -0.1}, "sparsity must be in [0, 1), not -0.1"),
        ({"sparsity": math.nan}, "value must be a finite number, not nan"),
        ({"sparsity": lambda step: math.nan}, "sparsity must be in [0, 1), not nan\n  at   step 0"),
        ({"sparsity": "0.5"}, "sparsity must be a number or a function of the step, not str"),
        ({"regrow": 1.0}, "regrow must be in [0, 1), not 1.0"),
        ({"regrow": "0.3"}, "regrow must be a number or a function of the step, not str"),
        ({"dims": (0, 4)}, "dims must be different dimensions of the weight, 0 to 3, not (0, 4)"),
        ({"dims": (0, 0)}, "dims must be different dimensions of the weight, 0 to 3, not (0, 0)"),
        ({"dims": (-1,)}, "dims must be different dimensions of the weight, 0 to 3, not (-1,)"),
        ({"dims": "0"}, "dims must be different dimensions of the weight, 0 to 3, not '0'"),
        ({"dims": (0, 1, 2, 3)}, "dims=(0, 1, 2, 3) leave nothing to choose"),
    ],
)
def test_bad_arguments_of_dynamic_layers_are_refused(options, sentence):
    with pytest.raises(PlanError) as error:
        conv(**options)
    assert sentence in str(error.value)


def test_dims_of_a_linear_layer_choose_its_slices():
    with pytest.raises(PlanError) as error:
        DynamicSparseLinear(3, 2, sparsity=0.5, dims=(0, 1))
    assert "a weight of shape (2, 3) has then one connection in each slice" in str(error.value)
    assert "name fewer dimensions" in str(error.value)


def refused(layer, *args, **kwargs):
    """The message of an update that is refused and has changed nothing."""
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(PlanError) as error:
        layer.update(*args, **kwargs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    return str(error.value)


def test_updates_that_cannot_be_right_are_refused():
    layer = conv(every=5)
    text = refused(layer)
    assert "no coactivation was counted since the last update" in text
    assert "forward counts at every 5th step in training mode, and there were 0 steps" in text
    layer(batch())
    text = refused(layer, torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))
    assert "the optimizer does not hold this layer's weight" in text
    assert "at   weight of shape (6, 4, 3, 3)" in text
    assert "optimizer must be a torch.optim.Optimizer or None, not str" in refused(layer, "adam")
    layer.update()
    layer(batch())
    assert "there were 2 steps" in refused(layer), "the second was not counted"
    values = iter([0.5, 0.5, 1.5])
    layer = conv(sparsity=lambda step: next(values))
    layer(batch())
    assert "sparsity must be in [0, 1), not 1.5\n  at   step 1" in refused(layer)
    layer = conv()
    layer(batch())
    layer.weight = nn.Parameter(torch.zeros(6))
    assert "the weight has another shape than its mask" in refused(layer)


def test_all_layers_are_checked_before_the_first_one_changes():
    model = net()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    model(torch.randn(2, 3, 8, 8))
    before = model[0].mask.clone()
    with pytest.raises(PlanError, match="the optimizer does not hold this layer's weight"):
        update_layers(model, optimizer)
    assert torch.equal(model[0].mask, before)
    with pytest.raises(PlanError, match="Linear has no dynamic layer"):
        update_layers(nn.Linear(2, 2))
    done = update_layers(model)
    assert list(done) == ["0", "4"]
    assert all(isinstance(update, Update) for update in done.values())


def test_an_update_without_any_strength_says_so():
    layer = DynamicSparseLinear(10, 4, sparsity=0.5, every=1)
    layer(-torch.ones(3, 10))
    largest = layer.weight.detach().abs().topk(3, 1).indices
    with pytest.warns(UserWarning, match="all strengths are 0, the choice is by the size of the weights") as caught:
        layer.update()
    assert "over 3 opportunities no input and output of a connection were both > 0.0" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert layer.mask.gather(1, largest).all()


def test_a_random_update_that_changes_nothing_says_so():
    layer = conv(dims=(0, 1), sparsity=0.8, regrow=0.2, growth="random")
    with pytest.warns(UserWarning, match="the update changed nothing") as caught:
        layer.update()
    assert "each slice keeps 2 of 2 active connections: regrow=0.2 rounds to none" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_a_sparsity_that_is_out_of_reach_says_so():
    with pytest.warns(UserWarning, match="a sparsity of 0.95 is out of reach") as caught:
        layer = conv(dims=(0, 1), sparsity=0.95)
    assert "each slice of 9 connections keeps one, which makes 0.889" in str(caught[0].message)
    assert layer.mask.sum((2, 3)).unique().tolist() == [1]


def test_shares_by_hand():
    assert shares(25, 0.85, 1 / 3) == (3, 4)  # 3.75 active; 1.33 of them new
    assert shares(9, 0.85, 1 / 3) == (1, 1)
    assert shares(9, 0.999, 0.9) == (1, 1)
    assert shares(100, 0.0, 0.25) == (75, 100)
    assert selection.shares is shares


def test_a_pruned_convolution_in_groups_counts_on():
    """The smaller layer counts by its own, smaller attributes."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), DynamicSparseConv2d(8, 8, 3, groups=4, sparsity=0.3, every=1), nn.ReLU())
    model.append(nn.Conv2d(8, 2, 1))
    x = torch.randn(3, 3, 6, 6)
    small = fxprune.transform(model.eval(), x, ratio=0.5, path="eager").train()
    assert small[1].groups < 4 or small[1].in_channels < 8
    inner = small[0](x)
    y = small[1](inner)
    assert torch.equal(small[1].strengths, coactivation(inner, y, small[1]))
