// Programs in answers, with colours. The highlighter is loaded with the first of them.

import { el, copyButton } from "./dom.js";
import { nodesOf } from "./sanitize.js";

// Colours may take a tenth of the time while a program is written.
const SHARE = 10;
// In characters; colours of more would take seconds.
const LONGEST = 100_000;

let highlighter = null;
let loading = null;

function load() {
  loading ??= import("./vendor/highlight/highlight.min.js").then((module) => (highlighter = module.default));
  return loading;
}

/** A program that may grow. */
export class Code {
  #code = el("code");
  #label = el("span");
  // What has been written since the colours were computed.
  #rest = document.createTextNode("");
  #coloured = 0;
  #next = 0;

  /**
   * @param {string} language What it is written in, as it was named.
   * @param {string} text The program, or its beginning.
   */
  constructor(language, text = "") {
    this.text = "";
    this.language = "";
    this.#code.append(this.#rest);
    this.element = el(
      "figure.code",
      {},
      el("figcaption", {}, this.#label, copyButton(() => this.text)),
      el("pre", { tabindex: "0", role: "region", "aria-label": "Code" }, this.#code),
    );
    this.set(language, text);
  }

  /** Show this instead; what only goes on is only added. */
  set(language, text) {
    if (language !== this.language) {
      this.language = this.#label.textContent = language;
      this.#plain();
    }
    if (!text.startsWith(this.text)) {
      this.text = "";
      this.#plain();
    }
    this.#rest.appendData(text.slice(this.text.length));
    this.text = text;
    if (performance.now() >= this.#next) this.#colour();
  }

  /** It is complete. */
  finish() {
    if (this.#coloured !== this.text.length) this.#colour();
  }

  #plain() {
    this.#rest = document.createTextNode(this.text);
    this.#code.replaceChildren(this.#rest);
    this.#coloured = 0;
  }

  #colour() {
    if (!this.language || !this.text || this.text.length > LONGEST) return;
    if (highlighter === null) {
      load().then(() => this.#colour());
      return;
    }
    if (!highlighter.getLanguage(this.language)) return;
    // New nodes would take away what is selected.
    const selection = getSelection();
    if (!selection.isCollapsed && selection.containsNode(this.#code, true)) return;
    const started = performance.now();
    const { value } = highlighter.highlight(this.text, { language: this.language, ignoreIllegals: true });
    this.#rest = document.createTextNode("");
    this.#code.replaceChildren(nodesOf(value), this.#rest);
    this.#coloured = this.text.length;
    const ended = performance.now();
    this.#next = ended + SHARE * (ended - started);
  }
}
