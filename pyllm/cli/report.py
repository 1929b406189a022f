"""What ``pyllm doctor`` and ``pyllm devices`` report: what this installation is, what it runs on and what is missing.

It needs NumPy alone, so that it can say which packages other commands need.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pyllm.cli.output import human_size, set_verbose
from pyllm.errors import BackendWarning
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
    found = devices()
    from pyllm.core import backend

    return {
        "pyllm": __version__,
        "llama_cpp": {"version": backend.llama_version(), "commit": _commit(backend)},
        "python": f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})",
        "numpy": importlib.metadata.version("numpy"),
        "platform": platform.platform(),
        "cpu_features": backend.cpu_features(),
        **found,
        "extras": {name: _extra(name) for name in _USES},
        **_models(),
    }


def devices(servers: str | None = None) -> dict[str, Any]:
    """All that ``pyllm devices --json`` says; with the devices of RPC servers, "host:port,host:port"."""
    from pyllm.core import backend, log, rpc

    log.refresh_level()  # else the level is read when a model is loaded, and none is
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BackendWarning)  # the report says the same
        backend.load_backends()
    for endpoint in rpc.parse_endpoints(servers) if servers is not None else ():
        rpc.add_server(endpoint)
    return {
        "backends": [asdict(found) for found in backend.backends()],
        "devices": [asdict(device) for device in backend.devices()],
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
        result += _backend_lines(backend)
    result.append("devices")
    result += [f"  {_device_line(device)}" for device in found["devices"]]
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


def _backend_lines(backend: dict[str, Any]) -> list[str]:
    state = "loaded" if backend["loaded"] else f"rejected: {backend['reason']}"
    line = f"  {backend['name']}: {state}" + (f" ({backend['path']})" if backend["path"] else "")
    return [line, f"    {backend['remedy']}"] if backend["remedy"] else [line]


def _device_line(device: dict[str, Any]) -> str:
    memory = f"{human_size(device['memory_free'])} free of {human_size(device['memory_total'])}"
    return f"{device['name']}: {device['description']} [{device['type']}], {memory}"


def device_lines(found: dict[str, Any]) -> list[str]:
    """The devices for people, then the backends that could bring more, with what keeps them from it."""
    # Of the modules for the CPU one is in use, and that is no loss.
    rejected = [one for one in found["backends"] if not one["loaded"] and not one["name"].startswith("cpu")]
    result = [_device_line(device) for device in found["devices"]]
    return [*result, *(["not in use"] if rejected else []), *(line for one in rejected for line in _backend_lines(one))]


def _features(features: dict[str, str]) -> str:
    # A feature is reported as "1", or with a value such as a vector width.
    return ", ".join(name if value == "1" else f"{name}={value}" for name, value in features.items()) or "unknown"


def show(command: str, *, as_json: bool, servers: str | None = None) -> None:
    """Print the report of "doctor" or "devices"."""
    found = devices(servers) if command == "devices" else report()
    text = "\n".join(device_lines(found) if command == "devices" else lines(found))
    print(json.dumps(found, indent=2) if as_json else text)


COMMANDS = {
    "doctor": "Show what this installation is, what it runs on and what is missing.",
    "devices": "List the devices that models can be put on, and the backends that are not in use.",
}


def main(command: str, arguments: Sequence[str]) -> None:
    """``pyllm doctor`` and ``pyllm devices`` where the packages of the command line are missing.

    Args:
        command: One of COMMANDS.
        arguments: Those behind it.
    """
    parser = argparse.ArgumentParser(prog=f"pyllm {command}", description=COMMANDS[command])
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("-v", "--verbose", action="store_true", help="Show llama.cpp's log.")
    wanted = parser.parse_args(arguments)
    set_verbose(wanted.verbose)
    show(command, as_json=wanted.json)


__all__ = ["COMMANDS", "device_lines", "devices", "lines", "main", "report", "show"]
