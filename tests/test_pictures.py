"""The pictures of docs/design.md and docs/choosing.md are those that docs/make_pictures.py draws, and can be read."""

from __future__ import annotations

import itertools
import re
import runpy
from pathlib import Path

import pytest
from torch import fx, nn

from fxprune.capture.captured import Captured
from fxprune.paths import PATHS

DOCS = Path(__file__).parents[1] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "make_pictures.py"))
PICTURES = SCRIPT["PICTURES"]
TEXT = re.compile(r'<text x="(\S+)" y="(\S+)" font-size="(\d+)" .*?text-anchor="(\w+)"(.*?)>(.*?)</text>')


def words_of(svg):
    """Every line of words of a picture with its box: (words, left, top, right, bottom), in a wide font."""
    for x, y, size, anchor, rest, words in TEXT.findall(svg):
        quote = "`" if "font-family" in rest else ""
        width = SCRIPT["width_of"](f"{quote}{words.replace('&gt;', '>')}{quote}", int(size))
        left = float(x) - (width / 2 if anchor == "middle" else 0)
        yield words, left, float(y) - 0.8 * int(size), left + width, float(y) + 0.2 * int(size)


@pytest.mark.parametrize("name", PICTURES)
def test_the_script_draws_the_committed_picture(name):
    drawn = PICTURES[name]().svg()
    assert (DOCS / "images" / f"{name}.svg").read_text() == drawn, "run `python docs/make_pictures.py`"


@pytest.mark.parametrize("name", PICTURES)
def test_words_stay_on_the_card_and_apart_from_each_other(name):
    picture = PICTURES[name]()
    words = list(words_of(picture.svg()))
    assert len(words) > 10
    for text, left, top, right, bottom in words:
        assert left > 5, text
        assert top > 5, text
        assert right < SCRIPT["WIDTH"] - 5, text
        assert bottom < picture.height - 5, text
    for a, b in itertools.combinations(words, 2):
        apart = a[3] <= b[1] or b[3] <= a[1] or a[4] <= b[2] or b[4] <= a[2]
        assert apart, f"{a[0]!r} lies over {b[0]!r}"


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_captured_model_answers_as_its_path_is_drawn(path):
    """The picture knows the table of paths alone."""
    captured = Captured(path, nn.Module(), fx.Graph(), lambda inputs: [])
    assert captured.has_graph is not path.keeps_class
    assert captured.can_fold is not path.needs_hooks


def test_every_picture_is_shown_with_its_words():
    text = "".join((DOCS / f"{page}.md").read_text() for page in ("design", "choosing", "training"))
    shown = re.findall(r"!\[(.+?)\]\(images/(\w+)\.svg\)", text)
    assert sorted(name for _, name in shown) == sorted(PICTURES)
    assert [name for words, name in shown if words != PICTURES[name]().title] == []
