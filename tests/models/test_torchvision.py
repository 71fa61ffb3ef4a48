"""Every classification model of torchvision that is not a transformer: 30 % of every group are removed, at random.

The other models of torchvision, and a harness that runs all with less detail, are in `test_zoo.py`.

The oracle knows none of the package's rules: the original with every removed slot of every parameter and buffer set
to zero. It is asked where removal changes no statistic (`exact=True`); with all groups, `fxprune.verify` compares
with a reference that takes the statistics over the kept channels. Everything is float64, and statistics, biases,
affines and layer scales are random, so that an error of one channel in one layer shows.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from tests.models import torchvision_zoo
from tests.models.zoo import SEED
from tests.support import relative_error, torchvision, uninitialised

models = torchvision().models

TOLERANCE = 1e-9
TRANSFORMERS = ("vit", "swin", "maxvit")
NAMES = [n for n in models.list_models(module=models) if not n.startswith(TRANSFORMERS)]
# Its float64 weights take 5.2 GB, and original, reference and result are alive together: shapes only, see below.
TOO_BIG = {"regnet_y_128gf"}
REPRESENTATIVE = set(
    """alexnet resnet18 resnext50_32x4d googlenet squeezenet1_1 mobilenet_v3_small shufflenet_v2_x0_5 efficientnet_b0
    convnext_tiny""".split()
)
# Auxiliary heads eat the border of smaller images.
AUXILIARY_PIXELS = {"googlenet": 64, "inception_v3": 299}


@dataclass
class Subject:
    """A model in evaluation mode, its example input and what the pass found in it."""

    model: nn.Module
    x: torch.Tensor
    analysis: fxprune.Analysis


def build(name: str, shape: tuple[int, ...], **options: Any) -> tuple[nn.Module, torch.Tensor]:
    model, (x,) = torchvision_zoo.build(name, shape, **options)
    return model, x


def slow_unless_representative(names: list[str]) -> list[Any]:
    return [n if n in REPRESENTATIVE else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.fixture(scope="module", params=slow_unless_representative([n for n in NAMES if n not in TOO_BIG]))
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    model, x = build(request.param, torchvision_zoo.SHAPES.get(request.param, (2, 3, 64, 64)))
    yield Subject(model, x, fxprune.analyze(model, x))
    del model
    gc.collect()  # the next one may need the memory


@pytest.mark.one_in(2)
def test_equals_the_masked_original(subject: Subject) -> None:
    model, x = subject.model, subject.x
    plan = subject.analysis.plan(ratio=0.3, importance="random", seed=SEED, exact=True)
    small = fxprune.transform(model, x, plan=plan, verify=False)
    check_structure(model, small, x)
    assert fxprune.record(small).exact
    with torch.no_grad():
        reference = fxprune.masked(model, fxprune.record(small).removed)(x)
        assert relative_error(small(x), reference) < TOLERANCE
        assert relative_error(model(x), reference) > 1e-3  # the removed channels mattered
        assert relative_error(reference[1], reference[0]) > 1e-4  # and so do the kept ones


@pytest.mark.one_in(2)
def test_equals_its_reference_with_every_group(subject: Subject) -> None:
    model, x = subject.model, subject.x
    plan = subject.analysis.plan(ratio=0.3, importance="random", seed=SEED)
    small = fxprune.transform(model, x, plan=plan, verify=False)
    check_structure(model, small, x)
    assert fxprune.verify(model, small, x) < TOLERANCE
    assert fxprune.record(small).exact == all(g.exact for g in subject.analysis.groups)


def check_structure(model: nn.Module, small: nn.Module, x: torch.Tensor) -> None:
    """The same class with the same tensors, fewer parameters, and the same output shape."""
    assert type(small) is type(model)
    assert fxprune.record(small).path == "eager"
    assert list(small.state_dict()) == list(model.state_dict())
    assert parameters(small) < 0.75 * parameters(model)
    with torch.no_grad():
        assert small(x).shape == (2, 1000)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# -- auxiliary heads: traced in training mode, or the graph has none ------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_pruned_in_training_mode(name: str) -> None:
    pixels = AUXILIARY_PIXELS[name]
    model, x = build(name, (2, 3, pixels, pixels), aux_logits=True)
    model.train()
    small = fxprune.transform(model, x, ratio=0.3, importance="random", seed=SEED, verify=False)
    removed = fxprune.record(small).removed
    assert fxprune.verify(model, small, x) < TOLERANCE
    assert list(small.state_dict()) == list(model.state_dict())
    assert any("aux" in parameter.lower() for parameter in removed)
    assert small.training
    masked = fxprune.masked(model, removed)
    with torch.no_grad():
        still = [outputs_without_noise(m)(x) for m in (small, masked)]
        assert len(still[1]) == (3 if name == "googlenet" else 2)  # the logits and those of the auxiliary heads
        assert relative_error(*still) < TOLERANCE
        # a graph keeps its outputs in every mode, the original class drops the heads in evaluation mode
        assert relative_error(small.eval()(x)[0], masked.eval()(x)) < TOLERANCE


def outputs_without_noise(model: nn.Module) -> nn.Module:
    """The model in training mode, its batch norms and dropouts in evaluation mode."""
    model.train()
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.Dropout)):
            module.eval()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out_in_evaluation_mode(name: str) -> None:
    model, x = build(name, (2, 3, 96, 96), aux_logits=True)
    small = fxprune.transform(model, x, ratio=0.3, importance="random", seed=SEED)
    assert [k for k in model.state_dict() if not k.lower().startswith("aux")] == list(small.state_dict())
    assert any("AuxLogits" in reason or "aux1" in reason for reason in fxprune.record(small).reasons)
    with torch.no_grad():
        reference = fxprune.masked(model, used_only(small, fxprune.record(small).removed))(x)
        assert relative_error(small(x), reference) < TOLERANCE


def used_only(small: nn.Module, removed: Any) -> dict[str, Any]:
    return {name: dims for name, dims in removed.items() if name in small.state_dict()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_transformed_inputs_keep_their_three_colours(name: str) -> None:
    model, x = build(name, (2, 3, 96, 96), transform_input=True)
    small = fxprune.transform(model, x, ratio=0.3, importance="random", seed=SEED)
    with torch.no_grad():
        assert relative_error(small(x), fxprune.masked(model, fxprune.record(small).removed)(x)) < TOLERANCE


# -- the model that does not fit: on the meta device, shapes only ---------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TOO_BIG))
def test_structure_without_weights(name: str) -> None:
    with uninitialised(device="meta"):
        model = models.get_model(name).to("meta").eval()
    x = torch.empty(2, 3, 64, 64, dtype=torch.float64, device="meta")
    small = fxprune.transform(model, x, ratio=0.3, importance="random", seed=SEED, exact=True)
    check_structure(model, small, x)
    assert all(t.device.type == "meta" for t in small.state_dict().values())
    removed = fxprune.record(small).removed
    for key, tensor in model.state_dict().items():
        kept = [size - len(removed.get(key, {}).get(dim, ())) for dim, size in enumerate(tensor.shape)]
        assert list(small.state_dict()[key].shape) == kept


# -- rounding -------------------------------------------------------------------------------------------------


def test_widths_are_multiples_of_eight(subject: Subject) -> None:
    """With `round_to=8` every width is a multiple of 8, but for the widths that some group of few channels decides.

    A group of at least 8 channels keeps a multiple of 8, one of fewer stays whole. A width is a sum (concatenation)
    of products (the blocks of a grouped convolution times their width) of such numbers. So it is a multiple of 8
    when each of its slots belongs to a group of at least 8 channels; of the two groups of a grid one suffices. Slots
    that belong to no group are the model's input and output.
    """
    plan = subject.analysis.plan(ratio=0.5, importance="random", seed=SEED, round_to=8)
    small = fxprune.transform(subject.model, subject.x, plan=plan, verify=False)
    largest = largest_groups(subject.analysis)
    widths = 0
    for name, before in subject.model.named_modules():
        if not isinstance(before, (nn.Conv2d, nn.Linear)):
            continue
        after = small.get_submodule(name)
        for attribute, old, new, sizes in layer_widths(before, after, largest, name):
            if sizes.min() >= 8:
                assert new % 8 == 0, f"{name}.{attribute}: {old} -> {new}"
                assert new <= old
                widths += 1
            elif sizes.max() < 8:
                assert new == old, f"{name}.{attribute}: {old} -> {new}, its groups have fewer than 8 channels"
    assert widths > 2


def largest_groups(analysis: fxprune.Analysis) -> dict[tuple[str, int], Any]:
    """For each slot of each parameter dimension the size of the largest group it belongs to, 0 for none."""
    table: dict[tuple[str, int], Any] = {}
    for group in analysis.groups:
        for member in group.members:
            key = (member.parameter, member.dim)
            sizes = table.setdefault(key, np.zeros(member.tensor.shape[member.dim], dtype=np.int64))
            sizes[member.slots] = np.maximum(sizes[member.slots], group.size)
    return table


def layer_widths(
    before: nn.Conv2d | nn.Linear, after: Any, largest: dict[tuple[str, int], Any], name: str
) -> list[tuple[str, int, int, Any]]:
    """Yields for each width of a layer: its name, its old and new value, and the sizes of its groups."""
    none = [np.zeros(size, dtype=np.int64) for size in before.weight.shape[:2]]
    out, per_block = (largest.get((f"{name}.weight", dim), none[dim]) for dim in (0, 1))
    if isinstance(before, nn.Linear):
        return [
            ("out_features", before.out_features, after.out_features, out),
            ("in_features", before.in_features, after.in_features, per_block),
        ]
    # the input of a grouped convolution is a grid, blocks x per_block; the blocks open the output's rows
    into = per_block if before.groups == 1 else np.maximum(out.reshape(before.groups, -1).min(1)[:, None], per_block)
    return [
        ("out_channels", before.out_channels, after.out_channels, out),
        ("in_channels", before.in_channels, after.in_channels, into.reshape(-1)),
    ]


def test_every_family_is_covered() -> None:
    assert set(NAMES) >= REPRESENTATIVE | TOO_BIG
    assert len(NAMES) > 60
    assert math.isclose(relative_error(torch.ones(3), torch.full((3,), 2.0)), 0.5)
    assert relative_error(torch.ones(3), torch.ones(4)) == math.inf
    assert relative_error(torch.tensor([math.nan]), torch.ones(1)) == math.inf
