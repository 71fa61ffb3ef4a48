"""Every test starts from seeds made of its own name; workers of a parallel run use one thread each."""

from __future__ import annotations

import gc
import importlib
import os
import random
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._device import _device_constructors


def pytest_configure(config):
    gc.disable()  # until the tests are collected: nothing of theirs is let go before that
    # torch lists them at the first use, which must not be where transformers has replaced torch.linspace for a while
    _device_constructors()
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items):
    """Marks as slow all but every nth set of arguments of a test with the mark `one_in(n)`."""
    seen = Counter()
    for item in items:
        mark = item.get_closest_marker("one_in")
        if mark is not None:
            if seen[item.function] % mark.args[0]:
                item.add_marker("slow")
            seen[item.function] += 1


def pytest_collection_finish(session):
    # no collection visits the million objects that torch and the tests are made of: each takes most of a second
    importlib.import_module("hypothesis")  # before it: this looks for who refers to a generator that it registers
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seeded(request):
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)
    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:  # torch would note a stack of calls for each kind of device that is not there, 13,000 times
        torch.default_generator.manual_seed(seed)
