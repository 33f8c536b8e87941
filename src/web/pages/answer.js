/** One answer of a model: the request, and what comes of it, piece by piece. */

import { ApiError, events, format } from "/static/common.js";
import { branch, LIMITS } from "/static/conversations.js";
import { fieldsOf } from "/static/sampling.js";

/** Asks for the answer to what stands before `message`, and writes it into `message` as it comes: its text, why it ended
 *  and its figures. `shown` is called with each piece of text. Throws what the server refuses, or the signal's
 *  `AbortError`. */
export async function stream(conversation, message, signal, shown) {
  const body = {
    model: conversation.model,
    messages: messagesBefore(conversation, message),
    stream: true,
    stream_options: { include_usage: true },
    ...fieldsOf(conversation.settings, message.seed),
  };
  const begun = performance.now();
  for await (const { data } of events("/v1/chat/completions", { body, signal })) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(200, chunk.error);
    const piece = chunk.choices[0]?.delta?.content ?? "";
    takeChunk(message, piece, chunk, (performance.now() - begun) / 1000);
    if (piece !== "") shown(piece);
  }
  if (!message.finish) throw new ApiError(0, { message: "The connection broke off before the answer was complete." });
}

function messagesBefore(conversation, message) {
  const before = branch(conversation, message.parent).map((at) => conversation.messages[at]);
  const said = before.map(({ role, content }) => ({ role, content }));
  return conversation.system.trim() === "" ? said : [{ role: "system", content: conversation.system }, ...said];
}

/** `seconds`: since the request. */
function takeChunk(message, piece, { choices: [choice], usage }, seconds) {
  if (piece !== "") message.first_after ??= seconds;
  message.content += piece;
  if (choice?.finish_reason) message.finish = finishOf(choice.finish_reason);
  if (usage) takeUsage(message, usage, seconds);
}

function finishOf(reason) {
  if (reason === "stop" || reason === "length") return reason;
  throw new ApiError(200, { message: `The server ended the answer with the unknown finish reason \`${reason}\`.` });
}

function takeUsage(message, usage, seconds) {
  message.tokens = usage.completion_tokens;
  message.prompt_tokens = usage.prompt_tokens;
  message.cached_tokens = usage.prompt_tokens_details?.cached_tokens ?? 0;
  // Over the whole time: several tokens may come at once, so the time between the first and the last says little.
  if (message.tokens > 0 && seconds > 0) message.tokens_per_second = message.tokens / seconds;
}

/** What an error says under an answer. */
export function explained(error) {
  const said = error.message.slice(0, LIMITS.error - 100);
  const text = said.charAt(0).toUpperCase() + said.slice(1);
  const message = /[.!?]$/.test(text) ? text : `${text}.`;
  return error.retryAfter == null ? message : `${message} It may work in ${format.seconds(error.retryAfter)}.`;
}

/** What ends an answer, in words, by `finish` of its message. */
export const FINISHES = { stop: "complete", length: "cut off at max tokens", stopped: "stopped", error: "failed" };

/** The figures of an answer that are known: a line, and what it leaves out, a line each. */
export function figuresOf(message) {
  const { tokens, tokens_per_second: rate, first_after: first, prompt_tokens: read, cached_tokens: cached } = message;
  const line = [
    message.edited ? "edited" : (FINISHES[message.finish] ?? "broken off"),
    tokens !== undefined && `${format.count(tokens)} ${tokens === 1 ? "token" : "tokens"}`,
    rate !== undefined && `${format.number(rate, 3)} tokens/s`,
  ];
  const details = [
    message.model,
    message.finish && `finish reason: ${message.finish}`,
    first !== undefined && `first text after ${format.seconds(first)}`,
    read !== undefined && `${format.count(read)} tokens read, ${format.count(cached ?? 0)} of them from the cache`,
    message.seed !== undefined && `seed ${message.seed}`,
  ];
  return { line: line.filter(Boolean).join(" · "), details: details.filter(Boolean).join("\n") };
}
