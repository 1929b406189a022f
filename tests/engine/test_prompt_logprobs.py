"""Log-probabilities of prompts in the engine: the same as a Llama's, whatever goes on beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.engine_internals import limit_cells
from support.numerics import EXACT

from pyllm import Llama, Model
from pyllm.engine import Engine
from pyllm.types import Completion

# Numbers are compared to three digits behind the point: 16 bits in the KV cache would be too few.
LONG = [5 + i * 7 % 90 for i in range(600)]
PROMPTS = [LONG, [5, 6, 7], [9], LONG[:300], LONG[:40]]


@pytest.fixture(params=[True, False], ids=["unified", "apart"])
def engine(tiny_model: Model, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(tiny_model, n_ctx=4096, n_parallel=4, n_batch=512, kv_unified=request.param, **EXACT) as engine:
        yield engine


@pytest.fixture(scope="module")
def llm(tiny_model: Model) -> Iterator[Llama]:
    with Llama(tiny_model, n_ctx=1024, cache_prompt=False, **EXACT) as llm:
        yield llm


def same(found: Completion, expected: Completion) -> None:
    for mine, other in zip(found.choices, expected.choices, strict=True):
        assert mine.logprobs is not None and other.logprobs is not None
        assert (mine.text, mine.tokens, mine.finish_reason) == (other.text, other.tokens, other.finish_reason)
        assert mine.logprobs.tokens == other.logprobs.tokens
        assert mine.logprobs.text_offset == other.logprobs.text_offset
        assert mine.logprobs.token_logprobs[0] is other.logprobs.token_logprobs[0] is None
        assert mine.logprobs.token_logprobs[1:] == pytest.approx(other.logprobs.token_logprobs[1:], abs=1e-3)
        assert len(mine.logprobs.top_logprobs) == len(mine.logprobs.tokens)


@pytest.mark.parametrize("max_tokens", [0, 1, 8])
def test_the_same_numbers_as_a_llama(engine: Engine, llm: Llama, max_tokens: int) -> None:
    settings: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0, "echo": True, "logprobs": 2}
    expected = [llm(prompt, **settings) for prompt in PROMPTS]
    # All at once, and among texts that ask for nothing of the kind.
    others = [engine.submit(prompt, max_tokens=20) for prompt in PROMPTS]
    jobs = [engine.submit(prompt, **settings) for prompt in PROMPTS]
    for job, wanted, prompt in zip(jobs, expected, PROMPTS, strict=True):
        found = job.result(300)
        same(found, wanted)
        assert found.usage.completion_tokens <= max_tokens
        assert len(found.logprobs.tokens) >= len(prompt)
    for job in others:
        assert job.result(300).finish_reason in ("stop", "length")


def test_texts_of_one_prompt_share_what_it_had(engine: Engine, llm: Llama) -> None:
    settings: dict[str, Any] = {"max_tokens": 4, "seed": 3, "n": 3, "echo": True, "logprobs": 1}
    found = engine.complete(LONG[:300], **settings)
    same(found, llm(LONG[:300], **settings))
    assert len({choice.logprobs.token_logprobs[:300] for choice in found.choices if choice.logprobs}) == 1
    # Only the first has read the prompt.
    assert engine.metrics().n_prompt_tokens < 310
    nothing = engine.complete(LONG[:30], **{**settings, "max_tokens": 0})
    assert [len(choice.logprobs.tokens) for choice in nothing.choices if choice.logprobs] == [30, 30, 30]


def test_what_is_cached_is_computed_again_for_it(engine: Engine) -> None:
    engine.complete(LONG[:300], max_tokens=1, temperature=0)
    settings: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    first = engine.complete(LONG[:300], **settings)
    again = engine.complete(LONG[:300], **settings)
    assert first.usage.cached_tokens == again.usage.cached_tokens == 0
    same(again, first)
    # What such a request computes is there for others.
    assert engine.complete(LONG[:301], max_tokens=1, temperature=0).usage.cached_tokens >= 299


def test_a_stream_has_them_in_pieces(engine: Engine) -> None:
    settings: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "echo": True, "logprobs": 1}
    whole = engine.complete(LONG[:40], **settings)
    chunks = list(engine.submit(LONG[:40], **settings))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    tokens = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.tokens]
    assert whole.logprobs is not None and tuple(tokens) == whole.logprobs.tokens


def test_a_request_that_is_stopped_for_others_loses_nothing(tiny_model: Model, llm: Llama) -> None:
    settings: dict[str, Any] = {"max_tokens": 30, "temperature": 0, "echo": True, "logprobs": 1}
    prompts = [LONG[i : i + 30] for i in range(4)]
    expected = [llm(prompt, **settings) for prompt in prompts]
    with Engine(tiny_model, n_ctx=256, n_parallel=4, n_batch=16, kv_unified=True, **EXACT) as engine:
        limit_cells(engine, 100)
        jobs = [engine.submit(prompt, **settings) for prompt in prompts]
        for job, wanted in zip(jobs, expected, strict=True):
            same(job.result(300), wanted)
        assert engine.metrics().n_preempted > 0


def test_deterministic_requests_have_them_too(engine: Engine, llm: Llama) -> None:
    settings: dict[str, Any] = {"max_tokens": 3, "seed": 1, "n": 2, "echo": True, "logprobs": 1}
    found = engine.complete(LONG[:100], deterministic=True, **settings)
    same(found, llm(LONG[:100], **settings))
    nothing = engine.complete(LONG[:100], deterministic=True, **{**settings, "max_tokens": 0})
    assert len(nothing.logprobs.tokens) == 100


def test_the_token_that_ends_the_text_has_a_number(engine: Engine, llm: Llama) -> None:
    ends = engine.vocab.eog_tokens
    settings: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    settings["logit_bias"] = dict.fromkeys(ends, 1000.0)
    for found in (engine.complete([5, 6, 7], **settings), llm([5, 6, 7], **settings)):
        logprobs = found.logprobs
        assert (found.finish_reason, found.tokens) == ("stop", ())
        assert logprobs.ids[:-1] == (5, 6, 7) and logprobs.ids[-1] in ends
        # By the model's own logits, which know no bias.
        assert -30 < logprobs.token_logprobs[-1] < 0
        assert logprobs.text_offset[-1] == len(found.text)
    assert engine.complete([5, 6, 7], **{**settings, "echo": False}).logprobs.tokens == ()


def test_offsets(smollm2: Model) -> None:
    """Each token stands where its offset says, in texts and in prompts with control tokens."""
    with Engine(smollm2, n_ctx=512, n_parallel=2) as engine:
        text = "<|im_start|>user\nHow naïve is it?<|im_end|>\n"
        ids = engine.vocab.tokenize_array(text, parse_special=True)
        for prompt in (text, ids):
            found = engine.complete(prompt, max_tokens=3, temperature=0, echo=True, logprobs=0)
            logprobs = found.logprobs
            places = list(zip(logprobs.tokens, logprobs.text_offset, strict=True))
            assert len(places) == len(ids) + len(found.tokens)
            for token, offset in places[: len(ids)]:
                assert token.startswith("bytes:") or found.text[offset:].startswith(token)


def test_the_likeliest_token_is_told_by_its_number(engine: Engine) -> None:
    """What tools compare has to be equal in the last digit."""
    found = engine.complete(LONG[:100], max_tokens=4, temperature=0, echo=True, logprobs=1).logprobs
    greedy = 0
    for i in range(1, len(found.ids)):
        ((best, value),) = found.top_ids[i]
        assert (found.token_logprobs[i] == value) == (found.ids[i] == best)
        assert max(found.top_logprobs[i].values()) == value
        greedy += found.ids[i] == best
    assert greedy >= 4
