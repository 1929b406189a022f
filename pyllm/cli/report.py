"""What ``pyllm doctor`` reports: what this installation is, what it runs on and what is missing.

It needs NumPy alone, so that it can say which packages other commands need.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pyllm.cli.output import human_size, set_verbose
from pyllm.extras import extras, install_command, is_installed
from pyllm.version import __version__

# What of pyllm needs each extra; the others are for work on pyllm itself.
_USES = {
    "cli": "the command line",
    "hub": "models by name",
    "hf": "models from the Hugging Face hub",
    "serve": "pyllm serve",
    "interp": "activations in safetensors files",
    "viz": "figures",
    "eval": "lm-evaluation-harness",
    "llm": "the plugin for llm",
}


def report() -> dict[str, Any]:
    """All that ``pyllm doctor --json`` says."""
    from pyllm.core import backend, log

    log.refresh_level()  # else the level is read when a model is loaded, and none is
    return {
        "pyllm": __version__,
        "llama_cpp": {"version": backend.llama_version(), "commit": _commit(backend)},
        "python": f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})",
        "numpy": importlib.metadata.version("numpy"),
        "platform": platform.platform(),
        "cpu_features": backend.cpu_features(),
        "backends": [asdict(found) for found in backend.backends()],
        "devices": [asdict(device) for device in backend.devices()],
        "extras": {name: _extra(name) for name in _USES},
        **_models(),
    }


def _extra(name: str) -> dict[str, Any]:
    lacking = [requirement for requirement in extras().get(name, []) if not is_installed(requirement)]
    return {
        "for": _USES[name],
        "missing": lacking,
        "install": install_command(*lacking) if lacking else None,
    }


def _models() -> dict[str, Any]:
    from pyllm import hub
    from pyllm.errors import MissingDependencyError

    try:
        return {
            "cache": str(hub.cache_dir()),
            "models": [model.alias for model in hub.list_models() if model.cached],
        }
    except MissingDependencyError:
        return {"cache": None, "models": []}  # the extra hub is named as missing


def _commit(backend: Any) -> str | None:
    """llama.cpp's commit that this installation was built from, where the build recorded it."""
    return backend.llama_commit() if hasattr(backend, "llama_commit") else None


def lines(found: dict[str, Any]) -> list[str]:
    """A report for people."""
    llama = found["llama_cpp"]
    result = [
        f"pyllm       {found['pyllm']}",
        f"llama.cpp   {llama['version']}" + (f", commit {llama['commit']}" if llama["commit"] else ""),
        f"Python      {found['python']}",
        f"NumPy       {found['numpy']}",
        f"platform    {found['platform']}",
        f"CPU in use  {_features(found['cpu_features'])}",
        "backends",
    ]
    for backend in found["backends"]:
        state = "loaded" if backend["loaded"] else f"rejected: {backend['reason']}"
        result.append(f"  {backend['name']}: {state}" + (f" ({backend['path']})" if backend["path"] else ""))
    result.append("devices")
    for device in found["devices"]:
        memory = f"{human_size(device['memory_free'])} free of {human_size(device['memory_total'])}"
        result.append(f"  {device['name']}: {device['description']} [{device['type']}], {memory}")
    lacking = {name: extra for name, extra in found["extras"].items() if extra["missing"]}
    there = [name for name in found["extras"] if name not in lacking]
    result.append(f"extras      {', '.join(there) or 'none'}")
    for name, extra in lacking.items():
        result.append(f"  {name}, for {extra['for']}: missing. {extra['install']}")
    if found["cache"] is not None:
        result.append(f"models      {', '.join(found['models']) or 'none yet'} (in {found['cache']})")
    else:
        result.append("models      by path only: models by name need the extra hub")
    return result


def _features(features: dict[str, str]) -> str:
    # A feature is reported as "1", or with a value such as a vector width.
    return ", ".join(name if value == "1" else f"{name}={value}" for name, value in features.items()) or "unknown"


def show(*, as_json: bool) -> None:
    """Print the report."""
    found = report()
    print(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))


def main(arguments: Sequence[str]) -> None:
    """``pyllm doctor`` where the packages of the command line are missing.

    Args:
        arguments: Those behind "doctor".
    """
    parser = argparse.ArgumentParser(prog="pyllm doctor", description="Show what this installation is.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("-v", "--verbose", action="store_true", help="Show llama.cpp's log.")
    wanted = parser.parse_args(arguments)
    set_verbose(wanted.verbose)
    show(as_json=wanted.json)


__all__ = ["lines", "main", "report", "show"]
