"""A pickled graph reads the buffers of the model when it is called, as the graph that was pickled does."""

from __future__ import annotations

import io
import pickle
from typing import Any

import pytest
import torch
from torch import fx, nn

import fxprune
from tests.forks import ended_forks

IDS = torch.randint(0, 9, (2, 5))


class Positions(nn.Module):
    """Slices a buffer by a size, computes with another one alone, and counts its calls in a third one."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 16), nn.Linear(16, 4)
        self.register_buffer("places", torch.randn(12, 16))
        self.register_buffer("shift", torch.randn(16))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids: torch.Tensor) -> Any:
        h = self.table(ids) + self.places[: ids.shape[1]] + self.shift * 2
        return self.head(torch.relu(h)) * self.calls.add_(1)


def pickled(module: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(module, file)
    return file.getvalue()


def loaded(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=False)


@pytest.mark.filterwarnings("ignore:the small model is an exported graph, which raises for sizes")
@pytest.mark.parametrize("path", ["fx", "export"])
def test_a_loaded_graph_goes_on_with_its_buffers(path: str) -> None:
    small = fxprune.transform(Positions().eval(), IDS, ratio=0.5, path=path)
    again = loaded(pickled(small))
    assert {name for name, _ in again.named_buffers()} == {name for name, _ in small.named_buffers()}
    for _ in range(2):
        assert torch.equal(again(IDS), small(IDS))
    for graph in (again, small):
        graph.get_buffer("shift").mul_(3)
    assert torch.equal(again(IDS), small(IDS))


def test_a_traced_graph_takes_other_lengths_when_it_is_loaded() -> None:
    traced = fxprune.trace(Positions(), IDS)
    ids = torch.randint(0, 9, (3, 7))
    assert torch.equal(loaded(pickled(traced))(ids), traced(ids))


def test_the_pickle_loads_where_the_package_is_missing() -> None:
    data = pickled(fxprune.transform(fxprune.trace(Positions(), IDS), IDS, ratio=0.5))
    code = (
        "import io, sys; sys.modules['fxprune'] = None; import torch; "
        f"assert torch.load(io.BytesIO({data!r}), weights_only=False)(torch.zeros(2, 5, dtype=torch.int64)).ndim == 3"
    )
    (ended,) = ended_forks([(code, ())])
    assert ended.returncode == 0, ended


class Own(fx.Tracer):
    """A tracer of the user's own, at the top of a module."""


def test_a_graph_keeps_the_tracer_that_its_user_made_it_with() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    small = fxprune.transform(fx.GraphModule(model, Own().trace(model)), torch.randn(3, 4), ratio=0.5)
    assert small._tracer_cls is Own
    assert pickle.loads(pickle.dumps(small))._tracer_cls is Own
