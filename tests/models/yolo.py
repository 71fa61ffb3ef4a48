"""A small detector out of the blocks of the YOLOv8 line: Conv-BN-SiLU, C2f, SPPF, a neck, a head with DFL.

Written out as these models are usually written: lists that grow by `extend`, modules by position, anchors that are
made in forward and kept in attributes, box distances as the expectation of a softmax over 16 bins.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tests.models.zoo import Entry, numbers, ready


class Conv(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, c1: int, c2: int, shortcut: bool, e: float) -> None:
        super().__init__()
        c_ = int(c2 * e)
        self.cv1 = Conv(c1, c_, 3)
        self.cv2 = Conv(c_, c2, 3)
        self.add = shortcut and c1 == c2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = False) -> None:
        super().__init__()
        self.c = c2 // 2
        self.cv1 = Conv(c1, 2 * self.c)
        self.cv2 = Conv((2 + n) * self.c, c2)
        self.m = nn.ModuleList(Bottleneck(self.c, self.c, shortcut, 1.0) for _ in range(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C3(nn.Module):
    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        c_ = c2 // 2
        self.cv1 = Conv(c1, c_)
        self.cv2 = Conv(c1, c_)
        self.cv3 = Conv(2 * c_, c2)
        self.m = nn.Sequential(*(Bottleneck(c_, c_, shortcut, 1.0) for _ in range(n)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class SPPF(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 5) -> None:
        super().__init__()
        c_ = c1 // 2
        self.cv1 = Conv(c1, c_)
        self.cv2 = Conv(c_ * 4, c2)
        self.m = nn.MaxPool2d(k, 1, k // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Concat(nn.Module):
    def forward(self, x: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(x, 1)


class DFL(nn.Module):
    """The expectation of a distribution over `c1` bins, as a convolution with fixed weights."""

    def __init__(self, c1: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(c1, dtype=torch.float).view(1, c1, 1, 1)
        self.c1 = c1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, a = x.shape
        return self.conv(x.view(b, 4, self.c1, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class Detect(nn.Module):
    """Boxes and classes at three scales. `decode=False` returns the maps as they come, as in training."""

    def __init__(self, nc: int, ch: tuple[int, ...], strides: tuple[int, ...], decode: bool) -> None:
        super().__init__()
        self.nc, self.nl, self.reg_max = nc, len(ch), 16
        self.no = nc + self.reg_max * 4
        self.stride = strides
        self.decode = decode
        self.shape: Any = None
        self.anchors, self.strides = torch.empty(0), torch.empty(0)
        c2, c3 = max(16, ch[0] // 4, self.reg_max * 4), max(ch[0], min(nc, 100))
        self.cv2 = nn.ModuleList(
            nn.Sequential(Conv(x, c2, 3), Conv(c2, c2, 3), nn.Conv2d(c2, 4 * self.reg_max, 1)) for x in ch
        )
        self.cv3 = nn.ModuleList(nn.Sequential(Conv(x, c3, 3), Conv(c3, c3, 3), nn.Conv2d(c3, nc, 1)) for x in ch)
        self.dfl = DFL(self.reg_max)

    def forward(self, x: list[torch.Tensor]) -> Any:
        for i in range(self.nl):
            x[i] = torch.cat((self.cv2[i](x[i]), self.cv3[i](x[i])), 1)
        if not self.decode:
            return x
        shape = x[0].shape
        x_cat = torch.cat([xi.view(shape[0], self.no, -1) for xi in x], 2)
        if self.shape != shape:
            self.anchors, self.strides = (t.transpose(0, 1) for t in make_anchors(x, self.stride))
            self.shape = shape
        box, cls = x_cat.split((self.reg_max * 4, self.nc), 1)
        lt, rb = self.dfl(box).chunk(2, 1)
        x1y1, x2y2 = self.anchors.unsqueeze(0) - lt, self.anchors.unsqueeze(0) + rb
        boxes = torch.cat(((x1y1 + x2y2) / 2, x2y2 - x1y1), 1) * self.strides
        return torch.cat((boxes, cls.sigmoid()), 1), x


def make_anchors(maps: list[torch.Tensor], strides: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The centres of all cells, [cells, 2], and the stride of each, [cells, 1]."""
    points, scales = [], []
    for x, stride in zip(maps, strides, strict=True):
        _, _, h, w = x.shape
        sx = torch.arange(w, device=x.device, dtype=x.dtype) + 0.5
        sy = torch.arange(h, device=x.device, dtype=x.dtype) + 0.5
        gy, gx = torch.meshgrid(sy, sx, indexing="ij")
        points.append(torch.stack((gx, gy), -1).view(-1, 2))
        scales.append(torch.full((h * w, 1), stride, dtype=x.dtype, device=x.device))
    return torch.cat(points), torch.cat(scales)


