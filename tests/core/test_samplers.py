"""Every sampler against what it should do, computed in NumPy."""

import inspect

import numpy as np
import pytest
from support.numerics import softmax

from pyllm import errors
from pyllm.core import samplers
from pyllm.core.sampler import Chain, Sampler
from pyllm.core.samplers import (
    DRY,
    XTC,
    AdaptiveP,
    Dist,
    Grammar,
    Greedy,
    Infill,
    LogitBias,
    MinP,
    Mirostat,
    MirostatV2,
    Penalties,
    Temp,
    TempExt,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)

N = 200


def logits(seed: int = 0, n: int = N, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, n).astype(np.float32)


def entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def left(sampler: Sampler, x: np.ndarray) -> dict[int, float]:
    """Candidates that are left, with their logits; those at -inf are not."""
    ids, values, _, _ = sampler.apply(x)
    assert len(set(ids.tolist())) == len(ids)
    return {int(i): float(v) for i, v in zip(ids, values, strict=True) if v != -np.inf}


def as_given(x: np.ndarray) -> dict[int, float]:
    return dict(enumerate(x.tolist()))


def top(x: np.ndarray, k: int) -> set[int]:
    return set(np.argsort(-x, kind="stable")[:k].tolist())


# Those that select


def test_greedy_selects_the_largest():
    for seed in range(20):
        x = logits(seed)
        ids, values, _, selected = Greedy().apply(x)
        assert selected == x.argmax() and len(ids) == N and np.array_equal(np.sort(values), np.sort(x))


def draws(sampler: Sampler, x: np.ndarray, n: int) -> np.ndarray:
    """How often each token was selected."""
    counts = np.zeros(len(x))
    for _ in range(n):
        counts[sampler.apply(x)[3]] += 1
    return counts


def assert_distribution(counts: np.ndarray, p: np.ndarray) -> None:
    """The counts are within five standard deviations of what p lets expect."""
    n = counts.sum()
    assert (np.abs(counts - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 1e-9).all()


def test_dist_selects_by_probability():
    x = np.array([2.0, 1.0, 0.0, -1.0, -np.inf], np.float32)
    assert_distribution(draws(Dist(seed=1), x, 20_000), softmax(x))
    ids, _, p, selected = Dist(seed=1).apply(x)
    np.testing.assert_allclose(p[np.argsort(ids)], softmax(x), atol=1e-6)
    assert selected in ids


def test_mirostat_v2_keeps_what_is_no_more_surprising_than_mu():
    x = logits(3)
    p = softmax(x)
    tau = 2.0
    sampler = MirostatV2(seed=1, tau=tau, eta=0.0)  # without learning mu stays at 2 tau
    allowed = -np.log2(p) <= 2 * tau
    assert 1 < allowed.sum() < N
    assert set(left(sampler, x)) == set(np.flatnonzero(allowed).tolist())
    assert_distribution(draws(sampler, x, 5000), np.where(allowed, p, 0) / p[allowed].sum())


def test_mirostat_v2_learns():
    """After a token of surprise s, mu becomes mu - eta (s - tau)."""
    x, tau, eta = logits(3), 2.0, 0.7
    sampler, mu = MirostatV2(seed=5, tau=tau, eta=eta), 2 * tau
    for _ in range(30):
        p = softmax(x)
        allowed = -np.log2(p) <= mu
        ids, _, _, selected = sampler.apply(x)
        expected = set(np.flatnonzero(allowed).tolist()) or {int(x.argmax())}
        assert set(ids.tolist()) == expected
        kept = p[sorted(expected)].sum()
        mu -= eta * (-np.log2(p[selected] / kept) - tau)


def test_mirostat_1_keeps_the_top_k_of_its_estimate():
    x, tau, m = logits(4), 3.0, 100
    sampler = Mirostat(N, seed=1, tau=tau, eta=0.0, m=m)
    p = np.sort(softmax(x))[::-1]
    i = np.arange(m - 1)
    t, b = np.log((i + 2) / (i + 1)), np.log(p[i] / p[i + 1])
    s = (t * b).sum() / (t * t).sum()
    epsilon = s - 1
    k = int((epsilon * 2 ** (2 * tau) / (1 - N**-epsilon)) ** (1 / s))
    assert 1 < k < N
    assert set(left(sampler, x)) == top(x, k)
    for _ in range(50):
        assert sampler.apply(x)[3] in top(x, k)


def test_adaptive_p_prefers_tokens_near_the_target():
    x = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03])).astype(np.float32)
    for target, nearest in ((0.5, 0), (0.25, 1), (0.15, 2)):
        ids, values, _, _ = AdaptiveP(target, seed=1).apply(x)
        distance = np.abs(softmax(x) - target) / 0.3
        np.testing.assert_allclose(values[np.argsort(ids)], 5 - 10 * distance**2 / (1 + distance), atol=1e-4)
        counts = draws(AdaptiveP(target, seed=1), x, 2000)
        assert counts.argmax() == nearest
    off = draws(AdaptiveP(-1.0, seed=1), x, 5000)
    assert_distribution(off, softmax(x))


