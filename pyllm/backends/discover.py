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

from pyllm.errors import BackendError
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


def own_modules() -> list[Module]:
    """The backend modules in pyllm's own folder, in the order of their names."""
    # The shared libraries beside them begin with "libpyllm-".
    paths = sorted(path for path in Path(library_folder()).glob(f"*ggml-*{MODULE_SUFFIX}") if "pyllm-" not in path.name)
    return [Module(path.name.removesuffix(MODULE_SUFFIX).rpartition("ggml-")[2], str(path)) for path in paths]


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
