"""Every sampler of llama.h, one small class each (wraps ``llama_sampler_init_*``).

Samplers that filter or rescale candidates stand in a :class:`pyllm.core.sampler.Chain` before one that selects:
Greedy, Dist, Mirostat, MirostatV2 or AdaptiveP.
"""

import math
import operator
import secrets

from libc.math cimport INFINITY
from libc.stdint cimport int32_t
from libcpp.vector cimport vector

from pyllm import errors
from pyllm.core.arguments cimport c_text, int32, number
from pyllm.core cimport guard
from pyllm.core.sampler cimport Sampler
from pyllm.core.vocab cimport Vocab
from pyllm.includes cimport llama as lib

from pyllm.core.gbnf import check
from pyllm.core.text_limits import check_pattern


cdef extern from "forced.hpp" namespace "pyllm" nogil:
    lib.llama_sampler * make_forced(const vector[int32_t] & tokens, lib.llama_sampler * others) except +


# Longer than any context; the samplers make room for all of it at once.
cdef enum:
    MAX_LAST_N = 1 << 20
    MAX_VOCAB = 1 << 24


cdef object _seed(seed):
    """A seed to use and to tell: None is drawn here, because llama.cpp does not tell what it drew."""
    if seed is None:
        return secrets.randbelow(0xFFFFFFFF)
    seed = operator.index(seed)
    if not 0 <= seed < 0xFFFFFFFF:
        raise errors.InvalidArgumentError(f"seed must be from 0 to 4294967294, or None for a random one, not {seed}")
    return seed


cdef int32_t _n_vocab(value) except -1:
    if not 1 <= operator.index(value) <= MAX_VOCAB:
        raise errors.InvalidArgumentError(f"n_vocab must be from 1 to {MAX_VOCAB}, not {value}")
    return value


cdef int _last_n(value) except -1:
    value = operator.index(value)
    if not 0 <= value <= MAX_LAST_N:
        raise errors.InvalidArgumentError(f"last_n must be from 0 to {MAX_LAST_N}, not {value}")
    return value


cdef size_t _min_keep(value) except? 0:
    value = operator.index(value)
    if not 0 <= value < 2**31:
        raise errors.InvalidArgumentError(f"min_keep must be at least 0, not {value}")
    return value


class Greedy(Sampler):
    """Select the most likely token. Wraps ``llama_sampler_init_greedy``."""

    def __init__(self):
        guard.enter()
        (<Sampler?> self).own(lib.llama_sampler_init_greedy(), "llama_sampler_init_greedy", {})


class Dist(Sampler):
    """Select a token at random, by probability.

    Args:
        seed: From 0 to 4294967294; None takes a random one, which ``.seed`` then tells.

    Wraps ``llama_sampler_init_dist``.
    """

    def __init__(self, seed=None):
        seed = _seed(seed)
        guard.enter()
        (<Sampler?> self).own(lib.llama_sampler_init_dist(seed), "llama_sampler_init_dist", {"seed": seed})


class TopK(Sampler):
    """Keep the k most likely tokens; k <= 0 keeps all. Wraps ``llama_sampler_init_top_k``."""

    def __init__(self, k):
        cdef int32_t c_k = int32(k, "k")
        guard.enter()
        (<Sampler?> self).own(lib.llama_sampler_init_top_k(c_k), "llama_sampler_init_top_k", {"k": c_k})


class TopP(Sampler):
    """Keep the most likely tokens whose probabilities sum up to p (nucleus sampling).

    Args:
        p: From 0 to 1; 1 keeps all.
        min_keep: Keep at least so many.

    Wraps ``llama_sampler_init_top_p``.
    """

    def __init__(self, p, min_keep=1):
        guard.enter()
        (<Sampler?> self).own(
            lib.llama_sampler_init_top_p(number(p, "p", 0, 1), _min_keep(min_keep)),
            "llama_sampler_init_top_p", {"p": p, "min_keep": min_keep},
        )


class MinP(Sampler):
    """Keep tokens at least p times as likely as the most likely one.

    Args:
        p: From 0 to 1; 0 keeps all.
        min_keep: Keep at least so many.

    Wraps ``llama_sampler_init_min_p``.
    """

    def __init__(self, p, min_keep=1):
        guard.enter()
        (<Sampler?> self).own(
            lib.llama_sampler_init_min_p(number(p, "p", 0, 1), _min_keep(min_keep)),
            "llama_sampler_init_min_p", {"p": p, "min_keep": min_keep},
        )


