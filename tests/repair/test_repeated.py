"""A repair that is judged by copies of the samples that it fits says so; one with few distinct samples does not."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import fxprune


def pair() -> tuple[nn.Module, nn.Module]:
    """A network and a small one."""
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 20), nn.ReLU(), nn.Linear(20, 3)
    net = nn.Sequential(*layers).eval()
    return net, fxprune.transform(net, torch.randn(2, 2, 5, 5), ratio=0.5)


def warned(samples: Tensor, mode: str = "weights") -> list[str]:
    net, small = pair()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fxprune.repair(small, net, [samples], mode=mode)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("count", [12, 24, 40])
def test_few_samples_that_are_all_distinct_are_no_reason_to_warn(count: int) -> None:
    assert warned(torch.randn(count, 2, 5, 5)) == []


@pytest.mark.parametrize("mode", ["weights", "outputs", "bias"])
def test_samples_that_come_again_are_named_with_the_layer_that_saw_the_fewest_rows(mode: str) -> None:
    (text,) = warned(torch.randn(8, 2, 5, 5).repeat(10, 1, 1, 1), mode=mode)
    seen = "16 of the 16 samples that judge the repair are among the 8 distinct samples that it fits"
    assert text.startswith(f"{seen}, and show nothing of other inputs: ")
    assert '"3.weight" keeps 36 inputs and saw 8 distinct rows' in text
    assert text.endswith("may be worse than before on others. Pass distinct samples, some hundred")


def test_copies_do_no_harm_where_every_layer_saw_rows_enough() -> None:
    assert warned(torch.randn(80, 2, 5, 5).repeat(4, 1, 1, 1)) == []


def test_some_copies_among_the_judges_are_no_reason_to_warn() -> None:
    samples = torch.randn(40, 2, 5, 5)
    samples[:6] = samples[:1]
    assert warned(samples) == []


def test_the_last_layer_alone_is_named_where_the_others_saw_enough() -> None:
    texts = warned(torch.randn(16, 2, 5, 5).repeat(4, 1, 1, 1))
    assert len(texts) == 1
    assert '"0.weight"' not in texts[0]
