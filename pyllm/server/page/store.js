// Conversations, kept in this browser and nowhere else.

const PREFIX = "pyllm.conversation.";
const FORMAT = "pyllm-conversations";
const VERSION = 1;
const ROLES = ["user", "assistant", "system", "tool"];
const LONGEST_TITLE = 120;

/** An empty conversation. */
export function newConversation() {
  return { id: crypto.randomUUID?.() ?? randomId(), title: "", system: "", messages: [], updated: Date.now() };
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
  const first = conversation.messages.find((message) => message.role === "user")?.content ?? "";
  const line = first.trim().split("\n", 1)[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line || "New chat";
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
  if (found.version !== VERSION) {
    throw new Error(`This file has version ${String(found.version)}; this page reads version ${VERSION}.`);
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
  return {
    id: text(value.id, where, "id"),
    title: text(value.title ?? "", where, "title").slice(0, LONGEST_TITLE),
    system: text(value.system ?? "", where, "system"),
    updated: Number.isFinite(value.updated) ? value.updated : 0,
    messages: value.messages.map((message, i) => checkedMessage(message, `${where}, message ${i + 1}`)),
  };
}

function checkedMessage(value, where) {
  if (typeof value !== "object" || value === null) throw new Error(`${where} is not a message.`);
  if (!ROLES.includes(value.role)) throw new Error(`${where} has the role ${JSON.stringify(value.role)}.`);
  const message = { role: value.role, content: text(value.content ?? "", where, "content") };
  if (value.reasoning) message.reasoning = text(value.reasoning, where, "reasoning");
  if (value.note) message.note = text(value.note, where, "note");
  if (value.tool_calls) {
    if (!Array.isArray(value.tool_calls)) throw new Error(`${where} has tool calls that are no list.`);
    message.tool_calls = value.tool_calls.map((call) => ({
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

function text(value, where, name) {
  if (typeof value !== "string") throw new Error(`${where}: ${name} is not text.`);
  return value;
}

// Browsers make UUIDs only for pages from this machine or with TLS.
function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
