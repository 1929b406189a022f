"""Brings llama.cpp's sources, at the version that PIN.toml names, to `llama_cpp_src/llama.cpp`.

    python llama_cpp_src/fetch.py               make sure that the tree is there
    python llama_cpp_src/fetch.py bump VERSION  move the pin to another version of the carrier package

There are three ways to a tree, tried in this order: `LLAMA_CPP_SRC` names a checkout of your own; the tree is already
there with the right stamp; the carrier package is downloaded with pip, its sha256 checked, and the tree unpacked. The
tree appears whole or not at all. Only the standard library is used, so this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

HERE = Path(__file__).resolve().parent
PIN_FILE = HERE / "PIN.toml"
TARGET = HERE / "llama.cpp"
STAMP = ".pyllm-stamp"
TEMPORARY_PREFIX = ".fetch-"

# What of upstream's tree is unpacked: what CMake reads, what our tests read, and the licences.
KEEP = (
    "CMakeLists.txt", "LICENSE", "AUTHORS", "cmake", "common", "conversion", "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py", "ggml", "gguf-py", "grammars", "include", "licenses", "models", "scripts", "src",
    "tools", "vendor",
)  # fmt: skip
# What must be there for a folder to count as a llama.cpp tree.
LANDMARKS = ("CMakeLists.txt", "include/llama.h", "ggml/include/ggml.h", "src/llama.cpp")

WAYS = """\
There are three ways to give pyllm its llama.cpp sources:
  1. set LLAMA_CPP_SRC to a checkout of llama.cpp ({git}, commit {commit});
  2. put the unpacked tree, with its stamp, at {target}
     (copy that folder from a machine where `python llama_cpp_src/fetch.py` has run);
  3. be online: `python llama_cpp_src/fetch.py` downloads {package} {version} with pip and checks its sha256.
     Proxies, mirrors and certificates are those of pip's own configuration."""


class FetchError(Exception):
    """The sources could not be brought; the message says why and what would help."""


class LocalTreeError(FetchError):
    """The folder that LLAMA_CPP_SRC names is not a llama.cpp tree."""


class DownloadError(FetchError):
    """pip could not download the carrier package."""


class ChecksumError(FetchError):
    """The archive is not the one that PIN.toml names; nothing was unpacked."""


class UnpackError(FetchError):
    """The archive could not be unpacked; nothing was left behind."""


@dataclass(frozen=True)
class Pin:
    """The contents of PIN.toml.

    Attributes:
        llama_version: Upstream's own version, as its CMakeLists.txt states it.
        commit: Upstream's commit.
        git: Upstream's repository.
        package: The package on PyPI whose source archive carries the tree.
        version: That package's version.
        sha256: Of the source archive.
        tree: Path of the tree inside the archive, below its top folder.
    """

    llama_version: str
    commit: str
    git: str
    package: str
    version: str
    sha256: str
    tree: str

    @classmethod
    def read(cls, path: Path = PIN_FILE) -> Pin:
        with path.open("rb") as file:
            data = tomllib.load(file)
        upstream, carrier = data["llama_cpp"], data["carrier"]
        return cls(
            upstream["version"],
            upstream["commit"],
            upstream["git"],
            carrier["package"],
            carrier["version"],
            carrier["sha256"],
            carrier["tree"],
        )

    def rewrite(self, path: Path = PIN_FILE) -> None:
        """Writes the values into the file, which keeps its comments and layout."""
        values = {
            ("llama_cpp", "version"): self.llama_version,
            ("llama_cpp", "commit"): self.commit,
            ("carrier", "version"): self.version,
            ("carrier", "sha256"): self.sha256,
        }
        table, lines = "", []
        for line in path.read_text(encoding="utf-8").splitlines():
            if header := re.match(r"\[(\w+)\]", line):
                table = header[1]
            key = line.partition("=")[0].strip()
            lines.append(f'{key} = "{values[table, key]}"' if (table, key) in values else line)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @property
    def stamp(self) -> str:
        """What the stamp file of a tree unpacked from this pin says."""
        return f"{self.package} {self.version}\nsha256 {self.sha256}\nllama.cpp {self.llama_version} {self.commit}\n"

    def ways(self, target: Path = TARGET) -> str:
        return WAYS.format(git=self.git, commit=self.commit, target=target, package=self.package, version=self.version)


