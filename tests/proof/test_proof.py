"""The proof on small networks: what it compares, what it refuses, and what it says."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import fxprune
from fxprune.proof.one_sided import OneSided
from fxprune.proof.runs import GraphRun
from tests.support import randomise


class Detector(nn.Module):
    """Returns the places above a threshold, of which there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.b(torch.relu(self.a(x)))
        return scores[scores > 1e3]


class Classes(nn.Module):
    """Returns integers only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x))).argmax(1)


class Saturated(nn.Module):
    """Returns ones only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(
            self.b(torch.relu(self.a(x))) * 0 + 50 + self.b(torch.relu(self.a(x))).clamp(-1, 1) * 1e-30
        )


class Mixed(nn.Module):
    """Layer norm, attention, a product and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.LayerNorm(16), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x).flatten(2).mT)
        h = torch.cat([h, h @ (h.mT @ h)], -1)
        return self.b(F.gelu(h))


NETWORKS = [Detector, Classes, Saturated, Mixed]


def made(network: Callable[[], nn.Module], **options: Any) -> tuple[nn.Module, Tensor, nn.Module]:
    net = network().double().eval()
    randomise(net, 0)
    x = torch.randn(2, 3, 7, 7).double()
    return net, x, fxprune.transform(net, x, ratio=0.5, **options)


@pytest.mark.parametrize("path", ["eager", "fx"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_kept_weight_that_is_one_percent_off_is_found(network: Callable[[], nn.Module], path: str) -> None:
    if network is Detector and path == "fx":
        path = "eager"  # no graph of a forward that decides by numbers
    net, x, small = made(network, path=path)
    assert fxprune.verify(net, small, x) < 1e-9
    for name in ("a.weight", "b.weight"):
        weight = small.get_parameter(name)
        with torch.no_grad():
            weight.view(-1)[5] *= 1.01
        assert fxprune.verify(net, small, x) > 1e-9, name
        with torch.no_grad():
            weight.view(-1)[5] /= 1.01


@pytest.mark.parametrize("network", NETWORKS)
def test_two_kept_channels_that_are_exchanged_are_found(network: Callable[[], nn.Module]) -> None:
    net, x, small = made(network)
    with torch.no_grad():
        for part in ("weight", "bias"):
            tensor = small.get_parameter(f"a.{part}")
            tensor[[0, 1]] = tensor[[1, 0]].clone()
    assert fxprune.verify(net, small, x) > 1e-9


@pytest.mark.parametrize("network", NETWORKS)
def test_the_record_counts_the_numbers_that_were_compared(network: Callable[[], nn.Module]) -> None:
    _, _, small = made(network)
    assert (fxprune.record(small).compared or 0) >= 2 * 8 * 49


def error_of_spoiled(spoil: Callable[[nn.Module], None], monkeypatch: pytest.MonkeyPatch) -> fxprune.VerificationError:
    """The error of the proof of a small model that `spoil` has changed."""

    def spoiled(*args: Any) -> Any:
        rewritten = rewrite(*args)
        spoil(rewritten.small)
        return rewritten

    rewrite = fxprune._attempt.rewrite
    monkeypatch.setattr("fxprune._attempt.rewrite", spoiled)
    with pytest.raises(fxprune.VerificationError) as caught:
        made(Classes, path="eager")
    return caught.value


def test_the_operation_that_differs_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(small: nn.Module) -> None:
        with torch.no_grad():
            small.get_parameter("a.weight").view(-1)[3] += 0.1

    error = error_of_spoiled(change, monkeypatch)
    assert error.what == "the small model differs from its reference"
    assert "aten::convolution" in error.why
    assert 'group "a"; "a" (' in error.at
    assert "test_proof.py:" in error.at


def test_a_small_model_that_raises_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(small: nn.Module) -> None:
        small.get_submodule("a").forward = lambda x: 1 / 0

    error = error_of_spoiled(change, monkeypatch)
    assert error.what == "the small model raises where the original does not"
    assert "ZeroDivisionError: division by zero" in error.why
    assert isinstance(error.__cause__, ZeroDivisionError)


class Counting(nn.Module):
    """Counts its calls, and multiplies by their number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n = nn.Linear(4, 8), nn.Linear(8, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        return self.b(self.a(x)) * self.n


def test_a_model_that_counts_its_calls_is_compared_twice() -> None:
    net, x = Counting().double().eval(), torch.randn(3, 4).double()
    small = fxprune.transform(net, x, ratio=0.5)
    assert type(small) is Counting
    assert (net.n, small.n) == (0, 0)
    small.forward = lambda x: small.b(small.a(x))
    assert fxprune.verify(net, small, x) > 0.1, "right at the first call only"


@pytest.mark.parametrize(("layer", "calls"), [(nn.BatchNorm1d(8), 1), (spectral_norm(nn.Linear(8, 8)), 2)])
def test_a_second_call_follows_where_it_computes_otherwise(
    layer: nn.Module, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch norm in training counts its running statistics only; a spectral norm takes one more step."""
    net = nn.Sequential(nn.Linear(4, 8), layer, nn.ReLU(), nn.Linear(8, 2)).double().train()
    modes, plain = list[bool](), GraphRun.run_on
    monkeypatch.setattr(
        GraphRun, "run_on", lambda run, values: (modes.append(run.copied.training), plain(run, values))[1]
    )
    fxprune.transform(net, torch.randn(6, 4).double(), ratio=0.5)
    assert modes == [True] * 2 * calls + [False] * 2


class CountingNorm(Counting):
    """Takes a statistic of the channels in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        return self.b(self.statistic(self.a(x))) * self.n

    def statistic(self, h: Tensor) -> Tensor:
        return self.norm(h)


class CountingRootMeanSquare(CountingNorm):
    """A norm written by hand."""

    def statistic(self, h: Tensor) -> Tensor:
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5) + h.mean(-1, keepdim=True)


class CountingAttention(CountingNorm):
    """A softmax over the channels."""

    def statistic(self, h: Tensor) -> Tensor:
        return h * (h + self.n).softmax(-1)


class Remembering(CountingNorm):
    """Normalises what it has seen in all calls, which grows."""

    seen: Tensor | None = None

    def statistic(self, h: Tensor) -> Tensor:
        self.seen = h if self.seen is None else torch.cat([self.seen, h])
        return self.norm(self.seen)[-len(h) :]


@pytest.mark.parametrize("network", [CountingNorm, CountingRootMeanSquare, CountingAttention, Remembering])
@pytest.mark.parametrize("path", ["eager", "hooks"])
def test_statistics_of_the_second_call_are_those_of_the_kept_channels(network: type[CountingNorm], path: str) -> None:
    net, x = randomise(network().double().eval(), 0), torch.randn(3, 4).double()
    small: Any = fxprune.transform(net, x, ratio=0.5, path=path)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    error = fxprune.record(small).error
    assert error is not None
    assert error < 1e-9


def test_a_hook_of_the_model_itself_is_part_of_it() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double().eval(), torch.randn(2, 4).double()
    net.register_forward_hook(lambda module, args, out: out + 1)
    small = fxprune.transform(net, x, ratio=0.5)
    assert torch.allclose(fxprune.masked(net, fxprune.record(small).removed)(x), small(x), atol=1e-12)


class WithoutFloat64(nn.Module):
    """Gives NaN in float64, where adding the smallest number twice is too much."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        least = torch.finfo(torch.float64).min
        return self.b(h + least + least - (least + least) if h.dtype == torch.float64 else h)


class Refusing(WithoutFloat64):
    """Raises in float64."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise TypeError("float32 only")
        return self.b(self.a(x))


@pytest.mark.parametrize("network", [WithoutFloat64, Refusing])
def test_a_model_that_needs_float32_is_proven_in_float32(network: Callable[[], nn.Module]) -> None:
    small = fxprune.transform(network().eval(), torch.randn(2, 4), ratio=0.5, path="eager")
    record = fxprune.record(small)
    assert record.error is not None
    assert record.error < 1e-5
    assert [r for r in record.reasons if r.startswith("proven in float32, where an error up to 1e-04 is rounding")]


def test_a_proof_that_compares_nothing_is_empty() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x[:0]))

    with pytest.warns(fxprune.NotProvenWarning, match="the proof is empty"):
        small = fxprune.transform(Nothing().eval(), torch.randn(3, 4), ratio=0.5)
    assert fxprune.record(small).compared == 0


