// The panel on the right: the whole model, or what is chosen.

const TOTALS = {
  params: "Parameters",
  bytes: "Bytes",
  macs: "MACs",
  memory: "Peak memory, bytes",
  cache: "Cache, bytes",
  active_params: "Parameters for one token",
  latency: "Latency",
  decode_latency: "Latency of a decoding step",
};

function showDetails() {
  const right = document.getElementById("right");
  const show = { group: groupDetails, groups: groupsDetails, lock: lockDetails, layer: layerDetails, block: blockDetails };
  right.replaceChildren(...(chosen ? show[chosen.kind](chosen.id) : overview()).filter((part) => part));
  right.scrollTop = 0;
}

function heading(kind, name, text = "") {
  return make("div", { class: "heading" },
    make("div", { class: "line" }, make("span", { class: "kind" }, kind), button("Close", () => choose(null), { class: "plain", title: "Back to the whole model (Esc)" })),
    make("h2", {}, name), text ? make("p", { class: "quiet" }, text) : null);
}

function facts(pairs) {
  return make("dl", {}, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function link(text, target) {
  return make("a", { href: `#${hashOf(target)}` }, text);
}

function layerLink(id, text = id) {
  return layers.has(id) ? link(breakable(text), { kind: "layer", id }) : text;
}

function notes(title, texts) {
  return texts.length ? make("section", {}, title ? make("h3", {}, title) : null, make("ul", {}, texts.map((text) => make("li", {}, text)))) : null;
}

// -- the whole model ------------------------------------------------------------------------------------------

function overview() {
  return [
    make("div", { class: "heading" }, make("span", { class: "kind" }, data.planned ? "Before and after" : "Model"), make("h2", {}, data.title)),
    totals(),
    data.record ? proof() : null,
    facts([["Path", data.path], ["Locked", data.locked.length ? `${plural(data.locked.length, "operation")} hold${data.locked.length === 1 ? "s" : ""} channels back` : null]]),
    make("p", { class: "quiet hint" }, "Choose a group on the left, or a layer or a block in the graph. Double click opens and folds a block."),
    data.analysed ? null : make("p", { class: "note" }, `${data.edges.length ? "A record knows the channels that went." : "This record does not say what runs before what."} record.report("html", analysis=...) adds ${data.edges.length ? "" : "that, "}all groups and what is locked.`),
    !data.analysed && [...places.values()].some((place) => place.layer && isGone(place) && !data.edges.flat().includes(place.id))
      ? make("p", { class: "note" }, "Layers that were left out whole have no edges: the record does not say what they stood between.") : null,
    notes("Not counted", data.uncounted.map((text) => `MACs are unknown: nobody counts ${text}`)),
    ...curvesOf("pareto").map(paretoChart),
    ...curvesOf("sensitivity").map(sensitivityTable),
    notes("Notes", data.notes),
    data.record ? repairTable(data.record.repair) : null,
    data.record ? sizesTable(data.record.sizes) : null,
    about(),
  ];
}

function totals() {
  return make("div", { class: "totals" }, Object.entries(data.totals).map(([key, pair]) => {
    const text = key.endsWith("latency") ? milliseconds : figure;
    const least = key === "macs" && pair.before === null && data.macs_at_least ? ` (at least ${figure(data.macs_at_least)})` : "";
    const share = pair.after === null ? "" : percent(pair.after, pair.before);
    return make("div", {},
      make("div", { class: "line" }, make("span", {}, TOTALS[key]), make("span", { class: "figure" }, `${change(pair, text)}${least}`, share ? make("span", { class: "quiet" }, ` ${share}`) : null)),
      data.planned && pair.before ? widthBar(pair.before, pair.after, pair.before) : null);
  }));
}

function proof() {
  const { exact, error, norms, why_not: whyNot, training, one_sided: oneSided, repair } = data.record;
  const compared = `Relative error against the reference${repair ? " before the repair" : ""}`;
  return make("section", {}, facts([
    ["Result", exact ? "exact" : "not exact: some statistics are taken over fewer channels"],
    [compared, error === null ? "unknown, it was not compared" : error.toExponential(1)],
    ["Statistics", norms === "preserve" ? `count the original width${exact ? "" : ", but for those in the notes"}` : null],
    ...Object.entries(whyNot).map(([path, why]) => [`Not ${path}`, why]),
    ["In training mode", training.map((name) => name || "the model").join(", ")],
    ["Ran another number of times, not compared", oneSided.join("; ")],
  ]));
}

function repairTable(repair) {
  if (!repair) return null;
  const rows = repair.layers.map((l) => [layerLink(layerOf(l.name), l.name), l.before.toExponential(2), l.after.toExponential(2), l.ridge === null ? "" : String(l.ridge)]);
  return make("section", {}, make("h3", {}, `Repair (${repair.mode})`),
    make("p", {}, `Error of the outputs: ${repair.before.toExponential(2)} → ${repair.after.toExponential(2)}`),
    repair.undone.length ? make("p", {}, `Taken back, since the outputs were worse: ${repair.undone.join(", ")}`) : null,
    rows.length ? table([["layer"], ["before", "right"], ["after", "right"], ["ridge", "right"]], rows) : null,
    notes("Left as they are", Object.entries(repair.left).map(([name, why]) => (name ? `${name}: ${why}` : why))));
}

function sizesTable(sizes) {
  if (!sizes.length) return null;
  return make("details", {}, make("summary", {}, `${plural(sizes.length, "size")} recounted`),
    make("ul", { class: "sizes" }, sizes.map((size) => make("li", {}, size.text))));
}

function about() {
  const licences = document.getElementById("licenses").content.textContent;
  return make("details", { class: "about" }, make("summary", {}, "About this page"), make("pre", {}, licences));
}

// -- what is chosen -------------------------------------------------------------------------------------------

function groupDetails(number) {
  const group = data.groups[number];
  const removed = group.exact === null;
  const rows = group.members.map((m) => [
    make("div", {}, layerLink(layerOf(m.parameter), m.parameter), make("div", { class: "quiet" }, m.role ? `${ROLES[m.role]}, dim ${m.dim}` : `dim ${m.dim}`)),
    memberShape(m), m.slots === null ? "" : String(m.slots)]);
  const layersOf = new Set(group.members.map((m) => layerOf(m.parameter)));
  return [
    heading(removed ? "Removed together" : `Group of ${group.kind}`, group.name, dimensionOf(number)),
    removed || !data.planned ? null : widthBar(group.channels, group.kept, group.channels),
    facts([
      [removed ? "Removed channels" : capital(group.kind), removed ? String(group.channels) : change({ before: group.channels, after: group.kept })],
      ["One channel", group.params_per_channel === null ? null : `${figure(group.params_per_channel)} params, ${figure(group.macs_per_channel)} MACs`],
      ["All but one", group.params_all_but_one === null ? null : `${figure(group.params_all_but_one)} params, ${figure(group.macs_all_but_one)} MACs`],
      ["Removing equals setting to zero", group.exact === null ? null : group.exact ? "yes" : "no"],
      ["Layers", String(layersOf.size)],
    ]),
    group.reasons.length ? make("details", {}, make("summary", {}, `${plural(group.reasons.length, "statistic")} would change`), notes("", group.reasons)) : null,
    openButton(layersOf),
    table([["tensor"], ["shape", "shape"], ["slots", "right"]], rows),
    ...curvesOf("sensitivity").map((curve) => sensitivityChart(curve, group.key)),
    sizesIn(layersOf),
    make("p", { class: "quiet" }, removed ? "" : "Slots: how many places of the dimension belong to the group's channels."),
  ];
}

// Several groups of one name.
function groupsDetails(text) {
  const numbers = groupsNamed(text);
  const rows = numbers.map((number) => [link(groupText(number), { kind: "group", id: number }), channelsOf(data.groups[number])]);
  return [
    heading(plural(numbers.length, "group"), text, "Several groups have this name. Each has an address of its own."),
    openButton(new Set(rolesOf({ kind: "groups", id: text }).keys())),
    table([["group"], ["channels", "right"]], rows),
  ];
}

// Opens the blocks in which some of these layers are folded; null where all are seen.
function openButton(names) {
  const hidden = () => [...names].map((name) => places.get(name)).filter((place) => place && shownFor(place) !== place);
  if (!hidden().length) return null;
  const open = () => {
    hidden().forEach((place) => unfold(place.parent));
    draw();
    bringIntoView();
    showDetails();
  };
  return button("Open their blocks in the graph", open, { class: "main", id: "open-theirs" });
}

// The shape of a tensor with the group's dimension marked.
function memberShape(member) {
  const owner = layers.get(layerOf(member.parameter));
  const tensor = owner && owner.tensors.find((t) => t.name === member.parameter);
  const after = data.planned && tensor ? tensor.after : null;
  return make("span", {}, member.shape.flatMap((size, dim) => {
    const text = after && after[dim] !== size ? `${size}→${after[dim]}` : String(size);
    return [dim ? " × " : "", dim === member.dim ? make("b", {}, text) : text];
  }));
}

function sizesIn(names) {
  if (!data.record) return null;
  const found = data.record.sizes.filter((size) => names.has(size.at));
  return found.length ? make("section", {}, make("h3", {}, "Sizes in these layers"), make("ul", { class: "sizes" }, found.map((size) => make("li", {}, size.text)))) : null;
}

function lockDetails(number) {
  const lock = data.locked[number];
  return [
    heading("Locked", timesText(lock), lock.why),
    facts([
      ["Module", lock.module || "the model itself"],
      ["Source", lock.file === null ? `node %${lock.node}` : `${lock.file}:${lock.line}`],
      ["Unlocking would free at most", `${figure(lock.params)} parameters, ${figure(lock.macs)} MACs`],
    ]),
    table([["tensor"], ["dim", "right"], ["slots held", "right"]], lock.holds.map((h) => [layerLink(layerOf(h.parameter), h.parameter), String(h.dim), String(h.slots)])),
  ];
}

// The dimensions of a layer's tensors that a lock holds, each once.
function heldIn(number, id) {
  return dimensions(data.locked[number].holds.filter((held) => layerOf(held.parameter) === id));
}

function dimensions(members) {
  return [...new Set(members.map(({ parameter, dim }) => `${parameter}[${dim}]`))].join(", ");
}

function layerDetails(id) {
  const layer = layers.get(id);
  const after = data.planned && layer.after ? layer.after : { params: null, macs: null };
  const roles = [...(groupsOf.get(id) ?? [])].map((number) => [number, rolesIn(data.groups[number], id)]);
  const locks = [...(locksOf.get(id) ?? [])];
  return [
    heading(layer.kind === "layer" ? layer.type || "Layer" : capital(layer.kind), id),
    layer.kind === "join" || layer.kind === "input" || layer.kind === "output" ? make("p", {}, PLACES[layer.kind]) : facts([
      ["Parameters", change({ before: layer.params, after: after.params })],
      ["MACs", change({ before: layer.macs, after: after.macs })],
      [layer.width && layer.width.parts ? "Rows of the in-projection" : layer.kind === "parameter" ? `Dimension ${layer.width ? layer.width.dim : ""}` : "Outputs", layer.width ? widthText(layer) : null],
      ["Channels", layer.tensors.length === 0 ? "none of its own: it has no parameters" : layer.state ? STATES[layer.state] : null],
    ]),
    layer.width && data.planned ? widthBar(layer.width.before, layer.width.after, layer.width.before) : null,
    layer.tensors.length ? table([["tensor"], ["shape", "shape"]], layer.tensors.map((t) => [t.name.split(".").pop(), shapes(t)])) : null,
    roles.length ? make("section", {}, make("h3", {}, "Groups"), make("ul", {}, roles.map(([number, role]) =>
      make("li", {}, link(groupText(number), { kind: "group", id: number }), `: ${role}`)))) : null,
    locks.length ? make("section", {}, make("h3", {}, "Held by"), make("ul", {}, locks.map((number) =>
      make("li", {}, link(data.locked[number].operation, { kind: "lock", id: number }), `: ${data.locked[number].why}`, make("div", { class: "quiet" }, heldIn(number, id)))))) : null,
    sizesIn(new Set([id])),
  ];
}

const PLACES = { join: "An operation at which branches meet.", input: "An input of the model.", output: "The output of the model." };

function rolesIn(group, id) {
  const here = group.members.filter((m) => layerOf(m.parameter) === id);
  const roles = [...new Set(here.filter((m) => m.role).map((m) => ROLES[m.role]))].join(" and ");
  return [roles, dimensions(here)].filter(Boolean).join(", ");
}

function blockDetails(id) {
  const place = places.get(id);
  const inside = inOrder(place.leaves.filter((layer) => layer.kind === "layer" || layer.kind === "parameter"));
  const sum = (pick) => inside.reduce((total, layer) => (total === null || pick(layer) === null ? null : total + pick(layer)), 0);
  const pair = (key) => ({ before: sum((l) => l[key]), after: data.planned ? sum((l) => (l.after ? l.after[key] : l[key])) : null });
  return [
    heading(kindText(place) || "Block", place.path),
    button(isOpen(place) ? "Fold" : "Open", () => { toggle(place); showDetails(); }, { class: "main" }),
    facts([["Parameters", change(pair("params"))], ["MACs of these layers", change(pair("macs"))]]),
    table([["layer"], ["type"], ["outputs", "right"]], inside.map((layer) => [layerLink(layer.id), layer.type, widthText(layer)])),
  ];
}
