// One message of a chat, as it is shown.

import { el, button, copyButton, growing } from "./dom.js";
import { Markdown } from "./markdown.js";

const NAMES = { user: "You", assistant: "Answer", system: "System", tool: "Tool" };

/** Shows a message; an answer grows while it comes. */
export class MessageView {
  #markdown = null;
  #thinking = null;
  #calls = [];

  /**
   * @param {object} message What a conversation holds; it is read, never changed.
   * @param {{edit?: function(string): void, again?: function(): void}} actions What its buttons do.
   */
  constructor(message, actions = {}) {
    this.message = message;
    this.actions = actions;
    this.body = el("div.body");
    this.note = el("p.note", { hidden: true });
    this.tools = el("div.tools");
    this.element = el(
      `article.message.${message.role}`,
      { "aria-label": NAMES[message.role] },
      this.body,
      this.note,
      this.tools,
    );
    if (message.reasoning) this.addReasoning(message.reasoning, false);
    if (message.role === "user") this.body.append(el("div.plain", {}, message.content));
    else if (message.content) this.addContent(message.content);
    for (const call of message.tool_calls ?? []) this.addCall(this.#calls.length, call);
    this.setNote(message.note);
    this.setTools();
  }

  /** More of the answer's text. */
  addContent(text) {
    if (this.#markdown === null) {
      const content = el("div.markdown");
      this.body.append(content);
      this.#markdown = new Markdown(content);
    }
    this.#markdown.append(text);
  }

  /** More of the reasoning that goes before an answer. */
  addReasoning(text, open = false) {
    if (this.#thinking === null) {
      const inside = el("div.markdown");
      this.body.append(el("details.reasoning", { open }, el("summary", {}, "Reasoning"), inside));
      this.#thinking = new Markdown(inside);
    }
    this.#thinking.append(text);
  }

  /** A call of a tool, or more of it: streams bring the arguments in pieces. */
  addCall(index, { function: called }) {
    let call = this.#calls[index];
    if (call === undefined) {
      call = this.#calls[index] = { name: document.createTextNode(""), text: document.createTextNode("") };
      this.body.append(
        el(
          "details.call",
          { open: true },
          el("summary", {}, "Call of ", el("code", {}, call.name)),
          el("pre", { tabindex: "0", role: "region", "aria-label": "Arguments" }, el("code", {}, call.text)),
        ),
      );
    }
    if (called?.name) call.name.appendData(called.name);
    if (called?.arguments) call.text.appendData(called.arguments);
  }

  /** What is told below the message: how long it took, or why it ended. */
  setNote(text, wrong = false) {
    this.note.textContent = text ?? "";
    this.note.hidden = !text;
    this.note.classList.toggle("wrong", wrong);
    if (wrong) this.note.setAttribute("role", "alert");
    else this.note.removeAttribute("role");
  }

  /** Whether the answer is still coming. */
  setBusy(busy) {
    this.element.setAttribute("aria-busy", String(busy));
    this.element.classList.toggle("busy", busy);
    this.setTools();
  }

  /** The buttons; none while the answer is coming. */
  setTools() {
    const { edit, again } = this.actions;
    this.tools.replaceChildren();
    if (this.element.getAttribute("aria-busy") === "true") return;
    const { content, role } = this.message;
    if (content) this.tools.append(copyButton(() => this.message.content));
    if (edit) this.tools.append(button("Edit", () => this.#edit()));
    if (again) this.tools.append(button(role === "user" ? "Answer again" : "Regenerate", again));
  }

  #edit() {
    const area = el("textarea", { "aria-label": "Text of the message", rows: 2 });
    area.value = this.message.content;
    const leave = () => {
      form.replaceWith(this.body);
      this.tools.hidden = false;
      this.tools.querySelector("button")?.focus();
    };
    const give = () => {
      if (area.value.trim()) this.actions.edit(area.value);
    };
    const form = el(
      "form.edit",
      {
        onsubmit: (event) => {
          event.preventDefault();
          give();
        },
        onkeydown: (event) => {
          if (event.key === "Escape") leave();
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) give();
        },
      },
      area,
      el(
        "div.row.end",
        {},
        button("Cancel", leave),
        el("button.primary", { type: "submit" }, this.message.role === "user" ? "Send" : "Save"),
      ),
    );
    growing(area);
    this.body.replaceWith(form);
    this.tools.hidden = true;
    area.focus();
  }
}
