/** A pipeline as it is now: its graph, and what would run. */

import { api, el, fill } from "./common.js";
import { drawGraph } from "./graph.js";
import { badge, digestLink, heading, notice, pageTitle, plural, table } from "./parts.js";

export async function pipelinePage(main, name) {
  const pipeline = await api(`/api/pipelines/${encodeURIComponent(name)}`);
  const { stages, edges } = pipeline;
  const count = (verdict) => stages.filter((stage) => stage.verdict === verdict).length;
  const figure = (label, n) => el("div", {}, el("dt", {}, label), el("dd", {}, n));
  const nodes = stages.map((stage) => ({ ...stage, state: stage.verdict, href: `#${stageId(stage.stage)}`, title: stage.description || null }));
  fill(main,
    pageTitle(pipeline.name, { above: [["Runs", "/runs"]], text: pipeline.name }),
    pipeline.description && el("p", { class: "muted" }, pipeline.description),
    pipeline.problem && notice("warn", "alert", el("span", { class: "verbatim" }, `What would run is not known: ${pipeline.problem}`)),
    el("dl", { class: "figures" }, figure("Stages", stages.length), !pipeline.problem && [figure("Cached", count("cached")), figure("To run", count("run")), figure("Pending", count("pending"))]),
    el("section", { class: "stack", "aria-label": "Graph" }, heading("Graph"), el("div", { class: "card flush" }, drawGraph(nodes, edges))),
    el("section", { class: "stack", "aria-label": "Stages" }, heading("Stages", el("span", { class: "small muted" }, plural(stages.length, "stage"))),
      el("div", { class: "card flush" }, table(["stage", "kind", "verdict", "why", "outputs of its latest run"], stages.map(row)))));
}

const stageId = (name) => `stage-${encodeURIComponent(name)}`;

function row({ stage, kind, description, verdict, reason, outputs }) {
  const made = outputs.filter(({ digest }) => digest);
  return el("tr", { id: stageId(stage) },
    el("td", {}, el("span", { class: "strong" }, stage), description && el("p", { class: "tiny muted" }, description)),
    el("td", { class: "muted" }, kind),
    el("td", {}, verdict ? badge(verdict) : "—"),
    el("td", { class: "small muted" }, verdict === "cached" ? "" : reason?.detail),
    el("td", {}, el("div", { class: "row" }, made.map(({ port, digest }) => el("span", { class: "small" }, digestLink(digest, port))))));
}
