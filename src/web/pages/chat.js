/** The chat page: conversations at the left, the one that is shown in the middle, its settings at the right. */

import { announce, api, button, el, fill, find, format, icon, nav, problem, storage, toast } from "/static/common.js";
import { explained, figuresOf, FINISHES, stream } from "/static/answer.js";
import * as store from "/static/conversations.js";
import { Library } from "/static/library.js";
import { defaults, samplingForm, seedOf, systemField } from "/static/sampling.js";
import { Sides } from "/static/sides.js";

nav("chat");

const sides = new Sides(find("#main"), {
  conversations: { room: "52rem", label: "Conversations", icon: "menu" },
  settings: { room: "76rem", label: "Settings", icon: "settings" },
});
const thread = find("#thread");
const scroller = find("#scroller");
const spoken = find("#spoken");
const latest = find("#latest");

/** `current` is one of the library's conversations, or one that has no message yet and is not kept. */
const state = { current: null, models: [], modelsError: null, editing: null };

/** Answers that are being written, by conversation. */
const jobs = new Map();

/** Whether the end of the conversation is in sight, and is to stay there. */
let following = true;

const library = new Library({
  open: openConversation,
  fresh: startNew,
  isCurrent: (conversation) => conversation === state.current,
  isBusy: (conversation) => jobs.has(conversation.id),
  renamed(conversation) {
    kept(conversation);
    library.show();
    showTitle();
  },
  gone(conversation) {
    jobs.get(conversation.id)?.controller.abort();
    if (state.current === conversation) startNew();
    else library.show();
  },
});

// -- models --

const chooser = el("select", { class: "select quiet", id: "model", "aria-label": "Model" });
const aboutModel = el("span", { class: "about-model muted small cut" });
const modelWarning = el("div", { class: "model-warning", hidden: true });

chooser.addEventListener("change", () => {
  state.current.model = chooser.value;
  storage.set("tinylm.model", chooser.value);
  kept(state.current);
  showModel();
  showThread();
});

async function loadModels() {
  try {
    state.models = (await api("/v1/models")).data;
    state.modelsError = null;
  } catch (error) {
    state.modelsError = error;
  }
  // What was begun before the models were known.
  if (state.current.model === null) state.current.model = preferredModel();
  showModel();
  showComposer();
  if (state.current.messages.length === 0) showThread();
}

function chatModels() {
  return state.models.filter(({ tinylm }) => tinylm?.chat !== false);
}

/** The model that was chosen last, else the one that was trained last: a pipeline's later stages go on from its earlier
 *  ones. */
function preferredModel() {
  const models = chatModels();
  const last = storage.get("tinylm.model");
  const sound = models.filter(({ tinylm }) => !tinylm?.error);
  const newest = (sound.length > 0 ? sound : models).reduce(
    (best, model) => (model.created >= (best?.created ?? 0) ? model : best),
    null,
  );
  return (models.find(({ id }) => id === last) ?? newest)?.id ?? null;
}

function modelOf(conversation) {
  return state.models.find(({ id }) => id === conversation.model);
}

function showModel() {
  const { model } = state.current;
  const known = modelOf(state.current);
  const option = ({ id, tinylm }) =>
    el("option", { value: id, disabled: tinylm?.chat === false, selected: id === model }, id);
  const others = state.models.filter(({ tinylm }) => tinylm?.chat === false);
  fill(
    chooser,
    model !== null && !known && el("option", { value: model, selected: true }, `${model} (not served)`),
    chatModels().map(option),
    others.length > 0 && el("optgroup", { label: "Not trained for chats" }, others.map(option)),
    model === null && el("option", { value: "", selected: true, disabled: true }, "No model"),
  );
  chooser.title = model ?? "";
  fill(aboutModel, known?.tinylm && sizeOf(known.tinylm));
  const warning = warningOf(known?.tinylm);
  modelWarning.hidden = !warning;
  fill(modelWarning, warning && el("div", { class: "notice warn" }, icon("alert"), el("p", {}, warning)));
}

function warningOf({ error, loaded } = {}) {
  if (!error) return null;
  return loaded ? `The model was replaced by one that does not read, and goes on as it was: ${error}` : error;
}

/** What the server knows of it without loading it. */
function sizeOf({ parameters, seq_len: positions }) {
  const parts = [
    parameters != null && `${format.short(parameters)} parameters`,
    positions != null && `${format.count(positions)} tokens of context`,
  ];
  return parts.filter(Boolean).join(" · ");
}

