// The chat: a conversation, its messages, and the answer that is being written.

import { el, byId, announce, beforePaint, button, growing } from "./dom.js";
import { explain } from "./api.js";
import { answer, toMessages } from "./answer.js";
import { MessageView } from "./message.js";
import * as store from "./store.js";

const SAVE_EVERY = 1000;
// So near to the end, in pixels, a reader is following.
const NEAR = 80;

export class Chat {
  #views = [];
  #controller = null;
  #following = true;
  #discarded = new WeakSet();

  /**
   * @param {import("./parameters.js").Parameters} parameters
   * @param {function(): string|undefined} model Gives the name of the model.
   * @param {function(): void} onSaved Called when the list of conversations has changed.
   */
  constructor(parameters, model, onSaved) {
    this.parameters = parameters;
    this.model = model;
    this.onSaved = onSaved;
    this.conversation = store.newConversation();
    this.log = byId("log");
    this.scroller = byId("scroller");
    this.input = byId("input");
    this.system = byId("system");
    this.fitInput = growing(this.input);
    const fitSystem = growing(this.system);
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.busy) this.stop();
      else this.#send();
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.busy) this.#send();
      }
    });
    byId("view-chat").addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.busy) this.stop();
    });
    this.scroller.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = this.scroller;
      this.#following = scrollHeight - scrollTop - clientHeight < NEAR;
    });
    this.system.addEventListener("change", () => {
      this.conversation.system = this.system.value;
      if (this.conversation.messages.length) this.#save();
    });
    this.fitSystem = fitSystem;
    this.#draw();
  }

  /** Whether an answer is being written. */
  get busy() {
    return this.#controller !== null;
  }

  /** Show another conversation; an answer that is being written ends. */
  open(conversation) {
    this.stop();
    this.conversation = conversation;
    this.#draw();
  }

  /** Forget the conversation, and show an empty one. What still comes of an answer is not kept. */
  discard() {
    this.#discarded.add(this.conversation);
    this.open(store.newConversation());
  }

  /** End the answer; the server ends it, too. */
  stop() {
    this.#controller?.abort();
  }

  #draw() {
    const { messages, system } = this.conversation;
    this.system.value = system;
    this.fitSystem();
    byId("system-box").open = Boolean(system);
    this.#views = [];
    this.log.replaceChildren();
    messages.forEach((message) => this.#show(message));
    this.#setTools();
    byId("welcome").hidden = messages.length > 0;
    this.#following = true;
    this.#follow();
  }

  #show(message) {
    const view = new MessageView(message);
    this.#views.push(view);
    this.log.append(view.element);
    return view;
  }

  // Buttons stand where they can be used: nothing is changed below an answer that is coming.
  #setTools() {
    const last = this.#views.length - 1;
    this.#views.forEach((view, i) => {
      const { role } = view.message;
      view.actions = {};
      if (!this.busy) {
        if (role === "user") view.actions.edit = (text) => this.#replace(i, text);
        if (role === "assistant") view.actions.edit = (text) => this.#rewrite(i, text);
        if (i === last && role === "assistant") view.actions.again = () => this.#regenerate(i);
        if (i === last && role === "user") view.actions.again = () => this.#generate();
      }
      view.setTools();
    });
  }

  #send() {
    const content = this.input.value;
    if (!content.trim()) return;
    this.input.value = "";
    this.fitInput();
    this.#ask(content);
  }

  #ask(content) {
    byId("welcome").hidden = true;
    this.conversation.system = this.system.value;
    const message = { role: "user", content };
    this.conversation.messages.push(message);
    this.#show(message);
    this.#following = true;
    this.#generate();
  }

  #replace(i, text) {
    this.#cut(i);
    this.#ask(text);
  }

  #rewrite(i, text) {
    this.conversation.messages[i].content = text;
    this.#save();
    this.#draw();
  }

  #regenerate(i) {
    this.#cut(i);
    this.#generate();
  }

  #cut(i) {
    this.conversation.messages.splice(i);
    for (const view of this.#views.splice(i)) view.element.remove();
  }

  async #generate() {
    const { conversation } = this;
    const views = this.#views;
    let body;
    try {
      body = { model: this.model(), messages: toMessages(conversation), ...this.parameters.fields({ chat: true }) };
    } catch (error) {
      this.#setTools();
      views.at(-1)?.setNote(error.message, true);
      return;
    }
    views.at(-1)?.setNote("");
    const message = { role: "assistant", content: "" };
    const view = this.#show(message);
    view.setBusy(true);
    conversation.messages.push(message);
    const controller = (this.#controller = new AbortController());
    this.#setBusy(true);
    this.#save();
    let deltas = [];
    const painter = beforePaint(() => {
      const waiting = deltas;
      deltas = [];
      const content = waiting.map((delta) => delta.content ?? "").join("");
      const reasoning = waiting.map((delta) => delta.reasoning_content ?? "").join("");
      if (reasoning) view.addReasoning(reasoning, true);
      for (const delta of waiting) for (const call of delta.tool_calls ?? []) view.addCall(call.index, call);
      if (content) view.addContent(content);
      this.#follow();
    });
    let saved = performance.now();
    let failure = null;
    try {
      await answer(body, message, controller.signal, (delta) => {
        deltas.push(delta);
        painter.request();
        if (performance.now() - saved > SAVE_EVERY) {
          saved = performance.now();
          this.#keep(conversation);
        }
      });
    } catch (error) {
      failure = error;
    }
    painter.flush();
    if (this.#controller === controller) this.#controller = null;
    view.setBusy(false);
    view.setNote(message.note);
    view.element.querySelector("details.reasoning")?.removeAttribute("open");
    if (failure !== null) this.#failed(failure, conversation, views, view);
    this.#setBusy(false);
    this.#save(conversation);
    announce(failure === null ? `The answer has ended: ${message.note}` : explain(failure));
    this.#follow();
  }

  // What came before the failure stays; an answer of nothing goes, and the question can be asked again.
  #failed(error, conversation, views, view) {
    const { message } = view;
    const text = explain(error);
    if (message.content || message.tool_calls?.length) {
      message.note = text;
      view.setNote(text, true);
      return;
    }
    conversation.messages.splice(conversation.messages.indexOf(message), 1);
    views.splice(views.indexOf(view), 1);
    view.element.remove();
    views.at(-1)?.setNote(text, true);
  }

  #setBusy(busy) {
    const send = byId("send");
    send.textContent = busy ? "Stop" : "Send";
    send.classList.toggle("stop", busy);
    this.#setTools();
  }

  #follow() {
    if (this.#following) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #save(conversation = this.conversation) {
    this.#keep(conversation);
    this.onSaved();
  }

  #keep(conversation) {
    if (this.#discarded.has(conversation)) return;
    conversation.updated = Date.now();
    try {
      store.save(conversation);
    } catch (error) {
      announce(error.message);
      byId("storage-problem").textContent = error.message;
    }
  }
}