def say(text: str) -> None:
    print(text, flush=True)


def ensure(
    pin: Pin | None = None,
    target: Path = TARGET,
    *,
    download: Callable[[Pin, Path], Path] | None = None,
) -> Path:
    """Returns a folder that holds llama.cpp's sources, bringing them first where that is needed.

    Args:
        pin: The version wanted; PIN.toml's when not given.
        target: Where the tree belongs.
        download: Brings the archive of `pin` into a folder and returns its path; pip when not given.

    Raises:
        FetchError: In one of its kinds, with a message for the reader.
    """
    pin = pin or Pin.read()
    if local := os.environ.get("LLAMA_CPP_SRC"):
        return check_local(Path(local).expanduser(), pin, target)
    if is_current(target, pin):
        return target
    remove_leftovers(target.parent)
    with temporary_folder(target.parent, pin, target) as folder:
        say(f"llama.cpp {pin.llama_version} ({pin.commit}): downloading {pin.package} {pin.version} with pip (76 MB)")
        archive = (download or pip_download)(pin, folder)
        check_hash(archive, pin, target)
        say("llama.cpp: sha256 is right, unpacking")
        tree = unpack(archive, folder / "tree", pin.tree)
        (tree / STAMP).write_text(pin.stamp, encoding="utf-8")
        # Another run may have been faster, and its tree may be in use by now.
        if not is_current(target, pin):
            put_in_place(tree, target, folder)
    say(f"llama.cpp: sources are at {target}")
    return target


def check_local(path: Path, pin: Pin, target: Path) -> Path:
    """Returns `path` if it is a llama.cpp tree."""
    missing = [name for name in LANDMARKS if not (path / name).is_file()]
    if missing:
        raise LocalTreeError(
            f"LLAMA_CPP_SRC={path} is not a llama.cpp source tree: {missing[0]} is missing there.\n{pin.ways(target)}"
        )
    return path.resolve()


def is_current(target: Path, pin: Pin) -> bool:
    """Whether the tree at `target` is whole and is the one that `pin` names."""
    try:
        return (target / STAMP).read_text(encoding="utf-8") == pin.stamp
    except OSError:
        return False


def pip_download(pin: Pin, folder: Path, *, verify: bool = True) -> Path:
    """Downloads the carrier's source archive with pip into `folder` and returns its path.

    pip asks an archive for its metadata, which runs a little of the archive's own code. The hash is therefore given to
    pip, which checks it before that. `verify=False` is for a bump, where the hash is not known yet.
    """
    requirement = f"{pin.package}=={pin.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", pin.package, "--quiet"]
    if verify:
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{requirement} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
        command += ["--require-hashes", "--requirement", str(requirements)]
    else:
        command.append(requirement)
    destination = folder / "download"
    # pip builds the metadata in an environment of its own whatever the caller's settings say.
    environment = {name: value for name, value in os.environ.items() if name != "PIP_NO_BUILD_ISOLATION"}
    # pip's working files belong on the same disk, and go away with the folder.
    environment["TMPDIR"] = str(folder)
    status, output = watch([*command, "--dest", str(destination)], environment, folder)
    found = sorted(destination.glob("*.tar.gz"))
    if status == 0 and found:
        return found[0]
    reason = "\n".join(f"  {line}" for line in output.splitlines()[-12:]) or "  pip said nothing"
    if "DO NOT MATCH THE HASHES" in output:
        raise ChecksumError(
            f"the archive of {requirement} that pip found does not have the sha256 {pin.sha256}: the index does not "
            f"serve the pinned file. Nothing was unpacked or built. pip said:\n{reason}\n{pin.ways()}"
        )
    if os.strerror(errno.ENOSPC) in output:
        raise UnpackError(f"the disk that holds {folder.parent} is full. pip said:\n{reason}\n{pin.ways()}")
    raise DownloadError(f"pip could not download {requirement} (offline?). pip said:\n{reason}\n{pin.ways()}")


