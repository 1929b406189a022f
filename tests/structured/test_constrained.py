"""A grammar around samplers: the right tokens, the right probabilities, and the vocabulary is looked at rarely."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.constrained import Constrained
from pyllm.core.model import Model
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
    Penalties,
    Temp,
    TopK,
    TopP,
)
from pyllm.structured import grammar_of

GRAMMARS = {
    "letters": 'root ::= [a-z ]+ "." [^0-9] "end"',
    "json": grammar_of(json_schema={"type": "object", "properties": {"é": {"type": "string"}}}).text,
    "wide": 'root ::= ("é" | "🙂" | "語" [^é])+',
    "any": "root ::= . .+",
    "tokens": 'root ::= <|im_start|> "a" !<[5]> .*',
}


def logits(seed, n):
    return np.random.default_rng(seed).normal(0, 2, n).astype(np.float32)


def allowed_by(sampler, x):
    ids, values, _, _ = sampler.apply(x)
    return {int(token) for token in ids[values > -np.inf]}


def make(vocab, text, *samplers, **arguments):
    return Constrained(vocab, Grammar(vocab, text), Chain(*samplers), **arguments)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen3moe"])
@pytest.mark.parametrize("name", GRAMMARS)
def test_the_candidates_are_those_of_llama_cpps_own_sampler(load, kind, name):
    """Filtering by first bytes before the grammar is asked leaves out nothing that it allows."""
    model = load(kind)
    vocab, n = model.vocab, model.n_vocab
    for seed in range(6):
        plain = Grammar(vocab, GRAMMARS[name])
        constrained = make(vocab, GRAMMARS[name], Dist(seed), control_tokens=True)
        for step in range(12):
            x = logits(100 * seed + step, n)
            allowed = allowed_by(plain, x)
            # Something that does not fit is the likeliest: only then is the vocabulary looked at.
            wrong = [token for token in range(n) if token not in allowed and vocab.token_to_piece(token)]
            if not allowed or not wrong:
                break
            x[wrong[step % len(wrong)]] = 50
            ids, _, _, chosen = constrained.apply(x)
            empty = {t for t in allowed if not vocab.token_to_piece(t) and not vocab.is_eog(t)}
            assert set(ids.tolist()) == allowed - empty
            assert chosen in allowed
            assert constrained.n_rejected == step + 1
            if vocab.is_eog(chosen):
                break
            plain.accept(chosen)
            constrained.accept(chosen)


def test_a_choice_that_fits_stands(tiny_model):
    vocab = tiny_model.vocab
    a = int(vocab.tokenize("a", add_special=False)[-1])
    constrained = make(vocab, GRAMMARS["letters"], TopK(5), Greedy())
    x = logits(1, vocab.n_tokens)
    x[a] = 50
    ids, values, _, chosen = constrained.apply(x)
    plain = Chain(TopK(5), Greedy()).apply(x)
    assert chosen == a == plain[3] and np.array_equal(ids, plain[0]) and np.array_equal(values, plain[1])
    assert (constrained.n_chosen, constrained.n_rejected) == (1, 0)


def chains(vocab):
    """Chains that look at the best candidates only, and others; each twice, with the same seeds."""
    n = len(vocab)
    makers = {
        "greedy": lambda: Chain(Greedy()),
        "one": lambda: Chain(TopK(1), Dist(4)),
        "default": lambda: Chain(TopK(40), TopP(0.95), MinP(0.05), Temp(1.3), Dist(4)),
        "edits": lambda: Chain(
            LogitBias(n, {token: 3.0 for token in range(300, 340)}), Penalties(n, 64, 1.5, 0.3, 0.2),
            DRY(vocab, 0.8, 1.75, 1, 64, ["x"]), TopK(9), XTC(0.5, 0.01, 0, 3), Temp(1), Dist(4),
        ),
        "edited greedy": lambda: Chain(LogitBias(n, {300: 2.0}), Penalties(n, 64, 2.0), Greedy()),
        "more than there are": lambda: Chain(TopK(10**6), Temp(2), Dist(4)),
        "more than a sort of few": lambda: Chain(TopK(200), Temp(2), Dist(4)),
        "all": lambda: Chain(TopK(0), Temp(1.2), Dist(4)),
        "python": lambda: Chain(PythonSampler(lambda candidates: None), TopK(3), Dist(4)),
        "greedy before others": lambda: Chain(Greedy(), Dist(4)),
    }  # fmt: skip
    return {name: (make(), make()) for name, make in makers.items()}


@pytest.mark.parametrize("name", ["letters", "json", "any"])
def test_the_choice_is_that_among_all_that_fit(load, name):
    """A grammar that is asked about the likeliest only gives what one gives that is asked about all."""
    vocab = load("qwen3moe").vocab
    for kind, (chain, plain) in chains(vocab).items():
        constrained = Constrained(vocab, Grammar(vocab, GRAMMARS[name]), chain, control_tokens=True)
        grammar, rejected = Grammar(vocab, GRAMMARS[name]), 0
        for step in range(25):
            x = logits(step, vocab.n_tokens)
            allowed = sorted(
                token for token in allowed_by(grammar, x) if vocab.token_to_piece(token) or vocab.is_eog(token)
            )
            ids, _, probabilities, chosen = constrained.apply(x)
            expected = plain.apply(x)
            if expected[3] not in allowed:
                rejected += 1
                fitting = np.full_like(x, -np.inf)
                fitting[allowed] = x[allowed]
                expected = plain.apply(fitting)
            found = dict(zip(ids.tolist(), probabilities.tolist(), strict=True))
            # Greedy says nothing of the others.
            for token, p in zip(expected[0].tolist(), expected[2].tolist(), strict=True):
                seen = token in allowed and "greedy" not in kind
                assert not seen or found[token] == pytest.approx(p, abs=1e-6), (kind, step)
            assert chosen == expected[3], (kind, step)
            assert constrained.n_rejected == rejected
            if vocab.is_eog(chosen):
                break
            for sampler in (constrained, grammar, plain):
                sampler.accept(chosen)
        assert rejected or name == "any", kind


def test_a_chain_that_was_changed(tiny_model):
    vocab = tiny_model.vocab
    constrained = make(vocab, "root ::= [a-d]+", TopK(2), Dist(1))
    x = logits(1, vocab.n_tokens)
    assert len(constrained.apply(x)[0]) == 2
    constrained.samplers.remove(0)
    assert len(constrained.apply(x)[0]) == len(allowed_by(Grammar(vocab, "root ::= [a-d]+"), x))
    constrained.samplers.remove(0)
    constrained.samplers.add(TopK(3)).add(Dist(1))
    assert len(constrained.apply(x)[0]) == len(constrained.clone().apply(x)[0]) == 3


def test_logits_that_are_no_numbers_are_refused(tiny_model):
    vocab = tiny_model.vocab
    for samplers in ((Greedy(),), (TopK(5), Temp(1), Dist(1)), (Temp(1), Dist(1))):
        constrained = make(vocab, "root ::= [a-d]+", *samplers)
        x = np.full(vocab.n_tokens, np.nan, np.float32)
        with pytest.raises(errors.SamplerError, match="are NaN"):
            constrained.apply(x)


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_tokens_have_their_share_among_those_that_fit(tiny_model, temperature):
    vocab, n, rounds = tiny_model.vocab, tiny_model.n_vocab, 6000
    x = logits(3, n)
    fitting = [int(vocab.tokenize(letter, add_special=False)[-1]) for letter in "abcd"]
    x[fitting] = [3, 2.5, 1, 0]
    constrained = make(vocab, "root ::= [a-d]", Temp(temperature), Dist(seed=7))
    counts = np.zeros(n)
    for _ in range(rounds):
        counts[constrained.apply(x)[3]] += 1
    allowed = sorted(allowed_by(Grammar(vocab, "root ::= [a-d]"), x))
    weights = np.exp(x[allowed].astype(float) / temperature)
    expected = weights / weights.sum()
    assert counts[allowed].sum() == rounds
    assert 0 < constrained.n_rejected < rounds
    assert np.abs(counts[allowed] / rounds - expected).max() < 4 * np.sqrt(0.25 / rounds)


def test_penalties_and_randomness_go_on(tiny_model):
    """Its samplers accept what was chosen, and the same seed gives the same choices."""
    vocab = tiny_model.vocab
    texts = []
    for _ in range(2):
        chain = Chain(
            make(vocab, "root ::= [a-z]+", Penalties(len(vocab), 64, 3.0), XTC(0.3, 0.1, 0, 3), Temp(1), Dist(3))
        )
        text = []
        for step in range(20):
            token = chain.apply(logits(step % 2, vocab.n_tokens))[3]
            chain.accept(token)
            text.append(token)
        texts.append(text)
    assert texts[0] == texts[1] and len(set(texts[0])) > 4


def test_control_tokens_are_no_text(tiny_model):
    vocab = tiny_model.vocab
    control = int(vocab.tokenize("<|im_start|>", add_special=False, parse_special=True)[0])
    x = logits(0, vocab.n_tokens)
    x[control] = 90
    text = "root ::= .+"
    assert make(vocab, text, Greedy()).apply(x)[3] != control
    assert make(vocab, text, Greedy(), control_tokens=True).apply(x)[3] == control
    # A grammar that names tokens speaks of them.
    assert make(vocab, "root ::= <|im_start|> .*", Greedy()).apply(x)[3] == control
    lazy = Grammar(vocab, text, trigger_patterns=["x"])
    assert Constrained(vocab, lazy, Chain(Greedy())).apply(x)[3] == control


def test_bytes_become_whole_characters(tiny_model):
    vocab = tiny_model.vocab
    tokens = {piece: i for i, piece in enumerate(vocab.pieces()) if len(piece) == 1}
    x = np.zeros(vocab.n_tokens, np.float32)
    constrained = make(vocab, "root ::= .+", Greedy())
    for byte, forbidden in ((0xE0, ()), (0xA1, (0x80, 0x41)), (0x81, (0xC3,))):
        for other in forbidden:
            x[:] = 0
            x[tokens[bytes([other])]] = 90
            assert constrained.apply(x)[3] != tokens[bytes([other])]
        constrained.accept(tokens[bytes([byte])])
    for byte in (0xC0, 0xFF, 0x80):
        x[:] = 0
        x[tokens[bytes([byte])]] = 90
        assert constrained.apply(x)[3] != tokens[bytes([byte])]


def test_a_lazy_grammar_holds_from_its_trigger_on(tiny_model):
    vocab = tiny_model.vocab
    lazy = Grammar(vocab, 'root ::= "<tool>" "a" "b"', trigger_patterns=["<tool>"])
    constrained = Constrained(vocab, lazy, Chain(Greedy()))
    x = logits(4, vocab.n_tokens)
    first = Chain(Greedy()).apply(x)[3]
    assert constrained.apply(x)[3] == first
    for token in vocab.tokenize("of <tool>", add_special=False, parse_special=True):
        constrained.accept(int(token))
    text = b""
    for _ in range(2):
        token = constrained.apply(x)[3]
        text += vocab.token_to_piece(token)
        constrained.accept(token)
    assert text == b"ab" and vocab.is_eog(constrained.apply(x)[3])


def test_nothing_fits(tiny_model, make_context):
    vocab = tiny_model.vocab
    constrained = make(vocab, 'root ::= "a"', Greedy())
    x = np.full(vocab.n_tokens, -np.inf, np.float32)
    x[5] = 1
    with pytest.raises(errors.PyllmError, match="no token of the vocabulary continues the text"):
        constrained.apply(x)


def test_clones_and_resets(tiny_model):
    vocab = tiny_model.vocab
    constrained = make(vocab, 'root ::= "a" "b" "c"', AdaptiveP(0.5, seed=1))
    x = logits(2, vocab.n_tokens)
    constrained.accept(constrained.apply(x)[3])
    copy = constrained.clone()
    spelled = []
    for sampler in (constrained, copy):
        token = sampler.apply(x)[3]
        sampler.accept(token)
        spelled.append(vocab.token_to_piece(token))
        sampler.reset()
        spelled.append(vocab.token_to_piece(sampler.apply(x)[3])[:1])
    assert spelled == [b"b", b"a", b"b", b"a"]


def test_ownership_of_samplers_and_grammars(tiny_model):
    vocab = tiny_model.vocab
    grammar, chain = Grammar(vocab, "root ::= [a-z]+"), Chain(TopK(3), Greedy())
    constrained = Constrained(vocab, grammar, chain)
    assert constrained.grammar is grammar and constrained.samplers is chain
    assert (
        repr(constrained) == "Constrained(Grammar(grammar='root ::= [a-z]+', root='root'), Chain(TopK(k=3), Greedy()))"
    )
    with pytest.raises(errors.SamplerError, match="belongs to a chain already"):
        Constrained(vocab, grammar, Chain(Greedy()))
    with pytest.raises(errors.SamplerError, match="belongs to a chain already"):
        Chain(chain)
    outer = Chain(constrained)
    del constrained, grammar, chain
    gc.collect()
    (again,) = outer
    assert [sampler.name for sampler in again.samplers] == ["top-k", "greedy"]
    assert again.grammar.params["grammar"] == "root ::= [a-z]+"
    assert isinstance(again.samplers[0], TopK)
    inner = again.samplers
    outer.close()
    assert inner.closed and again.closed and repr(again) == "Constrained(closed)"
    with pytest.raises(errors.ClosedError):
        inner.apply(np.zeros(4, np.float32))


def test_another_models_samplers(tiny_model, tiny_models):
    with Model(tiny_models["llama"], vocab_only=True) as other:
        with pytest.raises(errors.SamplerError, match="for another model"):
            Constrained(other.vocab, Grammar(tiny_model.vocab, "root ::= [a]"), Chain(Greedy()))
        constrained = make(other.vocab, "root ::= [a]", Greedy())
    with pytest.raises(errors.ClosedError):
        constrained.apply(np.zeros(4, np.float32))


def test_a_small_vocabulary_is_not_asked_often(tiny_model):
    """A grammar is asked about one token where that fits: what it costs then has nothing to do with the vocabulary."""
    vocab = tiny_model.vocab
    chain = Chain(make(vocab, "root ::= [a-z ]+", TopK(40), Temp(0.8), Dist(1)))
    readable = np.full(vocab.n_tokens, -20, np.float32)
    for i, piece in enumerate(vocab.pieces()):
        if piece and all(97 <= byte <= 122 for byte in piece):
            readable[i] = 0
    for _ in range(50):
        chain.accept(chain.apply(readable)[3])
    assert (chain[0].n_chosen, chain[0].n_rejected) == (50, 0)
