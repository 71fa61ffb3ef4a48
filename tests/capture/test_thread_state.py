"""The state of the calling thread (modes, autocast, default dtype and device) changes no result, and comes back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fxprune
from fxprune.capture.thread_state import usual_state


class Zeros(TorchFunctionMode):
    """A mode that spoils every function of torch that it sees."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return torch.zeros_like(made) if isinstance(made, Tensor) and func is not torch.zeros_like else made


class Refusing(TorchDispatchMode):
    """A mode that lets no operation pass."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} under a mode of the caller")


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def anomalies() -> Iterator[None]:
    torch.autograd.set_detect_anomaly(True)
    try:
        yield
    finally:
        torch.autograd.set_detect_anomaly(False)


@contextlib.contextmanager
def set_grad_enabled() -> Iterator[None]:
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(True)


STATES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "set_grad_enabled": set_grad_enabled,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device meta": lambda: default_device("meta"),
    "default device cpu": lambda: default_device("cpu"),
    "device context": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "deterministic": deterministic,
    "anomalies": anomalies,
    "function mode": Zeros,
    "dispatch mode": Refusing,
    "fake tensors": lambda: FakeTensorMode(allow_non_fake_inputs=True),
}


class Net(nn.Module):
    """Layers of several kinds; the first one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=2)
        self.ln, self.head = nn.LayerNorm(8), nn.Linear(8, 5)
        self.a.weight.requires_grad_(False)
        for part in (self.norm.running_mean, self.norm.weight, self.norm.bias):
            nn.init.uniform_(part, 0.1, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.ln(self.b(self.norm(self.a(x)).relu()).mean((2, 3))))


def numbers(value: Any) -> Any:
    if isinstance(value, nn.Module):
        state = value.state_dict(keep_vars=True).items()
        return {name: (t.tolist(), t.dtype, t.device, t.requires_grad) for name, t in state}
    return value


def saved_and_loaded(net: nn.Module, x: Tensor, folder: Path) -> nn.Module:
    fxprune.save(fxprune.transform(net, x, ratio=0.5, path="eager"), folder / "small.safetensors")
    return fxprune.load(folder / "small.safetensors", into=net, example_inputs=x)


CALLS: dict[str, Callable[[nn.Module, Tensor, Path], Any]] = {
    "fx": lambda net, x, _: fxprune.transform(net, x, ratio=0.5, path="fx"),
    "eager": lambda net, x, _: fxprune.transform(net, x, ratio=0.5, path="eager"),
    "export": lambda net, x, _: fxprune.transform(net, x, ratio=0.5, path="export"),
    "hooks": lambda net, x, _: fxprune.transform(net, x, ratio=0.5, path="hooks"),
    "preserve": lambda net, x, _: fxprune.transform(net, x, ratio=0.5, path="eager", norms="preserve"),
    "fold": lambda net, x, _: fxprune.transform(net, x, ratio=0.5, path="eager", bias="fold"),
    "fpgm": lambda net, x, _: fxprune.transform(net, x, ratio=0.5, path="eager", importance="fpgm"),
    "random": lambda net, x, _: fxprune.transform(net, x, ratio=0.5, path="eager", importance="random", seed=1),
    "analyze": lambda net, x, _: fxprune.analyze(net, x).report(),
    "cost": lambda net, x, _: fxprune.cost(net, x),
    "masked": lambda net, x, _: fxprune.masked(net, {"b.weight": {0: [1, 2]}}),
    "load": saved_and_loaded,
    "pt2": lambda net, x, folder: dict(fxprune.export(net, folder / "net.pt2", x).operators),
}


def turns() -> Iterator[Any]:
    """Every call in every state; an ordinary run takes a third, in which every call and every state has several."""
    for c, call in enumerate(CALLS):
        for s, state in enumerate(STATES):
            marks = [] if (c + s) % 3 == 0 else [pytest.mark.slow]
            yield pytest.param(call, state, marks=marks, id=f"{call}-{state}")


@pytest.mark.parametrize(("call", "state"), list(turns()))
def test_the_result_is_the_same_in_any_state_of_the_thread(call: str, state: str, tmp_path: Path) -> None:
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    expected = numbers(CALLS[call](net, x, tmp_path))
    with STATES[state]():
        made = CALLS[call](net, x, tmp_path)
    assert numbers(made) == expected
    if isinstance(made, nn.Module):
        made.train()(x).sum().backward()
        assert made.get_parameter("b.weight").grad is not None


@pytest.mark.parametrize("call", ["fx", "eager", "export", "hooks", "preserve", "fold", "masked"])
def test_a_model_that_was_made_in_inference_mode_gives_one_that_trains(call: str, tmp_path: Path) -> None:
    with torch.inference_mode():
        net, x = Net().eval(), torch.randn(2, 3, 8, 8)
        made = CALLS[call](net, x, tmp_path)
    made.train()(x.clone()).sum().backward()
    assert made.get_parameter("b.weight").grad is not None
    assert not any(tensor.is_inference() for tensor in made.state_dict().values())
    assert not made.get_parameter("a.weight").requires_grad


def test_inputs_that_were_made_in_inference_mode_are_read_as_any_others() -> None:
    class Sorts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x += 1  # refused for a tensor of inference mode
            return self.b(self.a(x)) if float(x.sum()) < 1e9 else x

    with torch.inference_mode():
        x = torch.zeros(2, 4)
    small = fxprune.transform(Sorts().eval(), x, ratio=0.5)
    assert small.get_submodule("a").out_features == 4
    assert torch.equal(x, torch.zeros(2, 4)), "the caller's inputs are only read"


def described() -> dict[str, Any]:
    """The result of an operation under the state of this thread, and the flags of that state."""
    made: Any = None
    with contextlib.suppress(AssertionError):  # of `Refusing`
        made = nn.functional.linear(torch.ones(1, 2), torch.ones(3, 2))
    return {
        "type": type(made),
        "dtype": getattr(made, "dtype", None),
        "device": getattr(made, "device", None),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "zeros": type(made) is Tensor and made.device.type == "cpu" and not bool(made.any()),
    }


@pytest.mark.parametrize("state", STATES)
def test_the_state_of_the_thread_comes_back_after_a_call_that_raises(state: str) -> None:
    net = nn.Linear(2, 3)
    with STATES[state]():
        before = described()
        with contextlib.suppress(ZeroDivisionError), usual_state():
            raise ZeroDivisionError
        assert described() == before
        with pytest.raises(fxprune.FxpruneError):
            fxprune.analyze(net, 3)
        assert described() == before


def test_a_forward_gets_the_default_device_and_dtype_of_its_caller() -> None:
    class Makes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) + torch.ones(self.a.out_features))

    with default_dtype(torch.float64):
        net, x = Makes().eval(), torch.randn(2, 4)
        small = fxprune.transform(net, x, ratio=0.5, path="eager")
        assert small(x).dtype is torch.float64
        assert fxprune.verify(net, small, x) <= 1e-9
