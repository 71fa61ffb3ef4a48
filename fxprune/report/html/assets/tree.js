// The modules as a tree of blocks that fold. A block holds blocks and layers, in the order in which they ran.

const MOST = 40; // children of a block; visible nodes at the beginning
const SYMBOLS = { add: "+", sub: "−", mul: "×", div: "÷", bmm: "@", mm: "@" };
const CONTAINERS = new Set(["Module", "Sequential", "ModuleList", "ModuleDict"]);
const root = makeTree();
const places = new Map(); // id -> place in the tree, for blocks and layers
const opened = new Set([""]);
index(root, null);
openFirst();

function makeTree() {
  const drawn = data.layers.filter((layer) => layer.drawn);
  const paths = new Set();
  for (const layer of drawn) {
    if (layer.kind !== "layer" && layer.kind !== "parameter") continue;
    const parts = layer.id.split(".");
    for (let n = 1; n < parts.length; n++) paths.add(parts.slice(0, n).join("."));
  }
  const top = block("", "");
  const blocks = new Map([["", top]]);
  for (const layer of drawn) {
    const home = homeOf(layer, paths);
    blockAt(home, blocks).children.push({ id: layer.id, path: layer.id, layer, children: [] });
  }
  simplify(top);
  group(top);
  return top;
}

function block(id, path) {
  return { id, path, type: data.modules[path] ?? "", children: [], layer: null, run: 0 };
}

// The path of the block that a node stands in.
function homeOf(layer, paths) {
  if (layer.kind === "input" || layer.kind === "output") return "";
  let path = layer.kind === "join" ? layer.id.split(":")[0] : layer.id;
  while (path && !paths.has(path)) path = path.includes(".") ? path.replace(/\.[^.]*$/, "") : "";
  return path;
}

function blockAt(path, blocks) {
  if (!blocks.has(path)) {
    const made = block(`block:${path}`, path);
    blocks.set(path, made);
    blockAt(path.includes(".") ? path.replace(/\.[^.]*$/, "") : "", blocks).children.push(made);
  }
  return blocks.get(path);
}

// A block with one layer is that layer; a block with one block has the children of that one.
function simplify(place) {
  place.children = place.children.map((child) => {
    simplify(child);
    return child.children.length === 1 && child.children[0].layer ? child.children[0] : child;
  });
  const [only] = place.children;
  if (place.children.length === 1 && !only.layer && place.id) {
    place.children = only.children;
    if (CONTAINERS.has(place.type)) place.type = only.type;
  }
}

// Neighbours that differ in their last number become a run; too many children become parts.
function group(place) {
  place.children.forEach(group);
  const runs = [];
  for (const child of place.children) {
    const last = runs[runs.length - 1];
    if (last && sameKind(last[0], child)) last.push(child);
    else runs.push([child]);
  }
  if (runs.length === 1 && runs[0].length > 1 && (!place.type || CONTAINERS.has(place.type))) place.run = runs[0].length;
  else place.children = runs.flatMap((run) => (run.length > 3 ? [makeRun(run)] : run));
  while (place.children.length > MOST + 10) {
    const end = place.children.filter(isEnd);
    const inside = place.children.filter((child) => !isEnd(child));
    if (inside.length <= MOST) break;
    place.children = [...end, ...parts(inside)];
  }
}

function isEnd(place) {
  return place.layer !== null && (place.layer.kind === "input" || place.layer.kind === "output");
}

function sameKind(one, other) {
  const [a, b] = [stem(one.path), stem(other.path)];
  return a !== null && a === b && typeOf(one) && !CONTAINERS.has(typeOf(one)) && typeOf(one) === typeOf(other) && (one.children.length > 0) === (other.children.length > 0)
    && (one.children.length > 0 || JSON.stringify(one.layer.tensors.map((t) => t.before)) === JSON.stringify(other.layer.tensors.map((t) => t.before)));
}

