// Puts the page together.

import { byId, el } from "./dom.js";
import { ApiError, ask, explain, hasKey, onKeyWanted, setKey } from "./api.js";
import { askText } from "./dialogs.js";
import { Chat } from "./chat.js";
import { Conversations } from "./conversations.js";
import { Inspector } from "./inspector.js";
import { Parameters } from "./parameters.js";
import { hashOf, setUpPanel, setUpTabs } from "./panels.js";
import { find, newConversation, titleOf } from "./store.js";

const MODEL = "pyllm.model";

onKeyWanted((problem) =>
  askText({
    title: "This server needs a key",
    text: `${problem ? `${problem} ` : ""}It is kept until you close this tab, and sent to this server only.`,
    label: "API key",
    action: "Use it",
    secret: true,
  }),
);

const models = byId("model");
const model = () => models.value || undefined;
const parameters = new Parameters();
const chat = new Chat(parameters, model, () => {
  conversations.draw();
  if (document.body.dataset.view === "chat") address(chat.conversation, false);
  if (!chat.busy) refresh();
});
const conversations = new Conversations(chat, (conversation) => address(conversation, true));
const inspector = new Inspector(parameters, model, chat, refresh);

setUpPanel(byId("sidebar"), byId("menu"), true);
setUpPanel(byId("parameters"), byId("parameters-toggle"), false);
setUpTabs([byId("tab-chat"), byId("tab-tokens")], (view) => (view === "chat" ? placeOf(chat.conversation) : ""), show);
document.addEventListener("keydown", (event) => {
  // Wherever the focus is, but in what Escape closes.
  if (event.key !== "Escape" || event.defaultPrevented || event.target.closest?.("dialog, .edit")) return;
  if (document.body.dataset.view === "chat") chat.stop();
  else inspector.stop();
});
byId("forget-key").addEventListener("click", () => {
  setKey("");
  byId("forget-key").hidden = true;
});
byId("retry").addEventListener("click", load);
// Which models are in memory changes without this page.
models.addEventListener("focus", refresh);
models.addEventListener("change", () => {
  localStorage.setItem(MODEL, models.value);
  describe();
});
let known = new Map();
let described = false;
load();

// A conversation has an address when it is kept.
function placeOf(conversation) {
  return conversation.messages.length ? conversation.id : "";
}

// Let the address be that of a conversation; `step`: back leads to the one before.
function address(conversation, step) {
  document.title = placeOf(conversation) ? `${titleOf(conversation)} – pyllm` : "pyllm";
  const hash = hashOf("chat", placeOf(conversation));
  if (location.hash === hash || (location.hash === "" && hash === "#chat")) return;
  if (step) history.pushState(null, "", hash);
  else history.replaceState(null, "", hash);
}

function show(view, place) {
  if (view !== "chat") return;
  const problem = byId("chat-problem");
  problem.textContent = "";
  if (place !== null && place !== placeOf(chat.conversation)) {
    const found = place ? find(place) : null;
    if (place && !found) problem.textContent = "This chat is not in this browser. Chats are kept where they were written.";
    chat.open(found ?? newConversation());
    address(chat.conversation, false);
    conversations.draw();
  }
  // Where fingers are used, the focus would open a keyboard over half of the page.
  if (!matchMedia("(pointer: coarse)").matches) byId("input").focus();
}

/** Find out what has changed: a model that was asked is loaded now. */
async function refresh() {
  if (!described || known.size > 1) await load();
}

async function load() {
  byId("offline").hidden = true;
  try {
    const { data } = await ask("v1/models");
    const before = models.value || localStorage.getItem(MODEL);
    const writing = data.filter(({ capabilities }) => capabilities?.includes("completion") ?? true);
    known = new Map(writing.map((one) => [one.id, one]));
    models.replaceChildren(...writing.map((one) => el("option", { value: one.id }, labelOf(one))));
    if (known.has(before)) models.value = before;
    models.disabled = writing.length < 2;
    if (!writing.length && data.length) throw new ApiError("The models of this server make vectors, and write no text.");
    await describe();
  } catch (error) {
    byId("offline-text").textContent = explain(error);
    byId("offline").hidden = false;
  }
  byId("forget-key").hidden = !hasKey();
}

// A server with several models says which of them are in memory.
function labelOf({ id, status }) {
  if (!status) return id;
  if (status.failed) return `${id} · could not be loaded`;
  if (status.value === "loading" && status.progress) return `${id} · loading, ${Math.round(100 * status.progress)} %`;
  return `${id} · ${{ unloaded: "not loaded" }[status.value] ?? status.value}`;
}

async function describe() {
  const { status } = known.get(models.value) ?? {};
  byId("welcome-model").textContent = models.value;
  described = !status || status.value === "loaded";
  if (!described) {
    // To ask about it would load it, which can take a while, and push out another one.
    parameters.setDefaults({});
    byId("about").textContent = "This model is loaded when it is asked for the first time.";
    return;
  }
  const props = await ask(known.size > 1 ? `props?model=${encodeURIComponent(models.value)}` : "props");
  const settings = props.default_generation_settings ?? {};
  parameters.setDefaults(settings.params ?? {});
  inspector.setBos(props.bos_token ?? "");
  const about = [props.build_info];
  if (settings.n_ctx) about.push(`context ${settings.n_ctx} tokens`);
  byId("about").textContent = about.filter(Boolean).join(" · ");
}