// -- which conversation is shown --

function startNew() {
  openConversation(store.create(preferredModel(), rememberedSettings()));
  focusComposer();
}

/** New conversations begin with the settings that were used last. */
function rememberedSettings() {
  return { ...defaults(), ...structuredClone(state.current?.settings) };
}

function openConversation(conversation) {
  state.current = conversation;
  state.editing = null;
  const isKept = library.includes(conversation);
  history.replaceState(null, "", isKept ? `#${conversation.id}` : "#");
  sides.close();
  library.show();
  showTitle();
  showModel();
  showSettings();
  showThread();
  showComposer();
  scrollToEnd();
}

function openByAddress() {
  const id = location.hash.slice(1);
  const conversation = library.find(id);
  if (conversation) openConversation(conversation);
  else startNew();
}

/** Writes a conversation to the browser's storage, if it has a message. */
function kept(conversation) {
  if (!library.includes(conversation)) return;
  if (!store.save(conversation)) {
    toast(
      "The browser's storage is full: what you write now is gone when this tab is closed. Export or delete conversations.",
      { bad: true },
    );
  }
}

/** Another tab has changed, added or deleted one. */
window.addEventListener("storage", (event) => {
  const id = store.idOfKey(event.key);
  const shown = state.current.id === id;
  if (id === null || jobs.has(id) || (shown && state.editing !== null)) return;
  const fresh = event.newValue === null ? null : store.reload(id);
  library.replace(id, fresh);
  if (shown && fresh) openConversation(fresh);
  else library.show();
});

// -- the messages --

const title = el("h1", { class: "title cut" });

function showTitle() {
  const empty = state.current.messages.length === 0;
  title.textContent = empty ? "New chat" : state.current.title;
  title.title = title.textContent;
  document.title = empty ? "Chat · tinylm" : `${state.current.title} · tinylm`;
}

function showThread() {
  const key = document.activeElement?.dataset?.key;
  const numbers = store.branch(state.current);
  const atEnd = following;
  fill(thread, numbers.length === 0 ? welcome() : numbers.map(messageView));
  if (key) thread.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
  if (atEnd) scrollToEnd();
  else noteScroll();
}

const EXAMPLES = ["Hello, how are you?", "Tell me a story.", "What do you like?", "Who are you?"];

function welcome() {
  if (state.modelsError) return el("div", { class: "welcome" }, problem(state.modelsError, loadModels));
  const model = modelOf(state.current);
  if (!model) return noModel();
  const examples = EXAMPLES.map((text) => button(text, { class: "example", onclick: () => send(text) }));
  return el(
    "div",
    { class: "welcome" },
    el("h2", {}, "Talk to ", el("span", { class: "model-name" }, model.id)),
    model.tinylm && el("p", { class: "muted" }, sizeOf(model.tinylm)),
    el("div", { class: "examples" }, examples),
  );
}

function noModel() {
  const why =
    state.models.length === 0
      ? "No pipeline has trained a model yet. Run one, for example:"
      : "None of the models here is trained for chats. A pipeline with a fine-tuned model is, for example:";
  return el(
    "div",
    { class: "empty" },
    icon("chat"),
    el("p", {}, why),
    el("code", {}, "tinylm run pipelines/two_stage.yaml"),
    button("Look again", { icon: "again", onclick: loadModels }),
  );
}

function messageView(number) {
  const message = state.current.messages[number];
  const user = message.role === "user";
  const editing = state.editing === number;
  return el(
    "article",
    {
      class: `message ${message.role}${editing ? " editing" : ""}`,
      "aria-label": user ? "You" : "Answer",
      dataset: { number },
    },
    editing ? editor(number) : [contentView(message, number), outcomeView(message, number), footView(message, number)],
  );
}

function contentView(message, number) {
  const job = jobOf(number);
  const text = document.createTextNode(message.content);
  // The text has all pieces so far, those that wait for the next frame too.
  if (job) Object.assign(job, { text, unshown: "" });
  const waiting = job && message.content === "";
  const nothing = !job && message.content === "" && message.finish !== "error";
  return el(
    "div",
    { class: "content verbatim", "aria-busy": job ? "true" : null },
    text,
    waiting && el("span", { class: "dots", role: "img", "aria-label": "The model reads" }, el("i"), el("i"), el("i")),
    nothing && el("em", { class: "muted" }, message.role === "user" ? "(nothing)" : "(an empty answer)"),
  );
}

