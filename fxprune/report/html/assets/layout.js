// Where the visible places stand: dagre lays out the children of each open block, from the inside out.

const PAD = 12; // around the children of an open block
const HEAD = 22; // the name above them
const TITLE = 16; // from the top of an open block to the middle of its name
const [ENTER, LEAVE] = ["enter:", "leave:"]; // where edges from and to other blocks pass the border
const pen = document.createElement("canvas").getContext("2d");
const FONT = getComputedStyle(document.body).fontFamily;

// Returns {nodes: [{place, x, y, w, h}], edges: [{from, to, count, shapes, points}], w, h}, with points between the ends.
function arrange() {
  const edges = visibleEdges();
  const inside = new Map(); // block -> the parts of edges in it
  const add = (block, part) => inside.set(block.id, [...(inside.get(block.id) ?? []), part]);
  for (const edge of edges) {
    const [block, from, to] = meeting(edge.from, edge.to);
    for (let at = edge.from; at !== from; at = at.parent) add(at.parent, { edge, from: at.id, to: LEAVE });
    add(block, { edge, from: from.id, to: to.id });
    for (let at = edge.to; at !== to; at = at.parent) add(at.parent, { edge, from: ENTER, to: at.id });
  }
  const whole = arrangeBlock(root, inside);
  const nodes = [];
  const parts = new Map(edges.map((edge) => [edge, { left: [], met: [], entered: [] }]));
  collect(whole, 0, 0, nodes, parts);
  const lines = edges.map((edge) => {
    const { left, met, entered } = parts.get(edge);
    return { ...edge, points: [...left.reverse().flat(), ...met, ...entered.flat()] };
  });
  return { nodes, edges: lines, w: whole.w, h: whole.h };
}

// Edges between visible places, each once.
function visibleEdges() {
  const found = new Map();
  for (const [a, b, shape] of data.edges) {
    const [from, to] = [shownFor(places.get(a)), shownFor(places.get(b))];
    if (from === to) continue;
    const key = `${from.id}\n${to.id}`;
    if (!found.has(key)) found.set(key, { from, to, shapes: new Set(), count: 0 });
    found.get(key).count += 1;
    if (shape.length) found.get(key).shapes.add(shape.join(" × "));
  }
  return [...found.values()];
}

// The innermost block that holds both, and the two of its children that hold one each.
function meeting(a, b) {
  let [from, to] = [a, b];
  while (from.parent !== to.parent) {
    if (from.depth >= to.depth) from = from.parent;
    else to = to.parent;
  }
  return [from.parent, from, to];
}

function arrangeBlock(place, inside) {
  const children = place.children.map((child) =>
    isOpen(child) ? arrangeBlock(child, inside) : { place: child, ...sizeOf(child) });
  const graph = new dagre.graphlib.Graph({ multigraph: true });
  graph.setGraph({ rankdir: "TB", nodesep: 18, ranksep: 26, edgesep: 12, ranker: "network-simplex" });
  children.forEach((child) => graph.setNode(child.place.id, { width: child.w, height: child.h }));
  const lines = inside.get(place.id) ?? [];
  for (const door of [ENTER, LEAVE]) if (lines.some(({ from, to }) => from === door || to === door)) graph.setNode(door, { width: 1, height: 1 });
  if (lines.length < graph.nodeCount()) graph.graph().ranker = "longest-path"; // a chain or a tree: as good, and much faster
  const known = new Set();
  for (const { from, to } of lines) {
    const name = `${from}\n${to}`;
    if (!known.has(name)) graph.setEdge(from, to, {}, name);
    known.add(name);
  }
  if (data.edges.length) {
    betweenNeighbours(graph, children);
    doorsOutside(graph, children);
    dagre.layout(graph);
  }
  else inRows(graph, children);
  if (data.edges.length) wrap(graph, place === root ? cy.width() / cy.height() : 1.4);
  const around = place === root ? 0 : PAD;
  const head = place === root ? 0 : HEAD;
  const size = graph.graph();
  const tops = children.map((child) => graph.node(child.place.id).y - child.h / 2);
  const bends = lines.flatMap(({ from, to }) => middleOf(graph, from, to)); // dagre's size is that of the nodes alone
  const top = Math.min(...tops, ...bends.map(({ y }) => y - 2));
  size.height = Math.max(...children.map((child, at) => tops[at] + child.h), ...bends.map(({ y }) => y + 2)) - top;
  const left = Math.min(0, ...bends.map(({ x }) => x - 8));
  const right = Math.max(size.width, ...bends.map(({ x }) => x + 8));
  children.forEach((child) => {
    const at = graph.node(child.place.id);
    child.x = at.x - child.w / 2 - left + around;
    child.y = at.y - child.h / 2 - top + around + head;
  });
  const edges = lines.map(({ edge, from, to }) => {
    const side = to === LEAVE ? "left" : from === ENTER ? "entered" : "met";
    return { edge, side, points: middleOf(graph, from, to).map((p) => ({ x: p.x - left + around, y: p.y - top + around + head })) };
  });
  const inner = right - left + 2 * around;
  return { place, inner, w: Math.max(inner, titleWidth(place) + 2 * PAD), h: size.height + 2 * around + head, children, edges };
}

