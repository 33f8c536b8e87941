/** The chat page: conversations at the left, the one that is shown in the middle, its settings at the right. */

import { announce, button, dialog, download, el, events, field, fill, find, format, icon, menu, nav, problem, api, storage, toast, ApiError } from "/static/common.js";
import * as store from "/static/conversations.js";
import { defaults, fieldsOf, samplingForm, seedOf, systemField } from "/static/sampling.js";

nav("chat");

const main = find("#main");
const sides = { conversations: find("#conversations"), settings: find("#settings") };
const thread = find("#thread");
const scroller = find("#scroller");
const spoken = find("#spoken");
const latest = find("#latest");

/** `current` is one of `conversations`, or one that has no message yet and is not kept. */
const state = { conversations: [], current: null, models: [], modelsError: null, editing: null };

/** Answers that are being written, by conversation. */
const jobs = new Map();

/** Whether the end of the conversation is in sight, and is to stay there. */
let following = true;

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

/** The model that was chosen last, else the first. */
function preferredModel() {
  const ids = chatModels().map(({ id }) => id);
  const last = storage.get("tinylm.model");
  return ids.includes(last) ? last : (ids[0] ?? null);
}

function modelOf(conversation) {
  return state.models.find(({ id }) => id === conversation.model);
}

function showModel() {
  const { model } = state.current;
  const known = modelOf(state.current);
  const option = ({ id, tinylm }) => el("option", { value: id, disabled: tinylm?.chat === false, selected: id === model }, id);
  const others = state.models.filter(({ tinylm }) => tinylm?.chat === false);
  fill(chooser,
    model !== null && !known && el("option", { value: model, selected: true }, `${model} (not served)`),
    chatModels().map(option),
    others.length > 0 && el("optgroup", { label: "Not trained for chats" }, others.map(option)),
    model === null && el("option", { value: "", selected: true, disabled: true }, "No model"),
  );
  chooser.title = model ?? "";
  fill(aboutModel, known?.tinylm && sizeOf(known.tinylm));
  const error = known?.tinylm?.error;
  modelWarning.hidden = !error;
  fill(modelWarning, error && el("div", { class: "notice warn" }, icon("alert"), el("p", {}, error)));
}

function sizeOf({ parameters, seq_len: positions }) {
  return `${format.short(parameters)} parameters · ${format.count(positions)} tokens of context`;
}

// -- the list of conversations --

const list = el("ul", { class: "plain conversation-list" });
const listNotices = el("div", { class: "stack tight" });
const fileInput = el("input", { type: "file", id: "import-file", class: "visually-hidden", accept: ".json,application/json", tabindex: "-1", "aria-hidden": "true" });

fileInput.addEventListener("change", async () => {
  const [file] = fileInput.files;
  if (file) await importFile(file);
  fileInput.value = "";
});

function buildConversations() {
  fill(sides.conversations,
    sideHead("Conversations", "conversations"),
    button("New chat", { icon: "plus", class: "wide", id: "new-chat", onclick: () => startNew() }),
    listNotices,
    list,
    el("div", { class: "side-foot" },
      button("Import", { icon: "upload", class: "quiet", id: "import", onclick: () => fileInput.click() }),
      button("Export all", { icon: "download", class: "quiet", id: "export-all", onclick: exportAll }),
      fileInput,
    ),
  );
}

function showList() {
  const order = state.conversations.toSorted((a, b) => b.updated - a.updated);
  fill(list, order.map(listEntry), order.length === 0 && el("li", { class: "hint none" }, "Conversations are kept in this browser only."));
}

function listEntry(conversation) {
  const current = conversation === state.current;
  const more = button(`More about “${conversation.title}”`, { icon: "more", only: true, class: "quiet compact", "aria-haspopup": "menu" });
  more.addEventListener("click", () => menu(more, [
    { label: "Rename", icon: "edit", action: () => rename(conversation) },
    { label: "Export", icon: "download", action: () => saveFile([conversation]) },
    { label: "Delete", icon: "trash", danger: true, action: () => confirmDelete(conversation) },
  ]));
  const open = el("button", { type: "button", class: "open cut", "aria-current": current ? "true" : null, title: conversation.title,
    onclick: () => openConversation(conversation) }, conversation.title);
  return el("li", { class: current ? "current" : null }, open, jobs.has(conversation.id) && el("span", { class: "spinner", title: "An answer is being written" }), more);
}

