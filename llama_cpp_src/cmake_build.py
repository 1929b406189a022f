"""Builds llama.cpp with its own CMake: the settings, what differs between platforms, and the run itself.

setup.py imports this. The result is one folder of shared libraries, in which backends are loadable modules.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections import deque
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
WINDOWS = sys.platform == "win32"


@dataclasses.dataclass(frozen=True)
class Platform:
    """What differs between operating systems.

    Attributes:
        origin: How an rpath names the folder of the file that is being loaded; empty where there are no rpaths.
        library: Matches the file names by which libraries and backends are looked up at run time.
        compile_args: Compiler flags of the extension modules.
        cmake: Further CMake settings.
    """

    origin: str
    library: str
    compile_args: tuple[str, ...]
    cmake: dict[str, str]


UNIX_FLAGS = ("-O3", "-g0", "-std=c++17", "-fvisibility=hidden")
MODULE = r"(?:lib)?ggml-(?!base)[\w.-]+"
SHARED = r"(?:lib)?pyllm-(?:llama|llama-common|ggml|ggml-base)"
PLATFORMS = {
    "linux": Platform("$ORIGIN", rf"(?:{SHARED}|{MODULE})\.so", UNIX_FLAGS, {}),
    "darwin": Platform(
        "@loader_path",
        rf"{SHARED}\.dylib|{MODULE}\.(?:so|dylib)",
        UNIX_FLAGS,
        {"GGML_METAL_EMBED_LIBRARY": "ON"},
    ),
    "win32": Platform("", rf"(?:{SHARED}|{MODULE})\.dll", ("/O2", "/std:c++17", "/EHsc"), {}),
}
PLATFORM = PLATFORMS.get(sys.platform, PLATFORMS["linux"])
ARCHS = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}

# How one CPU module comes to use all of this machine's processor: (CMake settings, compiler flags). Upstream refuses
# GGML_NATIVE together with loadable backends on x86. There the compiler itself is told, and every feature is left out
# of the list by which the module would be scored, because the features would be asked for one by one.
NO_FEATURES = {f"GGML_{name}": "OFF" for name in ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")}
NATIVE: dict[tuple[str, str], tuple[dict[str, str], tuple[str, ...]]] = {
    ("unix", "x86"): ({"GGML_NATIVE": "OFF", **NO_FEATURES}, ("-march=native",)),
    ("unix", "arm"): ({"GGML_NATIVE": "ON"}, ()),
    ("windows", "x86"): ({"GGML_NATIVE": "OFF", "GGML_CPU_ALL_VARIANTS": "ON"}, ()),
    ("windows", "arm"): ({"GGML_NATIVE": "ON"}, ()),
}
PORTABLE: tuple[dict[str, str], tuple[str, ...]] = ({"GGML_NATIVE": "OFF", "GGML_CPU_ALL_VARIANTS": "ON"}, ())
UNKNOWN: tuple[dict[str, str], tuple[str, ...]] = ({"GGML_NATIVE": "OFF"}, ())
# A distribution of one backend has the code for the CPU in pyllm.
BACKEND: tuple[dict[str, str], tuple[str, ...]] = ({"GGML_NATIVE": "OFF", "GGML_CPU": "OFF"}, ())

COMMON = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "BUILD_SHARED_LIBS": "ON",
    "GGML_BACKEND_DL": "ON",
    # A second OpenMP runtime beside PyTorch's would end the process.
    "GGML_OPENMP": "OFF",
    "GGML_CCACHE": "OFF",
    "LLAMA_BUILD_COMMON": "ON",
    "LLAMA_BUILD_MTMD": "ON",
    **{f"LLAMA_BUILD_{part}": "OFF" for part in ("TESTS", "EXAMPLES", "APP", "UI")},
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_NUMBER": "0",
    # Without git upstream takes the commit we state, not that of the repository around its tree.
    "GIT_EXE": "",
}
# What ccache keeps holds for a checkout in any folder.
CCACHE_ENVIRONMENT = {"CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1"}
TARGETS = ("llama", "llama-common", "ggml")
HEADERS = ("include/llama*.h", "src/llama-ext.h", "ggml/include/*.h")
HEADER_FOLDERS = ("include", "ggml/include", "src", "common", "vendor")
# What a backend module and the libraries must agree on: the layout of ggml's structs.
ABI_HEADERS = ("ggml/include/*.h", "ggml/src/ggml-backend-impl.h", "ggml/src/ggml-impl.h")


def stop(message: str) -> NoReturn:
    """Ends the build with a message instead of a traceback."""
    raise SystemExit(f"\npyllm cannot be built: {message}\n")


def tool(name: str) -> str:
    """Finds `cmake` or `ninja`; the package of that name first, since a venv's bin folder need not be in PATH."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    spec = importlib.util.find_spec(name)
    if spec and spec.origin:
        folders.insert(0, str(Path(spec.origin).parent / "data/bin"))
    found = shutil.which(name, path=os.pathsep.join(folders))
    return found or stop(f"{name} was not found. `pip install {name}` or your system's package of it brings it.")


