// The chat: a conversation and its messages. Answers are written in as many conversations as one likes.

import { byId, announce, growing } from "./dom.js";
import { explain } from "./api.js";
import { canGoOn, toMessages } from "./answer.js";
import { Composer } from "./composer.js";
import { MessageView } from "./message.js";
import { Run } from "./run.js";
import * as store from "./store.js";
import { add, choose, shown, takeAway, versions } from "./versions.js";

// So near to the end, in pixels, a reader is following.
const NEAR = 80;

export class Chat {
  #views = [];
  // By the ids of their conversations.
  #runs = new Map();
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
    this.system = byId("system");
    this.fitSystem = growing(this.system);
    this.composer = new Composer({
      onSend: (content, files) => this.#ask(content, files),
      onStop: () => this.stop(),
    });
    this.scroller.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = this.scroller;
      this.#following = scrollHeight - scrollTop - clientHeight < NEAR;
    });
    this.system.addEventListener("change", () => {
      this.conversation.system = this.system.value;
      if (this.conversation.messages.length) this.#save(this.conversation);
    });
    this.#draw();
  }

  /** Whether an answer is being written in the conversation that is shown. */
  get busy() {
    return this.isBusy(this.conversation.id);
  }

  /** Whether an answer is being written in a conversation. */
  isBusy(id) {
    return this.#runs.has(id);
  }

  /** The conversation as this page has it: shown, or with an answer that is being written. Else as it is stored. */
  current(conversation) {
    if (conversation.id === this.conversation.id) return this.conversation;
    return this.#runs.get(conversation.id)?.conversation ?? conversation;
  }

  /** Show another conversation. An answer that is being written goes on in its own. */
  open(conversation) {
    const before = this.#runs.get(this.conversation.id);
    if (before) before.view = null;
    this.conversation = this.#runs.get(conversation.id)?.conversation ?? conversation;
    this.#draw();
  }

  /** Forget a conversation. An answer that is being written there ends, and is not kept. */
  discard(conversation) {
    const held = this.current(conversation);
    this.#discarded.add(held);
    this.#runs.get(held.id)?.stop();
    if (held === this.conversation) this.open(store.newConversation());
  }

  /** End the answer; the server ends it, too. */
  stop() {
    this.#runs.get(this.conversation.id)?.stop();
  }

  #draw() {
    const { conversation } = this;
    const run = this.#runs.get(conversation.id);
    this.system.value = conversation.system;
    this.fitSystem();
    byId("system-box").open = Boolean(conversation.system);
    this.#views = [];
    this.log.replaceChildren();
    for (const message of shown(conversation)) {
      const view = this.#show(message, message === run?.message);
      if (message === run?.message) run.view = view;
    }
    this.#setTools();
    byId("welcome").hidden = conversation.messages.length > 0;
    this.#following = true;
    this.#follow();
  }

  #show(message, busy = false) {
    const view = new MessageView(message, busy);
    this.#views.push(view);
    this.log.append(view.element);
    return view;
  }

  // Buttons stand where they can be used: nothing is changed while an answer is coming.
  #setTools() {
    const { busy, conversation } = this;
    this.composer.setBusy(busy);
    const last = this.#views.at(-1);
    for (const view of this.#views) {
      const { message } = view;
      const { role } = message;
      view.actions = {};
      if (!busy) {
        if (role === "user") view.actions.edit = (text) => this.#askAnew(message, text);
        if (role === "assistant") view.actions.edit = (text) => this.#rewrite(message, text);
        if (view === last && role === "assistant") view.actions.again = () => this.#answerAnew(message);
        if (view === last && role === "user") view.actions.again = () => this.#answer();
        if (view === last && role === "assistant" && canGoOn(message)) view.actions.goOn = () => this.#goOn(view);
        const all = versions(conversation, message);
        if (all.length > 1) view.actions.versions = { all, choose: (one, step) => this.#choose(one, step) };
      }
      view.setTools();
    }
  }

  #ask(content, files, parent = this.conversation.leaf) {
    byId("welcome").hidden = true;
    this.conversation.system = this.system.value;
    const message = { role: "user", content };
    if (files?.length) message.files = files;
    add(this.conversation, message, parent);
    this.#show(message);
    this.#following = true;
    this.#answer();
  }

  #askAnew({ parent, files }, text) {
    this.#cut(parent);
    this.#ask(text, files, parent);
  }

  #rewrite({ parent, reasoning, tool_calls }, content) {
    const message = { role: "assistant", content };
    if (reasoning) message.reasoning = reasoning;
    if (tool_calls) message.tool_calls = tool_calls;
    add(this.conversation, message, parent);
    this.#save(this.conversation);
    this.#draw();
    this.composer.input.focus();
  }

  #answerAnew({ parent }) {
    this.#cut(parent);
    this.#answer();
  }

  #choose(message, step) {
    choose(this.conversation, message);
    this.#save(this.conversation);
    this.#draw();
    const view = this.#views.find((one) => one.message === message);
    view.element.scrollIntoView({ block: "nearest" });
    view.focusVersions(step);
  }

  // Show nothing behind a message.
  #cut(leaf) {
    this.conversation.leaf = leaf;
    const n = shown(this.conversation).length;
    for (const view of this.#views.splice(n)) view.element.remove();
  }

  #answer() {
    const body = this.#body({});
    if (body === null) return;
    const message = add(this.conversation, { role: "assistant", content: "" });
    this.#run(message, this.#show(message, true), body);
  }

  #goOn(view) {
    const body = this.#body({ continue_final_message: true, add_generation_prompt: false });
    if (body === null) return;
    view.setBusy(true);
    this.#run(view.message, view, body);
  }

  // What is asked, or null: a parameter is wrong, and that is said.
  #body(more) {
    const last = this.#views.at(-1);
    try {
      const body = {
        model: this.model(),
        messages: toMessages(this.conversation),
        ...this.parameters.fields({ chat: true }),
        ...more,
      };
      if (last?.message.role === "user") delete last.message.note;
      last?.setNote("");
      return body;
    } catch (error) {
      this.#setTools();
      last?.setNote(error.message, true);
      return null;
    }
  }

  async #run(message, view, body) {
    const { conversation } = this;
    const run = new Run(conversation, message, () => this.#follow());
    run.view = view;
    this.#runs.set(conversation.id, run);
    this.#setTools();
    this.#follow();
    this.#save(conversation);
    // The button that was pressed is gone: the focus would be nowhere.
    if (document.activeElement === document.body && !matchMedia("(pointer: coarse)").matches) this.composer.input.focus();
    const failure = await run.go(body, () => this.#keep(conversation));
    this.#runs.delete(conversation.id);
    run.view?.setBusy(false);
    run.view?.setNote(message.note);
    if (failure !== null) this.#failed(run, explain(failure));
    if (conversation === this.conversation) this.#setTools();
    this.#save(conversation);
    const what = failure === null ? `The answer has ended: ${message.note}` : explain(failure);
    announce(conversation === this.conversation ? what : `${store.titleOf(conversation)}: ${what}`);
    this.#follow();
  }

  // What came before the failure stays; an answer of nothing goes, and the question can be asked again.
  #failed({ conversation, message, view }, problem) {
    if (message.content || message.tool_calls?.length) {
      message.note = problem;
      view?.setNote(problem, true);
      return;
    }
    takeAway(conversation, message);
    const last = shown(conversation).at(-1);
    if (last?.role === "user") last.note = problem;
    if (conversation !== this.conversation) return;
    this.#draw();
    this.#views.at(-1)?.setNote(problem, true);
  }

  #follow() {
    if (this.#following) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #save(conversation) {
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
