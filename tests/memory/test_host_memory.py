"""What is free, by files like those of the kernel; and how many CPUs may be used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyllm import cpus, host_memory

GIB = 1 << 30
MEMINFO = "MemTotal:       {total} kB\nMemFree:        1000 kB\nMemAvailable:   {available} kB\nHugePages_Total: 0\n"


@pytest.fixture
def system(tmp_path):
    """Writes the files; returns what is read from them."""

    def read(files: dict[str, object], membership: str = "0::/a/b\n", total: int = 64, available: int = 32):
        meminfo = tmp_path / "meminfo"
        meminfo.write_text(MEMINFO.format(total=total * GIB // 1024, available=available * GIB // 1024))
        (tmp_path / "membership").write_text(membership)
        root = tmp_path / "cgroup"
        root.mkdir(exist_ok=True)
        for name, value in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
        return host_memory._linux(meminfo, tmp_path / "membership", root)

    return read


def test_machine_without_limits(system):
    assert system({}) == host_memory.HostMemory(32 * GIB, 64 * GIB, "machine")


def test_limit_of_a_group_above_counts(system):
    files = {
        "a/memory.max": 8 * GIB,
        "a/memory.current": 5 * GIB,
        "a/memory.stat": f"anon {3 * GIB}\ninactive_file {GIB}\nactive_file {GIB}",
        "a/b/memory.max": "max",
        "a/b/memory.current": GIB,
        "a/b/memory.stat": "anon 1",
    }
    # Of the 5 GiB in use 2 are cached files, which can be given back.
    assert system(files) == host_memory.HostMemory(5 * GIB, 8 * GIB, "cgroup")


def test_a_full_group_has_nothing_left(system):
    files = {"memory.max": GIB, "memory.current": 2 * GIB, "memory.stat": "anon 5"}
    assert system(files).available == 0


def test_a_machine_that_is_fuller_than_its_limit(system):
    files = {"memory.max": 60 * GIB, "memory.current": 0, "memory.stat": "anon 5"}
    assert system(files, available=2) == host_memory.HostMemory(2 * GIB, 60 * GIB, "cgroup")


def test_version_1(system):
    files = {
        "memory/docker/x/memory.limit_in_bytes": 4 * GIB,
        "memory/docker/x/memory.usage_in_bytes": 3 * GIB,
        "memory/docker/x/memory.stat": f"total_inactive_file {GIB}\ntotal_active_file 0\ninactive_file 7",
        "memory/memory.limit_in_bytes": 9223372036854771712,
        "memory/memory.usage_in_bytes": 1,
        "memory/memory.stat": "cache 0",
    }
    found = system(files, membership="9:name=systemd:/\n4:memory:/docker/x\n0::/\n")
    assert found == host_memory.HostMemory(2 * GIB, 4 * GIB, "cgroup")


def test_version_1_in_a_container_is_at_the_root(system):
    files = {
        "memory/memory.limit_in_bytes": 4 * GIB,
        "memory/memory.usage_in_bytes": 3 * GIB,
        "memory/memory.stat": "total_inactive_file 0",
    }
    assert system(files, membership="4:memory:/not/visible/here\n").available == GIB


@pytest.mark.parametrize("damaged", ["", "garbage", "1 2 3"])
def test_damaged_files_are_no_limit(system, damaged):
    files = {"a/memory.max": damaged, "a/memory.current": damaged, "a/memory.stat": damaged}
    assert system(files).limit == "machine"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine():
    psutil = pytest.importorskip("psutil")
    found = host_memory.host_memory()
    assert found.total is not None and found.total <= psutil.virtual_memory().total
    assert 0 < found.available <= found.total
    if found.limit == "machine":
        assert abs(found.available - psutil.virtual_memory().available) < GIB


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemTotal: x kB\nMemAvailable: y kB\n", "\xff\n"])
def test_a_kernel_that_says_less(tmp_path, monkeypatch, text):
    (tmp_path / "meminfo").write_text(text, encoding="latin-1")
    monkeypatch.setitem(host_memory._READERS, sys.platform, lambda: host_memory._linux(tmp_path / "meminfo"))
    assert host_memory.host_memory() == host_memory.HostMemory(None, None)


def test_unknown_system_says_nothing(monkeypatch):
    monkeypatch.setattr(sys, "platform", "plan9")
    assert host_memory.host_memory() == host_memory.HostMemory(None, None)


def test_failing_reader_says_nothing(monkeypatch):
    def fail():
        raise OSError("no")

    monkeypatch.setitem(host_memory._READERS, sys.platform, fail)
    assert host_memory.host_memory().available is None


# ---- CPUs


@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")
def test_a_llama_uses_the_cpus_of_its_affinity(tiny_models):
    script = "import sys; from pyllm import Llama; print(Llama(sys.argv[1], n_ctx=64).context.n_threads)"
    command = ["taskset", "-c", "0", sys.executable, "-c", script, str(tiny_models["llama"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({"a/cpu.max": "150000 100000"}, "0::/a\n", 1.5),
        ({"a/cpu.max": "max 100000", "cpu.max": "200000 100000"}, "0::/a\n", 2.0),
        ({"a/b/cpu.max": "400000 100000", "a/cpu.max": "50000 100000"}, "0::/a/b\n", 0.5),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/\n", 3.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/\n", None),
        ({"a/cpu.max": "garbage"}, "0::/a\n", None),
        ({}, "0::/\n", None),
    ],
)
def test_quota_of_a_cgroup(tmp_path, files, membership, expected):
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "membership").write_text(membership)
    assert cpus._cgroup_quota(tmp_path / "cgroup", tmp_path / "membership") == expected


def test_a_quota_of_less_than_one_cpu_is_one_thread(monkeypatch):
    monkeypatch.setattr(cpus, "_cgroup_quota", lambda root, membership: 0.3)
    assert cpus.usable_cpus() == 1
    monkeypatch.setattr(cpus, "_cgroup_quota", lambda root, membership: 10_000.0)
    expected = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert cpus.usable_cpus() == expected


def test_there_is_no_membership(tmp_path):
    assert cpus._cgroup_quota(tmp_path, Path(tmp_path / "nothing")) is None
