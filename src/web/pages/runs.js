/** The list of runs, and one run as it goes. */

import { api, announce, button, el, events, fill, format, icon, pause, problem } from "./common.js";
import { lineChart } from "./chart.js";
import { curveSeries, figureNames, figureLabel } from "./curves.js";
import { drawGraph } from "./graph.js";
import { badge, digestLink, empty, facts, heading, notice, pageTitle, pager, pipelineHref, plural, runHref, seconds, table, when } from "./parts.js";

const PAGE = 50;

// -- the list --

export async function runsPage(main) {
  const chosen = new Set();
  const compare = el("a", { class: "button", "aria-disabled": "true" }, icon("chart"), "Compare two");
  const list = el("div", { class: "stack" });
  const pipelines = el("div", { class: "grid" });
  fill(main,
    pageTitle("Runs", { beside: [compare] }),
    list,
    el("section", { class: "stack", "aria-label": "Pipelines" }, heading("Pipelines"), pipelines));

  const choose = (id, on) => {
    if (on) chosen.add(id);
    else chosen.delete(id);
    const two = chosen.size === 2;
    compare.setAttribute("aria-disabled", String(!two));
    if (two) {
      const [b, a] = [...chosen].sort().reverse();
      compare.setAttribute("href", `/compare?a=${encodeURIComponent(a)}&b=${encodeURIComponent(b)}`);
    } else compare.removeAttribute("href");
    compare.lastChild.textContent = two ? "Compare" : chosen.size === 1 ? "Choose one more" : "Compare two";
  };

  let offset = 0;
  let shown = "";
  const show = async () => {
    const answer = await api(`/api/runs?offset=${offset}&limit=${PAGE}`);
    const same = JSON.stringify(answer, (key, value) => (key === "seconds" ? undefined : value));
    if (same !== shown) fill(list, runList(answer, chosen, choose, (to) => ((offset = to), show())));
    shown = same;
    return answer.runs.some((run) => run.state === "running");
  };
  let going = await show();
  showPipelines(pipelines);
  // Runs begin in other processes.
  for (;;) {
    await pause(going ? 3000 : 10000);
    if (!document.hidden) going = await show().catch(() => going);
  }
}

function runList({ runs, total, offset }, chosen, choose, go) {
  if (total === 0) {
    return empty("play", el("p", {}, "Nothing has run in this project yet."), el("p", { class: "small" }, "Start a run in a terminal: ", el("code", {}, "tinylm run pipelines/NAME.yaml"), ". It appears here as it goes."));
  }
  const row = (run) => {
    const box = el("input", { type: "checkbox", checked: chosen.has(run.id), "aria-label": `Compare run ${run.id}`, onchange: (event) => choose(run.id, event.target.checked) });
    return el("li", { class: "run-row" },
      box,
      badge(run.state),
      el("a", { class: "strong cut", href: runHref(run.id) }, run.pipeline ?? "a run without a record"),
      el("span", { class: "mono tiny muted run-id" }, run.id),
      el("span", { class: "small muted" }, when(run.started)),
      el("span", { class: "small number right" }, run.state === "running" ? `${seconds(run.seconds)} so far` : seconds(run.seconds)),
      run.damage && el("span", { class: "small problem run-damage" }, run.damage));
  };
  return [el("ol", { class: "plain card flush run-list", "aria-label": "Runs, the newest first" }, runs.map(row)), pager({ offset, count: runs.length, total, page: PAGE, what: "runs", go })];
}

async function showPipelines(node) {
  try {
    const { pipelines } = await api("/api/pipelines");
    const card = ({ file, name, description, stages, error }) =>
      error
        ? el("div", { class: "card stack tight" }, el("h3", {}, name), el("details", {}, el("summary", { class: "small problem" }, "does not read"), el("pre", { class: "tiny verbatim" }, error)))
        : el("a", { class: "card stack tight", href: pipelineHref(file) }, el("h3", {}, name), el("p", { class: "small muted" }, description || "without a description"), el("p", { class: "tiny muted" }, plural(stages, "stage")));
    fill(node, pipelines.length === 0 ? el("p", { class: "muted small" }, "There are none in pipelines/.") : pipelines.map(card));
  } catch (error) {
    fill(node, problem(error, () => showPipelines(node)));
  }
}

