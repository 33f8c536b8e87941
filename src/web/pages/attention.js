/** The attention view: asks the server for the attention weights of a text, and draws them: a small map of each layer
 *  and head to choose from, the chosen head large, and what comes next. Texts of tokens are drawn as text. */

import { announce, api, button, el, field, fill, find, format, icon, nav, problem, storage } from "/static/common.js";

const EXAMPLE = "Once upon a time there was a little cat. The cat";
const KEPT = "tinylm.attention";

/** What the page shows: the server's answer with `pattern` of each head, and what of it is chosen. */
const state = {
  view: null,
  layer: 0,
  head: 0,
  /** The token whose attention is shown, and the one that the pointer is at. */
  token: 0,
  hovered: null,
  /** `from`: whom the token attends to; `to`: who attends to it. */
  direction: "from",
  /** Whether each row is shaded by its largest weight. */
  relative: false,
};

let running = null;

// -- texts of tokens --

/** A token on one line, with what is not seen made visible, as the command line writes it. */
function label(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Z}\p{Cs}]|\p{Noncharacter_Code_Point}/gu, (c) => {
    const known = { " ": "␣", "\n": "⏎", "\t": "⇥" }[c];
    return known ?? `\\u{${c.codePointAt(0).toString(16)}}`;
  });
}

function shortened(text, most) {
  const characters = [...text];
  return characters.length > most ? `${characters.slice(0, most - 1).join("")}…` : text;
}

function labelOf(i) {
  return label(state.view.tokens[i].token);
}

const share = (weight) => (weight >= 0.005 ? weight.toFixed(2) : "0");

// -- weights --

function weights() {
  return state.view.layers[state.layer][state.head];
}

/** How much token i looks at j, from 0 to 1 as it is shaded. */
function shade(rows, i, j) {
  const weight = rows[i][j];
  return state.relative ? weight / Math.max(...rows[i]) : weight;
}

/** Means over all tokens but the first, as `tinylm attention` prints them. */
function patternOf(rows) {
  const mean = (of) => rows.slice(1).reduce((sum, row, i) => sum + of(row, i + 1), 0) / (rows.length - 1);
  const bits = (row) => row.reduce((sum, w) => (w > 0 ? sum - w * Math.log2(w) : sum), 0);
  return {
    previous: mean((row, i) => row[i - 1]),
    first: mean((row) => row[0]),
    itself: mean((row, i) => row[i]),
    entropy: mean(bits),
  };
}

function mostly({ previous, first, itself }) {
  const [weight, name] = [[previous, "the previous token"], [first, "the first token"], [itself, "itself"]]
    .sort((a, b) => b[0] - a[0])[0];
  return weight > 0.5 ? name : null;
}

// -- the form --

const model = el("select", { class: "select", disabled: true });
const modelField = field("Model", model);
const modeText = el("button", { type: "button", "aria-pressed": "true", onclick: () => setMode("text") }, "Text");
const modeChat = el("button", { type: "button", "aria-pressed": "false", onclick: () => setMode("chat") }, "Chat");
const text = el("textarea", { class: "textarea", rows: 3, spellcheck: "false" });
const textField = field("Text", text, "Read as it is, spaces and line breaks included. Ctrl + Enter shows it.");
const turns = el("div", { class: "turns", role: "group", "aria-label": "Turns of the chat" });
const chatField = el("div", { class: "stack tight", hidden: true }, turns,
  el("div", { class: "row" }, button("Add a turn", { icon: "plus", class: "compact", onclick: () => addTurn() })));
const show = button("Show attention", { type: "submit", icon: "grid", class: "primary" });
const spinner = el("span", { class: "spinner", hidden: true, role: "status", "aria-label": "Computing" });

let models = [];

function mode() {
  return modeChat.getAttribute("aria-pressed") === "true" ? "chat" : "text";
}

function setMode(chosen) {
  modeText.setAttribute("aria-pressed", String(chosen === "text"));
  modeChat.setAttribute("aria-pressed", String(chosen === "chat"));
  textField.hidden = chosen !== "text";
  chatField.hidden = chosen !== "chat";
}

