/** How answers are drawn: the params with their ranges and defaults, and the form that sets them. */

import { button, el, field, fill } from "/static/common.js";

/** `initial` is what the command line takes too. `slider` is where the slider ends; larger numbers can be typed. */
export const PARAMS = [
  {
    name: "temperature",
    label: "Temperature",
    initial: 0.8,
    min: 0,
    max: 2,
    step: 0.05,
    hint: "Higher varies more; 0 always takes the most probable token.",
  },
  {
    name: "top_p",
    label: "Top-p",
    initial: 0.95,
    min: 0.01,
    max: 1,
    step: 0.01,
    hint: "Only the most probable tokens that together have this probability; 1 is off.",
  },
  {
    name: "top_k",
    label: "Top-k",
    initial: 40,
    min: 0,
    max: 1000000,
    slider: 200,
    step: 1,
    whole: true,
    hint: "Only so many of the most probable tokens; 0 is off.",
  },
  {
    name: "min_p",
    label: "Min-p",
    initial: 0,
    min: 0,
    max: 1,
    step: 0.01,
    hint: "Only tokens of at least this share of the most probable one's probability; 0 is off.",
  },
  {
    name: "repeat_penalty",
    label: "Repeat penalty",
    initial: 1,
    min: 0.1,
    max: 10,
    slider: 2,
    step: 0.05,
    hint: "Above 1 makes tokens that were there less probable; 1 is off.",
  },
  {
    name: "max_tokens",
    label: "Max tokens",
    initial: 256,
    min: 1,
    max: 4096,
    slider: 1024,
    step: 1,
    whole: true,
    hint: "Where an answer is cut off at the latest.",
  },
];

export const STOP_TEXTS = 16;
export const STOP_LENGTH = 1000;
const MOST_SEED = 2 ** 52;

export function defaults() {
  return { ...Object.fromEntries(PARAMS.map(({ name, initial }) => [name, initial])), seed: null, stop: [] };
}

/** The fields of a request. */
export function fieldsOf({ stop, ...settings }, seed) {
  return { ...settings, seed, ...(stop.length > 0 && { stop }) };
}

/** The seed of an answer: each further answer to the same message takes the next one. Where none is set it is drawn here
 *  and not by the server, so that it can be shown and taken again. */
export function seedOf(settings, earlierAnswers) {
  return settings.seed === null ? crypto.getRandomValues(new Uint32Array(1))[0] : settings.seed + earlierAnswers;
}

/** The form for `settings`, an object that it writes to; `changed` is called after each change. A value that is out of
 *  range is marked with what is expected, and the one before stays. */
export function samplingForm(settings, changed) {
  const rows = [
    ...PARAMS.map((param) => numberRow(param, settings, changed)),
    seedRow(settings, changed),
    stopRow(settings, changed),
  ];
  const all = button("Reset all", {
    icon: "again",
    class: "quiet compact",
    id: "reset-all",
    onclick: () => rows.forEach((row) => row.reset()),
  });
  return el(
    "form",
    { class: "sampling", onsubmit: (event) => event.preventDefault() },
    el("div", { class: "heading" }, el("h2", {}, "Sampling"), all),
    rows.map((row) => row.node),
  );
}

function numberRow(param, settings, changed) {
  const { name, label, initial, min, max, slider = max, step, whole } = param;
  const input = el("input", { class: "input number", id: `param-${name}`, inputmode: "decimal", autocomplete: "off" });
  const range = el("input", {
    type: "range",
    min,
    max: slider,
    step,
    "aria-label": `${label}, slider`,
    tabindex: "-1",
  });
  const row = rowOf({ ...param, id: input.id, shown: String(initial) }, input, range);
  const slide = () => {
    range.value = settings[name];
    range.style.setProperty("--filled", `${((range.value - min) / (slider - min)) * 100}%`);
    row.mark(settings[name] !== initial);
  };
  const show = () => {
    input.value = String(settings[name]);
    slide();
  };
  const take = (value) => {
    settings[name] = value;
    row.complain(null);
    changed();
  };
  input.addEventListener("input", () => {
    const value = numberIn(input.value);
    if (!(value >= min && value <= max) || (whole && !Number.isInteger(value))) {
      return row.complain(`expected a ${whole ? "whole " : ""}number from ${min} to ${max}`);
    }
    take(value);
    slide();
  });
  range.addEventListener("input", () => (take(Number(range.value)), show()));
  row.reset = () => (take(initial), show());
  row.control.addEventListener("click", row.reset);
  show();
  return row;
}

