// Conversations, kept in this browser and nowhere else.

import { fileText } from "./attachments.js";
import { shown } from "./versions.js";

const PREFIX = "pyllm.conversation.";
const FORMAT = "pyllm-conversations";
// Version 1 had one list of messages, and no versions of them.
const VERSION = 2;
const ROLES = ["user", "assistant", "system", "tool"];
const LONGEST_TITLE = 120;

/** What a message of a role is called. */
export const NAMES = { user: "You", assistant: "Answer", system: "System", tool: "Tool" };

/** An empty conversation. */
export function newConversation() {
  return { id: crypto.randomUUID?.() ?? randomId(), title: "", system: "", messages: [], leaf: null, updated: Date.now() };
}

/** All that are kept, the latest first. */
export function allConversations() {
  const found = [];
  for (let i = 0; i < localStorage.length; i++) {
    const key = localStorage.key(i);
    if (!key.startsWith(PREFIX)) continue;
    try {
      found.push(checked(JSON.parse(localStorage.getItem(key)), "stored conversation"));
    } catch {
      // Not written by this page: it is left as it is.
    }
  }
  return found.sort((a, b) => b.updated - a.updated);
}

/** The one with this id, or null. */
export function find(id) {
  try {
    return checked(JSON.parse(localStorage.getItem(PREFIX + id)), "stored conversation");
  } catch {
    return null;
  }
}

/** Keep one. Throws an Error for people when the browser has no room. */
export function save(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
  } catch {
    throw new Error("This browser has no room left for conversations: export some, and delete them.");
  }
}

/** Forget one. */
export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}

/** `listener()` is called when another tab has changed something. */
export function onChange(listener) {
  window.addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(PREFIX)) listener();
  });
}

/** What a conversation is called in lists. */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = conversation.messages.find((message) => message.role === "user");
  const line = (first?.content || first?.files?.[0]?.name || "").trim().split("\n", 1)[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line || "New chat";
}

/** What a file with a conversation is called, without its ending. */
export function fileName(conversation) {
  const name = titleOf(conversation).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "");
  return name.slice(0, 60) || "chat";
}

/**
 * Where words stand in a conversation, in any version of its messages: a piece of text around the first place, "" for
 * the title, null for nowhere.
 */
export function search(conversation, words) {
  const wanted = words.toLowerCase();
  if (titleOf(conversation).toLowerCase().includes(wanted)) return "";
  for (const { content } of conversation.messages) {
    const at = content.toLowerCase().indexOf(wanted);
    if (at < 0) continue;
    const from = Math.max(0, at - 20);
    return `${from ? "…" : ""}${content.slice(from, at + wanted.length + 40).replace(/\s+/g, " ")}`;
  }
  return null;
}

/** The messages that are shown, as Markdown for people. */
export function toMarkdown(conversation) {
  const parts = [`# ${titleOf(conversation)}`];
  if (conversation.system.trim()) parts.push("## System message", conversation.system);
  for (const { role, content, reasoning, files, tool_calls } of shown(conversation)) {
    parts.push(`## ${NAMES[role]}`);
    parts.push(...(files ?? []).map(fileText));
    if (reasoning) parts.push(`<details><summary>Reasoning</summary>\n\n${reasoning.trim()}\n\n</details>`);
    if (content) parts.push(content);
    for (const { function: called } of tool_calls ?? []) {
      parts.push(`Call of \`${called.name}\`:\n\n\`\`\`json\n${called.arguments}\n\`\`\``);
    }
  }
  return `${parts.map((part) => part.trim()).join("\n\n")}\n`;
}

/** Conversations as the text of a file. */
export function toFile(conversations) {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1);
}

/**
 * The conversations of such a file. Each is new: none takes the place of one that is here.
 *
 * @throws {Error} It is no such file; the message says why.
 */
export function fromFile(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    throw new Error("This is not a file of conversations: it is not JSON.");
  }
  if (found?.format !== FORMAT) throw new Error(`This is not a file of conversations: its format is not “${FORMAT}”.`);
  if (found.version !== 1 && found.version !== VERSION) {
    throw new Error(`This file has version ${String(found.version)}; this page reads versions 1 and ${VERSION}.`);
  }
  if (!Array.isArray(found.conversations)) throw new Error("This file has no list of conversations.");
  return found.conversations.map((one, i) => ({
    ...checked(one, `Conversation ${i + 1}`),
    id: newConversation().id,
  }));
}

// What is read is taken apart and built anew: only fields that are known, each of its type.
function checked(value, where) {
  if (typeof value !== "object" || value === null || !Array.isArray(value.messages)) {
    throw new Error(`${where} has no messages.`);
  }
  const messages = value.messages.map((message, i) => checkedMessage(message, `${where}, message ${i + 1}`));
  return {
    id: text(value.id, where, "id"),
    title: text(value.title ?? "", where, "title").slice(0, LONGEST_TITLE),
    system: text(value.system ?? "", where, "system"),
    updated: Number.isFinite(value.updated) ? value.updated : 0,
    messages,
    leaf: checkedTree(messages, value, where),
  };
}

// Gives each message its place. Without places they follow each other, as in the files of version 1.
function checkedTree(messages, value, where) {
  if (!messages.length) return null;
  const inOrder = value.leaf === undefined;
  const known = new Set();
  messages.forEach((message, i) => {
    const { id, parent } = inOrder ? { id: i, parent: i ? i - 1 : null } : value.messages[i];
    const before = `${where}, message ${i + 1}`;
    if (!Number.isSafeInteger(id) || known.has(id)) throw new Error(`${before}: id is not a number of its own.`);
    // What stands before it is known by then: there are no circles.
    if (parent !== null && !known.has(parent)) throw new Error(`${before}: parent is no message before it.`);
    known.add(id);
    Object.assign(message, { id, parent });
  });
  const leaf = inOrder ? messages.at(-1).id : value.leaf;
  if (!known.has(leaf)) throw new Error(`${where}: leaf is no message of it.`);
  return leaf;
}

function checkedMessage(value, where) {
  if (typeof value !== "object" || value === null) throw new Error(`${where} is not a message.`);
  if (!ROLES.includes(value.role)) throw new Error(`${where} has the role ${JSON.stringify(value.role)}.`);
  const message = { role: value.role, content: text(value.content ?? "", where, "content") };
  if (value.reasoning) message.reasoning = text(value.reasoning, where, "reasoning");
  if (value.note) message.note = text(value.note, where, "note");
  if (value.unfinished === true) message.unfinished = true;
  if (value.files) {
    message.files = list(value.files, where, "files").map((file) => ({
      name: text(file?.name, where, "name of a file"),
      text: text(file?.text, where, "text of a file"),
    }));
  }
  if (value.tool_calls) {
    message.tool_calls = list(value.tool_calls, where, "tool calls").map((call) => ({
      id: text(call?.id ?? "", where, "id"),
      type: "function",
      function: {
        name: text(call?.function?.name ?? "", where, "name"),
        arguments: text(call?.function?.arguments ?? "", where, "arguments"),
      },
    }));
  }
  return message;
}

function list(value, where, name) {
  if (!Array.isArray(value)) throw new Error(`${where} has ${name} that are no list.`);
  return value;
}

function text(value, where, name) {
  if (typeof value !== "string") throw new Error(`${where}: ${name} is not text.`);
  return value;
}

// Browsers make UUIDs only for pages from this machine or with TLS.
function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
