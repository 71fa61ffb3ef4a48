"""Other methods than forward are analysed, cut and compared like forward, if the user names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.support import randomise, relative_error


class Encoder(nn.Module):
    """Checks its width in a method, and has a layer that only the method calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.only = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 5)
        self.width = 12
        self.dropout = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))))

    def encode_only(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        h = self(x)
        assert h.shape[-1] == self.width
        return self.only(h) * scale


class Net(nn.Module):
    """Its methods split a layer in halves, add two layers, and return a product of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Linear(12, 3)
        self.split, self.last, self.half = nn.Linear(12, 20), nn.Linear(10, 2), 10
        self.left, self.right, self.sum = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x))

    def forward_split(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.split(self.encoder(x)).split((self.half, self.half), -1)
        return self.last(a * b.sigmoid())

    def added(self, x: torch.Tensor) -> torch.Tensor:
        return self.sum(torch.relu(self.left(x) + self.right(x)))

    def product(self) -> torch.Tensor:
        return self.sum.weight @ self.left.weight

    def in_training(self, x: torch.Tensor) -> torch.Tensor:
        h = self.encoder(x)
        return self.last(self.split(h)[..., : self.half]) if self.training else self.head(h)

    def by_numbers(self, x: torch.Tensor) -> torch.Tensor:
        return self.added(x) if self.left(x).sum() > 0 else self.added(-x)

    def raises(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("not with these inputs")


def net() -> Net:
    made = randomise(Net(), 3).double().eval()
    assert isinstance(made, Net)
    return made


X = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

METHODS: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "of the model": ({"forward_split": X}, lambda m: m.forward_split(X)),
    "of a submodule": ({"encoder.encode_only": (X,)}, lambda m: m.encoder.encode_only(X)),
    "with keywords": ({"encoder.encode_only": {"x": X, "scale": 0.5}}, lambda m: m.encoder.encode_only(X, scale=0.5)),
    "that ties two layers": ({"added": X}, lambda m: m.added(X)),
    "without arguments": ({"product": ()}, lambda m: m.product()),
    "several": ({"added": X, "product": (), "forward_split": X}, lambda m: [m.added(X), m.product()]),
    "that reads its mode": ({"in_training": X}, lambda m: [m.train().in_training(X), m.eval().in_training(X)]),
    "that decides by numbers": ({"by_numbers": X}, lambda m: m.by_numbers(X)),
    "forward of a submodule": ({"encoder.forward": X}, lambda m: m.encoder.forward(X)),
    "of a layer of torch": ({"encoder.first.forward": X}, lambda m: m.encoder.first.forward(X)),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_computes_what_it_computes_in_the_masked_original(name: str) -> None:
    methods, call = METHODS[name]
    model = net()
    small = fxprune.transform(model, X, ratio=0.5, seed=2, importance="random", methods=methods)
    made = fxprune.record(small)
    assert (made.path, made.methods) == ("eager", tuple(methods))
    masked = fxprune.masked(model, made.zeroed)
    assert relative_error([small(X), call(small)], [masked(X), call(masked)]) < 1e-9
    assert fxprune.verify(model, small, X, methods=methods) < 1e-9


def test_what_only_a_method_reads_shrinks() -> None:
    model = net()
    plain = fxprune.transform(model, X, ratio=0.5)
    assert (plain.split.out_features, plain.half, plain.left.out_features) == (20, 10, 8)
    small = fxprune.transform(model, X, ratio=0.5, methods={"forward_split": X, "added": X})
    assert (small.split.out_features, small.half, small.left.out_features) == (10, 5, 4)
    analysis = fxprune.analyze(model, X, methods={"added": X})
    assert analysis.captured.path == "eager"
    tied = next(group for group in analysis.groups if group.name == "left")
    assert "right.weight" in {member.parameter for member in tied.members}


def test_a_method_runs_in_both_modes_where_it_reads_its_mode() -> None:
    analysis = fxprune.analyze(net(), X, methods={"in_training": X})
    assert [(w.method, w.training) for w in analysis.walked if w.method] == [
        ("in_training", False),
        ("in_training", True),
    ]
    assert "split" in {group.name for group in analysis.groups}


def test_the_proof_compares_methods() -> None:
    model = net()
    methods = {"added": X}
    small = fxprune.transform(model, X, ratio=0.5, methods=methods)
    with torch.no_grad():
        small.sum.weight[0, 0] *= 1.01
    assert fxprune.verify(model, small, X, methods=methods) > 1e-6


def test_constants_fold_along_methods() -> None:
    model = net()
    with torch.no_grad():
        model.left.weight[[1, 4]] = model.right.weight[[1, 4]] = 0.0
        model.encoder.second.weight[[0, 7]] = 0.0
    methods = {"added": X, "forward_split": X}
    small = fxprune.transform(model, X, masks="zeros", methods=methods)
    assert (small.left.out_features, small.encoder.second.out_features) == (6, 10)
    found, expected = ([m(X), m.added(X), m.forward_split(X)] for m in (small, model))
    assert relative_error(found, expected) < 1e-9


def test_hooks_leave_the_results_of_methods_whole() -> None:
    model = net()
    small = fxprune.transform(model, X, ratio=0.5, path="hooks", methods={"added": X})
    masked = fxprune.masked(model, fxprune.record(small).zeroed)
    assert (small.sum.out_features, small.left.out_features) == (2, 4)
    assert relative_error([small.added(X)], [masked.added(X)]) < 1e-9


def test_methods_keep_the_class() -> None:
    small = fxprune.transform(net(), X, ratio=0.5, prefer="graph", methods={"added": X})
    made = fxprune.record(small)
    assert (type(small), made.path, set(made.why_not)) == (Net, "eager", {"fx", "export"})
    assert "has no added" in made.why_not["fx"]
    for path in ("fx", "export"):
        with pytest.raises(fxprune.CaptureError, match=f"methods cannot be observed on the path {path}"):
            fxprune.transform(net(), X, ratio=0.5, path=path, methods={"added": X})
    with pytest.raises(fxprune.InputError, match="a graph is forward alone"):
        fxprune.transform(fxprune.trace(net(), X), X, ratio=0.5, methods={"added": X})


def test_a_file_keeps_the_names_of_methods(tmp_path: Path) -> None:
    methods = {"added": X}
    small = fxprune.transform(net(), X, ratio=0.5, methods=methods)
    fxprune.save(small, tmp_path / "small.safetensors")
    for options in ({}, {"example_inputs": X, "methods": methods}):
        again = fxprune.load(tmp_path / "small.safetensors", into=net(), **options)
        assert fxprune.record(again).methods == ("added",)
        assert torch.equal(again.added(X), small.added(X))


WRONG: dict[str, tuple[Any, str]] = {
    "a wrong name": ({"forwrd_split": X}, 'did you mean "forward_split"'),
    "a wrong module": ({"encodr.encode_only": X}, 'there is no module "encodr"'),
    "a module": ({"encoder": X}, "this is a module"),
    "an attribute": ({"half": X}, 'Net has no method "half"'),
    "forward": ({"forward": X}, "`also`"),
    "a method of every module": ({"train": ()}, "computes nothing"),
    "inputs that do not fit": ({"added": (X, X)}, "do not fit"),
    "no inputs": ({"added": 3}, "inputs of added are of no use"),
    "a text": ("added", "a dict"),
    "a key that is no text": ({3: X}, "its key 3 is not a text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_method_is_refused(name: str) -> None:
    methods, text = WRONG[name]
    for function in (fxprune.transform, fxprune.analyze):
        with pytest.raises(fxprune.InputError) as caught:
            function(net(), X, methods=methods)
        assert text in str(caught.value)


def test_a_method_that_raises_is_named() -> None:
    with pytest.raises(fxprune.CaptureError, match='the model\'s method "raises" raises') as caught:
        fxprune.transform(net(), X, ratio=0.5, methods={"raises": X})
    assert "not with these inputs" in str(caught.value)
