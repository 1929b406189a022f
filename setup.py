"""Builds pyllm: llama.cpp with its own CMake, then the extension modules of pyx/ with Cython.

`pip install .`, `pip install -e .` and `python -m build` all end here. Settings come from the environment and are
listed at BuildConfig in llama_cpp_src/cmake_build.py.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel as _bdist_wheel
from setuptools.command.build_ext import build_ext as _build_ext
from setuptools.command.sdist import sdist as _sdist

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "llama_cpp_src"))

import backend_dist  # noqa: E402
import fetch  # noqa: E402
import sbom  # noqa: E402
from cmake_build import CCACHE_ENVIRONMENT, HEADER_FOLDERS, PLATFORM, WINDOWS, BuildConfig, CMakeBuild, stop  # noqa: E402

PYX = Path("pyx")
LIBRARIES = ("pyllm-llama", "pyllm-ggml", "pyllm-ggml-base")
# What single extension modules need beyond the rest: module -> {attribute of Extension: values}.
WITH_COMMON = {"libraries": ["pyllm-llama-common"]}
EXTRAS: dict[str, dict[str, list[str]]] = {
    "pyllm.core.chat": WITH_COMMON,
    "pyllm.core.common": WITH_COMMON,
    "pyllm.core.fit": WITH_COMMON,
    "pyllm.core.grammar": WITH_COMMON,
    "pyllm.core.reasoning": WITH_COMMON,
    "pyllm.core.speculative": WITH_COMMON,
}

# Declarations of llama.cpp's C++ headers in common/, which are not shipped, and what is declared with them.
PRIVATE = {"chat", "common", "fit", "json_schema_to_grammar", "public", "speculative", "speculative_generation"}
# Other packages see the classes in the package itself. Our own modules must not: see there.
SHIPPED_AS = {PYX / "pyllm/core/__init__.pxd": PYX / "pyllm/core/public.pxd"}

# One binary serves CPython 3.11 and every later one, except for free-threaded builds, which have no stable ABI.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
ABI = str(sysconfig.get_config_var("SOABI")) if FREE_THREADED else "abi3"
LIMITED = {} if FREE_THREADED else {"py_limited_api": True, "define_macros": [("Py_LIMITED_API", "0x030B0000")]}
DIRECTIVES = {
    "language_level": 3,
    "binding": True,
    "auto_pickle": False,  # what can be pickled says so itself
    "freethreading_compatible": FREE_THREADED,
}


def source_tree() -> Path:
    """llama.cpp's sources, fetched when they are not there yet."""
    try:
        return fetch.ensure()
    except fetch.FetchError as error:
        stop(str(error))


def source_of(module: str) -> Path:
    """The .pyx file of an extension module: the path below pyx/ is the module's name."""
    return PYX / (module.replace(".", "/") + ".pyx")


def copy(source: Path, target: Path) -> None:
    """Copies a file that differs, by renaming: a process that has the old library mapped keeps it."""
    old, new = target.stat() if target.exists() else None, source.stat()
    if old and (old.st_size, old.st_mtime) == (new.st_size, new.st_mtime):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".new")
    shutil.copy2(source, temporary)
    temporary.replace(target)


def empty_unless(folder: Path, settings: str) -> None:
    """Empties a folder of build products unless they were made with these settings."""
    stamp = folder / "settings.json"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != settings:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stamp.write_text(settings, encoding="utf-8")


