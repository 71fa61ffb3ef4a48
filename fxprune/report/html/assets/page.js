// What is chosen, deep links, the theme, keys, printing; and the start.

const THEMES = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" };
const KEYS = [
  ["/", "search"], ["↑ ↓ Enter", "walk a list and choose"], ["g l y", "groups, locked, layers"], ["[ ]", "the group before, the next group"],
  ["o", "open or fold the chosen block, or the block around the chosen layer"], ["e c", "open all, fold all"], ["f + −", "fit, nearer, further"],
  ["Shift + arrows", "move the graph"], ["t", "light, dark or as the system is"], ["Esc", "choose nothing"], ["?", "these keys"],
];
let chosen = null;

function hashOf({ kind, id }) {
  const value = kind === "group" ? data.groups[id].key : String(id);
  return `${kind === "groups" ? "group" : kind}=${encodeURIComponent(value)}`;
}

// What a hash names, null if there is no such thing. A key names one group; a name, or name:kind, may be that of several.
function targetOf(hash) {
  const [, kind, text] = /^#?(group|lock|layer|block)=(.*)$/.exec(hash) ?? [];
  if (!kind) return null;
  let value = text;
  try {
    value = decodeURIComponent(text);
  } catch {
    return null;
  }
  if (kind === "group") {
    const id = data.groups.findIndex((group) => group.key === value);
    const [first, ...more] = id < 0 ? groupsNamed(value) : [id];
    if (first === undefined) return null;
    return more.length ? { kind: "groups", id: value } : { kind, id: first };
  }
  if (kind === "lock") return data.locked[value] ? { kind, id: Number(value) } : null;
  if (kind === "layer") return layers.has(value) ? { kind, id: value } : null;
  return places.has(value) && !places.get(value).layer ? { kind, id: value } : null;
}

// What to say of an address that names nothing on this page; null where it names something, or is no such address.
function missing(hash) {
  const [, kind, text] = /^#?(group|lock|layer|block)=(.*)$/.exec(hash) ?? [];
  if (!kind || targetOf(hash)) return null;
  let name = text;
  try {
    name = decodeURIComponent(text);
  } catch { /* the text as it is */ }
  return `The address asks for the ${kind} "${name}": there is no such ${kind} here.`;
}

// Chooses a group, a lock, a layer, a block or nothing. reveal: also opens the blocks around a layer. move: brings it into view.
function choose(target, { reveal = false, move = true } = {}) {
  chosen = target;
  const place = target && (target.kind === "layer" || target.kind === "block") ? places.get(target.id) : null;
  if (place && reveal && shownFor(place) !== place) {
    unfold(place.parent);
    draw();
  }
  lightUp(rolesOf(target));
  if (target && move) bringIntoView();
  showDetails();
  const list = target && (target.kind === "groups" ? "group" : target.kind);
  if (list && list !== "block" && tab !== list) showTab(list);
  else markChosen();
  const hash = target ? `#${hashOf(target)}` : "";
  if (location.hash !== hash) history.replaceState(null, "", hash || location.pathname + location.search);
  document.getElementById("live").textContent = target ? spoken(target) : "";
  showLegend();
}

// Chooses what an address names. The overview begins with what the page does not have.
function follow(hash) {
  const text = missing(hash);
  choose(targetOf(hash), { reveal: true });
  if (!text) return;
  document.getElementById("right").prepend(make("p", { class: "note", id: "missing" }, text));
  document.getElementById("live").textContent = text;
}

function rolesOf(target) {
  const found = new Map();
  const add = (parameter, role) => {
    const layer = layerOf(parameter);
    found.set(layer, (found.get(layer) ?? new Set()).add(role));
  };
  if (!target) return found;
  for (const number of groupsIn(target)) data.groups[number].members.forEach((m) => add(m.parameter, m.role || "producer"));
  if (target.kind === "lock") data.locked[target.id].holds.forEach((h) => add(h.parameter, "held"));
  if (target.kind === "layer") found.set(target.id, new Set(["chosen"]));
  if (target.kind === "block") places.get(target.id).leaves.forEach((layer) => found.set(layer.id, new Set([isOpen(places.get(target.id)) ? "lit" : "chosen"])));
  return found;
}

function spoken(target) {
  if (target.kind === "group") return `Group ${groupText(target.id)}: ${plural(rolesOf(target).size, "layer")}`;
  if (target.kind === "groups") return `${groupsIn(target).length} groups are named ${target.id}`;
  if (target.kind === "lock") return `Locked by ${data.locked[target.id].operation}`;
  return String(target.id);
}