function addTurn(role = nextRole(), content = "") {
  const roles = ["system", "user", "assistant"];
  const who = el("select", { class: "select", "aria-label": "Who speaks" },
    roles.map((name) => el("option", { value: name, selected: name === role }, name)));
  const said = el("textarea", { class: "textarea", rows: 1, "aria-label": "What is said" });
  said.value = content;
  const turn = el("div", { class: "turn" }, who,
    button("Remove this turn", { icon: "trash", only: true, class: "quiet", onclick: () => turn.remove() }));
  who.after(said);
  turns.append(turn);
  if (content === "") said.focus();
}

function readTurns() {
  return [...turns.children].map((turn) => ({
    role: find("select", turn).value,
    content: find("textarea", turn).value,
  }));
}

function nextRole() {
  const last = readTurns().at(-1)?.role;
  return last === "user" ? "assistant" : "user";
}

async function loadModels() {
  try {
    models = (await api("/v1/models")).data;
  } catch (error) {
    fill(find("#problem"), problem(error, loadModels));
    return;
  }
  fill(find("#problem"));
  const kept = keptInput();
  fill(model, models.map(({ id }) => el("option", { value: id, selected: id === kept.model }, id)));
  model.disabled = models.length === 0;
  show.disabled = models.length === 0;
  chooseModel();
  if (models.length === 0) showNothing("There is no model yet: run a pipeline that trains one, or name one with `tinylm serve --model`.");
}

/** A chat needs a model that knows turns. */
function chooseModel() {
  const chosen = models.find(({ id }) => id === model.value);
  const chats = chosen?.tinylm?.chat !== false;
  modeChat.disabled = !chats;
  modeChat.title = chats ? "" : "This model has no tokens for turns";
  if (!chats) setMode("text");
}

function keptInput() {
  try {
    return JSON.parse(storage.get(KEPT, "sessionStorage")) ?? {};
  } catch {
    return {};
  }
}

function showNothing(why) {
  fill(find("#nothing"), icon("grid"), el("p", {}, why));
}

async function submit(event) {
  event?.preventDefault();
  running?.abort();
  const own = (running = new AbortController());
  const asked = mode() === "chat" ? { messages: readTurns() } : { text: text.value };
  storage.set(KEPT, JSON.stringify({ model: model.value, mode: mode(), text: text.value, turns: readTurns() }), "sessionStorage");
  const result = find("#result");
  spinner.hidden = false;
  result.setAttribute("aria-busy", "true");
  fill(find("#problem"));
  try {
    const view = await api("/api/attention", { body: { model: model.value, ...asked }, signal: own.signal });
    showView(view);
  } catch (error) {
    if (error.name === "AbortError") return;
    fill(find("#problem"), problem(error));
  }
  spinner.hidden = true;
  result.removeAttribute("aria-busy");
}

// -- the result --

const maps = el("div", { class: "maps", role: "group", "aria-label": "Heads by layer" });
const strip = el("div", { class: "tokens", role: "toolbar", "aria-label": "Tokens" });
const title = el("h2", {});
const facts = el("p", { class: "muted small" });
const readout = el("p", { class: "small readout" });
const canvas = el("canvas", { class: "heat", role: "img" });
const ink = el("span", { class: "ink", "aria-hidden": "true" });
const plot = el("div", { class: "plot" }, canvas, ink);
const next = el("ol", { class: "bars plain", role: "list" });
const from = segment("attends to", "from");
const to = segment("is attended to by", "to");
const relative = el("input", { type: "checkbox", id: "relative", onchange: () => ((state.relative = relative.checked), drawAll()) });

function segment(words, direction) {
  return el("button", { type: "button", onclick: () => ((state.direction = direction), showToken()) }, words);
}

function build() {
  const counted = el("span", { class: "muted small", id: "counted" });
  fill(find("#result"),
    el("section", { class: "card stack heads", "aria-labelledby": "heads-title" },
      el("div", { class: "heading" }, el("h2", { id: "heads-title" }, "Heads"), counted),
      el("div", { class: "scroll" }, maps),
      el("p", { class: "hint" }, "A row is a layer, from the input up, a column a head. In a map, a row is a token."),
      el("label", { class: "row small", for: "relative" }, relative, "Shade each row by its largest weight")),
    el("section", { class: "card stack large", "aria-label": "The chosen head" },
      el("div", { class: "stack tight" }, title, facts),
      el("div", { class: "row" },
        el("span", { class: "small muted" }, "The chosen token"),
        el("div", { class: "segments", role: "group", "aria-label": "Direction" }, from, to)),
      strip, readout, plot),
    el("section", { class: "card stack next", "aria-labelledby": "next-title" },
      el("h2", { id: "next-title" }, "What comes next"), next));
  find("#asked").append(
    el("div", { class: "row" }, el("div", { class: "fill" }, modelField),
      el("div", { class: "field" }, el("span", { class: "label" }, "Input"),
        el("div", { class: "segments", role: "group", "aria-label": "Input" }, modeText, modeChat))),
    textField, chatField, el("div", { class: "row" }, show, spinner));
}

