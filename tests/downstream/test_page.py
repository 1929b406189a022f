"""The page for package authors: written down from the page alone, its packages and programs are built and run."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from docs.pages import ROOT, blocks
from downstream.conftest import ENVIRONMENT, need, run

PAGE = ROOT / "docs/howto/extend.md"
RUNNER = ROOT / "tests/docs/pages.py"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the commands are for a POSIX shell")


def write_files(folder: Path) -> None:
    """Every file that the page shows, with the text that stands on the page."""
    for block in blocks(PAGE):
        if block.note.startswith("quote: tests/downstream/"):
            path = folder / block.note.removeprefix("quote: tests/downstream/")
            path.parent.mkdir(parents=True, exist_ok=True)
            assert not path.exists(), f"{path.name} is shown in two parts"
            path.write_text(block.code + "\n", encoding="utf-8")


@pytest.mark.model
@pytest.mark.timeout(1800)
def test_the_page_is_enough(tmp_path: Path, smollm2_path: Path, tiny_models) -> None:
    need("sh", "cc", "c++", "cmake", "pkg-config", "rustc")
    if find_spec("setuptools") is None:  # importing it fails once another test has imported distutils
        pytest.skip("setuptools is not installed")
    pytest.importorskip("Cython")
    write_files(tmp_path)
    # What `pip install` puts into an environment goes to a folder of its own, and `python` is this one.
    site, programs = tmp_path / "site", tmp_path / "bin"
    programs.mkdir()
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python").chmod(0o755)
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{site}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}",
        "PIP_TARGET": str(site),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_CONSTRAINT": "",
    }
    steps = [block for block in blocks(PAGE) if block.note.startswith("run in:")]
    assert {step.note for step in steps} == {
        f"run in: {name}" for name in ("cython_package", "c_package", "rust_extension", "cmake_program")
    }
    for step in steps:
        run("sh", "-ec", step.code, cwd=tmp_path / step.note.removeprefix("run in: "), **environment)
    for program in ("build/count_tokens", "count_tokens"):
        assert run(tmp_path / "cmake_program" / program, tiny_models["llama"], "the and", cwd=tmp_path)
    run(sys.executable, "-W", "error", RUNNER, PAGE, cwd=tmp_path / "rust_extension", **environment)
