"""The behaviour comparison finds each thing that it compares, and small models of every path pass it."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fxprune
from tests.behaviour import GIVEN_UP, compare_behaviour
from tests.support import randomise


class Net(nn.Module):
    """Has what a graph has not: a branch of training, a method, an attribute and state between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.aux = nn.Linear(12, 2)
        self.rate, self.calls = 0.25, 0
        self.register_buffer("seen", torch.zeros(()))

    def reset(self) -> None:
        self.calls = 0

    def scored(self, x: torch.Tensor) -> torch.Tensor:
        return self.aux(torch.relu(self.a(x)))

    def forward(self, x: torch.Tensor) -> Any:
        h = torch.relu(self.norm(self.a(x)))
        self.calls += 1
        h = F.dropout(h, self.rate, self.training)
        y = self.c(torch.tanh(self.b(h))) * self.calls
        return (y, self.aux(h)) if self.training else y


def ready(model: nn.Module) -> nn.Module:
    return randomise(model.double(), 3, weights=True).eval()


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def pruned(model: nn.Module, x: Any, **options: Any) -> nn.Module:
    return fxprune.transform(
        model, x, **{"ratio": 0.5, "importance": "random", "seed": 1, "exact": True, "path": "eager", **options}
    )


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module, torch.Tensor]:
    model, x = ready(Net()), numbers(4, 6)
    return model, pruned(model, x), x


def test_a_small_model_of_its_class_differs_in_nothing(pair: Any) -> None:
    assert compare_behaviour(*pair) == []


class Other(Net):
    reset = None


def other_class(small: nn.Module) -> None:
    small.__class__ = Other


def no_attribute(small: nn.Module) -> None:
    del small.b.__dict__["out_features"]


def hooked(small: nn.Module) -> None:
    small.a.register_forward_pre_hook(lambda module, args: None)


def tensor_hook(small: nn.Module) -> None:
    small.a.weight.register_hook(lambda gradient: gradient)


def in_training(small: nn.Module) -> None:
    small.norm.train()


def another_name(small: nn.Module) -> None:
    small.d = small._modules.pop("c")
    small.__dict__["c"] = small.d


def with_fake(small: nn.Module) -> None:
    fake = FakeTensorMode().from_tensor(torch.ones(2))
    small.b.register_forward_hook(lambda *given: None if fake.ndim else given[2])


def frozen(small: nn.Module) -> None:
    small.a.weight.requires_grad_(False)


def changed_weight(small: nn.Module) -> None:
    with torch.no_grad():
        small.b.weight *= 1.01


def with_forward(forward: Callable[..., Any]) -> Callable[[nn.Module], None]:
    """A change of a model: `forward(small, original_forward, x)` runs instead of its forward."""

    def change(small: nn.Module) -> None:
        kind = type(small)
        name = {"forward": lambda self, x: forward(self, kind.forward, x)}
        small.__class__ = type(kind.__name__, (kind,), name)

    return change


def no_state(small: nn.Module, before: Any, x: torch.Tensor) -> Any:
    small.calls = 0
    return before(small, x)


def one_batch(small: nn.Module, before: Any, x: torch.Tensor) -> Any:
    if x.shape[0] != 4:
        raise ValueError("another batch")
    return before(small, x)


def no_training(small: nn.Module, before: Any, x: torch.Tensor) -> Any:
    training, small.training = small.training, False
    try:
        return before(small, x)
    finally:
        small.training = training


def no_dropout(small: nn.Module, before: Any, x: torch.Tensor) -> Any:
    rate, small.rate = small.rate, 0.0
    try:
        result = before(small, x)
    finally:
        small.rate = rate
    return result


def detached(small: nn.Module, before: Any, x: torch.Tensor) -> Any:
    result = before(small, x)
    return tuple(t.detach() + small.c.bias.sum() * 0 for t in result) if isinstance(result, tuple) else result


def doubled(small: nn.Module, before: Any, x: torch.Tensor) -> Any:
    result = before(small, x)
    return tuple(2 * t - t.detach() for t in result) if isinstance(result, tuple) else result


