"""A server with models on it, which can be slow, forgetful and hostile; and one that speaks like the hub."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field

CHUNK = 16384


@dataclass
class Asked:
    """One request that came."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        cut_after: Bytes after which a transfer is cut off, while `cuts` is above 0.
        cuts: How many transfers are still to be cut off.
        statuses: Answers to give before anything else, each once, in this order.
        delay: Seconds before each chunk.
        ignore_range: Send everything, whatever was asked for.
        wrong_range: Say that what comes begins elsewhere.
        no_length: Send in chunks, without a length.
        flip: Change a bit of what is sent.
    """

    cut_after: int = 0
    cuts: int = 0
    statuses: list[int] = field(default_factory=list)
    delay: float = 0.0
    ignore_range: bool = False
    wrong_range: bool = False
    no_length: bool = False
    flip: bool = False


class WebServer:
    """Files on localhost.

    Attributes:
        files: What it serves, by path.
        types: Content types other than that of plain bytes, by path.
        redirects: Where a path leads instead.
        asked: Every request that came.
        sent: Bytes sent, by path.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[Asked] = []
        self.sent: Counter[str] = Counter()
        self.faults = Faults()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.close_connection = True
                server.asked.append(Asked(self.command, self.path, dict(self.headers)))
                if server.faults.statuses and self.command == "GET":
                    server.plain(self, server.faults.statuses.pop(0))
                else:
                    server.answer(self, urllib.parse.unquote(self.path.partition("?")[0]))

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def requests(self, method: str = "GET", containing: str = "") -> list[Asked]:
        return [asked for asked in self.asked if asked.method == method and containing in asked.path]

    def answer(self, request: http.server.BaseHTTPRequestHandler, path: str) -> None:
        if path in self.redirects:
            self.plain(request, 302, {"Location": self.redirects[path]})
        elif path in self.files:
            self.send(request, path, self.files[path], {"ETag": f'"{len(self.files[path])}-{hash(self.files[path])}"'})
        else:
            self.plain(request, 404)

    def plain(
        self,
        request: http.server.BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        kind: str = "text/plain",
    ) -> None:
        request.send_response(status)
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Connection", "close")
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def send(
        self, request: http.server.BaseHTTPRequestHandler, path: str, data: bytes, headers: dict[str, str]
    ) -> None:
        """A file, or a part of it."""
        faults, start = self.faults, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        same = request.headers.get("If-Range") in (None, headers.get("ETag"))
        if wanted and same and not faults.ignore_range:
            start = int(wanted[1])
            if start >= len(data):
                self.plain(request, 416, {"Content-Range": f"bytes */{len(data)}"})
                return
            request.send_response(206)
            shown = start + 1 if faults.wrong_range else start
            request.send_header("Content-Range", f"bytes {shown}-{len(data) - 1}/{len(data)}")
        else:
            request.send_response(200)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Type", self.types.get(path, "application/octet-stream"))
        if not faults.no_length:
            request.send_header("Content-Length", str(len(data) - start))
        request.send_header("Connection", "close")
        request.end_headers()
        if request.command == "HEAD":
            return
        end = len(data)
        if faults.cuts > 0:
            faults.cuts -= 1
            end = min(end, start + faults.cut_after)
        if faults.flip:
            data = data[:-1] + bytes([data[-1] ^ 1])
        try:
            for at in range(start, end, CHUNK):
                if faults.delay:
                    time.sleep(faults.delay)
                piece = data[at : min(at + CHUNK, end)]
                request.wfile.write(piece)
                self.sent[path] += len(piece)
        except OSError:
            pass  # nobody reads any more


class Hub(WebServer):
    """A server with the paths of the Hugging Face hub. Bytes come from another host name, as from its CDN.

    Attributes:
        repos: Files by repository and revision.
        private: Repositories that need the token.
        gated: Repositories whose terms the account has not accepted.
        token: The token that is right.
    """

    def __init__(self) -> None:
        super().__init__()
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.token = "hf_right"

    def add(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Put files into a repository; returns the commit."""
        self.repos.setdefault(repo, {})[revision] = files
        commit = self.commit(repo, revision)
        self.repos[repo][commit] = files
        return commit

    def commit(self, repo: str, revision: str) -> str:
        if re.fullmatch(r"[0-9a-f]{40}", revision):
            return revision
        files = self.repos[repo][revision]
        return hashlib.sha1(repr(sorted((name, hash(data)) for name, data in files.items())).encode()).hexdigest()

    def answer(self, request: http.server.BaseHTTPRequestHandler, path: str) -> None:
        if path.startswith("/cdn/"):
            digest = path.removeprefix("/cdn/")
            for data in (data for repo in self.repos.values() for files in repo.values() for data in files.values()):
                if hashlib.sha256(data).hexdigest() == digest:
                    self.send(request, path, data, {"ETag": f'"{digest}"'})
                    return
            self.plain(request, 404)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(request, match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(request, match[1], match[2], match[3])
        else:
            self.plain(request, 404)

    def _may(self, request: http.server.BaseHTTPRequestHandler, repo: str, revision: str, *, bytes_: bool) -> bool:
        authorised = request.headers.get("Authorization") == f"Bearer {self.token}"
        if repo not in self.repos or (repo in self.private and not authorised):
            self.plain(request, 404 if authorised else 401, {"X-Error-Code": "RepoNotFound"})
        elif bytes_ and repo in self.gated:
            self.plain(request, 403, {"X-Error-Code": "GatedRepo"})
        elif revision not in self.repos[repo]:
            self.plain(request, 404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    def _info(self, request: http.server.BaseHTTPRequestHandler, repo: str, revision: str) -> None:
        if not self._may(request, repo, revision, bytes_=False):
            return
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "blobId": hashlib.sha1(data).hexdigest(),
                "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134},
            }
            for name, data in self.repos[repo][revision].items()
        ]
        info = {
            "id": repo,
            "modelId": repo,
            "sha": self.commit(repo, revision),
            "private": repo in self.private,
            "cardData": {"license": "apache-2.0"},
            "tags": [],
            "siblings": siblings,
        }
        self.plain(request, 200, body=json.dumps(info).encode(), kind="application/json")

    def _file(self, request: http.server.BaseHTTPRequestHandler, repo: str, revision: str, name: str) -> None:
        if not self._may(request, repo, revision, bytes_=True):
            return
        data = self.repos[repo][revision].get(name)
        commit = self.commit(repo, revision)
        if data is None:
            self.plain(request, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        digest = hashlib.sha256(data).hexdigest()
        headers = {
            "Location": f"http://localhost:{self.port}/cdn/{digest}?signature={len(self.asked)}",
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(data)),
            "ETag": f'"{digest}"',
        }
        self.plain(request, 302, headers)
