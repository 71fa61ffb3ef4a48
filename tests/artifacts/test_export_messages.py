"""The errors of `export` for a graph that cannot be written, and for one that differs with some sizes of batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.artifacts.graph_comparison import worst_error
from fxprune.artifacts.program import Portable
from fxprune.capture.inputs import Inputs
from fxprune.errors import CaptureError, VerificationError


class Modulated(nn.Module):
    """A convolution with a weight for each sample: the batch is its number of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(3, 2, 3, 3)), nn.Linear(5, 2)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        batch, _, high, wide = x.shape
        weight = (self.weight[None] * self.style(style)[:, None, :, None, None]).view(3 * batch, 2, 3, 3)
        made = F.conv2d(x.reshape(1, 2 * batch, high, wide), weight, padding=1, groups=batch)
        return made.view(batch, 3, high, wide)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Modulated()

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return torch.relu(self.inner(x, style))


def test_an_operation_that_onnx_has_not_is_named_with_its_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    inputs = torch.randn(2, 2, 4, 4), torch.randn(2, 5)
    with pytest.raises(CaptureError) as caught:
        fxprune.export(Outer().eval(), tmp_path / "a.onnx", inputs, dynamic_batch=True)
    line = Modulated.forward.__code__.co_firstlineno + 3
    assert f"\n  at   aten.conv2d.default in inner ({__file__}:{line})\n" in str(caught.value)
    assert "\n  do   leave out dynamic_batch, write a .pt2, or " in str(caught.value)
    fixed = fxprune.export(Outer().eval(), tmp_path / "a.onnx", inputs)
    assert fixed.error is None or fixed.error < 1e-4


class Spectral(nn.Module):
    """Writes some frequencies, as a Fourier operator does. plain: with real and imaginary parts."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.lift, self.plain = nn.Linear(3, 3), plain

    def forward(self, x: Tensor) -> Tensor:
        read = torch.fft.rfft(self.lift(x), dim=1)
        read = torch.view_as_real(read) if self.plain else read
        made = torch.zeros_like(read)
        made[:, :2] = read[:, :2]
        return torch.fft.irfft(torch.view_as_complex(made) if self.plain else made, n=x.shape[1], dim=1)


def test_writing_complex_numbers_is_refused_in_onnx_and_the_way_that_is_named_works(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    x = torch.randn(2, 6, 3)
    with pytest.raises(CaptureError) as caught:
        fxprune.export(Spectral(False).eval(), tmp_path / "a.onnx", x)
    line = Spectral.forward.__code__.co_firstlineno + 3
    at, why, do = str(caught.value).splitlines()[1:]
    assert at == f"  at   aten.zeros_like.default in the model ({__file__}:{line})"
    assert "complex" in why
    how = "with real and imaginary parts (torch.view_as_real, torch.view_as_complex)"
    assert do == f"  do   write a .pt2, or write that operation {how}"
    error = fxprune.export(Spectral(True).eval(), tmp_path / "a.onnx", x).error
    assert error is not None
    assert error < 1e-4


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize(
    ("model", "drawn"),
    [
        (nn.Identity(), "nothing in the model is random"),
        (Noisy(), "the model draws random numbers, and the file draws others"),
    ],
)
def test_an_error_says_the_sizes_of_batches_that_differ(model: nn.Module, drawn: str) -> None:
    portable, x = Portable(model.eval(), {}, ()), torch.ones(3, 4, dtype=torch.float64)

    def runner(inputs: Inputs) -> list[Tensor]:
        (whole,) = portable.run(inputs)
        return [whole + (0.5 if len(whole) == 1 else 1e-6) * whole.abs().max()]

    with pytest.raises(VerificationError) as caught:
        worst_error(portable, runner, ((x,), {}), frozenset([id(x)]), 1e-3, "a.onnx")
    why, do = str(caught.value).splitlines()[2:]
    assert why == (
        "  why  the relative error is 5.0e-01, above 1.0e-03, with a batch of 1; it is 1.0e-06 with 3 and 4; " + drawn
    )
    assert do.endswith(
        "; a variance over the batch is rounding alone there: see what the model computes over the batch"
    )
    with pytest.raises(VerificationError) as caught:
        worst_error(portable, lambda i: [2 * t for t in portable.run(i)], ((x,), {}), frozenset(), 1e-3, "a.onnx")
    assert f"above 1.0e-03; {drawn}\n  do   no file was written; a larger `tolerance` accepts it" in str(caught.value)
