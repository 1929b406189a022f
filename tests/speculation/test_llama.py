"""`Llama(draft=…, speculative=…)`: the same text as without, whatever else is asked for."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from support import numerics
from support.llama_internals import draft_of
from support.waiting import LIMIT

from pyllm import Llama, errors
from pyllm.core.model import Model
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Greedy
from pyllm.speculation import SpeculationParams

TEXT = "the cat sat on the mat, and the cat sat on the mat, and the cat"
NGRAM = SpeculationParams(types="ngram-map-k", ngram_size=2, n_max=6, adaptive=False)
DRAFT = SpeculationParams(types="draft-simple", n_max=4, adaptive=False)
# In float32 what is computed together is rounded so little otherwise that no choice falls the other way.
EXACT = numerics.EXACT | {"n_ctx": 256}


@pytest.fixture(scope="module", params=["ngram", "draft", "other draft"])
def pair(request, tiny_models):
    """A Llama without drafts, and one with."""
    with Llama(tiny_models["llama"], **EXACT) as plain:
        if request.param == "ngram":
            drafting = Llama(tiny_models["llama"], **EXACT, speculative=NGRAM)
        else:
            draft = tiny_models.make("llama", seed=5) if request.param == "other draft" else tiny_models["llama"]
            drafting = Llama(tiny_models["llama"], **EXACT, draft=draft, speculative=DRAFT)
        with drafting:
            yield plain, drafting


def forbid_five(ids, logits):
    logits[5] = -np.inf
    logits[int(ids[-1])] -= 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": 0},
        {"seed": 3, "temperature": 0.5},
        {"seed": 3, "repeat_penalty": 1.3, "frequency_penalty": 0.2},
        {"seed": 4, "mirostat": 2},
        {"temperature": 0, "logits_processor": forbid_five},
        {"seed": 5, "temperature": 0.7, "logits_processor": forbid_five},
        {"seed": 2, "temperature": 0.3, "stopping_criteria": lambda ids, logits: len(ids) > 60},
        {"temperature": 0, "stop": ["at", "er"]},
        {"seed": 1, "temperature": 0.5, "n": 3},
        {"seed": 1, "temperature": 0.5, "n": 2, "best_of": 3},
        {"temperature": 0, "echo": True, "logprobs": 2},
        {"temperature": 0, "max_tokens": 0},
        {"temperature": 0, "max_tokens": 1},
        {"temperature": 0, "max_tokens": 2},
        {"temperature": 0, "max_tokens": None},
        {"seed": 9, "temperature": 0.4, "cache_prompt": True},
        {"seed": 9, "temperature": 0.4, "cache_prompt": True, "overflow": "shift", "max_tokens": 600},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_the_same_text(pair, arguments):
    plain, drafting = pair
    arguments = {"max_tokens": 60, **arguments}
    want = plain(TEXT, **arguments)
    for stream in (False, True):
        if stream and arguments.get("best_of"):
            continue
        got = list(drafting.stream(TEXT, **arguments))[-1].completion if stream else drafting(TEXT, **arguments)
        for ours, theirs in zip(got.choices, want.choices, strict=True):
            assert ours.text == theirs.text
            assert ours.tokens == theirs.tokens
            assert (ours.finish_reason, ours.stop) == (theirs.finish_reason, theirs.stop)
        assert want.speculation is None
        assert got.speculation is not None
        assert 0 <= got.speculation.accepted <= got.speculation.drafted
        assert 0 <= got.speculation.rate <= 1


def test_log_probabilities(pair):
    plain, drafting = pair
    want = plain(TEXT, temperature=0, max_tokens=50, logprobs=3).logprobs
    got = drafting(TEXT, temperature=0, max_tokens=50, logprobs=3).logprobs
    assert got.tokens == want.tokens
    assert got.text_offset == want.text_offset
    assert np.allclose(got.token_logprobs, want.token_logprobs, atol=0.02)
    for ours, theirs in zip(got.top_logprobs, want.top_logprobs, strict=True):
        assert len(ours) == len(theirs)


def test_drafts_are_made(pair):
    _, drafting = pair
    speculation = drafting(TEXT, temperature=0, max_tokens=60).speculation
    assert speculation.drafts > 3
    assert speculation.drafted > speculation.drafts


def test_the_memory_is_right_afterwards(pair):
    """What follows reuses it."""
    for llm in pair:
        llm.reset()
    texts = []
    for llm in pair:
        first = llm(TEXT, temperature=0, max_tokens=33, cache_prompt=True)
        stream = llm.stream(TEXT + first.text, temperature=0, max_tokens=30, cache_prompt=True)
        for _, _chunk in zip(range(7), stream, strict=False):
            pass
        stream.close()
        last = llm(TEXT + first.text + " and", temperature=0, max_tokens=30, cache_prompt=True)
        assert last.usage.cached_tokens > 20
        texts.append((first.text, last.text))
    assert texts[0] == texts[1]


def test_chats_report_it(pair):
    plain, drafting = pair
    messages = [{"role": "user", "content": TEXT}]
    want = plain.create_chat_completion(messages, temperature=0, max_tokens=40)
    got = drafting.create_chat_completion(messages, temperature=0, max_tokens=40)
    assert got.text == want.text and want.speculation is None
    streamed = list(drafting.stream_chat(messages, temperature=0, max_tokens=40))[-1].completion
    for completion in (got, streamed):
        assert 0 <= completion.speculation.accepted <= completion.speculation.drafted > 0


def test_a_stream_that_is_left_after_a_close(tiny_models):
    """What is still open then ends without a word: an error in its end would be nobody's."""
    for more in ({"speculative": NGRAM}, {"draft": tiny_models["llama"], "speculative": DRAFT}):
        for leave in (lambda stream: stream.close(), lambda stream: None):
            llm = Llama(tiny_models["llama"], **EXACT, **more)
            stream = llm.stream(TEXT, temperature=0, max_tokens=50)
            for _ in range(12):
                next(stream)
            llm.close()
            leave(stream)
            del stream


