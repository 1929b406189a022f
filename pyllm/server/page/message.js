// One message of a chat, as it is shown.

import { el, button, copyButton, growing } from "./dom.js";
import { fileView } from "./attachments.js";
import { Markdown } from "./markdown.js";
import { NAMES } from "./store.js";

/** Shows a message; an answer grows while it comes. */
export class MessageView {
  #markdown = null;
  #thinking = null;
  #calls = [];

  /**
   * @param {object} message What a conversation holds; it is read, never changed.
   * @param {boolean} busy Whether the answer is still coming.
   */
  constructor(message, busy = false) {
    this.message = message;
    /**
     * What its buttons do: each is there if it can be used.
     *
     * @type {{edit?: function(string): void, again?: function(): void, goOn?: function(): void,
     *     versions?: {all: object[], choose: function(object, number): void}}}
     */
    this.actions = {};
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
    this.body.append(...(message.files ?? []).map(fileView));
    if (message.reasoning) this.addReasoning(message.reasoning);
    if (message.role === "user" && message.content) this.body.append(el("div.plain", {}, message.content));
    else if (message.content) this.addContent(message.content);
    for (const call of message.tool_calls ?? []) this.addCall(this.#calls.length, call);
    this.setNote(message.note);
    this.setBusy(busy);
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
  addReasoning(text) {
    if (this.#thinking === null) {
      const inside = el("div.markdown");
      this.body.append(el("details.reasoning", {}, el("summary", {}, "Reasoning"), inside));
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
    // One reads along while a model thinks, and then what came of it.
    const reasoning = this.element.querySelector("details.reasoning");
    if (reasoning) reasoning.open = busy;
    if (!busy) {
      this.#markdown?.finish();
      this.#thinking?.finish();
    }
    this.setTools();
  }

  /** The buttons; none while the answer is coming. */
  setTools() {
    const { edit, again, goOn, versions } = this.actions;
    this.tools.replaceChildren();
    if (this.element.getAttribute("aria-busy") === "true") return;
    const { content, role } = this.message;
    if (versions) this.tools.append(this.#versions(versions));
    if (content) this.tools.append(copyButton(() => this.message.content));
    if (edit) this.tools.append(button("Edit", () => this.#edit()));
    if (again) this.tools.append(button(role === "user" ? "Answer again" : "Regenerate", again));
    if (goOn) this.tools.append(button("Continue", goOn));
  }

  /** Move the focus to the button that leads on in a direction, or to the other one at the end. */
  focusVersions(step) {
    const [back, on] = this.tools.querySelectorAll(".versions button");
    const wanted = step < 0 ? back : on;
    (wanted.disabled ? (wanted === on ? back : on) : wanted).focus();
  }

  #versions({ all, choose }) {
    const at = all.indexOf(this.message);
    const step = (by, label, sign) =>
      button(sign, () => choose(all[at + by], by), { "aria-label": label, title: label, disabled: !all[at + by] });
    const count = el("span", {}, `${at + 1}/${all.length}`);
    return el(
      "div.versions",
      { role: "group", "aria-label": `Version ${at + 1} of ${all.length}` },
      step(-1, "Previous version", "‹"),
      count,
      step(1, "Next version", "›"),
    );
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
