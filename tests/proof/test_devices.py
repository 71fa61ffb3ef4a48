"""Proofs of models on devices without float64. There is none here: a tensor that says it is on one stands for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import fxprune
from fxprune.proof.precision import FLOAT32, FLOAT64, OWN, Precision, proof_device


class OnMps(torch.Tensor):
    """A tensor that says it is on a device without float64. Only a copy on the CPU takes other types."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnMps:
        made: Any = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device="mps")
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = pytree.tree_map_only(OnMps, lambda tensor: tensor.inner, args)
        device = kwargs.pop("device", None)
        made = func(*given, **kwargs)
        if device is not None and torch.device(device).type == "cpu":
            return made.clone()
        if made.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return OnMps(made)


@pytest.mark.parametrize("precision", [FLOAT64, FLOAT32, OWN], ids=lambda precision: precision.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.complex64])
def test_copies_for_a_proof_are_on_the_cpu(precision: Precision, dtype: torch.dtype) -> None:
    values = torch.arange(6).view(2, 3).to(dtype)
    copied = precision.copy(OnMps(values))
    assert type(copied) is torch.Tensor
    assert copied.device == torch.device("cpu")
    assert copied.dtype == precision.copy(values).dtype
    assert torch.equal(copied, precision.copy(values))


def test_the_other_devices_prove_on_themselves() -> None:
    for name in ("cpu", "cuda:1", "xpu", "meta"):
        assert proof_device(torch.device(name)) == torch.device(name)


def test_a_tensor_of_such_a_device_takes_no_float64() -> None:
    """The stand-in does as the device does."""
    with pytest.raises(TypeError, match="doesn't support float64"):
        OnMps(torch.ones(2)).to(torch.float64)


def test_a_model_is_proven_with_copies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor that the proof runs with has gone through the copy that chooses the device."""
    seen: set[int] = set()
    copy = Precision.copy

    def noted(self: Precision, tensor: torch.Tensor) -> torch.Tensor:
        seen.add(tensor.data_ptr())
        return copy(self, tensor)

    monkeypatch.setattr(Precision, "copy", noted)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(1, 3, 8, 8)
    small = fxprune.transform(net, x, ratio=0.5)
    for model in (net, small):
        assert {tensor.data_ptr() for tensor in model.state_dict().values() if tensor.is_floating_point()} <= seen
    assert x.data_ptr() in seen
