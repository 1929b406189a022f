"""How llama.cpp's sources come: the three ways, the check of the hash, and every way to fail without leaving traces."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import io
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from support.waiting import LIMIT

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "llama_cpp_src/fetch.py"

FILES = {
    "CMakeLists.txt": "set(LLAMA_VERSION_MAJOR 1)\nset(LLAMA_VERSION_MINOR 2)\nset(LLAMA_VERSION_PATCH 3)\n",
    "include/llama.h": "int32_t llama_new(void);\n",
    "ggml/include/ggml.h": "// ggml\n",
    "src/llama.cpp": "// llama\n",
    "LICENSE": "MIT\n",
    "models/templates/a.jinja": "{{ x }}\n",
    # What is not needed, or does harm.
    ".git": "gitdir: ../../.git/modules/llama.cpp\n",
    "docs/build.md": "docs\n",
    "media/logo.png": "png\n",
}


@pytest.fixture(scope="module")
def fetch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pyllm_fetch_under_test", SCRIPT)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def no_local_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP_SRC", raising=False)


def add(tar: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(name)
    data = text.encode()
    info.size = len(data)
    info.mtime = 1_600_000_000
    tar.addfile(info, io.BytesIO(data))


def make_carrier(folder: Path, version: str = "9.9.9", *, hook: str = "", extra: dict[str, str] | None = None) -> Path:
    """Writes a source archive that pip accepts without needing anything else; `hook` is code that its metadata runs."""
    top = f"llama_cpp_python-{version}"
    backend = textwrap.dedent(f"""
        import os, time
        def prepare_metadata_for_build_wheel(folder, settings=None):
            {hook or "pass"}
            name = "llama_cpp_python-{version}.dist-info"
            os.makedirs(os.path.join(folder, name))
            with open(os.path.join(folder, name, "METADATA"), "w") as file:
                file.write("Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: {version}\\n")
            return name
        def build_wheel(*args): raise SystemExit("never")
    """)
    path = folder / f"{top}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        add(tar, f"{top}/PKG-INFO", f"Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {version}\n")
        add(
            tar,
            f"{top}/pyproject.toml",
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
            f'[project]\nname = "llama-cpp-python"\nversion = "{version}"\n',
        )
        add(tar, f"{top}/backend.py", backend)
        add(tar, f"{top}/CHANGELOG.md", f"# Changes\n\n## [{version}]\n\n- update to ggml-org/llama.cpp@abcdef0123\n")
        for name, text in {**FILES, **(extra or {})}.items():
            add(tar, f"{top}/vendor/llama.cpp/{name}", text)
    return path


@pytest.fixture
def carrier(tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    return make_carrier(folder)


@pytest.fixture
def pin(fetch: ModuleType, carrier: Path):
    digest = hashlib.sha256(carrier.read_bytes()).hexdigest()
    return replace(fetch.Pin.read(), version="9.9.9", sha256=digest, commit="abcdef012", llama_version="1.2.3")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    parent = tmp_path / "place"
    parent.mkdir()
    return parent / "llama.cpp"


@pytest.fixture
def only_index(carrier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip, itself untouched, sees the carrier's folder and nothing else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(carrier.parent))


def hand_over(archive: Path) -> Callable[..., Path]:
    return lambda pin, folder: archive


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def assert_untouched(target: Path) -> None:
    assert not target.exists()
    assert list(target.parent.iterdir()) == []


def test_the_repository_pins_a_whole_hash_and_a_commit(fetch: ModuleType) -> None:
    pin = fetch.Pin.read()
    assert len(bytes.fromhex(pin.sha256)) == 32
    assert len(pin.commit) >= 9
    int(pin.commit, 16)


def test_unpacks_what_is_needed_and_stamps_it(fetch: ModuleType, pin, carrier: Path, target: Path) -> None:
    assert fetch.ensure(pin, target, download=hand_over(carrier)) == target
    assert contents(target) == {name for name in FILES if not name.startswith((".git", "docs", "media"))} | {
        fetch.STAMP
    }
    assert pin.sha256 in (target / fetch.STAMP).read_text()
    assert list(target.parent.iterdir()) == [target]
    # The time stamps are the archive's: a tree fetched again is not compiled again.
    assert (target / "src/llama.cpp").stat().st_mtime == 1_600_000_000


def test_the_first_pythons_3_11_unpack_too(
    fetch: ModuleType, pin, carrier: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Early(tarfile.TarFile):
        def extract(self, member: tarfile.TarInfo, path: Path) -> None:  # type: ignore[override]
            assert member.mode & 0o7022 == 0 and member.uname == ""
            super().extract(member, path, filter="fully_trusted")

    monkeypatch.delattr(fetch.tarfile, "data_filter")
    monkeypatch.setattr(fetch.tarfile, "open", Early.open)
    fetch.ensure(pin, target, download=hand_over(carrier))
    assert (target / "src/llama.cpp").stat().st_mtime == 1_600_000_000


def test_a_tree_with_the_right_stamp_is_used_as_it_is(fetch: ModuleType, pin, carrier: Path, target: Path) -> None:
    fetch.ensure(pin, target, download=hand_over(carrier))
    (target / "mark").write_text("mine")

    def never(*_: object) -> Path:
        raise AssertionError("downloaded again")

    assert fetch.ensure(pin, target, download=never) == target
    assert (target / "mark").exists()


@pytest.mark.parametrize("stamp", [None, "", "llama-cpp-python 0.0.1\n"])
def test_a_tree_without_the_right_stamp_is_replaced(
    fetch: ModuleType, pin, carrier: Path, target: Path, stamp: str | None
) -> None:
    target.mkdir()
    (target / "stale.c").write_text("old")
    if stamp is not None:
        (target / fetch.STAMP).write_text(stamp)
    fetch.ensure(pin, target, download=hand_over(carrier))
    assert not (target / "stale.c").exists()
    assert list(target.parent.iterdir()) == [target]


def test_a_local_checkout_comes_first(
    fetch: ModuleType, pin, carrier: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = fetch.ensure(pin, tmp_path / "place/checkout", download=hand_over(carrier))
    monkeypatch.setenv("LLAMA_CPP_SRC", str(checkout))
    assert fetch.ensure(pin, target) == checkout.resolve()
    assert not target.exists()


def test_a_local_folder_that_is_no_tree_is_refused(
    fetch: ModuleType, pin, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_SRC", str(tmp_path))
    with pytest.raises(fetch.LocalTreeError, match=r"CMakeLists\.txt is missing") as caught:
        fetch.ensure(pin, target)
    assert_names_three_ways(str(caught.value), target)


def assert_names_three_ways(message: str, target: Path) -> None:
    assert "LLAMA_CPP_SRC" in message
    assert str(target) in message
    assert "python llama_cpp_src/fetch.py" in message


def test_a_wrong_hash_unpacks_nothing(fetch: ModuleType, pin, carrier: Path, target: Path) -> None:
    with pytest.raises(fetch.ChecksumError) as caught:
        fetch.ensure(replace(pin, sha256="0" * 64), target, download=hand_over(carrier))
    assert pin.sha256 in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert_names_three_ways(str(caught.value), target)
    assert_untouched(target)


def test_pip_brings_the_archive(fetch: ModuleType, pin, only_index: None, target: Path) -> None:
    fetch.ensure(pin, target)
    assert (target / "include/llama.h").is_file()
    assert list(target.parent.iterdir()) == [target]


def test_nothing_of_an_archive_with_a_wrong_hash_runs(
    fetch: ModuleType, pin, carrier: Path, only_index: None, target: Path, tmp_path: Path
) -> None:
    proof = tmp_path / "ran"
    make_carrier(carrier.parent, hook=f"open({str(proof)!r}, 'w').close()")
    with pytest.raises(fetch.ChecksumError, match="Nothing was unpacked or built"):
        fetch.ensure(pin, target)
    assert not proof.exists()
    assert_untouched(target)
    # The hook does run when the hash is right, so the test above can fail.
    fetch.ensure(replace(pin, sha256=fetch.sha256_of(carrier)), target)
    assert proof.exists()


def test_offline_names_all_three_ways(fetch: ModuleType, pin, carrier: Path, only_index: None, target: Path) -> None:
    carrier.unlink()
    with pytest.raises(fetch.DownloadError) as caught:
        fetch.ensure(pin, target)
    assert "llama-cpp-python==9.9.9" in str(caught.value)
    assert_names_three_ways(str(caught.value), fetch.TARGET)
    assert_untouched(target)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_and_leaves_nothing(fetch: ModuleType, pin, target: Path) -> None:
    def onto_a_full_disk(pin: object, folder: Path) -> Path:
        (folder / "half").write_text("half a download")
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"the rest")
        raise AssertionError("unreachable")

    with pytest.raises(fetch.UnpackError, match="is full") as caught:
        fetch.ensure(pin, target, download=onto_a_full_disk)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert_names_three_ways(str(caught.value), target)
    assert_untouched(target)


def test_an_interrupt_leaves_nothing(fetch: ModuleType, pin, target: Path) -> None:
    def interrupted(pin: object, folder: Path) -> Path:
        (folder / "half").write_text("half a download")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.ensure(pin, target, download=interrupted)
    assert_untouched(target)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_control_c_during_the_download(
    fetch: ModuleType, pin, carrier: Path, only_index: None, target: Path, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    make_carrier(carrier.parent, hook=f"open({str(started)!r}, 'w').close(); time.sleep(20)")
    pin = replace(pin, sha256=fetch.sha256_of(carrier))
    program = f"""
