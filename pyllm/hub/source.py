"""What every place has in common that models come from."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pyllm.errors import ChecksumError, InvalidArgumentError
from pyllm.hub.progress import Progress

_CHUNK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Offer:
    """What a pull would bring, for whoever has to agree to it.

    Attributes:
        alias: The reference that names it.
        description: What it is, in one line.
        licence: Its licence, as far as the place says.
        download_size: The bytes that a pull transfers; 0 where that is unknown.
    """

    alias: str
    description: str
    licence: str
    download_size: int


@dataclass(frozen=True, slots=True)
class Found:
    """A model that is here.

    Attributes:
        reference: What `Llama` and the command line call it.
        description: What it is, in one line.
        licence: Its licence, as far as that is known.
        size: Its size in bytes, all parts together.
        path: The file; of a split model the first part.
        packages: The requirements that it came from.
    """

    reference: str
    description: str
    licence: str
    size: int
    path: Path
    packages: tuple[str, ...] = ()


class Source(Protocol):
    """One model in one place."""

    @property
    def reference(self) -> str:
        """What it is called."""
        ...

    def cached(self) -> Path | None:
        """The file, where it is here and whole; asks nobody."""
        ...

    def offer(self) -> Offer:
        """What a pull would bring; may ask the place."""
        ...

    def pull(self, progress: Progress, *, force: bool = False) -> Path:
        """Bring it here, where it is not, or when forced."""
        ...

    def remove(self) -> bool:
        """Delete it; whether it was here."""
        ...


def sha256_fragment(text: str) -> tuple[str, str | None]:
    """Part an address from the digest behind it.

    Args:
        text: The address, perhaps with ``#sha256=<64 hexadecimal digits>`` behind it.

    Raises:
        InvalidArgumentError: What stands behind ``#`` is no digest.
    """
    address, mark, fragment = text.partition("#")
    if not mark:
        return address, None
    name, _, digest = fragment.partition("=")
    if name.lower() != "sha256" or not _SHA256.fullmatch(digest.lower()):
        raise InvalidArgumentError(
            f"behind {address} stands #{fragment}; it must be #sha256= and 64 hexadecimal digits"
            + (f", not {len(digest)}" if name.lower() == "sha256" else "")
        )
    return address, digest.lower()


def digest_of(path: Path, progress: Progress, label: str) -> str:
    """The sha256 of a file, in hexadecimal, with reports on the way."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(done, total, label)
    return digest.hexdigest()


def check_digest(path: Path, expected: str, what: str, progress: Progress) -> None:
    """Delete a file that is not what it should be, and say so.

    Raises:
        ChecksumError: Its digest is another one.
    """
    got = digest_of(path, progress, f"checking {what}")
    if got != expected:
        size = path.stat().st_size
        path.unlink()
        raise ChecksumError(
            f"{what} is not the file that was asked for: sha256 {got} after {size:,} bytes, "
            f"expected {expected}; it was deleted"
        )
