// A menu that a button opens.

import { el } from "./dom.js";

/**
 * A button that opens a menu.
 *
 * @param {string} label What it is for.
 * @param {Array<{label: string, onclick: function(): void}>} items What can be chosen.
 */
export function menuButton(label, items) {
  const made = el(
    "button.quiet.small",
    { type: "button", "aria-label": label, "aria-haspopup": "menu", "aria-expanded": "false", title: label },
    "⋯",
  );
  made.addEventListener("click", () => open(made, label, items));
  return made;
}

function open(anchor, label, items) {
  const menu = el("div.menu", { role: "menu", popover: "auto", "aria-label": label });
  const close = () => {
    menu.hidePopover();
    anchor.focus();
  };
  for (const { label, onclick } of items) {
    const choose = () => {
      close();
      onclick();
    };
    menu.append(el("button", { type: "button", role: "menuitem", tabindex: "-1", onclick: choose }, label));
  }
  menu.addEventListener("keydown", (event) => {
    const all = [...menu.children];
    const at = all.indexOf(document.activeElement);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Escape" || event.key === "Tab") close();
    else if (next !== undefined) all.at(next % all.length).focus();
    else return;
    event.preventDefault();
  });
  menu.addEventListener("toggle", ({ newState }) => {
    anchor.setAttribute("aria-expanded", String(newState === "open"));
    if (newState === "closed") menu.remove();
  });
  anchor.after(menu);
  menu.showPopover();
  const { bottom, top, right } = anchor.getBoundingClientRect();
  const below = bottom + menu.offsetHeight < innerHeight;
  menu.style.top = `${Math.max(0, below ? bottom : top - menu.offsetHeight)}px`;
  menu.style.left = `${Math.max(0, Math.min(right, innerWidth) - menu.offsetWidth)}px`;
  menu.firstElementChild.focus();
}
