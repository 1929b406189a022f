// The list of conversations beside the chat.

import { el, byId, announce, button } from "./dom.js";
import { askText, confirm } from "./dialogs.js";
import * as store from "./store.js";

export class Conversations {
  /** @param {import("./chat.js").Chat} chat Where they are opened. */
  constructor(chat) {
    this.chat = chat;
    this.list = byId("conversations");
    this.problem = byId("storage-problem");
    byId("new-chat").addEventListener("click", () => this.#open(store.newConversation()));
    byId("export").addEventListener("click", () => this.#export());
    const file = byId("import-file");
    byId("import").addEventListener("click", () => file.click());
    file.addEventListener("change", () => {
      if (file.files.length) this.#import(file.files[0]);
      file.value = "";
    });
    store.onChange(() => this.draw());
    this.draw();
  }

  /** Draw the list anew. */
  draw() {
    const all = store.allConversations();
    this.list.replaceChildren(...all.map((one) => this.#item(one)));
    byId("no-conversations").hidden = all.length > 0;
    byId("export").disabled = all.length === 0;
  }

  #item(conversation) {
    const title = store.titleOf(conversation);
    const current = conversation.id === this.chat.conversation.id;
    return el(
      "li",
      {},
      button(title, () => this.#open(conversation), { class: "title", "aria-current": current ? "true" : null, title }),
      button("Rename", () => this.#rename(conversation), { class: "small", "aria-label": `Rename ${title}` }),
      button("Delete", () => this.#delete(conversation), { class: "small", "aria-label": `Delete ${title}` }),
    );
  }

  #open(conversation) {
    this.problem.textContent = "";
    this.chat.open(conversation);
    this.draw();
    byId("sidebar").dispatchEvent(new CustomEvent("done"));
    byId("input").focus();
  }

  async #rename(conversation) {
    const value = store.titleOf(conversation);
    const title = await askText({ title: "Rename the conversation", label: "Name", value, action: "Rename" });
    if (title === null) return;
    const open = this.chat.conversation.id === conversation.id ? this.chat.conversation : conversation;
    open.title = title.slice(0, 120);
    store.save(open);
    this.draw();
  }

  async #delete(conversation) {
    const text = `“${store.titleOf(conversation)}” cannot be brought back.`;
    if (!(await confirm("Delete this conversation?", text, "Delete"))) return;
    if (this.chat.conversation.id === conversation.id) this.chat.discard();
    store.remove(conversation.id);
    this.draw();
    byId("new-chat").focus();
    announce("Deleted");
  }

  #export() {
    const file = new Blob([store.toFile(store.allConversations())], { type: "application/json" });
    const href = URL.createObjectURL(file);
    el("a", { href, download: "conversations.json" }).click();
    // The browser reads it after this.
    setTimeout(() => URL.revokeObjectURL(href), 10_000);
  }

  async #import(file) {
    this.problem.textContent = "";
    try {
      const found = store.fromFile(await file.text());
      found.forEach(store.save);
      this.draw();
      announce(`${found.length} conversations imported`);
    } catch (error) {
      this.problem.textContent = error.message;
    }
  }
}
