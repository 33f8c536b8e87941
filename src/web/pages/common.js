/** What every page uses: nodes, requests to the server, streams of events, the header, dialogs, formats.
 *
 *  Text from models, data and files becomes text nodes and attributes, never markup; the server's
 *  Content-Security-Policy refuses everything else (`require-trusted-types-for 'script'`). */

// -- nodes --

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. `attrs`: `class`, `title`, …; `on…` a listener; `style` an object of CSS properties (custom ones
 *  too); `dataset` an object; true for an attribute without a value; null, undefined and false for none. Properties
 *  that are no attributes (`value`, `checked`, `selected`, `indeterminate`) are set as such. Children: nodes, texts,
 *  numbers, lists of those; null, undefined and false are left out.
 *
 *  el("button", { class: "button", type: "button", onclick: send }, icon("send"), "Send") */
export function el(tag, attrs = {}, ...children) {
  return filled(document.createElement(tag), attrs, children);
}

/** As `el`, for SVG. */
export function svg(tag, attrs = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attrs, children);
}

const PROPERTIES = new Set(["value", "checked", "selected", "indeterminate"]);

function filled(node, attrs, children) {
  for (const [name, value] of Object.entries(attrs ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2).toLowerCase(), value);
    else if (name === "style") styled(node, value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (PROPERTIES.has(name)) node[name] = value;
    else node.setAttribute(name, name === "href" ? safeAddress(value) : value === true ? "" : value);
  }
  node.append(...nodes(children));
  return node;
}

function styled(node, properties) {
  for (const [name, value] of Object.entries(properties)) node.style.setProperty(name, value);
}

