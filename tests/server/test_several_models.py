"""Several models in one server: which one answers, which ones are in memory, and who waits for whom."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.engines import Prompted
from support.servers import Served
from support.waiting import LIMIT, wait_for

from pyllm.engine import Engine
from pyllm.errors import InsufficientMemoryError, InvalidArgumentError
from pyllm.server import Settings, loader, make_app, pool
from pyllm.server.loader import ModelSpec, estimate
from pyllm.server.pool import Models
from pyllm.server.run import Runner


@pytest.fixture
def spec(tiny_models: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModelSpec]:
    """`spec(name, arch, …)`: a tiny model, whose texts a test can slow down once it is loaded."""
    monkeypatch.setattr(loader, "Engine", Prompted)

    def spec(name: str, arch: str = "llama", *, path: Path | None = None, **details: Any) -> ModelSpec:
        arguments = {"n_ctx": 512, "n_threads": 1} | details.pop("arguments", {})
        engine = {"n_parallel": 2, "kv_unified": True} if arch != "bert" else {}
        return ModelSpec(name=name, path=path or tiny_models[arch], arguments=arguments, engine=engine, **details)

    return spec


@pytest.fixture
def start() -> Iterator[Callable[..., Served]]:
    """`start(specs, settings…)`: a server with several models."""
    with contextlib.ExitStack() as stack:

        def start(specs: list[ModelSpec], settings: Settings | None = None, **arguments: Any) -> Served:
            models = Models(specs, settings or Settings(metrics=True), **arguments)
            stack.callback(models.close)
            models.load_at_start()
            runner = Runner(make_app(models=models), port=0)
            thread = threading.Thread(target=runner.run, daemon=True)
            thread.start()
            wait_for(lambda: runner.started and runner.servers)
            http = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
            served = Served(runner.address, runner, models, thread, http)
            stack.callback(served.stop)
            return served

        yield start


def complete(server: Served, model: Any = None, **more: Any) -> httpx.Response:
    body = {"prompt": "the cat", "max_tokens": 3, "logit_bias": {"2": -100}, **more}
    return server.post("/v1/completions", body if model is None else {**body, "model": model})


def status_of(server: Served) -> dict[str, str]:
    return {model["id"]: model["status"]["value"] for model in server.get("/v1/models").json()["data"]}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return response.json()["error"]


@contextlib.contextmanager
def streaming(server: Served, model: str, seconds: float = 0.02, max_tokens: int = 50) -> Iterator[Iterator[str]]:
    """A stream that takes a while."""
    complete(server, model)
    server.state.entries[model].served.engine.slowly(seconds)
    body = {"prompt": "the", "max_tokens": max_tokens, "stream": True, "model": model}
    with server.http.stream("POST", server.url + "/v1/completions", json=body) as response:
        assert response.status_code == 200
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        yield lines


# ---- which one answers


def test_requests_name_their_model(start, spec) -> None:
    server = start([spec("first"), spec("second", "qwen3moe")])
    assert status_of(server) == {"first": "unloaded", "second": "unloaded"}
    assert complete(server).json()["model"] == "first"
    assert complete(server, "").json()["model"] == "first"
    assert complete(server, "second").json()["model"] == "second"
    assert status_of(server) == {"first": "loaded", "second": "loaded"}
    for name in ("first", "second"):
        assert server.get(f"/props?model={name}").json()["model_alias"] == name
        assert server.get(f"/v1/models/{name}").json()["meta"]["n_ctx"] == 512
        chat = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        assert server.post("/v1/chat/completions", chat).json()["model"] == name
        assert server.post("/v1/messages", chat).json()["model"] == name
        assert (
            server.post("/v1/responses", {"model": name, "input": "x", "max_output_tokens": 2}).json()["model"] == name
        )
    with server.client() as client:
        assert {model.id for model in client.models.list()} == {"first", "second"}


def test_the_query_names_a_model_too(start, spec) -> None:
    server = start([spec("first"), spec("second")])
    body = {"prompt": "the cat", "max_tokens": 2, "model": "first"}
    assert server.post("/v1/completions?model=second", body).json()["model"] == "second"
    assert server.post("/lora-adapters?model=first", []).json() == {"success": True}
    assert server.get("/lora-adapters?model=second").json() == []
    assert server.get("/slots?model=second").status_code == 200


def test_tokens_are_those_of_the_model(start, spec, tiny_models) -> None:
    server = start([spec("spm"), spec("bpe", path=tiny_models.make("llama", vocab="bpe"))])
    tokens = {
        name: server.post("/tokenize", {"content": "the cat sat", "model": name}).json()["tokens"]
        for name in ("spm", "bpe")
    }
    assert tokens["spm"] != tokens["bpe"]
    for name, ids in tokens.items():
        text = server.post("/detokenize", {"tokens": ids, "model": name}).json()["content"]
        assert text.strip() == "the cat sat"


def test_a_model_of_vectors_beside_one_of_texts(start, spec) -> None:
    server = start([spec("texts"), spec("vectors", "bert")])
    answer = server.post("/v1/embeddings", {"input": "the cat", "model": "vectors"}).json()
    assert answer["model"] == "vectors"
    assert answer["data"][0]["embedding"]
    error_of(complete(server, "vectors"), 400)
    error_of(server.post("/v1/embeddings", {"input": "the cat", "model": "texts"}), 400)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/v1/embeddings"])
def test_an_unknown_model_is_an_error_that_names_the_others(start, spec, path: str) -> None:
    server = start([spec("first"), spec("second")])
    error = error_of(server.post(path, {"model": "third"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'first', 'second'" in error["message"]
    assert error_of(server.post(path, {"model": 5}), 400)["param"] == "model"
    assert status_of(server) == {"first": "unloaded", "second": "unloaded"}


def test_errors_have_the_shape_of_the_endpoint(start, spec) -> None:
    server = start([spec("first"), spec("second")])
    answer = server.post("/v1/messages", {"model": "third"})
    assert answer.status_code == 404
    assert answer.json()["type"] == "error"
    with server.client() as client, pytest.raises(openai.NotFoundError, match="'first'"):
        client.completions.create(model="third", prompt="x")


def test_what_is_no_json_loads_nothing(start, spec) -> None:
    server = start([spec("first"), spec("second")])
    assert server.http.post(server.url + "/v1/completions", content=b"{").status_code == 400
    assert server.http.post(server.url + "/v1/completions", content=b"[1]").status_code == 400
    assert server.post("/nothing", {"model": "first"}).status_code == 404
    assert server.get("/v1/completions").status_code == 405
    assert server.get("/health").status_code == server.get("/ready").status_code == 200
    assert status_of(server) == {"first": "unloaded", "second": "unloaded"}


def test_of_one_model_the_name_is_not_looked_at(start, spec) -> None:
    server = start([spec("only")])
    assert complete(server, "gpt-4o").json()["model"] == "only"


def test_settings_of_their_own(start, spec) -> None:
    server = start([
        spec("short", settings=Settings(max_tokens=2)),
        spec("warm", settings=Settings(sampling={"temperature": 0.0}), arguments={"n_ctx": 256}),
    ])  # fmt: skip
    assert complete(server, "short", max_tokens=9).json()["usage"]["completion_tokens"] == 2
    texts = {complete(server, "warm", max_tokens=9).json()["choices"][0]["text"] for _ in range(3)}
    assert len(texts) == 1
    assert server.get("/props?model=warm").json()["default_generation_settings"]["n_ctx"] == 256


# ---- which ones are in memory


def test_the_one_that_was_used_least_recently_makes_room(start, spec) -> None:
    specs = [spec(name) for name in ("a", "b", "c")]
    size = estimate(specs[0])
    server = start(specs, n_bytes=2 * size)
    for name in ("a", "b", "a", "c"):
        assert complete(server, name).status_code == 200
    assert status_of(server) == {"a": "loaded", "b": "unloaded", "c": "loaded"}
    numbers = metrics_of(server)
    assert numbers["pyllm_model_loads_total", "a"] == 1
    assert numbers["pyllm_model_loaded", "b"] == 0
    assert numbers["pyllm_model_bytes", "c"] == size
    assert complete(server, "b").status_code == 200
    assert status_of(server) == {"a": "unloaded", "b": "loaded", "c": "loaded"}


def test_estimates_are_what_engines_take(spec) -> None:
    from pyllm.core.breakdown import memory_breakdown

    one = spec("a")
    served = loader.serve_model(one)
    try:
        taken = sum(b.model + b.context + b.compute for b in memory_breakdown(served.engine.context))
    finally:
        served.close()
    assert estimate(one) == pytest.approx(taken, rel=0.05)


def test_what_can_never_fit_is_refused_at_the_start(spec) -> None:
    size = estimate(spec("a"))
    with pytest.raises(InsufficientMemoryError, match=r"'b'.*MiB of memory") as caught:
        Models([spec("a"), spec("b", arguments={"n_ctx": 65536})], Settings(), n_bytes=2 * size)
    assert caught.value.needed > caught.value.available == 2 * size
    with pytest.raises(InsufficientMemoryError, match="at the start"):
        Models([spec("a", load="start"), spec("b", load="start")], Settings(), n_bytes=size + size // 2)
    with pytest.raises(InsufficientMemoryError, match="1 models at once"):
        Models([spec("a", load="start"), spec("b", load="start")], Settings(), n_models=1)


def test_models_need_names_of_their_own(spec) -> None:
    with pytest.raises(InvalidArgumentError, match="two models are called 'a'"):
        Models([spec("a"), spec("a")], Settings())
    for wrong in ("", " a", "a\n"):
        with pytest.raises(InvalidArgumentError, match="name of a model"):
            spec(wrong)
    with pytest.raises(InvalidArgumentError, match="load must be"):
        spec("a", load="later")
    with pytest.raises(InvalidArgumentError):
        make_app(models=Models([spec("a")], Settings()), settings=Settings())


def test_models_that_are_there_at_the_start(start, spec) -> None:
    server = start([spec("a", load="start"), spec("b")])
    assert status_of(server) == {"a": "loaded", "b": "unloaded"}


def test_models_are_loaded_and_unloaded_by_hand(start, spec) -> None:
    server = start([spec("a"), spec("b")])
    assert server.post("/models/load", {"model": "b"}).json() == {"success": True}
    wait_for(lambda: status_of(server)["b"] == "loaded")
    assert error_of(server.post("/models/load", {"model": "b"}), 400)["param"] == "model"
    assert server.post("/models/unload", {"model": "b"}).json() == {"success": True}
    wait_for(lambda: status_of(server)["b"] == "unloaded")
    error_of(server.post("/models/unload", {"model": "b"}), 400)
    error_of(server.post("/models/load", {"model": "c"}), 404)
    error_of(server.post("/models/load", {}), 400)
    assert complete(server, "b").status_code == 200


def test_models_that_only_a_hand_loads(start, spec) -> None:
    server = start([spec("a"), spec("b")], autoload=False)
    assert error_of(complete(server, "a"), 400)["code"] == "model_not_loaded"
    assert (
        server.post("/v1/completions?autoload=true", {"prompt": "x", "model": "b", "max_tokens": 2}).status_code == 200
    )
    assert server.post("/models/load", {"model": "a"}).status_code == 200
    wait_for(lambda: status_of(server)["a"] == "loaded")
    assert complete(server, "a").status_code == 200


def test_nothing_is_left_of_models_that_have_gone(start, spec) -> None:
    server = start([spec("a"), spec("b")], n_models=1)
    for name in "abab":
        assert complete(server, name).status_code == 200
    threads = threading.active_count()
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for name in "ab" * 8:
        assert complete(server, name).status_code == 200
    assert threading.active_count() <= threads + 1
    if files:
        assert len(os.listdir("/proc/self/fd")) <= files + 2
    assert [entry.n_loads for entry in server.state.entries.values()] == [10, 10]


# ---- many at once


def test_requests_that_come_together_load_a_model_once(start, spec) -> None:
    server = start([spec("a"), spec("b")])
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda i: complete(server, "ab"[i % 2]), range(16)))
    assert [answer.status_code for answer in answers] == [200] * 16
    assert {name: entry.n_loads for name, entry in server.state.entries.items()} == {"a": 1, "b": 1}
    wait_for(lambda: all(entry.users == 0 for entry in server.state.entries.values()))


def test_while_one_is_loaded_others_are_served(start, spec, monkeypatch) -> None:
    server = start([spec("a", load="start"), spec("b")])
    go, serve_model = threading.Event(), pool.serve_model

    def slow(wanted: ModelSpec) -> Any:
        go.wait(LIMIT)
        return serve_model(wanted)

    monkeypatch.setattr(pool, "serve_model", slow)
    with ThreadPoolExecutor(1) as threads:
        later = threads.submit(complete, server, "b")
        wait_for(lambda: status_of(server)["b"] == "loading")
        assert complete(server, "a").status_code == 200
        assert server.get("/health").status_code == 200
        assert not later.done()
        go.set()
        assert later.result().status_code == 200


def test_a_load_that_fails_is_told_to_all_and_tried_again(start, spec, tiny_models, tmp_path) -> None:
    path = shutil.copy(tiny_models["llama"], tmp_path / "broken.gguf")
    server = start([spec("a"), spec("b", path=path)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: complete(server, "b"), range(4)))
    for answer in answers:
        error = error_of(answer, 500)
        assert error["code"] == "model_load_failed"
        assert str(path) not in error["message"]
    assert server.get("/v1/models/b").json()["status"] == {"value": "unloaded", "failed": True}
    path.write_bytes(whole)
    assert complete(server, "b").status_code == 200
    assert server.get("/v1/models/b").json()["status"] == {"value": "loaded"}


def test_a_model_that_is_in_use_stays(start, spec) -> None:
    server = start([spec("a"), spec("b")], n_models=1, timeout=0.3)
    with streaming(server, "a") as lines:
        error = error_of(server.post("/models/unload", {"model": "a"}), 409)
        assert error["code"] == "model_in_use"
        answer = complete(server, "b")
        message = error_of(answer, 503)["message"]
        assert answer.headers["retry-after"]
        assert "'a'" in message and "1 models at once" in message
        rest = list(lines)
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert complete(server, "b").json()["model"] == "b"
    assert status_of(server) == {"a": "unloaded", "b": "loaded"}


def test_requests_that_wait_for_memory_are_served_when_it_is_free(start, spec) -> None:
    server = start([spec("a"), spec("b")], n_models=1)
    with ThreadPoolExecutor(3) as threads, streaming(server, "a", max_tokens=20) as lines:
        waiting = [threads.submit(complete, server, "b") for _ in range(3)]
        wait_for(lambda: server.state.n_waiting == 3)
        assert list(lines)[-1] == "data: [DONE]"
        assert [one.result().status_code for one in waiting] == [200] * 3
    assert server.state.entries["b"].n_loads == 1


def test_a_client_that_goes_away_waits_no_more(start, spec) -> None:
    server = start([spec("a"), spec("b")], n_models=1)
    with streaming(server, "a", max_tokens=300) as lines:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + "/v1/completions", json={"model": "b", "prompt": "x"}, timeout=0.2)
        wait_for(lambda: server.state.n_waiting == 0)
        next(lines)
    wait_for(lambda: server.state.entries["a"].users == 0)
    assert status_of(server) == {"a": "loaded", "b": "unloaded"}


def test_constant_use_of_one_does_not_starve_another(start, spec) -> None:
    server = start([spec("a"), spec("b")], n_models=1, patience=0.1)
    complete(server, "a")
    stop = threading.Event()
    answers: list[int] = []

    def use() -> None:
        while not stop.is_set():
            answers.append(complete(server, "a", max_tokens=20).status_code)

    with ThreadPoolExecutor(3) as threads:
        users = [threads.submit(use) for _ in range(3)]
        try:
            assert complete(server, "b").json()["model"] == "b"
        finally:
            stop.set()
        for user in users:
            user.result()
    assert set(answers) == {200}


def test_too_many_that_wait_are_refused(start, spec, monkeypatch) -> None:
    monkeypatch.setattr(pool, "MOST_WAITING", 1)
    server = start([spec("a"), spec("b")], n_models=1)
    with ThreadPoolExecutor(1) as threads, streaming(server, "a", max_tokens=30) as lines:
        waiting = threads.submit(complete, server, "b")
        wait_for(lambda: server.state.n_waiting)
        answer = complete(server, "b")
        assert error_of(answer, 429)["code"] == "queue_full"
        assert answer.headers["retry-after"]
        list(lines)
        assert waiting.result().status_code == 200


def test_an_engine_that_has_ended_is_made_again(start, spec) -> None:
    server = start([spec("a"), spec("b")])
    assert complete(server, "a").status_code == 200
    engine: Engine = server.state.entries["a"].served.engine
    engine.close()
    assert complete(server, "a").status_code == 200
    assert server.state.entries["a"].n_loads == 2


# ---- the end


def test_draining_waits_for_all_models(start, spec) -> None:
    server = start([spec("a"), spec("b"), spec("c")], n_models=2)
    with (
        ThreadPoolExecutor(1) as threads,
        streaming(server, "a", max_tokens=40) as first,
        streaming(server, "b", max_tokens=40) as second,
    ):
        waiting = threads.submit(complete, server, "c")
        wait_for(lambda: server.state.n_waiting)
        server.runner.drain()
        error_of(waiting.result(), 503)
        assert server.get("/ready").status_code == 503
        error_of(complete(server, "a"), 503)
        assert list(first)[-1] == list(second)[-1] == "data: [DONE]"
    server.thread.join(LIMIT)
    assert not server.thread.is_alive()


def test_a_load_ends_with_the_server(start, spec, monkeypatch) -> None:
    server = start([spec("a"), spec("b")])
    begun, serve_model = threading.Event(), pool.serve_model

    def slow(wanted: ModelSpec) -> Any:
        begun.set()
        while True:
            time.sleep(0.01)
            wanted.arguments["progress_callback"](0.5)

    monkeypatch.setattr(pool, "serve_model", slow)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(complete, server, "a")
        begun.wait(LIMIT)
        assert server.get("/v1/models/a").json()["status"]["value"] == "loading"
        server.runner.drain()
        error_of(waiting.result(), 503)
    server.thread.join(LIMIT)
    server.state.close()
    assert serve_model is not slow


# ---- the numbers


def metrics_of(server: Served) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels["model"]): sample.value
        for family in text_string_to_metric_families(server.get("/metrics").text)
        for sample in family.samples
        if "model" in sample.labels and "le" not in sample.labels
    }


def test_numbers_of_each_model(start, spec) -> None:
    server = start([spec("a"), spec("b")])
    complete(server, "a")
    complete(server, "b", max_tokens=5)
    numbers = metrics_of(server)
    assert numbers["llamacpp:tokens_predicted_total", "a"] == 3
    assert numbers["llamacpp:tokens_predicted_total", "b"] == 5
    assert numbers["pyllm_request_seconds_count", "a"] == 1
    assert server.get("/metrics").text.count("# TYPE pyllm_request_seconds histogram") == 1
    assert 'pyllm_http_requests_total{path="/v1/completions",status="200"} 2.0' in server.get("/metrics").text
