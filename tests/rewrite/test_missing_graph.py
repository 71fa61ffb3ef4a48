"""A result of the model's own class says how to get a graph, and is in every other way the class that it is."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import fxprune
from fxprune.rewrite.missing_graph import explain_missing_graph


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("empty", None)

    def forward(self, x):
        return self.b(torch.relu(self.a(x))) * self.scale


class WithCode(Net):
    def __init__(self):
        super().__init__()
        self.code = "own"


class WithGraph(Net):
    graph = 3


def explained(model):
    explain_missing_graph(model)
    return model.eval()


@pytest.mark.parametrize("name", ["graph", "code"])
@pytest.mark.parametrize("again", [lambda m: m, copy.copy])
def test_the_error_names_the_option_that_gives_a_graph(name, again):
    small = again(explained(Net()))
    with pytest.raises(AttributeError, match=rf'this Net has no {name}: .* prefer="graph"'):
        getattr(small, name)
    assert not hasattr(small, name)
    assert getattr(small, name, 5) == 5


def test_other_missing_attributes_raise_as_before():
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'grap'"):
        explained(Net()).grap  # noqa: B018


def test_an_attribute_that_is_set_later_is_read():
    small = explained(Net())
    small.graph = nn.Linear(2, 2)
    small.code = nn.Parameter(torch.ones(1))
    assert isinstance(small.graph, nn.Linear)
    assert small.code.numel() == 1
    del small.graph
    assert not hasattr(small, "graph")
    small.register_buffer("graph", torch.ones(3))
    assert small.graph.numel() == 3


@pytest.mark.parametrize("kind", [WithCode, WithGraph])
def test_a_class_with_such_an_attribute_is_left_alone(kind):
    model = explained(kind())
    assert type(model.__dict__["_buffers"]) is dict


def test_a_pickle_and_a_deep_copy_are_plain():
    small = explained(Net())
    for other in (pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):
        assert type(other.__dict__["_buffers"]) is dict
        assert list(other.state_dict()) == list(small.state_dict())
        assert other.scale is not small.scale


def test_torch_compiles_exports_and_scripts_it():
    small, x = explained(Net()), torch.randn(3, 4)
    want = small(x)
    made = {
        "compile": torch.compile(small, backend="eager", fullgraph=True),
        "export": torch.export.export(small, (x,)).module(),
        "functional": lambda x: torch.func.functional_call(small, dict(small.state_dict()), (x,)),
    }
    with warnings.catch_warnings():
        for deprecated in (DeprecationWarning, FutureWarning):  # before torch 2.14, and from there on
            warnings.simplefilter("ignore", deprecated)
        made |= {"script": torch.jit.script(small), "trace": torch.jit.trace(small, x)}
    for name, model in made.items():
        assert torch.equal(model(x), want), name
    small.scale.mul_(2)
    assert torch.equal(made["compile"](x), 2 * want)
    assert torch.equal(small.double().half().float()(x), small(x))
    assert type(small.__dict__["_buffers"]) is not dict


class Decides(Net):
    def forward(self, x):
        return super().forward(x if x.shape[0] > 1 else 2 * x)


def test_transform_explains_unless_a_path_was_chosen():
    x = torch.randn(3, 4)
    small = fxprune.transform(Decides().eval(), x, ratio=0.5)
    with pytest.raises(AttributeError, match='prefer="graph"'):
        small.graph  # noqa: B018
    for options in ({"path": "eager"}, {"prefer": "class"}):
        small = fxprune.transform(Decides().eval(), x, ratio=0.5, **options)
        with pytest.raises(AttributeError, match="object has no attribute 'graph'"):
            small.graph  # noqa: B018
    assert isinstance(fxprune.transform(Net().eval(), x, ratio=0.5, prefer="graph").graph, torch.fx.Graph)