class Typical(Sampler):
    """Locally typical sampling.

    Args:
        p: From 0 to 1; 1 keeps all.
        min_keep: Keep at least so many.

    Wraps ``llama_sampler_init_typical``.
    """

    def __init__(self, p, min_keep=1):
        guard.enter()
        (<Sampler?> self).own(
            lib.llama_sampler_init_typical(number(p, "p", 0, 1), _min_keep(min_keep)),
            "llama_sampler_init_typical", {"p": p, "min_keep": min_keep},
        )


class Temp(Sampler):
    """Divide the logits by t; t <= 0 leaves only the most likely token. Wraps ``llama_sampler_init_temp``."""

    def __init__(self, t):
        guard.enter()
        (<Sampler?> self).own(lib.llama_sampler_init_temp(number(t, "t")), "llama_sampler_init_temp", {"t": t})


class TempExt(Sampler):
    """Temperature that follows the entropy of the distribution.

    Args:
        t: Middle of the range.
        delta: The temperature goes from t - delta to t + delta.
        exponent: How entropy maps into that range.

    Wraps ``llama_sampler_init_temp_ext``.
    """

    def __init__(self, t, delta=0.0, exponent=1.0):
        guard.enter()
        (<Sampler?> self).own(
            lib.llama_sampler_init_temp_ext(number(t, "t"), number(delta, "delta"), number(exponent, "exponent")),
            "llama_sampler_init_temp_ext", {"t": t, "delta": delta, "exponent": exponent},
        )


class XTC(Sampler):
    """Exclude top choices: drop all but the least likely of the tokens above a threshold, now and then.

    Args:
        p: Probability that it acts at a step, from 0 to 1.
        t: Threshold of probability, from 0 to 1; above 0.5 it never acts.
        min_keep: Keep at least so many.
        seed: As in :class:`Dist`.

    Wraps ``llama_sampler_init_xtc``.
    """

    def __init__(self, p, t, min_keep=1, seed=None):
        seed = _seed(seed)
        guard.enter()
        (<Sampler?> self).own(
            lib.llama_sampler_init_xtc(
                number(p, "p", 0, 1), number(t, "t", 0, 1), _min_keep(min_keep), seed
            ),
            "llama_sampler_init_xtc", {"p": p, "t": t, "min_keep": min_keep, "seed": seed},
        )


class TopNSigma(Sampler):
    """Keep tokens whose logit is within n standard deviations of the largest; n <= 0 keeps all.

    Wraps ``llama_sampler_init_top_n_sigma``.
    """

    def __init__(self, n):
        guard.enter()
        (<Sampler?> self).own(
            lib.llama_sampler_init_top_n_sigma(number(n, "n")), "llama_sampler_init_top_n_sigma", {"n": n}
        )


class Mirostat(Sampler):
    """Mirostat 1: keep the surprise of the text near a target. Selects a token.

    Args:
        n_vocab: Size of the vocabulary.
        seed: As in :class:`Dist`.
        tau: Target cross-entropy.
        eta: Learning rate.
        m: Tokens used to estimate the slope of the distribution.

    Wraps ``llama_sampler_init_mirostat``.
    """

    def __init__(self, n_vocab, seed=None, tau=5.0, eta=0.1, m=100):
        cdef int32_t c_n_vocab = _n_vocab(n_vocab)
        cdef int32_t c_m = int32(m, "m")
        if not 2 <= c_m <= MAX_VOCAB:
            raise errors.InvalidArgumentError(f"m must be from 2 to {MAX_VOCAB}, not {c_m}")
        seed = _seed(seed)
        guard.enter()
        (<Sampler?> self).own(
            lib.llama_sampler_init_mirostat(
                c_n_vocab, seed, number(tau, "tau", 0), number(eta, "eta", 0), c_m
            ),
            "llama_sampler_init_mirostat", {"n_vocab": c_n_vocab, "seed": seed, "tau": tau, "eta": eta, "m": c_m},
        )


