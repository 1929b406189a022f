"""Chains of samplers: order, members, ownership, closing; and sampling from a context."""

import gc
import threading

import numpy as np
import pytest
from support.numerics import softmax

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.python_sampler import PythonSampler
from pyllm.core.sampler import Chain
from pyllm.core.samplers import (
    DRY,
    XTC,
    AdaptiveP,
    Dist,
    Grammar,
    Greedy,
    LogitBias,
    MinP,
    Mirostat,
    MirostatV2,
    Penalties,
    Temp,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)


def logits(seed: int = 0, n: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, n).astype(np.float32)


# Order


def test_members_are_applied_in_order():
    x = logits()
    ids, values, _, _ = Chain(TopK(5), Temp(2.0)).apply(x)
    assert np.array_equal(ids, np.argsort(-x)[:5]) and np.allclose(values, x[ids] / 2)
    best, second = np.argsort(-x)[:2]
    # A bias of -inf before TopK(1) leaves the second, after it nothing but the first at -inf.
    before = Chain(LogitBias(100, {int(best): -np.inf}), TopK(1)).apply(x)
    after = Chain(TopK(1), LogitBias(100, {int(best): -np.inf})).apply(x)
    assert before[0].tolist() == [second] and after[0].tolist() == [best] and after[1].tolist() == [-np.inf]


def test_a_chain_does_what_its_members_do_one_after_the_other():
    x = logits(1)
    ids, values, _, _ = TopP(0.7).apply(x)
    p = softmax(values)
    counts = np.zeros(100)
    chain = Chain(TopP(0.7), Dist(seed=3))
    for _ in range(5000):
        counts[chain.apply(x)[3]] += 1
    expected = np.zeros(100)
    expected[ids] = 5000 * p
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected) + 1e-9).all()


def test_an_empty_chain_changes_nothing():
    x = logits()
    ids, values, _, selected = Chain().apply(x)
    assert np.array_equal(values, x) and np.array_equal(ids, np.arange(100)) and selected is None
    assert len(Chain()) == 0 and list(Chain()) == []


def test_a_chain_without_a_selecting_member_says_so(decoded):
    for chain in (Chain(), Chain(TopK(5)), TopK(5)):
        with pytest.raises(errors.SamplerError, match=r"Greedy\(\)"):
            chain.sample(decoded)
    assert Chain(Greedy()).sample(decoded) == decoded.logits[-1].argmax()


# Members


def test_members_by_index():
    first, second, third = TopK(5), Temp(0.5), Dist(1)
    chain = Chain(first, second)
    assert chain.add(third) is chain
    assert len(chain) == 3 and list(chain) == [first, second, third]
    assert chain[0] is first and chain[-1] is third and chain[2] is third
    for i in (3, -4, 10**6, -(2**31)):
        with pytest.raises(IndexError, match="3 samplers"):
            chain[i]
    assert repr(chain) == "Chain(TopK(k=5), Temp(t=0.5), Dist(seed=1))"


def test_a_member_whose_object_is_gone_is_still_there():
    chain = Chain(TopK(5), Dist(1))
    gc.collect()
    assert [member.name for member in chain] == ["top-k", "dist"] and chain[1].seed == 1
    assert np.array_equal(chain[0].apply(logits())[0], np.argsort(-logits())[:5])
    assert chain[0].address == chain[0].address


def test_a_member_keeps_its_chain_alive():
    member = Dist(1)
    Chain(TopK(3), member)
    gc.collect()
    assert member.apply(logits())[3] is not None and member.seed == 1
    anonymous = Chain(TopK(3), Dist(2))[1]
    gc.collect()
    assert anonymous.seed == 2


def test_accepting_through_a_member_or_the_chain():
    penalties = Penalties(100, repeat=2.0)
    chain = Chain(penalties, Greedy())
    x = logits()
    best = int(x.argmax())
    chain.accept(best)
    assert penalties.apply(x)[1][best] == x[best] / 2
    chain.reset()
    assert penalties.apply(x)[1][best] == x[best]
    penalties.accept(best)
    chain_logits = chain.apply(x)
    assert chain_logits[1][chain_logits[0] == best][0] == x[best] / 2


