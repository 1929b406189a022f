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
from pyllm.core import quantize
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


# --- Vulkan, on whatever driver there is; Mesa's lavapipe computes on the CPU ----------------------------------------

COMPARE = """
import json, sys
import numpy as np
from pyllm import Llama
from pyllm.core import backend
from pyllm.core.batch import Batch
from pyllm.core.breakdown import memory_breakdown

result = {"devices": [device.name for device in backend.devices()]}
for name, devices in (("cpu", []), ("vulkan", ["Vulkan0"])):
    with Llama(sys.argv[1], devices=devices, n_gpu_layers=-1, n_ctx=256, n_threads=2) as llm:
        buffers = memory_breakdown(llm.context)
        tokens = np.array(llm.tokenize("The capital of France is Paris, and the capital of"), np.int32)
        llm.context.decode(Batch.from_arrays(tokens, outputs=np.ones(len(tokens), bool)))
        logits = np.array(llm.context.logits, np.float64)
        np.save(sys.argv[2] + f"/{name}.npy", logits)
        llm.reset()
        result[name] = {
            "cache": sorted({buffer.device for buffer in buffers if buffer.context}),
            "weights": {buffer.device: buffer.model for buffer in buffers if buffer.model},
            "text": llm("The capital of France is", max_tokens=12, temperature=0).text,
        }
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def vulkan(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment with pyllm-vulkan in it, as pip installs its wheel."""
    if not [*(REPOSITORY / "build/cmake-vulkan/bin").glob("*ggml-vulkan.*")]:
        pytest.skip("the wheel takes minutes to build: PYLLM_BACKEND=vulkan pip wheel --no-deps -w dist .")
    path = wheel("vulkan", tmp_path_factory.mktemp("vulkan"))
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", path)
    found = devices(python, GGML_VK_VISIBLE_DEVICES="0")
    if "Vulkan0" not in [device["name"] for device in found["devices"]]:
        pytest.skip(f"no Vulkan device: {[one['reason'] for one in found['backends'] if not one['loaded']]}")
    return python


@pytest.fixture(scope="module")
def unquantized(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With quantized weights the CPU's code rounds activations to eight bits, and a GPU's does not."""
    path = tmp_path_factory.mktemp("model") / "smollm2-f32.gguf"
    quantize.quantize(smollm2_path, path, "F32", allow_requantize=True)
    return path


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(3000)
def test_logits_on_vulkan_agree_with_those_on_the_cpu(vulkan: Path, unquantized: Path, tmp_path: Path) -> None:
    printed = run(vulkan, "-c", COMPARE, unquantized, tmp_path, folder=tmp_path, GGML_VK_VISIBLE_DEVICES="0")
    found = json.loads(printed.splitlines()[-1])
    assert found["devices"] == ["Vulkan0", "CPU"]
    assert found["cpu"]["cache"] != found["vulkan"]["cache"] == ["Vulkan0"]
    assert "Vulkan0" not in found["cpu"]["weights"]
    weights = found["vulkan"]["weights"]
    assert weights["Vulkan0"] > 0.6 * sum(weights.values()), "only the token embeddings stay on the host"
    cpu, device = (numpy.load(tmp_path / f"{name}.npy") for name in ("cpu", "vulkan"))
    # Products in half precision: the deviation is far below the spread of the logits, which is about 6.
    assert abs(cpu - device).max() < 0.1, abs(cpu - device).max()
    assert (cpu.argmax(-1) == device.argmax(-1)).all()
    assert found["vulkan"]["text"] == found["cpu"]["text"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_without_the_package_vulkan_is_gone(vulkan: Path) -> None:
    run(vulkan, "-m", "pip", "uninstall", "--quiet", "--yes", "pyllm-vulkan")
    assert [device["name"] for device in devices(vulkan, GGML_VK_VISIBLE_DEVICES="0")["devices"]] == ["CPU"]