// -- the frame ------------------------------------------------------------------------------------------------

function showTitle() {
  const { params, macs } = data.totals;
  const count = data.groups.reduce((sum, group) => sum + group.channels, 0);
  const few = data.analysed ? `${plural(count, "channel")} in ${plural(data.groups.length, "group")}` : `${plural(count, "channel")} removed`;
  document.getElementById("title").replaceChildren(make("h1", {}, data.title),
    make("p", { class: "quiet" }, [`${change(params)} parameters`, `${change(macs)} MACs`, plural(LISTS.layer.items.length, "layer"), few].join("   ·   ")));
}

function showBar() {
  document.getElementById("bar").replaceChildren(
    button("Fit", fit, { title: "f" }), button("+", () => zoom(1.25), { title: "Nearer", "aria-label": "Nearer" }),
    button("−", () => zoom(0.8), { title: "Further", "aria-label": "Further" }),
    button("Open all", openEverything, { title: "e", id: "open-all" }), button("Fold all", foldEverything, { title: "c", id: "fold-all" }));
}

function openEverything() {
  unfoldAll();
  draw();
  fitOrBegin();
}

function foldEverything() {
  foldAll();
  draw();
  fitOrBegin();
}

function zoom(factor) {
  cy.zoom({ level: cy.zoom() * factor, renderedPosition: { x: cy.width() / 2, y: cy.height() / 2 } });
}

const MARKS = ["producer", "raw", "norm", "consumer"]; // the border of a node is that of its first role here, as in graphStyle

// The marks in the graph that are in use now.
function showLegend() {
  const sample = (kind, text) => make("span", {}, make("span", { class: `swatch ${kind}` }), text);
  const parts = [];
  if (groupsIn(chosen).length && data.analysed) {
    const marks = cy.nodes(".lit").map((node) => MARKS.find((role) => node.hasClass(role)));
    for (const role of ["producer", "norm", "consumer", "raw"]) if (marks.includes(role)) parts.push(sample(role, `${ROLES[role]} the channels`));
  } else if (chosen && chosen.kind === "lock") parts.push(sample("held", "holds locked channels"));
  else {
    for (const state of data.analysed ? Object.keys(STATES) : []) if (cy.nodes(`.${state}`).nonempty()) parts.push(sample(state, STATES[state]));
    const parameters = cy.nodes(".parameter");
    if (parameters.nonempty()) parts.push(sample(`parameter ${parameters.is(".free") ? "free" : "fixed"}`, "a parameter that no layer owns"));
    if (cy.nodes(".folded").not(".run, .gone").nonempty()) parts.push(sample("folded", "folded block: double click opens it"));
    if (cy.nodes(".run").nonempty()) parts.push(sample("folded run", "folded equal blocks: double click opens them"));
  }
  if (data.planned && data.analysed && chosen && (chosen.kind === "layer" || chosen.kind === "block")) parts.push(make("span", {}, "sizes at edges are those before"));
  if (cy.nodes(".gone").nonempty()) parts.push(sample("gone", "left out: nothing of it is in the small model"));
  if (data.planned) {
    const blocks = cy.nodes(".folded").nonempty() ? ", of a folded block of its parameters" : "";
    parts.push(sample("share", `filled: the share of a layer's outputs that stays${blocks}`));
  }
  if (fitted && fitted.begins && untouched()) parts.unshift(make("span", { id: "more" }, "the graph goes on: drag moves it, Fit shows the whole"));
  document.getElementById("legend").replaceChildren(...parts);
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  document.getElementById("theme").textContent = THEMES[name];
  cy.style(graphStyle());
}

function nextTheme() {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
}

function showHelp() {
  const help = document.getElementById("help");
  help.replaceChildren(make("h2", {}, "Keys"), facts(KEYS), button("Close", () => help.close(), { class: "main" }));
  help.showModal();
}

// -- printing -------------------------------------------------------------------------------------------------

