"""A request that is cancelled during its prompt: its decode is aborted, and what is left behind is right."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from pyllm import Model
from pyllm.embedding.asks import Ask
from pyllm.engine import Engine, Request
from pyllm.engine.prefill_budget import PrefillBudget
from pyllm.engine.signals import AbortableDecode

LONG = np.arange(3, 1800, dtype=np.int32) % 200 + 5


class Held:
    """Holds the next decode of a context back until it is aborted, or let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()
        self.aborted = False
        runner, decoding = engine._core.runner, engine._decoding
        decode, check = runner.decode, decoding.check

        def noted() -> None:
            check()
            requests = decoding._requests
            if requests and all(request.cancelled for request in requests):
                self.aborted = True
                self.ended.set()

        def held(rows: Any, *others: Any, **forks: Any) -> Any:
            if sum(n for _, n in rows) > 100:
                self.begun.set()
                assert self.ended.wait(60)
            return decode(rows, *others, **forks)

        monkeypatch.setattr(decoding, "check", noted)
        monkeypatch.setattr(runner, "decode", held)


@pytest.fixture
def engine(tiny_model: Model) -> Any:
    with Engine(tiny_model, n_ctx=4096, n_parallel=2, n_threads=1) as engine:
        yield engine


def read(engine: Engine, ids: np.ndarray) -> Request:
    return engine.submit(ids, max_tokens=4, temperature=0, stream=False)


def test_a_prefill_that_nobody_waits_for_is_aborted(engine, monkeypatch) -> None:
    held = Held(monkeypatch, engine)
    job = read(engine, LONG)
    assert held.begun.wait(60)
    job.cancel()
    assert job.result(300).choices[0].finish_reason == "abort"
    assert held.aborted
    metrics = engine.metrics()
    assert (metrics.n_prompt_tokens, metrics.n_cancelled, metrics.n_running) == (0, 1, 0)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba"])
def test_what_comes_after_an_aborted_prefill_is_right(load, monkeypatch, arch: str) -> None:
    """Micro-batches that were done are in the memory: the next request must not take them for its own."""
    with Engine(load(arch), n_ctx=4096, n_parallel=1, n_threads=1, n_ubatch=64) as engine:
        expected = read(engine, LONG[:300]).result(300).choices[0].tokens
    with Engine(load(arch), n_ctx=4096, n_parallel=1, n_threads=1, n_ubatch=64) as engine:
        job = read(engine, LONG)
        while job.started is None:
            pass
        job.cancel()
        job.result(300)
        assert read(engine, LONG[:300]).result(300).choices[0].tokens == expected


def test_what_was_there_before_stays(engine, monkeypatch) -> None:
    read(engine, LONG[:50]).result(300)
    held = Held(monkeypatch, engine)
    job = read(engine, LONG)
    assert held.begun.wait(60)
    job.cancel()
    job.result(300)
    before = engine.metrics().n_cached_tokens
    read(engine, LONG[:60]).result(300)
    assert engine.metrics().n_cached_tokens - before >= 49


def test_a_decode_that_another_request_shares_goes_on(engine, monkeypatch) -> None:
    with engine._lock:
        first, second = read(engine, LONG[:200]), read(engine, LONG[50:250])
        held = Held(monkeypatch, engine)
    assert held.begun.wait(60)
    first.cancel()
    assert not held.aborted
    held.ended.set()
    assert second.result(300).choices[0].finish_reason == "length"
    assert first.result(300).choices[0].finish_reason in ("abort", "length")


def test_an_abort_that_comes_late_ends_no_other_decode(engine) -> None:
    job = read(engine, LONG[:64])
    job.result(300)
    job.cancel()
    for n in range(20):
        job = read(engine, LONG[n : n + 100])
        job.cancel()
        assert read(engine, LONG[n : n + 120]).result(300).choices[0].finish_reason == "length"


def test_embeddings_that_nobody_waits_for_are_aborted(load, monkeypatch) -> None:
    with Engine(load("bert"), n_threads=1) as engine:
        queue = engine._embeddings
        assert queue is not None
        begun, aborted, cancel = threading.Event(), threading.Event(), queue.embedder.cancel

        def noted(job: Any = None) -> None:
            aborted.set()
            cancel(job)

        steps = queue.embedder.steps

        def held(*arguments: Any, **more: Any) -> Any:
            made = steps(*arguments, **more)
            begun.set()
            assert aborted.wait(60)
            yield from made

        monkeypatch.setattr(queue.embedder, "cancel", noted)
        monkeypatch.setattr(queue.embedder, "steps", held)
        ask = Ask([LONG[:20]], queue.embedder.pooling(None), lambda vectors: vectors)
        job = engine._submit_vectors(ask)
        assert begun.wait(60)
        engine._cancel_vectors(job)
        with pytest.raises(Exception, match="aborted"):
            job.result(300)
        assert aborted.is_set()


def test_portions_that_requests_share_are_bounded_by_time() -> None:
    pace = PrefillBudget(2048, None, 512)
    assert pace.n_shared <= 256
    pace.measured(0, 256, 512.0)  # 2 ms for a token
    assert pace.n_shared == 150
    for _ in range(20):
        pace.measured(0, 100, 5000.0)
    assert pace.n_shared == 32
    for _ in range(50):
        pace.measured(0, 2048, 10.0)
    assert pace.n_shared == 2048


def test_only_the_requests_of_a_decode_count() -> None:
    calls: list[str] = []

    class Request:
        cancelled = False

    decoding = AbortableDecode(threading.Condition())
    one, two = Request(), Request()
    decoding.check()
    with decoding([one, two], lambda: calls.append("abort"), lambda: calls.append("clear")):
        one.cancelled = True
        decoding.check()
        assert calls == []
        two.cancelled = True
        decoding.check()
        assert calls == ["abort"]
    decoding.check()
    assert calls == ["abort", "clear"]
