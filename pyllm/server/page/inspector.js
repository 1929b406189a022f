// The token inspector: generates token by token with what else was likely, and goes on from any of that.

import { byId, announce, beforePaint, growing } from "./dom.js";
import { ask, explain, stream } from "./api.js";
import { toMessages } from "./answer.js";
import { drawBranches } from "./branches.js";
import { Details } from "./details.js";
import { drawLegend } from "./legend.js";
import { summary } from "./measures.js";
import { Strip } from "./strip.js";
import { fromEntry, fromPiece } from "./tokens.js";
import { Tip } from "./tip.js";
import { Tree } from "./tree.js";

const ENDS = { stop: "the model ended it", length: "max tokens", abort: "the server ended it" };

export class Inspector {
  #tree = null;
  #controller = null;
  #bos = "";
  #rate = "";

  /**
   * @param {import("./parameters.js").Parameters} parameters
   * @param {function(): string|undefined} model Gives the name of the model.
   * @param {import("./chat.js").Chat} chat Whose conversation can become the prompt.
   * @param {function(): Promise<void>} onUsed Called when the model has answered something.
   */
  constructor(parameters, model, chat, onUsed) {
    this.parameters = parameters;
    this.model = model;
    this.chat = chat;
    this.onUsed = onUsed;
    this.prompt = byId("prompt");
    this.branches = byId("branches");
    this.fitPrompt = growing(this.prompt);
    this.details = new Details(byId("details"), {
      onBranch: (i, token) => this.#branch(i, token),
      onLeave: () => this.strip.select(this.strip.selected, true),
      onClose: () => {
        this.strip.select(this.strip.selected, true);
        this.strip.clear();
        this.details.clear();
      },
    });
    this.strip = new Strip(byId("strip"), {
      onSelect: (i) => this.details.show(i, this.strip.token(i)),
      onOpen: () => this.details.focus(),
      onLeave: () => this.details.clear(),
    });
    new Tip(byId("strip"), (element) => this.strip.token(this.strip.indexOf(element)));
    byId("inspect-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#controller !== null) this.stop();
      else this.#start();
    });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#start();
    });
    byId("continue").addEventListener("click", () => this.#generate(this.#tree.current));
    byId("score").addEventListener("click", () => this.#score());
    byId("example").addEventListener("click", (event) => {
      this.prompt.value = event.target.textContent;
      this.#start();
    });
    byId("from-chat").addEventListener("click", () => this.#fromChat());
    for (const input of document.querySelectorAll("[name=colours]")) {
      input.addEventListener("change", () => this.#colour(input.value));
    }
    this.#colour("entropy");
    this.#draw();
  }

  /** What the model's texts begin with; a prompt that has it needs no other. */
  setBos(text) {
    this.#bos = text;
  }

  /** End what is being generated. */
  stop() {
    this.#controller?.abort();
  }

  #colour(kind) {
    this.strip.colour(kind);
    drawLegend(byId("legend"), kind);
  }

  async #fromChat() {
    await this.#try(async () => {
      const messages = toMessages(this.chat.conversation);
      if (!messages.some((message) => message.role === "user")) throw new Problem("There is nothing in the chat yet.");
      // The last answer is what shall be generated anew.
      while (messages.at(-1).role === "assistant") messages.pop();
      this.prompt.value = (await ask("apply-template", { model: this.model(), messages })).prompt;
      // What texts begin with is known only of a model that is loaded.
      await this.onUsed();
      this.fitPrompt();
      this.prompt.focus();
    });
  }

  async #start() {
    const tree = await this.#try(async (signal) => {
      const content = this.prompt.value;
      const add_special = !(this.#bos && content.startsWith(this.#bos));
      const body = { model: this.model(), content, add_special, parse_special: true, with_pieces: true };
      const { tokens } = content ? await ask("tokenize", body, signal) : { tokens: [] };
      if (!tokens.length) throw new Problem("Write a prompt first.");
      return new Tree(tokens.map(fromPiece));
    });
    if (tree === null) return;
    this.#tree = tree;
    this.#rate = "";
    this.strip.clear();
    this.details.clear();
    await this.#generate(tree.root);
  }

  async #branch(i, token) {
    // Its alternatives are those of the token that stood there: it is the same place.
    const { branch, made } = this.#tree.fork(i, { ...token, top: this.strip.token(i).top, generated: true });
    this.#draw();
    this.strip.select(i, true);
    if (made) await this.#generate(branch);
  }

  #open(branch) {
    this.#tree.current = branch;
    this.#draw();
    const first = branch.parent === null ? this.#tree.promptLength : branch.at;
    this.strip.select(first);
  }

  async #generate(branch) {
    const tree = this.#tree;
    await this.#try(async (signal) => {
      const body = {
        ...this.parameters.fields({ chat: false }),
        model: this.model(),
        prompt: tree.path(branch).map((token) => token.id),
        max_tokens: number("max", "Tokens"),
        logprobs: number("top", "Alternatives"),
        return_token_ids: true,
        stream: true,
      };
      const painter = beforePaint(() => tree === this.#tree && this.#drawText());
      let count = 0;
      let first = null;
      branch.note = "stopped by you";
      painter.request();
      try {
        for await (const event of stream("v1/completions", body, signal)) {
          const choice = event.choices?.[0];
          if (!choice) continue;
          if (choice.finish_reason) branch.note = ENDS[choice.finish_reason] ?? choice.finish_reason;
          const entries = choice.logprobs?.content;
          if (!entries && choice.text) throw new Problem("This server sends no ids of tokens with their probabilities.");
          if (!entries?.length) continue;
          branch.tokens.push(...entries.map((entry) => fromEntry(entry, true)));
          count += entries.length;
          first ??= performance.now();
          const seconds = (performance.now() - first) / 1000;
          if (count > 1 && seconds > 0) this.#rate = `${((count - 1) / seconds).toFixed(1)} tokens/s`;
          painter.request();
        }
      } finally {
        painter.flush();
      }
      announce(`${count} tokens: ${branch.note}`);
    });
  }

  async #score() {
    const tree = this.#tree;
    await this.#try(async (signal) => {
      const prompt = tree.root.tokens.slice(0, tree.promptLength).map((token) => token.id);
      const options = { logprobs: number("top", "Alternatives"), max_tokens: 0, echo: true, return_token_ids: true };
      const { choices } = await ask("v1/completions", { model: this.model(), prompt, ...options }, signal);
      const entries = choices[0].logprobs?.content ?? [];
      if (entries.length < prompt.length) throw new Problem("This server does not score prompts.");
      for (let i = 0; i < prompt.length; i++) tree.root.tokens[i] = fromEntry(entries[i], false);
      if (tree !== this.#tree) return;
      this.#drawText();
      this.strip.select(Math.min(1, prompt.length - 1), true);
      announce("The prompt has been scored");
    });
  }

  // One thing at a time. What goes wrong is shown, and gives null.
  async #try(work) {
    this.stop();
    const problem = byId("inspector-problem");
    const controller = (this.#controller = new AbortController());
    problem.textContent = "";
    this.#setBusy(true);
    let result = null;
    try {
      result = await work(controller.signal);
    } catch (error) {
      if (error.name !== "AbortError") problem.textContent = error instanceof Problem ? error.message : explain(error);
    }
    if (this.#controller !== controller) return null;
    this.#controller = null;
    this.#setBusy(false);
    this.#draw();
    return result ?? null;
  }

  #setBusy(busy) {
    byId("generate").textContent = busy ? "Stop" : "Generate";
    byId("generate").classList.toggle("stop", busy);
    byId("strip").setAttribute("aria-busy", String(busy));
    byId("continue").disabled = busy || this.#tree === null;
    byId("score").disabled = busy || this.#tree === null;
  }

  #draw() {
    this.#drawText();
    const focused = this.branches.contains(document.activeElement);
    drawBranches(this.branches, this.#tree, (branch) => this.#open(branch));
    if (focused) this.branches.querySelector("[aria-current]")?.focus();
  }

  #drawText() {
    const tree = this.#tree;
    byId("results").hidden = tree === null;
    byId("inspector-welcome").hidden = tree !== null;
    if (tree === null) return;
    const tokens = tree.path();
    this.strip.show(tokens, tree.forks());
    const made = tokens.filter((token) => token.generated);
    const { n, entropy, perplexity } = summary(made);
    const parts = [`prompt ${tree.promptLength}`, `generated ${made.length}`];
    if (n) parts.push(`mean entropy ${entropy.toFixed(2)} bits`, `perplexity ${perplexity.toFixed(2)}`);
    if (this.#rate) parts.push(this.#rate);
    if (this.#controller === null && tree.current.note) parts.push(tree.current.note);
    byId("inspector-summary").textContent = parts.join(" · ");
  }
}

/** What people are told as it is. */
class Problem extends Error {}

function number(id, name) {
  const input = byId(id);
  if (!input.checkValidity() || input.value === "") {
    throw new Problem(`${name} must be a whole number from ${input.min} to ${input.max}.`);
  }
  return Number(input.value);
}
