/** What is in the store, and one artifact with its files. */

import { api, el, fill, format, icon } from "./common.js";
import { fileView } from "./files.js";
import { artifactHref, digestLink, empty, facts, heading, into, notice, pageTitle, pager, pipelineHref, plural, runHref, seconds, settled, table, when } from "./parts.js";

const PAGE = 50;

// -- the list --

export async function artifactsPage(main) {
  const given = new URLSearchParams(window.location.search);
  const asked = { search: given.get("search") ?? "", earlier: given.get("earlier") === "true", offset: 0 };
  const list = el("div", { class: "stack" });
  const search = el("input", { class: "input", type: "search", value: asked.search, placeholder: "Stage, pipeline, kind, type or digest", "aria-label": "Search artifacts" });
  const earlier = el("input", { type: "checkbox", checked: asked.earlier });
  const show = () => {
    const params = new URLSearchParams({ search: asked.search, earlier: asked.earlier });
    window.history.replaceState(null, "", asked.search || asked.earlier ? `?${params}` : window.location.pathname);
    return into(list, `/api/artifacts?${params}&offset=${asked.offset}&limit=${PAGE}`, (answer) => artifactList(answer, asked, (offset) => ((asked.offset = offset), show())));
  };
  search.addEventListener("input", settled(() => (Object.assign(asked, { search: search.value.trim(), offset: 0 }), show())));
  earlier.addEventListener("change", () => (Object.assign(asked, { earlier: earlier.checked, offset: 0 }), show()));
  fill(main,
    pageTitle("Artifacts"),
    el("div", { class: "row" }, el("div", { class: "fill search" }, search), el("label", { class: "check small" }, earlier, "Earlier ones too")),
    list);
  await show();
}

function artifactList({ artifacts, total, offset, unreadable }, asked, go) {
  const warning = unreadable.length > 0 && notice("warn", "alert", `${plural(unreadable.length, "record")} of the store cannot be read: ${unreadable[0]}`);
  if (total === 0) {
    const why = asked.search ? `Nothing is called “${asked.search}”.` : "Nothing is in the store yet: artifacts appear when a pipeline has run.";
    return [warning, empty("folder", el("p", {}, why))];
  }
  const row = (made) => {
    const of = made.stages.length > 0 ? made.stages : [{ pipeline: "", stage: made.kind, latest: false }];
    const [first, ...others] = of;
    return el("tr", {},
      el("td", {}, el("a", { class: "strong", href: artifactHref(made.digest) }, outputName(first.stage, made.port)),
        el("p", { class: "tiny muted" }, first.pipeline, others.length > 0 && el("span", { title: others.map(({ pipeline, stage }) => `${pipeline}: ${stage}`).join("\n") }, ` and ${others.length} more`))),
      el("td", {}, made.type ?? el("span", { class: "problem" }, "its manifest is gone")),
      el("td", { class: "muted" }, made.kind),
      el("td", { class: "right" }, made.bytes === null ? "—" : format.bytes(made.bytes), el("p", { class: "tiny muted" }, made.files === null ? "" : plural(made.files, "file"))),
      el("td", {}, el("a", { class: "small", href: runHref(made.run), title: made.run }, when(made.when))),
      el("td", {}, el("span", { class: "mono tiny muted" }, format.digest(made.digest))));
  };
  return [warning, el("div", { class: "card flush" }, table(["artifact", "type", "made by", ">size", "when", "digest"], artifacts.map(row))), pager({ offset, count: artifacts.length, total, page: PAGE, what: "artifacts", go })];
}

/** `base.model`; the stage alone where its output has the same name. */
function outputName(stage, port) {
  return stage === port ? stage : `${stage}.${port}`;
}

// -- one artifact --

export async function artifactPage(main, digest) {
  const path = `/api/artifacts/${encodeURIComponent(digest)}`;
  const artifact = await api(path);
  const maker = artifact.made_by[0];
  const stage = maker?.stages[0];
  const name = maker ? outputName(stage?.stage ?? maker.kind, maker.ports[0]) : "A source";
  fill(main,
    pageTitle(name, { above: [["Artifacts", "/artifacts"]], beside: [el("span", { class: "badge" }, artifact.type)] }),
    el("div", { class: "row small muted" }, el("span", { class: "mono verbatim" }, artifact.digest), el("span", {}, `${format.bytes(artifact.bytes)} in ${plural(artifact.files.length, "file")}`)),
    !maker && notice("", "info", "No action on record made this: it is a source that a pipeline reads, or its record is gone."),
    filesSection(path, artifact),
    el("div", { class: "lineage" }, madeBy(artifact.made_by), usedBy(artifact.used_by)));
}