function showView(view) {
  const before = state.view;
  state.view = view;
  const [layers, heads] = [view.layers.length, view.layers[0].length];
  if (!before || state.layer >= layers || state.head >= heads) Object.assign(state, { layer: 0, head: 0 });
  Object.assign(state, { token: view.tokens.length - 1, hovered: null });
  find("#nothing").hidden = true;
  find("#result").hidden = false;
  const many = (n, what) => `${format.count(n)} ${what}${n === 1 ? "" : "s"}`;
  find("#counted").textContent = [many(layers, "layer"), many(heads, "head"), many(view.tokens.length, "token")].join(", ");
  fill(strip, view.tokens.map((token, i) => tokenButton(i)));
  fill(next, view.next.map(nextBar));
  drawAll();
  announce(`Attention of ${many(view.tokens.length, "token")} in ${many(layers, "layer")} of ${many(heads, "head")}.`);
}

function nextBar({ id, token, p }) {
  return el("li", {}, el("code", { title: `id ${id}` }, label(token)),
    el("div", { class: "bar", "aria-hidden": "true" }, el("div", { style: { "--share": p } })),
    el("span", { class: "number muted" }, p < 0.001 ? "< 0.1 %" : format.percent(p)));
}

function drawAll() {
  drawMaps();
  showHead();
}

// -- small maps --

function drawMaps() {
  const { layers } = state.view;
  maps.style.setProperty("--heads", layers[0].length);
  const heading = [el("span", { "aria-hidden": "true" }), layers[0].map((_, h) => el("span", {}, h))];
  fill(maps, heading, layers.map((heads, l) => [el("span", {}, l), heads.map((rows, h) => mapButton(rows, l, h))]));
}

function mapButton(rows, l, h) {
  const chosen = l === state.layer && h === state.head;
  const often = rows.length > 1 ? mostly(patternOf(rows)) : null;
  const name = `Layer ${l}, head ${h}${often ? `: mostly ${often}` : ""}`;
  const drawing = el("canvas", { class: "heat", "aria-hidden": "true" });
  const control = el("button", {
    class: "map", type: "button", title: name, "aria-label": name, "aria-pressed": String(chosen),
    tabindex: chosen ? 0 : -1, dataset: { layer: l, head: h }, onclick: () => choose(l, h),
  }, drawing);
  drawing.width = drawing.height = rows.length;
  // Colours are known once it is part of the page.
  queueMicrotask(() => drawing.getContext("2d").putImageData(pixels(rows, colour(drawing)), 0, 0));
  return control;
}

function choose(layer, head) {
  Object.assign(state, { layer, head });
  for (const control of maps.querySelectorAll("button")) {
    const chosen = Number(control.dataset.layer) === layer && Number(control.dataset.head) === head;
    control.setAttribute("aria-pressed", String(chosen));
    control.tabIndex = chosen ? 0 : -1;
    if (chosen && maps.contains(document.activeElement)) control.focus();
  }
  showHead();
}

/** Arrows move among the heads. */
function moveHead(event) {
  const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
  if (!down && !right) return;
  event.preventDefault();
  const { layers } = state.view;
  const clamp = (i, count) => Math.min(Math.max(i, 0), count - 1);
  choose(clamp(state.layer + down, layers.length), clamp(state.head + right, layers[0].length));
}

/** Red, green and blue of an element's text. */
function colour(node) {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  context.fillStyle = getComputedStyle(node).color;
  context.fillRect(0, 0, 1, 1);
  return context.getImageData(0, 0, 1, 1).data;
}

