"""The global generators of random numbers: they are seeded before a model is made, and watched while it is made."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch

from fxprune.given_seeds import generator_of

NUMPY_SEEDS = 2**32
"""NumPy takes seeds below this number."""


def seed_all(seed: int) -> None:
    """Seeds the global generators of torch (on all devices), NumPy and Python."""
    number = generator_of(seed).initial_seed()
    torch.manual_seed(number)
    np.random.seed(number % NUMPY_SEEDS)
    random.seed(number)


@contextlib.contextmanager
def watched() -> Iterator[Callable[[], bool]]:
    """Yields a function: True if numbers were drawn from a generator of torch or NumPy since it began.

    Generators that a model's code makes for itself are not seen, such as `numpy.random.default_rng()`, nor is that of
    Python, which code uses for much else than weights.
    """
    torch_before, numpy_before = torch.get_rng_state(), _numpy_state()

    def drawn() -> bool:
        same = torch.equal(torch_before, torch.get_rng_state()) and numpy_before == _numpy_state()
        return not same or _drawn_on_a_device()

    yield drawn


def _numpy_state() -> tuple[object, ...]:
    _, keys, *rest = np.random.get_state(legacy=True)
    return np.asarray(keys).tobytes(), *rest


def _drawn_on_a_device() -> bool:
    """True if the generator of a device is not as it is right after its seed. `seed_all` has seeded it before."""
    for module in (torch.cuda, torch.xpu):
        for generator in module.default_generators if module.is_initialized() else ():
            fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
            if not torch.equal(fresh.get_state(), generator.get_state()):
                return True
    return False
