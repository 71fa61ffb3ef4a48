// The graph as cytoscape draws it: only visible places are in it, drawn anew when a block is folded or opened.

const ROLES = { producer: "makes", norm: "normalises", consumer: "reads", raw: "holds", held: "held" };
const cy = cytoscape({
  container: document.getElementById("graph"), style: graphStyle(), minZoom: 0.03, maxZoom: 3,
  boxSelectionEnabled: false, autoungrabify: true, autounselectify: true, layout: { name: "preset" },
});
let extent = { w: 1, h: 1 }; // of all that is drawn
let lit = new Map(); // layer -> set of roles, of what is chosen

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function graphStyle() {
  const text = { "font-family": FONT, "font-size": 12, color: colour("text"), "text-wrap": "wrap", "line-height": 1.25 };
  return [
    { selector: "node", style: {
      ...text, label: "data(label)", width: "data(w)", height: "data(h)", shape: "round-rectangle", "corner-radius": 6,
      "text-valign": "center", "text-halign": "center", "background-color": colour("node"), "border-width": 1,
      "border-color": colour("line"), "min-zoomed-font-size": 5,
    } },
    { selector: "node[share]", style: {
      "background-fill": "linear-gradient", "background-gradient-direction": "to-right",
      "background-gradient-stop-colors": (n) => [colour("kept"), colour("kept"), colour("gone"), colour("gone")].join(" "),
      "background-gradient-stop-positions": (n) => `0% ${n.data("share")}% ${n.data("share")}% 100%`,
    } },
    { selector: "node.free", style: { "background-color": colour("kept") } },
    { selector: "node.inputs", style: {
      "background-fill": "linear-gradient", "background-gradient-direction": "to-bottom-right",
      "background-gradient-stop-colors": stripes().map(([name]) => colour(name)).join(" "),
      "background-gradient-stop-positions": stripes().map(([, at]) => `${at}%`).join(" "),
    } },
    { selector: "node.parameter", style: { shape: "cut-rectangle", "corner-radius": 9 } },
    { selector: "node.gone", style: { "border-style": "dashed", "background-color": colour("gone"), color: colour("quiet") } },
    { selector: "node.round", style: { shape: "ellipse", "background-color": colour("page") } },
    { selector: "node.end", style: { "background-color": colour("page"), "border-style": "dashed" } },
    { selector: "node.folded", style: { "border-width": 1.5, "font-weight": 600, "background-color": colour("block") } },
    { selector: "node.run", style: { ghost: "yes", "ghost-offset-x": 4, "ghost-offset-y": 4, "ghost-opacity": 0.45 } },
    { selector: ":parent", style: {
      label: "", padding: PAD, "background-color": colour("box"), "min-height": "data(tall)",
      "min-height-bias-top": "100%", "min-height-bias-bottom": "0%",
      "min-width": "data(wide)", "min-width-bias-left": "data(left)", "min-width-bias-right": "data(right)",
    } },
    { selector: "node.title", style: { // above the edges
      width: 1, height: 1, "background-opacity": 0, "border-width": 0, events: "no", "z-compound-depth": "top", "font-weight": 600, color: colour("quiet"),
      "text-background-color": colour("box"), "text-background-opacity": 1, "text-background-padding": 2,
    } },
    { selector: "edge", style: {
      width: 1.2, "line-color": colour("edge"), "target-arrow-color": colour("edge"), "target-arrow-shape": "triangle", "arrow-scale": 0.8,
      "curve-style": "straight", "font-size": 10, "font-family": FONT, color: colour("text"),
      "text-background-color": colour("page"), "text-background-opacity": 0.85, "text-background-padding": 2,
    } },
    { selector: "edge[distances]", style: {
      "curve-style": "round-segments", "segment-distances": "data(distances)", "segment-weights": "data(weights)",
      "segment-radii": 12, "edge-distances": "node-position",
    } },
    { selector: "edge[lift]", style: { "text-margin-y": "data(lift)" } },
    { selector: "edge.shown", style: { label: "data(shape)", "line-color": colour("accent"), "target-arrow-color": colour("accent") } },
    { selector: ".dim", style: { opacity: 0.28 } },
    { selector: "node.lit", style: { "border-color": colour("accent"), "border-width": 4, opacity: 1 } },
    { selector: "node.lit.consumer", style: { "border-style": "dashed" } },
    { selector: "node.lit.norm", style: { "border-style": "double", "border-width": 5 } },
    { selector: "node.lit.raw, node.lit.held", style: { "border-style": "dotted" } },
    { selector: "node.lit.producer", style: { "border-style": "solid" } },
    { selector: "node.lit.held", style: { "border-color": colour("lock") } },
    { selector: "node.chosen", style: { "border-color": colour("accent"), "border-width": 4, "border-style": "solid", opacity: 1 } },
    { selector: ":parent.lit, :parent.chosen", style: { "border-width": 2 } },
  ];
}

