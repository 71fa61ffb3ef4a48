"""Built distributions hold the whole package and nothing else, with the version and extras of the sources.

The build runs in a copy of the sources, without network and without isolation: the backend is the setuptools at hand.
"""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fxprune

ROOT = Path(__file__).parents[1]
ASSETS = "fxprune/report/html/assets"
SOURCES = sorted(
    p.relative_to(ROOT).as_posix() for p in [*(ROOT / "fxprune").rglob("*.py"), *(ROOT / ASSETS).rglob("*.*")]
)
CORE = ["networkx", "numpy", "safetensors", "tabulate", "torch", "tqdm"]
EXTRAS = ["benchmark", "completion", "docs", "examples", "lightning", "onnx", "plot", "test", "transformers", "zoo"]
FILES = ["pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]
FOLDERS = ["fxprune", "docs", "examples", "tests"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds once: the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("packaging")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / "sources" / name)
    for name in FILES:
        shutil.copy(ROOT / name, folder / "sources")
    code = f"from setuptools import build_meta as b; b.build_wheel({str(folder)!r}); b.build_sdist({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder / "sources", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def names(built):
    """The files of the wheel."""
    with zipfile.ZipFile(built[0]) as wheel:
        return wheel.namelist()


@pytest.fixture(scope="module")
def metadata(built, names):
    name = next(n for n in names if n.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(built[0]) as wheel:
        return email.message_from_bytes(wheel.read(name))


def test_wheel_holds_every_source_file_and_nothing_else(names):
    inside = [n for n in names if ".dist-info/" not in n]
    assert sorted(inside) == sorted([*SOURCES, "fxprune/py.typed"])


def test_the_wheel_is_small(built):
    assert built[0].stat().st_size < 2_000_000


def test_wheel_holds_the_license_and_fits_every_platform(built, names):
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)
    assert built[0].name == f"fxprune-{fxprune.__version__}-py3-none-any.whl"


def test_metadata(metadata):
    assert metadata["Name"] == "fxprune"
    assert metadata["Version"] == fxprune.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload(decode=True).decode().strip() == (ROOT / "README.md").read_text().strip()


def test_requirements_and_extras(metadata):
    required = metadata.get_all("Requires-Dist")
    core = [re.match(r"[\w-]+", r)[0] for r in required if "extra ==" not in r]
    assert core == CORE
    assert sorted(metadata.get_all("Provides-Extra")) == EXTRAS


def test_source_distribution_holds_docs_examples_and_all_tests(built):
    with tarfile.open(built[1]) as archive:
        inside = {n.partition("/")[2] for n in archive.getnames()}
    for folder, pattern in {"docs": "*.md", "docs/images": "*.*", "examples": "*.py", "tests": "*.py"}.items():
        files = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob(pattern)}
        assert files
        assert files <= inside
    assert {*SOURCES, "fxprune/py.typed", *FILES} <= inside
    assert not [n for n in inside if n.endswith(".pyc")]