def test_a_sampler_belongs_to_one_chain():
    member = TopK(3)
    chain = Chain(member)
    for other in (Chain(), chain):
        with pytest.raises(errors.SamplerError, match=r"clone"):
            other.add(member)
    other = Chain(member.clone())
    assert len(chain) == len(other) == 1
    with pytest.raises(errors.SamplerError):
        Chain(member, Greedy())


def test_remove():
    first, second = TopK(3), Dist(7)
    chain = Chain(first, second)
    removed = chain.remove(0)
    assert removed is first and list(chain) == [second]
    assert removed.apply(logits())[0].shape == (3,)
    Chain(removed)
    assert chain.remove(-1) is second and len(chain) == 0
    with pytest.raises(IndexError):
        chain.remove(0)
    chain.close()
    assert second.seed == 7, "what was removed is no longer the chain's"


def test_removing_what_nobody_holds():
    chain = Chain(TopK(3), Dist(7))
    gc.collect()
    removed = chain.remove(0)
    del chain
    gc.collect()
    assert removed.name == "top-k" and removed.apply(logits())[0].shape == (3,)


# Nested chains


def test_nested_chains():
    x = logits()
    members = TopK(10), Temp(0.5)
    inner = Chain(*members)
    outer = Chain(inner, TopP(0.9), Greedy())
    assert outer.apply(x)[3] == x.argmax() and len(outer[0]) == 2 and outer[0] is inner
    inner.add(LogitBias(100, {int(x.argmax()): -np.inf}))
    assert outer.apply(x)[3] == np.argsort(-x)[1]
    assert "Chain(Chain(TopK(k=10), Temp(t=0.5)," in repr(outer)
    copy = outer.clone()
    assert copy.apply(x)[3] == np.argsort(-x)[1] and len(copy[0]) == 3
    gc.collect()
    assert isinstance(copy[0], Chain) and copy[0][0].name == "top-k"
    outer.close()
    assert inner.closed and copy.apply(x)[3] == np.argsort(-x)[1]


def test_a_chain_cannot_contain_itself():
    chain = Chain(TopK(3))
    with pytest.raises(errors.SamplerError, match="itself"):
        chain.add(chain)
    outer = Chain(chain)
    with pytest.raises(errors.SamplerError, match="itself"):
        chain.add(outer)
    assert len(chain) == len(outer) == 1
    outer.apply(logits())


def test_the_order_of_destruction_does_not_matter():
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        member = Dist(1)
        inner = Chain(TopK(3), member)
        things = [Chain(inner, Greedy()), inner, member]
        del inner, member
        for i in order:
            things[i] = None
            gc.collect()


# Clones


def test_a_clone_of_a_chain_is_independent():
    x = logits()
    chain = Chain(Penalties(100, repeat=1.5), Dist(seed=4))
    for _ in range(5):
        chain.accept(chain.apply(x)[3])
    copy = chain.clone()
    assert type(copy) is Chain and len(copy) == 2 and copy[0].address != chain[0].address

    def go_on(sampler):
        out = []
        for _ in range(20):
            out.append(sampler.apply(x)[3])
            sampler.accept(out[-1])
        return out

    expected = go_on(chain)
    chain.close()
    assert go_on(copy) == expected
    copy.add(Temp(1.0))
    assert len(copy) == 3


def test_a_clone_of_a_member_is_free():
    member = Dist(3)
    chain = Chain(TopK(3), member)
    copy = member.clone()
    chain.close()
    assert member.closed and not copy.closed and copy.seed == 3
    Chain(copy)


# Closing


