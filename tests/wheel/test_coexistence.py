"""pyllm beside bindings of llama.cpp and whisper.cpp in one process: both compute, whichever was imported first."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import pyllm

PYLLM = """
from pyllm import Llama
def pyllm_text():
    global llm
    if "llm" not in globals():
        llm = Llama(sys.argv[1], n_ctx=256, n_threads=1)
    return llm("The capital of France is", max_tokens=4, temperature=0).text
"""
# Each defines load() and text(); text() continues the same prompt greedily.
OTHERS = {
    "xllamacpp": """
def load():
    global server
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = sys.argv[1], 256, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
def text():
    request = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    return server.handle_completions(request)["choices"][0]["text"]
""",
    "cyllama": """
def load():
    global llm_other, config
    from cyllama import LLM, GenerationConfig
    config = GenerationConfig(max_tokens=4, temperature=0.0, n_ctx=256)
    llm_other = LLM(sys.argv[1], config=config)
def text():
    return "".join(llm_other("The capital of France is", config, stream=True))
""",
    "llama-cpp-py-sync": """
def load():
    global llm_other
    from llama_cpp_py_sync import Llama as Other
    llm_other = Other(sys.argv[1], n_ctx=256, n_threads=1)
def text():
    return llm_other.generate("The capital of France is", max_tokens=4, temperature=0.0)
""",
    "llama-cpp-python": """
def load():
    global llm_other
    import llama_cpp
    llm_other = llama_cpp.Llama(sys.argv[1], n_ctx=256, n_threads=1, verbose=False)
def text():
    return llm_other("The capital of France is", max_tokens=4, temperature=0)["choices"][0]["text"]
""",
    # whisper.cpp beside llama.cpp: it transcribes a second of silence with its own ggml.
    "pywhispercpp": """
def load():
    global whisper
    from pywhispercpp.model import Model
    whisper = Model(sys.argv[2], n_threads=1, print_progress=False, redirect_whispercpp_logs_to=None)
def text():
    import numpy
    whisper.transcribe(numpy.zeros(16000, numpy.float32), single_segment=True)
    assert any("/libggml-" in line and "pywhispercpp" in line for line in open("/proc/self/maps"))
    return "Paris"  # there is nothing to say about silence
""",
}
# PyPI has only their sources. Building llama.cpp takes many minutes; pip keeps what it has built.
BUILT = {"llama-cpp-python": "-DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DGGML_OPENMP=OFF"}


def write_whisper(path: Path) -> Path:
    """Write a whisper model without tensors, which whisper.cpp takes for tests: weights of zero."""
    n_vocab, n_mels, n_bins = 51864, 80, 201
    sizes = (n_vocab, 1500, 64, 1, 4, 448, 64, 1, 4, n_mels, 1)
    parts = [struct.pack("<I11i2i", 0x67676D6C, *sizes, n_mels, n_bins), bytes(4 * n_mels * n_bins)]
    parts.append(struct.pack("<i", 1) + struct.pack("<I", 1) + b" ")
    path.write_bytes(b"".join(parts))
    return path


ORDERS = {
    "pyllm first": "first = pyllm_text(); load(); other = text()",
    "other first": "load(); other = text(); first = pyllm_text(); text()",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the wheels that are compared are for Linux"),
]


@pytest.fixture(scope="module", params=sorted(OTHERS))
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of a package, and the Python of an environment with it, NumPy, and what this pyllm needs."""
    folder = tmp_path_factory.mktemp("coexistence")
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "numpy", "platformdirs", "filelock"]
    environment = os.environ | {"CMAKE_ARGS": BUILT.get(request.param, "")}
    install += [f"--no-binary={name}" for name in BUILT]
    done = subprocess.run([*install, request.param], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{request.param} cannot be installed: {done.stderr.splitlines()[-1]}")
    return request.param, python


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_both_compute(other: tuple[str, Path], order: str, smollm2_path: Path, tmp_path: Path) -> None:
    name, python = other
    done = subprocess.run(
        [
            python,
            "-c",
            f"import sys\n{PYLLM}\n{OTHERS[name]}\n{ORDERS[order]}\nprint((first, other, pyllm_text()))",
            smollm2_path,
            write_whisper(tmp_path / "whisper.bin"),
        ],
        env={**os.environ, "PYTHONPATH": str(Path(pyllm.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    if "version `GLIBC_" in done.stderr:
        pytest.skip(f"{name} does not run on this system: it needs a newer glibc than its tag says")
    assert done.returncode == 0, done.stderr[-3000:]
    first, theirs, again = eval(done.stdout.splitlines()[-1])
    assert first == again == " Paris.\n\n"[: len(first)] and first
    assert "Paris" in theirs
