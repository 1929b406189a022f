// The list of conversations beside the chat.

import { el, byId, announce, button, download } from "./dom.js";
import { askText, confirm } from "./dialogs.js";
import { menuButton } from "./menu.js";
import * as store from "./store.js";

export class Conversations {
  #late = false;

  /**
   * @param {import("./chat.js").Chat} chat Where they are opened.
   * @param {function(object): void} onOpen Called with the conversation when one was opened here.
   */
  constructor(chat, onOpen) {
    this.chat = chat;
    this.onOpen = onOpen;
    this.list = byId("conversations");
    this.words = byId("search");
    this.problem = byId("storage-problem");
    byId("new-chat").addEventListener("click", () => this.#open(store.newConversation()));
    byId("export").addEventListener("click", () =>
      download("conversations.json", "application/json", store.toFile(store.allConversations())),
    );
    this.words.addEventListener("input", () => {
      this.draw();
      announce(this.words.value.trim() ? `${this.list.children.length} chats found` : "");
    });
    const file = byId("import-file");
    byId("import").addEventListener("click", () => file.click());
    file.addEventListener("change", () => {
      if (file.files.length) this.#import(file.files[0]);
      file.value = "";
    });
    this.list.addEventListener("toggle", ({ newState }) => newState === "closed" && this.#late && this.draw(), true);
    store.onChange(() => this.draw());
    this.draw();
  }

  /** Draw the list anew. */
  draw() {
    // A menu that is open stays so.
    this.#late = this.list.querySelector(":popover-open") !== null;
    if (this.#late) return;
    const focused = document.activeElement?.closest("#conversations li")?.dataset.id;
    const all = store.allConversations();
    const words = this.words.value.trim();
    const found = all.map((one) => [one, words ? store.search(one, words) : ""]).filter(([, place]) => place !== null);
    this.list.replaceChildren(...found.map(([one, place]) => this.#item(one, place)));
    if (focused) [...this.list.children].find((one) => one.dataset.id === focused)?.querySelector("button").focus();
    byId("no-conversations").hidden = all.length > 0;
    byId("nothing-found").hidden = found.length > 0 || !all.length;
    byId("search-box").hidden = all.length === 0;
    byId("export").disabled = all.length === 0;
  }

  #item(conversation, place) {
    const title = store.titleOf(conversation);
    const current = conversation.id === this.chat.conversation.id;
    const busy = this.chat.isBusy(conversation.id);
    const open = button("", () => this.#open(conversation), {
      class: "title",
      "aria-current": current ? "true" : null,
      title,
    });
    open.append(el("span.name", {}, title));
    if (busy) open.append(" ", el("span.running", { role: "img", "aria-label": "is being answered" }));
    if (place) open.append(el("span.place", {}, place));
    const menu = menuButton(`More about ${title}`, [
      { label: "Rename", onclick: () => this.#rename(conversation) },
      { label: "Export as Markdown", onclick: () => this.#exportOne(conversation, "md") },
      { label: "Export as JSON", onclick: () => this.#exportOne(conversation, "json") },
      { label: "Delete", onclick: () => this.#delete(conversation) },
    ]);
    return el("li", { "data-id": conversation.id }, open, menu);
  }

  #open(conversation) {
    this.problem.textContent = "";
    this.chat.open(conversation);
    this.onOpen(this.chat.conversation);
    this.draw();
    byId("sidebar").dispatchEvent(new CustomEvent("done"));
    byId("input").focus();
  }

  async #rename(conversation) {
    const value = store.titleOf(conversation);
    const title = await askText({ title: "Rename the conversation", label: "Name", value, action: "Rename" });
    if (title === null) return;
    const held = this.chat.current(conversation);
    held.title = title.slice(0, 120);
    store.save(held);
    this.onOpen(this.chat.conversation);
    this.draw();
  }

  async #delete(conversation) {
    const text = `“${store.titleOf(conversation)}” cannot be brought back.`;
    if (!(await confirm("Delete this conversation?", text, "Delete"))) return;
    this.chat.discard(conversation);
    store.remove(conversation.id);
    this.onOpen(this.chat.conversation);
    this.draw();
    byId("new-chat").focus();
    announce("Deleted");
  }

  #exportOne(conversation, ending) {
    const held = this.chat.current(conversation);
    const name = `${store.fileName(held)}.${ending}`;
    if (ending === "md") download(name, "text/markdown", store.toMarkdown(held));
    else download(name, "application/json", store.toFile([held]));
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