@pytest.mark.parametrize("make", [lambda: TopK(3), lambda: Chain(TopK(3), Dist(1)), lambda: Chain()])
def test_close_and_everything_after_it(make, decoded):
    sampler = make()
    sampler.close()
    sampler.close()
    assert sampler.closed
    calls = [
        lambda: sampler.apply(logits()),
        lambda: sampler.accept(1),
        sampler.reset,
        sampler.clone,
        lambda: sampler.sample(decoded),
        lambda: sampler.name,
        lambda: sampler.seed,
        lambda: sampler.address,
        lambda: Chain().add(sampler),
    ]
    if isinstance(sampler, Chain):
        calls += [
            lambda: len(sampler),
            lambda: sampler[0],
            lambda: list(sampler),
            lambda: sampler.add(TopK(1)),
            lambda: sampler.remove(0),
            sampler.perf,
            sampler.perf_reset,
        ]
    for call in calls:
        with pytest.raises(errors.ClosedError, match="closed"):
            call()
    assert isinstance(repr(sampler), str)


def test_closing_a_chain_closes_its_members():
    member, chain = TopK(3), Chain()
    chain.add(member)
    member.close()
    assert not member.closed and chain.apply(logits())[0].shape == (3,), "a member is closed with its chain only"
    chain.close()
    assert member.closed
    with pytest.raises(errors.ClosedError):
        member.apply(logits())


def test_with_closes():
    with Chain(Greedy()) as chain:
        chain.apply(logits())
    assert chain.closed


def test_samplers_with_a_vocabulary_hold_its_model(tiny_models, make_model):
    x = logits(n=459)
    model = make_model(tiny_models["llama"])
    grammar = Grammar(model.vocab, 'root ::= "a"')
    chain = Chain(DRY(model.vocab), Chain(Grammar(model.vocab, 'root ::= "b"')), Greedy())
    assert grammar.apply(x)[0].size and chain.apply(x)[3] is not None
    copy = chain.clone()
    member = chain[0]
    model.close()
    for sampler in (grammar, chain, copy, member):
        with pytest.raises(errors.ClosedError):
            sampler.apply(x)
        with pytest.raises(errors.ClosedError):
            sampler.accept(1)
    for sampler in (grammar, chain, copy):
        sampler.close()


def test_samplers_with_a_vocabulary_keep_its_model_alive(tiny_models):
    from pyllm.core.model import Model

    x = logits(n=459)
    chain = Chain(Grammar(Model(tiny_models["llama"]).vocab, 'root ::= "a"'), Greedy())
    gc.collect()
    assert chain.apply(x)[3] is not None


# Sampling from a context


def test_sample_is_apply_and_accept(decoded):
    chain = Chain(Penalties(decoded.n_vocab, repeat=5.0), Greedy())
    row = decoded.logits[-1].copy()
    seen = []
    for _ in range(5):
        token = chain.sample(decoded)
        reference = Chain(Penalties(decoded.n_vocab, repeat=5.0), Greedy())
        for earlier in seen:
            reference.accept(earlier)
        assert token == reference.apply(row)[3]
        seen.append(token)
    assert len(set(seen)) > 1, "what was sampled was accepted"


def test_sample_by_index(make_context, ids):
    context = make_context(n_seq_max=3)
    context.decode(Batch.from_arrays(ids[:3], pos=[0, 0, 0], seq_ids=[0, 1, 2], outputs="all"))
    assert [Greedy().sample(context, i) for i in range(3)] == context.logits.copy().argmax(axis=1).tolist()
    assert Greedy().sample(context, -3) == context.logits[0].argmax()


def test_sampling_by_probability_from_a_context(decoded):
    row = decoded.logits[-1].copy()
    p = softmax(row)
    dist, counts = Dist(5), np.zeros(len(row))
    for _ in range(4000):
        counts[dist.sample(decoded)] += 1
    assert (np.abs(counts - 4000 * p) <= 5 * np.sqrt(4000 * p) + 1).all()


def test_sampling_from_a_closed_context(decoded):
    decoded.close()
    with pytest.raises(errors.ClosedError):
        Greedy().sample(decoded)
    with pytest.raises(TypeError):
        Greedy().sample(None)


