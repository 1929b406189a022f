"""Raw sockets: no requests, slow ones and large ones, too many of them; and answers nobody takes."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from support.engines import Prompted, wait_until_idle
from support.servers import Served
from support.waiting import LIMIT, wait_for

from pyllm import Model
from pyllm.server import Settings, active_request, make_app
from pyllm.server.run import Runner

# More than what lies in small buffers of sockets.
MUCH = {"prompt": ["the cat"] * 4, "max_tokens": 100, "logprobs": 50, "stream": True}
GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect(server: Served, data: bytes = b"", buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    connection.sendall(data)
    return connection


def shrink(server: Served) -> Served:
    """Let the sockets of a server have small buffers."""
    for one in server.runner.servers[0].sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    return server


def request(path: str, body: Any, *headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + data


def read(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def answer(server: Served, data: bytes) -> tuple[int, bytes]:
    """The status and the body of an answer, on a connection of its own."""
    with connect(server, data) as connection:
        head, _, body = read(connection).partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


def post(server: Served, path: str, body: Any, *headers: str) -> tuple[int, dict[str, Any]]:
    status, text = answer(server, request(path, body, "Connection: close", *headers))
    return status, json.loads(text)


@pytest.fixture
def hasty(start: Callable[..., Served], engine: Prompted) -> Served:
    """A server that waits for nobody."""
    return start(engine, head_timeout=0.3, timeout=0.6, max_body_bytes=1 << 20)


@pytest.mark.parametrize("protocol", ["h11", "httptools"])
def test_each_protocol_of_uvicorn_has_the_limits(engine: Prompted, protocol: str) -> None:
    pytest.importorskip(protocol)
    runner = Runner(make_app(engine, Settings(head_timeout=0.3)), port=0, http=protocol)
    thread = threading.Thread(target=runner.run)
    thread.start()
    wait_for(lambda: runner.started and runner.servers)
    with httpx.Client() as http:
        server = Served(runner.address, runner, runner.pyllm, thread, http)
        assert answer(server, GET.replace(b"Host", b"Connection: close\r\nHost"))[0] == 200
        with connect(server) as connection:
            assert read(connection) == b""
        with connect(server) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /" + b"x" * 2_000_000)
            assert read(connection)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 431")
        assert server.get("/health").status_code == 200
        server.stop()


# ---- requests that do not come


def test_a_connection_without_a_request_is_closed(hasty: Served) -> None:
    with connect(hasty) as connection:
        assert read(connection) == b""


@pytest.mark.parametrize("answered", [False, True])
def test_a_head_that_comes_byte_by_byte(hasty: Served, answered: bool) -> None:
    with connect(hasty) as connection:
        if answered:
            connection.sendall(GET)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        with pytest.raises(OSError):
            for byte in GET[:-1] + b"X-More: " + b"x" * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)


def test_a_refused_body_does_not_keep_a_connection(hasty: Served) -> None:
    head = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    with connect(hasty, head) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 404")
        with pytest.raises(OSError):
            for _ in range(1000):
                connection.sendall(b"x")
                time.sleep(0.02)


def test_a_connection_in_use_stays(start: Callable[..., Served], engine: Prompted) -> None:
    # In use for longer than the limits, with pauses that are far below them on a busy machine, too.
    server = start(engine, head_timeout=3, timeout=3)
    with connect(server) as connection:
        for _ in range(40):
            connection.sendall(GET)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
            time.sleep(0.1)


def test_a_text_that_takes_long_keeps_its_connection(hasty: Served, engine: Prompted) -> None:
    engine.slowly(0.1)
    status, body = post(hasty, "/v1/completions", {"prompt": "the", "max_tokens": 12})
    assert (status, body["usage"]["completion_tokens"]) == (200, 12)


def test_a_body_that_was_refused_may_still_come(server: Served) -> None:
    with connect(server, request("/nothing", b"x" * 1_000_000) + GET) as connection:
        said = b""
        while said.count(b"HTTP/1.1 ") < 2:
            part = connection.recv(1 << 16)
            assert part, said
            said += part
    assert said.startswith(b"HTTP/1.1 404")
    assert b"HTTP/1.1 200" in said


# ---- answers that nobody takes


@pytest.mark.parametrize("keep", [False, True])
def test_an_answer_that_is_not_read_is_dropped(hasty: Served, keep: bool) -> None:
    shrink(hasty)
    body = {"content": "a b " * 20_000, "with_pieces": True}
    headers = [] if keep else ["Connection: close"]
    with connect(hasty, request("/tokenize", body, *headers), buffer=4096):
        wait_for(lambda: hasty.runner.server_state.connections)
        wait_for(lambda: not hasty.runner.server_state.connections)


def test_a_slow_reader_delays_no_other_client(start: Callable[..., Served], engine: Prompted) -> None:
    server = shrink(start(engine))
    engine.processor = lambda ids, logits: logits.__setitem__(engine.vocab.eog_tokens, -1e30)
    with connect(server, request("/v1/completions", MUCH), buffer=4096) as slow:
        wait_for(lambda: engine.metrics().n_running > 0)
        for _ in range(3):
            status, other = post(server, "/v1/completions", {"prompt": "the", "max_tokens": 5})
            assert (status, other["usage"]["completion_tokens"]) == (200, 5)
        # It goes on for the slow one, too: all of its text is there when it comes to read.
        wait_for(lambda: engine.metrics().n_running == 0)
        text = bytearray()
        while b"data: [DONE]" not in text:
            text += slow.recv(1 << 16)
    wait_until_idle(engine)


def test_what_is_not_read_is_not_kept_without_end(
    start: Callable[..., Served], engine: Prompted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_request, "MOST_UNREAD", 2000)
    server = shrink(start(engine))
    engine.processor = lambda ids, logits: logits.__setitem__(engine.vocab.eog_tokens, -1e30)
    before = engine.metrics().n_cancelled
    body = {"prompt": "the cat", "max_tokens": 400, "logprobs": 100, "stream": True}
    with connect(server, request("/v1/completions", body), buffer=4096) as slow:
        wait_for(lambda: engine.metrics().n_cancelled == before + 1)
        text = bytearray()
        while b"not_read" not in text:
            text += slow.recv(1 << 16)
    wait_until_idle(engine)


@pytest.mark.parametrize("stream", [True, False])
def test_what_comes_at_once_is_not_taken_for_unread(
    server: Served, engine: Prompted, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(active_request, "MOST_UNREAD", 8000)
    engine.processor = lambda ids, logits: logits.__setitem__(engine.vocab.eog_tokens, -1e30)
    body = {"prompt": "a b c d " * 100, "max_tokens": 5, "n": 2, "echo": True, "logprobs": 20, "stream": stream}
    said = server.post("/v1/completions", body).text
    assert "not_read" not in said
    assert said.count('"finish_reason":"length"') == 2


@pytest.mark.slow
def test_what_was_generated_is_read_before_the_end(start: Callable[..., Served], tiny_model: Model) -> None:
    with Prompted(tiny_model, n_ctx=2048, n_parallel=4, n_threads=1) as engine:
        server = shrink(start(engine))
        engine.processor = lambda ids, logits: logits.__setitem__(engine.vocab.eog_tokens, -1e30)
        with connect(server, request("/v1/completions", MUCH), buffer=4096) as slow:
            wait_for(lambda: engine.metrics().n_generated_tokens == 4 * 100)
            server.runner.drain()
            time.sleep(0.6)
            text = bytearray()
            while b"data: [DONE]" not in text:
                text += slow.recv(1 << 16)
        server.thread.join(LIMIT)
        assert not server.thread.is_alive()


# ---- too many


def test_too_many_connections(start: Callable[..., Served], engine: Prompted) -> None:
    server = start(engine, max_connections=4, retry_after=9)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(connect(server))
        wait_for(lambda: len(server.runner.server_state.connections) == 4)
        status, body = answer(server, GET)
        assert status == 503
        assert "4 connections" in json.loads(body)["error"]["message"]
        refused = server.get("/v1/models")
        assert refused.headers["retry-after"] == "9"
        assert refused.headers["connection"] == "close"
        assert server.get("/health").status_code == 200
        # Beyond some more, nothing is said any more.
        for _ in range(80):
            stack.enter_context(connect(server))
        wait_for(lambda: len(server.runner.server_state.connections) < 80)
        with connect(server) as connection:
            assert read(connection) == b""
    wait_for(lambda: not server.runner.server_state.connections)
    assert server.get("/v1/models").status_code == 200


def test_many_clients_behind_a_prefix(start: Callable[..., Served], engine: Prompted) -> None:
    server = start(engine, max_connections=1, api_prefix="/llm")
    with connect(server):
        wait_for(lambda: len(server.runner.server_state.connections) == 1)
        assert server.get("/llm/v1/models").status_code == 503
        assert server.get("/llm/v1/messages").json()["error"]["type"] == "overloaded_error"
        assert server.get("/llm/health").status_code == 200


# ---- what HTTP allows, and what it does not


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Big: " + b"x" * 2_000_000,
        b"GET /" + b"x" * 2_000_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-More: y\r\n" * 200_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=range(10),
)
def test_what_is_no_http(hasty: Served, data: bytes) -> None:
    with connect(hasty) as connection:
        try:
            connection.sendall(data)
        except OSError:  # refused before the end
            pass
        said = read(connection)
    assert said == b"" or said.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")), said[:200]
    assert hasty.get("/health").status_code == 200


def test_requests_that_do_not_wait_for_answers(server: Served) -> None:
    bodies = [{"content": "the " * n} for n in (1, 5, 9)]
    data = b"".join(request("/tokenize", body) for body in bodies) + request("/tokenize", {}, "Connection: close")
    with connect(server, data) as connection:
        said = read(connection)
    counts = [len(json.loads(part.split(b"\r\n\r\n", 1)[1])["tokens"]) for part in said.split(b"HTTP/1.1 200")[1:3]]
    assert counts == sorted(counts)
    assert said.count(b"HTTP/1.1 200") == 3
    assert said.count(b"HTTP/1.1 400") == 1


def test_a_stream_for_http_1_0(server: Served) -> None:
    body = json.dumps({"prompt": "the", "max_tokens": 3, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    status, said = answer(server, head + body)
    assert status == 200
    assert b"data: [DONE]\n\n" in said


def test_a_client_that_asks_before_it_sends(hasty: Served) -> None:
    data = json.dumps({"content": "the cat"}).encode()
    head = f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {len(data)}\r\n\r\n"
    with connect(hasty, head.encode()) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100")
        connection.sendall(data)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n"
    with connect(hasty, head.encode()) as connection:
        assert read(connection).startswith(b"HTTP/1.1 413")


def test_pieces_without_a_length(hasty: Served) -> None:
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with connect(hasty, head) as connection:
        try:
            for _ in range(40):
                connection.sendall(piece)
        except OSError:
            pass
        assert read(connection).startswith(b"HTTP/1.1 413")
    whole = b'c\r\n{"content": \r\n5\r\n"the"\r\n1\r\n}\r\n0\r\n\r\n'
    assert answer(hasty, head + whole)[0] == 200


# ---- bodies


DEEP = b'{"prompt": "x", "json_schema": ' + b'{"items": ' * 150 + b"{}" + b"}" * 151


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"prompt": "x", "prompt": "y"}', 200),
        (b'{"prompt": "\xff\xfe"}', 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "x", "stop": "\\udfff"}', 400),
        (b'{"prompt": "x", "stop": ["a", "\\ud800"]}', 400),
        (b'{"prompt": "x", "suffix": "\\ud800"}', 400),
        (b'{"prompt": "x", "grammar": "root ::= \\"\\ud800\\""}', 400),
        (b'{"prompt": "x", "logit_bias": {"\\ud800": 1}}', 400),
        (b'{"prompt": "x", "samplers": ["\\ud800"]}', 400),
        (b'{"prompt": "x", "logit_bias": {"' + b"9" * 5000 + b'": 1}}', 400),
        (b'{"prompt": "x", "dry_multiplier": 1, "dry_sequence_breakers": ["\\ud800"]}', 400),
        (b'{"prompt": "x", "temperature": 1e400}', 400),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"prompt": "x", "seed": ' + b"9" * 250 + b"}", 200),
        (b'{"prompt": "x", "temperature": NaN}', 400),
        (b'{"prompt": "x", "temperature": -Infinity}', 400),
        (b'{"prompt": ' + b"[" * 1000 + b"]" * 1000 + b"}", 400),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (DEEP, 400),
        (b'{"prompt": [1e3]}', 400),
        (b'{"prompt": [-1]}', 400),
        ('{"max_tokens": 1, "prompt": "x"}'.encode("utf-16"), 200),
        (b'\xef\xbb\xbf{"prompt": "x"}', 200),
    ],
    ids=range(23),
)
def test_json_at_its_limits(server: Served, body: bytes, status: int) -> None:
    body = body.replace(b'{"prompt', b'{"max_tokens": 1, "prompt', 1)
    found, said = post(server, "/v1/completions", body)
    assert found == status, said
    if status == 400:
        assert said["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_compressed_bodies_are_refused(server: Served, encoding: str) -> None:
    status, said = post(server, "/tokenize", b"\x1f\x8b\x08\x00", f"Content-Encoding: {encoding}")
    assert status == 415
    assert "encoding" in said["error"]["message"]
    assert post(server, "/tokenize", {"content": "x"}, "Content-Encoding: identity")[0] == 200


def test_half_a_character_in_a_chat(server: Served) -> None:
    for content in ("\ud800", [{"type": "text", "text": "\udfff"}]):
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
        for path in ("/v1/chat/completions", "/v1/messages", "/apply-template"):
            status, _ = post(server, path, body)
            assert status in (200, 400), (path, content)
