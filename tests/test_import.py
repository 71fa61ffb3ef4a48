"""`import fxprune` brings in nothing heavy beyond what `import torch` does: calls import what only they need."""

from __future__ import annotations

import functools
import json
import sys

import pytest

import fxprune
from tests.forks import ended_forks

HEAVY = """
    matplotlib mpmath networkx onnx onnxruntime onnxscript pandas safetensors scipy sklearn sympy tabulate timm
    torch._dynamo torch._export torch._functorch torch._inductor torch._meta_registrations torch.ao.pruning torch.export
    torch.fx.experimental.symbolic_shapes torch.testing torch.utils._sympy torchvision tqdm transformers
""".split()
"""Each takes long to import, or is optional, or is needed by few calls. Some of them torch imports by itself."""


@functools.cache
def modules_after_each():
    """Module -> the names of all modules that a process holds that has imported torch, and then this one."""
    code = "import json, sys; __import__(sys.argv[1]); print(json.dumps(sorted(sys.modules)))"
    modules = ("torch", "fxprune", "torch.utils._sympy.numbers")
    ended = ended_forks([(code, [module]) for module in modules])
    return {module: frozenset(json.loads(done.stdout)) for module, done in zip(modules, ended, strict=True)}


def brought_in():
    return modules_after_each()["fxprune"] - modules_after_each()["torch"]


@pytest.mark.parametrize("name", HEAVY)
def test_import_leaves_out(name):
    assert name not in brought_in()


def test_import_brings_in_no_package_but_the_standard_library_and_numpy():
    packages = {name.partition(".")[0] for name in brought_in()}
    assert "fxprune" in packages
    assert packages - set(sys.stdlib_module_names) <= {"fxprune", "numpy", "torch"}


def test_a_module_that_is_imported_is_seen():
    assert "sympy" in modules_after_each()["torch.utils._sympy.numbers"]


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


@functools.cache
def printed_by_each():
    """Module -> what a process prints that has imported fxprune alone, and asks it for this module and a name in it.

    The last is one process that imports all of them from fxprune.
    """
    code, names = "import fxprune; print(fxprune.{0}.__name__, fxprune.{0}.{1})", [*PUBLIC_MODULES]
    codes = {module: code.format(module, name) for module, name in PUBLIC_MODULES.items()}
    codes["all"] = f"from fxprune import {', '.join(names)}; print({'.__name__, '.join(names)}.__name__)"
    ended = ended_forks([(code, []) for code in codes.values()], after="fxprune")
    return {key: done.stdout if done.returncode == 0 else done.stderr for key, done in zip(codes, ended, strict=True)}


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_public_modules_are_there_after_import_fxprune(module):
    assert printed_by_each()[module].startswith(f"fxprune.{module} ")


def test_public_modules_can_be_imported_from_fxprune():
    assert printed_by_each()["all"].split() == [f"fxprune.{module}" for module in PUBLIC_MODULES]


def test_dir_shows_public_names_only():
    assert sorted(dir(fxprune)) == sorted([*fxprune.__all__, *PUBLIC_MODULES, "__version__"])
    assert all(hasattr(fxprune, name) for name in dir(fxprune))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fxprune' has no attribute 'nonsense'"):
        _ = fxprune.nonsense
    assert not hasattr(fxprune, "nonsense")


@pytest.mark.parametrize("name", fxprune._MODULES)
def test_a_public_module_says_what_is_public(name: str) -> None:
    module = getattr(fxprune, name)
    assert module.__all__
    assert all(hasattr(module, one) for one in module.__all__)
