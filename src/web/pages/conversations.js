/** Conversations with a model: trees of messages, kept in the browser, exported and imported as JSON.
 *
 *  A conversation's `messages` are numbered by their place in the list. Each has a `parent` that stands before it (null
 *  at the beginning), so that an edited message or another answer is a sibling, and nothing is overwritten. `leaf` is the
 *  last message of the branch that is shown. Questions and answers alternate along a branch. */

import { storage } from "/static/common.js";
import { PARAMS, STOP_LENGTH, STOP_TEXTS } from "/static/sampling.js";

const FORMAT = "tinylm.conversations";
const VERSION = 1;
const KEY = "tinylm.chat.";

/** What an import may hold at most. */
export const LIMITS = {
  bytes: 16 * 1024 * 1024,
  conversations: 1000,
  messages: 10000,
  text: 1000000,
  error: 10000,
  title: 200,
};

// -- the tree --

/** A conversation without messages. */
export function create(model, settings) {
  const now = Date.now();
  return {
    id: newId(),
    title: "New chat",
    created: now,
    updated: now,
    model,
    system: "",
    settings,
    messages: [],
    leaf: null,
  };
}

/** `randomUUID` exists only where the page came over TLS or from this machine. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The numbers of the messages of the branch that ends with `leaf`, from the first. */
export function branch(conversation, leaf = conversation.leaf) {
  const numbers = [];
  for (let at = leaf; at !== null; at = conversation.messages[at].parent) numbers.push(at);
  return numbers.reverse();
}

/** The messages with the same parent as message `number`, itself among them. */
export function siblings(conversation, number) {
  const { parent } = conversation.messages[number];
  return [...conversation.messages.keys()].filter((at) => conversation.messages[at].parent === parent);
}

/** Adds a message behind `parent` and shows its branch; gives its number. */
export function append(conversation, parent, message) {
  const number = conversation.messages.push({ parent, created: Date.now(), ...message }) - 1;
  conversation.leaf = number;
  return number;
}

// The leaf that was last shown of each branch, so that going back to one shows what one left.
const lastShown = new WeakMap();

/** Shows the branch of message `number`, to the end that was shown last, or to its newest one. */
export function show(conversation, number) {
  const leaves = lastShown.get(conversation) ?? new Map();
  for (const at of branch(conversation)) leaves.set(at, conversation.leaf);
  lastShown.set(conversation, leaves);
  conversation.leaf = leaves.get(number) ?? newestBelow(conversation, number);
}

function newestBelow(conversation, number) {
  let leaf = number;
  for (;;) {
    const child = conversation.messages.findLastIndex((message) => message.parent === leaf);
    if (child < 0) return leaf;
    leaf = child;
  }
}

/** What a conversation is called until it is renamed: its first words. */
export function titleOf(text) {
  const line = text.trim().split(/\s+/).join(" ");
  return line.length <= 60 ? line : `${line.slice(0, 59).trimEnd()}…`;
}

// -- in the browser --

/** All that is kept, newest first, and what of it does not read any more. */
export function load() {
  const conversations = [];
  const broken = [];
  for (const key of keys()) {
    try {
      conversations.push(conversationOf(JSON.parse(storage.get(key)), "the conversation"));
    } catch (error) {
      broken.push({ key, message: error.message });
    }
  }
  conversations.sort((a, b) => b.updated - a.updated);
  return { conversations, broken };
}

/** The conversation that another tab has changed; null where it is gone or does not read. */
export function reload(id) {
  try {
    return conversationOf(JSON.parse(storage.get(KEY + id)), "the conversation");
  } catch {
    return null;
  }
}

function keys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(KEY));
  } catch {
    return [];
  }
}

/** The conversation that a key of the storage stands for, null for other keys. */
export function idOfKey(key) {
  return key?.startsWith(KEY) ? key.slice(KEY.length) : null;
}

/** Whether it could be kept. */
export function save(conversation) {
  return storage.set(KEY + conversation.id, JSON.stringify(conversation));
}

export function remove(id) {
  storage.set(KEY + id, null);
}

// -- export and import --

/** The text of a file with these conversations. */
export function exported(conversations) {
  const file = { format: FORMAT, version: VERSION, exported: new Date().toISOString(), conversations };
  return `${JSON.stringify(file, null, 2)}\n`;
}

/** The conversations of such a file. Whatever else stands there is an error that names its place and what was expected:
 *  nothing is skipped, and nothing of a file with an error is taken. */
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch (error) {
    throw new Invalid(`The file is no JSON: ${error.message}`);
  }
  const fields = {
    format: exactly(FORMAT),
    version: exactly(VERSION),
    exported: optional(textUpTo(40)),
    conversations: listOf(conversationOf, LIMITS.conversations),
  };
  return object(file, "the file", fields).conversations;
}

/** Takes in what was imported beside what is here: the same conversation once, another one with its id under a new id.
 *  Gives those that are new. */
export function merged(here, incoming) {
  const known = new Map(here.map((conversation) => [conversation.id, conversation]));
  const added = [];
  for (const conversation of incoming) {
    const same = known.get(conversation.id);
    if (same && JSON.stringify(conversationOf(same, "")) === JSON.stringify(conversation)) continue;
    if (same) conversation.id = newId();
    known.set(conversation.id, conversation);
    added.push(conversation);
  }
  return added;
}