def test_perf(decoded):
    chain = Chain(TopK(5), Dist(1), no_perf=False)
    for _ in range(3):
        chain.sample(decoded)
    perf = chain.perf()
    assert perf["n_sample"] == 3 and perf["t_sample_ms"] > 0
    chain.perf_reset()
    assert chain.perf()["n_sample"] == 0
    silent = Chain(Dist(1))
    silent.sample(decoded)
    assert silent.perf()["t_sample_ms"] == 0


def test_threads_on_one_sampler_wait_for_each_other():
    chain, x, wrong = Chain(Penalties(100, last_n=1000, repeat=1.1), Dist(1)), logits(), []

    def work():
        try:
            for _ in range(300):
                chain.accept(chain.apply(x)[3])
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Rows without an answer, and tokens that are forced

CHAINS = {
    "greedy": lambda: Chain(Greedy()),
    "dist": lambda: Chain(Dist(1)),
    "top-k": lambda: Chain(TopK(40), Dist(1)),
    "usual": lambda: Chain(TopK(40), TopP(0.9), MinP(0.05), Temp(0.8), Dist(1)),
    "moved": lambda: Chain(LogitBias(512, {5: 1.0, 300: -np.inf}), TopK(5), Dist(1)),
    "top-p": lambda: Chain(TopP(0.9), Dist(1)),
    "typical": lambda: Chain(Typical(0.9), Temp(0.5), Dist(1)),
    "penalties": lambda: Chain(Penalties(512, repeat=1.1), Greedy()),
    "xtc": lambda: Chain(XTC(0.5, 0.1, seed=1), Dist(1)),
    "sigma": lambda: Chain(TopNSigma(1.0), Dist(1)),
    "mirostat": lambda: Chain(Mirostat(512, 1)),
    "mirostat-v2": lambda: Chain(MirostatV2(1)),
    "adaptive-p": lambda: Chain(MinP(0.01), AdaptiveP(0.5, seed=1)),
    "python": lambda: Chain(PythonSampler(lambda candidates: None), Dist(1)),
    "alone": Greedy,
}


@pytest.fixture(params=CHAINS)
def any_chain(request):
    return CHAINS[request.param]()


def test_a_row_that_forbids_all_tokens_is_an_error(decoded, any_chain):
    decoded.logits[3] = -np.inf
    with pytest.raises(errors.SamplerError, match=r"index 3 of the batch are -inf for all tokens"):
        any_chain.sample(decoded, 3)
    assert 0 <= any_chain.sample(decoded, 4) < decoded.n_vocab, "other rows are all right, and the chain goes on"


@pytest.mark.parametrize("token", [0, 7, -1])
def test_a_row_with_nan_is_an_error(decoded, any_chain, token):
    decoded.logits[-1, token] = np.nan
    n = decoded.n_vocab
    with pytest.raises(errors.SamplerError, match=rf"output -1 of the batch are NaN for 1 of {n} tokens.*{token % n}$"):
        any_chain.sample(decoded)
    decoded.logits[-1] = np.nan
    with pytest.raises(errors.SamplerError, match=f"NaN for {n} of {n} tokens"):
        any_chain.sample(decoded)


@pytest.mark.parametrize("tokens", [[7], [0], [9, 200, 300]])
def test_tokens_at_plus_infinity_are_forced(decoded, any_chain, tokens):
    decoded.logits[3, tokens] = np.inf
    found = {any_chain.sample(decoded, 3) for _ in range(8)}
    assert found <= set(tokens) - ({300} if "300: -inf" in repr(any_chain) else set())


def test_of_several_forced_tokens_all_can_be_chosen(decoded):
    decoded.logits[3, [9, 200, 301]] = np.inf
    chain = Chain(Dist(1))
    assert {chain.sample(decoded, 3) for _ in range(100)} == {9, 200, 301}


