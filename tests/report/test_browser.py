"""The page in a real browser: it opens, is clicked, searched, folded, printed, and asks for nothing but its file."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.report import browser as browsers
from tests.report.browser import DOWN, ENTER, ESCAPE, Browser
from tests.report.pages import EVIL, PAGES, analysis, chain, halves

Open = Callable[..., Browser]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browsers.skip_or_fail(browsers.missing())
    with browsers.browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


@cache
def text(name: str) -> str:
    return PAGES[name]()


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Open]:
    """Opens a page. In the end it has written nothing to the console and asked for nothing but itself."""
    names = []

    def open_page(name: str, hash: str = "") -> Browser:
        chromium.open(name, text(name), hash)
        names.append(name)
        return chromium

    yield open_page
    assert chromium.errors() == []
    assert {Path(url.partition("#")[0]).name for url in chromium.requests()} == {f"{names[-1]}.html"}


def of_group(found: Browser) -> set[str]:
    """The layers of the group that is chosen, as the table of its tensors names them."""
    return {name.rpartition(".")[0] for name in found.texts("#right td:first-child a")}


@pytest.mark.parametrize("name", PAGES)
def test_every_page_opens(opened: Open, name: str) -> None:
    found = opened(name)
    assert found.texts("h1") == [found.run("return fxpruneReport.data.title")]
    assert found.nodes()
    assert found.run("return document.documentElement.scrollWidth <= innerWidth")


def test_the_title_has_the_counts(opened: Open) -> None:
    line = opened("planned").texts("#title p")[0]
    data = json.loads(analysis().report("json"))
    assert f"{data['params']} → " in line
    assert f"in {len(data['groups'])} groups" in line


def test_a_group_lights_up_all_of_its_layers_and_lists_its_tensors(opened: Open) -> None:
    found = opened("planned")
    found.find("#open-all").click()
    for number, group in enumerate(analysis().groups):
        found.all("#list .item")[number].click()
        layers = {m.parameter if m.parameter == "scale" else m.parameter.rpartition(".")[0] for m in group.members}
        assert found.nodes(".lit") == layers
        assert found.texts("#right td:first-child a") == [m.parameter for m in group.members]
        assert found.nodes(".producer") <= layers
        assert found.nodes(".dim").isdisjoint(layers)
        assert found.run("return decodeURIComponent(location.hash)") == f"#group={group.key}"


def test_roles_are_told_by_the_kind_of_border_and_the_legend_names_it(opened: Open) -> None:
    found = opened("planned", "#group=embed")
    found.find("#open-all").click()
    style = "return fxpruneReport.cy.nodes(arguments[0])[0].style('border-style')"
    styles = {role: found.run(style, f".{role}") for role in ("producer", "norm", "raw")}
    assert styles == {"producer": "solid", "norm": "double", "raw": "dotted"}
    legend = " ".join(found.texts("#legend > span"))
    assert all(word in legend for word in ("makes the channels", "normalises", "reads", "holds"))


def test_a_layer_with_locked_outputs_and_a_parameter_have_looks_of_their_own(opened: Open) -> None:
    found = opened("states")
    node = "const node = fxpruneReport.cy.getElementById(arguments[0]);"
    look = f"{node} return arguments[1].map((name) => node.style(name))"
    assert {name: found.nodes(f".{name}") for name in ("free", "inputs", "fixed", "parameter")} == {
        "free": {"up", "shift"},
        "inputs": {"head"},
        "fixed": {"alone"},
        "parameter": {"shift"},
    }
    for theme in ("light", "dark"):
        while theme not in found.texts("#theme")[0]:
            found.find("#theme").click()
        fills = [found.run(look, name, ["background-fill", "background-color"]) for name in ("up", "head", "alone")]
        assert fills[0][0] == fills[2][0] == "solid"
        assert fills[1][0] == "linear-gradient"  # stripes
        assert fills[0][1] != fills[2][1]
    assert [found.run(look, name, ["shape"]) for name in ("up", "shift")] == [["round-rectangle"], ["cut-rectangle"]]
    assert found.run(f"{node} return [node.data('label'), node.incomers('edge').length]", "shift") == [
        "shift\nparameter 8",
        0,
    ]
    legend = " ".join(found.texts("#legend > span"))
    assert all(
        text in legend
        for text in ("channels of its outputs can go", "outputs all locked", "keeps all", "no layer owns")
    )


def test_the_legend_says_of_what_a_share_is_filled(opened: Open) -> None:
    found = opened("planned")
    found.find("#fold-all").click()
    assert "share of a layer's outputs that stays, of a folded block of its parameters" in found.find("#legend").text
    found.find("#open-all").click()
    assert found.find("#legend").text.endswith("share of a layer's outputs that stays")


def test_the_legend_names_folded_blocks_where_there_are_some(opened: Open) -> None:
    found = opened("repeated")
    marks = "return [...document.querySelectorAll('#legend .swatch')].map(e => e.className.slice(7))"
    assert [mark for mark in found.run(marks) if mark not in ("free", "inputs", "fixed")] == [
        "parameter free",
        "folded run",
        "share",
    ]
    found.find("#open-all").click()
    assert not any("folded" in mark for mark in found.run(marks))
    shadow = "return getComputedStyle(document.querySelector(arguments[0])).boxShadow"
    found.find("#fold-all").click()
    assert found.run(shadow, "#legend .folded.run") != "none"


def test_layers_stand_in_the_order_of_the_model(opened: Open) -> None:
    found = opened("repeated", "#layer=blocks.0.product")
    inside = ["", ".scale", ".q", ".product", ".down"]
    names = [f"blocks.{n}{name}" for n in range(6) for name in inside[1:]]
    assert found.texts("#list b") == ["cls", "head", "stem", *names]
    assert "none of its own: it has no parameters" in found.find("#right").text
    found.open("repeated", text("repeated"), "#block=block:blocks.0")
    assert found.texts("#right td:first-child") == ["blocks.0.scale", "blocks.0.q", "blocks.0.down"]


def test_edges_of_one_line_are_counted_in_words(opened: Open) -> None:
    found = opened("repeated")
    counted = "const c = fxpruneReport.cy; return c.edges().map(e => e.data('shape')).filter(t => t.includes('edges'))"
    assert set(found.run(counted)) == {"2 edges of 2 \u00d7 5 \u00d7 8"}


SEEN_WHOLE = """
const c = fxpruneReport.cy, b = c.elements().renderedBoundingBox();
return b.x1 >= 0 && b.y1 >= 0 && b.x2 <= c.width() && b.y2 <= c.height();
"""


@pytest.fixture
def sized(chromium: Browser) -> Iterator[Callable[[int, int], None]]:
    """Sets the size of the window, which is as before in the end."""
    size = chromium.driver.get_window_size()
    yield chromium.driver.set_window_size
    chromium.driver.set_window_size(size["width"], size["height"])


Sized = Callable[[int, int], None]
ZOOM = "return fxpruneReport.cy.zoom()"


@pytest.mark.parametrize("name", ["planned", "skips", "recorded"])
def test_the_whole_graph_is_seen_when_the_page_opens(opened: Open, sized: Sized, name: str) -> None:
    sized(1400, 900)
    found = opened(name)
    assert found.run(SEEN_WHOLE)
    assert not found.all("#more")


def test_names_are_readable_when_a_page_opens_whose_whole_is_too_large(opened: Open, sized: Sized) -> None:
    sized(1400, 500)
    found = opened("planned")
    for _ in range(2):
        assert found.run(ZOOM) >= 0.7
        assert not found.run(SEEN_WHOLE)
        box = found.run("return fxpruneReport.cy.getElementById('input:ids').renderedBoundingBox()")
        assert box["x1"] > 0
        assert box["y1"] > 0
        assert found.find("#more").text == "the graph goes on: drag moves it, Fit shows the whole"
        found.press("+")
        assert not found.find("#more").is_displayed()
        found.find("#open-all").click()
    found.press("f")
    assert found.run(SEEN_WHOLE)
    assert found.run(ZOOM) < 0.7
    assert not found.all("#more")


INSIDE = """
const cy = fxpruneReport.cy, wrong = [];
for (const edge of cy.edges()) {
  const ends = [edge.source(), edge.target()], around = [...ends[0].parents(), ...ends[1].parents()].map((n) => n.id());
  const points = [edge.sourceEndpoint(), ...edge.segmentPoints() ?? [], edge.targetEndpoint()];
  const nodes = cy.nodes().not(".title").filter((n) => !ends.some((e) => e.same(n)) && !around.includes(n.id()));
  for (const node of nodes) {
    const { x1, x2, y1, y2 } = node.boundingBox({ includeLabels: false, includeOverlays: false });
    for (let k = 1; k < points.length; k++) {
      for (let t = 0; t <= 1; t += 0.02) {
        const [x, y] = ["x", "y"].map((axis) => points[k - 1][axis] * (1 - t) + points[k][axis] * t);
        const inside = x > x1 + 3 && x < x2 - 3 && y > y1 + 3 && y < y2 - 3;
        if (inside) wrong.push([...ends, node].map((n) => n.id()).join(" "));
      }
    }
  }
}
return [...new Set(wrong)];
"""


@pytest.mark.parametrize("name", ["doors", "skips"])
def test_no_edge_passes_behind_a_node(opened: Open, sized: Sized, name: str) -> None:
    sized(1400, 900)
    found = opened(name)
    found.find("#open-all").click()
    assert found.run(INSIDE) == []


BORDERS = """
const cy = fxpruneReport.cy;
return cy.nodes(".title").map((title) => {
  const block = cy.getElementById(title.id().slice("title:".length));
  const [name, box] = [title, block].map((n) => n.boundingBox({ includeLabels: n === title, includeOverlays: false }));
  return [name.x1 - box.x1, box.x2 - name.x2];
});
"""


def test_blocks_stand_where_the_layout_puts_them_and_begin_with_their_names(opened: Open) -> None:
    found = opened("doors")
    found.find("#open-all").click()
    borders = found.run(BORDERS)
    assert len(borders) == 4
    assert all(4 < min(sides) < 14 and max(sides) > 4 for sides in borders)  # on the left or on the right


TITLES = """
const cy = fxpruneReport.cy;
const lines = cy.edges().map((e) => [e.sourceEndpoint(), ...e.segmentPoints() ?? [], e.targetEndpoint()]);
return cy.nodes(".title").map((title) => {
  const { x1, x2 } = title.boundingBox(), { y } = title.position();
  const crossed = lines.some((points) => points.slice(1).some((b, at) => {
    const a = points[at], x = a.x + ((y - a.y) / (b.y - a.y)) * (b.x - a.x);
    return a.y > y !== b.y > y && x > x1 && x < x2;
  }));
  const box = cy.getElementById(title.id().slice("title:".length)).boundingBox({ includeLabels: false });
  return [title.data("label"), crossed, x1 - box.x1 < box.x2 - x2];
});
"""


def test_a_title_stands_where_no_edge_enters_its_block(opened: Open) -> None:
    found = opened("entered")
    found.find("#open-all").click()
    assert found.run(TITLES) == [["encoder  Positioned", False, False]]  # on the right
    found = opened("planned")
    found.find("#open-all").click()
    assert all(left or not crossed for _, crossed, left in found.run(TITLES))


def test_a_model_that_is_one_list_opens_with_its_layers(opened: Open, sized: Sized) -> None:
    sized(1400, 900)
    found = opened("listed")
    assert len(found.nodes()) > 20
    assert found.run(ZOOM) >= 0.7


def test_no_column_has_the_last_layer_alone(chromium: Browser, sized: Sized) -> None:
    sized(1400, 900)
    columns = "const c = fxpruneReport.cy; return c.nodes().map(n => Math.round(n.position('x')))"
    folded = 0
    for count in range(16, 30):
        chromium.open("chain", chain(count))
        places = chromium.run(columns)
        folded += len(set(places)) > 1
        assert places.count(places[-1]) > 1, count
    assert folded > 10


LABELS = """
const cy = fxpruneReport.cy;
const labels = cy.edges(".shown").map((edge) => edge.midpoint().y + parseFloat(edge.style("text-margin-y")));
const titles = cy.nodes(".title").map((n) => n.position("y"));
return [labels, titles];
"""


@pytest.mark.parametrize(("name", "layer"), [("doors", "stem"), ("planned", "embed")])
def test_labels_of_edges_do_not_lie_under_titles(opened: Open, name: str, layer: str) -> None:
    found = opened(name, f"#layer={layer}")
    labels, titles = found.run(LABELS)
    assert len(labels) > 1
    assert titles
    assert all(abs(label - title) > 14 for label in labels for title in titles)


CUT = """
const cut = (e) => e.scrollWidth > e.clientWidth + 1;
return [...document.querySelectorAll(arguments[0])].filter(cut).map((e) => e.innerText);
"""


def test_panels_hold_what_is_in_them(opened: Open, sized: Sized) -> None:
    for width in (620, 920, 1000, 1280, 1600):
        sized(width, 900)
        found = opened("doors")
        for selector in ("#tabs", "#left .line", "#right .line", "#legend"):
            assert found.run(CUT, selector) == [], (width, selector)
        rows = [row.text.splitlines() for row in found.all("#list .item")]
        assert ["encoder.0.0.first", "16 \u2192 8"] in [row[:2] for row in rows]
        assert max(map(len, rows)) <= 5, width
        found = opened("planned")
        assert set(found.run("return [...document.querySelectorAll('.swatch')].map(e => e.offsetWidth)")) == {20}


def test_edges_between_layers_of_a_group_are_lit_through_the_joins_on_their_way(opened: Open) -> None:
    found = opened("skips", "#group=stem")
    dim = "return fxpruneReport.cy.edges('.dim').map(e => [e.source().id(), e.target().id()])"
    scaled = {(one, f":mul{number}") for one in ("head", "scales") for number in ("", " 2", " 3")}
    results = {(f":mul{number}", "output") for number in ("", " 2", " 3")}
    assert {tuple(edge) for edge in found.run(dim)} == {("input:x", "stem")} | scaled | results
    assert found.nodes(".dim") == {"input:x", "output", "scales", ":mul", ":mul 2", ":mul 3"}


def test_the_legend_names_the_borders_that_are_seen(opened: Open) -> None:
    found = opened("skips", "#group=first.up")
    assert found.texts("#legend > span") == ["makes the channels"]
    found.find("#open-theirs").click()
    assert found.texts("#legend > span") == ["makes the channels", "reads the channels", "holds the channels"]


def test_locks_that_look_alike_are_one_row_with_their_number(opened: Open) -> None:
    found = opened("skips")
    found.find("#tab-lock").click()
    rows = [row.text.splitlines() for row in found.all("#list .item")]
    assert [row[2] for row in rows if "select" in row[2]] == ["aten::select \u00d7 3"]
    assert len({tuple(row) for row in rows}) == len(rows)


def test_what_a_link_names_is_seen_whole_and_titles_are_above_edges(opened: Open) -> None:
    found = opened("repeated", "#layer=blocks.5.down")
    box = "const b = fxpruneReport.cy.getElementById(arguments[0]).renderedBoundingBox({includeLabels: false});"
    whole = "const c = fxpruneReport.cy; return b.x1 > 5 && b.y1 > 5 && b.x2 < c.width() - 5 && b.y2 < c.height() - 5"
    assert found.run(box + whole, "blocks.5.down")
    titles = "return fxpruneReport.cy.nodes('.title').map(n => [n.data('label'), n.style('z-compound-depth')])"
    assert ["5  Repeated", "top"] in found.run(titles)


def test_a_folded_block_is_lit_for_the_layers_in_it(opened: Open) -> None:
    found = opened("planned", "#group=blocks.1.up")
    assert found.nodes(".lit") == {"block:blocks.1"}
    found.find("#open-theirs").click()
    assert found.nodes(".lit") == {"blocks.1.up", "blocks.1.down"}
    assert found.all("#open-theirs") == []


def test_a_link_chooses_a_group_a_layer_or_a_lock(opened: Open) -> None:
    assert opened("planned", "#group=embed").texts("#right h2") == ["embed"]
    assert opened("planned", "#layer=blocks.2.up").texts("#right h2") == ["blocks.2.up"]
    found = opened("planned", "#lock=0")
    lock = json.loads(analysis().report("json"))["locked"][0]
    assert found.texts("#right h2") == [lock["operation"]]
    found = opened("planned", "#group=none")
    assert found.texts("#right h2") == ["Blocks"]
    assert found.texts("#missing") == ['The address asks for the group "none": there is no such group here.']
    found.run("location.hash = '#layer=head'")
    assert found.all("#missing") == []
    assert "head" in found.texts("#right h2")


def test_a_name_of_several_groups_shows_them_all_and_each_has_its_own_address(opened: Open) -> None:
    name = "attention.in_proj_weight"
    found = opened("named", f"#group={name}")
    assert found.texts("#right .heading > *")[1:] == [
        name,
        "Several groups have this name. Each has an address of its own.",
    ]
    assert found.texts("#right td a") == [f"{name} (heads)", f"{name} (head width)"]
    assert found.nodes(".lit") == {"attention", "attention.out_proj"}
    assert len(found.all("#list [aria-selected=true]")) == 2
    assert found.run("return location.hash") == f"#group={name}"
    found.all("#right td a")[1].click()
    assert found.texts("#right .kind") == ["Group of head width"]
    assert found.run("return decodeURIComponent(location.hash)") == f"#group={name}:head width@{name}[0]"
    assert opened("named", f"#group={name}:heads").texts("#right .kind") == ["Group of heads"]


def test_groups_of_one_name_and_kind_are_told_apart_by_their_dimension(opened: Open) -> None:
    found = opened("twice", "#group=q")
    links = found.texts("#right td a")
    assert links == ["q (channels, q.weight[0] with left)", "q (channels, q.weight[0] with right)"]
    assert [row.text.splitlines()[2] for row in found.all("#list .item")] == [text[3:-1] for text in links]
    addresses = [row.get_attribute("data-hash") for row in found.all("#list .item")]
    assert len(set(addresses)) == len(addresses)


def test_groups_of_a_record_are_told_apart_by_the_layer_that_one_lacks(chromium: Browser) -> None:
    chromium.open("halves", halves())
    rows = [row.text.splitlines()[2] for row in chromium.all("#list .item")]
    dimension = "removed, encoder.0.0.first.weight[0]"
    assert [text for text in rows if "0.0.first" in text] == [
        f"{dimension} with encoder.0.0.inside",
        f"{dimension} without encoder.0.0.inside",
    ]


def test_a_parameter_that_no_layer_owns_says_which_of_its_dimensions_are_held_or_go(opened: Open) -> None:
    found = opened("named", "#layer=pos")
    assert found.texts("#right li div") == ["pos[1], pos[2]"]
    assert "Dimension 2" in found.find("#right").text
    assert "holds, shift[0]" in opened("states", "#layer=shift").texts("#right li")[0]


def test_a_lock_has_its_operation_source_and_what_unlocking_would_free(opened: Open) -> None:
    found = opened("planned")
    found.find("#tab-lock").click()
    for number, lock in enumerate(json.loads(analysis().report("json"))["locked"]):
        found.find(f'#list [data-hash="lock={number}"]').click()
        told = found.texts("#right")[0]
        source = f"node %{lock['node']}" if lock["file"] is None else f"{lock['file']}:{lock['line']}"
        for part in (lock["operation"], lock["why"], source, f"{lock['params']} parameters, {lock['macs']} MACs"):
            assert part in told
        assert found.nodes(".held")


def test_the_search_opens_the_blocks_around_what_it_finds(opened: Open) -> None:
    found = opened("planned")
    assert "blocks.1.down" not in found.nodes()
    found.press("/", "blocks.1.down")
    assert found.texts("#found li .name")[0] == "blocks.1.down"
    found.press(ENTER)
    assert found.texts("#right h2") == ["blocks.1.down"]
    assert found.nodes(".chosen") == {"blocks.1.down"}
    found.press("/", "no such layer")
    assert found.texts("#found li") == ["Nothing has this in its name, type or operation."]
    found.press(ESCAPE)
    found.press("/", "layernorm 2")
    assert found.texts("#found li .name") == ["blocks.2.norm"]


def test_blocks_fold_and_open(opened: Open) -> None:
    found = opened("planned")
    folded = found.nodes()
    assert "block:blocks.1" in folded
    found.double_click("block:blocks.1")
    assert found.nodes() - folded == {"blocks.1.norm", "blocks.1.up", "blocks.1.down", "blocks.1:add"}
    found.find("#fold-all").click()
    assert "block:blocks.1" not in found.nodes()
    assert found.nodes(".run") == {"block:blocks"}
    found.find("#open-all").click()
    layers = {layer["id"] for layer in found.run("return fxpruneReport.data.layers") if layer["drawn"]}
    assert layers <= found.nodes()


def test_widths_before_and_after_are_texts_and_bars(opened: Open) -> None:
    found = opened("recorded")
    found.find("#tab-layer").click()
    assert "8 → 4" in found.find('#list [data-hash="layer=embed"]').text
    assert found.run("return document.querySelector('#list .kept').style.width") == "50%"
    shares = found.run("return fxpruneReport.cy.getElementById('embed').data('share')")
    assert shares == 50


def test_the_record_alone_says_what_it_lacks(opened: Open) -> None:
    found = opened("alone")
    assert "adds all groups and what is locked" in found.texts("#right")[0]
    assert found.run("return fxpruneReport.cy.edges().length") > 2
    found.find("#tab-lock").click()
    assert "does not say what is locked" in found.texts("#list")[0]


def test_what_went_whole_is_drawn_and_labelled(opened: Open) -> None:
    found = opened("dropped")
    found.find("#open-all").click()
    gone = found.run("return fxpruneReport.cy.nodes('.gone').map((node) => node.data('label'))")
    assert len(gone) == 3
    assert all(label.endswith(", left out") for label in gone)
    assert "Block, left out" in found.run("return fxpruneReport.cy.getElementById('block:blocks.1').data('label')")
    assert "left out: nothing of it is in the small model" in found.texts("#legend")[0]
    assert "Layers that were left out whole have no edges" in found.texts("#right")[0]
    heights = [found.run(f"return fxpruneReport.cy.getElementById('{name}').position('y')") for name in ORDER]
    assert heights == sorted(heights)
    found.find("#fold-all").click()
    assert "left out" not in opened("alone").texts("#legend")[0]


ORDER = ("blocks.0.down", "blocks.1.up", "blocks.1.down", "blocks.2.up")


def test_an_in_projection_says_what_its_rows_are(opened: Open) -> None:
    found = opened("attention", "#layer=self_attn")
    facts = found.texts("#right")[0]
    assert "Rows of the in-projection" in facts
    assert "(query, key, value)" in facts
    assert "Outputs" in opened("attention", "#layer=linear1").texts("#right")[0]


def test_curves_are_drawn_with_their_numbers(opened: Open) -> None:
    found = opened("planned")
    headings = found.texts("#right .curve h3")
    assert headings == ["Score by MACs", "Score by the share of a group that goes"]
    assert "0.1 (not met)" in found.texts("#right .curve td")
    found.find("#right .curve:nth-of-type(2) td a").click()
    assert len(found.all("#right .chart path.line")) == 2
    assert found.texts("#right .key")[0].split() == ["without", "repair", "with", "repair"]


def test_the_tables_of_curves_are_seen_whole(opened: Open, sized: Sized) -> None:
    for width in (1000, 1400, 1700):
        sized(width, 900)
        found = opened("planned")
        wide = "return [...document.querySelectorAll('.curve .scrolls')].map(e => [e.scrollWidth, e.clientWidth])"
        sizes = found.run(wide)
        assert len(sizes) == 2
        assert [inside for inside, _ in sizes] == [seen for _, seen in sizes], width
        assert "0.01488 → 0.0001488" in found.texts(".curve td")


def test_names_that_are_html_stay_text(opened: Open) -> None:
    found = opened("evil")
    found.find("#tab-layer").click()
    assert found.texts("#list b") == [EVIL, "plain"]
    assert EVIL in found.texts("#right li")
    assert not found.all("img")
    found.all("#list .item")[0].click()
    assert found.texts("#right h2") == [EVIL]
    found.press("/", "onerror")
    assert found.texts("#found .name")
    assert found.run("return document.title") == "Small model: fxprune report"
    title = opened("nothing").run("return document.title")
    assert title == f"Net{EVIL}: fxprune report"


def test_a_model_without_groups_says_so(opened: Open) -> None:
    found = opened("nothing")
    found.find("#tab-group").click()
    assert "No channels can be removed" in found.texts("#list")[0]


def test_the_theme_follows_the_system_and_the_switch(opened: Open) -> None:
    found = opened("planned")
    background = "return getComputedStyle(document.body).backgroundColor"
    edge = "return fxpruneReport.cy.nodes()[0].style('color')"
    light, text_light = found.run(background), found.run(edge)
    found.emulate(prefers_color_scheme="dark")
    for _ in range(50):  # the browser tells the page of it a little later
        dark, text_dark = found.run(background), found.run(edge)
        if text_dark != text_light:
            break
        time.sleep(0.1)
    assert light != dark
    assert text_light != text_dark
    found.find("#theme").click()
    assert (found.find("#theme").text, found.run(background)) == ("Theme: light", light)
    found.emulate(prefers_color_scheme="light")
    found.press("t")
    assert (found.find("#theme").text, found.run(background)) == ("Theme: dark", dark)
    assert found.run(edge) == text_dark


def test_keys_reach_everything(opened: Open) -> None:
    found = opened("planned")
    keys = [group.key for group in analysis().groups]
    found.press("]", "]")
    assert found.run("return decodeURIComponent(location.hash)") == f"#group={keys[1]}"
    found.press("[")
    assert found.run("return decodeURIComponent(location.hash)") == f"#group={keys[0]}"
    found.press(ESCAPE)
    assert found.run("return location.hash") == ""
    found.press("y")
    found.find("#list").send_keys(DOWN)
    found.press(DOWN, ENTER)
    assert found.run("return document.querySelectorAll('#list .item')[1].getAttribute('aria-selected')") == "true"
    found.press("c")
    count = len(found.nodes())
    found.press("e")
    assert len(found.nodes()) > count
    found.press("?")
    assert "walk a list" in found.texts("#help[open]")[0]
    found.press(ESCAPE)
    assert found.texts("#help[open]") == []
    zoom = found.run("return fxpruneReport.cy.zoom()")
    found.press("+")
    assert found.run("return fxpruneReport.cy.zoom()") > zoom


def test_it_prints_all_tables_and_the_graph(opened: Open) -> None:
    found = opened("planned")
    made = found.driver.execute_cdp_cmd("Page.printToPDF", {})
    assert base64.b64decode(made["data"]).startswith(b"%PDF")
    assert found.texts("#print h2") == ["Blocks", "Graph", "Groups", "Locked", "Layers"]
    assert found.run("return document.querySelector('#print img').naturalWidth") > 200
    names = {layer["name"] for layer in json.loads(analysis().report("json"))["layers"] if layer["name"]}
    assert names <= set(found.texts("#print td:first-child"))


SHARE_OF_DARK = """
const image = document.querySelector("#print img"), canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
const pen = canvas.getContext("2d");
pen.drawImage(image, 0, 0);
const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
let dark = 0;
for (let at = 0; at < data.length; at += 4) dark += data[at] + data[at + 1] + data[at + 2] < 240;
return [dark / (data.length / 4), fxpruneReport.cy.elements(".dim").length];
"""


def test_paper_is_light_and_nothing_on_it_is_faint(opened: Open) -> None:
    found = opened("planned", "#group=embed")
    found.driver.execute_cdp_cmd("Page.printToPDF", {})
    light, faint = found.run(SHARE_OF_DARK)
    assert faint
    found.emulate(prefers_color_scheme="dark")
    try:
        found.driver.execute_cdp_cmd("Page.printToPDF", {})
        dark, still = found.run(SHARE_OF_DARK)
        colour = "return getComputedStyle(document.body).backgroundColor"
        assert found.run(colour) != "rgb(255, 255, 255)"
    finally:
        found.emulate(prefers_color_scheme="light")
    assert dark == light
    assert still == faint
    assert 0 < light < 0.1
    found.press(ESCAPE)
    found.driver.execute_cdp_cmd("Page.printToPDF", {})
    whole, none = found.run(SHARE_OF_DARK)
    assert none == 0
    assert abs(whole - light) < 0.02


def test_a_thousand_layers_are_folded_into_few_nodes_and_still_found(opened: Open) -> None:
    found = opened("thousand", "#group=linear600")
    assert len(found.nodes()) <= 60
    assert found.nodes(".lit")
    found.press("/", "norm777")
    found.press(ENTER)
    assert found.nodes(".chosen") == {"norm777"}
    assert len(found.nodes()) <= 120
    found.find("#open-all").click()
    assert len(found.nodes()) >= 1000
    found.press("]")
    assert len(found.nodes(".lit")) == 3


def test_a_narrow_window_cuts_nothing_off(opened: Open, chromium: Browser) -> None:
    size = chromium.driver.get_window_size()
    chromium.driver.set_window_size(520, 900)
    try:
        found = opened("planned", "#group=embed")
        assert found.run("return document.documentElement.scrollWidth <= innerWidth")
        assert found.find("#graph").size["height"] > 200
        last = analysis().groups[-1].key
        found.run("location.hash = `#group=${encodeURIComponent(arguments[0])}`", last)
        assert found.all("#list .item")[-1].get_attribute("aria-selected") == "true"
        assert found.run("return [scrollX, scrollY]") == [0, 0]
    finally:
        chromium.driver.set_window_size(size["width"], size["height"])


def test_a_missing_browser_fails_where_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(browsers.NEEDED, "1")
    with pytest.raises(pytest.fail.Exception, match="FXPRUNE_BROWSER=1, but there is no chromium"):
        browsers.skip_or_fail("there is no chromium")
    monkeypatch.delenv(browsers.NEEDED)
    with pytest.raises(pytest.skip.Exception, match="there is no chromium"):
        browsers.skip_or_fail("there is no chromium")
    browsers.skip_or_fail("")
