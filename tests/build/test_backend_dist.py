"""Distributions of one backend each: what they declare, and that one that is installed is used until it is removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy
import pytest

from pyllm.backends import discover
from pyllm.version import __version__

REPOSITORY = Path(__file__).resolve().parents[2]
BACKENDS = ("cuda12", "cuda13", "rocm", "rpc", "sycl", "vulkan")

pytestmark = pytest.mark.skipif(not (REPOSITORY / "setup.py").is_file(), reason="needs a checkout")


def run(*command: object, folder: Path = REPOSITORY, **environment: str) -> str:
    result = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


@pytest.mark.parametrize("name", BACKENDS)
def test_metadata(name: str, tmp_path: Path) -> None:
    run(sys.executable, "setup.py", "-q", "dist_info", "-o", tmp_path, PYLLM_BACKEND=name)
    (folder,) = tmp_path.glob("*.dist-info")
    found = metadata.Distribution.at(folder)
    assert (found.name, found.version) == (f"pyllm-{name}", __version__)
    requires = found.requires or []
    assert requires[0] == f"pyllm=={__version__}"
    assert all(one.startswith(("nvidia-cuda-runtime", "nvidia-cublas")) for one in requires[1:])
    assert len(requires) == (3 if name.startswith("cuda") else 1)
    assert [(one.group, one.name, one.value) for one in found.entry_points] == [
        (discover.GROUP, name, f"pyllm_backend_{name}:library")
    ]
    assert "extra" not in "".join(requires)
    assert {path.name for path in folder.rglob("licenses/**/*") if path.is_file()} == {"LICENSE", "llama.cpp.txt"}


def test_extras_name_the_exact_version() -> None:
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    for name in BACKENDS:
        assert extras[name] == [f"pyllm-{name}=={__version__}"]


def test_settings_that_are_refused() -> None:
    for arguments, name, message in (
        (["dist_info", "-o", "/tmp"], "vulcan", "PYLLM_BACKEND='vulcan' is not one of cuda12, "),
        (["build_ext", "--inplace"], "rpc", "Without -e"),
    ):
        result = subprocess.run(
            [sys.executable, "setup.py", "-q", *arguments],
            cwd=REPOSITORY, env={**os.environ, "PYLLM_BACKEND": name}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr


# --- built, installed and removed ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment with nothing but pip, in which this pyllm and NumPy are found."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder)
    inside = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    packages = run(inside, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # NumPy alone, and not what else is installed beside it.
    for path in Path(numpy.__file__).parents[1].glob("numpy*"):
        Path(packages, path.name).symlink_to(path)
    Path(packages, "checkout.pth").write_text(f"{REPOSITORY}\n")
    yield inside


def wheel(name: str, folder: Path) -> Path:
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", folder, ".",
        PYLLM_BACKEND=name,
    )  # fmt: skip
    (path,) = folder.glob("*.whl")
    return path


def devices(python: Path, **environment: str) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = json.loads(
        run(python, "-m", "pyllm", "devices", "--json", folder=python.parent, **environment)
    )
    return found


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_installing_a_wheel_is_all_it_takes(python: Path, tmp_path: Path) -> None:
    path = wheel("rpc", tmp_path)
    assert path.name.startswith(f"pyllm_rpc-{__version__}-py3-none-")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        info = json.loads(archive.read("pyllm_backend_rpc/build.json"))
        (bill,) = [name for name in names if name.endswith("/sboms/pyllm-rpc.cdx.json")]
        assert [part["name"] for part in json.loads(archive.read(bill))["components"]] == ["llama.cpp"]
    assert info["build_id"] == discover.own_build_id()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"pyllm_backend_rpc", "pyllm_rpc"}

    before = devices(python)
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", path)
    loaded = {one["name"]: one["path"] for one in devices(python)["backends"] if one["loaded"]}
    assert "pyllm_backend_rpc" in str(loaded["RPC"])
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "pyllm-rpc")
    after = devices(python)
    assert [one["name"] for one in after["backends"]] == [one["name"] for one in before["backends"]]
