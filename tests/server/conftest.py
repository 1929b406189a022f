"""Real servers on free ports, in threads, with tiny models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from support.browsers import ARGUMENTS, CHROMIUM, Tab, tab
from support.engines import Prompted, wait_until_idle
from support.servers import Process, Served
from support.waiting import wait_for

from pyllm import Model
from pyllm.engine import Engine
from pyllm.server import Settings, make_app
from pyllm.server.run import Runner


@pytest.fixture(scope="module")
def shared_engine(tiny_model: Model) -> Iterator[Prompted]:
    with Prompted(tiny_model, n_ctx=8192, n_parallel=4, n_threads=1, max_queued=64) as engine:
        yield engine


@pytest.fixture
def engine(shared_engine: Prompted) -> Iterator[Prompted]:
    yield shared_engine
    shared_engine.processor = None
    wait_until_idle(shared_engine)


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Served]]:
    """`start(engine, settings…, embedder=…)`: a server of its own, stopped after the module."""
    servers: list[Served] = []

    def start(engine: Engine | None, *, embedder: Any = None, **settings: Any) -> Served:
        app = make_app(engine, Settings(**settings), embedder=embedder)
        runner = Runner(app, port=0)
        http = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
        thread = threading.Thread(target=runner.run, daemon=True)
        thread.start()
        wait_for(lambda: runner.started and runner.servers)
        servers.append(Served(runner.address, runner, app.state.pyllm, thread, http))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def shared_server(start: Callable[..., Served], shared_engine: Prompted) -> Served:
    return start(shared_engine, alias="tiny", metrics=True)


@pytest.fixture
def server(shared_server: Served, engine: Prompted) -> Served:
    return shared_server


@pytest.fixture(scope="module")
def shared_client(shared_server: Served) -> Iterator[openai.OpenAI]:
    with shared_server.client() as client:
        yield client


@pytest.fixture
def client(shared_client: openai.OpenAI, server: Served) -> openai.OpenAI:
    return shared_client


@pytest.fixture
def serve() -> Iterator[Callable[..., Process]]:
    """`serve(flags…, VARIABLE=…)`: the program as a process of its own, killed after the test."""
    started: list[Process] = []

    def serve(*arguments: Any, **environment: str) -> Process:
        started.append(Process(*map(str, arguments), **environment))
        return started[-1]

    yield serve
    for process in started:
        process.close()


# ---- the page, in a real browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright. It goes with the module: other tests run event loops of their own."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def web(browser: Any, server: Served) -> Iterator[Tab]:
    """A tab, which is checked afterwards."""
    with tab(browser, server) as web:
        yield web


@pytest.fixture
def other(browser: Any) -> Callable[..., AbstractContextManager[Tab]]:
    """`with other(server, **options) as web`: a tab on another server, or of another kind."""
    return partial(tab, browser)
