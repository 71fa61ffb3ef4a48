"""Models whose forward transforms functions: `vmap`, `torch.func.grad`, `torch.autograd.grad`, a Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

import fxprune
from fxprune.capture.thread_state import same_levels
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


class ConvolvedPotential(Potential):
    """The gradient of an energy of convolutions, one of them grouped and one transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 8, 3), nn.Conv1d(8, 16, 3, groups=4, padding=1)
        self.third, self.last = nn.ConvTranspose1d(16, 8, 2), nn.Conv1d(8, 1, 1, bias=False)

    def energy(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.second(F.silu(self.first(x[:, None]))))
        return self.last(torch.tanh(self.third(x))).sum((1, 2))[:, None]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.energy(x)
            return energy, torch.autograd.grad(energy.sum(), x, create_graph=True)[0]


class Slices(Potential):
    """The gradient of an energy of two parts of the channels, of which one is read twice."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.first, self.half = nn.Linear(6, 16), 8
        self.left, self.right = nn.Linear(8, 12), nn.Linear(8, 12)
        self.last = nn.Linear(12, 1)

    def energy(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        left, right = x[:, : self.half], x[:, self.half :]
        return self.last(torch.tanh(self.left(left) * self.right(right)) + self.left(left).sin()).sum()


class Push(Energy):
    """The change of the outputs along a direction: forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(lambda t: self.last(torch.tanh(self.second(F.silu(self.first(t))))), (x,), (x.cos(),))


class ConvolvedPush(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv1d(1, 16, 3), norm(16), nn.Conv1d(16, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return jvp(lambda t: self.last(torch.relu(self.norm(self.first(t)))), (x[:, None],), (x[:, None].cos(),))[1]


class NormedPush(ConvolvedPush):
    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d)
        for name, low in (("running_mean", -1.0), ("running_var", 0.5), ("weight", 0.5), ("bias", -1.0)):
            nn.init.uniform_(getattr(self.norm, name), low, 2.0)


class PlainNormedPush(ConvolvedPush):
    def __init__(self) -> None:
        super().__init__(lambda width: nn.BatchNorm1d(width, affine=False))
        nn.init.uniform_(self.norm.running_mean, -1.0, 2.0)


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    return [tensor.detach() for tensor in tensors_in(model(inputs))]


MODELS: tuple[type[nn.Module], ...] = (
    *(Ensemble, Members, Samples, Energy, Potential, Flow),
    *(ConvolvedPotential, Slices, Push, ConvolvedPush, NormedPush, PlainNormedPush),
)


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


@pytest.mark.parametrize("kind", [Ensemble, Members, Samples, ConvolvedPush], ids=lambda kind: kind.__name__)
def test_an_exported_graph_with_a_level_loses_channels(kind: type[nn.Module]) -> None:
    net, x = made(kind)
    small = fxprune.transform(net, x, ratio=0.5, exact=True, path="export")
    assert fxprune.record(small).compared
    torch.testing.assert_close(small(x), fxprune.masked(net, fxprune.record(small).removed)(x))


def test_the_level_of_forward_mode_that_an_exported_graph_leaves_on_is_ended() -> None:
    with same_levels():
        torch._C._enter_dual_level()
    with torch.autograd.forward_ad.dual_level(), same_levels():  # one of the caller stays
        pass
    with torch.autograd.forward_ad.dual_level():
        pass


def test_a_norm_of_the_batch_in_forward_mode_keeps_its_channels_and_says_why() -> None:
    net = ConvolvedPush(lambda width: nn.BatchNorm1d(width, track_running_stats=False)).eval()
    with pytest.warns(fxprune.NothingRemovedWarning, match="in norm") as caught:
        small = fxprune.transform(net, torch.randn(4, 6), ratio=0.5)
    assert len(caught) == 1
    (reason,) = [text for text in fxprune.record(small).reasons if "real tensors" in text]
    assert reason.startswith("torch cannot run the forward on fake tensors at the model (")
    assert "FakeTensorDeviceMismatchError" in reason


def test_a_walk_that_raises_ends_the_levels_that_it_began() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch._C._functorch._vmap_increment_nesting, (2, "error"))
    graph.output(graph.call_function(torch.reshape, (x, (3, 3))))
    with pytest.raises(fxprune.CaptureError, match="forward raises"):
        fxprune.transform(torch.fx.GraphModule({}, graph), torch.ones(2), ratio=0.5)
    assert torch._C._functorch.maybe_current_level() is None
