/** The graph of a pipeline as SVG, laid out by layers (Sugiyama, Tagawa and Toda 1981): the longest way from the
 *  sources gives the layer, long edges get a bend in each layer that they pass, and sweeps of barycentres order the
 *  layers so that few edges cross. Edges that leave one stage share their bends. */

import { el, svg } from "./common.js";

/** Graphs of more stages than these are not drawn. */
const MOST = 400;
const NODE = { width: 156, height: 46 };
const GAP = { across: 48, down: 38, node: 16, bend: 6 };
/** Down to this size a picture is made to fit; larger ones scroll. */
const LEAST_SCALE = 0.72;

/** Draws `stages` (`[{stage, kind, state, href, title}]`) and `edges` (`[{from, to, source, port, output}]`). */
export function drawGraph(stages, edges) {
  const frame = el("div", { class: "graph scroll" });
  if (stages.length > MOST) {
    frame.append(el("p", { class: "muted small" }, `A graph of ${stages.length} stages is too large to be drawn; they are listed below.`));
    return frame;
  }
  const pictures = [true, false].map((across) => picture(layout(stages, edges, across), across));
  const width = (picture) => Number(picture.getAttribute("width"));
  // From left to right where there is room for it, else from top to bottom.
  const choose = (room) => {
    const [across, down] = pictures;
    const chosen = width(across) * LEAST_SCALE <= room || width(down) >= width(across) ? across : down;
    chosen.classList.toggle("fit", width(chosen) * LEAST_SCALE <= room);
    if (frame.firstChild !== chosen) frame.replaceChildren(chosen);
  };
  new ResizeObserver(([entry]) => choose(entry.contentRect.width)).observe(frame);
  return frame;
}

/** The base name of a path or a pattern. */
function shortName(source) {
  const parts = source.split("/").filter(Boolean);
  return parts.length > 1 && parts.at(-1).startsWith("*") ? parts.slice(-2).join("/") : (parts.at(-1) ?? source);
}

/** Nodes with places, edges with the points that they pass. */
function layout(stages, edges, across) {
  const nodes = new Map(stages.map((stage) => [`stage ${stage.stage}`, { ...stage, label: stage.stage, bend: false }]));
  for (const { source } of edges) {
    if (source !== undefined && !nodes.has(`source ${source}`)) {
      nodes.set(`source ${source}`, { source, label: shortName(source), title: source, kind: "source", bend: false });
    }
  }
  const links = edges
    .map((edge) => ({ edge, from: nodes.get(edge.source === undefined ? `stage ${edge.from}` : `source ${edge.source}`), to: nodes.get(`stage ${edge.to}`) }))
    .filter(({ from, to }) => from && to);
  assignLayers([...nodes.values()], links);
  const layers = [];
  for (const node of nodes.values()) (layers[node.layer] ??= []).push(node);
  const bends = new Map();
  const chains = links.map((link) => withBends(link, layers, bends));
  order(layers, chains);
  place(layers, across);
  return { nodes: [...nodes.values()], chains, layers };
}

/** The longest way from a node without inputs; sources go right before the first stage that reads them. */
function assignLayers(nodes, links) {
  nodes.forEach((node) => (node.layer = 0));
  // Stages come in an order in which they can run, so as many rounds as the longest way settle it.
  for (let changed = true, round = 0; changed && round < nodes.length; round += 1) {
    changed = false;
    for (const { from, to } of links) {
      if (to.layer <= from.layer) {
        to.layer = from.layer + 1;
        changed = true;
      }
    }
  }
  for (const node of nodes.filter((node) => node.source !== undefined)) {
    const readers = links.filter(({ from }) => from === node).map(({ to }) => to.layer);
    node.layer = Math.max(0, Math.min(...readers) - 1);
  }
}

/** The nodes that an edge leads through: between its ends the bends of the node that it leaves, one a layer. */
function withBends({ edge, from, to }, layers, bends) {
  const own = bends.get(from) ?? [];
  bends.set(from, own);
  while (from.layer + own.length + 1 < to.layer) {
    const bend = { bend: true, layer: from.layer + own.length + 1 };
    layers[bend.layer].push(bend);
    own.push(bend);
  }
  return { edge, path: [from, ...own.slice(0, to.layer - from.layer - 1), to] };
}

