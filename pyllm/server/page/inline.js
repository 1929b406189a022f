// What stands inside a line of Markdown: code, emphasis, links.

import { el } from "./dom.js";

const DEEPEST = 8;
const LONGEST_LINK = 2000;
const PROTOCOLS = ["http:", "https:", "mailto:"];
const ADDRESS = /https?:\/\/[^\s<>"'`]+/y;
const ESCAPABLE = "\\`*_{}[]()#+-.!|~<>";
const TAGS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "del" };

/** The nodes of a text. */
export function inline(text, depth = 0) {
  return new Scanner(text, depth).scan();
}

class Scanner {
  constructor(text, depth) {
    this.text = text;
    this.depth = depth;
    this.at = 0;
    this.plain = "";
    this.result = document.createDocumentFragment();
    // Marks that nothing closes from here on; looking again would take longer and longer.
    this.unclosed = new Set();
  }

  scan() {
    while (this.at < this.text.length) {
      if (!this.special()) this.plain += this.text[this.at++];
    }
    this.flush();
    return this.result;
  }

  special() {
    const { text, at } = this;
    switch (text[at]) {
      case "\\":
        if (at + 1 >= text.length || !ESCAPABLE.includes(text[at + 1])) return false;
        this.plain += text[at + 1];
        this.at += 2;
        return true;
      case "\n":
        this.put(el("br"), at + 1);
        return true;
      case "`":
        return this.code();
      case "*":
      case "_":
      case "~":
        return this.emphasis();
      case "!":
        return text[at + 1] === "[" && this.link(at + 1, "Picture: ");
      case "[":
        return this.link(at, "");
      case "h":
        return this.address();
      default:
        return false;
    }
  }

  code() {
    const { text, at } = this;
    let n = 1;
    while (text[at + n] === "`") n++;
    const mark = "`".repeat(n);
    let end = this.unclosed.has(mark) ? -1 : text.indexOf(mark, at + n);
    while (end >= 0 && (text[end + n] === "`" || text[end - 1] === "`")) {
      while (text[end] === "`") end++;
      end = text.indexOf(mark, end);
    }
    if (end < 0) {
      this.unclosed.add(mark);
      this.plain += mark;
      this.at += n;
      return true;
    }
    const inside = text.slice(at + n, end).replaceAll("\n", " ");
    const padded = inside.length > 2 && inside.startsWith(" ") && inside.endsWith(" ") && inside.trim();
    this.put(el("code", {}, padded ? inside.slice(1, -1) : inside), end + n);
    return true;
  }

  emphasis() {
    const { text, at } = this;
    if (this.depth >= DEEPEST) return false;
    const mark = text[at + 1] === text[at] ? text[at].repeat(2) : text[at];
    const tag = TAGS[mark];
    const next = text[at + mark.length];
    if (!tag || this.unclosed.has(mark) || next === undefined || isSpace(next)) return this.literal(mark);
    if (mark[0] === "_" && at > 0 && isWord(text[at - 1])) return this.literal(mark);
    const end = this.closing(mark, at + mark.length);
    if (end < 0) return this.literal(mark);
    this.put(el(tag, {}, inline(text.slice(at + mark.length, end), this.depth + 1)), end + mark.length);
    return true;
  }

  closing(mark, from) {
    const { text } = this;
    for (let end = text.indexOf(mark, from); end >= 0; end = text.indexOf(mark, end + 1)) {
      // In "*a **b** c*" the inner marks are not the end of the outer one.
      if (mark.length === 1 && text[end + 1] === mark) {
        while (text[end + 1] === mark) end++;
        if (text[end + 1] !== undefined) continue;
      } else if (mark.length === 2 && text[end + 2] === mark[0]) {
        end++;
      }
      if (end === from || isSpace(text[end - 1]) || text[end - 1] === "\\") continue;
      if (mark[0] === "_" && text[end + mark.length] !== undefined && isWord(text[end + mark.length])) continue;
      return end;
    }
    this.unclosed.add(mark);
    return -1;
  }

  literal(mark) {
    this.plain += mark;
    this.at += mark.length;
    return true;
  }

  link(open, before) {
    const { text } = this;
    if (this.depth >= DEEPEST || this.unclosed.has("[")) return false;
    const last = Math.min(text.length, open + LONGEST_LINK);
    let level = 0;
    let close = open;
    for (; close < last; close++) {
      if (text[close] === "\\") close++;
      else if (text[close] === "[") level++;
      else if (text[close] === "]" && --level === 0) break;
    }
    if (close >= text.length) this.unclosed.add("[");
    if (close >= last || text[close + 1] !== "(") return false;
    const end = text.indexOf(")", close);
    if (end < 0 || end > close + LONGEST_LINK) return false;
    const address = addressOf(text.slice(close + 2, end).trim().split(/\s/, 1)[0]);
    if (address === null) return false;
    const label = text.slice(open + 1, close);
    this.put(anchor(address, before, before ? label || address : inline(label, this.depth + 1)), end + 1);
    return true;
  }

  address() {
    const { text, at } = this;
    if (at > 0 && isWord(text[at - 1])) return false;
    ADDRESS.lastIndex = at;
    const match = ADDRESS.exec(text);
    if (!match) return false;
    let found = match[0];
    // What ends a sentence is seldom part of an address.
    while (".,;:!?*_~".includes(found.at(-1)) || (found.endsWith(")") && !found.includes("("))) found = found.slice(0, -1);
    const address = addressOf(found);
    if (address === null) return false;
    this.put(anchor(address, "", found), at + found.length);
    return true;
  }

  put(node, at) {
    this.flush();
    this.result.append(node);
    this.at = at;
  }

  flush() {
    if (this.plain) this.result.append(this.plain);
    this.plain = "";
  }
}

function anchor(href, before, content) {
  return el("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, before || null, content);
}

/** An address that a link may lead to, or null: other protocols can run scripts. */
function addressOf(text) {
  try {
    return PROTOCOLS.includes(new URL(text).protocol) ? text : null;
  } catch {
    return null;
  }
}

function isSpace(character) {
  return character.trim() === "";
}

function isWord(character) {
  return /[\p{L}\p{N}_]/u.test(character);
}
