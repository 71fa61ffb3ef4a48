"""Parts that decide by numbers, and code whose results nobody uses."""

from __future__ import annotations

import math

import torch
from networks_layers import Choices
from networks_modes import Pair
from networks_parts import part
from torch import Tensor, nn


@part("decide")
class Decide(Pair):
    """Another course for other numbers."""

    kinds = "sum argmax item rows bool any loop nonzero first none while tolist unique return try sorted shape where"

    def more(self, choose: Choices, x: Tensor) -> None:
        self.unused = choose.of("unused", "none discarded layer")
        if self.unused == "layer":
            self.aside = nn.Linear(self.width, 4)
        self.other = nn.Linear(self.width, self.width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        if (self.way == "sum" and float(y.sum()) > -1e9) or (self.way == "any" and (x > 1e9).any()):
            y = y * 1.5
        elif self.way == "argmax" and int(x.mean((0, 1)).argmax()) >= 0:
            y = self.other(y)
        elif self.way == "item":
            y = y * (2.0 if x.abs().max().item() > -1 else self.other(y))
        elif self.way == "rows":
            rows = x[..., 0].abs() > -1
            y = torch.zeros_like(y).masked_scatter(rows[..., None].expand_as(y), self.other(y[rows]))
        elif self.way == "bool":
            y = self.other(y) if bool((y == y).all()) else y
        elif self.way == "loop":
            for _ in range(1 + int(x.sum().abs() > -1)):
                y = torch.tanh(self.other(y))
        elif self.way == "nonzero":
            where = (x[0, :, 0].abs() > -1).nonzero().flatten()
            y = y + y.index_select(1, where)
        elif self.way == "first" and x.flatten()[0] < 1e9:
            y = self.other(y) + y
        elif self.way == "while":
            while float(y.abs().max()) > 0.5:
                y = y * 0.5
        elif self.way == "tolist":
            y = y * (1.0 + sum(value > 0 for value in x[:, 0, 0].tolist()))
        elif self.way == "unique":
            y = y * float(torch.unique((x[..., 0] > 0).long()).numel())
        elif self.way == "return" and float(x[0, 0, 0]) > 1e9:
            return x
        elif self.way == "try":
            y = self.tried(y)
        elif self.way == "sorted":
            y = y[:, torch.argsort(x[0, :, 0])]
        elif self.way == "shape":
            y = self.other(y) if y.shape[1] > 1 and y.numel() > 0 else y
        elif self.way == "where":
            rows, places = torch.where(x[..., 0] > -1e9)
            y = torch.zeros_like(y).index_put((rows, places), self.other(y[rows, places]))
        if self.unused == "discarded":
            _ = y * 2
        elif self.unused == "layer":
            self.aside(y).sum()
        return self.down(y)

    def tried(self, y: Tensor) -> Tensor:
        """Another course where a number is none."""
        try:
            if not math.isfinite(float(y.sum())):
                raise ValueError("no number")
            return self.other(y)
        except ValueError:
            return y


@part("unused")
class Unused(Pair):
    """Layers and results that nobody uses."""

    kinds = "layer result never parameter overwritten norm branch part dict printed compared"

    def more(self, choose: Choices, x: Tensor) -> None:
        self.aside = nn.Linear(self.width, choose.number(2, 5))
        if self.way == "norm":
            self.norm = nn.BatchNorm1d(self.width)
        if self.way == "parameter":
            self.spare = nn.Parameter(torch.zeros(self.width))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        if self.way == "layer":
            self.aside(y)
        elif self.way == "result":
            self.aside(y).argmax(-1)
        elif self.way == "overwritten":
            z = self.aside(y)
            z = y * 2
            y = y + z
        elif self.way == "norm":
            self.norm(y.transpose(1, 2))
        elif self.way == "part":
            first, _ = y.split([1, self.width - 1], -1)  # sizes of a split count channels
            y = y + first.mean()
        elif self.way == "dict":
            made = {"used": y * 2, "unused": self.aside(y)}
            y = made["used"]
        elif self.way == "printed":
            self.text = f"{self.aside(y).shape[-1]} of {y.shape[-1]}"
        elif self.way == "compared":
            _ = self.aside(y) > 0
        elif self.way == "branch":
            self.kept = self.aside(y).detach() if y.shape[0] else y
        return self.down(y)
