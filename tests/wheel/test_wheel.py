"""The wheel: one file that works in a bare environment of every CPython from 3.11 on."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
VERSIONS = ("3.11", "3.12", "3.13")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not (REPOSITORY / "llama_cpp_src/llama.cpp").is_dir(), reason="needs a checkout in which the sources are"
    ),
]

SMOKE = """
import importlib, pathlib, pkgutil, sys
import pyllm

package = pathlib.Path(pyllm.__file__).parent
assert package.is_relative_to(sys.prefix), package

names = [module.name for module in pkgutil.iter_modules(pyllm.core.__path__, "pyllm.core.")]
modules = [importlib.import_module(name) for name in names]
compiled = [module for module in modules if ".abi3." in module.__file__]
assert len(compiled) >= 10, names

if sys.platform.startswith("linux"):
    lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split(maxsplit=5)[5] for line in lines if "/libpyllm-" in line or "/libggml-" in line}
    assert mapped and all(path.startswith(str(package / "lib")) for path in mapped), mapped

from pyllm.core.model import Model

model = Model(sys.argv[1], vocab_only=True)
tokens = model.vocab.tokenize("Hello world")
assert tokens, tokens
assert "Hello world" in model.vocab.detokenize(tokens)
model.close()
print("works", sys.version_info[:2], len(compiled))
"""


def run(*command: object, **environment: str) -> str:
    """Runs a command far from the source tree, and shows what it said if it fails."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd="/",
        env={**os.environ, "PYTHONPATH": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:]
    return result.stdout


def interpreter(version: str) -> Path | None:
    """An interpreter of that version: this one, or one that pyenv has installed."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return Path(sys.executable)
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return next(iter(sorted(root.glob(f"versions/{version}.*/bin/python"), reverse=True)), None)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout. llama.cpp's build folder is shared with the editable build; the rest is new."""
    folder = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable, REPOSITORY / "setup.py",
        "-q", "egg_info", "--egg-base", folder, "build", "--build-base", folder / "build",
        "bdist_wheel", "--dist-dir", folder / "dist", "--bdist-dir", folder / "bdist",
    )  # fmt: skip
    (path,) = (folder / "dist").glob("*.whl")
    return path


def test_one_wheel_serves_all_versions(wheel: Path) -> None:
    name, _, python, abi, _ = wheel.stem.split("-")
    assert (name, python, abi) == ("pyllm", "cp311", "abi3")


def test_the_wheel_is_whole(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {
        path.relative_to(REPOSITORY / "pyx").with_suffix("").as_posix() for path in (REPOSITORY / "pyx").rglob("*.pyx")
    }
    assert {f"{module}.abi3.so" for module in modules} <= names or sys.platform == "win32"
    for pattern in ("*.py", "*.pyi", "py.typed", "*.html", "*.css", "*.js", "*.svg"):
        for path in (REPOSITORY / "pyllm").rglob(pattern):
            assert f"pyllm/{path.relative_to(REPOSITORY / 'pyllm').as_posix()}" in names
    for path in (REPOSITORY / "pyx/pyllm").rglob("*.hpp"):
        assert f"pyllm/include/pyllm/{path.relative_to(REPOSITORY / 'pyx/pyllm').as_posix()}" in names
    assert {"pyllm/core/__init__.pxd", "pyllm/core/model.pxd", "pyllm/includes/llama.pxd"} <= names
    assert "pyllm/include/llama.h" in names
    assert any(name.startswith("pyllm/lib/") and "llama" in name for name in names)
    assert {name.rpartition("/")[2] for name in names if "/licenses/" in name} == {"LICENSE", "llama.cpp.txt"}
    assert not [name for name in names if name.endswith((".pyx", ".cpp", ".c", ".new"))]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"pyllm"}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_works(wheel: Path, version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    vocabulary = REPOSITORY / "llama_cpp_src/llama.cpp/models/ggml-vocab-llama-bpe.gguf"
    environment = tmp_path / "environment"
    run(python, "-m", "venv", environment)
    inside = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    run(inside, "-m", "pip", "install", "--quiet", wheel)
    assert "works" in run(inside, "-I", "-c", SMOKE, vocabulary)
