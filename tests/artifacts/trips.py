"""Helpers of the tests of files: models for every path, and the comparison of two models, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.artifacts import load, save
from fxprune.artifacts.rebuild import needs_inputs
from fxprune.planning.plan import Plan

Make = Callable[[], nn.Module]


class Attention(nn.Module):
    """Self-attention that cannot be traced symbolically; its sizes are attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim, self.split = 4, 16
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.register_buffer("scale", torch.tensor(0.35), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (t.view(shape).transpose(1, 2) for t in self.qkv(self.norm(x)).split(self.split, -1))
        return x + self.proj((((q @ k.mT) * self.scale).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Tied(nn.Module):
    """Two names for one tensor, a buffer of positions, one of booleans, and one that state_dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.out = nn.Embedding(11, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("order", torch.tensor([5, 0, 4, 1, 3, 2]))
        self.register_buffer("flags", torch.arange(11) % 3 == 0)
        self.register_buffer("gain", torch.linspace(0.5, 2.0, 6), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.inner(self.embed(ids))[..., self.order] * self.gain
        return self.head(self.out(torch.relu(x))).masked_fill(self.flags, -1.0)


class Literal(nn.Module):
    """A size that is written into forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)).view(-1, 16))


class Normed(nn.Module):
    """Norms whose statistics go on counting the old width: one as another class, one in its weight and epsilon."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(16, 12), nn.LayerNorm(12)
        self.second, self.root, self.head = nn.Linear(12, 10), nn.RMSNorm(10, eps=1e-5), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.root(self.second(torch.relu(self.norm(self.first(x))))))


class Recurrent(nn.Module):
    """An LSTM in two directions, and a layer that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 8, num_layers=2, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


class Plain(nn.Module):
    """Sizes stand in modules only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.wide(torch.relu(self.norm(self.conv(x)))))
        return self.head(x.mean((2, 3)))


def image() -> Tensor:
    return torch.randn(2, 3, 6, 6)


def seeded(make: Make, seed: int) -> nn.Module:
    """A model whose parameters are drawn from this seed; buffers keep the values that the model gives them."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = make().eval()
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.normal_(0.0, 0.4)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.3)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


def pruned(model: nn.Module, inputs: Any, **options: Any) -> nn.Module:
    """`transform` without the warnings that nothing was removed, sizes are fixed, or the result is a graph."""
    with warnings.catch_warnings():
        for kind in (fxprune.NothingRemovedWarning, fxprune.FixedSizesWarning, fxprune.ClassLostWarning):
            warnings.simplefilter("ignore", kind)
        return fxprune.transform(model, inputs, **{"ratio": 0.4, **options})


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        result = (
            model(**inputs)
            if isinstance(inputs, dict)
            else model(*(inputs if isinstance(inputs, tuple) else (inputs,)))
        )
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def equal(a: Tensor, b: Tensor) -> bool:
    """True if two tensors are equal bit for bit, NaN and the sign of zero included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    x, y = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(x, y)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all their names, also those outside state_dict."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return {**named, **dict(model.named_buffers(remove_duplicate=False))}


def differences(a: nn.Module, b: nn.Module, inputs: Any) -> list[str]:
    """All differences between two models."""
    found = [] if type(a).__name__ == type(b).__name__ else [f"class {type(a)}, {type(b)}"]
    ours, theirs = tensors(a), tensors(b)
    found += [f"names {set(ours) ^ set(theirs)}"] if list(ours) != list(theirs) else []
    found += [f"tensor {n}" for n in ours if n in theirs and not equal(ours[n], theirs[n])]
    found += [
        f"{n} is no parameter"
        for n in ours
        if isinstance(ours[n], nn.Parameter) != isinstance(theirs.get(n), nn.Parameter)
    ]
    ties = [{frozenset(n for n in m if m[n] is m[k]) for k in m} for m in (ours, theirs)]
    found += ["what is tied"] if ties[0] != ties[1] else []
    found += ["names of state_dict"] if list(a.state_dict()) != list(b.state_dict()) else []
    modes = [[(n, m.training, str(m).split("\n")[0]) for n, m in model.named_modules()] for model in (a, b)]
    found += [f"module {x} {y}" for x, y in zip(*modes, strict=False) if x != y]
    one, other = run(a, inputs), run(b, inputs)
    found += ["outputs"] if len(one) != len(other) or not all(map(equal, one, other)) else []
    found += ["record"] if fxprune.record(a) != fxprune.record(b) else []
    return found


def trip(make: Make, inputs: Any, folder: Path, *, needed: bool | None = None, **options: Any) -> nn.Module:
    """Prune, change the weights, save, load into a fresh model of other weights; returns what was loaded.

    needed: whether example inputs are needed to load; None where either will do.
    """
    small = pruned(seeded(make, 1), inputs, **options)
    with torch.no_grad():
        for parameter in small.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.01)
    path = folder / "small.safetensors"
    save(small, path)
    content = path.read_bytes()
    save(small, path)
    assert path.read_bytes() == content
    assert [p.name for p in folder.iterdir()] == ["small.safetensors"]

    into = seeded(make, 2)
    before = {name: tensor.clone() for name, tensor in tensors(into).items()}
    if needs_inputs(fxprune.record(small).plan):
        assert needed is None or needed
        with pytest.raises(fxprune.PlanError, match="needs example inputs to be loaded"):
            load(path, into=into)
    else:
        assert not needed
        assert differences(small, load(path, into=into), inputs) == []
    again = load(path, into=into, example_inputs=inputs)
    assert differences(small, again, inputs) == []
    assert all(equal(tensor, before[name]) for name, tensor in tensors(into).items()), "into is only read"
    shared = {t.untyped_storage().data_ptr() for t in tensors(into).values() if t.numel()}
    assert not shared & {t.untyped_storage().data_ptr() for t in tensors(again).values() if t.numel()}

    plan = fxprune.record(small).plan
    plan.save(folder / "plan.json")
    read = Plan.load(folder / "plan.json")
    assert read == plan
    read.save(folder / "again.json")
    assert (folder / "plan.json").read_bytes() == (folder / "again.json").read_bytes()
    return again
