"""Drafts by a model's own layers for multi-token prediction, in an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.drafting import PROMPT, write_mtp
from support.engine_internals import between_steps
from support.numerics import EXACT

from pyllm import Llama, Model, errors
from pyllm.engine import Engine, Job
from pyllm.speculation import SpeculationParams

MTP = SpeculationParams(types="draft-mtp", n_max=3, adaptive=False)
SIZES: dict[str, Any] = {"n_ctx": 2048, "n_batch": 32, **EXACT}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mtp(tmp_path_factory.mktemp("mtp") / "mtp.gguf")


@pytest.fixture(scope="module")
def plain(path: Path) -> Iterator[Llama]:
    with Llama(path, cache_prompt=False, **SIZES) as llm:
        yield llm


@pytest.fixture(params=[False, True])
def engine(path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(path, speculative=MTP, n_parallel=4, kv_unified=request.param, **SIZES) as engine:
        yield engine


def test_the_same_text(engine: Engine, plain: Llama) -> None:
    for prompt in (PROMPT, [*PROMPT, *PROMPT[::-1]]):
        for arguments in ({"temperature": 0}, {"seed": 3, "temperature": 0.7, "logprobs": 1}):
            want = plain(prompt, max_tokens=60, **arguments)
            for cache_prompt in (False, True):
                got = engine.complete(prompt, max_tokens=60, cache_prompt=cache_prompt, **arguments)
                assert got.tokens == want.tokens
                assert got.speculation is not None
                assert got.speculation.drafted > 100 or cache_prompt
    other = engine.complete(PROMPT, max_tokens=60, temperature=0, speculative="ngram")
    assert other.tokens == plain(PROMPT, max_tokens=60, temperature=0).tokens
    assert engine.complete(PROMPT, max_tokens=20, temperature=0, speculative=False).speculation is None


def test_a_conversation_goes_on_with_what_was_seen(engine: Engine, plain: Llama) -> None:
    ids = PROMPT.tolist()
    for turn in range(4):
        want = plain(ids, max_tokens=30, temperature=0).tokens
        got = engine.complete(ids, max_tokens=30, temperature=0)
        assert got.tokens == want
        assert (got.usage.cached_tokens > 0) == (turn > 0)
        assert got.speculation is not None and got.speculation.drafted > 20
        ids = [*ids, *got.tokens, 50 + turn]


def cancelled_at_the_third_chunk(engine: Engine) -> Job:
    chunks: list[Any] = []
    jobs: list[Job] = []

    def leave(chunk: Any) -> None:
        chunks.append(chunk)
        if len(chunks) == 3:
            jobs[0].cancel()

    def submit() -> None:
        jobs.append(engine.submit(PROMPT, max_tokens=200, temperature=0, listener=leave))

    # In the thread of the engine: no chunk comes before the job is known.
    between_steps(engine, submit)
    return jobs[0]


def test_others_come_and_go_and_no_place_is_lost(engine: Engine, plain: Llama) -> None:
    """A place that drafted must not stay taken, whatever happens around it."""
    want = plain(PROMPT, max_tokens=200, temperature=0).tokens
    for n in range(2):
        stream = engine.submit(PROMPT, max_tokens=200, temperature=0)
        for i, _ in enumerate(stream):
            if i in (4, 20):
                others = [engine.submit([9, n, i, k], max_tokens=10, temperature=0) for k in range(5)]
                others[0].cancel()
                assert all(other.result(300) for other in others)
        assert stream.result(300).tokens == want
        left = cancelled_at_the_third_chunk(engine)
        assert left.result(300).finish_reason == "abort"
    texts = engine.generate([PROMPT, PROMPT[:5], PROMPT[3:]], max_tokens=40, temperature=0)
    for text, prompt in zip(texts, [PROMPT, PROMPT[:5], PROMPT[3:]], strict=True):
        assert text.tokens == plain(prompt, max_tokens=40, temperature=0).tokens
    assert engine.metrics().n_running == engine.metrics().n_waiting == 0
    # Alone again, it drafts again.
    fresh = np.random.default_rng(8).integers(3, 250, 20)
    got = engine.complete(fresh, max_tokens=60, temperature=0)
    assert got.tokens == plain(fresh, max_tokens=60, temperature=0).tokens
    assert got.speculation is not None and got.speculation.drafted > 50


def test_what_is_wrong(path: Path, load: Callable[..., Model]) -> None:
    with Model(path) as model, pytest.raises(errors.InvalidArgumentError, match="load_mtp=True"):
        Engine(model, speculative="mtp", **SIZES)
    with pytest.raises(errors.InvalidArgumentError, match="no layers for multi-token prediction"):
        Engine(load("llama"), speculative="mtp", **SIZES)
    with (
        Engine(load("llama"), **SIZES) as engine,
        pytest.raises(errors.InvalidArgumentError, match="make the engine with speculative='mtp'"),
    ):
        engine.submit([1], speculative="mtp")
