"""Texts with drafts against texts without: the same tokens, however the drafts were made and judged."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support.drafting import PROMPT
from support.numerics import EXACT

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.generation import Generation
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Dist, Greedy, Penalties, Temp
from pyllm.core.speculative import Drafter
from pyllm.core.speculative_generation import SpeculativeGeneration

WAYS = {
    "ngram-simple": {"ngram_size": 2, "n_max": 8},
    "ngram-map-k": {"ngram_size": 2, "n_max": 8},
    "ngram-map-k4v": {"ngram_size": 2, "n_max": 8},
    "ngram-mod": {"ngram_size": 2, "n_max": 8, "n_min": 1},
    "ngram-cache": {},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("arch", ["llama", "qwen3moe", "gemma3", "mamba", "jamba"])
def test_greedy_text_with_ngrams(load, plain, make_drafted, check_greedy, arch, way):
    model = load(arch)
    generation = make_drafted(model, types=way, **WAYS[way])
    generation.prefill(PROMPT)
    assert generation.run(100) == 100
    check_greedy(model, PROMPT, generation.tokens, plain(model))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("arch", ["llama", "qwen3moe", "gemma3", "mamba", "jamba"])
def test_greedy_text_with_a_draft_model(load, plain, make_drafted, check_greedy, arch, adaptive):
    model = load(arch)
    want = plain(model)
    for draft, types in ((model, None), (load(arch, seed=5), None), (model, ("ngram-mod", "draft-simple"))):
        generation = make_drafted(model, draft, types=types, n_max=5, adaptive=adaptive)
        generation.prefill(PROMPT)
        generation.run(37)  # in pieces of any size, in the midst of drafts
        while generation.n_generated < 100:
            assert generation.step() is not None
        check_greedy(model, PROMPT, generation.tokens, want)
        if not adaptive:
            assert generation.n_drafted > 50
            rate = generation.n_accepted / generation.n_drafted
            assert rate > 0.8 if draft is model else rate < 0.3
            assert generation.n_decodes < 60 or draft is not model


def test_the_sampler_sees_the_same_tokens(load, plain, make_drafted):
    """With the state that it has from accepted tokens, and its random numbers."""
    model = load("llama")

    def chain():
        return Chain(Penalties(len(model.vocab), 32, 1.3, 0.2, 0.1), Temp(0.6), Dist(11))

    want = plain(model, chain=chain())
    for draft in (model, load("llama", seed=5)):
        generation = make_drafted(model, draft, chain=chain())
        generation.prefill(PROMPT)
        generation.run(100)
        # No check of ties here: the draw would have to fall between two sums that differ by rounding alone.
        assert generation.tokens == want


def test_memory_holds_the_text_and_nothing_else(load, make_drafted):
    for arch in ("llama", "jamba"):
        model = load(arch)
        generation = make_drafted(model, load(arch, seed=5), n_max=6)
        generation.prefill(PROMPT)
        for _ in range(30):
            generation.step()
            generation.settle()
            known = len(PROMPT) + generation.n_generated
            assert generation.context.memory.pos_max(0) < known
        assert generation.run(10) == 10


def test_rows_of_logits(load, make_drafted, make_context):
    """The row that each token is chosen from can be read, and changed, before it is."""
    model = load("llama")
    reference = make_context(model, n_ctx=512, **EXACT)
    reference.decode(Batch.from_arrays(PROMPT))
    # Room for all rows of a draft, because `row` is kept from step to step.
    context = make_context(model, n_ctx=512, reserve_outputs=5, **EXACT)
    generation = make_drafted(model, model, n_max=4, context=context)
    generation.prefill(PROMPT)
    rows = set()
    for i in range(40):
        generation.decode_next()
        rows.add(generation.row)
        row = context.logits[generation.row]
        assert np.allclose(row, reference.logits[-1], atol=0.02)
        if i % 7 == 6:
            row[int(np.argmax(row))] = -np.inf
        want = int(np.argmax(row))
        token = generation.step()
        assert token == want
        reference.decode(Batch.from_arrays([token], pos=[len(PROMPT) + i]))
    assert rows == {-1, 0, 1, 2, 3, 4}


def test_views_on_logits_only_stop_the_drafts(load, plain, make_drafted, check_greedy):
    """A draft needs a larger output buffer, and the rows that the next token is chosen from cannot move to it."""
    model = load("llama")
    generation = make_drafted(model, model)
    generation.prefill(PROMPT)
    view = np.asarray(generation.context.logits)
    generation.run(50)
    assert generation.n_drafts == 0
    del view
    generation.run(50)
    assert generation.n_drafts > 0
    check_greedy(model, PROMPT, generation.tokens, plain(model))


def test_no_draft_goes_beyond_the_limit(load, make_drafted):
    model = load("llama")
    generation = make_drafted(model, model, n_max=8, limit=12)
    generation.prefill(PROMPT)
    assert generation.run(12) == 12
    assert generation.n_past <= len(PROMPT) + 12
    assert generation.n_accepted == generation.n_drafted
    assert generation.context.memory.pos_max(0) < len(PROMPT) + 12


def test_stop_strings_within_a_draft(load, plain, make_drafted):
    model = load("llama")
    want = plain(model, 60)
    for at in (17, 18, 19, 20, 21):
        stop = model.vocab.detokenize(want[at : at + 2])
        text = model.vocab.detokenize(want)
        if not stop.strip() or text.find(stop) < 0:
            continue
        generation = make_drafted(model, model, n_max=6, stop=[stop])
        reference = Generation(generation.context, Chain(Greedy()), stop=[stop])
        reference.prefill(PROMPT)
        reference.run(60)
        generation.context.memory.clear()
        generation = make_drafted(model, model, n_max=6, stop=[stop])
        generation.prefill(PROMPT)
        generation.run(60)
        assert generation.finish_reason == "stop"
        assert generation.tokens == reference.tokens
        assert generation.stream.text == reference.stream.text
        assert generation.context.memory.pos_max(0) < len(PROMPT) + generation.n_generated


def test_end_of_generation_within_a_draft(load, make_drafted, make_context):
    model = load("llama")
    eog = model.vocab.eos
    for draft in (model, load("llama", seed=5)):
        generation = make_drafted(model, draft, n_max=6)
        generation.prefill(PROMPT)
        for i in range(30):
            generation.decode_next()
            if i == 9:
                generation.context.logits[generation.row][eog] = 1e9
            if generation.step() is None:
                break
        assert generation.finish_reason == "stop"
        assert generation.n_generated == 9
        generation.settle()
        assert generation.context.memory.pos_max(0) < len(PROMPT) + 9
        # A turn later the text goes on.
        generation.prefill([7, 8, 9])
        before = generation.tokens
        generation.run(20)
        ids = np.concatenate([PROMPT, before, [7, 8, 9]]).astype(np.int32)
        fresh = Generation(make_context(model, n_ctx=512, **EXACT), Chain(Greedy()))
        fresh.prefill(ids)
        fresh.run(20)
        assert generation.tokens[9:] == fresh.tokens


@pytest.mark.parametrize("arch", ["llama", "jamba"])
def test_a_second_prompt_in_the_midst_of_a_draft(load, make_drafted, make_context, arch):
    model = load(arch)
    for n in range(1, 8):
        generation = make_drafted(model, load(arch, seed=5) if n % 2 else model, n_max=6)
        generation.prefill(PROMPT)
        generation.run(n)
        text = np.concatenate([PROMPT, generation.tokens, [7, 8, 9]]).astype(np.int32)
        generation.prefill([7, 8, 9])
        generation.run(15)
        fresh = Generation(make_context(model, n_ctx=512, **EXACT), Chain(Greedy()))
        fresh.prefill(text)
        fresh.run(15)
        assert generation.tokens[n:] == fresh.tokens


def test_a_prompt_that_is_there_already(load, make_drafted, make_context, plain):
    model = load("llama")
    context = make_context(model, n_ctx=512, **EXACT)
    context.decode(Batch.from_arrays(PROMPT[:12]))
    with pytest.raises(errors.InvalidArgumentError, match="has 12 tokens already and past names 0"):
        make_drafted(model, model, context=context)
    generation = make_drafted(model, model, context=context, past=PROMPT[:12])
    generation.prefill(PROMPT[12:])
    generation.run(50)
    assert generation.tokens == plain(model, 50)
    assert generation.n_accepted > 0


@pytest.mark.parametrize("way", ["ngram-simple", "ngram-cache", "draft"])
def test_prompts_longer_than_a_batch(load, plain, make_drafted, check_greedy, way):
    model = load("llama")
    ids = np.tile(PROMPT, 15)  # 300 tokens
    options = {"draft": model} if way == "draft" else {"types": way, **WAYS[way]}
    generation = make_drafted(model, n_batch=32, **options)
    generation.prefill(ids)
    generation.run(100)
    assert generation.n_drafted > 0 or way == "ngram-cache"  # which finds nothing in this text
    check_greedy(model, ids, generation.tokens, plain(model, ids=ids))


def test_until_the_context_is_full(load, make_drafted, make_context):
    model = load("llama")
    context = make_context(model, n_ctx=256)
    generation = make_drafted(model, model, context=context, second=make_context(model, n_ctx=256), n_max=7)
    generation.prefill(PROMPT)
    with pytest.raises(errors.NoKVSlotError):
        generation.run(1000)
    assert generation.n_generated == 256 - len(PROMPT) + 1
    generation.shift(4, 100)
    assert generation.run(50) == 50
    assert generation.n_accepted > 150


def test_decodes_of_others_in_between(load, make_drafted, plain, make_context):
    model = load("llama")
    context = make_context(model, n_ctx=512, n_seq_max=2, kv_unified=True, **EXACT)
    generation = make_drafted(model, types="ngram-simple", ngram_size=2, n_max=6, context=context)
    generation.prefill(PROMPT)
    for i in range(40):
        generation.step()
        if i % 5 == 4:
            context.decode(Batch.from_arrays([9], seq_ids=[1], pos=[i // 5]))
    assert generation.tokens == plain(model, 40)


@pytest.mark.parametrize("arch", ["llama", "jamba"])
def test_an_abort_loses_nothing(load, make_drafted, plain, arch):
    model = load(arch)
    generation = make_drafted(model, load(arch, seed=5))
    generation.prefill(PROMPT)
    for _ in range(5):
        generation.run(6)
        generation.context.abort()
        with pytest.raises(errors.DecodeAborted):
            generation.run(20)
    generation.run(60 - generation.n_generated)
    assert generation.tokens == plain(model, 60)


def test_an_abort_while_the_draft_model_reads_the_prompt(load, make_drafted, plain):
    model = load("llama")
    generation = make_drafted(model, model)
    generation.prefill(PROMPT)
    generation.drafter.context.abort()
    with pytest.raises(errors.DecodeAborted):
        generation.run(20)
    generation.run(30 - generation.n_generated)
    assert generation.tokens == plain(model, 30)


def test_the_gil_is_free(load, make_drafted):
    model = load("llama")
    generation = make_drafted(model, model)
    generation.prefill(PROMPT)
    done = threading.Event()
    ticks = 0

    def work():
        generation.run(400)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.wait(0.0005):
        ticks += 1
    thread.join()
    assert generation.n_generated == 400
    assert ticks > 0


def test_bad_arguments(load, make_drafted, make_context):
    model = load("llama")
    context = make_context(model, n_ctx=512, n_seq_max=2)
    drafter = Drafter(context)
    with pytest.raises(errors.InvalidArgumentError, match="made for another context"):
        SpeculativeGeneration(make_context(model), Chain(Greedy()), drafter=drafter)
    with pytest.raises(errors.InvalidArgumentError, match="sequence 0, not 1"):
        SpeculativeGeneration(context, Chain(Greedy()), drafter=drafter, seq_id=1)
    with pytest.raises(TypeError, match="no argument 'drafter'"):
        Generation(context, Chain(Greedy()), drafter=drafter)
    generation = SpeculativeGeneration(context, Chain(Greedy()), drafter=drafter)
    with pytest.raises(errors.InvalidBatchError):
        generation.prefill([])
    generation.prefill(PROMPT)
    drafter.close()
    with pytest.raises(errors.ClosedError):
        generation.run(5)
