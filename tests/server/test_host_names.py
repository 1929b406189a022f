"""Under which names a server may be asked: a web page must not get at it by giving its own name this address."""

from __future__ import annotations

import logging
import socket

import httpx
import pytest

from pyllm.server.auth import HostNames
from pyllm.server.run import ListenError, bind


def status(url: str, host: str, path: str = "/v1/models", **headers: str) -> int:
    return httpx.get(url + path, headers={"Host": host, **headers}, timeout=60).status_code


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8080",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:9",
        "LOCALHOST.",
        "x.localhost",
        "10.0.0.1:80",
    ],
)
def test_addresses_and_localhost_are_names_of_the_server(server, host: str) -> None:
    assert status(server.url, host) == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.nip.io"])
@pytest.mark.parametrize("path", ["/v1/models", "/", "/health", "/slots", "/no/such"])
def test_other_names_are_refused_on_loopback_without_a_key(server, host: str, path: str) -> None:
    answer = httpx.get(server.url + path, headers={"Host": host}, timeout=60)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_not_allowed"
    assert "--allowed-hosts" in answer.json()["error"]["message"]


def test_with_a_key_any_name_will_do(start, engine) -> None:
    server = start(engine, api_keys=("key",))
    assert status(server.url, "box.example", Authorization="Bearer key") == 200
    assert status(server.url, "box.example") == 401


def test_names_that_are_allowed(start, engine) -> None:
    server = start(engine, allowed_hosts=("box.example", ".below.example"))
    found = {
        host: status(server.url, host) for host in ("box.example:80", "a.below.example", "other.example", "localhost")
    }
    assert found == {"box.example:80": 200, "a.below.example": 200, "other.example": 403, "localhost": 200}
    assert status(start(engine, allowed_hosts=("*",)).url, "any.example") == 200


def test_programs_that_name_no_host_are_served(server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert connection.recv(1 << 16).split()[1] == b"200"


def test_without_a_word_any_name_is_allowed() -> None:
    names = HostNames(None)
    assert names.allow("any.example")
    names.restrict(["box"])
    assert (names.allow("any.example"), names.allow("box:80")) == (False, True)
    names = HostNames(("a.example",))
    names.restrict(["box"])
    assert (names.allow("a.example"), names.allow("box")) == (True, False)


# ---- where it listens


def test_several_addresses_have_one_port() -> None:
    sockets = bind(["127.0.0.1", "127.0.0.2"], 0)
    try:
        assert len({one.getsockname()[1] for one in sockets}) == 1
        assert [one.getsockname()[0] for one in sockets] == ["127.0.0.1", "127.0.0.2"]
    finally:
        for one in sockets:
            one.close()


def test_a_port_that_is_taken_says_what_to_do() -> None:
    (first,) = bind(["127.0.0.1"], 0)
    with first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(ListenError, match=rf"port {port} of 127.0.0.1 is taken.*--port"):
            bind(["127.0.0.1"], port)
    with pytest.raises(ListenError, match=r"no address .no-such-host\.invalid"):
        bind(["no-such-host.invalid"], 0)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="this system cannot share a port")
def test_a_port_can_be_shared() -> None:
    (first,) = bind(["127.0.0.1"], 0, reuse_port=True)
    with first:
        (second,) = bind(["127.0.0.1"], first.getsockname()[1], reuse_port=True)
        with second:
            assert second.getsockname() == first.getsockname()


def test_a_process_at_two_addresses_says_what_it_serves(serve, tiny_models) -> None:
    process = serve(tiny_models["llama"], "-c", "512", "-np", "2", "-a", "tiny,other", "--host", "127.0.0.1,127.0.0.2")
    url = process.url
    for address in (url, url.replace("127.0.0.1", "127.0.0.2")):
        assert httpx.get(address + "/health", timeout=60).status_code == 200
    said = "\n".join(line["message"] for line in process.lines)
    assert "model tiny, 2 slots of 256 tokens" in said
    assert f"the page is at {url}/; no API key is needed" in said
    assert f"also at {url.replace('127.0.0.1', '127.0.0.2')}" in said


def test_what_is_taken_is_said_before_the_model_is_loaded(serve, tiny_models) -> None:
    (taken,) = bind(["127.0.0.1"], 0)
    with taken:
        taken.listen()
        process = serve(tiny_models["llama"], "--port", taken.getsockname()[1])
        assert process.wait() == 1
    (message,) = [line["message"] for line in process.lines if line["level"] == "error"]
    assert "is taken by another program" in message
    assert process.rest == []


# ---- what the log says of refusals


def test_a_refusal_has_its_reason_in_the_log(server, caplog) -> None:
    logger = logging.getLogger("pyllm.server.access")
    with caplog.at_level(logging.INFO, "pyllm.server.access"):
        logger.addHandler(caplog.handler)
        try:
            server.post("/v1/completions", {"prompt": 5})
            server.get("/no/such/path")
            server.post("/v1/messages", {"messages": 5})
        finally:
            logger.removeHandler(caplog.handler)
    lines = [record.fields for record in caplog.records]
    refused = [line for line in lines if line["status"] >= 400]
    assert len({line["path"] for line in refused}) == 3
    assert all(len(line["error"]) > 10 for line in refused)
    assert any("prompt" in line["error"] for line in refused)


# ---- web pages from elsewhere


def preflight(url: str, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "Authorization",
    }
    return httpx.options(url + "/completions", headers=headers, timeout=60)


def test_localhost_is_every_origin_of_this_machine(start, engine) -> None:
    url = start(engine, cors_origins=("localhost",), api_keys=("key",), cors_credentials=True).url
    for origin in (
        "http://localhost",
        "http://localhost:8080",
        "http://127.0.0.1:3000",
        "http://[::1]:3000",
        "https://[::1]",
    ):
        answer = preflight(url, origin)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
        assert answer.headers["access-control-allow-methods"] == "GET, POST, DELETE, OPTIONS"
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    for origin in ("http://evil.com", "http://notlocalhost", "http://localhost.evil.com", "null"):
        answer = preflight(url, origin)
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers


def test_methods_and_headers_can_be_chosen(start, engine) -> None:
    url = start(engine, cors_origins=("*",), cors_methods=("POST",), cors_headers=("X-One",)).url
    headers = {"Origin": "http://a.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(url + "/completions", headers=headers, timeout=60)
    assert answer.headers["access-control-allow-methods"] == "POST"
    assert "X-One" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers
