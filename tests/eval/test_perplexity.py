"""Perplexity against a computation by hand, and its windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from eval import corpus
from support.numerics import EXACT, log_softmax

from pyllm import Batch, Context
from pyllm.errors import InvalidArgumentError
from pyllm.eval import perplexity


def by_hand(model, tokens, n_ctx):
    """Negative log-probabilities, one window after the other, one token at a time."""
    found = []
    with Context(model, n_ctx=n_ctx, **EXACT) as context:
        for a in range(0, len(tokens) - n_ctx + 1, n_ctx):
            window = tokens[a : a + n_ctx].copy()
            if model.vocab.add_bos:
                window[0] = model.vocab.bos
            context.memory.clear()
            for i, token in enumerate(window[:-1]):
                context.decode(Batch.from_arrays([token]))
                if i >= n_ctx // 2:
                    found.append(-log_softmax(context.logits[0])[window[i + 1]])
    return np.array(found)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba"])
@pytest.mark.parametrize(("n_ctx", "n_batch"), [(32, 128), (32, 32), (48, 16), (33, 10)])
def test_perplexity_is_that_of_plain_decodes(load, arch, n_ctx, n_batch):
    model = load(arch)
    tokens = model.vocab.tokenize_array(corpus.text(8))[:200]
    result = perplexity(model, tokens, n_ctx=n_ctx, n_batch=n_batch, **EXACT)
    expected = by_hand(model, tokens, n_ctx)
    assert np.allclose(result.token_nll, expected, atol=1e-3)
    assert result.n_tokens == len(expected)
    assert result.n_chunks == len(tokens) // n_ctx
    assert result.nll == pytest.approx(expected.mean(), rel=1e-4)
    assert result.ppl == pytest.approx(math.exp(expected.mean()), rel=1e-4)
    assert result.nll_stderr == pytest.approx(expected.std() / math.sqrt(len(expected) - 1), rel=1e-3)
    assert result.stderr == pytest.approx(result.ppl * result.nll_stderr)


def test_chunks_can_be_limited_and_watched(tiny_model):
    tokens = tiny_model.vocab.tokenize_array(corpus.text(10))
    seen = []
    few = perplexity(
        tiny_model, tokens, n_ctx=32, n_batch=64, n_chunks=3, progress=lambda *done: seen.append(done), **EXACT
    )
    assert few.n_chunks == 3
    assert seen == [(30, 45), (45, 45)]
    every = perplexity(tiny_model, tokens, n_ctx=32, n_batch=64, **EXACT)
    assert np.allclose(every.token_nll[:45], few.token_nll, atol=1e-3)


def test_a_context_of_ones_own(tiny_model, make_context):
    tokens = tiny_model.vocab.tokenize_array(corpus.text(10))
    expected = perplexity(tiny_model, tokens, n_ctx=32, **EXACT)
    for arguments in ({"n_seq_max": 1}, {"n_seq_max": 3}, {"n_seq_max": 3, "kv_unified": True}):
        context = make_context(n_ctx=768, type_k="f32", type_v="f32", flash_attn_type="disabled", **arguments)
        assert perplexity(context, tokens, n_ctx=32).ppl == pytest.approx(expected.ppl, rel=1e-4)
    with pytest.raises(InvalidArgumentError, match="n_ctx=300 tokens, and the context holds 256"):
        perplexity(make_context(n_ctx=256), np.tile(tokens, 5), n_ctx=300)


def test_what_cannot_be_measured(tiny_model, load):
    with pytest.raises(InvalidArgumentError, match="the text has 5 tokens and a window n_ctx=512"):
        perplexity(tiny_model, [1, 5, 6, 7, 8])
    with pytest.raises(InvalidArgumentError, match="n_ctx must be at least 4, not 2"):
        perplexity(tiny_model, [1, 5, 6, 7, 8], n_ctx=2)
    with pytest.raises(InvalidArgumentError, match="n_batch must be at least 1"):
        perplexity(tiny_model, [1, 5, 6, 7, 8], n_ctx=4, n_batch=0)
    with pytest.raises(InvalidArgumentError, match="n_chunks must be at least 1"):
        perplexity(tiny_model, [1, 5, 6, 7, 8], n_ctx=4, n_chunks=0)
    with pytest.raises(InvalidArgumentError, match="no probabilities of a next token"):
        perplexity(load("bert"), corpus.text(10), n_ctx=32)
