"""The RPC backend for these tests: the installed plug-in, or the module compiled from this checkout's sources."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_backend import COMPILER, GGML, LIBRARIES

from pyllm.backends import discover
from pyllm.core import backend

REPOSITORY = Path(__file__).resolve().parents[2]
# It stays there from one run to the next: a module that was tried once need not be tried again.
FOLDER = REPOSITORY / "build/test-rpc"


def build() -> Path:
    """Compile the module as llama_cpp_src/pyllm.cmake has it, unless it is newer than all it is made of."""
    ours, rpc = REPOSITORY / "llama_cpp_src/rpc", GGML / "src/ggml-rpc"
    target = FOLDER / ("libggml-rpc.dylib" if sys.platform == "darwin" else "libggml-rpc.so")
    parts = [
        *ours.iterdir(),
        *rpc.iterdir(),
        REPOSITORY / "pyx/pyllm/core/rpc_api.h",
        *LIBRARIES.glob("libpyllm-ggml-base*"),
    ]
    if not target.exists() or target.stat().st_mtime < max(path.stat().st_mtime for path in parts):
        FOLDER.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f"{target.name}.{os.getpid()}.new")
        flags = ["-std=gnu++17", "-O1", "-fPIC", "-DNDEBUG", "-D_GNU_SOURCE", "-DGGML_SHARED"]
        flags += ["-DGGML_BACKEND_SHARED", "-DGGML_BACKEND_BUILD", "-DGGML_BACKEND_DL"]
        flags += [f"-I{path}" for path in (GGML / "include", GGML / "src", rpc, REPOSITORY / "pyx/pyllm/core")]
        objects = [f"{new}.transport.o", f"{new}.rpc.o"]
        compile_ = [str(COMPILER), *flags, "-c"]
        subprocess.run([*compile_, str(ours / "transport.cpp"), "-o", objects[0]], check=True)
        forced = ["-include", str(ours / "module.h")]
        subprocess.run([*compile_, *forced, str(rpc / "ggml-rpc.cpp"), "-o", objects[1]], check=True)
        link = [str(COMPILER), "-shared", *objects, f"-L{LIBRARIES}", "-lpyllm-ggml-base", "-o", str(new)]
        subprocess.run(link, check=True)
        for path in objects:
            os.unlink(path)
        new.replace(target)
    (FOLDER / "build.json").write_text(json.dumps({"build_id": discover.own_build_id()}), encoding="utf-8")
    return target


@pytest.fixture(scope="module", autouse=True)
def rpc_backend() -> Iterator[None]:
    """RPC in this process and in those that it starts."""
    if backend.support()["rpc"]:
        yield
        return
    if sys.platform == "win32" or COMPILER is None or not (GGML / "src").is_dir():
        pytest.skip("the RPC backend is not installed, and cannot be compiled here")
    path = build()
    backend.load_backend(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYLLM_BACKEND_PATH", os.pathsep.join(filter(None, (str(path), os.environ.get("PYLLM_BACKEND_PATH"))))
        )
        yield
