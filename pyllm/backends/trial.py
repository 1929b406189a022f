"""Try a backend module in a child process before this process loads it.

A broken driver ends the process in which it is first used, or never returns. A module that was not seen on this machine
before, with the drivers and settings as they are, is loaded in a child process first, where each of its devices is
started once. That it worked is remembered in the cache folder. That it crashed or hung is remembered for a day.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pyllm.backends.discover import PACKAGE, Module, own_build_id
from pyllm.errors import PyllmError

DEFAULT_TIMEOUT_S = 60.0
_FORGET_AFTER_S = 24 * 3600
_MOST_ENTRIES = 64
_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pyllm.backends import trial
trial.child(*sys.argv[2:])
"""

# What shows that a driver was installed, removed or replaced: the files in which each of them announces itself, the
# devices, and the list of the system's libraries.
_DRIVER_FILES = (
    "/etc/ld.so.cache",
    "/dev/nvidia*",
    "/dev/dri/*",
    "/dev/kfd",
    "/etc/vulkan/icd.d/*",
    "/usr/share/vulkan/icd.d/*",
    "/usr/local/share/vulkan/icd.d/*",
    "/etc/OpenCL/vendors/*",
)
_DRIVER_SETTINGS = (
    "VK_",
    "GGML_",
    "CUDA_",
    "NVIDIA_",
    "HIP_",
    "ROCR_",
    "HSA_",
    "ONEAPI_",
    "SYCL_",
    "ZE_",
    "LD_",
    "MESA_",
)


def failure(module: Module) -> str:
    """Why a module must not be loaded into this process; empty for one that may be.

    Args:
        module: A module whose build id fits.

    Returns:
        The reason, with what the module or its driver printed.
    """
    python = _python()
    if python is None:
        return ""  # an embedded or frozen Python has no program that could run a trial
    key = _key(module)
    seen = _remembered().get(key)
    if seen is not None:
        reason = str(seen["reason"])
        return reason and f"{reason} (seen before; tried again a day later, or with another driver)"
    reason, lasting = _try(python, module)
    if lasting:
        _remember(key, reason)
    return reason


def timeout_s() -> float:
    """How long a module may take to start: PYLLM_BACKEND_TIMEOUT in seconds, or 60."""
    try:
        return float(os.environ["PYLLM_BACKEND_TIMEOUT"])
    except (KeyError, ValueError):
        return DEFAULT_TIMEOUT_S


def _python() -> str | None:
    """The interpreter, where ``sys.executable`` is one and not a program that has Python inside."""
    name = os.path.basename(sys.executable or "").lower()
    return sys.executable if name.startswith(("python", "pypy")) and not getattr(sys, "frozen", False) else None


def _try(python: str, module: Module) -> tuple[str, bool]:
    """Load a module in a child: the reason for which that failed, and whether the outcome is worth remembering."""
    with tempfile.TemporaryDirectory(prefix="pyllm-", ignore_cleanup_errors=True) as folder:
        result, printed = Path(folder, "result.json"), Path(folder, "printed")
        path = json.dumps([str(PACKAGE.parent), *sys.path])
        # Files instead of pipes: a driver may leave a process behind that keeps a pipe open.
        with printed.open("wb") as output:
            process = subprocess.Popen(
                [python, "-c", _CHILD, path, module.path, str(result)],
                env={**os.environ, "PYLLM_BACKENDS": "cpu", "PYLLM_BACKEND_PATH": ""},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        limit = timeout_s()
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return (
                f"a trial in a child process did not end within {limit:g} s (PYLLM_BACKEND_TIMEOUT){_tail(printed)}",
                True,
            )
        finally:
            _end(process)
        try:
            outcome = json.loads(result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return f"a trial in a child process ended with {_ended(status)}{_tail(printed)}", True
    # A library or a device that is missing can be there the next time: nothing to remember.
    return (str(outcome["error"]), False) if "error" in outcome else ("", True)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            pass  # a process inside a driver cannot be killed before the driver returns: it is left behind


def _ended(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _tail(printed: Path) -> str:
    lines = [line for line in printed.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f": {' / '.join(lines[-3:])}" if lines else ""


def child(path: str, result: str) -> None:
    """What the child process does: load a module and start each of its devices.

    Args:
        path: The module.
        result: The file for the outcome, as JSON: "devices", or "error".
    """
    from pyllm.core import backend

    outcome: dict[str, Any]
    try:
        outcome = {"devices": backend.start_devices(path)}
    except PyllmError as error:
        outcome = {"error": "; ".join([error.message, *error.log])}
    Path(result).write_text(json.dumps(outcome), encoding="utf-8")


def _key(module: Module) -> str:
    """Identifies a module, the libraries that load it, and the drivers and settings of this machine."""
    file = os.stat(module.path)
    settings = sorted(item for item in os.environ.items() if item[0].startswith(_DRIVER_SETTINGS))
    drivers = [
        (str(path), path.stat().st_mtime_ns if path.is_file() else 0)
        for pattern in _DRIVER_FILES
        for path in sorted(Path(pattern).parent.glob(Path(pattern).name))
    ]
    nvidia = Path("/proc/driver/nvidia/version")
    text = nvidia.read_text(encoding="utf-8", errors="replace") if nvidia.exists() else ""
    system = [platform.system(), platform.release(), platform.version(), text]
    parts = [module.path, file.st_size, file.st_mtime_ns, own_build_id(), system, settings, drivers]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def memory_file() -> Path:
    """Where outcomes are remembered: ``backends.json`` in PYLLM_CACHE or the user's cache folder."""
    if override := os.environ.get("PYLLM_CACHE"):
        return Path(override).expanduser().absolute() / "backends.json"
    folder = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return Path(folder or Path.home() / ".cache", "pyllm", "backends.json")


def _remembered() -> dict[str, dict[str, Any]]:
    """The outcomes that still hold."""
    try:
        found = json.loads(memory_file().read_text(encoding="utf-8"))
        oldest = time.time() - _FORGET_AFTER_S
        return {key: seen for key, seen in found.items() if not seen["reason"] or seen["time"] > oldest}
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # no home, no file, or one that something else wrote


def _remember(key: str, reason: str) -> None:
    entries = sorted(_remembered().items(), key=lambda item: item[1]["time"])[-_MOST_ENTRIES + 1 :]
    entries.append((key, {"reason": reason, "time": time.time()}))
    try:
        file = memory_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix="backends-", suffix=".tmp")
        with os.fdopen(descriptor, "w", encoding="utf-8") as output:
            json.dump(dict(entries), output)
        os.replace(temporary, file)
    except (OSError, RuntimeError):
        pass  # a cache that cannot be written costs a trial the next time


__all__ = ["DEFAULT_TIMEOUT_S", "child", "failure", "memory_file", "timeout_s"]
