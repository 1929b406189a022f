// Asking for an answer, and what is counted of it.

import { stream } from "./api.js";
import { fileText } from "./attachments.js";
import { shown } from "./versions.js";

const STOPPED = "stopped by you";

/** What the server is sent of a conversation: the messages that are shown. */
export function toMessages(conversation) {
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  for (const { role, content, files, tool_calls } of shown(conversation)) {
    // An answer that was stopped before its first word says nothing.
    if (role === "assistant" && !content && !tool_calls?.length) continue;
    const parts = (files ?? []).map((file) => ({ type: "text", text: fileText(file) }));
    if (content && parts.length) parts.push({ type: "text", text: content });
    const message = { role, content: parts.length ? parts : content };
    if (tool_calls?.length) message.tool_calls = tool_calls;
    messages.push(message);
  }
  return messages;
}

/** Whether the server can go on with an answer: it has text, and was cut off. */
export function canGoOn(message) {
  return Boolean(message.unfinished && message.content && !message.tool_calls?.length);
}

/**
 * Ask, and put what comes into a message.
 *
 * @param {object} body The request without what makes it a stream.
 * @param {object} message Where `content`, `reasoning`, `tool_calls` and in the end `note` go. It is `unfinished` until the
 *     model has ended it.
 * @param {AbortSignal} signal Ends it.
 * @param {function(object): void} onDelta Called with each piece when the message has it.
 */
export async function answer(body, message, signal, onDelta) {
  const started = performance.now();
  let first = null;
  let last = started;
  let usage = null;
  let reason = null;
  let pieces = 0;
  message.unfinished = true;
  try {
    const events = stream("v1/chat/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal);
    for await (const event of events) {
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      const delta = choice.delta ?? {};
      if (!delta.content && !delta.reasoning_content && !delta.tool_calls) continue;
      last = performance.now();
      first ??= last;
      pieces++;
      take(message, delta);
      onDelta(delta);
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    reason = STOPPED;
  } finally {
    if (reason !== null && reason !== "length" && reason !== STOPPED) delete message.unfinished;
    message.note = described({ started, first, last, usage, reason, pieces });
  }
}

function take(message, delta) {
  if (delta.content) message.content += delta.content;
  if (delta.reasoning_content) message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
  for (const part of delta.tool_calls ?? []) {
    message.tool_calls ??= [];
    const call = (message.tool_calls[part.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    call.id ||= part.id ?? "";
    call.function.name += part.function?.name ?? "";
    call.function.arguments += part.function?.arguments ?? "";
  }
}

function described({ started, first, last, usage, reason, pieces }) {
  const parts = [];
  // Without the server's count, pieces are nearly tokens.
  const tokens = usage?.completion_tokens ?? pieces;
  parts.push(`${usage ? "" : "about "}${tokens} ${tokens === 1 ? "token" : "tokens"}`);
  if (first !== null && tokens > 1 && last > first) {
    parts.push(`${((1000 * (tokens - 1)) / (last - first)).toFixed(1)} tokens/s`);
  }
  if (first !== null) parts.push(`first after ${((first - started) / 1000).toFixed(2)} s`);
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(`prompt ${usage.prompt_tokens}${cached ? ` (${cached} cached)` : ""}`);
  }
  if (reason === "length") parts.push("cut off: max tokens, or the context is full");
  else if (reason && reason !== "stop" && reason !== "tool_calls") parts.push(reason);
  return parts.join(" · ");
}
