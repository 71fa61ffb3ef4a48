"""Scales that code computes from a smaller width: weights carry the ratio, or the width stays with that reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import fxprune
from fxprune.rewrite import carriers

WIDTH, HEADS = 24, 3
HEAD = WIDTH // HEADS


class Attention(nn.Module):
    """Self-attention with a head width in an attribute. `attend` computes the result from queries, keys and values."""

    def __init__(self, attend: Callable[..., Tensor], keys: int = HEADS) -> None:
        super().__init__()
        self.attend, self.head_dim = attend, HEAD
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, keys * HEAD), nn.Linear(WIDTH, keys * HEAD)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(self.attend(self, q, k, v).transpose(1, 2).reshape(*x.shape[:2], -1))


class Deciding(Attention):
    """The same with a decision by numbers, so that it runs on real tensors only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) < 1e9 else -x)


KINDS = pytest.mark.parametrize("kind", [Attention, Deciding])


def randomised(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.randn_like(parameter) * 0.4
    return net.double().eval()


X = torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def pruned(net: nn.Module, **options: Any) -> Any:
    options = {"ratio": 0.3, "importance": "random", "seed": 0, "path": "eager"} | options
    return fxprune.transform(net, X, **options)


def error(net: nn.Module, small: nn.Module, x: Tensor = X) -> float:
    reference = fxprune.masked(net, fxprune.record(small).removed)
    with torch.no_grad():
        return float((small(x) - reference(x)).abs().max() / reference(x).abs().max())


def test_weights_of_repeated_blocks_that_carry_a_factor_are_told_together() -> None:
    net = randomised(nn.Sequential(*(Attention(fused) for _ in range(4))))
    small = pruned(net)
    (told,) = [text for text in fxprune.record(small).reasons if "carry the ratio" in text]
    assert "smaller width: 0-3.q.bias, 0-3.q.weight carry the ratio" in told


def softmax(scores: Tensor, v: Tensor) -> Tensor:
    return scores.softmax(-1) @ v


def fused(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def fused_with_scale(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=net.head_dim**-0.5)


def queries_by_a_root(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax(q / math.sqrt(q.shape[-1]) @ k.mT, v)


def scores_by_a_root(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax(q @ k.mT * q.size(-1) ** -0.5, v)


def by_an_integer(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax(q @ k.mT / net.head_dim, v)


def in_place(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q *= net.head_dim**-0.5
    return softmax(q @ k.mT, v)


def keys_scaled(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax(q @ (k * net.head_dim**-0.5).mT, v)


def both_scaled(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scale = net.head_dim**-0.25
    return softmax((q * scale) @ (k * scale).mT, v)


def by_a_tensor(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax(q @ k.mT / torch.sqrt(torch.tensor(net.head_dim, dtype=q.dtype)), v)


def by_a_filled_tensor(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax(q @ k.mT / torch.full([], v.size(-1) ** 0.5, dtype=q.dtype), v)


def in_one_product(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n, length = q.shape[0] * q.shape[1], q.shape[2]
    zeros, scale = q.new_zeros(n, length, length), q.shape[-1] ** -0.5
    scores = torch.baddbmm(zeros, q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=scale)
    return softmax(scores.view(*q.shape[:3], length), v)


def einsums(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * net.head_dim**-0.5
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def masked_scores(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    return softmax((q @ k.mT).masked_fill(later, -math.inf) / math.sqrt(net.head_dim), v)


def rotated(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    angles = torch.arange(q.shape[2], dtype=q.dtype)[:, None] * 0.3

    def turn(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * angles.cos() + torch.cat((-b, a), -1) * angles.sin()

    return F.scaled_dot_product_attention(turn(q), turn(k), v)


def rectified(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.relu(), F.gelu(k), v)


def scaled_relative_term(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scale = net.head_dim**-0.5
    return softmax(q @ k.mT * scale + q.mean(-1, keepdim=True) * scale, v)


CARRIED = {
    fused: "q",
    fused_with_scale: "q",
    queries_by_a_root: "q",
    scores_by_a_root: "q",
    by_an_integer: "q",
    in_place: "q",
    keys_scaled: "k",
    both_scaled: "kq",
    by_a_tensor: "q",
    by_a_filled_tensor: "q",
    in_one_product: "q",
    einsums: "q",
    masked_scores: "q",
    rotated: "q",
    rectified: "q",
}


@pytest.mark.one_in(3)
@KINDS
@pytest.mark.parametrize("attend", CARRIED, ids=lambda function: function.__name__)
def test_weights_carry_the_ratio_of_two_scales(attend: Callable[..., Tensor], kind: type[Attention]) -> None:
    net = randomised(kind(attend))
    for verify in (True, False):
        small = pruned(net, verify=verify)
        record = fxprune.record(small)
        assert (type(small), record.why_not) == (kind, {})
        assert small.head_dim < HEAD
        assert error(net, small) < 1e-12
        names = [f"{layer}.{kind}" for layer in CARRIED[attend] for kind in ("bias", "weight")]
        assert [factor.tensor for factor in record.plan.factors] == names
        power = {by_an_integer: 1.0, both_scaled: 0.25}.get(attend, 0.5)
        want = (small.head_dim / HEAD) ** power
        assert [factor.factor for factor in record.plan.factors] == pytest.approx([want] * len(names), rel=1e-12)
        assert "carry the ratio to the scale of before, rounded to torch.float64" in record.reasons[-1]
    assert fxprune.verify(net, small, X[:, :3]) < 1e-12
    assert error(net, small, torch.randn(3, 7, WIDTH).double()) < 1e-12


class Causal(nn.Module):
    """Attention behind a norm over channels, whose statistic changes, and a method that calls forward in its way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.attention = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), Attention(rotated)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.norm(self.first(x)))

    def doubled(self, x: Tensor) -> Tensor:
        return self(2 * x)


@pytest.mark.parametrize("length", [3, 5])
def test_a_method_on_inputs_of_another_length_is_proven(length: int) -> None:
    net = randomised(Causal())
    small = pruned(net, methods={"doubled": X[:, :length]})
    record = fxprune.record(small)
    assert record.plan.factors
    assert record.error is not None
    assert record.error < 1e-12


def test_keys_with_fewer_heads() -> None:
    def attend(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v)

    net = randomised(Attention(attend, keys=1))
    small = pruned(net)
    assert small.head_dim < HEAD
    assert error(net, small) < 1e-12


def test_a_scale_that_is_stored_stays_and_no_weight_carries_anything() -> None:
    def attend(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return softmax(q @ k.mT * net.scale, v)

    net = Attention(attend)
    net.scale = HEAD**-0.5
    small = pruned(randomised(net))
    assert (small.scale, fxprune.record(small).plan.factors) == (HEAD**-0.5, ())
    assert error(net, small) < 1e-12


class Packed(nn.Module):
    """Queries, keys and values from one layer, in an order of their own."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order, self.head_dim = order, HEAD
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y, head = self.qkv(x), (*x.shape[:2], -1, self.head_dim)
        if self.order == "three":
            q, k, v = y.view(*x.shape[:2], 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        elif self.order == "inside heads":
            q, k, v = y.view(*x.shape[:2], -1, 3, self.head_dim).transpose(1, 2).unbind(3)
        else:
            q, k, v = (part.reshape(head).transpose(1, 2) for part in y.chunk(3, -1))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], -1))


@pytest.mark.parametrize("order", ["three", "inside heads", "chunks"])
def test_only_the_rows_of_the_queries_carry_a_factor(order: str) -> None:
    net = randomised(Packed(order))
    small = pruned(net)
    plan = fxprune.record(small).plan
    rows = [i for i in range(3 * WIDTH) if (i // HEAD % 3 == 0 if order == "inside heads" else i < WIDTH)]
    kept = [i for i in rows if i not in plan.removed["qkv.weight"][0]]
    places = [(factor.tensor, factor.dim, list(factor.slots or ())) for factor in plan.factors]
    assert places == [("qkv.bias", 0, kept), ("qkv.weight", 0, kept)]
    assert error(net, small) < 1e-12


class RootMeanSquare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HEAD))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(HEAD), lambda: nn.RMSNorm(HEAD), RootMeanSquare])
def test_the_affine_part_of_a_norm_carries_the_ratio(norm: Callable[[], nn.Module]) -> None:
    def attend(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(net.of_q(q), net.of_k(k), v)

    net = Attention(attend)
    net.of_q, net.of_k = norm(), norm()
    small = pruned(randomised(net))
    record = fxprune.record(small)
    assert {factor.tensor.rpartition(".")[0] for factor in record.plan.factors} == {"of_q"}
    assert record.error < 1e-12
    assert fxprune.verify(net, small, X) < 1e-12


def test_the_length_of_a_weight_norm_and_the_second_part_of_an_adapter_carry_the_ratio() -> None:
    net = Attention(fused)
    weight_norm(net.q)
    small = pruned(randomised(net))
    names = [factor.tensor for factor in fxprune.record(small).plan.factors]
    assert names == ["q.bias", "q.parametrizations.weight.original0"]
    assert fxprune.record(small).error < 1e-12

    class Adapted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(WIDTH, WIDTH)
            self.A, self.B = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0.7 * self.B(self.A(x))

    net = Attention(fused)
    net.q = Adapted()
    small = pruned(randomised(net))
    assert [f.tensor for f in fxprune.record(small).plan.factors] == ["q.B.weight", "q.bias", "q.weight"]
    assert error(net, small) < 1e-12


# -- held -----------------------------------------------------------------------------------------------------


def relative_term(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax(q * net.head_dim**-0.5 @ k.mT + q @ net.table.mT + k.sum(-1, keepdim=True), v)


def without_affine(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    norm = partial_norm
    return F.scaled_dot_product_attention(norm(q), norm(k), v)


def partial_norm(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-5).sqrt()


def tie(net: Attention) -> None:
    net.k = net.q


def spectral(net: Attention) -> None:
    spectral_norm(net.q)
    spectral_norm(net.k)


def add_table(net: Attention) -> None:
    net.table = nn.Parameter(torch.randn(5, HEAD))


@KINDS
@pytest.mark.parametrize(
    ("attend", "change", "why"),
    [
        (fused, tie, "aten::addmm reads it unscaled in q"),
        (fused, spectral, "in k.parametrizations.weight.0"),
        (relative_term, add_table, "reads it unscaled"),
        (without_affine, lambda net: None, "aten::div reads it unscaled"),
    ],
)
def test_the_head_width_stays_where_no_weights_can_carry_the_ratio(
    attend: Callable[..., Tensor], change: Callable[[Any], None], why: str, kind: type[Attention]
) -> None:
    net = kind(attend)
    change(net)
    small = pruned(randomised(net), ratio=0.4)
    record = fxprune.record(small)
    assert (small.head_dim, record.plan.factors) == (HEAD, ())
    assert small.o.in_features == 2 * HEAD, "a whole head goes instead"
    (reason,) = [r for r in record.reasons if "no weights can carry the ratio" in r]
    assert why in reason
    assert "computed from a size; it was" in reason
    assert error(net, small) < 1e-12


class Boxes(nn.Module):
    """A mean over the rows that a layer has chosen: their number is an argument of a division, and no scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.chooses, self.last = nn.Linear(WIDTH, 40), nn.Linear(40, 1), nn.Linear(40, 3)

    def chosen(self, x: Tensor) -> Tensor:
        h = self.first(x).relu().flatten(0, 1)
        return h[self.chooses(h)[:, 0] > 0]

    def forward(self, x: Tensor) -> Tensor:
        rows = self.chosen(x)
        return self.last(rows).sum(0) / rows.shape[0]


def test_a_number_of_chosen_rows_is_no_scale() -> None:
    net, x = randomised(Boxes()), torch.randn(6, 10, WIDTH).double()
    small = fxprune.transform(net, x, ratio=0.5, importance="random", seed=0, path="eager")
    assert small.first.out_features == 20
    assert len(small.chosen(x)) != len(net.chosen(x))
    assert error(net, small, x) < 1e-12


# -- what a factor meets ---------------------------------------------------------------------------------------


def test_gradients_are_those_of_the_masked_original_divided_by_the_factors() -> None:
    net = randomised(Attention(fused))
    small = pruned(net)
    plan = fxprune.record(small).plan
    reference = fxprune.masked(net, plan.removed)
    small(X).square().sum().backward()
    reference(X).square().sum().backward()
    rows = torch.tensor(plan.kept["q.weight"][0])
    factor = {f.tensor: f.factor for f in plan.factors}["q.weight"]
    assert torch.allclose(small.q.weight.grad * factor, reference.get_parameter("q.weight").grad[rows])


def test_factors_are_rounded_once_and_the_rounding_is_no_error() -> None:
    torch.manual_seed(0)
    net = Attention(fused).to(torch.bfloat16).eval()
    small = fxprune.transform(net, X.to(torch.bfloat16), ratio=0.3, path="eager")
    record = fxprune.record(small)
    assert record.error < 1e-9
    assert "rounded to torch.bfloat16" in record.reasons[-1]
    rows = torch.tensor(record.plan.kept["q.weight"][0])
    exact = net.q.weight.detach().double()[rows] * record.plan.factors[1].factor
    assert torch.equal(small.q.weight.detach(), exact.to(torch.bfloat16))


def test_a_bias_that_takes_up_constants_carries_the_factor_of_its_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.attention = nn.Linear(WIDTH, WIDTH), Attention(fused)
            self.attention.q = nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(self.first(x).relu())

    net = randomised(Net())
    net.first.weight.data[:6], net.first.bias.data[:6] = 0, 1.5
    for name in "qkv":
        layer = net.attention.get_submodule(name)
        for tensor in layer.parameters():
            tensor.data.view(HEADS, HEAD, -1)[:, 5:] = 0
    small = fxprune.transform(net, X, masks="zeros", path="eager")
    assert (small.attention.head_dim, small.first.out_features) == (5, WIDTH - 6)
    assert [f.tensor for f in fxprune.record(small).plan.factors] == ["attention.q.weight"]
    assert small.attention.q.bias.abs().min() > 0
    with torch.no_grad():
        assert torch.allclose(small(X), net(X), rtol=1e-12, atol=1e-12)


def test_one_layer_for_several_calls_carries_one_factor() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention(fused)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(self.attention(x))

    net = randomised(Twice())
    small = pruned(net)
    assert len(fxprune.record(small).plan.factors) == 2
    assert error(net, small) < 1e-11


def test_weights_are_asked_before_what_other_layers_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    passes, run = [], carriers._Pass.run
    monkeypatch.setattr(carriers._Pass, "run", lambda attempt: passes.append(attempt) or run(attempt))
    blocks = randomised(nn.Sequential(*(Attention(fused) for _ in range(3))))
    small = pruned(blocks)
    assert small[0].head_dim < HEAD
    assert len(passes) == 1
    assert error(blocks, small) < 1e-9


class Rotated(nn.Module):
    """Attention whose queries and keys have a rotated part, by a product of complex numbers, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_turned, self.k_turned = nn.Linear(WIDTH, 4 * HEADS), nn.Linear(WIDTH, 4 * HEADS)
        self.v, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = (self.q, self.q_turned, self.k, self.k_turned, self.v)
        q, q_turned, k, k_turned, v = (part(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2) for part in parts)
        angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype)
        turns = torch.polar(torch.ones_like(angles), angles)
        q, k = (
            torch.cat((own, torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2))) * turns).flatten(3)), -1)
            for own, t in ((q, q_turned), (k, k_turned))
        )
        made = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return self.o(made.transpose(1, 2).flatten(2))


@pytest.mark.filterwarnings("ignore:ratio. .q. means 2 groups")
def test_a_factor_goes_through_a_product_of_complex_numbers() -> None:
    net = randomised(Rotated())
    small = pruned(net, ratio={"q": 0.5})
    assert (small.q.out_features, small.q_turned.out_features) == (WIDTH // 2, 4 * HEADS)
    carrying = {factor.tensor for factor in fxprune.record(small).plan.factors}
    assert carrying >= {"q.weight", "q_turned.weight"} or carrying >= {"k.weight", "k_turned.weight"}
    assert fxprune.verify(net, small, X) <= 1e-9


class Repeated(nn.Module):
    """Attention of four heads, two of which have the same keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = HEAD
        self.q, self.o = nn.Linear(WIDTH, 4 * HEAD), nn.Linear(4 * HEAD, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, 2 * HEAD), nn.Linear(WIDTH, 2 * HEAD)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for p in (self.q, self.k, self.v))
        k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).reshape(t.shape[0], -1, *t.shape[2:]) for t in (k, v))
        return self.o(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(*x.shape[:2], -1))


def test_one_of_two_repeated_heads_stays() -> None:
    """With one of them `reshape` makes a view, with two a copy, and a later copy has another number."""
    net = randomised(Repeated())
    groups = fxprune.analyze(net, X, path="eager").groups
    heads = next(g for g in groups if g.kind == "heads" and "k.weight" in {m.parameter for m in g.members})
    small = pruned(net, ratio={heads.key: 0.5})
    assert (small.q.out_features, small.k.out_features) == (2 * HEAD, HEAD)
    assert fxprune.verify(net, small, X) <= 1e-9


class MadeInForward(nn.Module):
    """Makes a layer in its first forward, which draws its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 16)
        self.b: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.b is None:
            self.b = nn.Linear(h.shape[1], 4)
        return self.b(h)


def test_the_search_for_factors_leaves_the_random_state_as_it_was() -> None:
    model, x = MadeInForward(), torch.randn(3, 6)
    before = torch.get_rng_state()
    fxprune.transform(model, x, ratio=0.5)
    assert torch.equal(torch.get_rng_state(), before)
