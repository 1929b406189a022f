"""One file over HTTP: resumed where it was cut off, and complete or not there."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllm.errors import DownloadError
from pyllm.version import __version__

_CHUNK = 1 << 18
_TIMEOUT_SECONDS = 30.0
_ATTEMPTS = 5
_BACKOFF_SECONDS = 0.5
_MAX_WAIT_SECONDS = 30.0
_MAGIC = b"GGUF"
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_LOCAL = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class Remote:
    """A file on a server.

    Attributes:
        url: Where it is.
        size: Its size in bytes, where that is known beforehand.
        headers: What is sent along to this server, and to no other that it redirects to.
        verified: Whether its digest is checked afterwards: then it may come unencrypted.
    """

    url: str
    size: int | None = None
    headers: Mapping[str, str] | None = None
    verified: bool = False


class _Cut(Exception):
    """The connection ended before the file did; what came is kept."""


class _Whole(Exception):
    """The server has nothing beyond what is here."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from an encrypted connection to an open one."""

    def __init__(self, open_allowed: bool) -> None:
        self._open_allowed = open_allowed

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_scheme(newurl, verified=self._open_allowed)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_scheme(url: str, *, verified: bool) -> None:
    """Refuse what cannot be trusted.

    Raises:
        DownloadError: It is no web address, or one without encryption and without a digest.
    """
    parts = urllib.parse.urlsplit(url)
    if not parts.hostname:
        raise DownloadError(f"{url} is no web address: it names no server")
    if parts.scheme == "https" or (parts.scheme == "http" and (verified or parts.hostname in _LOCAL)):
        return
    if parts.scheme == "http":
        raise DownloadError(
            f"{url} is not encrypted, so that anybody on the way could change it; "
            "use https, or say what must come: #sha256=<64 hexadecimal digits> behind the address"
        )
    raise DownloadError(f"{url} is not a web address: it must begin with https://")


def fetch(remote: Remote, partial: Path, report: Callable[[int, int], None]) -> None:
    """Bring a file here, going on where an earlier call was cut off.

    Args:
        remote: The file.
        partial: Where it is written. After an error it holds what has come so far, for the next call.
        report: Told the bytes that are there and the size of the whole, 0 where that is unknown. What it raises ends
            the transfer.

    Raises:
        DownloadError: The server refuses, sends something that is no GGUF file, or cannot be reached in 5 attempts
            of which none brings anything.
    """
    check_scheme(remote.url, verified=remote.verified)
    opener = urllib.request.build_opener(_Redirects(remote.verified))
    failures = 0
    while True:
        before = _size(partial)
        try:
            _attempt(remote, partial, opener, report)
            return
        except _Cut as cut:
            failures = 1 if _size(partial) > before else failures + 1
            if failures >= _ATTEMPTS:
                raise DownloadError(
                    f"could not download {_shown(remote.url)}: {cut}; {_size(partial):,} bytes are kept, and the next "
                    "attempt goes on from there"
                ) from cut.__cause__
            time.sleep(min(_BACKOFF_SECONDS * 2 ** (failures - 1), _MAX_WAIT_SECONDS))


def _attempt(
    remote: Remote, partial: Path, opener: urllib.request.OpenerDirector, report: Callable[[int, int], None]
) -> None:
    have = _size(partial)
    if remote.size is not None and have == remote.size:
        report(have, remote.size)
        return
    validator_file = partial.with_name(partial.name + ".etag")
    # Without a size and a validator, nobody knows whether it is still the same file.
    validator = _read_validator(validator_file, remote.url)
    if have and ((validator is None and remote.size is None) or (remote.size or have) < have):
        have = 0
    request = urllib.request.Request(_encoded(remote.url), headers={"User-Agent": f"pyllm/{__version__}"})
    request.add_header("Accept-Encoding", "identity")
    for name, value in (remote.headers or {}).items():
        request.add_unredirected_header(name, value)
    if have:
        request.add_header("Range", f"bytes={have}-")
        if validator is not None:
            request.add_header("If-Range", validator)
    try:
        response = _open(remote, opener, request, partial)
    except _Whole:
        report(have, have)
        return
    with response:
        start, total = _check_answer(remote, response, have)
        _write_validator(validator_file, remote.url, response)
        _copy(response, partial, start, total, report)


