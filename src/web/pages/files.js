/** One file of an artifact: what it is, and the views of it. */

import { api, button, el, fill, format, problem } from "./common.js";
import { histogram, lineChart } from "./chart.js";
import { curveSeries, figureLabel, figureNames } from "./curves.js";
import { digestLink, facts, into, notice, pager, plural, settled, table, tabs } from "./parts.js";

/** Fills `node` with the file that is at `path` of the API. */
export async function fileView(node, path, file) {
  fill(node, el("h2", { class: "verbatim" }, file.path), el("p", { class: "row" }, el("span", { class: "spinner", role: "status", "aria-label": "Loading" })));
  const title = el("h2", { class: "verbatim" }, file.path);
  try {
    const report = await api(path);
    const views = report.views.map((view) => [view, ...VIEWS[view](path, report)]);
    const about = details(report);
    if (about.length > 0) views.push(["about", "About", (panel) => fill(panel, about)]);
    fill(node, el("div", { class: "stack tight" }, title, el("p", { class: "small muted" }, summary(report))), views.length > 0 && tabs(views, "Views of the file"));
  } catch (error) {
    fill(node, title, problem(error, () => fileView(node, path, file)), error.status === 422 && button("Show it as text", { onclick: () => fill(node, title, textPart(`${path}?view=text`)) }));
  }
}

function summary(report) {
  const what = report.type === "large" ? "too large to be described" : report.summary;
  return `${what}, ${format.bytes(report.bytes)}`;
}

const VIEWS = {
  rows: (path) => ["Rows", (panel) => rowsView(panel, path)],
  vocabulary: (path) => ["Vocabulary", (panel) => vocabularyView(panel, path)],
  tensors: (path, report) => ["Tensors", (panel) => tensorsView(panel, path, report)],
  metrics: (path) => ["Curves", (panel) => metricsView(panel, path)],
  json: (path) => ["JSON", (panel) => fill(panel, textPart(`${path}?view=json`))],
  text: (path) => ["Text", (panel) => fill(panel, textPart(`${path}?view=text`))],
};

// -- what inspect says --

function details(report) {
  switch (report.type) {
    case "parquet":
      return [
        report.unshown && notice("warn", "alert", report.unshown),
        facts([["Rows", format.count(report.rows)], ["Row groups", format.count(report.row_groups.length)], ["Compression", report.compression.join(", ") || null], ["Uncompressed", format.bytes(report.uncompressed_bytes)], ["Written by", report.created_by], ...Object.entries(report.metadata).map(([key, value]) => [key, short(value)])]),
        table(["column", "type", ">compressed", ">uncompressed"], report.columns.map((c) => el("tr", {}, el("td", { class: "strong" }, c.name), el("td", { class: "mono tiny" }, c.data_type), el("td", { class: "right" }, format.bytes(c.compressed_bytes)), el("td", { class: "right" }, format.bytes(c.uncompressed_bytes))))),
      ];
    case "tokenizer":
      return [
        facts([["Algorithm", report.algorithm], ["Ids", format.count(report.vocab_size)], ["Merges", report.merges !== null && format.count(report.merges)], ["Unknown token", report.unknown_token], ["Byte fallback", report.byte_fallback && "yes"], ["Normalizer", report.normalizer], ["Pre-tokenizer", report.pre_tokenizer], ["Post-processor", report.post_processor], ["Decoder", report.decoder]]),
      ];
    case "model":
      return [
        facts([["Parameters", format.count(report.parameters)], ["Tensors", `${format.count(report.tensors.length)}, ${format.bytes(report.tensor_bytes)}`], ["Architecture", report.architecture], ["Tied", report.tied && `${report.tied.output} is ${report.tied.embedding}, counted once`], ["Adapter", report.adapter && `rank ${report.adapter.rank}, alpha ${report.adapter.alpha}`], ...Object.entries(report.metadata).map(([key, value]) => [key, short(value)])]),
        report.config && el("details", {}, el("summary", { class: "small" }, "config.json"), el("pre", { class: "tiny" }, JSON.stringify(report.config, null, 2))),
      ];
    case "lines":
      return [table(["key", "type", ">rows", ">min", ">max", ">last"], report.columns.map((c) => el("tr", {}, el("td", { class: "strong" }, c.name), el("td", { class: "muted" }, c.types), el("td", { class: "right" }, format.count(c.count)), ...[c.min, c.max, c.last].map((x) => el("td", { class: "right" }, x === null ? "" : format.number(x, 5))))))];
    case "text":
      return [facts([["Lines", format.count(report.lines)], ["Words", format.count(report.words)], ["Characters", format.count(report.characters)], ["Encoding", report.invalid ? `not UTF-8: byte 0x${report.invalid.byte.toString(16)} at line ${report.invalid.line}, column ${report.invalid.column}` : report.ascii ? "ASCII" : "UTF-8"]])];
    case "binary":
      return [facts([["Kind", report.known_as ?? "unknown"], ["Begins with", el("span", { class: "mono" }, report.head)]])];
    case "large":
      return [];
    default:
      return [];
  }
}