/** What went wrong, in place. */
function outcomeView(message, number) {
  if (message.finish !== "error" || jobOf(number)) return null;
  return problem({ message: message.error ?? "The answer failed." }, () => retry(number));
}

function footView(message, number) {
  // Of an answer that failed at once there is nothing to change, and its way out stands beside the error.
  const nothing = message.finish === "error" && message.content === "";
  const fixed = nothing || jobs.has(state.current.id);
  const switcher = branchSwitch(number);
  if (nothing && !switcher) return null;
  const quiet = (label, drawing, onclick, key) =>
    button(label, { icon: drawing, only: true, class: "quiet compact", dataset: { key: `${key}-${number}` }, onclick });
  return el(
    "div",
    { class: "message-foot" },
    switcher,
    message.content !== "" && quiet("Copy", "copy", () => copy(message.content), "copy"),
    !fixed && quiet(message.role === "user" ? "Edit" : "Edit the answer", "edit", () => edit(number), "edit"),
    !fixed && message.role === "assistant" && quiet("Another answer", "again", () => regenerate(number), "again"),
    message.role === "assistant" && !nothing && el("p", { class: "meta number" }, metaOf(message, jobOf(number))),
  );
}

/** ‹ 2/3 › where there are several messages at this place. */
function branchSwitch(number) {
  const all = store.siblings(state.current, number);
  if (all.length < 2) return null;
  const at = all.indexOf(number);
  const parent = state.current.messages[number].parent ?? "first";
  const to = (target, label, drawing, key) =>
    button(label, {
      icon: drawing,
      only: true,
      class: "quiet compact",
      dataset: { key: `${key}-${parent}` },
      "aria-disabled": target === undefined ? "true" : null,
      onclick: () => target !== undefined && switchTo(target),
    });
  return el(
    "div",
    { class: "branches", role: "group", "aria-label": "Branches" },
    to(all[at - 1], "Previous branch", "left", "previous"),
    el("span", { class: "number" }, `${at + 1}/${all.length}`),
    to(all[at + 1], "Next branch", "right", "next"),
  );
}

/** Figures of an answer, once it has ended. */
function metaOf(message, job) {
  if (job) return "";
  const { line, details } = figuresOf(message);
  return el("span", { title: details }, line);
}

