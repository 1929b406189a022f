"""Distributions with one backend each, from the same setup.py: `PYLLM_BACKEND=vulkan pip wheel .` makes pyllm-vulkan.

Such a wheel is py3-none-<platform>: it holds the package `pyllm_backend_<name>` with the backend's module and the
record of its build, and an entry point by which pyllm finds it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import sbom
from cmake_build import ROOT, BuildConfig, CMakeBuild, stop
from setuptools import Command, Distribution
from setuptools.command.bdist_wheel import bdist_wheel


@dataclasses.dataclass(frozen=True)
class Backend:
    """One distribution.

    Attributes:
        module: The module's file name without prefix and suffix, which is CMake's target too.
        cmake: CMake settings.
        hardware: What it computes on, for the description.
        requires: Packages with the libraries that the module is linked to.
        preload: Those libraries, as paths below site-packages, in the order in which they need each other. Of Linux,
            then of Windows; the ones that are missing are left to the linker.
    """

    module: str
    cmake: dict[str, str]
    hardware: str
    requires: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()


# NCCL, for several GPUs, is taken from the machine that builds: the module would not load without it.
CUDA = {"GGML_CUDA": "ON", "GGML_CUDA_NCCL": "OFF"}
BACKENDS = {
    # Wheels for CUDA 12 are built with the 12.8 toolkit, those for CUDA 13 with 13.0: newer runtimes serve them.
    "cuda12": Backend(
        "ggml-cuda",
        CUDA,
        "NVIDIA GPUs (CUDA 12)",
        ("nvidia-cuda-runtime-cu12>=12.8", "nvidia-cublas-cu12>=12.8"),
        (
            "nvidia/cuda_runtime/lib/libcudart.so.12",
            "nvidia/cublas/lib/libcublasLt.so.12",
            "nvidia/cublas/lib/libcublas.so.12",
            "nvidia/cuda_runtime/bin/cudart64_12.dll",
            "nvidia/cublas/bin/cublasLt64_12.dll",
            "nvidia/cublas/bin/cublas64_12.dll",
        ),
    ),
    "cuda13": Backend(
        "ggml-cuda",
        CUDA,
        "NVIDIA GPUs (CUDA 13)",
        ("nvidia-cuda-runtime>=13.0,<14", "nvidia-cublas>=13.0,<14"),
        (
            "nvidia/cu13/lib/libcudart.so.13",
            "nvidia/cu13/lib/libcublasLt.so.13",
            "nvidia/cu13/lib/libcublas.so.13",
            "nvidia/cu13/bin/x86_64/cudart64_13.dll",
            "nvidia/cu13/bin/x86_64/cublasLt64_13.dll",
            "nvidia/cu13/bin/x86_64/cublas64_13.dll",
        ),
    ),
    "vulkan": Backend("ggml-vulkan", {"GGML_VULKAN": "ON"}, "GPUs with a Vulkan driver"),
    "rpc": Backend("ggml-rpc", {"GGML_RPC": "ON"}, "other machines"),
    # Configuration only: pyllm's authors have built and run neither of these two.
    "rocm": Backend("ggml-hip", {"GGML_HIP": "ON"}, "AMD GPUs (ROCm)"),
    "sycl": Backend(
        "ggml-sycl",
        {"GGML_SYCL": "ON", "CMAKE_C_COMPILER": "icx", "CMAKE_CXX_COMPILER": "icpx"},
        "Intel GPUs (SYCL)",
    ),
}
PACKAGE = '''"""The backend {name!r} of pyllm, for {hardware}: pyllm finds it by its entry point."""

from pathlib import Path


def library() -> str:
    """The path of the module."""
    return str(Path(__file__).with_name({file!r}))
'''


def chosen(name: str) -> Backend:
    """The backend that PYLLM_BACKEND names."""
    return BACKENDS.get(name) or stop(f"PYLLM_BACKEND={name!r} is not one of {', '.join(sorted(BACKENDS))}")


class BackendDistribution(Distribution):
    """pyproject.toml describes pyllm; this is what differs for a backend."""

    def parse_config_files(self, *args: Any, **options: Any) -> None:
        super().parse_config_files(*args, **options)
        name = BuildConfig.from_env().backend
        backend, version = chosen(name), self.metadata.version
        self.metadata.name = f"pyllm-{name}"
        self.metadata.description = f"pyllm on {backend.hardware}: the backend {name!r}"
        self.metadata.long_description = f"{self.metadata.description}. It is found once it is installed.\n"
        self.metadata.license_files = [
            path for path in self.metadata.license_files if path.partition("/")[0] in ("LICENSE", "LICENSES")
        ]
        self.install_requires = self.metadata.install_requires = [f"pyllm=={version}", *backend.requires]
        self.extras_require = self.metadata.extras_require = {}
        self.entry_points = {"pyllm.backends": [f"{name} = pyllm_backend_{name}:library"]}
        self.packages, self.package_data = [], {}

    def has_ext_modules(self) -> bool:
        return True


class build_backend(Command):  # noqa: N801, as setuptools names commands
    """Builds the module with CMake and puts the package together; stands in for build_ext."""

    source_tree: Callable[[], Path]
    user_options: ClassVar[list[tuple[str, str, str]]] = [("inplace", "i", "refused")]
    boolean_options: ClassVar[list[str]] = ["inplace"]
    build_lib: Any

    def initialize_options(self) -> None:
        self.build_lib = None  # what is None is taken from the command "build"
        self.inplace = self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        config = BuildConfig.from_env()
        backend = chosen(config.backend)
        if self.inplace or self.editable_mode:
            stop("a backend has no source folder to install from. Without -e, pip makes a wheel and installs that.")
        print(config, flush=True)
        build = CMakeBuild(config, type(self).source_tree(), backend.cmake)
        build.run((backend.module,))
        pattern = rf"(?:lib)?{backend.module}\.(?:so|dylib|dll)"
        (library,) = [path for name, path in build.shipped().items() if re.fullmatch(pattern, name)]
        package = Path(self.build_lib, f"pyllm_backend_{config.backend}")
        shutil.rmtree(package, ignore_errors=True)
        package.mkdir(parents=True)
        shutil.copy2(library, package / library.name)
        text = PACKAGE.format(name=config.backend, hardware=backend.hardware, file=library.name)
        package.joinpath("__init__.py").write_text(text, encoding="utf-8")
        package.joinpath("py.typed").touch()
        info = {**build.describe(), "preload": backend.preload, "requires": backend.requires}
        package.joinpath("build.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")

    def get_outputs(self) -> list[str]:
        return [str(path) for path in Path(self.build_lib).rglob("*") if path.is_file()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []


class backend_wheel(bdist_wheel):  # noqa: N801
    """One wheel serves every Python, since the module does not know Python; it has a bill of materials."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])

    def write_wheelfile(self, wheelfile_base: str, **options: str) -> None:
        super().write_wheelfile(wheelfile_base, **options)
        (recorded,) = Path(self.bdist_dir).glob("pyllm_backend_*/build.json")
        sbom.write(wheelfile_base, self.distribution.metadata, recorded, sbom.components(["llama.cpp"]))


def setup_options(source_tree: Callable[[], Path]) -> dict[str, Any]:
    """The arguments of setup() for the backend that PYLLM_BACKEND names."""
    name = BuildConfig.from_env().backend
    chosen(name)
    build = type("build_backend", (build_backend,), {"source_tree": staticmethod(source_tree)})
    # An .egg-info with an entry point in the source folder would make an installed plug-in of every checkout, and what
    # lies in a folder that distributions share would end up in each one's wheel.
    folder = ROOT / "build" / f"wheel-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "distclass": BackendDistribution,
        "cmdclass": {"build_ext": build, "bdist_wheel": backend_wheel},
        "options": {"egg_info": {"egg_base": str(folder)}, "build": {"build_base": str(folder)}},
    }
