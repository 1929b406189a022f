// Making elements. Text only ever becomes text nodes: nothing here reads HTML.

/**
 * Make an element.
 *
 * @param {string} spec Tag and classes, such as "button.primary".
 * @param {object} properties Attributes; functions under "on…" are listeners; null, undefined and false are left out.
 * @param {...(Node|string|null)} children What is in it.
 * @returns {HTMLElement}
 */
export function el(spec, properties = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** The element with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** A button that is no form's. */
export function button(text, onclick, properties = {}) {
  return el("button", { type: "button", onclick, ...properties }, text);
}

/** Tell people who listen what has happened. */
export function announce(text) {
  byId("status").textContent = text;
}

/** Put a text into the clipboard; whether that worked. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Browsers have a clipboard only for pages from this machine or with TLS. The old way works everywhere.
    const area = el("textarea.offscreen", { "aria-hidden": "true" });
    const before = document.activeElement;
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    before?.focus();
    return copied;
  }
}

/** A button that copies what `text()` gives, and says so. */
export function copyButton(text, label = "Copy") {
  const made = button(label, async () => {
    made.textContent = (await copyText(text())) ? "Copied" : "Not copied";
    announce(made.textContent);
    setTimeout(() => (made.textContent = label), 1500);
  });
  return made;
}

/** Give the browser a file to keep. */
export function download(name, type, text) {
  const href = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href, download: name }).click();
  // The browser reads it after this.
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

/** Let a text area be as high as its text, up to what its style allows. */
export function growing(area) {
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
  };
  area.addEventListener("input", fit);
  // Hidden areas have no height yet.
  new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && fit()).observe(area);
  return fit;
}

/**
 * Let many calls become one of `draw`, before the browser paints. Where drawing takes long, it is done less often: it has a
 * quarter of the time. `flush()` draws what waits; `cancel()` forgets it.
 */
export function beforePaint(draw) {
  let frame = 0;
  let timer = 0;
  let next = 0;
  const run = () => {
    frame = 0;
    const started = performance.now();
    draw();
    const ended = performance.now();
    next = ended + 3 * (ended - started);
  };
  const cancel = () => {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    frame = timer = 0;
  };
  return {
    request() {
      if (frame || timer) return;
      const wait = next - performance.now();
      if (wait < 16) frame = requestAnimationFrame(run);
      else {
        timer = setTimeout(() => {
          timer = 0;
          frame = requestAnimationFrame(run);
        }, wait);
      }
    },
    flush() {
      cancel();
      run();
    },
    cancel,
  };
}