class MirostatV2(Sampler):
    """Mirostat 2: as :class:`Mirostat`, with a simpler estimate. Selects a token.

    Args:
        seed: As in :class:`Dist`.
        tau: Target cross-entropy.
        eta: Learning rate.

    Wraps ``llama_sampler_init_mirostat_v2``.
    """

    def __init__(self, seed=None, tau=5.0, eta=0.1):
        seed = _seed(seed)
        guard.enter()
        (<Sampler?> self).own(
            lib.llama_sampler_init_mirostat_v2(seed, number(tau, "tau", 0), number(eta, "eta", 0)),
            "llama_sampler_init_mirostat_v2", {"seed": seed, "tau": tau, "eta": eta},
        )


class AdaptiveP(Sampler):
    """Select tokens near a target probability over time. Selects a token; put MinP before it.

    Args:
        target: From 0 to 1; negative switches it off.
        decay: From 0 to 0.99: how long the past counts.
        seed: As in :class:`Dist`.

    Wraps ``llama_sampler_init_adaptive_p``.
    """

    def __init__(self, target, decay=0.9, seed=None):
        seed = _seed(seed)
        guard.enter()
        (<Sampler?> self).own(
            lib.llama_sampler_init_adaptive_p(
                number(target, "target", -math.inf, 1), number(decay, "decay", 0, 0.99), seed
            ),
            "llama_sampler_init_adaptive_p", {"target": target, "decay": decay, "seed": seed},
        )


class Grammar(Sampler):
    """Allow only tokens that a GBNF grammar allows.

    Args:
        vocab: The tokenizer of the model.
        grammar: The rules, in GBNF.
        root: Name of the start rule.
        trigger_patterns: Lazy grammar: regular expressions; the grammar begins to hold at the first match of one.
        trigger_tokens: Lazy grammar: tokens at which the grammar begins to hold.

    Raises:
        GrammarError: The grammar could not be parsed; the message names line and column, or ``.log`` holds llama.cpp's
            words.

    Wraps ``llama_sampler_init_grammar`` and ``llama_sampler_init_grammar_lazy_patterns``.
    """

    def __init__(self, Vocab vocab not None, str grammar, str root="root", *, trigger_patterns=(), trigger_tokens=()):
        cdef const lib.llama_vocab * c_vocab = vocab.require()
        cdef lib.llama_sampler * ptr
        cdef vector[const char *] patterns
        cdef vector[int32_t] tokens
        if not grammar.strip():
            raise errors.GrammarError("the grammar is empty")
        text, start = grammar.encode(), root.encode()
        check(grammar, root)
        encoded = [c_text(pattern, "a trigger pattern") for pattern in trigger_patterns]
        for pattern in encoded:
            check_pattern(pattern, "a trigger pattern")
        for pattern in encoded:
            patterns.push_back(<const char *> <bytes> pattern)
        for token in trigger_tokens:
            vocab.check_token(int32(token, "a trigger token"))
            tokens.push_back(token)
        if patterns.empty() and tokens.empty():
            ptr = lib.llama_sampler_init_grammar(c_vocab, text, start)
        else:
            ptr = lib.llama_sampler_init_grammar_lazy_patterns(
                c_vocab, text, start, patterns.data(), patterns.size(), tokens.data(), tokens.size()
            )
        params = {"grammar": grammar, "root": root}
        if trigger_patterns:
            params["trigger_patterns"] = tuple(trigger_patterns)
        if trigger_tokens:
            params["trigger_tokens"] = tuple(trigger_tokens)
        (<Sampler?> self).own(
            ptr, "llama_sampler_init_grammar", params, vocab.model,
            errors.GrammarError, "the grammar could not be parsed",
        )


