"""The only place where tests reach into an engine: faults that no caller can cause, and what no caller sees.

A change to the structure of the engine is followed here, and nowhere else in the tests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyllm.embedding.embedder import Embedder
from pyllm.engine import Engine


def limit_cells(engine: Engine, n: int) -> None:
    """Let an engine count only so many cells of its KV cache, so that sequences are preempted after few tokens.

    No argument does that: llama.cpp's caches have at least 256 cells.
    """
    engine._cache.ledger.n_cells = n


def between_steps(engine: Engine, work: Callable[[], Any]) -> Any:
    """Call something in the thread of an engine, between two steps: what it submits comes to one step together."""
    return engine._between.run(work)


def on_decode(engine: Engine, callback: Callable[[int, int, int], None]) -> None:
    """Call `callback(n_rows, n_tokens, n_drafts)` in the thread of an engine, before each decode of a batch.

    Which sequences shared a decode is seen nowhere else; their tokens do not depend on it.
    """
    runner = engine._steps.runner
    decode = runner.decode

    def watched(rows: Any, drafts: Any = None) -> Any:
        callback(len(rows), sum(n for _, n in rows), len(drafts or {}))
        return decode(rows, drafts)

    runner.decode = watched  # type: ignore[method-assign]


def count_turns(engine: Engine) -> list[int]:
    """How many steps each turn of the engine's thread has made; one with several steps needed no Python in between."""
    turns: list[int] = []
    step = engine._steps.step

    def counted() -> None:
        before = engine.metrics().n_steps
        step()
        turns.append(engine.metrics().n_steps - before)

    engine._steps.step = counted  # type: ignore[method-assign]
    return turns


class HeldPrefill:
    """Holds the next decode of more than 100 tokens back until it is aborted, or let go.

    A tiny model computes a prompt faster than a test can cancel its request.
    """

    def __init__(self, engine: Engine) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()
        self.aborted = False
        decoding = engine._decoding
        check = decoding.check

        def noted() -> None:
            check()
            requests = decoding._requests
            if requests and all(request.cancelled for request in requests):
                self.aborted = True
                self.ended.set()

        def hold(n_rows: int, n_tokens: int, n_drafts: int) -> None:
            if n_tokens > 100:
                self.begun.set()
                assert self.ended.wait(300)

        decoding.check = noted  # type: ignore[method-assign]
        on_decode(engine, hold)


def break_draft_model(engine: Engine) -> None:
    """Close the context of the draft model, as an error in it would."""
    engine._drafts._seats[0].speculator._draft_context.close()


@contextmanager
def failing_context(engine: Engine, error: Exception) -> Iterator[None]:
    """The context of deterministic requests cannot be made, as if memory were short."""
    lane = engine._lane
    make = lane._make_context

    def fail() -> Any:
        raise error

    lane._make_context = fail
    try:
        yield
    finally:
        lane._make_context = make


def embedder_of(engine: Engine) -> Embedder:
    """What computes the embeddings of an engine: its decodes can be held back or made to fail."""
    assert engine._vectors is not None
    return engine._vectors.embedder
