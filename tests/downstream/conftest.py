"""Builds each consumer once, in a folder of its own, with the pyllm that the tests run with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyllm

SOURCES = Path(__file__).parent
# Where this pyllm lies comes first: it may be a checkout that is not installed.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pyllm.__file__).parents[1])}


def run(*command: Any, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`copy(name)`: the sources of a consumer in a new folder."""
    return lambda name: Path(shutil.copytree(SOURCES / name, tmp_path_factory.mktemp("downstream") / name))


@pytest.fixture(scope="session")
def flags() -> Callable[..., list[str]]:
    """`flags("--cflags", "--libs")`: what `python -m pyllm.linking` prints."""
    return lambda *options: run(sys.executable, "-m", "pyllm.linking", *options, cwd=SOURCES).split()
