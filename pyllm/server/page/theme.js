// Light, dark, or as the system has it. A classic script in the head: the page is never drawn in the wrong one.

(function () {
  const NAMES = { auto: "automatic", light: "light", dark: "dark" };
  const KEY = "pyllm.theme";

  function stored() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  }

  function apply(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }

  let theme = stored() in NAMES ? stored() : "auto";
  apply(theme);

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => {
      button.setAttribute("aria-label", `Theme: ${NAMES[theme]}. Change it`);
      button.title = `Theme: ${NAMES[theme]}`;
    };
    button.addEventListener("click", () => {
      const all = Object.keys(NAMES);
      theme = all[(all.indexOf(theme) + 1) % all.length];
      apply(theme);
      label();
      try {
        localStorage.setItem(KEY, theme);
      } catch {
        // It holds until the page is closed, then.
      }
    });
    label();
  });
})();