def counted(small: nn.Module, before: Any, x: torch.Tensor) -> Any:
    if small.training:
        small.seen += 1
    return before(small, x)


def in_a_list(small: nn.Module, before: Any, x: torch.Tensor) -> Any:
    result = before(small, x)
    return list(result) if isinstance(result, tuple) else result


class Unpicklable:
    def __deepcopy__(self, memo: Any) -> Unpicklable:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("not to be saved")


def unpicklable(small: nn.Module) -> None:
    small.extra = Unpicklable()


class ForgetsOnCopy(nn.Linear):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        return nn.Linear(self.in_features, self.out_features).double()


def forgetful(small: nn.Module) -> None:
    small.c.__class__ = ForgetsOnCopy


BROKEN: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "another class": (other_class, "type: Other instead of Net"),
    "a method less": (other_class, "methods: reset missing"),
    "an attribute less": (no_attribute, "attributes: out_features missing in b"),
    "a hook more": (hooked, "hooks: .*_forward_pre_hooks.* in a"),
    "a tensor hook more": (tensor_hook, "hooks: .*weight.* in a"),
    "another mode": (in_training, "modes: norm in the other mode"),
    "another name": (another_name, r"state_dict: missing \['c.bias', 'c.weight'\]"),
    "a fake tensor": (with_fake, "fake tensors: 1 fake tensors in the small model"),
    "frozen": (frozen, "state_dict: requires_grad of a.weight"),
    "another weight": (changed_weight, "first call in evaluation mode: differs"),
    "no state": (with_forward(no_state), "second call in evaluation mode: differs"),
    "one batch": (with_forward(one_batch), "another batch in evaluation mode: ValueError"),
    "no training": (with_forward(no_training), "training: first call: tensors at"),
    "no dropout": (with_forward(no_dropout), "random: calls are the same in training mode"),
    "no gradient": (with_forward(detached), "gradients: b.weight has none"),
    "another gradient": (with_forward(doubled), "gradients: b.weight differs by"),
    "another buffer": (with_forward(counted), "buffers: seen after the step"),
    "another type of result": (with_forward(in_a_list), "the type of the result: training: first call"),
    "cannot be saved": (unpicklable, "pickle: TypeError: not to be saved"),
    "a copy that forgets": (forgetful, "deepcopy: differs"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_difference_is_found(name: str, pair: Any) -> None:
    model, small, x = pair
    change, sentence = BROKEN[name]
    change(small)
    found = compare_behaviour(model, small, x)
    assert [one for one in found if re.match(sentence, one)], found


def test_two_calls_that_drop_the_same_by_chance_are_no_difference() -> None:
    class Dropping(nn.Sequential):
        rate = 0.5  # the numbers of seeds 1, 2 and 3 are 0.76, 0.61 and 0.00

        def forward(self, x: torch.Tensor) -> Any:
            y = super().forward(x)
            return y * (torch.rand(()) > self.rate) if self.training else y

    model, x = ready(Dropping(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))), numbers(3, 4)
    small = pruned(model, x)
    small.rate = 0.7
    assert compare_behaviour(model, small, x, without=["pickle"]) == []


def test_other_methods_are_compared() -> None:
    model, x = ready(Net()), numbers(4, 6)
    small = pruned(model, x, methods={"scored": x})
    assert compare_behaviour(model, small, x, methods={"scored": numbers(3, 6)}) == []
    with torch.no_grad():
        small.aux.bias += 1  # read in training too
    found = compare_behaviour(model, small, x, methods={"scored": numbers(3, 6)})
    assert [one for one in found if one.startswith("scored in evaluation mode: differs by")]
    assert [one for one in found if one.startswith("scored in training mode: differs by")]


