"""Runs the program as a user does: in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-m", "pyllm"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pyllm() -> Run:
    """Runs the program to its end; standard input is empty unless `input` is given."""

    def run(*arguments: str | Path, input: str = "", **options: object) -> subprocess.CompletedProcess[str]:
        command = [*PROGRAM, *map(str, arguments)]
        return subprocess.run(  # type: ignore[call-overload]
            command, input=input, capture_output=True, text=True, encoding="utf-8", timeout=300, **options
        )

    return run


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without models, and an index that cannot be reached."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PYLLM_CACHE", str(folder))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model, in the user's cache."""
    from pyllm import hub

    return hub.pull("smollm2")
