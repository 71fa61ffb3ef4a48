"""The documentation site is built without a warning, and has every page and every public name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fxprune

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_menu(site):
    pages = {path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md")}
    menu = (site / "index.html").read_text() + (site / "api" / "index.html").read_text()
    linked = {link.removesuffix(".html").split("/")[-1] for link in re.findall(r'href="([\w./]+\.html)', menu)}
    assert {page.name for page in pages} - linked == set()


def test_pages_have_the_style_of_wide_tables_and_code(site):
    linked = re.findall(r'href="(_static/site\.css)', (site / "transformers.html").read_text())
    assert [(site / path).read_text() for path in linked] == [(DOCS / "static" / "site.css").read_text()]


def test_every_public_name_is_in_the_reference(site):
    page = (site / "api" / "fxprune.html").read_text()
    assert [name for name in fxprune.__all__ if f'id="fxprune.{name}"' not in page] == []


def test_the_reference_shows_how_to_make_what_users_make_and_no_results(site):
    pages = {path.stem: path.read_text() for path in (site / "api").glob("*.html")}
    for name in ("Plan", "Group", "Record", "Analysis", "Pareto"):
        assert f'id="fxprune.{name}"' in pages["fxprune"]
        assert f'id="fxprune.{name}.__init__"' not in pages["fxprune"]
    assert 'id="fxprune.GradualPruner.__init__"' in pages["fxprune"]
    assert 'id="fxprune.schedules.AGP.__init__"' in pages["schedules"]
    assert 'id="fxprune.sparse.Quantile.__init__"' in pages["sparse"]
    assert [page for page, text in pages.items() if ".Cost.__init__" in text] == []


def test_links_between_pages_lead_to_a_place(site):
    """A link of one page to another one, or to a heading of it, exists."""
    ids = {}
    for path in site.rglob("*.html"):
        ids[path] = set(re.findall(r'\bid="([^"]+)"', path.read_text()))
    missing = []
    for path in ids:
        for link, place in re.findall(r'href="([\w./-]+\.html)?#([^"]+)"', path.read_text()):
            target = (path.parent / link).resolve() if link else path
            if target in ids and place not in ids[target]:
                missing.append(f"{path.name}: {link}#{place}")
    assert missing == []
