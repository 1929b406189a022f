// Views behind tabs, and panels that open and close.

import { byId } from "./dom.js";

const NARROW = matchMedia("(max-width: 56rem)");

/** Tabs whose panels take turns; the address says which is shown. */
export function setUpTabs(tabs, onShow) {
  const show = (tab, focus) => {
    for (const one of tabs) {
      const shown = one === tab;
      one.setAttribute("aria-selected", String(shown));
      one.tabIndex = shown ? 0 : -1;
      byId(one.getAttribute("aria-controls")).hidden = !shown;
    }
    if (focus) tab.focus();
    document.body.dataset.view = tab.dataset.view;
    onShow(tab.dataset.view);
  };
  const fromAddress = () => show(tabs.find((one) => `#${one.dataset.view}` === location.hash) ?? tabs[0], false);
  for (const tab of tabs) {
    tab.addEventListener("click", () => {
      history.replaceState(null, "", `#${tab.dataset.view}`);
      show(tab, false);
    });
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
      history.replaceState(null, "", `#${next.dataset.view}`);
      show(next, true);
    });
  }
  window.addEventListener("hashchange", fromAddress);
  fromAddress();
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
    if (event.key === "Escape") close();
  });
  panel.addEventListener("done", () => NARROW.matches && set(false));
  set(open && !NARROW.matches);
  NARROW.addEventListener("change", () => set(open && !NARROW.matches));
}
