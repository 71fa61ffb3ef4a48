"""Small and loaded models in use: training, autocast, copies, dtypes, devices, pruning again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.artifacts import load, save
from tests.artifacts.trips import (
    Attention,
    Literal,
    Normed,
    Plain,
    Tied,
    differences,
    equal,
    image,
    pruned,
    run,
    seeded,
    tensors,
)

CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, Any]]] = {
    "fx": (Plain, image, {"path": "fx"}),
    "literal": (Literal, image, {"path": "fx"}),
    "eager": (Attention, lambda: torch.randn(2, 3, 16), {"exact": True}),
    "preserved": (Normed, lambda: torch.randn(2, 3, 16), {"norms": "preserve"}),
    "export": (Plain, image, {"path": "export"}),
    "hooks": (Plain, image, {"path": "hooks"}),
    "tied": (Tied, lambda: torch.randint(0, 11, (2, 5)), {"path": "eager"}),
}


def small_one(
    name: str, folder: Path, loaded: bool, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, nn.Module, Tensor]:
    """The original, the small model (as it was made, or saved and loaded) and an input."""
    make, inputs, options = CASES[name]
    x = inputs()
    x = x.to(dtype) if x.is_floating_point() else x
    net = seeded(make, 1).to(dtype)
    small = pruned(net, x, **options)
    assert fxprune.record(small).removed
    if loaded:
        save(small, folder / "small.safetensors")
        small = load(folder / "small.safetensors", into=seeded(make, 2), example_inputs=x)
    return net, small, x


both = pytest.mark.parametrize("loaded", [False, True], ids=["made", "loaded"])
every = pytest.mark.parametrize("name", CASES)


def gradients(model: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    (model(x) * weights).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}


def on_kept(gradient: Tensor, gone: dict[int, list[int]]) -> Tensor:
    for dim, indices in gone.items():
        kept = sorted(set(range(gradient.shape[dim])) - set(indices))
        gradient = gradient.index_select(dim, torch.tensor(kept))
    return gradient


@both
@every
def test_gradients_are_those_of_the_masked_reference(name: str, loaded: bool, tmp_path: Path) -> None:
    net, small, x = small_one(name, tmp_path, loaded)
    removed = fxprune.record(small).removed
    weights = torch.randn(net(x).shape, dtype=torch.float64)
    ours = gradients(small, x, weights)
    reference = gradients(fxprune.masked(net, removed), x, weights)
    assert set(ours) == set(reference)
    for parameter, gradient in ours.items():
        want = on_kept(reference[parameter], dict(removed.get(parameter, {})))
        assert gradient.shape == want.shape
        if parameter == "root.weight":  # it became sqrt(N / N') * weight
            want = want / (reference[parameter].shape[0] / want.shape[0]) ** 0.5
        scale = float(want.abs().max()) or 1.0
        assert float((gradient - want).abs().max()) <= 1e-11 * scale, parameter


def test_gradients_that_differ_are_seen(tmp_path: Path) -> None:
    net, small, x = small_one("fx", tmp_path, False)
    weights = torch.randn(2, 5, dtype=torch.float64)
    removed = fxprune.record(small).removed
    reference = gradients(fxprune.masked(net, removed), x, weights)["conv.weight"]
    gone = dict(removed["conv.weight"])
    gone[0] = [(index + 1) % 8 for index in gone[0]]
    wrong = on_kept(reference, gone)
    assert not torch.allclose(gradients(small, x, weights)["conv.weight"], wrong, atol=1e-6)


def steps(model: nn.Module, x: Tensor, *, autocast: bool, count: int = 8) -> list[float]:
    """The loss of some steps of training towards a fixed target."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    target, losses = torch.zeros(()), []
    for _ in range(count):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = model(x)
            loss = nn.functional.mse_loss(result.float(), target.expand(result.shape))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight"
)  # the warning of torch about its own RMSNorm
@both
@pytest.mark.parametrize("name", ["fx", "literal", "eager", "preserved", "hooks", "tied"])
def test_a_small_model_is_fine_tuned_under_autocast(name: str, loaded: bool, tmp_path: Path) -> None:
    _, small, x = small_one(name, tmp_path, loaded, torch.float32)
    seen = []
    layer = next(m for m in small.modules() if isinstance(m, nn.Linear))
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    losses = steps(small, x, autocast=True)
    handle.remove()
    assert set(seen) == {torch.bfloat16}
    assert losses[-1] < 0.9 * losses[0]
    assert {p.dtype for p in small.parameters()} == {torch.float32}


def test_a_loaded_model_trains_as_the_one_that_was_saved(tmp_path: Path) -> None:
    _, small, x = small_one("literal", tmp_path, False, torch.float32)
    save(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", into=seeded(Literal, 9), example_inputs=x)
    assert steps(small, x, autocast=False) == steps(again, x, autocast=False)
    assert differences(small, again, x) == []


@both
@every
def test_copies_share_nothing_and_change_dtype_and_device(name: str, loaded: bool, tmp_path: Path) -> None:
    _, small, x = small_one(name, tmp_path, loaded, torch.float32)
    before = run(small, x)[0]
    clone = copy.deepcopy(small)
    assert fxprune.record(clone) == fxprune.record(small)
    assert equal(run(clone, x)[0], before)
    for parameter in clone.parameters():
        nn.init.zeros_(parameter)
    assert equal(run(small, x)[0], before), "the copy shares nothing"

    wide = copy.deepcopy(small).double()
    result = run(wide, x.double() if x.is_floating_point() else x)[0]
    assert result.dtype == torch.float64
    assert torch.allclose(result.float(), before, atol=1e-4, rtol=1e-4)
    half = copy.deepcopy(small).bfloat16()
    assert run(half, x.bfloat16() if x.is_floating_point() else x)[0].dtype == torch.bfloat16

    nowhere = copy.deepcopy(small).to("meta")
    assert {t.device.type for t in tensors(nowhere).values()} == {"meta"}
    assert run(nowhere, x.to("meta"))[0].shape == before.shape


@both
@pytest.mark.parametrize("name", ["fx", "literal", "eager", "export", "tied"])
def test_a_small_model_is_pruned_again(name: str, loaded: bool, tmp_path: Path) -> None:
    net, small, x = small_one(name, tmp_path, loaded)
    first = fxprune.record(small)
    second = pruned(small, x, ratio=0.4)
    made = fxprune.record(second)
    assert made.removed
    assert {n: s for n, s in made.before.items() if n in first.after} == {
        n: s for n, s in first.after.items() if n in made.before
    }
    assert fxprune.verify(small, second, x) < 1e-9
    both_plans = first.plan.then(made.plan)
    if made.exact and first.exact:
        reference = fxprune.masked(net, both_plans.removed)
        assert torch.allclose(run(second, x)[0], run(reference, x)[0], atol=1e-10)
    again = pruned(net, x, ratio=None, plan=both_plans)
    assert [n for n, t in second.state_dict().items() if not equal(t, again.state_dict()[n])] == []