def test_per_call(tiny_models):
    with Llama(tiny_models["llama"], **EXACT) as llm:
        want = llm(TEXT, temperature=0, max_tokens=50)
        assert want.speculation is None
        for speculative in (True, "ngram", "ngram-map-k", NGRAM):
            got = llm(TEXT, temperature=0, max_tokens=50, speculative=speculative)
            assert got.text == want.text
            assert got.speculation is not None
        assert llm(TEXT, temperature=0, max_tokens=50, speculative=False).speculation is None
        assert llm(TEXT, temperature=0, max_tokens=50).speculation is None
        with pytest.raises(errors.InvalidArgumentError, match="no draft model: give one to Llama as draft="):
            llm(TEXT, speculative="draft")
        with pytest.raises(errors.InvalidArgumentError, match="no way to draft named 'eagle3'"):
            llm(TEXT, speculative="eagle3")
        with pytest.raises(errors.InvalidArgumentError, match="speculative must be True, False, a name"):
            llm(TEXT, speculative=3.5)
        with pytest.raises(errors.InvalidArgumentError, match="n_max must be from 1"):
            llm(TEXT, speculative=SpeculationParams(n_max=-1))
        with pytest.raises(errors.InvalidArgumentError, match="no layers for multi-token prediction"):
            llm(TEXT, speculative="mtp")
        assert llm(TEXT, temperature=0, max_tokens=50).text == want.text


def test_several_ways_with_one_draft_model(tiny_models):
    with Llama(tiny_models["llama"], **EXACT, draft=tiny_models["llama"]) as llm:
        want = llm(TEXT, temperature=0, max_tokens=50, speculative=False)
        for speculative in (None, NGRAM, DRAFT, "ngram", ("draft"), DRAFT):
            assert llm(TEXT, temperature=0, max_tokens=50, speculative=speculative).text == want.text
        both = SpeculationParams(types=("ngram-mod", "draft-simple"), n_max=4, adaptive=False)
        assert llm(TEXT, temperature=0, max_tokens=50, speculative=both).text == want.text


def test_a_draft_model_that_is_open_stays_open(tiny_models, make_model):
    draft = make_model(tiny_models["llama"])
    with Llama(tiny_models["llama"], **EXACT, draft=draft) as llm:
        llm(TEXT, max_tokens=5)
    assert not draft.closed
    draft.vocab.tokenize("still here")


def test_other_vocabularies_are_refused_at_once(tiny_models):
    with pytest.raises(errors.VocabularyMismatchError, match="another tokenizer: BPE, and the model SPM"):
        Llama(tiny_models["llama"], n_ctx=256, draft=tiny_models.make("llama", vocab="bpe"))
    with pytest.raises(errors.UnknownModelError):
        Llama(tiny_models["llama"], n_ctx=256, draft="no such model")


def test_models_that_cannot(tiny_models):
    with pytest.raises(errors.InvalidArgumentError, match="prompt stands before"):
        Llama(tiny_models["t5"], n_ctx=256, speculative="ngram")
    with Llama(tiny_models["t5"], n_ctx=256, n_threads=1) as llm, pytest.raises(errors.InvalidArgumentError):
        llm("text", speculative="ngram")
    with pytest.raises(errors.InvalidArgumentError, match="with embeddings=True nothing can be guessed"):
        Llama(tiny_models["llama"], n_ctx=256, speculative="ngram", embeddings=True)
    with Model(tiny_models["llama"]) as model, pytest.raises(errors.InvalidArgumentError, match="draft for itself"):
        Llama(model, n_ctx=256, draft=model)


