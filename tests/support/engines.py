"""Engines: one whose output a test decides, settings, and the check that nothing is left behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pyllm import Llama, Model
from pyllm.engine import Engine, Job
from support.waiting import wait_for

PROMPTS = [[5, 6, 7], [9], [3, 3, 8, 20], [40, 41], [1] * 30, [17, 4], [60, 61, 62], [2, 2]]


def endless(owner: Engine | Llama | Model) -> dict[int, float]:
    """A bias that forbids the end-of-generation tokens: a text ends at its limit only."""
    return dict.fromkeys(owner.vocab.eog_tokens, -np.inf)


def slow(ids: np.ndarray, logits: np.ndarray) -> None:
    """A logits processor that takes a while for each token."""
    time.sleep(0.005)


def assert_idle(engine: Engine) -> None:
    """No request runs or waits, and the KV cache holds what is counted: prefixes of ended requests, and no more."""
    metrics = engine.metrics()
    assert metrics.n_running == metrics.n_waiting == metrics.n_cells_running == 0
    engine.check_invariants()


def wait_until_idle(engine: Engine) -> None:
    """Wait until no request runs or waits; then as :func:`assert_idle`."""
    wait_for(lambda: engine.metrics().n_running == engine.metrics().n_waiting == 0, "requests to finish")
    assert_idle(engine)


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
