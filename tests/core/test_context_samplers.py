"""Samplers that run inside the graph of a context."""

import gc

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Dist, Greedy, MirostatV2, Penalties, Temp, TopK


@pytest.fixture
def plain(make_context, ids):
    """Logits of the last token, sampled by nobody."""
    context = make_context()
    context.decode(Batch.from_arrays(ids))
    return context.logits[-1].copy()


def softmax(values):
    values = np.exp(values.astype(np.float64) - values.max())
    return values / values.sum()


def test_greedy_is_argmax(make_context, ids, plain):
    context = make_context(samplers={0: Chain(Greedy())})
    context.decode(Batch.from_arrays(ids))
    assert context.sampled.token() == plain.argmax()
    assert context.sampled.token(len(ids) - 1) == plain.argmax()
    assert context.sampled.sample() == plain.argmax()


def test_top_k(make_context, ids, plain):
    context = make_context()
    context.set_sampler(0, Chain(TopK(8), Temp(0.7), Dist(seed=3)))
    context.decode(Batch.from_arrays(ids))
    sampled = context.sampled
    candidates, probs = sampled.candidates(), sampled.probs()
    order = np.argsort(-plain)[:8]
    assert sorted(candidates) == sorted(order)
    assert probs.sum() == pytest.approx(1, abs=1e-5)
    expected = dict(zip(order, softmax(plain[order] / np.float32(0.7)), strict=True))
    for token, p in zip(candidates, probs, strict=True):
        assert p == pytest.approx(expected[token], abs=1e-4)
    assert sampled.token() in candidates
    assert sampled.sample() == sampled.token()
    logits = sampled.logits()
    assert logits is not None and logits.shape == (8,)


def test_each_sequence_has_its_own(make_context, ids):
    chains = {0: Chain(Greedy()), 1: Chain(TopK(5), Dist(seed=1))}
    context = make_context(n_seq_max=3, samplers=chains)
    plain = make_context(n_seq_max=3)
    batch = Batch.from_arrays(ids[:3], pos=[0, 0, 0], seq_ids=[0, 1, 2], outputs="all")
    for each in (context, plain):
        each.decode(batch)
    top = np.argsort(-plain.logits[1])[:5]
    assert context.sampled.token(0) == plain.logits[0].argmax()
    assert context.sampled.token(1) in top and sorted(context.sampled.candidates(1)) == sorted(top)
    # The third has none: its logits are there as ever.
    assert context.sampled.token(2) is None
    assert np.allclose(context.logits_ith(2), plain.logits_ith(2), atol=1e-5)
    assert context.sampled.sample(1, seq_id=1) == context.sampled.token(1)
    with pytest.raises(errors.SamplerError, match="sequence 2"):
        context.sampled.sample(2, seq_id=2)


def test_the_rest_of_a_chain_runs_on_the_host(make_context, ids):
    context = make_context(samplers={0: Chain(TopK(4), MirostatV2(seed=2))})
    context.decode(Batch.from_arrays(ids))
    assert context.sampled.token() is None
    assert context.sampled.sample() in context.sampled.candidates()
    none = make_context(samplers={0: Chain(MirostatV2(seed=2))})
    none.decode(Batch.from_arrays(ids))
    assert 0 <= none.sampled.sample() < none.n_vocab


def test_a_generation_step_by_step_is_that_of_the_host(make_context, ids):
    host = make_context()

    def chain():
        return Chain(Penalties(host.n_vocab, last_n=16, repeat=1.5), Greedy())

    device = make_context(samplers={0: chain()})
    sampler, expected, found = chain(), [], []
    tokens = ids
    for _ in range(6):
        host.decode(Batch.from_arrays(tokens))
        expected.append(sampler.sample(host))
        tokens = expected[-1:]
    tokens = ids
    for _ in range(6):
        device.decode(Batch.from_arrays(tokens))
        found.append(device.sampled.sample())
        tokens = found[-1:]
    assert found == expected


def test_the_given_chain_stays_the_callers(make_context, ids):
    chain = Chain(TopK(4), Dist(seed=5))
    context = make_context(samplers={0: chain})
    chain.close()
    del chain
    gc.collect()
    for _ in range(2):
        context.decode(Batch.from_arrays(ids[:4]))
        assert context.sampled.token() in context.sampled.candidates()


def test_logits_that_were_not_fetched_are_not_shown(make_context, ids, plain):
    context = make_context()
    context.set_sampler(0, Chain(Greedy()))
    context.decode(Batch.from_arrays(ids))
    with pytest.raises(errors.NoOutputError, match="set_sampler"):
        _ = context.logits
    with pytest.raises(errors.NoOutputError):
        context.logits_ith(-1)
    sampled = context.sampled
    context.set_sampler(0, None)
    with pytest.raises(errors.StaleLogitsError):
        sampled.token()
    context.memory.clear()
    context.decode(Batch.from_arrays(ids))
    assert np.allclose(context.logits[-1], plain, atol=1e-5)
    with pytest.raises(errors.NoOutputError, match="no sequence has a sampler"):
        _ = context.sampled


def test_views_keep_the_buffer_where_it_is(make_context, ids, plain):
    context = make_context()
    context.decode(Batch.from_arrays(ids))
    view = np.asarray(context.logits)
    context.set_sampler(0, Chain(Greedy()))
    with pytest.raises(BufferError):
        context.decode(Batch.from_arrays(ids[:1]))
    assert np.array_equal(view[-1], plain)
    del view
    context.decode(Batch.from_arrays(ids[:1]))
    assert context.sampled.token() is not None


def test_what_is_refused(make_context, ids):
    context = make_context()
    with pytest.raises(errors.InvalidArgumentError, match="n_seq_max=1"):
        context.set_sampler(1, Chain(Greedy()))
    with pytest.raises(errors.InvalidArgumentError):
        context.set_sampler(-1, None)
    with pytest.raises(errors.SamplerError, match="empty"):
        context.set_sampler(0, Chain())
    with pytest.raises(errors.SamplerError, match="Chain"):
        context.set_sampler(0, Greedy())
    context.set_sampler(0, None)
    context.set_sampler(0, Chain(Greedy()))
    with pytest.raises(errors.NoOutputError):
        _ = context.sampled
    context.decode(Batch.from_arrays(ids))
    for wild in (-5, 1000, 0):
        with pytest.raises(errors.NoOutputError):
            context.sampled.token(wild)
        with pytest.raises(errors.NoOutputError):
            context.sampled.candidates(wild)
    sampled = context.sampled
    context.close()
    with pytest.raises(errors.ClosedError):
        sampled.token()
    with pytest.raises(errors.ClosedError):
        context.set_sampler(0, None)


def test_more_outputs_than_the_context_allows(make_context, ids):
    context = make_context(n_outputs_max_per_seq=1, samplers={0: Chain(Greedy())})
    with pytest.raises(errors.InvalidBatchError):
        context.decode(Batch.from_arrays(ids[:3], outputs="all"))
    context.decode(Batch.from_arrays(ids[:3]))
    assert context.sampled.token() is not None
