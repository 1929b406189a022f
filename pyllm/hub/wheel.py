"""A model that lies in a wheel on the package index, by the name of its package."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pyllm.errors import ChecksumError, InvalidArgumentError, UnknownModelError
from pyllm.hub import cache, pypi
from pyllm.hub.names import is_safe, nearest
from pyllm.hub.progress import Progress, Scaled
from pyllm.hub.registry import Wheel
from pyllm.hub.source import Found, Offer, sha256_fragment

_SCHEME = "pypi:"
_FOLDER = "pypi"
_NAME = re.compile(
    r"(?P<package>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9.!+_-]+)(?:/(?P<member>.+))?"
)
_UNKNOWN = "unknown: see its page on the package index"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A GGUF file in a wheel.

    Attributes:
        package: The name of the distribution.
        version: Its exact version.
        member: Which file, or the end of its path, where the wheel has several; an empty string for the only one.
        sha256: Its digest; None where nobody said. pip has compared the wheel with the digest of the index.
    """

    package: str
    version: str
    member: str = ""
    sha256: str | None = None

    @classmethod
    def parse(cls, text: str) -> WheelModel | None:
        """The model that ``pypi:package==version[/file.gguf]`` names; None where the text begins otherwise.

        Raises:
            InvalidArgumentError: It begins so, and does not go on so.
        """
        if not text.lower().startswith(_SCHEME):
            return None
        name, digest = sha256_fragment(text[len(_SCHEME) :])
        match = _NAME.fullmatch(name)
        if match is None or (match["member"] and not is_safe(match["member"])):
            raise InvalidArgumentError(
                f"{text!r} names no file on the package index; it must be pypi:package==version, "
                "and pypi:package==version/file.gguf where there are several"
            )
        package = re.sub(r"[-_.]+", "-", match["package"]).lower()
        return cls(package, match["version"], match["member"] or "", digest)

    @property
    def reference(self) -> str:
        """The requirement, the file, and the digest."""
        text = f"{_SCHEME}{self.package}=={self.version}" + (f"/{self.member}" if self.member else "")
        return text + (f"#sha256={self.sha256}" if self.sha256 else "")

    @property
    def _key(self) -> str:
        return re.sub(r"[^A-Za-z0-9.-]", "-", f"{self.package}-{self.version}")

    def cached(self) -> Path | None:
        """The file, where it is here and whole."""
        files = []
        for path in sorted((cache.cache_dir() / _FOLDER / self._key).glob("*.gguf")):
            record = cache.read_record_of(path)
            right = record is not None and record.size == path.stat().st_size
            # What the file was called in the wheel is in the record.
            if right and record and self.sha256 in (None, record.sha256) and _is(record.alias, self.member):
                files.append(path)
        return files[0] if len(files) == 1 else None

    def offer(self) -> Offer:
        """What a pull would bring."""
        return Offer(self.reference, f"a file in the wheel {self.package} {self.version}", _UNKNOWN, 0)

    def pull(self, progress: Progress, *, force: bool = False) -> Path:
        """Download the wheel and take the file out.

        Raises:
            DownloadError: The wheel could not be downloaded.
            UnknownModelError: There is no such file in it, or there are several.
            ChecksumError: It has another digest.
        """
        if not force and (path := self.cached()):
            return path
        key = f"{_FOLDER}-{self._key}"
        with cache.locked_key(key, self.reference, progress):
            if not force and (path := self.cached()):
                return path
            work = cache.work_folder(key)
            try:
                with cache.disk_errors(work, f"pull {self.reference}", 0):
                    work.mkdir(parents=True, exist_ok=True)
                    return self._pull(work, progress)
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def _pull(self, work: Path, progress: Progress) -> Path:
        wheel = Wheel(self.package, self.version, 0, ())
        label = f"downloading {wheel.requirement}"
        folder = Path(tempfile.mkdtemp(prefix="wheel-", dir=work))
        archive = pypi.download(wheel, folder, lambda done: progress(done, 0, label))
        try:
            with zipfile.ZipFile(archive) as opened:
                member = self._choose([entry for entry in opened.namelist() if entry.endswith(".gguf")])
                size = opened.getinfo(member).file_size
                cache.require_room(work, f"unpack {member}", size)
                unpacked = work / "unpacked"
                with opened.open(member) as source, unpacked.open("wb") as sink:
                    digest = _copy(source, sink, Scaled(progress, f"unpacking {member}", 0, size))
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ChecksumError(f"{archive.name} is damaged: {error}") from error
        if self.sha256 not in (None, digest):
            raise ChecksumError(f"{member} in {archive.name} has sha256 {digest}, expected {self.sha256}")
        name = member.rpartition("/")[2]
        record = cache.Record(
            f"{_SCHEME}{self.package}=={self.version}/{member}", name, size, digest, _UNKNOWN, (wheel.requirement,)
        )
        return cache.publish_file(unpacked, cache.cache_dir() / _FOLDER / self._key / name, record, {})

    def _choose(self, members: list[str]) -> str:
        members = [member for member in members if is_safe(member)]
        wanted = [member for member in members if _is(member, self.member)]
        if len(wanted) == 1:
            return wanted[0]
        if not members:
            raise UnknownModelError(f"the wheel {self.package}=={self.version} has no GGUF file")
        shown = ", ".join(nearest(self.member, members) or members[:5])
        if not wanted:
            raise UnknownModelError(
                f"the wheel {self.package}=={self.version} has no file {self.member!r}; it has {shown}"
            )
        raise UnknownModelError(
            f"the wheel {self.package}=={self.version} has {len(wanted)} GGUF files; "
            f"say which: {_SCHEME}{self.package}=={self.version}/{wanted[0]}; it has {shown}"
        )

    def remove(self) -> bool:
        """Delete it."""
        path = self.cached()
        if path is None:
            return False
        with cache.disk_errors(path, f"remove {self.reference}", 0):
            path.unlink()
            path.with_name(path.name + ".json").unlink(missing_ok=True)
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
        return True


def _is(path: str, end: str) -> bool:
    return not end or path == end or path.endswith("/" + end)


def _copy(source: IO[bytes], sink: IO[bytes], report: Scaled) -> str:
    digest, done = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        sink.write(chunk)
        digest.update(chunk)
        done += len(chunk)
        report(done)
    return digest.hexdigest()


def found() -> list[Found]:
    """The models out of wheels that are here, those with an alias left out."""
    result = []
    for record_file in sorted((cache.cache_dir() / _FOLDER).glob("*/*.gguf.json")):
        path = record_file.with_name(record_file.name.removesuffix(".json"))
        record = cache.read_record_of(path)
        if record is not None and path.is_file():
            shown = f"{path.name}, out of a wheel"
            result.append(Found(record.alias, shown, record.licence, record.size, path, record.packages))
    return result