// -- one run --

export async function runPage(main, id) {
  const view = new RunView(main, id);
  await view.load();
}

class RunView {
  constructor(main, id) {
    this.main = main;
    this.id = id;
    this.path = `/api/runs/${encodeURIComponent(id)}`;
    /** Stage -> its row. */
    this.rows = new Map();
    this.curves = new Map();
    this.pending = new Set();
  }

  async load() {
    this.run = await api(this.path);
    this.takeStages();
    this.draw();
    await Promise.all([this.loadCurves(), this.loadGraph()]);
    if (this.run.state === "running") await this.follow();
  }

  takeStages() {
    const begun = ({ status, seconds }) => (status === "running" ? Date.now() - (seconds ?? 0) * 1000 : null);
    this.stages = new Map(this.run.stages.map((stage) => [stage.stage, { ...stage, begun: begun(stage) }]));
  }

  draw() {
    const { run } = this;
    this.top = el("div", { class: "stack" });
    this.charts = el("section", { class: "stack", "aria-label": "Curves", hidden: true });
    this.graph = el("section", { class: "stack", "aria-label": "Graph", hidden: true });
    this.list = el("ol", { class: "plain card flush stage-list" });
    fill(this.main, this.top, this.charts, this.graph, el("section", { class: "stack", "aria-label": "Stages" }, heading("Stages"), this.list));
    this.drawTop();
    this.rows.clear();
    run.stages.forEach((stage) => this.drawStage(stage.stage));
    if (run.stages.length === 0) this.list.append(el("li", { class: "none muted" }, run.state === "running" ? "No stage has begun yet." : "No stage is on record."));
  }

  drawTop() {
    const { run } = this;
    const count = (status) => [...this.stages.values()].filter((stage) => stage.status === status).length;
    const parts = [["ran", count("ran")], ["cached", count("cached")], ["failed", count("failed")], ["skipped", count("skipped")]].filter(([, n]) => n > 0);
    const finished = parts.reduce((sum, [, n]) => sum + n, 0);
    const total = Math.max(run.planned ?? 0, this.stages.size);
    this.clock = el("dd", {}, seconds(run.seconds));
    const figures = el("dl", { class: "figures" },
      el("div", {}, el("dt", {}, "Stages"), el("dd", {}, run.state === "running" || run.state === "interrupted" ? `${finished} of ${total}` : format.count(total))),
      parts.map(([name, n]) => el("div", {}, el("dt", {}, name), el("dd", {}, format.count(n)))),
      el("div", {}, el("dt", {}, run.state === "running" ? "Running for" : "Took"), this.clock));
    const earlier = button("Compare", { icon: "chart", onclick: () => (window.location.href = `/compare?b=${encodeURIComponent(this.id)}`) });
    fill(this.top,
      pageTitle(run.pipeline ?? this.id, { above: [["Runs", "/runs"]], beside: [badge(run.state), earlier], text: `${run.pipeline ?? "run"} ${run.state}` }),
      el("p", { class: "small muted row" }, el("span", { class: "mono" }, this.id), when(run.started)),
      run.state === "interrupted" && notice("warn", "alert", "The process of this run is gone and left no summary: it was killed, or the machine went down. What was finished or saved is kept; run it again to go on from there."),
      run.error && notice("bad", "alert", el("span", { class: "verbatim" }, run.error)),
      run.damage && notice("warn", "alert", `The record of this run is not whole: ${run.damage}`),
      run.preparing && run.state === "running" && el("div", { class: "card" }, progressBar(run.preparing, "sources")),
      figures);
  }

  drawStage(name) {
    const stage = this.stages.get(name);
    let row = this.rows.get(name);
    if (!row) {
      row = new StageRow(this, name);
      this.rows.set(name, row);
      if (this.rows.size === 1) fill(this.list);
      this.list.append(row.node);
    }
    row.draw(stage);
  }

  // -- curves --