function short(text) {
  return text.length > 300 ? `${text.slice(0, 300)}… (${format.count(text.length)} characters)` : text;
}

// -- rows --

const ROWS = 25;

function rowsView(panel, path) {
  const show = (offset) => into(panel, `${path}?view=rows&rows=${ROWS}&offset=${offset}`, (page) => rowsPage(page, path, show));
  show(0);
}

function rowsPage(page, path, show) {
  const { total, offset, columns, rows, left_out: leftOut, tokenizer, undecoded } = page;
  const next = pager({ offset, count: rows.length, total, page: ROWS, what: "rows", go: show });
  const jump = el("input", { class: "input jump", type: "number", min: 0, max: Math.max(0, total - 1), placeholder: "row", "aria-label": "Go to row" });
  const form = el("form", { class: "row", onsubmit: (event) => (event.preventDefault(), jump.value !== "" && show(Math.max(0, Number(jump.value)))) }, jump, button("Go", { type: "submit", class: "compact" }));
  const names = columns.map(({ name, data_type: type }) => el("th", { scope: "col", title: type }, name));
  const body = rows.map((cells, i) => {
    const isCut = cells.some((cell) => cell?.of);
    const number = offset + i;
    return el("tr", {}, el("th", { scope: "row", class: "row-number" }, isCut ? button(format.count(number), { class: "compact quiet", title: "Show this row in full", onclick: () => wholeRow(number, path, columns) }) : format.count(number)),
      cells.map((cell, c) => el("td", { class: typeof cell === "number" ? "right" : isLong(cell) ? "long" : "" }, drawCell(cell, columns[c]))));
  });
  return [
    undecoded && notice("warn", "info", `Token ids are shown as numbers: ${undecoded}.`),
    tokenizer && el("p", { class: "tiny muted" }, "Tokens are decoded by ", digestLink(tokenizer, "the tokenizer that this was made with"), "."),
    el("div", { class: "scroll rows-scroll" }, el("table", { class: "table rows" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "row"), names)), el("tbody", {}, body))),
    leftOut > 0 && el("p", { class: "small muted" }, `${plural(leftOut, "row")} of this page ${leftOut === 1 ? "is" : "are"} left out, as the page would be too large; the next page begins behind.`),
    el("div", { class: "row" }, next, total > ROWS && el("span", { class: "push" }, form)),
  ];
}

function isLong(cell) {
  return (cell?.text ?? cell?.json ?? "").length > 50 || cell?.ids?.length > 8;
}