/** Addresses of this server and of files made here; a name from data never becomes `javascript:`. */
function safeAddress(address) {
  if (/^(\/(?!\/)|#|\?|blob:)/.test(address)) return address;
  throw new Error(`the address ${JSON.stringify(address)} does not lead to this server`);
}

function nodes(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Puts `children` in the place of all that `node` has. */
export function fill(node, ...children) {
  node.replaceChildren(...nodes(children));
  return node;
}

/** The only element for a selector; a page that lacks it is broken. */
export function find(selector, within = document) {
  const found = within.querySelector(selector);
  if (!found) throw new Error(`the page has no ${selector}`);
  return found;
}

// Lines in a square of 24, drawn with `stroke`.
const ICONS = {
  send: ["M12 19V5", "M6 11l6-6 6 6"],
  stop: ["M7 7h10v10H7z"],
  again: ["M20 11a8 8 0 1 0-2.3 6.3", "M20 5v6h-6"],
  edit: ["M4 20h4L19 9l-4-4L4 16z", "M13.5 6.5l4 4"],
  copy: ["M9 9h11v11H9z", "M5 15H4V4h11v1"],
  check: ["M5 12.5l4.5 4.5L19 7.5"],
  trash: ["M4 7h16", "M9 7V4h6v3", "M6 7l1 13h10l1-13", "M10 11v5", "M14 11v5"],
  plus: ["M12 5v14", "M5 12h14"],
  close: ["M6 6l12 12", "M18 6L6 18"],
  menu: ["M4 7h16", "M4 12h16", "M4 17h16"],
  more: [
    "M5 11.5a.5.5 0 1 0 0 1 .5.5 0 1 0 0-1",
    "M12 11.5a.5.5 0 1 0 0 1 .5.5 0 1 0 0-1",
    "M19 11.5a.5.5 0 1 0 0 1 .5.5 0 1 0 0-1",
  ],
  settings: [
    "M4 8h9",
    "M17 8h3",
    "M4 16h3",
    "M11 16h9",
    "M13 8a2 2 0 1 0 4 0 2 2 0 1 0-4 0",
    "M7 16a2 2 0 1 0 4 0 2 2 0 1 0-4 0",
  ],
  download: ["M12 4v11", "M7 11l5 5 5-5", "M5 20h14"],
  upload: ["M12 16V5", "M7 10l5-5 5 5", "M5 20h14"],
  left: ["M14.5 6l-6 6 6 6"],
  right: ["M9.5 6l6 6-6 6"],
  down: ["M6 9.5l6 6 6-6"],
  up: ["M6 14.5l6-6 6 6"],
  search: ["M11 4a7 7 0 1 0 0 14 7 7 0 1 0 0-14", "M16 16l4.5 4.5"],
  alert: ["M12 4L2.8 19.5h18.4z", "M12 10v4.5", "M12 17h.01"],
  info: ["M12 3.5a8.5 8.5 0 1 0 0 17 8.5 8.5 0 1 0 0-17", "M12 11.5V16", "M12 8h.01"],
  chat: ["M4 5h16v11H11l-4.5 4v-4H4z"],
  file: ["M6 3h8l4 4v14H6z", "M14 3v4h4"],
  folder: ["M3 6h6l2 2.5h10V19H3z"],
  layers: ["M12 4L3 9l9 5 9-5z", "M3 14l9 5 9-5"],
  chart: ["M4 4v16h16", "M8 14l3.5-4 3 2.5L20 7"],
  grid: ["M4 4h6v6H4z", "M14 4h6v6h-6z", "M4 14h6v6H4z", "M14 14h6v6h-6z"],
  play: ["M7 5l12 7-12 7z"],
  clock: ["M12 3.5a8.5 8.5 0 1 0 0 17 8.5 8.5 0 1 0 0-17", "M12 7.5V12l3 2"],
  sun: [
    "M12 8a4 4 0 1 0 0 8 4 4 0 1 0 0-8",
    "M12 2.5v2",
    "M12 19.5v2",
    "M2.5 12h2",
    "M19.5 12h2",
    "M5.3 5.3l1.4 1.4",
    "M17.3 17.3l1.4 1.4",
    "M5.3 18.7l1.4-1.4",
    "M17.3 6.7l1.4-1.4",
  ],
  moon: ["M20 14.5A8.5 8.5 0 1 1 9.5 4a7 7 0 0 0 10.5 10.5z"],
  system: ["M3 5h18v11H3z", "M8 20h8", "M12 16v4"],
};

/** A drawing beside or instead of a word; hidden from screen readers, so a button without a word needs a name. */
export function icon(name) {
  const paths = ICONS[name].map((d) => svg("path", { d }));
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, paths);
}

/** A button: `label` is its text, or its name where `attrs` has `only` (an icon alone).
 *
 *  button("Copy", { icon: "copy", only: true, class: "quiet compact", onclick: copy }) */
export function button(label, { icon: drawing, only, class: classes = "", ...attrs } = {}) {
  const name = only ? { "aria-label": label, title: label } : {};
  const parts = [drawing && icon(drawing), only ? null : label];
  const all = `button ${classes}${only ? " only" : ""}`;
  return el("button", { type: "button", ...name, ...attrs, class: all }, parts);
}

let fields = 0;

/** A labelled control, with a hint below it if there is one. */
export function field(label, control, hint) {
  fields += 1;
  control.id ||= `field-${fields}`;
  const about = hint && el("p", { class: "hint", id: `${control.id}-hint` }, hint);
  if (about) control.setAttribute("aria-describedby", about.id);
  return el("div", { class: "field" }, el("label", { for: control.id }, label), control, about);
}

// -- storage --

/** What is kept in the browser. Where storage is switched off or full, `set` gives false. */
export const storage = {
  get(key, area = "localStorage") {
    try {
      return window[area].getItem(key);
    } catch {
      return null;
    }
  },
  set(key, value, area = "localStorage") {
    try {
      if (value === null) window[area].removeItem(key);
      else window[area].setItem(key, value);
      return true;
    } catch {
      return false;
    }
  },
};

// -- requests --

/** What the server refuses, in its own words. `status` is 0 where there was no answer at all. */
export class ApiError extends Error {
  constructor(status, { message, type = null, param = null, code = null }, retryAfter = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.type = type;
    this.param = param;
    this.code = code;
    /** Seconds after which it may work, where the server says so. */
    this.retryAfter = retryAfter;
  }
}

const TOKEN = "tinylm.token";

/** The response of a request that succeeded. Options: `method`, `body` (a value, sent as JSON), `headers`, `signal`.
 *  Where the server wants a token, the reader is asked for it, and the request is sent again.
 *  Throws an `ApiError`, or the signal's `AbortError`. */
export async function request(path, { method, body, headers = {}, signal } = {}) {
  const sent = { method: method ?? (body === undefined ? "GET" : "POST"), headers: { ...headers }, signal };
  if (body !== undefined) {
    sent.body = JSON.stringify(body);
    sent.headers["Content-Type"] = "application/json";
  }
  for (;;) {
    const token = storage.get(TOKEN, "sessionStorage") ?? heldToken;
    if (token) sent.headers.Authorization = `Bearer ${token}`;
    const response = await answer(path, sent);
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401 || !(await askForToken(token, signal))) throw error;
  }
}

async function answer(path, sent) {
  try {
    return await fetch(path, { ...sent, cache: "no-store", credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const message = "The server does not answer. Is `tinylm serve` still running?";
    throw new ApiError(0, { message, type: "no_answer" });
  }
}

async function errorOf(response) {
  const text = await response.text().catch(() => "");
  const after = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  const about = { message: text.slice(0, 500) || `The server answers ${response.status} ${response.statusText}` };
  try {
    Object.assign(about, JSON.parse(text).error);
  } catch {
    // Not the server's own error: its text as it is.
  }
  return new ApiError(response.status, about, Number.isFinite(after) ? after : null);
}

/** The JSON of an answer, null where it is empty. Options and errors as those of `request`. */
export async function api(path, options) {
  const response = await request(path, options);
  const text = await response.text();
  return text === "" ? null : JSON.parse(text);
}

/** The token, where storage is switched off. */
let heldToken = null;
let asking = null;

/** Asks once, however many requests wait for it; whether there is another token than `refused` now. */
async function askForToken(refused, signal) {
  const current = storage.get(TOKEN, "sessionStorage") ?? heldToken;
  if (current && current !== refused) return true;
  asking ??= tokenDialog(Boolean(refused)).finally(() => (asking = null));
  const token = await asking;
  signal?.throwIfAborted();
  if (!token) return false;
  if (!storage.set(TOKEN, token, "sessionStorage")) heldToken = token;
  return true;
}

function tokenDialog(refused) {
  const input = el("input", { class: "input mono", type: "password", autocomplete: "off", required: true });
  const why = refused ? "The server does not accept this token." : "This server asks for a token.";
  const hint =
    "It stands in the file that `tinylm serve --token-file` was given, and is kept until this tab is closed.";
  const problem = refused && el("p", { class: "problem", role: "alert" }, why);
  return dialog("Access token", [problem || el("p", {}, why), field("Token", input, hint)], {
    accept: "Continue",
    value: () => input.value.trim(),
  });
}

// -- server-sent events --

/** The events of a stream, one after the other: `{event, data, id}`, data as text. Options are those of `request`, and
 *  `follow`: when the stream breaks or ends, it is asked for again behind the last event that had an id
 *  (`Last-Event-ID`), until the loop is left or the signal aborts.
 *
 *  for await (const { event, data } of events(path, { signal })) … */
export async function* events(path, { follow = false, ...options } = {}) {
  let last = null;
  let wait = 1000;
  for (;;) {
    try {
      const headers = { ...options.headers, Accept: "text/event-stream" };
      if (last !== null) headers["Last-Event-ID"] = last;
      const response = await request(path, { ...options, headers });
      for await (const event of parsedEvents(response.body)) {
        wait = 1000;
        last = event.id ?? last;
        yield event;
      }
      if (!follow) return;
    } catch (error) {
      const passing = error instanceof ApiError && (error.status === 0 || error.status === 429 || error.status >= 500);
      if (!follow || !passing) throw error;
    }
    await pause(wait, options.signal);
    wait = Math.min(wait * 2, 15000);
  }
}

/** Events of a body of bytes, by https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream. */
async function* parsedEvents(body) {
  let event = {};
  for await (const line of lines(body)) {
    if (line === "") {
      if (event.data !== undefined) yield { event: "message", id: null, ...event };
      event = {};
      continue;
    }
    const colon = line.indexOf(":");
    if (colon === 0) continue;
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") event.data = event.data === undefined ? value : `${event.data}\n${value}`;
    else if (name === "event" || name === "id") event[name] = value;
  }
}

/** Lines of UTF-8, ended by \n, \r\n or \r; what the stream breaks off in the middle of is left out. */
async function* lines(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) {
        if (rest.endsWith("\r")) yield rest.slice(0, -1);
        return;
      }
      rest += decoder.decode(value, { stream: true });
      // A \r at the end may be half of \r\n.
      const parts = rest.replace(/\r\n/g, "\n").split(/\n|\r(?!$)/);
      rest = parts.pop();
      yield* parts;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The connection broke off.", type: "no_answer" });
  }
}

/** Waits for so many milliseconds, or throws the signal's reason. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

// -- header --

const PAGES = [
  ["chat", "Chat", "/"],
  ["attention", "Attention", "/attention"],
  ["runs", "Runs", "/runs"],
  ["artifacts", "Artifacts", "/artifacts"],
];

/** Draws the header of all pages at the top of this one; `active` is the page's name: chat, attention, runs, artifacts.
 *  The page's main element must have the id `main`. */
export function nav(active) {
  const links = PAGES.map(([name, label, href]) =>
    el("a", { href, "aria-current": name === active ? "page" : null }, label),
  );
  const skip = el("a", { class: "skip", href: "#main" }, "Skip to the content");
  const brand = el("a", { class: "brand", href: "/", "aria-label": "tinylm" }, mark(), el("span", {}, "tinylm"));
  const pages = el("nav", { "aria-label": "Pages" }, links);
  document.body.prepend(skip, el("header", { class: "header" }, brand, pages, themeSwitch()));
}

/** The mark: which of three tokens may attend to which. */
function mark() {
  const cells = [
    [0, 0, 1],
    [0, 1, 0.65],
    [1, 1, 1],
    [0, 2, 0.4],
    [1, 2, 0.65],
    [2, 2, 1],
  ];
  const squares = cells.map(([x, y, opacity]) =>
    svg("rect", {
      x: 3 + x * 6.5,
      y: 3 + y * 6.5,
      width: 5,
      height: 5,
      rx: 1.5,
      fill: "currentColor",
      stroke: "none",
      opacity,
    }),
  );
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, squares);
}

