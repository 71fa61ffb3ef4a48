"""The small model of a random network behaves like the original: class, modes, state, hooks, gradients, next calls.

The networks are made of parts whose behaviour can get lost. An ordinary run draws the same examples every time,
`-m slow` draws `FXPRUNE_EXAMPLES` new ones.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks_behaviour import Course, build_course, course_inputs, courses, method_inputs
from networks_layers import features
from networks_parts import PARTS, PartChoices
from torch import nn

import fxprune
from tests.behaviour import compare_behaviour, differences, fixed_numbers
from tests.support import call

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated:FutureWarning")

ORDINARY = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), max_examples=10
)
MANY = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)

SAID = (fxprune.ChannelsStayWarning, fxprune.ClassLostWarning, fxprune.FixedSizesWarning, fxprune.NotProvenWarning)
"""Warnings about things that may be given up, as long as they are said."""

REQUESTS = st.fixed_dictionaries(
    {
        "ratio": st.sampled_from((0.3, 0.4, 0.5)),
        "seed": st.integers(0, 9),
        "verify": st.booleans(),
    }
)
CARRIED = {"state way hidden", "state way memory"}
"""State of the original's own width, which the small model begins without."""


def small_of(net: nn.Module, x: Any, request: dict[str, Any], methods: dict[str, Any]) -> nn.Module:
    """`transform` by default, of channels whose removal is exact; the plain hidden layer must lose some."""
    with warnings.catch_warnings():
        for category in SAID:
            warnings.simplefilter("ignore", category)
        small = fxprune.transform(net, x, methods=methods, importance="random", exact=True, **request)
    made = fxprune.record(small)
    assert made.removed.get("hidden.weight", {}).get(0), "a plain hidden layer keeps all of its channels"
    assert [reason for reason in made.reasons if "report" in reason] == []
    return small


def behaves(program: Course, request: dict[str, Any], training: bool, warm: bool) -> None:
    net = build_course(program).train(training)
    x = course_inputs(net, program)
    if warm and not CARRIED & features(net):
        with torch.no_grad(), fixed_numbers():
            call(net, x)
    small = small_of(net, x, request, method_inputs(net, program))
    made = fxprune.record(small)
    fresh, methods = (f(net, program, request["seed"] + 1, batch=3) for f in (course_inputs, method_inputs))
    if made.path == "eager":
        assert compare_behaviour(net, small, fresh, methods=methods) == []
        return
    assert made.why_not["eager"].startswith("the class would lose"), made.why_not
    reference = fxprune.masked(net, made.removed)  # a graph that loses more: it has the mode of its example
    with torch.no_grad(), fixed_numbers():
        assert list(differences(call(small, x), call(reference, x))) == []


LAW = {
    "program": courses(),
    "request": REQUESTS,
    "training": st.sampled_from((False, False, True)),
    "warm": st.booleans(),
}


@settings(ORDINARY)
@given(**LAW)
def test_the_small_model_behaves_like_the_original(
    program: Course, request: dict[str, Any], training: bool, warm: bool
) -> None:
    behaves(program, request, training, warm)


def test_courses_are_varied() -> None:
    """Every kind of part, and nearly every way to write it, comes up."""
    seen: Counter[str] = Counter()

    @settings(ORDINARY, max_examples=800)
    @given(program=courses(longest=8))
    def draw(program: Course) -> None:
        seen.update(features(build_course(program)))

    draw()
    assert set(PARTS) <= set(seen)
    assert len(PartChoices.offered) > 100
    missing = PartChoices.offered - set(seen)
    assert len(missing) < 0.1 * len(PartChoices.offered), missing


@pytest.mark.slow
def test_thousands_of_networks_behave_like_the_originals() -> None:
    examples = int(os.environ.get("FXPRUNE_EXAMPLES", "1000"))
    settings(MANY, max_examples=examples)(given(**LAW)(behaves))()
