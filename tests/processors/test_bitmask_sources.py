"""Text that is held to a form by llguidance, outlines-core and xgrammar themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pyllm import Chain, Context, Generation, Llama, Model, errors
from pyllm.core.python_sampler import Bitmask
from pyllm.core.samplers import Dist, Greedy, Temp
from pyllm.processors import LLGuidance, OutlinesCore, XGrammar

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
PATTERN = r"(yes|no), [0-9]{2}"
SOURCES = [
    pytest.param(LLGuidance, "llguidance", id="llguidance"),
    pytest.param(OutlinesCore, "outlines_core", id="outlines-core"),
    pytest.param(XGrammar, "xgrammar", id="xgrammar", marks=pytest.mark.slow),
]


@pytest.fixture
def llm(load: Callable[..., Model]) -> Iterator[Llama]:
    with Llama(load("llama"), n_ctx=256, n_threads=1) as llm:
        yield llm


def need(package: str) -> None:
    pytest.importorskip(package)
    if package == "xgrammar":
        pytest.importorskip("torch")


@pytest.mark.parametrize(("source", "package"), SOURCES)
def test_every_text_matches_the_pattern(llm: Llama, source: Any, package: str) -> None:
    need(package)
    processor = source.regex(PATTERN, llm.vocab)
    for seed in range(5):
        answer = llm([5, 6, 7], max_tokens=40, seed=seed, temperature=1.5, logits_processor=processor)
        assert re.fullmatch(PATTERN, answer.text), answer.text
        assert answer.finish_reason == "stop"


@pytest.mark.parametrize(("source", "package"), SOURCES)
def test_in_a_chain_it_is_the_same(llm: Llama, source: Any, package: str) -> None:
    need(package)
    processor = source.regex(PATTERN, llm.vocab)
    expected = llm([5, 6, 7], max_tokens=40, temperature=0, logits_processor=processor).text
    chain = Chain(Bitmask(source.regex(PATTERN, llm.vocab)), Temp(0.7), Greedy())
    copy = chain.clone()
    assert llm([5, 6, 7], max_tokens=40, sampler=chain).text == expected
    assert llm([5, 6, 7], max_tokens=40, sampler=copy).text == expected
    chain.reset()
    assert llm([5, 6, 7], max_tokens=40, sampler=chain).text == expected


@pytest.mark.parametrize(("source", "package"), SOURCES)
def test_rollback_reset_and_clone(llm: Llama, source: Any, package: str) -> None:
    need(package)
    vocab = llm.vocab
    matcher = source.regex(PATTERN, vocab)
    pieces = vocab.pieces(special=False)

    def mask_of(matcher: Any) -> np.ndarray:
        mask = np.zeros((len(vocab) + 31) // 32, np.int32)
        matcher.fill(mask)
        return mask

    def allowed(matcher: Any) -> set[int]:
        bits = np.unpackbits(mask_of(matcher).view(np.uint8), bitorder="little")[: len(vocab)]
        return set(np.flatnonzero(bits).tolist())

    first = allowed(matcher)
    assert {pieces[token][:1] for token in first} == {b"y", b"n"}
    token = min(first)
    matcher.accept(token)
    second = allowed(matcher)
    copy = matcher.clone()
    copy.accept(min(second))
    assert allowed(matcher) == second
    matcher.rollback(1)
    assert allowed(matcher) == first
    matcher.accept(token)
    matcher.reset()
    assert allowed(matcher) == first
    with pytest.raises(errors.SamplerError, match="back by 5 tokens") as info:
        matcher.rollback(5)
    assert len(str(info.value)) < 500
    with pytest.raises(errors.InvalidArgumentError, match="not -1"):
        matcher.rollback(-1)
    # It is as it was.
    assert allowed(matcher) == first
    matcher.accept(token)
    assert allowed(matcher) == second


@pytest.mark.parametrize(("source", "package"), SOURCES)
def test_of_another_model_or_of_no_vocabulary(llm: Llama, source: Any, package: str) -> None:
    need(package)
    matcher = source.regex(PATTERN, llm.vocab)
    with pytest.raises(errors.InvalidArgumentError, match=f"{len(llm.vocab)} tokens, and the logits are of 100"):
        matcher(np.array([1], np.int32), np.zeros(100, np.float32))
    with pytest.raises(errors.InvalidArgumentError, match=r"a Vocab is needed.* not Llama"):
        source.regex(PATTERN, llm)
    with pytest.raises((errors.InvalidArgumentError, errors.GrammarError)):
        source(3, llm.vocab)


@pytest.mark.parametrize(("source", "package"), SOURCES)
def test_a_token_that_does_not_fit_is_an_error(llm: Llama, source: Any, package: str) -> None:
    need(package)
    matcher = source.regex(PATTERN, llm.vocab)
    wrong = next(i for i, piece in enumerate(llm.vocab.pieces(special=False)) if piece == b"!" or piece == b"z")
    with pytest.raises(errors.SamplerError, match=f"token {wrong}"):
        matcher.accept(wrong)
    # It is as it was.
    answer = llm([5, 6, 7], max_tokens=40, temperature=0, sampler=None, logits_processor=matcher)
    assert re.fullmatch(PATTERN, answer.text)
    with pytest.raises(errors.SamplerError):
        matcher.accept(wrong)
    matcher.accept(llm.vocab.eos)
    assert matcher.finished
    with pytest.raises(errors.SamplerError, match="finished"):
        matcher.accept(wrong)


@pytest.mark.parametrize(("source", "package"), SOURCES)
def test_wrong_grammars_are_errors(llm: Llama, source: Any, package: str) -> None:
    need(package)
    with pytest.raises(errors.GrammarError):
        source.regex("(unclosed", llm.vocab)
    with pytest.raises(errors.GrammarError):
        source.json_schema('{"type": "no such type"}', llm.vocab)


@pytest.mark.parametrize(("source", "package"), SOURCES)
def test_each_sequence_has_its_own(llm: Llama, source: Any, package: str) -> None:
    """Two texts on one context, each held to another form; one matcher fails and the other goes on."""
    need(package)
    with Context(llm.model, n_ctx=256, n_seq_max=2, n_threads=1) as context:
        texts = []
        generations = [
            Generation(context, Chain(Bitmask(source.regex(pattern, llm.vocab)), Dist(1)), seq_id=i)
            for i, pattern in enumerate(["[ab]{6}", "[0-9]{6}"])
        ]
        for generation in generations:
            generation.prefill([5, 6, 7])
        going = set(generations)
        while going:
            going = {generation for generation in going if generation.step() is not None}
        texts = [generation.stream.take(all=True) for generation in generations]
    assert re.fullmatch("[ab]{6}", texts[0])
    assert re.fullmatch("[0-9]{6}", texts[1])


@pytest.mark.parametrize(("source", "package"), SOURCES)
def test_a_closed_model_is_an_error(make_model: Any, tiny_models: Any, source: Any, package: str) -> None:
    need(package)
    model = make_model(tiny_models["llama"])
    matcher = source.regex(PATTERN, model.vocab)
    model.close()
    with pytest.raises(errors.ClosedError):
        matcher.fill(np.zeros(1000, np.int32))
    with pytest.raises(errors.ClosedError):
        matcher.accept(5)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(("source", "package"), SOURCES)
def test_json_of_a_real_model(smollm2: Model, source: Any, package: str) -> None:
    need(package)
    with Llama(smollm2, n_ctx=512, n_threads=2) as llm:
        processor = source.json_schema(SCHEMA, llm.vocab)
        for seed in (1, 2):
            answer = llm("A person as JSON:\n", max_tokens=80, seed=seed, temperature=0.9, logits_processor=processor)
            data = json.loads(answer.text)
            assert answer.finish_reason == "stop"
            assert set(data) == {"name", "age"}
            assert isinstance(data["age"], int)
