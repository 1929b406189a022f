"""A decode that fails for good ends the requests of its step; all others go on in a new context."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_loras import write_lora

from pyllm import Model, errors
from pyllm.engine import Engine

EXACT: dict[str, Any] = {"n_threads": 1, "type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled"}


@pytest.fixture(scope="module")
def adapter(tiny_models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("lora") / "style.gguf", tiny_models["llama"], 1)


@pytest.fixture
def engine(tiny_model: Model, adapter: Path) -> Iterator[Engine]:
    with Engine(tiny_model, n_ctx=1024, n_parallel=2, n_batch=64, lora={adapter: 0}, **EXACT) as engine:
        yield engine


def fail_next_decode(engine: Engine, *, lora: Path | None = None) -> None:
    """Let the next decode with this adapter fail as llama_decode does with a device that is gone."""
    runner = engine._core.runner
    decode = runner.decode

    def failing(rows: Any, *others: Any, **forks: Any) -> Any:
        if [adapter.path for adapter, _ in rows[0][0].adapters] != ([] if lora is None else [str(lora)]):
            return decode(rows, *others, **forks)
        raise errors.DecodeError("llama_decode failed", code=-3, function="llama_decode")

    runner.decode = failing  # type: ignore[method-assign]


def test_requests_of_the_step_fail_and_waiting_ones_go_on(engine: Engine) -> None:
    expected = engine.complete([9, 8], max_tokens=20, temperature=0).tokens
    before = engine.context

    def submit() -> list[Any]:
        found = [engine.submit(prompt, max_tokens=200, temperature=0) for prompt in ([5, 6, 7], [40, 41])]
        found.append(engine.submit([9, 8], max_tokens=20, temperature=0))
        fail_next_decode(engine)
        return found

    # The engine has two slots: the third request waits during the step that fails.
    *running, waiting = engine._calls.run(submit)
    for request in running:
        with pytest.raises(errors.DecodeError, match="llama_decode failed"):
            request.result(300)
    assert waiting.result(300).tokens == expected
    assert before.closed and not engine.context.closed and not engine.closed
    metrics = engine.metrics()
    assert (metrics.n_recovered, metrics.n_failed, metrics.n_running, metrics.n_waiting) == (1, 2, 0, 0)
    assert engine.complete([5, 6, 7], max_tokens=4).tokens


def test_running_requests_of_other_steps_are_computed_again(engine: Engine, adapter: Path) -> None:
    arguments: dict[str, Any] = {"max_tokens": 100, "temperature": 0}
    expected = engine.complete([5, 6, 7], **arguments).tokens
    other = engine.submit([5, 6, 7], **arguments)
    events = iter(other)
    next(events)
    # Steps compute one set of adapters: the other request runs, and has no part in the step that fails.
    engine._calls.run(lambda: fail_next_decode(engine, lora=adapter))
    with pytest.raises(errors.DecodeError):
        engine.complete([40, 41], lora=adapter, max_tokens=5)
    assert other.result(300).tokens == expected
    assert engine.metrics().n_recovered == 1
    assert engine.complete([40, 41], lora=adapter, max_tokens=5).tokens


def test_an_abort_from_outside_costs_its_step(engine: Engine) -> None:
    requests = engine._calls.run(
        lambda: (engine.submit([1] * 300, max_tokens=5, stream=False), engine.context.abort())[0]
    )
    with pytest.raises(errors.DecodeAborted):
        requests.result(300)
    assert engine.complete([5, 6], max_tokens=3).tokens
    assert engine.metrics().n_recovered == 1


def test_drafts_and_the_host_tier_work_in_the_new_context(tiny_model: Model) -> None:
    prompt = list(range(5, 105))
    arguments: dict[str, Any] = {"max_tokens": 30, "temperature": 0}
    sizes: dict[str, Any] = {"n_ctx": 256, "n_parallel": 1, "n_batch": 64}
    with Engine(tiny_model, **sizes, speculative="ngram", host_cache_bytes=1 << 24, **EXACT) as engine:
        expected = engine.complete(prompt, **arguments)
        # Another prompt takes its place in the only sequence, and it leaves for the host tier.
        engine.complete([200] * 120, **arguments)
        fail_next_decode(engine)
        with pytest.raises(errors.DecodeError):
            engine.complete([7, 7, 7], **arguments)
        again = engine.complete(prompt, **arguments)
        assert again.tokens == expected.tokens
        assert engine.metrics().n_host_hits == 1 and again.usage.cached_tokens > 60
        assert engine.metrics().n_drafts > 0


def test_without_a_new_context_the_engine_ends(engine: Engine) -> None:
    def refuse() -> Any:
        raise errors.ContextError("no memory")

    engine._core._make_context = refuse
    fail_next_decode(engine)
    with pytest.raises(errors.DecodeError, match="llama_decode failed"):
        engine.complete([5, 6], max_tokens=3)
    engine._thread.join(300)
    with pytest.raises(errors.ClosedError):
        engine.submit([5, 6])


def test_a_deterministic_request_that_fails_gets_a_new_context(engine: Engine) -> None:
    def fail(ids: np.ndarray, logits: np.ndarray) -> None:
        raise ZeroDivisionError("mine")

    expected = engine.complete([5, 6], max_tokens=8, temperature=0, deterministic=True).tokens
    runner = engine._deterministic._runner
    assert runner is not None
    first = runner.context
    runner.decode = lambda rows, **others: 1 // 0  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(ZeroDivisionError):
        engine.complete([5, 6], max_tokens=8, deterministic=True)
    assert first.closed
    # The error of a processor is no reason for a new one.
    assert engine.complete([5, 6], max_tokens=8, temperature=0, deterministic=True).tokens == expected
    second = engine._deterministic._runner
    with pytest.raises(ZeroDivisionError, match="mine"):
        engine.complete([5, 6], max_tokens=8, deterministic=True, logits_processor=fail)
    assert engine.complete([5, 6], max_tokens=8, temperature=0, deterministic=True).tokens == expected
    assert engine._deterministic._runner is second