def test_a_proof_that_compares_zeros_is_empty() -> None:
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False)).eval()
    with pytest.warns(fxprune.NotProvenWarning, match="no number other than 0 that depends on what was removed"):
        small = fxprune.transform(net, torch.zeros(3, 4), ratio=0.5)
    assert fxprune.record(small).compared == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = fxprune.transform(net, torch.ones(3, 4), ratio=0.5)
    assert fxprune.record(small).compared


def test_infinities_at_the_same_places_are_equal() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x))).masked_fill(torch.arange(8) >= 5, float("-inf"))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = fxprune.transform(Masked().eval(), torch.randn(2, 6), ratio=0.3)
    assert (fxprune.record(small).error or 0.0) < 1e-9


class Unread(nn.Module):
    """A statistic over channels that nobody reads: kept, or not even that."""

    def __init__(self, *, keep: bool) -> None:
        super().__init__()
        self.a, self.b, self.keep, self.seen = nn.Linear(4, 10), nn.Linear(10, 3), keep, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.a(x))
        mean = y.mean()
        y.detach().std(-1)
        if self.keep:
            self.seen.append(mean)
        return self.b(y)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_a_statistic_that_nobody_reads_is_taken_of_the_kept_channels(keep: bool, exact: bool) -> None:
    model, x = randomise(Unread(keep=keep).double(), 0).eval(), torch.randn(5, 4, dtype=torch.float64)
    small = fxprune.transform(model, x, ratio=0.5, path="eager", exact=exact)
    made = fxprune.record(small)
    assert len(made.removed["a.weight"][0]) == 5
    assert made.exact
    assert made.error is not None
    assert torch.allclose(small(x), fxprune.masked(model, made.removed)(x), atol=1e-12, rtol=0)


