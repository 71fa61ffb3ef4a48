"""One word per thing: the glossary defines each word once, and package and pages use no other word for it."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest

from tests.support import torchvision

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fxprune"
GLOSSARY = ROOT / "docs" / "glossary.md"

FORBIDDEN = {
    "anew": '"again", or the verb with re-: recounted, renumbered, rebuilt',
    "climb": "to try the paths in turn",
    "house": "the package",
    "ladder": "the paths",
    "nobody": '"no operation", "no layer", "unknown"',
    "room": "a package, a file; what is left",
    "rung": "path",
    "skeleton": "the module around an exported graph",
    "sober": "deterministic",
    "somebody": '"the user", "a layer", "an operation"',
    "twin": "a copy, a fake copy",
    "what goes": "the removed channels",
    "witness": "the check of shapes",
}
"""Word -> the word to write."""

MESSAGE = "the text of an error or a report, which tests compare and users may look for"
EXCEPTIONS = {
    ("docs/models.md", "twin"): "Twins is a model of timm",
    ("fxprune/_carry_out.py", "what goes"): MESSAGE,
    ("fxprune/planning/plan_file.py", "anew"): MESSAGE,
    ("fxprune/report/text.py", "nobody"): MESSAGE,
    ("fxprune/sparse/storage/convert.py", "anew"): MESSAGE,
}
"""(File, forbidden word) -> why the word is right there."""

DOTTED = re.compile(r'(?<![\w./"-])fxprune(?:\.[A-Za-z_]\w*)+(?!\w|/\d)')
"""A dotted name of the package; `fxprune.diff/1` is a format of files."""

FILE = re.compile(r"`([\w./-]*/[\w.-]*\.(?:json|md|py|svg|toml))`")
"""The path of a file in backquotes, such as `capture/walk.py`."""

FOLDERS = (ROOT, PACKAGE, ROOT / "docs", ROOT / "tests")
"""The folders from which such a path may start."""

MISSING = {("tests/test_import.py", "fxprune.nonsense")}
"""(File, name): names that are meant not to exist."""

CLAUSE = re.compile(r"(As|From|What|Which|Where|How|That|When|Whether|Who|Whose)\b")


def rows():
    """The rows of the glossary: (word, meaning)."""
    found = re.findall(r"^\| (.+?) \| (.+) \|$", GLOSSARY.read_text(), re.MULTILINE)
    assert found[:2] == [("word", "meaning"), ("---", "---")]
    return found[2:]


def uses(path):
    """The forbidden words that a file uses: (line, word), also as parts of names (`rungs_of`) and in the plural."""
    words = "|".join(word.replace(" ", r"[\s#]+") for word in FORBIDDEN)
    text = path.read_text()
    for match in re.finditer(rf"(?<![a-z])({words})(?:s|ed|ing)?(?![a-z])", text, re.IGNORECASE):
        word = " ".join(re.split(r"[\s#]+", match[1].lower()))
        if (str(path.relative_to(ROOT)), word) not in EXCEPTIONS:
            yield text[: match.start()].count("\n") + 1, word


def forbidden(paths):
    return [f"{path.relative_to(ROOT)}:{line}: {word}" for path in paths for line, word in uses(path)]


def package_files():
    return sorted(PACKAGE.rglob("*.py"))


def pages():
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def relative_docstrings(text):
    """Line and beginning of docstrings that begin with a relative clause, also those below constants. Questions may."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            first = node.value.value.partition("\n")[0]
            if CLAUSE.match(first) and "?" not in first:
                yield f"{node.lineno}: {first}"


