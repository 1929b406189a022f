"""Hooks of the documentation site: files of the repository that pages link to become part of the site."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(
    r"(\]\()((?:\.\./)+)((?:examples|tests|benchmarks|llama_cpp_src)(?:/[\w./-]*)?|[A-Z]+\.md|LICENSE)(#[\w-]*)?(\))"
)


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside docs/, under repository/."""
    linked = set()
    for file in files.documentation_pages():
        folder = Path(str(file.abs_src_path)).parent
        for match in LINK.finditer(file.content_string):
            target = (folder / match[2] / match[3]).resolve()
            linked |= {target} if target.is_file() else {path for path in target.rglob("*") if path.is_file()}
    for path in sorted(linked):
        if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "docs") and "__pycache__" not in path.parts:
            name = path.relative_to(ROOT).as_posix()
            # A page of the repository, such as CONTRIBUTING.md, is shown as text: its own links lead elsewhere.
            name += ".txt" if name.endswith((".md", "LICENSE")) else ""
            files.append(File.generated(config, f"repository/{name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links out of docs/ lead to the copies in the site."""
    folder = Path(str(page.file.abs_src_path)).parent

    def replace(match: re.Match[str]) -> str:
        target = (folder / match[2] / match[3]).resolve()
        if not target.is_relative_to(ROOT) or target.is_relative_to(ROOT / "docs"):
            return match[0]
        if target.is_dir():
            # A folder has no page of its own: its first file stands for it.
            found = sorted(path for path in target.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
            target = found[0]
        name = target.relative_to(ROOT).as_posix() + (".txt" if target.name.endswith((".md", "LICENSE")) else "")
        here = Path(page.file.src_uri).parent
        return f"{match[1]}{os.path.relpath(Path('repository') / name, here)}{match[5]}"

    return LINK.sub(replace, markdown)


ROLE = re.compile(r":(?:meth|class|attr|func|mod|exc|data):(?=(?:<[^>]*>)*<code>)")


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Docstrings name things with Sphinx's roles, which help() and editors know; here the name is enough."""
    return ROLE.sub("", html).replace("<code>~pyllm", "<code>pyllm")
