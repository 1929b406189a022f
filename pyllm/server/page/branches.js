// The branches of a text, as a list that leads to each of them.

import { el, button } from "./dom.js";
import { quoted, textOf } from "./tokens.js";

const LONGEST = 48;

/**
 * Draw the list.
 *
 * @param {HTMLElement} root Where.
 * @param {import("./tree.js").Tree|null} tree The branches.
 * @param {function(object): void} onOpen Called with a branch.
 */
export function drawBranches(root, tree, onOpen) {
  root.replaceChildren(...(tree === null ? [] : [item(tree.root, tree, onOpen)]));
}

function item(branch, tree, onOpen) {
  const own = branch.parent === null ? branch.tokens.slice(tree.promptLength) : branch.tokens;
  const text = own.slice(0, LONGEST).map(textOf).join("").replace(/\s+/g, " ").trim();
  const name = branch.parent === null ? "First text" : `${branch.at + 1}: ${quoted(branch.tokens[0])}`;
  const current = branch === tree.current;
  const open = button("", () => onOpen(branch), { class: "branch", "aria-current": current ? "true" : null });
  open.append(
    el("span.name", {}, name),
    el("span.text", {}, text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text),
    el("span.count", {}, `${own.length} ${own.length === 1 ? "token" : "tokens"}`),
  );
  const inner = branch.children.map((child) => item(child, tree, onOpen));
  return el("li", {}, open, inner.length ? el("ul", {}, ...inner) : null);
}
