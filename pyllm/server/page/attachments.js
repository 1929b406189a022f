// Text files that go with a message.

import { el } from "./dom.js";

const KIB = 1024;
const LARGEST = 256 * KIB;
const LARGEST_TOGETHER = 512 * KIB;
const MOST = 20;

/** Bytes for people. */
export function sizeText(count) {
  return count < KIB ? `${count} B` : `${(count / KIB).toFixed(count < 10 * KIB ? 1 : 0)} KiB`;
}

/** How many bytes a text has. */
export function sizeOf(text) {
  return new TextEncoder().encode(text).length;
}

/**
 * Read files.
 *
 * @param {File[]} files What was chosen or dropped.
 * @param {Array<{name: string, text: string}>} before What goes with the message already.
 * @returns {Promise<{read: Array<{name: string, text: string}>, problems: string[]}>} What is text, and why others are
 *     left out.
 */
export async function readFiles(files, before) {
  const read = [];
  const problems = [];
  let total = before.reduce((sum, { text }) => sum + sizeOf(text), 0);
  for (const file of files) {
    if (before.length + read.length >= MOST) {
      problems.push(`“${file.name}” was left out: ${MOST} files go with a message.`);
    } else if (file.size > LARGEST) {
      problems.push(`“${file.name}” has ${sizeText(file.size)}; a file may have ${sizeText(LARGEST)}.`);
    } else if (total + file.size > LARGEST_TOGETHER) {
      problems.push(`“${file.name}” was left out: the files of a message may have ${sizeText(LARGEST_TOGETHER)}.`);
    } else {
      const text = await textOf(file);
      if (text === null) problems.push(`“${file.name}” is not text in UTF-8: only text files can be attached.`);
      else read.push({ name: file.name, text });
      if (text !== null) total += file.size;
    }
  }
  return { read, problems };
}

async function textOf(file) {
  let bytes;
  try {
    bytes = await file.arrayBuffer();
  } catch {
    // A folder, or it is gone.
    return null;
  }
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    return text.includes("\0") ? null : text.replace(/\r\n?/g, "\n");
  } catch {
    return null;
  }
}

/** What the model is sent of a file: its name, and its text between marks that do not stand in the text. */
export function fileText({ name, text }) {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([ticks]) => ticks.length));
  const fence = "`".repeat(longest + 1);
  return `File: ${name.replace(/\s+/g, " ")}\n${fence}\n${text.replace(/\n$/, "")}\n${fence}\n`;
}

/** A file of a message that was sent: its name, which opens to its text. */
export function fileView({ name, text }) {
  return el(
    "details.file",
    {},
    el("summary", {}, name, " ", el("small", {}, sizeText(sizeOf(text)))),
    el("pre", { tabindex: "0", role: "region", "aria-label": `Text of ${name}` }, text),
  );
}
