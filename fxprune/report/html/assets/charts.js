// Curves of `sensitivity` and `pareto` as small drawings, each with its numbers in a table below.

const SVG = "http://www.w3.org/2000/svg";

function draws(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function number(value) {
  return value === null || value === undefined ? "unknown" : String(Number(Number(value).toPrecision(4)));
}

// Lines over shares. series: [{name, points: [[share, value]], dashed}].
function lineChart(series, across, up) {
  const [wide, tall, left, bottom, top, right] = [330, 190, 52, 34, 12, 22];
  const xs = series.flatMap((line) => line.points.map(([x]) => x));
  const ys = series.flatMap((line) => line.points.map(([, y]) => y));
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const [first, last] = [Math.min(0, ...xs), Math.max(1, ...xs)];
  const x = (value) => left + ((value - first) / (last - first)) * (wide - left - right);
  const y = (value) => tall - bottom - ((value - low) / (high - low || 1)) * (tall - bottom - top);
  const chart = draws("svg", { viewBox: `0 0 ${wide} ${tall}`, class: "chart", role: "img", "aria-label": `${up} by ${across}` });
  const text = (content, attributes) => chart.append(draws("text", attributes, content));
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    chart.append(draws("line", { x1: x(share), x2: x(share), y1: top, y2: tall - bottom, class: "grid" }));
    text(`${100 * share} %`, { x: x(share), y: tall - bottom + 13, "text-anchor": "middle" });
  }
  for (const value of low === high ? [low] : [low, (low + high) / 2, high]) {
    chart.append(draws("line", { x1: left, x2: wide - right, y1: y(value), y2: y(value), class: "grid" }));
    text(String(Number(value.toPrecision(3))), { x: left - 5, y: y(value) + 3.5, "text-anchor": "end" });
  }
  text(across, { x: (left + wide - right) / 2, y: tall - 4, "text-anchor": "middle" });
  series.forEach((line) => {
    const points = [...line.points].sort((a, b) => a[0] - b[0]);
    const path = points.map(([a, b], n) => `${n ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
    chart.append(draws("path", { d: path, class: line.dashed ? "line dashed" : "line" }));
    for (const [a, b] of points) {
      const mark = line.dashed
        ? draws("rect", { x: x(a) - 3, y: y(b) - 3, width: 6, height: 6, class: "mark open" })
        : draws("circle", { cx: x(a), cy: y(b), r: 3.2, class: "mark" });
      mark.append(draws("title", {}, `${line.name}: ${percent(a, 1) || "0 %"}, ${number(b)}`));
      chart.append(mark);
    }
  });
  return chart;
}

// What the two kinds of lines are, where there are two.
function chartKey(repaired) {
  return repaired
    ? make("p", { class: "key" }, make("span", { class: "sample dashed" }), "without repair ", make("span", { class: "sample" }), "with repair")
    : null;
}

function twoLines(points, whole, share) {
  const repaired = points.filter((point) => point.repaired !== null);
  const lines = [{ name: "without repair", points: [...whole, ...points.map((p) => [share(p), p.value])], dashed: repaired.length > 0 }];
  if (repaired.length) lines.push({ name: "with repair", points: [...whole, ...repaired.map((p) => [share(p), p.repaired])], dashed: false });
  return lines;
}

function paretoChart(curve) {
  const lines = twoLines(curve.points, [[1, curve.whole]], (point) => point.kept);
  const rows = curve.points.map((p) => [`${p.budget}${p.met ? "" : " (not met)"}`, percent(p.kept, 1), figure(p.params), figure(p.macs), both(p)]);
  return make("section", { class: "curve" },
    make("h3", {}, `${capital(curve.measure)} by ${costName(curve.key)}`),
    lineChart(lines, `share of the ${costName(curve.key)} that stays`, curve.measure), chartKey(lines.length > 1),
    table([["budget"], ["stays", "right"], ["params", "right"], ["MACs", "right"], [curve.measure, "right pair"]], rows));
}

function costName(key) {
  return key === "macs" ? "MACs" : key;
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function both(point) {
  const whole = (text) => make("span", { class: "whole" }, text); // a line may end between both, not in one
  return point.repaired === null ? number(point.value) : [whole(`${number(point.value)} →`), " ", whole(number(point.repaired))];
}

function pointsByGroup(curve) {
  const found = new Map();
  for (const point of curve.points) found.set(point.group, [...(found.get(point.group) ?? []), point]);
  return found;
}

// All groups of a sensitivity in a table; the curve of one stands with its group.
function sensitivityTable(curve) {
  const groups = pointsByGroup(curve);
  const ratios = [...new Set(curve.points.map((point) => point.ratio))];
  const rows = [...groups].map(([key, points]) => [groupLink(key), ...ratios.map((ratio) => {
    const point = points.find((p) => p.ratio === ratio);
    return point ? both(point) : "";
  })]);
  return make("section", { class: "curve" },
    make("h3", {}, `${capital(curve.measure)} by the share of a group that goes`),
    make("p", { class: "quiet" }, `The original has ${number(curve.whole)}. The curve of a group stands with the group.`),
    table([["group"], ...ratios.map((ratio) => [percent(ratio, 1), "right pair"])], rows));
}

function groupLink(key) {
  const number = data.groups.findIndex((group) => group.key === key);
  return number < 0 ? key : link(groupsNamed(data.groups[number].name).length === 1 ? data.groups[number].name : groupText(number), { kind: "group", id: number });
}

function sensitivityChart(curve, key) {
  const points = pointsByGroup(curve).get(key);
  if (!points) return null;
  const lines = twoLines(points, [[0, curve.whole]], (point) => point.ratio);
  return make("section", { class: "curve" }, make("h3", {}, `${capital(curve.measure)} by the share that goes`),
    lineChart(lines, "share of the group that goes", curve.measure), chartKey(lines.length > 1));
}

function curvesOf(schema) {
  return data.curves.filter((curve) => curve.schema === `fxprune.${schema}/1`);
}
