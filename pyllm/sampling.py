"""From sampling parameters to a chain of llama.cpp's samplers, in the order of its own programs."""

from __future__ import annotations

import numbers
import secrets
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from pyllm.core.constrained import Constrained
from pyllm.core.sampler import Chain, Sampler
from pyllm.core.samplers import (
    DRY,
    XTC,
    AdaptiveP,
    Dist,
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
from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError
from pyllm.params import SAMPLER_ORDER, SamplingParams


def new_seed() -> int:
    """A random seed."""
    return secrets.randbelow(0xFFFFFFFF)


def build_chain(params: SamplingParams, vocab: Vocab, seed: int) -> Chain:
    """Make the chain for one generation.

    Args:
        params: What to apply; samplers that would change nothing are left out. With a grammar they are inside of a
            :class:`pyllm.core.constrained.Constrained`.
        vocab: The tokenizer of the model.
        seed: For the final choice, and for XTC.

    Raises:
        InvalidArgumentError: A token or text in logit_bias is not one of the vocabulary.
        GrammarError: The grammar cannot be parsed.
    """
    chain = _choosers(params, vocab, seed)
    if params.grammar is None:
        return chain
    from pyllm.structured.grammar import Grammar  # only here: most texts have none

    grammar = Grammar(params.grammar) if isinstance(params.grammar, str) else params.grammar
    return Chain(Constrained(vocab, grammar.sampler(vocab), chain, control_tokens=grammar.control_tokens))


def _choosers(params: SamplingParams, vocab: Vocab, seed: int) -> Chain:
    """The samplers without the grammar."""
    chain = Chain()
    biases = _biases(params.logit_bias or {}, vocab)
    if biases:
        chain.add(LogitBias(len(vocab), biases))
    if params.mirostat == 1:
        chain.add(Temp(params.temperature))
        return chain.add(Mirostat(len(vocab), seed, params.mirostat_tau, params.mirostat_eta))
    if params.mirostat == 2:
        return chain.add(Temp(params.temperature)).add(MirostatV2(seed, params.mirostat_tau, params.mirostat_eta))
    greedy = _is_greedy(params)
    for name in SAMPLER_ORDER if params.samplers is None else params.samplers:
        # Before the most likely token is taken, nothing matters that always keeps it.
        if greedy and name not in ("penalties", "dry"):
            continue
        sampler = _MAKERS[name](params, vocab, seed)
        if sampler is not None:
            chain.add(sampler)
    if greedy:
        return chain.add(Greedy())
    if params.adaptive_target >= 0:
        return chain.add(AdaptiveP(params.adaptive_target, params.adaptive_decay, seed))
    return chain.add(Dist(seed))


def accept_prompt(chain: Chain, ids: NDArray[np.int32]) -> None:
    """Let those members of a chain count the prompt that look back at it: penalties and DRY, and no grammar."""
    for member in chain:
        if isinstance(member, Constrained):
            accept_prompt(member.samplers, ids)
        elif isinstance(member, (Penalties, DRY)):
            for token in ids[-member.params["last_n"] :].tolist():
                member.accept(token)


def _is_greedy(params: SamplingParams) -> bool:
    """Whether always the most likely token is taken, of those that no penalty moves."""
    names = SAMPLER_ORDER if params.samplers is None else params.samplers
    removes_the_best = "infill" in names or params.typical_p < 1 or _xtc_is_on(params)
    return (
        "temperature" in names
        and params.temperature == 0
        and params.dynatemp_range == 0
        and params.adaptive_target < 0
        and not removes_the_best
    )


def _xtc_is_on(params: SamplingParams) -> bool:
    return params.xtc_probability > 0 and params.xtc_threshold <= 0.5


def _biases(biases: Mapping[int | str, float], vocab: Vocab) -> dict[int, float]:
    # llama.cpp's programs never choose the tokens that a model asks to suppress.
    merged: dict[int, float] = dict.fromkeys(vocab.suppress_tokens, float("-inf"))
    for token, bias in biases.items():
        if isinstance(token, str):
            ids = vocab.tokenize(token, add_special=False, parse_special=True)
            if len(ids) != 1:
                raise InvalidArgumentError(
                    f"logit_bias: {token!r} is {len(ids)} tokens of this model, not one; give the ids of tokens",
                    param="logit_bias",
                )
            token = ids[0]
        if not isinstance(token, numbers.Integral) or not isinstance(bias, numbers.Real):
            raise InvalidArgumentError(
                f"logit_bias takes numbers by token id or by text, such as {{42: -1.5}}, not {{{token!r}: {bias!r}}}"
            )
        before = merged.get(token, 0.0)
        # Who forces a token that the model asks to suppress means it.
        merged[token] = bias if bias == float("inf") else before + bias
    return merged


def _penalties(params: SamplingParams, vocab: Vocab, seed: int) -> Sampler | None:
    if not params.penalises:
        return None
    return Penalties(
        len(vocab), params.repeat_last_n, params.repeat_penalty, params.frequency_penalty, params.presence_penalty
    )


def _dry(params: SamplingParams, vocab: Vocab, seed: int) -> Sampler | None:
    if params.dry_multiplier == 0 or params.dry_base < 1 or params.dry_penalty_last_n == 0:
        return None
    return DRY(
        vocab,
        params.dry_multiplier,
        params.dry_base,
        params.dry_allowed_length,
        params.dry_penalty_last_n,
        params.dry_sequence_breakers,
    )


def _xtc(params: SamplingParams, vocab: Vocab, seed: int) -> Sampler | None:
    if not _xtc_is_on(params):
        return None
    return XTC(params.xtc_probability, params.xtc_threshold, params.min_keep, seed)


def _temperature(params: SamplingParams, vocab: Vocab, seed: int) -> Sampler | None:
    if params.dynatemp_range > 0:
        return TempExt(params.temperature, params.dynatemp_range, params.dynatemp_exponent)
    return Temp(params.temperature)


_MAKERS: dict[str, Callable[[SamplingParams, Vocab, int], Sampler | None]] = {
    "penalties": _penalties,
    "dry": _dry,
    "top_n_sigma": lambda params, vocab, seed: TopNSigma(params.top_n_sigma) if params.top_n_sigma > 0 else None,
    "top_k": lambda params, vocab, seed: TopK(params.top_k) if params.top_k > 0 else None,
    "typ_p": lambda params, vocab, seed: Typical(params.typical_p, params.min_keep) if params.typical_p < 1 else None,
    "top_p": lambda params, vocab, seed: TopP(params.top_p, params.min_keep) if params.top_p < 1 else None,
    "min_p": lambda params, vocab, seed: MinP(params.min_p, params.min_keep) if params.min_p > 0 else None,
    "xtc": _xtc,
    "temperature": _temperature,
    "infill": lambda params, vocab, seed: Infill(vocab),
    # It chooses the token, and so it stands at the end wherever it is named.
    "adaptive_p": lambda params, vocab, seed: None,
}
