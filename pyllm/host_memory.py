"""How much of the machine's memory this process may still use.

What counts as free is what an allocation can get without anything being written to a swap file: pages that only cache
files are free, too, and a container has what its limit leaves, however large the machine is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Memory of the host, in bytes.

    Attributes:
        available: What can still be used; None where the system does not say.
        total: What there is at all, a container's limit where it is smaller; None where the system does not say.
        limit: What sets the limit: "machine" or "cgroup".
    """

    available: int | None
    total: int | None
    limit: str = "machine"


def host_memory() -> HostMemory:
    """What this process may still use, now."""
    reader = _READERS.get(sys.platform)
    if reader is None:
        return HostMemory(None, None)
    try:
        return reader()
    except (OSError, ValueError, AttributeError, KeyError):
        return HostMemory(None, None)


def _linux(
    meminfo: Path = Path("/proc/meminfo"),
    membership: Path = Path("/proc/self/cgroup"),
    root: Path = Path("/sys/fs/cgroup"),
) -> HostMemory:
    lines = (line.partition(":") for line in meminfo.read_text(encoding="ascii").splitlines())
    numbers = {name: int(rest.split()[0]) * 1024 for name, _, rest in lines if rest.split()}
    found = HostMemory(numbers["MemAvailable"], numbers["MemTotal"])
    for limit, used in _cgroup_limits(membership, root):
        assert found.available is not None and found.total is not None
        if limit < found.total or max(0, limit - used) < found.available:
            found = HostMemory(min(found.available, max(0, limit - used)), min(found.total, limit), "cgroup")
    return found


def _cgroup_limits(membership: Path, root: Path) -> list[tuple[int, int]]:
    """(limit, bytes used that cannot be given back) of this process' cgroups and all above them."""
    found = []
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2, perhaps beside version 1
            for base in (root, root / "unified"):
                found += [_cgroup(folder, "memory.max", "memory.current", "") for folder in _upwards(base, path)]
        elif "memory" in controllers.split(","):
            # In a container its own group is mounted at the root, under whatever name it has outside.
            for folder in _upwards(root / "memory", path):
                found.append(_cgroup(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))
    return [pair for pair in found if pair is not None]


def _upwards(root: Path, path: str) -> list[Path]:
    folders, folder = [root], root
    for part in Path(path.lstrip("/")).parts:
        if part == "..":
            break
        folder /= part
        folders.append(folder)
    return folders


def _cgroup(folder: Path, limit_file: str, usage_file: str, prefix: str) -> tuple[int, int] | None:
    try:
        text = (folder / limit_file).read_text().strip()
        if text == "max" or int(text) >= _UNLIMITED:
            return None
        limit, usage = int(text), int((folder / usage_file).read_text())
        lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        stat = {name: int(value) for name, value in lines}
    except (OSError, ValueError):
        return None
    cached = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
    return limit, max(0, usage - cached)


def _darwin() -> HostMemory:
    import ctypes
    import ctypes.util

    libc = ctypes.CDLL(ctypes.util.find_library("c"))

    def read(name: bytes, kind: type[ctypes.c_uint32] | type[ctypes.c_uint64]) -> int:
        value = kind()
        size = ctypes.c_size_t(ctypes.sizeof(value))
        if libc.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0) != 0:
            raise OSError(f"there is no {name.decode()}")
        return value.value

    total = read(b"hw.memsize", ctypes.c_uint64)
    # What `memory_pressure` shows: percent that can be had before anything is compressed or swapped.
    return HostMemory(total * read(b"kern.memorystatus_level", ctypes.c_uint32) // 100, total)


def _windows() -> HostMemory:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("total", "free", "total_page", "free_page", "tv", "fv", "ev")),
        )

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined,unused-ignore]
        raise OSError("GlobalMemoryStatusEx failed")
    # What is committed counts against the page file, too.
    return HostMemory(min(status.free, status.free_page), status.total)


_READERS: dict[str, Callable[[], HostMemory]] = {"linux": _linux, "darwin": _darwin, "win32": _windows}
