"""From sampling parameters to a chain of llama.cpp's samplers, in the order of its own programs."""

from __future__ import annotations

import secrets

from pyllm.core.sampler import Chain
from pyllm.core.samplers import Dist, Grammar, Greedy, LogitBias, MinP, Penalties, Temp, TopK, TopP, Typical
from pyllm.core.vocab import Vocab
from pyllm.params import SamplingParams


def new_seed() -> int:
    """A random seed."""
    return secrets.randbelow(0xFFFFFFFF)


def build_chain(params: SamplingParams, vocab: Vocab, seed: int) -> Chain:
    """Make the chain for one generation.

    Args:
        params: What to apply; samplers that would change nothing are left out.
        vocab: The tokenizer of the model.
        seed: For the final choice.
    """
    chain = Chain()
    if params.logit_bias:
        chain.add(LogitBias(len(vocab), params.logit_bias))
    if params.grammar is not None:
        chain.add(Grammar(vocab, params.grammar))
    if params.penalises:
        chain.add(
            Penalties(
                len(vocab),
                params.repeat_last_n,
                params.repeat_penalty,
                params.frequency_penalty,
                params.presence_penalty,
            )
        )
    if params.temperature == 0:
        return chain.add(Greedy())
    if params.top_k > 0:
        chain.add(TopK(params.top_k))
    if params.typical_p < 1:
        chain.add(Typical(params.typical_p))
    if params.top_p < 1:
        chain.add(TopP(params.top_p))
    if params.min_p > 0:
        chain.add(MinP(params.min_p))
    return chain.add(Temp(params.temperature)).add(Dist(seed))
