"""pyllm beside other bindings of llama.cpp in one process: both generate, whichever was imported first."""

from __future__ import annotations

import os
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
}
ORDERS = {
    "pyllm first": "first = pyllm_text(); load(); other = text()",
    "other first": "load(); other = text(); first = pyllm_text(); text()",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the wheels that are compared are for Linux"),
]


@pytest.fixture(scope="module", params=sorted(OTHERS))
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of a package, and the Python of an environment with it, NumPy, and what this pyllm needs."""
    folder = tmp_path_factory.mktemp("coexistence")
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "numpy", "platformdirs", "filelock"]
    done = subprocess.run([*install, request.param], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{request.param} cannot be installed: {done.stderr.splitlines()[-1]}")
    return request.param, python


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_both_generate(other: tuple[str, Path], order: str, smollm2_path: Path) -> None:
    name, python = other
    done = subprocess.run(
        [
            python,
            "-c",
            f"import sys\n{PYLLM}\n{OTHERS[name]}\n{ORDERS[order]}\nprint((first, other, pyllm_text()))",
            smollm2_path,
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
