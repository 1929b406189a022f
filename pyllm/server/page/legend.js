// What the colours mean.

import { el } from "./dom.js";
import { STEPS } from "./measures.js";

/** Draw the legend of a kind of colours: "entropy", "surprisal", or "none". */
export function drawLegend(root, kind) {
  root.hidden = !(kind in STEPS);
  if (root.hidden) return;
  const steps = STEPS[kind];
  const swatches = Array.from({ length: steps.length + 1 }, (_, i) => {
    const range = i === 0 ? `up to ${steps[0]}` : i === steps.length ? `over ${steps[i - 1]}` : `${steps[i - 1]} to ${steps[i]}`;
    const shown = i === steps.length ? `${steps[i - 1]}+` : String(i === 0 ? 0 : steps[i - 1]);
    return el("span.swatch", { "data-level": i, title: `${range} bits` }, shown);
  });
  root.replaceChildren(...swatches, el("span", {}, "bits"));
}
