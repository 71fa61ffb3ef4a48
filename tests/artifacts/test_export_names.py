"""Names of parts that torch's own graphs cannot have: the file has others in their place."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import fxprune


class Named(nn.Module):
    """Parts with names of `torch.fx.GraphModule`, and keywords of Python, also deep in the model."""

    def __init__(self) -> None:
        super().__init__()
        self.meta, self.meta_ = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), nn.Linear(8, 5)
        self.heads = nn.ModuleDict({"class": nn.Linear(5, 2), "box": nn.Linear(5, 2)})
        self.code = nn.Parameter(torch.randn(8))
        self.graph: Tensor
        self.register_buffer("graph", torch.randn(8), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.meta_(torch.relu(self.meta(x) * self.code + self.graph))
        return {name: head(y) for name, head in self.heads.items()}


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_names_that_no_graph_can_have_are_others_in_the_file(suffix: str, dynamic: bool, tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    small = fxprune.transform(Named().eval(), x, ratio=0.5)
    made = fxprune.export(small, tmp_path / f"small{suffix}", x, dynamic_batch=dynamic)
    assert made.error is not None
    (told,) = [text for text in made.reasons if "calls" in text]
    why = "no graph can have the name, a keyword of Python or a part of torch.fx.GraphModule"
    assert told == f'the file calls "code" "code_", and 10 more tensors by other names: {why}'
    if suffix == ".onnx":
        names = {tensor.name for tensor in onnx.load(made.path).graph.initializer}
        assert {"meta__.0.weight", "meta_.weight", "heads.class_.bias", "heads.box.bias", "code_"} <= names
    else:
        state = torch.export.load(made.path).state_dict
        assert {"meta__.0.weight", "meta_.weight", "heads.class_.bias", "heads.box.bias", "code_"} <= set(state)
        assert (torch.export.load(made.path).module()(x)["class"] == small(x)["class"]).all()
    assert set(dict(small.named_children())) == {"meta", "meta_", "heads"}


def test_other_names_stay_as_they_are(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval()
    made = fxprune.export(net, tmp_path / "net.pt2", torch.randn(2, 4))
    assert not made.reasons
    assert set(torch.export.load(made.path).state_dict) == set(net.state_dict())
