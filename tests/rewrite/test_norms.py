"""Statistics that keep counting the original width: `norms="preserve"`."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from fxprune.proof.deterministic import NoRandomness
from fxprune.rewrite.norm_layers import LayerNorm, RMSNorm, layer_norm, rms_norm
from tests.networks import randomize
from tests.support import randomise, torchvision

ROUNDING = 1e-9
GRAPHS = ("fx", "export")
PATHS = ("fx", "eager", "export")


def error(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours - reference).detach().abs().max() / reference.detach().abs().max())


def from_masked(net: nn.Module, small: nn.Module, *inputs: Any, out: Callable[[Any], Tensor] = lambda y: y) -> float:
    """The error of the small model against the original with removed slots at zero; casts are to float64."""
    reference = fxprune.masked(net, fxprune.record(small).removed)
    with torch.no_grad(), NoRandomness():
        return error(out(small(*inputs)), out(reference(*inputs)))


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- models -----------------------------------------------------------------------------------------------


class FunctionalLayerNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.scale, self.shift, 1e-2)


class FunctionalRMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.width = nn.Parameter(torch.zeros(width)), width

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.width,), weight=self.scale, eps=1e-2)


class MeanSquare(nn.Module):
    """A norm by hand, whose `weight` is the scale, or the scale minus 1."""

    def __init__(self, width: int, offset: float = 0.0) -> None:
        super().__init__()
        self.weight, self.variance_epsilon, self.offset = nn.Parameter(torch.zeros(width)), 1e-2, offset

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return y * (self.offset + self.weight)


class OneAndWeight(MeanSquare):
    def __init__(self, width: int) -> None:
        super().__init__(width, 1.0)


class Variance(nn.Module):
    """A layer norm by hand: its second mean is over what is not zero where the channel is gone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class OwnForward(nn.LayerNorm):
    """A subclass that does the same."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class Doubled(nn.LayerNorm):
    """A subclass that does something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class SquaredWeight(MeanSquare):
    """The factor of a new width cannot be taken into this weight as it is into others."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight.sign() * self.weight.abs().exp()


class Residual(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module], width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = norm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class MLP(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module], width: int = 12) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(5, width), nn.Linear(width, 3)
        self.blocks = nn.Sequential(Residual(norm, width), Residual(norm, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.stem(x)))


def ready(net: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    return randomise(randomize(net.to(dtype).eval(), 0), 1)


def plain_layer_norm(width: int) -> nn.Module:
    return nn.LayerNorm(width, eps=1e-2)


def bare_layer_norm(width: int) -> nn.Module:
    return nn.LayerNorm(width, eps=1e-2, elementwise_affine=False)


def plain_rms_norm(width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=1e-2)


def bare_rms_norm(width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=1e-2, elementwise_affine=False)


POSSIBLE = [
    *(
        (norm, path)
        for norm in (plain_layer_norm, bare_layer_norm, plain_rms_norm, bare_rms_norm, nn.RMSNorm)
        for path in PATHS
    ),
    *((norm, path) for norm in (MeanSquare, OneAndWeight, OwnForward) for path in PATHS),
    *((norm, path) for norm in (FunctionalLayerNorm, FunctionalRMSNorm, Doubled, SquaredWeight) for path in GRAPHS),
]
IMPOSSIBLE = [
    *((Variance, path) for path in PATHS),
    *((norm, "eager") for norm in (FunctionalLayerNorm, FunctionalRMSNorm, Doubled, SquaredWeight)),
]


IN_SINGLE = pytest.param(torch.float32, id="single", marks=pytest.mark.slow)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("dtype", [pytest.param(torch.float64, id="double"), IN_SINGLE])
@pytest.mark.parametrize(("norm", "path"), POSSIBLE)
def test_a_norm_keeps_its_width(norm: Any, path: str, dtype: torch.dtype) -> None:
    net, x = ready(MLP(norm), dtype), random(2, 4, 5).to(dtype)
    small = fxprune.transform(net, x, ratio=0.5, norms="preserve", path=path)
    made = fxprune.record(small)
    assert made.exact
    assert made.norms == "preserve"
    assert not any("statistic" in reason for reason in made.reasons)
    assert made.error < ROUNDING, "what the weights are rounded to is no error"
    assert made.after["stem.weight"] == (6, 5)
    if path != "export" and norm in (plain_rms_norm, nn.RMSNorm):
        assert type(small.get_submodule("blocks.0.norm")) is nn.RMSNorm
    assert fxprune.verify(net, small, 2 * x) < ROUNDING
    assert from_masked(net, small, x) < (ROUNDING if dtype == torch.float64 else 1e-5)
    exact = fxprune.transform(net, x, ratio=0.5, norms="preserve", path=path, exact=True)
    assert fxprune.record(exact).after["stem.weight"] == (6, 5)


@pytest.mark.parametrize(("norm", "path"), IMPOSSIBLE)
def test_norms_that_cannot_be_preserved_are_the_same_under_both_options(norm: Any, path: str) -> None:
    net, x = ready(MLP(norm)), random(2, 4, 5)
    small, kept = (fxprune.transform(net, x, ratio=0.5, norms=norms, path=path) for norms in ("preserve", "kept"))
    assert not fxprune.record(small).exact
    told = [reason.partition('; norms="preserve" does not keep it: ') for reason in fxprune.record(small).reasons]
    assert tuple(changed for changed, *_ in told) == fxprune.record(kept).reasons != ()
    assert all(why for *_, why in told)
    assert torch.equal(small(x), kept(x))
    assert fxprune.verify(net, small, x) < ROUNDING
    exact = fxprune.transform(net, x, ratio=0.5, norms="preserve", path=path, exact=True)
    assert fxprune.record(exact).after["stem.weight"] == (12, 5)
    assert from_masked(net, exact, x) < ROUNDING


@pytest.mark.parametrize("norm", [plain_layer_norm, plain_rms_norm])
def test_by_default_norms_count_the_kept_width(norm: Any) -> None:
    net, x = ready(MLP(norm)), random(2, 4, 5)
    small = fxprune.transform(net, x, ratio=0.5)
    assert fxprune.record(small).norms == "kept"
    assert not fxprune.record(small).exact
    assert from_masked(net, small, x) > 1e-3
    assert type(small.get_submodule("blocks.0.norm")) is type(norm(4))


def test_there_are_two_norms() -> None:
    with pytest.raises(fxprune.PlanError, match="there are no norms 'both'"):
        fxprune.transform(ready(MLP(plain_layer_norm)), random(2, 4, 5), ratio=0.5, norms="both")


@pytest.mark.parametrize("kind", ["norm", "eps"])
def test_verify_sees_a_wrong_weight_or_epsilon(kind: str) -> None:
    net, x = ready(MLP(plain_rms_norm), torch.float32), random(2, 4, 5).float()
    small = fxprune.transform(net, x, ratio=0.5, norms="preserve")
    assert fxprune.verify(net, small, x) < ROUNDING
    norm = small.get_submodule("blocks.0.norm")
    with torch.no_grad():
        if kind == "norm":
            norm.weight[0] = torch.nextafter(norm.weight[0], torch.tensor(9.0))
        else:
            norm.eps *= 1.0001
    assert fxprune.verify(net, small, x) > ROUNDING


# -- again and again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["fx", "eager"])
@pytest.mark.parametrize(
    "norm", [plain_layer_norm, bare_layer_norm, plain_rms_norm, bare_rms_norm, MeanSquare, OneAndWeight, OwnForward]
)
def test_a_second_pruning_counts_the_very_first_width(norm: Any, path: str) -> None:
    net, x = ready(MLP(norm)), random(2, 4, 5)
    first = fxprune.transform(net, x, ratio=0.5, norms="preserve", path=path)
    second = fxprune.transform(first, x, ratio=0.5, norms="preserve", path=path)
    made = [fxprune.record(m).removed["stem.weight"][0] for m in (first, second)]
    left = [i for i in range(12) if i not in made[0]]
    both = {0: sorted([*made[0], *(left[i] for i in made[1])])}
    assert fxprune.record(second).exact
    assert from_masked(first, second, x) < ROUNDING
    layers = [n for n, m in second.named_modules() if isinstance(m, (LayerNorm, RMSNorm))]
    assert all((second.get_submodule(n).width, second.get_submodule(n).normalized_shape) == (12, (3,)) for n in layers)
    classes = (plain_layer_norm, bare_layer_norm, bare_rms_norm, OwnForward)
    assert len(layers) == (2 if norm in classes else 0)
    if norm in (plain_layer_norm, plain_rms_norm):  # the widths inside the blocks stay, so that one mask says it all
        plan = {"stem.weight": both, "stem.bias": both, "out.weight": {1: both[0]}}
        for k in range(2):
            plan |= {f"blocks.{k}.{n}": both for n in ("norm.weight", "norm.bias", "down.weight", "down.bias")}
            plan |= {f"blocks.{k}.up.weight": {1: both[0]}}
        known = dict(net.named_parameters())
        reference = fxprune.masked(net, {name: dims for name, dims in plan.items() if name in known})
        ignore = "blocks.*.up"
        first = fxprune.transform(net, x, ratio=0.5, norms="preserve", path=path, ignore=ignore)
        second = fxprune.transform(first, x, ratio=0.5, norms="preserve", path=path, ignore=ignore)
        assert error(second(x), reference(x)) < ROUNDING


@pytest.mark.parametrize("norm", [FunctionalLayerNorm, FunctionalRMSNorm, MeanSquare])
def test_a_second_pruning_of_a_rewritten_graph(norm: Any) -> None:
    net, x = ready(MLP(norm)), random(2, 4, 5)
    first = fxprune.transform(net, x, ratio=0.25, norms="preserve", path="fx")
    for norms in ("preserve", "kept"):
        second = fxprune.transform(first, x, ratio=0.5, norms=norms)
        assert fxprune.record(second).after["stem.weight"] == (5, 5)
        assert fxprune.record(second).exact or (norms, norm) == ("kept", MeanSquare)
        assert fxprune.record(second).error < ROUNDING
        if norms == "preserve":
            assert from_masked(first, second, x) < ROUNDING


# -- single statistics ------------------------------------------------------------------------------------


class Reduced(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor], reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.activation, self.reduce, self.out = nn.Linear(5, 8), activation, reduce, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.sigmoid(self.reduce(self.activation(self.stem(x)))))


@pytest.mark.parametrize("path", GRAPHS)
@pytest.mark.parametrize(
    "reduce",
    [
        lambda x: x.mean(-1),
        lambda x: x.mean(dim=(0, 2), keepdim=True).squeeze(2) + torch.ones(4, dtype=torch.float64),
        lambda x: torch.mean(x, 2),
        lambda x: torch.mean(x).expand(1, 4),
        lambda x: x.mean(-1) + x.mean(-1, keepdim=True)[..., 0] * x.mean(),
    ],
)
def test_a_mean_is_multiplied(reduce: Any, path: str) -> None:
    net, x = ready(Reduced(torch.tanh, reduce)), random(3, 4, 5)
    small = fxprune.transform(net, x, ratio=0.5, norms="preserve", path=path)
    assert fxprune.record(small).exact
    assert fxprune.record(small).after["stem.weight"] == (4, 5)
    assert from_masked(net, small, x) < ROUNDING
    assert fxprune.verify(net, small, x) < ROUNDING


@pytest.mark.parametrize(
    ("activation", "reduce"),
    [
        (torch.sigmoid, lambda x: x.mean(-1)),
        (torch.tanh, lambda x: x.amax(-1)),
        (torch.tanh, lambda x: x.var(-1)),
        (torch.tanh, lambda x: F.softmax(x, -1)[..., :1].expand(-1, -1, 4)[:, 0]),
        (torch.tanh, lambda x: F.group_norm(x.transpose(1, 2), 2)[:, 0]),
    ],
    ids=["not zero", "largest", "variance", "softmax", "group norm"],
)
def test_other_statistics_are_still_marked(activation: Any, reduce: Any) -> None:
    net, x = ready(Reduced(activation, reduce)), random(3, 4, 5)
    small = fxprune.transform(net, x, ratio=0.5, norms="preserve", prefer="graph")
    assert not fxprune.record(small).exact
    assert any("a statistic changed" in reason for reason in fxprune.record(small).reasons)
    assert fxprune.record(small).after["stem.weight"][0] < 8
    assert fxprune.verify(net, small, x) < ROUNDING


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("path", PATHS)
def test_a_norm_over_values_that_are_not_zero_is_still_marked(kind: Any, path: str) -> None:
    net, x = ready(nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), kind(8, eps=1e-2), nn.Linear(8, 2))), random(4, 5)
    small = fxprune.transform(net, x, ratio=0.5, norms="preserve", path=path)
    assert not fxprune.record(small).exact
    assert fxprune.record(small).after["0.weight"] == (4, 5)
    assert fxprune.verify(net, small, x) < ROUNDING


class Several(nn.Module):
    """One width under a layer norm, a group norm and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.groups, self.out = (
            nn.Linear(5, 8),
            nn.LayerNorm(8),
            nn.GroupNorm(1, 8),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return self.out(self.groups(x) * torch.softmax(x, -1))


@pytest.mark.parametrize("path", PATHS)
def test_a_norm_is_preserved_beside_statistics_that_cannot_be(path: str) -> None:
    net, x = ready(Several()), random(4, 5)
    small = fxprune.transform(net, x, ratio=0.5, norms="preserve", path=path)
    assert not fxprune.record(small).exact
    reasons = " ".join(fxprune.record(small).reasons)
    assert "group_norm" in reasons
    assert "softmax" in reasons
    assert "layer_norm" not in reasons
    assert sum(isinstance(m, LayerNorm) for m in small.modules()) == 1
    assert fxprune.verify(net, small, x) < ROUNDING


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.out = nn.Conv2d(3, 8, 1), nn.LayerNorm((8, 4, 3)), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.stem(x)))


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("path", PATHS)
def test_one_of_several_normalized_dimensions(kind: Any, path: str) -> None:
    net, x = Image(), random(2, 3, 4, 3)
    net.norm = kind((8, 4, 3), eps=1e-2)
    small = fxprune.transform(ready(net), x, ratio=0.5, norms="preserve", path=path)
    assert fxprune.record(small).exact
    assert fxprune.record(small).after["norm.weight"] == (4, 4, 3)
    assert from_masked(net, small, x) < ROUNDING


