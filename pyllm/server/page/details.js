// One token: its numbers, and what could have stood in its place.

import { el, button } from "./dom.js";
import { bits, entropy, percent, probability, restOf, surprisal } from "./measures.js";
import { hex, quoted, visible } from "./tokens.js";

// With so little left to others, what they add to the entropy cannot be seen.
const SMALL = 1e-4;

export class Details {
  /**
   * @param {HTMLElement} root Where it is shown.
   * @param {{onBranch: function(number, object): void, onLeave: function(): void, onClose: function(): void}} listeners
   *     Called with a position and what shall stand there; when Escape is pressed; and when it is closed.
   */
  constructor(root, { onBranch, onLeave, onClose }) {
    this.root = root;
    this.empty = [...root.childNodes];
    this.onBranch = onBranch;
    this.onClose = onClose;
    root.addEventListener("keydown", (event) => {
      if (event.key === "Escape") onLeave();
      else if (event.key === "ArrowDown") this.#move(1);
      else if (event.key === "ArrowUp") this.#move(-1);
      else return;
      event.preventDefault();
    });
  }

  /** Show what is there when no token is selected. */
  clear() {
    this.root.classList.remove("open");
    this.root.replaceChildren(...this.empty);
  }

  /** Show a token. */
  show(i, token) {
    const facts = [
      ["Id", String(token.id)],
      ["Bytes", hex(token.bytes)],
      ["Probability", percent(probability(token.logprob))],
      ["Surprisal", bits(surprisal(token))],
      ["Entropy", restOf(token.top) > SMALL && token.top.length ? `≥ ${bits(entropy(token))}` : bits(entropy(token))],
    ];
    // Where there is little room it lies over the text, and only then.
    this.root.classList.add("open");
    const name = el("h2.grow", {}, "Token ", el("span.count", {}, `${i + 1}`), " ", el("code.piece", {}, visible(token)));
    const close = button("✕", this.onClose, { class: "close quiet", "aria-label": "Close the token" });
    this.root.replaceChildren(
      el("div.row", {}, name, close),
      el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
      token.top.length ? this.#table(i, token) : el("p.hint", {}, reason(i, token)),
    );
  }

  /** Move the focus to the first alternative. */
  focus() {
    this.root.querySelector("button.alternative")?.focus();
  }

  #table(i, token) {
    const others = token.top.slice();
    if (!others.some((one) => one.id === token.id)) others.push({ id: token.id, bytes: token.bytes, logprob: token.logprob });
    const rest = restOf(others);
    const rows = others.map((one) => this.#row(i, one, one.id === token.id));
    if (rest > 0) rows.push(el("tr.rest", {}, el("td", {}, "all others"), el("td"), ...share(rest)));
    return el(
      "table.alternatives",
      {},
      el("caption", {}, token.generated ? "What could have stood here" : "What the model expected here"),
      el(
        "thead",
        {},
        el("tr", {}, ...["Token", "Id", "Probability"].map((name, n) => el("th", { scope: "col", colspan: n === 2 ? 2 : null }, name))),
      ),
      el("tbody", {}, ...rows),
    );
  }

  #row(i, one, chosen) {
    const p = probability(one.logprob);
    const label = chosen ? `${quoted(one)}, ${percent(p)}, stands here` : `Go on with ${quoted(one)}, ${percent(p)}`;
    const choose = button(visible(one).trimEnd() === "↵" ? "↵" : visible(one), () => chosen || this.onBranch(i, one), {
      class: "alternative",
      "aria-label": label,
      "aria-current": chosen ? "true" : null,
      title: chosen ? "This is the token of the text" : "Go on from here with this token",
    });
    return el(chosen ? "tr.chosen" : "tr", {}, el("td", {}, choose), el("td.number", {}, String(one.id)), ...share(p));
  }

  #move(step) {
    const all = [...this.root.querySelectorAll("button.alternative")];
    const next = all[all.indexOf(document.activeElement) + step];
    next?.focus();
  }
}

function share(p) {
  const bar = el("span.fill");
  bar.style.width = `${100 * p}%`;
  return [el("td.share", { "aria-hidden": "true" }, el("span.track", {}, bar)), el("td.number", {}, percent(p))];
}

function reason(i, token) {
  if (token.generated) return "The server has sent no alternatives for this token.";
  if (i === 0) return "Nothing stands before this token: nothing has predicted it.";
  return "The prompt has not been scored. “Score the prompt” computes what the model expected at each of its tokens.";
}
