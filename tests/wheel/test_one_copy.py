"""There is one copy of llama.cpp in the package, and importing it says nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import pyllm.core

CORE = Path(pyllm.core.__file__).parent
PACKAGE = CORE.parent
LIB = PACKAGE / "lib"
EXTENSIONS = sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".so", ".pyd") and path.parent != LIB)
# Upstream's C functions, and its C++ classes and functions as they are mangled.
FOREIGN = re.compile(r"^_?(llama_|ggml_|gguf_|mtmd_)|^_?_ZNK?\d+(llama|ggml|gguf|mtmd|common)_")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nm does not read DLLs")


def symbols(path, *options):
    """Names that `nm` prints for a file, with their types."""
    if shutil.which("nm") is None:
        pytest.skip("there is no nm here")
    output = subprocess.run(["nm", *options, path], capture_output=True, text=True, check=True).stdout
    return [(fields[-2], fields[-1]) for fields in map(str.split, output.splitlines()) if len(fields) >= 2]


def exported(path):
    dynamic = ["-D"] if sys.platform.startswith("linux") else ["-g"]
    return {name.split("@")[0] for kind, name in symbols(path, *dynamic) if kind in "TDBRWVi"}


def imported(path):
    dynamic = ["-D"] if sys.platform.startswith("linux") else ["-g"]
    return {name.split("@")[0] for kind, name in symbols(path, *dynamic) if kind == "U"}


def test_there_is_something_to_look_at():
    names = {path.name.split(".")[0] for path in EXTENSIONS}
    assert {"model", "context", "sampler", "vocab", "batch", "generation", "gguf"} <= names


@pytest.mark.parametrize("path", EXTENSIONS, ids=lambda path: path.name)
def test_no_extension_defines_upstream_symbols(path):
    # All defined symbols, exported or not: a static copy would be local ones.
    defined = {name for kind, name in symbols(path) if kind in "TtDdBbRr"} | exported(path)
    # Every user of a C++ header has its constructors and destructors where they are inline.
    inline = re.compile(r"^_?_ZNK?\d+common_[a-z_]+[CD]\dE")
    assert not sorted(name for name in defined if FOREIGN.match(name) and not inline.match(name))


def test_extensions_do_use_the_libraries():
    used = set().union(*map(imported, EXTENSIONS))
    assert {"llama_decode", "llama_model_load_from_file", "ggml_set_abort_callback"} <= {n.lstrip("_") for n in used}


def test_every_library_appears_once():
    libraries = [path for path in LIB.iterdir() if path.is_file() and not path.is_symlink()]
    stems = Counter(re.sub(r"(\.so|\.dylib|\.dll).*", "", path.name) for path in libraries)
    assert stems
    assert {name: count for name, count in stems.items() if count > 1} == {}
    elsewhere = [path for path in PACKAGE.rglob("lib*") if path.parent != LIB and path.is_file()]
    assert elsewhere == []


def test_every_upstream_function_is_defined_in_one_library():
    where = Counter()
    for path in LIB.iterdir():
        # CPU variants are modules of which one is loaded; they export the same names by design.
        if path.is_file() and not path.is_symlink() and not path.name.startswith("libggml-cpu"):
            where.update({name for name in exported(path) if re.match(r"_?(llama|ggml|gguf|mtmd)_", name)})
    assert where["llama_decode"] + where["_llama_decode"] == 1
    # What every backend module has to define, so that it can be looked up in it.
    entry_points = {"ggml_backend_init", "ggml_backend_score"}
    assert {name for name, count in where.items() if count > 1} <= entry_points


def test_what_the_extensions_export_is_their_init_function_alone():
    for path in EXTENSIONS:
        functions = {n.lstrip("_") for k, n in symbols(path, "-D") if k == "T" and not n.startswith(("_init", "_fini"))}
        assert functions <= {f"PyInit_{path.name.split('.')[0]}"}, path.name


def test_the_process_maps_each_library_once(tiny_models):
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc")
    script = (
        "import sys\nfrom pyllm.core.model import Model\nfrom pyllm.core.context import Context\n"
        "Context(Model(sys.argv[1]), n_ctx=32)\n"
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if '/lib' in line}, sep='\\n')"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, tiny_models["llama"]], capture_output=True, text=True, check=True
    ).stdout.split()
    mapped = Counter(re.sub(r"\.so.*", "", Path(path).name) for path in output if re.search(r"/lib(pyllm|ggml)-", path))
    assert mapped["libpyllm-llama"] == 1 and mapped["libpyllm-ggml-base"] == 1
    assert max(mapped.values()) == 1
    assert all(Path(path).parent == LIB for path in output if re.search(r"/lib(pyllm|ggml)-", path))


def test_importing_says_nothing():
    modules = [f"pyllm.core.{path.name.split('.')[0]}" for path in EXTENSIONS if path.parent == CORE]
    script = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    for order in (modules, modules[::-1]):
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", script, "pyllm", *order], capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("path", [p for p in EXTENSIONS if p.parent == CORE], ids=lambda path: path.name)
def test_every_module_can_be_the_first(path):
    """No module needs another one imported before it."""
    script = f"import pyllm.core.{path.name.split('.')[0]}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_functions_come_from_the_package():
    from pyllm.core import guard

    origins = guard.origins()
    assert set(origins) == {"llama_decode", "ggml_backend_load", "ggml_init"}
    assert {Path(path).resolve().parent for path in origins.values()} == {LIB.resolve()}


@pytest.mark.parametrize("name", ["llama_decode", "ggml_backend_load", "ggml_init"])
def test_functions_of_another_library_are_refused(name, tmp_path):
    """A library loaded with RTLD_GLOBAL comes first in the lookup: its structs may have another layout."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and ELF")
    other = tmp_path / "libother.so"
    command = [compiler, "-shared", "-fPIC", "-xc", "-", "-o", other]
    subprocess.run(command, input=f"int {name}(void) {{ return 0; }}", text=True, check=True)
    script = (
        "import ctypes, sys\n"
        "other = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)\n"
        "try:\n    import pyllm.core.model\nexcept ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, other], capture_output=True, text=True, check=True)
    assert f"pyllm would call {name} of {other}, not of its own libraries in {LIB}" in done.stdout


def test_libraries_have_names_of_their_own():
    """The dynamic linker takes a loaded library, or one of LD_LIBRARY_PATH, for ours if the soname is the same."""
    if shutil.which("readelf") is None or not sys.platform.startswith("linux"):
        pytest.skip("needs readelf and ELF")
    for path in [*LIB.iterdir(), *EXTENSIONS]:
        output = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=True).stdout
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output)
        assert [name for name in needed if re.search("llama|ggml|mtmd", name) and "pyllm-" not in name] == []
        assert not re.search(r"\(SONAME\).*\[lib(llama|mtmd|ggml|ggml-base)\.so", output), path
        # Unique symbols are merged between libraries even where nothing else is shared. Those of std are the same.
        assert not [n for kind, n in symbols(path, "-D") if kind == "u" and not re.match(r"_ZZ?(NK?)?St", n)], path


def test_library_path_does_not_replace_the_libraries(tmp_path, tiny_models):
    """Libraries under upstream's names in LD_LIBRARY_PATH are not looked at."""
    for name in ("libllama.so.0", "libggml.so.0", "libggml-base.so.0", "libllama-common.so.0"):
        (tmp_path / name).write_bytes(b"no library at all")
    script = "import sys\nfrom pyllm.core.model import Model\nprint(Model(sys.argv[1]).n_layer)"
    command = [sys.executable, "-c", script, tiny_models["llama"]]
    done = subprocess.run(
        command, env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