def test_a_chain_that_forbids_all_tokens_is_an_error(decoded):
    everything = LogitBias(decoded.n_vocab, dict.fromkeys(range(decoded.n_vocab), -np.inf))
    for last in (Greedy(), Dist(1), Mirostat(decoded.n_vocab, 1)):
        chain = Chain(everything.clone(), last)
        with pytest.raises(errors.SamplerError, match=r"no token left|became NaN"):
            chain.sample(decoded)
    decoded.logits[-1, 5] = np.inf
    with pytest.raises(errors.SamplerError, match="no token left"):
        Chain(LogitBias(decoded.n_vocab, {5: -np.inf}), Dist(1)).sample(decoded)


@pytest.mark.parametrize("others", [[], [TopK(40)], [Temp(0.7)], [TopP(0.9), MinP(0.1)]])
def test_a_bias_of_infinity_forces(decoded, others):
    """It adds nothing: among several the logits decide."""
    n = decoded.n_vocab
    worst, second = (int(token) for token in decoded.logits[-1].argsort()[:2])
    for last in (Greedy(), Dist(1), Mirostat(n, 1), MirostatV2(1)):
        chain = Chain(LogitBias(n, {worst: np.inf, 5: 3.0}), *(each.clone() for each in others), last)
        assert [chain.sample(decoded) for _ in range(3)] == [worst] * 3
        assert chain.clone().sample(decoded) == worst
    assert Chain(LogitBias(n, {worst: np.inf, second: np.inf}), Greedy()).sample(decoded) == second
    assert Chain(LogitBias(n, {worst: np.inf, second: np.inf, 5: np.inf, 6: -np.inf}), Dist(1)).sample(decoded) in (
        *(worst, second, 5),
    )


def test_a_forced_token_that_was_dropped_is_an_error(decoded):
    worst = int(decoded.logits[-1].argmin())
    with pytest.raises(errors.SamplerError, match="other samplers have dropped"):
        Chain(TopK(1), LogitBias(decoded.n_vocab, {worst: np.inf}), Dist(1)).sample(decoded)
    decoded.logits[-1, worst] = -np.inf
    with pytest.raises(errors.SamplerError, match="no token left"):
        Chain(LogitBias(decoded.n_vocab, {worst: np.inf}), Dist(1)).sample(decoded)


def test_a_bias_of_nan_is_refused():
    with pytest.raises(errors.InvalidArgumentError, match=r"bias\[5\]"):
        LogitBias(100, {5: np.nan})


def test_apply_refuses_what_sample_refuses():
    x = logits()
    x[7] = np.nan
    for chain in (Chain(Greedy()), Chain(TopK(5)), Dist(1)):
        with pytest.raises(errors.SamplerError, match="NaN for 1 of 100 tokens"):
            chain.apply(x)
        with pytest.raises(errors.SamplerError, match="-inf for all"):
            chain.apply(np.full(100, -np.inf))
    x[[7, 9]] = np.inf
    ids, values, _, selected = Chain(Dist(1)).apply(x)
    assert ids.tolist() == [7, 9] and selected in (7, 9) and values.tolist() == [0, 0]
    with pytest.raises(errors.SamplerError, match="no token left"):
        Chain(LogitBias(100, dict.fromkeys(range(100), -np.inf)), Greedy()).apply(logits())


def test_a_sampler_in_python_that_writes_infinity_or_nan(decoded):
    def force(candidates):
        candidates["logit"][candidates["id"] == 7] = np.inf

    def spoil(candidates):
        candidates["logit"][candidates["id"] == 7] = np.nan

    def forbid(candidates):
        candidates["logit"] = -np.inf

    for last in (Greedy(), Dist(1), Mirostat(decoded.n_vocab, 1)):
        assert Chain(PythonSampler(force), last.clone()).sample(decoded) == 7
        with pytest.raises(errors.SamplerError, match="logit of token 7 NaN"):
            Chain(PythonSampler(spoil), last.clone()).sample(decoded)
        with pytest.raises(errors.SamplerError, match=r"no token left|became NaN"):
            Chain(PythonSampler(forbid), last.clone()).sample(decoded)
