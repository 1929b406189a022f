"""Servers that run in threads of the tests, engines that write what a test wants, and waiting for both."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import openai
import programs

from pyllm.engine import Engine, Job
from pyllm.server.run import Runner
from pyllm.server.state import ServerState

# Words that stand in messages of Python, and of no other program.
PYTHON = re.compile(
    r"\b(None|True|False|NoneType|dict|tuple|bytearray|numpy|codec|pathlib|kwargs|sys\.\w+|traceback|char \d+)\b"
    r"|<class|object at 0x|Error\b:|[{\[]'|Python"
)


class Prompted(Engine):
    """An engine whose model a test can slow down, or make write what it likes, by processors."""

    processor: Callable[..., Any] | None = None

    def submit(self, prompt: Any, **arguments: Any) -> Job:
        if self.processor is not None:
            arguments["logits_processor"] = self.processor
        return super().submit(prompt, **arguments)

    def says(self, text: str) -> None:
        """Let the model write this text, and then end it."""
        script = [*self.vocab.tokenize(text, add_special=False, parse_special=True), self.vocab.eos]
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


class Process:
    """The program while it serves; its log is read line by line."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*programs.PROGRAM, "serve", "--port", "0", "-t", "1", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LLAMA_ARG_LOG_JSONL": "1", **environment},
        )
        self.lines: list[dict[str, Any]] = []
        self.rest: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.rest.append(line)

    @property
    def url(self) -> str:
        def said() -> list[str]:
            assert self.process.poll() is None, "".join(self.rest)
            return [line["message"] for line in self.lines if "listening" in line["message"]]

        wait_for(said, 60)
        return said()[0].rpartition(" ")[2]

    def wait(self) -> int:
        code = self.process.wait(30)
        self._reader.join(10)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait(30)
        self._reader.join(10)
        self.process.stdout.close()
        self.process.stderr.close()
