"""The structure of the package: imports go one way, names are public on purpose, there is one version."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import re
from pathlib import Path

import pytest

import fxprune
from fxprune.paths import PATHS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fxprune"

ORDER = """
    errors arguments given_masks given_seeds notebooks progress names pattern_values files schedules old_modules
    on_demand sharded offloaded
    channels ops rules capture paths analysis running costs depth criteria configs planning proof rewrite fold report
    _record _repair _follow _find _drop _attempt _dropping _first_result _search _data_options _recording
    _carry_out _transform _analyze _in_place _gradual_options _gradual _verify _distill _quality _summary
    regularizers integrations plot artifacts streaming sparse pruner __init__ cli __main__
""".split()
"""Parts of the package; each imports only from itself and from those before it."""

PUBLIC = """
    AdapterLeftWarning Analysis BudgetMissedWarning CaptureError ChannelsStayWarning ClassLostWarning Cost
    Distillation Distilled Expanded Exported FileError FixedSizesWarning Followed FxpruneError GradualPruner Group
    InputError LayerCost
    Locked Member NotProvenWarning NothingRemovedWarning OptimizerLeftBehindWarning OtherWeightsWarning Pareto Plan
    PlanDiff PlanError PruningStep Quality Record RewriteError RuleError Sensitivity Streamed Summary VerificationError
    analyze cost distillation expand export follow from_pretrained leaf load masked masks_of pareto recalibrate record
    repair rule save sensitivity stream summary trace transform transform_ verify
""".split()

TOP_LEVEL = {"pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "fxprune", "tests", "examples", "docs"}


def part_of(name):
    """The part that a file or a dotted module name belongs to."""
    return name.split(".")[1] if "." in name else "__init__"


def imports_of(path):
    """Every module of this package that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            if node.module == "fxprune":
                yield from ((node.lineno, f"fxprune.{alias.name}") for alias in node.names)
            elif node.module.startswith("fxprune."):
                yield node.lineno, node.module
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "fxprune")


def source_files():
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    assert own in ORDER, f'place "{own}" in ORDER, and in the table of docs/contributing.md'
    for line, module in imports_of(path):
        other = part_of(module)
        assert other in ORDER, f"{relative}:{line} imports {module}, which is no part of the package"
        assert ORDER.index(other) <= ORDER.index(own), f"{relative}:{line} ({own}) imports {module}, which comes later"


def test_contributing_lists_the_parts_in_the_same_order():
    text = (ROOT / "docs" / "contributing.md").read_text()
    listed = re.findall(r"^\| `fxprune/(\w+)(?:\.py|/)`", text, re.MULTILINE)
    assert listed == ORDER


PATH_NAMES = {"fx", "eager", "export", "hooks"}


def compared_path_names(tree):
    """Comparisons with the name of a path, alone or among others: (line, name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        else:
            continue
        yield from ((p.lineno, p.value) for p in parts if isinstance(p, ast.Constant) and p.value in PATH_NAMES)


def test_the_names_of_the_paths_are_known_here():
    assert set(PATHS) == PATH_NAMES


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_but_the_front_ends_compares_the_name_of_a_path(path):
    relative = path.relative_to(PACKAGE)
    if relative.parts[0] not in ("paths.py", "capture"):
        found = list(compared_path_names(ast.parse(path.read_text())))
        assert found == [], f"{relative}: ask the captured model, or its front end in fxprune/paths.py"


@pytest.mark.parametrize(
    "text", ['path == "hooks"', '"fx" != plan.path', 'path in ("fx", "eager")', 'path not in [None, "export"]']
)
def test_a_comparison_with_the_name_of_a_path_is_seen(text):
    assert list(compared_path_names(ast.parse(text)))


def test_public_names():
    assert list(fxprune.__all__) == PUBLIC
    assert all(hasattr(fxprune, name) for name in PUBLIC)


def modules_by_package():
    """Every package: the names of the files and packages in it."""
    found = {}
    for init in sorted(PACKAGE.rglob("__init__.py")):
        inside = {p.stem for p in init.parent.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
        found[".".join(("fxprune", *init.parent.relative_to(PACKAGE).parts))] = inside - {"__init__"}
    return found


@pytest.mark.parametrize("package", modules_by_package())
def test_no_public_name_of_a_package_is_also_a_module_in_it(package):
    assert modules_by_package()[package] & set(getattr(importlib.import_module(package), "__all__", ())) == set()


RESERVED = {"repair", "sensitivity", "stream", "trace"}
"""Public functions that are coming: a module of such a name would hide behind them."""


def test_names_of_public_functions_to_come_are_kept_free():
    assert [path for path in source_files() if path.stem in RESERVED or path.parent.name in RESERVED] == []


def test_public_functions_and_classes_have_docstrings():
    assert [name for name in PUBLIC if not getattr(fxprune, name).__doc__] == []


def test_top_level_of_the_repository():
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()]
    names = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")}
    names = {n for n in names if not any(fnmatch.fnmatch(n, pattern) for pattern in ignored)}
    assert names == TOP_LEVEL


def test_one_version():
    found = re.findall(r"^__version__ = \"(.+)\"$", (PACKAGE / "__init__.py").read_text(), re.MULTILINE)
    assert found == [fxprune.__version__]
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    assert re.search(r"^version = \"", project, re.MULTILINE) is None
    others = [p for p in source_files() if fxprune.__version__ in p.read_text()]
    assert others == [PACKAGE / "__init__.py"]
    assert f"## {fxprune.__version__}" in (ROOT / "docs" / "changelog.md").read_text()


FLAT = {"entries", "roots", "group", "held"}
"""The arrays of a `Solution`, one number per channel or per slot of a channel."""


def flat_arrays_of(path):
    """The lines of a file that read such an array, of anything that is called a solution."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in FLAT:
            owner = ast.unparse(node.value).split(".")[-1]
            if owner in ("solution", "s") or node.attr in ("entries", "roots"):
                yield node.lineno