/** A number as it is written with a point or a comma; NaN for what is none. */
function numberIn(text) {
  const trimmed = text.trim().replace(",", ".");
  return trimmed === "" ? Number.NaN : Number(trimmed);
}

/** A labelled row that shows its default and, where the value is another, a way back to it. */
function rowOf({ id, label, hint, shown }, input, ...more) {
  const control = button(`Reset ${label}`, { icon: "again", only: true, class: "quiet compact" });
  const initial = el("span", { class: "initial" }, `default ${shown}`);
  const wrong = el("p", { class: "problem", id: `${id}-wrong`, role: "alert", hidden: true });
  const about = el("p", { class: "hint", id: `${id}-hint` }, hint);
  input.setAttribute("aria-describedby", `${about.id} ${wrong.id}`);
  const head = el(
    "div",
    { class: "param-head" },
    el("label", { for: id }, label),
    initial,
    control,
    input.tagName === "INPUT" && input,
  );
  const node = el("div", { class: "param" }, head, input.tagName === "INPUT" ? null : input, more, wrong, about);
  return {
    node,
    control,
    mark(differs) {
      control.hidden = !differs;
      node.classList.toggle("changed", differs);
    },
    complain(message) {
      wrong.hidden = message === null;
      fill(wrong, message);
      if (message === null) input.removeAttribute("aria-invalid");
      else input.setAttribute("aria-invalid", "true");
    },
  };
}

function seedRow(settings, changed) {
  const input = el("input", {
    class: "input number",
    id: "param-seed",
    inputmode: "numeric",
    autocomplete: "off",
    placeholder: "random",
  });
  const hint =
    "The same seed, messages and settings give the same answer; another answer takes the next seed. Left empty, one is drawn.";
  const row = rowOf({ id: input.id, label: "Seed", hint, shown: "random" }, input);
  const show = () => {
    input.value = settings.seed === null ? "" : String(settings.seed);
    row.mark(settings.seed !== null);
  };
  const take = (seed) => {
    settings.seed = seed;
    row.complain(null);
    row.mark(seed !== null);
    changed();
  };
  input.addEventListener("input", () => {
    const text = input.value.trim();
    const seed = Number(text);
    if (text !== "" && !(/^\d+$/.test(text) && seed <= MOST_SEED))
      return row.complain(`expected a whole number from 0 to ${MOST_SEED}`);
    take(text === "" ? null : seed);
  });
  row.reset = () => (take(null), show());
  row.control.addEventListener("click", row.reset);
  show();
  return row;
}

function stopRow(settings, changed) {
  const input = el("textarea", { class: "textarea mono", id: "param-stop", rows: "2", spellcheck: "false" });
  const hint = "Texts that end an answer, one a line; \\n stands for a line break and \\\\ for a backslash.";
  const row = rowOf({ id: input.id, label: "Stop", hint, shown: "none" }, input);
  const show = () => {
    input.value = settings.stop.map(escaped).join("\n");
    row.mark(settings.stop.length > 0);
  };
  input.addEventListener("input", () => {
    const stop = input.value
      .split("\n")
      .filter((line) => line !== "")
      .map(unescaped);
    if (stop.length > STOP_TEXTS) return row.complain(`expected at most ${STOP_TEXTS} texts; these are ${stop.length}`);
    if (stop.some((text) => text.length > STOP_LENGTH))
      return row.complain(`expected texts of at most ${STOP_LENGTH} characters`);
    settings.stop = stop;
    row.complain(null);
    row.mark(stop.length > 0);
    changed();
  });
  row.reset = () => {
    settings.stop = [];
    row.complain(null);
    show();
    changed();
  };
  row.control.addEventListener("click", row.reset);
  show();
  return row;
}

function escaped(text) {
  return text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
}

function unescaped(text) {
  return text.replace(/\\([\\n])/g, (_, character) => (character === "n" ? "\n" : "\\"));
}

/** The system prompt's field, for so many characters at most. */
export function systemField(text, most, changed) {
  const input = el("textarea", {
    class: "textarea",
    id: "system",
    rows: "4",
    maxlength: most,
    value: text,
    placeholder: "None",
  });
  input.addEventListener("input", () => changed(input.value));
  return field("System prompt", input, "What the model is told before this conversation.");
}