/** A pixel a weight, as opaque as it is large. */
function pixels(rows, [red, green, blue]) {
  const image = new ImageData(rows.length, rows.length);
  rows.forEach((row, i) => {
    for (let j = 0; j <= i; j += 1) {
      image.data.set([red, green, blue, Math.round(255 * shade(rows, i, j))], 4 * (i * rows.length + j));
    }
  });
  return image;
}

// -- the large map --

/** Where its parts lie, in CSS pixels. */
let geometry = { cell: 1, left: 0, top: 0, font: null };
/** The map as drawn last, without the marks of what is chosen. */
const drawn = el("canvas");

/** Sizes of labels, in CSS pixels: none where cells are smaller than the smallest. */
const FONT = { largest: 11, smallest: 8 };

function showHead() {
  const pattern = weights().length > 1 ? patternOf(weights()) : null;
  title.textContent = `Layer ${state.layer}, head ${state.head}`;
  const often = pattern && mostly(pattern);
  facts.textContent = pattern
    ? `${often ? `Mostly ${often}. ` : ""}Previous token ${share(pattern.previous)}, first token ${share(pattern.first)}, `
      + `itself ${share(pattern.itself)}, entropy ${pattern.entropy.toFixed(2)} bits (means over all tokens but the first).`
    : "A single token attends to itself only.";
  drawPlot();
  showToken();
}

function drawPlot() {
  const rows = weights();
  const ratio = window.devicePixelRatio || 1;
  const labels = state.view.tokens.map((_, i) => shortened(labelOf(i), 14));
  geometry = fitted(labels, plot.parentElement.clientWidth - 34);
  const { cell, left, top, font } = geometry;
  const size = left + cell * rows.length + 1;
  drawn.width = drawn.height = canvas.width = canvas.height = Math.round(size * ratio);
  for (const side of ["width", "height"]) canvas.style.setProperty(side, `${size}px`);
  const context = drawn.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  const small = el("canvas");
  small.width = small.height = rows.length;
  small.getContext("2d").putImageData(pixels(rows, colour(canvas)), 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, left, top, cell * rows.length, cell * rows.length);
  const style = getComputedStyle(ink);
  context.strokeStyle = style.borderTopColor;
  context.strokeRect(left - 0.5, top - 0.5, cell * rows.length + 1, cell * rows.length + 1);
  if (font) drawLabels(context, labels, style.color);
}

/** As large cells as fit into `wide` CSS pixels, beside labels if these can be read. */
function fitted(labels, wide) {
  const context = drawn.getContext("2d");
  for (let font = FONT.largest; font >= FONT.smallest; font -= 1) {
    context.font = fontOf(font);
    const room = Math.ceil(Math.max(...labels.map((words) => context.measureText(words).width))) + 8;
    const cell = Math.min(26, Math.floor((wide - room) / labels.length));
    if (cell >= font) return { cell, left: room, top: room, font };
  }
  return { cell: Math.max(3, Math.floor((wide - 2) / labels.length)), left: 1, top: 1, font: null };
}

function fontOf(size) {
  return `${size}px ${getComputedStyle(document.body).fontFamily}`;
}

function drawLabels(context, labels, ink) {
  const { cell, left, top, font } = geometry;
  context.font = fontOf(font);
  context.fillStyle = ink;
  context.textBaseline = "middle";
  labels.forEach((words, i) => {
    context.textAlign = "right";
    context.fillText(words, left - 5, top + (i + 0.5) * cell);
    context.save();
    context.translate(left + (i + 0.5) * cell, top - 5);
    context.rotate(-Math.PI / 2);
    context.textAlign = "left";
    context.fillText(words, 0, 0);
    context.restore();
  });
}

/** Frames the chosen token's row or column. */
function mark() {
  const context = canvas.getContext("2d");
  const { cell, left, top } = geometry;
  const count = weights().length;
  const ratio = window.devicePixelRatio || 1;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(drawn, 0, 0);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.strokeStyle = getComputedStyle(ink).outlineColor;
  context.lineWidth = 1.5;
  const at = state.token * cell;
  if (state.direction === "from") context.strokeRect(left, top + at, (state.token + 1) * cell, cell);
  else context.strokeRect(left + at, top + at, cell, (count - state.token) * cell);
}

