"""``pyllm doctor``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from pyllm.cli.output import human_size, set_verbose


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show llama.cpp's log.")] = False,
) -> None:
    """Show what this installation is and what it runs on."""
    set_verbose(verbose)
    report = _report()
    if json:
        from json import dumps

        print(dumps(report, indent=2))
        return
    for line in _lines(report):
        print(line)


def _report() -> dict[str, Any]:
    import importlib.metadata
    import platform
    import sys

    from pyllm import hub
    from pyllm.core import backend, log
    from pyllm.version import __version__

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
        "cache": str(hub.cache_dir()),
        "models": [model.alias for model in hub.list_models() if model.cached],
    }


def _commit(backend: Any) -> str | None:
    """llama.cpp's commit that this installation was built from, where the build recorded it."""
    return backend.llama_commit() if hasattr(backend, "llama_commit") else None


def _lines(report: dict[str, Any]) -> list[str]:
    llama = report["llama_cpp"]
    lines = [
        f"pyllm       {report['pyllm']}",
        f"llama.cpp   {llama['version']}" + (f", commit {llama['commit']}" if llama["commit"] else ""),
        f"Python      {report['python']}",
        f"NumPy       {report['numpy']}",
        f"platform    {report['platform']}",
        f"CPU in use  {_features(report['cpu_features'])}",
        "backends",
    ]
    for found in report["backends"]:
        state = "loaded" if found["loaded"] else f"rejected: {found['reason']}"
        lines.append(f"  {found['name']}: {state}" + (f" ({found['path']})" if found["path"] else ""))
    lines.append("devices")
    for device in report["devices"]:
        memory = f"{human_size(device['memory_free'])} free of {human_size(device['memory_total'])}"
        lines.append(f"  {device['name']}: {device['description']} [{device['type']}], {memory}")
    lines.append(f"models      {', '.join(report['models']) or 'none yet'} (in {report['cache']})")
    return lines


def _features(features: dict[str, str]) -> str:
    # A feature is reported as "1", or with a value such as a vector width.
    return ", ".join(name if value == "1" else f"{name}={value}" for name, value in features.items()) or "unknown"
