"""The set of pruned outputs behaves like a set, and is stored in the mask."""

from __future__ import annotations

import random

import pytest
import torch

from fxprune.errors import PlanError
from fxprune.pruner import OriginalOutputs, PruningParametrization, ZeroesParametrization


def test_pruned_outputs_behave_like_a_set():
    """The same random operations on both, and the mask, the kept positions and the set agree after each."""
    param, reference = PruningParametrization(20), set()
    operations = {
        "update": lambda s, some: s.update(some),
        "difference_update": lambda s, some: s.difference_update(some),
        "add": lambda s, some: s.add(next(iter(some))),
        "discard": lambda s, some: s.discard(next(iter(some))),
        "clear": lambda s, some: s.clear(),
        "ior": lambda s, some: s.__ior__(some),
        "isub": lambda s, some: s.__isub__(some),
        "iand": lambda s, some: s.__iand__(some),
        "ixor": lambda s, some: s.__ixor__(some),
    }
    for _ in range(300):
        name = random.choice(list(operations))
        some = set(random.sample(range(20), random.randint(1, 8)))
        if len(reference | some) == 20:
            continue
        for target in (param.pruned_outputs, reference):
            operations[name](target, some)
        assert param.pruned_outputs == reference, name
        assert sorted(param.pruned_outputs) == sorted(reference)
        assert len(param.pruned_outputs) == len(reference)
        assert [i in param.pruned_outputs for i in range(-1, 21)] == [i in reference for i in range(-1, 21)]
        assert param.mask.tolist() == [i not in reference for i in range(20)]
        assert param.kept.tolist() == [i for i in range(20) if i not in reference]


def test_it_can_be_assigned_to():
    param = PruningParametrization(6)
    param.pruned_outputs = {1, 2}
    param.pruned_outputs -= {1}
    param.pruned_outputs |= [4]
    assert param.pruned_outputs == {2, 4}
    param.pruned_outputs = param.pruned_outputs
    assert repr(param.pruned_outputs) == "{2, 4}"
    param.pruned_outputs.remove(2)
    with pytest.raises(KeyError):
        param.pruned_outputs.remove(2)
    copied = param.pruned_outputs.copy()
    param.pruned_outputs.clear()
    assert copied == {4}
    assert not param.pruned_outputs


def test_it_takes_tensors_of_indices_and_nothing_else():
    param = ZeroesParametrization(6)
    param.pruned_outputs.update(torch.tensor([[1, 2], [5, 1]]), [3], range(0))
    assert param.pruned_outputs == {1, 2, 3, 5}
    for wrong, kind in ((torch.tensor([True, False]), "bool"), ([1.5], "float32")):
        with pytest.raises(PlanError, match=f"pruned outputs must be integers\n.*{kind}"):
            param.pruned_outputs.update(wrong)
    for wrong in (6, -1):
        with pytest.raises(PlanError, match=f"no output {wrong} to prune\n.*the outputs 0 to 5"):
            param.pruned_outputs.add(wrong)
    assert param.pruned_outputs == {1, 2, 3, 5}


def test_one_output_stays():
    param = PruningParametrization(3)
    param.pruned_outputs.add(0)
    with pytest.raises(PlanError, match=r"all 3 outputs would be pruned\n.*cannot be empty\n.*keep at least one"):
        param.pruned_outputs.update([1, 2])
    assert param.pruned_outputs == {0}
    assert param.kept.tolist() == [1, 2]


def test_all_outputs_are_a_set_and_a_sequence():
    outputs = OriginalOutputs(5)
    assert outputs == set(range(5))
    assert outputs - {1, 2} == {0, 3, 4}
    assert {7} | outputs == {0, 1, 2, 3, 4, 7}
    assert (outputs[1], list(outputs[2:]), len(outputs)) == (1, [2, 3, 4], 5)
    assert set(random.sample(outputs, 5)) == outputs
