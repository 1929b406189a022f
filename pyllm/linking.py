"""What another package needs to compile and link against this installation.

In Python through :func:`pyllm.get_include` and its siblings, on the command line without any extra::

    python -m pyllm.linking --cflags        flags for a C or C++ compiler
    python -m pyllm.linking --libs          flags for the linker, with a run path
    python -m pyllm.linking --cmake-dir     for -Dpyllm_DIR=...
    python -m pyllm.linking --pkgconfig-dir for PKG_CONFIG_PATH
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent


def get_include() -> str:
    """The folder with llama.cpp's and ggml's headers, ``pyllm_api.h``, and the headers that the ``.pxd`` files name.

    The one entry that ``include_dirs`` of an extension module needs: Cython itself finds the ``.pxd`` files.
    """
    return str(PACKAGE / "include")


def get_library_dir() -> str:
    """The folder with the shared libraries and the backend modules.

    A program that links to the libraries without Python loads its backends from here:
    ``ggml_backend_load_all_from_path(folder)``.
    """
    return str(PACKAGE / "lib")


def get_libraries() -> list[str]:
    """Names of the libraries for the linker, as in ``libraries=pyllm.get_libraries()``: llama, ggml, ggml-base.

    The names are pyllm's own, so that no other llama.cpp in the process takes their place. An extension module of a
    Python package needs no run path to :func:`get_library_dir` if its package imports ``pyllm.core.model`` first.
    """
    return ["pyllm-llama", "pyllm-ggml", "pyllm-ggml-base"]


def build_info() -> dict[str, Any]:
    """How the libraries of this installation were built.

    Returns:
        dict: "build_id" (str, equal in builds whose ggml structs have the same layout), "llama_cpp_commit", "kind"
        ("native" or "portable"), "compiler", "platform" and "options" (CMake settings, dict of str).
    """
    result: dict[str, Any] = json.loads((PACKAGE / "_build.json").read_text(encoding="utf-8"))
    return result


def _flags(arguments: argparse.Namespace) -> list[str]:
    words: list[str] = []
    if arguments.cflags:
        words.append(f"-I{get_include()}")
    if arguments.libs:
        words += [f"-L{get_library_dir()}", *(f"-l{name}" for name in get_libraries())]
        words += [] if sys.platform == "win32" else [f"-Wl,-rpath,{get_library_dir()}"]
    return words


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pyllm.linking", description="Flags for compilers and linkers.")
    parser.add_argument("--cflags", action="store_true", help="flags for a C or C++ compiler")
    parser.add_argument("--libs", action="store_true", help="flags for the linker, with a run path")
    parser.add_argument("--cmake-dir", action="store_true", help="folder of pyllm-config.cmake")
    parser.add_argument("--pkgconfig-dir", action="store_true", help="folder of pyllm.pc")
    parser.add_argument("--backend-dir", action="store_true", help="folder of the backend modules")
    arguments = parser.parse_args()
    lines = [shlex.join(_flags(arguments))] if arguments.cflags or arguments.libs else []
    lines += [str(PACKAGE / "cmake")] if arguments.cmake_dir else []
    lines += [str(PACKAGE / "pkgconfig")] if arguments.pkgconfig_dir else []
    lines += [get_library_dir()] if arguments.backend_dir else []
    if not lines:
        parser.error("name what to print")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
