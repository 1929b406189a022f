"""Whose code is in the libraries that are shipped, by their symbols, beside the list of components.toml."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TREE = REPOSITORY / "llama_cpp_src/llama.cpp"
FOLDER = REPOSITORY / "pyllm/lib"
LIBRARIES = sorted(path for path in FOLDER.glob("*") if re.search(r"\.(so|dylib)(\.\d+)?$", path.name))
sys.path.insert(0, str(REPOSITORY / "llama_cpp_src"))

import sbom  # noqa: E402

LISTED = [component for component in sbom.components() if "symbols" in component]
# Code of others in llama.cpp's tree that is in no library; one that comes to use it needs a line in components.toml.
UNUSED = {
    "vendor/miniaudio": r"^_?ma_(engine|device|decoder|context)_",
    "vendor/stb": r"^_?stbi_",
    "vendor/hash": r"^_?(SHA1|sha256_|XXH|rotate_)",
}
# Names of the compiler and of its libraries.
COMPILERS = {"std", "__gnu_cxx", "__cxxabiv1", "_GLOBAL__N_1", "__detail", "__1"}

pytestmark = [
    pytest.mark.skipif(not LIBRARIES, reason="looks at an editable build"),
    pytest.mark.skipif(shutil.which("nm") is None or sys.platform == "win32", reason="reads symbols with nm"),
]


@cache
def symbols(path: Path) -> frozenset[str]:
    """What a library defines, exported or not, as the linker names it."""
    names: set[str] = set()
    for options in ([], ["-D"]) if sys.platform.startswith("linux") else ([],):
        output = subprocess.run(["nm", "--defined-only", *options, path], capture_output=True, text=True, check=False)
        names.update(line.split()[-1].split("@")[0] for line in output.stdout.splitlines() if line.strip())
    assert len(names) > 20, f"nm shows nothing of {path}"
    return frozenset(names)


def scopes(path: Path) -> set[str]:
    """The outermost namespaces and classes of what a library defines."""
    found: set[str] = set()
    for name in symbols(path):
        nested = re.match(r"_?_ZN[KV]*(\d+)(\w+)", name)
        if nested:
            found.add(nested[2][: int(nested[1])])
    return found


@cache
def own_names() -> frozenset[str]:
    """Namespaces and classes that llama.cpp's own sources define."""
    names: set[str] = set()
    for folder in ("src", "common", "ggml/src", "ggml/include", "include", "tools/mtmd"):
        for source in (TREE / folder).rglob("*"):
            if source.suffix in (".h", ".hpp", ".c", ".cpp"):
                text = source.read_text(encoding="utf-8", errors="replace")
                names.update(re.findall(r"\b(?:namespace|struct|class|union|enum) +(\w+)", text))
    return frozenset(names)


def licences() -> str:
    return (REPOSITORY / "LICENSES/llama.cpp.txt").read_text(encoding="utf-8")


def matches(path: Path, pattern: str) -> bool:
    return any(re.search(pattern, name) for name in symbols(path))


def test_the_list_names_what_is_there() -> None:
    """Each entry is found by its symbols; else the tests below would hold where nothing is recognised."""
    for component in LISTED:
        assert any(matches(path, component["symbols"]) for path in LIBRARIES), component["name"]


def test_other_code_of_the_tree_is_in_no_library() -> None:
    for folder, pattern in UNUSED.items():
        assert [path.name for path in LIBRARIES if matches(path, pattern)] == [], folder


@pytest.mark.parametrize("path", LIBRARIES, ids=lambda path: path.name)
def test_every_namespace_is_known(path: Path) -> None:
    """A namespace that is neither llama.cpp's own nor listed above is new code of others."""
    unknown = scopes(path) - own_names() - COMPILERS
    patterns = [component["symbols"] for component in LISTED]
    listed = {name for name in unknown if any(re.search(pattern, f"_ZN{len(name)}{name}") for pattern in patterns)}
    assert unknown - listed == set()


def test_every_folder_of_others_is_known() -> None:
    known = {component["folder"] for component in LISTED} | {*UNUSED}
    assert {f"vendor/{path.name}" for path in (TREE / "vendor").iterdir() if path.is_dir()} <= known
    assert all((TREE / folder).is_dir() for folder in known)


def test_notices_are_those_of_the_sources() -> None:
    text = licences()
    assert "Copyright (c) 2017 yhirose" in (TREE / "vendor/cpp-httplib/LICENSE").read_text(encoding="utf-8")
    assert "Copyright (c) 2017 yhirose" in text
    holders = re.findall(
        r"SPDX-FileCopyrightText:[ \d,-]+([^<\n]+)", (TREE / "vendor/nlohmann/json.hpp").read_text(encoding="utf-8")
    )
    assert {holder.strip() for holder in holders if holder.strip() not in text} == set()
