"""Workflows, pinned requirements and the bill of materials: what a release is made with and of."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted(GITHUB.glob("workflows/*.yml"))
SOURCES = REPOSITORY / "llama_cpp_src/llama.cpp"

sys.path.insert(0, str(REPOSITORY / "llama_cpp_src"))

import sbom  # noqa: E402


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.name}:{name}", job)
        for path in WORKFLOWS
        for name, job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].items()
    ]


def test_there_are_workflows():
    assert {path.stem for path in WORKFLOWS} >= {"ci", "wheels", "bump"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(path):
    uses = re.findall(r"uses:\s*(\S+)(.*)", path.read_text(encoding="utf-8"))
    assert uses
    for action, comment in uses:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+(\.\d+)+", comment), f"{action} does not say which version it is"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_permissions_are_read_only_by_default(path):
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}


@pytest.mark.parametrize(("name", "job"), jobs(), ids=[name for name, _ in jobs()])
def test_jobs_are_bounded_and_keep_no_credentials(name, job):
    assert job.get("timeout-minutes"), name
    for step in job["steps"]:
        if "actions/checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


def test_only_the_publishing_jobs_may_write():
    writers = {name for name, job in jobs() if "write" in (job.get("permissions") or {}).values()}
    assert writers == {"wheels.yml:attest", "wheels.yml:publish", "bump.yml:bump"}
    publish = dict(jobs())["wheels.yml:publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["environment"] == "pypi"
    assert "password" not in json.dumps(publish), "trusted publishing stores no token"


@pytest.mark.parametrize("path", sorted(GITHUB.glob("requirements/*.in")), ids=lambda path: path.name)
def test_tools_of_ci_are_pinned_and_hashed(path):
    pinned = path.with_suffix(".txt").read_text(encoding="utf-8")
    blocks = re.findall(r"^([\w.-]+)==([^\s;]+)[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", pinned, re.M)
    names = re.findall(r"^([\w.-]+)==", pinned, re.M)
    assert names and [name for name, _, _ in blocks] == names
    for line in path.read_text(encoding="utf-8").splitlines():
        wanted = re.match(r"([\w.-]+)(?:==(\S+))?", line)
        if wanted:
            versions = {name: version for name, version, _ in blocks}
            assert wanted[1] in versions, f"run uv pip compile again: {wanted[1]} is not in {path.stem}.txt"
            assert wanted[2] in (None, versions[wanted[1]])


def test_declared_requirements_follow_the_extras():
    command = [sys.executable, GITHUB / "requirements/declared.py"]
    core = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    everything = subprocess.run([*command, "all"], capture_output=True, text=True, check=True).stdout.split("\n")
    assert [re.match(r"[\w-]*", line)[0] for line in core if line] == ["numpy"]
    assert set(core) < set(everything) and not [line for line in everything if line.startswith("pyllm")]
    assert any(line.startswith("starlette") for line in everything)


def test_wheels_of_every_platform():
    """`cibuildwheel --print-build-identifiers` for each platform; skipped where cibuildwheel is not installed."""
    program = shutil.which("cibuildwheel", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("cibuildwheel is not installed")
    found = set()
    for platform, archs in (("linux", "x86_64 aarch64"), ("macos", "x86_64 arm64"), ("windows", "AMD64 ARM64")):
        for arch in archs.split():
            command = [program, "--print-build-identifiers", "--platform", platform, "--archs", arch, REPOSITORY]
            found |= set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    tails = ("manylinux_{}", "musllinux_{}")
    linux = {tail.format(arch) for tail in tails for arch in ("x86_64", "aarch64")}
    platforms = linux | {"macosx_x86_64", "macosx_arm64", "win_amd64", "win_arm64"}
    assert found == {f"{python}-{platform}" for python in ("cp311", "cp314t") for platform in platforms}


# ---- what is in a wheel


def test_every_component_has_its_notice():
    notices = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "LICENSES").iterdir())
    for component in sbom.components():
        assert component["notice"] in notices, component["name"]


@pytest.mark.skipif(not SOURCES.is_dir(), reason="needs the sources")
def test_versions_are_those_of_the_sources():
    stated = [component for component in sbom.components() if "macro" in component]
    assert len(stated) >= 2
    for component in stated:
        header, _, macros = component["macro"].partition(": ")
        text = (SOURCES / header).read_text(encoding="utf-8")
        values = [re.search(rf'#define {macro} "?([\w.]+)"?', text)[1] for macro in macros.split()]
        assert ".".join(values) == component["version"], component["name"]


def test_bill_of_materials():
    info = {"build_id": "00", "kind": "portable", "compiler": "c++ 14", "platform": "linux-x86_64"}
    bill = sbom.sbom("pyllm", "1.2.3", info)
    assert bill == sbom.sbom("pyllm", "1.2.3", info), "the same build gives the same file"
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["purl"] == "pkg:pypi/pyllm@1.2.3"
    parts = {part["name"]: part for part in bill["components"]}
    with (REPOSITORY / "llama_cpp_src/PIN.toml").open("rb") as file:
        pin = tomllib.load(file)["llama_cpp"]
    assert parts["llama.cpp"]["version"] == pin["version"]
    assert parts["llama.cpp"]["pedigree"]["commits"][0]["uid"] == pin["commit"]
    assert {"cpp-httplib", "markdown-it", "katex"} <= parts.keys() and all(part["licenses"] for part in parts.values())