@pytest.mark.parametrize("norm", [nn.RMSNorm, MeanSquare])
def test_a_weight_that_two_norms_share_takes_up_nothing(norm: Any) -> None:
    net, x = ready(MLP(norm)), random(2, 4, 5)
    net.get_submodule("blocks.1.norm").weight = net.get_submodule("blocks.0.norm").weight
    small = fxprune.transform(net, x, ratio=0.5, norms="preserve", path="eager")
    assert fxprune.record(small).exact == (norm is nn.RMSNorm), "which then gets another class"
    assert fxprune.verify(net, small, x) < ROUNDING
    kept = [i for i in range(12) if i not in fxprune.record(small).removed["stem.weight"][0]]
    assert torch.equal(small.blocks[0].norm.weight, net.blocks[0].norm.weight[kept])


@pytest.mark.parametrize("norm", [plain_layer_norm, plain_rms_norm, MeanSquare])
@pytest.mark.parametrize("path", ["fx", "eager"])
def test_a_module_in_two_places_is_one(norm: Any, path: str) -> None:
    net, x = MLP(norm), random(2, 4, 5)
    net.blocks[1].norm = net.blocks[0].norm
    small = fxprune.transform(ready(net), x, ratio=0.5, norms="preserve", path=path)
    assert fxprune.record(small).exact
    assert from_masked(net, small, x) < ROUNDING


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.stem, self.encoder, self.out = nn.Linear(5, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.out(self.encoder(self.stem(x), src_key_padding_mask=mask))


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
@pytest.mark.parametrize("path", ["fx", "eager"])
def test_no_fused_kernel_takes_the_place_of_the_norm(path: str) -> None:
    """`nn.TransformerEncoderLayer` reads weights and epsilons of its norms where gradients are off."""
    net, x = ready(Encoder()), random(2, 4, 5)
    shares = {"*:channels": 0.5, "*:heads": 0.5}  # half of the heads: attention stays torch's own
    small = fxprune.transform(net, x, ratio=shares, norms="preserve", path=path)
    assert type(small.get_submodule("encoder.layers.0.self_attn")) is nn.MultiheadAttention
    assert fxprune.record(small).exact
    assert fxprune.record(small).after["encoder.layers.1.norm2.weight"] == (8,)
    assert from_masked(net, small, x) < ROUNDING
    mask = torch.tensor([[False] * 4, [False, False, True, True]])
    with torch.no_grad():
        plain = fxprune.masked(net, fxprune.record(small).removed)
        assert error(small(x), plain(x)) < ROUNDING
        if path == "eager":
            assert error(small(x, mask)[0], plain(x, mask)[0]) < ROUNDING


# -- the layer itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_layer_is_torchs_own_on_zeros(dtype: torch.dtype) -> None:
    x, weight, bias = (random(*shape, seed=s).to(dtype) for s, shape in enumerate([(3, 4, 6), (4, 6), (4, 6)]))
    x += 3
    wide, more = (
        F.pad(x, (0, 5)),
        F.pad(weight, (0, 5)),
    )
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    want = F.layer_norm(wide, (4, 11), more, F.pad(bias, (0, 5)), 1e-3)[..., :6]
    have = layer_norm(x, (4, 6), weight, bias, 1e-3, 44)
    assert have.dtype == dtype
    assert error(have, want) < tolerance
    for eps in (1e-3, None):
        want = F.rms_norm(wide * 1e-3, (4, 11), more, eps)[..., :6]
        have = rms_norm(x * 1e-3, (4, 6), weight, eps, 44)
        assert have.dtype == dtype
        assert error(have, want) < tolerance


def test_a_mean_far_from_zero_takes_no_digits() -> None:
    """sum x^2 / N - mean^2 would lose all of them in float32."""
    x = random(3, 64) + 1e3
    exact = layer_norm(x, (64,), None, None, 1e-5, 64)
    assert error(layer_norm(x.float(), (64,), None, None, 1e-5, 64), exact) < 1e-3


@pytest.mark.parametrize("norm", [FunctionalLayerNorm, FunctionalRMSNorm, MeanSquare, plain_layer_norm])
@pytest.mark.parametrize("path", GRAPHS)
def test_a_graph_lives_like_any_other(norm: Any, path: str) -> None:
    net, x = ready(MLP(norm)), random(2, 4, 5)
    small = fxprune.transform(net, x, ratio=0.5, norms="preserve", path=path)
    assert list(small.state_dict()) == list(net.state_dict())
    for node in small.graph.nodes:
        node.type = None  # the annotations of this file are strings, which torch cannot pickle
    small.recompile()
    copies = [copy.deepcopy(small), pickle.loads(pickle.dumps(small))]
    copies.append(torch.export.export(copy.deepcopy(small), (x,)).module())
    for clone in copies:
        assert error(clone(x), small(x)) < 1e-14
    assert small.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("norm", [plain_layer_norm, bare_rms_norm])
def test_the_layer_lives_like_any_other(norm: Any) -> None:
    net, x = ready(MLP(norm)), random(2, 4, 5)
    small = fxprune.transform(net, x, ratio=0.5, norms="preserve", path="eager")
    assert list(small.state_dict()) == list(net.state_dict())
    assert "width=12" in repr(small)
    want = small(x)
    other = fxprune.transform(ready(MLP(norm)), x, ratio=0.5, norms="preserve", path="eager")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(small.state_dict())
    saved = io.BytesIO()
    torch.save(small, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(small),
        pickle.loads(pickle.dumps(small)),
        torch.load(saved, weights_only=False),
        other,
        fx.symbolic_trace(small),
        torch.export.export(small, (x,)).module(),
    ]
    assert all(error(clone(x), want) < 1e-14 for clone in copies)
    fx.symbolic_trace(small).graph.lint()


def test_gradients_are_those_of_the_masked_model() -> None:
    net, x = ready(MLP(plain_layer_norm)), random(2, 4, 5)
    small = fxprune.transform(net, x, ratio=0.5, norms="preserve", ignore="blocks.*.up")
    reference = fxprune.masked(net, fxprune.record(small).removed)
    kept = [i for i in range(12) if i not in fxprune.record(small).removed["stem.weight"][0]]
    for model in (small, reference):
        model(x).square().sum().backward()
    for name in ("stem.weight", "blocks.0.norm.weight", "blocks.1.norm.bias", "blocks.0.down.weight"):
        ours, theirs = small.get_parameter(name).grad, reference.get_parameter(name).grad
        assert error(ours, theirs[kept]) < ROUNDING


def test_the_layer_says_no_to_another_width() -> None:
    for kind in (LayerNorm, RMSNorm):
        with pytest.raises(RuntimeError, match="does not end with"):
            kind(4, elementwise_affine=False, width=6)(random(2, 3))


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])
@pytest.mark.parametrize("path", ["fx", "eager"])
def test_channels_that_are_not_zero_are_locked_before_the_layer(kind: Any, path: str) -> None:
    for activation, width in ((nn.Tanh(), 4), (nn.Sigmoid(), 8)):
        layers = [nn.Linear(5, 8), activation, kind(8, eps=1e-2, width=10), nn.Linear(8, 3)]
        net, x = ready(nn.Sequential(*layers, nn.ReLU(), nn.Linear(3, 2))), random(4, 5)
        small = fxprune.transform(net, x, ratio=0.5, path=path)
        assert fxprune.record(small).after["0.weight"] == (width, 5)
        assert fxprune.record(small).exact
        assert fxprune.verify(net, small, x) < ROUNDING


