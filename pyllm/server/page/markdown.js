// Markdown as it comes, piece by piece. HTML in it stays text.

import "./vendor/markdown-it/markdown-it.umd.min.js";

import { el } from "./dom.js";
import { Code } from "./code.js";
import { drawMath, mathRules } from "./math.js";
import { nodesOf } from "./sanitize.js";

const reader = makeReader();

function makeReader() {
  const made = globalThis.markdownit({ html: false, breaks: true, linkify: true });
  made.linkify.set({ fuzzyLink: false, fuzzyEmail: false, fuzzyIP: false });
  made.validateLink = (address) => /^(?:https?|mailto):/i.test(address);
  mathRules(made);
  const { rules } = made.renderer;
  const { escapeHtml } = made.utils;
  // The page has headings of its own above these.
  const tag = (token) => `h${Math.min(6, Number(token.tag[1]) + 2)}`;
  rules.heading_open = (tokens, i) => `<${tag(tokens[i])}>`;
  rules.heading_close = (tokens, i) => `</${tag(tokens[i])}>`;
  rules.s_open = () => "<del>";
  rules.s_close = () => "</del>";
  // A picture would be fetched from somebody.
  rules.image = (tokens, i) => {
    const address = tokens[i].attrGet("src");
    return `<a href="${escapeHtml(address)}">${escapeHtml(`Picture: ${tokens[i].content || address}`)}</a>`;
  };
  // Styles within the markup do nothing here: the policy forbids them.
  for (const cell of ["th", "td"]) {
    rules[`${cell}_open`] = (tokens, i) => {
      const align = /right|center/.exec(tokens[i].attrGet("style") ?? "");
      return align ? `<${cell} class="${align[0]}">` : `<${cell}>`;
    };
  }
  return made;
}

/** Draws a text that grows; blocks that can no longer change are not touched again. */
export class Markdown {
  // What has been drawn for good, and what may still change.
  #done = [];
  #tail = "";
  #open = [];
  // Whether the text gives names to addresses.
  #names = false;

  /** @param {HTMLElement} root What the blocks are put into. */
  constructor(root) {
    this.root = root;
  }

  /** Add some text, and draw it. */
  append(text) {
    // The other half of a line's end may come with the next piece.
    this.#tail = (this.#tail + text).replace(/\r\n|\r(?!$)/g, "\n");
    const found = { references: {} };
    const blocks = blocksOf(reader.parse(this.#tail, found));
    this.#names ||= Object.keys(found.references).length > 0;
    if (!blocks.length) return;
    const drawn = blocks.map((block, i) => this.#redraw(this.#open[i], block));
    for (const { node } of this.#open.slice(blocks.length)) node.remove();
    // A block is as it stays when a whole line of another one stands behind it.
    const starts = offsets(this.#tail, blocks);
    let first = blocks.length - 1;
    if (first > 0 && !this.#tail.includes("\n", starts[first])) first--;
    for (const { code } of drawn.slice(0, first)) code?.finish();
    this.#open = drawn.slice(first);
    this.#done.push(this.#tail.slice(0, starts[first]));
    this.#tail = this.#tail.slice(starts[first]);
  }

  /** The text is complete. */
  finish() {
    // Names are used before their addresses are known, and in blocks that have been drawn for good.
    if (this.#names) {
      const text = this.#done.join("") + this.#tail;
      this.#done = [];
      this.#tail = "";
      this.#open = [];
      this.root.replaceChildren();
      this.append(text);
    }
    for (const { code } of this.#open) code?.finish();
  }

  #redraw(before, block) {
    if (block.code !== null) {
      const { language, text } = block.code;
      if (before?.code) {
        // Long programs come line by line.
        before.code.set(language, text);
        return before;
      }
      const code = new Code(language, text);
      return this.#put(before, { node: code.element, code, html: null });
    }
    if (before && before.html === block.html) return before;
    const nodes = nodesOf(block.html);
    decorate(nodes);
    // Nothing but one element comes of a block.
    const node = nodes.firstElementChild ?? el("p");
    return this.#put(before, { node, code: null, html: block.html });
  }

  #put(before, drawn) {
    if (before) before.node.replaceWith(drawn.node);
    else this.root.append(drawn.node);
    return drawn;
  }
}

// The blocks that stand in no other one: where each begins, and what it is.
function blocksOf(tokens) {
  const blocks = [];
  for (let i = 0, end; i < tokens.length; i = end) {
    end = i + 1;
    if (tokens[i].nesting === 1) {
      while (tokens[end].level > 0 || tokens[end].nesting !== -1) end++;
      end++;
    }
    const [line] = tokens[i].map;
    if (tokens[i].type === "fence") {
      blocks.push({ line, html: null, code: { language: languageOf(tokens[i].info), text: programOf(tokens[i].content) } });
    } else {
      const html = reader.renderer.render(tokens.slice(i, end), reader.options, {});
      blocks.push({ line, html, code: null });
    }
  }
  return blocks;
}

function languageOf(info) {
  return info.trim().split(/\s/, 1)[0];
}

function programOf(content) {
  return content.replace(/\n$/, "");
}

// Where the lines begin that blocks begin with.
function offsets(text, blocks) {
  let line = 0;
  let at = 0;
  return blocks.map((block) => {
    for (; line < block.line; line++) at = text.indexOf("\n", at) + 1;
    return at;
  });
}

// What markup alone does not give: buttons, formulas, tables that scroll, and links that leave this page alone.
function decorate(nodes) {
  for (const pre of nodes.querySelectorAll("pre")) {
    const inside = pre.querySelector("code");
    const language = /^language-(\S+)/.exec(inside?.className ?? "")?.[1] ?? "";
    const code = new Code(language, programOf(pre.textContent));
    code.finish();
    pre.replaceWith(code.element);
  }
  for (const table of nodes.querySelectorAll("table")) {
    const frame = el("div.scroll", { tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const link of nodes.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  drawMath(nodes);
}