async function rename(conversation) {
  const input = el("input", { class: "input", required: true, maxlength: store.LIMITS.title, value: conversation.title });
  const title = await dialog("Rename the conversation", field("Title", input), { accept: "Rename", value: () => input.value.trim() });
  if (!title) return;
  conversation.title = title;
  kept(conversation);
  showList();
  showTitle();
}

async function confirmDelete(conversation) {
  const text = `“${conversation.title}” is kept in this browser only and cannot be brought back.`;
  if (!(await dialog("Delete the conversation?", el("p", {}, text), { accept: "Delete", danger: true }))) return;
  jobs.get(conversation.id)?.controller.abort();
  forget(conversation);
  store.remove(conversation.id);
}

function forget(conversation) {
  state.conversations = state.conversations.filter((one) => one !== conversation);
  if (state.current === conversation) startNew();
  else showList();
}

function exportAll() {
  if (state.conversations.length === 0) return toast("There is no conversation yet.");
  saveFile(state.conversations);
}

function saveFile(conversations) {
  const name = conversations.length === 1 ? conversations[0].title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) : "";
  download(`tinylm-chat${name && `-${name}`}-${format.date(Date.now()).slice(0, 10)}.json`, store.exported(conversations));
}

async function importFile(file) {
  try {
    if (file.size > store.LIMITS.bytes) {
      throw new Error(`${file.name} has ${format.bytes(file.size)}: expected at most ${format.bytes(store.LIMITS.bytes)}`);
    }
    const incoming = store.imported(await file.text());
    takeIn(store.merged(state.conversations, incoming), incoming.length);
  } catch (error) {
    listNotice(`${file.name} was not imported. ${error.message}`);
  }
}

function takeIn(added, of) {
  state.conversations.push(...added);
  const lost = added.filter((conversation) => !store.save(conversation)).length;
  const here = of - added.length;
  const parts = [`${added.length} of ${of} ${of === 1 ? "conversation" : "conversations"} imported`, here > 0 && `${here} was here already`];
  toast(parts.filter(Boolean).join("; "));
  if (lost > 0) listNotice(`The browser's storage is full: ${lost} of them will be gone when this tab is closed.`);
  if (added.length > 0) openConversation(added[0]);
  else showList();
}

/** A message above the list that stays until it is dismissed. */
function listNotice(message, ...actions) {
  const note = el("div", { class: "notice bad", role: "alert" }, icon("alert"), el("p", {}, message), actions,
    button("Dismiss", { class: "quiet compact", onclick: () => note.remove() }));
  listNotices.append(note);
}

// -- which conversation is shown --

function startNew() {
  const system = "";
  openConversation(store.create(preferredModel(), rememberedSettings(), system));
  focusComposer();
}

/** New conversations begin with the settings that were used last. */
function rememberedSettings() {
  return { ...defaults(), ...structuredClone(state.current?.settings) };
}

function openConversation(conversation) {
  state.current = conversation;
  state.editing = null;
  const isKept = state.conversations.includes(conversation);
  history.replaceState(null, "", isKept ? `#${conversation.id}` : "#");
  closeSides();
  showList();
  showTitle();
  showModel();
  showSettings();
  showThread();
  showComposer();
  scrollToEnd();
}

function openByAddress() {
  const id = location.hash.slice(1);
  const conversation = state.conversations.find((one) => one.id === id);
  if (conversation) openConversation(conversation);
  else startNew();
}

/** Writes a conversation to the browser's storage, if it has a message. */
function kept(conversation) {
  if (!state.conversations.includes(conversation)) return;
  if (!store.save(conversation)) {
    toast("The browser's storage is full: what you write now is gone when this tab is closed. Export or delete conversations.", { bad: true });
  }
}