class Norm(nn.Module):
    """The sum of what a layer without a weight gives: of zeros where that is an RMS norm."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(5, 8), kind(8, eps=1e-2, elementwise_affine=False, width=10)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.stem(x)).sum(-1)


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])
@pytest.mark.parametrize("path", ["fx", "eager"])
def test_a_sum_after_the_layer_is_exact_if_zeros_stay_zeros(kind: Any, path: str) -> None:
    net, x = ready(Norm(kind)), random(4, 5)
    small = fxprune.transform(net, x, ratio=0.5, path=path)
    assert fxprune.record(small).exact == (kind is RMSNorm)
    assert fxprune.verify(net, small, x) < ROUNDING


# -- transformers -----------------------------------------------------------------------------------------


class Headed(nn.Module):
    """An encoder whose hidden width is no output."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(ids)[0])


SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"num_key_value_heads": 2, "head_dim": 4, "use_cache": False}


def transformer(kind: str) -> nn.Module:
    torchvision()
    import transformers

    if kind == "Llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS))
    if kind == "Gemma":
        return transformers.GemmaForCausalLM(transformers.GemmaConfig(**SIZES, **HEADS))
    if kind == "Qwen3":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, **HEADS))
    if kind == "T5":
        config = transformers.T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
        return Headed(transformers.T5EncoderModel(config), 16)
    if kind == "Bert":
        return Headed(transformers.BertModel(transformers.BertConfig(**SIZES, max_position_embeddings=8)), 16)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=8, n_embd=16, n_layer=2, n_head=4, use_cache=False, **ids
    )
    return transformers.GPT2LMHeadModel(config)


