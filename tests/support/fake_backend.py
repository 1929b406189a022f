"""A backend whose devices are none (fake_devices.cpp), compiled against the libraries of pyllm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyllm

GGML = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "ggml"
LIBRARIES = Path(pyllm.__file__).parent / "lib"
COMPILER = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))), None)

NEEDED = [
    pytest.mark.skipif(sys.platform != "linux", reason="compiles a shared library for Linux"),
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(not (GGML / "src").is_dir(), reason="llama.cpp's sources are not there"),
]


def build(folder: Path, *, rpath: bool = True) -> Path:
    """Compile the module; without `rpath` it finds ggml only in a process that has loaded it, as a plug-in does."""
    target = folder / "libggml-fake.so"
    command = [str(COMPILER), "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{GGML / 'include'}", f"-I{GGML / 'src'}"]
    command += [str(Path(__file__).with_name("fake_devices.cpp")), "-o", str(target), f"-L{LIBRARIES}"]
    command += ["-lpyllm-ggml", "-lpyllm-ggml-base"]
    command += [f"-Wl,-rpath,{LIBRARIES}"] if rpath else []
    subprocess.run(command, check=True, capture_output=True)
    return target
