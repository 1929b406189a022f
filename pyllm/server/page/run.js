// One answer while it is written, whichever conversation is looked at meanwhile.

import { beforePaint } from "./dom.js";
import { answer } from "./answer.js";

const SAVE_EVERY = 1000;

export class Run {
  #controller = new AbortController();
  #deltas = [];
  #painter = beforePaint(() => this.#draw());
  #view = null;

  /**
   * @param {import("./versions.js").Conversation} conversation Whose answer it is.
   * @param {import("./versions.js").Message} message Where the answer goes.
   * @param {function(): void} onDrawn Called when more of it is seen.
   */
  constructor(conversation, message, onDrawn) {
    this.conversation = conversation;
    this.message = message;
    this.onDrawn = onDrawn;
  }

  /** What shows the answer, or null. A view that is given has all that has come so far. */
  get view() {
    return this.#view;
  }

  set view(view) {
    this.#view = view;
    this.#deltas = [];
    this.#painter.cancel();
  }

  /** End it; the server ends it, too. */
  stop() {
    this.#controller.abort();
  }

  /**
   * Ask for the answer, and wait for its end.
   *
   * @param {object} body The request.
   * @param {function(): void} onKeep Called now and then while it grows.
   * @returns {Promise<Error|null>} What went wrong.
   */
  async go(body, onKeep) {
    let saved = performance.now();
    let failure = null;
    try {
      await answer(body, this.message, this.#controller.signal, (delta) => {
        if (this.#view !== null) {
          this.#deltas.push(delta);
          this.#painter.request();
        }
        if (performance.now() - saved > SAVE_EVERY) {
          saved = performance.now();
          onKeep();
        }
      });
    } catch (error) {
      failure = error;
    }
    this.#painter.flush();
    return failure;
  }

  #draw() {
    const deltas = this.#deltas;
    this.#deltas = [];
    if (this.#view === null || !deltas.length) return;
    const content = deltas.map((delta) => delta.content ?? "").join("");
    const reasoning = deltas.map((delta) => delta.reasoning_content ?? "").join("");
    if (reasoning) this.#view.addReasoning(reasoning);
    for (const delta of deltas) for (const call of delta.tool_calls ?? []) this.#view.addCall(call.index, call);
    if (content) this.#view.addContent(content);
    this.onDrawn();
  }
}