// Slanting stripes, as the stops of a gradient: names of colours, and where they begin and end.
function stripes() {
  const count = 16;
  return Array.from({ length: count }, (_, n) => [n, n + 1].map((at) => [n % 2 ? "stripe" : "node", (100 * at) / count])).flat();
}

// Draws what is visible. keep: a place that stays where it is on the screen.
function draw(keep = null) {
  const before = keep ? cornerOf(keep) : null;
  const { nodes, edges, w, h } = arrange();
  extent = { w, h };
  const beside = roomBeside(nodes);
  const elements = nodes.map(({ place, x, y, w, h }) => ({ group: "nodes", data: { ...nodeData(place, w, h), ...beside.get(place) }, position: { x, y }, classes: nodeClasses(place) }));
  const at = new Map(nodes.map((node) => [node.place.id, node]));
  const lines = edges.map(({ from, to, points }) => [at.get(from.id), ...points, at.get(to.id)]);
  for (const node of nodes.filter(({ place }) => isOpen(place))) {
    elements.push({ group: "nodes", data: { id: `title:${node.place.id}`, label: titleOf(node.place) }, position: titlePlace(node, lines), classes: "title" });
  }
  edges.forEach((edge, number) => elements.push(edgeElement(edge, number, at)));
  cy.batch(() => {
    cy.elements().remove();
    cy.add(elements);
  });
  light();
  showLegend();
  const after = keep ? cornerOf(keep) : null;
  if (before && after) cy.panBy({ x: before.x - after.x, y: before.y - after.y });
}

// The middle of the title of an open block: on the left, on the right where edges cross it there and not here.
function titlePlace({ place, x, y, w, h }, lines) {
  const [half, level] = [titleWidth(place) / 2, y - h / 2 + TITLE];
  const crossings = lines.flatMap((points) => points.slice(1).flatMap((end, at) => {
    const start = points[at];
    if (start.y > level === end.y > level) return [];
    return [start.x + ((level - start.y) / (end.y - start.y)) * (end.x - start.x)];
  }));
  const [left, right] = [x - w / 2 + PAD + half, x + w / 2 - PAD - half];
  const clear = (middle) => crossings.every((one) => Math.abs(one - middle) > half + 3);
  return { x: !clear(left) && clear(right) ? right : left, y: level };
}

// Open block -> the room on the left and on the right of its children, for edges that pass there.
function roomBeside(nodes) {
  const spans = new Map(nodes.filter(({ place }) => isOpen(place)).map(({ place }) => [place, [Infinity, -Infinity]]));
  for (const { place, x, w } of nodes) {
    const [low, high] = spans.get(place.parent) ?? [];
    if (low !== undefined) spans.set(place.parent, [Math.min(low, x - w / 2), Math.max(high, x + w / 2)]);
  }
  return new Map(nodes.filter(({ place }) => spans.has(place)).map(({ place, x, w }) => {
    const [low, high] = spans.get(place);
    return [place, { left: Math.max(0, low - PAD - x + w / 2), right: Math.max(0, x + w / 2 - PAD - high) }];
  }));
}

function cornerOf(place) {
  const node = cy.getElementById(place.id);
  if (node.empty()) return null;
  const box = node.renderedBoundingBox({ includeLabels: false, includeOverlays: false });
  return { x: (box.x1 + box.x2) / 2, y: box.y1 };
}

function nodeData(place, w, h) {
  const made = { id: place.id, label: isOpen(place) ? titleOf(place) : labelOf(place), w, h, tall: h - 2 * PAD, wide: w - 2 * PAD };
  if (place.parent !== root) made.parent = place.parent.id;
  const share = isOpen(place) ? null : keptShare(place);
  return share === null ? made : { ...made, share };
}

