"""The build: its settings, what it refuses and how it says so, and what it leaves in the package."""

from __future__ import annotations

import dataclasses
import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TREE = REPOSITORY / "llama_cpp_src/llama.cpp"
LIBRARIES = REPOSITORY / "pyllm/lib"
EXTENSIONS = sorted((REPOSITORY / "pyllm").rglob("*.abi3.so"))

built = pytest.mark.skipif(not EXTENSIONS, reason="looks at an editable build")
elf = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not (shutil.which("nm") and shutil.which("readelf")),
    reason="reads ELF files with binutils",
)


@pytest.fixture(scope="module")
def cmake_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "pyllm_cmake_build_under_test", REPOSITORY / "llama_cpp_src/cmake_build.py"
    )
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PYLLM_") or name == "LLAMA_CPP_SRC":
            monkeypatch.delenv(name)


def settings_of(cmake_build: ModuleType) -> dict[str, str]:
    """The -D settings that the current environment leads to."""
    build = cmake_build.CMakeBuild(cmake_build.BuildConfig.from_env(), TREE)
    found = (re.fullmatch(r"-D(\w+)=(.*)", argument) for argument in build.configure_command())
    return {match[1]: match[2] for match in found if match}


# --- settings -------------------------------------------------------------------------------------------------------


def test_every_setting_is_read_and_printed(cmake_build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLM_PORTABLE", "1")
    monkeypatch.setenv("PYLLM_SANITIZE", "address")
    monkeypatch.setenv("PYLLM_CMAKE_ARGS", "-DGGML_CUDA=ON '-DCMAKE_CUDA_FLAGS=-a -b'")
    monkeypatch.setenv("PYLLM_JOBS", "3")
    monkeypatch.setenv("LLAMA_CPP_SRC", "/some/where")
    config = cmake_build.BuildConfig.from_env()
    assert (config.portable, config.sanitize, config.jobs) == (True, "address", 3)
    assert config.cmake_args == ("-DGGML_CUDA=ON", "-DCMAKE_CUDA_FLAGS=-a -b")
    for field in dataclasses.fields(config):
        assert f"  {field.name}: " in str(config)


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "native"),
        ({"PYLLM_PORTABLE": "0"}, "native"),
        ({"PYLLM_PORTABLE": "1"}, "portable"),
        ({"PYLLM_SANITIZE": "address"}, "asan"),
        ({"LLAMA_CPP_SRC": "/x"}, "native-local"),
    ],
)
def test_each_kind_of_build_has_its_own_folder(
    cmake_build: ModuleType, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], name: str
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    build = cmake_build.CMakeBuild(cmake_build.BuildConfig.from_env(), TREE)
    assert build.folder == REPOSITORY / "build" / f"cmake-{name}"


def test_backends_are_modules_and_openmp_stays_out(cmake_build: ModuleType) -> None:
    settings = settings_of(cmake_build)
    assert settings["GGML_BACKEND_DL"] == settings["BUILD_SHARED_LIBS"] == "ON"
    assert settings["GGML_OPENMP"] == "OFF"
    with (REPOSITORY / "llama_cpp_src/PIN.toml").open("rb") as file:
        assert settings["LLAMA_BUILD_COMMIT"] == tomllib.load(file)["llama_cpp"]["commit"]


