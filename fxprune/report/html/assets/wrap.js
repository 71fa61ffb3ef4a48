// A tall layout in columns, like a text: it is cut where a single edge leads from one row to the next.

const GUTTER = 56; // between columns

// Moves the nodes of a layout of dagre into columns. aspect: of the space, width by height.
function wrap(graph, aspect) {
  const nodes = graph.nodes().map((id) => graph.node(id));
  const size = graph.graph();
  const count = bestCount(size.width, size.height, aspect);
  if (count < 2) return;
  const rows = [...new Set(nodes.map((node) => Math.round(node.y)))].sort((a, b) => a - b);
  const cuts = cutsOf(graph, rows, size.height / count);
  if (!cuts.length) return;
  const columns = columnsOf(nodes, cuts);
  const last = columns[columns.length - 1];
  const [width, height] = [last.x + last.width, Math.max(...columns.map((column) => column.bottom - column.top))];
  if (Math.min(aspect / width, 1 / height) < 1.15 * Math.min(aspect / size.width, 1 / size.height)) return;
  const moved = (point) => move(columns[columnAt(cuts, point.y)], point);
  for (const line of graph.edges()) {
    const edge = graph.edge(line);
    const [from, to] = [graph.node(line.v), graph.node(line.w)];
    if (columnAt(cuts, from.y) === columnAt(cuts, to.y)) edge.points = (edge.points ?? []).map(moved);
    else edge.turns = turnsOf(from, to, columns[columnAt(cuts, from.y)], columns[columnAt(cuts, to.y)]);
  }
  for (const node of nodes) Object.assign(node, moved(node));
  Object.assign(size, { width, height });
}

// The number of columns with which the whole is seen largest.
function bestCount(width, height, aspect) {
  const scale = (count) => Math.min(aspect / (count * (width + GUTTER)), count / height);
  const counts = [1, 2, 3, 4, 5, 6, 7, 8];
  return height < 420 ? 1 : counts.reduce((best, count) => (scale(count) > 1.15 * scale(best) ? count : best), 1);
}

// Heights below which a new column begins: about `tall` apart.
function cutsOf(graph, rows, tall) {
  const lines = graph.edges().map((line) => [graph.node(line.v), graph.node(line.w)]);
  const cuts = [];
  let start = rows[0];
  rows.slice(0, -1).forEach((row, at) => {
    const next = rows[at + 1];
    const crossing = lines.filter(([a, b]) => Math.min(a.y, b.y) < row + 1 && Math.max(a.y, b.y) > next - 1);
    const single = crossing.length === 1 && Math.round(crossing[0][0].y) === row && Math.round(crossing[0][1].y) === next;
    const short = rows[rows.length - 1] - next < 0.25 * tall; // no column for the output alone
    if (single && next - start > 0.95 * tall && !short) {
      cuts.push((row + next) / 2);
      start = next;
    }
  });
  return cuts;
}

function columnAt(cuts, y) {
  const at = cuts.findIndex((cut) => y < cut);
  return at < 0 ? cuts.length : at;
}

function columnsOf(nodes, cuts) {
  let x = 0;
  return Array.from({ length: cuts.length + 1 }, (_, number) => {
    const inside = nodes.filter((node) => columnAt(cuts, node.y) === number);
    const left = Math.min(...inside.map((node) => node.x - node.width / 2));
    const right = Math.max(...inside.map((node) => node.x + node.width / 2));
    const column = { x, left, width: right - left, top: Math.min(...inside.map((node) => node.y - node.height / 2)), bottom: Math.max(...inside.map((node) => node.y + node.height / 2)) };
    x += column.width + GUTTER;
    return column;
  });
}

function move(column, { x, y }) {
  return { x: x - column.left + column.x, y: y - column.top };
}

// The way of the edge from the foot of one column to the head of the next: down, through the gutter, up.
function turnsOf(from, to, first, second) {
  const [start, end] = [move(first, from), move(second, to)];
  const [foot, head] = [start.y + from.height / 2 + 12, end.y - to.height / 2 - 14];
  const between = second.x - GUTTER / 2;
  return [{ x: start.x, y: foot }, { x: between, y: foot }, { x: between, y: head }, { x: end.x, y: head }];
}
