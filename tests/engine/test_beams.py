"""Beam searches in an engine: the texts of a Llama, beside other requests, in memory of their own."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from pyllm import Llama, errors
from pyllm.engine import Engine

PROMPT = "the more people look"
EXACT = {"flash_attn_type": "disabled", "n_threads": 1}


@pytest.fixture
def engine(tiny_model):
    with Engine(tiny_model, n_ctx=512, n_parallel=4, **EXACT) as engine:
        yield engine


def same(first, second):
    assert [choice.tokens for choice in first.choices] == [choice.tokens for choice in second.choices]
    assert [choice.text for choice in first.choices] == [choice.text for choice in second.choices]
    assert np.allclose([c.score for c in first.choices], [c.score for c in second.choices], atol=1e-3)


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba", "jamba"])
def test_as_in_a_llama(load, arch, kv_unified):
    model = load(arch)
    arguments = {"num_beams": 4, "n": 3, "max_tokens": 20}
    with Llama(model, n_ctx=512, n_seq_max=4, kv_unified=True, swa_full=True, **EXACT) as llm:
        expected = llm(PROMPT, **arguments)
    with Engine(model, n_ctx=512, n_parallel=2, kv_unified=kv_unified, **EXACT) as engine:
        for _ in range(2):  # the second one computes where the first one did
            same(engine.complete(PROMPT, **arguments), expected)


def test_more_beams_than_the_engine_has_texts(engine):
    found = engine.complete(PROMPT, num_beams=9, n=9, max_tokens=8)
    assert len({choice.tokens for choice in found.choices}) == 9
    assert engine.complete(PROMPT, num_beams=2, max_tokens=8).score


def test_other_requests_go_on_beside_it(engine):
    """Texts get their tokens between the steps of a search, and are what they are without it."""
    prompts = [f"{PROMPT} {i}" for i in range(3)]
    alone = engine.generate(prompts, temperature=0, max_tokens=30)
    order: list[str] = []
    search_began = threading.Event()

    def watch(ids, row):
        order.append("search")
        search_began.set()

    search = engine.submit(PROMPT, num_beams=3, max_tokens=60, logits_processor=watch, stream=False)
    assert search_began.wait(300)
    jobs = [
        engine.submit(prompt, temperature=0, max_tokens=30, listener=lambda event: order.append("text"))
        for prompt in prompts
    ]
    beside = [job.result() for job in jobs]
    found = search.result()
    assert [one.tokens for one in beside] == [one.tokens for one in alone]
    first, last = order.index("text"), len(order) - order[::-1].index("text")
    assert "search" in order[first:last], "the search waited for the texts"
    assert order[last:].count("search") < order.count("search"), "the texts waited for the search"
    same(found, engine.complete(PROMPT, num_beams=3, max_tokens=60))


def test_searches_run_one_after_another(engine):
    arguments = [{"num_beams": 2 + i, "n": 2, "max_tokens": 6 + i} for i in range(4)]
    jobs = [engine.submit(PROMPT, stream=False, **one) for one in arguments]
    together = [job.result() for job in jobs]
    for one, found in zip(arguments, together, strict=True):
        same(found, engine.complete(PROMPT, **one))


def test_a_prompt_of_several_portions(tiny_model):
    ids = [1, *np.random.default_rng(0).integers(259, 400, 900).tolist()]
    with Llama(tiny_model, n_ctx=2048, n_seq_max=3, kv_unified=True, **EXACT) as llm:
        expected = llm(ids, num_beams=3, n=3, max_tokens=12)
    with Engine(tiny_model, n_ctx=4096, n_parallel=2, **EXACT) as engine:
        found = engine.complete(ids, num_beams=3, n=3, max_tokens=12)
        assert engine.metrics().n_prompt_tokens == len(ids)
    same(found, expected)


def test_its_chunks_come_at_the_end(engine):
    chunks = list(engine.submit(PROMPT, num_beams=3, n=2, max_tokens=8))
    assert [chunk.index for chunk in chunks] == [0, 1]
    assert all(chunk.finish_reason is not None for chunk in chunks)
    assert chunks[-1].completion is not None
    assert [chunk.text for chunk in chunks] == [choice.text for choice in chunks[-1].completion.choices]


def test_the_counts(engine):
    found = engine.complete(PROMPT, num_beams=3, n=2, max_tokens=8)
    metrics = engine.metrics()
    assert metrics.n_generated_tokens == found.usage.completion_tokens
    assert metrics.n_prompt_tokens == found.usage.prompt_tokens
    assert metrics.n_running == metrics.n_waiting == 0
    assert metrics.n_cells_used == 0  # it has cells of its own
    assert found.timings.generation_ms > 0


def test_an_error_ends_the_search_alone(engine):
    def fail(ids, row):
        raise LookupError("as planned")

    text = engine.submit(PROMPT, temperature=0, max_tokens=20, stream=False)
    with pytest.raises(LookupError, match="as planned"):
        engine.complete(PROMPT, num_beams=3, max_tokens=8, logits_processor=fail)
    assert text.result().tokens
    assert engine.complete(PROMPT, num_beams=3, max_tokens=8).score
    assert engine.metrics().n_failed == 1


def test_a_context_that_does_not_fit_fails_the_search_alone(engine, monkeypatch):
    def refuse(*args, **kwargs):
        raise errors.InsufficientMemoryError("as planned")

    monkeypatch.setattr("pyllm.loading.with_n_ctx", refuse)
    with pytest.raises(errors.InsufficientMemoryError, match="as planned"):
        engine.complete(PROMPT, num_beams=3, max_tokens=8)
    assert engine.complete(PROMPT, temperature=0, max_tokens=4).tokens


def test_a_search_can_be_cancelled(engine):
    began = threading.Event()

    def watch(ids, row):
        began.set()

    search = engine.submit(PROMPT, num_beams=3, n=2, max_tokens=500, logits_processor=watch, stream=False)
    waiting = engine.submit(PROMPT, num_beams=2, max_tokens=4, stream=False)
    assert began.wait(300)
    search.cancel()
    assert [choice.finish_reason for choice in search.result().choices] == ["abort", "abort"]
    assert waiting.result().score


def test_closing_ends_it(tiny_model):
    began = threading.Event()

    def watch(ids, row):
        began.set()

    engine = Engine(tiny_model, n_ctx=512, n_parallel=2, **EXACT)
    search = engine.submit(PROMPT, num_beams=3, max_tokens=400, logits_processor=watch, stream=False)
    assert began.wait(300)
    engine.close()
    with pytest.raises(errors.ClosedError):
        search.result()
    gc.collect()


def test_what_a_beam_search_cannot_be_combined_with_is_refused_at_once(engine):
    for arguments, message in (
        ({"logprobs": 1}, "logprobs"),
        ({"temperature": 0.5}, "temperature"),
        ({"regex": "a+"}, "regex"),
        ({"n": 4}, "n must be an integer, from 1 to 3"),
    ):
        with pytest.raises(errors.InvalidArgumentError, match=message):
            engine.submit(PROMPT, num_beams=3, max_tokens=4, **arguments)
