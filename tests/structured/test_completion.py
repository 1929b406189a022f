"""Completions of a form: every way to generate, and what comes of the result."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import re

import numpy as np
import pytest

from pyllm import Llama, errors
from pyllm.structured import Grammar

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "s": {"type": "string", "maxLength": 6}},
    "required": ["n", "s"],
}


@pytest.fixture(scope="module")
def llm(tiny_model):
    with Llama(tiny_model, n_ctx=512, n_threads=1, n_seq_max=3, kv_unified=True) as llm:
        yield llm


# Random models at high temperatures wander; what they write has to be right all the same.
HARD = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 300}


@pytest.mark.parametrize("seed", range(6))
def test_json(llm, seed):
    answer = llm("Hello", json_schema=SCHEMA, seed=seed, **HARD)
    assert answer.finish_reason == "stop"
    value = json.loads(answer.text)
    assert value == answer.parsed == answer.choices[0].parsed
    assert list(value) == ["n", "s"] and 0 <= value["n"] <= 99 and len(value["s"]) <= 6


@pytest.mark.parametrize("kind", ["qwen3moe", "gemma3", "mamba", "jamba"])
def test_json_of_other_models(load, kind):
    with Llama(load(kind), n_ctx=512, n_threads=1) as llm:
        for seed in range(2):
            answer = llm(
                "Hello", response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}}, seed=seed, **HARD
            )
            assert answer.parsed["n"] in range(100)


def test_white_space_comes_to_an_end(llm):
    """Where a model would write blanks for ever, the grammar does not let it."""
    blanks = {token: 30.0 for token, piece in enumerate(llm.vocab.pieces()) if piece and not piece.strip()}
    answer = llm("Hello", json_schema={"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 2},
                 logit_bias=blanks, max_tokens=400, temperature=0)  # fmt: skip
    assert answer.finish_reason == "stop" and answer.parsed in ([None], [None, None])


def test_json_object(llm):
    answer = llm("Hello", response_format={"type": "json_object"}, max_tokens=400, seed=1,
                 logit_bias={token: 20.0 for token in llm.tokenize('"}', add_special=False)})  # fmt: skip
    assert isinstance(answer.parsed, dict) or answer.finish_reason == "length"
    assert answer.text.lstrip().startswith("{")


@pytest.mark.parametrize("seed", range(4))
def test_regex(llm, seed):
    pattern = r"(19|20)\d\d-[A-Z]{2,4}é?"
    answer = llm("Hello", regex=pattern, seed=seed, **HARD)
    assert re.fullmatch(pattern, answer.text) and answer.finish_reason == "stop" and answer.parsed is None


@pytest.mark.parametrize("seed", range(4))
def test_choices(llm, seed):
    choices = ["yes", 'no "at all"', 42, True, None]
    answer = llm("Hello", choices=choices, seed=seed, **HARD)
    assert answer.text in ("yes", 'no "at all"', "42", "true", "null")
    assert answer.parsed in choices and answer.text == (
        answer.parsed if isinstance(answer.parsed, str) else answer.text
    )


def test_texts_at_once(llm):
    answer = llm("Hello", n=3, json_schema=SCHEMA, seed=5, **{**HARD, "max_tokens": 60})
    assert len({choice.text for choice in answer.choices}) == 3
    complete = [choice for choice in answer.choices if choice.finish_reason == "stop"]
    assert complete and all(0 <= choice.parsed["n"] <= 99 for choice in complete)


def test_beside_everything_else(llm):
    """Log-probabilities, processors, echo, streams and asyncio give the same text."""
    arguments = {"json_schema": SCHEMA, "seed": 9, "cache_prompt": False, **HARD}
    plain = llm("Hello", **arguments)
    seen = []
    noted = llm("Hello", logprobs=1, **arguments)
    processed = llm("Hello", logits_processor=lambda ids, logits: seen.append(len(ids)), **arguments)
    echoed = llm("Hello", echo=True, **arguments)
    *_, last = llm.stream("Hello", **arguments)
    awaited = asyncio.run(llm.acomplete("Hello", **arguments))
    for other in (noted, processed, last.completion, awaited):
        assert (other.text, other.parsed) == (plain.text, plain.parsed)
    assert echoed.text == "Hello" + plain.text and echoed.parsed == plain.parsed
    assert len(seen) >= len(plain.tokens) and len(noted.logprobs.tokens) == len(plain.tokens)


def test_an_unfinished_text_has_no_value(llm):
    answer = llm("Hello", json_schema=SCHEMA, max_tokens=2, seed=1)
    assert answer.finish_reason == "length" and answer.parsed is None
    assert llm("Hello", max_tokens=2).parsed is None
    for ended in ({"stopping_criteria": lambda ids, logits: True}, {"stop": '"'}):
        answer = llm("Hello", json_schema=SCHEMA, seed=1, **ended)
        assert answer.finish_reason == "stop" and answer.parsed is None


@pytest.mark.parametrize("form", [{"json_schema": SCHEMA}, {"choices": ["yes", 3]}])
def test_results_can_be_pickled(llm, form):
    answer = llm("Hello", seed=1, **form, **HARD)
    assert answer.parsed is not None
    for again in (pickle.loads(pickle.dumps(answer)), copy.deepcopy(answer)):
        assert again == answer and again.parsed == answer.parsed


def test_a_grammar_as_an_object(llm):
    (token,) = llm.tokenize("<tool>", add_special=False)
    answer = llm("Hello", grammar=Grammar('start ::= "ab" [c-e]{2}', root="start"), seed=1)
    assert re.fullmatch("ab[c-e]{2}", answer.text)
    lazy = Grammar('root ::= "<tool>" "xy"', trigger_patterns=("<tool>",))
    answer = llm("Hello", grammar=lazy, seed=1, max_tokens=40, logit_bias={token: 12.0})
    assert re.search("<tool>xy$", answer.text) if "<tool>" in answer.text else answer.finish_reason
    assert "<tool>" in answer.text


def test_penalties_see_the_prompt_and_the_grammar_does_not(llm):
    a = llm.tokenize("a", add_special=False)[-1]
    prompt = np.array([a] * 8, np.int32)
    text = llm(prompt, grammar="root ::= [ab]", temperature=0, presence_penalty=1e6).text
    assert text == "b"


def test_a_grammar_that_the_vocabulary_cannot_follow(llm):
    forbidden = {token: float("-inf") for token, piece in enumerate(llm.vocab.pieces()) if b"q" in piece}
    with pytest.raises(errors.GrammarError, match="no token of the vocabulary continues the text"):
        llm("Hello", regex="q+", logit_bias=forbidden)
    assert llm("Hello", regex="q", max_tokens=5).text == "q"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"json_schema": {"type": "x"}}, errors.InvalidArgumentError, r"json_schema: \$.type"),
        ({"response_format": {"type": "json"}}, errors.InvalidArgumentError, "response_format"),
        ({"regex": "["}, errors.InvalidArgumentError, "no regular expression"),
        ({"choices": []}, errors.InvalidArgumentError, "choices is empty"),
        ({"choices": "yes"}, errors.InvalidArgumentError, "must be a list"),
        ({"choices": [object()]}, errors.InvalidArgumentError, "a choice must be"),
        ({"choices": [float("nan")]}, errors.InvalidArgumentError, "a number of JSON"),
        ({"grammar": "root ::= ["}, errors.GrammarError, "line 1, column 10"),
        ({"grammar": 5}, errors.InvalidArgumentError, "grammar must be GBNF"),
        ({"grammar": "root ::= [a]", "regex": "a"}, errors.InvalidArgumentError, "only one of grammar, regex"),
        ({"json_shema": {}}, errors.UnknownArgumentError, "did you mean 'json_schema'"),
    ],
)
def test_mistakes_are_found_before_anything_is_computed(llm, arguments, error, message, capfd):
    decodes = llm.context.decode_id
    with pytest.raises(error, match=message):
        llm("Hello", **arguments)
    assert llm.context.decode_id == decodes and capfd.readouterr() == ("", "")


def nested(levels):
    """A schema in a schema in a schema."""
    found = {}
    for _ in range(levels):
        found = {"items": found}
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"choices": 5}, "choices must be a list of texts"),
        ({"choices": ["\ud800"]}, "half of a surrogate pair"),
        ({"regex": "\ud800"}, "half of a surrogate pair"),
        ({"grammar": 'root ::= "\ud800"'}, "half of a surrogate pair"),
        ({"json_schema": {"type": "string", "pattern": "\ud800"}}, "half of a surrogate pair"),
        ({"json_schema": {"enum": ["a"], "minLength": "x"}}, "a keyword has a value that it cannot have"),
        ({"json_schema": {"enum": ["a"], "pattern": "("}}, "is no regular expression"),
        ({"json_schema": '{"a":' * 500 + "1" + "}" * 500}, "nested too deep"),
        ({"json_schema": "[" * 200_000}, "nested too deep|not JSON"),
        ({"json_schema": nested(2000)}, "nested too deep"),
        ({"json_schema": {"enum": [nested(2000)]}}, "nested too deep"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": nested(500)}}}, "nested too deep"),
        ({"dry_multiplier": 1.0, "dry_sequence_breakers": ["\ud800"]}, "half of a surrogate pair"),
        ({"stop": "\ud800"}, "half of a surrogate pair"),
        ({"logit_bias": {5: "a"}}, "logit_bias takes numbers"),
        ({"logit_bias": {1.5: 1}}, "logit_bias takes numbers"),
    ],
)
def test_what_cannot_be_understood(llm, arguments, message):
    with pytest.raises(errors.PyllmError, match=message):
        llm("Hello", max_tokens=1, **arguments)


@pytest.mark.parametrize("prompt", ["\ud800", "the cat \udfff sat"])
def test_a_prompt_with_half_a_character(llm, prompt):
    with pytest.raises(errors.InvalidArgumentError, match="the prompt holds half of a surrogate pair"):
        llm(prompt, max_tokens=1)


@pytest.mark.parametrize("name", ["logits_processor", "stopping_criteria"])
@pytest.mark.parametrize("value", [5, [5], "abc"])
def test_what_is_no_function(llm, name, value):
    with pytest.raises(errors.InvalidArgumentError, match="must be"):
        llm("Hello", max_tokens=1, **{name: value})


def test_triggers_that_are_none():
    with pytest.raises(errors.InvalidArgumentError, match="trigger_patterns must be texts"):
        Grammar("root ::= [a]", trigger_patterns=(5,))
    with pytest.raises(errors.InvalidArgumentError, match="trigger_tokens must be token ids"):
        Grammar("root ::= [a]", trigger_tokens=("a",))
