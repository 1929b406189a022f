"""Servers: in a thread of the tests, and as a process of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from pyllm.server.run import Runner
from pyllm.server.state import ServerState
from support import programs
from support.waiting import LIMIT, wait_for

# Words that stand in messages of Python, and of no other program.
PYTHON = re.compile(
    r"\b(None|True|False|NoneType|dict|tuple|bytearray|numpy|codec|pathlib|kwargs|sys\.\w+|traceback|char \d+)\b"
    r"|<class|object at 0x|Error\b:|[{\[]'|Python"
)


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
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()


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

        return wait_for(said, "the server to listen")[0].rpartition(" ")[2]

    def wait(self) -> int:
        code = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        self.process.stdout.close()
        self.process.stderr.close()
