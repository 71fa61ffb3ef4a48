"""Random networks that do what a graph cannot express: their traced graphs do the same, and so do the smaller ones."""

from __future__ import annotations

import warnings

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import EFFECTS, Program, build, images
from networks_effects import programs_with_effects
from torch import nn

import fxprune
from fxprune.capture.traced import WHOLE, traced_graph
from tests.capture.test_traced import assert_same

_law = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


def _with_effects(net: nn.Module) -> set[str]:
    """The paths of the blocks that a graph cannot express; of a hooked block, the module with the hook."""
    kinds = tuple(EFFECTS.values())
    found = set()
    for path, module in net.named_modules():
        if isinstance(module, kinds):
            found.add(f"{path}.inner" if hasattr(module, "inner") else path)
    return found


@_law
@given(programs_with_effects())
def test_the_graph_does_what_the_network_does(program: Program) -> None:
    net, x = build(program), images(program)
    traced = traced_graph(net)
    assert set(traced.meta[WHOLE]) == _with_effects(net)
    assert_same(net, traced, x)


@_law
@given(programs_with_effects(), st.integers(0, 99))
def test_the_smaller_graph_does_what_the_masked_network_does(program: Program, seed: int) -> None:
    net, x = build(program), images(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.NothingRemovedWarning)
        small = fxprune.transform(
            net, x, ratio=0.5, importance="random", seed=seed, exact=True, verify=False, path="fx"
        )
    made = fxprune.record(small)
    reference = fxprune.masked(net, made.removed)
    for _ in range(2):
        ours, expected = small(x), reference(x)
        torch.testing.assert_close(ours, expected)
    if not expected.requires_grad:
        return
    ours.sum().backward()
    expected.sum().backward()
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    for name, parameter in small.named_parameters():
        grad = gradients[name]
        assert (parameter.grad is None) == (grad is None), name
        if grad is not None:
            for dim, gone in made.removed.get(name, {}).items():
                kept = [i for i in range(grad.shape[dim]) if i not in set(gone)]
                grad = grad.index_select(dim, torch.tensor(kept))
            torch.testing.assert_close(parameter.grad, grad)
