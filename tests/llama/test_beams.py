"""Beam search: which texts are found, their scores, what it can be combined with, and what is left in the cache."""

from __future__ import annotations

import itertools
import math
import threading

import numpy as np
import pytest

from pyllm import Batch, Context, Llama, errors
from pyllm.completion.beam_params import BeamParams
from pyllm.completion.beams import Beam, BeamSearch, log_softmax

PROMPT = "the more people look"

# ---- the search itself, beside a slow one


class Table:
    """A model of five tokens, of which the last one ends the text: what follows depends on all that came before."""

    n_vocab = 5
    eog = 4

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def log_probs(self, tokens: tuple[int, ...]) -> np.ndarray:
        code = self.seed
        for token in tokens:
            code = code * 7 + token + 1
        logits = np.random.default_rng(code).normal(size=self.n_vocab).astype(np.float32)
        row = np.empty_like(logits)
        log_softmax(logits, row)
        return row


def search(table: Table, params: BeamParams, limit: int) -> list[tuple[tuple[int, ...], float]]:
    def end(before: Beam, parent: int, token: int):
        return b"", "stop" if token == table.eog else None

    beams = BeamSearch(params, limit, end, 1)
    while not beams.done:
        beams.advance(np.stack([table.log_probs(beam.tokens) for beam in beams.running]))
    return [(beam.tokens, beam.score) for beam in beams.finished]


def slow_search(table: Table, params: BeamParams, limit: int) -> list[tuple[tuple[int, ...], float]]:
    """The rules of transformers, text by text and without any shortcut."""
    n, penalty = params.num_beams, params.length_penalty
    running: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    done: list[tuple[tuple[int, ...], float]] = []
    for length in range(1, limit + 1):
        found = [
            ((*tokens, token), score + float(row[token]))
            for tokens, score in running
            for row in [table.log_probs(tokens)]
            for token in range(table.n_vocab)
        ]
        found = sorted(found, key=lambda one: -one[1])[: 2 * n]
        ends = [tokens[-1] == table.eog or length == limit for tokens, _ in found]
        done += [
            (tokens, score / length**penalty)
            for (tokens, score), is_end in zip(found[:n], ends, strict=False)
            if is_end
        ]
        done = sorted(done, key=lambda one: -one[1])[:n]
        running = [one for one, is_end in zip(found, ends, strict=True) if not is_end][:n]
        if not running:
            break
        if len(done) == n:
            best_length = limit if params.early_stopping == "never" and penalty > 0 else length
            if params.early_stopping is True or running[0][1] / best_length**penalty <= done[-1][1]:
                break
    return done


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0, 2.5])
@pytest.mark.parametrize("num_beams", [2, 3, 7])
def test_the_search_beside_a_slow_one(num_beams, length_penalty, early_stopping):
    params = BeamParams(num_beams, length_penalty, early_stopping)
    for seed in range(20):
        found, expected = (which(Table(seed), params, 9) for which in (search, slow_search))
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
        assert np.allclose([score for _, score in found], [score for _, score in expected], atol=1e-5)


def test_with_beams_for_everything_the_likeliest_text_is_found():
    """Nothing is cut off, and with "never" the search goes on while something better may come."""
    limit = 4
    for seed in range(10):
        table = Table(seed)
        texts = [
            (*head, table.eog) for n in range(limit) for head in itertools.product(range(table.n_vocab - 1), repeat=n)
        ]
        texts += list(itertools.product(range(table.n_vocab - 1), repeat=limit))
        scores = {text: sum(float(table.log_probs(text[:i])[token]) for i, token in enumerate(text)) for text in texts}
        best = max(texts, key=lambda text: scores[text])
        ((found, score), *_) = search(table, BeamParams(5**limit, 0.0, "never"), limit)
        assert found == best
        assert score == pytest.approx(scores[best], abs=1e-5)


def test_early_stopping_and_length_penalty_change_what_is_found():
    """The arguments have an effect: the tests above would hold for a search that ignored them on both sides."""
    results = {
        (early, penalty): [search(Table(seed), BeamParams(3, penalty, early), 9) for seed in range(20)]
        for early in (False, True, "never")
        for penalty in (-1.0, 1.0, 2.5)
    }
    assert results[True, 1.0] != results["never", 1.0]
    assert results[False, 1.0] != results[False, -1.0] != results[False, 2.5]