class Yolo(nn.Module):
    """Backbone, a neck that goes up and down again, head; layers in a list, `sources` says what each one reads."""

    def __init__(self, block: type[C2f] | type[C3], decode: bool, nc: int = 11) -> None:
        super().__init__()
        w = (12, 20, 28, 44, 52)
        up = functools.partial(nn.Upsample, scale_factor=2, mode="nearest")
        layers: list[tuple[Any, nn.Module]] = [
            (-1, Conv(3, w[0], 3, 2)),  # 0
            (-1, Conv(w[0], w[1], 3, 2)),
            (-1, block(w[1], w[1], 1, True)),
            (-1, Conv(w[1], w[2], 3, 2)),
            (-1, block(w[2], w[2], 2, True)),  # 4, stride 8
            (-1, Conv(w[2], w[3], 3, 2)),
            (-1, block(w[3], w[3], 2, True)),  # 6, stride 16
            (-1, Conv(w[3], w[4], 3, 2)),
            (-1, block(w[4], w[4], 1, True)),
            (-1, SPPF(w[4], w[4])),  # 9, stride 32
            (-1, up()),
            ((-1, 6), Concat()),
            (-1, block(w[4] + w[3], w[3], 1, False)),  # 12
            (-1, up()),
            ((-1, 4), Concat()),
            (-1, block(w[3] + w[2], w[2], 1, False)),  # 15, small objects
            (-1, Conv(w[2], w[2], 3, 2)),
            ((-1, 12), Concat()),
            (-1, block(w[2] + w[3], w[3], 1, False)),  # 18
            (-1, Conv(w[3], w[3], 3, 2)),
            ((-1, 9), Concat()),
            (-1, block(w[3] + w[4], w[4], 1, False)),  # 21
            ((15, 18, 21), Detect(nc, (w[2], w[3], w[4]), (8, 16, 32), decode)),
        ]
        self.sources = [source for source, _ in layers]
        self.model = nn.ModuleList(layer for _, layer in layers)

    def forward(self, x: torch.Tensor) -> Any:
        y: list[Any] = []
        for source, layer in zip(self.sources, self.model, strict=True):
            if source != -1:
                x = [x if j == -1 else y[j] for j in source]
            x = layer(x)
            y.append(x)
        return x


def build(block: type[C2f] | type[C3], decode: bool) -> tuple[nn.Module, Any]:
    model, x = ready(Yolo(block, decode), (numbers(2, 3, 64, 96),))
    for module in model.modules():
        if isinstance(module, DFL):
            module.conv.weight.data[:] = torch.arange(module.c1, dtype=torch.float64).view(1, -1, 1, 1)
        if isinstance(module, Detect):
            module.shape = None
    return model, x


def entries() -> Iterator[Entry]:
    yield Entry("detection", "yolov8", functools.partial(build, C2f, True), "C2f, SPPF, boxes decoded through DFL")
    yield Entry("detection", "yolov8_maps", functools.partial(build, C2f, False), "C2f, SPPF, three maps")
    yield Entry("detection", "yolov5", functools.partial(build, C3, True), "C3, SPPF, boxes decoded through DFL")