  async loadCurves() {
    const { stages } = await api(`${this.path}/metrics`);
    this.curves = new Map(stages.map((curves) => [curves.stage, curves]));
    this.drawCurves();
  }

  drawCurves() {
    const all = [...this.curves.values()];
    const damaged = all.filter((curves) => curves.damage);
    this.charts.hidden = all.length === 0;
    if (all.length === 0) return;
    if (!this.chart) {
      this.figure = el("select", { class: "select", "aria-label": "Figure", onchange: () => this.drawCurves() });
      this.chart = lineChart({ xLabel: "step", yLabel: "loss", name: "Curves of the trainings" });
      this.damage = el("div", { class: "stack tight" });
      fill(this.charts, el("div", { class: "heading" }, el("h2", {}, "Training"), el("div", { class: "figure-select" }, this.figure)), el("div", { class: "card" }, this.chart.node), this.damage);
    }
    const names = figureNames(all);
    if (names.join() !== this.figureNames) {
      const before = this.figure.value;
      this.figureNames = names.join();
      fill(this.figure, names.map((name) => el("option", { value: name, selected: name === before }, figureLabel(name))));
    }
    this.chart.update(curveSeries(all, this.figure.value), { yLabel: figureLabel(this.figure.value).toLowerCase() });
    fill(this.damage, damaged.map(({ stage, damage }) => notice("warn", "alert", `${stage}: ${damage}`)));
  }

  addPoint(stage, step, figures) {
    const curves = this.curves.get(stage) ?? { stage, columns: ["step"], rows: [], total: 0 };
    this.curves.set(stage, curves);
    for (const name of Object.keys(figures)) {
      if (!curves.columns.includes(name)) {
        curves.columns.push(name);
        curves.rows.forEach((row) => row.push(null));
      }
    }
    const row = curves.columns.map((name) => (name === "step" ? step : (figures[name] ?? null)));
    // A stage that goes on from a state tells its earlier points again.
    while (curves.rows.length > 0 && curves.rows.at(-1)[0] >= step) curves.rows.pop();
    curves.rows.push(row);
    curves.total += 1;
  }

  // -- graph --

  async loadGraph() {
    try {
      const { pipelines } = await api("/api/pipelines");
      const own = pipelines.filter(({ name, error }) => name === this.run.pipeline && !error);
      if (own.length !== 1) return;
      this.pipeline = await api(`/api/pipelines/${encodeURIComponent(own[0].file)}`);
      this.drawGraph();
    } catch {
      // The graph is an extra: a pipeline that does not read says so on its own page.
    }
  }

  drawGraph() {
    if (!this.pipeline) return;
    const { stages, edges, file } = this.pipeline;
    const state = ({ stage }) => this.stages.get(stage)?.status ?? (this.run.state === "running" ? "waiting" : undefined);
    const nodes = stages.map((stage) => ({ ...stage, state: state(stage), href: this.stages.has(stage.stage) ? `#${stageId(stage.stage)}` : null, title: stage.description || null }));
    const key = nodes.map((node) => node.state).join();
    if (key === this.graphKey) return;
    this.graphKey = key;
    this.graph.hidden = false;
    fill(this.graph, heading("Graph", el("a", { class: "small", href: pipelineHref(file) }, "the pipeline as it is now")), el("div", { class: "card flush" }, drawGraph(nodes, edges)));
  }

  // -- events --

  /** Follows the events of a run in another process until it ends. */
  async follow() {
    const begun = Date.now() - (this.run.seconds ?? 0) * 1000;
    const tick = () => {
      this.clock.textContent = seconds((Date.now() - begun) / 1000);
      for (const { stage, status } of this.stages.values()) if (status === "running") this.change(`stage ${stage}`);
    };
    const ticking = setInterval(tick, 1000);
    try {
      for await (const { event, data } of events(`${this.path}/events?after=${this.run.events_end}`, { follow: true })) {
        if (event === "end") break;
        if (event === "error") throw new Error(JSON.parse(data).error.message);
        this.take(JSON.parse(data));
      }
      announce(`The run has ended`);
      clearInterval(ticking);
      await this.finish();
    } catch (error) {
      this.top.append(problem(error, () => this.load()));
    } finally {
      clearInterval(ticking);
    }
  }

