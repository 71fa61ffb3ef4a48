"""`convert`: the smaller model is the function of the model that carries the hooks."""

from __future__ import annotations

import copy
import itertools
import random
import warnings

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import ChannelsStayWarning, NothingRemovedWarning, PlanError, VerificationError
from fxprune.pruner import L1Pruner, RandomPruner, plain
from tests.pruner.pruners import prepared, small_resnet
from tests.support import calibrate, randomise, relative_error, torchvision

TOLERANCE = 1e-9


def image(size=8, batch=2):
    return torch.randn(batch, 3, size, size, dtype=torch.float64)


def hooks_in(model):
    return [m for m in model.modules() if m._forward_hooks or hasattr(m, "parametrizations")]


def test_an_interior_layer_leaves_without_a_trace():
    net, x = small_resnet(), image()
    pruner = prepared(net, {("block1.conv1", "block1.bn1"): [0, 3, 6], ("block2.conv1", "block2.bn1"): [1]})
    state = {k: v.clone() for k, v in net.state_dict().items()}
    small = pruner.convert(x)
    assert relative_error(small(x), net(x)) < TOLERANCE
    other = image(11, 3)
    assert relative_error(small(other), net(other)) < TOLERANCE
    assert not hooks_in(small)
    assert (small.block1.conv1.out_channels, small.block1.conv2.in_channels, small.block2.bn1.num_features) == (5, 5, 7)
    assert fxprune.record(small).reasons == ()
    assert state.keys() == net.state_dict().keys(), "the pruned model was only read"
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert hooks_in(net)


def test_a_channel_of_a_sum_is_removed_when_every_writer_is_pruned():
    net, x = small_resnet(), image()
    writers = [("stem", "norm"), ("block1.conv2", "block1.bn2"), ("block2.conv2", "block2.bn2")]
    pruner = prepared(net, dict(zip(writers, ([0, 1, 2], [0, 2, 5], [0, 2, 4, 7]), strict=True)))
    with pytest.warns(ChannelsStayWarning) as warned:
        small = pruner.convert(x)
    text = str(warned[0].message)
    assert (
        '"stem": 1 pruned outputs stay (1): they are not zero in "block1.conv2.weight", "block2.conv2.weight"' in text
    )
    assert (
        '"block1.conv2": 1 pruned outputs stay (5): they are not zero in "stem.weight", "block2.conv2.weight"' in text
    )
    assert '"block2.conv2": 2 pruned outputs stay (4, 7): ' in text
    assert len(fxprune.record(small).reasons) == 3
    assert (small.stem.out_channels, small.head.in_features) == (6, 6), "0 and 2 went"
    assert relative_error(small(x), net(x)) < TOLERANCE


def test_the_output_of_the_model_stays_as_zeros():
    net, x = small_resnet(), image()
    pruner = prepared(net, {("block1.conv1", "block1.bn1"): [0], "head": [1, 2]})
    with pytest.warns(ChannelsStayWarning, match=r'"head": 2 pruned outputs stay \(1, 2\): output in the model'):
        small = pruner.convert(x)
    assert small.head.out_features == 5
    assert (small(x)[:, [1, 2]] == 0).all()
    assert relative_error(small(x), net(x)) < TOLERANCE
    with pytest.warns(NothingRemovedWarning, match=r'nothing was removed: "stem": 1 pruned outputs stay \(1\)'):
        small = prepared(small_resnet(), {("stem", "norm"): [1]}).convert(x)
    assert small.stem.out_channels == 8


def test_convert_warns_where_nothing_is_pruned():
    pruner = L1Pruner()
    pruner.prepare(small_resnet(), ["stem"])
    with pytest.warns(NothingRemovedWarning, match="nothing was removed: no output is pruned"):
        pruner.convert(image())


def test_a_layer_that_forward_does_not_use():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head, self.unused = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(4, 4)

        def forward(self, x):
            return self.head(torch.relu(self.first(x)))

    pruner = prepared(Unused().eval(), {"first": [1], "unused": [0, 2]})
    with pytest.warns(
        ChannelsStayWarning, match=r'"unused": 2 pruned outputs stay \(0, 2\): forward does not use the layer'
    ):
        small = pruner.convert(torch.randn(1, 4))
    assert small.first.out_features == 5


@pytest.mark.parametrize("path", ["fx", "eager", "export"])
def test_convert_takes_every_path(path):
    net, x = small_resnet(), image()
    pruner = prepared(net, {("block1.conv1", "block1.bn1"): [0, 3, 6]})
    small = pruner.convert(x, path=path)
    assert fxprune.record(small).path == path
    assert relative_error(small(x), net(x)) < TOLERANCE


def test_training_goes_on_in_the_mode_it_was_in():
    net, x = small_resnet().train(), image()
    pruner = prepared(net, {("block1.conv1", "block1.bn1"): [0, 3, 6]})
    small = pruner.convert(x)
    assert small.training
    small(x).sum().backward()
    assert small.block1.conv1.weight.grad.shape == (5, 8, 3, 3)
    assert relative_error(small.eval()(x), net.eval()(x)) > 0, "running statistics moved in training"