@dataclasses.dataclass(frozen=True)
class BuildConfig:
    """All settings of a build, from the environment.

    Attributes:
        portable: PYLLM_PORTABLE=1 builds one CPU module per generation of processors; wheels do.
        backend: PYLLM_BACKEND=vulkan builds the distribution of that backend instead of pyllm (backend_dist.py).
        sanitize: PYLLM_SANITIZE=address builds everything with that sanitizer.
        local_source: LLAMA_CPP_SRC, a checkout of llama.cpp to build instead of the pinned sources.
        cmake_args: PYLLM_CMAKE_ARGS, further arguments for CMake, such as -DGGML_CUDA=ON.
        jobs: PYLLM_JOBS, how much is compiled at once.
        ccache: Path of ccache, used when it is there.
    """

    portable: bool
    backend: str
    sanitize: str
    local_source: str
    cmake_args: tuple[str, ...]
    jobs: int
    ccache: str

    @classmethod
    def from_env(cls) -> BuildConfig:
        env = os.environ
        return cls(
            portable=env.get("PYLLM_PORTABLE", "0") not in ("", "0"),
            backend=env.get("PYLLM_BACKEND", ""),
            sanitize=env.get("PYLLM_SANITIZE", ""),
            local_source=env.get("LLAMA_CPP_SRC", ""),
            cmake_args=tuple(shlex.split(env.get("PYLLM_CMAKE_ARGS", ""))),
            jobs=int(env.get("PYLLM_JOBS") or os.cpu_count() or 1),
            ccache=shutil.which("ccache") or "",
        )

    @property
    def name(self) -> str:
        """Builds of different kinds have folders of their own, so that none of them undoes another's work."""
        kind = ("asan" if self.sanitize == "address" else self.sanitize) or self.backend
        kind = kind or ("portable" if self.portable else "native")
        return kind + "-local" * bool(self.local_source)

    @property
    def sanitizer_flags(self) -> tuple[str, ...]:
        return (f"-fsanitize={self.sanitize}", "-fno-omit-frame-pointer", "-g") if self.sanitize else ()

    def __str__(self) -> str:
        values = {"build": self.name, **dataclasses.asdict(self)}
        return "pyllm build configuration\n" + "\n".join(f"  {key}: {value or '-'}" for key, value in values.items())


