"""The lowest versions that pyproject.toml declares, and the constraints that `make lowest` tests with."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / ".github/requirements/declared.py"
# Tools of developers have no lowest version that anybody would use.
TOOLS = ("lint", "dev")
# Distributions of this repository, in exactly its version (test_backend_dist.py).
BACKENDS = ("cuda12", "cuda13", "vulkan", "rocm", "sycl", "rpc")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pyllm_declared_under_test", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(*arguments: str) -> list[Requirement]:
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=True)
    return [Requirement(line) for line in done.stdout.splitlines()]


def requirements(project: dict[str, Any], extras: Iterable[str]) -> list[Requirement]:
    """What the package and extras declare, but for itself."""
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    return [found for text in texts if (found := Requirement(text)).name != project["name"]]


def test_the_constraints_are_the_declared_bounds(project: dict[str, Any]) -> None:
    extras = [name for name in project["optional-dependencies"] if name not in (*TOOLS, *BACKENDS)]
    declared: dict[str, set[Version]] = {}
    for requirement in requirements(project, extras):
        bounds = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
        assert len(bounds) == 1, f"{requirement} needs one lowest version"
        declared.setdefault(canonicalize_name(requirement.name), set()).update(bounds)
    constraints = {
        one.name: [(pin.operator, Version(pin.version)) for pin in one.specifier]
        for one in printed("--lowest", *extras)
    }
    assert constraints == {name: [("==", bound) for bound in bounds] for name, bounds in declared.items()}


def test_all_extras_but_the_heavy_ones_are_tested(project: dict[str, Any]) -> None:
    light = [name for name in project["optional-dependencies"] if name not in (*TOOLS, *BACKENDS, "eval", "llm")]
    assert {str(one) for one in printed("all", "test")} == {str(one) for one in requirements(project, light)}
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert "$(DECLARED) all test" in makefile and "$(DECLARED) --lowest all test" in makefile


@pytest.mark.parametrize(
    ("requirement", "message"),
    [("starlette", "declares no lowest version"), ("numpy>=1.0", "one package has one bound"), ("x<3", "no lowest")],
)
def test_a_bound_that_cannot_be_tested_is_an_error(
    script: ModuleType, project: dict[str, Any], requirement: str, message: str
) -> None:
    changed = {**project, "dependencies": [*project["dependencies"], requirement]}
    with pytest.raises(ValueError, match=message):
        script.lowest(script.declared(changed, ["all", "test"]))


def test_a_job_runs_with_them() -> None:
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    steps = jobs["lowest"]["steps"]
    assert any(step.get("run", "").startswith("make lowest") for step in steps)
    versions = [step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")]
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert [f">={version}" for version in versions] == [declared], "the lowest Python goes with the lowest versions"
