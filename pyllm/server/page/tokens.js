// Tokens as the server gives them, and as people see them.

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

/** A token of the prompt, from /tokenize with pieces. */
export function fromPiece({ id, piece }) {
  const bytes = typeof piece === "string" ? [...encoder.encode(piece)] : piece;
  return { id, bytes, logprob: null, top: [], generated: false };
}

/** A token with its alternatives, from /v1/completions with logprobs and return_token_ids. */
export function fromEntry({ id, bytes, logprob, top_logprobs: top }, generated) {
  return { id, bytes, logprob, top: top.map((one) => ({ id: one.id, bytes: one.bytes, logprob: one.logprob })), generated };
}

/** The text of a token; of bytes that are no text by themselves their numbers. */
export function textOf({ bytes }) {
  try {
    return strict.decode(new Uint8Array(bytes));
  } catch {
    return `‹${hex(bytes)}›`;
  }
}

/** Its text with marks for what could not be seen. */
export function visible(token) {
  const text = textOf(token).replaceAll("\n", "↵\n").replaceAll("\t", "⇥").replaceAll("\r", "␍");
  return text === "" ? "∅" : text;
}

/** Its text within a sentence. */
export function quoted(token) {
  return `“${textOf(token).replaceAll("\n", "↵")}”`;
}

/** Bytes in hexadecimal. */
export function hex(bytes) {
  return bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
}
