"""Find backend modules: in pyllm's own ``lib`` folder, in PYLLM_BACKEND_PATH and in packages that announce themselves.

A package offers a backend under the entry point group ``pyllm.backends``: the entry point names a function without
arguments that returns the path of the shared library. The package must be of exactly the version of pyllm. Beside the
library lies ``build.json``, whose build id must be that of pyllm's own libraries: ggml itself checks only an API number
and not the layout of its structs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllm.errors import BackendError
from pyllm.extras import install_command
from pyllm.version import __version__

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "pyllm.backends"
PACKAGE = Path(__file__).resolve().parent.parent
_MODULE = re.compile(r"(?:lib)?ggml-((?!base)[\w.-]+?)\.(?:so|dylib|dll)")


@dataclass(frozen=True)
class Module:
    """A backend module on disk.

    Attributes:
        name: Name for PYLLM_BACKENDS: that of the entry point, such as "cuda12", or of the file, such as "cpu-haswell".
        path: The file; empty where it is not known.
        distribution: The installed package that offers it; None for a file of our own or of PYLLM_BACKEND_PATH.
        reason: Why it is not used; empty for one that may be.
        remedy: What to do about that.
        expected: It is out of use because it was left out or another one serves: nothing to warn of.
    """

    name: str
    path: str
    distribution: str | None = None
    reason: str = ""
    remedy: str = ""
    expected: bool = False

    @property
    def kind(self) -> str:
        """The backend that the file holds, such as "cuda" or "cpu": one module of a kind can be in use."""
        found = _MODULE.fullmatch(os.path.basename(self.path))
        return found[1].partition("-")[0] if found else self.name

    def rejected(self, reason: str, remedy: str = "", *, expected: bool = False) -> Module:
        """This module, out of use."""
        return replace(self, reason=reason, remedy=remedy, expected=expected)


def library_folder() -> str:
    """The folder with the shared libraries that were built with pyllm."""
    return str(PACKAGE / "lib")


def own_modules() -> list[Module]:
    """The backend modules in pyllm's own folder, in the order of their names."""
    # The shared libraries beside them begin with "libpyllm-".
    return _in_folder(Path(library_folder()))


def other_modules() -> list[Module]:
    """The modules of PYLLM_BACKEND_PATH and of installed packages, in the order in which they are to be loaded.

    ggml lists devices in that order, and of two that are the same hardware llama.cpp takes the first one: CUDA goes
    before Vulkan, as upstream has it. Of one kind the file that the user names goes first, then the newest: "cuda13" is
    tried before "cuda12".
    """
    found = [_fitting(module) for module in (*_named_modules(), *plugins())]
    by_name = sorted(found, key=lambda module: module.name, reverse=True)
    return sorted(by_name, key=lambda module: (module.kind, module.distribution is not None))


def plugins() -> list[Module]:
    """The backends that installed packages offer, in the order of their names."""
    from importlib import metadata  # late: it is slow to import, and needed once a model is loaded

    return [_module(entry) for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name)]


def _module(entry: EntryPoint) -> Module:
    distribution = entry.dist.name if entry.dist is not None else entry.name
    version = entry.dist.version if entry.dist is not None else None
    module = Module(entry.name, "", distribution)
    if version != __version__:
        return module.rejected(f"it is for pyllm {version} and this is pyllm {__version__}", _installing(distribution))
    again = _installing(distribution, "--force-reinstall", "--no-deps")
    try:
        path = os.fspath(entry.load()())
    except Exception as cause:
        return module.rejected(f"its entry point failed: {type(cause).__name__}: {cause}", again)
    module = replace(module, path=path)
    return module if os.path.isfile(path) else module.rejected("the file does not exist", again)


def _installing(distribution: str, *flags: str) -> str:
    """The command that installs this version of a package of backends, which may come from the sources alone."""
    command = install_command(*flags, f"{distribution}=={__version__}")
    return f"{command} (with --find-links FOLDER for a wheel that was built from the sources of this pyllm)"