const THEME = "tinylm.theme";
const THEMES = { system: "system", light: "sun", dark: "moon" };

function currentTheme() {
  const theme = storage.get(THEME);
  return theme === "light" || theme === "dark" ? theme : "system";
}

function setTheme(theme) {
  storage.set(THEME, theme === "system" ? null : theme);
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

function themeSwitch() {
  const order = Object.keys(THEMES);
  const next = () => order[(order.indexOf(currentTheme()) + 1) % order.length];
  const control = button("", { icon: "system", only: true, class: "quiet", onclick: () => (setTheme(next()), show()) });
  const show = () => {
    const label = `Theme: ${currentTheme()}. Change to ${next()}`;
    fill(control, icon(THEMES[currentTheme()]));
    control.setAttribute("aria-label", label);
    control.title = label;
  };
  show();
  return control;
}

// -- dialogs, messages --

/** Asks; gives `value()` when it is accepted, null when it is left. `body`: nodes. `danger` for what cannot be undone. */
export function dialog(title, body, { accept = "OK", danger = false, value = () => true } = {}) {
  return new Promise((resolve) => {
    fields += 1;
    const heading = el("h2", { id: `dialog-${fields}` }, title);
    const actions = el(
      "div",
      { class: "actions" },
      button("Cancel", { class: "quiet", onclick: () => box.close() }),
      button(accept, { type: "submit", class: danger ? "danger" : "primary" }),
    );
    const form = el("form", { method: "dialog" }, heading, body, actions);
    const box = el("dialog", { "aria-labelledby": heading.id }, form);
    let result = null;
    form.addEventListener("submit", () => (result = value()));
    box.addEventListener("close", () => (box.remove(), resolve(result)));
    box.addEventListener("keydown", (event) => event.stopPropagation());
    document.body.append(box);
    box.showModal();
  });
}

/** Shows a message below the header for a while; `bad` for errors. Screen readers say it. */
export function toast(message, { bad = false } = {}) {
  const box =
    document.querySelector(".toasts") ??
    document.body.appendChild(el("div", { class: "toasts", "aria-live": "polite" }));
  const note = el(
    "div",
    { class: bad ? "toast bad" : "toast", role: bad ? "alert" : "status" },
    bad && icon("alert"),
    el("span", { class: "fill" }, message),
    button("Dismiss", { icon: "close", only: true, class: "quiet compact", onclick: () => note.remove() }),
  );
  box.append(note);
  setTimeout(() => note.remove(), bad ? 12000 : 4000);
}

/** Has screen readers say `message`. */
export function announce(message) {
  const region =
    document.querySelector("#announcements") ??
    document.body.appendChild(el("div", { id: "announcements", class: "visually-hidden", "aria-live": "polite" }));
  // The same words twice are said twice only where the region was empty in between.
  region.textContent = "";
  setTimeout(() => (region.textContent = message), 50);
}

/** A menu at a button; `entries`: `[{label, icon, danger, action}]`. Arrows, Home and End move, Esc leaves. */
export function menu(anchor, entries) {
  const items = entries.map(({ label, icon: drawing, danger, action }) =>
    el(
      "button",
      { type: "button", role: "menuitem", class: danger && "danger", onclick: () => (box.hidePopover(), action()) },
      drawing && icon(drawing),
      label,
    ),
  );
  const box = el("div", { class: "menu", role: "menu", popover: "auto" }, items);
  box.addEventListener("toggle", (event) => {
    anchor.setAttribute("aria-expanded", String(event.newState === "open"));
    if (event.newState === "closed") box.remove();
  });
  box.addEventListener("keydown", (event) => {
    const at = items.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    items.at(to % items.length).focus();
  });
  document.body.append(box);
  box.showPopover();
  placeBeside(box, anchor.getBoundingClientRect());
  items[0].focus();
}

function placeBeside(box, anchor) {
  const { width, height } = box.getBoundingClientRect();
  const below = anchor.bottom + 4 + height <= window.innerHeight;
  const x = Math.max(8, Math.min(anchor.left, window.innerWidth - width - 8));
  styled(box, { left: `${x}px`, top: `${below ? anchor.bottom + 4 : Math.max(8, anchor.top - 4 - height)}px` });
}

/** The box for what went wrong, with a way to try again. */
export function problem(error, retry) {
  return el(
    "div",
    { class: "notice bad", role: "alert" },
    icon("alert"),
    el("p", {}, error.message ?? String(error)),
    retry && button("Try again", { icon: "again", onclick: retry }),
  );
}

/** Has the browser save `text` as a file. */
export function download(name, text, type = "application/json") {
  const address = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// -- formats: as the command line writes them --

const GROUPED = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });

