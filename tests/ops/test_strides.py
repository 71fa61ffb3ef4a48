"""`as_strided` of frames: on every path the strides follow the channels, or the channels stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from tests.support import randomise, relative_error


class Framed(nn.Module):
    """Cuts the signal of each channel into frames; `style` says where the strides come from."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style, self.channels, self.length = style, 11, 32
        self.stem, self.head = nn.Conv1d(3, 11, 1), nn.Conv2d(11, 4, 1)
        self.register_buffer("window", torch.hann_window(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(getattr(self, self.style)(self.stem(x)))

    def from_strides(self, h: torch.Tensor) -> torch.Tensor:
        return h.as_strided((h.shape[0], h.shape[1], 7, 8), (h.stride(0), h.stride(1), 4, 1))

    def from_shape(self, h: torch.Tensor) -> torch.Tensor:
        n, c, t = h.shape
        return torch.as_strided(h, size=(n, c, 7, 8), stride=(c * t, t, 4, 1), storage_offset=0)

    def from_attributes(self, h: torch.Tensor) -> torch.Tensor:
        size = (h.shape[0], self.channels, 7, 8)
        return h.as_strided(size, (self.channels * self.length, self.length, 4, 1))

    def from_numbers(self, h: torch.Tensor) -> torch.Tensor:
        return h.as_strided((h.shape[0], h.shape[1], 7, 8), (352, 32, 4, 1))

    def by_stft(self, h: torch.Tensor) -> torch.Tensor:
        made = torch.stft(h.flatten(0, 1), 8, 4, window=self.window, return_complex=True)
        return torch.view_as_real(made).flatten(-2).view(h.shape[0], h.shape[1], 5, -1)

    def by_istft(self, h: torch.Tensor) -> torch.Tensor:
        made = torch.stft(h.flatten(0, 1), 8, 4, window=self.window, return_complex=True)
        return torch.istft(made.exp(), 8, 4, window=self.window).view(h.shape[0], h.shape[1], 1, -1)


X = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
STYLES = ["from_strides", "from_shape", "from_attributes", "by_stft"]


@pytest.mark.parametrize(
    ("style", "path"),
    [*((style, path) for style in STYLES for path in ("eager", "fx", "export")), ("by_istft", "eager")],
)
def test_strides_follow_the_channels(style, path):
    model = randomise(Framed(style), 1).eval()
    small = fxprune.transform(model, X, ratio=0.5, path=path)
    record = fxprune.record(small)
    assert record.after["stem.weight"] == (6, 3, 1)
    assert record.error <= 1e-9
    reference = fxprune.masked(model, record.zeroed).double()
    other = torch.randn(5, 3, 32).double()  # another batch
    assert relative_error(small.double()(other), reference(other)) < 1e-9


@pytest.mark.parametrize("path", ["eager", "export"])
@pytest.mark.parametrize("style", ["from_strides", "from_shape"])
def test_strides_that_follow_the_length_go_on_doing_so(style, path):
    model = randomise(Framed(style), 1).eval()
    small = fxprune.transform(model, X, ratio=0.5, path=path).double()
    longer = torch.randn(2, 3, 44).double()
    reference = fxprune.masked(model, fxprune.record(small).zeroed).double()
    assert relative_error(small(longer), reference(longer)) < 1e-9


def test_strides_that_code_has_as_numbers_hold_the_channels():
    model = randomise(Framed("from_numbers"), 1).eval()
    with pytest.warns(fxprune.NothingRemovedWarning, match="as_strided has stride 352, which was 352"):
        small = fxprune.transform(model, X, ratio=0.5, path="eager", verify=False)
    assert torch.equal(small(X), model(X))


@pytest.mark.parametrize("path", ["fx", "export"])
def test_strides_that_a_graph_has_as_numbers_are_recounted(path):
    model = randomise(Framed("from_numbers"), 1).eval()
    small = fxprune.transform(model, X, ratio=0.5, path=path)
    assert fxprune.record(small).after["stem.weight"] == (6, 3, 1)
    assert fxprune.record(small).error <= 1e-9
