"""Training that goes on where branches are dropped: in place, in steps, with optimizers and a repair."""

from __future__ import annotations

import torch

import fxprune
from tests.depth.models import Residuals, made
from tests.depth.test_drop import IMAGE


def data():
    return list(torch.randn(48, 3, 8, 8, dtype=torch.double).split(8))


def test_a_repair_refits_what_reads_the_sum():
    model, x = made(Residuals), torch.randn(IMAGE, dtype=torch.double)
    cut = fxprune.transform(model, x, drop="layer1.1")
    repaired = fxprune.transform(model, x, drop="layer1.1", repair=data())
    test = torch.randn(64, 3, 8, 8, dtype=torch.double)
    errors = [(m(test) - model(test)).norm() for m in (cut, repaired)]
    assert errors[1] < 0.3 * errors[0]


def test_an_optimizer_loses_the_parameters_of_the_branch():
    model, x = made(Residuals).train(), torch.randn(IMAGE, dtype=torch.double)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model(x).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    fxprune.transform_(model, x, drop="layer1.1", optimizer=optimizer)
    held = optimizer.param_groups[0]["params"]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert all(p in optimizer.state for p in held)
    model(x).sum().backward()
    optimizer.step()


def test_a_pruner_in_steps_drops_branches_in_the_first_and_goes_on():
    model, x = made(Residuals), torch.randn(IMAGE, dtype=torch.double)
    pruner = fxprune.GradualPruner(model, x, keep={"macs": 0.4}, steps=2, drop=["layer1.1"])
    first, second = pruner.step(), pruner.step()
    assert [one.name for one in first.plan.dropped] == ["layer1.1"]
    assert second.plan is not None
    assert second.plan.dropped == ()
    assert second.after.macs <= 0.4 * first.before.macs
    again = made(Residuals)
    other = fxprune.GradualPruner(again, x, keep={"macs": 0.4}, steps=2, drop=["layer1.1"])
    other.load_state_dict(pruner.state_dict())
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))