class build_ext(_build_ext):  # noqa: N801, the name that setuptools looks for
    """Builds llama.cpp and the extension modules, and ships declarations, headers and libraries beside them."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.config = BuildConfig.from_env()
        self.destination = ROOT if self.inplace else Path(self.build_lib)
        # pip gives each build a new folder; in one that stays, only what changed is compiled again.
        self.work = Path("build", f"ext-{self.config.name}-{ABI}")
        self.build_temp, self.build_lib = str(self.work / "temp"), str(self.work / "lib")
        self.parallel = self.config.jobs

    def run(self) -> None:
        print(self.config, flush=True)
        self.cmake = CMakeBuild(self.config, source_tree())
        self.cmake.run()
        self.complete_extensions()
        self.cythonize()
        print(f"compiling what changed of {len(self.extensions)} extension modules", flush=True)
        super().run()
        self.ship()

    def complete_extensions(self) -> None:
        """Gives the extensions their paths and flags."""
        flags = self.config.sanitizer_flags
        for extension in self.extensions:
            # The command may run twice, as in `setup.py build bdist_wheel`: Cython's output was the source then.
            extension.sources = [source_of(extension.name).as_posix()]
            up = "/.." * (extension.name.count(".") - 1)
            rpath = [f"-Wl,-rpath,{PLATFORM.origin}{up}/lib"] if PLATFORM.origin else []
            extension.include_dirs = [str(PYX), str(source_of(extension.name).parent)]
            extension.include_dirs += [str(self.cmake.source / name) for name in HEADER_FOLDERS]
            extension.library_dirs = [str(self.cmake.libraries)]
            extension.libraries = list(LIBRARIES)
            extension.extra_compile_args = [*PLATFORM.compile_args, *flags]
            extension.extra_link_args = [*flags, *rpath]
            for attribute, values in EXTRAS.get(extension.name, {}).items():
                getattr(extension, attribute).extend(values)
        settings = [vars(extension) for extension in self.extensions]
        empty_unless(self.work, json.dumps(settings, default=str))
        # A header that changes is no setting, but all that includes it is compiled again.
        headers = [str(path) for path in (*PYX.rglob("*.h"), *PYX.rglob("*.hpp"), *self.cmake.headers().values())]
        for extension in self.extensions:
            extension.depends = headers

    def cythonize(self) -> None:
        """Turns the .pyx files that changed, or whose .pxd files did, into C++."""
        import Cython
        from Cython.Build import Dependencies, cythonize
        from Cython.Compiler.Errors import CompileError

        folder = Path("build", "cython-ft" if FREE_THREADED else "cython")
        empty_unless(folder, json.dumps([Cython.__version__, DIRECTIVES]))
        # Cython's own .pxd files look new in every isolated build; its version has just been compared instead.
        own, timestamp = str(Path(Cython.__file__).parent), Dependencies.DependencyTree.timestamp
        Dependencies.DependencyTree.timestamp = lambda tree, name: 0 if name.startswith(own) else timestamp(tree, name)
        try:
            generated = cythonize(
                [Extension(extension.name, extension.sources, language="c++") for extension in self.extensions],
                build_dir=str(folder),
                include_path=[str(PYX)],
                compiler_directives=DIRECTIVES,
                nthreads=self.config.jobs,
                force=self.force,
            )
        except CompileError as error:
            stop(f"Cython rejects a module, see above. {error}")
        sources = {extension.name: extension.sources for extension in generated}
        for extension in self.extensions:
            extension.sources = sources[extension.name]

    def build_extensions(self) -> None:
        """Compiles, through ccache where it is there."""
        for command in ("compiler_so", "compiler_so_cxx") if self.config.ccache and not WINDOWS else ():
            if hasattr(self.compiler, command):
                setattr(self.compiler, command, [self.config.ccache, *getattr(self.compiler, command)])
        os.environ.update(CCACHE_ENVIRONMENT)
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        file = Path(self.get_ext_fullpath(ext.name))
        before = file.stat().st_mtime_ns if file.exists() else 0
        super().build_extension(ext)
        if file.stat().st_mtime_ns != before:
            print(f"  {ext.name}", flush=True)

    def ship(self) -> None:
        """Puts everything that is built where `import pyllm` finds it: the source tree, or the wheel in the making."""
        package = self.destination / "pyllm"
        for extension in () if self.inplace else self.extensions:
            file = self.get_ext_filename(extension.name)
            copy(Path(self.build_lib, file), self.destination / file)
        for path in PYX.rglob("*.pxd"):
            if path.stem not in PRIVATE:
                copy(SHIPPED_AS.get(path, path), self.destination / path.relative_to(PYX))
        # One folder for the C compiler: the .pxd files name headers of llama.cpp and our own.
        headers = {path.relative_to(PYX).as_posix(): path for path in PYX.rglob("*.hpp")} | self.cmake.headers()
        headers["pyllm_api.h"] = PYX / "pyllm/core/pyllm_api.h"
        for folder, files in (("include", headers), ("lib", self.cmake.shipped())):
            for name, path in files.items():
                copy(path, package / folder / name)
            # A library that an earlier build with other settings left would be found and loaded.
            for path in (package / folder).rglob("*"):
                if path.is_file() and path.relative_to(package / folder).as_posix() not in files:
                    path.unlink()
        (package / "_build.json").write_text(json.dumps(self.cmake.describe(), indent=1) + "\n", encoding="utf-8")
        print(f"pyllm: built in {package}", flush=True)


class sdist(_sdist):  # noqa: N801
    """Makes sure that the source archive carries llama.cpp."""

    def run(self) -> None:
        source_tree()
        super().run()


class bdist_wheel(_bdist_wheel):  # noqa: N801
    """Adds the list of what is in the wheel."""

    def write_wheelfile(self, wheelfile_base: str, **options: str) -> None:
        super().write_wheelfile(wheelfile_base, **options)
        recorded = Path(self.bdist_dir, "pyllm/_build.json")
        if recorded.exists():  # an editable installation has nothing in it
            contents = sbom.components() + sbom.page_components()
            sbom.write(wheelfile_base, self.distribution.metadata, recorded, contents)


def extensions() -> list[Extension]:
    """One extension for every .pyx file; the path below pyx/ is the module's name."""
    return [
        Extension(".".join(path.relative_to(PYX).with_suffix("").parts), [path.as_posix()], language="c++", **LIMITED)
        for path in sorted(PYX.rglob("*.pyx"))
    ]


if __name__ == "__main__":
    os.chdir(ROOT)
    if BuildConfig.from_env().backend:
        options = backend_dist.setup_options(source_tree)
    else:
        options = {
            "ext_modules": extensions(),
            "cmdclass": {"bdist_wheel": bdist_wheel, "build_ext": build_ext, "sdist": sdist},
            "options": {} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
        }
    setup(**options)
