/** All conversations that this browser keeps, and their list: to open, rename, delete, export and import. */

import { button, dialog, download, el, field, fill, format, icon, menu, storage, toast } from "/static/common.js";
import * as store from "/static/conversations.js";

export class Library {
  /** `actions`: what the page does when a conversation is to be opened (`open`), a new one begun (`fresh`), when one was
   *  renamed (`renamed`) or is gone (`gone`); `isCurrent` and `isBusy` say which is shown and which are being answered. */
  constructor(actions) {
    this.all = [];
    this.actions = actions;
    this.list = el("ul", { class: "plain conversation-list" });
    this.notices = el("div", { class: "stack tight" });
    this.input = fileInput((file) => this.#import(file));
  }

  /** Fills the panel, and reads what is kept. */
  build(panel, head) {
    const { fresh } = this.actions;
    const all = () => this.#exportAll();
    const foot = el(
      "div",
      { class: "side-foot" },
      button("Import", { icon: "upload", class: "quiet", id: "import", onclick: () => this.input.click() }),
      button("Export all", { icon: "download", class: "quiet", id: "export-all", onclick: all }),
      this.input,
    );
    const begin = button("New chat", { icon: "plus", class: "wide", id: "new-chat", onclick: fresh });
    fill(panel, head, begin, this.notices, this.list, foot);
    const { conversations, broken } = store.load();
    this.all = conversations;
    for (const { key, message } of broken) this.#reportBroken(key, message);
  }

  show() {
    const order = this.all.toSorted((a, b) => b.updated - a.updated);
    const none = el("li", { class: "hint none" }, "Conversations are kept in this browser only.");
    fill(this.list, order.length === 0 ? none : order.map((conversation) => this.#entry(conversation)));
  }

  find(id) {
    return this.all.find((conversation) => conversation.id === id);
  }

  includes(conversation) {
    return this.all.includes(conversation);
  }

  /** Takes in what another tab has written of a conversation; null where it is gone there. */
  replace(id, fresh) {
    const at = this.all.findIndex((conversation) => conversation.id === id);
    if (fresh === null && at >= 0) this.#forget(this.all[at]);
    else if (fresh !== null && at >= 0) this.all[at] = fresh;
    else if (fresh !== null) this.all.push(fresh);
  }

  #entry(conversation) {
    const { isCurrent, isBusy, open } = this.actions;
    const current = isCurrent(conversation);
    const { title } = conversation;
    const marks = { icon: "more", only: true, class: "quiet compact", "aria-haspopup": "menu" };
    const more = button(`More about “${title}”`, { ...marks, onclick: () => menu(more, this.#choices(conversation)) });
    const attrs = { type: "button", class: "open cut", "aria-current": current ? "true" : null, title };
    const busy = isBusy(conversation) && el("span", { class: "spinner", title: "An answer is being written" });
    const name = el("button", { ...attrs, onclick: () => open(conversation) }, title);
    return el("li", { class: current ? "current" : null }, name, busy, more);
  }

  #choices(conversation) {
    return [
      { label: "Rename", icon: "edit", action: () => this.#rename(conversation) },
      { label: "Export", icon: "download", action: () => saveFile([conversation]) },
      { label: "Delete", icon: "trash", danger: true, action: () => this.#delete(conversation) },
    ];
  }

  async #rename(conversation) {
    const { title: before } = conversation;
    const input = el("input", { class: "input", required: true, maxlength: store.LIMITS.title, value: before });
    const asked = { accept: "Rename", value: () => input.value.trim() };
    const title = await dialog("Rename the conversation", field("Title", input), asked);
    if (!title) return;
    conversation.title = title;
    this.actions.renamed(conversation);
  }

  async #delete(conversation) {
    const text = `“${conversation.title}” is kept in this browser only and cannot be brought back.`;
    const asked = { accept: "Delete", danger: true };
    if (!(await dialog("Delete the conversation?", el("p", {}, text), asked))) return;
    this.#forget(conversation);
    store.remove(conversation.id);
  }

  #forget(conversation) {
    this.all = this.all.filter((one) => one !== conversation);
    this.actions.gone(conversation);
  }

  #exportAll() {
    if (this.all.length === 0) toast("There is no conversation yet.");
    else saveFile(this.all);
  }

  async #import(file) {
    try {
      if (file.size > store.LIMITS.bytes) {
        const most = format.bytes(store.LIMITS.bytes);
        throw new store.Invalid(`It has ${format.bytes(file.size)}: expected at most ${most}`);
      }
      const incoming = store.imported(await file.text());
      this.#takeIn(store.merged(this.all, incoming), incoming.length);
    } catch (error) {
      this.#notice(`${file.name} was not imported. ${error.message}`);
    }
  }

  #takeIn(added, of) {
    this.all.push(...added);
    const lost = added.filter((conversation) => !store.save(conversation)).length;
    const here = of - added.length;
    const taken = `${added.length} of ${of} ${of === 1 ? "conversation" : "conversations"} imported`;
    toast(here === 0 ? taken : `${taken}; ${here} ${here === 1 ? "was" : "were"} here already`);
    if (lost > 0) this.#notice(`The browser's storage is full: ${lost} of them will be gone when this tab is closed.`);
    if (added.length > 0) this.actions.open(added[0]);
  }

  /** A message above the list that stays until it is dismissed. */
  #notice(message, ...more) {
    const dismiss = button("Dismiss", { class: "quiet compact", onclick: () => note.remove() });
    const text = el("p", {}, message);
    const note = el("div", { class: "notice bad", role: "alert" }, icon("alert"), text, more, dismiss);
    this.notices.append(note);
  }

  /** A kept conversation that does not read: it can be saved as it is, or deleted. */
  #reportBroken(key, message) {
    const save = () => download("tinylm-broken.json", storage.get(key));
    this.#notice(
      `A conversation that was kept here does not read. ${message}`,
      button("Save as it is", { class: "quiet compact", onclick: save }),
      button("Delete", { class: "quiet compact", onclick: () => storage.set(key, null) }),
    );
  }
}

function fileInput(take) {
  const hidden = { class: "visually-hidden", tabindex: "-1", "aria-hidden": "true" };
  const input = el("input", { type: "file", id: "import-file", accept: ".json,application/json", ...hidden });
  input.addEventListener("change", async () => {
    const [file] = input.files;
    if (file) await take(file);
    input.value = "";
  });
  return input;
}

function saveFile(conversations) {
  const only = conversations.length === 1 ? `-${conversations[0].title}` : "";
  const name = only.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
  const day = format.date(Date.now()).slice(0, 10);
  download(`tinylm-chat${name}-${day}.json`, store.exported(conversations));
}
