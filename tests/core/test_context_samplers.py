"""Samplers that run inside the graph of a context."""

import gc

import numpy as np
import pytest
from support.numerics import softmax

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.generation import Generation
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Dist, Greedy, LogitBias, MinP, MirostatV2, Penalties, Temp, TopK, TopP, Typical


@pytest.fixture
def plain(make_context, ids):
    """Logits of the last token, sampled by nobody."""
    context = make_context()
    context.decode(Batch.from_arrays(ids))
    return context.logits[-1].copy()


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
    context.decode(Batch.from_arrays(ids[:1]))
    assert np.array_equal(view[-1], plain)
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


CHAINS = {
    "greedy behind top-k": lambda n: Chain(TopK(40), Greedy()),
    "greedy behind top-p": lambda n: Chain(TopP(0.9), Greedy()),
    "greedy behind a temperature of 0": lambda n: Chain(Temp(0.0), Greedy()),
    "bias behind top-k": lambda n: Chain(TopK(3), LogitBias(n, {n - 1: -5.0, n - 2: 5.0}), Greedy()),
    "a larger top-k behind a smaller one": lambda n: Chain(TopK(3), TopK(40), Greedy()),
    "top-k of more than there are": lambda n: Chain(Chain(TopK(n + 1)), Greedy()),
    "typical behind top-p": lambda n: Chain(TopP(0.9), Typical(0.5), TopK(1), Dist(seed=1)),
    "typical behind min-p": lambda n: Chain(MinP(0.05), Typical(0.5), TopK(1), Dist(seed=1)),
    "a chain in a chain": lambda n: Chain(Chain(TopK(3), Typical(0.5)), Greedy()),
}


@pytest.mark.parametrize("name", CHAINS)
def test_every_order_gives_what_the_host_gives(make_context, ids, name):
    host = make_context()
    sampler = CHAINS[name](host.n_vocab)
    device = make_context(samplers={0: CHAINS[name](host.n_vocab)})
    tokens = ids
    for _ in range(5):
        host.decode(Batch.from_arrays(tokens))
        device.decode(Batch.from_arrays(tokens))
        tokens = [sampler.sample(host)]
        assert device.sampled.sample() == tokens[0]


def test_another_sampler_is_not_ignored(make_context, ids, plain):
    context = make_context(samplers={0: Chain(Greedy())})
    other = Chain(LogitBias(context.n_vocab, {int(plain.argmax()): -1e9}), Greedy())
    generation = Generation(context, other)
    generation.prefill(ids)
    with pytest.raises(errors.SamplerError, match=r"set_sampler\(0, None\)"):
        generation.step()
    with pytest.raises(errors.SamplerError, match=r"ctx\.sampled"):
        other.sample(context)
    assert context.sampled.sample() == plain.argmax()
    context.set_sampler(0, None)
    assert generation.step() != plain.argmax()


def test_attaching_moves_no_memory(make_context, ids):
    context = make_context()
    context.decode(Batch.from_arrays(ids))
    view = np.asarray(context.logits)
    before = view.copy()
    context.set_sampler(0, Chain(Greedy()))
    context.set_sampler(0, None)  # was refused while the view was there
    context.decode(Batch.from_arrays(ids[:1]))
    assert view.shape == before.shape


def test_loading_a_state_beside_a_view(make_context, ids):
    context = make_context()
    context.decode(Batch.from_arrays(ids))
    saved = context.state.save()
    view = np.asarray(context.logits)
    context.set_sampler(0, Chain(Greedy()))
    context.state.load(saved)
    assert view.size


def test_views_on_the_outputs_of_t5(load, make_context):
    context = make_context(load("t5"), n_batch=64, n_ubatch=64)
    context.encode(Batch.from_arrays([5]))
    context.set_sampler(0, Chain(TopK(3), Dist(seed=1)))
    context.decode(Batch.from_arrays([5]))
    context.set_sampler(0, None)
    context.memory.clear()
    context.decode(Batch.from_arrays([5]))
    outputs = context.logits
    address, view = outputs.address, np.asarray(outputs)
    for n in range(2, 40):
        kept = view.copy()
        context.memory.clear()
        context.decode(Batch.from_arrays(np.full(n, 5), outputs="all"))
        if context.logits.address != address:
            break
    assert n < 39 and np.array_equal(view, kept)