/** A cell: numbers as they are; texts, JSON and lists of ids as objects, see the API. */
function drawCell(cell, column) {
  if (cell === null) return el("span", { class: "muted" }, "null");
  if (typeof cell === "number") return Number.isInteger(cell) ? format.count(cell) : format.number(cell, 6);
  if (typeof cell === "boolean") return String(cell);
  const more = cell.of && el("span", { class: "tiny muted more" }, `… of ${format.count(cell.of)} ${cell.ids ? "ids" : "characters"}`);
  if (cell.ids) return [cell.pieces ? tokens(cell, column) : el("span", { class: "mono tiny" }, cell.ids.join(" ")), more];
  if (cell.json !== undefined) return [el("span", { class: "mono tiny verbatim" }, cell.json), more];
  // A digest or an identifier, which nobody reads as a text.
  const word = cell.text.length > 16 && !/\s/.test(cell.text);
  return [el("span", { class: word ? "verbatim word mono tiny" : "verbatim" }, cell.text), more];
}

/** The text of ids, each marked off; its id is its title. */
function tokens({ ids, pieces, special }) {
  const isSpecial = new Set(special);
  const token = (piece, i) => {
    const shown = piece === "" ? "·" : piece;
    return el("span", { class: `token${isSpecial.has(i) ? " special" : ""}`, title: `id ${ids[i]}` }, shown);
  };
  return el("span", { class: "tokens verbatim" }, pieces.map(token));
}

/** A row in a dialog, without anything cut, up to what the server gives. */
async function wholeRow(number, path, columns) {
  const body = el("div", { class: "stack" });
  const close = button("Close", { icon: "close", only: true, class: "quiet compact push", onclick: () => box.close() });
  const box = el("dialog", { class: "wide", "aria-label": `Row ${number}` }, el("div", { class: "stack" }, el("div", { class: "row" }, el("h2", {}, `Row ${format.count(number)}`), close), body));
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  box.showModal();
  await into(body, `${path}?view=rows&rows=1&offset=${number}&cell=1048576`, ({ rows }) =>
    rows.length === 0 ? el("p", {}, "There is no such row any more.") : el("dl", { class: "whole-row" }, columns.map((column, i) => [el("dt", {}, column.name), el("dd", {}, drawCell(rows[0][i], column))])));
}

// -- vocabulary --

const TOKENS = 100;

function vocabularyView(panel, path) {
  const search = el("input", { class: "input", type: "search", placeholder: "Part of a token, or an id", "aria-label": "Search the vocabulary" });
  const list = el("div", { class: "stack" });
  const show = (offset) => into(list, `${path}?view=vocabulary&rows=${TOKENS}&offset=${offset}&search=${encodeURIComponent(search.value)}`, (page) => vocabularyPage(page, show));
  search.addEventListener("input", settled(() => show(0)));
  fill(panel, search, list);
  show(0);
}

function vocabularyPage({ total, found, offset, tokens: shown }, show) {
  const row = ({ id, token, text, special }) =>
    el("tr", {}, el("td", { class: "right muted" }, id), el("td", {}, el("span", { class: `token mono${special ? " special" : ""}` }, token)), el("td", { class: "mono" }, special ? el("span", { class: "badge" }, "special") : text === null || text === token ? "" : JSON.stringify(text).slice(1, -1)));
  return [
    el("p", { class: "small muted", "aria-live": "polite" }, found === total ? plural(total, "token") : `${format.count(found)} of ${plural(total, "token")}`),
    found > 0 && table([">id", "as it is written", "text"], shown.map(row), { bounded: true }),
    pager({ offset, count: shown.length, total: found, page: TOKENS, what: "tokens", go: show }),
  ];
}

// -- tensors --

