"""Markdown pages whose code is run: what the blocks are, and how a page runs.

    python tests/docs/pages.py PAGE.md

runs the Python blocks of a page in order, in one namespace. Comments in the page, right before a fence, steer it:

    <!-- not run -->          the block is shown only
    <!-- with: a b -->        the block needs a server and these packages, and is run by test_clients.py
    <!-- prints -->           a ```text block: exactly what the Python block before it has printed; ... stands for
                              anything, as in doctests
    <!-- quote: some/file --> every line of the block stands in that file, in this order; it is not run
    <!-- run in: some_folder --> a ```sh block that builds the quoted files of that name's folder. Such a page is built
                              and run by tests/downstream/test_page.py
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w+-]*)\s*$")
_COMMENT = re.compile(r"^\s*<!--\s*(?P<text>.*?)\s*-->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: What stands behind the opening fence.
        code: The lines between the fences.
        line: Number of the first of these lines in the page, from 1.
        note: The comment right before the fence, or an empty string.
    """

    language: str
    code: str
    line: int
    note: str

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages that the block needs besides a server; none where it needs no server."""
        return tuple(self.note.removeprefix("with:").split()) if self.note.startswith("with:") else ()

    @property
    def runs(self) -> bool:
        """Whether the block runs with the others of its page."""
        return self.note != "not run" and not self.note.startswith("quote:") and not self.packages


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    note, i = "", 0
    while i < len(lines):
        fence = _FENCE.match(lines[i])
        if fence is None:
            comment = _COMMENT.match(lines[i])
            if comment or lines[i].strip():
                note = comment["text"] if comment else ""
            i += 1
            continue
        start = i + 1
        i = next((n for n in range(start, len(lines)) if lines[n].strip() == "```"), len(lines))
        indent = len(fence["indent"])
        code = "\n".join(line[indent:] for line in lines[start:i])
        yield Block(fence["language"], code, start + 1, note)
        note, i = "", i + 1


def builds(page: Path) -> bool:
    """Whether the page has commands that build what its Python code imports."""
    return any(block.note.startswith("run in:") for block in blocks(page))


def pages() -> list[Path]:
    """README.md and every page below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def run(page: Path) -> None:
    """Run the Python blocks of a page, and compare what they print with what the page says they print."""
    printed = io.StringIO()
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "text" and block.note == "prints":
            _compare(block, printed.getvalue(), page)
        elif block.language == "python" and block.runs:
            printed.seek(0)
            printed.truncate()
            # Line numbers in a traceback are those of the page.
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            # What a block prints was asked for. What libraries write by other ways is left to be seen.
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)


def _compare(block: Block, got: str, page: Path) -> None:
    checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if not checker.check_output(block.code, got, flags):
        raise AssertionError(f"{page}:{block.line}: the page says\n{block.code}\nand printed was\n{got}")


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]))
    except Exception:
        traceback.print_exc()
        sys.exit(1)