/** Orders each layer by the mean place of what its nodes are connected with, forwards and backwards. */
function order(layers, chains) {
  const before = new Map();
  const after = new Map();
  for (const { path } of chains) {
    path.slice(1).forEach((node, i) => {
      // Once, however many edges share this part of the way.
      if (before.get(node)?.includes(path[i])) return;
      before.set(node, [...(before.get(node) ?? []), path[i]]);
      after.set(path[i], [...(after.get(path[i]) ?? []), node]);
    });
  }
  const number = (layer) => layer.forEach((node, i) => (node.order = i));
  layers.forEach(number);
  const sweep = (layer, neighbours) => {
    const centre = (node) => {
      const own = neighbours.get(node) ?? [];
      return own.length === 0 ? node.order : own.reduce((sum, other) => sum + other.order, 0) / own.length;
    };
    const centres = new Map(layer.map((node) => [node, centre(node)]));
    layer.sort((a, b) => centres.get(a) - centres.get(b) || a.order - b.order);
    number(layer);
  };
  let best = null;
  for (let round = 0; round < 12; round += 1) {
    if (round % 2 === 0) layers.slice(1).forEach((layer) => sweep(layer, before));
    else layers.slice(0, -1).reverse().forEach((layer) => sweep(layer, after));
    const found = crossings(layers, after);
    if (best === null || found < best.found) best = { found, layers: layers.map((layer) => [...layer]) };
  }
  best.layers.forEach((layer, i) => {
    layers[i] = layer;
    number(layer);
  });
  layers.neighbours = (node) => [...(before.get(node) ?? []), ...(after.get(node) ?? [])];
}

function crossings(layers, after) {
  let found = 0;
  for (const layer of layers) {
    const ends = layer.flatMap((node) => (after.get(node) ?? []).map((other) => [node.order, other.order]));
    for (let i = 0; i < ends.length; i += 1) {
      for (let j = i + 1; j < ends.length; j += 1) {
        if ((ends[i][0] - ends[j][0]) * (ends[i][1] - ends[j][1]) < 0) found += 1;
      }
    }
  }
  return found;
}

/** Gives each node `x` and `y` of its middle: `along` the layers and `side`ways within one. */
function place(layers, across) {
  const [length, breadth, gap] = across ? [NODE.width, NODE.height, GAP.across] : [NODE.height, NODE.width, GAP.down];
  const room = (node) => (node.bend ? GAP.bend : breadth);
  layers.forEach((layer, i) => {
    let side = 0;
    for (const node of layer) {
      node.along = i * (length + gap) + length / 2;
      node.side = side + room(node) / 2;
      side += room(node) + GAP.node;
    }
  });
  // Towards the middle of their neighbours, as far as those beside them leave room.
  for (let round = 0; round < 24; round += 1) {
    for (const layer of round % 2 === 0 ? layers : [...layers].reverse()) settle(layer, layers.neighbours, room);
  }
  const least = Math.min(...layers.flat().map((node) => node.side - room(node) / 2));
  for (const node of layers.flat()) {
    node.side -= least;
    [node.x, node.y] = across ? [node.along, node.side] : [node.side, node.along];
  }
}

/** Moves the nodes of a layer to where they would like to be: those that would overlap go as one block. */
function settle(layer, neighbours, room) {
  const blocks = [];
  let offset = 0;
  for (const [i, node] of layer.entries()) {
    const own = neighbours(node);
    const wish = own.length === 0 ? node.side : own.reduce((sum, other) => sum + other.side, 0) / own.length;
    if (i > 0) offset += (room(layer[i - 1]) + room(node)) / 2 + GAP.node;
    blocks.push({ nodes: [[node, offset]], sum: wish - offset, count: 1 });
    while (blocks.length > 1 && blocks.at(-2).sum / blocks.at(-2).count > blocks.at(-1).sum / blocks.at(-1).count) {
      const last = blocks.pop();
      const before = blocks.at(-1);
      before.nodes.push(...last.nodes);
      before.sum += last.sum;
      before.count += last.count;
    }
  }
  for (const { nodes, sum, count } of blocks) {
    for (const [node, offset] of nodes) node.side = sum / count + offset;
  }
}