def test_a_clone_of_adaptive_p_remembers_but_draws_anew():
    x = logits(3)
    sampler = AdaptiveP(0.3, seed=1)
    for i in range(10):
        sampler.accept(sampler.apply(logits(i))[3])
    fresh, copy = AdaptiveP(0.3, seed=1), sampler.clone()
    expected = sampler.apply(x)[1]
    assert np.array_equal(copy.apply(x)[1], expected) and not np.array_equal(fresh.apply(x)[1], expected)


def test_a_clone_of_adaptive_p_between_apply_and_accept():
    sampler = AdaptiveP(0.3, seed=1)
    token = sampler.apply(logits())[3]
    alone, nested = sampler.clone(), Chain(Chain(sampler.clone())).clone()
    behind_top_k = Chain(TopK(3), sampler).clone()
    for copy in (alone, nested, behind_top_k):
        copy.accept(token)
    assert np.array_equal(alone.apply(logits())[1], nested.apply(logits())[1])
    assert len(behind_top_k.apply(logits())[0]) == 3


def test_adaptive_p_makes_up_for_what_was_accepted():
    x = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03])).astype(np.float32)
    sampler = AdaptiveP(0.3, decay=0.9, seed=2)
    total = []
    for _ in range(400):
        token = sampler.apply(x)[3]
        sampler.accept(token)
        total.append(softmax(x)[token])
    assert abs(np.mean(total[100:]) - 0.3) < 0.06


# Those that filter


@pytest.mark.parametrize("k", [1, 2, 40, 128, 129, N, N + 1, 2**31 - 1])
def test_top_k(k):
    x = logits(1)
    ids, values, _, selected = TopK(k).apply(x)
    assert set(ids.tolist()) == top(x, k) and selected is None
    assert np.array_equal(values, np.sort(x)[::-1][: min(k, N)]), "sorted, and the logits as they were"


@pytest.mark.parametrize("k", [0, -1, -(2**31)])
def test_top_k_of_none_keeps_all(k):
    assert left(TopK(k), logits()) == as_given(logits())


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("min_keep", [0, 1, 7])
@pytest.mark.parametrize("n", [N, 5000])
def test_top_p(p, min_keep, n):
    x = logits(2, n)
    order = np.argsort(-x)
    below = np.cumsum(softmax(x)[order]) < p - 1e-6
    k = max(int(below.sum()) + 1, min_keep, 1)
    kept = left(TopP(p, min_keep), x)
    assert abs(len(kept) - k) <= (1 if n > N else 0) and set(kept) == top(x, len(kept))
    assert all(value == x[i] for i, value in kept.items())


