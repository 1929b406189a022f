"""A decode that fails for good ends the requests of its step; all others go on in a new context."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engine_internals import (
    between_steps,
    deterministic_context,
    fail_deterministic_decodes,
    fail_next_decode,
    refuse_new_contexts,
    wait_for_thread,
)
from support.loras import write_lora

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


def test_requests_of_the_step_fail_and_waiting_ones_go_on(engine: Engine) -> None:
    expected = engine.complete([9, 8], max_tokens=20, temperature=0).tokens
    before = engine.context

    def submit() -> list[Any]:
        found = [engine.submit(prompt, max_tokens=200, temperature=0) for prompt in ([5, 6, 7], [40, 41])]
        found.append(engine.submit([9, 8], max_tokens=20, temperature=0))
        fail_next_decode(engine)
        return found

    # The engine has two slots: the third request waits during the step that fails.
    *running, waiting = between_steps(engine, submit)
    for request in running:
        with pytest.raises(errors.DecodeError, match="llama_decode failed"):
            request.result(300)
    assert waiting.result(300).tokens == expected
    assert before.closed and not engine.context.closed and not engine.closed
    metrics = engine.metrics()
    assert (metrics.n_recovered, metrics.n_failed, metrics.n_running, metrics.n_waiting) == (1, 2, 0, 0)
    assert engine.complete([5, 6, 7], max_tokens=4).tokens
    engine.check_invariants()


def test_running_requests_of_other_steps_are_computed_again(engine: Engine, adapter: Path) -> None:
    arguments: dict[str, Any] = {"max_tokens": 100, "temperature": 0}
    expected = engine.complete([5, 6, 7], **arguments).tokens
    other = engine.submit([5, 6, 7], **arguments)
    events = iter(other)
    next(events)
    # Steps compute one set of adapters: the other request runs, and has no part in the step that fails.
    between_steps(engine, lambda: fail_next_decode(engine, lora=str(adapter)))
    with pytest.raises(errors.DecodeError):
        engine.complete([40, 41], lora=adapter, max_tokens=5)
    assert other.result(300).tokens == expected
    assert engine.metrics().n_recovered == 1
    assert engine.complete([40, 41], lora=adapter, max_tokens=5).tokens


def test_an_abort_from_outside_costs_its_step(engine: Engine) -> None:
    def submit() -> Any:
        request = engine.submit([1] * 300, max_tokens=5, stream=False)
        engine.context.abort()
        return request

    request = between_steps(engine, submit)
    with pytest.raises(errors.DecodeAborted):
        request.result(300)
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
    refuse_new_contexts(engine, errors.ContextError("no memory"))
    fail_next_decode(engine)
    with pytest.raises(errors.DecodeError, match="llama_decode failed"):
        engine.complete([5, 6], max_tokens=3)
    wait_for_thread(engine)
    with pytest.raises(errors.ClosedError):
        engine.submit([5, 6])


def test_a_deterministic_request_that_fails_gets_a_new_context(engine: Engine) -> None:
    def fail(ids: np.ndarray, logits: np.ndarray) -> None:
        raise ZeroDivisionError("mine")

    arguments: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "deterministic": True}
    expected = engine.complete([5, 6], **arguments).tokens
    first = fail_deterministic_decodes(engine, ZeroDivisionError("its"))
    with pytest.raises(ZeroDivisionError, match="its"):
        engine.complete([5, 6], **arguments)
    assert first.closed
    assert engine.complete([5, 6], **arguments).tokens == expected
    second = deterministic_context(engine)
    # The error of a processor is no reason for a new one.
    with pytest.raises(ZeroDivisionError, match="mine"):
        engine.complete([5, 6], **arguments, logits_processor=fail)
    assert engine.complete([5, 6], **arguments).tokens == expected
    assert deterministic_context(engine) is second and not second.closed