// The graph as a picture and all lists as tables; the screen's panels are hidden on paper.
function fillPrint() {
  const picture = cy.nodes().nonempty() ? make("img", { src: onPaper(), alt: "Graph of the layers" }) : null;
  const groups = data.groups.map((g) => [g.name, g.kind, change({ before: g.channels, after: g.kept }), figure(g.params_per_channel), figure(g.macs_per_channel), g.exact === null ? "" : g.exact ? "yes" : `no: ${g.reasons.join("; ")}`]);
  const locks = data.locked.map((l) => [l.module || "(model)", timesText(l), sourceText(l), l.why, figure(l.params), figure(l.macs)]);
  const rows = LISTS.layer.items.map((l) => [l.id, l.type, l.tensors.length ? shapes(l.tensors[0]) : "", change({ before: l.params, after: data.planned && l.after ? l.after.params : null }), change({ before: l.macs, after: data.planned && l.after ? l.after.macs : null })]);
  const section = (title, columns, content) => (content.length ? [make("h2", {}, title), table(columns, content)] : []);
  document.getElementById("print").replaceChildren(
    ...overview().filter((part) => part && !part.matches(".about, .hint")), ...(picture ? [make("h2", {}, "Graph"), picture] : []),
    ...section("Groups", [["group"], ["kind"], ["channels", "right"], ["params per channel", "right"], ["MACs per channel", "right"], ["exact"]], groups),
    ...section("Locked", [["module"], ["operation"], ["source"], ["why"], ["params", "right"], ["MACs", "right"]], locks),
    ...section("Layers", [["layer"], ["type"], ["shape"], ["params", "right"], ["MACs", "right"]], rows));
}

// The graph in the colours of paper, whatever the theme, and nothing of it faint.
function onPaper() {
  const before = document.documentElement.dataset.theme;
  const faint = cy.elements(".dim").removeClass("dim");
  setTheme("light");
  const drawn = cy.png({ full: true, scale: 2, maxWidth: 2400, maxHeight: 3200, bg: "#ffffff" });
  setTheme(before);
  faint.addClass("dim");
  return drawn;
}

function printPage() {
  fillPrint();
  const pictures = [...document.querySelectorAll("#print img")].map((image) => image.decode());
  Promise.all(pictures).then(() => window.print());
}

// -- keys -----------------------------------------------------------------------------------------------------

function step(by) {
  if (!data.groups.length) return;
  const order = sorted("group", sortedBy.group).map(([, number]) => number);
  const at = chosen && chosen.kind === "group" ? order.indexOf(chosen.id) : by > 0 ? -1 : 0;
  choose({ kind: "group", id: order[(at + by + order.length) % order.length] });
}

function toggleChosen() {
  if (!chosen || (chosen.kind !== "layer" && chosen.kind !== "block")) return;
  const place = places.get(chosen.id);
  const block = place && place.layer ? place.parent : place;
  if (!block || block === root) return;
  toggle(block);
  choose({ kind: "block", id: block.id });
}

const ACTIONS = {
  "/": () => document.getElementById("search").focus(), "?": showHelp, t: nextTheme, f: fit, "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8),
  g: () => showTab("group"), l: () => showTab("lock"), y: () => showTab("layer"), "[": () => step(-1), "]": () => step(1),
  o: toggleChosen, e: openEverything, c: foldEverything, Escape: () => choose(null),
};
const MOVES = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, dialog")) return;
  if (event.shiftKey && MOVES[event.key]) cy.panBy({ x: MOVES[event.key][0], y: MOVES[event.key][1] });
  else if (ACTIONS[event.key]) ACTIONS[event.key]();
  else return;
  event.preventDefault();
}

// -- the start ------------------------------------------------------------------------------------------------

function start() {
  setTheme("auto");
  showTitle();
  showBar();
  showTab(data.groups.length ? "group" : "layer");
  foldUntilReadable();
  draw();
  fitOrBegin();
  follow(location.hash);
  document.addEventListener("keydown", keys);
  document.getElementById("list").addEventListener("keydown", walkList);
  document.getElementById("search").addEventListener("input", showFound);
  document.getElementById("search").addEventListener("keydown", searchKeys);
  document.getElementById("search").addEventListener("blur", () => { document.getElementById("found").hidden = true; });
  document.getElementById("theme").addEventListener("click", nextTheme);
  document.getElementById("helping").addEventListener("click", showHelp);
  document.getElementById("printing").addEventListener("click", printPage);
  window.addEventListener("beforeprint", fillPrint);
  window.addEventListener("hashchange", () => follow(location.hash));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => cy.style(graphStyle()));
  new ResizeObserver(refit).observe(cy.container());
  window.fxpruneReport = { cy, data, search, visibleCount };
}

start();