# ---- in a context


@pytest.fixture
def llm(tiny_model):
    with Llama(tiny_model, n_ctx=512, n_seq_max=4, kv_unified=True, n_threads=1, flash_attn_type="disabled") as llm:
        yield llm


def score_of(model, ids, tokens, length_penalty: float = 1.0) -> float:
    """The score of a text, from one decode of all of it."""
    with Context(model, n_ctx=512, n_threads=1) as context:
        context.decode(Batch.from_arrays(np.concatenate([ids, tokens]).astype(np.int32), outputs="all"))
        total = 0.0
        for place, token in enumerate(tokens, start=len(ids) - 1):
            row = np.empty(context.n_vocab, np.float32)
            log_softmax(context.logits[place], row)
            total += float(row[token])
    return total / len(tokens) ** length_penalty


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("arch", ["llama", "qwen3moe", "gemma3", "mamba", "jamba"])
def test_scores_are_those_of_the_texts(load, arch, kv_unified):
    """Whatever the memory is: a branch that saw the tokens of another one would have another score."""
    model = load(arch)
    with Llama(model, n_ctx=1024, n_seq_max=4, kv_unified=kv_unified, n_threads=1) as llm:
        ids = llm.tokenize(PROMPT)
        result = llm(PROMPT, num_beams=4, n=4, max_tokens=40)
    assert [choice.score for choice in result.choices] == sorted((c.score for c in result.choices), reverse=True)
    assert len({choice.tokens for choice in result.choices}) == 4
    for choice in result.choices:
        ended = [model.vocab.eog_tokens[0]] if choice.finish_reason == "stop" else []
        expected = score_of(model, ids, [*choice.tokens, *ended])
        if len(model.vocab.eog_tokens) == 1 or not ended:
            assert choice.score == pytest.approx(expected, abs=2e-3)


def test_more_beams_find_a_likelier_text_than_greedy_search(llm):
    ids = llm.tokenize(PROMPT)
    greedy = llm(PROMPT, temperature=0, max_tokens=12)
    found = llm(PROMPT, num_beams=4, max_tokens=12, length_penalty=0.0, early_stopping="never")
    assert found.score > score_of(llm.model, ids, list(greedy.tokens), 0.0)
    assert greedy.score is None


def test_beams_that_share_cells_and_beams_that_do_not_find_the_same(tiny_model):
    found = []
    for kv_unified in (True, False):
        with Llama(tiny_model, n_ctx=1024, n_seq_max=4, kv_unified=kv_unified, n_threads=1) as llm:
            found.append(llm(PROMPT, num_beams=4, n=4, max_tokens=24))
    assert [choice.tokens for choice in found[0].choices] == [choice.tokens for choice in found[1].choices]
    assert np.allclose(*[[choice.score for choice in one.choices] for one in found], atol=1e-3)


def test_what_the_cache_holds_afterwards_is_right(llm):
    """The next prompt goes on with the beginning that sequence 0 has, and says what it would say without."""
    found = llm(PROMPT, num_beams=4, max_tokens=10)
    longer = [*llm.tokenize(PROMPT), *found.tokens]
    again = llm(longer, temperature=0, max_tokens=8, cache_prompt=True, logprobs=0)
    llm.reset()
    fresh = llm(longer, temperature=0, max_tokens=8, cache_prompt=True, logprobs=0)
    assert again.usage.cached_tokens >= len(llm.tokenize(PROMPT))
    assert fresh.usage.cached_tokens == 0
    assert np.allclose(again.logprobs.token_logprobs, fresh.logprobs.token_logprobs, atol=1e-3)
    assert all(llm.context.memory.pos_max(seq) == -1 for seq in range(1, 4))


def test_stop_strings_end_a_beam(llm):
    short = {"num_beams": 3, "n": 3, "max_tokens": 20, "length_penalty": -5.0}
    stop = llm(PROMPT, **short).text[2:4]
    found = llm(PROMPT, **short, stop=[stop])
    assert found.stop == stop
    for choice in found.choices:
        assert stop not in choice.text
        assert choice.finish_reason == ("stop" if choice.stop else choice.finish_reason)
        if choice.stop:
            assert (choice.text + stop).encode() in llm.detokenize(choice.tokens).encode() + stop.encode()


