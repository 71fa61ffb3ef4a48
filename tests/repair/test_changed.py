"""The record knows every tensor that a repair changed, and a repair says where it is worth nothing."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import fxprune
from fxprune._record import repaired as plain
from fxprune._repair.original import refitted
from fxprune.capture.tensors import Tensors
from fxprune.files import Field
from fxprune.report.repairs import worse_than_zeros
from tests.repair.test_models import batches
from tests.support import randomise


class Listed(nn.Module):
    """Its biases are no parameters of the modules that have the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(torch.randn(6, 12) / 2), nn.Parameter(torch.randn(12, 5) / 3)])
        self.b = nn.ParameterList([nn.Parameter(torch.randn(12) / 3), nn.Parameter(torch.randn(5) / 3)])
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.tanh(x @ self.w[0] + self.b[0]) @ self.w[1] + self.b[1])


def made(mode: str = "weights") -> tuple[nn.Module, nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = randomise(Listed(), 1).eval()
    data = batches(6)
    small = fxprune.transform(net, data[0], ratio=0.4)
    return net, small, fxprune.repair(small, net, data, mode=mode, **({"steps": 20} if mode == "outputs" else {}))


@pytest.mark.parametrize("mode", ["weights", "bias", "outputs", "norms"])
def test_the_record_names_all_tensors_that_a_repair_changed(mode: str) -> None:
    _, small, done = made(mode)
    before, after = Tensors.of(small), Tensors.of(done)
    found = {name for name in after if not torch.equal(before[name], after[name])}
    changed = fxprune.record(done).repair.changed
    assert bool(found) == (mode != "norms")  # whose statistics are taken back here
    assert found <= {*changed}
    if mode != "outputs":
        assert found == {*changed}
        assert ("b.1" in found, "w.1" in found) == (mode != "norms", mode == "weights")


def test_verify_explains_a_bias_in_a_list_of_its_own() -> None:
    net, _, done = made()
    with pytest.warns(fxprune.OtherWeightsWarning) as caught:
        assert fxprune.verify(net, done, batches(6)[0]) < 1e-9
    assert "since it was repaired" in str(caught[0].message)
    assert "trained since" not in str(caught[0].message)
    with torch.no_grad():
        done.norm.bias += 1  # by a training
    with pytest.warns(fxprune.OtherWeightsWarning, match='not "norm.bias": the model was trained since'):
        fxprune.verify(net, done, batches(6)[0])


def test_a_second_repair_keeps_the_names_of_the_first() -> None:
    net, _, done = made()
    again = fxprune.repair(done, net, batches(6), mode="norms")
    assert {*fxprune.record(done).repair.changed} <= {*fxprune.record(again).repair.changed}


def test_plain_data_have_the_names_and_those_of_old_files_do_not() -> None:
    done = fxprune.record(made()[2]).repair
    data = plain.data_of(done)
    assert plain.repair_of(Field(json.loads(json.dumps(data)), "a file")).changed == done.changed
    del data["changed"]
    old = plain.repair_of(Field(json.loads(json.dumps(data)), "a file"))
    assert old.changed is None
    assert (refitted("w.1", old), refitted("b.1", old), refitted("b.1", done)) == (True, False, True)
    assert done.following(old).changed is None


def test_outputs_that_are_farther_than_zeros_are_told() -> None:
    class Far(nn.Module):
        """Two large numbers whose difference is small, by a weight that cannot be refitted: it is computed."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 2)
            self.w = nn.Parameter(torch.tensor([[100.0, -99.0]] * 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.a(x), self.w * 1.0)

    torch.manual_seed(0)
    net, data = Far().eval(), batches(6)
    with torch.no_grad():
        net.a.weight[1], net.a.bias[1] = net.a.weight[0], net.a.bias[0]
    with pytest.warns(UserWarning, match="farther from those of the original than zeros are. Let less go"):
        small = fxprune.transform(net, data[0], ratio=0.5, repair=data)
    done = fxprune.record(small).repair
    assert done.after > 1
    assert worse_than_zeros(done) in fxprune.record(small).report()


def test_a_repair_that_helps_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = fxprune.record(made()[2]).repair
    assert worse_than_zeros(done) == ""
    assert "repair mode" not in worse_than_zeros(replace(done, after=1.5, mode="outputs"))


def test_a_record_has_the_macs_before_and_after() -> None:
    net, small, _ = made()
    known, x = fxprune.record(small), batches(6)[0]
    assert known.macs == (fxprune.cost(net, x).macs, fxprune.cost(small, x).macs)
    assert known.macs[1] < known.macs[0]
    assert replace(known, cost=None).macs is None
    assert replace(known, cost=(known.cost[0], replace(known.cost[1], macs=None))).macs is None
