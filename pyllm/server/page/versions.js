// A conversation is a tree: what was asked or answered anew stands beside what was there before. One path is shown.

/**
 * @typedef {{id: number, parent: number|null, role: string, content: string}} Message What stands before it is `parent`.
 * @typedef {{messages: Message[], leaf: number|null}} Conversation `leaf` is the last message that is shown.
 */

/** The messages that are shown, in order. */
export function shown({ messages, leaf }) {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const path = [];
  for (let id = leaf; id !== null; id = path[0].parent) path.unshift(byId.get(id));
  return path;
}

/** Add a message behind another one, or behind none, and show it. */
export function add(conversation, message, parent = conversation.leaf) {
  message.id = conversation.messages.reduce((most, { id }) => Math.max(most, id), -1) + 1;
  message.parent = parent;
  conversation.messages.push(message);
  conversation.leaf = message.id;
  return message;
}

/** All versions of a message, the oldest first. */
export function versions({ messages }, { parent, role }) {
  return messages.filter((one) => one.parent === parent && one.role === role);
}

/** Show a version, and the newest of all that stands behind it. */
export function choose(conversation, message) {
  let { id } = message;
  for (let next = message; next; next = conversation.messages.findLast(({ parent }) => parent === id)) id = next.id;
  conversation.leaf = id;
}

/** Take away a message that nothing stands behind; another version of it is shown, if there is one. */
export function takeAway(conversation, message) {
  conversation.messages.splice(conversation.messages.indexOf(message), 1);
  conversation.leaf = message.parent;
  const others = versions(conversation, message);
  if (others.length) choose(conversation, others.at(-1));
}
