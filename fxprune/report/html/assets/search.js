// The search: layers, blocks, groups, locked channels by a part of their names, types, operations, source lines.

const FOUND_MOST = 40;
const entries = [
  ...data.groups.map((group, id) => entry("group", { kind: "group", id }, group.name, `${group.kind} ${group.key}`)),
  ...data.locked.map((lock, id) => entry("locked", { kind: "lock", id }, lock.module || "(model)", `${lock.operation} ${sourceText(lock)} ${lock.why}`)),
  ...data.layers.map((layer) => entry(layer.kind, { kind: "layer", id: layer.id }, layer.id, `${layer.type} ${layer.tensors.map((t) => t.name).join(" ")}`)),
  ...[...places.values()].filter((place) => !place.layer && place.id).map((place) => entry("block", { kind: "block", id: place.id }, place.path, place.type)),
];

function entry(kind, target, name, more) {
  return { kind, target, name, words: `${name} ${more}`.toLowerCase(), more };
}

// Entries that hold every word; names that begin with the first word come first.
function search(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const found = entries.filter((one) => words.every((word) => one.words.includes(word)));
  const rank = (one) => (one.name.toLowerCase() === words[0] ? 0 : one.name.toLowerCase().startsWith(words[0]) ? 1 : one.name.toLowerCase().includes(words[0]) ? 2 : 3);
  return found.sort((a, b) => rank(a) - rank(b));
}

function showFound() {
  const input = document.getElementById("search");
  const list = document.getElementById("found");
  const found = search(input.value);
  const rows = found.slice(0, FOUND_MOST).map((one, at) => make("li", { role: "option", id: `found-${at}`, on: { mousedown: (event) => { event.preventDefault(); take(one); } } },
    make("span", { class: "kind" }, one.kind), make("span", { class: "name", title: one.name }, cut(one.name, 44)), make("span", { class: "quiet" }, cut(one.more, 30))));
  if (found.length > FOUND_MOST) rows.push(make("li", { class: "quiet more" }, `${found.length - FOUND_MOST} more`));
  if (input.value.trim() && !found.length) rows.push(make("li", { class: "quiet more" }, "Nothing has this in its name, type or operation."));
  list.replaceChildren(...rows);
  list.hidden = !rows.length;
  input.setAttribute("aria-expanded", String(!list.hidden));
  list.entries = found;
  markFound(0);
}

function markFound(at) {
  const rows = [...document.querySelectorAll("#found [role=option]")];
  rows.forEach((row, number) => row.setAttribute("aria-selected", String(number === at)));
  if (rows[at]) rows[at].scrollIntoView({ block: "nearest" });
  document.getElementById("search").setAttribute("aria-activedescendant", rows[at] ? rows[at].id : "");
}

function take(one) {
  closeSearch();
  choose(one.target, { reveal: true });
}

function closeSearch() {
  const input = document.getElementById("search");
  input.value = "";
  showFound();
  input.blur();
}

function searchKeys(event) {
  const rows = [...document.querySelectorAll("#found [role=option]")];
  const at = rows.findIndex((row) => row.getAttribute("aria-selected") === "true");
  if (event.key === "ArrowDown") markFound(Math.min(at + 1, rows.length - 1));
  else if (event.key === "ArrowUp") markFound(Math.max(at - 1, 0));
  else if (event.key === "Enter" && at >= 0) take(document.getElementById("found").entries[at]);
  else if (event.key === "Escape") closeSearch();
  else return;
  event.preventDefault();
  event.stopPropagation();
}
