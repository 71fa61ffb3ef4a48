"""`import fxprune` brings in nothing heavy beyond what `import torch` does: calls import what only they need."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest

import fxprune

HEAVY = """
    matplotlib mpmath networkx onnx onnxruntime onnxscript pandas safetensors scipy sklearn sympy tabulate timm
    torch._dynamo torch._export torch._functorch torch._inductor torch._meta_registrations torch.ao.pruning torch.export
    torch.fx.experimental.symbolic_shapes torch.testing torch.utils._sympy torchvision tqdm transformers
""".split()
"""Each takes long to import, or is optional, or is needed by few calls. Some of them torch imports by itself."""


@functools.cache
def modules_after(module):
    """The names of all modules that a fresh process holds after importing this one."""
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return frozenset(json.loads(done.stdout))


def brought_in():
    return modules_after("fxprune") - modules_after("torch")


@pytest.mark.parametrize("name", HEAVY)
def test_import_leaves_out(name):
    assert name not in brought_in()


def test_import_brings_in_no_package_but_the_standard_library_and_numpy():
    packages = {name.partition(".")[0] for name in brought_in()}
    assert "fxprune" in packages
    assert packages - set(sys.stdlib_module_names) <= {"fxprune", "numpy", "torch"}


def test_a_module_that_is_imported_is_seen():
    assert "sympy" in modules_after("torch.utils._sympy.numbers")


def test_subpackages_that_few_need_wait_for_their_import():
    assert not {"fxprune.plot", "fxprune.sparse"} & brought_in()


PUBLIC_MODULES = {
    "criteria": "Importance",
    "ops": "rule",
    "plot": "dependencies",
    "regularizers": "GroupLasso",
    "pruner": "BasePruner",
    "schedules": "AGP",
    "sparse": "freeze",
}
"""The public modules, each with a name in it."""


@pytest.mark.parametrize(("module", "name"), PUBLIC_MODULES.items())
def test_public_modules_are_there_after_import_fxprune(module, name):
    code = f"import fxprune; print(fxprune.{module}.{name}.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout


def test_public_modules_can_be_imported_from_fxprune():
    code = f"from fxprune import {', '.join(PUBLIC_MODULES)}; print({'.__name__, '.join(PUBLIC_MODULES)}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"fxprune.{module}" for module in PUBLIC_MODULES]


def test_dir_shows_public_names_only():
    assert sorted(dir(fxprune)) == sorted([*fxprune.__all__, *PUBLIC_MODULES, "__version__"])
    assert all(hasattr(fxprune, name) for name in dir(fxprune))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fxprune' has no attribute 'nonsense'"):
        _ = fxprune.nonsense
    assert not hasattr(fxprune, "nonsense")
