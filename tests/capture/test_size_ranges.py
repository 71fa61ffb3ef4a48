"""The range of sizes that is said of an exported graph is the one that its guards accept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture.captured import FIXED, NOTES
from fxprune.capture.exported import export

SIZE = 6


class Decides(nn.Module):
    """Decides by the length of its input."""

    def __init__(self, condition: Callable[[int], bool]) -> None:
        super().__init__()
        self.condition, self.first, self.last = condition, nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            x = x + other
        h = torch.relu(self.first(x))
        return self.last(h * 2 if self.condition(x.shape[1]) else h)


CONDITIONS: dict[str, Callable[[int], bool]] = {
    "a limit": lambda n: n < 10,
    "a limit and a hole at its end": lambda n: n < 10 and n != 9,
    "a hole": lambda n: n != 8,
    "a multiple": lambda n: 2 * n < 19,
    "a square": lambda n: n * n < 90,
    "a quotient": lambda n: n // 2 < 5,
    "a limit from below": lambda n: n > 3,
    "a limit from below and a hole": lambda n: n > 3 and n != 4,
    "both": lambda n: 3 * n > 13 and 3 * n < 25,
    "none": lambda n: n > 0,
}


def sizes_around(accepts: Callable[[int], bool]) -> tuple[int, int]:
    """The least and the greatest size, at most 20, of those next to the example's that are all accepted."""
    least = most = SIZE
    while least > 2 and accepts(least - 1):
        least -= 1
    while most < 20 and accepts(most + 1):
        most += 1
    return least, most


CASES = [*((name, 1) for name in CONDITIONS), ("a limit and a hole at its end", 2)]


@pytest.mark.parametrize(("name", "inputs"), CASES)
def test_the_range_that_is_said_is_the_one_that_runs(name: str, inputs: int) -> None:
    def example(size: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn(2, size, 4) for _ in range(inputs))

    def runs(size: int) -> bool:
        try:
            graph(*example(size))
        except AssertionError:
            return False
        return True

    graph = export(Decides(CONDITIONS[name]).eval(), (example(SIZE), {}))
    least, most = sizes_around(runs)
    said, warned = " ".join(graph.meta[NOTES]), " ".join(graph.meta[FIXED])
    assert (f"is of size {least} to {most}" in said) == (most < 20)
    assert (f"is of size {least} at least" in said) == (least > 2 and most == 20)
    assert ("is of size" in said) == (least > 2 or most < 20)
    assert (f"is of size {most} at most" in warned) == (most < 20)


def test_a_hole_is_in_the_warning_and_the_reasons() -> None:
    model, x = Decides(CONDITIONS["a limit and a hole at its end"]).double().eval(), torch.randn(2, SIZE, 4).double()
    with pytest.warns(fxprune.FixedSizesWarning, match="the input x is of size 8 at most in dimension 1"):
        small = fxprune.transform(model, x, ratio=0.5, path="export")
    assert "the input x in dimension 1 is of size 2 to 8" in fxprune.record(small).reasons
    small(x[:, :1].expand(-1, 8, -1))
    with pytest.raises(AssertionError, match="Guard failed"):
        small(x[:, :1].expand(-1, 9, -1))


class Bags(nn.Module):
    """Torch exports the offsets of bags for two of them or more."""

    def __init__(self) -> None:
        super().__init__()
        self.bags, self.last = nn.EmbeddingBag(20, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bags(x))


def test_a_size_of_one_that_is_refused_is_in_the_warning_and_the_reasons() -> None:
    x = torch.randint(20, (4, 5))
    with pytest.warns(fxprune.FixedSizesWarning, match="the input x is not of size 1 in dimension 0"):
        small = fxprune.transform(Bags().eval(), x, ratio=0.5, path="export")
    assert any("is not of size 1" in reason for reason in fxprune.record(small).reasons)
    assert small(x[:2]).shape == (2, 3)
    with pytest.raises(AssertionError, match="Guard failed"):
        small(x[:1])
