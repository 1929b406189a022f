"""For programs that were written for something else: the names of llama-cpp-python, and a plugin for `llm`.

``from pyllm.compat.llama_cpp import Llama`` is the change in a program of one's own. Libraries import ``llama_cpp`` by
that name; :func:`install` lets them find it here.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys

from pyllm.errors import PyllmError

_NAME = "llama_cpp"
_PACKAGE = "pyllm.compat.llama_cpp"


class AlreadyInstalledError(PyllmError, RuntimeError):
    """The real llama_cpp is installed or imported, and is not replaced."""


def install() -> None:
    """Let ``import llama_cpp`` find :mod:`pyllm.compat.llama_cpp`, in this process.

    Calling it twice is allowed.

    Raises:
        AlreadyInstalledError: There is another llama_cpp; two copies of llama.cpp in one process would be asking for
            trouble.
    """
    package = importlib.import_module(_PACKAGE)
    found = sys.modules.get(_NAME)
    if found is package:
        return
    if found is None:
        spec = importlib.util.find_spec(_NAME)
        place = None if spec is None else spec.origin
    else:
        spec, place = found.__spec__, getattr(found, "__file__", None)
    if found is not None or spec is not None:
        raise AlreadyInstalledError(
            f"llama_cpp is there already, at {place}; uninstall llama-cpp-python, or import {_PACKAGE} by its own name"
        )
    # Each module once, under both names: classes must be the same ones whichever name they were imported by.
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            sys.modules[f"{_NAME}.{module.name}"] = importlib.import_module(f"{_PACKAGE}.{module.name}")
    sys.modules[_NAME] = package


def uninstall() -> None:
    """Undo :func:`install`; what has been imported by then stays as it is."""
    if sys.modules.get(_NAME) is sys.modules.get(_PACKAGE) is not None:
        for name in [name for name in sys.modules if name == _NAME or name.startswith(f"{_NAME}.")]:
            del sys.modules[name]


__all__ = ["AlreadyInstalledError", "install", "uninstall"]