def test_top_p_of_one_keeps_all():
    assert left(TopP(1.0), logits()) == as_given(logits())


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("min_keep", [0, 1, 9])
def test_min_p(p, min_keep):
    x = logits(5)
    probabilities = softmax(x)
    k = max(int((probabilities >= p * probabilities.max() * (1 - 1e-6)).sum()), min_keep)
    assert set(left(MinP(p, min_keep), x)) == top(x, k)


def test_min_p_of_zero_keeps_all():
    assert left(MinP(0.0), logits()) == as_given(logits())


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("min_keep", [0, 1, 20])
def test_typical(p, min_keep):
    x = logits(6)
    probabilities = softmax(x)
    order = np.argsort(np.abs(-np.log(probabilities) - entropy(probabilities)))
    k = max(int((np.cumsum(probabilities[order]) <= p).sum()) + 1, min_keep)
    assert set(left(Typical(p, min_keep), x)) == set(order[:k].tolist())


def test_typical_of_one_keeps_all():
    assert left(Typical(1.0), logits()) == as_given(logits())


@pytest.mark.parametrize("n", [0.1, 1.0, 3.0])
def test_top_n_sigma(n):
    x = logits(7)
    x[::10] = -np.inf
    finite = x[np.isfinite(x)]
    expected = {i: float(v) for i, v in enumerate(x) if v >= finite.max() - n * finite.std() and v != -np.inf}
    assert left(TopNSigma(n), x) == expected and 0 < len(expected) < len(finite) + 1


def test_top_n_sigma_of_none_keeps_all():
    for n in (0.0, -1.0):
        assert left(TopNSigma(n), logits()) == as_given(logits())


def test_xtc_drops_all_but_the_least_of_the_top_choices():
    x = np.log(np.array([0.3, 0.25, 0.2, 0.15, 0.06, 0.04])).astype(np.float32)
    assert set(left(XTC(1.0, 0.1), x)) == {3, 4, 5}
    assert set(left(XTC(1.0, 0.22), x)) == {1, 2, 3, 4, 5}
    assert set(left(XTC(1.0, 0.35), x)) == set(range(6)), "with nothing above the threshold there is no choice"
    assert set(left(XTC(1.0, 0.51), x)) == set(range(6))
    assert set(left(XTC(0.0, 0.1), x)) == set(range(6))
    assert set(left(XTC(1.0, 0.1, min_keep=4), x)) == set(range(6)), "it would leave fewer than min_keep"


def test_xtc_acts_now_and_then():
    x = np.log(np.array([0.5, 0.3, 0.2])).astype(np.float32)
    sampler = XTC(0.3, 0.1, seed=4)
    acted = sum(len(left(sampler, x)) == 1 for _ in range(5000))
    assert abs(acted - 1500) < 5 * np.sqrt(5000 * 0.3 * 0.7)


# Those that change logits


@pytest.mark.parametrize("t", [0.1, 1.0, 2.5])
def test_temperature_divides(t):
    x = logits(8)
    kept = left(Temp(t), x)
    np.testing.assert_allclose([kept[i] for i in range(N)], x / np.float32(t), rtol=1e-6)


@pytest.mark.parametrize("t", [0.0, -1.0])
def test_no_temperature_leaves_the_best(t):
    x = logits(9)
    assert left(Temp(t), x) == {int(x.argmax()): float(x.max())}
    assert set(left(TempExt(t), x)) == {int(x.argmax())}


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_temperature_by_entropy(exponent):
    x = logits(10)
    t = 0.6 + (1.4 - 0.6) * (entropy(softmax(x)) / np.log(N)) ** exponent
    ids, values, p, _ = TempExt(1.0, 0.4, exponent).apply(x)
    np.testing.assert_allclose(values, x[ids] / t, rtol=1e-4)
    np.testing.assert_allclose(p, softmax(x / t)[ids], rtol=1e-3)


def test_temperature_by_entropy_without_a_range_is_temperature():
    x = logits(11)
    assert left(TempExt(0.7), x) == left(Temp(0.7), x)


