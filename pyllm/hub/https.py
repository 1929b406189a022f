"""A model at a web address."""

from __future__ import annotations

import hashlib
import re
import shutil
import urllib.parse
import warnings
from dataclasses import dataclass
from pathlib import Path

from pyllm.errors import DownloadError
from pyllm.hub import cache, transfer
from pyllm.hub.names import is_safe, part_names
from pyllm.hub.progress import Progress
from pyllm.hub.source import Found, Offer, check_digest, digest_of, sha256_fragment

_FOLDER = "url"
_SCHEMES = ("https://", "http://")
_UNKNOWN = "unknown: see where it comes from"


class UnverifiedModelWarning(UserWarning):
    """A model was downloaded without a digest to compare it with."""


@dataclass(frozen=True, slots=True)
class WebModel:
    """The model at an address; of a split model that of its first part, beside which the others are.

    Attributes:
        url: The address, without a fragment.
        sha256: The digest of the file, of a split model of its first part; None where nobody said.
    """

    url: str
    sha256: str | None = None

    @classmethod
    def parse(cls, text: str) -> WebModel | None:
        """The model that an address names; None where this is none.

        Raises:
            InvalidArgumentError: The digest behind it is none.
            DownloadError: It is not encrypted, and no digest is there.
        """
        if not text.lower().startswith(_SCHEMES):
            return None
        url, digest = sha256_fragment(text)
        transfer.check_scheme(url, verified=digest is not None)
        return cls(url, digest)

    @property
    def reference(self) -> str:
        """The address, with the digest."""
        return self.url + (f"#sha256={self.sha256}" if self.sha256 else "")

    @property
    def _key(self) -> str:
        host = re.sub(r"[^a-z0-9.-]", "-", (urllib.parse.urlsplit(self.url).hostname or "").lower())
        return f"{host}-{hashlib.sha256(self.url.encode()).hexdigest()[:16]}"

    @property
    def _folder(self) -> Path:
        return cache.cache_dir() / _FOLDER / self._key

    @property
    def _names(self) -> list[str]:
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.url).path).rpartition("/")[2]
        # A name that is none, or leads elsewhere, is not needed: the folder is this model's own.
        if not is_safe(name) or not name.lower().endswith(".gguf"):
            name = "model.gguf"
        return part_names(name)

    def _address(self, name: str) -> str:
        parts = urllib.parse.urlsplit(self.url)
        if len(self._names) == 1:
            return self.url
        path = parts.path.rpartition("/")[0] + "/" + urllib.parse.quote(name)
        return urllib.parse.urlunsplit(parts._replace(path=path))

    def cached(self) -> Path | None:
        """The file, where it is here, whole, and with the digest that was asked for."""
        for name in self._names:
            record = cache.read_record_of(self._folder / name)
            path = self._folder / name
            if record is None or not path.is_file() or path.stat().st_size != record.size:
                return None
        first = cache.read_record_of(self._folder / self._names[0])
        if self.sha256 and first and first.sha256 != self.sha256:
            return None
        return self._folder / self._names[0]

    def offer(self) -> Offer:
        """What a pull would bring. The size is not asked for: the address may allow one request only."""
        return Offer(self.reference, self._names[0], _UNKNOWN, 0)

    def pull(self, progress: Progress, *, force: bool = False) -> Path:
        """Download it, going on where an earlier pull was cut off.

        Raises:
            DownloadError: It could not be downloaded, or is no GGUF file.
            ChecksumError: It has another digest; it was deleted.
        """
        if not force and (path := self.cached()):
            return path
        with cache.locked_key(f"{_FOLDER}-{self._key}", self.url, progress):
            if not force and (path := self.cached()):
                return path
            work = cache.work_folder(f"{_FOLDER}-{self._key}")
            records = [self._pull_part(work, name, index, progress) for index, name in enumerate(self._names)]
            # Only when all are there; and the first one last, which is what others look for.
            with cache.disk_errors(self._folder, f"keep {self.url}", 0):
                for record in reversed(records):
                    cache.publish_file(_partial(work, record.file), self._folder / record.file, record, {})
            shutil.rmtree(work, ignore_errors=True)
            return self._folder / self._names[0]

    def _pull_part(self, work: Path, name: str, index: int, progress: Progress) -> cache.Record:
        """Bring one part into the work folder; its record."""
        expected = self.sha256 if index == 0 else None
        what = f"download {name}"
        with cache.disk_errors(work, what, 0):
            work.mkdir(parents=True, exist_ok=True)
            partial = _partial(work, name)
            room_checked = False

            def report(done: int, total: int) -> None:
                nonlocal room_checked
                if total and not room_checked:
                    room_checked = True
                    cache.require_room(work, what, total - done)
                progress(done, total, f"downloading {name}")

            remote = transfer.Remote(self._address(name), verified=expected is not None)
            transfer.fetch(remote, partial, report)
            if expected is not None:
                check_digest(partial, expected, name, progress)
            digest = expected or digest_of(partial, progress, f"checking {name}")
            if expected is None:
                _warn_unverified(self._address(name), digest)
            return cache.Record(self.reference, name, partial.stat().st_size, digest, _UNKNOWN, ())

    def remove(self) -> bool:
        """Delete it, and what an interrupted pull left of it."""
        was_there = self.cached() is not None
        shutil.rmtree(cache.work_folder(f"{_FOLDER}-{self._key}"), ignore_errors=True)
        with cache.disk_errors(self._folder, f"remove {self.url}", 0):
            if self._folder.is_dir():
                shutil.rmtree(self._folder)
        return was_there


def _partial(work: Path, name: str) -> Path:
    return work / f"{name}.partial"


def _warn_unverified(url: str, digest: str) -> None:
    warnings.warn(
        f"nobody said what {url} must be, so what came is believed; to be sure the next time: {url}#sha256={digest}",
        UnverifiedModelWarning,
        stacklevel=2,
    )


def found() -> list[Found]:
    """The models from web addresses that are here."""
    result = []
    for record_file in sorted((cache.cache_dir() / _FOLDER).glob("*/*.gguf.json")):
        path = record_file.with_name(record_file.name.removesuffix(".json"))
        record = cache.read_record_of(path)
        if record is None:
            continue
        try:
            source = WebModel.parse(record.alias)
        except (DownloadError, ValueError):
            continue
        if source is not None and source.cached() == path:
            size = sum((path.parent / name).stat().st_size for name in source._names)
            result.append(Found(source.reference, f"{path.name}, from the web", record.licence, size, path))
    return result
