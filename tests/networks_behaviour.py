"""Small networks of parts whose behaviour can get lost, made from data: `Course`, and `build_course`."""

from __future__ import annotations

from typing import Any

import networks_caches
import networks_decisions
import networks_modes
import networks_places
import networks_scales
import networks_sizes
import networks_transforms
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from networks import randomize
from networks_layers import Layer, TokenProgram
from networks_parts import PARTS, PartChoices
from networks_tokens import PICKS, programs_of
from torch import Tensor, nn

REGISTERED = (
    *(networks_modes, networks_decisions, networks_sizes, networks_places, networks_scales, networks_caches),
    networks_transforms,
)
"""The modules whose import registers parts."""


class Course(TokenProgram):
    """A network of such parts."""


class CourseNetwork(nn.Module):
    """A program as a module, with a plain hidden layer in its head, whose channels can always be removed."""

    def __init__(self, program: Course) -> None:
        super().__init__()
        choose = PartChoices("course", program.picks)
        self.features = choose.made
        self.residual = choose.of("joined", "chain residual")
        self.returned = choose.of("returned", "tensor dict auxiliary tuple")
        self.pooled = choose.of("head", "mean tokens last")
        self.given = choose.of("given", "tensor keyword")
        self.method = choose.of("method", "none scored halves product twice checked")
        x = torch.zeros(2, program.length, 3)
        self.stem = nn.Linear(3, program.width)
        x = self.stem(x)
        self.parts = nn.ModuleList()
        for layer in program.layers:
            self.parts.append(PARTS[layer.kind](layer, x))
        self.aside = nn.Linear(program.width, 2)
        self.hidden, self.last = nn.Linear(program.width, 6), nn.Linear(6, 3)
        if self.method in ("halves", "checked"):
            self.split, self.half, self.closing = nn.Linear(program.width, 8), 4, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for module in self.parts:
            x = x + module(x) if self.residual == "residual" else module(x)
        side = self.aside(x.mean(1)) if self.returned == "tuple" or self.auxiliary() else None
        x = x.mean(1) if self.pooled == "mean" else x[:, -1] if self.pooled == "last" else x
        x = self.last(F.relu(self.hidden(x)))
        if self.returned == "dict":
            return {"logits": x, "more": [x * 2]}
        return x if side is None else (x, side)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for module in self.parts:
            x = module(x)
        return x

    def scored(self, x: Tensor) -> Tensor:
        """A method with the layers of forward."""
        return self.last(F.relu(self.hidden(self.body(x)))).softmax(-1)

    def halves(self, x: Tensor) -> Tensor:
        """A method with layers of its own, whose width it knows."""
        a, b = self.split(self.stem(x)).split((self.half, self.half), -1)
        return self.closing(a * b.sigmoid())

    def checked(self, x: Tensor) -> Tensor:
        """A method that compares widths."""
        y = self.split(self.body(x))
        assert y.shape[-1] == 2 * self.half
        return self.closing(y[..., : self.half].tanh())

    def product(self) -> Tensor:
        """A method without inputs."""
        return self.last.weight @ self.hidden.weight

    def twice(self, x: Tensor) -> Any:
        """A method that calls the model."""
        return self(x), self(x * 2)

    def auxiliary(self) -> bool:
        return self.returned == "auxiliary" and self.training


def build_course(program: Course) -> nn.Module:
    """The network of a program, float64, evaluation mode."""
    with torch.random.fork_rng(), torch.no_grad():
        net = CourseNetwork(program).eval()
    return randomize(net.double(), program.seed)


def course_inputs(net: nn.Module, program: Course, seed: int = 0, batch: int = 2) -> Any:
    """An input of the network: a tensor, or a dict of keyword arguments."""
    generator = torch.Generator().manual_seed(3000 + seed)
    x = torch.randn(batch, program.length, 3, generator=generator, dtype=torch.float64)
    return {"x": x} if net.given == "keyword" else x


def method_inputs(net: nn.Module, program: Course, seed: int = 0, batch: int = 2) -> dict[str, Any]:
    """The method of a network besides forward, if it has one, and its inputs."""
    given = () if net.method == "product" else course_inputs(net, program, seed, batch)
    return {} if net.method == "none" else {net.method: given}


def courses(*, longest: int = 3) -> st.SearchStrategy[Course]:
    """Random networks of such parts."""
    layer = st.builds(Layer, st.sampled_from(sorted(PARTS)), PICKS)
    return programs_of(Course, st.lists(layer, min_size=1, max_size=longest).map(tuple))
