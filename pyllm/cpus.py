"""How many CPUs this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cpus() -> int:
    """CPUs for computing: those of the affinity mask, and no more than the cgroup's quota allows.

    ``os.cpu_count()`` counts the CPUs of the machine, which in a container are often many more than the process
    gets, and threads that have to share a CPU make generation slower.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _cgroup_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    if quota is not None:
        count = min(count, max(1, math.ceil(quota)))
    return max(1, count)


def _cgroup_quota(root: Path, membership: Path) -> float | None:
    """The smallest CPU quota (in CPUs) of this process' cgroups, or None without one."""
    quotas = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2: limits of all parents count
            folder = root / path.lstrip("/")
            while True:
                quotas.append(_quota_v2(folder))
                if folder == root or root not in folder.parents:
                    break
                folder = folder.parent
        elif "cpu" in controllers.split(","):
            quotas.append(_quota_v1(root / controllers / path.lstrip("/")))
            quotas.append(_quota_v1(root / "cpu"))
    known = [quota for quota in quotas if quota is not None]
    return min(known) if known else None


def _quota_v2(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return limit / period if limit > 0 and period > 0 else None
    except (OSError, ValueError):
        return None
