"""Optional packages: which extra of pyllm needs which, which are missing, and the command that installs them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shlex
import sys
import tomllib
from functools import cache
from pathlib import Path

from pyllm.errors import MissingDependencyError

_NAME = re.compile(r"[\w.-]+")
_EXTRAS_OF = re.compile(r"pyllm\[([\w,-]+)\]")
_MARKER = re.compile(r"""\s*extra\s*==\s*["']([\w-]+)["']\s*""")


def missing(what: str, *packages: str, extra: str | None = None) -> MissingDependencyError:
    """The error for an optional package that is not installed.

    Args:
        what: What needs which package, as in "figures need matplotlib".
        *packages: The packages to install.
        extra: The extra of pyllm that has them, instead of `packages`.
    """
    return MissingDependencyError(f"{what}: {install_command(*packages, extra=extra)}")


def install_command(*packages: str, extra: str | None = None) -> str:
    """The command that installs packages into the environment of this process.

    It names the packages of an extra themselves: that works from a checkout and with a release alike.

    Args:
        *packages: The packages, as requirements.
        extra: The extra of pyllm whose missing packages are added.
    """
    wanted = [*packages]
    if extra is not None:
        requirements = extras().get(extra, [])
        wanted += [one for one in requirements if not is_installed(one)] or requirements
    if importlib.util.find_spec("pip") is None:  # an environment of uv has none
        return shlex.join(["uv", "pip", "install", "--python", sys.executable, *wanted])
    return shlex.join([sys.executable, "-m", "pip", "install", *wanted])


def is_installed(requirement: str) -> bool:
    """Whether the package of a requirement is there, in any version."""
    found = _NAME.match(requirement)
    if found is None:
        return False
    try:
        importlib.metadata.version(found[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@cache
def extras() -> dict[str, list[str]]:
    """The requirements of each extra; those of the extras that it includes are among them.

    A requirement that holds on some platforms only is left out: nothing fails without it.
    """
    direct = _of_checkout() or _of_metadata()

    def whole(name: str) -> list[str]:
        result: list[str] = []
        for requirement in direct.get(name, []):
            nested = _EXTRAS_OF.fullmatch(requirement)
            result += [one for other in nested[1].split(",") for one in whole(other)] if nested else [requirement]
        return list(dict.fromkeys(result))

    return {name: whole(name) for name in direct}


def _of_checkout() -> dict[str, list[str]]:
    path = Path(__file__).parent.parent / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return {}
    if project.get("name") != "pyllm":
        return {}
    return {
        name: [requirement for requirement in requirements if ";" not in requirement]
        for name, requirements in project.get("optional-dependencies", {}).items()
    }


def _of_metadata() -> dict[str, list[str]]:
    result: dict[str, list[str]] = {}
    try:
        requirements = importlib.metadata.requires("pyllm") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    for line in requirements:
        requirement, _, marker = line.partition(";")
        extra = _MARKER.fullmatch(marker)
        if extra is not None:
            result.setdefault(extra[1], []).append(requirement.strip())
    return result


__all__ = ["extras", "install_command", "is_installed", "missing"]