def test_callers_ask_a_solution_instead_of_reading_its_arrays():
    reading = {str(p.relative_to(PACKAGE)) for p in source_files() if any(flat_arrays_of(p))}
    assert reading == {"channels/groups.py"}, "give `Solution` or `Removal` the method that is needed"


def test_only_the_selector_matches_names():
    users = []
    for path in source_files():
        text = path.read_text()
        if {"fnmatch", "fnmatchcase", "glob"} & set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)):
            users.append(str(path.relative_to(PACKAGE)))
    assert users == ["names.py"]


SELECTORS = """
    criteria/statistics.py depth/patterns.py depth/select.py planning/edits.py planning/fixed_counts.py
    planning/masks.py planning/select.py planning/uniform.py pruner/config.py
    sparse/activations/insertion.py
    sparse/freezing/optimizer_hooks.py sparse/freezing/parameters.py
    sparse/storage/convert.py sparse/weights/targets.py
""".split()
"""The files that let a user name layers."""


def test_whoever_lets_a_user_name_layers_uses_the_selector():
    modules = {path: [module for _, module in imports_of(path)] for path in source_files()}
    users = {path.relative_to(PACKAGE).as_posix() for path, used in modules.items() if "fxprune.names" in used}
    assert users - {"pattern_values.py"} == set(SELECTORS)


def files_imported_by(path, files):
    """The other files of the package that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fxprune":
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                found = files.get(name) or files.get(node.module)
                if found not in (None, path):
                    yield found
        elif isinstance(node, ast.Import):
            yield from (files[alias.name] for alias in node.names if files.get(alias.name) not in (None, path))


def circles(imports):
    """The files that import each other, directly or through others: {file: files} without those that end somewhere."""
    left = {path: set(others) for path, others in imports.items()}
    while done := [path for path, others in left.items() if not others & left.keys()]:
        for path in done:
            del left[path]
    return left


def test_no_files_import_each_other():
    files = {".".join(("fxprune", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in source_files()}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    found = circles({path: set(files_imported_by(path, files)) for path in files.values()})
    assert [str(path.relative_to(PACKAGE)) for path in found] == []


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}).keys() == {"a", "b", "c"}
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {}


SCREEN = 50
"""Lines of a function, its docstring left out."""

LONG = {
    "ops/recurrent.py: all_layers": "the equations of every layer and direction, in the order of their weights",
    "rewrite/attention.py: multi_head_attention": "18 parameters, those of the function of torch, a third of its lines",
}
"""Longer functions, and why they are."""


def long_functions():
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node) is not None:
                    lines -= node.body[0].end_lineno - node.body[0].lineno + 1
                if lines > SCREEN:
                    yield f"{path.relative_to(PACKAGE)}: {node.name}"


def test_functions_fit_a_screen():
    assert sorted(long_functions()) == sorted(LONG)


def test_packages_of_sparse_do_not_import_each_other():
    for path in sorted((PACKAGE / "sparse").glob("*/*.py")):
        others = {m.split(".")[2] for _, m in imports_of(path) if m.startswith("fxprune.sparse.")} - {path.parent.name}
        assert others == set(), f"{path.relative_to(PACKAGE)} imports {others}"


def test_what_python_runs_by_dash_m_imports_other_tests_by_their_place():
    """`python -m tests.x` finds no `support`, which pytest does."""
    folder = ROOT / "tests"
    stems = {path.stem for path in folder.rglob("*.py")}
    run = [path for path in folder.rglob("*.py") if f"python -m tests.{path.stem}" in path.read_text()[:500]]
    assert folder / "test_plot.py" in run
    for path in run:
        modules = [n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        assert not {module.partition(".")[0] for module in modules if module} & stems, path