  /** The summary has what the events left out; what is open stays open. */
  async finish() {
    this.run = await api(this.path);
    this.takeStages();
    this.drawTop();
    this.run.stages.forEach((stage) => this.drawStage(stage.stage));
    await this.loadCurves();
    this.drawGraph();
  }

  take(event) {
    const stage = this.stages.get(event.stage);
    switch (event.event) {
      case "preparing": {
        const { event: _, ...progress } = event;
        this.run.preparing = progress;
        this.change("top");
        break;
      }
      case "stage_started":
        this.run.preparing = null;
        this.stages.set(event.stage, { ...event, status: "running", seconds: 0, begun: Date.now(), outputs: {}, measurements: [], progress: null });
        this.run.logs.push(event.stage);
        this.change("top", "graph");
        break;
      case "stage_progress":
        if (stage) stage.progress = event;
        break;
      case "stage_measured":
        if (stage) stage.measurements = [...stage.measurements.filter(({ name }) => name !== event.name), event];
        break;
      case "stage_metrics":
        this.addPoint(event.stage, event.step, event.figures);
        this.change("curves");
        break;
      case "stage_finished":
        this.stages.set(event.stage, { measurements: [], ...event, progress: null });
        this.run.preparing = null;
        this.change("top", "graph");
        break;
      default:
    }
    if (this.stages.has(event.stage)) this.change(`stage ${event.stage}`);
  }

  /** Draws what has changed with the next frame, however many events came. */
  change(...what) {
    if (this.pending.size === 0) setTimeout(() => this.drawChanges(), 100);
    what.forEach((part) => this.pending.add(part));
  }

  drawChanges() {
    const changed = [...this.pending];
    this.pending.clear();
    for (const part of changed) {
      if (part === "top") this.drawTop();
      else if (part === "curves") this.drawCurves();
      else if (part === "graph") this.drawGraph();
      else this.drawStage(part.slice("stage ".length));
    }
  }
}

const stageId = (name) => `stage-${encodeURIComponent(name)}`;

function progressBar({ phase, done, total, unit, note }, name) {
  const amount = (n) => (unit === "B" ? format.bytes(n) : format.count(n));
  const far = total ? `${amount(done)} of ${amount(total)}${unit === "B" ? "" : ` ${unit}`}` : `${amount(done)}${unit === "B" ? "" : ` ${unit}`}`;
  return el("div", { class: "stack tight progress" },
    total ? el("progress", { max: total, value: Math.min(done, total), "aria-label": `Progress of ${name}` }) : el("progress", { "aria-label": `Progress of ${name}` }),
    el("p", { class: "tiny muted number row" }, el("span", {}, phase), el("span", {}, far), note && el("span", { class: "push" }, note)));
}

/** A stage in the list: a line, and more when it is opened. */
class StageRow {
  constructor(view, name) {
    this.view = view;
    this.name = name;
    this.head = el("summary", { class: "stage-head" });
    this.bar = el("div", { class: "stage-bar" });
    this.about = el("div", { class: "stack" });
    this.body = el("div", { class: "stack stage-body" }, this.about);
    this.details = el("details", { class: "stage", id: stageId(name), ontoggle: () => this.drawBody() }, this.head, this.bar, this.body);
    this.node = el("li", {}, this.details);
  }

  draw(stage) {
    this.stage = stage;
    const why = stage.error ? stage.error.split("\n")[0] : stage.status === "cached" ? "" : stage.reason?.detail;
    // Of a running one, the seconds are those since it began.
    const took = stage.begun ? (Date.now() - stage.begun) / 1000 : stage.seconds;
    fill(this.head, badge(stage.status), el("span", { class: "strong stage-name" }, stage.stage), el("span", { class: "tiny muted stage-kind" }, stage.kind),
      el("span", { class: `small cut stage-why ${stage.error ? "problem" : "muted"}`, title: why }, why),
      el("span", { class: "small number muted right" }, stage.status === "skipped" || stage.status === "cached" ? "" : seconds(took)));
    fill(this.bar, stage.status === "running" && stage.progress && progressBar(stage.progress, stage.stage));
    this.drawBody();
  }