@pytest.mark.parametrize(
    "options",
    [{"kv_unified": False}, {"kv_unified": True, "swa_full": True}, {"kv_unified": True}],
    ids=["split", "full", "unified"],
)
def test_a_sliding_window_that_moves_on(load, options):
    """The prompt is many windows long, and so is what the beams have in common behind it."""
    model = load("gemma3")
    ids = list(load("gemma3").vocab.tokenize(20 * (PROMPT + " ")))[:300]
    with Llama(model, n_ctx=2048, n_seq_max=4, n_batch=64, n_ubatch=32, n_threads=1, **options) as llm:
        for _ in range(2):
            result = llm(ids, num_beams=4, n=4, max_tokens=60)
            for choice in result.choices:
                if choice.finish_reason == "length":
                    assert choice.score == pytest.approx(score_of(model, ids, choice.tokens), abs=2e-3)


def test_processors_and_criteria(llm):
    first = llm(PROMPT, num_beams=3, max_tokens=8).tokens[0]
    lengths = []

    def never_first(ids, row):
        lengths.append(len(ids))
        row[first] = -np.inf

    found = llm(PROMPT, num_beams=3, n=3, max_tokens=8, logits_processor=never_first)
    assert all(first not in choice.tokens for choice in found.choices)
    n_prompt = len(llm.tokenize(PROMPT))
    assert set(lengths) == set(range(n_prompt, n_prompt + 8))

    short = llm(PROMPT, num_beams=3, n=3, max_tokens=8, stopping_criteria=lambda ids, row: len(ids) == n_prompt + 2)
    assert all(len(choice.tokens) <= 2 and choice.finish_reason == "stop" for choice in short.choices)


def test_processors_that_leave_fewer_texts_than_are_asked_for(llm):
    def one_way(ids, row):
        row[:5], row[6:] = -np.inf, -np.inf

    assert set(llm(PROMPT, num_beams=3, max_tokens=4, logits_processor=one_way).tokens) == {5}
    with pytest.raises(errors.SamplerError, match="n=2 texts were asked for, and the logits processors leave 1"):
        llm(PROMPT, num_beams=3, n=2, max_tokens=4, logits_processor=one_way)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(llm, value):
    def broken(ids, row):
        row[7] = value

    with pytest.raises(errors.SamplerError):
        llm(PROMPT, num_beams=2, max_tokens=4, logits_processor=broken)


def test_a_chat_has_scores_too(llm):
    messages = [{"role": "user", "content": "the number"}]
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    answer = llm.create_chat_completion(
        messages, chat_template=template, num_beams=3, num_return_sequences=2, max_tokens=6
    )
    assert len(answer.choices) == 2
    assert answer.score == answer.choices[0].score >= answer.choices[1].score


def test_the_prompt_is_echoed_and_the_usage_counts(llm):
    found = llm(PROMPT, num_beams=3, n=2, max_tokens=5, echo=True)
    assert all(choice.text.startswith(PROMPT) for choice in found.choices)
    assert found.usage.completion_tokens == sum(len(choice.tokens) for choice in found.choices)
    assert [choice.index for choice in found.choices] == [0, 1]


def test_one_beam_is_no_beam_search(llm):
    assert llm(PROMPT, num_beams=1, temperature=0, max_tokens=5).score is None


def test_an_abort_gives_what_there_is(llm):
    started = threading.Event()

    def wait(ids, row):
        if len(ids) > 10:
            started.set()

    def stop():
        started.wait()
        llm.abort()

    thread = threading.Thread(target=stop)
    thread.start()
    found = llm(PROMPT, num_beams=4, n=2, max_tokens=100, logits_processor=wait)
    thread.join()
    assert found.choices
    assert all(choice.finish_reason == "abort" or len(choice.tokens) == 100 for choice in found.choices)
    assert llm(PROMPT, temperature=0, max_tokens=3).tokens


# ---- what is refused, by name


