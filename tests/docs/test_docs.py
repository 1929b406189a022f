"""The documentation is true: its code runs, its output is what is printed, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from docs.pages import ROOT, Block, blocks, builds, pages

RUNNER = Path(__file__).with_name("pages.py")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Pages whose links and quotations are checked; of these, CONTRIBUTING and CHANGELOG are not run.
LINKED = [*pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
MODULES = sorted(
    path.relative_to(folder).with_suffix("").as_posix().replace("/", ".")
    for folder, pattern in ((ROOT / "pyx", "**/*.pyx"), (ROOT, "pyllm/**/*.py"))
    for path in folder.glob(pattern)
    if path.stem not in ("__init__", "__main__")
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def has_code(page: Path) -> bool:
    return any(block.language == "python" and block.runs for block in blocks(page))


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "COLUMNS": "100"}
    return subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1700
    )


@pytest.mark.model
@pytest.mark.timeout(1800)  # a page is a program of its own; on a busy machine it takes many minutes
@pytest.mark.usefixtures("smollm2_path")
@pytest.mark.parametrize("page", [p for p in pages() if has_code(p) and not builds(p)], ids=name_of)
def test_page_runs(page: Path, tmp_path: Path) -> None:
    done = run([sys.executable, "-W", "error", str(RUNNER), str(page)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.model
@pytest.mark.timeout(1800)  # a page is a program of its own; on a busy machine it takes many minutes
@pytest.mark.usefixtures("smollm2_path")
@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    done = run([sys.executable, "-W", "error", str(example)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.strip()


def shell_lines() -> list[tuple[Path, str]]:
    """The lines of shell blocks that call the program."""
    return [
        (page, line)
        for page in pages()
        for block in blocks(page)
        if block.language == "sh" and block.runs
        for line in block.code.splitlines()
        if re.search(r"(^|\| )pyllm ", line)
    ]


@pytest.mark.model
@pytest.mark.timeout(1800)  # a page is a program of its own; on a busy machine it takes many minutes
@pytest.mark.usefixtures("smollm2_path")
@pytest.mark.skipif(os.name == "nt", reason="the lines are for a POSIX shell")
@pytest.mark.parametrize("line", sorted({line for _, line in shell_lines()}))
def test_command_line_runs(line: str, tmp_path: Path) -> None:
    pytest.importorskip("typer")
    program = shlex.join([sys.executable, "-W", "error", "-m", "pyllm"])
    done = run(["sh", "-c", f'pyllm() {{ {program} "$@"; }}; {line}'], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@cache
def anchors(page: Path) -> set[str]:
    """What `#…` can mean in a page: its headings, spelled as GitHub spells them."""
    found = set()
    fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        fenced ^= line.lstrip().startswith("```")
        heading = re.match(r"#+ (.*)", line)
        if heading and not fenced:
            text = re.sub(r"[^\w\- ]", "", heading[1].lower())
            found.add(text.replace(" ", "-"))
    return found


def links(page: Path) -> list[str]:
    """Targets of links and images, those in code left out."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_linked() -> None:
    """Who starts at README.md reaches every page."""
    seen: set[Path] = set()
    left = [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page in seen:
            continue
        seen.add(page)
        targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if "://" not in link]
        left += [target for target in targets if target.suffix == ".md" and target.exists()]
    assert [name_of(page) for page in pages() if page not in seen] == []


def quotations() -> list[tuple[Path, Block]]:
    return [(page, block) for page in LINKED for block in blocks(page) if block.note.startswith("quote:")]


@pytest.mark.parametrize(
    ("page", "block"), [pytest.param(page, block, id=f"{name_of(page)}:{block.line}") for page, block in quotations()]
)
def test_quotations_are_true(page: Path, block: Block) -> None:
    """A block that shows code of this repository shows what is there: each line, in this order."""
    text = (ROOT / block.note.removeprefix("quote:").strip()).read_text(encoding="utf-8")
    rest = [line.strip() for line in text.splitlines()]
    for line in filter(None, map(str.strip, block.code.splitlines())):
        assert line in rest, f"{page.name}:{block.line} shows a line that is not in {block.note}: {line}"
        rest = rest[rest.index(line) + 1 :]


def test_reference_names_every_module() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert [module for module in MODULES if f"`{module}`" not in text] == []


def prefix_rows() -> list[tuple[str, str]]:
    """The rows of the table of C prefixes: (prefix, module)."""
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `(\w+?_)\*` \| `(pyllm\.[\w.]+)` \|", text, re.MULTILINE)


def test_there_are_prefix_rows() -> None:
    assert len(prefix_rows()) > 10


@pytest.mark.parametrize(("prefix", "module"), prefix_rows())
def test_prefix_table_is_true(prefix: str, module: str) -> None:
    source = ROOT / "pyx" / Path(*module.split(".")).with_suffix(".pyx")
    assert prefix in source.read_text(encoding="utf-8")
