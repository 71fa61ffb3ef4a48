"""The rewrite where an operation is opaque, where forward has side effects, and where numbers are no sizes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import fxprune
from tests.support import relative_error


def heads_inside(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Softmax attention of 4 heads over the last dimension, its sizes out of reach for the graph."""
    n, length = x.shape[:2]
    q = F.linear(x, weight).view(n, length, 4, weight.shape[0] // 4).transpose(1, 2)
    return (q @ q.transpose(2, 3)).softmax(-1).matmul(q).transpose(1, 2).reshape(n, length, 4 * q.shape[3])


fx.wrap("heads_inside")


class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.weight = nn.Parameter(torch.randn(16, 12))
        self.mix = nn.Linear(16, 12)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.mix(heads_inside(self.embed(x), self.weight)))


@pytest.mark.parametrize("seed", range(3))
def test_an_opaque_function_locks_only_the_channels_that_it_fixes(seed: int) -> None:
    net, x = Opaque().double().eval(), torch.randn(2, 7, 5).double()
    small = fxprune.transform(net, x, ratio=0.5, importance="random", seed=seed, prefer="graph")
    record = fxprune.record(small)
    assert relative_error(small(x), fxprune.masked(net, record.removed)(x)) < 1e-9
    assert len(record.removed["mlp.0.weight"][0]) == 10
    assert record.removed["embed.weight"][0], "the width before the heads has nothing to do with them"
    assert small.weight.shape[0] in (4, 8, 16)
    if small.weight.shape[0] == 16:
        (reason,) = [text for text in record.reasons if "heads_inside" in text]
        assert "test_rewrite.py" in reason


def test_a_size_that_cannot_be_recounted_is_an_error_with_a_given_plan() -> None:
    net, x = Opaque().double().eval(), torch.randn(2, 7, 5).double()
    heads = [g for g in fxprune.analyze(net, x).groups if g.kind == "heads"]
    assert [len(g) for g in heads] == [4]
    plan = fxprune.analyze(net, x, path="fx").plan(masks={"weight": torch.arange(16) >= 4})
    assert plan.removed["weight"][0] == [0, 1, 2, 3]
    with pytest.raises(fxprune.RewriteError) as caught:
        fxprune.transform(net, x, plan=plan, path="fx")
    for part in ("not what the analysis promises", "test_rewrite.py", "%heads_inside", "ignore"):
        assert part in str(caught.value)
    small = fxprune.transform(net, x, plan=plan)
    assert fxprune.record(small).path == "export", "a way that does see into the function removes them"
    assert relative_error(small(x), fxprune.masked(net, plan.removed)(x)) < 1e-9


class Caching(nn.Module):
    """Caches in forward what a later call reuses, as attention biases do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Conv2d(8, 2, 1)
        self.cache: dict[str, torch.Tensor] = {}
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if "scale" not in self.cache:
            self.cache["scale"] = self.conv(x).abs().amax((1, 2, 3), keepdim=True)
        self.offset = torch.ones(1)
        return self.head(self.conv(x) / (1 + self.cache["scale"]) + self.offset)


def test_a_forward_with_side_effects_leaves_the_model_alone() -> None:
    net, x = Caching().eval(), torch.randn(1, 3, 8, 8)
    attributes = set(net.__dict__)
    for _ in range(2):
        fxprune.transform(net, x, ratio=0.5)
    assert net.cache == {}
    assert net.calls == 0
    assert set(net.__dict__) == attributes


class NumbersOfSizes(nn.Module):
    """Divides by numbers that are computed from the channel count: they are values, not sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.head(y / y.shape[1] ** 0.5 + y * (1.0 / y.size(1)) + math.pi)


def test_a_number_computed_from_a_size_stays_what_it_was() -> None:
    net, x = NumbersOfSizes().double().eval(), torch.randn(2, 3, 5, 5).double()
    small = fxprune.transform(net, x, ratio=0.5, prefer="graph")
    assert relative_error(small(x), fxprune.masked(net, fxprune.record(small).removed)(x)) < 1e-9
    assert "2.8284" in small.code


class Attention(nn.Module):
    """Attention whose value width differs from its key width: torch takes the product form of it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x).unsqueeze(1), self.k(x).unsqueeze(1), self.v(x).unsqueeze(1)
        return self.head(F.scaled_dot_product_attention(q, k, v).squeeze(1))


def test_the_scale_of_attention_stays_that_of_the_original_width() -> None:
    net, x = Attention().double().eval(), torch.randn(2, 7, 5).double()
    small = fxprune.transform(net, x, ratio=0.5, importance="random", seed=0, verify=False, prefer="graph")
    assert fxprune.record(small).removed
    assert small.q.weight.shape[0] == small.k.weight.shape[0] == 6
    assert relative_error(small(x), fxprune.masked(net, fxprune.record(small).removed)(x)) < 1e-9


class RandomInTraining(nn.Module):
    """Drops whole samples and single values in training mode, the latter as a literal of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.dropout(self.conv(x), 0.5, self.training)
        if self.training:
            y = y * torch.empty_like(y[:, :1, :1, :1]).bernoulli_(0.7) + torch.randn_like(y)
        return self.head(y)


def test_a_graph_traced_in_training_mode_is_proven_too() -> None:
    net, x = RandomInTraining().train(), torch.randn(4, 3, 6, 6)
    state = torch.get_rng_state()
    small = fxprune.transform(net, x, ratio=0.5)
    assert torch.equal(state, torch.get_rng_state())
    error = fxprune.record(small).error
    assert error is not None
    assert error < 1e-12
    assert fxprune.record(small).training == ("", "conv", "head")
    assert small.training
    assert fxprune.verify(net.eval(), small.eval(), x) < 1e-12


