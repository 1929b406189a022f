// The tokens of a text, one beside the other, coloured, and walked by arrows.

import { el } from "./dom.js";
import { bits, entropy, level, percent, probability, surprisal } from "./measures.js";
import { quoted, visible } from "./tokens.js";

export class Strip {
  #tokens = [];
  #spans = [];
  #forks = new Map();
  #selected = -1;

  /**
   * @param {HTMLElement} root A list box.
   * @param {{onSelect: function(number): void, onOpen: function(number): void, onLeave: function(): void}} listeners
   *     Called with the position of a token when it is selected, and when it is opened; and when Escape is pressed.
   */
  constructor(root, { onSelect, onOpen, onLeave }) {
    this.root = root;
    this.kind = "entropy";
    this.onSelect = onSelect;
    this.onOpen = onOpen;
    this.onLeave = onLeave;
    root.addEventListener("click", (event) => {
      const i = this.indexOf(event.target);
      if (i >= 0) this.select(i, true);
    });
    root.addEventListener("keydown", (event) => this.#key(event));
  }

  /** The position of the token that is selected; -1 for none. */
  get selected() {
    return this.#selected;
  }

  /** The token at a position. */
  token(i) {
    return this.#tokens[i];
  }

  /** The position of the token that an element belongs to, or -1. */
  indexOf(element) {
    const span = element.closest?.(".token");
    return span && this.root.contains(span) ? Number(span.dataset.i) : -1;
  }

  /**
   * Show these tokens. Those that are there already stay as they are.
   *
   * @param {object[]} tokens All tokens.
   * @param {Map<number, number>} forks Where branches begin, and how many.
   */
  show(tokens, forks) {
    let same = 0;
    while (same < this.#tokens.length && this.#tokens[same] === tokens[same]) same++;
    for (const span of this.#spans.splice(same)) span.remove();
    const added = tokens.slice(same).map((token, n) => this.#span(token, same + n));
    this.#tokens = tokens.slice();
    this.#spans.push(...added);
    this.root.append(...added);
    for (const i of new Set([...this.#forks.keys(), ...forks.keys()])) {
      this.#spans[i]?.classList.toggle("fork", forks.has(i));
    }
    this.#forks = forks;
    if (this.#selected >= same) this.#selected = -1;
    if (this.#selected < 0 && this.#spans.length && this.#spans[0].tabIndex < 0) this.#spans[0].tabIndex = 0;
  }

  /** Colour tokens by their entropy, their surprisal, or not at all. */
  colour(kind) {
    this.kind = kind;
    this.#spans.forEach((span, i) => this.#paint(span, this.#tokens[i]));
  }

  /** Select a token. */
  select(i, focus = false) {
    if (i < 0 || i >= this.#spans.length) return;
    const before = this.#spans[this.#selected] ?? this.#spans[0];
    before.tabIndex = -1;
    before.setAttribute("aria-selected", "false");
    this.#selected = i;
    const span = this.#spans[i];
    span.tabIndex = 0;
    span.setAttribute("aria-selected", "true");
    if (focus) span.focus();
    this.onSelect(i);
  }

  /** Select none. */
  clear() {
    const span = this.#spans[this.#selected];
    span?.setAttribute("aria-selected", "false");
    this.#selected = -1;
  }

  #span(token, i) {
    const span = el("span.token", { role: "option", tabindex: "-1", "data-i": i, "aria-selected": "false" }, visible(token));
    if (!token.generated) span.classList.add("prompt");
    this.#paint(span, token);
    return span;
  }

  #paint(span, token) {
    const colour = level(token, this.kind);
    if (colour === null) delete span.dataset.level;
    else span.dataset.level = colour;
    span.setAttribute("aria-label", described(token, this.kind));
  }

  #key(event) {
    const i = this.indexOf(event.target);
    if (i < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = {
      ArrowRight: () => i + 1,
      ArrowLeft: () => i - 1,
      ArrowDown: () => this.#beside(i, 1),
      ArrowUp: () => this.#beside(i, -1),
      Home: () => 0,
      End: () => this.#spans.length - 1,
    };
    if (event.key in moves) {
      this.select(moves[event.key](), true);
    } else if (event.key === "Enter" || event.key === " ") {
      this.select(i, true);
      this.onOpen(i);
    } else if (event.key === "Escape") {
      this.clear();
      this.onLeave();
    } else {
      return;
    }
    event.preventDefault();
  }

  // The nearest token of the next line, or of the one before.
  #beside(i, step) {
    const { offsetTop, offsetLeft } = this.#spans[i];
    let best = i;
    let line = null;
    for (let n = i + step; n >= 0 && n < this.#spans.length; n += step) {
      const span = this.#spans[n];
      if (Math.abs(span.offsetTop - offsetTop) < 4) continue;
      line ??= span.offsetTop;
      if (Math.abs(span.offsetTop - line) >= 4) break;
      if (best === i || Math.abs(span.offsetLeft - offsetLeft) < Math.abs(this.#spans[best].offsetLeft - offsetLeft)) best = n;
    }
    return best;
  }
}

function described(token, kind) {
  const parts = [quoted(token)];
  if (!token.generated) parts.push("of the prompt");
  if (token.logprob !== null) parts.push(percent(probability(token.logprob)));
  const value = kind === "surprisal" ? surprisal(token) : entropy(token);
  if (value !== null) parts.push(`${kind === "surprisal" ? "surprisal" : "entropy"} ${bits(value)}`);
  return parts.join(", ");
}
