"""Findings are values: an operation on them gives other findings, and never changes them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.analysis.findings import Findings
from fxprune.analysis.lock_channels import lock_channels
from fxprune.errors import RewriteError
from fxprune.rewrite.norms import preserve


class Net(nn.Module):
    """Two widths, the second under a layer norm."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(3, 8), nn.Linear(8, 6), nn.LayerNorm(6)
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.norm(self.second(self.first(x).relu())))


def answers(findings):
    """All that a caller can see of groups, reasons, locks and events."""
    groups = [
        (g.name, g.kind, g.size, g.exact, g.reasons, [(m.parameter, m.dim, m.slots.tolist()) for m in g.members])
        for g in findings.groups
    ]
    held = [findings.solution.locked_slots_in(axis.vector) for axis in findings.axes]
    return groups, [str(locked) for locked in findings.locked], findings.events, findings.inexact.tolist(), held


@pytest.fixture(params=["asked before", "asked afterwards"])
def findings(request):
    found = fxprune.analyze(Net(), torch.randn(2, 3), path="fx")
    if request.param == "asked before":
        answers(found)
    return found


def expected():
    return answers(fxprune.analyze(Net(), torch.randn(2, 3), path="fx"))


def refusal(findings, name):
    vector = next(axis.vector for axis in findings.axes if (axis.parameter, axis.dim) == (name, 0))
    return RewriteError("cannot", node="second", vectors=(vector,), why="its sizes are written down")


def test_holding_channels_gives_other_findings_and_leaves_these(findings):
    held = lock_channels(findings, refusal(findings, "first.weight"))
    assert type(held) is type(findings)
    assert [group.name for group in held.groups] == ["second"]
    assert held.locked[0].event is held.events[-1]
    assert "its sizes are written down" in held.locked[0].event.why
    assert len(held.events) == len(findings.events) + 1
    assert answers(findings) == expected()


def test_holding_twice_holds_both(findings):
    once = lock_channels(findings, refusal(findings, "first.weight"))
    seen = answers(once)
    twice = lock_channels(once, refusal(once, "second.weight"))
    assert not twice.groups
    assert answers(once) == seen
    assert lock_channels(twice, refusal(twice, "second.weight")) is None
    assert answers(findings) == expected()


def test_preserving_statistics_gives_other_findings_and_leaves_these(findings):
    preserved = preserve(findings)
    assert type(preserved) is type(findings)
    assert [group.exact for group in preserved.groups] == [True, True]
    assert [group.exact for group in findings.groups] == [True, False]
    assert findings.preserved is None
    assert set(preserved.preserved) == {"norm"}
    assert answers(findings) == expected()


def test_what_is_locked_in_other_terms_is_free_in_the_first():
    terms = fxprune.channels.terms.Terms()
    first, second, unseen = terms.fresh(4), terms.fresh(4), terms.fresh(4)
    terms.same(first, second)
    before = terms.free(first).tolist()
    other = terms.with_locked([first.take(np.arange(2)), unseen], 7)
    assert terms.free(first).tolist() == terms.free(second).tolist() == before
    assert other.free(second).tolist() == before[2:]
    assert other.event(np.array(before)).tolist() == [7, 7, 0, 0]
    assert len(terms.free(unseen)) == 4  # atoms that are made later do not change the others
    terms.lock(second, 5)
    assert other.free(second).tolist() == before[2:]


def test_no_attribute_can_be_set(findings):
    for part in (findings, findings.subject, findings.observed, findings.table, findings.solution):
        for field in dataclasses.fields(part):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(part, field.name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        findings.anything = 1


def test_an_analysis_is_findings_with_methods(findings):
    assert isinstance(findings, Findings)
    own = {"_call", "_form"}  # the arguments of `analyze`, and the form that the model had
    assert {f.name for f in dataclasses.fields(Findings)} | own == {f.name for f in dataclasses.fields(findings)}
