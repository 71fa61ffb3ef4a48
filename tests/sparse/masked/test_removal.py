"""Masked layers in the pass: masks become smaller too, and channels that are cut off are removed without a change."""

from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from fxprune.errors import NothingRemovedWarning
from fxprune.sparse import MaskedConv2d, MaskedLinear, banded_mask, block_mask, empty_outputs, random_mask, shrink
from tests.support import randomise, relative_error


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def mask_of(out, into, *, rows=(), columns=()):
    """Everything is connected but these outputs and inputs, and here and there one connection more is missing."""
    mask = torch.rand(out, into) < 0.9
    mask[:, -1] = mask[-1] = True
    mask[list(rows)] = False
    mask[:, list(columns)] = False
    return mask


def mixed():
    """A convolution, one in groups, a flatten and two linear layers, all masked at random."""
    return nn.Sequential(
        *(MaskedConv2d(3, 8, 3, random_mask(8, 3, fan_in=2), padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(MaskedConv2d(8, 6, 3, random_mask(6, 4, fan_in=2), groups=2), nn.ReLU(), nn.Flatten()),
        *(MaskedLinear(6 * 36, 12, random_mask(12, 216, fan_in=20)), nn.Sigmoid()),
        MaskedLinear(12, 4, banded_mask(4, 12, 2)),
    )


class Residual(nn.Module):
    """Two masked layers around a sum, and a class that symbolic tracing cannot take."""

    def __init__(self):
        super().__init__()
        self.first = MaskedLinear(5, 10, random_mask(10, 5, fan_in=3))
        self.second = MaskedLinear(10, 10, block_mask(10, 10, 2))
        self.last = MaskedLinear(10, 3, random_mask(3, 10, fan_in=6))

    def forward(self, x):
        if x.shape[0] > 1:
            x = torch.relu(self.first(x))
        return self.last(x + self.second(x).tanh())


def by_hand(net, x, removed):
    """The net with every removed slot zero in weights that are masked by hand, layers replaced by plain functions."""
    state = {name: t.detach().clone() for name, t in net.state_dict().items()}
    for name, dims in removed.items():
        for dim, indices in dims.items():
            if state[name].is_floating_point():
                state[name].index_fill_(dim, torch.tensor(indices), 0.0)
    plain = copy.deepcopy(net)
    for name, module in net.named_modules():
        if isinstance(module, (MaskedLinear, MaskedConv2d)):
            weight, bias = state[f"{name}.weight"] * state[f"{name}.mask"], state.get(f"{name}.bias")
            if isinstance(module, MaskedLinear):
                call = lambda x, w=weight, b=bias: F.linear(x, w, b)  # noqa: E731
            else:
                p, g = module.padding, module.groups
                call = lambda x, w=weight, b=bias, p=p, g=g: F.conv2d(x, w, b, padding=p, groups=g)  # noqa: E731
            plain.get_submodule(name).forward = call
        elif isinstance(module, nn.BatchNorm2d):
            own = plain.get_submodule(name)
            own.load_state_dict({k: state[f"{name}.{k}"] for k in own.state_dict()})
    with torch.no_grad():
        return plain(x)


@pytest.mark.parametrize("path", ["fx", "eager", "export"])
@pytest.mark.parametrize("importance", ["l2", "random"])
def test_the_pass_shrinks_masks_along(path, importance):
    net, x = randomise(mixed(), 1).eval(), torch.randn(2, 3, 8, 8)
    small = fxprune.transform(net, x, ratio=0.5, importance=importance, seed=3, path=path)
    record = fxprune.record(small)
    assert record.exact
    assert record.error < 1e-9
    assert relative_error(small(x), by_hand(net, x, record.removed)) < 1e-9
    assert relative_error(net(x), by_hand(net, x, {})) < 1e-9
    assert relative_error(small(x), net(x)) > 1e-3
    for name, before in record.before.items():
        if name.endswith("mask"):
            kept = net.get_buffer(name)
            for dim, gone in record.removed.get(name, {}).items():
                kept = kept.index_select(dim, torch.tensor([k for k in range(before[dim]) if k not in gone]))
            assert torch.equal(small.get_buffer(name), kept)
            assert record.after[name] == tuple(kept.shape) != before


@pytest.mark.parametrize("path", ["fx", "eager"])
def test_layers_keep_their_class_and_are_recounted(path):
    net, x = randomise(mixed(), 1).eval(), torch.randn(2, 3, 8, 8)
    small = fxprune.transform(net, x, ratio=0.5, path=path)
    conv, grouped, linear, head = (small.get_submodule(name) for name in ("0", "3", "6", "8"))
    assert [type(layer) for layer in (conv, grouped, linear, head)] == [MaskedConv2d] * 2 + [MaskedLinear] * 2
    assert (conv.out_channels, grouped.in_channels, grouped.groups, grouped.out_channels) == (2, 2, 1, 2)
    assert (linear.in_features, linear.out_features, head.in_features) == (72, 6, 6)
    linear.weight.data.fill_(1)
    assert torch.equal(linear.weight != 0, linear.mask)
    small(x).sum().backward()
    assert (linear.weight.grad[~linear.mask] == 0).all()


def test_a_graph_that_the_user_traced_reads_weight_and_mask():
    net, x = randomise(mixed(), 1).eval(), torch.randn(2, 3, 8, 8)
    small = fxprune.transform(torch.fx.symbolic_trace(net), x, ratio=0.5)
    assert fxprune.record(small).error < 1e-9
    other = fxprune.transform(net, x, ratio=0.5)
    assert relative_error(small(x), other(x)) < 1e-12
    assert {k: v.shape for k, v in small.state_dict().items()} == {k: v.shape for k, v in other.state_dict().items()}


def test_a_masked_model_that_cannot_be_traced_keeps_its_class():
    net, x = randomise(Residual(), 2).eval(), torch.randn(4, 5)
    small = fxprune.transform(net, x, ratio=0.4)
    record = fxprune.record(small)
    assert record.path == "eager"
    assert relative_error(small(x), by_hand(net, x, record.removed)) < 1e-9
    assert (small.second.in_features, small.second.out_features, small.second.mask.shape) == (6, 6, (6, 6))


def test_a_group_is_named_after_the_masked_layer_that_opens_it_and_can_be_ignored():
    layers = [MaskedLinear(6, 3, mask_of(3, 6)), MaskedLinear(4, 6, mask_of(6, 4), bias=False)]

    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = layers

        def forward(self, x):
            return self.last(torch.relu(self.first(x)))

    net, x = Backwards().eval(), torch.randn(2, 4)
    assert [group.name for group in fxprune.analyze(net, x).groups] == ["first"]
    with pytest.warns(NothingRemovedWarning, match="ignored"):
        fxprune.transform(net, x, ratio=0.5, ignore=MaskedLinear)


# -- empty rows and columns ---------------------------------------------------------------------------------


def equal_and_smaller(net, x, **options):
    """The shrunken net: it equals the original on several inputs, which no random weights could agree with."""
    before = {name: t.clone() for name, t in net.state_dict().items()}
    small = shrink(net, x, **options)
    for scale in (1.0, 10.0, -3.0):
        inputs = tuple(scale * torch.randn_like(t) for t in x) if isinstance(x, tuple) else scale * torch.randn_like(x)
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        with torch.no_grad():
            assert relative_error(small(*inputs), net(*inputs)) < 1e-9
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    return small


def test_empty_outputs():
    net = nn.Sequential(
        MaskedLinear(4, 5, mask_of(5, 4, rows=[1, 3])),
        nn.Sequential(MaskedConv2d(3, 4, 3, mask_of(4, 3, rows=[0])), MaskedLinear(4, 5, mask_of(5, 4, columns=[0]))),
        nn.Linear(2, 2),
    )
    found = empty_outputs(net)
    assert {name: keep.tolist() for name, keep in found.items()} == {
        "0": [True, False, True, False, True],
        "1.0": [False, True, True, True],
    }


def test_empty_rows_without_bias_are_removed_by_the_masks_of_transform():
    net = nn.Sequential(
        MaskedLinear(4, 6, mask_of(6, 4, rows=[1, 3]), bias=False), nn.ReLU(), MaskedLinear(6, 3, mask_of(3, 6))
    ).eval()
    x = torch.randn(3, 4)
    small = fxprune.transform(net, x, masks=empty_outputs(net))
    assert relative_error(small(x), net(x)) < 1e-9
    assert small.get_submodule("0").out_features == 4


@pytest.mark.parametrize("path", [None, "fx", "eager", "export"])
@pytest.mark.parametrize("bias", [True, False])
def test_columns_that_no_layer_reads_are_removed(path, bias):
    net = nn.Sequential(
        *(MaskedConv2d(3, 7, 3, mask_of(7, 3), bias=bias), nn.BatchNorm2d(7), nn.Sigmoid()),
        *(MaskedConv2d(7, 5, 3, mask_of(5, 7, columns=[0, 2, 6])), nn.Sigmoid(), nn.Flatten()),
        MaskedLinear(5 * 4, 3, mask_of(3, 20, columns=[*range(4, 8), *range(13, 16)])),
    )
    small = equal_and_smaller(randomise(net, 5).eval(), torch.randn(2, 3, 6, 6), path=path)
    assert small.get_parameter("0.weight").shape == (4, 3, 3, 3)
    assert small.get_parameter("3.weight").shape == (4, 4, 3, 3)  # channel 1 goes, of channel 3 one pixel is read
    assert small.get_parameter("6.weight").shape == (3, 16)


def test_rows_that_are_zero_are_removed():
    net = nn.Sequential(
        MaskedConv2d(3, 6, 3, mask_of(6, 3, rows=[0, 4]), bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1, bias=False),
        nn.Tanh(),
    )
    net.append(nn.Conv2d(4, 2, 1))
    small = equal_and_smaller(randomise(net, 5).eval(), torch.randn(2, 3, 6, 6))
    assert small.get_submodule("0").out_channels == small.get_submodule("2").in_channels == 4


def test_a_zero_that_becomes_another_number_is_folded():
    for activation in (nn.Sigmoid(), nn.BatchNorm1d(6)):
        layers = MaskedLinear(4, 6, mask_of(6, 4, rows=[1]), bias=False), activation, nn.Linear(6, 2)
        small = equal_and_smaller(randomise(nn.Sequential(*layers), 5).eval(), torch.randn(2, 4))
        assert small.get_submodule("0").out_features == 5


def test_an_output_that_is_its_bias_is_folded_into_a_masked_layer():
    net = nn.Sequential(
        MaskedLinear(4, 6, mask_of(6, 4, rows=[1])),
        nn.ReLU(),
        MaskedLinear(6, 2, mask_of(2, 6, columns=[3]), bias=False),
    )
    net[0].bias.data.add_(2)
    for x in (torch.randn(2, 4), torch.randn(2, 3, 4)):
        small = equal_and_smaller(net.eval(), x)
        assert small.get_submodule("0").out_features == 4
        assert small.get_submodule("2").bias.shape == (2,)


def test_a_constant_before_padding_stays_where_its_carrier_would_be_masked():
    mask = mask_of(4, 6)
    net = nn.Sequential(
        MaskedConv2d(3, 6, 1, mask_of(6, 3, rows=[1, 2])), nn.Sigmoid(), MaskedConv2d(6, 4, 3, mask, padding=1)
    )
    with pytest.warns(NothingRemovedWarning, match="its constant is not the same everywhere"):
        shrink(net.eval(), torch.randn(2, 3, 6, 6))


def test_an_empty_row_whose_bias_is_zero_is_removed():
    net = nn.Sequential(MaskedLinear(4, 6, mask_of(6, 4, rows=[1])), nn.ReLU(), nn.Linear(6, 2)).eval()
    net[0].bias.data[1] = 0
    assert equal_and_smaller(net, torch.randn(2, 4)).get_submodule("0").out_features == 5


def test_channels_that_fed_removed_channels_only_are_removed_too():
    """Input 2 of the last layer is not read, so output 2 of the middle goes, and with it 0 of the first."""
    middle = mask_of(5, 6)
    middle[:, 0] = False
    middle[2, 0] = True
    net = nn.Sequential(
        *(MaskedLinear(3, 6, mask_of(6, 3)), nn.Sigmoid(), MaskedLinear(6, 5, middle), nn.Sigmoid()),
        MaskedLinear(5, 4, mask_of(4, 5, columns=[2])),
    )
    small = equal_and_smaller(net.eval(), torch.randn(2, 3))
    assert [tuple(small.get_submodule(k).weight.shape) for k in "024"] == [(5, 3), (4, 5), (4, 4)]


class Elsewhere(nn.Module):
    """The column of the head is empty, but the channel is read by a sum as well."""

    def __init__(self):
        super().__init__()
        self.stem = MaskedLinear(4, 6, mask_of(6, 4))
        self.head = MaskedLinear(6, 3, mask_of(3, 6, columns=[1, 2]))

    def forward(self, x):
        y = torch.relu(self.stem(x))
        return self.head(y) + y.sum(1, keepdim=True)


def test_channels_that_another_layer_reads_stay():
    net = Elsewhere().eval()
    net.stem.bias.data[1] = -100.0  # never above zero on these inputs: their numbers alone would not tell
    x = 0.1 * torch.randn(2, 4)
    assert (torch.relu(net.stem(x))[:, 1] == 0).all()
    with pytest.warns(NothingRemovedWarning, match="has an influence that depends on the input"):
        small = shrink(net, x)
    assert relative_error(small(100 * x), net(100 * x)) < 1e-9
    assert small.get_submodule("stem").out_features == 6


class Gated(nn.Module):
    """A residual stream with two producers and two consumers, and a gate beside it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = MaskedLinear(4, 8, mask_of(8, 4)), nn.Linear(4, 8)
        self.gate = MaskedLinear(8, 8, mask_of(8, 8, columns=[0, 1, 5]))
        self.head = MaskedLinear(8, 3, mask_of(3, 8, columns=[0, 2, 5]))

    def forward(self, x):
        y = self.a(x) + self.b(x)
        return self.head(y * torch.sigmoid(self.gate(y)))


def test_a_channel_is_removed_only_if_none_of_its_readers_reads_it():
    small = equal_and_smaller(Gated().eval(), torch.randn(2, 4))
    assert small.get_submodule("b").out_features == 6  # 0 and 5; 1 is read by the head, 2 by the gate
    assert type(small.get_submodule("b")) is nn.Linear


def test_in_conv_groups_whole_rows_of_the_grid_are_removed():
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[3:] = False  # the second group connects nothing
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), MaskedConv2d(8, 6, 3, mask, groups=2, bias=False), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    small = equal_and_smaller(net.eval(), torch.randn(2, 3, 6, 6))
    grouped = small.get_submodule("1")
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (1, 4, 3)
    assert type(grouped) is nn.Conv2d
    assert small.get_submodule("0").out_channels == 4


@pytest.mark.parametrize("bias", [True, False])
def test_a_depthwise_filter_that_is_cut_off_is_removed(bias):
    mask = torch.ones(6, 1, dtype=torch.bool)
    mask[[1, 4]] = False
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 1), nn.Tanh(), MaskedConv2d(6, 6, 3, mask, groups=6, bias=bias), nn.ReLU()),
        MaskedConv2d(6, 2, 1, mask_of(2, 6, columns=[0])),
    ).eval()
    if bias:
        net[2].bias.data[4] = 0
    small = equal_and_smaller(net, torch.randn(2, 3, 6, 6))
    assert [small.get_submodule(k).out_channels for k in "02"] == [3, 3]  # 0 is not read; 1 and 4 are constants
    assert small.get_submodule("2").groups == 3


def test_channels_that_count_in_a_statistic_stay():
    net = nn.Sequential(
        MaskedLinear(4, 6, mask_of(6, 4)), nn.LayerNorm(6), MaskedLinear(6, 2, mask_of(2, 6, columns=[1]))
    )
    with pytest.warns(NothingRemovedWarning, match="has an influence that depends on the input"):
        shrink(net.eval(), torch.randn(2, 4))


def test_layers_that_end_dense_become_plain():
    hidden = torch.ones(6, 4, dtype=torch.bool)
    hidden[2, 1] = False
    net = nn.Sequential(MaskedLinear(4, 6, hidden), nn.ReLU(), MaskedLinear(6, 3, torch.ones(3, 6, dtype=torch.bool)))
    net[2].set_mask(torch.tensor([[True, True, False, True, True, True]] * 3))
    net.eval()
    for name in ("0", "2"):
        net.get_submodule(name).bias.requires_grad_(False)
    small = equal_and_smaller(net, torch.randn(2, 4))
    assert [type(small.get_submodule(name)) for name in ("0", "2")] == [nn.Linear, nn.Linear]
    assert not small.get_submodule("0").bias.requires_grad
    assert fxprune.verify(net, small, torch.randn(3, 4)) < 1e-9
    assert fxprune.record(small).removed["0.weight"] == {0: [2]}


def test_a_shared_layer_stays_shared_and_one_with_hooks_stays_masked():
    full = torch.ones(5, 5, dtype=torch.bool)
    shared = MaskedLinear(5, 5, full)
    hooked = MaskedLinear(5, 3, torch.ones(3, 5, dtype=torch.bool))
    hooked.register_forward_hook(lambda module, args, output: None)
    net = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), hooked).eval()
    with pytest.warns(NothingRemovedWarning):
        small = shrink(net, torch.randn(2, 5), path="eager")
    assert type(small[0]) is nn.Linear
    assert small[0] is small[2]
    assert type(small[4]) is MaskedLinear


def test_nothing_to_shrink_warns():
    net = nn.Sequential(MaskedLinear(4, 6, mask_of(6, 4)), nn.ReLU(), MaskedLinear(6, 2, mask_of(2, 6))).eval()
    with pytest.warns(NothingRemovedWarning, match="has an influence that depends on the input"):
        shrink(net, torch.randn(2, 4))


def test_one_channel_stays_in_a_dimension_that_no_layer_reads():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), MaskedLinear(3, 2, torch.tensor([[True, False, False]] * 2))).eval()
    net[2].weight.data.fill_(0)
    small = equal_and_smaller(net, torch.randn(2, 4))
    assert small.get_submodule("0").out_features == 1


def test_a_model_that_casts_to_single_precision_shrinks():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), MaskedLinear(6, 2, mask_of(2, 6, columns=[1]))

        def forward(self, x):
            return self.b(self.a(x.float()).float())

    small = shrink(Single().float().eval(), torch.randn(2, 4).float())
    assert small.get_submodule("a").out_features == 5


def test_random_chains_shrink_to_what_is_reachable():
    """Against a search by hand: without biases a hidden unit stays if a path of connections leads through it."""
    for seed in range(12):
        torch.manual_seed(seed)
        widths = [5, 9, 8, 7, 4]
        masks = [torch.rand(o, i) < 0.22 for i, o in itertools.pairwise(widths)]
        for mask in masks:
            mask[0, 0] = True
        layers = [
            MaskedLinear(i, o, m, bias=False) for (i, o), m in zip(itertools.pairwise(widths), masks, strict=True)
        ]
        net = nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh()))).eval()
        reached, needed = [torch.ones(5, dtype=torch.bool)], [torch.ones(4, dtype=torch.bool)]
        for mask in masks:
            reached.append((mask & reached[-1]).any(1))
        for mask in reversed(masks):
            needed.insert(0, (mask & needed[0][:, None]).any(0))
        want = [int((r & n).sum()) for r, n in zip(reached[1:-1], needed[1:-1], strict=True)]
        assert min(want) > 0
        with warnings.catch_warnings():
            warnings.simplefilter("error" if want != widths[1:-1] else "ignore")
            small = equal_and_smaller(net, torch.randn(3, 5))
        assert [small.get_submodule(str(2 * k)).out_features for k in range(3)] == want, seed