class Penalties(Sampler):
    """Penalise tokens that appeared among the last ones.

    Args:
        n_vocab: Size of the vocabulary.
        last_n: How many tokens to look back; 0 switches it off.
        repeat: Divides the logit of a repeated token; must be greater than 0, and 1 is off.
        freq: Subtracted for each occurrence.
        present: Subtracted once for a token that occurred.

    Tokens count from the moment they are accepted: accept the prompt too if it should count.

    Wraps ``llama_sampler_init_penalties``.
    """

    def __init__(self, n_vocab, last_n=64, repeat=1.0, freq=0.0, present=0.0):
        cdef int32_t c_n_vocab = _n_vocab(n_vocab)
        if not repeat > 0:
            raise errors.InvalidArgumentError(f"repeat must be greater than 0 (1 is off), not {repeat}")
        guard.enter()
        (<Sampler?> self).own(
            lib.llama_sampler_init_penalties(
                c_n_vocab, _last_n(last_n), number(repeat, "repeat", 0, 1e30), number(freq, "freq", -1e30, 1e30),
                number(present, "present", -1e30, 1e30),
            ),
            "llama_sampler_init_penalties",
            {"n_vocab": c_n_vocab, "last_n": last_n, "repeat": repeat, "freq": freq, "present": present},
        )


class DRY(Sampler):
    """Don't repeat yourself: penalise tokens that would prolong a repetition.

    Args:
        vocab: The tokenizer of the model.
        multiplier: Strength; 0 is off.
        base: The penalty grows by this factor for each repeated token.
        allowed_length: Repetitions up to this length are free.
        last_n: How many tokens to look back; 0 switches it off.
        seq_breakers: Texts at which a repetition ends.

    Wraps ``llama_sampler_init_dry``.
    """

    def __init__(
        self, Vocab vocab not None, multiplier=0.8, base=1.75, allowed_length=2, last_n=4096,
        seq_breakers=("\n", ":", '"', "*"),
    ):
        cdef int32_t c_allowed_length = int32(allowed_length, "allowed_length")
        cdef const lib.llama_vocab * c_vocab = vocab.require()
        cdef vector[const char *] breakers
        if c_allowed_length < 0:
            raise errors.InvalidArgumentError(f"allowed_length must be at least 0, not {c_allowed_length}")
        encoded = [text.encode() for text in seq_breakers]
        for text in encoded:
            breakers.push_back(<const char *> <bytes> text)
        (<Sampler?> self).own(
            lib.llama_sampler_init_dry(
                c_vocab, number(multiplier, "multiplier", 0), number(base, "base", 0), c_allowed_length,
                _last_n(last_n), breakers.data(), breakers.size(),
            ),
            "llama_sampler_init_dry",
            {"multiplier": multiplier, "base": base, "allowed_length": c_allowed_length, "last_n": last_n}, vocab.model,
        )


class LogitBias(Sampler):
    """Add a number to the logits of some tokens; ``-inf`` forbids them, and ``+inf`` forces them.

    Args:
        n_vocab: Size of the vocabulary.
        bias: dict of token id to float. With several at ``+inf`` one of these is chosen, by their logits.

    Raises:
        InvalidArgumentError: A token is out of range, or a bias is NaN.

    Wraps ``llama_sampler_init_logit_bias``.
    """

    def __init__(self, n_vocab, bias):
        cdef int32_t c_n_vocab = _n_vocab(n_vocab)
        cdef vector[lib.llama_logit_bias] entries
        cdef vector[int32_t] tokens
        cdef lib.llama_sampler * ptr
        cdef lib.llama_logit_bias entry
        for token, value in dict(bias).items():
            if not 0 <= operator.index(token) < n_vocab:
                raise errors.InvalidArgumentError(f"token {token} is not from 0 to {c_n_vocab - 1}")
            entry.token = token
            entry.bias = number(value, f"bias[{token}]")
            if entry.bias == INFINITY:
                tokens.push_back(token)
            else:
                entries.push_back(entry)
        guard.enter()
        ptr = lib.llama_sampler_init_logit_bias(c_n_vocab, <int32_t> entries.size(), entries.data())
        if not tokens.empty():
            ptr = make_forced(tokens, ptr)
        (<Sampler?> self).own(
            ptr, "llama_sampler_init_logit_bias", {"n_vocab": c_n_vocab, "bias": dict(bias)},
        )


class Infill(Sampler):
    """For filling in the middle: merge candidates with a common prefix, and end early when unsure.

    Put it after TopK and TopP.

    Wraps ``llama_sampler_init_infill``.
    """

    def __init__(self, Vocab vocab not None):
        cdef const lib.llama_vocab * c_vocab = vocab.require()
        (<Sampler?> self).own(
            lib.llama_sampler_init_infill(c_vocab), "llama_sampler_init_infill", {}, vocab.model
        )