def test_another_size_is_compared_where_the_original_takes_it() -> None:
    class Fixed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> Any:
            if x.shape[-1] != 8:
                raise ValueError("another size")
            return super().forward(x)

    model, x = ready(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))), numbers(2, 3, 8, 8)
    small = pruned(model, x)
    assert compare_behaviour(model, small, x) == []
    small.__class__ = Fixed
    without = ["type", "pickle", "the type of the result"]
    found = compare_behaviour(model, small, x, without=without)
    assert found == ["another size in evaluation mode: ValueError: another size instead of a result (Tensor)"]


def test_a_warning_that_torch_gives_once_is_no_difference() -> None:
    class Scalar(nn.Sequential):
        warned = False

        def forward(self, x: torch.Tensor) -> Any:
            y = super().forward(x)
            if self.training and not Scalar.warned:
                Scalar.warned = True
                warnings.warn("once", UserWarning, stacklevel=1)
            return y

    model, x = ready(Scalar(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))), numbers(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = pruned(model, x)
    Scalar.warned = False
    assert compare_behaviour(model, small, x, without=["pickle"]) == []


def test_names_of_what_is_not_compared_leave_it_out(pair: Any) -> None:
    model, small, x = pair
    other_class(small)
    assert compare_behaviour(model, small, x, without=["type", "methods"]) == []


# -- small models of every path ---------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = (
            nn.Conv2d(3, 8, 3, 1, 1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 1),
            nn.Linear(8, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.norm(self.a(x)))
        return self.c((h + self.b(h)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 4
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = F.dropout(((q @ k.mT) * 0.3).softmax(-1), 0.1, self.training)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


class Detached(nn.Module):
    """A backbone without gradients, under a context."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            h = torch.relu(self.a(x))
        return self.c(torch.relu(self.b(h)))


class DropPath(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        branch = self.c(torch.relu(self.b(h)))
        if self.training:
            branch = branch * h.new_empty(h.shape[0], 1).bernoulli_(0.5) / 0.5
        return self.d(torch.relu(h + branch))


class Wide(nn.Module):
    """A model of [n, 2] that returns [n, 1, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.a(x)[:, None]
        return y


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        h = torch.relu(self.a(x))
        return {"boxes": self.b(h), "rest": [self.c(h)]}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.rnn, self.b = nn.Linear(6, 8), nn.GRU(8, 10, batch_first=True), nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(self.rnn(self.a(x))[0])
        return y


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (2, 3, 6, 6)),
    "attention": (Attention, (2, 5, 16)),
    "no gradients": (Detached, (4, 6)),
    "drop path": (DropPath, (4, 6)),
    "dictionary": (Dictionary, (4, 6)),
    "layers of two modes": (lambda: nn.Sequential(nn.Linear(4, 6), DropPath(), Wide(), Attention()), (3, 4)),
    "recurrent": (Recurrent, (2, 5, 6)),
    "state and branches": (Net, (4, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_class_behaves_like_the_original(name: str) -> None:
    build, shape = MODELS[name]
    model, x = ready(build()), numbers(*shape)
    small = pruned(model, x)
    assert fxprune.record(small).removed
    assert compare_behaviour(model, small, x) == []


@pytest.mark.parametrize("name", MODELS)
def test_a_model_given_in_training_mode_behaves_like_the_original(name: str) -> None:
    build, shape = MODELS[name]
    model, x = ready(build()).train(), numbers(*shape)
    assert compare_behaviour(model, pruned(model, x), x) == []


ON_PATHS = [(name, path) for path in ("fx", "export", "hooks") for name in ("residual", "dictionary")]


@pytest.mark.parametrize(("name", "path"), [*ON_PATHS, ("attention", "export"), ("layers of two modes", "fx")])
def test_other_paths_lose_what_they_cannot_keep_and_nothing_else(name: str, path: str) -> None:
    build, shape = MODELS[name]
    model, x = ready(build()), numbers(*shape)
    assert compare_behaviour(model, pruned(model, x, path=path), x, without=GIVEN_UP[path]) == []


def test_the_original_is_not_changed_by_a_comparison(pair: Any) -> None:
    model, small, x = pair
    before = copy.deepcopy(model.state_dict())
    compare_behaviour(model, small, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.calls == 0
