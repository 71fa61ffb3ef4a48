// The panel on the left: groups, locked channels, layers, each as a list that can be sorted and walked by keys.

const LISTS = {
  group: { title: "Groups", items: data.groups, row: groupRow, sorts: ["model", "params", "MACs", "channels", "name"],
    empty: data.planned && !data.analysed ? "Nothing was removed." : "No channels can be removed: all are locked, for the reasons under Locked." },
  lock: { title: "Locked", items: data.locked, row: lockRow, sorts: ["params", "MACs", "name"],
    empty: data.analysed ? "Nothing holds channels back." : "A record does not say what is locked; report(\"html\", analysis=...) does." },
  layer: { title: "Layers", items: inOrder(data.layers.filter((l) => l.kind === "layer" || l.kind === "parameter")), row: layerRow,
    sorts: ["model", "params", "MACs", "width", "name"], empty: "The model has no parameters." },
};
const sortedBy = { group: "model", lock: "params", layer: "model" };
let tab = "group";
const widest = Math.max(1, ...LISTS.layer.items.map((l) => (l.width ? l.width.before : 0)));

const VALUES = {
  group: {
    params: (g) => g.params_all_but_one ?? 0, MACs: (g) => g.macs_all_but_one ?? 0,
    channels: (g) => g.channels, name: (g) => g.name,
  },
  lock: { params: (l) => l.params, MACs: (l) => l.macs ?? 0, name: (l) => l.module },
  layer: { params: (l) => l.params, MACs: (l) => l.macs ?? 0, width: (l) => (l.width ? l.width.before : 0), name: (l) => l.id },
};

// Layers as the model has them; the data have them as they ran.
function inOrder(found) {
  return [...found].sort((a, b) => a.order - b.order);
}

// Pairs of an item and its number, in the chosen order.
function sorted(kind, by) {
  const items = LISTS[kind].items.map((item, number) => [item, number]);
  const value = VALUES[kind][by];
  if (!value) return items;
  if (by === "name") return items.sort(([a], [b]) => value(a).localeCompare(value(b), "en", { numeric: true }));
  return items.sort(([a], [b]) => value(b) - value(a));
}

function showTab(kind) {
  tab = kind;
  const { title, sorts, items, empty, row } = LISTS[kind];
  document.getElementById("tabs").replaceChildren(...Object.entries(LISTS).map(([name, found]) =>
    button([found.title, make("span", { class: "count" }, String(found.items.length))], () => showTab(name),
      { role: "tab", "aria-selected": String(name === kind), id: `tab-${name}`, "aria-controls": "list" })));
  const select = make("select", { id: "sort", on: { change: (event) => { sortedBy[kind] = event.target.value; showTab(kind); } } },
    sorts.map((by) => make("option", { value: by, selected: by === sortedBy[kind] }, by === "model" ? "order of the model" : by)));
  document.getElementById("sorting").replaceChildren(...(items.length > 1 ? [make("label", { for: "sort" }, "Sort by "), select] : []));
  const list = document.getElementById("list");
  list.setAttribute("aria-label", title);
  list.replaceChildren(...(items.length ? sorted(kind, sortedBy[kind]).map(([item, number]) => row(item, number)) : [make("p", { class: "empty" }, empty)]));
  list.scrollTop = 0;
  markChosen();
}

function option(target, ...content) {
  return make("div", { class: "item", role: "option", tabindex: "-1", "data-hash": hashOf(target), on: { click: () => choose(target) } }, ...content);
}

function groupRow(group, number) {
  const known = group.params_all_but_one !== null;
  return option({ kind: "group", id: number },
    make("div", { class: "line" }, make("b", {}, breakable(group.name)), make("span", { class: "figure" }, channelsOf(group))),
    make("div", { class: "line quiet" }, make("span", {}, breakable([group.kind, dimensionOf(number)].filter(Boolean).join(", "))),
      make("span", {}, known ? `all but one: ${figure(group.params_all_but_one)} params, ${figure(group.macs_all_but_one)} MACs` : plural(group.members.length, "tensor"))),
    known && data.planned ? widthBar(group.channels, group.kept, group.channels) : null);
}

// How many channels a group has, keeps, or lost.
function channelsOf(group) {
  if (group.kept === null) return String(group.channels);
  return group.exact === null ? `−${group.channels}` : change({ before: group.channels, after: group.kept });
}

function lockRow(lock, number) {
  return option({ kind: "lock", id: number },
    make("div", { class: "line" }, make("b", {}, breakable(lock.module || "(model)")), make("span", { class: "figure" }, figure(lock.params))),
    make("div", { class: "line quiet" }, make("span", {}, timesText(lock)), make("span", {}, sourceText(lock))),
    make("div", { class: "quiet" }, lock.why));
}

// The operation of a lock, and how many of them it stands for.
function timesText(lock) {
  return lock.count > 1 ? `${lock.operation} × ${lock.count}` : lock.operation;
}

function sourceText(lock) {
  return lock.file === null ? `%${lock.node}` : `${lock.file.split(/[\\/]/).slice(-1)[0]}:${lock.line}`;
}

function layerRow(layer) {
  const params = data.planned && layer.after ? change({ before: layer.params, after: layer.after.params }) : figure(layer.params);
  return option({ kind: "layer", id: layer.id },
    make("div", { class: "line" }, make("b", {}, breakable(layer.id)), make("span", { class: "figure" }, widthText(layer))),
    make("div", { class: "line quiet" }, make("span", {}, layer.type), make("span", {}, `${params} params`)),
    layer.width ? widthBar(layer.width.before, layer.width.after, widest) : null);
}

function markChosen() {
  const hashes = chosen && chosen.kind === "groups" ? groupsIn(chosen).map((id) => hashOf({ kind: "group", id })) : chosen ? [hashOf(chosen)] : [];
  const marked = [];
  for (const item of document.querySelectorAll("#list .item")) {
    const same = hashes.includes(item.dataset.hash);
    item.setAttribute("aria-selected", String(same));
    if (same) marked.push(item);
  }
  marked.reverse().forEach(scrollTo); // the first one last
}

// Scrolls the list until an item is seen in it; the page stays where it is.
function scrollTo(item) {
  const list = document.getElementById("list");
  const [whole, inside] = [list.getBoundingClientRect(), item.getBoundingClientRect()];
  if (inside.top < whole.top) list.scrollTop += inside.top - whole.top;
  else if (inside.bottom > whole.bottom) list.scrollTop += Math.min(inside.bottom - whole.bottom, inside.top - whole.top);
}

// Arrow keys walk, Enter chooses.
function walkList(event) {
  const items = [...document.querySelectorAll("#list .item")];
  const at = items.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: Math.max(at - 1, 0), Home: 0, End: items.length - 1, PageDown: at + 8, PageUp: Math.max(at - 8, 0) }[event.key];
  if (to !== undefined && items.length) {
    event.preventDefault();
    items[Math.min(to, items.length - 1)].focus();
  } else if ((event.key === "Enter" || event.key === " ") && at >= 0) {
    event.preventDefault();
    items[at].click();
  }
}
