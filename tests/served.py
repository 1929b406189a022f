"""Servers that run in threads of the tests, engines that write what a test wants, and waiting for both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import openai

from pyllm.engine import Engine, Job
from pyllm.server.run import Runner
from pyllm.server.state import ServerState


class Prompted(Engine):
    """An engine whose model a test can slow down, or make write what it likes, by processors."""

    processor: Callable[..., Any] | None = None

    def submit(self, prompt: Any, **arguments: Any) -> Job:
        if self.processor is not None:
            arguments["logits_processor"] = self.processor
        return super().submit(prompt, **arguments)

    def says(self, text: str) -> None:
        """Let the model write this text, and then end it."""
        script = [*self.vocab.tokenize(text, add_special=False, parse_special=True).tolist(), self.vocab.eos]
        start: list[int] = []

        def write(ids: np.ndarray, logits: np.ndarray) -> None:
            start[:] = start or [len(ids)]
            token = script[len(ids) - start[0]]
            logits[:] = -np.inf
            logits[token] = 0

        self.processor = write

    def slowly(self, seconds: float = 0.01) -> None:
        """Let each token take a while, and no text end by itself."""

        def wait(ids: np.ndarray, logits: np.ndarray) -> None:
            time.sleep(seconds)
            logits[self.vocab.eog_tokens] = -np.inf

        self.processor = wait


@dataclass
class Served:
    """A server that runs."""

    url: str
    runner: Runner
    state: ServerState
    thread: threading.Thread
    # One for all requests: what takes time is making it.
    http: httpx.Client

    def client(self, **options: Any) -> openai.OpenAI:
        """OpenAI's own client; close it."""
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0} | options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(self.url + path, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.http.post(self.url + path, json=body, **options)

    def stop(self) -> None:
        self.runner.should_exit = True
        self.http.close()
        self.thread.join(20)
        assert not self.thread.is_alive()


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def quiet(engine: Engine) -> None:
    """Nothing runs or waits any more, and no sequence is held but those that are kept for later."""
    wait_for(lambda: engine.metrics().n_running == engine.metrics().n_waiting == 0)
    wait_for(lambda: set(engine._cache.ledger.sequences) == set(engine._cache.idle))