def test_zeros_are_removed_after_squash_and_fine_tuning():
    """Zeros that training has filled again are no longer pruned, and say so."""
    net, x = small_resnet(), image()
    pruner = prepared(net, {("block1.conv1", "block1.bn1"): [0, 3], ("block2.conv1", "block2.bn1"): [1, 2]})
    pruner.squash_mask()
    small = pruner.convert(x)
    assert relative_error(small(x), net(x)) < TOLERANCE
    assert (small.block1.conv1.out_channels, small.block2.conv1.out_channels) == (6, 6)
    with torch.no_grad():
        net.block1.conv1.weight[3] = 0.5
        net.block1.bn1.weight[3] = 0.7
    with pytest.warns(
        ChannelsStayWarning,
        match=r'"block1.conv1": 1 pruned outputs stay \(3\): they are not zero in "block1.conv1.weight"',
    ):
        small = pruner.convert(x)
    assert relative_error(small(x), net(x)) < TOLERANCE
    assert (small.block1.conv1.out_channels, small.block2.conv1.out_channels) == (7, 6)


def test_convert_refuses_options_that_the_masks_decide():
    pruner = prepared(small_resnet(), {("block1.conv1", "block1.bn1"): [0, 3]})
    for option in ("masks", "plan", "ratio", "bias", "exact"):
        with pytest.raises(PlanError, match=f"convert takes no {option}"):
            pruner.convert(image(), **{option: None})


class Scaled(nn.Module):
    """A raw parameter is multiplied with every channel, as the layer scales of ConvNeXt."""

    def __init__(self, *, add):
        super().__init__()
        self.first, self.head, self.raw, self.add = nn.Linear(4, 6), nn.Linear(6, 2), nn.Parameter(torch.randn(6)), add

    def forward(self, x):
        x = self.first(x)
        return self.head(x + self.raw if self.add else x * self.raw)


def test_a_raw_parameter_that_scales_is_removed_along():
    net, x = Scaled(add=False).double().eval(), torch.randn(3, 4, dtype=torch.float64)
    small = prepared(net, {"first": [1, 2]}).convert(x)
    assert (small.first.out_features, small.raw.shape) == (4, (4,))
    assert relative_error(small(x), net(x)) < TOLERANCE


def test_grouped_and_depthwise_convolutions():
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1)),
    )
    net, x = randomise(net, 0).double().eval(), image(10)
    pruner = prepared(net, {"0": [1, 6], "4": [0, 1, 4, 5]})
    with pytest.warns(ChannelsStayWarning, match='"0": 2 pruned outputs stay'):
        small = pruner.convert(x)
    assert relative_error(small(x), net(x)) < TOLERANCE
    assert small.get_submodule("6").in_channels == 4


def test_a_depthwise_convolution_reads_what_it_writes():
    """Its own row is not zero, and its channel goes with the one that it reads."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 4, 1))
    net, x = randomise(net, 0).double().eval(), image()
    small = prepared(net, {"0": [1, 6]}).convert(x)
    assert relative_error(small(x), net(x)) < TOLERANCE
    assert (small.get_submodule("2").groups, small.get_submodule("3").in_channels) == (6, 6)


def test_norms_go_on_counting_the_zeros():
    """The layer norm of the hooked model takes its statistics over zeros too, and so does that of the small one."""
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, bias=False), nn.Linear(8, 3))
    net, x = randomise(net, 0).double().eval(), torch.randn(5, 4, dtype=torch.float64)
    net[1].weight.data[[1, 6]] = 0  # what the norm makes of the zeros is read otherwise
    small = prepared(net, {"0": [1, 6]}).convert(x)
    assert relative_error(small(x), net(x)) < TOLERANCE
    assert small.get_submodule("0").out_features == 6


def test_statistics_that_cannot_be_kept_keep_their_channels():
    net = nn.Sequential(nn.Linear(4, 8), nn.Softmax(1), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    net, x = randomise(net, 0).double().eval(), torch.randn(5, 4, dtype=torch.float64)
    pruner = prepared(net, {"0": [1, 6], "2": [0]})
    with pytest.warns(ChannelsStayWarning, match='"0": 2 pruned outputs stay.*a statistic would change'):
        small = pruner.convert(x)
    assert relative_error(small(x), net(x)) < TOLERANCE
    assert (small.get_submodule("0").out_features, small.get_submodule("2").out_features) == (8, 5)


def test_random_small_networks():
    for seed in range(6):
        net, x = small_resnet(seed), image()
        pairs = [(f"block{b}.conv{c}", f"block{b}.bn{c}") for b in (1, 2) for c in (1, 2)] + [("stem", "norm")]
        pruner = RandomPruner(random.uniform(0.2, 0.8), seed=seed)
        pruner.prepare(net, random.sample(pairs, 4))
        pruner.step()
        small = quiet_convert(pruner, x)
        assert relative_error(small(x), net(x)) < TOLERANCE, seed


def quiet_convert(pruner, x, **options):
    """The warnings about what stays belong to the tests that read them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChannelsStayWarning)
        return pruner.convert(x, **options)


