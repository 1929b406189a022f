// Questions in a dialog: for a line of text, or whether to go on.

import { el, button } from "./dom.js";

/**
 * Ask for a line of text.
 *
 * @param {{title: string, text?: string, label: string, value?: string, action: string, secret?: boolean}} question
 * @returns {Promise<string|null>} The text; null if the dialog was left.
 */
export function askText({ title, text = "", label, value = "", action, secret = false }) {
  const input = el("input", {
    type: secret ? "password" : "text",
    value,
    required: true,
    autocomplete: "off",
    spellcheck: "false",
  });
  const field = el("label.field", {}, label, input);
  return show(title, text, action, field, () => input.value.trim() || null);
}

/** Ask whether to go on. */
export async function confirm(title, text, action) {
  return (await show(title, text, action, null, () => true)) === true;
}

function show(title, text, action, field, result) {
  const before = document.activeElement;
  return new Promise((resolve) => {
    let given = null;
    const form = el(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          given = result();
          dialog.close();
        },
      },
      el("h2", { id: "dialog-title" }, title),
      text ? el("p", {}, text) : null,
      field,
      el("div.row.end", {}, button("Cancel", () => dialog.close()), el("button.primary", { type: "submit" }, action)),
    );
    const dialog = el("dialog", { "aria-labelledby": "dialog-title" }, form);
    dialog.addEventListener("close", () => {
      dialog.remove();
      before?.focus();
      resolve(given);
    });
    document.body.append(dialog);
    dialog.showModal();
    (field?.querySelector("input") ?? form.querySelector(".primary")).focus();
    field?.querySelector("input").select();
  });
}
