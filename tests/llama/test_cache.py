"""The beginning of a prompt that the KV cache holds already is not computed again, and nothing else is believed."""

from __future__ import annotations

import numpy as np
import pytest

from pyllm import Batch, Chain, Llama, Model
from pyllm.core.samplers import Greedy
from pyllm.llama import StreamOpenError

TEXT = "the more people look at the number, the more they find out about the time and the water of the world"


def first_token(llm, ids, **arguments):
    """What the model says after a prompt."""
    (top,) = llm(ids, max_tokens=1, temperature=0, logprobs=8, **arguments).logprobs.top_logprobs
    return top


def assert_like_from_the_start(llm, ids):
    """It says what it says without a cache, up to rounding."""
    completion = llm(ids, max_tokens=1, temperature=0, logprobs=8)
    (reused,) = completion.logprobs.top_logprobs
    fresh = first_token(llm, ids, cache_prompt=False)
    common = reused.keys() & fresh.keys()
    assert len(common) >= 6
    assert [reused[token] for token in common] == pytest.approx([fresh[token] for token in common], abs=0.05)
    return completion.usage.cached_tokens


@pytest.fixture(scope="module")
def llm(tiny_model):
    with Llama(tiny_model, n_ctx=256, n_threads=1, cache_prompt=True) as llm:
        yield llm


def test_the_same_prompt_again(llm):
    llm.reset()
    first = llm(TEXT, max_tokens=8, seed=1)
    again = llm(TEXT, max_tokens=8, seed=1)
    n = first.usage.prompt_tokens
    assert first.usage.cached_tokens == 0 and again.usage.cached_tokens == n - 1
    assert again["usage"]["prompt_tokens_details"] == {"cached_tokens": n - 1}
    assert again == first


def test_by_itself_only_where_nobody_can_tell(tiny_model):
    with Llama(tiny_model, n_ctx=256, n_threads=1) as llm:
        assert llm(TEXT, max_tokens=2).usage.cached_tokens == 0
        assert llm(TEXT, max_tokens=2).usage.cached_tokens > 0
        assert llm(TEXT, max_tokens=2, seed=1).usage.cached_tokens == 0
        assert llm(TEXT, max_tokens=2, temperature=0).usage.cached_tokens == 0
        assert llm(TEXT, max_tokens=2, sampler=Chain(Greedy())).usage.cached_tokens == 0
        assert llm(TEXT, max_tokens=2, seed=1, cache_prompt=True).usage.cached_tokens > 0


def test_only_what_is_new_is_computed(llm):
    ids = np.arange(260, 320, dtype=np.int32)
    llm(ids[:50], max_tokens=1, cache_prompt=False)
    llm.context.perf_reset()
    assert llm(ids, max_tokens=1).usage.cached_tokens == 50
    assert llm.context.perf()["n_p_eval"] == 10


@pytest.mark.parametrize(("arch", "can_cut"), [("llama", True), ("qwen3moe", True), ("mamba", False), ("jamba", False)])
def test_it_changes_nothing(tiny_models, arch, can_cut):
    with Llama(tiny_models[arch], n_ctx=256, n_threads=1, cache_prompt=True) as llm:
        ids = llm.tokenize(TEXT)
        answer = llm(ids, max_tokens=10, seed=1)
        # The conversation goes on: what was generated is reused too, but for the last token, which was not decoded.
        longer = [*ids, *answer.tokens, *ids[:5]]
        assert assert_like_from_the_start(llm, longer) == len(ids) + 9
        # Another end: the memory must be cut.
        llm(longer, max_tokens=4, seed=1)
        assert assert_like_from_the_start(llm, [*ids, 300, 301]) == (len(ids) if can_cut else 0)
        # Nothing in common but the beginning of the text.
        assert assert_like_from_the_start(llm, [ids[0], 400, 401]) in (0, 1)


def test_a_sliding_window_goes_back_only_as_far_as_it_reaches(tiny_models):
    with Llama(
        tiny_models["gemma3"], n_ctx=768, n_ubatch=64, n_batch=64, n_threads=1, swa_full=False, cache_prompt=True
    ) as llm:
        assert llm.model.n_swa == 16
        ids = (np.arange(600) * 7 % 150 + 261).astype(np.int32)
        reused = []
        for end in (599, 590, 570, 400, 200, 3):
            llm(ids, max_tokens=4, temperature=0, cache_prompt=False)
            assert llm.context.memory.pos_min(0) > 300
            reused.append(assert_like_from_the_start(llm, [*ids[:end].tolist(), 300, 301]))
        # What fell out of the window is gone: there the text is computed from its start.
        assert reused[:3] == [599, 590, 570] and reused[-2:] == [0, 0]
        assert llm(ids, max_tokens=1, cache_prompt=False).usage.cached_tokens == 0
        assert llm([*ids.tolist(), 300], max_tokens=1).usage.cached_tokens == 600