def _named_modules() -> list[Module]:
    """The modules that PYLLM_BACKEND_PATH names: files, and all modules of folders."""
    result = []
    for text in filter(None, os.environ.get("PYLLM_BACKEND_PATH", "").split(os.pathsep)):
        path = Path(text).expanduser().absolute()
        inside = _in_folder(path) if path.is_dir() else [_at(path)]
        remedy = "PYLLM_BACKEND_PATH takes files and folders of modules named libggml-NAME"
        if not inside:
            inside = [Module(path.name, str(path)).rejected("the folder holds no backend module", remedy)]
        elif not path.exists():
            inside = [inside[0].rejected("the file does not exist", remedy)]
        result += inside
    return result


def _in_folder(folder: Path) -> list[Module]:
    return [_at(path) for path in sorted(folder.glob("*")) if _MODULE.fullmatch(path.name)]


def _at(path: Path) -> Module:
    found = _MODULE.fullmatch(path.name)
    return Module(found[1] if found else path.stem, str(path))


def _fitting(module: Module) -> Module:
    """The module, rejected if its build id is not that of pyllm's libraries: its code would misread their structs."""
    if module.reason:
        return module
    recorded, ours = build_info(module.path).get("build_id"), own_build_id()
    if ours is None:
        return module.rejected("pyllm/_build.json, which the build writes, is missing", "reinstall pyllm")
    if recorded == ours:
        return module
    return module.rejected(
        f"its build id is {recorded} and that of this pyllm is {ours}"
        if recorded
        else "no build.json beside it names the build that it belongs to",
        _installing(module.distribution, "--force-reinstall", "--no-deps")
        if module.distribution
        else "build it with PYLLM_BACKEND from the sources of this pyllm",
    )


def build_info(path: str) -> dict[str, Any]:
    """What the build of a module recorded in ``build.json`` beside it; empty where nothing readable is there."""
    return _read(Path(path).with_name("build.json"))


@cache
def own_build_id() -> str | None:
    """The build id of pyllm's own libraries, or None where the build recorded none."""
    value = _read(PACKAGE / "_build.json").get("build_id")
    return None if value is None else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def select(modules: Iterable[Module]) -> tuple[list[Module], list[str]]:
    """Leave out what PYLLM_BACKENDS does not name.

    Args:
        modules: All modules that were found.

    Returns:
        The modules, those that are left out rejected, and a warning for each name that no module has.
    """
    found = list(modules)
    wanted = [name.strip().lower() for name in os.environ.get("PYLLM_BACKENDS", "").split(",") if name.strip()]
    if not wanted:
        return found, []
    known = sorted({"cpu", *(name for module in found for name in (module.name, module.kind))})
    warnings = [
        f"PYLLM_BACKENDS names {name!r}, which is not there; there are: {', '.join(known)}"
        for name in wanted
        if name not in known
    ]
    # llama.cpp needs the CPU in any case.
    wanted.append("cpu")
    return [
        module
        if module.name in wanted or module.kind in wanted
        else module.rejected("PYLLM_BACKENDS leaves it out", expected=True)
        for module in found
    ], warnings


def best_cpu(scores: dict[str, int], forced: str | None) -> str:
    """The name of the CPU module to load.

    Args:
        scores: Module name, such as "cpu-haswell", to what the module scores on this processor; 0 or less where it
            cannot run.
        forced: The variant that PYLLM_CPU_VARIANT asks for, such as "haswell", or None.

    Raises:
        BackendError: The variant does not exist, or the processor cannot run it.
    """
    usable = [name for name, score in scores.items() if score > 0]
    if not forced:
        return max(usable, key=lambda name: scores[name], default="")
    name = f"cpu-{forced.lower().removeprefix('cpu-')}"
    if name not in usable:
        variants = ", ".join(name.removeprefix("cpu-") for name in usable if name != "cpu")
        raise BackendError(
            f"PYLLM_CPU_VARIANT={forced!r} "
            + ("needs instructions that this processor lacks; " if name in scores else "does not exist; ")
            + (f"this processor can run: {variants}" if variants else "this build has one CPU module, for its machine")
        )
    return name


__all__ = [
    "GROUP",
    "Module",
    "best_cpu",
    "build_info",
    "library_folder",
    "other_modules",
    "own_build_id",
    "own_modules",
    "plugins",
    "select",
]