export const format = {
  /** `1.5 MiB`; whole bytes below 1 KiB. */
  bytes(n) {
    const units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if (n < 1024) return `${n} B`;
    let value = n / 1024;
    let unit = 0;
    for (; value >= 1023.95 && unit + 1 < units.length; unit += 1) value /= 1024;
    return `${value.toFixed(1)} ${units[unit]}`;
  },
  /** `12,345,678`. */
  count: (n) => GROUPED.format(n),
  /** `12.3M`. */
  short: (n) => SHORT.format(n),
  /** `850 ms`, `12.3 s`, `4 min 05 s`, `2 h 03 min`. */
  seconds(s) {
    const two = (n) => String(n).padStart(2, "0");
    if (s < 0.9995) return `${(s * 1000).toFixed(0)} ms`;
    if (s < 59.95) return `${s.toFixed(1)} s`;
    if (s < 3599.5) return `${Math.floor(Math.round(s) / 60)} min ${two(Math.round(s) % 60)} s`;
    const minutes = Math.round(s / 60);
    return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
  },
  /** So many significant digits at least, without zeros at the end; small and large ones as `1.2e-5`; `NaN`, `∞`. */
  number(x, digits = 4) {
    if (!Number.isFinite(x)) return Number.isNaN(x) ? "NaN" : x > 0 ? "∞" : "−∞";
    const size = Math.abs(x);
    if (size >= 10 ** digits && size < 1e7) return Math.round(x).toString().replace("-", "−");
    const far = size !== 0 && (size < 1e-4 || size >= 1e7);
    const [mantissa, exponent] = (far ? x.toExponential(digits - 1) : x.toPrecision(digits)).split("e");
    const short = (mantissa.includes(".") ? mantissa.replace(/\.?0+$/, "") : mantissa).replace("-", "−");
    return exponent ? `${short}e${exponent.replace("+", "")}` : short;
  },
  /** `42.1 %` of a share from 0 to 1. */
  percent: (share, digits = 1) => `${(share * 100).toFixed(digits)} %`,
  /** `5 minutes ago`, of a Date, of milliseconds or of text as ISO 8601. */
  ago(when) {
    const seconds = (Date.now() - new Date(when)) / 1000;
    if (seconds < 45) return "just now";
    const units = [
      ["minute", 60],
      ["hour", 3600],
      ["day", 86400],
      ["week", 604800],
      ["month", 2629800],
      ["year", 31557600],
    ];
    const [name, size] = units.findLast(([, size]) => seconds >= size) ?? units[0];
    const n = Math.max(1, Math.floor(seconds / size));
    return `${n} ${name}${n === 1 ? "" : "s"} ago`;
  },
  /** `2026-11-27 09:15:00`, in the reader's time zone. */
  date(when) {
    const date = new Date(when);
    return new Date(date - date.getTimezoneOffset() * 60000).toISOString().slice(0, 19).replace("T", " ");
  },
  /** The first 12 digits of a digest. */
  digest: (text) => text.replace(/^[a-z0-9]+:/, "").slice(0, 12),
};
