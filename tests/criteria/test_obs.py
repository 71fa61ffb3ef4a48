"""Optimal brain surgery against least squares on the rows themselves, with the kept inputs refitted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from fxprune.criteria import obs_importance
from fxprune.errors import InputError, PlanError
from tests.support import randomise

BATCH = 40


def rows_of(module, x):
    """The inputs of a layer as rows [r, k], and its weight [o, k], of a layer without groups."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1]), module.weight
    if isinstance(module, nn.ConvTranspose2d):  # the convolution of x, spread out, by the kernel upside down
        spread = x.new_zeros(*x.shape[:2], *(module.stride[0] * (n - 1) + 1 for n in x.shape[2:]))
        spread[:, :, :: module.stride[0], :: module.stride[0]] = x
        around = module.kernel_size[0] - 1 - module.padding[0]
        patches = F.unfold(spread, module.kernel_size, padding=around)
        return patches.movedim(1, -1).flatten(0, 1), module.weight.flip(2, 3).transpose(0, 1).flatten(1)
    patches = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
    return patches.movedim(1, -1).flatten(0, 1), module.weight.flatten(1)


def read(model, readers, x):
    """The inputs of each reading layer."""
    found = {}

    def note(name):
        return lambda module, args: found.update({name: args[0]})

    handles = [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in readers]
    model(x)
    for handle in handles:
        handle.remove()
    return found


def error(model, readers, x, gone, size):
    """The mean share of the outputs of the readers that is lost without some channels, after a fit of the others."""
    total = 0.0
    for name, given in read(model, readers, x).items():
        rows, weight = rows_of(model.get_submodule(name), given)
        per = rows.shape[1] // size
        rows = rows - rows.mean(0)
        wanted = rows @ weight.T
        kept = [c * per + t for c in range(size) if c not in gone for t in range(per)]
        left = wanted
        if kept:
            left = wanted - rows[:, kept] @ torch.linalg.lstsq(rows[:, kept], wanted).solution
        total += float(left.square().sum() / wanted.square().sum()) / len(readers)
    return total


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.up, self.head = nn.ConvTranspose2d(6, 3, 2, 2), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.tanh(x + self.b(torch.relu(self.a(x))))
        return self.up(x), self.head(x.mean((2, 3)))


