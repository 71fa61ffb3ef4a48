"""The fit of all weights together to the outputs of the original, without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune._repair.noise import with_noise


def net() -> nn.Sequential:
    """Convolutions with a batch norm; what is removed from them cannot be made up for layer by layer."""
    torch.manual_seed(0)
    made = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )
    return made.eval()


def data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(10)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_all_weights_together_are_nearer_than_layer_by_layer(dtype: torch.dtype) -> None:
    model, batches = net().to(dtype), [batch.to(dtype) for batch in data()]
    small = fxprune.transform(model, batches[0], ratio=0.5, verify=False)
    modes: dict[str, Any] = {"weights": {}, "outputs": {"steps": 60}}
    made = {mode: fxprune.repair(small, model, batches, mode=mode, **steps) for mode, steps in modes.items()}
    done = {mode: fxprune.record(one).repair for mode, one in made.items()}
    assert done["outputs"].mode == "outputs"
    assert done["outputs"].after < 0.9 * done["weights"].after < done["weights"].before
    assert all(one.dtype == dtype for one in made["outputs"].parameters())
    with torch.no_grad():
        wanted = torch.cat([model(batch) for batch in batches[4::5]]).double()
        got = torch.cat([made["outputs"](batch) for batch in batches[4::5]]).double()
    error = ((got - wanted).square().sum(1) / wanted.square().sum(1)).mean()
    assert float(error) == pytest.approx(done["outputs"].after, rel=1e-6)


def test_flags_gradients_and_modes_stay(tmp_path: Path) -> None:
    model, batches = net(), data()
    model[0].weight.requires_grad_(False)
    small = fxprune.transform(model, batches[0], ratio=0.5, verify=False).train()
    before = {name: tensor.clone() for one in (model, small) for name, tensor in one.state_dict().items()}
    made = fxprune.repair(small, model, batches, mode="outputs", steps=10)
    assert [p.requires_grad for p in made.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for one in (model, small, made) for p in one.parameters())
    assert made.training
    for one in (model, small):
        for name, tensor in one.state_dict().items():
            assert one is model or torch.equal(tensor, before[name])
    fxprune.save(made, tmp_path / "made.safetensors")
    again = fxprune.load(tmp_path / "made.safetensors", into=model)
    assert fxprune.record(again).repair == fxprune.record(made).repair


def test_statistics_of_batch_norms_and_inputs_stay() -> None:
    model, batches = net(), data()
    small = fxprune.transform(model, batches[0], ratio=0.5, verify=False)
    first = fxprune.repair(small, model, batches)
    made = fxprune.repair(small, model, batches, mode="outputs", steps=5)
    assert torch.equal(made[1].running_mean, first[1].running_mean)
    assert torch.equal(made[1].running_var, first[1].running_var)
    assert all(torch.equal(a, b) for a, b in zip(batches, data(), strict=True))


class Cut(nn.Sequential):
    """A model whose outputs have no gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).detach()


def test_outputs_without_gradients_are_said() -> None:
    model, batches = Cut(*net()).eval(), data()
    small = fxprune.transform(model, batches[0], ratio=0.5, verify=False)
    done = fxprune.record(fxprune.repair(small, model, batches, mode="outputs")).repair
    weights = fxprune.record(fxprune.repair(small, model, batches)).repair
    assert done.left == {"all weights together": "the outputs have no gradient by the weights"}
    assert done.after == weights.after


def test_steps_that_do_not_help_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = net(), data()
    small = fxprune.transform(model, batches[0], ratio=0.5, verify=False)
    weights = fxprune.repair(small, model, batches)
    monkeypatch.setattr("fxprune._repair.outputs_fit.RATE", 1e4)
    made = fxprune.repair(small, model, batches, mode="outputs", steps=3)
    done = fxprune.record(made).repair
    assert done.left == {"all weights together": "no step made the outputs better on the held-out samples"}
    assert all(torch.equal(made.state_dict()[name], tensor) for name, tensor in weights.state_dict().items())
    assert done.after == fxprune.record(weights).repair.after


@pytest.mark.parametrize(
    "context", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_the_state_of_the_caller_does_not_matter(context: Any) -> None:
    model, batches = net(), data()
    small = fxprune.transform(model, batches[0], ratio=0.5, verify=False)
    with context():
        done = fxprune.record(fxprune.repair(small, model, batches, mode="outputs", steps=60)).repair
    assert not done.left
    assert done.after < done.before


def test_steps_must_be_positive() -> None:
    with pytest.raises(fxprune.InputError, match="steps must be at least 1"):
        fxprune.repair(net(), net(), data(), steps=0)


@pytest.mark.parametrize("mode", ["weights", "bias", "norms"])
def test_steps_are_refused_where_none_are_made(mode):
    net, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), [torch.randn(8, 4)]
    small = fxprune.transform(net, data[0], ratio=0.5)
    with pytest.raises(fxprune.InputError, match="steps is without effect"):
        fxprune.repair(small, net, data, mode=mode, steps=3)


def test_noise_helps_where_few_samples_are_at_hand() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    generator = torch.Generator().manual_seed(1)
    few = [torch.randn(4, 12, generator=generator) for _ in range(10)]
    others = torch.randn(500, 12, generator=generator)
    before = [batch.clone() for batch in few]
    small = fxprune.transform(model, few[0], ratio=0.7, verify=False)
    made = [fxprune.repair(small, model, few, mode="outputs", steps=100, noise=noise) for noise in (0.0, 0.5, 0.5)]
    assert all(torch.equal(a, b) for a, b in zip(made[1].parameters(), made[2].parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(few, before, strict=True))
    with torch.no_grad():
        plain, noisy = (float((one(others) - model(others)).square().mean()) for one in made[:2])
    assert noisy < 0.9 * plain


def test_noise_follows_the_spread_of_each_sample_and_leaves_integers() -> None:
    x = torch.randn(4, 500) * torch.tensor([0.0, 1.0, 10.0, 100.0])[:, None] + 7
    inputs = (x, torch.arange(8).view(4, 2), torch.rand(4), torch.full((4, 2), -torch.inf)), {"scale": 3.0}
    (noisy, *others), kwargs = with_noise(inputs, 0.1, torch.Generator().manual_seed(0))
    torch.testing.assert_close((noisy - x).std(1), 0.1 * x.std(1), rtol=0.1, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(others, inputs[0][1:], strict=True))
    assert kwargs == {"scale": 3.0}


def test_noise_without_effect_is_refused() -> None:
    model, batches = net(), data()
    small = fxprune.transform(model, batches[0], ratio=0.5, verify=False)
    for noise, mode, text in (
        (0.2, "weights", "noise is without effect here"),
        (-1.0, "outputs", "at least 0"),
        (float("nan"), "outputs", "at least 0"),
    ):
        with pytest.raises(fxprune.InputError, match=text) as raised:
            fxprune.repair(small, model, batches, mode=mode, noise=noise)
        assert raised.value.do
    tokens = [torch.randint(9, (8, 5)) for _ in range(4)]
    words = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    with pytest.raises(fxprune.InputError, match="noise is without effect here") as raised:
        fxprune.repair(fxprune.transform(words, tokens[0], ratio=0.5), words, tokens, mode="outputs", noise=0.2)
    assert "no input holds fractions" in raised.value.why
