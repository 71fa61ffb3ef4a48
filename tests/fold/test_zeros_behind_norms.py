"""Channels without weights behind norms that take a statistic of the input: the function stays the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.fold.test_folding import difference, images, ready

INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
CONVOLUTION = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def network(norm: nn.Module, gone: list[int], *, space: int = 2, bias: bool = True, padding: int = 0) -> nn.Module:
    """Convolution, norm, activation, convolution, where some channels of the first have a bias and no weights."""
    conv = CONVOLUTION[space]
    layers = (conv(3, 8, 3, bias=bias), norm, nn.SiLU(), conv(8, 4, 3, padding=padding), nn.ReLU(), conv(4, 2, 1))
    net = ready(nn.Sequential(*layers))
    with torch.no_grad():
        net.get_parameter("0.weight")[gone] = 0
    return net


def without_zeros(net: nn.Module, x: Tensor) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.NothingRemovedWarning)
        return fxprune.transform(net, x, masks="zeros")


def remaining(net: nn.Module, *inputs: Tensor) -> int:
    """The channels of the first layer that stay, in a model that computes the same for inputs of all sizes."""
    small = without_zeros(net, inputs[0])
    for x in inputs:
        assert difference(small(x), net(x)) < 1e-12
        assert fxprune.verify(net, small, x) < 1e-12
    count = small.get_parameter("0.weight").shape[0]
    assert small.get_parameter("3.weight").shape[1] == count
    return count


@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "norm",
    [
        lambda space: nn.GroupNorm(8, 8),
        lambda space: nn.GroupNorm(8, 8, affine=False),
        lambda space: INSTANCE[space](8),
        lambda space: INSTANCE[space](8, affine=True),
        lambda space: INSTANCE[space](8, affine=True, track_running_stats=True),
    ],
    ids=["group", "group without affine", "instance", "instance with affine", "instance with running statistics"],
)
def test_a_constant_channel_is_removed_behind_a_norm_of_single_channels(
    norm: Callable[[int], nn.Module], bias: bool, space: int
) -> None:
    net = network(norm(space), [1, 4, 6], bias=bias, space=space)
    small, large = (7,) * space, (9, 8, 7)[:space]
    assert remaining(net, images(2, 3, *small), images(3, 3, *large, seed=1)) == 5


@pytest.mark.parametrize("norm", [nn.GroupNorm(8, 8), nn.InstanceNorm2d(8, affine=True)])
def test_constants_behind_a_norm_take_a_carrier_near_a_border(norm: nn.Module) -> None:
    net = network(norm, [1, 4, 6], padding=1)
    assert remaining(net, images(2, 3, 9, 9), images(2, 3, 6, 7, seed=1)) == 6
    mapped = fxprune.transform(net, images(2, 3, 9, 9), masks="zeros", border="map", prefer="graph")
    assert mapped.get_parameter("0.weight").shape[0] == 5
    assert difference(mapped(images(2, 3, 9, 9)), net(images(2, 3, 9, 9))) < 1e-12


@pytest.mark.parametrize(("gone", "stay"), [([2, 3], 6), ([2, 3, 6, 7], 4), ([3], 8), ([1, 2, 3], 6)])
def test_a_group_is_removed_when_all_of_its_channels_are_constant(gone: list[int], stay: int) -> None:
    net = network(nn.GroupNorm(4, 8), gone)
    with torch.no_grad():
        net.get_parameter("0.bias").uniform_(-2, 2)  # the constants of a group differ, and its result with them
    assert remaining(net, images(2, 3, 9, 9), images(1, 3, 6, 11, seed=1)) == stay


@pytest.mark.parametrize(("groups", "stay"), [(8, 5), (4, 8)])
def test_an_affine_weight_of_zero_makes_a_constant_of_what_depends(groups: int, stay: int) -> None:
    net = network(nn.GroupNorm(groups, 8), [])
    with torch.no_grad():
        net.get_parameter("1.weight")[[0, 3, 5]] = 0
    assert remaining(net, images(2, 3, 9, 9), images(1, 3, 6, 11, seed=1)) == stay


def test_a_constant_that_is_another_one_near_the_border_stays_before_a_statistic() -> None:
    """The mean over such a plane follows the size of the image."""
    net = ready(
        nn.Sequential(
            *(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 8, 3, padding=1), nn.GroupNorm(8, 8), nn.SiLU(), nn.Conv2d(8, 2, 1))
        )
    )
    with torch.no_grad():
        net.get_parameter("0.weight")[2] = 0  # a constant plane, which the padding breaks
        net.get_parameter("1.weight")[[0, 6]] = 0
        net.get_parameter("1.weight")[[0, 6], 2] = 1
    x, larger = images(2, 3, 7, 7), images(2, 3, 11, 9, seed=1)
    small = without_zeros(net, x)
    assert small.get_parameter("1.weight").shape[0] == 8
    for inputs in (x, larger):
        assert difference(small(inputs), net(inputs)) < 1e-12


def test_instance_norm_runs_on_a_single_image_without_batch() -> None:
    net = network(nn.InstanceNorm2d(8), [0, 7])
    assert remaining(net, images(3, 9, 9)) == 6


@pytest.mark.parametrize("norm", [nn.GroupNorm(8, 8), nn.InstanceNorm2d(8, affine=True)])
def test_any_channel_folds_behind_a_norm_of_single_channels(norm: nn.Module) -> None:
    net = network(norm, [])
    small = fxprune.transform(net, images(2, 3, 9, 9), ratio={"0*": 0.5, "*": 0.0}, bias="fold")
    assert small.get_parameter("0.weight").shape[0] == 4
    assert fxprune.verify(net, small, images(1, 3, 7, 12, seed=1)) < 1e-12


@pytest.mark.parametrize(
    ("norm", "stay"),
    [
        (lambda: nn.BatchNorm2d(8), 5),
        (lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True), 8),
        (lambda: nn.BatchNorm2d(8, track_running_stats=False), 5),
        (lambda: nn.GroupNorm(8, 8), 5),
    ],
    ids=["batch", "instance with running statistics", "batch without running statistics", "group"],
)
def test_a_model_in_training_folds_the_constants_of_evaluation(norm: Callable[[], nn.Module], stay: int) -> None:
    net = network(norm(), [1, 4, 6]).train()
    x = images(2, 3, 9, 9)
    small = without_zeros(net, x)
    assert small.get_parameter("0.weight").shape[0] == stay
    assert difference(small.eval()(x), net.eval()(x)) < 1e-12
