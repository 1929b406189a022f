"""The program, its models and caches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import programs

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages about wrong usage stand in a box; here it is wide enough not to break them."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def pyllm() -> Run:
    """Runs the program within this process."""
    return programs.invoke


@pytest.fixture
def program() -> Run:
    """Runs the program as a user does: in a process of its own."""
    return programs.start


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