class Stateful:
    def reset(self):
        pass

    def __call__(self, ids, row):
        return None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 0}, "num_beams must be an integer, at least 1, not 0"),
        ({"num_beams": 2.0}, "num_beams must be an integer"),
        ({"num_beams": True}, "num_beams must be an integer"),
        ({"num_beams": 2, "n": 3}, "n must be an integer, from 1 to 2, not 3"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences must be an integer, from 1 to 2, not 3"),
        ({"num_beams": 4, "n": 2, "num_return_sequences": 3}, "two names of one number"),
        ({"num_beams": 2, "length_penalty": "long"}, "length_penalty must be a number from -30 to 30, not 'long'"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty must be a number"),
        ({"num_beams": 2, "early_stopping": 1}, "early_stopping must be True, False or 'never', not 1"),
        ({"num_beams": 2, "early_stopping": "always"}, "early_stopping must be"),
        ({"length_penalty": 2.0}, "length_penalty=2.0 would have no effect"),
        ({"num_beams": 1, "early_stopping": False}, "early_stopping=False would have no effect"),
        ({"num_beams": 2, "logprobs": 1}, "cannot be combined with logprobs"),
        ({"num_beams": 2, "grammar": 'root ::= "a"'}, "cannot be combined with grammar"),
        ({"num_beams": 2, "json_schema": {}}, "cannot be combined with json_schema"),
        ({"num_beams": 2, "regex": "a+"}, "cannot be combined with regex"),
        ({"num_beams": 2, "choices": ["a", "b"]}, "cannot be combined with choices"),
        ({"num_beams": 2, "response_format": {"type": "json_object"}}, "cannot be combined with response_format"),
        ({"num_beams": 2, "speculative": "ngram"}, "cannot be combined with speculative"),
        ({"num_beams": 2, "best_of": 3}, "cannot be combined with best_of"),
        ({"num_beams": 2, "overflow": "shift"}, "cannot be combined with overflow='shift'"),
        ({"num_beams": 2, "temperature": 0.7}, "cannot be combined with temperature"),
        ({"num_beams": 2, "top_k": 5}, "cannot be combined with top_k"),
        ({"num_beams": 2, "logit_bias": {5: 1.0}}, "cannot be combined with logit_bias"),
        ({"num_beams": 2, "logits_processor": Stateful()}, "it has a state"),
        ({"num_beams": 2, "max_tokens": 0}, "max_tokens of at least 1"),
        ({"num_beams": 5, "max_tokens": 4}, "num_beams=5 needs a sequence for each beam, .* n_seq_max=4"),
        ({"num_beams": 4, "max_tokens": 500}, "choose max_tokens of at most"),
    ],
)  # fmt: skip
def test_what_is_refused(llm, arguments, message):
    with pytest.raises(errors.InvalidArgumentError, match=message):
        llm(PROMPT, **{"max_tokens": 4, **arguments})


def test_the_number_of_tokens_that_is_proposed_fits(llm):
    with pytest.raises(errors.InvalidArgumentError) as raised:
        llm(PROMPT, num_beams=4)
    most = int(str(raised.value).split("at most ")[1].split(",")[0])
    assert len(llm(PROMPT, num_beams=4, max_tokens=most, length_penalty=30, early_stopping="never").tokens) <= most
    with pytest.raises(errors.InvalidArgumentError):
        llm(PROMPT, num_beams=4, max_tokens=most + 1)


def test_a_stream_is_refused(llm):
    for method in (llm.stream, llm.generate):
        with pytest.raises(errors.InvalidArgumentError, match="it cannot be streamed"):
            method(PROMPT, num_beams=2)
    with pytest.raises(errors.InvalidArgumentError, match="it cannot be streamed"):
        llm(PROMPT, num_beams=2, stream=True)


def test_a_sampler_is_refused(llm):
    from pyllm.core.sampler import Chain
    from pyllm.core.samplers import Greedy

    with pytest.raises(errors.InvalidArgumentError, match="cannot be combined with sampler"):
        llm(PROMPT, num_beams=2, sampler=Chain(Greedy()))


def test_an_encoder_is_refused(load):
    with Llama(load("t5"), n_ctx=128, n_threads=1) as llm, pytest.raises(
        errors.InvalidArgumentError, match="needs a model without an encoder"
    ):  # fmt: skip
        llm(PROMPT, num_beams=2, max_tokens=4)


def test_scores_are_finite_numbers(llm):
    assert all(math.isfinite(choice.score) for choice in llm(PROMPT, num_beams=4, n=4, max_tokens=6).choices)
