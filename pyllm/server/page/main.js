// Puts the page together.

import { byId, el } from "./dom.js";
import { ask, explain, hasKey, onKeyWanted, setKey } from "./api.js";
import { askText } from "./dialogs.js";
import { Chat } from "./chat.js";
import { Conversations } from "./conversations.js";
import { Inspector } from "./inspector.js";
import { Parameters } from "./parameters.js";
import { setUpPanel, setUpTabs } from "./panels.js";

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
  if (!chat.busy) refresh();
});
const conversations = new Conversations(chat);
const inspector = new Inspector(parameters, model, chat, refresh);

setUpPanel(byId("sidebar"), byId("menu"), true);
setUpPanel(byId("parameters"), byId("parameters-toggle"), false);
setUpTabs([byId("tab-chat"), byId("tab-tokens")], (view) => {
  // Where fingers are used, the focus would open a keyboard over half of the page.
  if (view === "chat" && !matchMedia("(pointer: coarse)").matches) byId("input").focus();
});
byId("forget-key").addEventListener("click", () => {
  setKey("");
  byId("forget-key").hidden = true;
});
byId("retry").addEventListener("click", load);
models.addEventListener("change", () => {
  localStorage.setItem(MODEL, models.value);
  describe();
});
let known = new Map();
let described = false;
load();

/** Find out what was not known yet: a model that was asked is loaded now. */
async function refresh() {
  if (!described) await load();
}

async function load() {
  byId("offline").hidden = true;
  try {
    const { data } = await ask("v1/models");
    const before = models.value || localStorage.getItem(MODEL);
    known = new Map(data.map((one) => [one.id, one]));
    models.replaceChildren(...data.map(({ id }) => el("option", { value: id }, id)));
    if (data.some(({ id }) => id === before)) models.value = before;
    models.disabled = data.length < 2;
    await describe();
  } catch (error) {
    byId("offline-text").textContent = explain(error);
    byId("offline").hidden = false;
  }
  byId("forget-key").hidden = !hasKey();
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