function filesSection(path, { files, type }) {
  const given = new URLSearchParams(window.location.search).get("file");
  const view = el("div", { class: "card stack file-view" });
  let current = null;
  const choose = (file) => {
    current = file;
    window.history.replaceState(null, "", `?file=${encodeURIComponent(file.path)}`);
    drawList();
    fileView(view, `${path}/files/${file.path.split("/").map(encodeURIComponent).join("/")}`, file);
  };
  const entry = (file) =>
    el("button", { type: "button", class: "file-entry", "aria-current": file === current ? "true" : null, onclick: () => choose(file) },
      icon("file"), el("span", { class: "cut fill", title: file.path }, file.path),
      file.problem ? el("span", { class: "tiny problem" }, file.problem) : el("span", { class: "tiny muted number" }, format.bytes(file.size)));
  const list = el("div", { class: "card flush file-list" });
  const MOST = 300;
  const drawList = () => fill(list, files.slice(0, MOST).map(entry), files.length > MOST && el("p", { class: "tiny muted file-more" }, `and ${format.count(files.length - MOST)} more`));
  const first = files.find(({ path }) => path === given) ?? [...files].sort((a, b) => rank(a, type) - rank(b, type))[0];
  if (first) choose(first);
  return el("section", { class: "files", "aria-label": "Files" }, list, view);
}

/** Which of several files says most of an artifact of this type. */
function rank({ path }, type) {
  const order = [type === "tokenizer" ? /tokenizer\.json$/ : /metrics\.jsonl$/, /^(train|documents|conversations|preferences)[^/]*\.parquet$/, /report\.json$/, /\.(safetensors|gguf)$/, /\.parquet$/, /tokenizer\.json$/, /\.(md|txt|jsonl)$/];
  const at = order.findIndex((pattern) => pattern.test(path));
  return at < 0 ? order.length : at;
}

/** The stages of an action, each with its pipeline. */
function stagesOf(action) {
  if (action.stages.length === 0) return el("span", {}, action.kind, " ", el("span", { class: "tiny muted" }, "of no stage's recent history"));
  return action.stages.map(({ pipeline, stage, latest }) =>
    el("span", { class: "row" }, el("span", { class: "strong" }, stage), el("a", { class: "tiny", href: pipelineHref(pipeline) }, pipeline), !latest && el("span", { class: "badge" }, "earlier")));
}

function madeBy(actions) {
  const part = (action, i) => {
    const inputs = Object.entries(action.inputs);
    return el("div", { class: "card stack" },
      el("div", { class: "stack tight" }, stagesOf(action)),
      facts([
        ["Kind", action.kind],
        ["Run", el("a", { class: "small", href: runHref(action.run) }, when(action.when))],
        ["Took", seconds(action.seconds)],
        ["Why", action.reason?.detail],
        ["Seed", action.seed],
      ]),
      inputs.length > 0 && el("div", { class: "stack tight" }, el("h3", { class: "small" }, "Made from"),
        el("ul", { class: "plain stack tight" }, inputs.flatMap(([port, all]) => all.map(({ digest, labels }) =>
          el("li", { class: "row small" }, el("span", { class: "muted" }, port), digestLink(digest, labels[0] ?? format.digest(digest))))))),
      action.measurements.length > 0 && el("details", {}, el("summary", { class: "small" }, "Measured"), table(["what", ">value", "unit"], action.measurements.map(({ name, value, unit }) => el("tr", {}, el("td", {}, name), el("td", { class: "right" }, value === null ? "—" : format.number(value, 5)), el("td", { class: "muted" }, unit))))),
      el("details", {}, el("summary", { class: "small" }, "Params"), el("pre", { class: "tiny" }, JSON.stringify(action.params, null, 2))),
      i === 0 && el("details", {}, el("summary", { class: "small" }, "Action"), el("p", { class: "mono tiny verbatim" }, action.key)));
  };
  return el("section", { class: "stack made-by", "aria-label": "Made by" }, heading("Made by"), actions.length === 0 ? el("p", { class: "muted small" }, "Nobody that is on record.") : actions.map(part));
}

function usedBy(actions) {
  const MOST = 50;
  const part = (action) =>
    el("li", { class: "card stack tight" },
      stagesOf(action),
      el("p", { class: "row small muted" }, `as ${action.ports.join(", ")} by ${action.kind}`, el("a", { href: runHref(action.run) }, when(action.when))),
      el("p", { class: "row small" }, Object.entries(action.outputs).map(([port, digest]) => el("span", {}, icon("right"), " ", digestLink(digest, port)))));
  return el("section", { class: "stack used-by", "aria-label": "Used by" }, heading("Used by"),
    actions.length === 0 ? el("p", { class: "muted small" }, "Nobody yet.") : el("ul", { class: "plain stack" }, actions.slice(0, MOST).map(part)),
    actions.length > MOST && el("p", { class: "small muted" }, `and ${format.count(actions.length - MOST)} more`));
}
