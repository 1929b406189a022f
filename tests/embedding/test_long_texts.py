"""Texts that are longer than the model, or than a decode."""

from __future__ import annotations

import numpy as np
import pytest
from embedding.conftest import TEXTS
from embedding.test_embed import by_hand, close
from support.llama_internals import embedder_of

from pyllm import Llama, errors
from pyllm.embedding.batches import packs
from pyllm.embedding.windows import parts_of, plan

LONG = "could more people look at the number of the time " * 70


@pytest.fixture(scope="module")
def ids(bert):
    tokens = bert.vocab.tokenize_array(LONG)
    assert len(tokens) > 1000
    return tokens


def test_an_error_by_default_that_names_the_text_and_both_numbers(bert, ids):
    with pytest.raises(errors.InvalidArgumentError, match=rf"text 1 has {len(ids)} tokens, and at most 512 can"):
        bert.embed(["the cat", LONG])
    with pytest.raises(errors.InvalidArgumentError, match=rf"text 2 has {len(ids)} tokens"):
        list(bert.iter_embed(["the cat", "no way", LONG], block_size=2))


def test_truncate_keeps_the_beginning_and_the_end_token(bert, ids):
    kept = np.concatenate((ids[:511], ids[-1:]))
    assert np.array_equal(bert.embed(LONG, overflow="truncate"), bert.embed(kept))
    assert close(bert.embed(TEXTS, overflow="truncate"), bert.embed(TEXTS))


def test_mean_of_windows_weighted_by_their_lengths(bert, ids):
    head, inner, tail = parts_of(ids, bert.vocab)
    assert (len(head), len(tail)) == (1, 1)
    windows = [np.concatenate((head, part, tail)) for part in np.array_split(inner, -(-len(inner) // 510))]
    vectors = bert.embed(windows, normalize=False)
    expected = np.average(vectors, axis=0, weights=[len(window) for window in windows])
    assert len(windows) == 3
    assert close(bert.embed([TEXTS[0], LONG], overflow="mean", normalize=False)[1], expected)
    assert np.isclose(np.linalg.norm(bert.embed(LONG, overflow="mean")), 1)
    assert close(bert.embed(TEXTS, overflow="mean"), bert.embed(TEXTS))


@pytest.mark.parametrize("limit", [3, 4, 7, 50])
def test_windows_hold_every_token_once_in_order(bert, ids, limit):
    windows = plan([ids[:2], ids], bert.vocab, limit, "mean", str)
    assert all(len(window) <= limit for window in windows.windows)
    assert windows.owners == sorted(windows.owners) and windows.owners.count(0) == 1
    inner = [parts_of(window, bert.vocab)[1] for window in windows.windows[1:]]
    assert np.array_equal(np.concatenate(inner), ids[1:-1])
    assert max(map(len, inner)) - min(map(len, inner)) <= 1


def test_no_room_between_the_tokens_of_the_model(bert, ids):
    with pytest.raises(errors.InvalidArgumentError, match=r"at most 2 tokens .* and 2 of them are put around"):
        plan([ids], bert.vocab, 2, "mean", str)


def test_n_ctx_of_the_llama_is_the_limit(llama):
    small = llama("bert", n_ctx=40)
    with pytest.raises(errors.InvalidArgumentError, match="at most 40 can"):
        small.embed("time " * 50)
    assert np.array_equal(small.embed("time " * 50, overflow="truncate"), small.embed("time " * 38))
    # Learned positions end where they end.
    with pytest.raises(errors.InvalidArgumentError, match="at most 512 can"):
        llama("bert", n_ctx=2048).embed(LONG)
    assert llama("llama", n_ctx=2048).embed(LONG[:1900]).shape == (64,)


@pytest.mark.parametrize("pooling", ["mean", "last", "none"])
@pytest.mark.parametrize(("kind", "n_batch"), [("llama", 16), ("jamba", 16), ("bert", 16), ("llama", None)])
def test_longer_than_a_decode_is_never_cut(llama, kind, n_batch, pooling):
    """The length of a decode is no limit: of a text of 300 tokens every token counts, also with n_batch=16."""
    llm = llama(kind, {"n_ctx_train": 1024}, n_batch=n_batch)
    text = "look at the number of the time, " * 40
    assert len(llm.tokenize(text)) > 300
    texts = ["no way", text, *TEXTS, text + "no"]
    vectors = llm.embed(texts, pooling=pooling, normalize=False)
    for i in (0, 1, len(texts) - 1):
        assert close(vectors[i], by_hand(llm.model, texts[i], pooling, 1024))
    assert not np.allclose(vectors[1][-1], vectors[-1][-1])


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_text_longer_than_512_tokens(llama, kind):
    llm = llama(kind, {"n_ctx_train": 2048})
    text = LONG[:1500] if kind == "llama" else LONG
    assert 512 < len(llm.tokenize(text)) < 2048
    for pooling in ("mean", "last"):
        assert close(llm.embed(text, pooling=pooling, normalize=False), by_hand(llm.model, text, pooling, 2048))


@pytest.mark.parametrize("n", [1, 2, 63, 65, 100, 255, 257, 300])
@pytest.mark.parametrize("pooling", ["mean", "last", "none"])
def test_every_size_will_do(tiny_models, pooling, n):
    for kind, sizes in (("llama", {"n_batch": n}), ("llama", {"n_ctx": n}), ("bert", {"n_batch": n})):
        with Llama(tiny_models[kind], n_threads=1, **sizes) as llm:
            ids = llm.tokenize("look at the number " * 100)[: min(n, 300)]
            assert len(llm.embed([ids, ids[:1]], pooling=pooling)) == 2
            if "n_batch" in sizes:
                ids = llm.tokenize("look at the number " * 100)[:400]
                assert len(llm.embed([ids, ids[:1]], pooling=pooling)) == 2


def test_large_vocabularies_are_computed_in_smaller_portions(llama, monkeypatch):
    """llama.cpp keeps room for the logits of every token of a decode, where it makes outputs of all."""
    monkeypatch.setattr("pyllm.embedding.embedder._LOGITS_BYTES", 4 * 1000 * 100)
    llm = llama("llama", {"vocab_size": 1000}, n_ctx=500)
    text = "look at the number " * 20
    for pooling, size in (("mean", 100), ("none", 100), ("last", 500)):
        vectors = llm.embed([text, "no way"], pooling=pooling, normalize=False)
        embedder = embedder_of(llm)
        assert embedder.n_batch(embedder.pooling(pooling)) == size
        assert close(vectors[0], by_hand(llm.model, text, pooling))


def test_packs_hold_every_text_once_in_order():
    random = np.random.default_rng(0)
    for n_tokens, n_seq in ((10, 3), (100, 1), (1, 64), (64, 64)):
        lengths = random.integers(1, 40, 50).tolist()
        found = list(packs(lengths, n_tokens=n_tokens, n_seq=n_seq))
        assert [i for pack in found for i in pack] == list(range(50))
        for pack in found:
            assert len(pack) <= n_seq
            assert len(pack) == 1 or sum(lengths[i] for i in pack) <= n_tokens
    assert list(packs([], n_tokens=1, n_seq=1)) == []
