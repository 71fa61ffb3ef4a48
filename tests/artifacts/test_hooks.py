"""A loaded model has the hooks of the parameters of the model that it is loaded into."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))

    def halved(self, gradient: Tensor) -> Tensor:
        return gradient * (0.5 if self.a.out_features == 8 else 0.0)


def net(register: Callable[[Net], object]) -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    register(model)
    return model


def doubled(model: Net) -> None:
    model.a.weight.register_hook(lambda gradient: gradient * 2)


def masked(model: Net) -> None:
    mask = (torch.rand(16, 4) > 0.5).float()
    model.a.weight.register_hook(lambda gradient: gradient * mask)


def bound(model: Net) -> None:
    model.a.weight.register_hook(model.halved)


def accumulated(model: Net) -> None:
    def tripled(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(3)

    model.b.bias.register_post_accumulate_grad_hook(tripled)


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def saved(register: Callable[[Net], object], folder: Path) -> tuple[nn.Module, Path]:
    small = fxprune.transform(net(register), X, ratio=0.5)
    fxprune.save(small, folder / "small.safetensors")
    return small, folder / "small.safetensors"


@pytest.mark.parametrize("inputs", [None, X], ids=["rebuilt", "analysed"])
@pytest.mark.parametrize("register", [doubled, masked, bound, accumulated], ids=lambda f: f.__name__)
def test_gradients_of_the_loaded_model_go_through_its_hooks(
    register: Callable[[Net], object], inputs: Tensor | None, tmp_path: Path
) -> None:
    small, path = saved(register, tmp_path)
    loaded = fxprune.load(path, into=net(register), example_inputs=inputs)
    plain = fxprune.load(path, into=net(lambda model: None))
    for model in (small, loaded, plain):
        model(X).square().sum().backward()
    gradients = [torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (small, loaded, plain)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert not torch.equal(gradients[0], gradients[2])


def test_hooks_that_cannot_work_are_named(tmp_path: Path) -> None:
    _, path = saved(lambda model: None, tmp_path)

    def sums(model: Net) -> None:
        table = torch.ones(16, 4)
        model.a.weight.register_hook(lambda gradient: print(gradient + table))

    with pytest.warns(UserWarning, match=r'not on the new parameters of "a.weight".*uses a tensor of shape \(16, 4\)'):
        assert not fxprune.load(path, into=net(sums)).a.weight._backward_hooks

    def attribute(model: Net) -> None:
        model.a.register_buffer("kept", torch.ones(16, 4), persistent=False)
        model.a.weight.register_hook(lambda gradient, layer=model.a: gradient * layer.kept)

    small = fxprune.transform(
        net(lambda model: model.a.register_buffer("kept", torch.ones(16, 4), False)), X, ratio=0.5
    )
    fxprune.save(small, tmp_path / "other.safetensors")
    with pytest.warns(UserWarning, match=r'reads "kept" of "a", which stays \[16, 4\].*give it the kept part'):
        fxprune.load(tmp_path / "other.safetensors", into=net(attribute))


def test_a_model_without_hooks_is_not_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = saved(lambda model: None, tmp_path)
    monkeypatch.setattr("fxprune.artifacts.hooks.carry_over", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxprune.load(path, into=net(lambda model: None))
