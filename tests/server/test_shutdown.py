"""Ends of the program: killed, told to stop, told twice, without a place to listen at; and beginnings after these."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import programs
from support.waiting import wait_for

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")

# Takes many seconds, and can be cut off at any moment.
ENDLESS = {"prompt": "the cat", "max_tokens": -1, "stream": True, "logit_bias": {"2": -100}}


def stream(port: int, body: dict[str, Any]) -> socket.socket:
    """Ask for a stream, and wait for its beginning."""
    connection = socket.create_connection(("127.0.0.1", port), 30)
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    found = b""
    while b"data: " not in found:
        part = connection.recv(4096)
        assert part, found
        found += part
    assert found.startswith(b"HTTP/1.1 200")
    return connection


def rest(connection: socket.socket) -> bytes:
    """What still comes; it ends when the other side does."""
    found = bytearray()
    with connection:
        try:
            while part := connection.recv(1 << 16):
                found += part
        except ConnectionError:
            pass
    return bytes(found)


def answers(url: str) -> bool:
    response = httpx.post(f"{url}/v1/completions", json={"prompt": "the", "max_tokens": 2}, timeout=60)
    return response.status_code == 200 and response.json()["usage"]["completion_tokens"] > 0


def test_killed_in_mid_stream_and_started_again(serve, tiny_models) -> None:
    port = programs.free_port()
    flags = (tiny_models["llama"], "-c", "16384", "-np", "4", "--port", port)
    first = serve(*flags)
    assert first.url.endswith(f":{port}")
    connections = [stream(port, ENDLESS) for _ in range(3)]
    os.kill(first.process.pid, signal.SIGKILL)
    for connection in connections:
        # The stream ends, and it can be seen that it has no end: chunked encoding has a last chunk.
        text = rest(connection)
        assert b"[DONE]" not in text
        assert not text.endswith(b"0\r\n\r\n")
    assert first.wait() == -signal.SIGKILL
    again = serve(*flags)
    assert answers(again.url)


@pytest.mark.slow
def test_saved_slots_outlive_the_process(serve, tiny_models, tmp_path: Path) -> None:
    flags = (tiny_models["llama"], "-c", "512", "-np", "2", "--slot-save-path", tmp_path)
    first = serve(*flags)
    with httpx.Client(base_url=first.url, timeout=60) as client:
        client.post("/completion", json={"prompt": "the cat sat on the mat " * 8, "n_predict": 8, "id_slot": 0})
        saved = client.post("/slots/0?action=save", json={"filename": "kept"}).json()
        assert saved["n_saved"] > 8
        threading.Timer(0.3, os.kill, (first.process.pid, signal.SIGKILL)).start()
        with pytest.raises(httpx.TransportError):
            while True:
                client.post("/slots/0?action=save", json={"filename": "again"})
    with httpx.Client(base_url=serve(*flags).url, timeout=60) as client:
        restored = client.post("/slots/0?action=restore", json={"filename": "kept"})
        assert restored.json()["n_restored"] == saved["n_saved"]
        # Of the other one there is a whole file, or none: a signal comes when it comes.
        again = client.post("/slots/1?action=restore", json={"filename": "again"})
        if (tmp_path / "again").exists():
            assert again.json()["n_restored"] == saved["n_saved"]
        else:
            assert again.status_code == 400 and "again" in again.json()["error"]["message"]


@pytest.mark.slow
def test_clients_see_that_a_stream_was_broken(serve, tiny_models) -> None:
    process = serve(tiny_models["llama"], "-c", "16384", "-np", "4")
    with (
        pytest.raises(httpx.TransportError),
        httpx.stream("POST", f"{process.url}/v1/completions", json=ENDLESS, timeout=60) as response,
    ):
        for number, _ in enumerate(response.iter_lines()):
            if number == 5:
                os.kill(process.process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_socket_that_was_left_is_taken_again(serve, tiny_models, tmp_path: Path) -> None:
    path = tmp_path / "pyllm.sock"
    flags = (tiny_models["llama"], "-c", "256", "--host", path)
    first = serve(*flags)
    assert first.url == f"unix:{path}"
    os.kill(first.process.pid, signal.SIGKILL)
    first.wait()
    assert path.exists()
    assert serve(*flags).url
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://pyllm", timeout=60) as client:
        assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("second", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_second_signal_ends_requests_at_once(serve, tiny_models, second: signal.Signals) -> None:
    process = serve(tiny_models["llama"], "-c", "16384", "-np", "4", "--shutdown-timeout", "600")
    connection = stream(int(process.url.rpartition(":")[2]), ENDLESS)
    process.process.send_signal(signal.SIGINT)
    wait_for(lambda: httpx.get(f"{process.url}/ready", timeout=60).status_code == 503)
    time.sleep(0.2)
    assert process.process.poll() is None
    process.process.send_signal(second)
    assert b"[DONE]" not in rest(connection)
    assert process.wait() == 0
    assert "Traceback" not in "".join(process.rest)


@pytest.mark.slow
def test_a_signal_ends_an_idle_server(serve, tiny_models) -> None:
    process = serve(tiny_models["llama"], "-c", "256")
    assert process.url
    process.process.send_signal(signal.SIGINT)
    assert process.wait() == 0
    assert process.rest == []


@pytest.mark.parametrize(
    "host",
    [
        "/no/such/folder/x.sock",
        pytest.param("192.0.2.1", marks=pytest.mark.slow),
        pytest.param("no-such-host.invalid", marks=pytest.mark.slow),
    ],
)
def test_an_address_that_cannot_be_bound(tiny_models, host: str) -> None:
    done = programs.start("serve", tiny_models["llama"], "-c", "256", "-t", "1", "--host", host, "--port", "0")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "ERROR" in done.stderr
