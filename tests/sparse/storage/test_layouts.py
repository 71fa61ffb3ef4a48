"""Sparse layers compute what the dense layers compute with small weights at zero: outputs, gradients, round trips."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import nn
from torch.nn.utils import parametrizations, prune

import fxprune
from fxprune.errors import InputError, NothingRemovedWarning, PlanError
from fxprune.sparse import SparseConv2d, SparseLinear, densify, sparsify, sparsify_model

LAYOUTS = [("csr", None), ("coo", None), ("bsr", (2, 2)), ("bsr", (3, 2)), ("bsr", (1, 4))]
IDS = ["csr", "coo", "bsr2x2", "bsr3x2", "bsr1x4"]
COMPONENTS = {"csr": ["crow_indices", "col_indices"], "coo": ["indices"], "bsr": ["crow_indices", "col_indices"]}

CONVS = {
    "plain": {"kernel_size": 3},
    "stride, padding": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2)},
    "dilation": {"kernel_size": 2, "dilation": (2, 3), "bias": False},
    "1x1": {"kernel_size": 1},
    "1x1, stride": {"kernel_size": 1, "stride": (2, 3), "padding": 1},
    "groups": {"kernel_size": 3, "groups": 2, "padding": 1},
    "depthwise": {"kernel_size": (1, 2), "groups": 4, "out_channels": 24},
    "same, even kernel": {"kernel_size": (2, 4), "padding": "same"},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "reflect": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "reflect"},
    "circular, same": {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
}


def linear(inputs=8, outputs=6, *, bias=True, dtype=torch.float64):
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    nn.init.normal_(layer.weight)
    return layer


def conv(out_channels=6, **options):
    layer = nn.Conv2d(4, out_channels, **options, dtype=torch.float64)
    nn.init.normal_(layer.weight)
    return layer


def thresholded(layer, threshold):
    """The reference: a copy of the dense layer whose small weights are zero."""
    dense = copy.deepcopy(layer)
    with torch.no_grad():
        for weight in dense.weight.view(-1):
            if abs(weight.item()) <= threshold:
                weight.zero_()
    return dense


def close(a, b):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    difference = (a - b).abs().max().item() if a.numel() else 0.0
    assert difference < 1e-12, difference
    return True


def fitting(layer, blocksize):
    """Blocks that divide the matrix of a convolution with these groups, or None for what has none."""
    rows, columns = layer.out_channels // layer.groups, layer.weight[0].numel()
    return blocksize is None or not (rows % blocksize[0] or columns % blocksize[1])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 0, 3), (0,)])
@pytest.mark.parametrize(("layout", "blocksize"), LAYOUTS, ids=IDS)
def test_linear_equals_the_dense_layer_with_small_weights_at_zero(layout, blocksize, lead, bias):
    dense = linear(bias=bias)
    before = copy.deepcopy(dense.state_dict())
    sparse = sparsify(dense, 0.7, layout=layout, blocksize=blocksize)
    assert type(sparse) is SparseLinear
    reference = thresholded(dense, 0.7)
    x = torch.randn(*lead, 8, dtype=torch.float64)
    y = sparse(x)
    assert close(y, reference(x))
    assert y.is_contiguous()
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    assert 0 < (reference.weight == 0).sum() < 48


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("form", CONVS, ids=str)
@pytest.mark.parametrize(("layout", "blocksize"), LAYOUTS, ids=IDS)
def test_convolution_equals_the_dense_layer_with_small_weights_at_zero(layout, blocksize, form):
    dense = conv(**CONVS[form])
    if not fitting(dense, blocksize):
        with pytest.raises(PlanError, match=r"blocks of .* do not divide the weight"):
            sparsify(dense, 0.7, layout=layout, blocksize=blocksize)
        blocksize = (dense.out_channels // dense.groups, dense.kernel_size[1])
    sparse = sparsify(dense, 0.7, layout=layout, blocksize=blocksize)
    assert type(sparse) is SparseConv2d
    reference = thresholded(dense, 0.7)
    for x in (torch.randn(3, 4, 9, 7, dtype=torch.float64), torch.randn(4, 5, 11, dtype=torch.float64)):
        assert close(sparse(x), reference(x))
        assert sparse(x).is_contiguous()
    back = sparse.to_dense()
    assert type(back) is nn.Conv2d
    assert torch.equal(back.weight, reference.weight)
    assert back.extra_repr() == dense.extra_repr()
    assert torch.equal(back(x), reference(x))


@pytest.mark.parametrize(("layout", "blocksize"), LAYOUTS, ids=IDS)
def test_gradients_are_those_of_the_dense_layer_at_stored_positions(layout, blocksize):
    dense = linear()
    sparse = sparsify(dense, 0.7, layout=layout, blocksize=blocksize)
    reference = thresholded(dense, 0.7)
    x, y = (torch.randn(5, 8, dtype=torch.float64).requires_grad_() for _ in range(2))
    y.data.copy_(x.data)
    pull = torch.randn(5, 6, dtype=torch.float64)
    (sparse(x).tanh() * pull).sum().backward()
    (reference(y).tanh() * pull).sum().backward()
    assert close(x.grad, y.grad)
    assert close(sparse.bias.grad, reference.bias.grad)
    stored = copy.deepcopy(sparse)
    with torch.no_grad():
        stored.values.copy_(sparse.values.grad)
    places = copy.deepcopy(sparse)
    with torch.no_grad():
        places.values.fill_(1.0)
    assert close(stored.dense_weight(), reference.weight.grad * places.dense_weight())
    assert sparse.values.grad.abs().min() > 0


@pytest.mark.parametrize("form", ["stride, padding", "groups", "1x1, stride"])
@pytest.mark.parametrize(("layout", "blocksize"), [("csr", None), ("coo", None), ("bsr", (3, 2))])
def test_gradients_of_a_sparse_convolution_are_those_of_the_dense_one(layout, blocksize, form):
    dense = conv(**CONVS[form])
    sparse = sparsify(dense, 0.7, layout=layout, blocksize=blocksize)
    reference = thresholded(dense, 0.7)
    x, y = (torch.randn(2, 4, 5, 7, dtype=torch.float64).requires_grad_() for _ in range(2))
    y.data.copy_(x.data)
    pull = torch.randn_like(reference(y))
    (sparse(x) * pull).sum().backward()
    (reference(y) * pull).sum().backward()
    assert close(x.grad, y.grad)
    places = copy.deepcopy(sparse)
    with torch.no_grad():
        places.values.fill_(1.0)
        sparse.values.copy_(sparse.values.grad)
    assert close(sparse.dense_weight(), reference.weight.grad * places.dense_weight())


@pytest.mark.parametrize(("layout", "blocksize"), LAYOUTS, ids=IDS)
def test_gradients_pass_the_numeric_check_twice(layout, blocksize):
    sparse = sparsify(linear(), 0.9, layout=layout, blocksize=blocksize)

    def forward(values, bias, x):
        return torch.func.functional_call(sparse, {"values": values, "bias": bias}, (x,))

    values, bias = sparse.values.detach().clone(), sparse.bias.detach().clone()
    inputs = [t.requires_grad_() for t in (values, bias, torch.randn(3, 8, dtype=torch.float64))]
    assert torch.autograd.gradcheck(forward, inputs)
    assert torch.autograd.gradgradcheck(forward, inputs)


def test_blocks_are_gathered_in_parts(monkeypatch):
    from fxprune.sparse.storage import products

    layer = sparsify(linear(24, 12), 0.5, layout="bsr", blocksize=(2, 3))
    x = torch.randn(7, 24, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(products, "_GATHERED", 100)
    assert len(list(products._parts(len(layer.values), 7 * 5))) > 10
    y = layer(x)
    y.square().sum().backward()
    dense = layer.to_dense()
    assert close(y, dense(x))
    assert close(x.grad, torch.autograd.grad(dense(x).square().sum(), x)[0])
    dense(x).square().sum().backward()
    ones = copy.deepcopy(layer)
    with torch.no_grad():
        ones.values.fill_(1.0)
        layer.values.copy_(layer.values.grad)
    assert close(layer.dense_weight(), dense.weight.grad * ones.dense_weight())


@pytest.mark.parametrize(("layout", "blocksize"), LAYOUTS, ids=IDS)
def test_values_are_trained_and_positions_stay(layout, blocksize):
    sparse = sparsify(linear(), 0.7, layout=layout, blocksize=blocksize)
    reference = sparse.to_dense()
    places = sparse.state_dict()
    before = {name: places[name].clone() for name in COMPONENTS[layout]}
    ones = copy.deepcopy(sparse)
    torch.nn.init.ones_(ones.values)
    x, target = torch.randn(16, 8, dtype=torch.float64), torch.randn(16, 6, dtype=torch.float64)
    for layer in (sparse, reference):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            F.mse_loss(layer(x), target).backward()
            if layer is reference:
                layer.weight.grad *= ones.dense_weight()
            optimizer.step()
    assert close(sparse.dense_weight(), reference.weight.detach())
    assert all(torch.equal(sparse.state_dict()[name], index) for name, index in before.items())


@pytest.mark.parametrize(("layout", "blocksize"), LAYOUTS, ids=IDS)
@pytest.mark.parametrize("threshold", [0.0, 0.7, 1e9])
def test_round_trip_is_exact(layout, blocksize, threshold):
    dense = linear()
    with torch.no_grad():
        dense.weight[1:3] = 0
    dense.weight.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no weight stays")
        sparse = sparsify(dense.eval(), threshold, layout=layout, blocksize=blocksize)
    back = sparse.to_dense()
    assert type(back) is nn.Linear
    assert torch.equal(back.weight, thresholded(dense, threshold).weight)
    assert torch.equal(back.bias, dense.bias)
    assert not back.training
    assert not sparse.training
    assert [p.requires_grad for p in (sparse.values, sparse.bias, back.weight, back.bias)] == [False, True] * 2
    assert back.bias.data_ptr() not in (sparse.bias.data_ptr(), dense.bias.data_ptr())
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert close(sparse(x), back(x))
    sparse(x).sum().backward()
    assert close(x.grad, back.weight.sum(0).expand(3, 8))


def test_a_weight_at_the_threshold_is_not_stored():
    dense = nn.Linear(3, 1, bias=False)
    dense.weight.data = torch.tensor([[0.5, -0.5, 0.75]])
    assert sparsify(dense, 0.5).to_dense().weight.tolist() == [[0.0, 0.0, 0.75]]


def test_stored_values_and_density_are_counted():
    dense = nn.Linear(4, 4, bias=False)
    dense.weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3]])
    csr = sparsify(dense).state_dict()
    assert {name: t.tolist() for name, t in csr.items()} == {
        "values": [1, 2, 3],
        "crow_indices": [0, 1, 2, 2, 3],
        "col_indices": [0, 1, 3],
    }
    assert csr["col_indices"].dtype == csr["crow_indices"].dtype == torch.int32
    coo = sparsify(dense, layout="coo").state_dict()
    assert coo["indices"].tolist() == [[0, 1, 3], [0, 1, 3]]
    bsr = sparsify(dense, layout="bsr", blocksize=(2, 2))
    assert bsr.values.tolist() == [[[1, 0], [0, 2]], [[0, 0], [0, 3]]]
    assert bsr.col_indices.tolist() == [0, 1]
    assert bsr.density == 0.5
    assert str(bsr) == "SparseLinear(4, 4, bias=False, layout=bsr, blocksize=(2, 2), stored=8, density=0.500)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("layout", "blocksize"), LAYOUTS, ids=IDS)
def test_other_types_are_computed_in_their_own(layout, blocksize, dtype):
    """Sums run in float32: its bound for sums of 1024 terms, and of half precision two roundings of the result."""
    dense = linear(1024, 6, dtype=dtype)
    sparse = sparsify(dense, 0.7, layout=layout, blocksize=blocksize)
    x = torch.randn(3, 1024).to(dtype)
    exact = F.linear(x.double(), sparse.dense_weight().double(), dense.bias.double())
    y = sparse(x)
    assert y.dtype == dtype
    size = F.linear(x.double().abs(), sparse.dense_weight().double().abs(), dense.bias.double().abs())
    rounding = 2 * torch.finfo(dtype).eps * (exact.abs() + dense.bias.double().abs())
    assert ((y.double() - exact).abs() <= rounding + 1024 * torch.finfo(torch.float32).eps * size).all()
    y.float().sum().backward()
    assert sparse.values.grad.dtype == dtype


@pytest.mark.parametrize(("layout", "blocksize"), LAYOUTS, ids=IDS)
def test_conversion_of_the_type_and_copies(layout, blocksize):
    sparse = sparsify(linear(), 0.7, layout=layout, blocksize=blocksize)
    clone = copy.deepcopy(sparse)
    x = torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(clone(x), sparse(x))
    clone.float()
    assert clone.values.dtype == torch.float32
    assert clone.state_dict()[COMPONENTS[layout][-1]].dtype == sparse.state_dict()[COMPONENTS[layout][-1]].dtype
    assert torch.allclose(clone(x.float()).double(), sparse(x), atol=1e-5)
    with pytest.raises(InputError) as error:
        clone(x)
    assert "input and weight of a sparse layer differ in type or device" in str(error.value)
    assert "the input is torch.float64 on cpu, the weight torch.float32 on cpu" in str(error.value)


def test_shapes_alone_on_the_meta_device():
    sparse = sparsify(linear(), 0.7).to("meta")
    assert sparse(torch.empty(3, 2, 8, dtype=torch.float64, device="meta")).shape == (3, 2, 6)


def test_autocast_leaves_the_type_of_the_weight():
    sparse = sparsify(linear(dtype=torch.float32), 0.7)
    x = torch.randn(3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sparse(x.bfloat16())
    assert y.dtype == torch.float32
    assert torch.equal(y, sparse(x.bfloat16().float()))


@pytest.mark.parametrize(("layout", "blocksize"), LAYOUTS, ids=IDS)
def test_state_dict_is_dense_and_loads_another_number_of_values(layout, blocksize):
    full, thin = linear(), linear()
    with torch.no_grad():
        full.weight[:3, :2] = 0  # one block that is not stored, whatever the layout
    source = sparsify(full, 1.2, layout=layout, blocksize=blocksize)
    target = sparsify(thin, 0.3, layout=layout, blocksize=blocksize)
    assert source.values.shape != target.values.shape
    state = source.state_dict()
    assert sorted(state) == sorted([*COMPONENTS[layout], "values", "bias"])
    assert all(t.layout is torch.strided for t in state.values())
    values, x = target.values, torch.randn(3, 8, dtype=torch.float64)
    target(x).sum().backward()
    loaded = load(save({name: t.contiguous() for name, t in state.items()}))
    assert str(target.load_state_dict(loaded)) == "<All keys matched successfully>"
    assert target.values is values
    assert target.values.grad is None
    assert torch.equal(target(x), source(x))
    assert torch.equal(target.to_dense().weight, source.to_dense().weight)
    target(x).sum().backward()
    assert target.values.grad.shape == source.values.shape
    empty = sparsify(full, math.inf, layout=layout, blocksize=blocksize)
    assert empty.density == 0
    empty.load_state_dict(loaded, assign=True)
    assert torch.equal(empty(x), source(x))
    loaded["values"] += 1
    assert torch.equal(target(x), source(x)), "loaded by copy"
    assert not torch.equal(empty(x), source(x)), "loaded by assignment"


def test_state_dict_of_a_model_loads_into_a_fresh_one():
    def net():
        return nn.Sequential(
            nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Sequential(nn.Linear(54, 3))
        ).double()

    trained, fresh = sparsify_model(net(), 0.1), sparsify_model(net(), math.inf)
    fresh.load_state_dict(load(save(trained.state_dict())))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    assert torch.equal(fresh(x), trained(x))


BROKEN = {
    "unsorted": ("csr", "col_indices", lambda t: t.flip(0), "are sorted and distinct"),
    "out of range": ("csr", "col_indices", lambda t: t + 8, "`0 <= col_indices < ncols` is not satisfied"),
    "negative": ("csr", "col_indices", lambda t: t - 8, "`0 <= col_indices < ncols` is not satisfied"),
    "wrong end": ("csr", "crow_indices", lambda t: t + 1, "`crow_indices[..., 0] == 0` is not satisfied"),
    "rows": ("csr", "crow_indices", lambda t: t[:-1], "crow_indices.shape[-1] must be equal to the number of rows"),
    "values": ("csr", "values", lambda t: t[:-1], "defined by values.shape[0], but got"),
    "float indices": ("csr", "col_indices", lambda t: t.float(), "col_indices are torch.float32, not int32 or int64"),
    "integer values": ("csr", "values", lambda t: t.long(), "values are torch.int64, not floating"),
    "coo unsorted": ("coo", "indices", lambda t: t.flip(1), "uncoalesced"),
    "coo range": ("coo", "indices", lambda t: t + 7, "size is inconsistent with indices"),
    "coo values": ("coo", "values", lambda t: t[1:], "must have same nnz"),
    "block shape": ("bsr", "values", lambda t: t.mT, "are no blocks of (3, 2)"),
    "no tensor": ("csr", "col_indices", lambda t: t.tolist(), "has no attribute"),
    "block range": ("bsr", "col_indices", lambda t: t + 4, "`0 <= col_indices < ncols` is not satisfied"),
}


@pytest.mark.parametrize("case", BROKEN, ids=str)
@pytest.mark.parametrize("assign", [False, True])
def test_components_that_contradict_each_other_are_refused(case, assign):
    layout, name, change, reason = BROKEN[case]
    layer = sparsify(linear(), 0.7, layout=layout, blocksize=(3, 2) if layout == "bsr" else None)
    before = {key: t.clone() for key, t in layer.state_dict().items()}
    state = sparsify(linear(), 0.5, layout=layout, blocksize=layer.spec.blocksize).state_dict()
    state[name] = change(state[name])
    with pytest.raises(PlanError) as error:
        nn.Sequential(layer).load_state_dict({f"0.{key}": t for key, t in state.items()}, assign=assign)
    assert "the components of a sparse weight contradict each other or the layer" in str(error.value)
    assert f'layer "0", {layout} [6, 8]' in str(error.value)
    assert reason in str(error.value)
    assert "load the state_dict of a layer of the same layout, shape and blocksize" in str(error.value)
    after = layer.state_dict()
    assert all(torch.equal(after[key], t) for key, t in before.items())


def test_a_part_of_the_components_or_another_bias_is_refused():
    layer = sparsify(linear(), 0.7)
    before = {key: t.clone() for key, t in layer.state_dict().items()}
    state = sparsify(linear(), 0.5).state_dict()
    with pytest.raises(PlanError) as error:
        layer.load_state_dict({key: t for key, t in state.items() if key != "values"}, strict=False)
    assert "a state_dict holds only a part of a sparse weight" in str(error.value)
    assert "crow_indices, col_indices without values mean nothing" in str(error.value)
    with pytest.raises(PlanError, match=r"its shape is \(5,\), that of the layer \(6,\)"):
        layer.load_state_dict(state | {"bias": torch.zeros(5)})
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({"bias": state["bias"]})
    layer.load_state_dict(before)
    assert all(torch.equal(layer.state_dict()[key], t) for key, t in before.items())


def test_an_index_outside_its_group_is_refused():
    layer = sparsify(conv(kernel_size=1, groups=2), 0.5)
    state = layer.state_dict()
    state["col_indices"] = 3 - state["col_indices"].flip(0)
    state["crow_indices"] = torch.tensor([0, *([len(state["col_indices"])] * 6)], dtype=torch.int32)
    state["col_indices"], state["values"] = torch.tensor([2], dtype=torch.int32), state["values"][:1]
    state["crow_indices"] = torch.tensor([0, 1, 1, 1, 1, 1, 1], dtype=torch.int32)
    with pytest.raises(PlanError, match="an index leads out of its group: there are 2 groups"):
        layer.load_state_dict(state)


def test_masks_of_torch_prune_and_parametrizations_are_multiplied_in():
    dense = linear()
    x = torch.randn(3, 8, dtype=torch.float64)
    prune.l1_unstructured(dense, "weight", 0.6)
    prune.random_unstructured(dense, "bias", 0.5)
    with torch.no_grad():
        dense.weight_orig.mul_(-3)  # the masked weight is old now, until the next forward
    sparse = sparsify(dense)
    assert close(sparse(x), dense(x))
    assert sparse.values.numel() == 48 - 29
    assert sparse.values.requires_grad
    normed = parametrizations.weight_norm(linear())
    assert close(
        sparsify(normed, 0.7)(x), F.linear(x, torch.where(normed.weight.abs() > 0.7, normed.weight, 0), normed.bias)
    )


REFUSED = {
    "negative": (linear, {"threshold": -0.1}, ["threshold must be a number of at least 0, not -0.1"]),
    "nan": (linear, {"threshold": math.nan}, ["threshold must be a number of at least 0, not nan"]),
    "bool": (linear, {"threshold": True}, ["threshold must be a number of at least 0, not True"]),
    "text": (linear, {"threshold": "0.1"}, ["not '0.1'", "weights with |w| > threshold stay"]),
    "layout": (linear, {"layout": "crs"}, ["there is no layout 'crs'", 'did you mean "csr"?']),
    "csc": (linear, {"layout": "csc"}, ["there is no layout 'csc'", "makes a csc anew as csr with every product"]),
    "blocks": (linear, {"layout": "bsr"}, ["needs a blocksize of two positive integers, not None"]),
    "block": (linear, {"layout": "bsr", "blocksize": 4}, ["needs a blocksize of two positive integers, not 4"]),
    "zero": (linear, {"layout": "bsr", "blocksize": (0, 2)}, ["not (0, 2)", "for example blocksize=(8, 8)"]),
    "no blocks": (linear, {"blocksize": (2, 2)}, ["layout csr has no blocksize"]),
    "divide": (
        linear,
        {"layout": "bsr", "blocksize": (4, 2)},
        ["blocks of (4, 2) do not divide the weight", "the matrix is [6, 8]"],
    ),
    "divide group": (
        lambda: conv(kernel_size=1, groups=2),
        {"layout": "bsr", "blocksize": (6, 1)},
        ["blocks of (6, 1) do not divide the weight", "the matrix of a group is [3, 2]"],
    ),
    "kind": (lambda: nn.Conv1d(2, 2, 1), {}, ["only nn.Linear and nn.Conv2d can be sparse", "it is a Conv1d"]),
    "subclass": (
        lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2),
        {},
        ["use the weight in its own way"],
    ),
    "twice": (lambda: sparsify(linear(), 0.5), {}, ["the layer is sparse already"]),
    "meta": (
        lambda: nn.Linear(2, 2, device="meta"),
        {},
        ["a weight of this kind cannot be sparse", "on the meta device"],
    ),
    "complex": (lambda: nn.Linear(2, 2, dtype=torch.complex64), {}, ["torch.complex64, torch.strided"]),
    "semi conv": (lambda: conv(kernel_size=1), {"layout": "semi_structured"}, ["does not take a convolution"]),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_sparsify_refuses_layers_it_cannot_store(case):
    make, options, sentences = REFUSED[case]
    with pytest.raises(PlanError) as error:
        sparsify(make(), **options)
    for sentence in sentences:
        assert sentence in str(error.value)


def test_sparsify_refuses_other_options():
    layer = linear()
    with torch.no_grad():
        layer.weight[1, 2] = math.nan
    with pytest.raises(PlanError, match=r"the weight holds NaN(.|\n)*neither above nor below"):
        sparsify(layer)
    hooked = linear()
    hooked.register_forward_hook(lambda module, args, result: None)
    with pytest.raises(PlanError, match=r"the layer has hooks(.|\n)*would not run on the sparse layer"):
        sparsify(hooked, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch initialises nothing here, and says so
        none = nn.Linear(0, 3)
    with pytest.raises(PlanError, match=r"the weight is empty(.|\n)*\(3, 0\)"):
        sparsify(none)


def test_a_conversion_that_changes_nothing_warns():
    with pytest.warns(NothingRemovedWarning) as caught:
        sparsify(linear())
    assert "every weight stays: the sparse layer takes more memory than the dense one" in str(caught[0].message)
    assert "no |w| is at or below the threshold 0.0" in str(caught[0].message)
    with pytest.warns(UserWarning, match="no weight stays: the layer returns its bias"):
        empty = sparsify(linear(), 1e9)
    assert empty.values.numel() == 0
    assert caught[0].filename == __file__


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"its shape is \(3, 7\), the layer takes \[.., 8\]"):
        sparsify(linear(), 0.5)(torch.zeros(3, 7, dtype=torch.float64))
    layer = sparsify(conv(kernel_size=3), 0.5)
    with pytest.raises(InputError, match=r"the layer takes \[n, 4, h, w\] or \[4, h, w\]"):
        layer(torch.zeros(1, 3, 9, 9, dtype=torch.float64))
    with pytest.raises(InputError, match=r"smaller than its kernel(.|\n)*padded it is \(2, 9\)"):
        layer(torch.zeros(1, 4, 2, 9, dtype=torch.float64))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 8)
        self.head = nn.Linear(8, 5, bias=False)
        self.head.weight = self.embed.weight
        self.twice = nn.Linear(8, 8)
        self.again = self.twice

    def forward(self, x):
        return self.head(self.again(self.twice(self.embed(x))))


def test_a_model_is_copied_and_its_layers_replaced():
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(54, 7), nn.Linear(7, 3)).double()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    sparse = sparsify_model(net, 0.1, where=["0", "4", net[3]], ignore="4")
    assert [type(m).__name__ for m in sparse] == ["SparseConv2d", "BatchNorm2d", "Flatten", "SparseLinear", "Linear"]
    assert all(torch.equal(net.state_dict()[name], t) for name, t in before.items())
    shared = {t.data_ptr() for t in net.state_dict().values()} & {t.data_ptr() for t in sparse.state_dict().values()}
    assert not shared
    reference = nn.Sequential(thresholded(net[0], 0.1), net[1], net[2], thresholded(net[3], 0.1), net[4]).eval()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    assert close(sparse.eval()(x), reference(x))
    back = densify(sparse)
    assert [type(m).__name__ for m in back] == ["Conv2d", "BatchNorm2d", "Flatten", "Linear", "Linear"]
    assert close(back(x), reference(x))
    assert type(sparse[0]) is SparseConv2d


def test_a_layer_that_is_used_twice_stays_one():
    net = Tied().double()
    sparse = sparsify_model(net, 0.1, where="twice")
    assert type(sparse.again) is SparseLinear
    assert sparse.again is sparse.twice
    assert sparse.head.weight is sparse.embed.weight
    net.twice = net.again = thresholded(net.twice, 0.1)
    x = torch.tensor([[0, 3], [4, 1]])
    assert close(sparse(x), net(x))


def test_layers_that_cannot_be_replaced_are_named():
    with pytest.raises(PlanError) as error:
        sparsify_model(Tied(), 0.1)
    assert 'layer "head"' in str(error.value)
    assert 'its parameter is also "embed.weight", and would be no longer' in str(error.value)
    encoder = nn.TransformerEncoderLayer(8, 2, 16)
    with pytest.raises(PlanError) as error:
        sparsify_model(encoder, 0.1)
    assert 'layer "linear1", layer "linear2"' in str(error.value)
    assert "it is inside TransformerEncoderLayer, which reads the weights of its layers itself" in str(error.value)
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 4))
    net[3].register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(PlanError) as error:
        sparsify_model(net, 0.1, layout="bsr", blocksize=(2, 2))
    assert "1 more layer cannot be sparse for other reasons" not in str(error.value)
    assert 'layer "1"' in str(error.value)
    assert "2 more layers cannot be sparse for other reasons" in str(error.value)
    assert [type(m) for m in net] == [nn.Linear] * 4


def test_names_that_mean_nothing_are_refused():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    for where, sentences in {
        "1x": ['where names nothing: "1x"', 'did you mean "1"?'],
        nn.Conv2d: ["where names a type that the model has no module of: Conv2d"],
        3: ["where cannot be a int", "pass names, globs, modules or types of modules"],
    }.items():
        with pytest.raises(PlanError) as error:
            sparsify_model(net, 0.1, where=where)
        for sentence in sentences:
            assert sentence in str(error.value)
    with pytest.raises(PlanError, match="a module that is not part of the model"):
        sparsify_model(net, 0.1, where=nn.Linear(3, 4))
    with pytest.raises(PlanError, match=r'ignore names nothing: "none\*"'):
        sparsify_model(net, 0.1, ignore="none*")
    with pytest.raises(PlanError, match="every layer that `where` names is ignored"):
        sparsify_model(net, 0.1, ignore="0")
    with pytest.raises(PlanError, match="the model has no module of the types Linear or Conv2d"):
        sparsify_model(nn.Sequential(nn.ReLU()), 0.1)
    with pytest.raises(PlanError, match="the model is a single layer"):
        sparsify_model(nn.Linear(3, 4), 0.1)
    with pytest.raises(
        PlanError, match=r'only nn.Linear and nn.Conv2d can be sparse(.|\n)*layer "1"(.|\n)*it is a ReLU'
    ):
        sparsify_model(net, 0.1, where="*")


def test_warnings_of_a_model_name_its_layers():
    with pytest.warns(NothingRemovedWarning, match='layer "0"'):
        sparsify_model(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), where="0")


def model():
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 5 * 5, 3))
    return sparsify_model(net.double(), 0.05).eval()


def test_cost_counts_what_is_stored():
    sparse = model()
    stored = [sparse[0].values.numel(), sparse[3].values.numel()]
    cost = fxprune.cost(sparse, torch.zeros(2, 4, 5, 5, dtype=torch.float64))
    assert cost.macs == stored[0] * 2 * 25 + stored[1] * 2
    assert cost.params == sum(stored) + 6 + 3
    assert cost.bytes == 8 * cost.params + 4 * (sum(stored) + 7 + 4)


def test_traces_and_exports():
    sparse = model()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    assert close(torch.fx.symbolic_trace(sparse)(x), sparse(x))
    exported = torch.export.export(sparse, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
    y = torch.randn(5, 4, 5, 5, dtype=torch.float64)
    assert close(exported.module()(y), sparse(y))


def test_the_pass_leaves_sparse_layers_alone():
    sparse = model()
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), *sparse).double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    small = fxprune.transform(net, x, ratio=0.5)
    assert small.get_submodule("0").out_channels == 4
    assert fxprune.record(small).error < 1e-9
    assert small(x).shape == (2, 3)