def conv_pairs(model):
    """Every convolution with the batch norm that is registered after it."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    return [
        (a, b)
        for (a, m), (b, k) in itertools.pairwise(found)
        if isinstance(m, nn.Conv2d) and isinstance(k, nn.BatchNorm2d)
    ]


def converted(name):
    """A network of torchvision, half of every convolution pruned; the same converted, which is the same function."""
    x = image(64)
    net = randomise(torchvision().models.get_model(name, num_classes=10), 0).double().eval()
    calibrate(net, x, 0)
    pruner = L1Pruner(0.5)
    pruner.prepare(net, conv_pairs(net))
    pruner.step()
    small = quiet_convert(pruner, x)
    assert relative_error(small(x), net(x)) < TOLERANCE
    return net, small, x


def test_resnet18_of_torchvision():
    _, small, _ = converted("resnet18")
    assert all(small.get_submodule(f"layer{i}.0.conv1").out_channels == 2 ** (i + 4) for i in (1, 2, 3, 4))
    assert not hooks_in(small)


# -- what is left of a pruned channel is a constant: folded into what reads it ------------------------------------


def test_fold_biases_that_are_not_pruned():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    net, x = randomise(net, 0).double().eval(), torch.randn(5, 4, dtype=torch.float64)
    pruner = prepared(net, {"0": [0, 1, 2, 5], "2": [1, 4]}, also_prune_bias=False)
    small = pruner.convert(x)
    assert relative_error(small(x), net(x)) < TOLERANCE
    assert (small.get_submodule("0").out_features, small.get_submodule("2").out_features) == (4, 4)


def test_fold_activations_at_zero():
    net = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3))
    net, x = randomise(net, 0).double().eval(), torch.randn(5, 4, dtype=torch.float64)
    pruner = prepared(net, {"0": [0, 1, 2, 5], "2": [1, 4]})
    small = pruner.convert(x)
    assert relative_error(small(x), net(x)) < TOLERANCE
    assert (small.get_submodule("0").out_features, small.get_submodule("2").out_features) == (4, 4)


def test_fold_shifts_of_a_batch_norm_that_is_not_listed():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    net, x = randomise(net, 0).double().eval(), image()
    small = prepared(net, {"0": [0, 1, 2, 5]}).convert(x)
    assert relative_error(small(x), net(x)) < TOLERANCE
    assert small.get_submodule("0").out_channels == 4


def test_fold_through_a_depthwise_convolution():
    modules = (nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8))
    net = randomise(nn.Sequential(*modules, nn.ReLU6(), nn.Conv2d(8, 4, 1)), 0).double().eval()
    x = image()
    small = prepared(net, {("0", "1"): [0, 1, 2, 5]}).convert(x)
    assert relative_error(small(x), net(x)) < TOLERANCE
    assert small.get_submodule("0").out_channels == 4


def test_fold_where_a_constant_meets_a_border_is_right_whatever_is_removed():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 3, padding=1))
    net, x = randomise(net, 0).double().eval(), image()
    small = quiet(lambda: prepared(net, {"0": [0, 1, 2, 5]}).convert(x))
    assert relative_error(small(x), net(x)) < TOLERANCE


def test_fold_a_raw_parameter_that_is_added_is_right_whatever_is_removed():
    net, x = Scaled(add=True).double().eval(), torch.randn(3, 4, dtype=torch.float64)
    small = quiet(lambda: prepared(net, {"first": [1, 2]}).convert(x))
    assert relative_error(small(x), net(x)) < TOLERANCE


@pytest.mark.slow
def test_fold_mobilenet_v2_of_torchvision():
    net, small, x = converted("mobilenet_v2")
    assert fxprune.cost(small, x).params < fxprune.cost(copy.deepcopy(net), x).params


def quiet(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (ChannelsStayWarning, NothingRemovedWarning))
        return make()


def test_the_result_is_proven_against_the_hooked_model(monkeypatch):
    """If what the pass is given is not what the hooks compute, transform is right in its own terms, and convert not."""
    net = randomise(nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 3)), 0).double().eval()
    x, pruner = torch.randn(5, 4, dtype=torch.float64), prepared(net, {"0": [0, 1]})

    def other(model):
        made = plain(model)
        with torch.no_grad():
            made[2].bias[0] += 1e-3
        return made

    monkeypatch.setattr("fxprune.pruner.convert.plain", other)
    with pytest.raises(
        VerificationError, match=r"another function than the pruned one\n.*error is \d.*\n.*squash_mask"
    ):
        pruner.convert(x)
    assert pruner.convert(x, verify=False).get_submodule("0").out_features == 6