CASES = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)),
        (5,), {"0": ["2"]},
    ),
    "flattened": (
        lambda: nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)),
        (2, 4, 4), {"0": ["3"]},
    ),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3, stride=2, padding=1)),
        (2, 8, 8), {"0": ["2"]},
    ),
    "residual": (Residual, (2, 6, 6), {"stem": ["a", "up", "head"], "a": ["b"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_curve_is_the_error_of_least_squares_and_every_step_is_the_cheapest(case):
    make, shape, groups = CASES[case]
    model = randomise(make().double(), 5).eval()
    x = torch.randn(BATCH, *shape, dtype=torch.float64)
    importance = obs_importance(model, x.split(16), ridge=1e-10)
    analysis = fxprune.analyze(model, x[:1])
    with torch.no_grad():
        for group in analysis.groups:
            readers = groups[group.name]
            order, curve = importance.order(group).tolist(), importance.curve(group)
            assert sorted(order) == list(range(group.size))
            for step in range(group.size):
                wanted = error(model, readers, x, order[: step + 1], group.size)
                assert float(curve[step + 1]) == pytest.approx(wanted, rel=1e-4, abs=1e-7), (group.name, step)
                others = [error(model, readers, x, [*order[:step], c], group.size) for c in order[step:]]
                assert wanted == pytest.approx(min(others), rel=1e-4, abs=1e-7)


def test_scores_rank_the_channels_in_their_order():
    model = randomise(Residual().double(), 5).eval()
    x = torch.randn(BATCH, 2, 6, 6, dtype=torch.float64)
    importance = obs_importance(model, [x])
    for group in fxprune.analyze(model, x[:1]).groups:
        assert importance(group).argsort(stable=True).tolist() == importance.order(group).tolist()
        assert bool((importance(group).sort().values.diff() > 0).all())


def test_a_channel_that_others_make_up_for_goes_first():
    """A magnitude would keep it: it is the largest."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Identity(), nn.Linear(3, 2)).double().eval()
    with torch.no_grad():
        model[0].weight[2] = 4 * model[0].weight[0] + 5 * model[0].weight[1]
    x = torch.randn(BATCH, 4, dtype=torch.float64)
    plan = fxprune.analyze(model, x).plan(ratio=0.34, importance="obs", data=[x])
    small = fxprune.transform(model, x, plan=plan, repair=[x])
    assert torch.allclose(small(x), model(x), atol=1e-3 * float(model(x).detach().abs().mean()))


def test_blocks_of_a_grouped_convolution_add_up():
    """The same layer as two convolutions side by side gives the same curve."""

    class Split(nn.Module):
        def __init__(self, whole):
            super().__init__()
            self.first, self.a, self.b = whole[0], nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)
            with torch.no_grad():
                for part, own in ((slice(0, 3), self.a), (slice(3, 6), self.b)):
                    own.weight.copy_(whole[1].weight[part])
                    own.bias.copy_(whole[1].bias[part])

        def forward(self, x):
            x = self.first(x)
            return self.a(x[:, :2]), self.b(x[:, 2:])

    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3, groups=2)).double().eval()
    x = torch.randn(12, 2, 6, 6, dtype=torch.float64)
    together = obs_importance(model, [x]).readings.blocks.values()
    apart = obs_importance(Split(model).double().eval(), [x]).readings.blocks.values()
    both = next(r for r in together if r.name == "1.weight")
    for number, name in enumerate(("a.weight", "b.weight")):
        one = next(r for r in apart if r.name == name)
        assert torch.allclose(both.xx[number], one.xx[0])
        assert torch.allclose(both.weight[number], one.weight[0])


def test_all_calls_of_a_layer_count():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.shared = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = self.first(x)
            return self.shared(torch.tanh(x)) + self.shared(torch.relu(x))

    model = Twice().double().eval()
    x = torch.randn(BATCH, 4, dtype=torch.float64)
    found = next(b for b in obs_importance(model, [x]).readings.blocks.values() if b.name == "shared.weight")
    rows = torch.cat([torch.tanh(model.first(x)), torch.relu(model.first(x))]).detach()
    assert torch.allclose(found.xx[0], rows.T @ rows)
    assert torch.allclose(found.centred[0], (rows - rows.mean(0)).T @ (rows - rows.mean(0)))


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("sizes", [[12], [4, 8]])
def test_with_a_loss_rows_and_outputs_are_weighed_by_the_gradients_of_every_sample(sizes):
    model = randomise(
        nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 3)).double(), 1
    )
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randint(3, (12,))
    made = obs_importance(model.eval(), list(zip(x.split(sizes), y.split(sizes), strict=True)), loss=loss, ridge=1e-9)
    group = fxprune.analyze(model, x).groups[0]
    rows, gradients = [], []
    for i in range(12):
        read = torch.tanh(model[0](x[i])).detach()
        out = model[2](read).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model[4](torch.relu(out))[None], y[i : i + 1]), out)
        rows.append(read)
        gradients.append(gradient)
    x_, g = torch.stack(rows), torch.stack(gradients).square()
    v, f = g.sum(1), g.sum(0) / g.sum()
    centred = (x_ - (v[:, None] * x_).sum(0) / v.sum()) * v.sqrt()[:, None]
    wanted = centred @ model[2].weight.detach().T
    for step in range(1, 7):
        kept = made.order(group)[step:]
        left = wanted - centred[:, kept] @ torch.linalg.lstsq(centred[:, kept], wanted).solution
        assert float(made.curve(group)[step]) == pytest.approx(
            float((left.square() * f).sum() / 12 / 2), rel=1e-4, abs=1e-12
        )


def test_attention_and_functions_are_seen_with_a_loss_too():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attention = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.free, self.head = nn.Parameter(torch.randn(8, 6)), nn.Linear(6, 3)

        def forward(self, x):
            x = self.embed(x)
            x = x + self.attention(x, x, x, need_weights=False)[0]
            return self.head(torch.relu(x @ self.free).mean(1))

    model = Mixed().eval()
    x, y = torch.randn(6, 5, 4), torch.randint(3, (6,))
    plain = obs_importance(model, [x]).readings.blocks
    informed = obs_importance(model, [(x, y)], loss=loss).readings.blocks
    names = {"attention.in_proj_weight", "attention.out_proj.weight", "free", "head.weight"}
    assert {place.name for place in plain} == {*names, "embed.weight"}
    assert {place.name for place in informed} == names  # nothing is pruned in what the embedding reads
    assert {place: reading.slots.tolist() for place, reading in informed.items()} == {
        place: plain[place].slots.tolist() for place in informed
    }
    assert all(bool(reading.outputs.sum() > 0) for reading in informed.values())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        scores = self.q(x) @ self.k(x).mT
        return self.out(scores.softmax(-1) @ self.v(x))


def test_channels_that_no_layer_reads_are_ranked_by_size_with_a_warning():
    model = randomise(Attention(), 0).eval()
    x = torch.randn(4, 5, 8)
    analysis = fxprune.analyze(model, x)
    group = next(g for g in analysis.groups if g.name == "q")
    with pytest.warns(UserWarning, match=r'obs ranks group "q" \(channels\) by the size of its weights'):
        plan = analysis.plan(ratio=0.5, importance="obs", data=[x])
    sizes = sum(t.square().reshape(8, -1).sum(1) for n, t in model.named_parameters() if n[0] in "qk")
    assert plan.removed["q.weight"][0] == sorted(sizes.argsort()[:4].tolist())
    assert group.size == 8


def test_what_nothing_reads_and_wrong_ridges_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(5, 3)
    other = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    other.second = other[2]
    with pytest.raises(PlanError, match="ridge must be a positive number"):
        obs_importance(model, [x], ridge=0)
    with pytest.raises(InputError, match="activations are not finite") as caught:
        obs_importance(model, [x, x * float("nan")])
    assert caught.value.at == '"0.weight", batch 1'
    readings = obs_importance(nn.Sequential(nn.Linear(3, 2)).eval(), [x])
    with pytest.raises(PlanError, match="nothing was seen reading group"):
        readings(fxprune.analyze(model, x).groups[0])


@pytest.mark.parametrize("taps", [1, 3])
def test_many_channels_are_removed_as_if_one_by_one(taps, monkeypatch):
    """Updates that wait, and columns that are left out of the matrices, change no number."""
    from fxprune.criteria import surgery

    model = randomise(nn.Sequential(nn.Conv1d(5, 60, 1), nn.Tanh(), nn.Conv1d(60, 4, taps)).double(), 2).eval()
    x = torch.randn(30, 5, 9, dtype=torch.float64)
    group = fxprune.analyze(model, x[:1]).groups[0]
    made = obs_importance(model, [x])
    wanted = obs_importance(model, [x])
    order, curve = made.order(group), made.curve(group)
    monkeypatch.setattr(surgery, "PENDING", 1)
    monkeypatch.setattr(surgery, "SHRINK", 0)
    assert order.tolist() == wanted.order(group).tolist()
    assert torch.allclose(curve, wanted.curve(group), rtol=1e-8)


def test_a_ridge_that_is_too_small_is_refused():
    model = nn.Sequential(nn.Linear(3, 12), nn.Identity(), nn.Linear(12, 2)).double().eval()
    x = torch.randn(9, 3, dtype=torch.float64)
    importance = obs_importance(model, [x], ridge=1e-30)
    with pytest.raises(PlanError, match="take a larger ridge"):
        fxprune.analyze(model, x).plan(ratio=0.5, importance=importance)