class Amplifying(nn.Module):
    """Multiplies every difference by a million, and by a million again. Its sums are so long that their order shows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 301)
        self.head = nn.Linear(301, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        return torch.sin(1e4 * torch.sin(1e4 * self.head(y)))


def test_a_rounding_that_the_model_amplifies_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, x = Amplifying().double().eval(), torch.randn(8, 4).double()
    small = fxprune.transform(net, x, ratio=0.5)
    error = fxprune.record(small).error
    assert error is not None
    assert 1e-9 < error < 1e-3
    assert any(f"{error:.0e}, is rounding that the model makes larger" in why for why in fxprune.record(small).reasons)
    monkeypatch.setattr("fxprune.proof.copies.moved_by_rounding", lambda tensor, moved: tensor)
    monkeypatch.setattr("fxprune.proof.runs.moved_by_rounding", lambda tensor, moved: tensor)
    with pytest.raises(fxprune.VerificationError):  # the same error without a cause in the model is one
        fxprune.transform(net, x, ratio=0.5)


class Bottleneck(nn.Module):
    """In training the second norm takes the means of channels whose mean is zero: they are nothing but roundings."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.norm = nn.Linear(4, 301, bias=False), nn.BatchNorm1d(301)
        self.wide, self.last_norm = nn.Linear(301, 6, bias=False), nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.last_norm(self.wide(self.norm(self.narrow(x))))
        return self.head(torch.dropout(y.relu(), 0.1, train=self.training))


def test_numbers_that_are_nothing_but_roundings_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, x = Bottleneck().double().eval(), torch.randn(8, 4).double()
    small = fxprune.transform(net, x, ratio=0.5, path="eager")
    assert fxprune.record(small).compared
    monkeypatch.setattr("fxprune.proof.copies.moved_by_rounding", lambda tensor, moved: tensor)
    monkeypatch.setattr("fxprune.proof.runs.moved_by_rounding", lambda tensor, moved: tensor)
    monkeypatch.setattr("fxprune.proof.compare.NormInputs", lambda *given: None)
    with pytest.raises(fxprune.VerificationError, match="last_norm"):  # they do differ
        fxprune.transform(net, x, ratio=0.5, path="eager")


class LastNorm(nn.Module):
    """Its results are those of a norm over the examples, without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.norm = nn.Linear(4, 301), nn.Linear(301, 6), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.wide(self.stem(torch.dropout(x, 0.1, train=self.training)).relu()))


def test_results_that_are_nothing_but_roundings_are_not_compared_and_the_record_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    net, x = LastNorm().double(), torch.ones(8, 4).double()
    small = fxprune.transform(net.train(), x, ratio=0.5, path="eager")
    made = fxprune.record(small)
    assert any("the results in training mode were not compared" in why for why in made.reasons)
    assert made.error is not None
    assert made.error < 1e-9
    assert made.compared
    monkeypatch.setattr("fxprune.proof.copies.moved_by_rounding", lambda tensor, moved: tensor)
    monkeypatch.setattr("fxprune.proof.runs.moved_by_rounding", lambda tensor, moved: tensor)
    monkeypatch.setattr("fxprune.proof.compare.NormInputs", lambda *given: None)
    with pytest.raises(fxprune.VerificationError):  # they do differ
        fxprune.transform(net.train(), x, ratio=0.5, path="eager")


def test_one_example_is_enough_for_a_norm_in_training() -> None:
    """The second one, which the norm needs in training, is not equal to it."""
    torch.manual_seed(0)
    net, x = LastNorm().double().eval(), torch.ones(1, 4).double()
    small = fxprune.transform(net, x, ratio=0.5)
    assert type(small) is LastNorm
    assert not any("not compared" in why for why in fxprune.record(small).reasons)


def test_large_layers_are_cut_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.rewrite.tensors.BLOCK", 1000)
    net = nn.Sequential(nn.Linear(7, 67), nn.ReLU(), nn.Linear(67, 71), nn.Sigmoid(), nn.Linear(71, 43)).double()
    x = torch.randn(3, 7).double()
    small = fxprune.transform(net, x, ratio=0.4, importance="random", seed=0)
    assert small.get_submodule("2").weight.shape == (43, 41)
    error = fxprune.record(small).error
    assert error is not None
    assert error < 1e-12
    assert relative_error(small(x), fxprune.masked(net, fxprune.record(small).removed)(x)) < 1e-12
    with torch.no_grad():
        small.get_submodule("2").bias[40] += 1e-3
    assert fxprune.verify(net, small, x) > 1e-9


class TwoBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.register_buffer("order", torch.tensor([5, 0, 3, 1, 2, 4]))
        self.register_buffer("scale", torch.rand(6, 1, 1), persistent=False)
        self.offset = torch.rand(6, 1, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x)[:, self.order] * self.scale + self.offset)


def test_constants_and_buffers_shrink_and_stay_out_of_the_state_as_before() -> None:
    net, x = TwoBuffers().double().eval(), torch.randn(1, 3, 4, 4).double()
    small = fxprune.transform(net, x, ratio=0.5, importance="random", seed=1)
    assert list(small.state_dict()) == list(net.state_dict())
    assert small.scale.shape == small.offset.shape == (3, 1, 1)
    kept = [i for i in range(6) if i not in fxprune.record(small).removed["conv.weight"][0]]
    order = [i for i in net.order.tolist() if i in kept]
    assert small.order.tolist() == [kept.index(i) for i in order]
    assert relative_error(small(x), fxprune.masked(net, fxprune.record(small).removed)(x)) < 1e-9
