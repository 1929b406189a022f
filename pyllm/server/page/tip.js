// What is shown beside a token while a mouse is over it. Whoever uses no mouse finds the same in the details.

import { el } from "./dom.js";
import { bits, entropy, percent, probability } from "./measures.js";
import { visible } from "./tokens.js";

const MOST = 5;
const GAP = 8;

export class Tip {
  /**
   * @param {HTMLElement} root What the mouse is watched over.
   * @param {function(Element): object|undefined} tokenOf Gives the token that an element belongs to.
   */
  constructor(root, tokenOf) {
    this.element = el("div.tip", { "aria-hidden": "true", hidden: true });
    document.body.append(this.element);
    root.addEventListener("pointerover", (event) => {
      const token = event.pointerType === "mouse" ? tokenOf(event.target) : undefined;
      if (token === undefined) this.hide();
      else this.show(token, event.target.getBoundingClientRect());
    });
    root.addEventListener("pointerleave", () => this.hide());
    document.addEventListener("scroll", () => this.hide(), { capture: true, passive: true });
  }

  show(token, box) {
    const likely = token.top.slice(0, MOST).map((one) => {
      const row = el(one.id === token.id ? "li.chosen" : "li", {}, el("code", {}, visible(one).trimEnd() || visible(one)));
      row.append(el("span", {}, percent(probability(one.logprob))));
      return row;
    });
    this.element.replaceChildren(
      el("strong", {}, token.logprob === null ? "prompt" : percent(probability(token.logprob))),
      ` · entropy ${bits(entropy(token))}`,
      el("ul", {}, ...likely),
    );
    this.element.hidden = false;
    const { offsetWidth, offsetHeight } = this.element;
    const below = box.bottom + GAP + offsetHeight < innerHeight;
    this.element.style.left = `${Math.max(GAP, Math.min(box.left, innerWidth - offsetWidth - GAP))}px`;
    this.element.style.top = `${below ? box.bottom + GAP : Math.max(GAP, box.top - GAP - offsetHeight)}px`;
  }

  hide() {
    this.element.hidden = true;
  }
}