NORMS = {
    "Llama": ("model.norm.weight", "LlamaRMSNorm"),
    "Gemma": ("model.norm.weight", "GemmaRMSNorm"),
    "Qwen3": ("model.norm.weight", "Qwen3RMSNorm"),
    "T5": ("encoder.encoder.final_layer_norm.weight", "T5LayerNorm"),
    "Bert": ("encoder.encoder.layer.1.output.LayerNorm.weight", "LayerNorm"),
    "GPT2": ("transformer.ln_f.weight", "LayerNorm"),
}


def logits(made: Any) -> Tensor:
    return made if isinstance(made, Tensor) else made[0]


OFTEN = ("Llama", "Bert")


@pytest.mark.parametrize(
    "kind", [kind if kind in OFTEN else pytest.param(kind, marks=pytest.mark.slow) for kind in NORMS]
)
def test_transformers_keep_the_width_of_their_norms(kind: str) -> None:
    net, ids = ready(transformer(kind)), torch.tensor([[3, 5, 9, 4], [3, 4, 7, 8]])
    small = fxprune.transform(net, (ids,), ratio=0.5, norms="preserve", path="eager", exact=True)
    weight, name = NORMS[kind]
    made = fxprune.record(small)
    assert made.exact
    assert made.error < ROUNDING
    assert made.after[weight] == (8,)
    assert type(small.get_submodule(weight.removesuffix(".weight"))).__name__ == name
    assert from_masked(net, small, ids, out=logits) < ROUNDING
    assert fxprune.verify(net, small, (ids.flip(0)[:, :3],)) < ROUNDING
    again = fxprune.transform(small, (ids,), ratio=0.5, norms="preserve", path="eager", exact=True)
    assert fxprune.record(again).after[weight] == (4,)
    assert from_masked(small, again, ids, out=logits) < ROUNDING
    kept = fxprune.transform(net, (ids,), ratio=0.5, path="eager")
    assert not fxprune.record(kept).exact


def test_a_layer_that_stands_for_a_layer_norm_is_no_operation_of_one_model_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 3)).double()
    small = fxprune.transform(model, torch.randn(4, 6).double(), ratio=0.5, norms="preserve", path="eager")
    assert isinstance(small[1], LayerNorm)
    assert fxprune.record(small).one_sided == ()