@pytest.mark.parametrize("kind", ["stream", "generate"])
def test_a_stream_that_was_left(llm, kind):
    llm.reset()
    stream = getattr(llm, kind)(TEXT, max_tokens=50, seed=1)
    for _ in range(3):
        next(stream)
    stream.close()
    ids = llm.tokenize(TEXT)
    assert assert_like_from_the_start(llm, [*ids, 300]) == len(ids)


class TestWhatIsNotBelieved:
    def test_decodes_of_ones_own(self, llm):
        ids = llm.tokenize(TEXT)
        llm(ids, max_tokens=1)
        llm.context.memory.clear()
        llm.context.decode(Batch.from_arrays(np.arange(300, 300 + len(ids), dtype=np.int32)))
        assert llm.context.memory.pos_max(0) == len(ids) - 1
        assert assert_like_from_the_start(llm, ids) == 0

    def test_a_memory_that_was_cleared_or_cut(self, llm):
        ids = llm.tokenize(TEXT)
        for change in (llm.context.memory.clear, lambda: llm.context.memory.rm(0, 5)):
            llm(ids, max_tokens=1)
            change()
            assert assert_like_from_the_start(llm, ids) == 0

    def test_a_control_vector(self, llm):
        ids = llm.tokenize(TEXT)
        plain = first_token(llm, ids)
        vector = np.full((llm.model.n_layer - 1, llm.model.n_embd), 3, np.float32)
        llm.context.set_control_vector(vector)
        try:
            steered = llm(ids, max_tokens=1, temperature=0, logprobs=8)
            assert steered.usage.cached_tokens == 0 and steered.logprobs.top_logprobs[0] != plain
        finally:
            llm.context.set_control_vector(None)
        assert assert_like_from_the_start(llm, ids) == 0

    def test_reset_and_the_switch(self, llm, tiny_model):
        llm(TEXT, max_tokens=1)
        stream = llm.stream(TEXT, max_tokens=3)
        next(stream)
        with pytest.raises(StreamOpenError):
            llm.reset()
        stream.close()
        llm.reset()
        assert llm(TEXT, max_tokens=1).usage.cached_tokens == 0
        assert llm(TEXT, max_tokens=1, cache_prompt=False).usage.cached_tokens == 0
        with Llama(tiny_model, n_ctx=128, n_threads=1, cache_prompt=False) as other:
            other(TEXT, max_tokens=1)
            assert other(TEXT, max_tokens=1).usage.cached_tokens == 0
            assert other(TEXT, max_tokens=1, cache_prompt=True).usage.cached_tokens > 0

    def test_a_call_that_failed(self, llm):
        def fail(ids, logits):
            raise ZeroDivisionError

        llm(TEXT, max_tokens=4)
        with pytest.raises(ZeroDivisionError):
            llm(TEXT + " more", max_tokens=4, logits_processor=fail)
        assert_like_from_the_start(llm, llm.tokenize(TEXT))

    def test_other_sequences(self, tiny_model):
        with Llama(tiny_model, n_ctx=256, n_threads=1, n_seq_max=4, kv_unified=True, cache_prompt=True) as wide:
            first = wide(TEXT, max_tokens=6, n=3, seed=1)
            assert wide.context.memory.pos_max(1) == -1
            again = wide(TEXT, max_tokens=6, n=3, seed=1)
            assert again == first and again.usage.cached_tokens == first.usage.prompt_tokens - 1
            longer = [*wide.tokenize(TEXT), *first.tokens, 300]
            assert_like_from_the_start(wide, longer)


def test_a_model_that_is_shared(tiny_models):
    """Each Llama has a cache of its own."""
    with Model(tiny_models["llama"]) as model, Llama(model, n_ctx=128, n_threads=1, cache_prompt=True) as one:
        one(TEXT, max_tokens=1)
        with Llama(model, n_ctx=128, n_threads=1, cache_prompt=True) as two:
            assert two(TEXT, max_tokens=1).usage.cached_tokens == 0
