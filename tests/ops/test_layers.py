"""The dimension of a layer's weight that counts its outputs, told by the table and shown by the layer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.ops.layers import OUTPUT_DIMS, known_output_dim, output_dim, weight_output_dim


class Scaled(nn.ConvTranspose2d):
    """A class of the user's own."""


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4))


def of(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64)


LAYERS: dict[str, tuple[nn.Module, tuple[Any, ...], int]] = {
    "linear": (nn.Linear(5, 3), (of(2, 5),), 1),
    "convolution": (nn.Conv1d(5, 3, 2), (of(2, 5, 7),), 1),
    "grouped convolution": (nn.Conv2d(4, 6, 2, groups=2), (of(2, 4, 5, 5),), 1),
    "transposed convolution": (nn.ConvTranspose1d(5, 3, 2), (of(2, 5, 7),), 1),
    "grouped transposed convolution": (nn.ConvTranspose2d(4, 6, 2, groups=2), (of(2, 4, 5, 5),), 1),
    "a subclass": (Scaled(5, 3, 2), (of(2, 5, 3, 3),), 1),
    "bilinear": (nn.Bilinear(5, 4, 3), (of(2, 5), of(2, 4)), 1),
    "embedding": (nn.Embedding(5, 3), (torch.arange(5),), 1),
    "bag of embeddings": (nn.EmbeddingBag(5, 3), (torch.arange(5).view(1, 5),), 1),
}
"""A layer, its inputs, and the dimension of its result that counts outputs."""


@pytest.mark.parametrize("name", LAYERS)
def test_a_slot_of_the_output_dimension_decides_its_own_outputs_only(name: str) -> None:
    """A slot of a transposed weight with groups stands for one output of every group."""
    layer, inputs, result_dim = LAYERS[name]
    layer = layer.double()
    weight: Any = layer.weight
    dim = output_dim(layer, weight.ndim)
    before = layer(*inputs)
    with torch.no_grad():
        weight.select(dim, 1).add_(1.0)
    moved = (layer(*inputs) - before).abs().movedim(result_dim, 0).flatten(1).amax(1) > 1e-9
    slots = weight.shape[dim]
    assert moved.nonzero().flatten().tolist() == list(range(1, before.shape[result_dim], slots))


@pytest.mark.parametrize(
    "layer", [nn.LSTM(3, 4, proj_size=2), nn.GRUCell(3, 4), nn.MultiheadAttention(4, 2), nn.Bilinear(3, 4, 2)], ids=str
)
def test_weights_with_rows_of_outputs(layer: nn.Module) -> None:
    weights = {n: p.ndim for n, p in layer.named_parameters() if "weight" in n and "." not in n}
    assert weights
    assert [weight_output_dim(layer, name, ndim) for name, ndim in weights.items()] == [0] * len(weights)


def test_biases_and_norms_count_outputs_in_their_only_dimension_and_are_no_weights() -> None:
    for layer in (nn.ConvTranspose1d(2, 3, 1), nn.BatchNorm1d(3), Scaled(2, 3, 1)):
        assert known_output_dim(layer, 1) == 0
        assert weight_output_dim(layer, "bias", 1) is None
    assert weight_output_dim(nn.LayerNorm((3, 4)), "weight", 2) is None
    attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    assert weight_output_dim(attention, "bias_k", attention.bias_k.ndim) is None


def test_a_parameter_in_a_module_of_the_users_own_may_mean_anything() -> None:
    assert known_output_dim(Raw(), 2) is None
    assert weight_output_dim(Raw(), "weight", 2) is None
    assert output_dim(Raw(), 2) == 0


@pytest.mark.parametrize("name", LAYERS)
def test_groups_are_named_after_the_layer_that_makes_their_channels(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer
            self.last = nn.Conv2d(outputs, 2, 1) if layer(*inputs).ndim == 4 else nn.Conv1d(outputs, 2, 1)

        def forward(self, *inputs: Any) -> Any:
            y = self.layer(*inputs)
            return self.last(y[:, :, None] if y.ndim == 2 else y)

    layer, inputs, result_dim = LAYERS[name]
    layer = layer.double()
    outputs = layer(*inputs).shape[result_dim]
    net = Net().double().eval()
    groups = fxprune.analyze(net, inputs).groups
    assert groups
    assert {group.name for group in groups} == {"layer"}


def test_the_dimension_is_decided_in_one_place() -> None:
    """Only sizes of modules are told apart by `transposed` elsewhere."""
    package = Path(fxprune.__file__).parent
    pattern = re.compile(
        r"def (known_)?output_dim|(return|dim =) 1 if .*(transposed|TRANSPOSED|ConvTranspose|Embedding)"
    )
    deciding = {str(p.relative_to(package)) for p in package.rglob("*.py") if pattern.search(p.read_text())}
    assert deciding == {"ops/layers.py"}
    assert all(issubclass(kind, nn.Module) for kind in OUTPUT_DIMS)
