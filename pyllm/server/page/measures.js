// Numbers of a token: its probability, its surprisal, and the entropy of what could have stood there.

/** Above these many bits a token has the next colour. */
export const STEPS = {
  entropy: [0.1, 0.5, 1, 1.75, 2.75, 4, 5.5],
  surprisal: [0.1, 0.5, 1, 2, 3.5, 5.5, 8],
};

/** The probability of a log-probability. */
export function probability(logprob) {
  return logprob === null ? null : Math.exp(logprob);
}

/** Bits of surprise at a token; null where nothing has predicted it. */
export function surprisal(token) {
  return token.logprob === null || token.logprob === undefined ? null : -token.logprob / Math.LN2;
}

/**
 * Bits of entropy over the whole vocabulary, or as many as it has at least: a token that is not listed is no likelier
 * than the last that is.
 */
export function entropy(token) {
  if (!token.top?.length) return null;
  token.entropy ??= computed(token.top);
  return token.entropy;
}

function computed(top) {
  let sum = 0;
  let bits = 0;
  let least = 1;
  for (const { logprob } of top) {
    const p = Math.exp(logprob);
    sum += p;
    least = Math.min(least, p);
    if (p > 0) bits -= p * Math.log2(p);
  }
  const rest = 1 - sum;
  return rest > 1e-9 && least > 0 ? bits - rest * Math.log2(Math.min(rest, least)) : bits;
}

/** How much the listed tokens leave to all others, from 0 to 1. */
export function restOf(top) {
  return Math.max(0, 1 - top.reduce((sum, { logprob }) => sum + Math.exp(logprob), 0));
}

/** The colour of a token, from 0 to 7; null for none. */
export function level(token, kind) {
  const bits = kind === "entropy" ? entropy(token) : kind === "surprisal" ? surprisal(token) : null;
  if (bits === null) return null;
  const above = STEPS[kind].findIndex((step) => bits <= step);
  return above < 0 ? STEPS[kind].length : above;
}

/** A probability for people. */
export function percent(p) {
  if (p === null) return "–";
  if (p >= 0.9995) return p === 1 ? "100 %" : "> 99.9 %";
  if (p < 0.0001) return "< 0.01 %";
  return `${(100 * p).toFixed(p < 0.1 ? 2 : 1)} %`;
}

/** Bits for people. */
export function bits(value) {
  return value === null ? "–" : `${value.toFixed(2)} bits`;
}

/** Means over some tokens: how many, entropy, and perplexity. */
export function summary(tokens) {
  let n = 0;
  let sum = 0;
  let surprise = 0;
  for (const token of tokens) {
    const own = surprisal(token);
    if (own === null) continue;
    n++;
    surprise += own;
    sum += entropy(token) ?? 0;
  }
  return n ? { n, entropy: sum / n, perplexity: 2 ** (surprise / n) } : { n, entropy: 0, perplexity: 0 };
}