def _open(remote: Remote, opener: urllib.request.OpenerDirector, request: urllib.request.Request, partial: Path) -> Any:
    try:
        return opener.open(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and request.has_header("Range"):
                # With If-Range it is the same file as it was, of which a killed pull had everything.
                match = _CONTENT_RANGE.match(error.headers.get("Content-Range", ""))
                if match and match[3] == str(_size(partial)) and request.has_header("If-range"):
                    raise _Whole from error
                # What is here is not a beginning of what is there.
                partial.unlink(missing_ok=True)
                raise _Cut("the server has fewer bytes of it than are here") from error
            if error.code in _AGAIN:
                raise _Cut(f"the server says {error.code} {error.reason}") from error
            raise refused(remote.url, error.code, error.reason) from error
    except DownloadError:
        raise  # of a redirect that is not followed
    except (http.client.InvalidURL, ValueError) as error:  # of where it redirects to, too
        raise DownloadError(f"{_shown(remote.url)} is no web address, or leads to none: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DownloadError(f"could not download {_shown(remote.url)}: {reason}") from error
        raise _Cut(str(reason) or type(error).__name__) from error


def _check_answer(remote: Remote, response: Any, have: int) -> tuple[int, int]:
    """Where what comes begins, and the size of the whole, 0 where that is unknown."""
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise DownloadError(
            f"{_shown(remote.url)} is a page for people ({kind}) and not a GGUF file; "
            "take the address behind its download button"
        )
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"{_shown(remote.url)} comes compressed, though that was not asked for")
    length = response.length or 0  # what the header says, where that is a number
    if response.status != 206:
        start, total = 0, length
    else:
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if match is None or match[1] is None or int(match[1]) != have:
            raise DownloadError(
                f"{_shown(remote.url)}: asked for the bytes from {have:,} on, the server sent "
                f"{response.headers.get('Content-Range')!r}"
            )
        # Without a length of anything, its end cannot be told from a connection that was cut.
        start, total = have, (length and have + length) if match[3] == "*" else int(match[3])
    if remote.size is not None and total and total != remote.size:
        raise DownloadError(f"{_shown(remote.url)} has {total:,} bytes, and {remote.size:,} were announced")
    return start, total or remote.size or 0


def _copy(
    response: http.client.HTTPResponse, partial: Path, start: int, total: int, report: Callable[[int, int], None]
) -> None:
    with partial.open("r+b" if start else "wb") as sink:
        sink.seek(start)
        sink.truncate()
        done = start
        report(done, total)
        while chunk := _read(response):
            if done == 0 and not chunk.startswith(_MAGIC[: len(chunk)]):
                raise DownloadError(f"what comes is not a GGUF file: it begins with {chunk[:16]!r}")
            sink.write(chunk)
            done += len(chunk)
            if total and done > total:
                raise DownloadError(f"more than the {total:,} bytes came that were announced")
            report(done, total)
    if total and done < total:
        raise _Cut(f"the connection ended after {done:,} of {total:,} bytes")
    if done < len(_MAGIC):
        raise DownloadError(f"what comes is not a GGUF file: it ends after {done} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)  # what is there: nothing of it is lost when the rest does not come
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"the connection broke: {error or type(error).__name__}") from error


def refused(url: str, code: int, reason: str) -> DownloadError:
    """The error for an answer that no second attempt changes."""
    hints = {
        401: "; it wants to know who asks",
        403: "; it does not let everybody have it",
        404: "; there is nothing at this address",
        410: "; it is there no more",
    }
    return DownloadError(
        f"could not download {_shown(url)}: the server says {code} {reason}{hints.get(code, '')}", code=code
    )


def _encoded(url: str) -> str:
    """An address as it must be sent: blanks, and letters that are not ASCII, as %XX."""
    return urllib.parse.quote(url, safe="!#$%&'()*+,/:;=?@[]~")


def _shown(url: str) -> str:
    """An address without what may be secret in it: the query, a user, a password."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_validator(path: Path, url: str) -> str | None:
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return str(noted["validator"]) if noted["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_validator(path: Path, url: str, response: Any) -> None:
    etag = response.headers.get("ETag")
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    if validator:
        path.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)
