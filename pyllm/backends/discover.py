"""Find backend modules: in pyllm's own ``lib`` folder and in packages that announce themselves.

A package offers a backend under the entry point group ``pyllm.backends``: the entry point names a
function without arguments that returns the path of the shared library. The package must be of exactly
the version of pyllm, because ggml checks only an API number and not the layout of its structs.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyllm.version import __version__

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "pyllm.backends"
MODULE_SUFFIX = ".dll" if sys.platform == "win32" else ".so"


@dataclass(frozen=True)
class Module:
    """A backend module on disk; `reason` says why it cannot be used, if it cannot."""

    name: str
    path: str
    reason: str = ""


def library_folder() -> str:
    """The folder with the shared libraries that were built with pyllm."""
    return str(Path(__file__).resolve().parent.parent / "lib")


def plugins() -> list[Module]:
    """The backends that installed packages offer, in the order of their names."""
    if os.environ.get("PYLLM_NO_PLUGINS"):
        return []
    from importlib import metadata  # late: it is slow to import, and needed once a model is loaded

    return [_module(entry) for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name)]


def _module(entry: EntryPoint) -> Module:
    version = entry.dist.version if entry.dist is not None else None
    if version != __version__:
        return Module(
            entry.name,
            "",
            f"it is for pyllm {version} and this is pyllm {__version__}; "
            f"pip install {entry.dist.name if entry.dist else entry.name}=={__version__}",
        )
    try:
        path = os.fspath(entry.load()())
    except Exception as cause:
        return Module(entry.name, "", f"its entry point failed: {type(cause).__name__}: {cause}")
    if not os.path.isfile(path):
        return Module(entry.name, path, "the file does not exist")
    return Module(entry.name, path)


def own_modules() -> list[str]:
    """Paths of the backend modules in pyllm's own folder."""
    # The shared libraries beside them begin with "libpyllm-".
    found = (path for path in Path(library_folder()).glob(f"*ggml-*{MODULE_SUFFIX}") if "pyllm-" not in path.name)
    return sorted(str(path) for path in found)


def _mapped_files() -> set[str]:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            return {line.split(maxsplit=5)[-1].strip() for line in maps if "ggml-" in line}
    except OSError:
        return set()


def module_in_use(name: str) -> str:
    """The file of the loaded backend `name`, or an empty string where the system does not tell."""
    mapped = _mapped_files()
    stem = f"ggml-{name.lower()}"
    candidates = [path for path in own_modules() if Path(path).name.removeprefix("lib").startswith(stem)]
    in_use = [path for path in candidates if path in mapped]
    if in_use:
        return in_use[0]
    others = sorted(path for path in mapped if Path(path).name.removeprefix("lib").startswith(stem))
    if others:
        return others[0]
    return candidates[0] if len(candidates) == 1 else ""


def unused_modules(used: list[str]) -> list[Module]:
    """The modules of pyllm's own folder that are not in use, with the reason."""
    return [
        Module(Path(path).name.removesuffix(MODULE_SUFFIX).removeprefix("lib").removeprefix("ggml-"), path, _why(path))
        for path in own_modules()
        if path not in used
    ]


def _why(path: str) -> str:
    """Ask the module itself: ggml's score is 0 where the processor lacks something it needs."""
    import ctypes

    try:
        library = ctypes.CDLL(path)
    except OSError as cause:
        return f"it cannot be loaded: {cause}"
    try:
        score = library.ggml_backend_score()
    except AttributeError:
        return "another module of the same kind is in use"
    return f"a better variant is in use (score {score})" if score > 0 else "the processor lacks instructions it needs"