def test_a_wrong_weight_before_a_statistic_that_nobody_reads_is_found() -> None:
    model, x = randomise(Unread(keep=True).double(), 0).eval(), torch.randn(5, 4, dtype=torch.float64)
    small = fxprune.transform(model, x, ratio=0.5, path="eager")
    with torch.no_grad():
        small.get_parameter("a.weight")[0, 0] *= 1.01
    assert fxprune.verify(model, small, x) > 1e-9


class Copying(nn.Module):
    """Copies what is wide."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        h = torch.relu(h.clone().clone() if self.a.weight.nbytes > 256 else h)
        h = self.b(h).tanh()
        return self.c(h if self.b.weight.nbytes > 256 else h.clone())


def test_operations_that_only_one_of_the_models_runs_are_listed() -> None:
    net, x = Copying().double().eval(), torch.randn(3, 4).double()
    small = fxprune.transform(net, x, ratio={"a": 0.5}, path="eager")
    made = fxprune.record(small)
    assert made.error is not None
    assert [(o.operation, o.original, o.small, o.modules) for o in made.one_sided] == [("aten::clone", 2, 0, ("",))]
    assert "OneSided('aten::clone in the model: 2 in the original, 0 in the small model')" in repr(made)
    assert "(aten::clone in the model: 2 in the original, 0 in the small model)" in made.report()
    assert fxprune.record(pickle.loads(pickle.dumps(small))).one_sided == made.one_sided


def test_a_list_of_operations_is_short_in_a_line() -> None:
    found = OneSided("aten::clone", 0, 1, ("", "a", "b", "c"))
    assert str(found) == "aten::clone in the model, a, b, ... (4 modules): 0 in the original, 1 in the small model"
    assert repr(found) == "OneSided('aten::clone in 4 modules: 0 in the original, 1 in the small model')"


@pytest.mark.parametrize("network", NETWORKS)
def test_both_models_run_the_same_operations(network: Callable[[], nn.Module]) -> None:
    assert fxprune.record(made(network)[2]).one_sided == ()


class Experts(nn.Module):
    """A grouped product, whose kernel needs rows of 16 bytes."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(2, 8, 16) / 4), nn.Parameter(torch.randn(2, 16, 8) / 4)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        ends = torch.tensor([2, 4], dtype=torch.int32)
        return F.grouped_mm(torch.relu(F.grouped_mm(x, self.up, offs=ends)), self.down, offs=ends)