// The points of an edge between its ends.
function middleOf(graph, from, to) {
  const { points, turns } = graph.edge(from, to, `${from}\n${to}`);
  return turns ?? (points && points.length > 3 ? points.slice(1, -1) : []);
}

// What has no edges, as the layers of a branch that went, stands between its neighbours in the model.
function betweenNeighbours(graph, children) {
  const names = children.map((child) => child.place.id);
  const alone = new Set(names.filter((name) => !graph.nodeEdges(name).length));
  names.slice(1).forEach((name, at) => {
    if (alone.has(name) || alone.has(names[at])) graph.setEdge(names[at], name, { weight: 0 }, "order");
  });
}

// Edges enter above all children and leave below them, so that none passes behind a child.
function doorsOutside(graph, children) {
  for (const { place: { id } } of children) {
    if (graph.hasNode(ENTER) && !graph.inEdges(id).length) graph.setEdge(ENTER, id, { weight: 0 }, "order");
    if (graph.hasNode(LEAVE) && !graph.outEdges(id).length) graph.setEdge(id, LEAVE, { weight: 0 }, "order");
  }
}

// Without connections: the layers in their order, in rows like a text.
function inRows(graph, children) {
  let [x, y, tall, wide] = [0, 0, 0, 0];
  const area = children.reduce((sum, child) => sum + (child.w + 18) * (child.h + 18), 0);
  const limit = Math.max(Math.sqrt(area * 1.6), ...children.map((child) => child.w));
  for (const child of children) {
    if (x > 0 && x + child.w > limit) [x, y, tall] = [0, y + tall + 18, 0];
    const node = graph.node(child.place.id);
    [node.x, node.y] = [x + child.w / 2, y + child.h / 2];
    [x, tall, wide] = [x + child.w + 18, Math.max(tall, child.h), Math.max(wide, x + child.w)];
  }
  Object.assign(graph.graph(), { width: wide, height: y + tall });
}

function collect(box, x, y, nodes, parts) {
  const extra = box.place === root ? 0 : (box.w - box.inner) / 2;
  for (const child of box.children) {
    const [left, top] = [x + child.x + extra, y + child.y];
    nodes.push({ place: child.place, x: left + child.w / 2, y: top + child.h / 2, w: child.w, h: child.h });
    if (child.children) collect(child, left, top, nodes, parts);
  }
  for (const { edge, side, points } of box.edges) {
    const moved = points.map((p) => ({ x: p.x + x + extra, y: p.y + y }));
    if (side === "met") parts.get(edge).met = moved;
    else parts.get(edge)[side].push(moved);
  }
}

function sizeOf(place) {
  if (place.layer && place.layer.kind === "join") return { w: Math.max(26, textWidth(shortName(place), 12) + 14), h: 24 };
  const [first, second] = labelOf(place).split("\n");
  const weight = place.layer ? 400 : 600;
  return { w: Math.max(56, textWidth(first, 12, weight), textWidth(second ?? "", 12, weight)) + 24, h: second ? 40 : 26 };
}

function titleWidth(place) {
  return place === root ? 0 : textWidth(titleOf(place), 12, 600);
}

function textWidth(text, size, weight = 400) {
  pen.font = `${weight} ${size}px ${FONT}`;
  return pen.measureText(text).width;
}

// Two lines: the name; the type with its widths, or what is in a folded block.
function labelOf(place) {
  const name = cut(shortName(place), 30);
  if (!place.layer) return `▸ ${name}\n${cut(blockText(place), 36)}${isGone(place) ? ", left out" : ""}`;
  if (place.layer.kind === "join" || place.layer.kind === "input" || place.layer.kind === "output") return name;
  const type = place.layer.kind === "parameter" ? "parameter" : place.layer.type;
  return `${name}\n${cut(`${type} ${widthText(place.layer)}`.trim(), 36)}`;
}

function blockText(place) {
  if (place.run) return kindText(place);
  return `${place.type && !CONTAINERS.has(place.type) ? `${place.type}, ` : ""}${plural(layersIn(place), "layer")}`;
}

// "12 × EncoderBlock" of repeated blocks, else the class.
function kindText(place) {
  return place.run ? `${place.run} × ${typeOf(place.children[0]) || "block"}` : place.type;
}

function titleOf(place) {
  const type = kindText(place);
  return `${cut(shortName(place), 30)}${type ? `  ${type}` : ""}${isGone(place) ? ", left out" : ""}`;
}

function layersIn(place) {
  return place.leaves.filter((layer) => layer.kind === "layer" || layer.kind === "parameter").length;
}

function widthText(layer) {
  if (!layer.width) return "";
  const { before, after, parts } = layer.width;
  const gone = data.planned && after === 0;
  return `${gone ? `${before}, left out` : data.planned && after !== before ? `${before} → ${after}` : before}${parts ? ` (${parts})` : ""}`;
}
