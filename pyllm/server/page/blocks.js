// The blocks of a Markdown text: headings, code, lists, quotes, tables, paragraphs.

const DEEPEST = 8;
const FENCE = /^( {0,3})(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(\S.*)$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])( {1,4}|$)/;
const CELL = /^:?-+:?$/;

/**
 * Parse a text.
 *
 * @param {string} source The text.
 * @returns {Array<object>} Blocks in order. Each has a `kind`, `start`: where it begins in the text, and `source`.
 */
export function parseBlocks(source) {
  return parse(source, 0);
}

function parse(source, depth) {
  const lines = source.replaceAll("\t", "    ").split("\n");
  const starts = [];
  let offset = 0;
  for (const line of source.split("\n")) {
    starts.push(offset);
    offset += line.length + 1;
  }
  const blocks = [];
  for (let i = 0; i < lines.length; ) {
    if (!lines[i].trim()) {
      i++;
      continue;
    }
    const { block, next } = read(lines, i, depth);
    block.start = starts[i];
    block.source = lines.slice(i, next).join("\n");
    blocks.push(block);
    i = next;
  }
  return blocks;
}

function read(lines, i, depth) {
  const line = lines[i];
  const fence = FENCE.exec(line);
  if (fence) return readCode(lines, i, fence);
  const heading = HEADING.exec(line);
  if (heading) return { block: { kind: "heading", level: heading[1].length, text: stripHashes(heading[2]) }, next: i + 1 };
  if (RULE.test(line)) return { block: { kind: "rule" }, next: i + 1 };
  if (depth < DEEPEST && QUOTE.test(line)) return readQuote(lines, i, depth);
  if (depth < DEEPEST && ITEM.test(line)) return readList(lines, i, depth);
  if (i + 1 < lines.length && isTable(line, lines[i + 1])) return readTable(lines, i);
  let next = i + 1;
  while (next < lines.length && lines[next].trim() && !interrupts(lines[next], depth)) next++;
  return { block: { kind: "text", text: lines.slice(i, next).join("\n").trim() }, next };
}

function interrupts(line, depth) {
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (depth >= DEEPEST) return false;
  const item = ITEM.exec(line);
  return QUOTE.test(line) || (item !== null && item[3] !== "" && /^(?:[-*+]|1[.)])$/.test(item[2]));
}

function stripHashes(text) {
  let end = text.trimEnd();
  let cut = end.length;
  while (cut > 0 && end[cut - 1] === "#") cut--;
  if (cut === 0 || end[cut - 1] === " ") end = end.slice(0, cut);
  return end.trimEnd();
}

function readCode(lines, i, fence) {
  const indent = fence[1].length;
  const mark = fence[2];
  const inside = [];
  let next = i + 1;
  for (; next < lines.length; next++) {
    const line = lines[next];
    const bare = line.trim();
    if (bare.length >= mark.length && bare === mark[0].repeat(bare.length) && line.search(/\S/) < 4) {
      next++;
      break;
    }
    const blanks = line.search(/\S|$/);
    inside.push(line.slice(Math.min(indent, blanks)));
  }
  return { block: { kind: "code", language: fence[3].trim().split(/\s/, 1)[0], text: inside.join("\n") }, next };
}

function readQuote(lines, i, depth) {
  const inside = [];
  let next = i;
  while (next < lines.length && QUOTE.test(lines[next])) inside.push(lines[next++].replace(QUOTE, ""));
  return { block: { kind: "quote", blocks: parse(inside.join("\n"), depth + 1) }, next };
}

function readList(lines, i, depth) {
  const first = ITEM.exec(lines[i]);
  const ordered = /\d/.test(first[2]);
  const indent = first[1].length;
  const items = [];
  let loose = false;
  let next = i;
  let item = null;
  let content = 0;
  for (; next < lines.length; next++) {
    const line = lines[next];
    if (!line.trim()) {
      // A blank line ends the list, unless what follows belongs to it.
      let after = next + 1;
      while (after < lines.length && !lines[after].trim()) after++;
      if (after === lines.length || !belongs(lines[after], indent, content, ordered)) break;
      item.push("");
      continue;
    }
    const match = ITEM.exec(line);
    const nested = item !== null && match && match[1].length >= content;
    if (match && !nested && match[1].length >= indent && /\d/.test(match[2]) === ordered) {
      if (RULE.test(line)) break;
      if (item?.at(-1) === "") loose = true;
      content = match[1].length + match[2].length + Math.max(1, match[3].length);
      item = [line.slice(content)];
      items.push(item);
    } else if (line.search(/\S/) >= content) {
      item.push(line.slice(content));
    } else if (match || interrupts(line, depth) || item.at(-1) === "") {
      break;
    } else {
      item.push(line.trimStart());
    }
  }
  const parsed = items.map((one) => parse(one.join("\n"), depth + 1));
  return { block: { kind: "list", ordered, first: ordered ? parseInt(first[2], 10) : 1, loose, items: parsed }, next };
}

function belongs(line, indent, content, ordered) {
  if (line.search(/\S/) >= content) return true;
  const match = ITEM.exec(line);
  return match !== null && match[1].length >= indent && /\d/.test(match[2]) === ordered && !RULE.test(line);
}

function isTable(line, below) {
  if (!line.includes("|") || !below.includes("-")) return false;
  const under = cellsOf(below);
  return under.every((cell) => CELL.test(cell)) && under.length === cellsOf(line).length;
}

function readTable(lines, i) {
  const head = cellsOf(lines[i]);
  const align = cellsOf(lines[i + 1]).map((cell) =>
    cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "",
  );
  const rows = [];
  let next = i + 2;
  for (; next < lines.length && lines[next].trim() && lines[next].includes("|"); next++) {
    const cells = cellsOf(lines[next]);
    rows.push(head.map((_, n) => cells[n] ?? ""));
  }
  return { block: { kind: "table", head, align, rows }, next };
}

function cellsOf(line) {
  const cells = [""];
  const text = line.trim();
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "\\" && text[i + 1] === "|") cells[cells.length - 1] += text[++i];
    else if (text[i] === "|") cells.push("");
    else cells[cells.length - 1] += text[i];
  }
  if (text.startsWith("|")) cells.shift();
  if (text.endsWith("|") && cells.length > 1) cells.pop();
  return cells.map((cell) => cell.trim());
}