/** Another tab has changed, added or deleted one. */
window.addEventListener("storage", (event) => {
  const id = store.idOfKey(event.key);
  if (id === null || jobs.has(id)) return;
  const at = state.conversations.findIndex((one) => one.id === id);
  const fresh = event.newValue === null ? null : store.reload(id);
  if (fresh === null) {
    if (at >= 0) forget(state.conversations[at]);
    return;
  }
  const shown = state.current.id === id;
  if (at >= 0) state.conversations[at] = fresh;
  else state.conversations.push(fresh);
  if (shown && state.editing === null) openConversation(fresh);
  else showList();
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
  return el("div", { class: "welcome" },
    el("h2", {}, "Talk to ", el("span", { class: "model-name" }, model.id)),
    model.tinylm && el("p", { class: "muted" }, sizeOf(model.tinylm)),
    el("div", { class: "examples" }, examples),
  );
}

function noModel() {
  const why = state.models.length === 0
    ? "No pipeline has trained a model yet. Run one, for example:"
    : "None of the models here is trained for chats. A pipeline with a fine-tuned model is, for example:";
  return el("div", { class: "empty" }, icon("chat"), el("p", {}, why), el("code", {}, "tinylm run pipelines/two_stage.yaml"),
    button("Look again", { icon: "again", onclick: loadModels }));
}

function messageView(number) {
  const message = state.current.messages[number];
  const user = message.role === "user";
  const editing = state.editing === number;
  return el("article", { class: `message ${message.role}${editing ? " editing" : ""}`, "aria-label": user ? "You" : "Answer", dataset: { number } },
    editing ? editor(number) : [contentView(message, number), outcomeView(message, number), footView(message, number)]);
}

function contentView(message, number) {
  const job = jobOf(number);
  const text = document.createTextNode(message.content);
  if (job) job.text = text;
  const waiting = job && message.content === "";
  const nothing = !job && message.content === "" && message.finish !== "error";
  return el("div", { class: "content verbatim", "aria-busy": job ? "true" : null },
    text, waiting && el("span", { class: "dots", role: "img", "aria-label": "The model reads" }, el("i"), el("i"), el("i")),
    nothing && el("em", { class: "muted" }, message.role === "user" ? "(nothing)" : "(an empty answer)"));
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
  const quiet = (label, drawing, onclick, key) => button(label, { icon: drawing, only: true, class: "quiet compact", dataset: { key: `${key}-${number}` }, onclick });
  return el("div", { class: "message-foot" },
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
  const to = (target, label, drawing, key) => button(label, { icon: drawing, only: true, class: "quiet compact", dataset: { key: `${key}-${parent}` },
    "aria-disabled": target === undefined ? "true" : null, onclick: () => target !== undefined && switchTo(target) });
  return el("div", { class: "branches", role: "group", "aria-label": "Branches" },
    to(all[at - 1], "Previous branch", "left", "previous"),
    el("span", { class: "number" }, `${at + 1}/${all.length}`),
    to(all[at + 1], "Next branch", "right", "next"));
}

const FINISHES = { stop: "complete", length: "cut off at max tokens", stopped: "stopped", error: "failed" };

/** Figures of an answer: only those that are known. */
function metaOf(message, job) {
  if (job) return "";
  const { tokens, tokens_per_second: rate, first_after: first, prompt_tokens: read, cached_tokens: cached, seed } = message;
  const parts = [
    message.edited ? "edited" : (FINISHES[message.finish] ?? "broken off"),
    tokens !== undefined && `${format.count(tokens)} ${tokens === 1 ? "token" : "tokens"}`,
    rate !== undefined && `${format.number(rate, 3)} tokens/s`,
  ];
  const details = [
    message.model,
    message.finish && `finish reason: ${message.finish}`,
    first !== undefined && `first text after ${format.seconds(first)}`,
    read !== undefined && `${format.count(read)} tokens read, ${format.count(cached ?? 0)} of them from the cache`,
    seed !== undefined && `seed ${seed}`,
  ];
  return el("span", { title: details.filter(Boolean).join("\n") }, parts.filter(Boolean).join(" · "));
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
  const input = el("textarea", { class: "textarea", "aria-label": "Message", rows: "1", value: content, oninput: () => fitted(input) });
  const save = () => saveEdit(number, input.value);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leaveEditor();
    else if (isSend(event)) save();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const accept = role === "user" ? "Send" : "Save";
  return el("div", { class: "editor" }, input, el("div", { class: "row" },
    el("p", { class: "hint fill" }, "What was there stays as a branch of its own."),
    button("Cancel", { class: "quiet", onclick: leaveEditor }), button(accept, { class: "primary", onclick: save })));
}

function leaveEditor() {
  state.editing = null;
  showThread();
  focusComposer();
}

function saveEdit(number, content) {
  const { role, parent, content: before } = state.current.messages[number];
  if (content.trim() === "") return;
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
  ask(state.current.leaf, content);
  return true;
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
  state.conversations.push(conversation);
  history.replaceState(null, "", `#${conversation.id}`);
  showTitle();
}

function regenerate(number) {
  if (!jobs.has(state.current.id)) answer(state.current, state.current.messages[number].parent);
}

/** The same answer once more; what there is of it was no answer, so nothing is lost. */
function retry(number) {
  const conversation = state.current;
  if (jobs.has(conversation.id)) return;
  const message = conversation.messages[number];
  if (message.content !== "" || conversation.messages.some(({ parent }) => parent === number)) return regenerate(number);
  for (const name of ["finish", "error", "tokens", "tokens_per_second", "first_after"]) delete message[name];
  message.model = conversation.model;
  generate(conversation, number);
}

/** A new answer to message `question`. */
function answer(conversation, question) {
  const earlier = conversation.messages.filter(({ parent }) => parent === question).length;
  const seed = seedOf(conversation.settings, earlier);
  generate(conversation, store.append(conversation, question, { role: "assistant", content: "", model: conversation.model, seed }));
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
    await stream(conversation, message, job);
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

function explained(error) {
  const message = /[.!?]$/.test(error.message) ? error.message : `${error.message}.`;
  return error.retryAfter == null ? message : `${message} It may work in ${format.seconds(error.retryAfter)}.`;
}

function showAfter(conversation) {
  showList();
  if (conversation !== state.current) return;
  showThread();
  showComposer();
}

/** The request, and what comes of it, into `message`. */
async function stream(conversation, message, job) {
  const body = {
    model: conversation.model,
    messages: messagesBefore(conversation, message),
    stream: true,
    stream_options: { include_usage: true },
    ...fieldsOf(conversation.settings, message.seed),
  };
  const clock = { begun: performance.now(), first: null, last: null };
  for await (const { data } of events("/v1/chat/completions", { body, signal: job.controller.signal })) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(200, chunk.error);
    takeChunk(message, job, chunk, clock);
  }
  if (!message.finish) throw new ApiError(0, { message: "The connection broke off before the answer was complete." });
}

function takeChunk(message, job, { choices: [choice], usage }, clock) {
  const piece = choice?.delta?.content ?? "";
  if (piece !== "") {
    clock.last = performance.now();
    clock.first ??= clock.last;
    message.first_after ??= (clock.first - clock.begun) / 1000;
    message.content += piece;
    showPiece(job, piece);
  }
  if (choice?.finish_reason) message.finish = choice.finish_reason;
  if (!usage) return;
  message.tokens = usage.completion_tokens;
  message.prompt_tokens = usage.prompt_tokens;
  message.cached_tokens = usage.prompt_tokens_details?.cached_tokens ?? 0;
  // The first token's time is that of reading the prompt.
  if (clock.last > clock.first && usage.completion_tokens > 1) {
    message.tokens_per_second = ((usage.completion_tokens - 1) * 1000) / (clock.last - clock.first);
  }
}

function messagesBefore(conversation, message) {
  const before = store.branch(conversation, message.parent).map((at) => conversation.messages[at]);
  const said = before.map(({ role, content }) => ({ role, content }));
  return conversation.system.trim() === "" ? said : [{ role: "system", content: conversation.system }, ...said];
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
    const conversation = state.conversations.find((one) => one.id === id);
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

const composer = el("textarea", { id: "message", rows: "1", placeholder: "Message", "aria-label": "Message", "aria-describedby": "keys", enterkeyhint: "send" });
const sendButton = button("Send", { icon: "send", only: true, class: "primary round", id: "send", type: "submit" });
const stopButton = button("Stop", { icon: "stop", only: true, class: "round", id: "stop", hidden: true, onclick: stop });

function buildComposer() {
  const keys = el("p", { class: "hint keys", id: "keys" },
    el("kbd", {}, "Enter"), " sends ", el("kbd", {}, "Shift"), "+", el("kbd", {}, "Enter"), " new line ",
    el("kbd", {}, "↑"), " edits the last message ", el("kbd", {}, "Esc"), " stops");
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
  fill(sides.settings,
    sideHead("Settings", "settings"),
    systemField(conversation.system, (text) => {
      conversation.system = text;
      changed();
    }),
    samplingForm(conversation.settings, changed),
  );
}

// -- the sides: columns where there is room, else drawers over the conversation --

const ROOM = { conversations: window.matchMedia("(min-width: 52rem)"), settings: window.matchMedia("(min-width: 76rem)") };
const toggles = {};
let drawer = null;

function sideHead(label, side) {
  return el("div", { class: "side-head" }, el("h2", {}, label),
    button(`Close ${label.toLowerCase()}`, { icon: "close", only: true, class: "quiet compact close", onclick: () => closeSides(true) }));
}

function toggleSide(side) {
  if (ROOM[side].matches) {
    const hidden = storage.get(`tinylm.hide.${side}`) !== "yes";
    storage.set(`tinylm.hide.${side}`, hidden ? "yes" : null);
  } else {
    drawer = drawer === side ? null : side;
  }
  showSides();
  if (drawer) sides[drawer].querySelector("button, textarea")?.focus();
}

function closeSides(back = false) {
  const was = drawer;
  drawer = null;
  showSides();
  if (back && was) toggles[was].focus();
}

function showSides() {
  for (const [side, node] of Object.entries(sides)) {
    const column = ROOM[side].matches && storage.get(`tinylm.hide.${side}`) !== "yes";
    node.hidden = !column && drawer !== side;
    node.classList.toggle("drawer", !ROOM[side].matches);
    main.classList.toggle(`with-${side}`, column);
    toggles[side]?.setAttribute("aria-expanded", String(!node.hidden));
  }
  backdrop.hidden = drawer === null;
  for (const node of [find(".talk"), find(".header")]) node.inert = drawer !== null;
}

const backdrop = el("div", { class: "backdrop", hidden: true, onclick: () => closeSides(true) });

function buildToolbar() {
  toggles.conversations = button("Conversations", { icon: "menu", only: true, class: "quiet", "aria-controls": "conversations", onclick: () => toggleSide("conversations") });
  toggles.settings = button("Settings", { icon: "settings", only: true, class: "quiet", "aria-controls": "settings", onclick: () => toggleSide("settings") });
  const fresh = button("New chat", { icon: "plus", only: true, class: "quiet narrow", onclick: () => startNew() });
  fill(find(".toolbar"), toggles.conversations, el("div", { class: "chooser" }, chooser), aboutModel, title, fresh, toggles.settings);
  find(".toolbar").after(modelWarning);
  main.append(backdrop);
  for (const room of Object.values(ROOM)) room.addEventListener("change", () => closeSides());
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  if (drawer) closeSides(true);
  else stop();
});

// -- begin --

function begun() {
  const { conversations, broken } = store.load();
  state.conversations = conversations;
  buildConversations();
  buildToolbar();
  buildComposer();
  state.current = store.create(null, { ...defaults(), ...structuredClone(conversations[0]?.settings) });
  for (const { key, message } of broken) reportBroken(key, message);
  openByAddress();
  loadModels();
  window.addEventListener("hashchange", openByAddress);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && loadModels());
}

/** A kept conversation that does not read: it can be saved as it is, or deleted. */
function reportBroken(key, message) {
  listNotice(`A conversation that was kept here does not read. ${message}`,
    button("Save as it is", { class: "quiet compact", onclick: () => download("tinylm-broken.json", storage.get(key)) }),
    button("Delete", { class: "quiet compact", onclick: () => storage.set(key, null) }));
}

begun();