def test_a_kernel_that_the_proof_replaces_is_also_called_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.ops.registry.Call.multiple", lambda *args: None)  # widths are not rounded
    torch.manual_seed(0)
    with pytest.raises(fxprune.VerificationError) as caught:
        fxprune.transform(Experts(torch.float32), torch.randn(4, 8), ratio=0.1, path="eager")
    assert caught.value.what == (
        "the small model raises as its user calls it; the proof runs _grouped_mm by other code"
    )
    assert caught.value.why.splitlines()[0] == "RuntimeError: strides should be multiple of 16 bytes"
    assert "test_proof.py:" in caught.value.at


def test_a_kernel_that_the_original_does_not_have_either_is_no_fault() -> None:
    torch.manual_seed(0)
    model, x = Experts(torch.float64), torch.randn(4, 8, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="Double"):
        model(x)
    made = fxprune.record(fxprune.transform(model, x, ratio=0.5, path="eager"))
    assert made.error is not None
    assert made.compared


def test_layers_with_a_fused_path_are_called_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = torch._transformer_encoder_layer_fwd

    def refuses(*args: Any) -> Tensor:
        if any(isinstance(arg, Tensor) and arg.shape == (8, 8) for arg in args[14:]):  # linear1, then linear2
            raise RuntimeError("no kernel for 8 slots")
        return fused(*args)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", refuses)
    layer, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(2, 3, 8)
    options = {"path": "eager", "ignore": ["self_attn*"]}
    assert fxprune.record(fxprune.transform(layer, x, ratio={"linear1": 0.25}, **options)).error is not None
    with pytest.raises(fxprune.VerificationError, match="no kernel for 8 slots") as caught:
        fxprune.transform(layer, x, ratio={"linear1": 0.5}, **options)
    assert "the proof runs MultiheadAttention, TransformerEncoderLayer by other code" in caught.value.what


class CopiedByReference(nn.Module):
    """Its copy is a new module around the same layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def __deepcopy__(self, memo: dict[int, object]) -> CopiedByReference:
        made = CopiedByReference()
        made.a, made.b = self.a, self.b
        return made

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.b(self.a(x).relu())
        return made


def test_the_masked_reference_never_changes_the_original() -> None:
    net = CopiedByReference()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(fxprune.PlanError, match="cannot be copied") as caught:
        fxprune.masked(net, {"a.weight": {0: [1]}, "a.bias": {0: [1]}})
    assert '"a.weight"' in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


class Gained(nn.Module):
    """Reads a number in an attribute of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        weight: Any = self.a.weight
        weight.gain = 2.0

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self.a.weight
        made: Tensor = self.b(self.a(x).relu() * weight.gain)
        return made


class Softened(nn.Module):
    """Makes a sparse matrix in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("edges", torch.eye(3).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.edges, Tensor)
        made: Tensor = self.b(torch.sparse.mm(torch.sparse.softmax(self.edges, 1), self.a(x)).relu())
        return made


@pytest.mark.parametrize("network", [Gained, Softened])
def test_what_forward_reads_or_makes_is_there_in_the_proof(network: Callable[[], nn.Module]) -> None:
    net, x = network().eval(), torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxprune.NotProvenWarning)
        small: Any = fxprune.transform(net, x, ratio=0.5)
    assert type(small) is network
    assert small.a.out_features == 4
    made = fxprune.record(small)
    assert made.error is not None
    assert made.compared
    ours: Any = small(x)
    with torch.no_grad():  # `deepcopy`, and so `masked`, loses attributes of parameters
        for name in ("a.weight", "a.bias"):
            net.get_parameter(name)[made.removed["a.weight"][0]] = 0
    assert torch.allclose(ours, net(x), atol=1e-6)


def test_masked_takes_a_plan_and_a_record() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(2, 4)
    plan = fxprune.analyze(net, x).plan(ratio=0.5)
    made = fxprune.record(fxprune.transform(net, x, ratio=0.5))
    for given in (plan, made):
        state = fxprune.masked(net, given).state_dict()
        assert all(torch.equal(state[name], t) for name, t in fxprune.masked(net, plan.removed).state_dict().items())
        assert int((state["0.bias"] == 0).sum()) == 4
    others: list[Any] = [net, [1], {"0.bias": [1]}]
    for wrong in others:
        with pytest.raises(fxprune.InputError, match=r"do   pass record\(small\)\.removed, a record, or a plan"):
            fxprune.masked(net, wrong)
