// Where one writes: the message, and the files that go with it.

import { el, announce, button, byId, growing } from "./dom.js";
import { readFiles, sizeOf, sizeText } from "./attachments.js";

export class Composer {
  #files = [];
  #busy = false;

  /** @param {{onSend: function(string, object[]): void, onStop: function(): void}} listeners */
  constructor({ onSend, onStop }) {
    this.input = byId("input");
    this.chips = byId("files");
    this.problem = byId("files-problem");
    this.fit = growing(this.input);
    this.onSend = onSend;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#busy) onStop();
      else this.#send();
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.#busy) this.#send();
      }
    });
    this.input.addEventListener("paste", (event) => {
      // Programs for tables put a picture beside the text.
      if (!event.clipboardData.files.length || event.clipboardData.types.includes("text/plain")) return;
      event.preventDefault();
      this.#add([...event.clipboardData.files]);
    });
    const chooser = byId("attach-file");
    byId("attach").addEventListener("click", () => chooser.click());
    chooser.addEventListener("change", async () => {
      const chosen = [...chooser.files];
      await this.#add(chosen);
      chooser.value = "";
    });
    this.#takeDropped(byId("view-chat"));
  }

  /** Whether an answer is being written: then the button stops it. */
  setBusy(busy) {
    this.#busy = busy;
    const send = byId("send");
    send.textContent = busy ? "Stop" : "Send";
    send.classList.toggle("stop", busy);
  }

  #send() {
    const content = this.input.value;
    if (!content.trim() && !this.#files.length) return;
    const files = this.#files;
    this.input.value = "";
    this.fit();
    this.#files = [];
    this.problem.textContent = "";
    this.#draw();
    this.onSend(content, files);
  }

  #takeDropped(area) {
    const has = (event) => event.dataTransfer.types.includes("Files");
    area.addEventListener("dragover", (event) => {
      if (!has(event)) return;
      event.preventDefault();
      area.classList.add("dropping");
    });
    area.addEventListener("dragleave", (event) => {
      if (!area.contains(event.relatedTarget)) area.classList.remove("dropping");
    });
    area.addEventListener("drop", (event) => {
      area.classList.remove("dropping");
      if (!has(event)) return;
      event.preventDefault();
      this.#add([...event.dataTransfer.files]);
      this.input.focus();
    });
  }

  async #add(files) {
    const { read, problems } = await readFiles(files, this.#files);
    this.#files = [...this.#files, ...read];
    this.problem.textContent = problems.join(" ");
    this.#draw();
    if (read.length) announce(`Attached: ${read.map(({ name }) => name).join(", ")}`);
  }

  #draw() {
    this.chips.hidden = !this.#files.length;
    this.chips.replaceChildren(
      ...this.#files.map((file) =>
        el(
          "li.chip",
          {},
          el("span.name", { title: file.name }, file.name),
          el("small", {}, sizeText(sizeOf(file.text))),
          button("✕", () => this.#remove(file), { class: "quiet small", "aria-label": `Remove ${file.name}` }),
        ),
      ),
    );
  }

  #remove(file) {
    this.#files = this.#files.filter((one) => one !== file);
    this.#draw();
    this.input.focus();
  }
}
