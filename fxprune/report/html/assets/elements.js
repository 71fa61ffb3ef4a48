// The data of the page, look-ups into it, texts of figures, and one function that makes elements.

const data = JSON.parse(document.getElementById("data").textContent);
const layers = new Map(data.layers.map((layer) => [layer.id, layer]));
const ownerOf = tensorOwners();
const groupsOf = membersByLayer(data.groups.map((group) => group.members.map((m) => [m.parameter, m])));
const locksOf = membersByLayer(data.locked.map((lock) => lock.holds.map((h) => [h.parameter, h])));
const numbersOf = groupsBy((group) => group.name);
const numbersOfKind = groupsBy(withKind);

// The states of layers, as in states.py.
const STATES = { free: "channels of its outputs can go", inputs: "outputs all locked: only channels that it reads can go", fixed: "keeps all of its channels" };

function tensorOwners() {
  const owners = new Map();
  for (const layer of data.layers) {
    for (const tensor of layer.tensors) {
      if (layer.drawn || !owners.has(tensor.name)) owners.set(tensor.name, layer.id);
    }
  }
  return owners;
}

// Layer -> numbers of the groups (or locks) that have one of its tensors.
function membersByLayer(lists) {
  const found = new Map();
  lists.forEach((list, number) => {
    for (const [parameter] of list) {
      const layer = layerOf(parameter);
      if (!found.has(layer)) found.set(layer, new Set());
      found.get(layer).add(number);
    }
  });
  return found;
}

// The numbers of the groups of this name:kind, or of this name.
function groupsNamed(text) {
  return numbersOfKind.get(text) ?? numbersOf.get(text) ?? [];
}

function groupsBy(textOf) {
  const found = new Map();
  data.groups.forEach((group, number) => found.set(textOf(group), [...(found.get(textOf(group)) ?? []), number]));
  return found;
}

// The numbers of the groups that are chosen.
function groupsIn(target) {
  if (target && target.kind === "groups") return groupsNamed(target.id);
  return target && target.kind === "group" ? [target.id] : [];
}

function withKind(group) {
  return `${group.name}:${group.kind}`;
}

// What tells a group from the others of its name and kind: its dimension; where that is the same, a layer that the others
// do not have, or else its first place there, or else a layer that it alone does not have. "" where there are no others.
function dimensionOf(number) {
  const group = data.groups[number];
  const others = groupsNamed(withKind(group)).filter((other) => other !== number);
  const alike = others.filter((other) => keyDimension(other) === keyDimension(number));
  if (!others.length || !alike.length) return others.length ? keyDimension(number) : "";
  const ownersIn = (one) => new Set(data.groups[one].members.map((m) => layerOf(m.parameter)));
  const [here, elsewhere] = [ownersIn(number), alike.map(ownersIn)];
  const own = [...here].find((layer) => !elsewhere.some((there) => there.has(layer)));
  const lacked = [...elsewhere[0]].find((layer) => !here.has(layer) && elsewhere.every((there) => there.has(layer)));
  const { first } = group.members[0];
  const place = first !== null ? `from slot ${first}` : lacked !== undefined ? `without ${lacked}` : `#${number + 1}`;
  return `${keyDimension(number)} ${own !== undefined ? `with ${own}` : place}`;
}

// The dimension that the key of a group names, or its first one.
function keyDimension(number) {
  const { key, members } = data.groups[number];
  const [, found] = /@(.*?)(#\d+)?$/.exec(key) ?? [];
  return found ?? `${members[0].parameter}[${members[0].dim}]`;
}

// A text for a link to a group, which no other group has.
function groupText(number) {
  const { name, kind } = data.groups[number];
  return `${name} (${[kind, dimensionOf(number)].filter(Boolean).join(", ")})`;
}

function layerOf(parameter) {
  return ownerOf.get(parameter) ?? (layers.has(parameter) ? parameter : parameter.replace(/\.[^.]*$/, ""));
}

// An element. Texts become text, never HTML. on: {event: function}; other options are attributes.
function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "on") for (const [event, run] of Object.entries(value)) element.addEventListener(event, run);
    else if (name === "style") Object.assign(element.style, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

function button(text, run, options = {}) {
  return make("button", { type: "button", on: { click: run }, ...options }, text);
}

// A count, exact below 100 000, else with three digits and a prefix.
function figure(number) {
  if (number === null || number === undefined) return "unknown";
  if (number < 100000) return String(Math.round(number * 1000) / 1000);
  const rounded = Number(number.toPrecision(3));
  const [size, prefix] = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([s]) => rounded >= s);
  return `${Number((rounded / size).toPrecision(3))} ${prefix}`;
}

function percent(after, before) {
  if (!before || after === null || after === undefined) return "";
  const share = (100 * after) / before;
  if (share < 100 && share >= 99.5) return share >= 99.95 ? "> 99.9 %" : `${share.toFixed(1)} %`; // 100 % is all of it
  return `${share >= 10 || share === 0 ? Math.round(share) : share.toPrecision(2)} %`;
}

function milliseconds(seconds) {
  return seconds === null ? "unknown" : `${Number((1000 * seconds).toPrecision(3))} ms`;
}

function change(pair, text = figure) {
  const { before, after } = pair;
  return after === null || after === undefined || after === before ? text(before) : `${text(before)} → ${text(after)}`;
}

function shapeText(shape) {
  return shape === null ? "left out" : shape.join(" × ") || "1";
}

function shapes(tensor) {
  const same = !data.planned || JSON.stringify(tensor.before) === JSON.stringify(tensor.after);
  return same ? shapeText(tensor.before) : `${shapeText(tensor.before)} → ${shapeText(tensor.after)}`;
}

function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

// The text cut in the middle, so that the first part and the number of a layer stay.
function cut(text, length) {
  if (text.length <= length) return text;
  const end = Math.ceil((length - 1) * 0.6);
  return `${text.slice(0, length - 1 - end)}…${text.slice(-end)}`;
}

// A dotted name that may be broken after its dots.
function breakable(name) {
  return name.split(/(?<=\.)/).flatMap((part, at) => (at ? [make("wbr"), part] : [part]));
}

// A bar of two widths: the whole is before, the filled part is after.
function widthBar(before, after, largest) {
  const whole = Math.max(1, (100 * before) / Math.max(largest, 1));
  const kept = after === null || after === undefined ? 100 : (100 * after) / Math.max(before, 1);
  const filled = make("span", { class: "kept", style: { width: `${kept}%` } });
  return make("span", { class: "bar", "aria-hidden": "true" }, make("span", { class: "whole", style: { width: `${whole}%` } }, filled));
}

// A table. columns: [heading, align]. Cells are texts or elements.
function table(columns, rows, caption = "") {
  const cell = (tag) => (content, at) => make(tag, { class: columns[at][1] || "", scope: tag === "th" ? "col" : null }, content);
  return make("div", { class: "scrolls" }, make("table", {},
    caption ? make("caption", {}, caption) : null,
    make("thead", {}, make("tr", {}, columns.map(([heading]) => heading).map(cell("th")))),
    make("tbody", {}, rows.map((row) => make("tr", {}, row.map(cell("td"))))),
  ));
}
