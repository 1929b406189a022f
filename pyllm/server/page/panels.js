// Views behind tabs, and panels that open and close.

import { byId } from "./dom.js";

const NARROW = matchMedia("(max-width: 56rem)");

/**
 * Tabs whose panels take turns; the address says which is shown, and what in it: `#chat/…`.
 *
 * @param {HTMLElement[]} tabs The tabs.
 * @param {function(string): string} inside Gives what the address says of a view when its tab is chosen, or "".
 * @param {function(string, string|null): void} onShow Called with the view, and what the address says of it; null: a tab
 *     was chosen, and nothing shall change in it.
 */
export function setUpTabs(tabs, inside, onShow) {
  const show = (tab, focus, place) => {
    for (const one of tabs) {
      const shown = one === tab;
      one.setAttribute("aria-selected", String(shown));
      one.tabIndex = shown ? 0 : -1;
      byId(one.getAttribute("aria-controls")).hidden = !shown;
    }
    if (focus) tab.focus();
    document.body.dataset.view = tab.dataset.view;
    onShow(tab.dataset.view, place);
  };
  const choose = (tab, focus) => {
    history.replaceState(null, "", hashOf(tab.dataset.view, inside(tab.dataset.view)));
    show(tab, focus, null);
  };
  const fromAddress = () => {
    const [view, place = ""] = location.hash.slice(1).split("/", 2);
    show(tabs.find((one) => one.dataset.view === view) ?? tabs[0], false, place);
  };
  for (const tab of tabs) {
    tab.addEventListener("click", () => choose(tab, false));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      choose(tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length], true);
    });
  }
  window.addEventListener("hashchange", fromAddress);
  fromAddress();
}

/** The part of the address that leads to a view, or to something in it. */
export function hashOf(view, place) {
  return place ? `#${view}/${place}` : `#${view}`;
}

/**
 * A panel beside the view; over it, where there is little room.
 *
 * @param {HTMLElement} panel The panel; a "done" event closes it where it covers the view.
 * @param {HTMLElement} toggle The button that opens it.
 * @param {boolean} open Whether it is open at first, where there is room.
 */
export function setUpPanel(panel, toggle, open) {
  const set = (shown) => {
    panel.hidden = !shown;
    toggle.setAttribute("aria-expanded", String(shown));
  };
  const close = () => {
    set(false);
    toggle.focus();
  };
  toggle.addEventListener("click", () => {
    set(panel.hidden);
    if (!panel.hidden) panel.querySelector("button, input, select, textarea")?.focus();
  });
  panel.querySelector(".close").addEventListener("click", close);
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    event.preventDefault();
    close();
  });
  panel.addEventListener("done", () => NARROW.matches && set(false));
  set(open && !NARROW.matches);
  NARROW.addEventListener("change", () => set(open && !NARROW.matches));
}
