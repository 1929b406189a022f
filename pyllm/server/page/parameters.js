// The parameters of requests: fields for the usual ones, JSON for all others. Kept in this browser.

import { el, byId, button } from "./dom.js";

const KEY = "pyllm.parameters";

const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0, max: 5, step: 0.05, hint: "0: always the likeliest token" },
  { name: "top_p", label: "Top p", min: 0, max: 1, step: 0.01, hint: "only the likeliest with this much together" },
  { name: "top_k", label: "Top k", min: 0, step: 1, hint: "only so many of the likeliest; 0: all" },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, hint: "only those with this share of the likeliest" },
  { name: "repeat_penalty", label: "Repeat penalty", min: 0, step: 0.05, hint: "1: none" },
  { name: "max_tokens", label: "Max tokens", min: 1, step: 1, hint: "empty: until the model ends", chatOnly: true },
  { name: "seed", label: "Seed", min: 0, step: 1, hint: "empty: another one each time" },
];
// What this page has to say itself.
const OWN = ["messages", "prompt", "model", "stream", "stream_options", "n", "best_of", "echo", "logprobs", "top_logprobs"];

/** The panel of parameters. */
export class Parameters {
  #inputs = {};

  constructor() {
    const form = byId("parameters-form");
    for (const field of FIELDS) form.append(this.#number(field));
    form.append(
      this.#area("stop", "Stop texts", "one per line; the answer ends before it", 2),
      this.#area("extra", "Other fields, as JSON", "such as {\"tools\": […]} or {\"response_format\": {…}}", 3),
      el("div.row", {}, button("Back to the server’s", () => this.#reset())),
    );
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => {
      this.#check();
      this.#store();
    });
    this.#load();
  }

  /** Show what the server takes where nothing is said. */
  setDefaults(params) {
    for (const field of FIELDS) {
      const value = params[field.name] ?? (field.name === "temperature" ? params.temp : undefined);
      // Numbers of llama.cpp are 32 bits long: 0.8 comes as 0.800000011920929.
      const shown = typeof value === "number" && value >= 0 ? String(Number(value.toPrecision(6))) : "";
      this.#inputs[field.name].placeholder = shown;
    }
  }

  /**
   * What a request should say.
   *
   * @param {{chat: boolean}} options Whether it is for the chat; the inspector has a limit of its own.
   * @throws {Error} A field is wrong; the message says which.
   */
  fields({ chat }) {
    const wrong = this.#check();
    if (wrong) throw new Error(wrong);
    const result = { ...this.#extra() };
    for (const { name, chatOnly } of FIELDS) {
      const value = this.#inputs[name].value;
      if (value !== "" && (chat || !chatOnly)) result[name] = Number(value);
    }
    const stop = this.#inputs.stop.value.split("\n").filter(Boolean);
    if (stop.length) result.stop = stop;
    return result;
  }

  #number({ name, label, hint, ...limits }) {
    const input = el("input", { id: `p-${name}`, type: "number", inputmode: "decimal", "aria-describedby": `h-${name}` });
    for (const limit of ["min", "max", "step"]) if (limit in limits) input[limit] = limits[limit];
    // A step is for the arrow keys: whoever types 0.123 means it.
    if (limits.step < 1) input.dataset.free = "";
    this.#inputs[name] = input;
    return el("div.field", {}, el("label", { for: input.id }, label), input, el("small", { id: `h-${name}` }, hint));
  }

  #area(name, label, hint, rows) {
    const area = el("textarea", { id: `p-${name}`, rows, spellcheck: "false", "aria-describedby": `h-${name}` });
    this.#inputs[name] = area;
    return el("div.field.wide", {}, el("label", { for: area.id }, label), area, el("small", { id: `h-${name}` }, hint));
  }

  #extra() {
    const text = this.#inputs.extra.value.trim();
    if (!text) return {};
    const found = JSON.parse(text);
    if (typeof found !== "object" || found === null || Array.isArray(found)) throw new Error("it is no object");
    const own = OWN.find((name) => name in found);
    if (own) throw new Error(`“${own}” is what this page says itself`);
    return found;
  }

  #check() {
    let first = null;
    for (const { name, label } of FIELDS) {
      const input = this.#inputs[name];
      const { badInput, rangeUnderflow, rangeOverflow, stepMismatch } = input.validity;
      const whole = stepMismatch && !("free" in input.dataset);
      const wrong = badInput || rangeUnderflow || rangeOverflow || whole;
      const range = input.max === "" ? `at least ${input.min}` : `from ${input.min} to ${input.max}`;
      first ??= mark(input, wrong ? `${label} must be a${whole ? " whole" : ""} number ${range}.` : "");
    }
    let problem = "";
    try {
      this.#extra();
    } catch (error) {
      problem = `Other fields must be a JSON object: ${error.message}.`;
    }
    first ??= mark(this.#inputs.extra, problem);
    byId("parameters-problem").textContent = first ?? "";
    return first;
  }

  #store() {
    const values = Object.entries(this.#inputs).map(([name, input]) => [name, input.value]);
    try {
      localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(values.filter(([, value]) => value !== ""))));
    } catch {
      // They hold until the page is closed, then.
    }
  }

  #load() {
    try {
      const stored = JSON.parse(localStorage.getItem(KEY) ?? "{}");
      for (const [name, input] of Object.entries(this.#inputs)) {
        if (typeof stored[name] === "string") input.value = stored[name];
      }
    } catch {
      // Not written by this page.
    }
    this.#check();
  }

  #reset() {
    for (const input of Object.values(this.#inputs)) input.value = "";
    this.#check();
    this.#store();
  }
}

function mark(input, problem) {
  if (problem) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
  return problem || null;
}
