"""Streams of texts that nobody in Python looks at: each is whole, stands still for nobody, and ends with its client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.engines import Prompted, wait_until_idle
from support.servers import Served
from support.waiting import LIMIT, wait_for

from pyllm.server import Settings
from pyllm.server.sse import EventStream


def events(server: Served, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream."""
    with server.http.stream("POST", server.url + path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_streams_beside_one_another_are_whole(server: Served, engine: Prompted) -> None:
    bodies: list[dict[str, Any]] = [
        {"prompt": [5, 6, 7 + i], "max_tokens": 60 + 3 * i, "temperature": 0, "cache_prompt": False, **more}
        for i, more in enumerate([{}, {"n": 3, "seed": 3, "temperature": 1}, {"echo": True}, {"logprobs": 1}, {}, {}])
    ]
    whole = [server.post("/v1/completions", body).json() for body in bodies]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            streams = list(pool.map(lambda body: events(server, "/v1/completions", body), bodies))
            for found, wanted in zip(streams, whole, strict=True):
                for choice in wanted["choices"]:
                    own = [
                        each["choices"][0]
                        for each in found
                        if each["choices"] and each["choices"][0]["index"] == choice["index"]
                    ]
                    assert "".join(each["text"] for each in own) == choice["text"]
                    reasons = [each["finish_reason"] for each in own if each["finish_reason"]]
                    assert reasons == [choice["finish_reason"]]
    wait_until_idle(engine)


def test_native_streams_have_the_tokens_of_their_texts(server: Served, engine: Prompted) -> None:
    body = {"prompt": [5, 6, 7], "n_predict": 80, "temperature": 0, "ignore_eos": True, "return_tokens": True}
    found = events(server, "/completion", {**body, "timings_per_token": True})
    pieces, last = found[:-1], found[-1]
    assert last["stop"] and last["tokens_predicted"] == 80
    tokens = [token for each in pieces for token in each["tokens"]]
    assert "".join(each["content"] for each in pieces) == server.post("/completion", body).json()["content"]
    assert tokens == server.post("/completion", body).json()["tokens"]
    counts = [each["timings"]["predicted_n"] for each in pieces if "timings" in each]
    assert counts == sorted(counts) and counts[-1] <= 80
    wait_until_idle(engine)


def test_what_a_finished_stream_leaves_is_known_at_once(server: Served, engine: Prompted) -> None:
    for i in range(20):
        before = engine.metrics().n_generated_tokens
        found = events(server, "/v1/completions", {"prompt": [5, 6], "max_tokens": 30 + i, "ignore_eos": True})
        assert found[-1]["choices"][0]["finish_reason"] == "length"
        now = engine.metrics()
        assert (now.n_running, now.n_generated_tokens - before) == (0, 30 + i)


def test_a_closed_stream_ends_its_request(server: Served, engine: Prompted) -> None:
    body = {"prompt": [5, 6], "max_tokens": 3000, "ignore_eos": True, "stream": True}
    before = engine.metrics()
    for _ in range(3):
        with server.http.stream("POST", server.url + "/v1/completions", json=body) as response:
            assert next(response.iter_lines()).startswith("data: ")
        wait_for(lambda: engine.metrics().n_running == 0)
    now = engine.metrics()
    assert now.n_cancelled - before.n_cancelled == 3
    assert now.n_generated_tokens - before.n_generated_tokens < 3 * 3000
    wait_for(lambda: not server.state.running)


# ---- the way to the client


class Client:
    """An ASGI client that takes what it is sent when it likes."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.reads = asyncio.Event()
        self.reads.set()

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.got.append(message)

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.got[1:]]


async def serve(client: Client, settings: Settings, source: Callable[[], Any]) -> int:
    closed: list[bool] = []
    stream = EventStream(source(), settings, lambda: closed.append(True))
    await asyncio.wait_for(stream({"type": "http"}, client.receive, client.send), LIMIT)
    return len(closed)


@pytest.mark.parametrize("pings", [0, 0.02])
def test_a_client_that_takes_nothing_is_left(pings: float) -> None:
    ended: list[bool] = []

    async def work() -> None:
        client = Client()

        async def source() -> Any:
            try:
                yield b"one"
                client.reads.clear()
                if not pings:
                    yield b"two"
                await asyncio.sleep(30)
            finally:
                ended.append(True)

        assert await serve(client, Settings(timeout=0.2, ping_interval=pings), source) == 1
        assert client.bodies() == [b"one"]

    asyncio.run(work())
    assert ended == [True]


def test_a_client_that_reads_slowly_has_all_of_it() -> None:
    async def work() -> None:
        client = Client()

        async def source() -> Any:
            for i in range(8):
                yield b"%d" % i
                client.reads.clear()
                asyncio.get_running_loop().call_later(0.1, client.reads.set)

        # In all it takes much longer than one piece may take.
        assert await serve(client, Settings(timeout=0.4, ping_interval=0.03), source) == 1
        bodies = client.bodies()
        assert [body for body in bodies if body not in (b":\n\n", b"")] == [b"%d" % i for i in range(8)]
        assert bodies[-1] == b"" and client.got[-1]["more_body"] is False
        assert all(message["more_body"] for message in client.got[1:-1])

    asyncio.run(work())


def test_pings_while_there_is_nothing_to_say() -> None:
    async def work() -> None:
        client = Client()

        async def source() -> Any:
            await asyncio.sleep(0.5)
            yield b"late"

        # Nothing waits to be taken meanwhile, so that nobody is given up.
        assert await serve(client, Settings(timeout=0.1, ping_interval=0.03), source) == 1
        assert client.bodies()[-2:] == [b"late", b""]
        assert client.bodies().count(b":\n\n") > 2

    asyncio.run(work())