// The share of the outputs of a layer, or of the parameters in a block, that stays; null where nothing goes.
function keptShare(place) {
  if (!data.planned || isGone(place)) return null;
  if (place.layer) {
    const width = place.layer.width;
    return width && width.after !== null && width.after < width.before ? (100 * width.after) / width.before : null;
  }
  const sum = (pick) => place.leaves.reduce((total, layer) => total + (pick(layer) ?? 0), 0);
  const [before, after] = [sum((l) => l.params), sum((l) => (l.after ? l.after.params : l.params))];
  return before > after ? (100 * after) / before : null;
}

function nodeClasses(place) {
  if (isOpen(place)) return "open";
  if (isGone(place)) return !place.layer ? "folded gone" : place.layer.kind === "parameter" ? "parameter gone" : "gone";
  if (!place.layer) return place.run ? "folded run" : "folded";
  const { kind, id } = place.layer;
  if (kind === "join") return "round";
  if (kind === "input" || kind === "output") return "end";
  const state = place.layer.state ?? (groupsOf.has(id) ? "free" : "fixed");
  return kind === "parameter" ? `parameter ${state}` : state;
}

function edgeElement({ from, to, shapes, count, points }, number, at) {
  const text = [...shapes].join(" and ");
  const made = { id: `edge:${number}`, source: from.id, target: to.id, shape: text && count > 1 ? `${count} edges of ${text}` : text };
  const bends = points.length ? bendsOf(points, at.get(from.id), at.get(to.id)) : null;
  return { group: "edges", data: bends ? { ...made, ...bends } : made };
}

// Points as cytoscape wants them: how far along the straight line, and how far beside it.
function bendsOf(points, from, to) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const length = Math.hypot(dx, dy) || 1;
  const along = points.map((p) => ((p.x - from.x) * dx + (p.y - from.y) * dy) / (length * length));
  const beside = points.map((p) => ((p.y - from.y) * dx - (p.x - from.x) * dy) / length);
  if (beside.every((distance) => Math.abs(distance) < 3)) return null;
  return { weights: along, distances: beside };
}

// -- what is lit ----------------------------------------------------------------------------------------------

// Lights up layers with their roles, and dims the rest; without layers nothing is dimmed.
function lightUp(roles) {
  lit = roles;
  light();
}

function light() {
  const shown = new Map();
  for (const [id, roles] of lit) {
    const place = places.get(id) ?? places.get(`block:${id}`);
    if (!place) continue;
    const node = shownFor(place).id;
    shown.set(node, new Set([...(shown.get(node) ?? []), ...roles]));
  }
  cy.batch(() => {
    cy.elements().removeClass("dim lit chosen shown producer norm consumer raw held");
    if (!shown.size) return;
    cy.elements().not(":parent, .title").addClass("dim");
    for (const [id, roles] of shown) {
      const node = cy.getElementById(id);
      node.removeClass("dim").addClass(roles.has("chosen") ? "chosen" : "lit").addClass([...roles].join(" "));
      if (roles.has("chosen")) node.connectedEdges().removeClass("dim").addClass("shown").connectedNodes().removeClass("dim");
    }
    const passed = between(shown);
    passed.removeClass("dim");
    const bright = (node) => shown.has(node.id()) || passed.has(node);
    cy.edges().filter((edge) => bright(edge.source()) && bright(edge.target())).removeClass("dim");
  });
  clearTitles(cy.edges(".shown"));
}

// Lifts the labels of edges above the titles of blocks that they would lie under.
function clearTitles(edges) {
  const titles = cy.nodes(".title").map((node) => ({ ...node.position(), half: textWidth(node.data("label"), 12, 600) / 2 + 4 }));
  edges.forEach((edge) => {
    const half = textWidth(edge.data("shape"), 10) / 2;
    const { x, y } = edge.midpoint();
    const under = titles.find((title) => Math.abs(title.x - x) < title.half + half && Math.abs(title.y - y) < LABEL);
    if (under) edge.data("lift", under.y - LABEL - y);
  });
}

// The joins on the ways from one of these nodes to another of them, which pass through nothing but joins.
function between(shown) {
  const reached = (next) => {
    const found = new Set();
    const queue = cy.nodes().filter((node) => shown.has(node.id())).toArray();
    while (queue.length) {
      for (const node of next(queue.pop()).nodes(".round")) {
        if (shown.has(node.id()) || found.has(node.id())) continue;
        found.add(node.id());
        queue.push(node);
      }
    }
    return found;
  };
  const [after, before] = [reached((node) => node.outgoers()), reached((node) => node.incomers())];
  return cy.nodes().filter((node) => after.has(node.id()) && before.has(node.id()));
}

