/** Two runs side by side: their curves, stages and figures. */

import { api, el, field, fill, format } from "./common.js";
import { lineChart } from "./chart.js";
import { curveSeries, figureLabel, figureNames } from "./curves.js";
import { badge, digestLink, empty, heading, notice, pageTitle, plural, runHref, seconds, table, when } from "./parts.js";

export async function comparePage(main) {
  const given = new URLSearchParams(window.location.search);
  const { runs } = await api("/api/runs?limit=200");
  if (runs.length < 2) {
    fill(main, pageTitle("Compare runs", { above: [["Runs", "/runs"]] }), empty("chart", el("p", {}, "There must be two runs to compare.")));
    return;
  }
  const b = given.get("b") ?? runs[0].id;
  const a = given.get("a") ?? before(runs, b);
  const body = el("div", { class: "stack compare" });
  const go = () => {
    window.history.replaceState(null, "", `?a=${encodeURIComponent(first.value)}&b=${encodeURIComponent(second.value)}`);
    show(body, first.value, second.value);
  };
  const first = choice(runs, a, go);
  const second = choice(runs, b, go);
  fill(main, pageTitle("Compare runs", { above: [["Runs", "/runs"]] }),
    el("div", { class: "pair" }, field("A", first), field("B", second)), body);
  await show(body, a, b);
}

/** The run of the same pipeline before `id`, or any other one. */
function before(runs, id) {
  const at = runs.findIndex((run) => run.id === id);
  const earlier = runs.slice(at + 1).find((run) => run.pipeline === runs[at]?.pipeline) ?? runs.find((run) => run.id !== id);
  return earlier.id;
}

function choice(runs, chosen, onchange) {
  const known = runs.some((run) => run.id === chosen);
  const option = ({ id, pipeline, state }) => el("option", { value: id, selected: id === chosen }, `${pipeline ?? "?"} · ${id} · ${state}`);
  return el("select", { class: "select", onchange }, !known && el("option", { value: chosen, selected: true }, chosen), runs.map(option));
}

async function show(body, a, b) {
  body.setAttribute("aria-busy", "true");
  try {
    const compared = await api(`/api/compare?a=${encodeURIComponent(a)}&b=${encodeURIComponent(b)}`);
    fill(body, a === b && notice("warn", "info", "These are the same run."), head(compared), curves(compared), stages(compared));
  } catch (error) {
    fill(body, notice("bad", "alert", error.message));
  } finally {
    body.removeAttribute("aria-busy");
  }
}

function head({ a, b }) {
  const row = (name, run) => el("tr", {}, el("th", { scope: "row", class: `series-text-${name === "A" ? 1 : 2}` }, name), el("td", {}, el("a", { href: runHref(run.id) }, run.pipeline ?? run.id)), el("td", {}, badge(run.state)), el("td", {}, when(run.started)), el("td", { class: "right" }, seconds(run.seconds)));
  return el("div", { class: "card flush" }, table(["", "run", "state", "started", ">took"], [row("A", a), row("B", b)]));
}

/** The curves of both runs, of one stage at a time; A has the first colour, B the second. */
function curves({ curves: [a, b] }) {
  const all = [...new Set([...a, ...b].map(({ stage }) => stage))];
  if (all.length === 0) return null;
  const stage = el("select", { class: "select", "aria-label": "Stage", onchange: () => draw() }, all.map((name) => el("option", { value: name }, name)));
  const figure = el("select", { class: "select", "aria-label": "Figure", onchange: () => draw() });
  const chart = lineChart({ xLabel: "step", yLabel: "loss", name: "Curves of both runs" });
  const none = { stage: "", columns: ["step"], rows: [] };
  const draw = () => {
    const pair = [a, b].map((of) => of.find((curves) => curves.stage === stage.value) ?? none);
    const names = figureNames(pair);
    const chosen = names.includes(figure.value) ? figure.value : names[0];
    fill(figure, names.map((name) => el("option", { value: name, selected: name === chosen }, figureLabel(name))));
    chart.update(curveSeries(pair, chosen ?? "loss", ["A", "B"]), { yLabel: figureLabel(chosen ?? "loss").toLowerCase() });
  };
  draw();
  return el("section", { class: "stack", "aria-label": "Curves" },
    el("div", { class: "heading" }, el("h2", {}, "Training"), el("div", { class: "row" }, el("div", { class: "figure-select" }, stage), el("div", { class: "figure-select" }, figure))),
    el("div", { class: "card" }, chart.node));
}

function stages({ stages: all, a, b }) {
  const isSame = ({ differences, a, b }) => a && b && a.key === b.key && differences !== null;
  const changed = all.filter((stage) => !isSame(stage));
  const same = all.filter(isSame);
  const none = a.id !== b.id && changed.length === 0 && notice("", "info", "Every stage of both runs is the same action: nothing differs that could change a result.");
  return el("section", { class: "stack", "aria-label": "Stages" }, heading("Stages"), none, changed.map((stage) => stageCard(stage, true)),
    same.length > 0 && el("details", { class: "stack" }, el("summary", { class: "small" }, `${plural(same.length, "stage")} the same in both`), el("div", { class: "stack same" }, same.map((stage) => stageCard(stage, false)))));
}

function stageCard({ stage, a, b, differences, figures }, differs) {
  const side = (name, part, series) => el("div", { class: "row small" }, el("b", { class: `series-text-${series}` }, name), part ? [badge(part.status), el("span", { class: "number" }, seconds(part.seconds)), Object.entries(part.outputs).map(([port, digest]) => digestLink(digest, port))] : el("span", { class: "muted" }, "not in this run"));
  const why = !a || !b ? null : differences === null ? "The record of one of the actions is gone, so what differs is not known." : differences.length === 0 ? (differs ? "Nothing that determines the result differs." : null) : null;
  return el("div", { class: "card stack" },
    el("div", { class: "heading" }, el("h3", {}, stage), el("span", { class: "tiny muted" }, (a ?? b).kind)),
    el("div", { class: "stack tight" }, side("A", a, 1), side("B", b, 2)),
    differences?.length > 0 && el("ul", { class: "plain stack tight differences" }, differences.map((text) => el("li", { class: "small mono verbatim" }, text))),
    why && el("p", { class: "small muted" }, why),
    a && b && figureTables(figures));
}

/** The figures that differ, and the others behind them. */
function figureTables(figures) {
  const head = ["figure", ">A", ">B", ">difference", ""];
  const different = figures.filter(({ a, b }) => a !== b);
  const same = figures.filter(({ a, b }) => a === b);
  return [
    different.length > 0 && table(head, different.map(figureRow)),
    same.length > 0 && el("details", {}, el("summary", { class: "small" }, `${plural(same.length, "figure")} the same in both`), table(head, same.map(figureRow))),
  ];
}

function figureRow({ name, unit, a, b }) {
  const number = (x) => (x === null ? "—" : format.number(x, 5));
  const both = a !== null && b !== null;
  const change = both ? b - a : null;
  const share = both && a !== 0 ? change / Math.abs(a) : null;
  const signed = (x, text) => (x > 0 ? `+${text}` : text);
  return el("tr", {},
    el("td", {}, name, unit && el("span", { class: "muted" }, ` ${unit}`)),
    el("td", { class: "right" }, number(a)), el("td", { class: "right" }, number(b)),
    el("td", { class: "right" }, change === null ? "" : change === 0 ? "=" : signed(change, format.number(change, 4))),
    el("td", { class: "right muted" }, share === null || change === 0 ? "" : signed(share, `${format.number(share * 100, 3)} %`)));
}