def watch(command: list[str], environment: dict[str, str], folder: Path) -> tuple[int, str]:
    """Runs pip, tells every few seconds how far its download is, and returns its exit status and what it printed."""
    log, shown = folder / "pip.log", 0
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            while True:
                try:
                    status = process.wait(timeout=3)
                    break
                except subprocess.TimeoutExpired:
                    size = shown
                    # pip renames and removes its files as it likes.
                    with suppress(OSError):
                        size = sum(path.stat().st_size for path in folder.glob("pip-*/*.tar.gz"))
                    if size > shown:
                        shown = size
                        say(f"  {size / 1e6:.0f} MB")
        except BaseException:
            process.kill()
            process.wait()
            raise
    return status, log.read_text(encoding="utf-8", errors="replace").strip()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(archive: Path, pin: Pin, target: Path) -> None:
    actual = sha256_of(archive)
    if actual != pin.sha256:
        raise ChecksumError(
            f"{archive.name} has the sha256 {actual}, but PIN.toml wants {pin.sha256}. Nothing was unpacked or built.\n"
            f"{pin.ways(target)}"
        )


def wanted(name: str, tree: str) -> PurePosixPath | None:
    """The path below the tree of an archive member that is to be unpacked, or None."""
    parts = PurePosixPath(name).parts
    inside = (parts[0], *PurePosixPath(tree).parts) if parts else ()
    if not inside or parts[: len(inside)] != inside:
        return None
    relative = PurePosixPath(*parts[len(inside) :])
    # Upstream's `.git` would send CMake to read the history of whatever repository lies around the tree.
    if not relative.parts or relative.parts[0] not in KEEP or ".." in relative.parts or ".git" in relative.parts:
        return None
    return relative


def extract(tar: tarfile.TarFile, member: tarfile.TarInfo, destination: Path) -> None:
    """Writes a plain file as its own user's, whoever's it was."""
    if hasattr(tarfile, "data_filter"):
        tar.extract(member, destination, filter="data")
        return
    # Python 3.11.0 to 3.11.3 know no filters.
    member.mode &= 0o755
    member.uname = member.gname = ""
    if hasattr(os, "getuid"):
        member.uid, member.gid = os.getuid(), os.getgid()
    tar.extract(member, destination)


def unpack(archive: Path, destination: Path, tree: str) -> Path:
    """Unpacks the needed files of the tree into the new folder `destination`: plain files only, and none outside it."""
    destination.mkdir()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                relative = wanted(member.name, tree)
                if relative is None or not member.isfile():
                    continue
                # The destination is ours, so the member's own path, owner and links play no part.
                member.name = str(relative)
                extract(tar, member, destination)
    except (tarfile.TarError, EOFError) as error:
        raise UnpackError(f"{archive.name} is not a readable source archive: {error}") from error
    missing = [name for name in LANDMARKS if not (destination / name).is_file()]
    if missing:
        raise UnpackError(f"{archive.name} has no llama.cpp tree at {tree}: {missing[0]} is missing")
    return destination


def put_in_place(tree: Path, target: Path, folder: Path) -> None:
    """Renames `tree` to `target`; an older tree is moved aside first, so that `target` is never half filled."""
    if target.is_symlink() or target.exists():
        target.rename(folder / "old")
    tree.rename(target)


@contextmanager
def temporary_folder(parent: Path, pin: Pin, target: Path) -> Iterator[Path]:
    """A folder beside the target, gone afterwards however the block ends."""
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=parent))
        yield folder
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise UnpackError(
                f"the disk that holds {parent} is full: about 500 MB are needed. Nothing was left behind.\n"
                f"{pin.ways(target)}"
            ) from error
        raise UnpackError(f"cannot write the sources below {parent}: {error}\n{pin.ways(target)}") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Removes the temporary folders of runs that were killed; a younger one may belong to a run beside this one."""
    for folder in parent.glob(f"{TEMPORARY_PREFIX}*"):
        if time.time() - folder.stat().st_mtime > 3600:
            shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Bring llama.cpp's sources to llama_cpp_src/llama.cpp.")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("fetch", help="make sure that the pinned tree is there (the default)")
    commands.add_parser("bump", help="move the pin to another version of the carrier").add_argument("version")
    options = parser.parse_args(arguments)
    try:
        if options.command == "bump":
            # bump.py imports this file, which as a script would otherwise be there twice.
            sys.modules["fetch"] = sys.modules[__name__]
            sys.path.insert(0, str(HERE))
            from bump import bump

            bump(options.version)
        else:
            say(f"llama.cpp sources: {ensure()}")
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was left behind", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
