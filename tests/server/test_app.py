"""What every request passes: keys, limits, errors; and what tells about the server."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Annotated, Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyllm.errors import InvalidArgumentError
from pyllm.network import is_loopback
from pyllm.server import APIError, Settings, make_app
from pyllm.server.wire import FINITE, Wire, decode


class Numbers(Wire):
    n: int | None = None
    x: Annotated[float, FINITE] | None = None


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


# ---- about the server


def test_health_ready_and_models(server, client) -> None:
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/v1/health").status_code == server.get("/ready").status_code == 200
    (model,) = client.models.list().data
    assert model.id == "tiny" == client.models.retrieve("tiny").id
    assert model.meta["n_vocab"] == server.state.model.n_vocab
    assert error_of(server.get("/v1/models/huge"), 404)["code"] == "model_not_found"


def test_props(server, engine) -> None:
    props = server.get("/props").json()
    assert props["total_slots"] == 4
    assert props["default_generation_settings"]["n_ctx"] == engine.context.n_ctx_seq
    assert props["model_alias"] == "tiny"
    assert "{%" in props["chat_template"]


def test_metrics(server) -> None:
    before = numbers(server)
    server.post("/v1/completions", {"prompt": "the cat", "max_tokens": 3, "logit_bias": {"2": -100}})
    now = numbers(server)
    assert now["llamacpp:tokens_predicted_total"] == before["llamacpp:tokens_predicted_total"] + 3
    assert now["pyllm_time_to_first_token_seconds_count"] == before["pyllm_time_to_first_token_seconds_count"] + 1
    assert now["llamacpp:requests_processing"] == now["llamacpp:requests_deferred"] == 0
    assert 0 <= now["llamacpp:kv_cache_usage_ratio"] <= 1


def test_paths_that_nobody_made_are_counted_as_one(server) -> None:
    for i in range(3):
        server.get(f"/nothing/{i}")
    paths = {
        sample.labels["path"]
        for family in text_string_to_metric_families(server.get("/metrics").text)
        for sample in family.samples
        if "path" in sample.labels
    }
    assert "other" in paths
    assert not any(path.startswith("/nothing") for path in paths)


def numbers(server) -> dict[str, float]:
    families = text_string_to_metric_families(server.get("/metrics").text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


# ---- tokens


def test_tokenize_and_detokenize(server, engine) -> None:
    tokens = server.post("/tokenize", {"content": "the cat sat"}).json()["tokens"]
    assert tokens == engine.vocab.tokenize("the cat sat", add_special=False, parse_special=True)
    with_bos = server.post("/tokenize", {"content": "the cat sat", "add_special": True}).json()["tokens"]
    assert with_bos == [engine.vocab.bos, *tokens]
    pieces = server.post("/tokenize", {"content": "the cat", "with_pieces": True}).json()["tokens"]
    assert all(set(piece) == {"id", "piece"} for piece in pieces)
    text = server.post("/detokenize", {"tokens": tokens}).json()["content"]
    assert text.strip() == "the cat sat"
    assert server.post("/detokenize", {"tokens": []}).json()["content"] == ""


def test_apply_template(server) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    prompt = server.post("/apply-template", body).json()["prompt"]
    assert "Hello" in prompt
    assert prompt.endswith("assistant\n")


# ---- errors


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 5}, "content"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": [99999999]}, "tokens"),
        ("/apply-template", {}, "messages"),
    ],
)
def test_wrong_bodies_name_the_parameter(server, path: str, body: dict[str, Any], param: str | None) -> None:
    error = error_of(server.post(path, body), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b'{"a":' * 300 + b"1" + b"}" * 300],
    ids=range(8),
)
def test_a_body_that_is_no_json_object(server, content: bytes) -> None:
    error_of(httpx.post(server.url + "/v1/completions", content=content, timeout=60), 400)


def test_unknown_paths_and_methods(server) -> None:
    assert "/v2/nothing" in error_of(server.get("/v2/nothing"), 404)["message"]
    error_of(server.get("/v1/completions"), 405)
    error = error_of(server.post("/v1/embeddings", {"input": "x"}), 400)
    # OpenAI's client asks again after a status of 500 and more.
    assert (error["code"], error["param"]) == ("unsupported", "model")
    assert "--embeddings" in error["message"]


def test_every_answer_has_a_name(server) -> None:
    first, second = server.get("/health"), server.get("/nothing")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


# ---- keys


def test_keys(start: Callable[..., Any], engine) -> None:
    server = start(engine, api_keys=("first", "second"), metrics=True)
    for path in ("/health", "/ready"):
        assert server.get(path).status_code == 200
    for path in ("/v1/models", "/metrics", "/props", "/nothing"):
        error = error_of(server.get(path), 401)
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    for key in ("first", "second"):
        assert server.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert server.get("/v1/models", headers={"Authorization": f"bearer {key}"}).status_code == 200
        assert server.get("/v1/models", headers={"x-api-key": key}).status_code == 200
    for headers in ({"Authorization": "first"}, {"Authorization": "Bearer"}, {"x-api-key": "firs"}, {"x-api-key": ""}):
        error_of(server.get("/v1/models", headers=headers), 401)
    with server.client(api_key="second") as client:
        assert client.models.list().data


# ---- limits


def test_bodies_have_a_limit(start: Callable[..., Any], engine) -> None:
    server = start(engine, max_body_bytes=1000)
    error = error_of(server.post("/tokenize", {"content": "x" * 1000}), 413)
    assert error["code"] == "body_too_large"

    def pieces() -> Any:
        for _ in range(20):
            yield b"x" * 100

    # Without a length beforehand.
    error_of(httpx.post(server.url + "/tokenize", content=pieces(), timeout=60), 413)
    assert server.post("/tokenize", {"content": "x"}).status_code == 200


def test_a_body_that_never_comes_has_an_end(start: Callable[..., Any], engine) -> None:
    server = start(engine, timeout=0.2)
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(20)
        connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


# ---- pages of others


def test_cors_is_closed_unless_opened(server, start: Callable[..., Any], engine) -> None:
    page = {"Origin": "https://example.org"}
    assert "access-control-allow-origin" not in server.get("/v1/models", headers=page).headers
    opened = start(engine, cors_origins=("https://example.org",), api_keys=("key",))
    asked = httpx.options(
        opened.url + "/v1/models", headers=page | {"Access-Control-Request-Method": "GET"}, timeout=60
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://example.org"
    other = opened.get("/v1/models", headers={"Origin": "https://example.com", "x-api-key": "key"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("kind", [None, "text/plain;charset=UTF-8", "application/x-www-form-urlencoded"])
def test_pages_of_others_cannot_send_what_no_browser_asks_about(server, kind: str | None) -> None:
    body = b'{"prompt": "the cat", "max_tokens": 1}'
    headers = {} if kind is None else {"Content-Type": kind}
    page = {"Origin": "https://example.org"}
    assert server.http.post(f"{server.url}/v1/completions", content=body, headers=headers).status_code == 200
    refused = server.http.post(f"{server.url}/v1/completions", content=body, headers=headers | page)
    assert (refused.status_code, refused.json()["error"]["code"]) == (415, "not_json")
    assert server.post("/v1/completions", {"prompt": "the cat", "max_tokens": 1}, headers=page).status_code == 200


# ---- settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_keys": "key"},
        {"api_keys": ("",)},
        {"api_keys": ("a b ",)},
        {"timeout": 0},
        {"max_tokens": 0},
        {"drain_timeout": -1},
    ],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        Settings(**wrong)


def test_there_must_be_something_to_serve() -> None:
    with pytest.raises(InvalidArgumentError):
        make_app()


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("/run/x.sock", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
    ],
)
def test_which_hosts_are_this_machine(host: str, near: bool) -> None:
    assert is_loopback(host) is near


def test_numbers_of_any_size_are_read_without_an_exception_of_python() -> None:
    for value in (10**400, -(10**400), float("inf"), 1e301):
        with pytest.raises(APIError, match=r"^x must be a number"):
            decode(Numbers, {"x": value})
    for infinite in (float("inf"), float("-inf"), 2.5, True, "3"):
        with pytest.raises(APIError, match=r"^n must be an integer"):
            decode(Numbers, {"n": infinite})
    assert decode(Numbers, {"n": 3.0, "x": 3}) == Numbers(n=3, x=3.0)
