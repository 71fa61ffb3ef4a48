"""Built distributions hold the whole package and nothing else, with the version and extras of the sources.

The build runs in a copy of the sources, without network and without isolation: the backend is the setuptools at hand.
"""

from __future__ import annotations

import email
import os
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


IN_TORCH = {"hypothesis", "mypy", "pytest", "ruff", "setuptools"}
"""Packages that torch or the test looks for itself."""

CORE_ALONE = """
import sys
from importlib.machinery import PathFinder

sys.path.insert(0, sys.argv[1])
sys.path = [p for p in sys.path if p not in ("", sys.argv[2])]

gone, find = set(sys.argv[3].split(",")), PathFinder.find_spec

def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in gone else find(name, path, target)

PathFinder.find_spec = classmethod(find_spec)
import torch
from torch import nn

import fxprune
assert fxprune.__file__.startswith(sys.argv[1]), fxprune.__file__
x = torch.randn(4, 3)
net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
small = fxprune.transform(net, x, keep={"macs": 0.6}, repair=[x], importance="obs", data=[x])
fxprune.save(small, "small.safetensors")
again = fxprune.load("small.safetensors", into=net)
assert torch.equal(again(x), small(x))
analysis = fxprune.analyze(net, x)
assert "</html>" in analysis.report("html", plan=analysis.plan(ratio=0.5))
fxprune.export(small, "small.pt2", x)
for call in (lambda: fxprune.plot.widths(small), lambda: fxprune.export(small, "small.onnx", x)):
    try:
        call()
    except fxprune.FxpruneError as error:
        assert "pip install" in str(error), error
    else:
        raise AssertionError("a package of an extra is there")
from fxprune.cli import main
assert main(["inspect", "torch.nn:Linear", "--arg", "in_features=3", "--arg", "out_features=4", "-i", "4x3"]) == 0
"""


def test_the_wheel_works_with_core_dependencies_alone(built, names, metadata, tmp_path):
    """Unpacked elsewhere, where every package of an extra is missing."""
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(tmp_path / "wheel")
    required = (re.match(r"[\w-]+", r)[0] for r in metadata.get_all("Requires-Dist") if "extra ==" in r)
    modules = {"scikit-learn": "sklearn", "torch-pruning": "torch_pruning"}
    extra = sorted({modules.get(name, name) for name in required} - IN_TORCH)
    assert {"matplotlib", "onnx", "transformers", "shtab", "torchvision"} <= set(extra)
    words = [str(tmp_path / "wheel"), str(ROOT), ",".join(extra)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CORE_ALONE, *words],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "locked" in done.stdout


USERS = """
import torch
from torch import nn

import fxprune
from fxprune import Analysis, Group, Plan, Record


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.first(x)
        return out


def read_most(group: Group) -> torch.Tensor:
    total = torch.zeros(group.size)
    for member in group.members:
        if member.role == "consumer":
            total = total + member.sum_per_channel(member.tensor.abs())
    return total


x = torch.randn(4, 3)
small: Net = fxprune.transform(Net(), x, ratio={"first": 0.5}, importance=read_most, ignore=[nn.Conv2d])
analysis: Analysis = fxprune.analyze(small, x)
plan: Plan = analysis.plan(keep={"macs": 0.5})
record: Record = fxprune.record(small)
names: list[str] = [group.name for group in analysis.groups]
page: str = analysis.report("html", plan=plan)
macs: int | None = analysis.cost(plan).macs
error: float = fxprune.verify(Net(), small, x)
again: Net = fxprune.load("small.safetensors", into=Net())
for reason in record.reasons:
    print(reason.upper())
try:
    fxprune.save(small, "small.safetensors")
except fxprune.FileError as failed:
    print(failed)
"""

MISUSED = """
text: str = fxprune.transform(Net(), torch.ones(1, 3))
fxprune.analyze(Net(), x).plan(ratio="half")
analysis.nothing()
"""


def test_the_file_of_a_user_is_checked_with_the_types_of_the_package(tmp_path):
    """By mypy --strict, which reads the annotations of the package since it has py.typed: only the misuse is wrong."""
    (tmp_path / "users.py").write_text(USERS + MISUSED)
    known = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *known, "users.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    wrong = [int(line) for line in re.findall(r"^users\.py:(\d+): error:", done.stdout, re.MULTILINE)]
    last = len((USERS + MISUSED).splitlines())
    assert wrong == [last - 2, last - 1, last], done.stdout + done.stderr