def test_all_is_freed(tiny_models):
    llm = Llama(tiny_models["llama"], **EXACT, draft=tiny_models["llama"])
    llm(TEXT, max_tokens=10, temperature=0)
    model, context = draft_of(llm)
    llm.close()
    llm.close()
    assert model.closed
    assert context.closed
    with pytest.raises(errors.ClosedError):
        llm(TEXT, max_tokens=10)
    # In no order at all.
    llm = Llama(tiny_models["llama"], **EXACT, draft=tiny_models["llama"])
    llm(TEXT, max_tokens=10, temperature=0)
    del llm
    gc.collect()


def test_an_abort_ends_it(pair):
    _, drafting = pair
    want = drafting(TEXT, temperature=0, max_tokens=50)
    stream = drafting.stream(TEXT, temperature=0, max_tokens=200)
    pieces = []
    for chunk in stream:
        pieces.append(chunk)
        if len(pieces) == 5:
            drafting.abort()
    assert pieces[-1].finish_reason == "abort"
    assert drafting(TEXT, temperature=0, max_tokens=50).text == want.text

    started = threading.Event()

    def criterion(ids, logits):
        started.set()
        return False

    threading.Thread(target=lambda: (started.wait(LIMIT), drafting.abort())).start()
    endless = drafting(TEXT, temperature=0, max_tokens=None, overflow="shift", stopping_criteria=criterion)
    assert endless.finish_reason == "abort"
    assert drafting(TEXT, temperature=0, max_tokens=50).text == want.text


def test_an_error_in_a_processor_leaves_it_usable(pair):
    _, drafting = pair
    want = drafting(TEXT, temperature=0, max_tokens=50)

    def failing(ids, logits):
        if len(ids) > 45:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        drafting(TEXT, temperature=0, max_tokens=50, logits_processor=failing)
    assert drafting(TEXT, temperature=0, max_tokens=50, cache_prompt=True).text == want.text


def test_a_sampler_of_ones_own(pair):
    plain, drafting = pair
    want = plain(TEXT, max_tokens=40, sampler=Chain(Greedy()))
    assert drafting(TEXT, max_tokens=40, sampler=Chain(Greedy())).tokens == want.tokens


def test_a_grammar(pair):
    plain, drafting = pair
    grammar = 'root ::= ("ab" | "cd")+'
    want = plain(TEXT, max_tokens=30, temperature=0, grammar=grammar)
    got = drafting(TEXT, max_tokens=30, temperature=0, grammar=grammar)
    assert got.text == want.text
    assert set(got.text) <= set("abcd")


def test_prompts_longer_than_a_batch(tiny_models):
    """Nothing about drafts is sized by n_batch."""
    options = {**EXACT, "n_ctx": 512, "n_batch": 32, "n_ubatch": 32}
    prompt = list(range(5, 105)) * 3
    with Llama(tiny_models["llama"], **options) as plain:
        want = plain(prompt, temperature=0, max_tokens=100)
    for more in (
        {"speculative": NGRAM},
        {"speculative": "ngram"},
        {"draft": tiny_models["llama"], "speculative": DRAFT},
    ):
        with Llama(tiny_models["llama"], **options, **more) as llm:
            assert llm(prompt, temperature=0, max_tokens=100).text == want.text


def test_params():
    assert SpeculationParams(types="ngram-mod") == SpeculationParams(types=("ngram-mod",))
    assert hash(SpeculationParams(types=["ngram-mod"]))
    for types in (5, [["ngram-mod"]], {"ngram-mod"}, b"ngram-mod"):
        with pytest.raises(errors.InvalidArgumentError, match="types must be the name of a way to draft"):
            SpeculationParams(types=types)


@pytest.mark.parametrize("arch", ["mamba", "jamba", "gemma3"])
def test_models_that_cannot_go_back(tiny_models, arch):
    with Llama(tiny_models[arch], **EXACT) as plain:
        want = plain(TEXT, temperature=0, max_tokens=60)
    for draft in (tiny_models[arch], tiny_models.make(arch, seed=5)):
        with Llama(tiny_models[arch], **EXACT, draft=draft, speculative=DRAFT) as llm:
            for cache_prompt in (False, True, True):
                got = llm(TEXT, temperature=0, max_tokens=60, cache_prompt=cache_prompt)
                assert got.text == want.text
                assert got.speculation.drafted > 0
