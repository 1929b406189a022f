"""From sampling parameters to a chain: every sampler can be reached, in llama.cpp's order."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyllm import Llama, SamplingParams, errors
from pyllm.params import SAMPLER_ORDER
from pyllm.sampling import build_chain

NEUTRAL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
ALL_ON = {
    "repeat_penalty": 1.1,
    "dry_multiplier": 0.8,
    "top_n_sigma": 1.5,
    "typical_p": 0.9,
    "xtc_probability": 0.5,
    "dynatemp_range": 0.2,
}


def names(model, **arguments):
    return [sampler.name for sampler in build_chain(SamplingParams(**arguments), model.vocab, 1)]


@pytest.fixture(scope="module")
def llm(tiny_model):
    with Llama(tiny_model, n_ctx=128, n_threads=1) as llm:
        yield llm


class TestChain:
    def test_the_order_is_that_of_llama_cpp(self, tiny_model):
        assert names(tiny_model, logit_bias={5: 1.0}, **ALL_ON) == [
            *("logit-bias", "penalties", "dry", "top-n-sigma", "top-k", "typical", "top-p", "min-p"),
            *("xtc", "temp-ext", "dist"),
        ]

    def test_a_grammar_is_around_them(self, tiny_model):
        chain = build_chain(SamplingParams(grammar='root ::= "a"', top_k=5), tiny_model.vocab, 1)
        (constrained,) = chain
        assert constrained.grammar.name == "grammar"
        assert [sampler.name for sampler in constrained.samplers] == names(tiny_model, top_k=5)

    def test_what_would_change_nothing_is_left_out(self, tiny_model):
        assert names(tiny_model) == ["top-k", "top-p", "min-p", "temp", "dist"]
        assert names(tiny_model, **NEUTRAL) == ["temp", "dist"]
        assert names(tiny_model, **NEUTRAL, xtc_probability=0.5, xtc_threshold=0.6) == ["temp", "dist"]
        assert names(tiny_model, **NEUTRAL, dry_multiplier=1, dry_base=0.5) == ["temp", "dist"]
        assert names(tiny_model, **NEUTRAL, repeat_penalty=2, repeat_last_n=0) == ["temp", "dist"]

    def test_greedy(self, tiny_model):
        assert names(tiny_model, temperature=0) == ["greedy"]
        assert names(tiny_model, temperature=0, repeat_penalty=1.1) == ["penalties", "greedy"]
        # These may take away the most likely token.
        assert names(tiny_model, temperature=0, xtc_probability=1)[-3:] == ["xtc", "temp", "dist"]
        assert "typical" in names(tiny_model, temperature=0, typical_p=0.5)
        assert names(tiny_model, temperature=0, dynatemp_range=0.5)[-2:] == ["temp-ext", "dist"]

    def test_mirostat_and_adaptive_p_choose_the_token(self, tiny_model):
        assert names(tiny_model, mirostat=1, **ALL_ON) == ["temp", "mirostat"]
        assert names(tiny_model, mirostat=2, logit_bias={1: 1}) == ["logit-bias", "temp", "mirostat-v2"]
        assert names(tiny_model, **NEUTRAL, adaptive_target=0.3) == ["temp", "adaptive-p"]

    def test_an_order_of_ones_own(self, tiny_model):
        order = ["temperature", "min_p", "top_k"]
        assert names(tiny_model, samplers=order) == ["temp", "min-p", "top-k", "dist"]
        assert names(tiny_model, samplers=()) == ["dist"]
        assert names(tiny_model, samplers=("top_k", "infill")) == ["top-k", "infill", "dist"]
        assert names(tiny_model, samplers=("adaptive_p", "top_k"), adaptive_target=0.5) == ["top-k", "adaptive-p"]
        assert names(tiny_model, samplers=SAMPLER_ORDER, **ALL_ON) == names(tiny_model, **ALL_ON)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": math.nan}, "temperature must be a number >= 0, not nan"),
        ({"temperature": "1"}, "temperature must be a number"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 1.5}, "top_k must be an integer >= -1, not 1.5"),
        ({"top_k": True}, "top_k"),
        ({"typical_p": -0.1}, "typical_p must be a number from 0 to 1, not -0.1"),
        ({"xtc_probability": 2}, "xtc_probability"),
        ({"xtc_threshold": -1}, "xtc_threshold"),
        ({"repeat_penalty": 0}, "repeat_penalty must be a number > 0, not 0"),
        ({"repeat_last_n": -1}, "repeat_last_n must be an integer from 0 to 1048576, not -1"),
        ({"dry_multiplier": -1}, "dry_multiplier"),
        ({"dry_base": math.nan}, "dry_base"),
        ({"dry_allowed_length": -1}, "dry_allowed_length"),
        ({"dry_sequence_breakers": "ab"}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": ["a", ""]}, "dry_sequence_breakers"),
        ({"mirostat": 3}, "mirostat must be an integer from 0 to 2, not 3"),
        ({"mirostat_tau": -1}, "mirostat_tau"),
        ({"adaptive_target": 1.5}, "adaptive_target must be a number of at most 1, not 1.5"),
        ({"adaptive_decay": 1}, "adaptive_decay"),
        ({"seed": -1}, "seed must be an integer from 0 to 4294967294, not -1"),
        ({"samplers": "top_k"}, "not the text 'top_k'"),
        ({"samplers": ["topk"]}, "there is no sampler 'topk'; there are penalties, dry"),
        ({"samplers": ["top_k", "top_k"]}, "once"),
        ({"samplers": ["top_k"], "temperature": 0}, "temperature=0 would have no effect"),
        ({"samplers": ["temperature"], "dry_multiplier": 1}, "'dry' is not in samplers"),
    ],
)
def test_out_of_range(arguments, message):
    with pytest.raises(errors.InvalidArgumentError, match=message):
        SamplingParams(**arguments)


class TestEffects:
    def test_bias_by_text(self, llm):
        token = 300
        text = llm.vocab.token_to_piece(token).decode()
        assert llm.tokenize(text, add_special=False) == [token]
        assert llm("Hello", max_tokens=3, temperature=0, logit_bias={text: 1e4}).tokens == (token,) * 3
        # Two ways to name one token add up.
        assert token not in llm("Hello", max_tokens=3, temperature=0, logit_bias={text: 1e4, token: -math.inf}).tokens

    def test_bias_of_what_is_no_token(self, llm):
        with pytest.raises(errors.InvalidArgumentError, match="tokens of this model, not one"):
            llm("Hello", logit_bias={"some longer text": 1.0})
        with pytest.raises(errors.InvalidArgumentError, match="token 99999 is not from 0"):
            llm("Hello", logit_bias={99999: 1.0})

    def test_dry_breaks_a_loop(self, llm):
        (token,) = llm("Hello", max_tokens=1, temperature=0).tokens
        prompt = np.array([5, 6, 7, token] * 4 + [5, 6, 7], np.int32)
        # Strong enough that only DRY decides, and it sees the prompt.
        arguments = {"max_tokens": 1, "temperature": 0, "logit_bias": {token: 100.0}}
        assert llm(prompt, **arguments).tokens == (token,)
        assert llm(prompt, **arguments, dry_multiplier=1e3).tokens != (token,)

    def test_penalties_beside_a_grammar(self, llm):
        # The grammar must not be shown the prompt, which the penalties count.
        text = llm("Hello world", max_tokens=8, grammar='root ::= "a" "b" "c"', repeat_penalty=1.5, seed=1).text
        assert text == "abc"

    @pytest.mark.parametrize("arguments", [{"mirostat": 1}, {"mirostat": 2}, {"adaptive_target": 0.4}, ALL_ON])
    def test_they_run_and_repeat(self, llm, arguments):
        first = llm("Hello world", max_tokens=12, seed=4, **arguments)
        assert first.tokens == llm("Hello world", max_tokens=12, seed=4, **arguments).tokens
        assert first.usage.completion_tokens == 12 or first.finish_reason == "stop"
