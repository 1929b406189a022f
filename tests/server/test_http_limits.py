"""Clients that leave, that read slowly or come in large numbers; and a server that is told to stop."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import random
import socket
import threading
from typing import Any

import httpx
import openai
import pytest
from support.engines import Prompted, wait_until_idle
from support.waiting import LIMIT, wait_for

ENDLESS = {"prompt": "the cat", "max_tokens": 1500}
PATHS = {
    "/v1/completions": ENDLESS,
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1500},
}


def connect(server, path: str, body: dict[str, Any]) -> socket.socket:
    """Send a request, and read nothing."""
    port = int(server.url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port))
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


# ---- clients that go away


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_goes_away_ends_its_text(server, engine: Prompted, path: str, stream: bool) -> None:
    engine.slowly()
    before = engine.metrics()
    connection = connect(server, path, PATHS[path] | {"stream": stream})
    wait_for(lambda: engine.metrics().n_running == 1)
    connection.close()
    wait_for(lambda: engine.metrics().n_running == 0)
    after = engine.metrics()
    assert after.n_cancelled == before.n_cancelled + 1
    # In tokens and not in seconds: the slot is free long before the 1500 tokens that were asked for.
    assert after.n_generated_tokens - before.n_generated_tokens < 500


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_while_it_waits(server, engine: Prompted, stream: bool) -> None:
    engine.slowly()
    running = [connect(server, "/v1/completions", ENDLESS) for _ in range(engine.n_parallel)]
    wait_for(lambda: engine.metrics().n_running == engine.n_parallel)
    waiting = connect(server, "/v1/completions", ENDLESS | {"stream": stream})
    wait_for(lambda: engine.metrics().n_waiting == 1)
    before = engine.metrics().n_cancelled
    waiting.close()
    wait_for(lambda: engine.metrics().n_waiting == 0)
    assert engine.metrics().n_cancelled == before + 1
    assert engine.metrics().n_running == engine.n_parallel
    for connection in running:
        connection.close()
    wait_until_idle(engine)


def test_all_prompts_of_a_client_end_with_it(server, engine: Prompted) -> None:
    engine.slowly()
    connection = connect(server, "/v1/completions", {**ENDLESS, "prompt": ["a", "b", "c", "d", "e", "f"], "n": 2})
    wait_for(lambda: engine.metrics().n_running + engine.metrics().n_waiting == 12)
    connection.close()
    wait_until_idle(engine)


def test_openais_client_closes_a_stream(server, engine: Prompted) -> None:
    engine.slowly()
    with server.client() as client:
        before = engine.metrics().n_cancelled
        stream = client.completions.create(model="m", prompt="the", max_tokens=1500, stream=True)
        next(iter(stream))
        stream.close()
        wait_for(lambda: engine.metrics().n_running == 0)
        assert engine.metrics().n_cancelled == before + 1


def test_a_client_that_reads_nothing_is_let_go(start, engine: Prompted) -> None:
    server = start(engine, timeout=0.5)

    def wide(ids: Any, logits: Any) -> None:
        logits[engine.vocab.eog_tokens] = -1e30

    engine.processor = wide
    port = int(server.url.rpartition(":")[2])
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", port))
        body = {"prompt": ["the cat"] * 8, "max_tokens": 1000, "logprobs": 100, "stream": True}
        data = json.dumps(body).encode()
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        )
        wait_for(lambda: not server.state.running and engine.metrics().n_requests > 0)
    wait_until_idle(engine)


# ---- many clients


def test_a_full_queue_says_when_to_come_again(start, tiny_model) -> None:
    with Prompted(tiny_model, n_ctx=512, n_parallel=1, n_threads=1, max_queued=1) as engine:
        server = start(engine, retry_after=7)
        engine.slowly()
        connections = [connect(server, "/v1/completions", ENDLESS)]
        wait_for(lambda: engine.metrics().n_running == 1)
        connections.append(connect(server, "/v1/completions", ENDLESS))
        wait_for(lambda: engine.metrics().n_waiting == 1)
        response = server.post("/v1/completions", {"prompt": "the", "stream": True})
        assert response.status_code == 429
        assert response.headers["retry-after"] == "7"
        assert response.json()["error"]["type"] == "rate_limit_error"
        with server.client() as client, pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        for connection in connections:
            connection.close()
        wait_until_idle(engine)
        assert server.post("/v1/completions", {"prompt": "the", "max_tokens": 1}).status_code == 200
        server.stop()


def test_many_clients_that_leave_at_random(start, tiny_model) -> None:
    """Whatever clients do, each that waits for its answer gets it, and nothing is left behind."""
    with Prompted(tiny_model, n_ctx=192, n_parallel=4, n_threads=1, n_batch=64) as engine:
        server = start(engine)
        random_ = random.Random(1)
        manners = ["whole", "stream", "leave", "leave early", "bad"]
        plans = [(i, random_.choice(manners), random_.randrange(1, 40)) for i in range(60)]

        def one(plan: tuple[int, str, int]) -> str:
            i, manner, size = plan
            body: dict[str, Any] = {"prompt": [5 + (i + k) % 50 for k in range(size)], "max_tokens": size, "seed": i}
            if manner == "bad":
                response = server.post("/v1/completions", body | {"n": -1})
                return "good" if response.status_code == 400 else response.text
            if manner == "leave early":
                connect(server, "/v1/completions", body | {"stream": i % 2 == 0}).close()
                return "good"
            if manner == "leave":
                with (
                    contextlib.suppress(httpx.HTTPError),
                    httpx.stream(
                        "POST", server.url + "/v1/completions", json=body | {"stream": True}, timeout=60
                    ) as response,
                ):
                    next(response.iter_lines(), None)
                return "good"
            response = server.post("/v1/completions", body | {"stream": manner == "stream"})
            complete = response.text.endswith("data: [DONE]\n\n") if manner == "stream" else "usage" in response.json()
            return "good" if response.status_code == 200 and complete else response.text

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert set(pool.map(one, plans)) == {"good"}
        wait_until_idle(engine)
        wait_for(lambda: not server.state.running)
        assert engine.metrics().n_failed == 0
        server.stop()


# ---- the end


def test_a_server_that_is_told_to_stop_ends_what_runs(start, tiny_model) -> None:
    with Prompted(tiny_model, n_ctx=512, n_parallel=2, n_threads=1) as engine:
        server = start(engine)
        engine.slowly(0.02)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            running = pool.submit(server.post, "/v1/completions", {"prompt": "the", "max_tokens": 40})
            wait_for(lambda: engine.metrics().n_running == 1)
            server.runner.drain()
            assert server.get("/ready").status_code == 503
            assert server.get("/health").status_code == 200
            refused = server.post("/v1/completions", {"prompt": "the"})
            assert refused.status_code == 503
            assert "retry-after" in refused.headers
            assert running.result().json()["usage"]["completion_tokens"] == 40
        server.thread.join(LIMIT)
        assert not server.thread.is_alive()


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_too_long_then_ends_with_an_error(start, tiny_model, stream: bool) -> None:
    with Prompted(tiny_model, n_ctx=2048, n_parallel=2, n_threads=1) as engine:
        server = start(engine, drain_timeout=0.3)
        engine.slowly(0.02)
        result: list[httpx.Response] = []
        client = threading.Thread(
            target=lambda: result.append(server.post("/v1/completions", {**ENDLESS, "stream": stream}))
        )
        client.start()
        wait_for(lambda: engine.metrics().n_running == 1)
        server.runner.drain()
        client.join(LIMIT)
        server.thread.join(LIMIT)
        assert not server.thread.is_alive()
        assert "shutting down" in result[0].text
        assert result[0].status_code == (200 if stream else 503)
        wait_until_idle(engine)


@pytest.mark.parametrize("kind", [ValueError, OSError, TimeoutError])
def test_what_a_processor_raises_ends_its_stream_with_an_error(server, engine: Prompted, kind: type) -> None:
    def fail(ids: Any, logits: Any) -> None:
        raise kind("of the processor")

    engine.processor = fail
    answer = server.post("/v1/completions", {"prompt": "the", "max_tokens": 2, "stream": True})
    assert json.loads(answer.text.removeprefix("data: "))["error"]["code"] == "internal_error"
    wait_until_idle(engine)


def test_keep_alive_comments(start, engine: Prompted) -> None:
    server = start(engine, ping_interval=0.05)
    engine.slowly(0.3)
    with httpx.stream(
        "POST", server.url + "/v1/completions", json={"prompt": "the", "max_tokens": 2, "stream": True}, timeout=60
    ) as response:
        lines = list(response.iter_lines())
    assert ":" in lines
    assert lines[-2] == "data: [DONE]"
    with server.client() as client:
        chunks = client.completions.create(model="m", prompt="the", max_tokens=2, stream=True)
        assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
