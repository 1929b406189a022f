"""A request that is cancelled during its prompt: its decode is aborted, and what is left behind is right."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from support.engine_internals import HeldPrefill, between_steps, embedder_of
from support.waiting import wait_for

from pyllm import Model
from pyllm.engine import AsyncEngine, Engine, Job
from pyllm.engine.pace import Pace
from pyllm.engine.running_decode import RunningDecode

LONG = np.arange(3, 1800, dtype=np.int32) % 200 + 5


@pytest.fixture
def engine(tiny_model: Model) -> Any:
    with Engine(tiny_model, n_ctx=4096, n_parallel=2, n_threads=1) as engine:
        yield engine


def read(engine: Engine, ids: np.ndarray) -> Job:
    return engine.submit(ids, max_tokens=4, temperature=0, stream=False)


def test_the_prefill_of_a_cancelled_request_is_aborted(engine) -> None:
    held = HeldPrefill(engine)
    job = read(engine, LONG)
    assert held.begun.wait(300)
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
        wait_for(lambda: job.started is not None)
        job.cancel()
        job.result(300)
        assert read(engine, LONG[:300]).result(300).choices[0].tokens == expected


def test_what_was_there_before_stays(engine) -> None:
    read(engine, LONG[:50]).result(300)
    held = HeldPrefill(engine)
    job = read(engine, LONG)
    assert held.begun.wait(300)
    job.cancel()
    job.result(300)
    before = engine.metrics().n_cached_tokens
    read(engine, LONG[:60]).result(300)
    assert engine.metrics().n_cached_tokens - before >= 49


def test_a_decode_that_another_request_shares_goes_on(engine) -> None:
    held = HeldPrefill(engine)
    first, second = between_steps(engine, lambda: [read(engine, LONG[:200]), read(engine, LONG[50:250])])
    assert held.begun.wait(300)
    first.cancel()
    assert not held.aborted
    held.ended.set()
    assert second.result(300).choices[0].finish_reason == "length"
    assert first.result(300).choices[0].finish_reason == "abort"


def test_an_abort_that_comes_late_ends_no_other_decode(engine) -> None:
    job = read(engine, LONG[:64])
    job.result(300)
    job.cancel()
    for n in range(20):
        job = read(engine, LONG[n : n + 100])
        job.cancel()
        assert read(engine, LONG[n : n + 120]).result(300).choices[0].finish_reason == "length"


def test_the_embedding_of_a_cancelled_request_is_aborted(load, monkeypatch) -> None:
    with Engine(load("bert"), n_threads=1) as engine:
        embedder = embedder_of(engine)
        begun, aborted, cancel = threading.Event(), threading.Event(), embedder.cancel

        def noted(job: Any = None) -> None:
            aborted.set()
            cancel(job)

        steps = embedder.steps

        def held(*arguments: Any, **more: Any) -> Any:
            made = steps(*arguments, **more)
            begun.set()
            assert aborted.wait(300)
            yield from made

        monkeypatch.setattr(embedder, "cancel", noted)
        monkeypatch.setattr(embedder, "steps", held)

        async def leave() -> None:
            task = asyncio.create_task(AsyncEngine(engine).embed(LONG[:20]))
            await asyncio.to_thread(begun.wait, 300)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(leave())
        wait_for(lambda: engine.metrics().n_embedding == 0)
        assert aborted.is_set() and engine.metrics().n_cancelled == 1


def test_portions_that_requests_share_are_bounded_by_time() -> None:
    pace = Pace(2048, None, 512)
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

    decoding = RunningDecode(threading.Condition())
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