// Moves the view so that lit nodes are seen, unless some are seen whole.
function bringIntoView() {
  const nodes = cy.nodes(".lit, .chosen");
  if (nodes.empty()) return;
  const inside = nodes.filter((node) => {
    const { x1, x2, y1, y2 } = node.renderedBoundingBox({ includeLabels: false, includeOverlays: false });
    return x1 > EDGE && x2 < cy.width() - EDGE && y1 > BUTTONS && y2 < cy.height() - EDGE;
  });
  if (inside.empty()) cy.center(nodes[0]);
}

const LABEL = 18; // between the middles of a title and of a label of an edge above it
const BUTTONS = 44; // the height of the buttons above the graph
const EDGE = 12; // between the graph and what is seen whole

const READABLE = 0.7; // the smallest zoom at which names are read easily
const FEWEST = 5; // visible nodes at the beginning, the input and the output among them, where the model has as many
let fitted = null; // the view that was set last, and whether it is the beginning of a graph alone

// The zoom at which a layout is seen whole, below the buttons.
function wholeLevel({ w, h }) {
  return Math.min(1.1, (cy.width() - 48) / w, (cy.height() - BUTTONS - 24) / h);
}

// The whole graph below the buttons.
function fit() {
  cy.resize();
  const level = Math.max(cy.minZoom(), wholeLevel(extent));
  view(level, { x: (cy.width() - level * extent.w) / 2, y: BUTTONS + (cy.height() - BUTTONS - level * extent.h) / 2 }, false);
}

// The whole graph; where names would be too small to read, its beginning.
function fitOrBegin() {
  cy.resize();
  if (wholeLevel(extent) >= READABLE) return fit();
  const level = Math.max(READABLE, Math.min(0.9, (cy.width() - 48) / extent.w));
  const first = cy.nodes().not(":parent, .title").min((node) => node.position("y")).ele.position("x");
  const [room, wide] = [cy.width(), level * extent.w];
  const x = wide + 48 <= room ? (room - wide) / 2 : Math.min(24, Math.max(room - 24 - wide, room / 2 - level * first));
  view(level, { x, y: BUTTONS }, true);
}

function view(zoom, pan, begins) {
  cy.viewport({ zoom, pan });
  fitted = { zoom: cy.zoom(), ...cy.pan(), begins };
  showLegend();
}

// True while the view is as it was set last.
function untouched() {
  return fitted !== null && fitted.zoom === cy.zoom() && fitted.x === cy.pan().x && fitted.y === cy.pan().y;
}

// Sets the view again after its space has changed, unless it was moved since.
function refit() {
  if (!untouched()) cy.resize();
  else if (fitted.begins) fitOrBegin();
  else fit();
}

// Folds blocks, the last opened first, while the whole would be too small to read, where that makes it larger.
function foldUntilReadable() {
  let level = wholeLevel(arrange());
  for (const id of [...opened].filter((one) => one).reverse()) {
    if (level >= READABLE) return;
    opened.delete(id);
    const without = visibleCount() < FEWEST ? 0 : wholeLevel(arrange());
    if (without > level) level = without;
    else opened.add(id);
  }
}

function toggle(place) {
  if (place.layer) return;
  if (isOpen(place)) fold(place);
  else unfold(place);
  draw(place);
}

cy.on("tap", "node", (event) => {
  const place = places.get(event.target.id());
  if (!place.layer && isOpen(place)) return;
  choose(place.layer ? { kind: "layer", id: place.layer.id } : { kind: "block", id: place.id }, { move: false });
});
cy.on("dbltap", "node", (event) => {
  const place = places.get(event.target.id());
  toggle(place.layer ? place.parent : place);
});
cy.on("tap", (event) => {
  if (event.target === cy) choose(null);
});
cy.on("viewport", () => {
  const more = document.getElementById("more");
  if (more) more.hidden = !untouched();
});
cy.on("mouseover", "node", () => { cy.container().style.cursor = "pointer"; });
cy.on("mouseout", "node", () => { cy.container().style.cursor = ""; });
