"""Chains that need not look at all logits choose what llama.cpp chooses when it looks at all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm import Batch, Chain, Context, Generation, Model, errors
from pyllm.core.python_sampler import PythonSampler
from pyllm.core.rows import Row, sample_rows
from pyllm.core.sampler import Sampler
from pyllm.core.samplers import Dist, Greedy, LogitBias, MinP, Penalties, Temp, TopK, TopP

INF = float("inf")
# Beyond the blocks of 64 in which logits are looked through, and no multiple of them.
N_VOCAB = 1003

#: Makes the samplers of a chain, new ones each time.
Make = Callable[[], list[Sampler]]


@pytest.fixture(scope="module")
def decoded_once(load: Callable[..., Model]) -> Iterator[Context]:
    """A context with two rows of logits, into which the tests write."""
    with Context(load("llama", vocab_size=N_VOCAB), n_ctx=256, n_threads=1) as context:
        context.decode(Batch.from_arrays([5, 6], outputs="all"))
        yield context


def hidden(make: Make) -> Chain:
    """The same samplers behind one that changes nothing: then it is not known what they keep, and all is looked at."""
    return Chain(Temp(1.0), *make())


def distinct(seed: int, n: int = N_VOCAB) -> np.ndarray:
    """Logits that are all different."""
    return (np.random.default_rng(seed).permutation(n).astype(np.float32) - n / 2) / np.float32(64)


def check(context: Context, make: Make, row: np.ndarray, times: int = 3) -> list[int]:
    """The tokens that are chosen from a row, one after the other, by each way there is; all must be the same."""
    short, by_rows, full, full_by_rows = Chain(*make()), Row(Chain(*make())), hidden(make), Row(hidden(make))
    context.logits[1] = row
    found = []
    for _ in range(times):
        token = short.sample(context)
        assert token == full.sample(context, 1)
        in_rows = None if context.model.vocab.is_eog(token) else token
        assert sample_rows(context, [by_rows, full_by_rows], [1, 1]) == [in_rows, in_rows]
        found.append(token)
    assert np.array_equal(context.logits[1], row, equal_nan=True)  # they are only read
    assert by_rows.tokens == full_by_rows.tokens
    return found


def refused(context: Context, make: Make, row: np.ndarray, words: str) -> None:
    """No token is chosen from a row, by no way there is."""
    context.logits[1] = row
    for chain in (Chain(*make()), hidden(make)):
        with pytest.raises(errors.SamplerError, match=words):
            chain.sample(context)
        one, other = Row(chain), Row(Chain(Greedy()))
        context.logits[0] = 0
        assert sample_rows(context, [one, other], [1, 0]) == [None, 0], "the other row is all right"
        assert isinstance(one.error, errors.SamplerError) and re.search(words, str(one.error))
        assert one.tokens == [] and other.error is None


def greedy() -> list[Sampler]:
    return [Greedy()]


def drawn(k: int, seed: int = 1) -> Make:
    return lambda: [TopK(k), TopP(0.95), MinP(0.01), Temp(0.8), Dist(seed)]


def biased(make: Make, bias: dict[Any, float]) -> Make:
    return lambda: [LogitBias(N_VOCAB, bias), *make()]


# ---- the same choice


@pytest.mark.parametrize("k", [1, 2, 40, 64, 129, 250, 251, N_VOCAB - 1, N_VOCAB, N_VOCAB + 1, 2**31 - 1, 0, -1])
def test_top_k(decoded_once: Context, k: int) -> None:
    for seed in range(3):
        row = distinct(seed)
        chosen = check(decoded_once, drawn(k, seed), row)
        if k > 0:
            assert set(chosen) <= set(np.argsort(-row)[:k].tolist())


def test_greedy(decoded_once: Context) -> None:
    for seed in range(5):
        row = distinct(seed)
        assert check(decoded_once, greedy, row) == [int(row.argmax())] * 3
    assert Greedy().sample(decoded_once) == int(row.argmax())  # in no chain


def test_where_the_largest_stands(decoded_once: Context) -> None:
    row = np.full(N_VOCAB, -2, np.float32)
    for place in [*range(0, 70), 127, 128, 500, *range(N_VOCAB - 70, N_VOCAB)]:
        row[place] = 1
        assert check(decoded_once, greedy, row, 1) == [place]
        row[place] = -2


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_row_with_any_bias(decoded_once: Context, data: st.DataObject) -> None:
    row = distinct(data.draw(st.integers(0, 1000)))
    order = np.argsort(-row)
    # Those with the largest logits, where a bias changes something, and any others.
    ranks = st.one_of(st.integers(0, 12), st.integers(0, N_VOCAB - 1))
    for rank in data.draw(st.sets(ranks, max_size=5)):
        row[order[rank]] = -INF
    values = st.sampled_from([-INF, 0.0, -0.0, 0.003, -0.007, 2.501, -3.333, 31.003, -1000.01])
    bias = {int(order[rank]): value for rank, value in data.draw(st.dictionaries(ranks, values, max_size=70)).items()}
    # Equal ones stand in no order: at most one of them is infinite.
    raised = int(order[data.draw(ranks)])
    if row[raised] > -INF and data.draw(st.booleans()):
        bias[raised] = INF
    moved = row.copy()
    for token, value in bias.items():
        moved[token] += np.float32(value)
    if len(np.unique(moved[moved > -INF])) < np.count_nonzero(moved > -INF):
        bias = {}  # it has made two of them equal
    k = data.draw(st.one_of(st.integers(1, 10), st.integers(1, 300)))
    check(decoded_once, biased(greedy, bias), row, 1)
    check(decoded_once, biased(drawn(k, data.draw(st.integers(0, 99))), bias), row, 2)


@pytest.mark.parametrize("n_biases", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("value", [-INF, -50.001, 50.001, 0.0])
def test_many_biases(decoded_once: Context, n_biases: int, value: float) -> None:
    for seed in range(3):
        row = distinct(seed)
        order = np.argsort(-row)
        for tokens in (order[:n_biases], order[-n_biases:], order[3 : 3 + n_biases], order[:: -(N_VOCAB // n_biases)]):
            bias = {int(token): value for token in tokens}
            moved = row.copy()
            moved[tokens] += np.float32(value)
            assert check(decoded_once, biased(greedy, bias), row, 1) == [int(moved.argmax())]
            check(decoded_once, biased(drawn(40, seed), bias), row)


def test_an_infinite_bias_wins_and_loses(decoded_once: Context) -> None:
    row = distinct(1)
    best, second, last = (int(i) for i in np.argsort(-row)[[0, 1, -1]])
    for make in (greedy, drawn(1)):
        assert check(decoded_once, biased(make, {last: INF}), row, 1) == [last]
        assert check(decoded_once, biased(make, {best: -INF}), row, 1) == [second]
        assert check(decoded_once, biased(make, {best: -INF, last: 0.0}), row, 1) == [second]
    assert check(decoded_once, biased(greedy, {last: INF, best: INF}), row, 1) == [best]
    assert check(decoded_once, biased(greedy, {last: INF, best: -INF}), row, 1) == [last]


@pytest.mark.parametrize("at", [INF, -INF, np.nan])
@pytest.mark.parametrize("value", [INF, -INF, 1.0])
def test_a_bias_on_what_is_no_number(decoded_once: Context, at: float, value: float) -> None:
    for token in (3, 500, N_VOCAB - 1):
        row = distinct(2)
        row[token] = at
        for make in (biased(greedy, {token: value}), biased(drawn(5), {token: value})):
            if np.isnan(at):
                refused(decoded_once, make, row, f"NaN for 1 of {N_VOCAB} tokens, the first is token {token}")
            elif at == -value:  # it is forced and forbidden
                refused(decoded_once, make, row, "no token left")
            else:
                found = check(decoded_once, make, row, 1)
                assert (found == [token]) == (INF in (at, value))


def test_almost_nothing_is_allowed(decoded_once: Context) -> None:
    for n_allowed in (1, 2, 3, 5):
        row = np.full(N_VOCAB, -INF, np.float32)
        allowed = [700, 3, 64, 1002, 127][:n_allowed]
        row[allowed] = np.arange(n_allowed)
        assert check(decoded_once, greedy, row) == [allowed[-1]] * 3
        assert check(decoded_once, biased(greedy, {allowed[-1]: 0.5, 10: 99.0}), row, 1) == [allowed[-1]]
        for k in (1, n_allowed):
            assert set(check(decoded_once, drawn(k), row)) <= set(allowed)
        # More are kept than are allowed: those at -inf have no probability.
        assert {Chain(*drawn(40, seed)()).sample(decoded_once) for seed in range(20)} <= set(allowed)
        assert set(check(decoded_once, biased(drawn(n_allowed + 1), {5: 3.0}), row)) <= set(allowed)
    for make in (greedy, drawn(1), drawn(40), biased(greedy, {5: 1.0}), biased(drawn(40), {5: INF})):
        refused(decoded_once, make, np.full(N_VOCAB, -INF, np.float32), "index 1|output -1.*-inf for all tokens")


def test_of_equal_logits_greedy_takes_the_lowest_id(decoded_once: Context) -> None:
    row = np.zeros(N_VOCAB, np.float32)
    assert check(decoded_once, greedy, row) == [0] * 3
    row[[900, 130, 64, 77]] = 5
    assert check(decoded_once, greedy, row) == [64] * 3
    assert check(decoded_once, biased(greedy, {64: -0.5, 800: 5.0}), row) == [77] * 3
    assert check(decoded_once, biased(greedy, {64: -INF, 7: 5.0}), row) == [7] * 3
    # Which of them top-k keeps is not defined; that it is one of them is.
    for seed in range(10):
        assert Chain(*drawn(2, seed)()).sample(decoded_once) in (900, 130, 64, 77)


@pytest.mark.parametrize("places", [[0], [5, 64, 1002], range(N_VOCAB)])
def test_nan_is_refused(decoded_once: Context, places: Any) -> None:
    row = distinct(1)
    row[list(places)] = np.nan
    for make in (greedy, drawn(1), drawn(40), biased(greedy, {5: 1.0, 6: -INF}), biased(drawn(200), {5: INF})):
        refused(decoded_once, make, row, f"NaN for {len(places)} of {N_VOCAB} tokens, the first is token {places[0]}")


def test_what_comes_behind_sees_what_top_k_keeps(decoded_once: Context) -> None:
    row = distinct(4)
    row[np.argsort(-row)[2]] = -INF
    seen: list[dict[int, float]] = []

    def look(candidates: Any) -> None:
        seen.append(dict(zip(candidates["id"].tolist(), candidates["logit"].tolist(), strict=True)))

    bias = {int(np.argsort(-row)[0]): -INF, 9: 99.0, 10: 0.0}
    check(decoded_once, lambda: [LogitBias(N_VOCAB, bias), TopK(7), PythonSampler(look), Dist(1)], row, 1)
    assert len(seen) == 4 and all(each == seen[0] for each in seen) and len(seen[0]) == 7
    moved = row.copy()
    for token, value in bias.items():
        moved[token] += np.float32(value)
    assert seen[0] == {int(i): float(moved[i]) for i in np.argsort(-moved)[:7]}


def test_penalties_before_top_k_see_everything(decoded_once: Context) -> None:
    row = distinct(3)
    best = [int(i) for i in np.argsort(-row)[:6]]

    def penalties() -> Sampler:
        return Penalties(8, freq=0, present=100.0)

    makes: list[Make] = [
        lambda: [penalties(), TopK(1), Greedy()],
        lambda: [LogitBias(N_VOCAB, {best[0]: 0.01}), penalties(), Greedy()],
    ]
    for make in makes:
        assert check(decoded_once, make, row, 6) == best


def test_a_second_bias_is_no_limit(decoded_once: Context) -> None:
    row = distinct(3)
    last = int(row.argmin())
    assert check(decoded_once, biased(biased(greedy, {last: INF}), {7: 1.0}), row, 1) == [last]
    assert check(decoded_once, biased(biased(greedy, {last: INF}), {}), row, 1) == [last]
    refused(decoded_once, lambda: [TopK(3), LogitBias(N_VOCAB, {last: INF}), Dist(1)], row, "have dropped")


def test_tokens_of_a_bias_that_are_no_int(decoded_once: Context) -> None:
    class Token:
        def __init__(self, number: int) -> None:
            self.number = number

        def __index__(self) -> int:
            return self.number

    row = distinct(5)
    best, last = int(row.argmax()), int(row.argmin())
    for kind in (np.int32, np.uint16, Token):
        assert check(decoded_once, biased(greedy, {kind(best): -INF, kind(last): INF}), row, 1) == [last]
    # Twice the same: llama.cpp adds both.
    twice = {Token(best): -9.001, Token(last): 8.0, Token(best + 1): 0.0, Token(last): 8.0}
    assert len(twice) == 4
    check(decoded_once, biased(greedy, twice), row, 1)
    check(decoded_once, biased(drawn(3), twice), row, 3)


# ---- a chain that changes


def test_members_that_come_and_go(decoded_once: Context) -> None:
    row = distinct(6)
    order = [int(i) for i in np.argsort(-row)]
    decoded_once.logits[1] = row
    chain = Chain(Greedy())
    assert chain.sample(decoded_once) == order[0]
    member = chain.remove(0)
    with pytest.raises(errors.SamplerError, match="never selects"):
        chain.sample(decoded_once)
    chain.add(LogitBias(N_VOCAB, {order[0]: -INF})).add(member)
    assert chain.sample(decoded_once) == order[1]
    chain.remove(0)
    assert chain.sample(decoded_once) == order[0]
    chain.remove(0)
    chain.add(TopK(1)).add(Dist(1))
    assert chain.sample(decoded_once) == order[0]
    chain.remove(0)
    # Now all of them can be drawn.
    assert {chain.sample(decoded_once) for _ in range(100)} - set(order[:3])
    full = Chain(*drawn(500, 4)()[1:])
    chain = Chain(TopK(1), *drawn(500, 4)()[1:])
    chain.remove(0)
    chain.reset()
    full.reset()
    assert [chain.sample(decoded_once) for _ in range(5)] == [full.sample(decoded_once) for _ in range(5)]


def test_a_longer_bias_in_place_of_a_short_one(decoded_once: Context) -> None:
    row = distinct(6)
    decoded_once.logits[1] = row
    order = [int(i) for i in np.argsort(-row)]
    chain = Chain(LogitBias(N_VOCAB, {order[0]: -INF}), Greedy())
    assert chain.sample(decoded_once) == order[1]
    last = chain.remove(1)
    chain.remove(0)
    chain.add(LogitBias(N_VOCAB, dict.fromkeys(order[:80], -INF))).add(last)
    assert chain.sample(decoded_once) == order[80]


def test_a_clone(decoded_once: Context) -> None:
    row = distinct(7)
    decoded_once.logits[1] = row
    order = [int(i) for i in np.argsort(-row)]
    make = biased(drawn(9, 5), {order[0]: -INF, order[500]: 99.0})
    chain, full = Chain(*make()), hidden(make)
    for sampled_before in range(3):
        copy, full_copy = chain.clone(), full.clone()
        chain.close()
        found = [copy.sample(decoded_once) for _ in range(4)]
        assert found == [full_copy.sample(decoded_once) for _ in range(4)], sampled_before
        chain, full = copy, full_copy
    copy = Chain(Greedy()).clone()
    copy.remove(0)
    copy.add(LogitBias(N_VOCAB, {3: INF})).add(Greedy())
    assert copy.sample(decoded_once) == 3


def test_closing(decoded_once: Context) -> None:
    chain = Chain(LogitBias(N_VOCAB, {3: INF}), Greedy())
    member = chain[1]
    assert chain.sample(decoded_once) == 3
    chain.close()
    for closed in (chain, member):
        with pytest.raises(errors.ClosedError):
            closed.sample(decoded_once)
    greedy = Greedy()
    greedy.sample(decoded_once)
    greedy.close()
    with pytest.raises(errors.ClosedError):
        greedy.sample(decoded_once)


def test_a_member_by_itself(decoded_once: Context) -> None:
    row = distinct(8)
    decoded_once.logits[1] = row
    best, second = (int(i) for i in np.argsort(-row)[:2])
    chain = Chain(LogitBias(N_VOCAB, {best: -INF}), Greedy())
    assert (chain.sample(decoded_once), chain[1].sample(decoded_once)) == (second, best)
    with pytest.raises(errors.SamplerError, match="never selects"):
        chain[0].sample(decoded_once)
    with pytest.raises(errors.SamplerError, match="never selects"):
        TopK(3).sample(decoded_once)


def test_a_subclass(decoded_once: Context) -> None:
    class Forbidden(LogitBias):
        def __init__(self, *tokens: int) -> None:
            super().__init__(N_VOCAB, dict.fromkeys(tokens, -INF))

    class Few(TopK):
        def __init__(self) -> None:
            super().__init__(3)

    class Mine(Chain):
        pass

    row = distinct(9)
    order = [int(i) for i in np.argsort(-row)]
    make: Make = lambda: [Forbidden(*order[:4]), Few(), Temp(100.0), Dist(1)]  # noqa: E731
    assert set(check(decoded_once, make, row, 40)) == set(order[4:7])
    mine = Mine(*make())
    assert {mine.clone().sample(decoded_once), mine.sample(decoded_once)} <= set(order[4:7])


def test_chains_in_chains(decoded_once: Context) -> None:
    row = distinct(10)
    order = [int(i) for i in np.argsort(-row)]
    makes: list[Make] = [
        lambda: [Chain(LogitBias(N_VOCAB, {order[0]: -INF})), TopK(3), Dist(2)],
        lambda: [Chain(LogitBias(N_VOCAB, {order[0]: -INF}), TopK(3)), Dist(2)],
        lambda: [LogitBias(N_VOCAB, {order[0]: -INF}), Chain(TopK(3), Chain(Dist(2)))],
        lambda: [Chain(), LogitBias(N_VOCAB, {order[0]: -INF}), TopK(3), Dist(2)],
    ]
    found = [check(decoded_once, make, row, 6) for make in makes]
    assert all(each == found[0] for each in found) and set(found[0]) == set(order[1:4])
    # What is added to the inner one counts, from the outside and by itself.
    inner = Chain(Greedy())
    outer = Chain(inner)
    assert (outer.sample(decoded_once), inner.sample(decoded_once)) == (order[0], order[0])
    last = inner.remove(0)
    inner.add(LogitBias(N_VOCAB, {order[-1]: INF})).add(last)
    assert (outer.sample(decoded_once), inner.sample(decoded_once)) == (order[-1], order[-1])
    del inner, last
    assert outer[0].sample(decoded_once) == order[-1]


def test_a_bias_for_a_larger_vocabulary(decoded_once: Context) -> None:
    row = distinct(11)
    decoded_once.logits[1] = row
    best = int(row.argmax())
    chain = Chain(LogitBias(9 * N_VOCAB, {best: -INF, 8 * N_VOCAB: 5.0}), Greedy())
    assert chain.sample(decoded_once) == np.argsort(-row)[1]


# ---- through generations


@pytest.mark.parametrize("k", [1, 5, 40])
def test_a_generation(make_context: Callable[..., Context], tiny_model: Model, k: int) -> None:
    ends = dict.fromkeys(tiny_model.vocab.eog_tokens, -INF)
    bias = ends | {300: 2.0}
    texts = []
    for front in ([], [Temp(1.0)]):
        chain = Chain(*front, LogitBias(tiny_model.n_vocab, bias), *drawn(k, 3)())
        generation = Generation(make_context(n_ctx=128), chain)
        generation.prefill([5, 6, 7])
        assert generation.step() is not None
        generation.run(30)
        generation.decode_next()
        generation.context.logits[generation.row] += np.float32(0.5)
        generation.run(10)
        texts.append(generation.tokens)
    assert texts[0] == texts[1] and len(texts[0]) == 41


def test_no_logits(make_context: Callable[..., Context]) -> None:
    context = make_context()
    with pytest.raises(errors.NoOutputError):
        Greedy().sample(context)
    context.decode(Batch.from_arrays([5, 6]))
    with pytest.raises(errors.NoOutputError):
        Chain(TopK(3), Dist(1)).sample(context, 0)
