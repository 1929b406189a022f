"""Optional packages: what is missing, and the command that installs it."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pyllm
from pyllm import errors, extras

PACKAGE = Path(pyllm.__file__).parent
REPOSITORY = PACKAGE.parent


@pytest.fixture(autouse=True)
def fresh():
    cached = extras.extras
    cached.cache_clear()
    yield
    cached.cache_clear()


def test_an_extra_is_named_by_its_packages():
    found = extras.extras()
    assert any(one.startswith("typer>=") for one in found["cli"])
    assert any(one.startswith("platformdirs") for one in found["cli"])  # of the extra hub, which cli includes
    assert not [one for requirements in found.values() for one in requirements if one.startswith("pyllm[")]


def test_metadata_say_the_same_as_the_checkout(monkeypatch):
    if not (REPOSITORY / "pyproject.toml").exists():
        pytest.skip("needs a checkout")
    of_checkout = extras._of_checkout()
    lines = [f'{one}; extra == "{name}"' for name, requirements in of_checkout.items() for one in requirements]
    lines.append('uvloop>=0.19; (sys_platform != "win32") and extra == "serve"')
    monkeypatch.setattr(extras.importlib.metadata, "requires", lambda name: ["numpy>=1.26", *lines])
    assert extras._of_metadata() == {name: one for name, one in of_checkout.items() if one}


def test_the_command_installs_what_is_missing(monkeypatch):
    monkeypatch.setattr(extras, "extras", lambda: {"x": ["numpy>=1", "no-such-thing>=2"]})
    assert shlex.split(extras.install_command(extra="x")) == [
        sys.executable, "-m", "pip", "install", "no-such-thing>=2",
    ]  # fmt: skip
    error = extras.missing("this needs it", "one", "two>=3")
    assert isinstance(error, errors.MissingDependencyError)
    assert str(error) == f"this needs it: {sys.executable} -m pip install one 'two>=3'"


def test_an_environment_without_pip_is_told_of_uv(monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    assert extras.install_command("one").startswith("uv pip install --python ")


def test_all_hints_come_from_one_place():
    """There is no release: a command that installs pyllm from an index would fail, or install something else."""
    allowed = {"extras.py", "pypi.py", "discover.py"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "pip install" in node.value:
                assert path.name in allowed or node.value.startswith("Bitmasks from") or "lm-eval" in node.value, path


@pytest.mark.skipif(not (REPOSITORY / "docs").is_dir(), reason="needs a checkout")
def test_no_page_installs_a_release_that_does_not_exist():
    pages = [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "examples").rglob("*.ipynb"),
    ]
    pattern = re.compile(r"""pip install (?:-\S+ )*\\?["']?pyllm\b""")
    assert [path.name for path in pages if pattern.search(path.read_text(encoding="utf-8"))] == []


BARE = """
import importlib.abc, importlib.metadata, json, sys
allowed = {"numpy", "pyllm", "pip"}
class Bare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if path is None and top not in allowed and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
version = importlib.metadata.version
def bare(name):
    if name != "numpy":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = bare
sys.meta_path.insert(0, Bare())
sys.argv = ["pyllm", *sys.argv[1:]]
from pyllm.cli import entry
entry()
"""


def bare(*arguments):
    return subprocess.run([sys.executable, "-c", BARE, *arguments], capture_output=True, text=True, check=False)


def test_doctor_needs_numpy_alone():
    result = bare("doctor")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert any(line.startswith("devices") for line in lines)
    assert "extras      none" in lines
    (cli,) = [line for line in lines if line.startswith("  cli, for the command line: missing.")]
    assert f"{sys.executable} -m pip install" in cli and "typer>=" in cli
    assert any(line.startswith("models      by path only") for line in lines)


def test_devices_need_numpy_alone():
    result = bare("devices")
    assert result.returncode == 0, result.stderr
    assert any(line.startswith("CPU: ") for line in result.stdout.splitlines())


def test_doctor_without_extras_prints_json_and_help():
    result = bare("doctor", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["cache"] is None
    assert any(one.startswith("uvicorn") for one in report["extras"]["serve"]["missing"])
    assert bare("doctor", "--help").returncode == 0
    assert bare("doctor", "--no-such-flag").returncode == 2
    assert bare("list").returncode == 1
