// Formulas in answers: $…$ and \(…\) within a line, $$…$$ and \[…\] for themselves. KaTeX is loaded with the first.

import { el } from "./dom.js";

const OPTIONS = {
  // A formula that is wrong stays the text that it is.
  throwOnError: true,
  strict: "ignore",
  trust: false,
  maxExpand: 1000,
  maxSize: 50,
  // KaTeX sets these with styles as attributes, which the policy forbids.
  macros: { "\\pmb": "\\boldsymbol{#1}", "\\fcolorbox": "\\phantom{\\color{#1}}\\colorbox{#2}{#3}" },
};
const BLOCKS = { $$: "$$", "\\[": "\\]" };

let katex = null;
let loading = null;

function load() {
  loading ??= new Promise((resolve, reject) => {
    const href = new URL("./vendor/katex/katex.min.css", import.meta.url).href;
    document.head.append(el("link", { rel: "stylesheet", href, onload: resolve, onerror: reject }));
  })
    .then(() => import("./vendor/katex/katex.min.js"))
    .then(() => (katex = globalThis.katex));
  return loading;
}

/** Draw the formulas that the rules below have found. */
export function drawMath(root) {
  const formulas = [...root.querySelectorAll(".math:not(.open)")];
  if (!formulas.length) return;
  if (katex === null) load().then(() => formulas.forEach(draw), () => {});
  else formulas.forEach(draw);
}

function draw(element) {
  const formula = element.textContent;
  const made = el("span");
  try {
    katex.render(formula, made, { ...OPTIONS, macros: { ...OPTIONS.macros }, displayMode: element.classList.contains("display") });
  } catch (error) {
    element.classList.add("wrong");
    element.title = error.message;
    return;
  }
  element.replaceChildren(...made.childNodes);
}

/** Teach a reader of Markdown what formulas are. */
export function mathRules(markdown) {
  markdown.inline.ruler.before("escape", "math", inline);
  markdown.block.ruler.before("fence", "math", block, { alt: ["paragraph", "reference", "blockquote", "list"] });
  const { escapeHtml } = markdown.utils;
  markdown.renderer.rules.math = (tokens, i) => {
    const { content, meta } = tokens[i];
    return `<span class="math${meta.display ? " display" : ""}">${escapeHtml(content)}</span>`;
  };
  markdown.renderer.rules.math_block = (tokens, i) => {
    const { content, meta } = tokens[i];
    return `<div class="math display${meta.open ? " open" : ""}">${escapeHtml(content)}</div>`;
  };
}

function inline(state, silent) {
  const open = opening(state.src, state.pos);
  if (open === null) return false;
  const start = state.pos + open.length;
  const end = closing(state, open, start);
  if (end < 0) return false;
  const close = open.replace("(", ")").replace("[", "]");
  if (!silent) {
    const token = state.push("math", "", 0);
    token.content = state.src.slice(start, end).trim();
    token.meta = { display: open === "$$" || open === "\\[" };
  }
  state.pos = end + close.length;
  return true;
}

function opening(text, at) {
  if (text[at] === "\\") return text[at + 1] === "(" || text[at + 1] === "[" ? text.slice(at, at + 2) : null;
  if (text[at] !== "$") return null;
  if (text[at + 1] === "$") return "$$";
  return /\s/.test(text[at + 1] ?? " ") ? null : "$";
}

function closing(state, open, start) {
  const { src, posMax } = state;
  const close = open.replace("(", ")").replace("[", "]");
  // Where nothing closes one, nothing closes a later one; looking again would take longer and longer.
  state.unclosedMath ??= new Set();
  if (state.unclosedMath.has(open)) return -1;
  for (let end = src.indexOf(close, start); end >= 0 && end < posMax; end = src.indexOf(close, end + 1)) {
    if (src[end - 1] === "\\" && close[0] === "$") continue;
    // In "$5 and $6" the second one does not close the first, and what begins within code is none.
    if (close === "$" && (/\s/.test(src[end - 1]) || /\w/.test(src[end + 1] ?? ""))) return -1;
    if (close === "$" && src.slice(start, end).includes("`")) return -1;
    if (src.slice(start, end).trim() === "") return -1;
    return end;
  }
  state.unclosedMath.add(open);
  return -1;
}

function block(state, first, last, silent) {
  const line = (i) => state.src.slice(state.bMarks[i] + state.tShift[i], state.eMarks[i]).trimEnd();
  const open = line(first).slice(0, 2);
  const close = BLOCKS[open];
  if (close === undefined || state.sCount[first] - state.blkIndent >= 4) return false;
  const parts = [];
  let next = first;
  let closed = false;
  for (; next < last && !closed; next++) {
    let text = line(next);
    if (next === first) text = text.slice(2);
    // A blank line ends a paragraph, and so what was none.
    else if (!text) return false;
    const at = text.indexOf(close);
    closed = at >= 0 && at === text.length - close.length;
    if (at >= 0 && !closed) return false;
    parts.push(closed ? text.slice(0, at) : text);
  }
  if (silent) return true;
  const token = state.push("math_block", "", 0);
  token.block = true;
  token.content = parts.join("\n").trim();
  token.meta = { open: !closed || !token.content };
  token.map = [first, next];
  state.line = next;
  return true;
}
