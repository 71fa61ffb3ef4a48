"""Draws the pictures of the pages design, choosing and training: `python docs/make_pictures.py` writes them.

Every picture is a white card, readable on a light and on a dark page. `tests/test_pictures.py` compares the files with
what this script draws, and the layers with the order in which the package imports.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"

WIDTH = 840
INK, GREY, LINE = "#1f2328", "#59636e", "#8c959f"
BLUE, GREEN, SAND, ROSE, WHITE, PALE = "#ddf4ff", "#dafbe1", "#fff8c5", "#ffebe9", "#ffffff", "#f6f8fa"
SANS = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"


class Picture:
    """Boxes, lines and words on a white card. Words that do not fit their box are an error."""

    def __init__(self, height: int, title: str) -> None:
        self.height, self.title, self.parts = height, title, list[str]()

    def rect(self, x: float, y: float, w: float, h: float, fill: str, *, line: str = LINE, corner: int = 6) -> None:
        """A rectangle with round corners."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{corner}" fill="{fill}" stroke="{line}"/>'
        )

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        words: str = "",
        below: str = "",
        fill: str = PALE,
        corner: int = 6,
    ) -> None:
        """A box with a line of words and smaller ones below it; words between backquotes are code."""
        self.rect(x, y, w, h, fill, corner=corner)
        lines = [(words, 14, INK)] * bool(words) + [(part, 12, GREY) for part in below.split("\n") if part]
        space = 17
        top = y + h / 2 - space * (len(lines) - 1) / 2
        for i, (text, size, colour) in enumerate(lines):
            assert width_of(text, size) <= w - 8, f"{text!r} is wider than its box"
            self.text(x + w / 2, top + space * i + size * 0.35, text, size, colour)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int = 12,
        colour: str = GREY,
        anchor: str = "middle",
        bold: bool = False,
    ) -> None:
        """A line of words; between backquotes they are code."""
        code = words.startswith("`")
        font = f' font-family="{MONO}"' if code else ""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{font}{weight}>'
            f"{escape(words.strip('`'))}</text>"
        )

    def arrow(self, *points: tuple[float, float], dashed: bool = False, colour: str = GREY) -> None:
        """A line through the points, with a head at the last of them."""
        way = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="1.5"{dash} marker-end="url(#head)"/>'
        )

    def line(
        self, points: list[tuple[float, float]], colour: str, dash: str = "", *, width: float = 2, dots: bool = False
    ) -> None:
        """A line through the points, with a dot at each if there are to be some."""
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        pattern = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="{width:g}"{pattern}/>')
        for x, y in points if dots else []:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>')

    def svg(self) -> str:
        """The whole file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{self.height}" '
            f'viewBox="0 0 {WIDTH} {self.height}" role="img" font-family="{SANS}">'
        )
        marker = (
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{GREY}"/></marker></defs>'
        )
        card = (
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{self.height - 1}" rx="8" fill="{WHITE}" '
            'stroke="#d0d7de"/>'
        )
        return "\n".join([head, f"<title>{escape(self.title)}</title>", marker, card, *self.parts, "</svg>", ""])


def width_of(words: str, size: int) -> float:
    """The largest width of words, in a wide font."""
    return len(words.strip("`")) * size * (0.61 if words.startswith("`") else 0.57)


def data_flow() -> Picture:
    """The way of a model through the packages."""
    picture = Picture(640, "From a model to a smaller one: capture, analysis, planning, rewrite, proof")
    steps = {
        "model, example inputs": ("`capture/`", "a graph, or forward as it is"),
        "captured model": ("`analysis/`", "sees every ATen operation once"),
        "findings": ("`planning/`", "by a ratio, masks, or zeros"),
        "plan": ("`rewrite/`", "new tensors, attributes, sizes"),
        "smaller model": ("`proof/`", "in float64, against the reference"),
    }
    helpers = {
        "captured model": [("`ops/`", "rules of operations"), ("`channels/`", "unification, groups")],
        "findings": [("`criteria/`", "scores"), ("`costs/`", "bytes, MACs"), ("`fold/`", "constants")],
        "plan": [("`ops/`", "sizes, positions"), ("`proof/`", "shapes")],
    }
    x, w = 130, 280
    for i, (value, (package, task)) in enumerate(steps.items()):
        y = 18 + 118 * i
        picture.box(x + 40, y, w - 80, 32, value, fill=GREEN, corner=16)
        picture.arrow((x + w / 2, y + 32), (x + w / 2, y + 52))
        picture.box(x, y + 52, w, 46, package, task, fill=BLUE)
        picture.arrow((x + w / 2, y + 98), (x + w / 2, y + 118))
        sides = helpers.get(value, [])
        if sides:
            space = 376 / len(sides)
            picture.rect(444, y + 46, 376, 58, PALE)
            picture.arrow((444, y + 75), (x + w, y + 75))
            for k, (words, below) in enumerate(sides):
                picture.box(450 + space * k, y + 52, space - 12, 46, words, below, fill=SAND)
    last = 18 + 118 * len(steps)
    picture.height = last + 50
    picture.box(x + 10, last, w - 20, 32, "smaller model with its record", fill=GREEN, corner=16)
    for i in (3, 4):
        y = 18 + 118 * i + 75
        picture.arrow((x, y), (108, y), (108, 34), (x + 40, 34), dashed=True)
    for k, line in enumerate(["where a step", "fails, the next", "path is tried", "`paths.py`"]):
        picture.text(12, 250 + 17 * k, line, anchor="start")
    for x, fill, words in ((440, GREEN, "a value"), (530, BLUE, "a step"), (612, SAND, "a package that takes part")):
        picture.rect(x, last + 9, 14, 14, fill, corner=3)
        picture.text(x + 20, last + 20, words, anchor="start")
    return picture


GRAPHS = {
    "fx": ("a traced graph", "one node per call"),
    "eager": ("the model itself", "one node, looked into"),
    "export": ("an exported graph", "one node per operation"),
    "hooks": ("the model itself", "one node, not looked into"),
}
"""Path -> what its graph is."""

QUESTIONS = ("keeps the class", "has a graph", "can fold constants", "needs hooks")


def paths() -> Picture:
    """The four paths in their order, and what each gives."""
    picture = Picture(392, "The paths eager, fx, export and hooks: tried in this order, what each gives")
    left, step, w = 158, 168, 138
    sys.path.insert(0, str(ROOT))
    from fxprune.paths import PATHS

    for i, (name, path) in enumerate(PATHS.items()):
        (graph, nodes), x = GRAPHS[name], left + step * i
        answers = (path.keeps_class, not path.keeps_class, not path.needs_hooks, path.needs_hooks)
        picture.box(x, 62, w, 40, f"`{name}`", fill=BLUE)
        picture.text(x + w / 2, 126, graph, colour=INK)
        picture.text(x + w / 2, 144, nodes, size=11)
        if i:
            picture.arrow((x - step + w, 82), (x, 82))
        for k, answer in enumerate(answers):
            picture.box(x + 34, 168 + 38 * k, w - 68, 26, "yes" if answer else "no", fill=GREEN if answer else PALE)
    picture.text(16, 87, "tried in turn", anchor="start", colour=INK)
    picture.text(16, 126, "forward becomes", anchor="start", colour=INK)
    for k, question in enumerate(QUESTIONS):
        picture.text(16, 185 + 38 * k, question, anchor="start", colour=INK)
    picture.text(
        left, 30, "An arrow is taken when the model cannot be captured, a size cannot be recounted,", anchor="start"
    )
    picture.text(left, 47, "or the proof fails. The record keeps the reason, as record.why_not.", anchor="start")
    picture.text(16, 346, "the order", anchor="start", colour=INK)
    picture.text(
        left,
        346,
        'as drawn; with prefer="graph" eager comes after fx and export',
        anchor="start",
    )
    picture.text(16, 371, "path=", anchor="start", colour=INK)
    picture.text(
        left,
        371,
        "takes one of them, or raises. A plan that names its path is carried out there first.",
        anchor="start",
    )
    return picture


ROWS = ("#54aeff", "#4ac26b", "#d4a72c", "#ff8182", "#c297ff")
COLUMNS = ("#0550ae", "#116329", "#7d4e00", "#a40e26", "#6639ba")


def cells(
    picture: Picture, x: float, y: float, slots: list[tuple[tuple[str, str], ...]], gone: tuple[str, ...] = ()
) -> None:
    """A vector as a row of cells; a slot is a tuple of (atom, colour), one band for each."""
    side = 40
    for i, atoms in enumerate(slots):
        removed = any(atom in gone for atom, _ in atoms)
        left, band = x + side * i, side / len(atoms)
        for k, (atom, colour) in enumerate(atoms):
            fill, ink = ("#eaeef2", "#8c959f") if removed else (colour, WHITE if colour in COLUMNS else INK)
            picture.rect(left, y + band * k, side, band, fill, line=WHITE, corner=0)
            picture.text(left + side / 2, y + band * (k + 0.5) + 4.5, f"`{atom}`", 12, ink)
        if removed:
            picture.parts.append(
                f'<line x1="{left + 5:g}" y1="{y + side - 5:g}" x2="{left + side - 5:g}" y2="{y + 5:g}" '
                f'stroke="{INK}" stroke-width="1.5"/>'
            )


def vectors() -> Picture:
    """Slots that carry sets of atoms, through cat, a view of heads and width, and flatten."""
    picture = Picture(640, "Every slot of a dimension carries a set of atoms: cat, view and flatten move the sets")
    a = [((f"a{i}", ROWS[0]),) for i in (1, 2, 3)]
    b = [((f"b{i}", ROWS[1]),) for i in (1, 2)]

    picture.text(20, 32, "cat: the sets follow one another", 14, INK, "start", bold=True)
    cells(picture, 20, 50, a)
    cells(picture, 190, 50, b)
    picture.arrow((290, 70), (350, 70))
    picture.text(320, 62, "`cat`")
    cells(picture, 364, 50, a + b)
    picture.text(590, 67, "b2 removed: the last slot here,", anchor="start")
    picture.text(590, 84, "and the last row of b's layer", anchor="start")

    heads = [(("h1", ROWS[2]),), (("h2", ROWS[3]),)]
    width = [((f"w{i}", COLUMNS[0]),) for i in (1, 2, 3)]
    grid = [(h[0], w[0]) for h in heads for w in width]
    picture.text(
        20, 136, "view(2, 3): a dimension of 6 turns out to be a grid of heads x width", 14, INK, "start", bold=True
    )
    cells(picture, 20, 154, [((f"q{i}", ROWS[4]),) for i in range(1, 7)])
    picture.text(140, 214, "the rows of a weight: six atoms")
    picture.arrow((270, 174), (350, 174))
    picture.text(310, 166, "`view`")
    cells(picture, 364, 154, heads)
    picture.text(404, 214, "heads")
    picture.text(462, 179, "x", 14, INK)
    cells(picture, 480, 154, width)
    picture.text(540, 214, "head width")
    picture.text(
        20,
        250,
        "each atom of the weight is bound to a set {head, position}; rows and columns can be removed:",
        anchor="start",
    )
    cells(picture, 20, 266, grid)
    picture.text(140, 326, "q1 = {h1, w1}, q2 = {h1, w2}, ...")
    cells(picture, 300, 266, grid, gone=("h1",))
    picture.text(420, 326, "without head h1")
    cells(picture, 580, 266, grid, gone=("w2",))
    picture.text(700, 326, "without position w2 of every head")

    maps = [((f"c{i}", ROWS[k]),) for k, i in enumerate((1, 2, 3))]
    flat = [slot for slot in maps for _ in range(4)]
    picture.text(20, 378, "flatten: 3 channels of 2 x 2 pixels become 12 slots", 14, INK, "start", bold=True)
    cells(picture, 20, 396, maps)
    picture.text(162, 421, "x  2 x 2, which is fixed", anchor="start")
    picture.arrow((80, 440), (80, 478))
    picture.text(92, 464, "`flatten(1)`", anchor="start")
    cells(picture, 20, 484, flat)
    picture.text(520, 509, "pixels are fixed: a slot has its channel only", anchor="start")
    cells(picture, 20, 546, flat, gone=("c2",))
    picture.text(520, 571, "c2 removed: four columns of the linear layer", anchor="start")
    picture.height = 610
    return picture


LAYERS = {
    "errors": "foundations",
    "channels": "channels and operations",
    "capture": "from a model to findings",
    "criteria": "from findings to a plan",
    "proof": "from a plan to a smaller model",
    "report": "the pass, and what it says",
    "plot": "around the pass",
    "__init__": "entry points",
}
"""The first part of every layer in the order of imports -> the layer."""


def layers() -> Picture:
    """The parts of the package: each imports from itself and from those below it."""
    sys.path.insert(0, str(ROOT))
    from tests.test_structure import ORDER

    starts = [ORDER.index(part) for part in LAYERS] + [len(ORDER)]
    assert starts == sorted(starts), "LAYERS follow the order of imports"
    picture = Picture(0, "The layers of the package; imports go down and to the left only")
    left, y = 250, 16
    for i in reversed(range(len(LAYERS))):
        names = [n if (ROOT / "fxprune" / n).is_dir() else f"{n}.py" for n in ORDER[starts[i] : starts[i + 1]]]
        places, x, top = [], left, y
        for name in names:
            w = max(72, width_of(f"`{name}`", 13) + 20)
            if x + w > WIDTH - 24:
                x, y = left, y + 38
            places.append((x, y + 9, w))
            x += w + 8
        y += 46
        picture.rect(12, top, WIDTH - 24, y - top, PALE, line="#d0d7de")
        picture.text(24, (top + y) / 2 + 4.5, list(LAYERS.values())[i], 13, INK, "start")
        for name, (x, row, w) in zip(names, places, strict=True):
            picture.rect(x, row, w, 28, WHITE if name.endswith(".py") else BLUE, corner=5)
            picture.text(x + w / 2, row + 18.5, f"`{name}`", 13, INK)
        y += 8
    words = "A part imports from the layers below it, and from the parts to its left in its own layer. Blue: a package."
    picture.text(24, y + 14, words, anchor="start")
    picture.height = y + 30
    return picture


LINES = {
    "fxprune": (("#0969da", ""), ("#54aeff", ""), ("#54aeff", "5 4")),
    "Torch-Pruning": (("#bc4c00", ""), ("#e8a26a", "5 4")),
    "FastNAS": (("#6e7781", ""),),
}
"""Tool -> the colours and dashes of its curves, in their order."""


def accuracy() -> Picture:
    """Accuracy against MACs, as `accuracy.json` beside the pictures has it: {name: [[share, per cent], ...]}."""
    found = json.loads((IMAGES / "accuracy.json").read_text())
    picture = Picture(452, "Accuracy against the share of the MACs that stays, without and with repair")
    left, right, top, bottom = 70.0, 812.0, 34.0, 318.0
    budgets = sorted(found["budgets"])
    first, last = math.log(budgets[0] * 0.9), math.log(budgets[-1] * 1.08)

    def at(share: float, score: float) -> tuple[float, float]:
        return left + (math.log(share) - first) / (last - first) * (right - left), bottom - score / 100 * (bottom - top)

    for score in (0, 20, 40, 60, 80, 100):
        y = at(budgets[0], score)[1]
        picture.line([(left, y), (right, y)], "#d0d7de", width=1)
        picture.text(left - 10, y + 4, f"{score} %", anchor="end")
    for share in budgets:
        picture.text(at(share, 0)[0], bottom + 18, f"{share:.0%}".replace("%", " %"))
    picture.text((left + right) / 2, bottom + 40, "share of the MACs that stays", colour=INK)
    picture.text(left, 20, f"accuracy on the test set; the original has {found['unpruned']:.1f} %", anchor="start")
    number: dict[str, int] = {}
    for position, (name, points) in enumerate(found["curves"].items()):
        tool = name.partition(",")[0]
        colour, dash = LINES[tool][number.setdefault(tool, 0)]
        number[tool] += 1
        picture.line([at(*point) for point in points], colour, dash, dots=True)
        x, y = left + 375 * (position % 2), bottom + 70 + 24 * (position // 2)
        picture.line([(x, y), (x + 34, y)], colour, dash)
        picture.text(x + 44, y + 4, name, anchor="start", colour=INK)
    return picture


TRAININGS = (("#6e7781", "5 4"), ("#bc4c00", ""), ("#0969da", ""), ("#54aeff", "5 4"))
"""The colours and dashes of the curves of trainings, in their order."""


def training() -> Picture:
    """Accuracy over the epochs, as `training.json` beside the pictures has it: {name: [per cent, ...]}."""
    found = json.loads((IMAGES / "training.json").read_text())
    picture = Picture(452, "Accuracy over the epochs of a training that prunes")
    left, right, top, bottom = 70.0, 812.0, 34.0, 318.0
    epochs = len(next(iter(found["curves"].values())))

    def at(epoch: float, score: float) -> tuple[float, float]:
        return left + (epoch - 1) / (epochs - 1) * (right - left), bottom - score / 100 * (bottom - top)

    picture.rect(at(found["first"], 0)[0], top, at(found["last"], 0)[0] - at(found["first"], 0)[0], bottom - top, PALE)
    for score in (0, 20, 40, 60, 80, 100):
        y = at(1, score)[1]
        picture.line([(left, y), (right, y)], "#d0d7de", width=1)
        picture.text(left - 10, y + 4, f"{score} %", anchor="end")
    for epoch in (1, *range(5, epochs + 1, 5)):
        picture.text(at(epoch, 0)[0], bottom + 18, str(epoch))
    picture.text((left + right) / 2, bottom + 40, "epoch; steps of the pruner in the grey part", colour=INK)
    picture.text(left, 20, "accuracy on the test set, mean of three seeds", anchor="start")
    for position, ((name, scores), (colour, dash)) in enumerate(zip(found["curves"].items(), TRAININGS, strict=True)):
        picture.line([at(number, score) for number, score in enumerate(scores, 1)], colour, dash, dots=True)
        x, y = left + 375 * (position % 2), bottom + 70 + 24 * (position // 2)
        picture.line([(x, y), (x + 34, y)], colour, dash)
        picture.text(x + 44, y + 4, name, anchor="start", colour=INK)
    return picture


PICTURES = {"data_flow": data_flow, "paths": paths, "vectors": vectors, "layers": layers, "accuracy": accuracy}
PICTURES["training"] = training


def write() -> None:
    """Write every picture."""
    for name, draw in PICTURES.items():
        (IMAGES / f"{name}.svg").write_text(draw().svg())


if __name__ == "__main__":
    write()
