"""logprobs and score beside plain decodes, one token at a time."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from support.numerics import EXACT, log_softmax

from pyllm import Batch, Context, Llama
from pyllm.errors import InvalidArgumentError, UnknownArgumentError
from pyllm.eval import Scorer, logprobs, logprobs_many, score
from pyllm.eval.tree import common_prefix

# In float32 throughout, a batch changes results by rounding only. With the usual float16 cache it is 1e-3 and more.


def plain(model, tokens):
    """Log-probabilities of all rows, float64, decoded one by one: shape (n - 1, n_vocab)."""
    with Context(model, n_ctx=512, **EXACT) as context:
        rows = []
        for token in tokens[:-1]:
            context.decode(Batch.from_arrays([token]))
            rows.append(log_softmax(context.logits[0]))
    return np.array(rows).reshape(len(tokens) - 1, -1)


def random_sequences(model, n, seed=0):
    """Sequences that share beginnings of every length, some of them whole."""
    random = np.random.default_rng(seed)
    n_vocab = len(model.vocab)
    base = random.integers(5, n_vocab, 40)
    found = []
    for _ in range(n):
        first = int(random.integers(1, 38))
        rest = random.integers(5, n_vocab, int(random.integers(1, 12)))
        found.append((np.concatenate((base[:first], rest)).astype(np.int32), first))
    return [*found, found[0], (found[1][0][:-1], min(found[1][1], len(found[1][0]) - 1)), (base.astype(np.int32), 20)]


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen3moe", "mamba", "jamba"])
@pytest.mark.parametrize("sizes", [{}, {"n_batch": 16, "n_seq_max": 3}, {"kv_unified": False, "n_seq_max": 2}])
def test_scores_are_those_of_plain_decodes(load, arch, sizes):
    model = load(arch)
    sequences = random_sequences(model, 12)
    with Scorer(model, n_ctx=64, **EXACT, **sizes) as scorer:
        results = scorer.score_tokens(sequences)
        again = scorer.score_tokens(sequences[:3])
    for (tokens, first), result in zip(sequences, results, strict=True):
        rows = plain(model, tokens)[first - 1 :]
        expected = rows[np.arange(len(rows)), tokens[first:]]
        assert np.allclose(result.token_logprobs, expected, atol=1e-3)
        assert result.logprob == pytest.approx(expected.sum(), abs=1e-2)
        assert result.n_tokens == len(tokens) - first
        assert result.is_greedy == bool((rows.argmax(axis=1) == tokens[first:]).all())
    for one, other in zip(again, results, strict=False):
        assert np.allclose(one.token_logprobs, other.token_logprobs, atol=1e-3)


def test_a_greedy_continuation_is_known_as_one(tiny_model):
    with Llama(tiny_model, n_ctx=256, **EXACT) as llm:
        answer = llm([1, 20, 30], max_tokens=6, temperature=0)
    good, bad = score(tiny_model, [[1, 20, 30]] * 2, [answer.tokens, (*answer.tokens[:-1], 7)], **EXACT)
    assert good.is_greedy
    assert not bad.is_greedy
    assert good.logprob > bad.logprob


def test_logprobs_of_a_text(tiny_model, ids):
    result = logprobs(tiny_model, ids, top_k=3, **EXACT)
    rows = plain(tiny_model, ids)
    each = np.arange(len(rows))
    chosen = rows[each, ids[1:]]
    assert np.array_equal(result.tokens, ids)
    assert np.isnan(result.logprobs[0]) and np.isnan(result.entropy[0])
    assert result.ranks[0] == -1 and (result.top_tokens[0] == -1).all()
    assert np.allclose(result.logprobs[1:], chosen, atol=1e-3)
    assert np.allclose(result.entropy[1:], -(np.exp(rows) * rows).sum(axis=1), atol=1e-3)
    assert np.abs(result.ranks[1:] - (rows > chosen[:, None]).sum(axis=1)).max() <= 1
    assert np.array_equal(result.top_tokens[1:, 0], rows.argmax(axis=1))
    assert np.allclose(result.top_logprobs[1:], -np.sort(-rows, axis=1)[:, :3], atol=1e-3)
    assert result.total == pytest.approx(chosen.sum(), abs=1e-2)
    assert result.perplexity == pytest.approx(np.exp(-chosen.mean()), rel=1e-3)
    assert "".join(result.pieces[1:]).split() == tiny_model.vocab.detokenize(ids[1:]).split()
    assert len(result) == len(ids)


def test_many_texts_are_scored_as_each_alone(tiny_model, ids):
    texts = [ids, ids[:7], np.concatenate((ids[:5], ids[9:20])), ids[:1], "the time"]
    together = logprobs_many(tiny_model, texts, top_k=2, **EXACT)
    for text, result in zip(texts, together, strict=True):
        alone = logprobs(tiny_model, text, top_k=2, **EXACT)
        assert np.allclose(result.logprobs, alone.logprobs, atol=1e-3, equal_nan=True)
        assert np.array_equal(result.top_tokens, alone.top_tokens)
    assert len(together[3].logprobs) == 1
    assert np.isnan(together[3].perplexity) and together[3].total == 0


def test_a_long_text_is_scored_in_windows(tiny_model, ids):
    n_ctx, overlap = 16, 6
    result = logprobs(tiny_model, ids, n_ctx=n_ctx, overlap=overlap, **EXACT)
    whole = logprobs(tiny_model, ids, **EXACT)
    assert not np.isnan(result.logprobs[1:]).any()
    assert np.allclose(result.logprobs[1 : n_ctx + 1], whole.logprobs[1 : n_ctx + 1], atol=1e-3)
    # The second window by hand: BOS in the place of its first token.
    start = n_ctx + 1 - overlap
    window = ids[start : start + n_ctx + 1].copy()
    window[0] = tiny_model.vocab.bos
    by_hand = logprobs(tiny_model, window, **EXACT).logprobs[overlap:]
    assert np.allclose(result.logprobs[n_ctx + 1 : n_ctx + 1 + len(by_hand)], by_hand, atol=1e-3)


def test_a_context_is_used_as_it_is(tiny_model, make_context, ids):
    context = make_context(n_ctx=64, n_seq_max=4, kv_unified=True, type_k="f32", type_v="f32")
    context.decode(Batch.from_arrays(ids[:3]))
    first = score(context, [ids[:5]] * 3, [ids[5:9], ids[5:7], ids[20:22]])
    expected = score(tiny_model, [ids[:5]] * 3, [ids[5:9], ids[5:7], ids[20:22]], **EXACT)
    for one, other in zip(first, expected, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=2e-2)
    assert not context.closed
    one_sequence = make_context(n_ctx=64, n_seq_max=1)
    assert score(one_sequence, [ids[:5]] * 2, [ids[5:9], ids[20:22]])[0].logprob == pytest.approx(
        expected[0].logprob, abs=2e-2
    )
    with pytest.raises(InvalidArgumentError, match="n_threads would do nothing"):
        score(context, [ids[:5]], [ids[5:9]], n_threads=2)


def test_a_llama_keeps_its_own_memory(tiny_model, ids):
    with Llama(tiny_model, n_ctx=128, n_threads=1) as llm:
        llm.context.decode(Batch.from_arrays(ids[:4]))
        score(llm, [ids[:5]], [ids[5:9]])
        assert llm.context.memory.pos_max(0) == 3


def test_tokens_at_the_border_belong_to_the_continuation(tiny_model):
    vocab = tiny_model.vocab
    text = "the more people look at the number, the more they find out about the time"
    whole = vocab.tokenize_array(text)
    prefixes = {cut: common_prefix(vocab.tokenize(text[:cut]), whole) for cut in range(5, len(text) - 5)}
    # Somewhere in the middle of a token.
    cut, first = next((cut, n) for cut, n in prefixes.items() if n < len(vocab.tokenize(text[:cut])))
    found = score(tiny_model, text[:cut], [text[cut:]], **EXACT)[0]
    expected = score(tiny_model, [whole[:first]], [whole[first:]], **EXACT)[0]
    assert found.n_tokens == len(whole) - first
    assert found.logprob == pytest.approx(expected.logprob, abs=1e-3)


def test_empty_continuations_and_prompts(tiny_model, load):
    empty, some = score(tiny_model, "the time", ["", " time"], **EXACT)
    assert (empty.logprob, empty.is_greedy, empty.n_tokens, empty.mean) == (0.0, True, 0, 0.0)
    assert some.n_tokens >= 1
    # The empty prompt is BOS alone, if there is one.
    assert score(tiny_model, "", ["the time"], **EXACT)[0].n_tokens == len(tiny_model.vocab.tokenize("the time")) - 1
    assert score(tiny_model, [], []) == []
    bare = load("llama", vocab="bpe")
    if not bare.vocab.add_bos:
        with pytest.raises(InvalidArgumentError, match="first token of a text has no probability"):
            score(bare, "", ["the time"], **EXACT)


def test_control_tokens_count_if_wanted(tiny_model):
    bos = tiny_model.vocab.text(tiny_model.vocab.bos)
    parsed, plain_text = (
        score(tiny_model, "the", [bos], parse_special=parse_special, **EXACT)[0] for parse_special in (True, False)
    )
    assert parsed.n_tokens == 1 < plain_text.n_tokens


def test_what_does_not_fit_is_refused_with_both_numbers(tiny_model, ids):
    with pytest.raises(InvalidArgumentError, match="have 12 tokens, and n_ctx=8 allows 9"):
        score(tiny_model, [ids[:10]], [ids[10:12]], n_ctx=8)
    with pytest.raises(InvalidArgumentError, match="2 prompts do not go with 1 continuations"):
        score(tiny_model, ["a", "b"], ["c"])
    with pytest.raises(InvalidArgumentError, match="into a list"):
        score(tiny_model, "a", "b")
    with pytest.raises(InvalidArgumentError, match="into a list"):
        logprobs_many(tiny_model, "a")
    with pytest.raises(InvalidArgumentError, match="both be text"):
        score(tiny_model, ["a"], [[1, 2]])
    with pytest.raises(InvalidArgumentError, match="top_k must be from 0 to"):
        logprobs(tiny_model, "the", top_k=10**6)
    with pytest.raises(InvalidArgumentError, match="overlap must be from 1 to n_ctx=8"):
        logprobs(tiny_model, ids, n_ctx=8, overlap=9)
    with pytest.raises(UnknownArgumentError, match="n_threads"):
        logprobs(tiny_model, "the", n_thread=1)
    with pytest.raises(InvalidArgumentError, match="n_seq_max must be at least 1"):
        Scorer(tiny_model, n_seq_max=0)
    with pytest.raises(InvalidArgumentError, match="not str"):
        score("smollm2", "a", ["b"])
    with pytest.raises(ValueError):
        score(tiny_model, [[1]], [[10**6]])


@pytest.mark.parametrize("arch", ["bert", "t5"])
def test_encoders_have_no_next_token(load, arch):
    with pytest.raises(InvalidArgumentError, match="no probabilities of a next token"):
        logprobs(load(arch), "the time")


def test_all_positions_take_no_memory_beside_llama_cpps_own(load):
    model = load("llama", vocab_size=32000, n_ctx_train=1024)
    tokens = np.random.default_rng(0).integers(5, 400, 512).astype(np.int32)
    with Scorer(model, n_ctx=512, n_threads=2) as scorer:
        scorer.logprobs([tokens[:8]], top_k=2)
        tracemalloc.start()
        result = scorer.logprobs([tokens], top_k=2)[0]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert not np.isnan(result.logprobs[1:]).any()
    # All logits would be 65 MB. A few rows' worth is allowed for what is counted along.
    assert peak < 8 * 32000 * 4
