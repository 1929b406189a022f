"""Processors of our own form, in Llama and in chains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pyllm import Chain, Llama, errors
from pyllm.core.python_sampler import Bitmask, PythonSampler
from pyllm.core.samplers import Dist, Greedy, Temp, TopK
from pyllm.processors import ProcessorSampler, as_processors

PROMPT = [5, 6, 7, 8]


@pytest.fixture
def llm(tiny_model: Any) -> Iterator[Llama]:
    with Llama(tiny_model, n_ctx=128, n_threads=1) as llm:
        yield llm


def test_ids_hold_the_prompt_and_all_that_came(llm: Llama) -> None:
    seen: list[Any] = []

    def look(ids: np.ndarray, logits: np.ndarray) -> None:
        assert (ids.dtype, ids.flags.writeable, ids.flags.c_contiguous) == (np.int32, False, True)
        assert (logits.dtype, logits.shape, logits.flags.c_contiguous) == (np.float32, (len(llm.vocab),), True)
        seen.append(ids.tolist())

    plain = llm(PROMPT, max_tokens=4, temperature=0)
    looked = llm(PROMPT, max_tokens=4, temperature=0, logits_processor=look)
    assert looked.tokens == plain.tokens
    assert seen == [PROMPT + list(plain.tokens[:i]) for i in range(len(seen))]


def test_logit_bias_and_processors_hold_together(llm: Llama) -> None:
    first = llm(PROMPT, max_tokens=1, temperature=0).tokens[0]

    def forbid_the_next(ids: np.ndarray, logits: np.ndarray) -> None:
        logits[second] = -np.inf

    second = llm(PROMPT, max_tokens=1, temperature=0, logit_bias={first: -np.inf}).tokens[0]
    third = llm(
        PROMPT, max_tokens=1, temperature=0, logit_bias={first: -np.inf}, logits_processor=[forbid_the_next]
    ).tokens[0]
    assert len({first, second, third}) == 3


def test_processors_and_a_chain_of_ones_own(llm: Llama) -> None:
    calls: list[str] = []

    def processor(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        calls.append("processor")
        result = logits.copy()
        result[20:] = -np.inf
        return result

    def sampler(candidates: Any) -> None:
        calls.append("sampler")
        assert candidates["id"].max() < 20
        candidates.keep(slice(0, 1))

    chain = Chain(TopK(5), PythonSampler(sampler), Temp(0.8), Dist(1))
    result = llm(PROMPT, max_tokens=3, logits_processor=processor, sampler=chain)
    assert calls == ["processor", "sampler"] * 3
    assert max(result.tokens) < 20


def test_a_sampler_leaves_no_argument_without_effect(llm: Llama) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"temperature, top_k without effect"):
        llm(PROMPT, max_tokens=1, sampler=Chain(Greedy()), top_k=3, temperature=0.5)
    # An empty chain is a chain too, and not replaced by another.
    with pytest.raises(errors.SamplerError, match="never selects"):
        llm(PROMPT, max_tokens=1, sampler=Chain())


def test_an_exception_is_raised_and_the_llama_goes_on(llm: Llama) -> None:
    def fail(ids: np.ndarray, logits: np.ndarray) -> None:
        if len(ids) == len(PROMPT) + 2:
            raise LookupError("no more")

    plain = llm(PROMPT, max_tokens=4, temperature=0).tokens
    with pytest.raises(LookupError, match="no more"):
        llm(PROMPT, max_tokens=4, temperature=0, logits_processor=fail)
    assert llm(PROMPT, max_tokens=4, temperature=0).tokens == plain


@pytest.mark.parametrize("result", [np.zeros(3, np.float32), "text", [["a"]], np.zeros((1, 5))])
def test_wrong_results_are_errors(llm: Llama, result: Any) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="returned"):
        llm(PROMPT, max_tokens=1, logits_processor=lambda ids, logits: result)


def test_what_cannot_be_called_is_refused(llm: Llama) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="callable, not None"):
        llm(PROMPT, max_tokens=1, logits_processor=[None])
    assert as_processors(None) == []
    assert as_processors(print) == [print]


def test_processors_are_reset_at_each_text(llm: Llama) -> None:
    class Counter:
        n = resets = 0

        def __call__(self, ids: np.ndarray, logits: np.ndarray) -> None:
            self.n += 1

        def reset(self) -> None:
            self.resets += 1

    counter = Counter()
    llm(PROMPT, max_tokens=2, logits_processor=counter)
    list(llm.stream(PROMPT, max_tokens=2, logits_processor=counter))
    assert (counter.n, counter.resets) == (4, 2)


def test_a_processor_in_a_chain(llm: Llama) -> None:
    seen: list[Any] = []

    def processor(ids: np.ndarray, logits: np.ndarray) -> None:
        seen.append((ids.tolist(), int(np.isfinite(logits).sum())))
        logits[logits.argmax()] = -np.inf

    inner = ProcessorSampler(processor, len(llm.vocab), prompt=PROMPT)
    chain = Chain(TopK(3), PythonSampler(inner), Greedy())
    tokens = list(llm(PROMPT, max_tokens=3, sampler=chain).tokens)
    assert [n for _, n in seen] == [3, 3, 3]
    assert [ids for ids, _ in seen] == [PROMPT + tokens[:i] for i in range(3)]
    greedy = llm(PROMPT, max_tokens=1, temperature=0).tokens[0]
    assert tokens[0] != greedy
    copy = chain.clone()
    copy[1].implementation.accept(1)
    assert inner.n == len(PROMPT) + 3
    chain.reset()
    assert inner.n == len(PROMPT)


def test_many_tokens_fit(llm: Llama) -> None:
    inner = ProcessorSampler(lambda ids, logits: None, 10)
    for token in range(300):
        inner.accept(token % 10)
    assert inner.ids[: inner.n].tolist() == [token % 10 for token in range(300)]
    with pytest.raises(errors.InvalidArgumentError, match="n_vocab"):
        ProcessorSampler(print, 0)


@pytest.mark.parametrize(("value", "words"), [(-np.inf, "forbid every token"), (np.nan, "NaN")])
def test_processors_that_leave_nothing_to_choose_are_named(llm: Llama, value: float, words: str) -> None:
    def spoil(ids: np.ndarray, logits: np.ndarray) -> None:
        logits[:] = value

    with pytest.raises(errors.SamplerError, match=rf"spoil.*{words}"):
        llm(PROMPT, max_tokens=4, logits_processor=spoil)
    assert len(llm(PROMPT, max_tokens=4, temperature=0).tokens) == 4


def test_a_bitmask_for_another_vocabulary_is_refused_in_a_chain(llm: Llama) -> None:
    class Few:
        n_vocab = 32

        def fill(self, mask: np.ndarray) -> None:
            mask[:] = -1

    for _ in range(2):
        with pytest.raises(errors.SamplerError, match=r"n_vocab=32 .* another vocabulary"):
            llm(PROMPT, max_tokens=1, sampler=Chain(Bitmask(Few()), Greedy()))