def test_logit_bias_adds():
    x = logits(12)
    kept = left(LogitBias(N, {3: 2.5, 7: -1.0, 9: -np.inf, N - 1: 100.0}), x)
    expected = x.copy()
    expected[[3, 7, N - 1]] += np.array([2.5, -1.0, 100.0], np.float32)
    assert kept == {i: float(v) for i, v in enumerate(expected) if i != 9}
    assert left(LogitBias(N, {}), x) == as_given(x)


def test_logit_bias_after_a_filter():
    """Candidates that are not at the index of their id any more."""
    x = logits(12)
    best = int(x.argmax())
    kept = left(Chain(TopK(5), LogitBias(N, {best: -3.0})), x)
    assert kept[best] == pytest.approx(x[best] - 3.0) and set(kept) == top(x, 5)


@pytest.mark.parametrize("repeat, freq, present", [(1.5, 0.0, 0.0), (1.0, 0.7, 0.0), (1.0, 0.0, 0.4), (1.3, 0.5, 0.2)])
def test_penalties(repeat, freq, present):
    x = logits(13)
    sampler = Penalties(N, last_n=6, repeat=repeat, freq=freq, present=present)
    history = [5, 9, 9, 30, 5, 9, 40, 5]
    for token in history:
        sampler.accept(token)
    expected = x.astype(np.float64)
    for token in set(history[-6:]):
        count = history[-6:].count(token)
        expected[token] = expected[token] * repeat if expected[token] <= 0 else expected[token] / repeat
        expected[token] -= count * freq + present
    kept = left(sampler, x)
    np.testing.assert_allclose([kept[i] for i in range(N)], expected, atol=1e-5)
    assert kept[100] == x[100] and kept[30] != x[30]
    sampler.reset()
    assert left(sampler, x) == as_given(x)


def test_penalties_that_are_off():
    for sampler in (Penalties(N, last_n=0, repeat=2.0), Penalties(N)):
        sampler.accept(5)
        assert left(sampler, logits()) == as_given(logits())


def dry_penalties(
    history: list[int], allowed: int, multiplier: float, base: float, breakers: set[int]
) -> dict[int, float]:
    """What DRY subtracts: for each token that would go on with a repetition, by the length of the longest one."""
    tail = len(history)
    for i in range(1, len(history) + 1):
        if history[-i] in breakers:
            tail = i - 1
            break
    found: dict[int, int] = {}
    for end in range(1, len(history)):
        length = 0
        while length < min(tail, end) and history[end - 1 - length] == history[-1 - length]:
            length += 1
        if length >= allowed:
            found[history[end]] = max(found.get(history[end], 0), length)
    return {t: multiplier * base ** (n - allowed) for t, n in found.items() if t not in breakers}


@pytest.mark.parametrize("seed", range(5))
def test_dry(tiny_model, seed):
    vocab = tiny_model.vocab
    breaker = int(vocab.tokenize(":", add_special=False)[-1])
    rng = np.random.default_rng(seed)
    history = [int(token) for token in rng.choice([270, 280, 290], 40)]
    if seed > 1:
        history[25] = breaker
    x = logits(14, vocab.n_tokens)
    sampler = DRY(vocab, multiplier=0.8, base=1.3, allowed_length=2, seq_breakers=[":"])
    for token in history:
        sampler.accept(token)
    expected = x.astype(np.float64)
    # Tokens that contain the breaker count as breakers.
    breakers = {i for i, piece in enumerate(vocab.pieces()) if b":" in piece}
    penalties = dry_penalties(history, 2, 0.8, 1.3, breakers)
    assert penalties
    for token, penalty in penalties.items():
        expected[token] -= penalty
    kept = left(sampler, x)
    np.testing.assert_allclose([kept[i] for i in range(len(x))], expected, atol=1e-3)
    sampler.reset()
    assert left(sampler, x) == as_given(x)


def test_dry_that_is_off(tiny_model):
    sampler = DRY(tiny_model.vocab, multiplier=0.0)
    for token in [270, 280] * 10:
        sampler.accept(token)
    x = logits(15, tiny_model.n_vocab)
    assert left(sampler, x) == as_given(x)