class CMakeBuild:
    """One build of llama.cpp.

    Attributes:
        source: llama.cpp's tree.
        settings: CMake settings of a backend.
        folder: The build folder.
        libraries: Where libraries and backends end up, below `folder`.
    """

    def __init__(self, config: BuildConfig, source: Path, settings: dict[str, str] | None = None) -> None:
        self.config = config
        self.source = source
        self.settings = settings or {}
        self.folder = ROOT / "build" / f"cmake-{config.name}"
        self.libraries = self.folder / "bin"

    def configure_command(self) -> list[str]:
        system, arch = "windows" if WINDOWS else "unix", ARCHS.get(platform.machine().lower(), "other")
        settings, flags = PORTABLE if self.config.portable else NATIVE.get((system, arch), UNKNOWN)
        if self.config.backend:
            settings, flags = BACKEND
        flags += self.config.sanitizer_flags
        # Failed assertions become exceptions, which pass through ggml's C functions on their way to the caller.
        compilers = {"CMAKE_C_FLAGS": " ".join((*flags, "-fexceptions")), "CMAKE_CXX_FLAGS": " ".join(flags)}
        settings = {
            **COMMON,
            **settings,
            **PLATFORM.cmake,
            **({} if WINDOWS else compilers),
            **{f"CMAKE_{language}_COMPILER_LAUNCHER": self.config.ccache for language in ("C", "CXX")},
            "CMAKE_PROJECT_llama.cpp_INCLUDE": str(ROOT / "llama_cpp_src/pyllm.cmake"),
            "CMAKE_ARCHIVE_OUTPUT_DIRECTORY": str(self.libraries),
            "CMAKE_INSTALL_RPATH": PLATFORM.origin,
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "LLAMA_BUILD_COMMIT": self.commit,
            # Upstream's programs are targets to ask for (`make tools`); our source archives do not carry them.
            "LLAMA_BUILD_TOOLS": "ON" if (self.source / "tools/llama-bench").is_dir() else "OFF",
            "LLAMA_BUILD_SERVER": "ON" if (self.source / "scripts/ui-assets.cmake").is_file() else "OFF",
            **self.settings,
        }
        command = [tool("cmake"), "-G", "Ninja", "-S", str(self.source), "-B", str(self.folder)]
        return [*command, *(f"-D{key}={value}" for key, value in settings.items()), *self.config.cmake_args]

    def run(self, targets: tuple[str, ...] = TARGETS) -> None:
        """Configures and builds, unless the settings are those of the last time and no source has changed since."""
        compilers = (os.environ.get("CXX", "c++"), "g++", "clang++")
        if not WINDOWS and not any(shutil.which(shlex.split(name)[0]) for name in compilers if name):
            stop("no C++ compiler was found. Install one (Debian: apt install g++, macOS: xcode-select --install).")
        self.discard_moved()
        command, stamp = self.configure_command(), self.folder / "pyllm-configured.json"
        # An isolated build has its tools in a folder that is gone afterwards, so their paths are no setting.
        settings = json.dumps(
            [argument for argument in command[1:] if not argument.startswith("-DCMAKE_MAKE_PROGRAM=")]
        )
        if stamp.exists() and stamp.read_text(encoding="utf-8") == settings and self.is_done(targets):
            print(f"llama.cpp: nothing to do in {self.folder.relative_to(ROOT)}", flush=True)
            return
        print(f"llama.cpp: configuring in {self.folder.relative_to(ROOT)}", flush=True)
        self.stream(command, "configuring llama.cpp failed")
        stamp.write_text(settings, encoding="utf-8")
        print(f"llama.cpp: building with {self.config.jobs} jobs (minutes the first time)", flush=True)
        command = [command[0], "--build", str(self.folder), "--parallel", str(self.config.jobs), "--target", *targets]
        self.stream(command, "building llama.cpp failed")

    def discard_moved(self) -> None:
        """Remove a build folder that was made for another place: CMake refuses it, and its commands name that place.

        A checkout that was moved or copied has one. What it had compiled comes back from ccache.
        """
        cache = self.folder / "CMakeCache.txt"
        if not cache.is_file():
            return
        text = cache.read_text(encoding="utf-8", errors="replace")
        for name, place in (("CMAKE_CACHEFILE_DIR", self.folder), ("CMAKE_HOME_DIRECTORY", self.source)):
            found = re.search(rf"^{name}:INTERNAL=(.*)$", text, re.MULTILINE)
            if found is None or not (os.path.exists(found[1]) and os.path.samefile(found[1], place)):
                was = found[1] if found else "another folder"
                print(f"llama.cpp: {self.folder.relative_to(ROOT)} was made for {was}; starting anew", flush=True)
                shutil.rmtree(self.folder)
                return

    def is_done(self, targets: tuple[str, ...]) -> bool:
        """Whether ninja, asked only, finds nothing to do."""
        command = [tool("ninja"), "-C", str(self.folder), "-n", *targets]
        return "no work to do" in subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def stream(self, command: list[str], failure: str) -> None:
        """Runs a command, printing one of its progress lines every two seconds, and all of the end if it fails."""
        environment = {**os.environ, **CCACHE_ENVIRONMENT}
        last: deque[str] = deque(maxlen=80)
        shown = 0.0
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                last.append(line)
                step = re.match(r"\[(\d+)/(\d+)\]", line)
                if step and (step[1] == step[2] or time.monotonic() - shown > 2):
                    shown = time.monotonic()
                    print(f"  llama.cpp {step[0]} {line.split()[-1].rpartition('/')[2]}", flush=True)
        if process.returncode:
            stop(f"{failure}. The command was\n{shlex.join(command)}\nand the last it said was\n{''.join(last)}")

    def shipped(self) -> dict[str, Path]:
        """The libraries that go into pyllm/lib: real files under the one name by which each is looked up."""
        found = (path for path in self.libraries.iterdir() if re.fullmatch(PLATFORM.library, path.name))
        return {path.name: path.resolve() for path in found}

    @property
    def commit(self) -> str:
        """llama.cpp's commit, or "local" for a checkout of the user's."""
        with (ROOT / "llama_cpp_src/PIN.toml").open("rb") as file:
            return "local" if self.config.local_source else tomllib.load(file)["llama_cpp"]["commit"]

    @property
    def build_id(self) -> str:
        """Identifies the layout of ggml's structs: equal in libraries and backend modules that fit each other."""
        digest = hashlib.sha256()
        for path in sorted(path for pattern in ABI_HEADERS for path in self.source.glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        # Definitions that change a struct of these headers.
        abi = [argument for argument in self.config.cmake_args if "GGML_MAX_" in argument or "GGML_SCHED_" in argument]
        digest.update(json.dumps(sorted(abi)).encode())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, object]:
        """How the libraries were built; a build ships it as pyllm/_build.json."""
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        version = "" if WINDOWS else subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
        options = (argument[2:].split("=", 1) for argument in self.configure_command() if argument.startswith("-D"))
        return {
            "build_id": self.build_id,
            "llama_cpp_commit": self.commit,
            "kind": self.config.name,
            "compiler": version.partition("\n")[0],
            "platform": f"{sys.platform}-{platform.machine().lower()}",
            # Paths are those of the machine that built: they mean nothing elsewhere.
            "options": {
                key: value
                for key, value in sorted(options)
                if key.startswith(("GGML_", "CMAKE_C")) and not key.endswith("_LAUNCHER")
            },
        }

    def headers(self) -> dict[str, Path]:
        """The headers that go into pyllm/include."""
        return {path.name: path for pattern in HEADERS for path in sorted(self.source.glob(pattern))}