def resolves(name):
    """True if a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def all_texts():
    """(File, text) of every other file that may name a part of the package: code, docstrings, comments and pages."""
    folders = (PACKAGE, ROOT / "tests", ROOT / "examples", ROOT / "docs")
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".md")]
    for path in sorted({*files, ROOT / "README.md"} - {Path(__file__)}):
        yield str(path.relative_to(ROOT)), path.read_text()


def names_of(path):
    """The classes and types that a file defines at its top level, and its table `NORMS`; no type variables."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        if isinstance(node, ast.Assign) and "TypeVar(" not in ast.unparse(node.value):
            names = (target.id for target in node.targets if isinstance(target, ast.Name))
            yield from (name for name in names if name == "NORMS" or re.match(r"[A-Z]+[a-z]", name))


def test_a_class_means_one_thing():
    found = Counter(name for path in package_files() for name in set(names_of(path)) if not name.startswith("_"))
    assert [name for name, n in found.items() if n > 1] == []


def test_every_word_is_defined_once():
    assert [word for word, n in Counter(word for word, _ in rows()).items() if n > 1] == []


def test_a_row_of_the_glossary_defines_one_word():
    assert [word for word, _ in rows() if "," in word] == []


def test_words_of_the_glossary_are_in_alphabetical_order():
    words = [word for word, _ in rows()]
    assert words == sorted(words, key=lambda word: word.strip("`").lower())


def test_every_word_is_used():
    text = "\n".join(path.read_text() for path in [*package_files(), *pages()] if path != GLOSSARY).lower()
    assert [word for word, _ in rows() if not re.search(rf"(?<![a-z]){word.lower()}", text)] == []


def test_no_forbidden_word_is_defined():
    assert [word for word, _ in rows() if word in FORBIDDEN] == []


def test_exceptions_are_still_needed():
    for (name, word), reason in EXCEPTIONS.items():
        assert reason
        assert re.search(word, (ROOT / name).read_text(), re.IGNORECASE), f"{name} does not say {word} any more"


def test_the_package_uses_the_words_of_the_glossary():
    assert forbidden(package_files()) == []


def test_the_pages_use_the_words_of_the_glossary():
    assert forbidden(pages()) == []


def test_words_are_spelt_right(tmp_path):
    """The words that are right although the list of mistakes has them stand in pyproject.toml."""
    command = [sys.executable, "-m", "codespell_lib"]
    here = ["README.md", "docs", "fxprune", "examples"]
    done = subprocess.run([*command, *here], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    (tmp_path / "page.md").write_text("Channels are " + "seper" + "ated.")
    wrong = subprocess.run([*command, "page.md"], cwd=tmp_path, capture_output=True, text=True)
    assert "separated" in wrong.stdout


def test_docstrings_begin_with_a_verb_or_a_noun():
    folders = (PACKAGE, ROOT / "tests", ROOT / "examples", ROOT / "docs")
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    assert [f"{path}:{line}" for path in paths for line in relative_docstrings(path.read_text())] == []


def test_docstrings_that_begin_with_a_clause_are_seen():
    text = '"""What goes? Nothing."""\n\ndef f():\n    """What f returns."""\n\nA = 1\n"""From 1 to n."""\nB = "What"\n'
    assert list(relative_docstrings(text)) == ["7: From 1 to n.", "4: What f returns."]


def test_every_dotted_name_exists():
    torchvision()  # a callback of a framework imports it
    named = {(name, found) for name, text in all_texts() for found in DOTTED.findall(text)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the changelog names two old paths, and frameworks warn when they are imported
        assert sorted(entry for entry in named - MISSING if not resolves(entry[1])) == []


def test_every_file_named_exists():
    named = {(name, found) for name, text in all_texts() for found in FILE.findall(text)}
    assert sorted(entry for entry in named if not any((folder / entry[1]).is_file() for folder in FOLDERS)) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see `fxprune.check`, or fxprune.plot.", ["fxprune.check", "fxprune.plot"]),
        ("`fxprune.diff/1` and docs/fxprune.md", []),
    ],
)
def test_dotted_names_are_found(text, found):
    assert DOTTED.findall(text) == found


def test_names_that_do_not_exist_are_told_apart():
    assert [resolves(name) for name in ("fxprune.check", "fxprune.channels.terms.Terms.merge", "fxprune.plot.x")] == [
        False,
        True,
        False,
    ]
