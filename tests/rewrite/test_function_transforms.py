"""Models whose forward transforms functions: `vmap`, `torch.func.grad`, `torch.autograd.grad`, a Jacobian."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import fxprune
from fxprune.capture.values import tensors_in
from tests.behaviour import compare_behaviour
from tests.mutations import unseen_mutations

# torch 2.14 has no batching rule for the attention of `Samples`, and says so whenever the model itself runs
pytestmark = pytest.mark.filterwarnings(
    "ignore:There is a performance drop .* batching rule for aten.._scaled_dot_product_flash_attention_for_cpu"
)


class Ensemble(nn.Module):
    """Weights of three members in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(12, 2)
        self.weight, self.bias = nn.Parameter(torch.randn(3, 12, 16) * 0.2), nn.Parameter(torch.randn(3, 12))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        return self.head(
            vmap(lambda weight, bias: torch.tanh(F.linear(h, weight, bias)))(self.weight, self.bias).mean(0)
        )


class Members(nn.Module):
    """Modules of one shape, called as one with their parameters stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 16)
        self.members = nn.ModuleList(nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        each = [dict(member.named_parameters()) for member in self.members]
        stacked = {name: torch.stack([own[name] for own in each]) for name in each[0]}
        return vmap(lambda own: functional_call(self.members[0], own, (h,)))(stacked).mean(0)


class Samples(nn.Module):
    """Layers and attention of one sample, for all samples of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 16) for _ in range(3))
        self.out = nn.Linear(16, 4)

    def one(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(len(x), 2, -1).transpose(0, 1) for f in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return vmap(self.one)(x.unflatten(0, (-1, 2)))


class Energy(nn.Module):
    """The force is the gradient of an energy, for each sample by `torch.func`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 1)

    def energy(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(F.silu(self.first(x))))).sum()

    def forward(self, x: Tensor) -> Tensor:
        return -vmap(grad(self.energy))(x)


class Potential(Energy):
    """The same by autograd, with other activations."""

    def energy(self, x: Tensor) -> Tensor:
        return self.last(F.gelu(self.second(F.softplus(self.first(x))))).sum()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.energy(x)
            return energy, torch.autograd.grad(energy, x, create_graph=True)[0]


class Flow(Energy):
    def energy(self, x: Tensor) -> Tensor:
        return self.last(F.elu(self.second(torch.sigmoid(self.first(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(lambda t: self.energy(t).sum(0), x, create_graph=True)


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    return tensors_in(model(inputs))


MODELS: tuple[type[nn.Module], ...] = (Ensemble, Members, Samples, Energy, Potential, Flow)


def made(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return kind().eval().double(), torch.randn(4, 6).double()


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_the_class_loses_channels_is_proven_and_behaves_like_the_original(kind: type[nn.Module]) -> None:
    net, x = made(kind)
    small = fxprune.transform(net, x, ratio=0.5, exact=True)
    assert type(small) is kind
    record = fxprune.record(small)
    assert record.error is not None
    assert record.error < 1e-9
    assert record.compared
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())
    assert compare_behaviour(net, small, x) == []


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_the_proof_sees_wrong_weights(kind: type[nn.Module]) -> None:
    tried = unseen_mutations(*made(kind), run, each=3, exact=True)
    assert len(tried.tried) > 4
    assert tried.unseen == ()


@pytest.mark.parametrize("kind", [Ensemble, Members, Samples], ids=lambda kind: kind.__name__)
def test_an_exported_graph_with_a_vmap_loses_channels(kind: type[nn.Module]) -> None:
    net, x = made(kind)
    small = fxprune.transform(net, x, ratio=0.5, exact=True, path="export")
    assert fxprune.record(small).compared
    torch.testing.assert_close(small(x), fxprune.masked(net, fxprune.record(small).removed)(x))


def test_a_walk_that_raises_ends_the_levels_that_it_began() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch._C._functorch._vmap_increment_nesting, (2, "error"))
    graph.output(graph.call_function(torch.reshape, (x, (3, 3))))
    with pytest.raises(fxprune.CaptureError, match="forward raises"):
        fxprune.transform(torch.fx.GraphModule({}, graph), torch.ones(2), ratio=0.5)
    assert torch._C._functorch.maybe_current_level() is None
