/** What several pages of the dashboard draw. */

import { api, button, el, fill, format, icon, problem } from "./common.js";

/** Badges: what it is called, and its colour. */
const STATES = {
  running: ["running", "busy"],
  ok: ["done", "ok"],
  failed: ["failed", "bad"],
  interrupted: ["interrupted", "warn"],
  ran: ["ran", "ok"],
  cached: ["cached", ""],
  skipped: ["skipped", "warn"],
  run: ["to run", "busy-still"],
  pending: ["pending", "warn"],
  waiting: ["waiting", ""],
};

export function badge(state) {
  const [label, tone] = STATES[state] ?? [state, ""];
  return el("span", { class: `badge ${tone}` }, label);
}

export const runHref = (id) => `/runs/${encodeURIComponent(id)}`;
export const pipelineHref = (file) => `/pipelines/${encodeURIComponent(file)}`;
export const artifactHref = (digest) => `/artifacts/${encodeURIComponent(digest.replace(/^blake3:/, ""))}`;

/** A time: how long ago, the date behind it. */
export function when(time) {
  return time ? el("time", { datetime: time, title: format.date(time) }, format.ago(time)) : el("span", { class: "muted" }, "—");
}

export function seconds(value) {
  return value === null || value === undefined ? "—" : format.seconds(value);
}

export function plural(n, one, several = `${one}s`) {
  return `${format.count(n)} ${n === 1 ? one : several}`;
}

/** A digest as a link to its artifact. */
export function digestLink(digest, label = format.digest(digest)) {
  return el("a", { class: "mono", href: artifactHref(digest), title: digest }, label);
}

/** A heading with what belongs to it at the right. */
export function heading(title, ...beside) {
  return el("div", { class: "heading" }, el("h2", {}, title), el("div", { class: "row" }, beside));
}

/** The title of a page, above it where it belongs to. */
export function pageTitle(title, { above = [], beside = [], text = title } = {}) {
  document.title = `${text} · tinylm`;
  const links = above.map(([label, href]) => el("a", { href }, label));
  return el("div", { class: "heading" },
    el("div", { class: "stack tight" },
      links.length > 0 && el("p", { class: "small row crumbs" }, links),
      el("h1", { class: "verbatim" }, title)),
    el("div", { class: "row" }, beside));
}

export function notice(tone, drawing, ...text) {
  return el("div", { class: `notice ${tone}` }, icon(drawing), el("p", {}, text));
}

export function empty(drawing, ...text) {
  return el("div", { class: "empty" }, icon(drawing), text);
}

/** A table; the names of columns with numbers begin with `>`. `bounded`: it scrolls below its headings. */
export function table(head, rows, { bounded = false } = {}) {
  const headings = head.map((name) => {
    const right = name.startsWith(">");
    return el("th", { scope: "col", class: right && "right" }, right ? name.slice(1) : name);
  });
  return el("div", { class: bounded ? "scroll bounded" : "scroll" },
    el("table", { class: "table" }, el("thead", {}, el("tr", {}, headings)), el("tbody", {}, rows)));
}

/** A list of names and values: `[[name, value], …]`; those without a value are left out. */
export function facts(pairs) {
  const present = pairs.filter(([, value]) => value !== null && value !== undefined && value !== false);
  return el("dl", { class: "facts" }, present.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

/** Pages of something long: `go(offset)` shows another one. `what`: its name in the plural. */
export function pager({ offset, count, total, page, what, go }) {
  if (total <= page && offset === 0) return null;
  const last = Math.max(0, Math.floor((total - 1) / page) * page);
  const step = (label, drawing, to, off) => button(label, { icon: drawing, only: true, class: "compact", disabled: off, onclick: () => go(to) });
  const range = count > 0 ? `${format.count(offset + 1)} to ${format.count(offset + count)}` : "none";
  return el("nav", { class: "row pager", "aria-label": `Pages of ${what}` },
    step(`Previous ${what}`, "left", Math.max(0, offset - page), offset === 0),
    el("span", { class: "small muted number", "aria-live": "polite" }, `${range} of ${format.count(total)} ${what}`),
    step(`Next ${what}`, "right", offset + page, offset + count >= total),
    total > 3 * page && button("Last page", { class: "compact quiet", disabled: offset >= last, onclick: () => go(last) }));
}

/** Fills `node` with what `draw` gives of `path`'s answer, or with what went wrong there. */
export async function into(node, path, draw) {
  node.setAttribute("aria-busy", "true");
  try {
    fill(node, draw(await api(path)));
  } catch (error) {
    fill(node, problem(error, () => into(node, path, draw)));
  } finally {
    node.removeAttribute("aria-busy");
  }
}

/** Calls `work` after the reader has stopped typing. */
export function settled(work, milliseconds = 250) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), milliseconds);
  };
}

/** Tabs: `[[name, label, draw]]`; `draw(panel)` fills the panel when its tab is chosen. */
export function tabs(entries, label) {
  const panel = el("div", { class: "stack", role: "tabpanel", tabindex: "-1" });
  const choose = (index, focus) => {
    items.forEach((item, i) => {
      item.setAttribute("aria-selected", String(i === index));
      item.tabIndex = i === index ? 0 : -1;
    });
    if (focus) items[index].focus();
    fill(panel);
    entries[index][2](panel);
  };
  const keys = (event) => {
    const at = items.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: items.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose((to + items.length) % items.length, true);
  };
  const items = entries.map(([, text], i) => el("button", { type: "button", role: "tab", onclick: () => choose(i) }, text));
  choose(0);
  const list = el("div", { class: "tabs", role: "tablist", "aria-label": label, onkeydown: keys }, items);
  return entries.length > 1 ? [list, panel] : [panel];
}