function tensorsView(panel, path, { tensors }) {
  const one = el("div", { class: "stack tensor" });
  const MOST = 1000;
  const rows = tensors.slice(0, MOST).map((tensor) => {
    const name = el("button", { type: "button", class: "link mono", onclick: () => choose(tensor, name) }, tensor.name);
    const elements = tensor.shape.reduce((product, n) => product * n, 1);
    return el("tr", {}, el("td", {}, name), el("td", { class: "mono tiny" }, tensor.dtype), el("td", { class: "right" }, tensor.shape.join(" × ") || "scalar"), el("td", { class: "right" }, format.count(elements)), el("td", { class: "right" }, format.bytes(tensor.bytes)));
  });
  let current = null;
  const choose = (tensor, control) => {
    current?.removeAttribute("aria-current");
    current = control;
    control.setAttribute("aria-current", "true");
    into(one, `${path}?view=tensor&tensor=${encodeURIComponent(tensor.name)}`, tensorFigures);
  };
  const list = table(["tensor", "type", ">shape", ">numbers", ">size"], rows, { bounded: true });
  fill(panel, one, list,
    tensors.length > MOST && el("p", { class: "small muted" }, `and ${format.count(tensors.length - MOST)} more`));
  if (tensors.length > 0) choose(tensors[0], rows[0].querySelector("button"));
}

function tensorFigures(tensor) {
  const number = (x) => (x === null ? "—" : format.number(x, 4));
  const figure = (name, value, tone = "") => el("div", {}, el("dt", {}, name), el("dd", { class: tone }, value));
  return [
    el("h3", { class: "mono verbatim" }, tensor.name),
    el("dl", { class: "figures small-figures" }, figure("min", number(tensor.min)), figure("max", number(tensor.max)), figure("mean", number(tensor.mean)), figure("std", number(tensor.std)),
      figure("zeros", format.count(tensor.zeros)), figure("NaN", format.count(tensor.nan), tensor.nan > 0 && "problem"), tensor.infinite > 0 && figure("infinite", format.count(tensor.infinite), "problem")),
    tensor.min === null ? el("p", { class: "muted small" }, "No number of this tensor is finite.") : histogram(tensor),
  ];
}

// -- metrics --

function metricsView(panel, path) {
  into(panel, `${path}?view=metrics`, (curves) => {
    const names = figureNames([curves]);
    if (names.length === 0) return el("p", { class: "muted" }, "There are no figures in it.");
    const figure = el("select", { class: "select", "aria-label": "Figure" }, names.map((name) => el("option", { value: name }, figureLabel(name))));
    const chart = lineChart({ xLabel: "step", yLabel: "", name: "Curves of the training" });
    const show = () => chart.update(curveSeries([curves], figure.value), { yLabel: figureLabel(figure.value).toLowerCase() });
    figure.addEventListener("change", show);
    show();
    const thinned = curves.rows.length < curves.total && el("p", { class: "tiny muted" }, `${format.count(curves.rows.length)} of ${format.count(curves.total)} points are drawn.`);
    return [el("div", { class: "figure-select" }, figure), chart.node, thinned];
  });
}

// -- text --

/** A text, a part of it at a time. */
function textPart(path) {
  const text = el("pre", { class: "tiny verbatim text-part", tabindex: "0", "aria-label": "Text" });
  const state = el("div", { class: "row" });
  const node = el("div", { class: "stack tight" }, text, state);
  const more = async (offset) => {
    try {
      const part = await api(`${path}${offset > 0 ? `&offset=${offset}` : ""}`);
      text.append(part.text);
      const left = part.size - part.end;
      fill(state,
        part.laid_out && left > 0 && el("span", { class: "small muted" }, `Cut: ${format.bytes(part.end)} of ${format.bytes(part.size)} are shown.`),
        !part.laid_out && left > 0 && [el("span", { class: "small muted" }, `${format.bytes(part.end)} of ${format.bytes(part.size)}`), button("More", { icon: "down", class: "compact", onclick: () => more(part.end) })]);
      if (part.size === 0) fill(node, el("p", { class: "muted" }, "It is empty."));
    } catch (error) {
      fill(state, problem(error, () => more(offset)));
    }
  };
  more(0);
  return node;
}