function switchTo(number) {
  store.show(state.current, number);
  kept(state.current);
  showThread();
  const all = store.siblings(state.current, number);
  announce(`Branch ${all.indexOf(number) + 1} of ${all.length}`);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // The clipboard is there only over TLS and on this machine.
    const area = el("textarea", { class: "visually-hidden", value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast("Copied");
}

// -- editing --

function edit(number) {
  if (jobs.has(state.current.id)) return;
  state.editing = number;
  showThread();
  const input = find(".editor textarea");
  fitted(input);
  input.focus();
  input.setSelectionRange(input.value.length, input.value.length);
}

function editor(number) {
  const { role, content } = state.current.messages[number];
  const input = el("textarea", {
    class: "textarea",
    "aria-label": "Message",
    rows: "1",
    maxlength: store.LIMITS.text,
    value: content,
    oninput: () => fitted(input),
  });
  const save = () => saveEdit(number, input.value);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leaveEditor();
    else if (isSend(event)) save();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const accept = role === "user" ? "Send" : "Save";
  return el(
    "div",
    { class: "editor" },
    input,
    el(
      "div",
      { class: "row" },
      el("p", { class: "hint fill" }, "What was there stays as a branch of its own."),
      button("Cancel", { class: "quiet", onclick: leaveEditor }),
      button(accept, { class: "primary", onclick: save }),
    ),
  );
}

function leaveEditor() {
  state.editing = null;
  showThread();
  focusComposer();
}

function saveEdit(number, content) {
  const { role, parent, content: before } = state.current.messages[number];
  if (content.trim() === "" || isFull()) return;
  state.editing = null;
  if (role === "assistant") {
    if (content !== before) store.append(state.current, parent, { role, content, edited: true });
    kept(state.current);
    showThread();
    return focusComposer();
  }
  ask(parent, content);
}

// -- asking and answering --

/** Sends `content` behind the branch that is shown. */
function send(content) {
  if (content.trim() === "" || jobs.has(state.current.id)) return false;
  if (state.current.model === null) {
    toast("There is no model to talk to.", { bad: true });
    return false;
  }
  if (isFull()) return false;
  ask(state.current.leaf, content);
  return true;
}

/** Whether what is shown has no room for another question with its answer, which is said. */
function isFull() {
  const full = state.current.messages.length + 2 > store.LIMITS.messages;
  if (full)
    toast(`This conversation has ${format.count(store.LIMITS.messages)} messages. Begin a new one.`, { bad: true });
  return full;
}

function ask(parent, content) {
  const conversation = state.current;
  if (conversation.messages.length === 0) begin(conversation, content);
  const question = store.append(conversation, parent, { role: "user", content });
  answer(conversation, question);
  focusComposer();
}

/** The first message makes a conversation one that is kept. */
function begin(conversation, content) {
  conversation.title = store.titleOf(content);
  conversation.created = Date.now();
  library.all.push(conversation);
  history.replaceState(null, "", `#${conversation.id}`);
  showTitle();
}

function regenerate(number) {
  if (!jobs.has(state.current.id) && !isFull()) answer(state.current, state.current.messages[number].parent);
}

/** The same answer once more; what there is of it was no answer, so nothing is lost. */
function retry(number) {
  const conversation = state.current;
  if (jobs.has(conversation.id)) return;
  const message = conversation.messages[number];
  if (message.content !== "" || conversation.messages.some(({ parent }) => parent === number))
    return regenerate(number);
  for (const name of ["finish", "error", "tokens", "tokens_per_second", "first_after"]) delete message[name];
  message.model = conversation.model;
  generate(conversation, number);
}

/** A new answer to message `question`. */
function answer(conversation, question) {
  const earlier = conversation.messages.filter(({ parent }) => parent === question).length;
  const seed = seedOf(conversation.settings, earlier);
  generate(
    conversation,
    store.append(conversation, question, { role: "assistant", content: "", model: conversation.model, seed }),
  );
}

/** Fills message `number` of a conversation, which may be left for another one meanwhile. */
async function generate(conversation, number) {
  const message = conversation.messages[number];
  const job = { controller: new AbortController(), number, text: null, unshown: "", frame: null };
  jobs.set(conversation.id, job);
  conversation.updated = Date.now();
  kept(conversation);
  showAfter(conversation);
  scrollToEnd();
  fill(spoken);
  try {
    await stream(conversation, message, job.controller.signal, (piece) => showPiece(job, piece));
  } catch (error) {
    message.finish = error.name === "AbortError" ? "stopped" : "error";
    if (message.finish === "error") message.error = explained(error);
  }
  speak(job, "", true);
  jobs.delete(conversation.id);
  cancelAnimationFrame(job.frame);
  kept(conversation);
  showAfter(conversation);
  if (conversation === state.current) announce(message.error ?? `Answer ${FINISHES[message.finish]}`);
}

function showAfter(conversation) {
  library.show();
  if (conversation !== state.current) return;
  showThread();
  showComposer();
}

/** Pieces come faster than screens show them: they are written once a frame. */
function showPiece(job, piece) {
  job.unshown += piece;
  speak(job, piece);
  job.frame ??= requestAnimationFrame(() => {
    job.frame = null;
    thread.querySelector(`[data-number="${job.number}"] .dots`)?.remove();
    job.text?.appendData(job.unshown);
    job.unshown = "";
    if (following) scrollToEnd();
  });
}

/** Screen readers hear an answer sentence by sentence. */
function speak(job, piece, end = false) {
  job.unspoken = (job.unspoken ?? "") + piece;
  const sentence = end ? job.unspoken : job.unspoken.match(/^[^]*[.!?…:;](?=\s)|^[^]*\n/)?.[0];
  if (!sentence) return;
  job.unspoken = job.unspoken.slice(sentence.length);
  if (jobOf(job.number) === job && sentence.trim() !== "") spoken.append(el("p", {}, sentence));
}

/** The job that writes message `number` of the conversation that is shown. */
function jobOf(number) {
  const job = jobs.get(state.current.id);
  return job?.number === number ? job : null;
}

function stop() {
  jobs.get(state.current.id)?.controller.abort();
}

/** What was answered so far is kept when the page is left. */
window.addEventListener("pagehide", () => {
  for (const [id, { number }] of jobs) {
    const conversation = library.find(id);
    if (!conversation) continue;
    conversation.messages[number].finish = "stopped";
    store.save(conversation);
  }
});

// -- scrolling: the end stays in sight until the reader scrolls away from it --

function noteScroll() {
  const rest = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  following = rest < 64;
  latest.hidden = following;
}

function scrollToEnd() {
  scroller.scrollTop = scroller.scrollHeight;
  following = true;
  latest.hidden = true;
}

scroller.addEventListener("scroll", noteScroll, { passive: true });
new ResizeObserver(() => following && scrollToEnd()).observe(scroller);
latest.prepend(icon("down"));
latest.addEventListener("click", scrollToEnd);

// -- the composer --

const composer = el("textarea", {
  id: "message",
  rows: "1",
  maxlength: store.LIMITS.text,
  placeholder: "Message",
  "aria-label": "Message",
  "aria-describedby": "keys",
  enterkeyhint: "send",
});
const sendButton = button("Send", { icon: "send", only: true, class: "primary round", id: "send", type: "submit" });
const stopButton = button("Stop", {
  icon: "stop",
  only: true,
  class: "round",
  id: "stop",
  hidden: true,
  onclick: stop,
});

function buildComposer() {
  const keys = el(
    "p",
    { class: "hint keys", id: "keys" },
    el("kbd", {}, "Enter"),
    " sends ",
    el("kbd", {}, "Shift"),
    "+",
    el("kbd", {}, "Enter"),
    " new line ",
    el("kbd", {}, "↑"),
    " edits the last message ",
    el("kbd", {}, "Esc"),
    " stops",
  );
  const form = find("#composer");
  fill(form, el("div", { class: "composer-box" }, composer, sendButton, stopButton), keys);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  composer.addEventListener("input", () => {
    fitted(composer);
    showComposer();
  });
  composer.addEventListener("keydown", composerKey);
}

/** Not where it would open a keyboard on the screen. */
function focusComposer() {
  if (!window.matchMedia("(pointer: coarse)").matches) composer.focus();
}

function composerKey(event) {
  if (isSend(event)) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && composer.value === "") {
    const last = store.branch(state.current).findLast((at) => state.current.messages[at].role === "user");
    if (last === undefined) return;
    event.preventDefault();
    edit(last);
  }
}

/** Enter, unless it ends a line or a word that an input method composes. */
function isSend(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

function submit() {
  if (!send(composer.value)) return;
  composer.value = "";
  fitted(composer);
  showComposer();
}

function showComposer() {
  const busy = jobs.has(state.current.id);
  const focused = document.activeElement === stopButton || document.activeElement === sendButton;
  stopButton.hidden = !busy;
  sendButton.hidden = busy;
  sendButton.disabled = composer.value.trim() === "" || state.current.model === null;
  if (focused) focusComposer();
}

/** As high as its text, up to what the style allows. */
function fitted(area) {
  area.style.setProperty("height", "auto");
  area.style.setProperty("height", `${area.scrollHeight + 2}px`);
}

// -- settings --

function showSettings() {
  const conversation = state.current;
  const changed = () => kept(conversation);
  fill(
    find("#settings"),
    sides.head("settings"),
    systemField(conversation.system, store.LIMITS.text, (text) => {
      conversation.system = text;
      changed();
    }),
    samplingForm(conversation.settings, changed),
  );
}

// -- the toolbar --

function buildToolbar() {
  const fresh = button("New chat", { icon: "plus", only: true, class: "quiet narrow", onclick: () => startNew() });
  const choice = el("div", { class: "chooser" }, chooser);
  const toggles = [sides.toggle("conversations"), sides.toggle("settings")];
  fill(find(".toolbar"), toggles[0], choice, aboutModel, title, fresh, toggles[1]);
  find(".toolbar").after(modelWarning);
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  if (sides.drawer) sides.close(true);
  else stop();
});

// -- begin --

function begun() {
  library.build(find("#conversations"), sides.head("conversations"));
  buildToolbar();
  buildComposer();
  state.current = store.create(null, { ...defaults(), ...structuredClone(library.all[0]?.settings) });
  openByAddress();
  loadModels();
  window.addEventListener("hashchange", openByAddress);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && loadModels());
}

begun();