def test_a_portable_build_has_variants_and_asks_nothing_of_this_machine(
    cmake_build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = settings_of(cmake_build)
    monkeypatch.setenv("PYLLM_PORTABLE", "1")
    portable = settings_of(cmake_build)
    assert portable["GGML_CPU_ALL_VARIANTS"] == "ON"
    assert portable["GGML_NATIVE"] == "OFF"
    assert "native" not in portable.get("CMAKE_C_FLAGS", "") + portable.get("CMAKE_CXX_FLAGS", "")
    if not cmake_build.WINDOWS:
        assert "GGML_CPU_ALL_VARIANTS" not in native
        # Exceptions must be able to pass through C functions in either.
        assert "-fexceptions" in portable["CMAKE_C_FLAGS"].split()
        assert "-fexceptions" in native["CMAKE_C_FLAGS"].split()


@pytest.mark.parametrize(
    ("system", "shipped", "not_shipped"),
    [
        (
            "linux",
            "libpyllm-llama.so libpyllm-ggml.so libpyllm-ggml-base.so libggml-cpu.so libggml-cpu-haswell.so "
            "libpyllm-llama-common.so",
            "libllama.so.0 libggml-base.so libpyllm-mtmd.so libllama-bench-impl.so llama-bench libvendor-hash.a",
        ),
        (
            "darwin",
            "libpyllm-llama.dylib libpyllm-ggml-base.dylib libggml-cpu-apple_m1.so libggml-metal.so "
            "libpyllm-llama-common.dylib",
            "libllama.dylib libllama.0.5.0.dylib libggml-base.dylib libpyllm-mtmd.dylib",
        ),
        (
            "win32",
            "pyllm-llama.dll pyllm-ggml.dll pyllm-ggml-base.dll ggml-cpu-haswell.dll pyllm-llama-common.dll",
            "llama-bench.exe llama.lib",
        ),
    ],
)
def test_what_is_shipped_on_each_platform(cmake_build: ModuleType, system: str, shipped: str, not_shipped: str) -> None:
    pattern = cmake_build.PLATFORMS[system].library
    assert [name for name in shipped.split() if not re.fullmatch(pattern, name)] == []
    assert [name for name in not_shipped.split() if re.fullmatch(pattern, name)] == []


# --- what the build refuses ------------------------------------------------------------------------------------------


def run_setup(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of the repository that a build starts from, without sources of llama.cpp."""
    folder = tmp_path / "checkout"
    shutil.copytree(REPOSITORY / "pyx", folder / "pyx")
    (folder / "llama_cpp_src").mkdir()
    (folder / "pyllm").mkdir()
    names = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "pyllm/version.py"]
    names += [
        path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("llama_cpp_src/*.*") if path.is_file()
    ]
    for name in names:
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


def assert_one_message(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 1
    assert result.stderr.count("pyllm cannot be built:") == 1
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


def test_without_a_source_tree(checkout: Path) -> None:
    result = run_setup(checkout, PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(checkout))
    assert_one_message(result, "LLAMA_CPP_SRC", "llama_cpp_src/fetch.py", str(checkout / "llama_cpp_src/llama.cpp"))
    assert not (checkout / "build").exists()


def test_with_a_local_folder_that_is_no_tree(checkout: Path, tmp_path: Path) -> None:
    assert_one_message(run_setup(checkout, LLAMA_CPP_SRC=str(tmp_path)), str(tmp_path), "CMakeLists.txt is missing")


@pytest.mark.skipif(sys.platform == "win32", reason="CMake finds the compiler there")
def test_without_a_compiler(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cmake", "ninja"):
        (tools / name).symlink_to("/bin/true")
    result = run_setup(checkout, PATH=str(tools), CXX="", LLAMA_CPP_SRC=str(TREE))
    assert_one_message(result, "no C++ compiler was found")


def test_without_cmake(cmake_build: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"no-such-cmake was not found\. `pip install no-such-cmake`"):
        cmake_build.tool("no-such-cmake")


def test_a_failing_command_shows_what_it_said(cmake_build: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    build = cmake_build.CMakeBuild(cmake_build.BuildConfig.from_env(), TREE)
    program = "print('[1/2] Building a.cpp.o'); print('a.cpp:1: error: no'); raise SystemExit(3)"
    with pytest.raises(SystemExit, match=r"(?s)building failed.*a\.cpp:1: error: no"):
        build.stream([sys.executable, "-c", program], "building failed")
    assert "llama.cpp [1/2] a.cpp.o" in capfd.readouterr().out


# --- a checkout that was moved or copied -----------------------------------------------------------------------------

NO_LLAMA = """\
cmake_minimum_required(VERSION 3.15)
project(nothing NONE)
foreach(name llama llama-common mtmd ggml)
    file(WRITE ${CMAKE_BINARY_DIR}/made-for.txt "${CMAKE_SOURCE_DIR}")
    add_custom_target(${name})
endforeach()
"""


@pytest.fixture
def build_in(cmake_build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Builds with the real CMake in a checkout whose llama.cpp has nothing to compile; returns the build folder."""

    def build(checkout: Path) -> Path:
        monkeypatch.setattr(cmake_build, "ROOT", checkout)
        made = cmake_build.CMakeBuild(cmake_build.BuildConfig.from_env(), checkout / "llama.cpp")
        made.run()
        return made.folder

    return build


@pytest.fixture
def small_checkout(tmp_path: Path) -> Path:
    checkout = tmp_path / "first"
    (checkout / "llama.cpp").mkdir(parents=True)
    (checkout / "llama.cpp/CMakeLists.txt").write_text(NO_LLAMA)
    shutil.copytree(
        REPOSITORY / "llama_cpp_src", checkout / "llama_cpp_src", ignore=shutil.ignore_patterns("llama.cpp")
    )
    return checkout


@pytest.mark.parametrize("copied", [False, True], ids=["moved", "copied"])
def test_a_checkout_that_was_moved_or_copied_builds(
    build_in: Callable[[Path], Path], small_checkout: Path, copied: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    build_in(small_checkout)
    second = small_checkout.with_name("second")
    if copied:
        shutil.copytree(small_checkout, second)
    else:
        small_checkout.rename(second)
    capfd.readouterr()
    folder = build_in(second)
    assert f"was made for {small_checkout}" in capfd.readouterr().out
    assert (folder / "made-for.txt").read_text() == str(second / "llama.cpp")
    assert str(small_checkout) not in (folder / "build.ninja").read_text()


def test_a_checkout_that_stayed_keeps_its_build(
    build_in: Callable[[Path], Path], small_checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = build_in(small_checkout)
    (folder / "an-object.o").touch()
    link = small_checkout.with_name("link")
    link.symlink_to(small_checkout)
    for checkout in (small_checkout, link):  # another name of the same folder is no other place
        build_in(checkout)
        assert (folder / "an-object.o").exists()
    assert "was made for" not in capfd.readouterr().out


# --- what a build leaves ---------------------------------------------------------------------------------------------


@built
def test_libraries_are_real_files_under_their_run_time_names() -> None:
    names = {path.name for path in LIBRARIES.iterdir()}
    assert not any(path.is_symlink() for path in LIBRARIES.iterdir())
    if sys.platform.startswith("linux"):
        assert {f"libpyllm-{name}.so" for name in ("llama", "llama-common", "ggml", "ggml-base")} <= names
        assert any(name.startswith("libggml-cpu") for name in names)


@built
@elf
def test_there_is_one_copy_of_llama_cpp() -> None:
    """No extension defines what the libraries define, so there is one copy of llama.cpp in a process."""
    for extension in EXTENSIONS:
        output = subprocess.run(
            ["nm", "--dynamic", "--defined-only", str(extension)], capture_output=True, text=True, check=True
        ).stdout
        symbols = [line.split()[-1] for line in output.splitlines()]
        assert [name for name in symbols if name.startswith(("llama_", "ggml_", "gguf_", "mtmd_"))] == []
        assert f"PyInit_{extension.name.partition('.')[0]}" in symbols


@built
@elf
def test_everything_is_found_beside_the_package() -> None:
    def dynamic(path: Path) -> str:
        return subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout

    for library in LIBRARIES.iterdir():
        assert re.findall(r"R(?:UN)?PATH.*\[(.*)\]", dynamic(library)) == ["$ORIGIN"], library.name
    for extension in EXTENSIONS:
        up = "/..".join([""] * (len(extension.relative_to(REPOSITORY / "pyllm").parts)))
        assert re.findall(r"R(?:UN)?PATH.*\[(.*)\]", dynamic(extension)) == [f"$ORIGIN{up}/lib"], extension.name


@built
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_maps_only_our_libraries() -> None:
    modules = [".".join(path.relative_to(REPOSITORY).parts)[: -len(".abi3.so")] for path in EXTENSIONS]
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "lines = open('/proc/self/maps').read().splitlines()\n"
        "ours = [line for line in lines if '/libpyllm-' in line or '/libggml-' in line]\n"
        "print(*{line.split(maxsplit=5)[5] for line in ours}, sep='\\n')"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, *modules], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    mapped = {Path(line) for line in output.split()}
    assert {path.parent for path in mapped} == {LIBRARIES}
    assert LIBRARIES / "libpyllm-llama.so" in mapped


def private_declarations() -> set[str]:
    """What setup.py names as not shipped."""
    text = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    found: set[str] = ast.literal_eval(re.search(r"^PRIVATE = (\{.*?\})", text, re.MULTILINE | re.DOTALL)[1])
    return found


@built
def test_headers_and_declarations_are_shipped() -> None:
    headers = {path.name for path in (REPOSITORY / "pyllm/include").iterdir()}
    assert {"llama.h", "llama-ext.h", "ggml.h", "ggml-backend.h", "ggml-cpu.h", "gguf.h"} <= headers
    assert (REPOSITORY / "pyllm/include/llama.h").read_bytes() == (TREE / "include/llama.h").read_bytes()
    pyx, package = REPOSITORY / "pyx/pyllm", REPOSITORY / "pyllm"
    for path in pyx.rglob("*.hpp"):
        assert (package / "include/pyllm" / path.relative_to(pyx)).read_bytes() == path.read_bytes()
    for path in pyx.rglob("*.pxd"):
        if path.stem not in private_declarations():
            source = pyx / "core/public.pxd" if path == pyx / "core/__init__.pxd" else path
            assert (package / path.relative_to(pyx)).read_bytes() == source.read_bytes()


@built
def test_the_licence_that_ships_holds_upstreams() -> None:
    ours = (REPOSITORY / "LICENSES/llama.cpp.txt").read_text()
    assert (TREE / "LICENSE").read_text().strip() in ours