/** The row and column of the map that the pointer is at, or null. */
function cellAt(event) {
  const box = canvas.getBoundingClientRect();
  const { cell, left, top } = geometry;
  const j = Math.floor((event.clientX - box.left - left) / cell);
  const i = Math.floor((event.clientY - box.top - top) / cell);
  const count = weights().length;
  return i >= 0 && i < count && j < count ? [i, Math.max(j, 0)] : null;
}

function pointAt(event) {
  const cell = cellAt(event);
  if (!cell) return;
  const [i, j] = cell;
  state.token = state.direction === "from" ? i : Math.min(j, i);
  state.hovered = j <= i ? [i, j] : null;
  showToken();
}

// -- tokens --

function tokenButton(i) {
  const words = labelOf(i);
  return el("button", {
    type: "button", class: "token", title: `token ${i}, id ${state.view.tokens[i].id}`,
    onclick: () => chooseToken(i), onfocus: () => chooseToken(i),
    onpointerenter: (event) => event.pointerType === "mouse" && chooseToken(i),
  }, el("span", {}, words), el("span", { class: "tiny number" }));
}

function chooseToken(i) {
  if (state.token === i && !state.hovered) return;
  Object.assign(state, { token: i, hovered: null });
  showToken();
}

function moveToken(event) {
  const last = state.view.tokens.length - 1;
  const to = { ArrowLeft: state.token - 1, ArrowRight: state.token + 1, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  strip.children[Math.min(Math.max(to, 0), last)].focus();
}

/** What the chosen token attends to, or who attends to it, by token. */
function ofToken() {
  const rows = weights();
  const { token } = state;
  return rows.map((row, i) => (state.direction === "from" ? rows[token][i] : row[token]));
}

function showToken() {
  from.setAttribute("aria-pressed", String(state.direction === "from"));
  to.setAttribute("aria-pressed", String(state.direction === "to"));
  const all = ofToken();
  const largest = state.relative ? Math.max(...all) : 1;
  [...strip.children].forEach((node, i) => {
    const chosen = i === state.token;
    node.setAttribute("aria-pressed", String(chosen));
    node.tabIndex = chosen ? 0 : -1;
    node.style.setProperty("--weight", (all[i] / largest).toFixed(3));
    node.lastChild.textContent = all[i] >= 0.01 ? share(all[i]) : "";
  });
  readout.textContent = sentence(all);
  canvas.setAttribute("aria-label", `Heat map of layer ${state.layer}, head ${state.head}. ${readout.textContent}`);
  mark();
}

function sentence(all) {
  if (state.hovered) {
    const [i, j] = state.hovered;
    return `${labelOf(i)} (token ${i}) attends to ${labelOf(j)} (token ${j}) with ${weights()[i][j].toFixed(4)}.`;
  }
  const best = all.map((w, i) => [w, i]).filter(([w]) => w >= 0.01).sort((a, b) => b[0] - a[0]).slice(0, 6);
  const names = best.map(([w, i]) => `${labelOf(i)} ${share(w)}`).join(", ");
  const what = state.direction === "from" ? "attends to" : "is attended to by";
  return `${labelOf(state.token)} (token ${state.token}) ${what} ${names || "no token with more than 0.01"}.`;
}

// -- beginning --

function restore() {
  const kept = keptInput();
  text.value = typeof kept.text === "string" ? kept.text : EXAMPLE;
  const said = Array.isArray(kept.turns) && kept.turns.length ? kept.turns : [{ role: "user", content: "Hello!" }];
  said.forEach(({ role, content }) => addTurn(String(role), String(content)));
  setMode(kept.mode === "chat" ? "chat" : "text");
}

nav("attention");
build();
restore();
showNothing("Write a text, and see which tokens attend to which.");
model.addEventListener("change", chooseModel);
maps.addEventListener("keydown", moveHead);
strip.addEventListener("keydown", moveToken);
canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && pointAt(event));
canvas.addEventListener("pointerdown", pointAt);
canvas.addEventListener("pointerleave", () => state.hovered && ((state.hovered = null), showToken()));
find("#asked").addEventListener("submit", submit);
find("#asked").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
});
// Colours and sizes are drawn, not styled.
const redraw = () => state.view && drawAll();
new MutationObserver(redraw).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
let width = 0;
new ResizeObserver(([entry]) => {
  if (entry.contentRect.width === width) return;
  width = entry.contentRect.width;
  if (state.view) showHead();
}).observe(find("#result"));
loadModels();
