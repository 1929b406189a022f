// Markdown as it comes, piece by piece. It becomes DOM nodes and text nodes only: HTML in it stays text.

import { el, copyButton } from "./dom.js";
import { inline } from "./inline.js";
import { parseBlocks } from "./blocks.js";

/** Draws a text that grows; blocks that can no longer change are not touched again. */
export class Markdown {
  #tail = "";
  #open = [];

  /** @param {HTMLElement} root What the blocks are put into. */
  constructor(root) {
    this.root = root;
  }

  /** Add some text, and draw it. */
  append(text) {
    this.#tail += text;
    const blocks = parseBlocks(this.#tail);
    if (!blocks.length) return;
    const drawn = blocks.map((block, i) => redraw(this.root, this.#open[i], block));
    for (const gone of this.#open.slice(blocks.length)) gone.node.remove();
    // A block is as it stays when a whole line of another one stands behind it.
    let first = blocks.length - 1;
    if (first > 0 && !this.#tail.includes("\n", blocks[first].start)) first--;
    this.#open = drawn.slice(first);
    this.#tail = this.#tail.slice(blocks[first].start);
  }
}

function redraw(root, before, block) {
  if (before === undefined) {
    const node = draw(block);
    root.append(node);
    return { node, block };
  }
  if (before.block.kind === "code" && block.kind === "code" && block.text.startsWith(before.block.text)) {
    // Long programs come line by line.
    if (block.language !== before.block.language) labelOf(before.node).textContent = block.language;
    textOf(before.node).appendData(block.text.slice(before.block.text.length));
    return { node: before.node, block };
  }
  if (before.block.kind === block.kind && before.block.source === block.source) return { node: before.node, block };
  const node = draw(block);
  before.node.replaceWith(node);
  return { node, block };
}

function draw(block) {
  switch (block.kind) {
    case "heading":
      // The page has headings of its own above these.
      return el(`h${Math.min(6, block.level + 2)}`, {}, inline(block.text));
    case "code":
      return drawCode(block);
    case "rule":
      return el("hr");
    case "quote":
      return el("blockquote", {}, ...block.blocks.map(draw));
    case "list":
      return drawList(block);
    case "table":
      return drawTable(block);
    default:
      return el("p", {}, inline(block.text));
  }
}

function drawCode(block) {
  const code = document.createTextNode(block.text);
  return el(
    "figure.code",
    {},
    el("figcaption", {}, el("span", {}, block.language), copyButton(() => code.data)),
    el("pre", { tabindex: "0", role: "region", "aria-label": "Code" }, el("code", {}, code)),
  );
}

function textOf(figure) {
  return figure.querySelector("code").firstChild;
}

function labelOf(figure) {
  return figure.querySelector("figcaption span");
}

function drawList(block) {
  const list = el(block.ordered ? "ol" : "ul", block.ordered && block.first !== 1 ? { start: block.first } : {});
  for (const item of block.items) {
    // A list of short items has no paragraphs in it.
    const nodes = item.map((one) => (one.kind === "text" && !block.loose ? inline(one.text) : draw(one)));
    list.append(el("li", {}, ...nodes));
  }
  return list;
}

function drawTable(block) {
  const cells = (row, tag) =>
    row.map((text, i) => el(block.align[i] ? `${tag}.${block.align[i]}` : tag, {}, inline(text)));
  return el(
    "div.scroll",
    { tabindex: "0", role: "region", "aria-label": "Table" },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, ...cells(block.head, "th"))),
      el("tbody", {}, ...block.rows.map((row) => el("tr", {}, ...cells(row, "td")))),
    ),
  );
}
