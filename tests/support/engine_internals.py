"""The only place where tests reach into an engine: faults that no caller can cause, and what no caller sees.

A change to the structure of the engine is followed here, and nowhere else in the tests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyllm import errors
from pyllm.core.context import Context
from pyllm.embedding.embedder import Embedder
from pyllm.engine import Engine


def limit_cells(engine: Engine, n: int) -> None:
    """Let an engine count only so many cells of its KV cache, so that sequences are preempted after few tokens.

    No argument does that: llama.cpp's caches have at least 256 cells.
    """
    engine._core.cache.cells.n_cells = n


def between_steps(engine: Engine, work: Callable[[], Any]) -> Any:
    """Call something in the thread of an engine, between two steps: what it submits comes to one step together."""
    return engine._calls.run(work)


def on_decode(engine: Engine, callback: Callable[[int, int, int], None]) -> None:
    """Call `callback(n_rows, n_tokens, n_drafts)` in the thread of an engine, before each decode of a batch.

    Which sequences shared a decode is seen nowhere else; their tokens do not depend on it.
    """
    runner = engine._core.runner
    decode = runner.decode

    def watched(rows: Any, drafts: Any = None, **forks: Any) -> Any:
        callback(len(rows), sum(n for _, n in rows), len(drafts or {}))
        return decode(rows, drafts, **forks)

    runner.decode = watched  # type: ignore[method-assign]


def count_turns(engine: Engine) -> list[int]:
    """How many steps each turn of the engine's thread has made; one with several steps needed no Python in between."""
    turns: list[int] = []
    step = engine._core.step

    def counted() -> None:
        before = engine.metrics().n_steps
        step()
        turns.append(engine.metrics().n_steps - before)

    engine._core.step = counted  # type: ignore[method-assign]
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
    engine._drafters._slots[0].speculator._draft_context.close()


@contextmanager
def failing_context(engine: Engine, error: Exception) -> Iterator[None]:
    """The context of deterministic requests cannot be made, as if memory were short."""
    runner = engine._deterministic
    make = runner._make_context

    def fail() -> Any:
        raise error

    runner._make_context = fail
    try:
        yield
    finally:
        runner._make_context = make


def embedder_of(engine: Engine) -> Embedder:
    """What computes the embeddings of an engine: its decodes can be held back or made to fail."""
    assert engine._embeddings is not None
    return engine._embeddings.embedder


def fail_next_decode(engine: Engine, *, lora: str | None = None) -> None:
    """Let the next decode with this adapter, or with none, fail as llama_decode does with a device that is gone."""
    runner = engine._core.runner
    decode = runner.decode

    def failing(rows: Any, *others: Any, **forks: Any) -> Any:
        if [adapter.path for adapter, _ in rows[0][0].adapters] != ([] if lora is None else [lora]):
            return decode(rows, *others, **forks)
        raise errors.DecodeError("llama_decode failed", code=-3, function="llama_decode")

    runner.decode = failing  # type: ignore[method-assign]


def fail_deterministic_decodes(engine: Engine, error: Exception) -> Context:
    """Let every decode of deterministic requests fail in their present context, which is given."""
    runner = engine._deterministic._runner
    assert runner is not None

    def failing(*others: Any, **forks: Any) -> Any:
        raise error

    runner.decode = failing  # type: ignore[method-assign]
    return runner.context


def deterministic_context(engine: Engine) -> Context:
    """The context of deterministic requests."""
    runner = engine._deterministic._runner
    assert runner is not None
    return runner.context


def refuse_new_contexts(engine: Engine, error: Exception) -> None:
    """Let the engine fail to make its context anew."""

    def refuse() -> Any:
        raise error

    engine._core._make_context = refuse


def wait_for_thread(engine: Engine) -> None:
    """Wait until the thread of an engine has ended."""
    engine._thread.join(300)
    assert not engine._thread.is_alive()