// -- checks: each takes a value and the name of its place, and gives the value or throws --

/** What does not read as a conversation, and where. */
export class Invalid extends Error {}

function refuse(place, value, expected) {
  const shown = JSON.stringify(value) ?? String(value);
  const short = shown.length > 60 ? `${shown.slice(0, 57)}…` : shown;
  throw new Invalid(`${place} is ${short}: expected ${expected}`);
}

function object(value, place, fields) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) refuse(place, value, "an object");
  const unknown = Object.keys(value).find((name) => !Object.hasOwn(fields, name));
  if (unknown !== undefined) {
    const names = Object.keys(fields)
      .map((name) => `\`${name}\``)
      .join(", ");
    throw new Invalid(`${place} has ${JSON.stringify(unknown.slice(0, 60))}: expected only ${names}`);
  }
  const checked = {};
  for (const [name, check] of Object.entries(fields)) {
    const found = Object.hasOwn(value, name) ? value[name] : undefined;
    if (found === undefined && check.optional) continue;
    if (found === undefined) throw new Invalid(`${place} lacks \`${name}\``);
    checked[name] = check(found, place === "the file" ? name : `${place}.${name}`);
  }
  return checked;
}

function optional(check) {
  return Object.assign((value, place) => check(value, place), { optional: true });
}

function orNull(check) {
  return (value, place) => (value === null ? null : check(value, place));
}

function exactly(wanted) {
  return (value, place) => (value === wanted ? value : refuse(place, value, JSON.stringify(wanted)));
}

function oneOf(...choices) {
  const names = choices.map((choice) => JSON.stringify(choice)).join(" or ");
  return (value, place) => (choices.includes(value) ? value : refuse(place, value, names));
}

function textUpTo(length, { least = 0 } = {}) {
  return (value, place) => {
    if (typeof value !== "string") refuse(place, value, "text");
    if (value.length < least) refuse(place, value, `at least ${least} character${least === 1 ? "" : "s"}`);
    if (value.length > length) throw new Invalid(`${place} has ${value.length} characters: expected at most ${length}`);
    return value;
  };
}

function number(least, most, { whole = false } = {}) {
  return (value, place) => {
    const fits =
      typeof value === "number" && value >= least && value <= most && (!whole || Number.isSafeInteger(value));
    return fits ? value : refuse(place, value, `a ${whole ? "whole " : ""}number from ${least} to ${most}`);
  };
}

function listOf(check, length) {
  return (value, place) => {
    if (!Array.isArray(value)) refuse(place, value, "a list");
    if (value.length > length) throw new Invalid(`${place} has ${value.length} entries: expected at most ${length}`);
    return value.map((entry, at) => check(entry, `${place}[${at}]`));
  };
}

const time = number(0, 8.64e15);
const tally = number(0, Number.MAX_SAFE_INTEGER, { whole: true });

/** Fields of a message; an answer has more. */
const MESSAGE = {
  parent: orNull(tally),
  role: oneOf("user", "assistant"),
  content: textUpTo(LIMITS.text),
  created: time,
};

const ANSWER = {
  ...MESSAGE,
  model: optional(textUpTo(1000)),
  edited: optional(oneOf(true)),
  seed: optional(tally),
  finish: optional(oneOf("stop", "length", "stopped", "error")),
  error: optional(textUpTo(LIMITS.error)),
  prompt_tokens: optional(tally),
  cached_tokens: optional(tally),
  tokens: optional(tally),
  tokens_per_second: optional(number(0, 1e9)),
  first_after: optional(number(0, 1e9)),
};

function messageOf(value, place) {
  if (value?.role !== undefined) MESSAGE.role(value.role, `${place}.role`);
  return object(value, place, value?.role === "assistant" ? ANSWER : MESSAGE);
}

function settingsOf(value, place) {
  const fields = Object.fromEntries(PARAMS.map(({ name, min, max, whole }) => [name, number(min, max, { whole })]));
  return object(value, place, {
    ...fields,
    seed: orNull(tally),
    stop: listOf(textUpTo(STOP_LENGTH, { least: 1 }), STOP_TEXTS),
  });
}

function conversationOf(value, place) {
  const conversation = object(value, place, {
    id: idText,
    title: textUpTo(LIMITS.title, { least: 1 }),
    created: time,
    updated: time,
    model: orNull(textUpTo(1000)),
    system: textUpTo(LIMITS.text),
    settings: settingsOf,
    messages: listOf(messageOf, LIMITS.messages),
    leaf: orNull(tally),
  });
  checkTree(conversation, place);
  return conversation;
}

function idText(value, place) {
  return typeof value === "string" && /^[0-9a-f]{24}$/.test(value)
    ? value
    : refuse(place, value, "24 hexadecimal digits");
}

function checkTree({ messages, leaf }, place) {
  messages.forEach(({ parent, role }, at) => {
    const here = `${place}.messages[${at}]`;
    if (parent !== null && parent >= at) refuse(`${here}.parent`, parent, "the number of a message before it, or null");
    const expected = parent === null || messages[parent].role === "assistant" ? "user" : "assistant";
    if (role !== expected) refuse(`${here}.role`, role, `"${expected}" at this place`);
  });
  const fits = leaf === null ? messages.length === 0 : leaf < messages.length;
  if (!fits)
    refuse(`${place}.leaf`, leaf, messages.length === 0 ? "null" : `a message's number below ${messages.length}`);
}
