"""The peak memory of activations: against sums by hand, against torch's profiler, and of plans against small models."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

import fxprune
from fxprune.costs import PeakMemory, peak_memory
from fxprune.errors import CaptureError, NothingRemovedWarning
from fxprune.fold import resolve_plan
from tests.costs.test_cost import Run, sized
from tests.test_golden import NETWORKS

CASES = {
    "one layer": (nn.Linear(10, 20), sized(3, 10), 3 * 20),
    "a chain holds two at once": (nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 1)), sized(3, 10), 600),
    "in place": (nn.Sequential(nn.Linear(10, 100), nn.ReLU(inplace=True), nn.Linear(100, 1)), sized(3, 10), 303),
    "a view": (nn.Sequential(nn.Linear(10, 100), nn.Flatten(0)), sized(3, 10), 300),
    "a view of a parameter": (nn.Linear(10, 10, bias=False), sized(10), 10),
    "a result is held": (Run(lambda x: (x + 1, (x + 2).sum())), sized(100), 201),
    "a residual": (Run(lambda x: F.relu(F.relu(x)) + x), sized(100), 200),
    "one number of a result": (Run(lambda x: (x + 1)[:1] * (x[0] + 1)), sized(100), 102),
    "lists": (Run(lambda x: torch.cat([x + 1, x + 2])), sized(100), 400),
    "parts that share memory": (Run(lambda x: [part + 1 for part in (x + 1).chunk(2)]), sized(100), 200),
}
"""Name -> a model, its input, and the most numbers of 4 bytes that it holds at once."""


@pytest.mark.parametrize("name", CASES)
def test_the_peak_is_the_sum_of_what_lives_at_once(name: str) -> None:
    model, x, numbers = CASES[name]
    assert peak_memory(model, x) == 4 * numbers


def test_the_profiler_of_torch_sees_the_same_peak() -> None:
    net = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 2))
    x = torch.randn(16, 8)
    with torch.no_grad():
        net(x)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            net(x)
    held, most = 0, 0
    for event in seen.profiler.kineto_results.events():
        held += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, held)
    assert peak_memory(net, x) == most


@pytest.mark.parametrize("path", ["eager", "fx"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_peak_of_a_plan_is_that_of_the_small_model(name: str, path: str) -> None:
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.randn(shape)
    analysis = fxprune.analyze(model, x, path=path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingRemovedWarning)  # class SplitChunk has its sizes in its code
        small = fxprune.transform(model, x, ratio=0.5, verify=False, path=path)
    plan, peak = fxprune.record(small).plan, PeakMemory(analysis)
    assert peak.of() == peak_memory(analysis.captured.module, x)
    assert peak.of(resolve_plan(analysis, plan).removal) == peak_memory(small, x)


def test_the_peak_behind_hooks_counts_what_they_fill_up() -> None:
    model, x = nn.Sequential(nn.Linear(4, 10), nn.ReLU(inplace=True), nn.Linear(10, 3)).eval(), torch.randn(5, 4)
    analysis = fxprune.analyze(model, x, path="hooks")
    plan = analysis.plan(ratio=0.5)
    small = fxprune.transform(model, x, plan=plan, path="hooks")
    peak = PeakMemory(analysis).of(resolve_plan(analysis, plan).removal)
    assert peak == peak_memory(small, x) == 4 * 5 * (5 + 10 + 10)


def test_meta_models_have_a_peak() -> None:
    assert peak_memory(nn.Linear(10, 20, device="meta"), torch.zeros(3, 10, device="meta")) == 240


def test_an_error_of_the_forward_is_shown() -> None:
    with pytest.raises(CaptureError, match="forward raises"):
        peak_memory(nn.Linear(3, 2), torch.zeros(1, 4))
