"""A program of `torch.export` comes back as one, with the names, the open sizes and the structures that it had."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import fxprune
from tests.support import randomise, relative_error

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated:FutureWarning")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)
        self.register_buffer("scale", torch.rand(8), persistent=False)

    def forward(self, x, *, shift):
        h = self.stem(x).mean((2, 3)) * self.scale
        return {"logits": self.head(h) + shift, "hidden": (h.sum(1),)}


class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x, y):
        h = sum(torch.tanh(self.a(x[:, t])) for t in range(x.shape[1]))
        return self.b(h + self.a(y).sum(1))


def net():
    return randomise(Net().double().eval(), 0)


def inputs(batch=2, height=8):
    return (torch.randn(batch, 3, height, 8).double(),), {"shift": torch.randn(4).double()}


def exported(model, **sizes):
    args, kwargs = inputs()
    return torch.export.export(model, args, kwargs, dynamic_shapes={"x": sizes or None, "shift": None})


def arguments(values):
    """The inputs for `transform`: this model takes its second argument by keyword only."""
    return {"x": values[0][0], **values[1]}


def test_a_program_comes_back_as_a_program():
    model = net()
    program = exported(model)
    small = fxprune.transform(program, arguments(inputs()), ratio=0.5)
    assert type(small) is torch.export.ExportedProgram
    assert list(small.state_dict) == list(program.state_dict)
    assert [s.arg.name for s in small.graph_signature.input_specs][-2:] == ["x", "shift"]
    assert small.call_spec.out_spec == program.call_spec.out_spec
    made = fxprune.record(small)
    assert made.after["stem.0.weight"] == (4, 3, 3, 3)
    args, kwargs = inputs()
    reference = fxprune.masked(model, made.removed)
    got, want = small.module()(*args, **kwargs), reference(*args, **kwargs)
    assert relative_error(pytree.tree_leaves(got), pytree.tree_leaves(want)) < 1e-12
    assert program.state_dict["stem.0.weight"].shape == (8, 3, 3, 3), "the original is only read"


def test_open_sizes_and_their_ranges_stay():
    batch = torch.export.Dim("batch", max=16)
    program = torch.export.export(
        net(), *inputs(), dynamic_shapes={"x": {0: batch, 2: torch.export.Dim.AUTO}, "shift": None}
    )
    small = fxprune.transform(program, arguments(inputs()), ratio=0.5)
    bounds = [sorted(map(str, p.range_constraints.values())) for p in (small, program)]
    assert bounds[0] == bounds[1]
    args, kwargs = inputs(5, 11)
    assert small.module()(*args, **kwargs)["logits"].shape == (5, 4)
    args, kwargs = inputs(17)
    with pytest.raises(AssertionError, match="Guard failed"):
        small.module()(*args, **kwargs)


def test_sizes_that_are_equal_or_fixed_stay_so():
    x, y = torch.randn(2, 5, 4).double(), torch.randn(2, 7, 4).double()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    program = torch.export.export(Steps().double(), (x, y), dynamic_shapes=({0: batch}, {0: batch, 1: length}))
    small = fxprune.transform(program, (x, y), ratio=0.5)
    run = small.module()
    assert run(torch.randn(3, 5, 4).double(), torch.randn(3, 9, 4).double()).shape == (3, 2)
    for shapes in (((2, 6, 4), (2, 7, 4)), ((2, 5, 4), (3, 7, 4))):
        with pytest.raises((AssertionError, RuntimeError)):
            run(*(torch.randn(shape).double() for shape in shapes))


def test_what_takes_a_model_takes_a_program():
    program, given = exported(net()), arguments(inputs())
    plan = fxprune.analyze(program, given).plan(ratio=0.5)
    small = fxprune.transform(program, given, plan=plan)
    assert fxprune.record(small).plan.removed == plan.removed
    assert fxprune.cost(small, given).params < fxprune.cost(program, given).params
    assert fxprune.verify(program, small, given) < 1e-12
    again = fxprune.transform(small, given, ratio=0.5)
    both = fxprune.record(small).then(fxprune.record(again))
    assert len(both.removed["stem.0.weight"][0]) == 6


def test_a_program_that_was_saved_and_loaded_is_pruned_and_saved():
    file = io.BytesIO()
    torch.export.save(exported(net()), file)
    file.seek(0)
    program = torch.export.load(file)
    small = fxprune.transform(program, arguments(inputs()), ratio=0.5)
    file = io.BytesIO()
    torch.export.save(small, file)
    file.seek(0)
    args, kwargs = inputs()
    got, want = torch.export.load(file).module()(*args, **kwargs), small.module()(*args, **kwargs)
    assert torch.equal(got["logits"], want["logits"])


def test_a_program_without_a_record_says_so():
    with pytest.raises(fxprune.FxpruneError, match="this ExportedProgram has no record"):
        fxprune.record(exported(net()))


def test_saving_a_program_names_the_function_of_torch(tmp_path):
    with pytest.raises(fxprune.FileError, match=r"torch.export.save\(program, path\)"):
        fxprune.save(exported(net()), tmp_path / "small.safetensors")


def test_running_statistics_of_a_program_in_training_mode_go_on():
    program = exported(net().train())
    small = fxprune.transform(program, arguments(inputs()), ratio=0.5)
    run, (args, kwargs) = small.module(), inputs()
    before = copy.deepcopy(run.get_buffer("stem.1.running_mean"))
    run(*args, **kwargs)
    assert run.get_buffer("stem.1.running_mean").shape == (4,)
    assert not torch.equal(run.get_buffer("stem.1.running_mean"), before)