  drawBody() {
    if (!this.details.open) return;
    const { stage } = this;
    const outputs = Object.entries(stage.outputs ?? {});
    const resumed = stage.resumes && `from step ${format.count(stage.resumes.step)}${stage.resumes.steps ? ` of ${format.count(stage.resumes.steps)}` : ""}`;
    const measured = stage.measurements ?? [];
    const has = this.view.run.logs.includes(this.name);
    if (has && !this.log) {
      this.log = new Log(`${this.view.path}/logs/${encodeURIComponent(this.name)}`);
      this.body.append(this.log.node);
    }
    const parts = [
      stage.error && el("pre", { class: "tiny verbatim error-text" }, stage.error),
      facts([
        ["Why", stage.reason?.detail],
        ["Went on", resumed],
        ["Outputs", outputs.length > 0 && el("span", { class: "row" }, outputs.map(([port, digest]) => el("span", { class: "small" }, `${port} `, digestLink(digest))))],
        ["Action", stage.key && el("span", { class: "mono tiny" }, stage.key)],
      ]),
      measured.length > 0 && table(["measured", ">value", "unit"], measured.map(({ name, value, unit }) => el("tr", {}, el("td", {}, name), el("td", { class: "right" }, value === null ? "—" : format.number(value, 5)), el("td", { class: "muted" }, unit)))),
    ];
    fill(this.about, parts);
    this.log?.open(stage.status === "running");
  }
}

/** The log of a stage: its end first, earlier parts when they are asked for. */
class Log {
  constructor(path) {
    this.path = path;
    /** When it was read last. */
    this.at = null;
    this.start = 0;
    this.text = el("pre", { class: "tiny log", tabindex: "0", "aria-label": "Log" });
    this.more = button("Earlier lines", { class: "compact quiet", icon: "up", hidden: true, onclick: () => this.earlier() });
    this.state = el("p", { class: "tiny muted" });
    this.node = el("div", { class: "stack tight" }, el("div", { class: "row" }, el("h3", {}, "Log"), this.more), this.text, this.state);
  }

  /** Reads it, and again as it grows: every two seconds, and once when its stage has ended. */
  open(running) {
    const isDue = running ? Date.now() - this.at >= 2000 : this.running;
    if (this.at === null || isDue) this.read();
    this.running = running;
  }

  async read() {
    this.at = Date.now();
    try {
      const { text, start, size } = await api(this.path);
      const atEnd = this.text.scrollTop + this.text.clientHeight >= this.text.scrollHeight - 8;
      fill(this.text, logLines(text));
      this.show(start, size);
      if (atEnd) this.text.scrollTop = this.text.scrollHeight;
    } catch (error) {
      this.state.textContent = error.message;
    }
  }

  async earlier() {
    const { text, start, size } = await api(`${this.path}?before=${this.start}`).catch((error) => ((this.state.textContent = error.message), {}));
    if (text === undefined) return;
    this.text.prepend(...logLines(text));
    this.show(start, size);
  }

  show(start, size) {
    this.start = start;
    this.more.hidden = start === 0;
    this.text.hidden = size === 0;
    this.state.textContent = size === 0 ? "It wrote nothing." : start > 0 ? `${format.bytes(start)} before these lines` : "";
  }
}

/** Lines with the time and the level set apart. */
function logLines(text) {
  return text.split("\n").filter(Boolean).map((line) => {
    const [, time, level, rest] = line.match(/^\d{4}-\d\d-\d\dT(\d\d:\d\d:\d\d)\.\d+Z\s+(ERROR|WARN|INFO|DEBUG|TRACE) (.*)$/) ?? [];
    if (!time) return el("span", { class: "log-line" }, `${line}\n`);
    return el("span", { class: `log-line level-${level.toLowerCase()}` }, el("span", { class: "muted" }, `${time} `), `${rest}\n`);
  });
}
