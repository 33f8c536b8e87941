/** Runs, pipelines and artifacts: which page is shown follows from its address. */

import { el, fill, find, nav, problem } from "./common.js";
import { artifactPage, artifactsPage } from "./artifacts.js";
import { comparePage } from "./compare.js";
import { pipelinePage } from "./pipeline.js";
import { runPage, runsPage } from "./runs.js";

// Address, the header's page, what draws it.
const PAGES = [
  [/^\/runs\/?$/, "runs", runsPage],
  [/^\/runs\/([^/]+)$/, "runs", runPage],
  [/^\/pipelines\/([^/]+)$/, "runs", pipelinePage],
  [/^\/compare\/?$/, "runs", comparePage],
  [/^\/artifacts\/?$/, "artifacts", artifactsPage],
  [/^\/artifacts\/([^/]+)$/, "artifacts", artifactPage],
];

async function show() {
  const main = find("#main");
  const path = window.location.pathname;
  const [pattern, active, draw] = PAGES.find(([pattern]) => pattern.test(path)) ?? [/$/, "runs", runsPage];
  if (!document.querySelector(".header")) nav(active);
  fill(main, el("p", { class: "row muted" }, el("span", { class: "spinner", role: "status", "aria-label": "Loading" })));
  try {
    await draw(main, ...path.match(pattern).slice(1).map(decodeURIComponent));
  } catch (error) {
    fill(main, problem(error, show));
  }
}

show();