import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})
import fetch, pathlib
fetch.ensure.__kwdefaults__["download"] = None
original = fetch.ensure
fetch.ensure = lambda: original(fetch.{pin!r}, pathlib.Path({str(target)!r}))
sys.exit(fetch.main([]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + LIMIT
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert started.exists()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert "nothing was left behind" in errors
    assert "Traceback" not in errors
    assert_untouched(target)


@pytest.mark.parametrize("damage", ["truncated", "no archive", "no tree"])
def test_a_damaged_archive_is_refused(fetch: ModuleType, pin, carrier: Path, target: Path, damage: str) -> None:
    if damage == "truncated":
        carrier.write_bytes(carrier.read_bytes()[:-200])
    elif damage == "no archive":
        carrier.write_bytes(b"<html>please log in</html>")
    else:
        with tarfile.open(carrier, "w:gz") as tar:
            add(tar, "llama_cpp_python-9.9.9/vendor/llama.cpp/README.md", "hello")
    pin = replace(pin, sha256=fetch.sha256_of(carrier))
    with pytest.raises(fetch.UnpackError):
        fetch.ensure(pin, target, download=hand_over(carrier))
    assert_untouched(target)


def test_no_member_leaves_the_tree(fetch: ModuleType, pin, carrier: Path, target: Path) -> None:
    top = "llama_cpp_python-9.9.9/vendor/llama.cpp"
    with tarfile.open(carrier, "w:gz") as tar:
        for name, text in FILES.items():
            add(tar, f"{top}/{name}", text)
        add(tar, f"{top}/src/../../../../escaped", "out")
        add(tar, f"{top}/src/.git/config", "hook")
        link = tarfile.TarInfo(f"{top}/src/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    pin = replace(pin, sha256=fetch.sha256_of(carrier))
    fetch.ensure(pin, target, download=hand_over(carrier))
    assert not (target / "src/link").is_symlink()
    assert contents(target.parent) == {f"llama.cpp/{name}" for name in contents(target)}
    assert not any("escaped" in name or ".git" in name for name in contents(target.parent))


def test_leftovers_of_killed_runs_are_removed_and_those_of_others_are_not(
    fetch: ModuleType, pin, carrier: Path, target: Path
) -> None:
    old, young = target.parent / ".fetch-old", target.parent / ".fetch-young"
    for folder in (old, young):
        folder.mkdir()
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))
    fetch.ensure(pin, target, download=hand_over(carrier))
    assert not old.exists()
    assert young.exists()


def test_bump_rewrites_the_pin_and_tells_what_changed(
    fetch: ModuleType,
    pin,
    carrier: Path,
    only_index: None,
    target: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setitem(sys.modules, "fetch", fetch)
    monkeypatch.delitem(sys.modules, "bump", raising=False)
    from bump import bump

    fetch.ensure(pin, target, download=hand_over(carrier))
    newer = make_carrier(
        carrier.parent,
        "9.9.10",
        extra={
            "include/llama.h": "LLAMA_API int32_t llama_newer(int32_t n); // llama_in_comment\n"
            "struct llama_pair { int32_t first; int64_t second; };\n"
        },
    )
    pin_file = tmp_path / "PIN.toml"
    pin_file.write_text(fetch.PIN_FILE.read_text())
    new = bump("9.9.10", target, pin_file)
    assert fetch.Pin.read(pin_file) == new
    assert (new.version, new.sha256, new.commit) == ("9.9.10", fetch.sha256_of(newer), "abcdef012")
    assert new.llama_version == "1.2.3"
    # Comments and what does not change stay.
    assert pin_file.read_text().splitlines()[0] == fetch.PIN_FILE.read_text().splitlines()[0]
    assert new.git == fetch.Pin.read().git
    output = capsys.readouterr().out
    assert "+ llama_newer   int32_t llama_newer(int32_t n)   (not declared)" in output
    assert "+ llama_pair.second" in output
    assert "- llama_new   int32_t llama_new()" in output
    assert "llama_in_comment" not in output
    assert fetch.is_current(target, new)
