"""The Makefile: what each goal installs, and a checkout that was moved."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which everything is built, as far as make can tell."""
    folder = tmp_path / "checkout"
    (folder / "build/stamps").mkdir(parents=True)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / "llama_cpp_src").mkdir()
    for name in ("Makefile", "pyproject.toml", "setup.py"):
        shutil.copy(REPOSITORY / name, folder / name)
    for name in ("PIN.toml", "fetch.py", "cmake_build.py"):
        shutil.copy(REPOSITORY / "llama_cpp_src" / name, folder / "llama_cpp_src" / name)
    (folder / ".venv/bin/python").touch()
    (folder / "build/stamps/folder").write_text(f"{folder}\n")
    for stamp in ("environment", "build", "install", "environment-tests"):
        (folder / "build/stamps" / stamp).touch()
    return folder


def make(folder: Path, *arguments: str) -> str:
    result = subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def packages(folder: Path, extras: str) -> set[str]:
    """The packages that the Makefile's list of requirements names."""
    rule = f'show: ; @python3 -c "$$REQUIREMENTS" {extras}'
    return {re.split(r"[^\w-]", line)[0] for line in make(folder, "-s", f"--eval={rule}", "show").splitlines()}


def test_running_needs_no_package_of_the_tests(checkout: Path) -> None:
    few, all_ = packages(checkout, "$(PROGRAM_EXTRAS)"), packages(checkout, "")
    assert {"cython", "cmake", "ninja", "numpy", "typer", "platformdirs", "uvicorn"} <= few < all_
    assert {"lm-eval", "pytest", "matplotlib", "mypy"} <= all_ - few
    assert "pyllm" not in all_


def test_goals_install_what_they_use(checkout: Path) -> None:
    (checkout / "build/stamps/environment-tests").unlink()
    said = "installing what the tests need"
    assert said not in make(checkout, "-n", "run")
    assert said not in make(checkout, "-n", "build")
    for goal in ("test", "test-all", "lint", "bench", "asan", "wheel"):
        assert said in make(checkout, "-n", goal), goal


def test_a_second_run_installs_nothing(checkout: Path) -> None:
    assert "installing" not in make(checkout, "-n", "test")


def test_a_moved_checkout_makes_its_environment_anew(checkout: Path) -> None:
    moved = checkout.rename(checkout.with_name("moved"))
    output = make(moved, "-n", "run")
    assert f"this checkout was {checkout} before" in output
    assert not (moved / ".venv").exists()
    for said in ("creating the environment", "installing what the build", "building", "installing pyllm"):
        assert said in output


def test_an_environment_elsewhere_stays(checkout: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "mine/bin"
    elsewhere.mkdir(parents=True)
    (elsewhere / "python").touch()
    moved = checkout.rename(checkout.with_name("moved"))
    make(moved, "-n", "run", f"VENV={elsewhere.parent}")
    assert (elsewhere / "python").exists()