function stem(path) {
  const found = /^(.*?)(\d+)$/.exec(path);
  return found ? found[1] : null;
}

function typeOf(place) {
  return place.layer ? place.layer.type : place.type;
}

// True for a layer, or a block of layers, of which the small model has nothing.
function isGone(place) {
  const inside = place.leaves.filter((layer) => layer.tensors.length);
  return data.planned && inside.length > 0 && inside.every((layer) => layer.tensors.every((tensor) => tensor.after === null));
}

function makeRun(run) {
  const [first, last] = [run[0], run[run.length - 1]];
  const made = block(`run:${first.path}`, `${first.path}–${/\d+$/.exec(last.path)[0]}`);
  return { ...made, type: typeOf(first), children: run, run: run.length };
}

function parts(children) {
  const size = Math.min(32, Math.ceil(Math.sqrt(children.length)));
  const found = [];
  for (let at = 0; at < children.length; at += size) {
    const inside = children.slice(at, at + size);
    const [first, last] = [inside[0], inside[inside.length - 1]];
    found.push(inside.length === 1 ? first : { ...block(`part:${first.id}`, `${first.path} … ${last.path}`), children: inside });
  }
  return found;
}

function index(place, parent) {
  place.parent = parent;
  place.depth = parent ? parent.depth + 1 : 0;
  places.set(place.id, place);
  place.children.forEach((child) => index(child, place));
  place.leaves = place.layer ? [place.layer] : place.children.flatMap((child) => child.leaves);
}

// Open what fits: first the blocks that are there once, then short runs.
function openFirst() {
  const counts = new Map();
  for (const place of places.values()) if (!place.layer) counts.set(place.type, (counts.get(place.type) ?? 0) + 1);
  const repeated = (place) => place.run > 0 || place.id.startsWith("part:") || isNumbered(place)
    || (place.type !== "" && !CONTAINERS.has(place.type) && counts.get(place.type) > 1);
  openWhere((place) => !repeated(place));
  openWhere((place) => !repeated(place) || (place.run > 0 && place.run <= 4));
}

function isNumbered(place) {
  return /(^|\.)\d+$/.test(place.path) && !place.layer;
}

function openWhere(allowed) {
  const queue = [root];
  let count = visibleCount();
  while (queue.length) {
    const place = queue.shift();
    if (!opened.has(place.id)) {
      if (!allowed(place) || count + place.children.length - 1 > MOST) continue;
      opened.add(place.id);
      count += place.children.length - 1;
    }
    queue.push(...place.children.filter((child) => !child.layer));
  }
}

function visibleCount(place = root) {
  return isOpen(place) ? place.children.reduce((sum, child) => sum + visibleCount(child), 0) : 1;
}

function isOpen(place) {
  return !place.layer && opened.has(place.id);
}

// The place that stands for a layer now: itself, or the outermost folded block around it.
function shownFor(place) {
  let shown = place;
  for (let at = place.parent; at; at = at.parent) if (!isOpen(at)) shown = at;
  return shown;
}

function fold(place) {
  opened.delete(place.id);
}

function unfold(place) {
  for (let at = place; at; at = at.parent) if (!at.layer) opened.add(at.id);
}

function foldAll() {
  opened.clear();
  opened.add("");
}

function unfoldAll() {
  for (const place of places.values()) if (!place.layer) opened.add(place.id);
}

// The name of a place without that of the block around it.
function shortName(place) {
  let path = place.path;
  const kind = place.layer ? place.layer.kind : "";
  if (kind === "input") return path.slice("input:".length);
  if (kind === "join") return SYMBOLS[place.layer.type] ?? place.layer.type;
  for (let at = place.parent; at && at.id; at = at.parent) {
    if (!/^(run|part):/.test(at.id)) {
      if (path === at.path) path = path.split(".").pop();
      if (path.startsWith(`${at.path}.`)) path = path.slice(at.path.length + 1).replace(` … ${at.path}.`, " … ");
      break;
    }
  }
  return path;
}