function picture({ nodes, chains, layers }, across) {
  const all = layers.flat();
  const half = { x: NODE.width / 2, y: NODE.height / 2 };
  const width = Math.max(...all.map((node) => node.x + (node.bend ? 4 : half.x))) + 4;
  const height = Math.max(...all.map((node) => node.y + (node.bend ? 4 : half.y))) + 4;
  const arrow = across ? "arrow-across" : "arrow-down";
  const marker = svg("marker", { id: arrow, viewBox: "0 0 8 8", refX: 8, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" },
    svg("path", { class: "arrow", d: "M0 0.8 L7.5 4 L0 7.2 z" }));
  const lines = chains.map((chain) => drawEdge(chain, half, across, arrow));
  const boxes = nodes.map((node) => drawNode(node, half));
  // What belongs to a node stands out while it is pointed at.
  nodes.forEach((node, i) => {
    const own = chains.flatMap(({ path }, at) => (path[0] === node || path.at(-1) === node ? [lines[at]] : []));
    const mark = (on) => () => own.forEach((line) => line.classList.toggle("marked", on));
    for (const event of ["pointerenter", "focusin"]) boxes[i].addEventListener(event, mark(true));
    for (const event of ["pointerleave", "focusout"]) boxes[i].addEventListener(event, mark(false));
  });
  const sides = { viewBox: `-4 -4 ${width + 4} ${height + 4}`, width: width + 4, height: height + 4 };
  return svg("svg", { ...sides, class: "graph-picture", role: "group", "aria-label": "Graph of the stages" }, svg("defs", {}, marker), lines, boxes);
}

function drawEdge({ edge, path }, half, across, arrow) {
  const first = path[0];
  const last = path.at(-1);
  const side = (node, sign) => (across ? [node.x + sign * half.x, node.y] : [node.x, node.y + sign * half.y]);
  const to = (point) => point.map((n) => n.toFixed(1)).join(" ");
  let from = side(first, 1);
  let d = `M${to(from)}`;
  // Curves between the layers; through a layer an edge goes straight, beside the nodes there.
  for (const node of path.slice(1)) {
    const [x, y] = side(node, -1);
    const [px, py] = from;
    const control = across ? [[(px + x) / 2, py], [(px + x) / 2, y]] : [[px, (py + y) / 2], [x, (py + y) / 2]];
    d += `C${control.map(to).join(" ")} ${to([x, y])}`;
    if (node !== last) d += `L${to((from = side(node, 1)))}`;
  }
  const output = edge.source ?? `${edge.from}.${edge.output}`;
  return svg("path", { class: "edge", d, "marker-end": `url(#${arrow})` }, svg("title", {}, `${output} → ${edge.to}.${edge.port}`));
}

function drawNode(node, half) {
  const [x, y] = [node.x - half.x, node.y - half.y];
  const isSource = node.source !== undefined;
  const words = node.state ? `${node.label}, ${node.kind}, ${node.state}` : `${node.label}, ${node.kind}`;
  const parts = [
    svg("title", {}, node.title ?? words),
    svg("rect", { x, y, width: NODE.width, height: NODE.height, rx: isSource ? NODE.height / 2 : 8 }),
    !isSource && svg("rect", { class: "node-state", x: x + 8, y: y + 9, width: 4, height: NODE.height - 18, rx: 2 }),
    svg("text", { class: "node-name", x: x + 20, y: y + (isSource ? 27 : 20) }, cut(node.label, isSource ? 18 : 19)),
    !isSource && svg("text", { class: "node-kind", x: x + 20, y: y + 36 }, cut(node.kind, 21)),
  ];
  const group = svg("g", { class: `node ${isSource ? "source" : `state-${node.state ?? "none"}`}` }, parts);
  return node.href ? svg("a", { href: node.href, "aria-label": words, class: "node-link" }, group) : group;
}

function cut(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}