# Grammar


def spelled(vocab, sampler: Sampler, x: np.ndarray, limit: int = 40) -> str:
    """What greedy sampling writes until the end of generation."""
    tokens = []
    for _ in range(limit):
        token = Chain(Greedy()).apply(masked(sampler, x))[3]
        if vocab.is_eog(token):
            break
        sampler.accept(token)
        tokens.append(token)
    return vocab.detokenize(tokens)


def masked(sampler: Sampler, x: np.ndarray) -> np.ndarray:
    out = np.full(len(x), -np.inf, np.float32)
    for i, value in left(sampler, x).items():
        out[i] = value
    return out


@pytest.mark.parametrize(
    "grammar, allowed",
    [
        ('root ::= "yes" | "no"', {"yes", "no"}),
        ("root ::= [a-c] [0-2]", {a + b for a in "abc" for b in "012"}),
        ('root ::= " the" rest\nrest ::= " people" | "m"', {" the people", " them"}),
        ('root ::= "é🙂"', {"é🙂"}),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_a_grammar_allows_what_it_says_and_nothing_else(tiny_model, grammar, allowed, seed):
    vocab = tiny_model.vocab
    text = spelled(vocab, Grammar(vocab, grammar), logits(seed, vocab.n_tokens))
    assert text in allowed


def test_a_grammar_allows_every_token_that_fits_and_only_those(tiny_model):
    vocab = tiny_model.vocab
    pieces = vocab.pieces(special=False)
    kept = left(Grammar(vocab, 'root ::= "the people"'), logits(0, vocab.n_tokens))
    assert set(kept) == {i for i, piece in enumerate(pieces) if piece and b"the people".startswith(piece)}


def test_a_grammar_starts_anew_after_reset_and_clones_go_their_own_way(tiny_model):
    vocab = tiny_model.vocab
    a, b = (int(vocab.tokenize(text, add_special=False)[-1]) for text in "ab")
    x = logits(1, vocab.n_tokens)
    sampler = Grammar(vocab, 'root ::= "a" "b"')
    start = set(left(sampler, x))
    copy = sampler.clone()
    sampler.accept(a)
    assert b in left(sampler, x) and a not in left(sampler, x)
    assert set(left(copy, x)) == start and a in start and b not in start
    second = sampler.clone()
    assert set(left(second, x)) == set(left(sampler, x))
    sampler.reset()
    assert set(left(sampler, x)) == start


def test_a_lazy_grammar_waits_for_its_trigger(tiny_model):
    vocab = tiny_model.vocab
    tool = int(vocab.tokenize("<tool>", add_special=False, parse_special=True)[0])
    x = logits(2, vocab.n_tokens)
    for sampler in (
        Grammar(vocab, 'root ::= "<tool>" "a"', trigger_tokens=[tool]),
        Grammar(vocab, 'root ::= "<tool>" "a"', trigger_patterns=[r"[\s\S]*?(<tool>)"]),
    ):
        for token in vocab.tokenize("the people ", add_special=False):
            sampler.accept(int(token))
            assert left(sampler, x) == as_given(x)
        sampler.accept(tool)
        assert {vocab.pieces()[i] for i in left(sampler, x)} <= {b"a"}


@pytest.mark.parametrize(
    "grammar",
    ["", "   ", "root", 'other ::= "a"', 'root ::= "a', "root ::= missing", "a\0b", 'root ::= root "a"'],
)
def test_invalid_grammars(tiny_model, grammar):
    with pytest.raises(errors.GrammarError):
        Grammar(tiny_model.vocab, grammar)


def test_a_grammar_error_names_the_place(tiny_model):
    with pytest.raises(errors.GrammarError, match=r"line 1, column 10: there is no rule 'missing'"):
        Grammar(tiny_model.vocab, "root ::= missing")


def test_a_token_that_the_grammar_forbids_is_an_error(tiny_model):
    sampler = Grammar(tiny_model.vocab, 'root ::= "a"')
    with pytest.raises(errors.PyllmError):
        sampler.accept(int(tiny_model.vocab.tokenize("b", add_special=False)[-1]))


@pytest.mark.parametrize("token", [-1, 100_000, 2**31 - 1])
def test_a_wild_token_is_an_error_for_a_grammar(tiny_model, token):
    with pytest.raises(errors.PyllmError):
        Grammar(tiny_model.vocab, 'root ::= "a"').accept(token)


# Infill


def test_infill_ends_when_the_end_is_likely(tiny_model):
    vocab = tiny_model.vocab
    x = np.full(vocab.n_tokens, -20.0, np.float32)
    x[270], x[vocab.eos] = 2.0, 1.0
    ids, _, p, _ = Chain(TopK(5), Infill(vocab)).apply(x)
    assert all(vocab.is_eog(int(i)) for i in ids) and p.sum() == pytest.approx(1.0)


def test_infill_merges_what_begins_alike(tiny_model):
    """A candidate that begins with another one gives it its probability, or takes it."""
    vocab = tiny_model.vocab
    pieces = vocab.pieces()
    short, long, other = pieces.index(b" th"), pieces.index(b" the"), pieces.index(b"z")
    x = np.full(vocab.n_tokens, -30.0, np.float32)
    x[short], x[long], x[other] = np.log([0.4, 0.25, 0.35])
    ids, _, p, _ = Chain(TopK(3), Infill(vocab)).apply(x)
    found = dict(zip(ids.tolist(), p.tolist(), strict=True))
    assert long not in found and found[short] == pytest.approx(0.65, abs=1e-3)


def test_infill_gives_one_end_where_nothing_is_sure(tiny_model):
    vocab = tiny_model.vocab
    x = np.full(vocab.n_tokens, -30.0, np.float32)
    letters = [int(vocab.tokenize(letter, add_special=False)[-1]) for letter in "abcdefgh"]
    x[letters] = 1.0
    ids, _, _, _ = Chain(TopK(8), Infill(vocab)).apply(x)
    assert len(ids) == 1 and vocab.is_eog(int(ids[0]))


# Common to all


def make(name: str, vocab) -> Sampler:
    """One of each class, with arguments that make it do something."""
    n = vocab.n_tokens
    return {
        "Greedy": lambda: Greedy(),
        "Dist": lambda: Dist(7),
        "TopK": lambda: TopK(20),
        "TopP": lambda: TopP(0.8),
        "MinP": lambda: MinP(0.1),
        "Typical": lambda: Typical(0.5),
        "Temp": lambda: Temp(0.7),
        "TempExt": lambda: TempExt(1.0, 0.5),
        "XTC": lambda: XTC(0.5, 0.01, seed=7),
        "TopNSigma": lambda: TopNSigma(1.0),
        "Mirostat": lambda: Mirostat(n, seed=7),
        "MirostatV2": lambda: MirostatV2(seed=7),
        "AdaptiveP": lambda: AdaptiveP(0.3, seed=7),
        "Grammar": lambda: Grammar(vocab, "root ::= [a-z ]*"),
        "Penalties": lambda: Penalties(n, repeat=2.0, freq=0.5),
        "DRY": lambda: DRY(vocab),
        "LogitBias": lambda: LogitBias(n, {5: 3.0}),
        "Infill": lambda: Infill(vocab),
    }[name]()


NAMES = sorted(
    name
    for name, value in vars(samplers).items()
    if inspect.isclass(value) and issubclass(value, Sampler) and value is not Sampler
)
SELECTING = {"Greedy", "Dist", "Mirostat", "MirostatV2", "AdaptiveP"}
LETTER = 270


def test_every_class_is_here(tiny_model):
    assert len(NAMES) == 18
    for name in NAMES:
        assert type(make(name, tiny_model.vocab)).__name__ == name


@pytest.mark.parametrize("name", NAMES)
def test_only_some_select(tiny_model, name):
    _, _, _, selected = make(name, tiny_model.vocab).apply(logits(1, tiny_model.n_vocab))
    assert (selected is not None) == (name in SELECTING)


def run(sampler: Sampler, n_vocab: int, n: int = 12, start: int = 0) -> list[tuple]:
    """What a sampler does with some logits, accepting as it goes."""
    out = []
    for i in range(start, start + n):
        ids, values, _, selected = sampler.apply(logits(i, n_vocab))
        out.append((ids.tolist(), values.tolist(), selected))
        sampler.accept(int(selected) if selected is not None else LETTER)
    return out


@pytest.mark.parametrize("name", NAMES)
def test_the_same_again_after_reset(tiny_model, name):
    sampler = make(name, tiny_model.vocab)
    first = run(sampler, tiny_model.n_vocab)
    sampler.reset()
    assert run(sampler, tiny_model.n_vocab) == first
    assert run(make(name, tiny_model.vocab), tiny_model.n_vocab) == first


@pytest.mark.parametrize("name", sorted({*NAMES} - {"AdaptiveP"}))
def test_a_clone_has_the_state_and_is_independent(tiny_model, name):
    n = tiny_model.n_vocab
    sampler = make(name, tiny_model.vocab)
    run(sampler, n, 6)
    copy, witness = sampler.clone(), sampler.clone()
    assert type(copy) is type(sampler) and copy.address != sampler.address and repr(copy) == repr(sampler)
    expected = run(sampler, n, 6, start=6)
    # What was done to the first one has not changed the second.
    assert run(copy, n, 6, start=6) == expected
    sampler.close()
    assert run(witness, n, 6, start=6) == expected


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_changed_in_the_input(tiny_model, name):
    x = logits(3, tiny_model.n_vocab)
    before = x.copy()
    make(name, tiny_model.vocab).apply(x)
    assert np.array_equal(x, before)
    x.flags.writeable = False
    make(name, tiny_model.vocab).apply(x)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_logits_are_survived(tiny_model, name):
    n = tiny_model.n_vocab
    rng = np.random.default_rng(0)
    for fill in (np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0):
        for share in (1.0, 0.5, 0.01):
            x = logits(4, n)
            x[rng.random(n) < share] = fill
            sampler = make(name, tiny_model.vocab)
            try:
                ids, _, _, selected = sampler.apply(x)
            except errors.PyllmError:
                continue
            assert ((ids >= 0) & (ids < n)).all() and (selected is None or 0 <= selected < n)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_repr(tiny_model, name):
    sampler = make(name, tiny_model.vocab)
    assert sampler.name and repr(sampler).startswith(f"{name}(") and isinstance(sampler.params, dict)
    assert sampler.address != 0 and not sampler.closed


@pytest.mark.parametrize("name", ["Dist", "XTC", "Mirostat", "MirostatV2", "AdaptiveP"])
def test_seeds(tiny_model, name):
    n = tiny_model.n_vocab

    def seeded(seed):
        return {
            "Dist": lambda: Dist(seed),
            "XTC": lambda: XTC(0.5, 0.01, seed=seed),
            "Mirostat": lambda: Mirostat(n, seed),
            "MirostatV2": lambda: MirostatV2(seed),
            "AdaptiveP": lambda: AdaptiveP(0.1, seed=seed),
        }[name]()

    assert run(seeded(1), n, 20) == run(seeded(1), n, 20) != run(seeded(2), n, 20)
    assert run(seeded(None), n, 20) != run(seeded(None), n, 20)
    assert seeded(5).seed == 5 and seeded(0).seed == 0 and seeded(2**32 - 2).seed == 2**32 - 2
    random = seeded(None)
    assert random.seed is not None and run(seeded(random.seed), n, 20) == run(random, n, 20)
    for wrong in (-1, 2**32 - 1, 2**64):
        with pytest.raises(errors.InvalidArgumentError, match="seed"):
            seeded(wrong)
    for wrong in ("a", 1.5):
        with pytest.raises(TypeError):
            seeded(wrong)


def test_no_seed_where_there_is_no_chance():
    assert Greedy().seed is None and TopK(3).seed is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda vocab: TopP(1.5),
        lambda vocab: TopP(-0.1),
        lambda vocab: TopP(np.nan),
        lambda vocab: TopP(0.5, -1),
        lambda vocab: MinP(2),
        lambda vocab: Typical(np.nan),
        lambda vocab: Temp(np.nan),
        lambda vocab: TempExt(1, np.nan),
        lambda vocab: TopNSigma(np.nan),
        lambda vocab: XTC(1.1, 0.1),
        lambda vocab: XTC(0.1, -0.1),
        lambda vocab: Mirostat(0),
        lambda vocab: Mirostat(10, m=1),
        lambda vocab: Mirostat(10, tau=-1),
        lambda vocab: MirostatV2(tau=np.nan),
        lambda vocab: AdaptiveP(1.5),
        lambda vocab: AdaptiveP(0.5, decay=1.0),
        lambda vocab: Penalties(0),
        lambda vocab: Penalties(10, -1),
        lambda vocab: Penalties(10, repeat=0),
        lambda vocab: Penalties(10, repeat=-1),
        lambda vocab: Penalties(10, repeat=np.nan),
        lambda vocab: Penalties(10, freq=np.inf),
        lambda vocab: DRY(vocab, multiplier=-1),
        lambda vocab: DRY(vocab, allowed_length=-1),
        lambda vocab: DRY(vocab, last_n=-2),
        lambda vocab: LogitBias(10, {10: 1.0}),
        lambda vocab: LogitBias(10, {-1: 1.0}),
        lambda vocab: LogitBias(10, {1: np.nan}),
        lambda vocab: Grammar(vocab, 'root ::= "a"', trigger_tokens=[100_000]),
    ],
)
def test_arguments_out_of_range(tiny_model, wrong):
    with pytest.raises(errors.InvalidArgumentError):
        wrong(tiny_model.vocab)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda vocab: TopP("x"),
        lambda vocab: TopK("x"),
        lambda vocab: TopK(),
        lambda vocab: Temp(None),
        lambda vocab: TopP(0.5, "x"),
        lambda vocab: Greedy(1),
        lambda vocab: Grammar(None, "root ::= [a]"),
        lambda vocab: Grammar(vocab, b"root ::= [a]"),
        lambda vocab: DRY(vocab, seq_breakers=[1]),
        lambda vocab: LogitBias(10, {"a": 1.0}),
        lambda vocab: LogitBias(10, {1: "a"}),
        lambda vocab: Infill(None),
    ],
)
def test_arguments_of_a_wrong_type(tiny_model, wrong):
    with pytest.raises((TypeError, AttributeError)):
        wrong(tiny_model.vocab)


@pytest.mark.parametrize("x", [np.zeros((2, 3)), [], np.zeros((1, 0))])
def test_logits_of_a_wrong_shape(x):
    with pytest.raises(errors.InvalidArgumentError, match="n_vocab"):
        Greedy().apply(x)


def test_logits_of_other_types():
    x = logits(5)
    for given in (x.tolist(), x.astype(np.float64), np.repeat(x, 2)[::2], np.arange(5)):
        assert Greedy().apply(given)[3] == np.argmax(given)


def test_subclasses_that_never_initialise():
    class Lazy(Dist):
        def __init__(self):
            pass

    sampler = Lazy()
    for call in (lambda: sampler.apply([1.0]), lambda: sampler.accept(1), sampler.reset, sampler.clone):
        with pytest.raises(errors.ClosedError):
            call()
    sampler.close()


def test_initialising_twice():
    sampler = Dist(1)
    with pytest.raises(errors.SamplerError, match="already"):
        sampler.__init__(2)
    assert sampler.seed == 1
    with pytest.raises(TypeError, match="samplers"):
        Sampler()
