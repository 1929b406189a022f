"""Hundreds of clients, some of them misbehaving: each is answered or refused, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.engines import wait_until_idle
from support.servers import Served
from support.waiting import LIMIT, wait_for

from pyllm import Model
from pyllm.engine import Engine, Job, QueueFullError

CLIENTS = Path(__file__).parents[1] / "support" / "load.py"
N_CTX = 256


class Watched(Engine):
    """An engine that counts what became of its requests."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self.jobs: list[Job] = []
        self.found: Counter[str] = Counter()
        super().__init__(*arguments, **more)

    def submit(self, *arguments: Any, **more: Any) -> Job:
        job = super().submit(*arguments, **more)
        self.jobs.append(job)
        return job

    def count(self) -> None:
        """Count the requests that have ended, and forget them."""
        for job in [job for job in self.jobs if job.done]:
            self.jobs.remove(job)
            self.found["requests"] += 1
            self.found["tokens"] += sum(text.row.n_generated for text in job.texts)
            self.found["asked to end"] += job.cancelled
            self.found["aborted"] += any(choice.finish_reason == "abort" for choice in job.result().choices)


@pytest.fixture(params=[True, False], ids=["unified", "split"])
def engine(tiny_model: Model, request: pytest.FixtureRequest) -> Iterator[Watched]:
    # What is kept of prompts outside of the KV cache would grow for a while.
    limits = {"n_batch": 64, "max_queued": 20, "host_cache_bytes": 1 << 20, "kv_unified": request.param}
    with Watched(tiny_model, n_ctx=N_CTX, n_parallel=4, n_threads=1, **limits) as engine:
        yield engine


def died(engine: Watched) -> list[str]:
    """What ended an engine, if anything did."""
    found = []
    for job in engine.jobs:
        try:
            if job.done:
                job.result()
        except Exception as error:
            found.append(repr(error))
    return found


def crowd(server: Served, engine: Watched, requests: int, seed: int) -> Counter[str]:
    """Let clients come, from a process of their own; what became of them."""
    command = [sys.executable, str(CLIENTS), server.url.rpartition(":")[2], str(requests), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, (done.stderr, died(engine))
    return Counter(json.loads(done.stdout))


class Neighbour(threading.Thread):
    """Asks the engine without the server, at all priorities, and changes its mind."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.ends = threading.Event()
        self.problems: list[str] = []

    def run(self) -> None:
        choose = random.Random(3)
        while not self.ends.wait(choose.random() / 20):
            prompt = [5 + choose.randrange(50) for _ in range(choose.randrange(1, 80))]
            try:
                job = self.engine.submit(prompt, max_tokens=choose.randrange(40), priority=choose.randrange(-2, 3))
            except QueueFullError:
                continue
            if choose.random() < 0.5:
                time.sleep(choose.random() / 50)
                job.cancel()
            try:
                job.result(LIMIT)
            except Exception as error:
                self.problems.append(repr(error))


def on_loop(server: Served, work: Any) -> Any:
    """Call something in the event loop of a server."""

    async def call() -> Any:
        return work()

    loop = server.runner.servers[0].get_loop()
    return asyncio.run_coroutine_threadsafe(call(), loop).result(LIMIT)


def check_nothing_is_left(server: Served, engine: Watched) -> None:
    wait_until_idle(engine)
    wait_for(lambda: not server.state.running)
    metrics = engine.metrics()
    assert metrics.n_cells_used <= metrics.n_cells == engine.context.n_ctx
    # Between requests there is the server's own task, and this one that counts them.
    wait_for(lambda: not server.runner.server_state.connections)
    wait_for(lambda: on_loop(server, lambda: len(asyncio.all_tasks())) <= 2)


def check_counts(engine: Watched) -> None:
    engine.count()
    now, found = engine.metrics(), engine.found
    assert engine.jobs == []
    assert now.n_requests == found["requests"]
    assert now.n_failed == 0
    assert found["aborted"] <= now.n_cancelled <= found["asked to end"]
    assert now.n_generated_tokens == found["tokens"]
    # Where each text has cells of its own only those that are more urgent stop one, if any comes at that moment.
    assert now.n_preempted > 0 or engine.context.n_ctx_seq < engine.context.n_ctx
    assert now.n_rejected > 0


def answers(server: Served) -> Counter[str]:
    """How many requests were answered, by status."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(server.state.metrics.text().decode()):
        for sample in family.samples:
            if sample.name == "pyllm_http_requests_total":
                found[sample.labels["status"]] += int(sample.value)
    return found


def test_hundreds_of_clients_leave_nothing_behind(start, engine: Watched) -> None:
    run(start, engine, 120)


@pytest.mark.slow
def test_two_thousand_requests_leave_nothing_behind(start, engine: Watched) -> None:
    first, second = run(start, engine, 1000)
    # What the first thousand needed was got from the system once; the second thousand needs no more.
    assert second - first <= 6 << 20, (first, second)


def run(start, engine: Watched, requests: int) -> list[int]:
    server = start(engine, metrics=True, retry_after=1)
    process = psutil.Process()
    neighbour = Neighbour(engine)
    neighbour.start()
    try:
        crowd(server, engine, 24, 0)  # threads and buffers are made when they are first needed
        fds, threads = process.num_fds(), threading.active_count()
        outcomes: Counter[str] = Counter()
        sizes: list[int] = []
        for seed in (1, 2):
            outcomes += crowd(server, engine, requests, seed)
            engine.count()
            gc.collect()
            sizes.append(process.memory_info().rss)
    finally:
        neighbour.ends.set()
        neighbour.join(LIMIT)
    assert neighbour.problems == []
    assert sum(outcomes.values()) == 2 * requests
    assert sum(n for outcome, n in outcomes.items() if outcome.endswith("200")) > requests / 4, outcomes
    check_nothing_is_left(server, engine)
    check_counts(engine)
    statuses = answers(server)
    assert not [status for status in statuses if status >= "500" and status != "503"], statuses
    wait_for(lambda: process.num_fds() <= fds)
    assert threading.active_count() <= threads
    server.stop()
    return sizes
